"""Steps on a GPU by batch size: their share of the card's peak, their memory, and whether they wait for the device.

Shapes: B batch, N tokens, D embedding width.
"""

import gc
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Timer, Work, best_of, finish, multiply_adds, peak_memory, products
from benchmarks.timing import origin
from benchmarks.workloads import VARIANTS, Noise, Setting, Subject, Workshop, at_expansion, begun, noise
from models.gradients import Gradients
from models.sema import Learner
from models.views import KeptViews
from models.workload import VIEW
from utils.data.loader import Batch
from utils.devices import check_compiler

Save = Callable[[dict[str, Any]], None]
FORMATS = (torch.float32, torch.bfloat16)
ONE = f"func step, one expansion{VIEW}"
EAGER: list[Subject] = [
    *(("func step", variant) for variant in ("reference", "exact", "bf16")),
    *((ONE, variant) for variant in ("exact", "bf16")),
]
PASSES: list[Subject] = [  # at the batch sizes of scans and evaluations
    *((phase, variant) for phase in ("evaluation", "scan") for variant in ("reference", "exact", "bf16")),
    *(("view", variant) for variant in ("exact", "bf16")),
]
COMPILED: list[Subject] = [(phase, variant) for phase in ("func step", ONE) for variant in ("bf16", "bf16 compile")]
WATCHED: list[Subject] = [
    ("func step", "exact"),
    ("func step", "nested"),
    ("rd step", "exact"),
    (ONE, "exact"),
    (f"rd step, one expansion{VIEW}", "exact"),
]
KEPT_AS = {"exact": torch.float32, "bf16": torch.bfloat16}
OUT_OF_MEMORY = "out of memory"


def report(setting: Setting, rounds: int, timer: Timer, sizes: Sequence[int], save: Save) -> None:
    """Measure steps at each batch size, and scans and evaluations at the middle one; see `by_size`.

    What is handed over at last also has `waits`: by work what `waits` returns.
    """
    shop, middle = Workshop(setting), sizes[len(sizes) // 2]
    subjects = {size: [*EAGER, *(PASSES if size == middle else [])] for size in sizes}
    found = by_size(shop, subjects, rounds, timer, save)
    shop.batch = noise(setting, sizes[0])
    save({**found, "waits": {", ".join(subject): waits(shop.work(subject), setting.device) for subject in WATCHED}})


def compiled(setting: Setting, rounds: int, timer: Timer, sizes: Sequence[int], save: Save) -> None:
    """Measure compiled steps beside others; ConfigError if torch.compile does not work here."""
    check_compiler(setting.device)
    by_size(Workshop(setting), dict.fromkeys(sizes, COMPILED), rounds, timer, save)


def by_size(
    shop: Workshop, subjects: Mapping[int, Sequence[Subject]], rounds: int, timer: Timer, save: Save
) -> dict[str, Any]:
    """Measure works at batch sizes, and hand over what is measured so far, JSON-ready, after each.

    Keys: `setting`, `machine`, `peaks` (multiply-adds a second by number format), and `rows`: batch, phase, variant,
    number format, multiply-adds, bytes at the peak, and seconds, which are None where memory ran out.
    """
    setting, device = shop.setting, shop.setting.device
    measured = {**origin(setting, rounds, timer), "peaks": peaks(device, rounds, timer), "rows": []}
    each = _multiply_adds(shop, {phase for some in subjects.values() for phase, _ in some})
    for size, wanted in subjects.items():
        shop.batch = noise(setting, size)
        works = {subject: shop.work(subject) for subject in wanted}
        memory = {subject: _peak(work, device) for subject, work in works.items()}
        works = {subject: work for subject, work in works.items() if memory[subject] != OUT_OF_MEMORY}
        seconds = best_of(works, rounds, timer)
        for phase, variant in wanted:
            row = {"batch": size, "phase": phase, "variant": variant, "format": name_of(VARIANTS[variant].dtype)}
            counts = {"multiply_adds": size * each[phase], "memory": memory[phase, variant]}
            measured["rows"].append({**row, **counts, "seconds": seconds.get((phase, variant))})
        save(measured)
        works.clear()
        _free(device)
    return measured


def name_of(number_format: torch.dtype) -> str:
    """As the key of a peak."""
    return str(number_format).removeprefix("torch.")


def peaks(device: torch.device, rounds: int, timer: Timer) -> dict[str, float]:
    """Multiply-adds a second of the fastest matrix product, by number format."""
    works = {(name_of(f), rows): work for f in FORMATS for rows, work in products(device, f).items()}
    seconds = best_of(works, 1 + rounds, timer)
    return {name_of(f): max(int(n) ** 3 / seconds[k, n] for k, n in works if k == name_of(f)) for f in FORMATS}


def _multiply_adds(shop: Workshop, phases: set[str]) -> dict[str, float]:
    """Of an image, by phase, as the exact variant computes it."""
    shop.batch = noise(shop.setting, 2)
    return {phase: multiply_adds(shop.work((phase, "exact"))) / 2 for phase in phases}


def _peak(work: Work, device: torch.device) -> int | str | None:
    """Bytes of its second run, or that memory ran out."""
    try:
        work()
        return peak_memory(work, device)
    except torch.OutOfMemoryError:
        _free(device)
        return OUT_OF_MEMORY


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- waiting


def waits(work: Work, device: torch.device) -> dict[str, int] | None:
    """How often each line of code waits for the device in one run of a work; None where torch cannot tell."""
    if device.type != "cuda":
        return None
    for _ in range(2):  # the first ones make the state of the optimizer
        work()
    finish(device)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in seen if "called a synchronizing" in str(warning.message)]
    return dict(Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in found))


