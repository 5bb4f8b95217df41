"""The plain method: the same numbers, computed as SEMA's text reads, for the benchmarks to compare with.

One adapter runs after the other and one sample after the other passes the descriptors; the rd phase and the scan run
the whole network, the rd phase also backwards through all that is trainable; the whole test set is scored after every
epoch; all in float32. What does not depend on the method is shared: timm's network with its fused attention, loading,
optimizers, and gradients only where something trainable needs them.

Shapes: B batch, S image side, N tokens, D embedding width, A adapters at a layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backbone.sema_block import SEMAModules
from backbone.sema_components import AdapterModule
from backbone.vit_sema import sema_blocks
from models.base import Setup
from models.losses import Loss, RdLoss
from models.phase import PhaseName
from models.protocol import Hooks, Point
from models.sema import Learner
from utils.config.schema import Config
from utils.inc_net import SEMAVitNet
from utils.streams import seeded

PLAINLY = {"precision": "fp32", "compile": False, "grad_checkpointing": False, "rd_views": 0}


class PlainSlot(SEMAModules):
    """A slot without stacked products.

    Args:
        slot: Without expansions so far; its values are copied.
    """

    def __init__(self, slot: SEMAModules) -> None:
        super().__init__(slot.config, slot.layer)
        self.load_state_dict(slot.state_dict())

    tokenwise = False  # type: ignore[assignment]  # the last block computes all tokens, too

    def forward(self, h: Tensor, _: Tensor | None = None) -> Tensor:  # (B, N, D) -> (B, N, D)
        """As the slot's."""
        if not self.expandable:
            return self.adapters[0](h)
        mean = h.mean(dim=1)
        if self.training and self.describing:
            with torch.no_grad():
                self.rd_loss(mean.detach())
        return self.mix(h, mean)

    def mix(self, h: Tensor, mean: Tensor) -> Tensor:  # (B, N, D), (B, D) -> (B, N, D)
        """One adapter's output after the other, (B, A, N, D) in all."""
        outputs = torch.stack([adapter(h) for adapter in self.adapters], dim=1)
        return torch.einsum("ba,band->bnd", self.mixing_weights(mean), outputs)

    def rd_loss(self, mean: Tensor) -> Tensor:  # (B, D) -> ()
        """Sample after sample."""
        losses = one_by_one(self.newest, mean)
        self.newest.records.add(losses)
        return losses.mean()

    @torch.no_grad()
    def z_scores(self, mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
        """Adapter after adapter, sample after sample."""
        return torch.stack([module.records.z_scores(one_by_one(module, mean)) for module in self.modules_in_order])


def one_by_one(module: AdapterModule, mean: Tensor) -> Tensor:  # (B, D) -> (B,)
    """The descriptor's losses, one sample after the other."""
    return torch.stack([nn.functional.mse_loss(module.rd(sample), sample) for sample in mean])


class PlainNet(SEMAVitNet):
    """The network with plain slots, which looks at token means by running all of it."""

    def __init__(self, config: Config, nb_classes: int) -> None:
        super().__init__(config, nb_classes)
        for block in sema_blocks(self.backbone):
            block.adapter_module = PlainSlot(block.adapter_module)

    @torch.no_grad()
    def token_means(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Mean over tokens of the slots' inputs, (B, D) for each of `layers`, after a whole forward pass."""
        return self.token_means_with_graph(images, layers)

    def token_means_with_graph(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """The same, from which gradients flow back to everything trainable."""
        means: dict[int, Tensor] = {}

        def keep(slot: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(slot, SEMAModules)
            means[slot.layer] = inputs[0].mean(dim=1)

        hooks = [self.slots[layer].register_forward_pre_hook(keep) for layer in layers]
        self(images)
        for hook in hooks:
            hook.remove()
        return means


class PlainRdLoss(RdLoss):
    """The loss of an rd phase on a `PlainNet`, with a gradient for everything trainable."""

    network: PlainNet

    def means(self, images: Tensor) -> list[Tensor]:
        """As the loss's."""
        means = self.network.token_means_with_graph(images, [slot.layer for slot in self.slots])
        return [means[slot.layer] for slot in self.slots]


class Reference(Learner):
    """SEMA's learner without a shortcut; its results are `Learner`'s to rounding."""

    def __init__(self, args: Setup | Mapping[str, Any]) -> None:
        setup = args if isinstance(args, Setup) else Setup.of(args)
        setup = replace(setup, config=setup.config.model_copy(update=PLAINLY))
        with seeded(setup.seed, "network"):
            network = PlainNet(setup.config, setup.nb_classes).to(setup.device)
        super().__init__(setup, network, Hooks(keep=self.score_after_epoch))

    def settled_layers(self) -> int:
        """None: every evaluation runs the whole network."""
        return 0

    def loss(self, name: PhaseName) -> Loss:
        """What a phase of the current task minimises."""
        if name == "func":
            return super().loss(name)
        stream = (name, self.cur_task, self.position.cycle)
        return PlainRdLoss(self.network, self.train_loader, stream, self.config.batch_size)

    def score_after_epoch(self, point: Point) -> None:
        """Score the test images after every epoch of either phase."""
        if point == "epoch":
            self.eval_task()
