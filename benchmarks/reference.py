"""The plain method: the same numbers, computed as SEMA's text reads, for the benchmarks to compare with.

One adapter runs after the other and one sample after the other passes the descriptors; the rd phase and the scan run
the whole network, the rd phase also backwards through all that is trainable; the whole test set is scored after every
epoch; all in float32. What does not depend on the method is shared: timm's network with its fused attention, loading,
optimizers, and gradients only where something trainable needs them.

Shapes: B batch, S image side, N tokens, D embedding width, A adapters at a layer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backbone.sema_block import SEMAModules
from backbone.sema_components import AdapterModule
from backbone.vit_sema import sema_blocks
from models.base import EventSink, no_events
from models.sema import Learner
from models.steps import Phase
from utils.data.loader import Batch
from utils.inc_net import SEMAVitNet

PLAINLY = {"precision": "fp32", "compile": False, "grad_checkpointing": False, "rd_views": 0}


class PlainSlot(SEMAModules):
    """A slot without stacked products.

    Args:
        slot: Without expansions so far; its values are copied.
    """

    def __init__(self, slot: SEMAModules) -> None:
        super().__init__(slot.config, slot.layer)
        self.load_state_dict(slot.state_dict())

    def forward(self, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
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
        losses = _one_by_one(self.newest, mean)
        self.newest.records.add(losses)
        return losses.mean()

    @torch.no_grad()
    def z_scores(self, mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
        """Adapter after adapter, sample after sample."""
        modules = [self._adapter(index) for index in range(self.num_adapters)]
        return torch.stack([module.records.z_scores(_one_by_one(module, mean)) for module in modules])


def _one_by_one(module: AdapterModule, mean: Tensor) -> Tensor:  # (B, D) -> (B,)
    return torch.stack([nn.functional.mse_loss(module.rd(sample), sample) for sample in mean])


class PlainNet(SEMAVitNet):
    """The network with plain slots, which looks at token means by running all of it.

    Args:
        network: Not trained so far; its modules are taken over.
    """

    def __init__(self, network: SEMAVitNet) -> None:
        nn.Module.__init__(self)
        self.backbone, self.fc, self.provenance = network.backbone, network.fc, network.provenance
        self.active_branches, self.reduced = network.active_branches, network.reduced
        for block in sema_blocks(self.backbone):
            block.adapter_module = PlainSlot(block.adapter_module).to(self.fc.weight)

    @torch.no_grad()
    def token_means(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Mean over tokens of the slots' inputs, (B, D) for each of `layers`, after a whole forward pass."""
        return self.token_means_with_graph(images, layers)

    def token_means_with_graph(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """The same, from which gradients flow back to everything trainable."""
        means: dict[int, Tensor] = {}

        def keep(slot: SEMAModules, inputs: tuple[Tensor, ...]) -> None:
            means[slot.layer] = inputs[0].mean(dim=1)

        hooks = [self.slots[layer].register_forward_pre_hook(keep) for layer in layers]
        self(images)
        for hook in hooks:
            hook.remove()
        return means


class Reference(Learner):
    """SEMA's learner without a shortcut; its results are `Learner`'s to rounding."""

    _network: PlainNet

    def __init__(self, args: Mapping[str, Any], events: EventSink = no_events) -> None:
        super().__init__({**args, **PLAINLY}, events)
        self._network = PlainNet(self._network)

    def settled_layers(self) -> int:
        """None: every evaluation runs the whole network."""
        return 0

    def _means(self, batch: Batch) -> dict[int, Tensor]:
        return self._network.token_means_with_graph(batch[1], self._described())

    def _score_if_asked(self, phase: Phase) -> None:
        self.eval_task()
