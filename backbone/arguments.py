"""The arguments of timm's VisionTransformer that a configuration can set: their types and bounds."""

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Argument(NamedTuple):
    """One argument: what is expected, in words, and whether a value is that."""

    expected: str
    holds: Callable[[Any], bool]


def _whole(least: int, most: int) -> Argument:
    return Argument(f"a whole number from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def _real(least: float, most: float) -> Argument:
    words = f"a number from {least:g} to {most:g}"
    return Argument(words, lambda v: type(v) in (int, float) and math.isfinite(v) and least <= v <= most)


def _one_of(*values: object) -> Argument:
    expected = " or ".join(map(json.dumps, values))
    return Argument(expected, lambda v: any(type(v) is type(value) and v == value for value in values))


def _or_null(argument: Argument) -> Argument:
    return Argument(f"{argument.expected}, or null", lambda v: v is None or argument.holds(v))


def _is_square(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    return all(type(side) is int and 1 <= side <= LARGEST_IMAGE for side in sides) and sides[0] == sides[1]


LARGEST_IMAGE = 8192  # pixels of a side
DEEPEST = 1000  # blocks; no ViT has a tenth of that
SWITCH = _one_of(True, False)
RATE = _real(0, 0.99)
NAME = Argument("the name of one of timm's layers", lambda v: isinstance(v, str) and v != "")
ARGUMENTS = {
    "img_size": Argument(
        f"the side of the images in pixels, from 1 to {LARGEST_IMAGE}; images are square, such as 224 or [224, 224]",
        _is_square,
    ),
    "patch_size": Argument(f"the side of a patch in pixels, from 1 to {LARGEST_IMAGE}, such as 16", _is_square),
    "in_chans": Argument("3, as images are read as RGB", lambda v: type(v) is int and v == 3),
    "embed_dim": _whole(1, 2**24),
    "depth": _whole(1, DEEPEST),
    "num_heads": _whole(1, 2**24),
    "mlp_ratio": _real(0.01, 1024),
    "init_values": _or_null(_real(0, 1024)),
    "reg_tokens": _whole(0, 4096),
    "class_token": Argument("true, as the features are those of the class token", lambda v: v is True),
    "global_pool": Argument('"token", as the features are those of the class token', lambda v: v == "token"),
    "pos_embed": _one_of("learn", "none"),
    "weight_init": _one_of("", "jax", "moco", "reset"),
    "fc_norm": _or_null(_one_of(True, False)),
    **dict.fromkeys(
        ("qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "no_embed_class", "pre_norm",
         "final_norm", "pool_include_prefix", "fix_init", "dynamic_img_size", "dynamic_img_pad"),
        SWITCH,
    ),
    **dict.fromkeys(
        ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), RATE
    ),
    **dict.fromkeys(("norm_layer", "act_layer", "embed_norm_layer"), NAME),
}  # fmt: skip


def problems(kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each argument that is unknown, of a wrong type or out of bounds."""
    for name, value in kwargs.items():
        given = f"backbone_kwargs: {name} = {shown(value)}"
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name, ARGUMENTS, n=1, cutoff=0.5)
            nearest = f"did you mean {near[0]}?" if near else f"there are {', '.join(ARGUMENTS)}"
            yield f"{given}: unknown argument; {nearest}"
        elif not ARGUMENTS[name].holds(value):
            yield f"{given}; expected {ARGUMENTS[name].expected}"


def shown(value: object) -> str:
    """Return a value as JSON, shortened if it is long."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
