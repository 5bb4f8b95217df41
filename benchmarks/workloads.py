"""The pieces of work a run is made of, by phase and variant: one step, one batch, one forward pass on one batch.

Shapes: B batch, S image side.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from backbone.vit_sema import SUFFIX
from benchmarks.measure import Work
from benchmarks.reference import Reference
from models import graphs
from models.base import Setup
from models.gradients import Gradients
from models.graphs import Recorded
from models.losses import Loss, RdLoss
from models.phase import Phase, PhaseName
from models.sema import Learner
from models.workload import FEATURES, KEPT, VIEW
from utils.config.load import resolve
from utils.data.loader import Batch
from utils.streams import seeded

Subject = tuple[str, str]  # a phase and a variant
SEED = 0
CLASSES = 10  # of a task
MANY = 16  # adapters at each expandable layer
TIMM = ("forward", "timm")


@dataclass(frozen=True)
class Setting:
    """What is the same for all variants.

    Attributes:
        vit: timm's name of the network.
        batch: B.
        device: Where.
        kwargs: Passed to `timm.create_model`: `img_size`, `depth`, ...
        keys: Of the configuration.
    """

    vit: str
    batch: int
    device: torch.device
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)

    def timms(self) -> VisionTransformer:
        """timm's own network with a classifier of as many classes."""
        return cast(VisionTransformer, timm.create_model(self.vit, num_classes=10 * CLASSES, **self.kwargs)).eval()

    @property
    def sketch(self) -> VisionTransformer:
        """Its shapes without its values."""
        with torch.device("meta"):
            return self.timms()

    def setup(self, keys: Mapping[str, Any], nb_classes: int = 10 * CLASSES) -> Setup:
        """What a learner is made of; the last three blocks are the expandable layers, as in the published settings.

        Raises:
            ConfigError: Keys do not exist, or have values they cannot have.
        """
        depth = len(self.sketch.blocks)
        own = {
            "dataset": "npz",
            "backbone_type": f"{self.vit}{SUFFIX}",
            "backbone_kwargs": dict(self.kwargs),
            "pretrained": False,
            "adapt_start_layer": max(0, depth - 3),
            "adapt_end_layer": depth - 1,
            "batch_size": self.batch,
            "num_workers": 0,
        }
        config = resolve({**own, **self.keys, **keys}, "the benchmark")
        return Setup(config, SEED, self.device, nb_classes)


@dataclass(frozen=True)
class Variant:
    """A way to compute.

    Attributes:
        learner: Who computes.
        keys: Of the configuration, beside the setting's.
        dtype: Whose matrix-product peak its speed is a share of.
    """

    learner: type[Learner] = Learner
    keys: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


VARIANTS: dict[str, Variant] = {
    "reference": Variant(Reference),
    "exact": Variant(),
    # At a bottleneck of 16: as many parameters but for one more output bias.
    "nested": Variant(keys={"ffn_adapter_type": "nested_lora", "nested_lora_rank": 8}),
    "nested bf16 views": Variant(
        keys={"ffn_adapter_type": "nested_lora", "nested_lora_rank": 8, "precision": "bf16", "views": 1},
        dtype=torch.bfloat16,
    ),
    "bf16": Variant(keys={"precision": "bf16"}, dtype=torch.bfloat16),
    "compile": Variant(keys={"compile": True}),
    "bf16 compile": Variant(keys={"precision": "bf16", "compile": True}, dtype=torch.bfloat16),
}


