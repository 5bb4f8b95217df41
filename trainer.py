"""Train one run per seed. This is the only module that knows the order of a run."""

import logging
import shlex
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
import torch

from backbone.sema_components import LEAST_RECORDS
from models import Hooks, Setup, TaskLearner, get_model
from models.estimate import estimate
from models.protocol import Predictions, Report
from utils.choices import ADAPTERS, PLUGINS
from utils.config.identity import content, digest, expands, on_record, trains_adapters, without_idle_keys
from utils.config.schema import Config
from utils.data.loader import warn_of_workers
from utils.data.record import FINISHED, accept_changes, fingerprints, refuse_other_data, write_record
from utils.data.sources import ImageData, Part, load_dataset
from utils.data.tasks import DataManager
from utils.data.validation import with_validation
from utils.devices import check_compiler, device_record, prepare_device
from utils.errors import DataError, DivergenceError, StoppedError
from utils.files import plain
from utils.inc_net import check_backbone
from utils.metrics import (
    AccuracyMatrix,
    class_legend,
    effect_of_adapters,
    format_table,
    grouped_accuracy,
    readout_lines,
    without_adapters,
)
from utils.readouts import PREFIX
from utils.runs.checkpoint_meta import CheckpointError
from utils.runs.directory import STATES, RunPlan, finished_runs, plan_runs
from utils.runs.events import Cadence, Event, EventSink, Phase, Readouts, Task
from utils.runs.forecast import Forecast
from utils.runs.log import RunClock, RunLog
from utils.runs.predictions import (
    OFF,
    WHOLE,
    Mistake,
    confident_mistakes,
    predictions_file,
    save_mistakes,
    save_predictions,
)
from utils.runs.states import SavedStates, StateError
from utils.runs.tracking import require_trackers, tracked
from utils.stopping import StateKeeper, StopRequest, stop_requests
from utils.text import listed
from utils.timescales.gate import check_intervals, steps_of
from utils.timescales.judge import judge, refuse_failed, refuse_other_rates
from utils.timescales.scales import GATED

logger = logging.getLogger(__name__)

START_AGAIN = "the run cannot continue with other ones; restore them, or start a new run with --overwrite"
SOME_TASKS = (
    "branch_eval was changed within the run: results.json gets no accuracies by branch, as they are not of all tasks; "
    "metrics.jsonl has those that were measured"
)
ON_VALIDATION = "evaluate_on = val: all accuracies are of the validation images; no test image is scored"
OTHER_SEEDS = "to train the other seeds, repeat the command with --auto_resume"


def train(config: Config, name: str) -> None:
    """Train every seed of a configuration, each in its own run directory, whose name begins with `name`.

    Raises:
        UserError: Device, data, backbone or output directory are missing or invalid; before any training.
        DivergenceError: Training of a seed diverged, after the other seeds.
        StoppedError: The process was asked to stop, and the run's state is saved.
    """
    require_trackers(config)
    device = prepare(config)
    plans = plan_runs(config, name)
    data = load_dataset(config.dataset, Path(config.data_root), config.on_bad_image)
    parts = {seed: with_validation(data, config.val_fraction, seed) for seed in config.seed}
    for plan in filter(lambda plan: plan.resumes, plans):
        refuse_other_data(plan.path, parts[plan.seed], config.accept_changed_data)
    for seed, own in parts.items() if config.auto_resume else ():
        for run in finished_runs(config.model_copy(update={"seed": [seed]})):
            refuse_other_data(run, own, config.accept_changed_data, FINISHED)
    acting = without_idle_keys(config)
    configs = {plan.seed: acting.model_copy(update={"seed": [plan.seed]}) for plan in plans}
    for seed, of_seed in configs.items():  # of all seeds, before the first of them trains
        checked_tasks(of_seed, parts[seed])
    if config.plan and plans:
        learner = dry_run(configs[plans[0].seed], plans[0], parts[plans[0].seed], device)
        print(estimate(learner, [make_tasks(configs[plan.seed], parts[plan.seed]) for plan in plans]))
        if any(plan.resumes for plan in plans):
            print("a run that is resumed is counted as a whole")
        return
    diverged: list[DivergenceError] = []
    for plan in plans:
        last = plan is plans[-1]
        if config.dry_run:
            dry_run(configs[plan.seed], plan, parts[plan.seed], device)
            continue
        try:
            asked = train_seed(configs[plan.seed], plan, parts[plan.seed], device)
        except DivergenceError as error:  # the other seeds are trained before it ends the command
            logger.error("seed %d: %s", plan.seed, error)
            diverged.append(error)
            continue
        except StoppedError as stopped:
            raise stopped if last else StoppedError(stopped.signal, f"{stopped}\n{OTHER_SEEDS}") from None
        if asked is not None and not last:
            raise StoppedError(asked, f"stopped by {asked.name}, seed {plan.seed} is finished\n{OTHER_SEEDS}")
    if diverged:
        raise diverged[0]


