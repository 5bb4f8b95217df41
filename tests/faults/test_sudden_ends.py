"""Runs that are killed at random moments, go on and are killed again: in the end they are the uninterrupted run."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_record import fault
from fault_runs import KEYS, Observe, Whole
from kills import Toll, spread
from tiny_runs import KINDS, differences


@fault(
    "the process is killed",
    "SIGKILL at random moments, drawn from a seed, again and again; the process alone, or its loading workers with it",
)
@pytest.mark.timeout(400)  # they are many processes, and the machine may have other work
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again_is_the_uninterrupted_run(
    kind: str, tolls: Callable[[str], Toll], observe: Observe
) -> None:
    toll = tolls(kind)
    assert toll.late >= 5
    assert toll.ends == [[]] * len(toll.ends)
    assert max(kill.lost for kill in toll.kills) <= 1
    assert toll.repeated <= sum(kill.lost for kill in toll.kills)
    observe(
        times=len(toll.kills),
        seen="--resume or --auto_resume ended bit for bit as the uninterrupted run; at most one epoch trained again",
        spread=dict(spread([toll])),
    )


def harmed(whole: Path, folder: Path, file: str, harm: Callable[[Path], object]) -> Path:
    """A copy of a finished run with something done to one of its files."""
    copy = shutil.copytree(whole, folder / "copy")
    harm(copy / file)
    return copy


def last_digit(path: Path) -> None:
    """Change the last digit in a file of text."""
    head, digit, tail = re.split(r"(\d)(?=\D*$)", path.read_text())
    path.write_text(f"{head}{9 - int(digit)}{tail}")


def last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path], object]] = {
    "results.json": lambda path: path.write_text(path.read_text().replace('"last_acc": 0', '"last_acc": 1')),
    "metrics.jsonl": last_digit,
    "checkpoints/task_0.safetensors": last_bit,
    "checkpoints/.task_0.safetensors.9.tmp": Path.touch,
}


@pytest.mark.parametrize("file", HARMS)
def test_the_smallest_difference_is_seen(file: str, whole: Whole, tmp_path: Path) -> None:
    run = whole(**KEYS)
    assert differences(harmed(run, tmp_path / "unharmed", file, lambda path: None), run) == []
    (found,) = differences(harmed(run, tmp_path / "harmed", file, HARMS[file]), run)
    assert file.endswith(found)
