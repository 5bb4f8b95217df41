"""Seconds and bytes of the work of a configuration, measured in about ten seconds.

A learner makes real steps and evaluations on a few images of the data set, on the run's device.

Shapes: B batch, S image side.
"""

import copy
import io
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from models import graphs
from models import workload as kinds
from models.alignment import Settings, align
from models.base import Setup
from models.baselines import FromStatistics
from models.gradients import Gradients
from models.graphs import Recorded
from models.losses import Loss, RdLoss
from models.phase import PhaseName
from models.readouts import ReadoutSet
from models.sema import Learner
from utils.data.decoded import DecodedImages
from utils.data.loader import READY, Batch, StreamLoader
from utils.data.resample import resampling
from utils.data.tasks import DataManager, TaskImages
from utils.memory import GIB

SECONDS = 10.0  # of measuring, about
WORKS = 40  # into which they are divided: no second round of a work begins after its share of them
PASSES = 16  # forward passes that all works together are worth, each of them made once
MOST_ROUNDS = 9
LOADED = 16  # images that are loaded
OBSERVED = 2000  # images that a readout observes

Work = Callable[[], object]


class Sample:
    """Stands in for the DataManager: a few images of the data set are every task, with labels of the task's classes."""

    def __init__(self, images: Tensor, tasks: DataManager) -> None:  # (B, 3, S, S)
        self.images, self.tasks = images, tasks

    def get_task_size(self, task: int) -> int:
        return self.tasks.get_task_size(min(task, self.tasks.nb_tasks - 1))

    def get_dataset(self, indices: Iterable[int], source: str, *_: Any, **__: Any) -> Dataset[Any]:
        classes = torch.tensor(list(indices))
        count = torch.arange(len(self.images))
        return TensorDataset(count, self.images, classes[count % len(classes)])


@dataclass
class Timer:
    """Times works.

    Attributes:
        settle: Waits for a device that works on its own.
        clock: Returns seconds.
    """

    settle: Work
    clock: Callable[[], float] = time.perf_counter

    def once(self, work: Work) -> float:
        """Return the seconds of a work."""
        self.settle()
        begun = self.clock()
        work()
        self.settle()
        return self.clock() - begun

    def best(self, work: Work, limit: float) -> float:
        """Return the seconds of the fastest of some rounds, of which none begins when `limit` seconds are over."""
        begun, taken = time.perf_counter(), [self.once(work)]
        while time.perf_counter() - begun < limit and len(taken) < MOST_ROUNDS:
            taken.append(self.once(work))
        return min(taken)


def timer_of(learner: Learner) -> Timer:
    """Return a timer of computations; on one thread it counts the time of the processor, as on an idle machine."""
    alone = learner.device.type == "cpu" and torch.get_num_threads() == 1
    return Timer(learner.hooks.training.settle, time.process_time if alone else time.perf_counter)


