"""What is written as an event is read as the same event; a line that is none is refused with its number."""

import json
from pathlib import Path
from typing import Any

import pytest
from finished_runs import NESTED, PLAIN

from utils.errors import RunError
from utils.files import json_line
from utils.runs import events
from utils.runs.events import KINDS, Cadence, Epoch, Event, Scan, read_events, read_lines

Z = {"3": [0.5, None], "4": [1.5]}
SCAN = Scan(task=1, scan=0, batch=2, z=Z, threshold=1.5, expands=None)
EPOCH = Epoch(task=0, cycle=0, phase="rd", epoch=1, loss=0.25, lr={"descriptor": 0.01})
CADENCE = Cadence(task=0, cycle=1, phase="func", steps=4, tensors=8, observed=[2, 4], scale="slow")


def written(folder: Path, *lines: Event | dict[str, Any]) -> Path:
    file = folder / "metrics.jsonl"
    file.write_text("".join(json_line(line.to_json() if isinstance(line, Event) else line) for line in lines))
    return file


@pytest.mark.parametrize("run", [NESTED, PLAIN])
def test_every_event_of_a_recorded_run_is_read_and_would_be_written_again(run: Path) -> None:
    """But for numbers that are null, and for what the version before called slow_steps and this one moved."""
    kinds = {kind.kind: kind for kind in KINDS}
    lines = list(read_lines(run / "metrics.jsonl"))
    assert len(lines) > 30
    for line in lines:
        again = kinds[line["kind"]].from_json(line).to_json()
        line.pop("slow_steps", None)
        assert again == {key: value for key, value in line.items() if value is not None or key in again}


def test_what_is_left_out_and_what_is_null() -> None:
    assert SCAN.to_json() == {
        "kind": "scan", "task": 1, "scan": 0, "batch": 2, "z": Z, "threshold": 1.5, "expands": None,
    }  # fmt: skip
    assert EPOCH.to_json() == {
        "kind": "epoch", "task": 0, "cycle": 0, "phase": "rd", "epoch": 1, "loss": 0.25, "lr": {"descriptor": 0.01},
    }  # fmt: skip
    assert CADENCE.to_json()["expected"] is None
    assert "passed" not in CADENCE.to_json()


def test_events_of_a_kind_are_read_in_order(tmp_path: Path) -> None:
    file = written(tmp_path, SCAN, EPOCH, CADENCE, EPOCH)
    assert list(read_events(file, Epoch)) == [EPOCH, EPOCH]
    assert list(read_events(file, Cadence)) == [CADENCE]
    assert list(read_events(file, events.Router)) == []
    assert [line["kind"] for line in read_lines(file)] == ["scan", "epoch", "cadence", "epoch"]


def test_other_versions_have_other_fields(tmp_path: Path) -> None:
    older = {key: value for key, value in CADENCE.to_json().items() if key != "scale"}
    file = written(tmp_path, older, {**EPOCH.to_json(), "field_of_tomorrow": 1})
    (cadence,) = read_events(file, Cadence)
    assert cadence.scale is None
    assert list(read_events(file, Epoch)) == [EPOCH]


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    diverged = {**EPOCH.to_json(), "loss": float("nan")}
    (epoch,) = read_events(written(tmp_path, diverged), Epoch)
    assert epoch.loss is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "1"}, 'epoch = "1": input should be a valid integer'),
        ({"epoch": True}, "epoch = true: input should be a valid integer"),
        ({"lr": {"descriptor": None}}, "lr.descriptor = null: input should be a valid number"),
        ({"moved": {"slow": [0.5]}}, "moved.slow.0 = 0.5: input should be a valid integer"),
        ({"lr": []}, r"lr = \[\]: input should be an object"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = written(tmp_path, SCAN, {**EPOCH.to_json(), **change})
    with pytest.raises(RunError, match=rf"metrics\.jsonl: line 2: epoch event: {message}; the file was edited"):
        list(read_events(file, Epoch))
    assert list(read_events(file, Scan)) == [SCAN]


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"line 1: cadence event: task: field required"):
        list(read_events(written(tmp_path, {"kind": "cadence"}), Cadence))


def test_a_line_ends_where_one_was_written_and_nowhere_else(tmp_path: Path) -> None:
    """JSON may hold characters that Python's splitlines takes for the end of a line."""
    file = tmp_path / "metrics.jsonl"
    file.write_text(json_line({"kind": "a", "text": "one\u2028two\x85three"}) + '{"kind": "b"}')
    assert [line["kind"] for line in read_lines(file)] == ["a", "b"]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' * 500 + "1" + "}" * 500, "9" * 5000, "[]", '{"a"', ""])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps({'kind': 'a'})}\n{line}\n")
    for read in (lambda file: read_lines(file), lambda file: read_events(file, Epoch)):
        with pytest.raises(RunError, match=r"metrics\.jsonl: line 2: not a JSON object"):
            list(read(tmp_path / "metrics.jsonl"))


def test_a_line_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LONGEST_LINE", 100)
    with pytest.raises(RunError, match="line 1: not a JSON object"):
        list(read_lines(Path("/dev/zero")))
