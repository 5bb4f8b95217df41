"""Check the runs of a sweep as main.py does before it trains, without starting them."""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tools.sweep.plan import Member, PlannedRun, joined
from utils.progress import progress


def refusals(runs: Sequence[PlannedRun], processes: int) -> list[str]:
    """Return what main.py says against these runs, one line each, by `main.py --dry_run` for every member.

    Args:
        runs: Those to check.
        processes: Processes at a time.
    """
    seeds: dict[str, list[int]] = {}
    members = {run.member.name: run.member for run in runs}
    for run in runs:
        seeds.setdefault(run.member.name, []).append(run.seed)

    def refusal(member: Member) -> str:
        command = [*member.command(seeds[member.name]), "--dry_run=true"]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        return done.stderr.strip() if done.returncode else ""

    with ThreadPoolExecutor(processes) as pool:
        found = list(progress(pool.map(refusal, members.values()), "checking configurations", len(members)))
    return joined((name, line) for name, text in zip(members, found, strict=True) for line in text.splitlines())
