"""The figure for a paper: its curves, its size, its fonts."""

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from finished_runs import write_run

from tools.compare.__main__ import main
from tools.compare.comparison import compare
from tools.compare.plot import accuracy_curves, forgetting_curves, learning_curves, old_and_new
from utils.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    ranks = ((4, 60), (8, 70))
    rows = [(rank, seed, [[90], [80, low + 2 * seed]]) for rank, low in ranks for seed in (1, 2)]
    return [
        write_run(tmp_path, "a", seed, correct, ffn_adapter_type="nested_lora", nested_lora_rank=rank)
        for rank, seed, correct in rows
    ]


def test_the_curves_have_mean_band_and_names_by_what_differs(runs):
    numbers = accuracy_curves(compare(runs).groups).numbers
    bands = [f"rank {rank}{edge}" for rank in (4, 8) for edge in ("", ", lower edge", ", upper edge")]
    assert numbers.header == ["after learning task", *bands]
    # After task 1: (80 + 62) / 200 and (80 + 64) / 200, so 71 and 72 per cent; their deviation (n - 1) is 0.5 ** 0.5.
    assert [float(cell) for cell in numbers.rows[1][:4]] == pytest.approx(
        [1, 71.5, 71.5 - 0.5**0.5, 71.5 + 0.5**0.5], 1e-5
    )


def test_one_seed_has_no_band_and_no_word_of_one(runs):
    drawing = accuracy_curves(compare(runs[:1]).groups)
    assert drawing.numbers.header == ["after learning task", "a"]
    assert "band" not in drawing.text


def test_an_svg_has_text_and_the_width_of_a_column(runs, tmp_path, capsys):
    file = tmp_path / "new" / "plot.SVG"
    assert main([*map(str, runs), "--plot", str(file)]) == 0
    assert capsys.readouterr().err == f"written: {file}\n"
    chart = ET.fromstring(file.read_text())
    assert float(chart.attrib["width"].removesuffix("pt")) == pytest.approx(3.4 * 72)
    texts = {text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")}
    assert {"rank 4", "rank 8", "after learning task", "accuracy (%)"} <= texts


def test_a_pdf_has_fonts_and_the_width_asked_for_and_is_the_same_every_time(runs, tmp_path):
    for name in ("a.pdf", "b.pdf"):
        assert main([*map(str, runs), "--plot", str(tmp_path / name), "--width", "7"]) == 0
    content = (tmp_path / "a.pdf").read_bytes()
    assert content == (tmp_path / "b.pdf").read_bytes()
    assert b"/FontFile2" in content  # TrueType, as pdf.fonttype 42 says
    assert b"/Type3" not in content
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
    assert float(box[1]) == pytest.approx(7 * 72)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--plot", "x.jpg"], "x.jpg: expected a name that ends in .svg, .pdf, .png or .csv"),
        (["--plot", "x.pdf", "--width", "0"], "0: expected a number of inches from 1 to 40"),
        (["--plot", "x.pdf", "--width", "nan"], "nan: expected a number of inches from 1 to 40"),
        (["--plot", "x.pdf", "--width", "wide"], "wide: expected a number of inches"),
    ],
)
def test_a_wrong_ending_or_width_is_said_before_runs_are_read(more, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["none", *more])
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*map(str, runs), "--plot", str(tmp_path / "file" / "x.pdf")]) == 2
    assert capsys.readouterr().err.startswith("cannot be written: ")


