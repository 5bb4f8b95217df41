"""The checks of a finished run, from accuracies to checksums.

A comparison refuses a run that fails a check of severity "refuse", and prints what a check of severity "note" finds.
Checks of severity "verify" read every file of a run; only `python -m tools.verify` makes them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from tools.finished.run import RUN_NAME, Run
from utils.config.identity import content, digests
from utils.config.schema import defaults, schemas
from utils.errors import RunError, UserError
from utils.files import plain
from utils.metrics import AccuracyMatrix, count_hits, grouped_accuracy, without_adapters
from utils.readouts import PREFIX
from utils.runs.checkpoint_meta import CheckpointError, read_meta
from utils.runs.directory import CONFIG, RESULTS, checksums
from utils.runs.events import Branches, Cadence, Epoch, Phase, Readouts, Scan, Task, read_lines
from utils.runs.images import IMAGES, RECORD, VAL, fingerprint, read_images
from utils.runs.predictions import (
    FOLDER,
    MISTAKES,
    OFF,
    WHOLE,
    confident_mistakes,
    predictions_file,
    read_mistakes,
    read_predictions,
)
from utils.text import shown
from utils.timescales.judge import judge
from utils.timescales.scales import GATED, NAMES, NEITHER, SCALES

LARGEST = 1e300  # JSON has integers that are no floats
Faults = Iterator[str]


class Check(NamedTuple):
    """A check of a finished run: its name, a function that yields a sentence for every fault, and its severity."""

    name: str
    find: Callable[[Run], Faults]
    severity: Literal["refuse", "note", "verify"]

    def faults(self, run: Run) -> list[str]:
        """Return all faults. A value that is missing or of a wrong type is a fault too."""
        found = []
        try:
            for fault in self.find(run):
                found.append(fault)
        except (UserError, OSError) as error:
            found.append(str(error))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            found.append(f"{run.path}: a value is missing or of a wrong type: {type(error).__name__}: {error}")
        return found


def declared(run: Run) -> Any:
    """Return the run's configuration with its keys as attributes, not validated: other versions have other keys."""
    return SimpleNamespace(**(defaults() | dict(run.config)))


def unequal(place: object, what: str, stated: object, right: object, source: str) -> Faults:
    """Yield a fault if a file states something else than the source."""
    if not close(stated, right):
        yield f"{place}: {what} = {shown(stated)}, but {source} gives {shown(right)}; a file was edited or is damaged"


def close(a: object, b: object) -> bool:
    """Return whether two JSON values are equal. Numbers may differ by rounding errors."""
    match a, b:
        case [list(), list()]:
            return len(a) == len(b) and all(map(close, a, b))
        case [dict(), dict()]:
            return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
        case [int() | float(), int() | float()]:
            return a == b or (max(abs(a), abs(b)) < LARGEST and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12))
        case _:
            return a == b


# ---- results.json and metrics.jsonl


def _measures(run: Run) -> Faults:
    stated = run.results.get("evaluate_on", "test")
    yield from unequal(run.path / RESULTS, "evaluate_on", stated, "val" if run.on_validation else "test", CONFIG)
    for key, derived in plain(run.matrix.summary()).items():
        if key in run.results:
            yield from unequal(run.path / RESULTS, key, run.results[key], derived, "accuracy.correct")
    for key, derived in plain(run.validation.summary()).items() if run.validation.correct else ():
        stated = run.results["validation"].get(key)
        yield from unequal(run.path / RESULTS, f"validation.{key}", stated, derived, "validation.accuracy.correct")


def _tasks(run: Run) -> Faults:
    # Raw lines, so that keys of other versions are compared too.
    lines = [line for line in read_lines(run.metrics) if line.get("kind") == Task.kind]
    yield from unequal(run.metrics, "tasks learned", [line.get("task") for line in lines], run.tasks, RESULTS)
    for task, (line, result) in enumerate(zip(lines, run.results["tasks"], strict=False)):
        end, whole = task + 1, run.matrix
        until = AccuracyMatrix(whole.task_sizes[:end], whole.count[:end], whole.correct[:end], whole.transient)
        for key, value in {**plain(until.summary()), **result}.items():
            if key in line:
                yield from unequal(f"{run.metrics}: task {task}", key, line[key], value, RESULTS)


