"""What a run is going to take: the seconds of an image, see `models.measurement`, times the images of its work."""

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import workload as kinds
from models.baselines import Joint
from models.measurement import Measurement
from models.protocol import TaskLearner
from models.readouts import ReadoutSet
from models.sema import Learner
from models.views import ViewKeeper
from models.workload import Counts, Workload
from utils.config.identity import trains_adapters
from utils.data.tasks import DataManager
from utils.devices import device_name
from utils.errors import ConfigError
from utils.memory import GIB, cores
from utils.runs.estimate import Estimate, Span, TaskEstimate, Totals, total
from utils.runs.states import KEPT as KEPT_STATES

TEXTS = {"run": 12_000, "task": 6_000, "epoch": 300, "adapter and epoch": 900, "image": 34, "scanned batch": 240}
ANSWERS = 3.6, 0.7  # bytes of a prediction in a compressed file: its confidence, and each of its classes
MISTAKES = 40_000


def estimate(learner: TaskLearner, seeds: Sequence[DataManager]) -> Estimate:
    """Return what the runs of a configuration are going to take.

    Args:
        learner: New, of the first seed; it is of no further use.
        seeds: The tasks of every seed.

    Raises:
        ConfigError: The learner is not one of the project, nor built on `models.sema.Learner`.
    """
    if not isinstance(learner, Learner):
        raise ConfigError("plan: what this learner (model_name) does is not known; expected a models.sema.Learner")
    begun = time.perf_counter()
    measured = Measurement(learner, seeds[0])
    took = time.perf_counter() - begun
    runs = [RunWork(measured, tasks) for tasks in seeds]
    first, times = runs[0], [run.seconds() for run in runs]
    low, high = first.tasks_of(most=False), first.tasks_of(most=True)
    tasks = [
        TaskEstimate(images, test, *(Span(a[n], b[n]) for n in range(3)))
        for images, test, a, b in zip(first.work.train, first.work.test, low, high, strict=True)
    ]
    memory = first.memory()
    disk = Span(*(first.disk(most) for most in (False, True)))
    threads = torch.get_num_threads()
    how = f"measured in {took:.0f} s on {device_name(learner.device)}"
    how += f", {threads} thread{'s' * (threads > 1)}" if learner.device.type == "cpu" else ""
    how += f", the best of a few steps with batch size {measured.batch_size}"
    everything = sum(size for _, size in memory)
    return Estimate(
        tasks,
        Totals(times[0], Span(everything, everything), disk),
        len(learner.network.expandable) if first.work.trains[1] else 0,
        first.shares(),
        memory,
        first.gpu(),
        disk.high + first.before_the_end(),
        (len(seeds), total(times)) if len(seeds) > 1 else None,
        how,
    )


