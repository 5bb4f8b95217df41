"""Passes over a data set: what they hold depends on their names alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.data.loader import READY, Batch, LoadingError, StreamLoader, warn_of_workers
from utils.errors import UserError
from utils.streams import derive, seeded

CPU = torch.device("cpu")
WORKERS = [0, 2]


class Noise:
    """Images of noise from torch's global generator behind the image's number; some may raise instead."""

    def __init__(self, size: int = 11, broken: dict[int, Exception] | None = None) -> None:
        self.size, self.broken = size, broken or {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        if index in self.broken:
            raise self.broken[index]
        return index, torch.cat([torch.full((1, 4, 4), float(index)), torch.rand(2, 4, 4)]), index % 3


@pytest.fixture(params=WORKERS)
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def make(request: pytest.FixtureRequest):
    """Build loaders whose workers end with the test."""

    def build(dataset: Noise | None = None, workers: int = 0, seed: int = 5) -> StreamLoader:
        loader = StreamLoader(Noise() if dataset is None else dataset, workers, CPU, seed)
        request.addfinalizer(loader.close)
        return loader

    return build


def whole(loader: StreamLoader, *stream: int | str, size: int = 4, shuffle: bool = True, start: int = 0) -> list[Batch]:
    return list(loader.epoch(*stream, batch_size=size, shuffle=shuffle, start=start))


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    torch.testing.assert_close(batches, expected, rtol=0, atol=0)


def digest(batches: list[Batch]) -> int:
    return derive(*(part.numpy().tobytes().hex() for batch in batches for part in batch))


def test_order_and_draws_are_the_named_ones(make, workers: int):
    """Against a plain loop over the documented streams."""
    order = torch.randperm(11, generator=torch.Generator().manual_seed(derive(5, "order", "func", 2))).tolist()
    noise = {}
    for index in range(11):
        with seeded(5, "augment", "func", 2, index):
            noise[index] = torch.rand(2, 4, 4)
    batches = whole(make(workers=workers), "func", 2)
    assert [len(indices) for indices, _, _ in batches] == [4, 4, 3]
    assert torch.cat([indices for indices, _, _ in batches]).tolist() == order
    assert torch.cat([labels for _, _, labels in batches]).tolist() == [index % 3 for index in order]
    torch.testing.assert_close(
        torch.cat([images[:, 1:] for _, images, _ in batches]),
        torch.stack([noise[index] for index in order]),
        rtol=0,
        atol=0,
    )


def test_unshuffled_is_the_stored_order(make, workers: int):
    batches = whole(make(workers=workers), "test", shuffle=False)
    assert torch.cat([indices for indices, _, _ in batches]).tolist() == list(range(11))


def test_names_and_seed_change_order_and_draws(make):
    passes = [whole(make(seed=seed), *stream) for seed in (5, 6) for stream in ((0,), (1,))]
    orders = {tuple(torch.cat([indices for indices, _, _ in batches]).tolist()) for batches in passes}
    firsts = {
        next(float(image[1, 0, 0]) for _, images, _ in batches for image in images if image[0, 0, 0] == 0)
        for batches in passes
    }
    assert len(orders) == len(firsts) == 4


def test_start_leaves_out_the_first_batches_without_loading_them(make, workers: int):
    full = whole(make(), "scan")
    left_out = {index: AssertionError("loaded") for index in full[0][0].tolist()}
    loader = make(Noise(broken=left_out), workers)
    assert_same(whole(loader, "scan", start=1), full[1:])
    assert whole(loader, "scan", start=3) == []


def test_nothing_else_matters(make, workers: int):
    """Other passes before, a pass left half done, global draws in between, another batch size: the same images."""
    expected = whole(make(), "rd", 1)
    loader, other = make(workers=workers), make(Noise(5), workers)
    whole(loader, "rd", 0)
    next(loader.epoch("probe", batch_size=2, shuffle=True))
    got = []
    for batch in loader.epoch("rd", 1, batch_size=4, shuffle=True):
        torch.rand(3)
        whole(other, "test", len(got), shuffle=False)
        got.append(batch)
    assert_same(got, expected)
    one_batch = whole(loader, "rd", 1, size=11)
    assert_same([tuple(torch.cat(part) for part in zip(*got, strict=True))], one_batch)


def test_another_process_loads_the_same_and_leaves_nothing_behind(make, tmp_path: Path):
    """Its loaders are still open when it ends."""
    code = (
        "import sys, runpy; from types import SimpleNamespace; m = SimpleNamespace(**runpy.run_path(sys.argv[1]))\n"
        "loaders = [m.StreamLoader(m.Noise(), workers, m.CPU, 5) for workers in m.WORKERS]\n"
        "for loader in loaders: print(m.digest(m.whole(loader, 'func', 3)))"
    )
    command = [sys.executable, "-W", "error", "-c", code, __file__]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == [str(digest(whole(make(), "func", 3)))] * 2
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_global_generator_is_never_drawn_from(make, workers: int):
    before = torch.get_rng_state()
    loader = make(workers=workers)
    whole(loader, "func", 0)
    whole(loader, "func", 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_counts(make):
    loader = make(Noise(11))
    assert len(loader) == 11
    assert [loader.batches(size) for size in (1, 4, 10, 11, 12)] == [11, 3, 2, 1, 1]
    assert whole(make(Noise(0)), "empty") == []


def test_a_pass_that_was_cut_off_says_so(make, workers: int):
    loader = make(workers=workers)
    early = loader.epoch("early", batch_size=4, shuffle=True)
    next(early)
    whole(loader, "late")
    with pytest.raises(RuntimeError, match=r"\('early',\) was cut off"):
        next(early)


def test_a_users_error_arrives_as_it_was_raised(make, workers: int):
    loader = make(Noise(broken={6: UserError("cat.png: broken")}), workers)
    with pytest.raises(UserError) as caught:
        whole(loader, "func", shuffle=False)
    assert str(caught.value) == "cat.png: broken"
    assert len(whole(loader, "func", shuffle=False, start=2)) == 1


def test_any_other_error_arrives_with_its_message(make, workers: int):
    with pytest.raises(ZeroDivisionError, match="by hand"):
        whole(make(Noise(broken={6: ZeroDivisionError("by hand")}), workers), "func")


def loading_processes() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}  # joins those that have ended


def gone(pids: set[int]) -> bool:
    deadline = time.monotonic() + 10
    while (left := pids & loading_processes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not left


def test_workers_stay_for_all_passes_and_end_with_close(make):
    before = loading_processes()
    loader = make(workers=2)
    whole(loader, "func", 0)
    mine = loading_processes() - before
    whole(loader, "func", 1)
    assert len(mine) == 2
    assert loading_processes() - before == mine
    unfinished = loader.epoch("func", 2, batch_size=4, shuffle=True)
    first = next(unfinished)
    loader.close()
    assert gone(mine)
    with pytest.raises(RuntimeError, match="closed"):
        next(unfinished)
    assert_same(whole(loader, "func", 2)[:1], [first])


def test_workers_end_with_close_though_something_still_holds_their_iterator(make):
    before = loading_processes()
    loader = make(workers=2)
    whole(loader, "train", 0)
    held, started = loader._running.batches, loading_processes() - before  # as a traceback can hold it
    assert len(started) == 2
    loader.close()
    assert gone(started)
    del held


def test_workers_end_with_the_loader(make):
    before = loading_processes()
    loader = StreamLoader(Noise(), 2, CPU, 5)
    whole(loader, "func")
    mine = loading_processes() - before
    del loader
    assert len(mine) == 2
    assert gone(mine)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_do_not_hear_what_asks_the_run_to_stop(make, number: signal.Signals):
    before, mask = loading_processes(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loader, got = make(workers=2), []
    for batch in loader.epoch("func", batch_size=2, shuffle=True):
        got.append(batch)
        for worker in (mine := loading_processes() - before):
            os.kill(worker, number)
    assert_same(got, whole(make(), "func", size=2))
    assert len(mine) == 2
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    loader.close()
    assert gone(mine)


class Deadly(Noise):
    """Its images end the process that loads number 6."""

    def __init__(self, end: Callable[[], object]) -> None:
        super().__init__()
        self.end = end

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        if index == 6:
            self.end()
        return super().__getitem__(index)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader looks after its workers every 5 seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL, as the system does when memory runs out"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), r"was ended by SIGBUS, as happens when shared memory"),
        (lambda: os._exit(3), "ended with exit code 3"),
        (lambda: os._exit(0), "ended with exit code 0"),
    ],
)
def test_a_worker_that_dies_is_told_with_the_key_that_helps(make, end: Callable[[], object], how: str):
    before, handler = loading_processes(), signal.getsignal(signal.SIGCHLD)
    loader = make(Deadly(end), workers=2)
    with pytest.raises(LoadingError, match=rf"{how}.*; lower num_workers \(now 2, 0: the main process loads\)"):
        whole(loader, "func", shuffle=False)
    assert gone(loading_processes() - before)
    assert signal.getsignal(signal.SIGCHLD) == handler


@pytest.mark.usefixtures("_impatient")
def test_a_worker_that_dies_between_two_passes_is_told(make):
    before = loading_processes()
    loader = make(workers=2)
    whole(loader, "func", 0)
    victim, _ = loading_processes() - before
    os.kill(victim, signal.SIGKILL)  # while this process does something else: nothing is raised here
    assert gone({victim})
    with pytest.raises(LoadingError, match="SIGKILL"):
        whole(loader, "func", 1)
    assert len(whole(loader, "func", 2)) == 3  # with new workers


HANGING = """
import os, pathlib, sys, time, torch
from utils.data.loader import StreamLoader
class Hanging:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        pathlib.Path(sys.argv[1], str(os.getpid())).touch()
        time.sleep(100)