def _branches(run: Run) -> Faults:
    file, whole = run.path / RESULTS, run.matrix
    for name, matrix in run.branches.items():
        found, right = [matrix.task_sizes, matrix.count], [whole.task_sizes, whole.count]
        yield from unequal(file, f"classes and test images of {name}", found, right, "accuracy")
    if some := [name for name in run.branches if name != NEITHER]:
        name = max(some, key=lambda name: name.count("+"))  # all branches
        yield from unequal(file, f"right answers of {name}", run.branches[name].correct, whole.correct, "accuracy")
    events = [event for event in run.events(Branches) if event.when == "after_task"]
    tasks, scored = run.tasks if run.branches else [], [event.task for event in events]
    if tasks or scored == run.tasks:  # only if branch_eval was changed within the run, some tasks were scored
        yield from unequal(run.metrics, "tasks scored by branch", scored, tasks, RESULTS)
    for task, event in zip(tasks, events, strict=False):
        hits = {name: matrix.correct[task] for name, matrix in run.branches.items()}
        yield from unequal(f"{run.metrics}: task {task}", "right answers by branch", event.correct, hits, RESULTS)


def _readouts(run: Run) -> Faults:
    file, whole = run.path / RESULTS, run.matrix
    for label, matrix in run.readouts.items():
        found, right = [matrix.task_sizes, matrix.count], [whole.task_sizes, whole.count]
        yield from unequal(file, f"classes and test images of readout {label}", found, right, "accuracy")
        stated = run.results["readouts"][label]
        for key, derived in plain(matrix.measures()).items():
            yield from unequal(file, f"{key} of readout {label}", stated[key], derived, "its counts")
    hits = {event.task: event.correct for event in run.events(Readouts)}
    if run.readouts:
        yield from unequal(run.metrics, "tasks scored by readouts", sorted(hits), run.tasks, RESULTS)
    for task, correct in hits.items():
        counted = {label: matrix.correct[task] for label, matrix in run.readouts.items()}
        stated = {label: correct.get(label) for label in counted}
        yield from unequal(f"{run.metrics}: task {task}", "right answers by readout", stated, counted, RESULTS)


def _off(run: Run) -> Faults:
    file, alone = run.path / RESULTS, run.branches.get(NEITHER)
    for task, result in enumerate(run.results["tasks"]):
        if (found := result.get(OFF)) is None:
            continue
        place, row = f"{file}: task {task}: with all adapters off", found["correct"]
        yield from unequal(place, "images", found["images"], sum(run.matrix.count[: task + 1]), "accuracy")
        if alone:
            yield from unequal(place, "right answers", row, alone.correct[task], NEITHER)
        least = sum(abs(on - off) for on, off in zip(run.matrix.correct[task] or row, row, strict=True))
        if not least <= found["changed"] <= found["images"]:
            stated = f"{found['changed']} of {found['images']} answers changed"
            yield f"{place}: {stated}, expected at least {least} and not more than all; a file was edited or is damaged"


def _audits(run: Run) -> list[Cadence]:
    """Return the cadence events, each with the name of its time scale."""
    return [replace(event, scale=event.scale or SCALES[0].name) for event in run.events(Cadence)]


def _verdicts(run: Run) -> Faults:
    for event in _audits(run):
        place = f"{run.metrics}: {_phase(event)}"
        if event.scale not in NAMES:
            yield f"{place}: a cadence event of {shown(event.scale)}, an unknown time scale"
            continue
        right = judge(event, declared(run))
        for key in ("expected", "passed"):
            what, source = f"{key} of the cadence audit of {event.scale}", f"{CONFIG} with what was observed"
            yield from unequal(place, what, getattr(event, key), getattr(right, key), source)


def _unaudited(run: Run) -> Faults:
    audited = {(event.task, event.cycle, event.scale) for event in _audits(run)}
    for phase in run.events(Phase):
        trained = {group["name"] for group in phase.groups if group["tensors"]}
        for scale in GATED:
            if scale.name in trained and (phase.task, phase.cycle, scale.name) not in audited:
                yield f"{run.metrics}: {_phase(phase)}: {scale.name} trained without a cadence event; one was removed"


def _failed(run: Run) -> Faults:
    for event in _audits(run):
        if not event.passed:
            what = f"{event.scale} moved at {len(event.observed)} of {event.steps} steps"
            right = f"the configuration says {len(event.expected or ())}"
            yield f"{run.metrics.name}: the cadence audit failed in {_phase(event)}: {what}, {right}"


