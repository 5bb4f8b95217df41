"""Small whole runs on folders of images, as tests of strange inputs need them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import main

KEYS: dict[str, Any] = {
    "dataset": "imagefolder",
    "backbone_type": "vit_tiny_patch16_224_adapter",
    "pretrained": False,
    "backbone_kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "device": "cpu",
    "num_workers": 0,
    "seed": 4,
    "shuffle": False,
    "init_cls": 2,
    "increment": 2,
    "adapt_start_layer": 1,
    "adapt_end_layer": 1,
    "ffn_num": 2,
    "rd_dim": 2,
    "buffer_size": 10,
    "batch_size": 4,
    "detect_batch_size": 4,
    "func_epoch": 1,
    "rd_epoch": 1,
    "exp_threshold": 1.0,
}


def make_images(root: Path, train: dict[str, int], test: int = 2) -> Path:
    """Noise of another brightness for each class."""
    rng = np.random.default_rng(0)
    for brightness, (name, count) in enumerate(train.items()):
        for split, number in [("train", n) for n in range(count)] + [("test", n) for n in range(test)]:
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (18, 18, 3)) + 40 * brightness
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


class Caller:
    """Calls main.py in this process.

    Args:
        folder: Where configuration and output directories go.
        capsys: Pytest's.
    """

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, root: Path, output: str = "logs", **keys: Any) -> tuple[int, str]:
        """Train on these images with these keys; the exit code and what was written to standard error."""
        values = {**KEYS, "data_root": str(root), "output_dir": str(self.folder / output), **keys}
        (self.folder / "run.json").write_text(json.dumps(values))
        return self.main("--config", str(self.folder / "run.json"))

    def main(self, *argv: str) -> tuple[int, str]:
        """Call it with these arguments."""
        code = main.main(argv)
        self.output, error = self.capsys.readouterr()
        return code, error


def results(output: Path) -> dict[str, Any]:
    (file,) = output.glob("*/results.json")
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "run"}


def events(output: Path) -> list[str]:
    (file,) = output.glob("*/metrics.jsonl")
    return file.read_text().splitlines()
