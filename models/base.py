"""The common part of class-incremental learners: counting tasks and classes, data, evaluation, checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from backbone.vit_sema import sema_blocks
from models.evaluation import Evaluator, accuracy
from models.protocol import Hooks, Predictions, Report, Tasks
from models.readouts import ReadoutSet
from models.reports import structure
from models.views import Source
from utils.config.schema import Config, defaults, renamed
from utils.data.loader import READY, StreamLoader, Way
from utils.data.resample import resampling
from utils.devices import bf16_note
from utils.inc_net import SEMAVitNet
from utils.metrics import number_with
from utils.runs.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from utils.runs.predictions import OFF
from utils.streams import seeded
from utils.timescales.scales import subsets


@dataclass(frozen=True)
class Setup:
    """What a learner is made of."""

    config: Config
    seed: int  # of the run
    device: torch.device
    nb_classes: int  # of the whole data set, the size of the head
    head_rows: Sequence[int] | None = None  # (C,) the rows of the drawn head, in their order; None: as drawn

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Self:
        """Make it of a dictionary with the keys of the public implementation; missing keys take their defaults.

        `device` is a list of one torch.device, `seed` an int, `nb_classes` the size of the head.
        """
        values = {**defaults(), **{key: value for key, value in renamed(args).items() if key in Config.model_fields}}
        device = torch.device(args["device"][0])
        return cls(Config.model_construct(**values), int(args["seed"]), device, int(args["nb_classes"]))

    def network(self) -> SEMAVitNet:
        """Return a new network; every module of ours draws from a stream of its own, of seed and place."""
        with seeded(self.seed, "network"):
            network = SEMAVitNet(self.config, self.nb_classes)
        if self.head_rows is not None:
            for parameter in network.fc.parameters():
                parameter.data = parameter.data[list(self.head_rows)]
        return network.to(self.device)


class BaseLearner(ABC):
    """Base class of learners: a subclass defines `learn_task`.

    A learner that can be stopped within a task calls `hooks.keep` where its state can be saved, adds to `state` and
    `restore` what is half done, and continues there in `learn_task`.

    Args:
        args: What it is made of; a `Setup`, or a dictionary for `Setup.of`.
        network: What learns; None: a new one.
        hooks: What to call; None: nothing.
    """

    def __init__(
        self, args: Setup | Mapping[str, Any], network: SEMAVitNet | None = None, hooks: Hooks | None = None
    ) -> None:
        setup = args if isinstance(args, Setup) else Setup.of(args)
        self.config, self.seed, self.device, self.nb_classes = setup.config, setup.seed, setup.device, setup.nb_classes
        self.network = network or setup.network()
        self.hooks = hooks or Hooks()
        if self.device.type == "cuda":
            self.hooks.training.settle = partial(torch.cuda.synchronize, self.device)
        self.evaluator = Evaluator(self.network, self.config, self.hooks)
        self.spec = self.network.input_spec(self.config.normalize)
        self.readouts = ReadoutSet(self.config.readouts, self.seed, self.network.fc.in_features)
        self.feature_loader: StreamLoader | None = None  # of training images, for `train_features`
        self.readout_loader: StreamLoader | None = None  # of training images that the readouts have not observed yet
        self.cur_task = -1
        self.known_classes = 0
        self.task_sizes: list[int] = []
        self.val_loader: StreamLoader | None = None
        self.trained: dict[str, tuple[str, int]] = {}  # role and size of what this task has trained, by name

    @abstractmethod
    def learn_task(self) -> None:
        """Learn the current task, or what is left of it, from `train_loader`."""

    def begin_task(self) -> None:
        """Prepare for a task whose data are open."""
        self.trained = {}

    def incremental_train(self, data_manager: Tasks) -> None:
        """Learn the next task."""
        self.begin_data(data_manager)
        with self.hooks.training.running():
            self.begin_task()
            self.learn_task()
        self.end_data()

    def continue_training(self, data_manager: Tasks) -> None:
        """Learn what is left of a task in progress, after `restore`."""
        self.open_data(data_manager)
        with self.hooks.training.running():
            self.learn_task()
        self.end_data()

    @property
    def _network(self) -> SEMAVitNet:
        """The network under its name in the public implementation."""
        return self.network

    @property
    def total_classes(self) -> int:
        return sum(self.task_sizes)

    @property
    def task_classes(self) -> range:
        """The classes that the current task trains on, and among which its loss distinguishes."""
        return range(self.known_classes, self.total_classes)

    @property
    def epochs(self) -> dict[str, int]:
        """Epochs of each kind of phase."""
        return {"func": self.config.func_epoch, "rd": self.config.rd_epoch if self.network.expandable else 0}

    def plan_views(self, counts: Sequence[int]) -> str:
        """Return what is kept of training images, as a line for the log; see `models.views`.

        Args:
            counts: Number of training images of every task.

        Raises:
            ConfigError: It does not fit.
        """
        return ""

    def images_of(self, counts: Sequence[int]) -> list[int]:
        """Return on how many images each task trains, given the number of training images of every task."""
        return list(counts)

    @property
    def task_number(self) -> int:
        """The number of the current task where transient tasks that are left out count, too; names random streams."""
        left_out = self.config.transient if self.config.leave_out_transient else []
        return number_with(left_out, self.cur_task)

    @property
    def provenance(self) -> dict[str, Any]:
        """The frozen weights of the run: timm name, origin and SHA-256."""
        return {"backbone": self.network.provenance}

    def precision_note(self) -> tuple[int, str] | None:
        """Return what `precision` bf16 gains or costs here, after the level at which to log it; None for fp32."""
        if self.config.precision == "fp32":
            return None
        vit = self.network.backbone
        layer = next(module for module in sema_blocks(vit)[0].mlp.modules() if isinstance(module, nn.Linear))
        tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
        return bf16_note(self.device, layer, self.config.batch_size * tokens)

    # ---- tasks and their data

    def after_task(self) -> None:
        """Count the task's classes as known, and stop the workers that loaded its test images."""
        self.known_classes = self.total_classes
        self.test_loader.close()
        if self.val_loader is not None:
            self.val_loader.close()

    def begin_after(self, task_sizes: list[int]) -> None:
        """Take the counts after training on these tasks, before `after_task` of the last."""
        self.task_sizes = list(task_sizes)
        self.cur_task = len(task_sizes) - 1
        self.known_classes = sum(task_sizes[:-1])

    def begin_data(self, data_manager: Tasks) -> None:
        """Move on to the next task and open its data."""
        self.cur_task += 1
        self.task_sizes.append(data_manager.get_task_size(self.cur_task))
        self.open_data(data_manager)

    def open_data(self, data_manager: Tasks) -> None:
        """Make loaders of the current task's training images and of all seen test images."""
        on_device = self.config.augment_on == "device"
        images = data_manager.get_dataset(
            self.task_classes,
            source="train",
            mode="part" if on_device else "train",
            spec=self.spec,
            decoded_gib=self.config.image_cache_gib,
        )
        way = resampling(self.spec, self.device) if on_device else READY
        # A scan is interrupted by training and then goes on, so it reads through a loader of its own.
        self.train_loader: Source = self.loader(images, way)
        self.scan_loader: Source = self.loader(images, way)
        if self.config.readouts:
            self.readout_loader = self.plain_loader(data_manager)
        if self.uses_features:
            self.feature_loader = self.plain_loader(data_manager)
        self.begin_test(data_manager)
        if self.config.val_fraction and self.config.evaluate_on == "test":
            seen = range(self.total_classes)
            self.val_loader = self.loader(data_manager.get_dataset(seen, source="val", mode="test", spec=self.spec))

    def plain_loader(self, data_manager: Tasks) -> StreamLoader:
        """Return a loader of the current task's training images, prepared as test images."""
        return self.loader(data_manager.get_dataset(self.task_classes, source="train", mode="test", spec=self.spec))

    def begin_test(self, data_manager: Tasks) -> None:
        """Make a loader of the test images of all classes seen, or of their validation images (`evaluate_on`)."""
        seen, source = range(self.total_classes), self.config.evaluate_on
        self.test_loader = self.loader(data_manager.get_dataset(seen, source=source, mode="test", spec=self.spec))

    def end_data(self) -> None:
        """Stop the workers that loaded the task's training images, and free the images."""
        for loader in (self.train_loader, self.scan_loader, self.feature_loader):
            if loader is not None:
                loader.close()
        del self.train_loader, self.scan_loader
        self.feature_loader = None

    def loader(self, dataset: Dataset[Any], way: Way = READY) -> StreamLoader:
        """Return a loader whose order and augmentation come from named random streams of the run's seed."""
        return StreamLoader(dataset, self.config.num_workers, self.device, self.seed, way)  # type: ignore[arg-type]

    # ---- evaluation

    def settled_layers(self) -> int:
        """Return the number of blocks, from the first on, whose output for an image no longer changes."""
        return 0

    @property
    def uses_features(self) -> bool:
        """Whether learning a task needs `train_features`."""
        return False

    def train_features(self) -> tuple[Tensor, Tensor]:
        """Return the features (n, D) of the task's training images, prepared as test images, and labels (n,)."""
        assert self.feature_loader is not None
        sides = {"": nullcontext}
        found = self.evaluator.features_of(self.feature_loader, self.cur_task, self.settled_layers(), sides)
        return found[0][""], found[1]

    def predict(self) -> Predictions:
        """Score the images of `begin_test`."""
        with self.hooks.training.paused():
            return self.evaluator.predict(self.test_loader, self.cur_task, self.total_classes, self.settled_layers())

    def predict_off(self) -> Predictions:
        """Score them with all adapters off: what the head answers on the features of the frozen backbone."""
        with self.hooks.training.paused():
            return self.evaluator.predict_off(
                self.test_loader, self.cur_task, self.total_classes, self.settled_layers()
            )

    def predict_val(self) -> Predictions | None:
        """Score the validation images of all classes seen; None if no others are scored beside them."""
        if self.val_loader is None:
            return None
        with self.hooks.training.paused():
            counts = self.cur_task, self.total_classes, self.settled_layers()
            return self.evaluator.predict(self.val_loader, *counts, part="val")

    def eval_task(self) -> tuple[dict[str, Any], Predictions]:
        """Return the accuracy over all classes seen, in per cent, and the predictions it was computed from."""
        predictions = self.predict()
        return accuracy(predictions, self.task_sizes, self.known_classes), predictions

    def report_task(self) -> Report:
        """Return `eval_task`, predictions by subset of the branches (none here), `predict_off` and `predict_val`."""
        return Report(*self.eval_task(), {}, self.predict_off(), self.predict_val())

    def read_out(self, report: Report) -> dict[str, np.ndarray]:
        """Return what the readouts predict for the test images of a report, by label; see `models.readouts`.

        After training they first observe the task's training images, in one pass without gradients.
        """
        seen = {"": report.predictions, **({} if report.off is None else {OFF: report.off})}
        seen |= {name: report.branches[name] for name in self.network.adapter_type.branches if name in report.branches}
        if self.readout_loader is not None:
            sides = {side: partial(self._side, side) for side in seen}
            features, labels = self.evaluator.features_of(
                self.readout_loader, self.cur_task, self.settled_layers(), sides
            )
            self.readouts.observe(features, labels, self.task_classes.start, self.total_classes)
            self.readout_loader.close()
            self.readout_loader = None
        return self.readouts.predict({side: torch.from_numpy(one.features) for side, one in seen.items()})

    def _side(self, side: str) -> AbstractContextManager[None]:
        """Let only the adapters of a side act, see `utils.readouts`."""
        if side == OFF:
            return self.network.adapters_off()
        return self.network.branches(subsets(self.network.adapter_type.branches)[side]) if side else nullcontext()

    def load_readouts(self, path: Path) -> None:
        """Take the readouts of a checkpoint; raise CheckpointError if it is unreadable or they do not fit."""
        take(path, self.readouts.load_state_dict)

    def load_statistics(self, path: Path) -> None:
        """Take what learning needs of a checkpoint beside the state, here nothing; errors as `load_readouts`."""
        return None

    def structure(self) -> dict[str, Any]:
        """Return adapters in every block, numbers of parameters, and the cost of an image; see `models.reports`."""
        return structure(self.network, self.trained, self.spec.size)

    # ---- state and checkpoints

    def where(self) -> str:
        """Return the learner's position in training, for the log."""
        return f"task {self.cur_task}"

    def state(self) -> dict[str, Any]:
        """Return the state of a run in progress, for `restore`; raise DivergenceError if a value is not finite.

        Random generators are no part of it: every draw comes from a stream named by its place in the run.
        """
        return {
            "cur_task": self.cur_task,
            "task_sizes": list(self.task_sizes),
            "known_classes": self.known_classes,
            "trained": {name: list(entry) for name, entry in self.trained.items()},
            "network": self.network.training_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the state of another learner; raise CheckpointError if its network is another."""
        self.network.load_training(state["network"])
        self.evaluator.forget()
        self.cur_task, self.known_classes = state["cur_task"], state["known_classes"]
        self.task_sizes = list(state["task_sizes"])
        self.trained = {name: (role, size) for name, (role, size) in state["trained"].items()}

    def save_checkpoint(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Write what evaluation needs, with the trainer's metadata."""
        own = {
            "task_sizes": self.task_sizes,
            "backbone": self.network.provenance,
            "adapter_type": self.network.adapter_type.kind,
        }
        tensors = self.network.learned_state() | self.readouts.state_dict() | self.statistics_state()
        save_checkpoint(path, tensors, {**meta, **own})

    def statistics_state(self) -> dict[str, Tensor]:
        """Return the tensors for `load_statistics`."""
        return {}

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Load a checkpoint and return its metadata; raise CheckpointError if it is unreadable or of another network.

        A checkpoint of the public implementation has no metadata, and counts as trained on all classes.
        """
        tensors, meta = read_checkpoint(Path(path))
        self.network.load_learned(tensors, meta)
        take(Path(path), self.readouts.load_state_dict, tensors)
        self.evaluator.forget()
        self.begin_after(meta.get("task_sizes", [self.nb_classes]))
        return meta


def take(path: Path, load: Callable[[Mapping[str, Tensor]], None], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Call `load` with a checkpoint's tensors; raise CheckpointError if it is unreadable or `load` refuses them."""
    try:
        load(read_checkpoint(path)[0] if tensors is None else tensors)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {str(path)!r}: {error}") from None
