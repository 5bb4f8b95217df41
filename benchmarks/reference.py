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
from models.phases import Phase
from models.sema import Learner
from utils.inc_net import SEMAVitNet


class PlainSlot(SEMAModules):
    """A slot without stacked products.

    Args:
        slot: Without expansions so far; its values are copied.
    """

    def __init__(self, slot: SEMAModules) -> None:
        super().__init__(slot.config, slot.layer)
        self.load_state_dict(slot.state_dict())
        self.mean: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """As the slot's; the token mean stays with its graph, for the descriptor's loss."""
        if not self.expandable:
            return self.adapters[0](h)
        self.mean = h.mean(dim=1)
        if self.training and self.describing:
            with torch.no_grad():
                self.rd_loss(self.mean.detach())
        return self.mix(h, self.mean)

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
        for block in sema_blocks(self.backbone):
            block.adapter_module = PlainSlot(block.adapter_module).to(self.fc.weight)

    @torch.no_grad()
    def token_means(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Mean over tokens of the slots' inputs, (B, D) for each of `layers`, after a whole forward pass."""
        return self.token_means_with_graph(images, layers)

    def token_means_with_graph(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """The same, from which gradients flow back to everything trainable."""
        self(images)
        return {layer: self.slots[layer].mean for layer in layers}


class Reference(Learner):
    """SEMA's learner without a shortcut; its results are `Learner`'s to rounding."""

    _network: PlainNet

    def __init__(self, args: Mapping[str, Any], events: EventSink = no_events) -> None:
        super().__init__(args, events)
        self._network = PlainNet(self._network)

    def _rd_loss(self, images: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        slots = [slot for slot in self._network.expandable if slot.describing]
        means = self._network.token_means_with_graph(images, self._layers(slots))
        losses = [slot.rd_loss(means[slot.layer]) for slot in slots]
        return torch.stack(losses).sum(), torch.zeros((), device=self.device)

    def _score_if_asked(self, phase: Phase) -> None:
        self.eval_task()
