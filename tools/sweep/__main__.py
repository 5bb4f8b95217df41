"""Run a sweep: one configuration, changes to it, and seeds. Then compare the runs.

    python -m tools.sweep exps/sweeps/quickstart_interval.json              # run what is missing, then compare
    python -m tools.sweep exps/sweeps/interval.json --dry-run               # list the runs
    python -m tools.sweep exps/sweeps/interval.json --plan                  # say how long they will take
    python -m tools.sweep exps/sweeps/quickstart_search.json --select val   # choose values, then run what is missing
    python -m tools.sweep exps/sweeps/interval.json --launcher slurm --slurm slurm_partition=gpu timeout_min=240

See docs/compare.md for the format of sweep files, and docs/search.md for --select. Finished runs in the output folder
are kept, whether a sweep or main.py made them. Unfinished runs are resumed. A run that fails is tried once more, while
the others go on; the next call of the same command tries it again. New seeds or members in the file run alone, and the
tables are made anew.

The comparison uses the first member of the file as baseline. It is printed, and written to OUTPUT_DIR/NAME/table.md
and, with figures, to OUTPUT_DIR/NAME/report.html. Both name the runs that failed. The output of the runs is in
OUTPUT_DIR/NAME/logs/. All runs get the same number of threads, that of the first start, which is kept in
OUTPUT_DIR/NAME/threads.json; a configuration with num_threads keeps its own.

Exit codes: 0 all runs finished, 1 some failed, 2 an error in the sweep file or the command line, 130 interrupted.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from pathlib import Path

from tools.compare.comparison import Comparison, compare
from tools.compare.tables import markdown, terminal
from tools.sweep.check import refusals
from tools.sweep.estimate import estimate
from tools.sweep.failures import Failure, read_failures, write_failures
from tools.sweep.launch import CLUSTER_DEFAULTS, Start, local, share_of_cores, slurm, visible_gpus
from tools.sweep.outcome import read_outcome, write_outcome
from tools.sweep.plan import PlannedRun, ignored, misplaced, read_plan
from tools.sweep.run import Execution
from tools.sweep.search import choose, read_search
from utils.choices import load_plugin
from utils.console import command
from utils.errors import ConfigError, UserError
from utils.files import atomic_write, can_write, lock, path_argument, write_json
from utils.json_file import read_object
from utils.memory import cores
from utils.text import shown

FOLDER = "logs/sweeps"
TABLE, PAGE, LOGS, FAILED = "table.md", "report.html", "logs", "failed.json"
SEARCH, CHOSEN = "search", "chosen.json"
UNDECIDED = "the runs that follow are known when these have finished"
INCOMPLETE = "nothing is chosen yet, as runs of the search failed; the next call of this command tries them again"
THREADS_FILE = "threads.json"
AFTER_A_FAILED_FILE = "the finished runs are kept; correct this, then go on with the same command"
MOST_ON_CPU = 4  # processes at a time without a GPU, unless the user asks for more


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: that of the process) and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        return run(options)
    except OSError as error:
        print(f"{error}; {AFTER_A_FAILED_FILE}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Plan the runs, execute those that are missing, and compare all."""
    for plugin in options.plugin:
        load_plugin(plugin)
    folder = options.output_dir / options.sweep.stem
    if options.select:
        return _select(folder, options)
    plan = read_plan(options.sweep, str(options.output_dir), options.seed)
    status, failures = _execute(plan, folder, options)
    if not (options.dry_run or options.plan):
        of_file = read_plan(options.sweep, str(options.output_dir)) if options.seed else []
        _conclude([*of_file, *plan], folder, failures)
    return status


def _select(folder: Path, options: argparse.Namespace) -> int:
    """Choose the values of every member by runs on validation images; then do as `run` with the chosen values."""
    search = read_search(options.sweep, str(folder / SEARCH), str(options.output_dir), options.seed)
    print("\n".join(search.announcement()), file=sys.stderr)
    states: list[int] = []

    def execute(number: int, runs: Sequence[PlannedRun]) -> Mapping[str, Failure]:
        print(f"search, rung {number} of {len(search.spec.rungs)}", file=sys.stderr)
        status, failures = _execute(runs, folder / SEARCH, options)
        states.append(status)
        return failures

    outcome = read_outcome(folder / CHOSEN, search.key)
    if only_says := options.dry_run or options.plan:
        outcome = choose(search, execute) or outcome
    elif outcome is None and (outcome := choose(search, execute)) and can_write(folder):
        write_outcome(folder / CHOSEN, search.record, outcome)
    if outcome is None:
        print(UNDECIDED if only_says else INCOMPLETE, file=sys.stderr)
        return max(states) if only_says else 1
    plan = search.judged(outcome, options.seed)
    status, failures = _execute(plan, folder, options)
    if not only_says:
        of_file = search.judged(outcome) if options.seed else []
        _conclude([*of_file, *plan], folder, failures, (search.sentences(outcome), outcome.rows()))
    return max([status, *states]) if only_says else status


