"""Tiny runs in processes of their own, of every kind of adapter and update, and whether two ended alike, bit by bit."""

import json
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from preloaded import LONGEST, Preloaded, Started

from utils.runs.checkpoint import read_checkpoint
from utils.runs.directory import RESULTS, STATES
from utils.runs.log import METRICS

CLASSES, TRAIN, TEST, BATCH = 6, 24, 12, 8  # images of a class; images of a batch
KEYS: dict[str, Any] = {
    "dataset": "npz",
    "backbone_type": "vit_tiny_patch16_224_adapter",
    "pretrained": False,
    "backbone_kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "device": "cpu",
    "num_workers": 0,
    "num_threads": 1,
    "seed": 4,
    "init_cls": 2,
    "increment": 2,
    "ffn_adapter_type": "nested_lora",
    "nested_lora_rank": 3,
    "nested_lora_update_interval_slow": 4,  # no divisor of the 6 steps of an epoch: intervals cross its end
    "adapt_start_layer": 1,
    "adapt_end_layer": 2,
    "rd_dim": 4,
    "buffer_size": 30,
    "batch_size": BATCH,
    "detect_batch_size": 8,
    "eval_batch_size": 8,
    "func_epoch": 3,
    "rd_epoch": 3,
    "exp_threshold": 1.0,
    "readouts": [],
}
STEPS = KEYS["increment"] * TRAIN // BATCH  # of an epoch
CONSOLIDATES = {"nested_lora_use_consolidation": True}
FUNCTION = {**CONSOLIDATES, "nested_lora_consolidation_mode": "function"}
KINDS: dict[str, dict[str, Any]] = {
    "skip": {"num_workers": 2},
    "accumulate": {"nested_lora_slow_update": "accumulate", "optimizer": "adam"},
    "weights": {**CONSOLIDATES, "nested_lora_fast_reset": "reinit"},
    "function": {**FUNCTION, "num_workers": 2, "readouts": ["ncm"]},
    "continual": {"adapter_lifetime": "continual", "nested_lora_slow_update": "accumulate", **FUNCTION},
    "adaptmlp": {"ffn_adapter_type": "adaptmlp", "optimizer": "adam", "readouts": ["ncm"]},
}
EPOCH_LINE = re.compile(r"task \d+ (?:func|rd) epoch \d+: loss")


def write_images(path: Path) -> None:
    """Six classes, each of one brightness plus noise."""
    rng = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        arrays[f"y_{split}"] = np.repeat(np.arange(CLASSES), count)
        noise = rng.randint(0, 60, size=(CLASSES * count, 20, 20, 3))
        arrays[f"x_{split}"] = (noise + 30 * arrays[f"y_{split}"][:, None, None, None]).astype(np.uint8)
    np.savez(path, **arrays)


@dataclass(frozen=True)
class TinyRun:
    """A run that can be begun and gone on with.

    Attributes:
        config: Its configuration file; what it writes goes into a folder of that name.
    """

    preloaded: Preloaded
    config: Path

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return self.config.with_suffix("")

    @property
    def path(self) -> Path | None:
        """Its run directory; None before there is one."""
        logs = self.folder / "logs"
        return next(logs.iterdir(), None) if logs.exists() else None

    def start(self, *flags: str, before: str = "") -> Started:
        """Begin it, or go on with it, by its configuration."""
        return self._start(["--config", str(self.config), *flags], before)

    def resume(self, *flags: str, before: str = "") -> Started:
        """Go on with it, by its directory alone."""
        return self._start(["--resume", str(self.path), *flags], before)

    def until_saved(self, number: int, process: Started) -> None:
        """Wait until a process of this run has saved the state of that number, counted from 0, or a later one.

        Raises:
            AssertionError: It ended before, or did not get there.
        """
        deadline = time.monotonic() + LONGEST
        while not any(int(state.stem) >= number for state in self.folder.glob(f"logs/*/{STATES}/*[0-9].state")):
            assert not process.ends_within(0.005), process.errors
            assert time.monotonic() < deadline

    def killed(self, number: int) -> Path:
        """Begin it and kill it when it has saved the state of that number; its directory."""
        process = self.start()
        self.until_saved(number, process)
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert self.path is not None
        return self.path

    def whole(self) -> float:
        """Let it run without interruption; its duration in seconds."""
        begun = time.monotonic()
        finish(self.start())
        return time.monotonic() - begun

    def _start(self, argv: list[str], before: str) -> Started:
        consoles = self.folder / "consoles"
        number = len(list(consoles.iterdir())) if consoles.exists() else 0
        return self.preloaded.start(argv, consoles / str(number), before)


class Workshop:
    """Makes tiny runs in a folder.

    Args:
        preloaded: From which processes are forked.
        folder: Theirs alone.
    """

    def __init__(self, preloaded: Preloaded, folder: Path) -> None:
        self.preloaded, self.folder = preloaded, folder
        folder.mkdir(parents=True, exist_ok=True)
        write_images(folder / "images.npz")

    def make(self, name: str, keys: Mapping[str, Any]) -> TinyRun:
        """A run of that name; the keys given beat the tiny ones."""
        config = self.folder / f"{name}.json"
        own = {"data_root": str(self.folder / "images.npz"), "output_dir": str(self.folder / name / "logs")}
        config.write_text(json.dumps({**KEYS, **own, **keys}))
        return TinyRun(self.preloaded, config)


def finish(run: Started) -> None:
    """Wait for a run that is to come to its end.

    Raises:
        AssertionError: It ended otherwise.
    """
    assert run.wait() == 0, f"exit code {run.code}\n{run.errors}"
    run.end()


# ---- whether two runs ended alike


def differences(path: Path, whole: Path) -> list[str]:
    """What a finished run's directory holds otherwise than the uninterrupted run's; nothing if they are equal."""
    found = []
    if results_of(path) != results_of(whole):
        found.append(RESULTS)
    if events_of(path) != events_of(whole):
        found.append(METRICS)
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*")} for folder in (path, whole)]
    found += sorted(names[0] ^ names[1])
    found += [
        file.name
        for file in (whole / "checkpoints").iterdir()
        if file.name not in found and tensors_of(file) != tensors_of(path / "checkpoints" / file.name)
    ]
    return found


def results_of(path: Path) -> dict[str, Any]:
    """results.json without its key `run`."""
    return {key: value for key, value in json.loads((path / RESULTS).read_text()).items() if key != "run"}


def events_of(path: Path) -> list[str]:
    """The lines of metrics.jsonl as they are."""
    return (path / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)


def tensors_of(file: Path) -> dict[str, tuple[Any, ...]]:
    """The bytes of a checkpoint's tensors: NaN is equal to itself there, and 0 is not -0."""
    tensors, _ = read_checkpoint(file)
    return {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()}


def epochs_repeated(path: Path) -> int:
    """How many epochs the log of a finished run reports beyond those of its metrics: they were trained again."""
    reported = len(EPOCH_LINE.findall((path / "log.txt").read_text(encoding="utf-8")))
    return reported - sum('{"kind": "epoch"' in line for line in events_of(path))
