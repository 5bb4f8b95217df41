"""Run a sweep: one configuration, changes to it, seeds; then compare what came out.

    python -m tools.sweep exps/sweeps/quickstart_interval.json              # what is missing, then the comparison
    python -m tools.sweep exps/sweeps/interval.json --dry-run               # what would run
    python -m tools.sweep exps/sweeps/interval.json --launcher slurm --slurm slurm_partition=gpu timeout_min=240

What a sweep file holds stands in tools/sweep/plan.py. A run with a results.json is kept, whichever sweep or call of
main.py in the same folder it came from; one that is unfinished goes on; one that fails is tried once more, and then
reported while the others go on. The comparison, with the file's first member as baseline, goes to the terminal, to
OUTPUT_DIR/NAME.md and, with its figures, to OUTPUT_DIR/NAME.html; what the runs print to OUTPUT_DIR/NAME.logs/.

Exit codes: 0 all runs finished, 1 some failed, 2 something for the user to put right, 130 interrupted.
"""

import argparse
import fcntl
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tools.compare.comparison import Comparison, compare
from tools.compare.tables import markdown, terminal
from tools.sweep.launch import Start, cores, local, slurm, visible_gpus
from tools.sweep.plan import PlannedRun, read_plan
from tools.sweep.run import Attempt, Execution
from utils.choices import load_plugin
from utils.errors import UserError
from utils.files import atomic_write
from utils.text import shown

FOLDER = "logs/sweeps"
MOST_ON_CPU = 4  # processes at a time without a GPU, unless the user says more


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        return run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error}; the runs that had finished are still there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Plan, run what is missing, conclude."""
    for plugin in options.plugin:
        load_plugin(plugin)
    plan = read_plan(options.sweep, options.output_dir, options.seed)
    kept = [path for planned in plan if (path := planned.finished())]
    missing = [planned for planned in plan if not planned.finished()]
    print(f"{len(plan)} runs, {len(kept)} finished already", file=sys.stderr)
    if options.dry_run:
        sys.stdout.writelines(f"{_state(planned)}  {planned.name}  {planned.member.name}\n" for planned in plan)
        return 0
    with _alone(Path(options.output_dir)), _ends_as_by_ctrl_c():
        failed = _execute(missing, kept, options) if missing else []
    _conclude(plan, Path(options.output_dir) / options.sweep.stem)
    for attempt in failed:
        print(f"failed: {attempt.run.member.name}, seed {attempt.run.seed}: {attempt.log}", file=sys.stderr)
    return 1 if failed else 0


def _execute(missing: Sequence[PlannedRun], kept: Sequence[Path], options: argparse.Namespace) -> list[Attempt]:
    logs = Path(options.output_dir) / f"{options.sweep.stem}.logs"
    execution = Execution(missing, *_launcher(missing, logs, options), logs, kept)
    execution.to_end()
    return execution.failed


def _state(planned: PlannedRun) -> str:
    if planned.finished():
        return "finished  "
    return "unfinished" if (Path(planned.member.config.output_dir) / planned.name).exists() else "missing   "


def _launcher(missing: Sequence[PlannedRun], logs: Path, options: argparse.Namespace) -> tuple[Start, int]:
    """What starts the runs, and how many at a time."""
    if options.launcher == "slurm":
        return slurm(logs / "slurm", dict(options.slurm)), options.jobs or len(missing)
    gpus = [] if any(planned.member.config.device == "cpu" for planned in missing) else visible_gpus()
    slots = min(options.jobs or len(gpus) or min(cores(), MOST_ON_CPU), len(missing))
    return local(slots, gpus), slots


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second sweep out of the folder, which would wait for the runs that the first one is making.

    Raises:
        UserError: One is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".sweep.lock").open("w") as lock:  # the system takes the lock away with the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another sweep is at work in {folder}; wait, or name another --output_dir") from None
        yield


@contextmanager
def _ends_as_by_ctrl_c() -> Iterator[None]:
    """End the runs too when the process is told to end, or loses its terminal."""
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    for name, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(name, signal.default_int_handler)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


# ---- after the runs


def _conclude(plan: Sequence[PlannedRun], target: Path) -> None:
    """Compare what is finished: on the terminal, as Markdown, as a page."""
    finished = {path: planned for planned in plan if (path := planned.finished())}
    if not finished:
        return
    comparison = comparison_of(finished, plan[0].member.name)
    sys.stdout.write(terminal(comparison))
    text = f"# {target.name}\n\n{markdown(comparison)}"
    atomic_write(target.with_name(f"{target.name}.md"), text.encode())
    write_page(comparison, target.with_name(f"{target.name}.html"))
    print(f"written: {target}.md and {target}.html", file=sys.stderr)


def comparison_of(finished: dict[Path, PlannedRun], baseline: str) -> Comparison:
    """Compare the runs, their configurations under their members' names.

    Args:
        finished: The run of each directory.
        baseline: The member to compare the others with; with no run of it there is no baseline.
    """
    comparison = compare(list(finished))
    names = [finished[group.runs[0].path].member.name for group in comparison.groups]
    groups = [replace(group, name=name) for group, name in zip(comparison.groups, names, strict=True)]
    return replace(comparison, groups=groups, baseline=next((g for g in groups if g.name == baseline), None))


def write_page(comparison: Comparison, target: Path) -> None:
    """Write the page that can be sent around."""
    from tools.report.build import write_report  # only now: it loads what draws

    write_report(comparison, target)


# ---- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    jobs = (
        "runs at a time; they share the cores, or have a GPU each. Default: as many as there are GPUs; without one "
        f"as many as cores, {MOST_ON_CPU} at most; with slurm all"
    )
    parameters = "parameters of submitit's executor, such as slurm_partition=gpu or cpus_per_task=8"
    add("sweep", type=Path, metavar="FILE", help="sweep file, such as exps/sweeps/quickstart_interval.json")
    add("--jobs", type=_count, metavar="N", help=jobs)
    add("--dry-run", action="store_true", help="check everything and list the runs")
    add("--launcher", choices=("local", "slurm"), default="local", help="default: local")
    add("--slurm", nargs="+", default=[], type=_parameter, metavar="KEY=VALUE", help=parameters)
    add("--output_dir", default=FOLDER, metavar="DIR", help=f"folder of the run directories; default: {FOLDER}")
    add("--plugin", type=Path, action="append", default=[], metavar="FILE", help="as of main.py")
    add("--seed", type=int, nargs="+", metavar="INT", help="in place of the file's seeds")
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
