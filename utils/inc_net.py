"""The one seam between configuration and network.

Shapes: B batch, S image side, D embedding width, C classes.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from easydict import EasyDict
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backbone.adapter import FunctionalAdapter, Role
from backbone.registry import ADAPTERS
from backbone.sema_block import SEMAModules
from backbone.vit_sema import (
    BackboneError,
    create_vit,
    enter,
    insert_slots,
    leave,
    load_weights,
    sema_blocks,
    slot_inputs,
    timm_name,
    weights_hash,
)
from utils.config.schema import Config
from utils.data.images import InputSpec
from utils.errors import ConfigError
from utils.memory import memory
from utils.runs.checkpoint import CheckpointError, SlotShape, adapter_type, differences, refuse_packed, structure


def get_backbone(config: Config) -> tuple[VisionTransformer, dict[str, str]]:
    """The frozen ViT with its SEMA slots, and its provenance: resolved timm name, origin and SHA-256 of the weights.

    Raises:
        ConfigError: `backbone_type`, `backbone_kwargs`, `backbone_checkpoint` or the layer range do not work out.
    """
    try:
        name = timm_name(config.backbone_type)
        local = config.backbone_checkpoint
        vit = create_vit(name, config.pretrained and local is None, config.backbone_kwargs, memory())
        if local is not None:
            _refuse_packed(Path(local))
            load_weights(vit, Path(local))
        provenance = {"timm_name": name, "weights": _origin(config), "sha256": weights_hash(vit)}
        insert_slots(vit, EasyDict({**dict(config), "d_model": vit.embed_dim}))
    except BackboneError as error:
        raise ConfigError(str(error)) from error
    return vit, provenance


def _refuse_packed(path: Path) -> None:
    try:
        if path.is_file():  # otherwise its reader says so
            refuse_packed(path)
    except (ValueError, OSError, BadZipFile) as error:
        raise ConfigError(f"backbone_checkpoint {str(path)!r} cannot be read as weights: {error}") from error


def _origin(config: Config) -> str:
    if config.backbone_checkpoint is not None:
        return str(config.backbone_checkpoint)
    return "hub" if config.pretrained else "random"


class SEMAVitNet(nn.Module):
    """Backbone with slots and one linear head for all classes.

    Args:
        config: The configuration.
        nb_classes: C, classes of the whole data set.

    Attributes:
        adapter_type: The adapters' class.
        active_branches: The branches of the adapters that answer.
        provenance: Resolved timm name, origin and SHA-256 of the frozen weights.
    """

    def __init__(self, config: Config, nb_classes: int) -> None:
        super().__init__()
        self.adapter_type: type[FunctionalAdapter] = ADAPTERS[config.ffn_adapter_type]
        self.active_branches = self.adapter_type.branches
        self.backbone, self.provenance = get_backbone(config)
        self.fc = nn.Linear(self.backbone.embed_dim, nb_classes)
        nn.init.kaiming_uniform_(self.fc.weight, a=math.sqrt(5))
        nn.init.zeros_(self.fc.bias)
        self.reduced = config.precision == "bf16"
        for block in sema_blocks(self.backbone):
            if config.compile:
                block.compile_frozen()
            if config.grad_checkpointing:
                block.recompute_frozen()

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # (B, 3, S, S) -> (B, D), (B, C)
        """`features`, the final-norm class token, and `logits`."""
        return self.forward_from(self.forward_to(images, 0), 0)

    def forward_to(self, images: Tensor, layer: int) -> Tensor:  # (B, 3, S, S) -> (B, N, D)
        """The first half of a forward pass: what block `layer` gets as its input."""
        with self._at_precision():
            return enter(self.backbone, images, layer)

    def forward_from(self, x: Tensor, layer: int) -> dict[str, Tensor]:  # (B, N, D) -> (B, D), (B, C)
        """The second half of it: features and logits from the input of block `layer`; the head is float32 always."""
        with self._at_precision():
            features = leave(self.backbone, x, layer)
        features = features.to(self.fc.weight.dtype)
        return {"features": features, "logits": self.fc(features)}

    def _at_precision(self) -> torch.autocast:
        """The key `precision`: products in bfloat16, weights and the residual stream as they are."""
        return torch.autocast(self.fc.weight.device.type, torch.bfloat16, enabled=self.reduced)

    def train(self, mode: bool = True) -> "SEMAVitNet":
        """Training mode is the slots' matter: the frozen backbone always runs as in evaluation."""
        super().train(mode)
        for module in self.backbone.modules():
            module.training = False
        for slot in self.slots:
            slot.train(mode)
        return self

    @contextmanager
    def branches(self, active: tuple[str, ...]) -> Iterator[None]:
        """Let adapters answer with these of their branches only, in the order of the adapter type; or with none."""
        before = self.active_branches
        try:
            self._activate(active)
            yield
        finally:
            self._activate(before)

    def _activate(self, branches: tuple[str, ...]) -> None:
        self.active_branches = branches
        for slot in self.slots:
            for adapter in slot.functional:
                adapter.active = branches

    def branched_adapters(self) -> list[tuple[int, int, FunctionalAdapter, SEMAModules]]:
        """Layer, index in it and module of every adapter with branches, and the slot that runs it."""
        found = [(slot.layer, index, a, slot) for slot in self.slots for index, a in enumerate(slot.functional)]
        return found if self.adapter_type.branches else []

    @property
    def continual(self) -> bool:
        """Whether adapters learn again in every task."""
        return self.slots[0].functional[0].lifetime == "continual"

    @property
    def slots(self) -> list[SEMAModules]:
        """The slot of every block, by layer."""
        return [block.adapter_module for block in sema_blocks(self.backbone)]

    @property
    def expandable(self) -> list[SEMAModules]:
        """The slots that can take more adapters, shallowest first."""
        return [slot for slot in self.slots if slot.expandable]

    def input_spec(self, normalize: bool) -> InputSpec:
        """Image size and, if asked for, the weights' own mean and std."""
        size = self.backbone.patch_embed.img_size[0]
        weights: dict[str, Any] = self.backbone.pretrained_cfg  # type: ignore[assignment]  # timm sets a dict
        return InputSpec(size, tuple(weights["mean"]), tuple(weights["std"])) if normalize else InputSpec(size)

    def roles(self) -> Iterator[Role]:
        """Every parameter that can ever learn, with what it is."""
        for slot in self.slots:
            yield from slot.roles()
        yield from (("head", parameter) for parameter in self.fc.parameters())

    @torch.no_grad()
    def token_means(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Mean over tokens of the slots' inputs, (B, D) for each of `layers`; computes nothing beyond the deepest."""
        return {layer: h.mean(dim=1) for layer, h in self.slot_inputs(images, layers).items()}

    @torch.no_grad()
    def slot_inputs(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """The slots' inputs `h`, (B, N, D) for each of `layers`; computes nothing beyond the deepest."""
        wanted = set(layers)
        if not wanted:
            return {}
        with self._at_precision():
            inputs = slot_inputs(self.backbone, images, max(wanted))
            return {layer: h for layer, h in enumerate(inputs) if layer in wanted}

    def learned_state(self) -> dict[str, Tensor]:
        """Everything a run changes, under its public names: adapters, routers, descriptors with their records, head."""
        return _public_names(self.slots, self.fc)

    def load_learned(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
        """Take the structure and values of a checkpoint.

        Args:
            tensors: As `learned_state` gives them; records may be missing.
            meta: What the checkpoint says of itself: its `adapter_type`, and the provenance of its `backbone`.

        Raises:
            CheckpointError: Another adapter type, shape or backbone; nothing is loaded then.
        """
        self._refuse_other_network(tensors, meta or {})
        with torch.device("meta"):  # shapes alone: what a file claims takes no memory before it is believed
            sketch = self._restored(tensors, torch.device("meta"))
        if unlike := differences(_public_names(sketch, self.fc), tensors):
            raise CheckpointError("the checkpoint is of another network:\n  " + "\n  ".join(unlike[:20]))
        slots = self._restored(tensors, self.fc.weight.device)
        for block, slot in zip(sema_blocks(self.backbone), slots, strict=True):
            block.adapter_module = slot
        self.load_state_dict(dict(tensors), strict=False)
        self.to(self.fc.weight.device)

    def training_state(self) -> dict[str, Any]:
        """`learned_state`, and what a task in progress needs: which parameters may learn, the slots' task states."""
        trainable = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        return {
            "tensors": self.learned_state(),
            "trainable": trainable,
            "slots": [slot.task_state() for slot in self.slots],
            "backbone": self.provenance,
            "adapter_type": self.adapter_type.kind,
        }

    def load_training(self, state: Mapping[str, Any]) -> None:
        """Take what `training_state` gave.

        Raises:
            CheckpointError: As `load_learned`.
        """
        self.load_learned(state["tensors"], state)
        for slot, noted in zip(self.slots, state["slots"], strict=True):
            slot.restore_task_state(noted)
        trainable = set(state["trainable"])
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)

    def _restored(self, tensors: Mapping[str, Tensor], device: torch.device) -> list[SEMAModules]:
        """Slots of a checkpoint's structure, their values undefined."""
        slots = [slot.to(device) for slot in copy.deepcopy(self.slots)]
        for layer, shape in structure(tensors).items():
            slots[layer].restore_structure(*shape)
        return slots

    def _refuse_other_network(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        mine = self.adapter_type.kind
        theirs = adapter_type(tensors, meta, {name: ADAPTERS[name].branches for name in ADAPTERS.names()})
        if mine != theirs:
            raise CheckpointError(f"the checkpoint holds {theirs} adapters, the configuration asks for {mine}")
        backbone = meta.get("backbone")
        if backbone is not None and backbone["sha256"] != self.provenance["sha256"]:
            raise CheckpointError(
                f"the checkpoint was made on {backbone['timm_name']} with weights {backbone['sha256'][:16]} "
                f"({backbone['weights']}), here is {self.provenance['timm_name']} with {self.provenance['sha256'][:16]}"
            )
        self._refuse_other_structure(structure(tensors))

    def _refuse_other_structure(self, found: Mapping[int, SlotShape]) -> None:
        """Refuse what no run can have made; an adapter a task is the most that a layer can get."""
        if set(found) != set(range(len(self.slots))):
            raise CheckpointError(
                f"the checkpoint has {len(found)} blocks with adapters, the backbone {len(self.slots)}"
            )
        most = self.fc.out_features
        for layer, (adapters, records, _) in found.items():
            if len(adapters) > most or len(records) > len(adapters):
                raise CheckpointError(
                    f"the checkpoint has {len(adapters)} adapters and {len(records)} records at layer {layer}; expected"
                    f" at most an adapter for each of {most} classes, and as many records at most"
                )


def _public_names(slots: list[SEMAModules], fc: nn.Linear) -> dict[str, Tensor]:
    """State of slots and head under the names a checkpoint uses."""
    state = {f"fc.{key}": value for key, value in fc.state_dict().items()}
    for layer, slot in enumerate(slots):
        state |= {f"backbone.blocks.{layer}.adapter_module.{key}": value for key, value in slot.state_dict().items()}
    return state
