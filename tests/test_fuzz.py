"""Damaged and made-up files, thousands of them: whatever reads files of strangers reads them or says what is wrong.

Any exception other than the documented ones fails, and so does an example that takes long. NESTED_SEMA_FUZZ=100 runs a
hundred times as many examples as the suite does, each time others.
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from finished_runs import PilotRun, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import TOKENS, VALUES, as_json, changed, damaged
from recorded_events import record
from safetensors.torch import save

from tools.compare.comparison import compare
from tools.compare.data import as_json as comparison_json
from tools.compare.tables import terminal
from tools.finished.reader import read_run
from tools.verify import verify
from utils.config.flags import parse
from utils.config.load import load
from utils.config.schema import defaults, schemas
from utils.data.sources import load_dataset
from utils.errors import ConfigError, DataError, UserError
from utils.inc_net import SEMAVitNet
from utils.runs.checkpoint import FORMAT, CheckpointError, read_checkpoint, read_config
from utils.runs.events import KINDS, read_events

EXPS = Path(__file__).parents[1] / "exps"
TIMES = int(os.environ.get("NESTED_SEMA_FUZZ", "1"))


def fuzz(examples: int) -> Callable[[Any], Any]:
    """So many examples in the suite, the same every time; `TIMES` as many on demand."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=timedelta(seconds=20),
        suppress_health_check=list(HealthCheck),
    )


# ---- configuration and flags

VALID_CONFIG = json.loads((EXPS / "quickstart.json").read_text())


