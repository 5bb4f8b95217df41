"""Check finished runs: that their files are those the run wrote, and that they agree with each other.

    python -m tools.verify logs/RUN [logs/RUN ...]

For each run, one line a check: whether results.json, metrics.jsonl and config.json agree, checksums, the directory's
name and the cadence audit, the accuracy matrix against predictions and checkpoints, and the configuration against what
metrics.jsonl says was done.
A checksum guards against accidents; who edits a run can also edit its checksums, but not easily all that must agree.

Exit codes: 0 all agree, 1 something does not, 2 not a finished run.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.finished.reader import Run, read_run, require_files
from tools.finished.record import read_events
from utils.config.identity import counted
from utils.errors import UserError
from utils.metrics import AccuracyMatrix, count_hits
from utils.runs.checkpoint import CheckpointError, read_meta
from utils.runs.checksums import checksums, results_checksum
from utils.runs.directory import CONFIG, RESULTS
from utils.runs.predictions import WHOLE, PredictionsError, predictions_file, read_predictions

METRICS = "metrics.jsonl"


# ---- the checks: each yields a line for every fault


def check_files(run: Run) -> Iterator[str]:
    """Every file is the one that was written when the run ended."""
    written = run.results["run"].get("sha256")
    if not isinstance(written, dict):
        yield f"{run.path / RESULTS}: holds no checksums (run.sha256)"
        return
    found = {**checksums(run.path), RESULTS: results_checksum(run.results)}
    for name in sorted(written.keys() | found.keys()):
        if name not in found:
            yield f"{run.path / name}: missing"
        elif name not in written:
            yield f"{run.path / name}: not there when the run ended"
        elif written[name] != found[name]:
            yield f"{run.path / name}: another than when the run ended"


def check_notes(run: Run) -> Iterator[str]:
    """The directory's name says which configuration and seed it is, and slow moved when the configuration says."""
    yield from run.notes


def check_predictions(run: Run) -> Iterator[str]:
    """The accuracy matrices are the counts of the predictions."""
    matrices = {WHOLE: run.matrix}
    matrices |= {name: AccuracyMatrix.from_json(values) for name, values in run.results.get("branches", {}).items()}
    for task in range(len(run.matrix.correct)):
        file = predictions_file(run.path, task)
        try:
            labels, answers = read_predictions(file)
            yield from _miscounted(file, task, labels, answers, matrices)
        except (PredictionsError, ValueError) as error:
            yield str(error)


def _miscounted(
    file: Path, task: int, labels: Any, answers: Mapping[str, Any], matrices: Mapping[str, AccuracyMatrix]
) -> Iterator[str]:
    for name, matrix in matrices.items():
        if name not in answers:
            yield f"{file}: no predictions of {name}"
            continue
        counted_anew = count_hits(answers[name], labels, matrix.task_sizes[: task + 1])
        if counted_anew != (matrix.correct[task], matrix.count[: task + 1]):
            yield f"{file}: {name}: right answers {counted_anew[0]}, but {RESULTS} says {matrix.correct[task]}"


def check_configuration(run: Run) -> Iterator[str]:
    """What metrics.jsonl says was done is what the configuration asks for: rates, epochs, threshold."""
    file = run.path / METRICS
    for check in (_other_rates, _other_epochs, _other_thresholds):
        yield from (f"{file}: {fault}" for fault in check(file, run.config))


def _other_rates(file: Path, config: Mapping[str, Any]) -> Iterator[str]:
    names = ("nested_lora_lr_slow", "nested_lora_lr_fast", "init_lr", "rd_lr")
    declared = dict(zip(("slow", "fast", "other", "descriptor"), (config[name] for name in names), strict=True))
    for event in read_events(file, "phase"):
        for group in event["groups"]:
            name, rate = group["name"], group["lr"]
            if rate != declared[name]:
                yield f"{_place(event)}: rate of {name} {rate}, declared {declared[name]}"


def _other_epochs(file: Path, config: Mapping[str, Any]) -> Iterator[str]:
    epochs: dict[str, tuple[str, list[int]]]
    epochs = {_place(event): (event["phase"], []) for event in read_events(file, "phase")}
    for event in read_events(file, "epoch"):
        epochs[_place(event)][1].append(event["epoch"])
    for place, (phase, found) in epochs.items():
        declared = config[f"{phase}_epoch"]
        if found != list(range(declared)):
            yield f"{place}: epochs {found}, declared {declared}"


def _other_thresholds(file: Path, config: Mapping[str, Any]) -> Iterator[str]:
    declared = config["exp_threshold"]
    for event in read_events(file, "scan"):
        if event["threshold"] != declared:
            yield f"task {event['task']} scan {event['scan']}: threshold {event['threshold']}, declared {declared}"


def _place(event: Mapping[str, Any]) -> str:
    return f"task {event['task']} cycle {event['cycle']} {event['phase']} phase"


def check_checkpoints(run: Run) -> Iterator[str]:
    """Every task's checkpoint carries the run's configuration and its part of the accuracy matrix."""
    for task in range(len(run.matrix.correct)):
        file = run.path / "checkpoints" / f"task_{task}.safetensors"
        try:
            meta = read_meta(file)
        except CheckpointError as error:
            yield str(error)
            continue
        if counted(meta.get("config", {})) != counted(run.config):
            yield f"{file}: made with another configuration than {CONFIG}"
        if meta.get("accuracy", {}).get("correct") != run.matrix.correct[: task + 1]:
            yield f"{file}: its accuracy matrix is not that of {RESULTS}"


CHECKS: dict[str, Callable[[Run], Iterator[str]]] = {
    "files are as they were written": check_files,
    "name and cadence are those of the configuration": check_notes,
    "accuracy is the count of the predictions": check_predictions,
    "metrics.jsonl does what the configuration says": check_configuration,
    "checkpoints belong to the run": check_checkpoints,
}


AGREEMENT = "files agree with each other"


def verify(path: Path) -> dict[str, list[str]]:
    """For every check what it found wrong with a run; where its files contradict each other, that alone.

    Raises:
        RunError: The path is no finished run.
    """
    require_files(path)
    try:
        run = read_run(path)
    except UserError as error:
        return {AGREEMENT: [str(error)]}
    return {AGREEMENT: []} | {name: _found(check, run) for name, check in CHECKS.items()}


def _found(check: Callable[[Run], Iterator[str]], run: Run) -> list[str]:
    """A file that lacks what a check reads fails the check."""
    try:
        return list(check(run))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return [f"{run.path}: a record is malformed: {type(error).__name__}: {error}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    codes = [_report(path) for path in parser.parse_args(argv).runs]
    return max(codes)


def _report(path: Path) -> int:
    try:
        found = verify(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(path)
    for name, faults in found.items():
        print(f"  {'FAILED' if faults else 'ok    '}  {name}")
        sys.stdout.writelines(f"            {fault}\n" for fault in faults)
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
