"""Which keys of a configuration can change a result, and the hash over these keys."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.choices import ADAPTERS, LEARNERS
from utils.config.schema import NESTED, OLD_NAMES, STATISTICS, Config, defaults, renamed, schemas
from utils.datasets import DATASETS
from utils.text import shown

TRAIN = "nested_lora_train"
LOCATIONS = ("data_root", "backbone_checkpoint")  # what lies there is compared by its content, see utils.data.record


def counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that can change a result, with defaults filled in; without those of `idle_keys`.

    The seed is not counted, as runs state it separately. Data and weights count by the last name of their path, so that
    their folder can be moved; data only if `data_root` alone determines the images. Keys that this version does not
    know are counted.
    """
    values = renamed(values)
    idle = idle_keys(values)
    return {key: value for key, value in _moved(_counted(values)).items() if key not in idle}


def idle_keys(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that have no effect in a configuration, each with the reason.

    Keys of another adapter type are among them, and keys that need another value of a second key. A learner of a
    plug-in may read every key, and an adapter type of a plug-in that is not loaded those that are in `values`.
    """
    full: dict[str, Any] = defaults() | dict(values)
    kind, learns, found = str(full["ffn_adapter_type"]), learner(full), {}
    for key, schema in schemas().items() if LEARNERS.ships(full["model_name"]) else ():
        owner = schema.get("owner", kind)
        if learns in schema.get("unread_by", ()):
            found[key] = f"the learner {learns} does not use it"
        elif not _has(kind, key, owner, key in values):
            found[key] = f"adapters of type {kind} do not have it"
        elif schema.get("of_branch") and full[TRAIN] and not set(key.split("_")) & set(full[TRAIN]):
            found[key] = f"{TRAIN} is {shown(full[TRAIN])}"
        elif kind == owner:
            for other, without in schema.get("idle_if", {}).items():
                if full[other] in without:
                    found[key] = f"{other} is {shown(full[other])}"
            for other in schema.get("idle_beside", ()):
                if full[other]:
                    found[key] = f"{other} is given"
    return found


def learner(values: Mapping[str, Any]) -> str:
    """Return the name of the learner as keys know it, which says whether its adapters learn in the first session."""
    adapts = values["model_name"] in STATISTICS and values["first_session_adaptation"]
    return f"{values['model_name']}{' with first_session_adaptation' if adapts else ''}"


def expands(config: Config) -> bool:
    """Return whether the learner of a configuration adds adapters, so that there are expandable layers."""
    return "adapt_start_layer" not in idle_keys(dict(config))


def trains_adapters(config: Config) -> bool:
    """Return whether the learner of a configuration trains adapters; those of another stay the zero map."""
    return "ffn_adapter_type" not in idle_keys(config.model_dump(mode="json"))


def _has(kind: str, key: str, owner: str, given: bool) -> bool:
    """Return whether an adapter type has a key that `owner` owns."""
    if owner == kind or ADAPTERS.ships(kind):
        return owner == kind
    if kind not in ADAPTERS:
        return given
    cls = ADAPTERS[kind]
    return key in (cls.width_key, *cls.keys) or (owner == NESTED and bool(cls.branches))


def without_idle_keys(config: Config) -> Config:
    """Return the configuration with the defaults of the keys that have no effect, so that nothing can read another."""
    usual = defaults()
    return config.model_copy(update={key: usual[key] for key in idle_keys(config.model_dump(mode="json"))})


def content(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `counted` without the places of data and weights, whose content is compared instead."""
    return {key: value for key, value in counted(values).items() if key not in LOCATIONS}


def _counted(values: Mapping[str, Any]) -> dict[str, Any]:
    known = schemas()
    kept = {key: value for key, value in values.items() if known.get(key, {}).get("changes_results", True)}
    source = DATASETS.get(str(values.get("dataset")))
    if source is not None and not source.folder:
        kept["data_root"] = values.get("data_root")
    return {key: value for key, value in defaults().items() if known[key]["changes_results"]} | kept


def on_record(config: Config) -> dict[str, Any]:
    """Return the keys with an effect for the files of a run, with absolute paths, so that they hold in any folder."""
    values = config.model_dump(mode="json")
    idle = idle_keys(values)
    values = {key: value for key, value in values.items() if key not in idle}
    paths = [key for key, schema in schemas().items() if _is_path(schema) and values.get(key) is not None]
    return values | {key: os.path.abspath(values[key]) for key in paths}


def _is_path(schema: Mapping[str, Any]) -> bool:
    return any(part.get("format") == "path" for part in schema.get("anyOf", [schema]))


def _moved(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, **{key: _last_name(values[key]) for key in LOCATIONS if key in values}}


def _last_name(path: object) -> object:
    return Path(path).absolute().name if isinstance(path, str) else path


def digest(values: Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits over keys such as those of `counted`.

    This is BLAKE2b of the canonical JSON (sorted keys, no spaces) of the keys that differ from their default. A new key
    whose default keeps the old behaviour therefore does not change the hash of old configurations, and a key with an
    old name counts under that.
    """
    usual, old = defaults(), {new: name for name, new in OLD_NAMES.items()}
    kept = {old.get(key, key): value for key, value in values.items() if key not in usual or usual[key] != value}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def counted_digest(values: Mapping[str, Any]) -> str:
    """Return the digest of the keys of `counted`."""
    return digest(counted(values))


def digests(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `counted_digest`, and those of earlier versions.

    They counted keys without effect, and before that the whole paths of data and weights.
    """
    every = _counted(renamed(values))
    return counted_digest(values), digest(_moved(every)), digest(every)


def result_hash(config: Config) -> str:
    """Return the hash in the name of a run directory."""
    return counted_digest(config.model_dump(mode="json"))