def _phase(event: Phase | Cadence | Epoch) -> str:
    return f"task {event.task} cycle {event.cycle}"


# ---- the configuration


def _name(run: Run) -> Faults:
    name = RUN_NAME.fullmatch(run.path.resolve().name)
    if name is None:
        return
    if int(name["seed"]) != run.seed:
        yield f"the directory's name says seed {name['seed']}, its {CONFIG} {run.seed}: renamed or edited"
    # With keys of another version, the hash cannot be computed here.
    if name["hash"] not in digests(run.config) and run.config.keys() <= schemas().keys():
        yield (
            f"the directory's name says hash {name['hash']}, its {CONFIG} gives {run.key}: edited, renamed, or written "
            "by a version with other defaults"
        )


def _rates(run: Run) -> Faults:
    config = declared(run)
    rates = {scale.name: scale.rate(config) for scale in SCALES} | {"other": config.init_lr, "descriptor": config.rd_lr}
    for event in run.events(Phase):
        for group in event.groups:
            place = f"{run.metrics}: {_phase(event)} {event.phase} phase"
            yield from unequal(place, f"rate of {group['name']}", group["lr"], rates[group["name"]], CONFIG)


def _epochs(run: Run) -> Faults:
    config, found = declared(run), defaultdict[str, list[int]](list)
    for epoch in run.events(Epoch):
        found[f"{_phase(epoch)} {epoch.phase}"].append(epoch.epoch)
    for phase in run.events(Phase):
        name = f"{_phase(phase)} {phase.phase}"
        place, epochs = f"{run.metrics}: {name} phase", found.pop(name, [])
        yield from unequal(place, "epochs", len(epochs), getattr(config, f"{phase.phase}_epoch"), CONFIG)
        yield from unequal(place, "numbers of the epochs", epochs, [*range(len(epochs))], "their count")
    yield from (f"{run.metrics}: {name} phase: has epochs, but no phase event; one was removed" for name in found)


def _thresholds(run: Run) -> Faults:
    for event in run.events(Scan):
        place = f"{run.metrics}: task {event.task} scan {event.scan}"
        yield from unequal(place, "threshold", event.threshold, declared(run).exp_threshold, CONFIG)


# ---- the other files


def _accepted(run: Run) -> Faults:
    for change in run.data.get("accepted_changes", []):
        counts = ", ".join(f"{change[what]} {what}" for what in ("added", "changed", "missing"))
        yield f"in task {change['task']} it continued with other images, which was accepted: {counts}"


def _images(run: Run) -> Faults:
    if not run.data:
        return
    images, place = read_images(run.path), run.path / RECORD
    aside = [image for image in images if image.part == VAL]
    for part in ("train", "test", *([VAL] if aside or VAL in run.data else [])):
        yield from unequal(place, part, run.data.get(part), fingerprint(images, part), IMAGES)
    tests = {image.digest for image in images if image.part == "test"}
    if both := [image for image in aside if image.digest in tests]:
        yield f"{run.path / IMAGES}: {len(both)} validation images are test images, such as {'/'.join(both[0].key)}"
    names = run.results["class_names"]
    yield from unequal(place, "class_names", sorted(run.data["class_names"]), sorted(names), RESULTS)
    scored = [(VAL, "validation", run.matrix if run.on_validation else run.validation)]
    for part, what, matrix in scored if run.on_validation else [("test", "test", run.matrix), *scored]:
        found, learned = Counter(image.class_name for image in images if image.part == part), iter(names)
        counts = [sum(found[next(learned)] for _ in range(size)) for size in run.matrix.task_sizes]
        right = matrix.count or [0] * len(counts)
        yield from unequal(run.path / IMAGES, f"{what} images of the tasks", counts, right, RESULTS)


def _predictions(run: Run) -> Faults:
    for task in run.tasks:
        file = predictions_file(run.path, task)
        try:
            labels, answers, _ = read_predictions(file)
        except RunError as error:
            yield str(error)
            continue
        read = {f"{PREFIX}{label}": matrix for label, matrix in run.readouts.items()}
        for name, matrix in {WHOLE: run.matrix, **run.branches, **read}.items():
            if name not in answers:
                yield f"{file}: no predictions of {name}"
                continue
            found = count_hits(answers[name], labels, matrix.task_sizes[: task + 1])
            right = matrix.correct[task], matrix.count[: task + 1]
            yield from unequal(file, f"right answers and images of {name}", found, right, RESULTS)
        off, sizes = answers.get(OFF), run.matrix.task_sizes[: task + 1]
        kept = None if off is None else without_adapters(answers[WHOLE], off, labels, sizes)
        yield from unequal(file, "with all adapters off", kept, run.results["tasks"][task].get(OFF), RESULTS)


