"""Predicting and exporting by the command line: what goes where, and how it is written."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from finished_runs import NESTED
from PIL import Image
from test_cli import cli

import main
from models import load_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "meine Bilder"
    (folder / "tief").mkdir(parents=True)
    pixels = np.random.default_rng(3).integers(0, 255, (3, 20, 20, 3)).astype(np.uint8)
    for name, image in zip(("a.png", "größe 1.jpg", "tief/grau.png"), pixels, strict=True):
        Image.fromarray(image if "grau" not in name else image[..., 0]).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


def predict(*argv: object) -> int:
    return main.main(["--checkpt_path", str(NESTED), "--predict", *map(str, argv)])


def test_the_table_is_on_standard_output_and_everything_else_is_not(photographs, capsys):
    assert predict(photographs, "--top_k", "2") == 0
    out, err = capsys.readouterr()
    assert out == load_run(NESTED).predict(photographs).table(2) + "\n"
    assert "task_2.safetensors: nested_lora on vit_tiny" in err
    assert "images: 3, unreadable files left out: 0" in err


def test_json_has_every_digit(photographs, capsys):
    assert predict(photographs, "--predict_format", "json", "--top_k", "3") == 0
    found = load_run(NESTED).predict(photographs)
    written = json.loads(capsys.readouterr().out)
    assert written.keys() == {"checkpoint", "classes", "left_out", "images"}
    assert (written["classes"], written["left_out"]) == (6, 0)
    assert [entry["image"] for entry in written["images"]] == found.images
    for entry, row in zip(written["images"], found.probabilities, strict=True):
        values = [part["probability"] for part in entry["top"]]
        assert values == sorted(row.tolist(), reverse=True)[:3]
        assert [row[part["label"]] for part in entry["top"]] == values
        assert [part["class"] for part in entry["top"]] == [found.class_names[part["label"]] for part in entry["top"]]


def test_csv_has_a_row_for_each_image_and_class(photographs, capsys):
    assert predict(photographs / "größe 1.jpg", photographs / "tief", "--predict-format", "csv", "--top-k", "2") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = load_run(NESTED).predict([photographs / "größe 1.jpg", photographs / "tief"])
    expected = [
        (image, str(rank), name, str(label), repr(value))
        for image, top in zip(found.images, found.top(2), strict=True)
        for rank, (label, name, value) in enumerate(top, 1)
    ]
    assert [tuple(row.values()) for row in rows] == expected


def test_unreadable_files_end_the_command_or_are_counted(photographs, capsys):
    (photographs / "bad.png").write_text("x")
    assert predict(photographs) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "bad.png: not a readable image" in err
    assert predict(photographs, "--on_bad_image", "skip") == 0
    out, err = capsys.readouterr()
    assert "bad.png" not in out
    assert "images: 3, unreadable files left out: 1" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--predict", "docs/figure", "--checkpt_path", str(NESTED)],
            "docs/figure: no such file or folder (a relative path starts at the working directory, ",
        ),
        (["--predict", "exps", "--checkpt_path", str(NESTED)], "exps: no image in it"),
        (["--predict", "--checkpt_path", str(NESTED)], "expected an image or a folder, or a list of them"),
        (["--predict", "a.png"], "predict needs a checkpt_path"),
        (["--predict", "a.png", "--checkpt_path", "tests/recorded"], "holds no checkpoint"),
        (["--predict", "a.png", "--checkpt_path", str(NESTED), "--eval"], "give only one of eval, predict, export"),
        (["--predict", "a.png", "--checkpt_path", "tests/parity/sgd_expand.pth"], "give one with --config"),
        (["--predict", "a.png", "--checkpt_path", str(NESTED), "--predict_format", "yaml"], "one of table, json, csv"),
        (["--export", "a.onnx", "--checkpt_path", str(NESTED)], "ends in .safetensors"),
        (["--export", "a.safetensors"], "export needs a checkpt_path"),
        (["--eval"], "eval needs a checkpt_path"),
        (["--eval", "--device", "cpu"], "eval needs a checkpt_path"),
        (["--checkpt_path", "a.safetensors"], "say what to do with it: --eval, --predict, --export"),
    ],
)
def test_what_is_wrong_is_said_before_torch_is_imported(argv, message):
    done = cli(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_an_exported_file_is_not_replaced_by_chance(tmp_path, capsys):
    file = tmp_path / "it.safetensors"
    argv = ["--checkpt_path", str(NESTED), "--export", str(file)]
    assert main.main(argv) == 0
    assert main.main(argv) == 2
    assert "there is such a file" in capsys.readouterr().err
    assert main.main([*argv, "--overwrite", "--export_form", "merged"]) == 0
    assert load_run(file).config.ffn_adapter_type == "adaptmlp"
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_copied_run_predicts_from_any_folder_and_any_terminal(photographs, tmp_path):
    shutil.copytree(NESTED, tmp_path / "Läufe" / "mein Lauf")
    (tmp_path / "Läufe" / "mein Lauf" / "config.json").unlink()
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--predict",
        str(photographs),
        "--checkpt_path",
        "Läufe/mein Lauf",
    ]
    environment = {
        "PATH": "/usr/bin",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii:backslashreplace",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, "--predict_format", "json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [Path(entry["image"]).name for entry in json.loads(done.stdout)["images"]] == [
        "a.png",
        "größe 1.jpg",
        "grau.png",
    ]
