"""What a search of a sweep found, on record in OUTPUT_DIR/NAME/chosen.json.

    {"search": hash, "measure": ..., "seeds": [...], "chosen": {member: values}, "rungs": {member: [[point, ...], ...]}}

The hash is of all runs that the search may need and of how it chooses; with another one the search is made anew.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tools.sweep.plan import Changes, named
from utils.errors import UserError
from utils.files import write_json
from utils.json_file import read_object


class Tried(BaseModel):
    """A combination of values in one rung, and its score with each seed, 0 to 1; None where the run diverged."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    values: Changes
    scores: dict[str, float | None]

    @property
    def mean(self) -> float:
        """The mean over seeds; minus infinity if a run diverged."""
        known = [score for score in self.scores.values() if score is not None]
        return fmean(known) if len(known) == len(self.scores) else -math.inf


class Outcome(BaseModel):
    """Of each member what was tried in every rung, and the values that are chosen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    chosen: dict[str, Changes]
    rungs: dict[str, list[list[Tried]]]

    def sentences(self) -> list[str]:
        """Return what was chosen and how good it was, where it lies in the grid, and what diverged."""
        lines = []
        for name, values in self.chosen.items():
            best = next(tried for tried in self.rungs[name][-1] if tried.values == values)
            lines.append(f"{name}: {named(values)} was chosen, with {100 * best.mean:.2f} % on validation images.")
            lines += [f"{name}: {edge}" for edge in edges(values, [tried.values for tried in self.rungs[name][0]])]
            every = [tried for rung in self.rungs[name] for tried in rung]
            if lost := [named(tried.values) for tried in every if tried.mean == -math.inf]:
                lines.append(f"{name}: training diverged, which counts as worst, with {'; '.join(lost)}.")
        return lines

    def rows(self) -> list[list[str]]:
        """Return every combination of every rung as a row of the table `SEARCHED` in tools.compare.tables."""
        found = []
        for name, rungs in self.rungs.items():
            for number, rung in enumerate(rungs, 1):
                last = number == len(rungs)
                on = [self.chosen[name]] if last else [tried.values for tried in rungs[number]]
                for tried in rung:
                    scores = ", ".join(map(_per_cent, tried.scores.values()))
                    followed = ("chosen" if last else "next rung") if tried.values in on else "-"
                    mean = _per_cent(None if tried.mean == -math.inf else tried.mean)
                    found.append([name, named(tried.values), str(number), scores, mean, followed])
        return found


def _per_cent(score: float | None) -> str:
    return "diverged" if score is None else f"{100 * score:.2f}"


def edges(values: Changes, tried: Sequence[Changes]) -> list[str]:
    """Return a sentence for each chosen number that is the smallest or the largest of those that were tried."""
    lines = []
    for key, value in values.items():
        numbers = [number for point in tried if isinstance(number := point[key], (int, float)) and number is not True]
        if isinstance(value, (int, float)) and min(numbers) != max(numbers) and value in (min(numbers), max(numbers)):
            which = "smallest" if value == min(numbers) else "largest"
            lines.append(f"{named({key: value})} is the {which} value tried; a wider grid may have a better one.")
    return lines


def read_outcome(file: Path, key: str) -> Outcome | None:
    """Return what is on record; None if there is nothing, or it is of a search with another hash."""
    with suppress(UserError, ValidationError):
        values: dict[str, Any] = read_object(file)[0] if file.exists() else {}
        if values.get("search") == key:
            return Outcome.model_validate({name: values.get(name) for name in Outcome.model_fields})
    return None


def write_outcome(file: Path, about: Mapping[str, object], outcome: Outcome) -> None:
    """Write what `read_outcome` reads."""
    write_json(file, {**about, **outcome.model_dump()})
