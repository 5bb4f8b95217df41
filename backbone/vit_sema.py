"""A timm VisionTransformer with a SEMA slot in every block: its name, its weights, and the slots.

Shapes: B batch, N tokens (class token included), D embedding width.
"""

import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from backbone.sema_block import SEMABlock, SEMAModules

SUFFIX = "_adapter"
DEEPEST = 1000  # blocks; no ViT has a tenth of that
SEMA_NAMES = {
    # Since timm's multi-weight naming the bare first name means augreg2_in21k_ft_in1k.
    "pretrained_vit_b16_224": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "pretrained_vit_b16_224_in21k": "vit_base_patch16_224.augreg_in21k",
}


class BackboneError(ValueError):
    """Unknown name, unsupported architecture, or weights that do not fit."""


def timm_name(backbone_type: str) -> str:
    """Return the timm model name, with its full pretrained tag, of a `backbone_type`, or raise BackboneError."""
    stem = backbone_type.removesuffix(SUFFIX)
    name = SEMA_NAMES.get(stem, stem)
    architecture, _, tag = name.partition(".")
    if stem == backbone_type or not timm.is_model(architecture):
        known = [f"{known}{SUFFIX}" for known in [*SEMA_NAMES, *timm.list_models("*vit*"), *timm.list_models("deit*")]]
        near = difflib.get_close_matches(backbone_type, known, n=3, cutoff=0.5)
        raise BackboneError(
            f"backbone_type {backbone_type!r} is unknown; expected {', '.join(known[: len(SEMA_NAMES)])} or "
            f"'<timm VisionTransformer>{SUFFIX}', nearest: {', '.join(near) or 'none'}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BackboneError(f"backbone_type {backbone_type!r}: {architecture} has the tags {', '.join(tags) or 'none'}")
    default = timm.get_pretrained_cfg_value(architecture, "tag")
    return name if tag or not default else f"{architecture}.{default}"


def create_vit(name: str, pretrained: bool, kwargs: dict[str, Any], most_bytes: float = math.inf) -> VisionTransformer:
    """Create timm's model without a classifier. Its architecture is checked first, without memory or a download.

    Args:
        name: timm model name.
        pretrained: Whether to fetch the tag's weights from the hub (or its cache).
        kwargs: Passed to `timm.create_model`: `img_size`, `depth`, `embed_dim`, ...
        most_bytes: Limit for its parameters.

    Raises:
        BackboneError: Not a VisionTransformer with plain Blocks and a class token, unknown kwargs, too large, or no
            download.
    """
    depth = kwargs.get("depth")
    if isinstance(depth, int) and depth > DEEPEST:  # a million blocks would take too long even without memory
        raise BackboneError(f"backbone_kwargs: depth = {depth}; expected at most {DEEPEST}")
    try:
        with torch.device("meta"):
            sketch = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    except Exception as error:  # timm passes on whatever its parts raise
        raise BackboneError(f"backbone_kwargs {kwargs} do not fit {name}: {error!r}") from error
    refuse_unsupported(name, sketch)
    needed = sum(parameter.nbytes for parameter in sketch.parameters())
    if needed > most_bytes:
        raise BackboneError(f"{name} with {kwargs} takes {needed:,} bytes, the memory here is {most_bytes:,}")
    try:
        return cast(VisionTransformer, timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs))
    except Exception as error:
        if not pretrained:
            raise
        repository = timm.get_pretrained_cfg_value(name, "hf_hub_id")
        repository = f"timm/{name}" if repository in (None, "", "timm/") else repository
        raise BackboneError(
            f"the pretrained weights of {name} could not be fetched ({type(error).__name__}: {error}); download "
            f"https://huggingface.co/{repository}/resolve/main/model.safetensors by other means and set "
            f"backbone_checkpoint to that file, or set pretrained to false for random weights"
        ) from error


def refuse_unsupported(name: str, model: torch.nn.Module) -> None:
    """Raise BackboneError unless SEMA's equations hold for this architecture."""
    if type(model) is not VisionTransformer:
        raise BackboneError(f"{name} is a {type(model).__name__}; SEMA needs timm's VisionTransformer")
    blocks = {type(block).__name__ for block in model.blocks if type(block) is not Block}
    if blocks:
        raise BackboneError(f"{name} is built of {', '.join(sorted(blocks))}; SEMA needs timm's plain Block")
    if model.cls_token is None or model.global_pool != "token":
        raise BackboneError(f"{name} pools by {model.global_pool!r}; SEMA needs the class token")


def load_weights(vit: VisionTransformer, path: Path) -> None:
    """Load a local safetensors or torch file with timm's names. Position grids are resampled, classifiers ignored.

    Raises:
        BackboneError: No such file, unreadable, or tensors that do not fit, with their names.
    """
    if not path.is_file():
        raise BackboneError(f"backbone_checkpoint {str(path)!r} does not exist")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        state = checkpoint_filter_fn(state, vit)
        state = {key: value.float() for key, value in state.items() if not key.startswith(("head.", "head_dist."))}
    except Exception as error:  # a damaged file, or one that holds something else
        raise BackboneError(f"backbone_checkpoint {str(path)!r} cannot be read as weights: {error!r}") from error
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        raise BackboneError(f"backbone_checkpoint {str(path)!r} does not fit the backbone: {error}") from error


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the names and values of all tensors of a network."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def insert_slots(vit: VisionTransformer, config: Any) -> None:
    """Freeze the network and give every block a slot; raise BackboneError if the layer range is outside it.

    `config` is for `SEMAModules`; its `d_model` is the network's width.
    """
    depth = len(vit.blocks)
    if config.adapt_end_layer >= depth:
        raise BackboneError(
            f"adapt_start_layer {config.adapt_start_layer}, adapt_end_layer {config.adapt_end_layer}: the backbone's "
            f"layers are 0 to {depth - 1}, so adapt_end_layer can be {depth - 1} at most"
        )
    vit.requires_grad_(False)
    vit.blocks = torch.nn.Sequential(
        *(SEMABlock(block, SEMAModules(config, layer)) for layer, block in enumerate(vit.blocks))
    )


def sema_blocks(vit: VisionTransformer) -> list[SEMABlock]:
    """Return the blocks, typed."""
    return [block for block in vit.blocks if isinstance(block, SEMABlock)]


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, N, D)
    """Return the input of the first block."""
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))


def slot_inputs(vit: VisionTransformer, images: Tensor, last: int) -> Iterator[Tensor]:
    """Yield every slot's input `h` (B, N, D) from block 0 to `last`, and compute nothing beyond."""
    x = embed(vit, images)
    for layer, block in enumerate(sema_blocks(vit)[: last + 1]):
        h = block.attend(x)
        yield h
        if layer < last:
            x = block.complete(h)
