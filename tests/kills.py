"""Runs that are killed at random moments and go on, again and again, and how they end.

    PYTHONPATH=. python tests/kills.py [--cycles 200] [--seed 0] [--document docs/reliability.md]

Kills and resumes tiny runs of every kind, so many times in all, and compares the end of each with that of an
uninterrupted run: results, metrics, and the tensors of every checkpoint.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preloaded import Preloaded, Started
from tiny_runs import KINDS, TinyRun, Workshop, differences, epochs_repeated, finish

from tools.generated import markdown_table, replace_part
from utils.runs.directory import CONFIG, STATES, can_resume, is_finished
from utils.runs.log import METRICS
from utils.runs.states import SavedStates

REACH = 0.7  # of an uninterrupted run's duration: the latest moment of a kill, so that about five meet one run
AT_ONCE = 2  # kinds that are killed side by side


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        kind: Of which run.
        seconds: After the process began.
        group: Whether its loading workers were killed with it.
        phase: What the run was at.
        lost: Complete epochs after the state it goes on from.
    """

    kind: str
    seconds: float
    group: bool
    phase: str
    lost: int


class Victim:
    """A run that is killed, goes on and is killed again, until it comes to its end.

    Args:
        run: What is killed.
        kind: Which kind it is.
        rng: Draws moments and manners.
    """

    def __init__(self, run: TinyRun, kind: str, rng: random.Random) -> None:
        self.run, self.kind, self.rng = run, kind, rng
        self.kills: list[Kill] = []
        self._processes: list[Started] = []

    def strike(self, latest: float) -> bool:
        """Let the run begin or go on, and kill it after at most so many seconds; whether it is still unfinished."""
        resumes = self.run.path is not None and can_resume(self.run.path)
        process = self._go_on()
        seconds, group = self.rng.uniform(0, latest), self.rng.random() < 0.5
        if not process.ends_within(seconds):
            process.signal(signal.SIGKILL, group)
        if process.wait() == 0:
            return False
        assert process.code == -signal.SIGKILL, f"exit code {process.code}\n{process.errors}"
        starting = resumes and "continues in task" not in process.errors
        self.kills.append(Kill(self.kind, seconds, group, *found_at(self.run.path, starting)))
        return not self._finished

    def end(self) -> Path:
        """Let the run go on to its end; its directory. Workers that outlived their run are ended, too."""
        finish(self._go_on())
        for process in self._processes:
            process.end()
        assert self.run.path is not None
        return self.run.path

    @property
    def _finished(self) -> bool:
        return self.run.path is not None and is_finished(self.run.path)

    @property
    def _begun(self) -> bool:
        return self.run.path is not None and (self.run.path / CONFIG).exists()

    def _go_on(self) -> Started:
        named = self._begun and not self._finished and self.rng.random() < 0.5
        self._processes.append(self.run.resume() if named else self.run.start("--auto_resume"))
        return self._processes[-1]


def found_at(path: Path | None, starting: bool) -> tuple[str, int]:
    """What a killed run was at, and the complete epochs it will train again, read off its files.

    Args:
        path: Its directory, if there is one.
        starting: Whether the process had not read a state that was there.
    """
    if path is not None and is_finished(path):
        return "finished", 0
    state = SavedStates(path / STATES).newest() if path else None
    if path is None or state is None:
        return "before the first state", 0
    after = (path / METRICS).read_bytes()[state["events"] :].split(b"\n")[:-1]
    lost = sum(line.startswith(b'{"kind": "epoch"') for line in after)
    return "starting again" if starting else stage(state), lost


def stage(state: Mapping[str, Any]) -> str:
    """What a run does after the moment of a state."""
    learner = state["learner"]
    if learner["position"]["stage"] != "done":
        return {"end": "end of task"}.get(learner["position"]["stage"], learner["position"]["stage"])
    return "evaluation" if len(state["tasks"]) <= learner["cur_task"] else "between tasks"


def late_kills(kills: list[Kill]) -> int:
    """How many met a run that had saved a state."""
    return sum(kill.phase != "before the first state" for kill in kills)


