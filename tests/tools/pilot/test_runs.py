import math
import os
from pathlib import Path

import pytest
from finished_runs import PilotRun, random_hits, write_run

from tools.pilot import runs as pilot_runs
from tools.pilot.runs import read_log
from utils.errors import UserError

HITS = [[900], [800, 700], [600, 650, 750]]
SIZES = [10, 10, 10]


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(texts))
    return path


def of_seed(seed: int, **keys) -> str:
    return PilotRun(random_hits(seed, SIZES), SIZES, config="a.json", prefix="p", seed=seed, **keys).text()


def test_a_log_is_a_run(tmp_path):
    (run,) = read_log(write(tmp_path / "reproduce_7_vit_mos.log", of_seed(7, dataset="cub")))
    assert (run.label, run.seed, run.is_log) == ("reproduce_vit_mos", 7, True)
    assert run.identity == {"dataset": "cub"}
    assert run.config["prefix"] == "p"
    assert run.seconds == 3600.0
    assert run.notes == ()


def test_seeds_that_share_a_file_are_runs_of_one_configuration(tmp_path):
    runs = read_log(write(tmp_path / "a_1.log", of_seed(1, lr=0.1), of_seed(2, lr=0.1), of_seed(3, lr=0.2)))
    assert [run.seed for run in runs] == [1, 2, 3]
    assert runs[0].identity == runs[1].identity != runs[2].identity
    assert not any(run.notes for run in runs)


def test_a_seed_given_as_a_list_is_its_one_element(tmp_path):
    text = of_seed(4).replace("seed: 4", "seed: [4]")
    assert read_log(write(tmp_path / "a.log", text))[0].seed == 4


def test_the_same_run_twice_in_one_file_counts_once_and_is_said(tmp_path):
    text = of_seed(1)
    (run,) = read_log(write(tmp_path / "a.log", text, text))
    line = len(text.splitlines()) + 1
    assert run.notes == (
        f"has 2 runs of one configuration and seed (from lines 1, {line}) with the same results; "
        f"the one from line {line} is used",
    )


def test_of_two_runs_of_one_seed_the_longer_counts(tmp_path):
    whole, other = of_seed(1), PilotRun(HITS[:2], SIZES[:2], config="a.json", prefix="p", seed=1).text()
    for texts in ((whole, other), (other, whole)):
        (run,) = read_log(write(tmp_path / "a.log", *texts))
        assert len(run.curve) == 3
        assert "with different results" in run.notes[0]


def test_a_log_that_states_nothing_is_a_configuration_of_its_own(tmp_path):
    runs = [read_log(write(tmp_path / name, PilotRun(HITS, SIZES).text()))[0] for name in ("a.log", "b.log")]
    assert [run.seed for run in runs] == [None, None]
    assert runs[0].identity != runs[1].identity


def test_without_stamps_the_time_is_not_known(tmp_path):
    assert math.isnan(read_log(write(tmp_path / "a.log", "CNN top1 curve: [90.0]\n"))[0].seconds)


def test_a_file_without_accuracies_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.log: has no accuracy lines"):
        read_log(write(tmp_path / "a.log", "nothing\n"))
    path = write_run(tmp_path, "x", 1, [[90]])
    with pytest.raises(UserError, match="give its directory"):
        read_log(write(path / "log.txt", "after task 0: {'total': 90.0}\n"))


def test_what_is_no_file_or_has_no_end_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.log")
    for path in (tmp_path / "pipe.log", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="neither a run directory nor a log file"):
            read_log(path)
    monkeypatch.setattr(pilot_runs, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"long\.log: cannot be read: larger than 1,000 bytes"):
        read_log(write(tmp_path / "long.log", "x" * 1001))


def test_bytes_that_are_no_text_do_no_harm(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"\xff\xfe\x00" + of_seed(1).encode() + b"\xc3")
    assert read_log(path)[0].seed in (1, None)
    assert len(read_log(path)[0].curve) == 3
