"""What a task costs after many tasks, and with many adapters at a layer.

    python -m benchmarks.growth [--vit NAME --kwargs JSON] [--batch 16] [--rounds 3] [--threads 1 --clock cpu]
                                [--json FILE] [--write]
    python -m benchmarks.growth --from FILE --write

A small network really learns one task after the other, none of which adds an adapter; the adapters are added to another
one at once. `--write` puts the tables into docs/performance.md, into the part of the device's kind.

Shapes: S image side.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import gc
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.command import run_command
from benchmarks.growth_tables import tables
from benchmarks.measure import Timer, Work, costs, peak_memory
from benchmarks.timing import origin, publish, timing_parser
from benchmarks.workloads import Setting, Workshop, evaluation, func_step, rd_step, scan, with_adapters
from models.sema import Learner

TASKS = (10, 20, 50, 100)
ADAPTERS = (1, 4, 16, 32)
CLASSES = 2  # of a task
TRAIN, TEST = 16, 4  # images of a class
VIT, BATCH = "vit_tiny_patch16_224", 16
SMALL = {"img_size": 64, "patch_size": 8, "depth": 6}
KEYS = {
    "func_epoch": 1,
    "rd_epoch": 1,
    "exp_threshold": 1e9,  # no task adds an adapter
    "eval_cache_gib": 1 / 64,  # so that the bound is met on the way
}
WORKS = {"func step": func_step, "rd step": rd_step, "scan": scan, "evaluation": evaluation}


class Pictures(Dataset[tuple[int, Tensor, int]]):
    """Images of some classes, cut from the same few noise images: however many there are, they take no room."""

    def __init__(self, noise: Tensor, classes: Iterable[int], each: int) -> None:
        self.noise, self.classes, self.each = noise, list(classes), each

    def __len__(self) -> int:
        return len(self.classes) * self.each

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        return index, self.noise[index % len(self.noise)], self.classes[index // self.each]


class Stream:
    """Stands in for the DataManager: a task is a few classes of `Pictures`."""

    def __init__(self, side: int) -> None:
        self.noise = torch.rand(TRAIN, 3, side, side)

    def get_task_size(self, task: int) -> int:
        """The same for each task."""
        return CLASSES

    def get_dataset(self, indices: Iterable[int], source: str, *_: Any, **__: Any) -> Dataset[Any]:
        """Training or test images of the classes `indices`."""
        return Pictures(self.noise, indices, TRAIN if source == "train" else TEST)


def of_tasks(setting: Setting, rounds: int, timer: Timer, shown: Sequence[int] = TASKS) -> dict[int, dict[str, Any]]:
    """What the tasks of these numbers cost, the fields of `_shown`; of `rounds` tasks up to each the best counts."""
    before = alive()
    sizes = {"detect_batch_size": setting.batch, "eval_batch_size": setting.batch}
    learner = Learner(setting.setup({**KEYS, **sizes}, CLASSES * max(shown)))
    data = Stream(setting.sketch.patch_embed.img_size[0])
    found, taken = {}, []
    for task in range(1, 1 + max(shown)):
        measured = _learn(learner, data, timer, scores=any(0 <= number - task < rounds for number in shown))
        taken.append(measured)
        if task in shown:
            found[task] = _shown(learner, taken[-rounds:], alive() - before)
        learner.after_task()
    return found


def _learn(learner: Learner, data: Stream, timer: Timer, scores: bool) -> dict[str, Any]:
    """Seconds of the next task's training and of its evaluation, if that is asked for, and the training's peak."""
    once, taken = replace(timer, repeats=1), []
    peak = peak_memory(lambda: taken.append(once(lambda: learner.incremental_train(data))), timer.device)
    return {"training": taken[0], "evaluation": once(learner.predict) if scores else None, "peak": peak}


def _shown(learner: Learner, taken: list[dict[str, Any]], tensors: int) -> dict[str, Any]:
    """Seconds of a task's training and of evaluating an image, and bytes: the training's peak, and what stays after.

    Of what stays there is `cache`, the test images kept half way through the network, and `tensors`, all the rest.
    """
    batches = learner.evaluator.cache.batches(learner.network.active_branches)
    kept = sum(batch.x.nbytes + batch.labels.nbytes for batch in batches)
    peaks = [one["peak"] for one in taken if one["peak"] is not None]
    return {
        "training": min(one["training"] for one in taken),
        "evaluation": min(one["evaluation"] for one in taken) / len(learner.test_loader),
        "peak": min(peaks) if peaks else None,
        "cache": kept,
        "tensors": tensors - kept,
    }


def alive() -> int:
    """Bytes of all tensors there are, but for sparse ones, which a learner has none of; shared memory counts once."""
    gc.collect()
    things = gc.get_objects()
    kinds = {kind for kind in {type(thing) for thing in things} if issubclass(kind, Tensor)}
    tensors = [t for t in things if type(t) in kinds and t.layout == torch.strided and t.device.type != "meta"]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def of_adapters(
    setting: Setting, rounds: int, timer: Timer, numbers: Sequence[int] = ADAPTERS
) -> dict[int, dict[str, Any]]:
    """By number of adapters at a layer and by work the fields of `Cost`; all take turns."""
    shop = Workshop(setting)
    works: dict[tuple[int, str], Work] = {
        (n, name): shop.placed(with_adapters(n), work, "exact") for n in numbers for name, work in WORKS.items()
    }
    found = costs(works, rounds, timer)
    return {n: {name: asdict(found[n, name]) for name in WORKS} for n in numbers}


def report(setting: Setting, rounds: int, timer: Timer) -> dict[str, Any]:
    """Everything measured, JSON-ready: `setting`, `machine`, and by number what `of_tasks` and `of_adapters` found."""
    measured = {"tasks": of_tasks(setting, rounds, timer), "adapters": of_adapters(setting, rounds, timer)}
    named = {name: {str(n): cost for n, cost in by_number.items()} for name, by_number in measured.items()}
    return {**origin(setting, rounds, timer), **named}


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and write what is asked for."""
    parser = timing_parser("growth", __doc__, rounds=3)
    parser.set_defaults(vit=VIT, kwargs=SMALL, batch=BATCH)
    given = parser.parse_args(arguments)
    publish(given, "growth", lambda setting, timer: report(setting, given.rounds, timer), tables)


if __name__ == "__main__":
    run_command(main)
