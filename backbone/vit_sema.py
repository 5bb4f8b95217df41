"""A timm VisionTransformer with a SEMA slot in every block: its name, its weights, and the slots.

Shapes: B batch, N tokens (class token included), D embedding width.
"""

import difflib
import hashlib
import math
import ssl
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants as hub
from timm.models import get_deprecated_models
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from backbone import arguments, weights
from backbone.sema_block import SEMABlock, SEMAModules

SUFFIX = "_adapter"
MOVED = "; if it was moved, give its new place with --backbone_checkpoint"
RESAMPLED = ("pos_embed", "patch_embed.proj.weight")
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
    name = get_deprecated_models().get(name) or name  # before tags, a name had its weights as a suffix
    architecture, _, tag = name.partition(".")
    if stem == backbone_type or not timm.is_model(architecture) or architecture in get_deprecated_models():
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
    """Create timm's model without a classifier. Its architecture is checked first, see `sketch_vit`.

    Args:
        name: timm model name.
        pretrained: Whether to fetch the tag's weights from the hub (or its cache).
        kwargs: Passed to `timm.create_model`: `img_size`, `depth`, `embed_dim`, ...
        most_bytes: Limit for its parameters.

    Raises:
        BackboneError: As `sketch_vit`, or no download.
    """
    sketch_vit(name, pretrained, kwargs, most_bytes)
    if not pretrained:
        return cast(VisionTransformer, timm.create_model(name, num_classes=0, **kwargs))
    problem = unreachable(hub.ENDPOINT)
    try:
        with _from_cache_alone(hub.HF_HUB_OFFLINE or bool(problem)):
            return cast(VisionTransformer, timm.create_model(name, pretrained=True, num_classes=0, **kwargs))
    except Exception as error:
        repository = timm.get_pretrained_cfg_value(name, "hf_hub_id")
        repository = f"timm/{name}" if repository in (None, "", "timm/") else repository
        first = str(error).partition("\n")[0]
        reason = f"no connection to {hub.ENDPOINT}: {problem}" if problem else f"{type(error).__name__}: {first}"
        raise BackboneError(
            f"the pretrained weights of {name} could not be fetched ({reason}); download "
            f"https://huggingface.co/{repository}/resolve/main/model.safetensors by other means and set "
            f"backbone_checkpoint to that file, or set pretrained to false for random weights"
        ) from error


def unreachable(address: str, seconds: float = 5.0) -> str:
    """Return why a server cannot be reached within some seconds; empty if it answers, whatever it says."""
    try:
        with urlopen(Request(address, method="HEAD"), timeout=seconds):
            return ""
    except (HTTPError, HTTPException, ssl.SSLError):
        return ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        return "" if isinstance(reason, ssl.SSLError) else str(reason)


@contextmanager
def _from_cache_alone(offline: bool) -> Iterator[None]:
    """Let the hub's client take what it has; without a connection it would try again for a minute."""
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, offline
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def sketch_vit(name: str, pretrained: bool, kwargs: dict[str, Any], most_bytes: float = math.inf) -> VisionTransformer:
    """Return the model of `create_vit` on the meta device: without memory, values or a download.

    Raises:
        BackboneError: Not a VisionTransformer with plain Blocks and a class token, arguments that are unknown, of wrong
            types or do not go together, or too large.
    """
    if faults := list(arguments.problems(kwargs)):
        raise BackboneError("\n".join(faults))
    plain = _plain(name)
    refuse_unsupported(name, plain)
    width = kwargs.get("embed_dim", plain.embed_dim)
    heads = kwargs.get("num_heads", cast(Block, plain.blocks[0]).attn.num_heads)
    if width % heads:
        near = max(1, round(width / heads)) * heads
        raise BackboneError(
            f"backbone_kwargs: embed_dim = {width}, num_heads = {heads}; expected a width that is a multiple of the "
            f"heads, such as {near}"
        )
    try:
        sketch = _on_meta(name, kwargs)
        side, patch = sketch.patch_embed.img_size[0], sketch.patch_embed.patch_size[0]
        if side < patch:
            raise BackboneError(
                f"backbone_kwargs: img_size = {side}, patch_size = {patch}; expected an image of at least one patch"
            )
        if not all(parameter.numel() for parameter in sketch.parameters()):
            raise BackboneError(
                f"backbone_kwargs {arguments.shown(kwargs)}: a layer has no weights; choose larger sizes"
            )
        needed = sum(parameter.nbytes for parameter in sketch.parameters())
        if needed > most_bytes:
            given = arguments.shown(kwargs)
            raise BackboneError(f"{name} with {given} takes {needed:,} bytes, the memory here is {most_bytes:,}")
        sketch.eval()(torch.zeros(1, 3, side, side, device="meta"))
    except BackboneError:
        raise
    except Exception as error:  # timm passes on whatever its parts raise
        guilty = [out for out in kwargs if _fits(name, {key: kwargs[key] for key in kwargs if key != out})] or [*kwargs]
        given = ", ".join(f"{key} = {arguments.shown(kwargs[key])}" for key in guilty)
        raise BackboneError(
            f"backbone_kwargs: {given}: {name} cannot be built with this; change or remove it"
        ) from error
    refuse_unsupported(name, sketch)
    if pretrained and (changed := [key for key in kwargs if _reshapes(name, {key: kwargs[key]})]):
        given = ", ".join(f"{key} = {arguments.shown(kwargs[key])}" for key in changed)
        raise BackboneError(
            f"backbone_kwargs: {given}: the pretrained weights of {name} are those of another shape; remove this, set "
            "pretrained to false for random weights, or name fitting weights as backbone_checkpoint"
        )
    return sketch


