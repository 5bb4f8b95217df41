"""Measure what watching costs: telemetry as a share of training, and the branch scores as a share of a run.

    python -m benchmarks.telemetry [--config exps/quickstart.json] [--repeats 12] [--output_dir logs/telemetry]

Trains the func phase of task 0 again and again in one process: without telemetry, at the default interval (once an
epoch) and at every step, in turn. What counts is the ratio within a turn, as a busy machine hits neighbours alike, and
of the turns' ratios the median. A step from kept views is timed by itself, with and without all that a run notes of it.
For the branch scores one whole run is made, unless it is there. The tables go into docs/telemetry.md.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles

import torch

from backbone.vit_sema import SUFFIX
from benchmarks.command import make_parser, run_command, write_parts
from benchmarks.measure import CLOCK_NAMES, Work, best_of, quiet_timer
from benchmarks.quickstart import runs_of
from benchmarks.workloads import Setting, Workshop, at_expansion, begun, from_view
from models import Hooks, Setup, get_model
from models.gradients import Gradients
from models.losses import Loss
from models.phase import Phase, PhaseTrainer
from models.sema import Learner
from tools.generated import markdown_table
from trainer import make_tasks
from utils.config.load import load
from utils.config.schema import Config
from utils.data.loader import Batch
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
ALONE_STEP, NOTED, READ = "alone", "with gate, audit and sums", "with a reading of telemetry"
STEPS = 157  # of an epoch: 5,000 images in batches of 32
ALONE = {"rd_epoch": 0, "nested_lora_use_consolidation": False}  # what leaves of task 0 nothing but the func phase


def main(arguments: Sequence[str]) -> None:
    """Measure and write the tables."""
    parser = make_parser("telemetry", __doc__)
    parser.add_argument("--config", type=Path, default=Path("exps/quickstart.json"))
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--output_dir", default="logs/telemetry")
    given = parser.parse_args(arguments)
    parts = {
        "overhead": overhead_table(given.config, given.repeats),
        "steps": step_table(steps_timed(given.config, given.repeats)),
        "branches": branch_table(given.config, given.output_dir),
    }
    write_parts(DOCUMENT, parts)


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


# ---- a step


def steps_timed(path: Path, rounds: int, vit: str = "vit_base_patch16_224") -> dict[str, dict[str, float]]:
    """Seconds of `step_works` by network: a ViT-B/16 and that of a configuration, both in bfloat16 from kept views."""
    config = load(path)
    device = prepare_device(config.device, 1)
    name = config.backbone_type.removesuffix(SUFFIX)
    settings = [Setting(vit, 8, device), Setting(name, config.batch_size, device, config.backbone_kwargs)]
    titles = [f"{vit}, batch 8", f"{path.stem}, batch {config.batch_size}"]
    timer = quiet_timer(device)
    return {title: best_of(step_works(s), rounds, timer) for title, s in zip(titles, settings, strict=True)}


def step_works(setting: Setting) -> dict[str, Work]:
    """A func step alone, with what a run notes of every step, and with a reading of telemetry."""
    shop = Workshop(setting)

    def bare(phase: Phase, loss: Loss, batch: Batch) -> Work:
        gradients = Gradients(phase.optimizer, loss, len(batch[0]), record=None)
        return lambda: (gradients(batch), phase.optimizer.step())

    def noted(last: bool) -> Callable[[Learner, Phase, Loss, Batch], Work]:
        def make(learner: Learner, phase: Phase, loss: Loss, batch: Batch) -> Work:
            trainer = PhaseTrainer(phase, loss, learner.network, learner.train_loader, learner.config, Hooks())
            return lambda: trainer.train_batch(batch, last)

        return make

    def work(make: Callable[[Learner, Phase, Loss, Batch], Work]) -> Work:
        def prepared(learner: Learner, batch: Batch) -> Work:
            return make(learner, *begun(learner, "func"), batch)

        return shop.placed(at_expansion, from_view(prepared), "nested bf16 views")

    makes = {ALONE_STEP: lambda _, *rest: bare(*rest), NOTED: noted(last=False), READ: noted(last=True)}
    return {title: work(make) for title, make in makes.items()}


def step_table(times: Mapping[str, Mapping[str, float]], steps: int = STEPS) -> str:
    """Times of a step in units of one alone, and of all steps of an epoch with one reading."""
    rows = []
    for network, seconds in times.items():
        alone, noted, read = (seconds[title] / seconds[ALONE_STEP] for title in (ALONE_STEP, NOTED, READ))
        rows.append([network, *(f"{ratio:.3f}" for ratio in (alone, noted, read, noted + (read - noted) / steps))])
    header = ["a func step from kept views, bf16", ALONE_STEP, NOTED, READ, f"epoch of {steps} steps with one reading"]
    return markdown_table(header, rows)


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
