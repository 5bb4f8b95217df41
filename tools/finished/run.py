"""A finished run, as comparisons and reports use it."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config.identity import counted_digest
from utils.metrics import AccuracyMatrix
from utils.runs.events import FILE, E, read_events

RUN_NAME = re.compile(r"(?P<label>.+)-(?P<hash>[0-9a-f]{8})-s(?P<seed>\d+)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: a directory of ours, or one run of another code base's log file.

    Attributes:
        path: The directory or the log file.
        label: What its configuration is called.
        seed: None where it is not stated.
        config: Every key that is known.
        identity: Those of them that can change a result, without the seed: equal in runs of one configuration.
        matrix: Counts; a log knows only percentages, which stand as hits in 10,000 images.
        curve: A_t, fractions.
        branches: The accuracy matrix with only some of the adapters' branches, by their names joined by `+`.
        seconds: Wall-clock time; NaN where it is not known.
        results: results.json; empty for a log.
        environment: environment.json; empty for a log.
        notes: What the reader of a comparison should know about it.
    """

    path: Path
    label: str
    seed: int | None
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    matrix: AccuracyMatrix
    curve: tuple[float, ...]
    branches: Mapping[str, AccuracyMatrix] = field(default_factory=dict)
    seconds: float = math.nan
    results: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_log(self) -> bool:
        """Whether it was read from a log file."""
        return not self.results

    @property
    def key(self) -> str:
        """Equal in runs of one configuration; of a run of ours the hash in its directory's name."""
        return digest(self.identity) if self.is_log else counted_digest(self.config)

    @property
    def last_task(self) -> Mapping[str, Any]:
        """What results.json says of the network after the last task; empty for a log."""
        return self.results["tasks"][-1] if self.results else {}

    @property
    def metrics(self) -> Path:
        """Its metrics.jsonl; a log has none."""
        return self.path / FILE

    @property
    def tasks(self) -> list[int]:
        """The numbers of its tasks."""
        return [*range(len(self.matrix.count))]

    def events(self, kind: type[E]) -> Iterable[E]:
        """The events of one kind, in order; none for a log.

        Raises:
            RunError: metrics.jsonl is damaged.
        """
        return () if self.is_log else read_events(self.metrics, kind)


def digest(values: Mapping[str, Any]) -> str:
    """8 hexadecimal digits over what a log states of its configuration."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
