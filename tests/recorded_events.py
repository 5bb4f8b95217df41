"""What a nested run records of itself, made up for tests of what reads it."""

import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

LAYERS = (3, 4)
SCALES = ("slow", "fast")


def record(
    path: Path, tasks: int, *, interval: int = 5, seed: int = 0, epochs: int = 3, scales: Sequence[str] = SCALES
) -> None:
    """Append to a run directory's metrics.jsonl every kind of event, and give its results.json branches.

    All scales but the last are gated.
    """
    rng = random.Random(seed)
    events: list[dict[str, Any]] = []
    for task in range(tasks):
        events += scans(task, rng) if task else []
        events += [telemetry(task, epoch, epochs, rng, scales) for epoch in range(epochs)]
        events += [cadence(task, 40, interval, scale=scale) for scale in scales[:-1]]
        events.append(consolidation(task, rng, scales))
    results = json.loads((path / "results.json").read_text())
    whole = results["accuracy"]
    choices = [some for size in range(len(scales), 0, -1) for some in combinations(scales, size)]
    shares = {"+".join(some): len(some) / len(scales) for some in choices} | {"neither": 0.4}
    results["branches"] = {
        name: {**whole, "correct": [[int(share * hits) for hits in row] for row in whole["correct"]]}
        for name, share in shares.items()
    }
    (path / "results.json").write_text(json.dumps(results))
    for task in range(tasks):
        correct = {name: matrix["correct"][task] for name, matrix in results["branches"].items()}
        events.append({"kind": "branches", "task": task, "when": "after_task", "correct": correct})
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def telemetry(task: int, epoch: int, epochs: int, rng: random.Random, scales: Sequence[str] = SCALES) -> dict[str, Any]:
    done = task + (epoch + 1) / epochs
    pairs = list(map("+".join, combinations(scales, 2)))

    def cosines(low: float, high: float) -> dict[str, float | None]:
        return {pair: rng.uniform(low, high) if task or epoch else None for pair in pairs}

    layers = [
        {
            "layer": layer,
            "adapter": 0,
            "norms": {
                f"{branch}.{kind}.weight": size * done * rng.uniform(0.9, 1.1) + layer / 9
                for size, branch in enumerate(scales, 1)
                for kind in ("down_proj", "up_proj")
            },
            "update_norms": {branch: 0.1**-size * rng.random() for size, branch in enumerate(scales, -len(scales))},
            "share": {branch: 1 / len(scales) for branch in scales},
            "output_cosine": cosines(-0.2, 0.5),
            "update_cosine": cosines(-0.2, 0.2),
            "effective_rank": {branch: rng.uniform(1, 4) for branch in scales},
        }
        for layer in LAYERS
    ]
    step = 40 * (epoch + 1) // epochs
    return {"kind": "telemetry", "task": task, "cycle": 0, "epoch": epoch, "step": step, "layers": layers}


def cadence(
    task: int, steps: int, interval: int, observed: list[int] | None = None, scale: str | None = None
) -> dict[str, Any]:
    expected = list(range(interval, steps + 1, interval))
    seen = expected if observed is None else observed
    verdict = {"observed": seen, "expected": expected, "passed": seen == expected}
    named = {} if scale is None else {"scale": scale}
    phase = {"task": task, "cycle": 0, "phase": "func", "steps": steps, "tensors": 8}
    return {"kind": "cadence", **phase, **named, **verdict}


def consolidation(task: int, rng: random.Random, scales: Sequence[str] = SCALES) -> dict[str, Any]:
    *slower, last = scales
    receipts = [
        {
            "layer": layer,
            "adapter": 0,
            **{"alpha": 0.1, "mode": "weights", "reset": "zero"},
            **{f"{branch}_norm_before": 1.0 for branch in slower},
            f"{last}_norm_before": 2.5,
            **{f"{branch}_rank_before": 3.2 for branch in slower},
            **{f"{branch}_norm_after": 1.2 for branch in slower},
            f"{last}_norm_after": 0.0,
            **{f"{branch}_rank_after": 3.4 for branch in slower},
            "drift": rng.uniform(0.1, 0.6),
            **{"z_mean_before": 6.5, "z_std_before": 2.0, "z_mean_after": 0.75, "z_std_after": 0.5},
        }
        for layer in LAYERS
    ]
    before, after = ({"grouped": {}, "top1": value, "top5": 99.0} for value in (61.25, 60.5))
    whole = {"receipts": receipts, "accuracy_before": before, "accuracy_after": after}
    return {"kind": "consolidation", "task": task, **whole}


def scans(task: int, rng: random.Random) -> list[dict[str, Any]]:
    strange = task % 2
    return [
        {
            "kind": "scan",
            "task": task,
            "scan": 0,
            "batch": batch,
            "z": {str(layer): [rng.uniform(0.7, 1.3) + strange * (batch == 4), 1.0 + strange] for layer in LAYERS},
            "threshold": 1.5,
            "expands": LAYERS[0] if strange and batch == 4 else None,
        }
        for batch in range(1, 5)
    ]
