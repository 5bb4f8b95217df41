"""Measure loading: augmentation on the host against the device's, and files decoded once against every time.

    python -m benchmarks.loading [--device cpu] [--images 256] [--repeats 7]

One thread of one process loads, so that the numbers are those of one core (and of the device). The ways that are
compared take turns, and the fastest pass of each counts. The tables go into docs/loading.md.

Shapes: N images, H height, W width.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.command import make_parser, run_command, write_parts
from benchmarks.measure import quiet_timer
from tools.generated import markdown_table
from utils.data.images import InputSpec
from utils.data.loader import READY, StreamLoader
from utils.data.resample import resampling
from utils.data.sources import ImageData, Split
from utils.data.tasks import DataManager
from utils.devices import device_name, prepare_device

DOCUMENT = Path("docs/loading.md")
ARRAYS = {"32 x 32 to 224": (32, 32, 224), "64 x 64 to 56": (64, 64, 56), "400 x 500 to 224": (400, 500, 224)}
PHOTO = (400, 500, 224)
BATCH = 32
KEPT_GIB = 8.0  # room for all of them


def main(arguments: Sequence[str]) -> None:
    """Measure and write the tables."""
    parser = make_parser("loading", __doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args(arguments)
    asked = prepare_device(given.device, threads=1), given.images, given.repeats
    write_parts(DOCUMENT, {"augmentation": augmentation_table(*asked), "decoding": decoding_table(*asked)})


def augmentation_table(device: torch.device, images: int, repeats: int) -> str:
    """Images a second from arrays, by where they are augmented."""
    rows = []
    for title, (height, width, side) in ARRAYS.items():
        pixels = noise(images, height, width)
        ways = [loader(pixels, side, device, on_device, decoded_gib=0.0) for on_device in (False, True)]
        rows.append([title, *row(rates(ways, device, repeats))])
    return markdown_table([f"images a second, {device_name(device)}", "host", "device", "ratio"], rows)


def decoding_table(device: torch.device, images: int, repeats: int) -> str:
    """Images a second from files, decoded at every pass or once."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), images)
        for name in ("host", "device"):
            ways = [loader(files, PHOTO[2], device, name == "device", kept) for kept in (0.0, KEPT_GIB)]
            rows.append([f"400 x 500 to 224, on the {name}", *row(rates(ways, device, repeats))])
    return markdown_table([f"images a second, {device_name(device)}", "every time", "once", "ratio"], rows)


def loader(
    images: Sequence[Path] | np.ndarray, side: int, device: torch.device, on_device: bool, decoded_gib: float
) -> StreamLoader:
    """What a task with these training images loads them through, in this process."""
    split, spec = Split(images, np.zeros(len(images), dtype=np.int64)), InputSpec(side)
    tasks = DataManager(ImageData(split, split, ("all",)), shuffle=False, seed=0, init_cls=1, increment=1)
    dataset = tasks.get_dataset([0], "train", "part" if on_device else "train", spec, decoded_gib)
    return StreamLoader(dataset, 0, device, 0, resampling(spec, device) if on_device else READY)


def rates(ways: Sequence[StreamLoader], device: torch.device, repeats: int) -> list[float]:
    """Images a second in the fastest of several passes of each; they take turns, after a pass that does not count."""
    times: list[list[float]] = [[] for _ in ways]
    for number in range(repeats + 1):
        for seconds, way in zip(times, ways, strict=True):
            seconds.append(pass_seconds(way, number, device))
    return [len(way) / min(seconds[1:]) for seconds, way in zip(times, ways, strict=True)]


def pass_seconds(way: StreamLoader, number: int, device: torch.device) -> float:
    """What one pass takes, each with other random parts."""
    return quiet_timer(device)(lambda: deque(way.epoch("benchmark", number, batch_size=BATCH, shuffle=True), maxlen=0))


def row(found: Sequence[float]) -> list[str]:
    """Two rates, and the second in units of the first."""
    first, second = found
    return [f"{first:,.0f}", f"{second:,.0f}", f"{second / first:.2f}"]


def noise(images: int, height: int, width: int) -> np.ndarray:
    """Pixels (N, H, W, 3) without any pattern, which neither resizing is faster or slower for."""
    return np.random.default_rng(0).integers(0, 256, (images, height, width, 3), dtype=np.uint8)


def photographs(folder: Path, images: int) -> list[Path]:
    """JPEG files of the size in bytes of photographs: large smooth shapes and a little noise."""
    height, width, _ = PHOTO
    rng = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(images)]
    for file in files:
        shapes = Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.asarray(shapes) + rng.normal(0, 8, (height, width, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


if __name__ == "__main__":
    run_command(main)