def test_torch_is_not_imported_for_a_plot(runs, tmp_path):
    arguments = [*map(str, runs), "--plot", str(tmp_path / "x.svg")]
    program = (
        f"import sys; from tools.compare.__main__ import main; main({arguments}); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60, capture_output=True)


# ---- forgetting curves, old against new tasks

ROWS = [[[90], [60, 80], [50, 40, 70]], [[80], [70, 90], [30, 60, 50]]]


def test_each_task_has_a_line_from_the_moment_it_was_learned(tmp_path):
    runs = [write_run(tmp_path, "a", seed, rows, transient=[1]) for seed, rows in enumerate(ROWS)]
    header, *rows = csv.reader(forgetting_curves(compare(runs).groups).file("csv").decode().splitlines())
    assert header == ["after learning task", "task 0", "task 1, transient", "task 2"]
    assert rows == [["0", "85", "", ""], ["1", "65", "85", ""], ["2", "40", "50", "60"]]


def test_of_several_configurations_each_has_one_colour_and_one_name_in_the_legend(tmp_path):
    runs = [write_run(tmp_path, name, 0, ROWS[0], rd_dim=dim) for dim, name in ((8, "a"), (9, "b"))]
    left_out = write_run(tmp_path, "c", 0, ROWS[0], transient=[1], leave_out_transient=True)
    drawing = forgetting_curves(compare([*runs, left_out]).groups)
    figure = drawing.draw(width=4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert [colours.count(colour) for colour in dict.fromkeys(colours)] == [3, 3, 3]
    numbers = [name.split(": ")[1] for name in drawing.numbers.header[1:]]
    assert numbers == ["task 0", "task 1", "task 2"] * 2 + ["task 0", "task 2", "task 3"]


def evaluated(folder, seed, places, **keys) -> Path:
    """A run of two tasks with func epochs and evaluations: (task, cycle, epoch): (new, old)."""
    run = write_run(folder, "a", seed, ROWS[0][:2], adapters=[1], **keys)
    lines = []
    for task, cycle, epoch in sorted({*places, (0, 0, 0), (1, 0, 1)}):
        place = {"task": task, "cycle": cycle, "phase": "func", "epoch": epoch}
        lines.append({"kind": "epoch", **place, "loss": 1.0, "lr": {}})
        if (task, cycle, epoch) in places:
            new, old = places[task, cycle, epoch]
            lines.append({"kind": "eval", **place, "accuracy": {"grouped": {"total": 1.0, "new": new, "old": old}}})
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return run


def test_learning_curves_are_means_over_seeds_of_new_and_old_classes(tmp_path):
    first = {(0, 0, 1): (50.0, 0.0), (1, 0, 0): (20.0, 60.0), (1, 0, 2): (40.0, 50.0), (1, 1, 0): (70.0, 30.0)}
    second = {(0, 0, 1): (60.0, 0.0), (1, 0, 0): (30.0, 62.0), (1, 0, 2): (44.0, 40.0)}
    groups = compare([evaluated(tmp_path, seed, places) for seed, places in enumerate((first, second))]).groups
    drawing = learning_curves(groups)
    means = [["a", "0", "0", "1", "55", ""], ["a", "1", "0", "0", "25", "61"], ["a", "1", "0", "2", "42", "45"]]
    assert drawing.numbers.rows == means
    new, old = drawing.draw(width=4).axes[0].get_lines()
    # Task 0 has two epochs, task 1 of the first run four: after the second, the first, and the third of them.
    assert new.get_xdata().tolist() == pytest.approx([1, 1, 1.25, 1.75])
    assert new.get_ydata()[[0, 2, 3]].tolist() == [55, 25, 42]
    assert old.get_ydata()[2:].tolist() == [61, 45]
    assert (new.get_color(), new.get_linestyle()) != (old.get_color(), old.get_linestyle())
    assert new.get_color() == old.get_color()


def test_learning_curves_need_evaluations_in_the_middle_of_a_task(runs, tmp_path, capsys):
    assert main([*map(str, runs), "--plot", str(tmp_path / "x.csv"), "--plot-of", "learning"]) == 2
    assert "no run was evaluated in the middle of a task, as runs with eval_every are" in capsys.readouterr().err
    some = [*runs, evaluated(tmp_path, 1, {(0, 0, 1): (50.0, 0.0)}, rd_dim=9)]
    assert len(learning_curves(compare(some).groups).numbers.rows) == 1


def test_old_and_new_tasks_are_a_point_for_each_seed(tmp_path):
    runs = [write_run(tmp_path, "a", seed, rows) for seed, rows in enumerate(ROWS)]
    other = write_run(tmp_path, "b", 0, ROWS[0], transient=[1], rd_dim=9)
    drawing = old_and_new(compare([*runs, other]).groups)
    assert drawing.numbers.rows == [
        ["a", "0", f"{(60 + (50 + 40) / 2) / 2:.6g}", "75"],
        ["a", "1", f"{(70 + (30 + 60) / 2) / 2:.6g}", "70"],
        ["b", "0", "50", "70"],
    ]
    assert drawing.file("svg").startswith(b"<?xml")


def test_runs_of_one_task_have_no_old_and_new_ones(tmp_path):
    with pytest.raises(UserError, match="no run has two tasks"):
        old_and_new(compare([write_run(tmp_path, "a", 0, [[90]], adapters=[1])]).groups)


def test_tasks_that_are_left_out_leave_a_gap_in_the_accuracy_curve(tmp_path):
    run = write_run(tmp_path, "a", 0, ROWS[0], transient=[1], leave_out_transient=True)
    assert [row[0] for row in accuracy_curves(compare([run]).groups).numbers.rows] == ["0", "2", "3"]


@pytest.mark.parametrize("kind", ["csv", "pdf"])
def test_the_command_writes_the_plot_that_is_asked_for(tmp_path, kind):
    run = write_run(tmp_path, "a", 0, ROWS[0])
    assert main([str(run), "--plot", str(tmp_path / f"x.{kind}"), "--plot-of", "forgetting"]) == 0
    written = (tmp_path / f"x.{kind}").read_bytes()
    assert written.startswith(b"%PDF" if kind == "pdf" else b"after learning task,task 0,")
