"""A finished run."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config import identity
from utils.metrics import AccuracyMatrix
from utils.runs.events import FILE, E, read_events

RUN_NAME = re.compile(r"(?P<label>.+)-(?P<hash>[0-9a-f]{8})-s(?P<seed>\d+)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, read from its directory or from the log file of another implementation.

    Attributes:
        path: The directory or the log file.
        label: Name of the configuration.
        seed: None if unknown.
        config: All known keys.
        identity: The keys that can change a result, without the seed; equal in runs of one configuration.
        matrix: Counts. A log has only percentages, which become hits in 10,000 images.
        curve: A_t, fractions.
        branches: Accuracy matrix with only some of the adapters' branches, by their names joined with `+`.
        validation: Accuracy matrix of the validation images; empty if none were scored beside the others.
        readouts: Accuracy matrix of each readout, by label, see `utils.readouts`; empty if they are not known.
        off: Accuracy matrix with all adapters off; rows that are not on record are None. Empty for a log.
        seconds: Wall-clock time; NaN if unknown.
        training: Seconds of training alone; NaN if unknown.
        results: results.json; empty for a log.
        environment: environment.json; empty for a log.
        data: data.json; empty for a log, and for a run of an earlier version.
        notes: What readers of a comparison should know about the run.
    """

    path: Path
    label: str
    seed: int | None
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    matrix: AccuracyMatrix
    curve: tuple[float, ...]
    branches: Mapping[str, AccuracyMatrix] = field(default_factory=dict)
    validation: AccuracyMatrix = field(default_factory=AccuracyMatrix)
    readouts: Mapping[str, AccuracyMatrix] = field(default_factory=dict)
    off: AccuracyMatrix = field(default_factory=AccuracyMatrix)
    seconds: float = math.nan
    training: float = math.nan
    results: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_log(self) -> bool:
        """Return whether the run was read from a log file."""
        return not self.results

    @property
    def on_validation(self) -> bool:
        """Return whether all accuracies are of validation images (`evaluate_on`)."""
        return bool(self.config.get("evaluate_on") == "val")

    @property
    def key(self) -> str:
        """Return a hash of the configuration: the one in the directory's name, or that of what a log states."""
        return digest(self.identity) if self.is_log else identity.digest(self.identity)

    @property
    def contents(self) -> Mapping[str, str]:
        """Return hashes of what lies at the places that its identity names, as far as they are on record."""
        images = [half["sha256"] for name in ("train", "test") if (half := self.data.get(name))]
        weights = (self.environment.get("backbone") or {}).get("sha256")
        found = {"data_root": "-".join(images), "backbone_checkpoint": weights}
        return {key: value for key, value in found.items() if value and self.identity.get(key) is not None}

    @property
    def processes(self) -> list[Mapping[str, Any]]:
        """Return the environment of every process: the first, and those that resumed the run."""
        resumed = self.environment.get("resumed") or []
        return [self.environment, *({**self.environment, **entry} for entry in resumed if isinstance(entry, dict))]

    @property
    def last_task(self) -> Mapping[str, Any]:
        """Return the last task's entry in results.json; empty for a log."""
        return self.results["tasks"][-1] if self.results else {}

    @property
    def changed(self) -> list[int | None]:
        """Return the number of answers that the adapters change after each task, None if unknown; empty for a log."""
        off = [task.get("adapters_off") for task in self.results.get("tasks", [])]
        return [found and found["changed"] for found in off]

    @property
    def metrics(self) -> Path:
        """Return the path of metrics.jsonl. A log has none."""
        return self.path / FILE

    @property
    def tasks(self) -> list[int]:
        """Return the numbers of its tasks."""
        return [*range(len(self.matrix.count))]

    def events(self, kind: type[E]) -> Iterable[E]:
        """Return the events of one kind, in order; none for a log.

        Raises:
            RunError: metrics.jsonl is damaged.
        """
        return () if self.is_log else read_events(self.metrics, kind)


def digest(values: Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits of the hash of what a log states of its configuration."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
