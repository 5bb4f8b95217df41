"""A comparison as JSON, with everything, and as CSV, with a row for each configuration.

Values are unrounded, accuracies are fractions, as in results.json. Unknown values are null in JSON and empty in CSV.
"""

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from tools.compare.comparison import ABSENT, Comparison, Group, value_text
from tools.compare.effect import effect_of_adapters
from tools.compare.fairness import warnings
from tools.compare.measures import MEASURES
from tools.finished.reader import Run
from utils.files import plain


def as_json(comparison: Comparison) -> str:
    """Return groups with their runs, measures and differences to the baseline; what differs; warnings; legend."""
    names = [group.name for group in comparison.groups]
    values = {
        "baseline": comparison.baseline.name if comparison.baseline else None,
        "groups": [_group(group, comparison) for group in comparison.groups],
        "differing": {
            key: {name: value for name, value in zip(names, values, strict=True) if value is not ABSENT}
            for key, values in comparison.differing.items()
        },
        "one_sided": comparison.one_sided,
        "effect_of_adapters": effect_of_adapters(comparison),
        "warnings": warnings(comparison),
        "legend": {measure.key: measure.meaning for measure in MEASURES},
    }
    return json.dumps(plain(values), allow_nan=False, ensure_ascii=False, indent=2) + "\n"


def _group(group: Group, comparison: Comparison) -> dict[str, Any]:
    described = {
        "name": group.name,
        "runs": [_run(run) for run in group.runs],
        "measures": {measure.key: asdict(group.spread(measure)) for measure in MEASURES},
    }
    differences = _differences(group, comparison)
    return described | ({"difference": differences} if differences else {})


def _run(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "seed": run.seed,
        "notes": list(run.notes),
        "measures": {measure.key: measure.of(run) for measure in MEASURES},
        "average_accuracy": list(run.curve),
        "accuracy_matrix": run.matrix.matrix,
    }


def _differences(group: Group, comparison: Comparison) -> dict[str, dict[str, float]]:
    """Return the differences to the baseline by measure; none for the baseline itself, or without one."""
    if not comparison.baseline or group is comparison.baseline:
        return {}
    return {measure.key: asdict(group.minus(comparison.baseline, measure)) for measure in MEASURES}


def as_csv(comparison: Comparison) -> str:
    """Return a row for each configuration: seeds, keys that differ, mean and deviation, differences to the baseline."""
    rows = [_row(group, number, comparison) for number, group in enumerate(comparison.groups)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(group: Group, number: int, comparison: Comparison) -> dict[str, str]:
    row = {"configuration": group.name, "seeds": " ".join(group.seeds)}
    row |= {f"config.{key}": value_text(values[number], "") for key, values in comparison.differing.items()}
    for measure in MEASURES:
        spread = group.spread(measure)
        row |= {f"{measure.key}.mean": _cell(spread.mean), f"{measure.key}.std": _cell(spread.std)}
    for key, difference in _differences(group, comparison).items():
        row |= {f"{key}.difference.{name}": _cell(value) for name, value in difference.items()}
    return row


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
