"""Finished runs made for tests: directories as the trainer leaves them, logs as PILOT-family code bases print them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.config.identity import result_hash
from utils.config.schema import Config
from utils.files import plain
from utils.metrics import AccuracyMatrix
from utils.runs.predictions import WHOLE, Mistake, confident_mistakes, predictions_file, save_mistakes, save_predictions

Rows = Sequence[Sequence[int]]
RECORDED = Path(__file__).parent / "recorded"  # runs of an earlier version; only ever read
NESTED, PLAIN = RECORDED / "nested-c1080012-s4", RECORDED / "plain-698f0ee7-s4"


def write_run(folder: Path, label: str, seed: int, correct: Rows, **options: Any) -> Path:
    """Write a run directory.

    Options: count, sizes, parameters, adapters, seconds, training (seconds per task), environment, configuration keys;
    off and changed: right answers as `correct`, and changed answers of every task, with all adapters off.
    """
    count = options.pop("count", [100] * len(correct))
    sizes = options.pop("sizes", [10] * len(correct))
    state = {
        "adapters": options.pop("adapters", [1, 1, 2]),
        "parameters": options.pop(
            "parameters", {"adapter": 30, "router": 3, "head": 10, "backbone": 900, "total": 943}
        ),
    }
    off, changed = options.pop("off", None), options.pop("changed", None)
    clocks = {"seconds": options.pop("seconds", 60.0)}
    if training := options.pop("training", None):
        clocks["training_seconds_per_task"] = training
    environment = {
        "commit": "c" * 40,
        "dirty": False,
        "backbone": {"sha256": "d" * 64},
        **options.pop("environment", {}),
    }
    config = Config(**{"dataset": "cub", "seed": [seed], **options})
    path = folder / f"{label}-{result_hash(config)}-s{seed}"
    path.mkdir(parents=True)
    transient = [] if config.leave_out_transient else config.transient
    matrix = AccuracyMatrix(sizes, count, [list(row) for row in correct], transient)
    tasks: list[dict[str, Any]] = [{"task": task, **state} for task in range(len(correct))]
    for task, row in enumerate(off or ()):
        images = sum(count[: task + 1])
        tasks[task]["adapters_off"] = {"correct": list(row), "changed": changed[task], "images": images}
    results = {"accuracy": matrix.to_json(), **matrix.summary(), "tasks": tasks, "run": clocks}
    if config.evaluate_on == "val":
        results["evaluate_on"] = "val"
    events = [
        {
            "kind": "task",
            "task": t,
            "task_accuracy": [hits / n if n else None for hits, n in zip(row, count, strict=False)],
        }
        for t, row in enumerate(correct)
    ]
    (path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (path / "results.json").write_text(json.dumps(plain(results)))
    return path


def answer(run: Path, names: Sequence[str] | None = None, mistakes: bool = True) -> np.ndarray:
    """Give a run predictions after its last task that its results.json counts, and return those: [true, predicted].

    The images of a task are divided evenly among its classes. Those of a class that are wrong are taken for the next
    class, with a confidence that falls from image to image.
    """
    results = json.loads((run / "results.json").read_text())
    sizes, count, correct = (results["accuracy"][key] for key in ("task_sizes", "count", "correct"))
    firsts = np.cumsum([0, *sizes[:-1]])
    labels = np.concatenate([np.arange(n) % k + first for n, k, first in zip(count, sizes, firsts, strict=True)])
    right = np.concatenate([np.arange(n) < hits for n, hits in zip(count, correct[-1], strict=True)])
    predicted = np.where(right, labels, (labels + 1) % sum(sizes))
    confidence = np.linspace(0.99, 0.5, len(labels)) if mistakes else None
    save_predictions(predictions_file(run, len(sizes) - 1), labels, {WHOLE: predicted}, confidence)
    if confidence is not None:
        shown = io.BytesIO()
        Image.new("RGB", (96, 40), "red").save(shown, "JPEG")
        wrong = confident_mistakes(labels, predicted, confidence)
        save_mistakes(run, [Mistake(at, f"folder/{at}.png", shown.getvalue()) for at in wrong])
    if names:
        (run / "results.json").write_text(json.dumps({**results, "class_names": list(names)}))
    counts = np.zeros((sum(sizes), sum(sizes)), int)
    for true, taken in zip(labels, predicted, strict=True):
        counts[true, taken] += 1
    return counts


class PilotRun:
    """The log of one run, printed as PILOT prints it, from right answers of 100 test images a class.

    Args:
        hits: `hits[t][i]`, right answers on task i after task t.
        sizes: Classes of each task.
        sort_as_text: Whether the code base sorts the class ranges as texts before it makes its matrix, as some do.
        config: Keys that the log states.
    """

    def __init__(self, hits: Rows, sizes: Sequence[int], *, sort_as_text: bool = False, **config: Any) -> None:
        self.hits, self.sizes, self.sort_as_text, self.config = hits, list(sizes), sort_as_text, config

    def label(self, task: int) -> str:
        first = sum(self.sizes[:task])
        return f"{first:02d}-{first + self.sizes[task] - 1:02d}"

    def per_cent(self, t: int, tasks: Sequence[int]) -> float:
        """Rounded to two decimals, as printed; 0 of nothing."""
        images = 100 * sum(self.sizes[i] for i in tasks)
        return float(np.around(100 * sum(self.hits[t][i] for i in tasks) / images, 2)) if images else 0.0

    def grouped(self, t: int) -> dict[str, float]:
        groups = {self.label(i): self.per_cent(t, [i]) for i in range(t + 1)}
        old, new = self.per_cent(t, range(t)), self.per_cent(t, [t])
        return {"total": self.per_cent(t, range(t + 1)), **groups, "old": old, "new": new}

    def table(self) -> np.ndarray:
        """[group][task], zeros above; a row for each class range in the order of the code base."""
        table = np.zeros((len(self.hits), len(self.hits)))
        for t in range(len(self.hits)):
            groups = {key: value for key, value in self.grouped(t).items() if "-" in key}
            keys = sorted(groups) if self.sort_as_text else list(groups)
            table[t, : len(keys)] = [groups[key] for key in keys]
        return table.T

    def forgetting(self) -> float:
        """Maximum over all tasks minus the last, over all groups but the last in the table."""
        table = self.table()
        if len(table) == 1:
            return float("nan")
        return float(np.mean((table.max(axis=1) - table[:, -1])[:-1]))

    def lines(self) -> list[str]:
        lines = [f"{key}: {value}" for key, value in self.config.items()]
        curve: list[float] = []
        for t in range(len(self.hits)):
            lines += ["All params: 85", f"Learning on {self.label(t)}", "No NME accuracy.", f"CNN: {self.grouped(t)}"]
            curve.append(self.grouped(t)["total"])
            lines += [f"CNN top1 curve: {curve}", f"CNN top5 curve: {[100.0] * len(curve)}\n"]
            lines += [f"Average Accuracy (CNN): {sum(curve) / len(curve)} \n"]
        return lines

    def text(self, *, matrix: bool = True) -> str:
        stamped = [
            f"2024-01-18 10:{n // 60:02d}:{n % 60:02d},251 [trainer.py] => {x}" for n, x in enumerate(self.lines())
        ]
        if matrix:
            forgetting = f"2024-01-18 11:00:00,251 [trainer.py] => Forgetting (CNN): {self.forgetting()}"
            stamped += ["Accuracy Matrix (CNN):", str(self.table()), forgetting]
        return "\n".join(stamped) + "\n"


def random_hits(seed: int, sizes: Sequence[int]) -> list[list[int]]:
    """Right answers for `PilotRun`, 30 to 90 per cent."""
    rng = np.random.default_rng(seed)
    return [[int(rng.integers(30 * size, 90 * size)) for size in sizes[: t + 1]] for t in range(len(sizes))]
