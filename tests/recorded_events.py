"""What a nested run records of itself, made up for tests of what reads it."""

import json
import random
from pathlib import Path
from typing import Any

LAYERS = (3, 4)


def record(path: Path, tasks: int, *, interval: int = 5, seed: int = 0, epochs: int = 3) -> None:
    """Append to a run directory's metrics.jsonl every kind of event, and give its results.json branches."""
    rng = random.Random(seed)
    events: list[dict[str, Any]] = []
    for task in range(tasks):
        events += scans(task, rng) if task else []
        events += [telemetry(task, epoch, epochs, rng) for epoch in range(epochs)]
        events += [cadence(task, 40, interval), consolidation(task, rng)]
    results = json.loads((path / "results.json").read_text())
    whole = results["accuracy"]
    shares = {"slow+fast": 1.0, "slow": 0.8, "fast": 0.7, "neither": 0.4}
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


def telemetry(task: int, epoch: int, epochs: int, rng: random.Random) -> dict[str, Any]:
    done = task + (epoch + 1) / epochs
    layers = [
        {
            "layer": layer,
            "adapter": 0,
            "norms": {
                f"{branch}.{kind}.weight": size * done * rng.uniform(0.9, 1.1) + layer / 9
                for branch, size in (("slow", 0.2), ("fast", 0.7))
                for kind in ("down_proj", "up_proj")
            },
            "update_norms": {"slow": 0.01 * rng.random(), "fast": 0.1 * rng.random()},
            "share": {"slow": (share := rng.uniform(0.2, 0.4)), "fast": 1 - share},
            "output_cosine": rng.uniform(-0.2, 0.5) if task or epoch else None,
            "update_cosine": rng.uniform(-0.2, 0.2) if task or epoch else None,
            "effective_rank": {"slow": rng.uniform(2, 4), "fast": rng.uniform(1, 3)},
        }
        for layer in LAYERS
    ]
    step = 40 * (epoch + 1) // epochs
    return {"kind": "telemetry", "task": task, "cycle": 0, "epoch": epoch, "step": step, "layers": layers}


def cadence(task: int, steps: int, interval: int, observed: list[int] | None = None) -> dict[str, Any]:
    expected = list(range(interval, steps + 1, interval))
    seen = expected if observed is None else observed
    verdict = {"observed": seen, "expected": expected, "passed": seen == expected}
    return {"kind": "cadence", "task": task, "cycle": 0, "phase": "func", "steps": steps, "tensors": 8, **verdict}


def consolidation(task: int, rng: random.Random) -> dict[str, Any]:
    receipts = [
        {
            "layer": layer,
            "adapter": 0,
            **{"alpha": 0.1, "mode": "weights", "reset": "zero"},
            **{"slow_norm_before": 1.0, "fast_norm_before": 2.5, "slow_rank_before": 3.2},
            **{"slow_norm_after": 1.2, "fast_norm_after": 0.0, "slow_rank_after": 3.4},
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
