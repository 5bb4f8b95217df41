"""Evaluate a checkpoint with the network, metrics and table of the trainer; predict images with it, or export it."""

import csv
import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models import Setup, get_model
from models.export import export_model
from models.protocol import Report
from models.trained import ImagePredictions, TrainedModel
from trainer import make_tasks, prepare
from utils.config.schema import Config
from utils.data.record import ACCEPT, changes_of_run, fingerprints, refuse_other_classes, refuse_other_numbers
from utils.data.sources import ImageData, load_dataset
from utils.data.tasks import DataManager
from utils.devices import prepare_device
from utils.errors import ConfigError, DataError
from utils.metrics import (
    AccuracyMatrix,
    class_legend,
    effect_of_adapters,
    format_table,
    readout_lines,
    without_adapters,
)
from utils.runs.checkpoint_meta import CheckpointError, checkpoint_file, read_meta, refuse_other_preparation
from utils.text import shown, writable

logger = logging.getLogger(__name__)

ROUNDING = ("precision", "eval_cache_bf16")  # keys that may be changed for an evaluation, and change predictions


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate a checkpoint on the test images of all its classes.

    Returns:
        Accuracy and the measures of the accuracy matrix, whose last row is new. The earlier rows are those of the
        checkpoint; one of the public implementation has none, and those of other test images or another rounding are
        left out.

    Raises:
        UserError: Device, data, backbone or checkpoint are missing or invalid.
    """
    device = prepare(config)
    data = load_dataset(config.dataset, Path(config.data_root), config.on_bad_image)
    if data.left_out:
        logger.warning("%s", data.summary)
    tasks = make_tasks(config, data)
    file = checkpoint_file(Path(str(config.checkpt_path)))
    print(f"checkpoint {file}", file=sys.stderr)
    meta = read_meta(file)
    if meta:
        refuse_others(meta, config, tasks)
    changed = other_test_images(meta, file, data, config.accept_changed_data) or other_rounding(meta, config)
    if meta.get("config", {}).get("evaluate_on") == "val":
        logger.warning("the run scored validation images (evaluate_on); accuracies of earlier tasks are left out")
        changed = True
    # there is no later evaluation, and choices by validation images are over
    once = config.model_copy(update={"eval_cache_gib": 0.0, "evaluate_on": "test"})
    learner = get_model(Setup(once, config.seed[0], device, tasks.nb_classes))
    if note := learner.precision_note():
        logger.log(*note)
    learner.load_checkpoint(file)
    if not meta:
        learner.begin_after([tasks.get_task_size(task) for task in range(tasks.nb_tasks)])
    learner.begin_test(tasks)
    accuracy, predictions = learner.eval_task()
    alone = learner.predict_off()
    off = without_adapters(predictions.top1, alone.top1, predictions.labels, learner.task_sizes)
    comparable = meta and not changed  # otherwise the rows on record were measured on other images or in another way
    matrix = earlier(meta["accuracy"]) if comparable else AccuracyMatrix(transient=tasks.transient)
    readouts: dict[str, AccuracyMatrix] = {}
    try:
        matrix.add_row(predictions.top1, predictions.labels, learner.task_sizes)
        for label, top1 in learner.read_out(Report(accuracy, predictions, {}, alone)).items():
            known = meta.get("readouts", {}).get(label) if comparable else None
            readouts[label] = earlier(known) if known else AccuracyMatrix(transient=tasks.transient)
            readouts[label].add_row(top1, predictions.labels, learner.task_sizes)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint has accuracies of other tasks or test images: {error}") from None
    print(class_legend(tasks.class_names, learner.task_sizes))
    print(format_table(matrix))
    print(effect_of_adapters(off))
    print("".join(f"{line}\n" for line in readout_lines(readouts)), end="")
    read = {label: matrix.to_json() | matrix.measures() for label, matrix in readouts.items()}
    return {"accuracy": accuracy, **matrix.summary(), "adapters_off": off, "readouts": read}


def earlier(accuracy: object) -> AccuracyMatrix:
    """Return the rows of a checkpoint's accuracy matrix but the last one."""
    return AccuracyMatrix.from_json(accuracy).without_last()


