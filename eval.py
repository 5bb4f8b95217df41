"""Evaluate a checkpoint with the network, metrics and table of the trainer."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import Setup, get_model
from trainer import make_tasks
from utils.config.schema import Config
from utils.data.loader import warn_of_workers
from utils.data.sources import load_dataset
from utils.data.tasks import DataManager
from utils.devices import check_compiler, prepare_device
from utils.inc_net import check_backbone
from utils.metrics import AccuracyMatrix, format_table
from utils.runs.checkpoint import CheckpointError

logger = logging.getLogger(__name__)


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate a checkpoint on the test images of all its classes.

    Returns:
        Accuracy and the measures of the accuracy matrix, whose last row is new. The earlier rows are those of the
        checkpoint; one of the public implementation has none.

    Raises:
        UserError: Device, data, backbone or checkpoint are missing or invalid.
    """
    device = prepare_device(config.device, config.num_threads, config.deterministic)
    check_backbone(config)
    if config.compile:
        check_compiler(device)
    warn_of_workers(config.num_workers)
    tasks = make_tasks(config, load_dataset(config.dataset, Path(config.data_root), config.on_bad_image))
    once = config.model_copy(update={"eval_cache_gib": 0.0})  # there is no later evaluation
    learner = get_model(Setup(once, config.seed[0], device, tasks.nb_classes))
    meta = learner.load_checkpoint(str(config.checkpt_path))
    if meta:
        refuse_other_tasks(meta, tasks)
    else:
        learner.begin_after([tasks.get_task_size(task) for task in range(tasks.nb_tasks)])
    learner.begin_test(tasks)
    accuracy, predictions = learner.eval_task()
    matrix = AccuracyMatrix.from_json(meta["accuracy"]).without_last() if meta else AccuracyMatrix()
    try:
        matrix.add_row(predictions.top1, predictions.labels, learner.task_sizes)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint has accuracies of other tasks or test images: {error}") from None
    print(format_table(matrix))
    return {"accuracy": accuracy, **matrix.summary()}


def refuse_other_tasks(meta: Mapping[str, Any], tasks: DataManager) -> None:
    """Raise CheckpointError if the checkpoint was trained on other tasks, or does not say on which."""
    if missing := [key for key in ("task_sizes", "class_order", "accuracy", "backbone") if meta.get(key) is None]:
        raise CheckpointError(f"the checkpoint has no {', '.join(missing)}, which a checkpoint of a run has")
    if meta["class_order"] != tasks.class_order:
        raise CheckpointError(
            "the checkpoint was trained with another class order: dataset, shuffle, class_order_seed or seed differ"
        )
    if sum(meta["task_sizes"]) > tasks.nb_classes:
        raise CheckpointError(f"the checkpoint knows {sum(meta['task_sizes'])} classes, there are {tasks.nb_classes}")