def _execute(plan: Sequence[PlannedRun], folder: Path, options: argparse.Namespace) -> tuple[int, dict[str, Failure]]:
    """Execute the runs that are missing, or list all; return the exit code, and the failures on record."""
    missing = [planned for planned in plan if not planned.finished()]
    if elsewhere := misplaced(missing):
        raise ConfigError("\n".join(elsewhere))
    failures, kept = read_failures(folder / FAILED), len(plan) - len(missing)
    again = sum(planned.name in failures for planned in missing)
    said = [f"{len(plan)} runs, {kept} finished already", *([f"{again} failed before: tried again"] if again else [])]
    print("\n".join([*ignored(plan), ", ".join(said)]), file=sys.stderr)
    if options.dry_run:
        return _dry_run(plan, failures, options), failures
    if options.plan:
        return _estimate(plan, missing, folder, options), failures
    failed: dict[str, Failure] = {}
    if missing:
        with _locked(folder.parent), _signals_like_ctrl_c():
            execution = Execution(missing, *_launcher(plan, missing, folder, options), folder / LOGS, kept)
            try:
                execution.to_end()
            finally:
                failed = execution.failed
                if failures or failed:
                    write_failures(folder / FAILED, {**failures, **failed})
    return 1 if failed else 0, {**failures, **failed}


def _dry_run(plan: Sequence[PlannedRun], failures: Mapping[str, Failure], options: argparse.Namespace) -> int:
    """List the runs, and check those that are missing as main.py would."""
    missing = []
    for planned in plan:
        state, failed = "finished", ""
        if not planned.finished():
            missing.append(planned)
            state = "resume" if planned.resumes() else "start"
            failed = f"; failed before: {failures[planned.name].error}" if planned.name in failures else ""
        print(f"{state:10}  {planned.name}  {planned.member.name}{failed}", flush=True)
    if options.launcher == "slurm":
        print("the machines of the cluster were not checked", file=sys.stderr)
        return 0
    found = refusals(missing, min(options.jobs or cores(), MOST_ON_CPU))
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 2 if found else 0


def _estimate(
    plan: Sequence[PlannedRun], missing: Sequence[PlannedRun], folder: Path, options: argparse.Namespace
) -> int:
    """Print what the runs that are missing will take, measured on this machine."""
    gpus, most, share = _share(plan, missing, options)
    threads = _kept_threads(folder / THREADS_FILE) or share
    lines, refused = estimate(missing, threads, _fitting(most, threads, len(missing), bool(options.jobs or gpus)))
    print("\n".join(lines), end="\n" if lines else "")
    if options.launcher == "slurm":
        print("measured on this machine, not on those of the cluster", file=sys.stderr)
    print("\n".join(refused), end="\n" if refused else "", file=sys.stderr)
    return 2 if refused else 0


def _launcher(
    plan: Sequence[PlannedRun], missing: Sequence[PlannedRun], folder: Path, options: argparse.Namespace
) -> tuple[Start, int]:
    """Return what starts the runs, and how many run at a time."""
    if options.launcher == "slurm":
        parameters = dict(options.slurm)
        cpus = {**CLUSTER_DEFAULTS, **parameters}["cpus_per_task"]
        threads = _threads(folder / THREADS_FILE, cpus if isinstance(cpus, int) else 1)
        return slurm(folder / LOGS / "slurm", parameters, threads), options.jobs or len(missing)
    gpus, most, share = _share(plan, missing, options)
    threads = _threads(folder / THREADS_FILE, share)
    return local(threads, gpus), _fitting(most, threads, len(missing), bool(options.jobs or gpus))


def _share(
    plan: Sequence[PlannedRun], missing: Sequence[PlannedRun], options: argparse.Namespace
) -> tuple[list[str], int, int]:
    """Return the GPUs for the runs on this machine, the most runs at a time, and the threads of each."""
    gpus = [] if any(planned.member.config.device == "cpu" for planned in missing) else visible_gpus()
    most = options.jobs or len(gpus) or min(cores(), MOST_ON_CPU)
    return gpus, most, share_of_cores(min(most, len(plan)))


