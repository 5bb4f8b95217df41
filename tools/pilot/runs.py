"""The runs in a PILOT-style log file, in the form that comparisons know."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.finished.reader import Run, RunError, digest
from tools.pilot.check import notes
from tools.pilot.log import Segment, parse
from tools.pilot.matrix import Reading
from utils.files import read_text

MOST_BYTES = 2**25  # ten times the log of a long run, progress bars and all
NO_EFFECT = ("config", "prefix", "seed", "device", "num_workers", "debug", "nb_classes", "nb_tasks", "print_forget")


def read_log(path: Path) -> list[Run]:
    """Read every run of a log file. Of several with one configuration and seed, one counts, and a note says which.

    Raises:
        RunError: The file cannot be read, or has no accuracies.
    """
    if not path.is_file():
        raise RunError(f"{path}: neither a run directory nor a log file")
    try:
        text = read_text(path, MOST_BYTES, errors="replace")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    segments = parse(text)
    if not segments:
        hint = "; a run of this project is named by its directory" if (path.parent / "config.json").exists() else ""
        raise RunError(f"{path}: has no accuracy lines such as `CNN top1 curve: [...]` or `CNN: {{...}}`{hint}")
    return [_run(path, segment, remarks) for segment, remarks in _without_repeats(path, segments)]


def _run(path: Path, segment: Segment, remarks: list[str]) -> Run:
    reading = Reading.of(segment)
    seed = _seed(segment.config)
    return Run(
        path=path,
        label=_label(path, seed),
        seed=seed,
        config=segment.config,
        identity=_identity(path, segment.config),
        matrix=reading.matrix,
        curve=reading.curve,
        seconds=segment.seconds,
        notes=(*remarks, *notes(reading)),
    )


def _seed(config: Mapping[str, Any]) -> int | None:
    match config.get("seed"):
        case int(seed) | [int(seed)]:
            return seed
        case _:
            return None


def _identity(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is known to change the results; a log that does not say is a configuration of its own."""
    return {key: value for key, value in config.items() if key not in NO_EFFECT} or {"log": str(path)}


def _label(path: Path, seed: int | None) -> str:
    """The file's name without the seed."""
    parts = [part for part in path.stem.split("_") if part != str(seed)]
    return "_".join(parts) or path.stem


def _without_repeats(path: Path, segments: list[Segment]) -> Iterator[tuple[Segment, list[str]]]:
    """One run for each configuration and seed: of several the longest, the last of those; with what to say about it."""
    groups: dict[tuple[str, int | None], list[Segment]] = {}
    for segment in segments:
        groups.setdefault((digest(_identity(path, segment.config)), _seed(segment.config)), []).append(segment)
    for (_, seed), group in groups.items():
        counted = max(reversed(group), key=lambda segment: max(len(segment.curve), len(segment.rows)))
        yield counted, [_repeated(group, counted, seed)] if len(group) > 1 else []


def _repeated(group: list[Segment], counted: Segment, seed: int | None) -> str:
    lines = ", ".join(str(segment.line) for segment in group)
    same = all(_same_rows(segment, counted) for segment in group)
    what = "the same results" if same else "different results"
    of = "of an unstated seed" if seed is None else f"of seed {seed}"
    return f"has {len(group)} runs {of} (from lines {lines}) with {what}; the one from line {counted.line} counts"


def _same_rows(a: Segment, b: Segment) -> bool:
    if len(a.rows) != len(b.rows) or a.curve != b.curve:
        return False
    return all(x.same_values(y) for x, y in zip(a.rows, b.rows, strict=True))