# ---- kept views


class Labels:
    """Stands in for a task's training images: a batch has labels and, instead of images, their number."""

    def __init__(self, labels: Tensor, device: torch.device) -> None:
        self.labels, self.device = labels, device

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int) -> int:
        """Of a pass."""
        return -(-len(self) // batch_size)

    def order(self, *stream: int | str, shuffle: bool) -> list[int]:
        """Drawn anew for each pass."""
        return (torch.randperm if shuffle else torch.arange)(len(self)).tolist()

    def epoch(self, *stream: int | str, batch_size: int, shuffle: bool, start: int = 0) -> Iterator[Batch]:
        """One pass."""
        for indices in torch.tensor(self.order(shuffle=shuffle)).split(batch_size)[start:]:
            yield indices, indices.to(self.device), self.labels[indices].to(self.device)

    def close(self) -> None:
        """Nothing is open."""


def views(setting: Setting, rounds: int, timer: Timer, images: int) -> dict[str, Any]:
    """What it takes to fetch kept views, JSON-ready.

    Keys: `setting`, `machine`, `images`, and `rows`: place, variant, and seconds of a batch: of a `step` whose batch is
    on the device already, of a `fetch` alone, and of `both`.
    """
    shop, rows = Workshop(setting), []
    with tempfile.TemporaryDirectory() as folder:
        for variant, (place, where) in product(KEPT_AS, places(setting.device, Path(folder)).items()):
            learner = shop.learner(variant)
            at_expansion(learner, Noise(shop.batch))
            learner.network.kept_layer = learner.settled_layers()
            kept = _kept(setting, learner, images, KEPT_AS[variant], where)
            rows.append({"place": place, "variant": variant, **_fetching(kept, learner, setting.batch, rounds, timer)})
            kept.close()
    return {**origin(setting, rounds, timer), "images": images, "rows": rows}


def places(device: torch.device, folder: Path) -> dict[str, torch.device | Path]:
    """Where views can be kept."""
    return {"device memory": device, "host memory": torch.device("cpu"), "file": folder}


def _kept(setting: Setting, learner: Learner, images: int, kind: torch.dtype, where: torch.device | Path) -> KeptViews:
    """A view of so many images, made of noise."""
    vit, classes = setting.sketch, learner.task_classes
    shape = vit.patch_embed.num_patches + vit.num_prefix_tokens, vit.embed_dim
    labels = Labels(classes.start + torch.arange(images) % len(classes), setting.device)

    def drawn(numbers: Tensor) -> Tensor:  # (B,) -> (B, N, D)
        return torch.randn(len(numbers), *shape, device=numbers.device)

    return KeptViews(labels, drawn, views=1, task=1, batch_size=setting.batch, dtype=kind, where=where)


def _fetching(kept: KeptViews, learner: Learner, size: int, rounds: int, timer: Timer) -> dict[str, float]:
    """Seconds of a batch, from passes over a view; the first pass makes the view and does not count."""
    phase, loss = begun(learner, "func")
    gradients = Gradients.of(phase.optimizer, loss, learner.config, size)

    def train(batch: Batch) -> None:
        gradients(batch)
        phase.step()

    def passes(use: Callable[[Batch], None]) -> None:
        deque(map(use, kept.epoch("func", 0, batch_size=size, shuffle=True)), maxlen=0)

    one = next(kept.epoch("func", 0, batch_size=size, shuffle=True))
    works = {"step": lambda: deque(map(train, repeat(one, kept.batches(size))), maxlen=0)}
    works |= {"fetch": partial(passes, lambda batch: None), "both": partial(passes, train)}
    seconds = best_of(works, 1 + rounds, replace(timer, repeats=1))
    return {name: taken / kept.batches(size) for name, taken in seconds.items()}