def _validation(run: Run) -> Faults:
    matrix = run.validation
    for task in run.tasks if matrix.correct else ():
        file, sizes = predictions_file(run.path, task, "val"), matrix.task_sizes[: task + 1]
        try:
            labels, answers, _ = read_predictions(file)
        except RunError as error:
            yield str(error)
            continue
        right = matrix.correct[task], matrix.count[: task + 1]
        yield from unequal(file, "right answers and images", count_hits(answers[WHOLE], labels, sizes), right, RESULTS)
        grouped = grouped_accuracy(answers[WHOLE], labels, sizes, sum(sizes[:-1]))
        stated, found = run.results["tasks"][task].get("validation"), {"grouped": grouped, "top1": grouped["total"]}
        yield from unequal(f"{run.path / RESULTS}: task {task}", "validation", stated, plain(found), file.name)


def _mistakes(run: Run) -> Faults:
    mistakes, file = read_mistakes(run.path), predictions_file(run.path, run.tasks[-1])
    labels, answers, confidence = read_predictions(file)
    if mistakes is None and confidence is None:  # written by an earlier version
        return
    if mistakes is None or confidence is None:
        missing = f"{run.path / FOLDER / MISTAKES}: missing" if mistakes is None else f"{file}: no confidence"
        yield f"{missing}; the run directory is damaged"
        return
    found, right = [mistake.position for mistake in mistakes], confident_mistakes(labels, answers[WHOLE], confidence)
    yield from unequal(run.path / FOLDER / MISTAKES, "positions", found, right, file.name)


def _checkpoints(run: Run) -> Faults:
    for task in run.tasks:
        file = run.path / "checkpoints" / f"task_{task}.safetensors"
        try:
            meta = read_meta(file)
        except CheckpointError as error:
            yield str(error)
            continue
        if content(meta.get("config", {})) != content(run.config):
            yield f"{file}: its configuration is not that of {CONFIG}"
        found = (meta.get("accuracy") or {}).get("correct")
        yield from unequal(file, "right answers", found, run.matrix.correct[: task + 1], RESULTS)


def _files(run: Run) -> Faults:
    written = run.results["run"].get("sha256")
    if not isinstance(written, dict):
        yield f"{run.path / RESULTS}: holds no checksums (run.sha256)"
        return
    found = checksums(run.path, run.results)
    for name in sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name)):
        what = "missing" if name not in found else "changed" if name in written else "added"
        yield f"{run.path / name}: {what} since the run ended"


CHECKS = (
    Check("measures follow from the counts in results.json", _measures, "refuse"),
    Check("task events in metrics.jsonl agree with results.json", _tasks, "refuse"),
    Check("accuracies by branch agree with accuracy and metrics.jsonl", _branches, "refuse"),
    Check("accuracies of readouts agree with metrics.jsonl", _readouts, "refuse"),
    Check("accuracies with all adapters off agree with the others", _off, "refuse"),
    Check("cadence audits have the right verdict", _verdicts, "refuse"),
    Check("no cadence audit is missing", _unaudited, "refuse"),
    Check("all cadence audits passed", _failed, "note"),
    Check("the images did not change", _accepted, "note"),
    Check("the directory is named after its configuration", _name, "note"),
    Check("learning rates are those of the configuration", _rates, "verify"),
    Check("epochs are those of the configuration", _epochs, "verify"),
    Check("expansion thresholds are those of the configuration", _thresholds, "verify"),
    Check("accuracies are the counts of the predictions", _predictions, "verify"),
    Check("accuracies on validation images are the counts of the predictions", _validation, "verify"),
    Check("mistakes are the most confident of the predictions", _mistakes, "verify"),
    Check("checkpoints belong to the run", _checkpoints, "verify"),
    Check("images are those of the run", _images, "verify"),
    Check("files are as the run wrote them", _files, "verify"),
)
