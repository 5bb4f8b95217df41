"""The recorded runs' inputs: weights, images and initial draws, all from numpy's legacy generator.

The records in `tests/parity/` were made with the public SEMA implementation. Nothing in them depends on the order in
which modules are built or images are drawn: initial values depend on a tensor's shape alone, and either an epoch is one
batch of the whole task, or (`walk`) images come in a fixed order whatever index is asked for.
"""

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

RECORDS = Path(__file__).parent / "parity"
NAMES = ("sgd_expand", "sgd_reuse", "adam_expand", "sgd_batches")


class Record:
    """One recorded run: its configuration, network shape, data recipe, and what was observed after each task."""

    def __init__(self, name: str) -> None:
        stored = json.loads((RECORDS / f"{name}.json").read_text())
        self.config: dict[str, Any] = stored["config"]
        self.shape: dict[str, Any] = stored["backbone_kwargs"]
        self.recipe: dict[str, Any] = stored["data"]
        self.tasks: list[dict[str, Any]] = stored["tasks"]
        self.checkpoint = RECORDS / f"{name}.pth"
        traces = np.load(RECORDS / f"{name}.npz")
        self.logits = [traces[f"logits{task}"] for task in range(len(self.tasks))]
        self.tolerance = 2e-5 if self.config["optimizer"] == "sgd" else 1e-4


def backbone_weights(shape: dict[str, Any]) -> dict[str, Tensor]:
    """A random ViT under timm's names, drawn in the order of the records."""
    rng, width, patch = np.random.RandomState(7), shape["embed_dim"], shape["patch_size"]
    hidden, tokens = int(width * shape["mlp_ratio"]), (shape["img_size"] // patch) ** 2
    state = {
        "cls_token": rng.randn(1, 1, width) * 0.5,
        "pos_embed": rng.randn(1, tokens + 1, width) * 0.3,
        "patch_embed.proj.weight": rng.randn(width, 3, patch, patch) / math.sqrt(3 * patch * patch),
        "patch_embed.proj.bias": rng.randn(width) * 0.02,
    }
    linears = {
        "norm1": None,
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": None,
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    names = [(f"blocks.{b}.{name}", sides) for b in range(shape["depth"]) for name, sides in linears.items()]
    for name, sides in [*names, ("norm", None)]:
        if sides is None:
            state[f"{name}.weight"] = 1 + rng.randn(width) * 0.05
            state[f"{name}.bias"] = rng.randn(width) * 0.05
        else:
            state[f"{name}.weight"] = rng.randn(*sides) / math.sqrt(sides[1])
            state[f"{name}.bias"] = rng.randn(sides[0]) * 0.02
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()}


def images_of(record: Record) -> dict[tuple[str, int], np.ndarray]:
    """(split, class) -> (n, 3, S, S): a class pattern plus noise plus the task's horizontal ramp."""
    cfg, data, size = record.config, record.recipe, record.shape["img_size"]
    rng = np.random.RandomState(1000 + data["seed"])
    images = {}
    for label in range(cfg["nb_classes"]):
        task = max(0, math.ceil((label + 1 - cfg["init_cls"]) / cfg["increment"]))
        ramp = data["shift"][task] * np.linspace(-1, 1, size)
        pattern = rng.randn(3, size, size)
        for split, count in (("train", data["per_class"]), ("test", data["test_per_class"])):
            noise = 0.7 * rng.randn(count, 3, size, size)
            images[split, label] = (pattern + noise + ramp).astype(np.float32)
    return images


class Walk(Dataset):
    """(index, image, label) of some classes; with `walk` one after another in a fixed mixed order."""

    def __init__(self, images: dict[tuple[str, int], np.ndarray], split: str, labels: list[int], walk: bool) -> None:
        self.x = np.concatenate([images[split, label] for label in labels])
        self.y = np.concatenate([np.full(len(images[split, label]), label) for label in labels])
        self.walk, self.given = walk, 0
        if walk:
            order = np.random.RandomState(5).permutation(len(self.y))
            self.x, self.y = self.x[order], self.y[order]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        if self.walk:
            index, self.given = self.given % len(self.y), self.given + 1
        return index, torch.from_numpy(self.x[index]), int(self.y[index])


class RecordedTasks:
    """Stands in for the DataManager: the recorded images, no augmentation."""

    def __init__(self, record: Record) -> None:
        self.images, self.walk = images_of(record), record.recipe["walk"]
        self.sizes = [record.config["init_cls"]] + [record.config["increment"]] * (len(record.tasks) - 1)

    def get_task_size(self, task: int) -> int:
        return self.sizes[task]

    def get_dataset(self, indices: Iterable[int], source: str, mode: str, **_: object) -> Walk:
        return Walk(self.images, source, list(indices), self.walk and source == "train")

    def test_images(self) -> Tensor:
        return torch.from_numpy(Walk(self.images, "test", list(range(sum(self.sizes))), walk=False).x)


def draw(tensor: Tensor, low: float, high: float) -> Tensor:
    """Fill with uniform values that depend on the shape alone."""
    rng = np.random.RandomState(zlib.crc32(repr(tuple(tensor.shape)).encode()) & 0x7FFFFFFF)
    with torch.no_grad():
        return tensor.copy_(
            torch.tensor(rng.uniform(low, high, size=tuple(tensor.shape)), dtype=tensor.dtype, device=tensor.device)
        )


def kaiming_uniform_(tensor: Tensor, a: float = 0, **_: object) -> Tensor:
    bound = math.sqrt(3) * math.sqrt(2 / (1 + a * a)) / math.sqrt(tensor.shape[1])
    return draw(tensor, -bound, bound)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, **_: object) -> Tensor:
    return draw(tensor, a, b)
