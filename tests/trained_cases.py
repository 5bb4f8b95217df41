"""Trained networks made for tests."""

from pathlib import Path

import torch
from finished_runs import NESTED
from safetensors.torch import save_file

from models import load_run
from models.trained import TrainedModel
from utils.config.load import resolve
from utils.inc_net import SEMAVitNet
from utils.runs.checkpoint import save_checkpoint
from utils.runs.checkpoint_meta import read_config


def constant_network(folder: Path, biases: dict[int, float], **keys: object) -> TrainedModel:
    """A network whose adapters add constants: by layer, a number times a ramp over the features."""
    values = {**read_config(NESTED / "checkpoints" / "task_2.safetensors"), **keys}
    config = resolve(values, "", {})
    network = SEMAVitNet(config, 6)
    for layer, number in biases.items():
        bias = network.slots[layer].functional[0].up_proj.bias
        bias.data = number * torch.linspace(-1, 1, len(bias))
    meta = {"config": values, "adapter_type": config.ffn_adapter_type, "task_sizes": [4], "class_names": list("abcdef")}
    save_checkpoint(folder / "a.safetensors", network.learned_state(), meta)
    save_file(network.frozen_state(), folder / "vit.safetensors")
    return load_run(folder / "a.safetensors", backbone_checkpoint=str(folder / "vit.safetensors"))
