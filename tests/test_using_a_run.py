"""The commands and programs of docs/using-a-run.md work as they are written there."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from finished_runs import NESTED
from PIL import Image
from trained_cases import constant_network

import main
from models.export import export_model

PAGE = (Path(__file__).parents[1] / "docs" / "using-a-run.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    python main\.py (.*)", PAGE, re.MULTILINE)
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    shutil.copytree(NESTED, tmp_path / "logs" / "RUN")
    pixels = np.random.default_rng(4).integers(0, 255, (3, 20, 20, 3)).astype(np.uint8)
    (tmp_path / "photographs" / "more").mkdir(parents=True)
    for name, image in zip(("a.png", "cat.png", "more/b.png"), pixels, strict=True):
        Image.fromarray(image).save(tmp_path / "photographs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command(capsys):
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        argv = shlex.split(command.partition(">")[0])
        assert main.main(argv) == 0, command
        out = capsys.readouterr().out
        assert ("cat.png" in out) == ("--predict" in argv)


def test_every_program(place):
    assert len(PROGRAMS) == 3
    shutil.move("logs/RUN", "kept")
    shutil.copytree("kept", "logs/RUN")
    export_model(constant_network(place, {}, ffn_adapter_type="adaptmlp"), place / "timm.safetensors", "timm")
    for program in PROGRAMS:
        exec(program, {})