class Noise:
    """Stands in for the DataManager: one batch of noise is a task."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def get_task_size(self, task: int) -> int:
        """The same for each task."""
        return CLASSES

    def get_dataset(self, indices: Iterable[int], source: str, *_: Any, **__: Any) -> Dataset[Any]:
        """The batch, whatever is asked for."""
        return TensorDataset(*(tensor.cpu() for tensor in self.batch))


Place = Callable[[Learner, Noise], None]
Preparation = Callable[[Learner, Batch], Work]

# ---- where a learner stands


def at_first_task(learner: Learner, data: Noise) -> None:
    """Everything of task 0 is trainable."""
    learner.begin_data(data)
    learner.begin_task()


def at_later_task(learner: Learner, data: Noise) -> None:
    """The second task has begun; nothing but the head is trainable."""
    at_first_task(learner, data)
    for slot in learner.network.slots:
        slot.end_of_cycle()
        slot.end_of_task_training()
    learner.after_task()
    at_first_task(learner, data)


def at_expansion(learner: Learner, data: Noise) -> None:
    """In a later task the middle one of the expandable layers has got its second adapter."""
    at_later_task(learner, data)
    slots = learner.network.expandable
    slots[len(slots) // 2].expand()


def with_adapters(number: int) -> Place:
    """In a later task each expandable layer has this many adapters, and the newest is trainable."""

    def grow(learner: Learner, data: Noise) -> None:
        at_later_task(learner, data)
        for slot in learner.network.expandable:
            for _ in range(number - 1):
                slot.end_of_cycle()
                slot.expand()
            slot.newest.requires_grad_(True)

    return grow


# ---- what it does there


def func_step(learner: Learner, batch: Batch) -> Work:
    """One step of the func phase."""
    return step(learner, *begun(learner, "func"), batch)


def rd_step(learner: Learner, batch: Batch) -> Work:
    """One step of the rd phase."""
    return step(learner, *begun(learner, "rd"), batch)


def rd_step_again(learner: Learner, batch: Batch) -> Work:
    """One step of the rd phase on token means that are kept (the key `rd_views`)."""
    phase, _ = begun(learner, "rd")
    loss = RdLoss(learner.network, learner.train_loader, ("rd",), len(batch[0]), keep=lambda loader, _: loader)
    return step(learner, phase, loss, _with(batch, torch.stack(loss.means(batch[1]), dim=1)))


def view(learner: Learner, batch: Batch) -> Work:
    """One batch of a view that is to be kept (the key `views`)."""
    network, layer = learner.network.eval(), learner.settled_layers()
    made = Recorded(partial(network.forward_to, layer=layer), graphs.recorder(network, learner.config))
    return torch.no_grad()(lambda: made(batch[1]))


def features(learner: Learner, batch: Batch) -> Work:
    """The features of one batch."""
    network = learner.network.eval()
    made = Recorded(lambda x: network(x)["features"], graphs.recorder(network, learner.config))
    return torch.no_grad()(lambda: made(batch[1]))


def from_view(preparation: Preparation) -> Preparation:
    """The same work on a batch of which a view is kept."""

    def prepared(learner: Learner, batch: Batch) -> Work:
        learner.network.kept_layer = learner.settled_layers()
        return preparation(learner, _with(batch, view(learner, batch)()))

    return prepared


def from_features(preparation: Preparation) -> Preparation:
    """The same work on a batch of which the features are kept."""
    return lambda learner, batch: preparation(learner, _with(batch, features(learner, batch)()))


def _with(batch: Batch, x: Any) -> Batch:
    return batch[0], x, batch[2]


def begun(learner: Learner, name: PhaseName) -> tuple[Phase, Loss]:
    """A phase of the learner's task that has begun, and what it minimises."""
    phase, loss = learner.update_optimizer_and_scheduler(name), learner.loss(name)
    learner.phase = phase
    learner.network.train(loss.trains_network)
    return phase, loss


def step(learner: Learner, phase: Phase, loss: Loss, batch: Batch) -> Work:
    """One step on a batch, as a run makes it but for what it notes of the step."""
    gradients = Gradients.of(phase.optimizer, loss, learner.config, len(batch[0]))
    return lambda: (gradients(batch), phase.step())


def scan(learner: Learner, batch: Batch) -> Work:
    """One look of a scan."""
    learner.network.eval()
    return lambda: learner.look(batch[1])


def evaluation(learner: Learner, batch: Batch) -> Work:
    """One batch of test images that are seen for the first time."""
    network, layer = learner.network.eval(), learner.settled_layers()
    return torch.no_grad()(lambda: scored(learner, network.forward_to(batch[1], layer), batch[2]))


