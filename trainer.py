"""One training run per seed: data, learner, tasks, evaluation, files. The only file that knows the order of a run."""

import logging
import shlex
from pathlib import Path
from signal import Signals
from typing import Any

import torch

from models import Hooks, Setup, TaskLearner, get_model
from utils.choices import ADAPTERS, PLUGINS
from utils.config.identity import result_hash
from utils.config.schema import Config
from utils.data.sources import ImageData, load_dataset
from utils.data.tasks import DataManager
from utils.devices import device_name, prepare_device
from utils.errors import StoppedError
from utils.files import plain
from utils.metrics import AccuracyMatrix, format_table
from utils.runs.directory import STATES, RunPlan, plan_runs
from utils.runs.events import Cadence, Event, EventSink, Phase, Task
from utils.runs.log import RunClock, RunLog
from utils.runs.predictions import WHOLE, predictions_file, save_predictions
from utils.runs.states import SavedStates, StateError
from utils.runs.tracking import require_trackers, tracked
from utils.stopping import StateKeeper, StopRequest, stop_requests
from utils.timescales.gate import check_intervals, steps_of
from utils.timescales.judge import judge, refuse_failed, refuse_other_rates
from utils.timescales.scales import GATED

logger = logging.getLogger(__name__)

WITH_THE_OTHERS = "for the other seeds as well, give the same command again with --auto_resume"


def train(config: Config, name: str) -> None:
    """Train every seed of a configuration, each in a run directory of its own.

    Args:
        config: Validated.
        name: The configuration's name, which begins the directories' names.

    Raises:
        UserError: Device, data, backbone or output directory do not work out; before any training.
        StoppedError: The process was asked to stop; the run's state is saved.
    """
    require_trackers(config)
    device = prepare_device(config.device, config.num_threads, config.deterministic)
    plans = plan_runs(config, name)
    data = load_dataset(config.dataset, Path(config.data_root), config.on_bad_image)
    for plan in plans:
        last = plan is plans[-1]
        try:
            asked = train_seed(config.model_copy(update={"seed": [plan.seed]}), plan, data, device)
        except StoppedError as stopped:
            raise stopped if last else StoppedError(stopped.signal, f"{stopped}\n{WITH_THE_OTHERS}") from None
        if asked is not None and not last:
            raise StoppedError(asked, f"stopped by {asked.name}, seed {plan.seed} is finished\n{WITH_THE_OTHERS}")


def train_seed(config: Config, plan: RunPlan, data: ImageData, device: torch.device) -> Signals | None:
    """Train one seed and write its run directory; the signal that asked to stop when there was nothing left to do."""
    tasks = make_tasks(config, data)
    check_steps(config, tasks)
    hooks = Hooks()
    learner = get_model(Setup(config, config.seed[0], device, tasks.nb_classes), hooks)
    with RunLog.opened(plan) as log, stop_requests() as request:
        logger.info("%s", data.summary)
        logger.info("device %s, backbone %s", device, learner.provenance["backbone"])
        run = Run(config, tasks, learner, log, request)
        if not run.resume():
            log.write_config(config.model_dump(mode="json"))
            log.write_environment(device_name(device), {**learner.provenance, **plugins_on_record()})
        with tracked(log, config) as record:
            hooks.events = audited(record, config)
            log.results(run.to_end())
        return request.signal


def plugins_on_record() -> dict[str, Any]:
    """The user's own files that this process has loaded, for a run's files; empty without any."""
    return {"plugins": [plugin.record() for plugin in PLUGINS]} if PLUGINS else {}


def audited(record: EventSink, config: Config) -> EventSink:
    """Where a run's events go: on record, the cadence of every time scale judged by the run's configuration.

    The learner's own copy of the configuration is not asked: a key that does not reach it is one of the faults sought.
    """

    def sink(event: Event) -> None:
        if isinstance(event, Phase):
            refuse_other_rates(event, config)
        judged = judge(event, config) if isinstance(event, Cadence) else event
        record(judged)
        if isinstance(judged, Cadence):
            refuse_failed(judged)

    return sink


def make_tasks(config: Config, data: ImageData) -> DataManager:
    """The configuration's sequence of tasks over a data set."""
    return DataManager(
        data,
        shuffle=config.shuffle,
        seed=config.seed[0] if config.class_order_seed is None else config.class_order_seed,
        init_cls=config.init_cls,
        increment=config.increment,
        max_tasks=config.max_tasks,
    )


def check_steps(config: Config, tasks: DataManager) -> None:
    """Refuse, before anything trains, an interval of a time scale that is longer than some task's func phase.

    Raises:
        ConfigError: Names the interval, the task and its number of steps.
    """
    branches = ADAPTERS[config.ffn_adapter_type].branches
    for task in range(tasks.nb_tasks):
        steps = steps_of(tasks.train_images(task), config.batch_size, config.func_epoch)
        check_intervals(config, steps, task, [scale for scale in GATED if scale.name in branches])


