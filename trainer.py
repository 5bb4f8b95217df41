"""One training run per seed: data, learner, tasks, evaluation, files. The only file that knows the order of a run."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from models import get_model
from models.base import EventSink
from models.sema import Learner
from utils.audit import judge, refuse_failed
from utils.config import Config
from utils.data import ImageData, load_dataset
from utils.data_manager import DataManager
from utils.devices import device_name, prepare_device
from utils.metrics import AccuracyMatrix, format_table
from utils.param_groups import check_interval, steps_of
from utils.runlog import RunLog, refuse_finished, run_name

logger = logging.getLogger(__name__)


def train(config: Config, name: str) -> None:
    """Train every seed of a configuration, each in a run directory of its own.

    Args:
        config: Validated.
        name: The configuration's name, which begins the directories' names.

    Raises:
        UserError: Device, data, backbone or output directory do not work out; before any training.
    """
    device = prepare_device(config.device, config.num_threads)
    names = {seed: run_name(config, name, seed) for seed in config.seed}
    refuse_finished(config.output_dir, names.values(), config.overwrite)
    data = load_dataset(config.dataset, Path(config.data_root), config.on_bad_image)
    for seed, run in names.items():
        train_seed(config.model_copy(update={"seed": [seed]}), run, data, device)


def train_seed(config: Config, run: str, data: ImageData, device: torch.device) -> None:
    """Train one seed and write its run directory."""
    tasks = make_tasks(config, data)
    check_steps(config, tasks)
    learner = get_model(config.model_name, learner_args(config, tasks, device))
    with RunLog.create(Path(config.output_dir), run, config.overwrite) as log:
        learner.events = audited(log, config)
        log.write_config(config.model_dump(mode="json"))
        log.write_environment(device_name(device), learner.provenance)
        logger.info("%s", data.summary)
        logger.info("device %s, backbone %s", device, learner.provenance["backbone"])
        log.results(Run(config, tasks, learner, log).to_end())


def audited(log: RunLog, config: Config) -> EventSink:
    """Where a run's events go: into its directory, the cadence of slow judged by the configuration the run was given.

    The learner's own copy of the configuration is not asked: a key that does not reach it is one of the faults sought.
    """

    def sink(kind: str, **fields: Any) -> None:
        if kind != "cadence":
            return log.event(kind, **fields)
        judged = judge(fields, config)
        log.event(kind, **judged)
        refuse_failed(judged)

    return sink


def make_tasks(config: Config, data: ImageData) -> DataManager:
    """The configuration's sequence of tasks over a data set."""
    return DataManager(
        data,
        shuffle=config.shuffle,
        seed=config.seed[0],
        init_cls=config.init_cls,
        increment=config.increment,
        max_tasks=config.max_tasks,
    )


def learner_args(config: Config, tasks: DataManager, device: torch.device) -> dict[str, Any]:
    """What a learner is made of: the configuration, one seed, one device, the head's size."""
    return {**config.model_dump(), "seed": config.seed[0], "device": [device], "nb_classes": tasks.nb_classes}


def check_steps(config: Config, tasks: DataManager) -> None:
    """Refuse, before anything trains, a slow interval longer than some task's func phase.

    Raises:
        ConfigError: Names the interval, the task and its number of steps.
    """
    if config.ffn_adapter_type != "nested_lora":
        return
    for task in range(tasks.nb_tasks):
        steps = steps_of(tasks.train_images(task), config.batch_size, config.func_epoch)
        check_interval(config.nested_lora_update_interval_slow, steps, task)


class Run:
    """A run in progress: what is measured after every task."""

    def __init__(self, config: Config, tasks: DataManager, learner: Learner, log: RunLog) -> None:
        self.config, self.tasks, self.learner, self.log = config, tasks, learner, log
        self.matrix = AccuracyMatrix()
        self.branches: dict[str, AccuracyMatrix] = {}
        self.per_task: list[dict[str, Any]] = []
        self.seconds: list[float] = []

    def to_end(self) -> dict[str, Any]:
        """Learn all tasks; what results.json holds."""
        for task in range(self.tasks.nb_tasks):
            started = time.perf_counter()
            self._one_task(task)
            self.seconds.append(time.perf_counter() - started)
        logger.info("finished; accuracy per task, per cent\n%s", format_table(self.matrix))
        return {
            "accuracy": self.matrix.to_json(),
            **self.matrix.summary(),
            "tasks": self.per_task,
            "branches": {name: matrix.to_json() for name, matrix in self.branches.items()},
            "run": {"seconds_per_task": self.seconds},
        }

    def _one_task(self, task: int) -> None:
        self.learner.incremental_train(self.tasks)
        accuracy, predictions = self.learner.eval_and_report_router()
        self.matrix.add_row(predictions.top1, predictions.labels, self.learner.task_sizes)
        for name, alone in self.learner.report_branches("after_task", predictions).items():
            self.branches.setdefault(name, AccuracyMatrix()).add_row(alone.top1, alone.labels, self.learner.task_sizes)
        state = {"task": task, "accuracy": accuracy, **self.learner.structure()}
        self.per_task.append(state)
        self.log.event("task", **state, **self.matrix.summary())
        self.learner.save_checkpoint(self.log.path / "checkpoints" / f"task_{task}.safetensors", self._meta())
        self.learner.after_task()
        logger.info("task %d: top-1 %.2f, top-5 %.2f, %s", task, accuracy["top1"], accuracy["top5"], _sizes(state))
        if task + 1 < self.tasks.nb_tasks:
            logger.info("accuracy per task so far, per cent\n%s", format_table(self.matrix))

    def _meta(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "class_order": self.tasks.class_order,
            "accuracy": self.matrix.to_json(),
        }


def _sizes(state: dict[str, Any]) -> str:
    counts = state["parameters"]
    return (
        f"adapters per block {'-'.join(map(str, state['adapters']))}, {counts['total'] - counts['backbone']} parameters"
    )