class RunWork:
    """The run of one seed: its work, times what was measured."""

    def __init__(self, measured: Measurement, tasks: DataManager) -> None:
        self.measured, self.config, self.tasks = measured, measured.config, tasks
        numbers, learner, network = range(tasks.nb_tasks), measured.given, measured.network
        sizes = [tasks.get_task_size(task) for task in numbers]
        beside = bool(self.config.val_fraction) and self.config.evaluate_on == "test"
        test, val = (
            np.cumsum([tasks.nb_images(part, task) for task in numbers]).tolist()
            for part in (self.config.evaluate_on, "val" if beside else self.config.evaluate_on)
        )
        vit = network.backbone
        self.per_image = (vit.patch_embed.num_patches + vit.num_prefix_tokens) * vit.embed_dim
        self.per_image *= 2 if self.config.eval_cache_bf16 else 4  # bytes
        self.work = Workload(
            self.config,
            train=learner.images_of([tasks.nb_images("train", task) for task in numbers]),
            test=test,
            val=val if beside else [0] * len(numbers),
            classes=np.cumsum(sizes).tolist(),
            epochs=learner.epochs,
            expandable=len(network.expandable),
            trains=(measured.trains[0], measured.trains[1]),
            settled=(measured.settled, measured.settles),
            continual=network.continual and trains_adapters(self.config),
            consolidates=any(adapter.consolidates for slot in network.slots for adapter in slot.functional),
            starts_anew=isinstance(learner, Joint),
            uses_features=learner.uses_features,
            branches=network.adapter_type.branches,
            room=int(self.config.eval_cache_gib * GIB / self.per_image),
        )

    # ---- time

    def _counts(self, most: bool) -> list[Counts]:
        return self.work.counts(self.work.cycles(most))

    def _of_image(self, phase: str) -> float:
        """Return the seconds of an image: computing and loading, one after the other or at the same time."""
        compute, load = self.measured.compute[phase], self.measured.load.get(kinds.LOADS.get(phase, ""), 0.0)
        spare = cores() - (torch.get_num_threads() if self.measured.device.type == "cpu" else 1)
        workers = min(self.config.num_workers, spare)
        return max(compute, load / workers) if workers > 0 else compute + load

    def tasks_of(self, most: bool) -> list[tuple[float, float, float]]:
        """Return func steps, rd steps and seconds of every task."""
        steps = [self.work.steps(task, cycles) for task, cycles in enumerate(self.work.cycles(most))]
        counts = self._counts(most)
        return [(s["func"], s["rd"], self._time(c)) for s, c in zip(steps, counts, strict=True)]

    def _time(self, counts: Counts) -> float:
        return sum(images * self._of_image(phase) for phase, images in counts.items())

    def seconds(self) -> Span:
        """Return the seconds of the run."""
        return Span(*(sum(map(self._time, self._counts(most))) for most in (False, True)))

    def shares(self) -> tuple[Span, Span, Span]:
        """Return which share of the time is training, evaluation, and, of both, waiting for images."""
        training, loading = [], []
        for most in (False, True):
            counts = sum(self._counts(most), Counts())
            whole = self._time(counts) or 1.0
            scored = self._time(Counts({phase: counts[phase] for phase in kinds.SCORING}))
            computed = sum(images * self.measured.compute[phase] for phase, images in counts.items())
            training.append(1 - scored / whole)
            loading.append(1 - computed / whole)
        return Span(*training), Span(*(1 - share for share in training)), Span(*loading)

    # ---- memory and disk

    def memory(self) -> list[tuple[str, float]]:
        """Return what takes memory, and bytes."""
        config, measured = self.config, self.measured
        sets = len(self.work.branches) + 1 if config.branch_eval and self.work.branches else 1
        tested = sets * self.work.test[-1] + self.work.val[-1] if self.work.settled[1] else 0
        cached = min(config.eval_cache_gib * GIB, tested * self.per_image) if config.eval_cache_on == "memory" else 0
        decoded = min(config.image_cache_gib * GIB, max(self.work.train) * measured.pixels)
        views = self._views_bytes() if self._views_place() == torch.device("cpu") else 0
        return [
            ("process", measured.peak[0]),
            ("kept test images", cached),
            ("decoded images", decoded),
            ("views", views),
        ]

    def gpu(self) -> float:
        """Return the bytes of the GPU's memory; 0 without a GPU."""
        measured = self.measured
        views = self._views_bytes() if self._views_place() == measured.device else 0
        return measured.peak[1] + views if measured.device.type == "cuda" else 0

    def _views(self) -> ViewKeeper:
        return ViewKeeper(self.measured.network, self.config, self.measured.hooks)

    def _views_bytes(self) -> float:
        keeps = self.config.views and self.work.settled[1] and self.work.trains[1]
        return self._views().bytes(max(self.work.train[1:], default=0)) if keeps else 0

    def _views_place(self) -> torch.device | Path | None:
        return self._views().place(max(self.work.train[1:])) if self._views_bytes() else None

    def before_the_end(self) -> float:
        """Return the bytes in the run directory that are gone when the run is finished: saved states and views."""
        states = (KEPT_STATES + 1) * (self._learned(most=True)[-1] + self.measured.optimizer)
        return states + (self._views_bytes() if isinstance(self._views_place(), Path) else 0)

    def disk(self, most: bool) -> float:
        """Return the bytes of the finished run's directory."""
        config, work = self.config, self.work
        checkpoints = sum(self._learned(most)) + sum(self._statistics())
        answers = len(self.work.branches) + 2 + self.work.sides * len(config.readouts)
        predictions = sum(work.test) * (ANSWERS[0] + ANSWERS[1] * answers) + sum(work.val) * sum(ANSWERS)
        passes = [work.passes(task, cycles) for task, cycles in enumerate(work.cycles(most))]
        measured = [len(self.measured.network.slots) if work.branches else 0] * len(passes)
        batches = sum(-(-images // config.detect_batch_size) for images in work.train[1:]) if work.expandable else 0
        texts = TEXTS["run"] + TEXTS["task"] * len(passes) + TEXTS["image"] * self._listed()
        texts += sum(TEXTS["epoch"] * sum(epochs.values()) for epochs in passes)
        texts += sum(TEXTS["adapter and epoch"] * n * p["func"] for n, p in zip(measured, passes, strict=True))
        texts += TEXTS["scanned batch"] * batches
        return checkpoints + predictions + texts + MISTAKES

    def _listed(self) -> int:
        parts: tuple[Any, ...] = ("train", "test", "val") if self.config.val_fraction else ("train", "test")
        return sum(self.tasks.nb_images(part, task) for part in parts for task in range(self.tasks.nb_tasks))

    def _learned(self, most: bool) -> list[int]:
        """Return the bytes of adapters, routers, descriptors and head after every task, from slots that grow so."""
        slots, head, sizes = copy.deepcopy(self.measured.born), _bytes(self.measured.learner.network.fc), []
        for task, cycles in enumerate(self.work.cycles(most)):
            for slot in slots:
                if task:
                    slot.begin_task()
                if cycles and slot.expandable:
                    slot.expand()
                if self.work.trains[task > 0]:
                    slot.begin_func_phase()
                slot.end_of_cycle()
                slot.end_of_task_training()
            records = 4 * self.config.buffer_size * sum(slot.num_adapters for slot in slots if slot.expandable)
            sizes.append(head + records + sum(map(_bytes, slots)))
        return sizes

    def _statistics(self) -> Iterator[int]:
        """Yield the bytes of readouts and class Gaussians in the checkpoint of every task."""
        learner, width, known = self.measured.given, self.measured.network.backbone.embed_dim, 0
        gaussian = learner.gaussians.means.shape[1] + learner.gaussians.covariances.shape[1]
        readouts = ReadoutSet(self.config.readouts, learner.seed, width)
        for classes in self.work.classes:
            labels = torch.arange(known, classes)
            readouts.observe({"": torch.randn(len(labels), width)}, labels, known, classes)
            known = classes
            held = sum(tensor.nbytes for tensor in readouts.state_dict().values())
            yield self.work.sides * held + (4 * classes * gaussian if self.config.classifier_alignment else 0)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
