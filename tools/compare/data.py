"""A comparison as JSON, with everything, and as CSV, with a row for each configuration.

Values are unrounded, accuracies are fractions, as in results.json. Unknown values are null in JSON and empty in CSV.
"""

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from tools.compare.comparison import Comparison, Group, value_text
from tools.compare.conclusions import CORRECTION, Conclusion, Conclusions, conclude
from tools.compare.effect import effect_of_adapters
from tools.compare.fairness import warnings
from tools.compare.measures import MEASURES
from tools.compare.names import ABSENT
from tools.compare.paired import POWER
from tools.finished.reader import Run
from utils.files import plain


def as_json(comparison: Comparison) -> str:
    """Return groups with their runs, measures and differences to the baseline; what differs and follows; legend."""
    found = conclude(comparison)
    names = [group.name for group in comparison.groups]
    values = {
        "baseline": comparison.baseline.name if comparison.baseline else None,
        "groups": [_group(group, found) for group in comparison.groups],
        "families": [
            {"name": family.name, "groups": [group.name for group in family.members], **_differences(family, found)}
            for family in comparison.families
        ],
        "differing": {
            key: {name: value for name, value in zip(names, values, strict=True) if value is not ABSENT}
            for key, values in comparison.differing.items()
        },
        "one_sided": comparison.one_sided,
        "effect_of_adapters": effect_of_adapters(comparison),
        "conclusions": {
            "correction": CORRECTION,
            "comparisons": found.tests,
            "level": found.level,
            "power": POWER,
            "sentences": found.sentences,
        },
        "warnings": warnings(comparison),
        "legend": {measure.key: measure.meaning for measure in MEASURES},
    }
    return json.dumps(plain(values), allow_nan=False, ensure_ascii=False, indent=2) + "\n"


def _group(group: Group, found: Conclusions) -> dict[str, Any]:
    described = {
        "name": group.name,
        "one_class_order": group.one_class_order,
        "runs": [_run(run) for run in group.runs],
        "measures": {measure.key: asdict(group.spread(measure)) for measure in MEASURES},
    }
    return described | _differences(group, found)


def _differences(group: Group, found: Conclusions) -> dict[str, Any]:
    differences = {one.measure.key: _difference(one) for one in found.of(group)}
    return {"difference": differences} if differences else {}


def _run(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "seed": run.seed,
        "notes": list(run.notes),
        "measures": {measure.key: measure.of(run) for measure in MEASURES},
        "average_accuracy": list(run.curve),
        "accuracy_matrix": run.matrix.matrix,
    }


def _difference(one: Conclusion) -> dict[str, float | str | None]:
    gap = one.difference
    return {
        **{"mean": gap.mean, "low": gap.low, "high": gap.high, "p": gap.p, "count": gap.count},
        **{"p_corrected": one.corrected, "verdict": one.verdict},
        **{"detectable": one.detectable, "wanted": one.wanted, "seeds_for_wanted": one.seeds},
    }


def as_csv(comparison: Comparison) -> str:
    """Return a row for each configuration: seeds, keys that differ, mean and deviation, differences to the baseline."""
    found = conclude(comparison)
    rows = [_row(group, number, comparison, found) for number, group in enumerate(comparison.groups)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(group: Group, number: int, comparison: Comparison, found: Conclusions) -> dict[str, str]:
    row = {"configuration": group.name, "seeds": " ".join(group.seeds)}
    row |= {f"config.{key}": value_text(values[number], "") for key, values in comparison.differing.items()}
    for measure in MEASURES:
        spread = group.spread(measure)
        row |= {f"{measure.key}.mean": _cell(spread.mean), f"{measure.key}.std": _cell(spread.std)}
    for one in found.of(group):
        row |= {f"{one.measure.key}.difference.{name}": _cell(value) for name, value in _difference(one).items()}
    return row


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "" if math.isnan(value) else repr(value)