class Run:
    """A run in progress: what is measured after every task, and the state from which it can go on."""

    def __init__(
        self, config: Config, tasks: DataManager, learner: TaskLearner, log: RunLog, request: StopRequest
    ) -> None:
        self.config, self.tasks, self.learner, self.log = config, tasks, learner, log
        self.matrix = AccuracyMatrix()
        self.branches: dict[str, AccuracyMatrix] = {}
        self.per_task: list[dict[str, Any]] = []
        self.clock = RunClock()
        self.states = SavedStates(log.path / STATES)
        how = f"go on with: python main.py --resume {shlex.quote(str(log.path))}"
        self.keep = StateKeeper(config.checkpoint_every, self._save, request, how)
        learner.hooks.keep = self.keep

    def to_end(self) -> dict[str, Any]:
        """Learn all tasks that are not learned yet; what results.json holds."""
        while (task := len(self.per_task)) < self.tasks.nb_tasks:
            if self.learner.cur_task < task:
                self.learner.incremental_train(self.tasks)
            else:
                self.learner.continue_training(self.tasks)
            self._account_for(task)
            self.clock.end_task()
            self.keep("task")
        logger.info("finished; accuracy per task, per cent\n%s", format_table(self.matrix))
        return {
            "accuracy": self.matrix.to_json(),
            **self.matrix.summary(),
            "tasks": self.per_task,
            "branches": {name: matrix.to_json() for name, matrix in self.branches.items()},
            "run": self.clock.report(),
        }

    def _account_for(self, task: int) -> None:
        accuracy, predictions, branches = self.learner.report_task()
        self.matrix.add_row(predictions.top1, predictions.labels, self.learner.task_sizes)
        for name, alone in branches.items():
            self.branches.setdefault(name, AccuracyMatrix()).add_row(alone.top1, alone.labels, self.learner.task_sizes)
        answers = {WHOLE: predictions.top1, **{name: alone.top1 for name, alone in branches.items()}}
        save_predictions(predictions_file(self.log.path, task), predictions.labels, answers)
        state = {"task": task, "accuracy": accuracy, **self.learner.structure()}
        self.per_task.append(plain(state))
        self.learner.hooks.events(Task(**state, **self.matrix.summary()))
        self.learner.save_checkpoint(self.log.path / "checkpoints" / f"task_{task}.safetensors", self._meta())
        self.learner.after_task()
        logger.info("task %d: top-1 %.2f, top-5 %.2f, %s", task, accuracy["top1"], accuracy["top5"], _sizes(state))
        if task + 1 < self.tasks.nb_tasks:
            logger.info("accuracy per task so far, per cent\n%s", format_table(self.matrix))

    # ---- the state between two processes

    def resume(self) -> bool:
        """Go on from the newest saved state that is whole; whether there was one.

        Raises:
            StateError: There are states, and none of them can be used.
        """
        state = self.states.newest(self._check)
        if state is not None:
            self._restore(state)
        elif self.states:
            raise StateError(f"{self.states.folder}: no state can be used; --overwrite begins the run anew")
        return state is not None

    @property
    def _name(self) -> str:
        """What tells the run from every other, wherever its directory is."""
        return f"{result_hash(self.config)}-s{self.config.seed[0]}"

    def _check(self, state: dict[str, Any]) -> None:
        if state["run"] != self._name:
            raise StateError(f"of another run, {state['run']}, where this one is {self._name}")
        if state["events"] > self.log.events_written():
            raise StateError("of a time whose events the metrics have lost")

    def _save(self) -> None:
        self.states.save(
            {
                "run": self._name,
                "learner": self.learner.state(),
                "accuracy": self.matrix.to_json(),
                "branches": {name: matrix.to_json() for name, matrix in self.branches.items()},
                "tasks": self.per_task,
                "clock": self.clock.state(),
                "events": self.log.events_written(),
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])  # first: it may refuse, and then nothing is to be changed
        self.log.forget_events_after(state["events"])
        self.matrix = AccuracyMatrix.from_json(state["accuracy"])
        self.branches = {name: AccuracyMatrix.from_json(values) for name, values in state["branches"].items()}
        self.per_task = state["tasks"]
        self.clock = RunClock.restore(state["clock"])
        logger.info("goes on in %s", self.learner.where())

    def _meta(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "class_order": self.tasks.class_order,
            "accuracy": self.matrix.to_json(),
            **plugins_on_record(),
        }


def _sizes(state: dict[str, Any]) -> str:
    counts = state["parameters"]
    return (
        f"adapters per block {'-'.join(map(str, state['adapters']))}, {counts['total'] - counts['backbone']} parameters"
    )