def prepare(config: Config) -> torch.device:
    """Return the device, and refuse before any data are read what this machine or timm cannot do."""
    device = prepare_device(config.device, config.num_threads, config.deterministic)
    check_backbone(config)
    if config.compile:
        check_compiler(device)
    warn_of_workers(config.num_workers)
    return device


def checked_tasks(config: Config, data: ImageData) -> DataManager:
    """Return the tasks of a configuration, and refuse an interval that is longer than a func phase."""
    tasks = make_tasks(config, data)
    branches = ADAPTERS[config.ffn_adapter_type].learning(config)
    for task in range(tasks.nb_tasks):
        steps = steps_of(tasks.nb_images("train", task), config.batch_size, config.func_epoch)
        check_intervals(config, steps, task, [scale for scale in GATED if scale.name in branches])
    return tasks


def warn_of_few_images(config: Config, tasks: DataManager) -> None:
    """Warn of the first task after which a layer could not expand any more, as a descriptor records too few losses."""
    if not expands(config):
        return
    adapter = ADAPTERS[config.ffn_adapter_type]
    refilled = (
        config.nested_lora_use_consolidation and bool(adapter.branches) and not adapter.preserves_function(config)
    )
    passes = 1 if refilled else config.rd_epoch
    for task in range(tasks.nb_tasks - 1):  # after the last one none expands
        images = tasks.nb_images("train", task)
        if images * passes < LEAST_RECORDS:
            least = (
                f"at least {-(-LEAST_RECORDS // passes)} images in each task" if passes else "rd_epoch of at least 1"
            )
            logger.warning(
                "task %d (%s) has %d training images; a descriptor records %d losses of them (%d passes), and z-scores "
                "are 0 with fewer than %d: a layer that gets an adapter in it never gets another one; expected %s",
                *(task, listed(tasks.names_of(task)), images, images * passes, passes, LEAST_RECORDS, least),
            )
            return


def images_of_tasks(tasks: DataManager) -> list[int]:
    """Return the number of training images of every task."""
    return [tasks.nb_images("train", task) for task in range(tasks.nb_tasks)]


def dry_run(config: Config, plan: RunPlan, data: ImageData, device: torch.device) -> TaskLearner:
    """Make the learner of a run, which checks the backbone and its weights, and print what would be done.

    With `precision` bf16 this says also what that gains or costs.
    """
    tasks = make_tasks(config, data)
    learner = get_model(Setup(config, config.seed[0], device, tasks.nb_classes), Hooks(folder=plan.path))
    notes = [note[1] if (note := learner.precision_note()) else "", learner.plan_views(images_of_tasks(tasks))]
    print("".join(f"{note}\n" for note in notes if note), end="")
    warn_of_few_images(config, tasks)
    print(f"would {'resume' if plan.resumes else 'start'}: {plan.path}")
    return learner


def train_seed(config: Config, plan: RunPlan, data: ImageData, device: torch.device) -> Signals | None:
    """Train one seed; return the signal, if any, that asked to stop after the last step."""
    tasks = checked_tasks(config, data)
    hooks = Hooks()
    learner = get_model(Setup(config, config.seed[0], device, tasks.nb_classes, tasks.head_rows), hooks)
    hooks.folder = plan.path
    views = learner.plan_views(images_of_tasks(tasks))
    with RunLog.opened(plan) as log, stop_requests() as request:
        sizes = [tasks.get_task_size(task) for task in range(tasks.nb_tasks)]
        logger.info("%s\n%s", data.summary, class_legend(tasks.class_names, sizes))
        logger.info("device %s, backbone %s", device, learner.provenance["backbone"])
        if config.evaluate_on == "val":
            logger.info("%s", ON_VALIDATION)
        if note := learner.precision_note():
            logger.log(*note)
        if views:
            logger.info("%s", views)
        warn_of_few_images(config, tasks)
        run = Run(config, tasks, fingerprints(data), learner, log, request)
        if not run.resume(data):
            log.write_config(on_record(config))
            write_record(log.path, data)
            log.write_environment(device_record(device), {**learner.provenance, **plugins_on_record()})
        else:
            log.continue_environment(device_record(device))
        forecast = run.forecast()
        forecast.say()
        hooks.time_left = forecast.left
        with tracked(log, config) as record:
            hooks.events = audited(told(record, forecast), config)
            log.results(run.to_end())
        return request.signal


