"""A trained network for new images, from a run directory, a checkpoint or an exported file.

Shapes: B images, H height, W width, S image side, D embedding width, C classes learned.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.special import softmax
from torch import Tensor

from models.base import Setup
from utils.config.identity import without_idle_keys
from utils.config.load import load, resolve
from utils.config.schema import Config
from utils.data.images import check_header, open_image, test_transform
from utils.data.listing import find_images
from utils.data.readable import unreadable
from utils.devices import resolve_device
from utils.errors import DataError
from utils.progress import progress
from utils.runs.checkpoint import CheckpointError, read_checkpoint
from utils.runs.checkpoint_meta import checkpoint_file, read_config, refuse_other_preparation
from utils.text import writable

logger = logging.getLogger(__name__)

Item = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
Images = Item | Sequence[Item]
EXPECTED = (
    "expected paths, PIL images, uint8 arrays (H, W), (H, W, 3) or (B, H, W, 3), or float tensors (3, S, S) or "
    "(B, 3, S, S) with S = {}"
)


@dataclass(frozen=True, repr=False)
class ImagePredictions:
    """What a network says of B images.

    Attributes:
        images: The file of each image, or `image N` with its place among those given, counted from 0.
        class_names: The C classes, in the order in which they were learned.
        logits: (B, C) float32, the output of the head.
        left_out: Number of files that could not be read; they have no row.
    """

    images: list[str]
    class_names: tuple[str, ...]
    logits: np.ndarray
    left_out: int = 0

    @cached_property
    def probabilities(self) -> np.ndarray:  # (B, C)
        """The softmax of the logits, float64."""
        return softmax(self.logits.astype(np.float64), axis=1)

    @property
    def labels(self) -> np.ndarray:  # (B,)
        """The most probable class of each image, as its place in `class_names`."""
        return self.logits.argmax(axis=1)

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.class_names[label] for label in self.labels]

    def top(self, k: int = 5) -> list[list[tuple[int, str, float]]]:
        """Return label, name and probability of the k most probable classes of each image, or of all if fewer."""
        order = np.argsort(-self.logits, axis=1, kind="stable")[:, :k]
        return [
            [(int(label), self.class_names[label], float(values[label])) for label in labels]
            for labels, values in zip(order, self.probabilities, strict=True)
        ]

    def table(self, k: int = 5) -> str:
        """Return a table of the k most probable classes of each image."""
        rows = [("image", "rank", "class", "probability")]
        for image, top in zip(self.images, self.top(k), strict=True):
            lines = [(str(rank), writable(name), f"{value:.2%}") for rank, (_, name, value) in enumerate(top, 1)]
            rows += [(writable(image) if line is lines[0] else "", *line) for line in lines]
        first, _, third, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(f"{a:<{first}}  {b:>4}  {c:<{third}}  {d:>11}" for a, b, c, d in rows)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __repr__(self) -> str:
        return self.table()


class TrainedModel:
    """The network of a checkpoint, in evaluation mode and without gradients.

    Args:
        config: The configuration that it was trained with. Of its keys `device`, `eval_batch_size` and `on_bad_image`
            are used as well.
        file: The checkpoint.

    Attributes:
        class_names: The C classes, in the order in which they were learned.
        network: The `SEMAVitNet`; its head may have more outputs than there are classes.
        transform: Turns a PIL image in RGB into a tensor (3, S, S), as test images of the run.
        meta: The metadata of the checkpoint; empty for one of the public SEMA implementation.

    Raises:
        UserError: Device, backbone or checkpoint are missing, invalid or do not fit each other.
    """

    def __init__(self, config: Config, file: Path) -> None:
        config = without_idle_keys(config)
        self.config, self.file = config, file
        self.device = resolve_device(config.device)
        tensors, self.meta = read_checkpoint(file)
        refuse_other_preparation(self.meta, config.model_dump(mode="json"))
        if "fc.weight" not in tensors:
            raise CheckpointError(f"checkpoint {str(file)!r} has no head (fc.weight)")
        outputs = len(tensors["fc.weight"])
        self.network = Setup(config, config.seed[0], self.device, outputs).network()
        self.network.load_learned(tensors, self.meta)
        self.network.eval().requires_grad_(False)
        self.class_names = class_names(self.meta, min(sum(self.meta.get("task_sizes", [outputs])), outputs), file)
        self._spec = self.network.input_spec(config.normalize)
        self.transform = test_transform(self._spec)

    def predict(self, images: Images) -> ImagePredictions:
        """Return the probabilities of the classes.

        Args:
            images: An image, or a list of images: paths of files or of folders (see `find_images`), PIL images, uint8
                arrays (H, W), (H, W, 3) or (B, H, W, 3). Or float tensors (3, S, S) or (B, 3, S, S), which are taken
                as they are; everything else is prepared as the test images of the run.

        Raises:
            DataError: There is no image, or one is missing, unreadable, or of another type or shape. Files that cannot
                be read are left out with a warning if the key `on_bad_image` is "skip".
        """
        names, logits, left_out = self._run(images, "logits")
        return ImagePredictions(names, self.class_names, logits[:, : len(self.class_names)], left_out)

    def features(self, images: Images) -> np.ndarray:
        """Return the input of the head, (B, D) float32: the final-norm class token. Images and errors as `predict`."""
        return self._run(images, "features")[1]

    @torch.no_grad()
    def _run(self, images: Images, output: str) -> tuple[list[str], np.ndarray, int]:
        """Return the names of the images, one output of the network for each, and the number of those left out."""
        given, size = _named(images), self.config.eval_batch_size
        if self.config.on_bad_image == "error":  # before the first batch, as far as headers tell
            files = [item for _, item in given if isinstance(item, Path)]
            if problems := list(unreadable(files, check_header).values()):
                hint = "repair or remove these files, or set on_bad_image to skip to leave them out"
                raise DataError("\n".join([*problems[:8], f"unreadable files: {len(problems)}; {hint}"]))
        names: list[str] = []
        outputs: list[Tensor] = []
        batches = [given[first : first + size] for first in range(0, len(given), size)]
        for batch in progress(batches, "predicting", len(batches)):
            ready = [(name, x) for name, item in batch if (x := self._prepared(name, item)) is not None]
            if ready:
                x = torch.stack([x for _, x in ready]).to(self.device)  # (B, 3, S, S)
                outputs.append(self.network(x)[output].cpu())
                names += [name for name, _ in ready]
        if not outputs:
            raise DataError(f"none of the images can be read; left out: {len(given)}" if given else "no image is given")
        return names, torch.cat(outputs).numpy(), len(given) - len(names)

    def _prepared(self, name: str, item: Any) -> Tensor | None:  # -> (3, S, S)
        """Return an image as the network's input; None: it is left out."""
        side = self._spec.size
        if isinstance(item, Tensor) and item.is_floating_point() and item.shape == (3, side, side):
            return item.float().cpu()
        fits, what = isinstance(item, Path | Image.Image), type(item).__name__
        if isinstance(item, np.ndarray | Tensor):
            what = f"{item.dtype} of shape {tuple(item.shape)}"
            fits = (
                item.dtype == np.uint8 and item.ndim in (2, 3) and item.shape[2:] in ((), (3,)) and 0 not in item.shape
            )
        if not fits:
            raise DataError(f"{name} is {what}; {EXPECTED.format(side)}")
        try:
            return self.transform(open_image(item))
        except DataError as error:
            if self.config.on_bad_image == "error" or not isinstance(item, Path):
                raise DataError(f"{name}: {error}") from error
            logger.warning("%s; left out", writable(str(error)))
            return None

    def __repr__(self) -> str:
        kind, backbone = self.config.ffn_adapter_type, self.network.provenance["timm_name"]
        return f"{self.file}: {kind} on {backbone}, {len(self.class_names)} classes, device {self.device}"


