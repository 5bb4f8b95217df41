"""Measure what readouts cost: runs with them in units of a run without.

    python -m benchmarks.readouts [--config exps/quickstart.json] [--tasks 3] [--repeats 5]

Trains and evaluates the first tasks of a configuration again and again in one process, with every choice of readouts in
turn. What counts is the ratio within a turn, as a busy machine hits neighbours alike, and of the turns' ratios the
median. The table goes into docs/readouts.md.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

import torch

from benchmarks.command import make_parser, run_command, write_parts
from benchmarks.measure import CLOCK_NAMES, quiet_timer
from models import Setup, get_model
from tools.generated import markdown_table
from trainer import make_tasks
from utils.config.load import load
from utils.config.schema import Config
from utils.data.sources import load_dataset
from utils.data.tasks import DataManager
from utils.devices import device_name, prepare_device

DOCUMENT = Path("docs/readouts.md")
CHOICES = ((), ("ncm",), ("ncm", "ranpac"), ("ncm", "lda", "ranpac"))


def main(arguments: Sequence[str]) -> None:
    """Measure and write the table."""
    parser = make_parser("readouts", __doc__)
    parser.add_argument("--config", type=Path, default=Path("exps/quickstart.json"))
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    configs = [load(given.config, {"readouts": list(names), "max_tasks": given.tasks}) for names in CHOICES]
    device = prepare_device(configs[0].device, configs[0].num_threads)
    data = load_dataset(configs[0].dataset, Path(configs[0].data_root))
    times = measured(configs, make_tasks(configs[0], data), device, given.repeats)
    title = f"{given.config.stem}, {given.tasks} tasks, on {device_name(device)}, {given.repeats} turns"
    header = [title, CLOCK_NAMES[quiet_timer(device).clock], "quartiles"]
    write_parts(DOCUMENT, {"cost": markdown_table(header, rows(times))})


def measured(configs: Sequence[Config], tasks: DataManager, device: torch.device, repeats: int) -> list[list[float]]:
    """Seconds of every turn, for each configuration, forwards and backwards by turns."""
    times: list[list[float]] = [[] for _ in configs]
    for turn in range(repeats):
        for place in range(len(configs))[:: -1 if turn % 2 else 1]:
            times[place].append(seconds(configs[place], tasks, device))
    return times


def seconds(config: Config, tasks: DataManager, device: torch.device) -> float:
    """What training, evaluation and readouts of all tasks take."""
    learner = get_model(Setup(config, config.seed[0], device, tasks.nb_classes))

    def whole() -> None:
        for _ in range(tasks.nb_tasks):
            learner.incremental_train(tasks)
            learner.read_out(learner.report_task())
            learner.after_task()

    return quiet_timer(device)(whole)


def rows(times: Sequence[Sequence[float]]) -> list[list[str]]:
    """A line for each of `CHOICES`, given the seconds of every turn."""
    found = []
    for names, taken in zip(CHOICES, times, strict=True):
        ratios = [one / without for one, without in zip(taken, times[0], strict=True)]
        low, middle, high = quantiles(ratios, method="inclusive")
        found.append([", ".join(names) or "none", f"{middle:.3f}", f"{low:.3f} to {high:.3f}" if names else ""])
    return found


if __name__ == "__main__":
    run_command(main)