class Measurement:
    """Seconds of an image in each kind of work, and bytes of memory and of checkpoints, of one configuration.

    Attributes:
        compute: Seconds of an image by kind of work, without loading it.
        load: Seconds to load an image by the name of its transform.
        batch_size: Images in a measured step: fewer than in the run if that takes too long.
    """

    def __init__(self, learner: Learner, tasks: DataManager) -> None:
        self.config, self.device, self.network = learner.config, learner.device, learner.network
        self.hooks, self.born, self.given = learner.hooks, copy.deepcopy(learner.network.slots), learner
        self.tasks = tasks
        self.timer = timer_of(learner)
        self.load: dict[str, float] = {}
        self.compute: dict[str, float] = dict.fromkeys((kinds.DECODE, kinds.STATISTICS, kinds.ALIGN), 0.0)
        self.pixels = 0.0  # bytes of a decoded image
        self._time_loading(learner)
        self._choose_sizes()
        keys = self.config.model_dump() | {
            "batch_size": self.batch_size,
            "detect_batch_size": self.batch_size,
            "eval_batch_size": self.eval_size,
            "augment_on": "host",
            "num_workers": 0,
            "image_cache_gib": 0.0,
            "val_fraction": 0.0,
            "evaluate_on": "test",
            "views": min(1, self.config.views),
            "views_gib": math.inf,
            "rd_views": min(1, self.config.rd_views),
        }
        config = self.config.model_copy(update=keys)
        setup = Setup(config, learner.seed, self.device, learner.nb_classes)
        self.learner: Learner = type(learner)(setup, self.network, self.hooks)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.activations = self.optimizer = 0.0  # bytes of an image, and of all parameters that learn
        self._time_works()
        self.peak = self._peak()

    # ---- loading

    def _time_loading(self, learner: Learner) -> None:
        on_device = self.config.augment_on == "device"
        ways = {"train": resampling(learner.spec, self.device) if on_device else READY, "test": READY}
        for name, way in ways.items():
            mode: Any = "part" if on_device and name == "train" else name
            source: Any = "train" if name == "train" else self.config.evaluate_on
            images = _some(self.tasks.get_dataset(range(self.tasks.get_task_size(0)), source, mode, learner.spec))
            loader = StreamLoader(cast(Any, images), 0, self.device, learner.seed, way)
            cold = self._pass(loader)
            files = [images.images[row] for row in images.rows]
            if name == "train" and self.config.image_cache_gib and not isinstance(images.images, np.ndarray):
                cold = self._decoded(images, files, way, cold, learner)
            self.load[name] = cold
            _, self.images, _ = next(loader.epoch("plan", 0, batch_size=len(images), shuffle=False))
        self.images = self.images.cpu()

    def _decoded(self, images: TaskImages, files: Sequence[Any], way: Any, cold: float, learner: Learner) -> float:
        """Return the seconds to load an image when as many as fit are kept decoded, and time the decoding."""
        begun = time.perf_counter()
        decoded = DecodedImages(files, self.config.image_cache_gib)
        once = (time.perf_counter() - begun) / len(files)
        kept = TaskImages(decoded, np.arange(len(files)), images.labels, images.look)
        warm = self._pass(StreamLoader(cast(Any, kept), 0, self.device, learner.seed, way))
        self.pixels = decoded.nbytes / len(files)
        most = max(learner.images_of([self.tasks.nb_images("train", task) for task in range(self.tasks.nb_tasks)]))
        share = min(1.0, self.config.image_cache_gib * GIB / (most * self.pixels))
        self.compute[kinds.DECODE] = share * once
        return share * warm + (1 - share) * cold

    def _pass(self, loader: StreamLoader) -> float:
        """Return the seconds to load an image."""
        size, images_of = min(len(loader), self.config.batch_size), cast(TaskImages, loader.dataset).images
        # The clock of the processor stands still while a disk works.
        timer = self.timer if isinstance(images_of, np.ndarray) else Timer(self.timer.settle)
        images = timer.best(lambda: [*loader.epoch("plan", 0, batch_size=size, shuffle=False)], SECONDS / WORKS)
        return images / len(loader)

    # ---- work

    @torch.no_grad()
    def _choose_sizes(self) -> None:
        """Choose how many images are in a measured batch, so that everything takes about `SECONDS` on a CPU."""
        self.network.eval()
        one, three = (self._seconds_forward(self.images[:count]) for count in (1, 3))
        self.of_image = max((three - one) / 2, three / 12)
        self.of_pass = max(0.0, one - self.of_image)  # such as that of weights in reduced precision
        affordable = max(1, int(SECONDS / (PASSES * self.of_image))) if self.device.type == "cpu" else sys.maxsize
        self.batch_size = min(self.config.batch_size, affordable)
        self.eval_size = min(self.config.eval_batch_size, affordable)

    def _of_whole_batch(self, seconds: float, size: int) -> float:
        """Return the seconds of an image in a batch of the run, from those of a batch of some images."""
        own = self.of_pass * min(1.0, seconds / (self.of_pass + self.of_image * size))  # of a part of a pass: its part
        return (seconds - own) / size + own / max(size, self.config.batch_size)

    def _seconds_forward(self, images: Tensor) -> float:
        x = images.to(self.device)
        return self.timer.best(lambda: self.network(x), SECONDS / WORKS)

    def _time_works(self) -> None:
        learner = self.learner
        wanted = max(self.batch_size, self.eval_size)
        images = self.images[torch.arange(wanted) % len(self.images)]
        sample, scored = Sample(images[: self.batch_size], self.tasks), Sample(images[: self.eval_size], self.tasks)

        def note(name: str, work: Work, size: int) -> None:
            self.compute[name] = self._of_whole_batch(self.timer.best(work, SECONDS / WORKS), size)

        def begin() -> None:
            learner.begin_data(sample)
            learner.begin_task()
            learner.begin_test(scored)

        begin()
        self.settled = bool(learner.settled_layers())
        self.trains = [learner.position.stage != "done"] * 2
        if self.trains[0]:
            note(kinds.FUNC, self._step("func"), self.batch_size)
            if learner.epochs["rd"]:
                self._time_rd(note, "", "")
        self._end_task()
        self.settles = bool(learner.settled_layers())
        self._time_scoring(note)
        self.compute[kinds.SAVE] = self.timer.once(self._save)
        if self.tasks.nb_tasks == 1:
            return
        learner.after_task()
        begin()
        self.trains[1] = learner.position.stage != "done"
        if not self.trains[1]:
            return
        x, layer = images[: self.batch_size].to(self.device), learner.network.kept_layer
        kept, record = kinds.VIEW if layer else "", graphs.recorder(learner.network, self.config)
        read = learner.network.forward_to(x, layer).detach() if layer else x
        if layer:
            view = Recorded(partial(learner.network.forward_to, layer=layer), record)
            note(kinds.MAKE_VIEW, torch.no_grad()(lambda: view(x)), self.batch_size)
        if learner.network.expandable:
            learner.network.eval()
            note(kinds.SCAN + kept, lambda: learner.look(read), self.batch_size)
        features = learner.loss("func").loader is not learner.train_loader
        if features:
            learner.network.eval()
            made = Recorded(lambda x: learner.network(x)["features"], record)
            note(kinds.MAKE_FEATURES + kept, torch.no_grad()(lambda: made(read)), self.batch_size)
        note(kinds.FUNC + kinds.ALONE + (kinds.FEATURES if features else kept), self._step("func"), self.batch_size)
        if learner.network.expandable:
            self._grow()
            note(kinds.FUNC + kinds.ADDS + kept, self._step("func"), self.batch_size)
            if learner.epochs["rd"]:
                self._time_rd(note, kinds.ADDS, kept)
        if kinds.SCAN + kinds.VIEW in self.compute:
            self.compute.setdefault(kinds.SCAN, self.compute[kinds.MAKE_VIEW] + self.compute[kinds.SCAN + kinds.VIEW])

    def _time_rd(self, note: Callable[[str, Work, int], None], suffix: str, reads: str) -> None:
        step = self._step("rd")
        loss = self.learner.loss("rd")
        assert isinstance(loss, RdLoss)
        if loss.kept:
            _, x, _ = self._batch("rd")
            note(kinds.MAKE_MEANS + reads, lambda: loss.means(x), self.batch_size)
        note(kinds.RD + (kinds.KEPT if loss.kept else suffix), step, self.batch_size)

    def _time_scoring(self, note: Callable[[str, Work, int], None]) -> None:
        learner = self.learner

        def anew() -> None:
            learner.evaluator.forget()
            learner.predict()

        if isinstance(learner, FromStatistics):
            self._observe_statistics(learner)
        note(kinds.EVALUATION, anew, self.eval_size)
        self.compute[kinds.FORWARD] = self.compute[kinds.EVALUATION]
        note(kinds.AGAIN, learner.predict, self.eval_size)
        learner.evaluator.forget()
        width, count = self.network.backbone.embed_dim, min(OBSERVED, max(self._train_images()))
        classes = self.tasks.get_task_size(0)
        features, labels = torch.randn(count, width), torch.arange(count) % classes
        readouts = ReadoutSet(self.config.readouts, self.given.seed, width)
        self.compute[kinds.OBSERVE] = (
            self.timer.once(lambda: readouts.observe({"": features}, labels, 0, classes)) / count
        )
        self.compute[kinds.SCORE] = self.timer.once(lambda: readouts.predict({"": features})) / count
        if self.config.classifier_alignment:
            self._time_alignment(width)

    def _observe_statistics(self, learner: FromStatistics) -> None:
        count, classes = min(OBSERVED, max(self._train_images())), self.given.nb_classes
        features, labels = torch.randn(count, self.network.backbone.embed_dim), torch.arange(count) % classes

        def learn() -> None:
            learner.statistics.observe(features, labels, classes)
            learner.set_head()

        self.compute[kinds.STATISTICS] = self.timer.once(learn) / count

    def _time_alignment(self, width: int) -> None:
        config, gaussians = self.config, copy.deepcopy(self.given.gaussians)
        gaussians.observe(torch.randn(4, width), torch.arange(4) % 2, range(2))
        epochs, samples = config.classifier_alignment_epochs, config.classifier_alignment_samples
        settings = Settings(epochs, samples, config.classifier_alignment_lr, config.weight_decay)
        head = copy.deepcopy(self.network.fc)
        self.compute[kinds.ALIGN] = (
            self.timer.once(lambda: align(head, gaussians, settings, self.given.seed, "plan")) / 2
        )

    def _train_images(self) -> list[int]:
        return self.given.images_of([self.tasks.nb_images("train", task) for task in range(self.tasks.nb_tasks)])

    def _batch(self, purpose: str) -> Any:
        size = self.batch_size
        return next(iter(self.learner.train_loader.epoch(purpose, 0, batch_size=size, shuffle=False)))

    def _step(self, name: PhaseName) -> Work:
        """Return a step of a phase that has begun."""
        learner = self.learner
        for slot in learner.network.slots if name == "func" else ():
            slot.begin_func_phase()
        phase = learner.phase = learner.update_optimizer_and_scheduler(name)
        loss = learner.loss(name)
        learner.network.train(loss.trains_network)
        batch = next(iter(loss.batches(0, 0)))
        if name == "func" and not self.activations:  # those of the first task are the most
            one, two = (self._saved(loss, batch, count) for count in (1, 2))
            self.activations = two - one
        per_parameter = 1 if self.config.optimizer == "sgd" else 2
        self.optimizer = max(self.optimizer, per_parameter * sum(parameter.nbytes for parameter in phase.parameters))
        gradients = Gradients.of(phase.optimizer, loss, self.config, len(batch[0]))
        return lambda: (gradients(batch), phase.step())

    def _saved(self, loss: Loss, batch: Batch, count: int) -> int:
        indices, x, labels = (tensor[:1].expand(count, *tensor.shape[1:]) for tensor in batch)
        return saved_bytes(lambda: loss((indices, x, labels))[0])

    def _end_task(self) -> None:
        for slot in self.learner.network.slots:
            slot.end_of_cycle()
            slot.end_of_task_training()
        self.learner.position.stage, self.learner.phase = "done", None

    def _grow(self) -> None:
        """Give the layers as many adapters as they have on average in a run with the most expansions."""
        slots = self.learner.network.expandable
        for slot in slots:
            for _ in range(self.tasks.nb_tasks // 2 - 1):
                slot.expand()
                slot.end_of_cycle()
        slots[len(slots) // 2].expand()

    def _save(self) -> None:
        torch.save(self.learner.state(), io.BytesIO())

    def _peak(self) -> tuple[float, float]:
        """Return the bytes of this process and of its GPU for a step: those measured, and of the images left out."""
        unit = 1 if sys.platform == "darwin" else 1024
        process = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
        if self.device.type == "cuda":
            return process, torch.cuda.max_memory_reserved(self.device)
        return process + self.activations * (self.config.batch_size - self.batch_size), 0.0


def _some(images: TaskImages) -> TaskImages:
    """Return a few images of a data set, from its whole length."""
    chosen = np.linspace(0, len(images) - 1, min(LOADED, len(images))).astype(int)
    return TaskImages(images.images, images.rows[chosen], images.labels[chosen], images.look)


def saved_bytes(forward: Work) -> int:
    """Return how much a forward pass keeps for its backward pass, weights among it."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = forward()  # what is freed could give its place to another tensor
    del kept
    return sum(sizes.values())