@dataclass
class Toll:
    """What came of killing runs of one kind.

    Attributes:
        kills: All of them.
        ends: For each run how it differs in the end from the uninterrupted run.
        repeated: Epochs trained again, by the logs.
    """

    kills: list[Kill] = field(default_factory=list)
    ends: list[list[str]] = field(default_factory=list)
    repeated: int = 0

    @property
    def late(self) -> int:
        """Kills after the first saved state."""
        return late_kills(self.kills)


def kill_runs(shop: Workshop, kind: str, seed: int, late: int) -> Toll:
    """Kill runs of a kind, one after another, until so many kills have met one that had saved a state."""
    rng, toll = random.Random(f"{kind} {seed}"), Toll()
    whole = shop.make(f"{kind}-whole", KINDS[kind])
    seconds = whole.whole()
    while toll.late < late:
        victim = Victim(shop.make(f"{kind}-{len(toll.ends)}", KINDS[kind]), kind, rng)
        while victim.strike(REACH * seconds) and toll.late + late_kills(victim.kills) < late:
            pass
        path = victim.end()
        toll.kills += victim.kills
        toll.ends.append(differences(path, whole.path))
        toll.repeated += epochs_repeated(path)
    return toll


def kill_every_kind(shop: Workshop, seed: int, late: int, pool: ThreadPoolExecutor) -> dict[str, Future[Toll]]:
    """`kill_runs` of every kind, some at once."""
    return {kind: pool.submit(kill_runs, shop, kind, seed, late) for kind in KINDS}


def spread(tolls: Iterable[Toll]) -> Counter[str]:
    """How many kills met a run at what."""
    return Counter(kill.phase for toll in tolls for kill in toll.kills)


def summary(tolls: Mapping[str, Toll]) -> str:
    """A table of kills and ends by kind, and what each run that ended otherwise differs in."""
    header = [
        "runs of",
        "kills",
        "after the first state",
        "with the workers",
        "runs",
        "bit-identical",
        "epochs repeated",
    ]
    rows = [[kind, *map(str, figures([toll]))] for kind, toll in tolls.items()]
    rows.append(["all", *map(str, figures(tolls.values()))])
    bad = [f"- {kind} differs in {', '.join(end)}" for kind, toll in tolls.items() for end in toll.ends if end]
    met = ", ".join(f"{phase} {count}" for phase, count in spread(tolls.values()).most_common())
    return "\n".join([markdown_table(header, rows), f"The kills met runs at: {met}.", *bad])


def figures(tolls: Iterable[Toll]) -> list[int]:
    """A row of the table."""
    tolls = list(tolls)
    kills = [kill for toll in tolls for kill in toll.kills]
    ends = [end for toll in tolls for end in toll.ends]
    whole, repeated = sum(not end for end in ends), sum(toll.repeated for toll in tolls)
    return [len(kills), late_kills(kills), sum(kill.group for kill in kills), len(ends), whole, repeated]


def main() -> int:
    """Kill and resume, and say what came of it; 1 if a run ended differently."""
    parser = argparse.ArgumentParser(prog="python tests/kills.py", description=__doc__)
    parser.add_argument("--cycles", type=int, default=200, help="kills that find a saved state")
    parser.add_argument("--seed", type=int, default=0, help="of moments and manners")
    parser.add_argument("--document", type=Path, help="takes the table, too")
    given = parser.parse_args()
    share = -(-given.cycles // len(KINDS))
    with tempfile.TemporaryDirectory() as folder, Preloaded() as preloaded, ThreadPoolExecutor(AT_ONCE) as pool:
        futures = kill_every_kind(Workshop(preloaded, Path(folder)), given.seed, share, pool)
        tolls = {kind: future.result() for kind, future in futures.items()}
    print(text := f"Seed {given.seed}:\n\n{summary(tolls)}")
    if given.document:
        replace_part(given.document, "cycles", text)
    return int(any(end for toll in tolls.values() for end in toll.ends))


if __name__ == "__main__":
    sys.exit(main())