def plugins_on_record() -> dict[str, Any]:
    """Return the plug-ins of this process for the files of a run; empty if there are none."""
    return {"plugins": [plugin.record() for plugin in PLUGINS]} if PLUGINS else {}


def audited(record: EventSink, config: Config) -> EventSink:
    """Record events, and compare the cadence of every time scale with the configuration of the run.

    The learner's own copy of the configuration is not used, as it could differ.
    """

    def sink(event: Event) -> None:
        if isinstance(event, Phase):
            refuse_other_rates(event, config)
        judged = judge(event, config) if isinstance(event, Cadence) else event
        record(judged)
        if isinstance(judged, Cadence):
            refuse_failed(judged)

    return sink


def told(record: EventSink, forecast: Forecast) -> EventSink:
    """Record events, and tell the forecast of each."""

    def sink(event: Event) -> None:
        record(event)
        forecast.note(event)

    return sink


def make_tasks(config: Config, data: ImageData) -> DataManager:
    """Return the tasks of a configuration."""
    return DataManager(
        data,
        shuffle=config.shuffle,
        seed=config.seed[0] if config.class_order_seed is None else config.class_order_seed,
        init_cls=config.init_cls,
        increment=config.increment,
        max_tasks=config.max_tasks,
        class_order=config.class_order,
        tasks=config.tasks,
        transient=config.transient,
        leave_out=config.leave_out_transient,
    )


