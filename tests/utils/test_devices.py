"""Which device a run gets, on machines with and without GPUs."""

import logging
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from utils import devices
from utils.devices import bf16_note, check_compiler, layer_seconds, prepare_device, resolve_device
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


def test_float32_is_float32_in_convolutions_too():
    torch.backends.cudnn.allow_tf32 = True
    prepare_device("cpu", 0)
    assert not torch.backends.cudnn.allow_tf32


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


# ---- precision


@pytest.mark.parametrize(
    ("seconds", "level", "said"),
    [((0.010, 0.004), logging.INFO, "0.4 times"), ((0.010, 0.0691), logging.WARNING, "6.9 times")],
)
def test_bf16_is_said_to_gain_or_cost_what_a_layer_takes(monkeypatch, seconds, level, said):
    monkeypatch.setattr(devices, "layer_seconds", lambda layer, rows: seconds)
    monkeypatch.setattr(devices, "processor", lambda: "Some CPU, with AMX")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found, text = bf16_note(torch.device("cpu"), nn.Linear(2, 2), 4)
    assert found == level
    assert (
        f"a layer of this backbone takes {said} the time of fp32 on this processor (Some CPU, with AMX; 3 thr" in text
    )
    assert ("precision fp32 is faster here" in text) == (level == logging.WARNING)


def test_a_large_layer_is_timed_with_fewer_tokens(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(devices, "layer_seconds", lambda layer, rows: (asked.append(rows), (1.0, 1.0))[1])
    for width, tokens in ((384, 544), (1024, 25216)):
        bf16_note(torch.device("cpu"), nn.Linear(width, 4 * width, device="meta"), tokens)
    assert asked == [544, 119]  # 500 million products / (1024 * 4096)


def test_both_precisions_are_timed_without_a_draw_from_the_global_stream():
    layer, before = nn.Linear(8, 16), torch.get_rng_state()
    fp32, bf16 = layer_seconds(layer, 4)
    assert fp32 > 0 < bf16
    assert fp32 != bf16
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.weight.grad is None
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the limit is one of x86")
def test_a_processor_without_units_for_bf16_is_warned_of():
    """A library of torch can be told to do without these units."""
    code = (
        "import torch; from torch import nn; from utils.devices import bf16_note; torch.set_num_threads(1); "
        "print(*bf16_note(torch.device('cpu'), nn.Linear(384, 1536), 544))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith(f"{logging.WARNING} precision bf16: ")
    assert float(done.stdout.split(" takes ")[1].split()[0]) > 1.5


@pytest.mark.parametrize(("units", "level", "said"), [(True, logging.INFO, "has"), (False, logging.WARNING, "has no")])
def test_a_gpu_is_asked_for_units_for_bf16(monkeypatch, units, level, said):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    found, text = bf16_note(torch.device("cuda", 0), nn.Linear(2, 2), 4)
    assert (found, f"Some GPU {said} units for bfloat16" in text) == (level, True)
