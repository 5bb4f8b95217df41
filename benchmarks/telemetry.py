"""Measure what watching costs: telemetry as a share of training, and the branch scores as a share of a run.

    python -m benchmarks.telemetry [--config exps/quickstart.json] [--repeats 12] [--output_dir logs/telemetry]

Trains the func phase of task 0 again and again in one process: without telemetry, at the default interval (once an
epoch) and at every step, in turn. What counts is the ratio within a turn, as a busy machine hits neighbours alike, and
of the turns' ratios the median. For the branch scores one whole run is made, unless it is there. The tables go into
docs/telemetry.md.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

import torch

from benchmarks.command import make_parser, run_command, write_parts
from benchmarks.measure import CLOCK_NAMES, quiet_timer
from benchmarks.quickstart import runs_of
from models import Hooks, Setup, get_model
from tools.generated import markdown_table
from trainer import make_tasks
from utils.config.load import load
from utils.config.schema import Config
from utils.data.sources import load_dataset
from utils.data.tasks import DataManager
from utils.devices import device_name, prepare_device
from utils.files import json_line
from utils.runs.directory import RESULTS
from utils.runs.events import TIMES, Branches, Event, read_lines
from utils.timescales.gate import steps_of

DOCUMENT = Path("docs/telemetry.md")
NEVER = 10**9  # more steps than any phase has
OFF, DEFAULT, ALWAYS = "off", "once an epoch", "every step"
INTERVALS = {OFF: NEVER, DEFAULT: 0, ALWAYS: 1}
ALONE = {"rd_epoch": 0, "nested_lora_use_consolidation": False}  # what leaves of task 0 nothing but the func phase


def main(arguments: Sequence[str]) -> None:
    """Measure and write the tables."""
    parser = make_parser("telemetry", __doc__)
    parser.add_argument("--config", type=Path, default=Path("exps/quickstart.json"))
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--output_dir", default="logs/telemetry")
    given = parser.parse_args(arguments)
    overhead, branches = overhead_table(given.config, given.repeats), branch_table(given.config, given.output_dir)
    write_parts(DOCUMENT, {"overhead": overhead, "branches": branches})


# ---- telemetry


def overhead_table(path: Path, repeats: int) -> str:
    """Times of the func phase with telemetry, in units of that without."""
    configs = {title: load(path, {**ALONE, "telemetry_every": every}) for title, every in INTERVALS.items()}
    config = configs[OFF]
    device = prepare_device(config.device, config.num_threads)
    tasks = make_tasks(config, load_dataset(config.dataset, Path(config.data_root)))
    steps = steps_of(tasks.nb_images("train", 0), config.batch_size, config.func_epoch)
    times = measured(configs, tasks, device, repeats)
    title = f"{path.stem} on {device_name(device)}, {steps} steps, {repeats} turns"
    rows = overhead_rows(times, {OFF: 0, DEFAULT: config.func_epoch, ALWAYS: steps})
    return markdown_table([title, "readings", CLOCK_NAMES[quiet_timer(device).clock], "quartiles"], rows)


def overhead_rows(times: dict[str, list[float]], readings: dict[str, int]) -> list[list[str]]:
    """A line for each interval, and one for the default by the cost of a single reading.

    Args:
        times: Seconds of every repetition, by interval.
        readings: How many readings were made in each, by interval.
    """
    rows = []
    for title, seconds in times.items():
        low, middle, high = quantiles([a / b for a, b in zip(seconds, times[OFF], strict=True)], method="inclusive")
        spread = "" if title == OFF else f"{low:.3f} to {high:.3f}"
        rows.append([title, str(readings[title]), f"{middle:.3f}", spread])
    part = (middle - 1) * readings[DEFAULT] / readings[ALWAYS]  # the last are those of every step
    return [*rows, [f"{DEFAULT}, by the cost of a reading", str(readings[DEFAULT]), f"{1 + part:.4f}", ""]]


def measured(
    configs: dict[str, Config], tasks: DataManager, device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every turn, by interval, forwards and backwards by turns; one phase before them does not count."""
    phase_seconds(configs[OFF], tasks, device)
    times: dict[str, list[float]] = {title: [] for title in configs}
    for turn in range(repeats):
        for title, config in list(configs.items())[:: -1 if turn % 2 else 1]:
            times[title].append(phase_seconds(config, tasks, device))
    return times


def phase_seconds(config: Config, tasks: DataManager, device: torch.device) -> float:
    """What task 0 takes, its events written to a file."""
    setup = Setup(config, config.seed[0], device, tasks.nb_classes)
    with tempfile.TemporaryFile("w", encoding="utf-8") as file:

        def write(event: Event) -> None:
            file.write(json_line(event.to_json()))
            file.flush()

        learner = get_model(setup, Hooks(events=write))
        return quiet_timer(device)(lambda: learner.incremental_train(tasks))


# ---- branches


def branch_table(path: Path, output_dir: str) -> str:
    """The time of the branch scores as a share of a run's, for one seed."""
    (run,) = runs_of(path.stem, {"branch_eval": True, "output_dir": output_dir, "seed": load(path).seed[:1]})
    whole = json.loads((run / RESULTS).read_text(encoding="utf-8"))["run"]["seconds"]
    scored = [line["seconds"] for line in read_lines(run / TIMES) if line.get("kind") == Branches.kind]
    header = [f"{path.stem}, one run", "times scored", "share of the run's time"]
    return markdown_table(header, [["branch matrices", str(len(scored)), f"{100 * sum(scored) / whole:.1f} %"]])


if __name__ == "__main__":
    run_command(main)
