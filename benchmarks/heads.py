"""Whether equal seeds pair: nested_lora, adaptmlp, and adaptmlp with the initial head of nested_lora.

    python -m benchmarks.heads [--seed 1993 1994 1995]

The quickstart files on three tasks, in which no layer gets a further adapter. The table goes into docs/sweeps.md. If
the last two columns differ, the adapter types start from different heads, and a difference between the first two is in
part one between heads.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.command import make_parser, run_command, write_parts
from models import Setup
from models.sema import Learner
from tools.generated import markdown_table
from trainer import make_tasks
from utils.config.load import load
from utils.data.sources import load_dataset
from utils.data.tasks import DataManager
from utils.devices import resolve_device

DOCUMENT = Path("docs/sweeps.md")
NESTED, PLAIN = "exps/quickstart.json", "exps/quickstart_adaptmlp.json"
KEYS: dict[str, Any] = {"max_tasks": 3, "exp_threshold": 1e9}
SEEDS = [1993, 1994, 1995, 1996, 1997]


def main(arguments: Sequence[str]) -> None:
    """Train everything and write the table."""
    parser = make_parser("heads", __doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=SEEDS)
    seeds = parser.parse_args(arguments).seed
    rows = [[str(seed), *(f"{value:.2f}" for value in row(seed))] for seed in seeds]
    header = ["seed", "nested_lora", "adaptmlp", "adaptmlp with the initial head of nested_lora"]
    write_parts(DOCUMENT, {"heads": markdown_table(header, rows)})


def row(seed: int) -> list[float]:
    """The average incremental accuracies of a seed, per cent."""
    nested, plain = (load(path, {**KEYS, "seed": [seed]}) for path in (NESTED, PLAIN))
    tasks = make_tasks(nested, load_dataset(nested.dataset, Path(nested.data_root)))
    device = resolve_device(nested.device)
    learners = [Learner(Setup(config, seed, device, tasks.nb_classes)) for config in (nested, plain, plain)]
    heads = [learner.network.fc for learner in learners]
    heads[-1].load_state_dict(heads[0].state_dict())
    return [average(learner, tasks) for learner in learners]


def average(learner: Learner, tasks: DataManager) -> float:
    """Train a learner on all tasks; its average incremental accuracy, per cent."""
    curve = []
    for _ in range(tasks.nb_tasks):
        learner.incremental_train(tasks)
        curve.append(float(learner.eval_task()[0]["top1"]))
        learner.after_task()
    return fmean(curve)


if __name__ == "__main__":
    run_command(main)