def load_run(
    run: str | Path,
    task: int | None = None,
    device: str | int | torch.device = "auto",
    config: str | Path | None = None,
    **keys: object,
) -> TrainedModel:
    """Return the trained network of a run, for new images.

        model = load_run("logs/RUN")
        model.predict("photographs/").names

    Neither the data set nor, for an exported file, the backbone's weights are needed.

    Args:
        run: A run directory, a checkpoint in it, or a file written by `main.py --export`.
        task: Take the checkpoint of a run directory after this task; None: after the last one.
        device: "auto" (a GPU if there is one), "cpu", "cuda", or the number of a GPU.
        config: Configuration file, for a checkpoint of the public SEMA implementation, which has none.
        keys: Configuration keys with other values, such as `backbone_checkpoint` if the weights were moved.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged or of another network.
        ConfigError: A key is wrong, or this machine does not have the device or the backbone's weights.
    """
    file = checkpoint_file(Path(run), task)
    keys = {"device": str(device).removeprefix("cuda:"), **keys}
    named = "argument {}"
    if config:
        return TrainedModel(load(config, keys, named=named), file)
    return TrainedModel(resolve(read_config(file), str(file), keys, named=named), file)


def class_names(meta: Mapping[str, Any], classes: int, file: Path) -> tuple[str, ...]:
    """Return the names of the classes learned; their numbers, with a warning, if the checkpoint has no names."""
    names = tuple(meta.get("class_names", ()))
    if len(names) >= classes:
        return names[:classes]
    stored = meta.get("class_order", range(classes))
    order = "as the data set stores them" if "class_order" in meta else "in the order of learning"
    logger.warning("%s holds no names of classes; they are called by their numbers, %s, from 0", file, order)
    return tuple(str(number) for number in stored[:classes])


def _named(images: Any) -> list[tuple[str, Any]]:
    """Return every single image with its name."""
    several = isinstance(images, Iterable) and not isinstance(images, str | os.PathLike | np.ndarray | Tensor)
    items = [one for item in (images if several else [images]) for one in _singles(item)]
    return [(str(one) if isinstance(one, Path) else f"image {n}", one) for n, one in enumerate(items)]


def _singles(item: Any) -> list[Any]:
    if isinstance(item, str | os.PathLike):
        return find_images([Path(item)])
    return list(item) if isinstance(item, np.ndarray | Tensor) and item.ndim == 4 else [item]
