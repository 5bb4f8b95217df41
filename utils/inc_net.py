"""The network of a configuration.

Shapes: B batch, S image side, D embedding width, C classes.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from easydict import EasyDict
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backbone import vit_sema
from backbone.adapter import FunctionalAdapter, Role, drawn_linear, linear
from backbone.heads import ProjectedHead
from backbone.registry import ADAPTERS
from backbone.sema_block import SEMAModules
from backbone.streams import substream
from backbone.vit_sema import BackboneError, sema_blocks
from utils.config.identity import expands
from utils.config.schema import Config
from utils.data.images import InputSpec
from utils.errors import ConfigError
from utils.memory import memory
from utils.readouts import STATISTICS
from utils.runs.checkpoint import CheckpointError, adapter_type, differences, refuse_packed, structure

FROZEN = "backbone."  # before the backbone's names in a network's names


def get_backbone(config: Config) -> tuple[VisionTransformer, dict[str, str]]:
    """Return the frozen ViT with its SEMA slots, and its provenance: full timm name, origin and SHA-256 of the weights.

    Raises:
        ConfigError: `backbone_type`, `backbone_kwargs`, `backbone_checkpoint` or the layer range are not usable.
    """
    try:
        name = vit_sema.timm_name(config.backbone_type)
        local = config.backbone_checkpoint
        vit = vit_sema.create_vit(name, config.pretrained and local is None, config.backbone_kwargs, memory())
        if local is not None:
            _load_weights(vit, Path(local))
        origin = "hub" if config.pretrained else "random"
        sha256 = vit_sema.weights_hash(vit.state_dict())
        provenance = {"timm_name": name, "weights": str(local or origin), "sha256": sha256}
        vit_sema.insert_slots(vit, EasyDict({**_slot_keys(config), "d_model": vit.embed_dim}))
    except BackboneError as error:
        raise ConfigError(str(error)) from error
    return vit, provenance


def check_backbone(config: Config) -> None:
    """Check what `get_backbone` needs, without memory or a download, to refuse it before the data are read.

    Raises:
        ConfigError: As `get_backbone`.
    """
    try:
        name, local = vit_sema.timm_name(config.backbone_type), config.backbone_checkpoint
        fetched = config.pretrained and local is None
        sketch = vit_sema.sketch_vit(name, fetched, config.backbone_kwargs, memory())
        vit_sema.refuse_other_layers(sketch, EasyDict(_slot_keys(config)))
        if local is not None:
            _load_weights(sketch, Path(local))
    except BackboneError as error:
        raise ConfigError(str(error)) from error


def _slot_keys(config: Config) -> dict[str, Any]:
    """Return the keys of the slots. Those of a learner that never expands have no router, and train in every task."""
    fixed: dict[str, Any] = {"adapt_start_layer": 1, "adapt_end_layer": 0}
    fixed |= {"adapter_lifetime": "continual", "nested_lora_continual_layers": "all"}
    return {**dict(config), **({} if expands(config) else fixed)}


def _load_weights(vit: VisionTransformer, path: Path) -> None:
    try:
        if path.is_file():  # otherwise load_weights says so
            refuse_packed(path)
    except (ValueError, OSError, BadZipFile) as error:
        raise BackboneError(f"backbone_checkpoint {str(path)!r} cannot be read as weights: {error}") from error
    vit_sema.load_weights(vit, path)


def refuse_nonzero_birth(adapter: FunctionalAdapter, d_model: int) -> None:
    """Raise ConfigError if a new adapter is not the zero map, or does not keep the shape of its input."""
    h = torch.linspace(-1, 1, 2 * d_model).view(1, 2, d_model)  # (B, N, D), without a random draw
    name = f"ffn_adapter_type {adapter.kind!r}"
    try:
        with torch.no_grad():
            output = adapter(h)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{name}: forward fails on an input of shape {tuple(h.shape)}: {error}") from error
    if output.shape != h.shape:
        raise ConfigError(f"{name}: forward returns the shape {tuple(output.shape)}, expected {tuple(h.shape)}")
    if bool(output.any()):
        raise ConfigError(f"{name}: a new adapter must be the zero map, so that training starts from the backbone")


class SEMAVitNet(nn.Module):
    """Backbone with slots and one linear head for all classes.

    Args:
        config: The configuration.
        nb_classes: C, number of classes of the whole data set.
    """

    def __init__(self, config: Config, nb_classes: int) -> None:
        super().__init__()
        self.adapter_type: type[FunctionalAdapter] = ADAPTERS[config.ffn_adapter_type]
        self.active_branches = self.adapter_type.branches  # those that the adapters sum
        self.backbone, self.provenance = get_backbone(config)
        with substream("head"):
            self.fc: nn.Linear | ProjectedHead = drawn_linear(self.backbone.embed_dim, nb_classes)
        refuse_nonzero_birth(self.slots[0].functional[0], self.backbone.embed_dim)
        self.kept_layer = 0  # block whose input stands for an image where views are kept, see `models.views`
        self.reduced = config.precision == "bf16"
        for block in sema_blocks(self.backbone):
            if config.compile:
                block.compile_frozen()
            if config.grad_checkpointing:
                block.recompute_frozen()

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # -> (B, D), (B, C)
        """Return `features`, the final-norm class token, and `logits`.

        Args:
            x: Images (B, 3, S, S), or the input (B, N, D) of block `kept_layer`, or features (B, D).
        """
        if x.dim() == 2:
            return {"features": x, "logits": self.fc(x)}
        return self.forward_from(*self._start(x))

    def _start(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the input of a block, and the number of the block, of what `forward` takes."""
        return (x, self.kept_layer) if x.dim() == 3 else (self.forward_to(x, 0), 0)

    def forward_to(self, images: Tensor, layer: int) -> Tensor:  # (B, 3, S, S) -> (B, N, D)
        """Return the input of block `layer`, the first half of a forward pass."""
        with self._at_precision():
            x = vit_sema.embed(self.backbone, images)
            for block in sema_blocks(self.backbone)[:layer]:
                x = block(x)
            return x

    def forward_from(self, x: Tensor, layer: int) -> dict[str, Tensor]:  # (B, N, D) -> (B, D), (B, C)
        """Return features and logits from the input of block `layer`; the head always computes in float32."""
        with self._at_precision():
            x = vit_sema.class_token(self.backbone, x, layer)
            features = self.backbone.forward_head(self.backbone.norm(x))
        features = features.to(self.fc.weight.dtype)
        return {"features": features, "logits": self.fc(features)}

    def _at_precision(self) -> torch.autocast:
        """Apply the key `precision`: products in bfloat16; weights and residual stream stay float32."""
        return torch.autocast(self.fc.weight.device.type, torch.bfloat16, enabled=self.reduced)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32, whatever the key `precision` says."""
        before, self.reduced = self.reduced, False
        try:
            yield
        finally:
            self.reduced = before

    def train(self, mode: bool = True) -> "SEMAVitNet":
        """Set the mode of the slots; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            module.training = False
        for slot in self.slots:
            slot.train(mode)
        return self

    @contextmanager
    def branches(self, active: tuple[str, ...]) -> Iterator[None]:
        """Let the adapters sum only these of their branches, in the order of the adapter type; none gives zero."""
        before = self.active_branches
        try:
            self._activate(active)
            yield
        finally:
            self._activate(before)

    def _activate(self, branches: tuple[str, ...]) -> None:
        self.active_branches = branches
        for adapter in (adapter for slot in self.slots for adapter in slot.functional):
            adapter.active = branches

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Let the slots give zero, so that head and frozen backbone answer alone."""
        blocks = sema_blocks(self.backbone)
        try:
            for block in blocks:
                block.adapters_off = True
            yield
        finally:
            for block in blocks:
                block.adapters_off = False

    def branched_adapters(self) -> list[tuple[int, int, FunctionalAdapter, nn.Module]]:
        """Return layer, index, module and the module that gets its input, of every adapter with branches."""
        slots = self.slots if self.adapter_type.branches else []
        return [(slot.layer, index, a, slot.tokens) for slot in slots for index, a in enumerate(slot.functional)]

    @property
    def continual(self) -> bool:
        """Whether adapters learn in every task, in all layers or in the expandable ones."""
        return any(slot.continual for slot in self.slots)

    @property
    def settled(self) -> int:
        """Number of blocks, from the first on, whose adapters learn in the first task only."""
        return next((slot.layer for slot in self.slots if slot.continual or slot.expandable), len(self.slots))

    @property
    def slots(self) -> list[SEMAModules]:
        return [block.adapter_module for block in sema_blocks(self.backbone)]

    @property
    def expandable(self) -> list[SEMAModules]:
        """The slots that can expand, shallowest first."""
        return [slot for slot in self.slots if slot.expandable]

    def input_spec(self, normalize: bool) -> InputSpec:
        """Return the image size, with `normalize` also the mean and std of the weights."""
        size = self.backbone.patch_embed.img_size[0]
        weights: dict[str, Any] = self.backbone.pretrained_cfg  # type: ignore[assignment]  # timm sets a dict
        return InputSpec(size, tuple(weights["mean"]), tuple(weights["std"])) if normalize else InputSpec(size)

    def roles(self) -> Iterator[Role]:
        """Yield every parameter that can ever learn, with its role."""
        for slot in self.slots:
            yield from slot.roles()
        yield from (("head", parameter) for parameter in self.fc.parameters())

    @torch.no_grad()
    def token_means(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Return the mean over tokens of the slots' inputs, (B, D) for each of `layers`; see `forward` for `images`."""
        return {layer: h.mean(dim=1) for layer, h in self.slot_inputs(images, layers).items()}

    @torch.no_grad()
    def slot_inputs(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Return the slots' inputs `h`, (B, N, D) for each of `layers`; nothing beyond the deepest is computed."""
        wanted = set(layers)
        if not wanted:
            return {}
        with self._at_precision():
            x, first = self._start(images)
            inputs = vit_sema.slot_inputs(self.backbone, x, first, max(wanted))
            return {layer: h for layer, h in enumerate(inputs, start=first) if layer in wanted}

    def learned_state(self) -> dict[str, Tensor]:
        """Return what a run changes, under its public names: adapters, routers, descriptors, records, head."""
        return _public_names(self.slots, self.fc)

    def frozen_state(self) -> dict[str, Tensor]:
        """Return what no run changes, the backbone without its slots, under timm's names."""
        return {name: value for name, value in self.backbone.state_dict().items() if ".adapter_module." not in name}

    def load_learned(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
        """Take the structure and values of a checkpoint, and the backbone's values if it has them.

        Args:
            tensors: From `learned_state`, and all or none of `frozen_state`, each after `FROZEN`; records may be
                missing.
            meta: The checkpoint's `adapter_type` and the provenance of its `backbone`, if known.

        Raises:
            CheckpointError: Another adapter type, shape or backbone; nothing is loaded then.
        """
        meta = meta or {}
        tensors = {name: value for name, value in tensors.items() if not name.startswith(STATISTICS)}
        mine = self.frozen_state()
        frozen = {name: tensors[FROZEN + name] for name in mine if FROZEN + name in tensors}
        provenance = self.provenance
        if frozen:
            provenance = {**provenance, **(meta.get("backbone") or {}), "sha256": vit_sema.weights_hash(frozen)}
        self._refuse_other_network(tensors, meta, provenance)
        with torch.device("meta"):  # shapes alone: a file's structure takes no memory before it is checked
            sketch = self._restored(tensors, torch.device("meta"))
        fc = self._head(tensors)
        expected = _public_names(sketch, fc) | {FROZEN + name: mine[name] for name in mine if frozen}
        if unlike := differences(expected, tensors):
            raise CheckpointError("the checkpoint is of another network:\n  " + "\n  ".join(unlike[:20]))
        slots = self._restored(tensors, self.fc.weight.device)
        for block, slot in zip(sema_blocks(self.backbone), slots, strict=True):
            block.adapter_module = slot
        self.fc = fc
        self.load_state_dict(dict(tensors), strict=False)
        self.provenance = provenance
        self.to(self.fc.weight.device)

    def training_state(self) -> dict[str, Any]:
        """Return `learned_state` with the trainable parameters and the slots' task states, for `load_training`."""
        trainable = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        return {
            "tensors": self.learned_state(),
            "trainable": trainable,
            "slots": [slot.task_state() for slot in self.slots],
            "backbone": self.provenance,
            "adapter_type": self.adapter_type.kind,
        }

    def load_training(self, state: Mapping[str, Any]) -> None:
        """Take a `training_state`; raise CheckpointError as `load_learned` does."""
        self.load_learned(state["tensors"], state)
        for slot, noted in zip(self.slots, state["slots"], strict=True):
            slot.restore_task_state(noted)
        trainable = set(state["trainable"])
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)

    def _restored(self, tensors: Mapping[str, Tensor], device: torch.device) -> list[SEMAModules]:
        """Return slots of a checkpoint's structure, with undefined values."""
        slots = [slot.to(device) for slot in copy.deepcopy(self.slots)]
        for layer, shape in structure(tensors).items():
            slots[layer].restore_structure(*shape)
        return slots

    def _head(self, tensors: Mapping[str, Tensor]) -> nn.Linear | ProjectedHead:
        """Return a head of the kind that a checkpoint has, with undefined values."""
        weight, seed = tensors.get("fc.weight"), tensors.get("fc.seed")
        if seed is None:
            plain = linear(self.fc.weight.new_zeros(self.fc.out_features, self.backbone.embed_dim))
            return self.fc if isinstance(self.fc, nn.Linear) else plain
        if weight is None or weight.dim() != 2 or seed.shape != () or seed.dtype != torch.float64:
            raise CheckpointError(
                "the checkpoint's head is damaged: fc.weight has to be a matrix, fc.seed a float64 number"
            )
        return ProjectedHead(self.backbone.embed_dim, torch.zeros_like(weight), int(seed))

    def _refuse_other_network(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], here: Mapping[str, str]
    ) -> None:
        head = tensors.get("fc.weight")
        if head is not None and head.dim() and len(head) != self.fc.out_features:
            raise CheckpointError(
                f"the checkpoint was trained on a data set of {len(head)} classes, here are {self.fc.out_features}"
            )
        mine = self.adapter_type.kind
        theirs = adapter_type(tensors, meta, {name: ADAPTERS[name].branches for name in ADAPTERS.names()})
        if mine != theirs:
            raise CheckpointError(f"the checkpoint holds {theirs} adapters, the configuration asks for {mine}")
        backbone = meta.get("backbone")
        if backbone is not None and backbone["sha256"] != here["sha256"]:
            raise CheckpointError(
                f"the checkpoint was made on {backbone['timm_name']} with weights {backbone['sha256'][:16]} "
                f"({backbone['weights']}), here is {here['timm_name']} with {here['sha256'][:16]}"
            )
        found, most = structure(tensors), self.fc.out_features  # a layer gets at most one adapter a task
        depth = len(self.slots)
        if set(found) != set(range(depth)):
            raise CheckpointError(f"the checkpoint has {len(found)} blocks with adapters, the backbone {depth}")
        for layer, (adapters, records, _) in found.items():
            if len(adapters) > most or len(records) > len(adapters):
                raise CheckpointError(
                    f"the checkpoint has {len(adapters)} adapters and {len(records)} records at layer {layer}; expected"
                    f" at most {most} adapters, one for each class, and no more records than adapters"
                )


def _public_names(slots: list[SEMAModules], fc: nn.Module) -> dict[str, Tensor]:
    """Return the state of slots and head under the names of a checkpoint."""
    state = {f"fc.{key}": value for key, value in fc.state_dict().items()}
    for layer, slot in enumerate(slots):
        state |= {f"backbone.blocks.{layer}.adapter_module.{key}": value for key, value in slot.state_dict().items()}
    return state
