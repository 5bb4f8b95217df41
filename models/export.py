"""Write a trained network to one safetensors file that needs no other, in one of three forms.

`network`: backbone, adapters and head as they are. `load_run` reads the file.

`merged`: the same function with one bottleneck adapter in place of the branches of each. For branches i of ranks R_i

    sum_i (U_i relu(D_i h + b_i) + c_i)  =  U relu(D h + b) + c

with the rows of all D_i and b_i one below the other, the columns of all U_i side by side, and c the sum of the c_i.
That is exact, as relu acts on every hidden unit by itself.

`timm`: a plain VisionTransformer of timm. A block of it computes `h + mlp(norm2(h))`; a slot adds
`U relu(D h + b) + c`, or a mean of such terms whose weights depend on h. No weight of the block can take that up: the
MLP gets norm2(h), which has lost the mean and the scale of h, and its units are no relu. What can be taken up is a
constant: if all U are zero and all c are equal, c is added to the bias of the MLP's second layer. Any other network is
refused.

Shapes: D embedding width.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.sema_block import SEMAModules
from backbone.vit_sema import sema_blocks
from models.trained import TrainedModel
from utils.config.identity import idle_keys
from utils.config.schema import schemas
from utils.errors import ConfigError
from utils.files import atomic_write
from utils.inc_net import FROZEN, SEMAVitNet
from utils.runs.checkpoint import save_checkpoint

SELF_CONTAINED = {"pretrained": False, "backbone_checkpoint": None}  # the weights are in the file
KEPT = ("seed",)  # beside the keys that can change a result; the others are of the machine it was trained on


def export_model(model: TrainedModel, file: Path, form: str) -> None:
    """Write the network of `model` in one of the forms above.

    Raises:
        ConfigError: The network has no such form, or the file cannot be written.
    """
    try:
        if form == "timm":
            atomic_write(file, save(timm_state(model), timm_header(model)))
        else:
            network, keys = merged(model.network) if form == "merged" else (model.network, {})
            frozen = {FROZEN + name: value for name, value in network.frozen_state().items()}
            save_checkpoint(file, {**network.learned_state(), **frozen}, metadata(model, keys))
    except OSError as error:
        raise ConfigError(f"export = {file}: cannot be written: {error.strerror}") from error


def metadata(model: TrainedModel, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an exported file: those of the checkpoint, with `keys` in the configuration."""
    known, values = schemas(), model.config.model_dump(mode="json")
    kept = {key: value for key, value in values.items() if known[key]["changes_results"] or key in KEPT}
    config = {**kept, **SELF_CONTAINED, **keys}
    idle = idle_keys(config)
    read = {key: value for key, value in config.items() if key not in idle}
    own = {"config": read, "backbone": model.network.provenance, "adapter_type": config["ffn_adapter_type"]}
    return {"task_sizes": [len(model.class_names)], **model.meta, **own}


# ---- merged


def merged(network: SEMAVitNet) -> tuple[SEMAVitNet, dict[str, Any]]:
    """Return an equal network whose adapters are of type adaptmlp, and the keys that differ in its configuration.

    All adapters get the largest rank; hidden units that one of lower rank does not have are zero, and so is what they
    add.
    """
    network = copy.deepcopy(network)
    modules = [module for slot in network.slots for module in slot.modules_in_order]
    single = [joined(module.functional) for module in modules]
    rank = max(adapter.rank for adapter in single)
    for module, adapter in zip(modules, single, strict=True):
        if missing := rank - adapter.rank:
            empty = Adapter(adapter.config, adapter.adapter_id, bottleneck=missing).to(adapter.down_proj.weight)
            empty.zero()
            adapter.append(empty, 1.0)
        module.functional = adapter
    return network, {"ffn_adapter_type": Adapter.kind, Adapter.width_key: rank}


def joined(adapter: FunctionalAdapter) -> Adapter:
    """Return one bottleneck adapter that computes the sum of the branches of `adapter`, which may be changed."""
    if not (summands := adapter.summands()):
        raise ConfigError(
            f"export_form merged: adapters of type {adapter.kind} do not say that they are sums of bottleneck adapters "
            "(FunctionalAdapter.summands); export_form network keeps them as they are"
        )
    first, *others = summands
    for other in others:
        first.append(other, 1.0)
    return first


# ---- timm


def timm_state(model: TrainedModel) -> dict[str, Tensor]:
    """Return the state of timm's VisionTransformer with the head of the classes learned.

    Raises:
        ConfigError: An adapter has an effect that depends on the image.
    """
    network, classes = model.network, len(model.class_names)
    if not isinstance(network.fc, nn.Linear):
        raise ConfigError(
            "export_form timm: the head is on a random projection of the features, which timm's model does not have; "
            "export_form network writes it too, for load_run"
        )
    state = network.frozen_state()
    for layer, block in enumerate(sema_blocks(network.backbone)):
        offset, name = constant(block.adapter_module), f"blocks.{layer}.mlp.fc2.bias"
        taken_up = isinstance(block.ls2, nn.Identity) and name in state
        if offset is None or (bool(offset.any()) and not taken_up):
            raise ConfigError(
                f"export_form timm: the adapters of block {layer} add U relu(D h + b) + c to its output, which depends "
                "on the image; no weight of timm's block can compute that. export_form network or merged writes the "
                "adapters too, for load_run"
            )
        if offset.any():
            state[name] = state[name] + offset
    state |= {"head.weight": network.fc.weight[:classes], "head.bias": network.fc.bias[:classes]}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def constant(slot: SEMAModules) -> Tensor | None:  # (D,)
    """Return what a slot adds to every token of every image; None if that differs."""
    added = []
    for adapter in slot.functional:
        summands = adapter.summands()
        if summands is None or any(bool(summand.up_proj.weight.any()) for summand in summands):
            return None
        added.append(torch.stack([summand.up_proj.bias for summand in summands]).sum(dim=0))
    return added[0] if all(torch.equal(added[0], other) for other in added) else None


def timm_header(model: TrainedModel) -> dict[str, str]:
    """Return what is needed to use the file with timm, as JSON."""
    arguments = {"num_classes": len(model.class_names), **model.config.backbone_kwargs}
    about = {
        "model": model.network.provenance["timm_name"],
        "arguments": arguments,
        "class_names": model.class_names,
        "normalize": model.config.normalize,
    }
    return {"format": "pt", "timm": json.dumps(about)}