def _fitting(most: int, threads: int, runs: int, chosen: bool) -> int:
    """Return how many runs are made at a time; the cores limit it unless their number was chosen."""
    return min(most if chosen else min(most, max(1, cores() // threads)), runs)


def _threads(file: Path, now: int) -> int:
    """Return the number of threads of each run of the sweep: that of its first start, or else `now`, which is kept."""
    if kept := _kept_threads(file):
        if kept != now:
            print(f"each run gets {kept} threads, as when the sweep began, not {now} ({file})", file=sys.stderr)
        return kept
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"threads": now})
    return now


def _kept_threads(file: Path) -> int | None:
    """Return the number of threads on record; None if there is none."""
    kept = None
    with suppress(UserError):
        kept = read_object(file)[0].get("threads") if file.exists() else None
    return kept if isinstance(kept, int) and kept > 0 else None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of the folder: two sweeps could start the same run.

    Raises:
        UserError: Another sweep runs there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".sweep.lock"
    with path.open("wb") as file:
        try:
            lock(file, path)
        except BlockingIOError:
            raise UserError(f"another sweep runs in {folder}; wait for it, or choose another --output_dir") from None
        yield


@contextmanager
def _signals_like_ctrl_c() -> Iterator[None]:
    """Stop the runs too when the process is terminated or loses its terminal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN or number != signal.SIGHUP:  # nohup asks to ignore SIGHUP, and is heeded
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(
    plan: Sequence[PlannedRun],
    folder: Path,
    failures: Mapping[str, Failure],
    chosen: tuple[Sequence[str], Sequence[list[str]]] = ((), ()),
) -> None:
    """Compare the finished runs, and name those that failed: on the terminal, in a Markdown file and on a page.

    `chosen` are sentences on how a search chose values, and the rows of the table of what it tried.

    Who may read the folder, but not write it, gets the tables on the terminal.
    """
    finished = {path: planned for planned in plan if (path := planned.finished())}
    done = {planned.name for planned in finished.values()}
    failed = [name for name in dict.fromkeys(planned.name for planned in plan) if name in failures and name not in done]
    rows = [[str(value) for value in astuple(failures[name])] for name in failed]
    if not finished and not rows:
        return
    comparison = comparison_of(finished, plan[0].member.name) if finished else Comparison([], None, [])
    comparison = replace(comparison, failed=rows, chosen=chosen[0], searched=chosen[1])
    sys.stdout.write(terminal(comparison))
    sys.stdout.flush()
    written = [folder / TABLE, *([folder / PAGE] if finished else [])]
    if not can_write(folder):
        print(f"not written, no permission in {folder}: {' and '.join(map(str, written))}", file=sys.stderr)
        return
    atomic_write(folder / TABLE, f"# {folder.name}\n\n{markdown(comparison)}".encode())
    if finished:
        write_page(comparison, folder / PAGE)
    print(f"written: {' and '.join(map(str, written))}", file=sys.stderr)


def comparison_of(finished: dict[Path, PlannedRun], baseline: str) -> Comparison:
    """Compare finished runs under the names of their members.

    Args:
        finished: The run in each directory.
        baseline: The member to compare the others with, if it has a finished run.
    """
    comparison = compare(list(finished))
    groups = [replace(group, name=finished[group.runs[0].path].member.name) for group in comparison.groups]
    return replace(comparison, groups=groups, baseline=next((g for g in groups if g.name == baseline), None))


def write_page(comparison: Comparison, target: Path) -> None:
    """Write the report of a comparison."""
    from tools.report.build import write_report  # imports matplotlib

    write_report(comparison, target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    jobs = (
        "runs at a time; they share the cores, or have a GPU each. Default: the number of GPUs; without a GPU the "
        f"number of cores, at most {MOST_ON_CPU}; with slurm all runs"
    )
    parameters = "parameters of submitit's executor, such as slurm_partition=gpu or cpus_per_task=8"
    seeds = "run these seeds only; the tables also have the finished runs of the file's seeds"
    add("sweep", type=path_argument, metavar="FILE", help="sweep file, such as exps/sweeps/quickstart_interval.json")
    add("--jobs", type=_count, metavar="N", help=jobs)
    add("--dry-run", action="store_true", help="list the runs, and check them as main.py does before it trains")
    add("--plan", action="store_true", help="say how long the runs that are missing will take, and train nothing")
    add("--launcher", choices=("local", "slurm"), default="local", help="default: local")
    add("--slurm", nargs="+", default=[], type=_parameter, metavar="KEY=VALUE", help=parameters)
    val = "val: choose the values of the file's search by validation images, then run the chosen ones"
    add("--select", choices=("val",), help=val)
    where = f"folder of the run directories; default: {FOLDER}"
    add("--output_dir", type=path_argument, default=FOLDER, metavar="DIR", help=where)
    add("--plugin", type=path_argument, action="append", default=[], metavar="FILE", help="see main.py --help")
    add("--seed", type=int, nargs="+", metavar="INT", help=seeds)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer >= 1")
    return int(text)


def _parameter(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    sys.exit(main())
