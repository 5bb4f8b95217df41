"""What every class-incremental learner does: count tasks and classes, hold the data of a task, evaluate, save.

Shapes: S image side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import Dataset

from models.evaluation import Evaluator, accuracy
from models.protocol import Hooks, Predictions, Tasks
from utils.config.schema import Config, defaults
from utils.data.loader import READY, StreamLoader, Way
from utils.data.resample import resampling
from utils.inc_net import SEMAVitNet
from utils.runs.checkpoint import read_checkpoint, save_checkpoint
from utils.streams import seeded


@dataclass(frozen=True)
class Setup:
    """What a learner is made of.

    Attributes:
        config: The configuration.
        seed: The run's.
        device: Where to compute.
        nb_classes: Classes of the whole data set, the head's size.
    """

    config: Config
    seed: int
    device: torch.device
    nb_classes: int

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Self:
        """From a dictionary of the public implementation's keys, as they are; missing ones take their defaults.

        Args:
            args: `device` is a list of one torch.device, `seed` an int, `nb_classes` the head's size.
        """
        values = {**defaults(), **{key: value for key, value in args.items() if key in Config.model_fields}}
        device = torch.device(args["device"][0])
        return cls(Config.model_construct(**values), int(args["seed"]), device, int(args["nb_classes"]))

    def network(self) -> SEMAVitNet:
        """A new network, whose initial values come from the seed."""
        with seeded(self.seed, "network"):
            return SEMAVitNet(self.config, self.nb_classes).to(self.device)


class BaseLearner:
    """Task counters, loaders, evaluation and checkpoints.

    Args:
        args: What it is made of, see `Setup`.
        network: What learns; None: a new one.
        hooks: Whom it talks to.
    """

    def __init__(
        self, args: Setup | Mapping[str, Any], network: SEMAVitNet | None = None, hooks: Hooks | None = None
    ) -> None:
        setup = args if isinstance(args, Setup) else Setup.of(args)
        self.config, self.seed, self.device, self.nb_classes = setup.config, setup.seed, setup.device, setup.nb_classes
        self.network = network or setup.network()
        self.hooks = hooks or Hooks()
        self.evaluator = Evaluator(self.network, self.config, self.hooks)
        self.spec = self.network.input_spec(self.config.normalize)
        self.cur_task = -1
        self.known_classes = 0
        self.task_sizes: list[int] = []

    @property
    def _network(self) -> SEMAVitNet:
        """The network under its name in the public implementation."""
        return self.network

    @property
    def total_classes(self) -> int:
        """Classes up to and with the current task."""
        return sum(self.task_sizes)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run starts from: timm name, origin and SHA-256 of the frozen weights."""
        return {"backbone": self.network.provenance}

    # ---- tasks and their data

    def after_task(self) -> None:
        """Count the task's classes as known, and end the workers that loaded its test images."""
        self.known_classes = self.total_classes
        self.test_loader.close()

    def begin_after(self, task_sizes: list[int]) -> None:
        """Count these tasks as learned, as after the last of them and before its `after_task`."""
        self.task_sizes = list(task_sizes)
        self.cur_task = len(task_sizes) - 1
        self.known_classes = sum(task_sizes[:-1])

    def begin_data(self, data_manager: Tasks) -> None:
        """Move on to the next task: its classes, and its data."""
        self.cur_task += 1
        self.task_sizes.append(data_manager.get_task_size(self.cur_task))
        self.open_data(data_manager)

    def open_data(self, data_manager: Tasks) -> None:
        """Loaders of the current task's training images and of all seen test images."""
        on_device = self.config.augment_on == "device"
        images = data_manager.get_dataset(
            range(self.known_classes, self.total_classes),
            source="train",
            mode="part" if on_device else "train",
            spec=self.spec,
            decoded_gib=self.config.image_cache_gib,
        )
        way = resampling(self.spec, self.device) if on_device else READY
        # A scan is interrupted by training and then goes on, so it reads through a loader of its own.
        self.train_loader, self.scan_loader = self.loader(images, way), self.loader(images, way)
        self.begin_test(data_manager)

    def begin_test(self, data_manager: Tasks) -> None:
        """A loader of the test images of all classes seen."""
        seen = range(self.total_classes)
        self.test_loader = self.loader(data_manager.get_dataset(seen, source="test", mode="test", spec=self.spec))

    def end_data(self) -> None:
        """End the task's loading workers, and forget its training images."""
        self.train_loader.close()
        self.scan_loader.close()
        del self.train_loader, self.scan_loader

    def loader(self, dataset: Dataset[Any], way: Way = READY) -> StreamLoader:
        """A loader whose order and augmentation come from named streams of this run's seed."""
        return StreamLoader(dataset, self.config.num_workers, self.device, self.seed, way)  # type: ignore[arg-type]

    # ---- evaluation

    def settled_layers(self) -> int:
        """How many of the first blocks give the same output for an image from now on."""
        return 0

    def predict(self) -> Predictions:
        """Score the test images of all classes seen."""
        return self.evaluator.predict(self.test_loader, self.cur_task, self.total_classes, self.settled_layers())

    def eval_task(self) -> tuple[dict[str, Any], Predictions]:
        """Accuracy over all classes seen, in per cent, and the predictions it was computed from."""
        predictions = self.predict()
        return accuracy(predictions, self.task_sizes, self.known_classes), predictions

    # ---- checkpoints

    def save_checkpoint(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Write what evaluation needs; `meta` is the trainer's part of it."""
        own = {
            "task_sizes": self.task_sizes,
            "backbone": self.network.provenance,
            "adapter_type": self.network.adapter_type.kind,
        }
        save_checkpoint(path, self.network.learned_state(), {**meta, **own})

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Load a checkpoint of ours or of the public implementation (which is taken to know all classes).

        Returns:
            Its metadata; empty for the public implementation's.

        Raises:
            CheckpointError: Unreadable, or of another network; the message says what differs.
        """
        tensors, meta = read_checkpoint(Path(path))
        self.network.load_learned(tensors, meta)
        self.evaluator.cache.clear()
        self.begin_after(meta.get("task_sizes", [self.nb_classes]))
        return meta