def evaluation_again(learner: Learner, batch: Batch) -> Work:
    """One batch of test images that are seen again; a learner that keeps what can no longer change begins there."""
    network, layer = learner.network.eval(), learner.settled_layers()
    if not layer:
        return evaluation(learner, batch)
    x = torch.no_grad()(network.forward_to)(batch[1], layer)
    return lambda: scored(learner, x, batch[2])


def scored(learner: Learner, x: Tensor, labels: Tensor) -> object:  # (B, N, D), (B,)
    """What the learner answers from the input of the first block that can still change."""
    return learner.evaluator.score(x, labels, learner.total_classes, learner.settled_layers())


def forward(learner: Learner, batch: Batch) -> Work:
    """One pass without gradients."""
    network = learner.network.eval()
    return torch.no_grad()(lambda: network(batch[1]))


PHASES: dict[str, tuple[Place, Preparation]] = {
    "forward": (at_first_task, forward),
    "evaluation": (at_first_task, evaluation),
    "scan": (at_first_task, scan),
    "func step": (at_first_task, func_step),
    "rd step": (at_first_task, rd_step),
    "evaluation, seen before": (at_later_task, evaluation_again),
    "func step, one expansion": (at_expansion, func_step),
    "rd step, one expansion": (at_expansion, rd_step),
    "func step, no expansion": (at_later_task, func_step),
    f"rd step{KEPT}": (at_first_task, rd_step_again),
    f"rd step, one expansion{KEPT}": (at_expansion, rd_step_again),
    "view": (at_later_task, view),
    "features": (at_later_task, from_view(features)),
    f"scan{VIEW}": (at_later_task, from_view(scan)),
    f"func step, one expansion{VIEW}": (at_expansion, from_view(func_step)),
    f"rd step, one expansion{VIEW}": (at_expansion, from_view(rd_step)),
    f"func step, no expansion{FEATURES}": (at_later_task, from_features(func_step)),
    "func step, 1 adapter a layer": (with_adapters(1), func_step),
    f"func step, {MANY} adapters a layer": (with_adapters(MANY), func_step),
}


def noise(setting: Setting, images: int) -> Batch:
    """A batch of so many images."""
    side, indices = setting.sketch.patch_embed.img_size[0], torch.arange(images)
    pixels = torch.rand(images, 3, side, side, device=setting.device)
    return indices, pixels, indices.to(setting.device) % CLASSES


class Workshop:
    """Prepares works of one setting; all share one batch, and those of a variant the frozen weights.

    Attributes:
        batch: Of the works that are prepared from now on.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.batch = noise(setting, setting.batch)
        self._learners: dict[str, Learner] = {}

    def work(self, subject: Subject) -> Work:
        """The work of that phase and variant, on a learner of its own."""
        if subject == TIMM:
            network = self.setting.timms().to(self.setting.device)
            return torch.no_grad()(lambda: network(self.batch[1]))
        phase, variant = subject
        return self.placed(*PHASES[phase], variant)

    def placed(self, place: Place, work: Preparation, variant: str) -> Work:
        """A work in a place, on a learner of its own."""
        learner = self.learner(variant)
        with seeded(SEED, "place"):  # adapters that are added draw the same in every variant
            place(learner, Noise(self.batch))
        return work(learner, self._of_task(learner))

    def learner(self, name: str) -> Learner:
        """A copy of the variant's learner; what never changes is not copied."""
        if name not in self._learners:
            self._learners[name] = VARIANTS[name].learner(self.setting.setup(VARIANTS[name].keys))
        network = self._learners[name].network
        changing = {id(parameter) for _, parameter in network.roles()}
        frozen = {id(p): p for p in network.parameters() if id(p) not in changing}
        return copy.deepcopy(self._learners[name], frozen)

    def _of_task(self, learner: Learner) -> Batch:
        indices, images, labels = self.batch
        return indices, images, labels + learner.known_classes
