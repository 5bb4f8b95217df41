"""Which device a run gets, on machines with and without GPUs."""

import os

import pytest
import torch

from utils.devices import check_compiler, prepare_device, resolve_device
from utils.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize("device", ["cpu", "-1", -1, ["cpu"], ["-1"], "auto", ["auto"]])
def test_the_cpu_without_a_gpu(gpus, device):
    gpus(0)
    assert resolve_device(device) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "index"), [("auto", 0), ("cuda", 0), ("0", 0), (0, 0), (["0"], 0), ("1", 1), ([1], 1)]
)
def test_a_gpu_by_name_or_number(gpus, device, index):
    gpus(2)
    assert resolve_device(device) == torch.device("cuda", index)


@pytest.mark.parametrize("device", ["cpu", -1])
def test_the_cpu_beside_gpus(gpus, device):
    gpus(2)
    assert resolve_device(device) == torch.device("cpu")


@pytest.mark.parametrize(("count", "device"), [(0, "0"), (0, "cuda"), (2, "2")])
def test_a_device_that_is_not_there_names_those_that_are(gpus, count, device):
    gpus(count)
    with pytest.raises(ConfigError, match="choose one of auto, cpu, -1") as caught:
        resolve_device(device)
    assert ("cuda, 0, 1" in str(caught.value)) == (count == 2)


def test_threads_are_set_only_if_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert prepare_device("cpu", 0) == prepare_device("cpu", 3) == torch.device("cpu")
    assert asked == [3]


def test_determinism_is_what_was_asked_for_last(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    prepare_device("cpu", 0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    prepare_device("cpu", 0)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("compiler", "error", "message"),
    [
        (
            "/nowhere/g++",
            RuntimeError("long text of torch"),
            "needs a C\\+\\+ compiler, and '/nowhere/g\\+\\+' was not found",
        ),
        ("sh", RuntimeError("long text of torch"), "compiler /.*sh, or the compiler of the GPU, failed"),
        ("sh", PermissionError(13, "Permission denied", "/cache"), "'/cache'; TORCHINDUCTOR_CACHE_DIR can name"),
    ],
)
def test_a_compiler_that_does_not_work_is_a_sentence(monkeypatch, compiler, error, message):
    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "compile", lambda _: fails)
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(ConfigError, match=f"^compile = true: .*{message}.* or set compile to false$") as raised:
        check_compiler(torch.device("cpu"))
    assert "long text" not in str(raised.value)