if __name__ == "__main__":
    for _ in StreamLoader(Hanging(), 2, torch.device("cpu"), 0).epoch("x", batch_size=1, shuffle=False):
        pass
"""


@pytest.mark.slow
def test_workers_that_hang_end_with_a_main_process_that_is_killed(tmp_path: Path):
    command = [sys.executable, "-c", HANGING, str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}) as main:
        deadline = time.monotonic() + 60
        while len(workers := {int(file.name) for file in tmp_path.iterdir()}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        main.kill()
    deadline = time.monotonic() + 10
    while any(map(runs, workers)):  # they are no children of this process
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)  # each process imports torch
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_load_the_same(make, tmp_path: Path, method: str):
    """Python starts processes by spawn on macOS, and by forkserver on Linux from version 3.14 on."""
    (tmp_path / "noise.py").write_text(Path(__file__).read_text())  # a module that the workers can import
    code = (
        "import multiprocessing as m, sys, noise\n"
        "if __name__ == '__main__':\n"
        "    m.set_start_method(sys.argv[1])\n"
        "    loader = noise.StreamLoader(noise.Noise(), 1, noise.CPU, 5)\n"
        "    print(noise.digest(noise.whole(loader, 'func', 3)))\n"
    )
    (tmp_path / "start.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "error", str(tmp_path / "start.py"), method]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.stderr, run.stdout.split()) == ("", [str(digest(whole(make(), "func", 3)))])


def test_more_workers_than_cores_are_one_line_of_our_own(make, monkeypatch, caplog):
    """Tests take every other warning for an error."""
    monkeypatch.setattr("utils.data.loader.cores", lambda: 1)
    warn_of_workers(1)
    assert caplog.text == ""
    warn_of_workers(2)
    assert [record.getMessage() for record in caplog.records] == [
        "num_workers = 2 is more than the CPU cores, 1; that does not load faster"
    ]
    assert len(whole(make(workers=2), "func", 0)) == 3


def test_kept_labels_hold_no_open_files(make) -> None:
    kept, open_files = [], []
    for indices, _, labels in make(Noise(40), 1).epoch("x", batch_size=1, shuffle=False):
        kept += [indices, labels]
        open_files.append(len(os.listdir("/proc/self/fd")))
    assert max(open_files[10:]) <= max(open_files[:10])


def test_a_limit_of_open_files_is_said_and_ends_the_workers(make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(workers=1)
    batches = loader.epoch("x", batch_size=1, shuffle=False)
    next(batches)

    def refuse(_: object) -> None:
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", refuse)
    with pytest.raises(LoadingError, match=r"ulimit -n.*num_workers"):
        next(batches)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("_impatient")
def test_a_batch_that_cannot_be_sent_is_told_and_not_waited_for(capfd):
    """A lock cannot be pickled, which fails in a thread of the worker."""
    loader = StreamLoader(Noise(), 2, CPU, 5, READY._replace(join=lambda images: threading.Lock()))
    with pytest.raises(LoadingError, match=r"ended with exit code 1; lower num_workers"):
        whole(loader, "pass")
    assert "a batch could not be sent: cannot pickle" in capfd.readouterr().err


def test_a_temporary_folder_whose_path_is_too_long_for_sockets(make, tmp_path: Path, monkeypatch):
    """As a cluster's queue may set TMPDIR. The folder stays the one for everything else."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    expected = whole(make(), "pass")
    for batch, same in zip(whole(make(workers=2), "pass"), expected, strict=True):
        torch.testing.assert_close(batch, same)
    assert tempfile.gettempdir() == str(long)
