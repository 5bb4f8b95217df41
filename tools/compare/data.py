"""A comparison for programs: JSON with everything, CSV with a row for each configuration.

Both hold unrounded values as results.json does: accuracies as fractions from 0 to 1. What is not known is null in JSON
and empty in CSV.
"""

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from tools.compare.comparison import ABSENT, Comparison, Group, value_text
from tools.compare.fairness import warnings
from tools.compare.measures import MEASURES
from tools.finished.reader import Run
from utils.files import plain


def as_json(comparison: Comparison) -> str:
    """Groups with their runs, measures and differences to the baseline; what differs; warnings; legend."""
    baseline = comparison.baseline
    values = {
        "baseline": baseline.name if baseline else None,
        "groups": [_group(group, comparison) for group in comparison.groups],
        "differing": _differing(comparison),
        "one_sided": comparison.one_sided,
        "warnings": warnings(comparison),
        "legend": {measure.key: measure.meaning for measure in MEASURES},
    }
    return json.dumps(plain(values), allow_nan=False, ensure_ascii=False, indent=2) + "\n"


def _differing(comparison: Comparison) -> dict[str, dict[str, Any]]:
    names = [group.name for group in comparison.groups]
    rows = {key: zip(names, values, strict=True) for key, values in comparison.differing.items()}
    return {key: {name: value for name, value in row if value is not ABSENT} for key, row in rows.items()}


def _group(group: Group, comparison: Comparison) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": group.name,
        "runs": [_run(run) for run in group.runs],
        "measures": {measure.key: asdict(group.spread(measure)) for measure in MEASURES},
    }
    if comparison.baseline and group in comparison.others:
        baseline = comparison.baseline
        described["difference"] = {measure.key: asdict(group.minus(baseline, measure)) for measure in MEASURES}
    return described


def _run(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "seed": run.seed,
        "notes": list(run.notes),
        "measures": {measure.key: measure.of(run) for measure in MEASURES},
        "average_accuracy": list(run.curve),
        "accuracy_matrix": run.matrix.matrix,
    }


def as_csv(comparison: Comparison) -> str:
    """A row for each configuration: seeds, the keys that differ, mean and deviation, and differences to the baseline.

    Warnings have no place in it.
    """
    rows = [_row(group, number, comparison) for number, group in enumerate(comparison.groups)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(group: Group, number: int, comparison: Comparison) -> dict[str, str]:
    row = {"configuration": group.name, "seeds": " ".join(group.seeds)}
    for key, values in comparison.differing.items():
        row[f"config.{key}"] = value_text(values[number], "")
    for measure in MEASURES:
        spread = group.spread(measure)
        row |= {f"{measure.key}.mean": _cell(spread.mean), f"{measure.key}.std": _cell(spread.std)}
    if comparison.baseline:
        row |= _differences(group, comparison, comparison.baseline)
    return row


def _differences(group: Group, comparison: Comparison, baseline: Group) -> dict[str, str]:
    """Empty cells for the baseline itself, so that all rows have the same columns."""
    row = {}
    for measure in MEASURES:
        values = asdict(group.minus(baseline, measure)) if group in comparison.others else {}
        for name in ("mean", "low", "high", "p", "count"):
            row[f"{measure.key}.difference.{name}"] = _cell(values.get(name, math.nan))
    return row


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