class Run:
    """A run in progress: the results of its tasks, and the state from which it can continue."""

    def __init__(
        self,
        config: Config,
        tasks: DataManager,
        images: Mapping[str, Any],
        learner: TaskLearner,
        log: RunLog,
        request: StopRequest,
    ) -> None:
        self.config, self.tasks, self.images, self.learner, self.log = config, tasks, images, learner, log
        self.matrix = self._no_rows()
        self.branches: dict[str, AccuracyMatrix] = {}
        self.readouts: dict[str, AccuracyMatrix] = {}
        self.validation = self._no_rows()
        self.per_task: list[dict[str, Any]] = []
        self.clock = RunClock()
        self.states = SavedStates(log.path / STATES)
        how = f"continue with: python main.py --resume {shlex.quote(str(log.path))}"
        self.keep = StateKeeper(config.checkpoint_every, self._save, request, how)
        learner.hooks.keep = self.keep

    def _no_rows(self) -> AccuracyMatrix:
        return AccuracyMatrix(transient=self.tasks.transient)

    def to_end(self) -> dict[str, Any]:
        """Learn all remaining tasks, and return the content of results.json."""
        while (task := len(self.per_task)) < self.tasks.nb_tasks:
            if self.learner.cur_task < task:
                self.learner.incremental_train(self.tasks)
            else:
                self.learner.continue_training(self.tasks)
            self._account_for(task)
            self.clock.end_task(self.learner.hooks.training.take())
            self.keep("task")
        table = "\n".join([self._tables(), *readout_lines(self.readouts)])
        logger.info("finished; accuracy per task, per cent\n%s", table)
        measured = self._measured()
        accuracy = measured.pop("accuracy")
        if validation := measured.pop("validation"):
            measured["validation"] = {"accuracy": validation, **self.validation.summary()}
        names: dict[str, Any] = {"evaluate_on": "val"} if self.config.evaluate_on == "val" else {}
        names["class_names"] = self.tasks.class_names
        return {"accuracy": accuracy, **self.matrix.summary(), **names, **measured, "run": self.clock.report()}

    def _measured(self) -> dict[str, Any]:
        return {
            "accuracy": self.matrix.to_json(),
            "tasks": self.per_task,
            "branches": {name: matrix.to_json() for name, matrix in self.branches.items()},
            "readouts": {label: matrix.to_json() | matrix.measures() for label, matrix in self.readouts.items()},
            "validation": self.validation.to_json() if self.validation.correct else None,
        }

    def _tables(self) -> str:
        """Return the accuracies on test images, and on validation images if there are any, as text."""
        if not self.validation.correct:
            return f"{'on validation images' * (self.config.evaluate_on == 'val')}\n{format_table(self.matrix)}".strip()
        return f"{format_table(self.matrix)}\non validation images\n{format_table(self.validation)}"

    def _account_for(self, task: int) -> None:
        """Evaluate a task that was just learned, and write its predictions, events and checkpoint."""
        report = Report(*self.learner.report_task())
        accuracy, predictions, branches, off, val = report
        self.matrix.add_row(predictions.top1, predictions.labels, self.learner.task_sizes)
        if task == 0 or branches.keys() == self.branches.keys():
            for name, alone in branches.items():
                matrix = self.branches.setdefault(name, self._no_rows())
                matrix.add_row(alone.top1, alone.labels, self.learner.task_sizes)
        else:
            logger.warning("%s", SOME_TASKS)
            self.branches = {}
        others = branches if off is None else {**branches, OFF: off}
        answers = {WHOLE: predictions.top1, **{name: alone.top1 for name, alone in others.items()}}
        answers |= {f"{PREFIX}{label}": top1 for label, top1 in self._read_out(task, report).items()}
        save_predictions(predictions_file(self.log.path, task), predictions.labels, answers, predictions.confidence)
        if task + 1 == self.tasks.nb_tasks:
            wrong = confident_mistakes(predictions.labels, predictions.top1, predictions.confidence)
            shown = self.tasks.thumbnails(range(sum(self.learner.task_sizes)), wrong, self.config.evaluate_on)
            save_mistakes(self.log.path, [Mistake(at, *image) for at, image in zip(wrong, shown, strict=True)])
        state = {"task": task, "accuracy": accuracy, **self.learner.structure()}
        if off is not None:
            state[OFF] = without_adapters(predictions.top1, off.top1, off.labels, self.learner.task_sizes)
        if val is not None:
            state["validation"] = self._validate(task, val)
        self.per_task.append(plain(state))
        self.learner.hooks.events(Task(**state, **self.matrix.summary()))
        meta = {
            "config": on_record(self.config),
            "class_order": self.tasks.class_order,
            "class_names": self.tasks.class_names,
            "data": self.images,
            "accuracy": self.matrix.to_json(),
            "readouts": {label: matrix.to_json() for label, matrix in self.readouts.items()},
            **plugins_on_record(),
        }
        self.learner.save_checkpoint(self._checkpoint(task), meta)
        self.learner.after_task()
        self._say(task, state)

    def _read_out(self, task: int, report: Report) -> dict[str, np.ndarray]:
        """Return the predictions of the readouts by label, and report and count their hits."""
        read, labels = self.learner.read_out(report), report.predictions.labels
        self.readouts = {label: self.readouts.get(label, self._no_rows()) for label in read}
        for label, top1 in read.items():
            self.readouts[label].add_row(top1, labels, self.learner.task_sizes)
        if read:
            hits = {label: matrix.correct[-1] or [] for label, matrix in self.readouts.items()}
            self.learner.hooks.events(Readouts(task=task, correct=hits))
        return read

    def _validate(self, task: int, val: Predictions) -> dict[str, Any]:
        """Count and write the predictions for the validation images; return their accuracies."""
        learned = self.learner.task_sizes
        self.validation.add_row(val.top1, val.labels, learned)
        save_predictions(predictions_file(self.log.path, task, "val"), val.labels, {WHOLE: val.top1}, val.confidence)
        grouped = grouped_accuracy(val.top1, val.labels, learned, sum(learned[:-1]))
        return {"grouped": grouped, "top1": grouped["total"]}

    def _say(self, task: int, state: Mapping[str, Any]) -> None:
        """Log what was measured after a task."""
        accuracy = state["accuracy"]
        adapters, counts = "-".join(map(str, state["adapters"])), state["parameters"]
        sizes = f"adapters per block {adapters}, {counts['total'] - counts['backbone']} parameters"
        # Of five classes or fewer the true one is always among the first five.
        top5 = f"top-5 {accuracy['top5']:.2f}, " if sum(self.learner.task_sizes) > 5 else ""
        images = "on validation images " if self.config.evaluate_on == "val" else ""
        logger.info("task %d: %stop-1 %.2f, %s%s", task, images, accuracy["top1"], top5, sizes)
        if "validation" in state:
            logger.info("task %d: on validation images top-1 %.2f", task, state["validation"]["top1"])
        if OFF in state and trains_adapters(self.config):
            logger.info("task %d: %s", task, effect_of_adapters(state[OFF]))
        for line in readout_lines(self.readouts):
            logger.info("task %d: %s", task, line)
        if task + 1 < self.tasks.nb_tasks:
            logger.info("accuracy per task so far, per cent\n%s", self._tables())

    def _checkpoint(self, task: int) -> Path:
        return self.log.path / "checkpoints" / f"task_{task}.safetensors"

    def _resume_readouts(self, matrices: Mapping[str, Any]) -> None:
        """Take the readouts after the tasks learned from the newest checkpoint, and their matrices from a state.

        They are not in the state, which is written after every epoch. Without the checkpoint they are left out.
        """
        learned = len(self.per_task)
        self.readouts = {label: AccuracyMatrix.from_json(values) for label, values in matrices.items()}
        if not learned or not self.config.readouts:
            return
        try:
            self.learner.load_readouts(self._checkpoint(learned - 1))
        except CheckpointError as error:
            logger.warning("%s", error)
            self.readouts = {}
        if missing := [name for name in self.config.readouts if name not in self.readouts]:
            logger.warning("readouts = %s: left out, as they are not known of the tasks learned", listed(missing))

    def _resume_statistics(self) -> None:
        """Let the learner take what it needs of the newest checkpoint; StateError if it cannot."""
        if learned := len(self.per_task):
            try:
                self.learner.load_statistics(self._checkpoint(learned - 1))
            except CheckpointError as error:
                raise StateError(f"{error}; --overwrite starts the run again") from None

    def resume(self, data: ImageData) -> bool:
        """Restore the newest state that can be used; return whether there was one.

        Raises:
            StateError: There are states, but none can be used.
            DataError: Images changed in a way that the run cannot continue with.
        """
        state = self.states.newest(self._check)
        if state is None:
            if self.states:
                raise StateError(f"{self.states.folder}: no state can be used; --overwrite starts the run again")
            return False
        self.learner.restore(state["learner"])  # first, as it may raise, and then nothing may have changed
        self.matrix = AccuracyMatrix.from_json(state["accuracy"])
        self.branches = {name: AccuracyMatrix.from_json(values) for name, values in state["branches"].items()}
        self.validation = AccuracyMatrix.from_json(state["validation"]) if state.get("validation") else self._no_rows()
        self.per_task = state["tasks"]
        self._resume_statistics()
        self._resume_readouts(state.get("readouts", {}))
        self.clock, self.learner.hooks.training.seconds = RunClock.restore(state["clock"])
        self._accept_changes(data)
        self.log.forget_events_after(state["events"])
        logger.info("continues in %s", self.learner.where())
        return True

    def forecast(self) -> Forecast:
        """Return an estimate of the time left that begins at the tasks that are done."""
        seen, epochs = self.learner.images_of(images_of_tasks(self.tasks)), self.learner.epochs
        return Forecast(seen, epochs, lambda: self.clock.seconds, len(self.per_task))

    def _accept_changes(self, data: ImageData) -> None:
        """Take other images than those on record; the configuration allows it, or there are none."""
        changes = refuse_other_data(self.log.path, data, self.config.accept_changed_data)
        if not changes:
            return
        task, learned = self.learner.cur_task, len(self.per_task)
        numbers: dict[Part, AccuracyMatrix] = {"val": self.validation, self.config.evaluate_on: self.matrix}
        for part, matrix in numbers.items():
            if [self.tasks.nb_images(part, done) for done in range(len(matrix.count))] != matrix.count:
                what = "validation" if part == "val" else part
                raise DataError(f"the numbers of {what} images of tasks 0 to {learned - 1} changed; {START_AGAIN}")
        begun = set(self.tasks.names_of(task)) if task == learned else set()
        if any(name in begun for _, name, _ in chain(*changes.of("train"))):
            raise DataError(f"training images of task {task}, which has begun, changed; {START_AGAIN}")
        accept_changes(self.log.path, data, changes, learned)

    @property
    def _name(self) -> str:
        """Identifies the run independently of its directory."""
        return f"{digest(content(self.config.model_dump(mode='json')))}-s{self.config.seed[0]}"

    def _check(self, state: dict[str, Any]) -> None:
        if state["run"] != self._name:
            raise StateError(f"of another run, {state['run']}, where this one is {self._name}")
        if state["events"] > self.log.events_written():
            raise StateError("its events are missing from the metrics")

    def _save(self) -> None:
        training = self.learner.hooks.training
        with training.paused():
            clock, events = self.clock.state(training.seconds), self.log.events_written()
            state = {"run": self._name, "learner": self.learner.state(), "clock": clock, "events": events}
            self.states.save({**state, **self._measured()})