def load_bytes(folder: Path, content: bytes) -> None:
    (folder / "x.json").write_bytes(content)
    with contextlib.suppress(ConfigError):
        load(folder / "x.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzz(150)
@given(content=damaged((EXPS / "quickstart.json").read_bytes()))
def test_a_damaged_configuration(folder: Path, content: bytes) -> None:
    load_bytes(folder, content)


@fuzz(150)
@given(value=changed(VALID_CONFIG))
def test_a_made_up_configuration(folder: Path, value: Any) -> None:
    load_bytes(folder, as_json(value))


WORDS = st.sampled_from([f"--{key}" for key in schemas()] + [token.decode(errors="replace") for token in TOKENS])
MORE = [
    "--config",
    "--help",
    "--",
    "-h",
    "-1",
    "true",
    "null",
    "cub",
    "1",
    "0.5",
    "--seed=1",
    "--backbone_kwargs={}",
    "@x",
]


@fuzz(30)  # a tenth of a second each
@given(argv=st.lists(WORDS | st.sampled_from(MORE) | st.text(max_size=6), max_size=6))
def test_made_up_flags(argv: list[str]) -> None:
    code = 0
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            load(None, parse(argv)[1])
    except ConfigError:
        pass
    except SystemExit as ended:
        code = ended.code
    assert code in (0, 2)


# ---- checkpoints

META = {
    "config": VALID_CONFIG,
    "adapter_type": "nested_lora",
    "class_order": [1, 0, 2],
    "task_sizes": [2, 1],
    "accuracy": {"task_sizes": [2, 1], "count": [5, 5], "correct": [[3], [2, 4]]},
    "backbone": {"timm_name": "vit", "weights": "random", "sha256": "0" * 64},
}


@pytest.fixture(scope="module")
def network() -> SEMAVitNet:
    from conftest import TINY

    return SEMAVitNet(EasyDict({**defaults(), **TINY, "ffn_adapter_type": "nested_lora"}), 6)


def stored(network: SEMAVitNet, suffix: str) -> bytes:
    tensors = {key: value.contiguous() for key, value in network.learned_state().items()}
    if suffix == ".safetensors":
        return save(tensors, {"format": FORMAT, "meta": json.dumps(META)})
    content = io.BytesIO()
    torch.save(tensors, content)
    return content.getvalue()


def read_and_load(network: SEMAVitNet, path: Path) -> None:
    with contextlib.suppress(CheckpointError):
        tensors, meta = read_checkpoint(path)
        network.load_learned(tensors, meta)
    with contextlib.suppress(CheckpointError):
        read_config(path)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@fuzz(60)
@given(data=st.data())
def test_a_damaged_checkpoint(network: SEMAVitNet, folder: Path, suffix: str, data: st.DataObject) -> None:
    (folder / f"a{suffix}").write_bytes(data.draw(damaged(stored(network, suffix))))
    read_and_load(network, folder / f"a{suffix}")


@fuzz(60)
@given(meta=changed(META))
def test_made_up_metadata_of_a_checkpoint(network: SEMAVitNet, folder: Path, meta: Any) -> None:
    content = save({"fc.bias": torch.zeros(6)}, {"format": FORMAT, "meta": json.dumps(meta)})
    (folder / "meta.safetensors").write_bytes(content)
    read_and_load(network, folder / "meta.safetensors")


SLOT = "backbone.blocks.{}.adapter_module.adapters.{}."
INDICES = st.integers(-1, 8) | st.sampled_from(["00", "x", "9" * 30, "٣"])
PARTS = st.sampled_from(
    [
        "functional.slow.down_proj.weight",
        "functional.fast.up_proj.bias",
        "records.losses",
        "rd.encoder.weight",
        "router.weight",
    ]
)
NAMES = st.builds(lambda layer, index, part: SLOT.format(layer, index) + part, INDICES, INDICES, PARTS)
SHAPES = st.lists(st.integers(0, 40), max_size=3)


@fuzz(80)
@given(
    new=st.dictionaries(NAMES | st.text(max_size=5), SHAPES, max_size=5),
    drop=st.integers(0, 40),
    by_torch=st.booleans(),
)
def test_made_up_tensors_of_a_checkpoint(
    network: SEMAVitNet, folder: Path, new: dict[str, list[int]], drop: int, by_torch: bool
) -> None:
    tensors = dict(list(network.learned_state().items())[drop % 3 * drop :])
    tensors |= {name: torch.zeros(shape) for name, shape in new.items() if name != "__metadata__"}
    path = folder / ("made.pth" if by_torch else "made.safetensors")
    if by_torch:
        torch.save(tensors, path)
    else:
        with contextlib.suppress(UnicodeEncodeError):
            path.write_bytes(
                save({key: value.contiguous() for key, value in tensors.items()}, {"format": FORMAT, "meta": "{}"})
            )
    read_and_load(network, path)


# ---- arrays


def arrays() -> bytes:
    content, pixels = io.BytesIO(), np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    labels, names = np.array([0, 1]), np.array(["a", "b"])
    np.savez(content, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels, class_names=names)
    return content.getvalue()


def read_arrays(folder: Path, content: bytes) -> None:
    (folder / "a.npz").write_bytes(content)
    with contextlib.suppress(DataError):
        load_dataset("npz", folder / "a.npz")


@fuzz(150)
@given(content=damaged(arrays()))
def test_a_damaged_file_of_arrays(folder: Path, content: bytes) -> None:
    read_arrays(folder, content)


@fuzz(150)
@given(data=st.data())
def test_a_file_of_damaged_arrays(folder: Path, data: st.DataObject) -> None:
    """The archive is sound, what it holds is not."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(arrays())) as archive, zipfile.ZipFile(target, "w") as other:
        victim = data.draw(st.sampled_from(archive.namelist()))
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, data.draw(damaged(content)) if name == victim else content)
    read_arrays(folder, target.getvalue())


# ---- runs and logs


def read_all(path: Path) -> None:
    """Read a run or a log, and say what is to be said of it."""
    with contextlib.suppress(UserError):
        comparison = compare([path], str(path))
        terminal(comparison)
        comparison_json(comparison)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    path = write_run(folder, "nested", 1, [[90], [80, 70]], ffn_adapter_type="nested_lora")
    record(path, tasks=2)
    return path


@contextlib.contextmanager
def instead(file: Path, content: bytes) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:  # otherwise an error would show as one of the examples that follow
        file.write_bytes(before)


FILES = ["config.json", "environment.json", "metrics.jsonl", "results.json"]


@pytest.mark.parametrize("name", FILES)
@fuzz(50)
@given(data=st.data())
def test_a_damaged_run(run: Path, name: str, data: st.DataObject) -> None:
    with instead(run / name, data.draw(damaged((run / name).read_bytes()))):
        read_all(run)
        for kind in KINDS:
            with contextlib.suppress(UserError):
                list(read_events(run / "metrics.jsonl", kind))


@pytest.mark.parametrize("name", [name for name in FILES if name != "metrics.jsonl"])
@fuzz(60)
@given(data=st.data())
def test_a_made_up_run(run: Path, name: str, data: st.DataObject) -> None:
    value = data.draw(changed(json.loads((run / name).read_text())))
    with instead(run / name, as_json(value)):
        with contextlib.suppress(UserError):
            read_run(run)
        with contextlib.suppress(UserError):
            verify(run)
        read_all(run)


LOG = PilotRun([[400], [350, 380], [300, 320, 390]], [5, 5, 5], dataset="cub", seed=[1], init_cls=5, increment=5).text()


@fuzz(150)
@given(content=damaged(LOG.encode()))
def test_a_damaged_log(folder: Path, content: bytes) -> None:
    (folder / "a.log").write_bytes(content)
    read_all(folder / "a.log")


STAMP = "2024-01-18 10:00:00,251 [trainer.py] => "
CURVES = ["CNN top1 curve", "CNN top5 curve", "Average Accuracy (CNN)", "Forgetting (CNN)", "Accuracy Matrix (CNN)"]
ODD = ["0x" + "f" * 5000, "1e999", "{[]: 1}", "{{}}", "[[1 2]", "[[1. 2.]\n [3. 4.]]", "{(1, 2): 3}", "nan", "'\\d'"]
RANGES = ["total", "old", "new", "00-04", "05-09", "0-0", "5-1", "0-999999", "9" * 30 + "-1", "x"]
PER_CENT = st.sampled_from([50.0, 0, 100, -1, 1e9, 1e300, 10**400, None, "x", True, float("inf"), float("nan")])
LINES = st.builds(
    lambda stamp, key, value, end: f"{stamp}{key}: {value}{end}",
    st.sampled_from([STAMP, "", STAMP.replace("01-18", "02-31")]),
    st.sampled_from(["CNN", "seed", "init_cls", "increment", "NME", *CURVES]),
    (VALUES | st.lists(PER_CENT, max_size=5) | st.dictionaries(st.sampled_from(RANGES), PER_CENT, max_size=5)).map(repr)
    | st.sampled_from(ODD),
    st.sampled_from(["", "\r", "}", "]"]),
)


@fuzz(250)
@given(lines=st.lists(LINES, max_size=12))
def test_a_made_up_log(folder: Path, lines: list[str]) -> None:
    (folder / "b.log").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    read_all(folder / "b.log")