def refuse_others(meta: Mapping[str, Any], config: Config, tasks: DataManager) -> None:
    """Raise CheckpointError if the checkpoint was trained on other tasks, or prepared in another way."""
    if missing := [key for key in ("task_sizes", "class_order", "accuracy", "backbone") if meta.get(key) is None]:
        raise CheckpointError(f"the checkpoint has no {', '.join(missing)}, which a checkpoint of a run has")
    refuse_other_preparation(meta, config.model_dump(mode="json"))
    if "class_names" in meta:
        refuse_other_classes("the checkpoint", meta["class_names"], tasks.class_names)
    if (trained := len(meta["class_order"])) != tasks.nb_classes:
        raise CheckpointError(
            f"the checkpoint was trained on a data set of {trained} classes, here are {tasks.nb_classes}"
        )
    if meta["class_order"] != tasks.class_order:
        raise CheckpointError(
            "the checkpoint was trained with another class order: dataset, seed or a key of the class order differ"
        )
    if "class_names" in meta:
        refuse_other_numbers("the checkpoint", meta["class_names"], tasks.class_names)
    if sum(meta["task_sizes"]) > tasks.nb_classes:
        raise CheckpointError(f"the checkpoint knows {sum(meta['task_sizes'])} classes, there are {tasks.nb_classes}")


def other_test_images(meta: Mapping[str, Any], checkpoint: Path, data: ImageData, accept: bool) -> bool:
    """Return whether the test images are not those of the checkpoint's run.

    Raises:
        DataError: They are not, and this is not accepted.
    """
    then, now = meta.get("data", {}).get("test"), fingerprints(data)["test"]
    if then is None or then == now:
        return False
    found = changes_of_run(checkpoint.parent.parent, data, "test")
    what = f"the test images are not those of the checkpoint: {then['images']} then, {now['images']} now"
    what += f": {found}" if found else ""
    if not accept:
        raise DataError(f"{what}; {ACCEPT}")
    logger.warning("%s; accuracies of earlier tasks are left out", what)
    return True


def other_rounding(meta: Mapping[str, Any], config: Config) -> bool:
    """Return whether predictions are rounded otherwise than in the checkpoint's run, and say so."""
    trained, now = meta.get("config", {}), config.model_dump(mode="json")
    other = [key for key in ROUNDING if key in trained and trained[key] != now[key]]
    for key in other:
        what = f"the run was evaluated with {key} = {shown(trained[key])}, this is with {shown(now[key])}"
        logger.warning("%s; accuracies of earlier tasks are left out", what)
    return bool(other)


def predict(config: Config, images: Sequence[Path]) -> None:
    """Print the most probable classes of some images on standard output; everything else goes to standard error.

    Raises:
        UserError: Device, backbone or checkpoint are missing or invalid, or an image cannot be read.
    """
    model = checkpointed(config)
    predictions = model.predict(images)
    print(f"images: {len(predictions)}, unreadable files left out: {predictions.left_out}", file=sys.stderr)
    print(FORMATS[config.predict_format](predictions, config.top_k, model))


def export(config: Config) -> None:
    """Write the network of a checkpoint to a file of its own.

    Raises:
        UserError: Device, backbone or checkpoint are missing or invalid, the file exists or cannot be written, or the
            network has no such form.
    """
    file = Path(str(config.export))
    if file.exists() and not config.overwrite:
        raise ConfigError(f"export = {file}: there is such a file; choose another name, or replace it with --overwrite")
    export_model(checkpointed(config), file, config.export_form)
    print(f"wrote {file}, {file.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)


def checkpointed(config: Config) -> TrainedModel:
    """Return the network of the key `checkpt_path`, and say which one it is."""
    prepare_device(config.device, config.num_threads, config.deterministic)
    model = TrainedModel(config, checkpoint_file(Path(str(config.checkpt_path))))
    print(model, file=sys.stderr)
    return model


def as_table(predictions: ImagePredictions, k: int, _: TrainedModel) -> str:
    """Return a table with probabilities in per cent."""
    return predictions.table(k)


def as_json(predictions: ImagePredictions, k: int, model: TrainedModel) -> str:
    """Return one JSON object. Probabilities have full precision."""
    images = [
        {
            "image": image,
            "top": [{"class": name, "label": label, "probability": value} for label, name, value in top],
        }
        for image, top in zip(predictions.images, predictions.top(k), strict=True)
    ]
    head = {"checkpoint": str(model.file), "classes": len(model.class_names), "left_out": predictions.left_out}
    return json.dumps({**head, "images": images}, indent=2)


def as_csv(predictions: ImagePredictions, k: int, _: TrainedModel) -> str:
    """Return a row for each image and class. Probabilities have full precision."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "rank", "class", "label", "probability"])
    for image, top in zip(predictions.images, predictions.top(k), strict=True):
        rows.writerows(
            [writable(image), rank, writable(name), label, value] for rank, (label, name, value) in enumerate(top, 1)
        )
    return text.getvalue().rstrip("\n")


FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}