@lru_cache
def _plain(name: str) -> VisionTransformer:
    """The model with timm's own arguments on the meta device, for its shapes; it may not be a VisionTransformer."""
    with torch.device("meta"):
        return cast(VisionTransformer, timm.create_model(name, pretrained=False, num_classes=0))


def _on_meta(name: str, kwargs: dict[str, Any]) -> VisionTransformer:
    given = {"weight_init": "skip", **kwargs}  # the meta device has no values, and is slow to draw them
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers without weights, which are refused
        return cast(VisionTransformer, timm.create_model(name, pretrained=False, num_classes=0, **given))


def _fits(name: str, kwargs: dict[str, Any]) -> bool:
    try:
        sketch = _on_meta(name, kwargs)
        sketch.eval()(torch.zeros(1, 3, *sketch.patch_embed.img_size, device="meta"))
    except Exception:
        return False
    return True


def _reshapes(name: str, kwargs: dict[str, Any]) -> bool:
    """Return whether arguments change names or shapes of the weights, but for those that timm resamples."""
    try:
        models = [_plain(name), _on_meta(name, kwargs)]
        shapes = [{n: v.shape for n, v in model.state_dict().items()} for model in models]
    except Exception:  # it only fits together with others
        return True
    if kwargs.keys() <= {"img_size", "patch_size"}:
        shapes = [{n: v for n, v in found.items() if n not in RESAMPLED} for found in shapes]
    return shapes[0] != shapes[1]


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
    """Load a local file: safetensors or torch with timm's names, or NumPy arrays of JAX (see `backbone.weights`).

    Position grids are resampled, classifiers ignored. If the network is on the meta device, the file is only checked.

    Raises:
        BackboneError: No such file, unreadable, or of another network.
    """
    name = f"backbone_checkpoint {str(path)!r}"
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise BackboneError(
            f"{name} does not exist"
            + ("" if path.is_absolute() else f" (a relative path starts at the working directory, {Path.cwd()})")
            + (f"; did you mean {str(path.parent / near[0])!r}?" if near else MOVED if path.is_absolute() else "")
        )
    try:
        if path.is_file() and weights.is_jax(path):
            weights.load_jax(vit, path)
            return
        state = weights.read_weights(path, vit)
        if problem := weights.unlike(vit, state):
            raise weights.WeightsError(problem)
        if not vit.patch_embed.proj.weight.is_meta:
            vit.load_state_dict({key: value.float() for key, value in state.items()})
    except weights.WeightsError as error:
        raise BackboneError(f"{name} {error}") from error
    except Exception as error:  # a damaged file, or one that holds something else
        raise BackboneError(
            f"{name} cannot be read as weights: it is damaged, or written by another program; expected safetensors, a "
            "state dict of torch.save, or NumPy arrays (.npz) of JAX"
        ) from error


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the names and values of all tensors of a network."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_other_layers(vit: VisionTransformer, config: Any) -> None:
    """Raise BackboneError if the layer range of `config` is outside the network."""
    depth = len(vit.blocks)
    if config.adapt_end_layer >= depth:
        raise BackboneError(
            f"adapt_start_layer {config.adapt_start_layer}, adapt_end_layer {config.adapt_end_layer}: the backbone's "
            f"layers are 0 to {depth - 1}, so adapt_end_layer can be {depth - 1} at most"
        )


def insert_slots(vit: VisionTransformer, config: Any) -> None:
    """Freeze the network and give every block a slot; raise BackboneError if the layer range is outside it.

    `config` is for `SEMAModules`; its `d_model` is the network's width.
    """
    refuse_other_layers(vit, config)
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


def class_token(vit: VisionTransformer, x: Tensor, first: int) -> Tensor:  # (B, N, D) -> (B, 1, D)
    """Return the class token after the last block, from the input of block `first`."""
    *others, last = sema_blocks(vit)
    for block in others[first:]:
        x = block(x)
    return last.first(x) if first <= len(others) else x[:, :1]


def slot_inputs(vit: VisionTransformer, x: Tensor, first: int, last: int) -> Iterator[Tensor]:
    """Yield every slot's input `h` (B, N, D) from block `first`, whose input is `x`, to `last`, and compute no more."""
    for layer, block in enumerate(sema_blocks(vit)[first : last + 1], start=first):
        h = block.attend(x)
        yield h
        if layer < last:
            x = block.complete(h)
