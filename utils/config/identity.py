"""Which keys of a configuration can change a result, and the hash over these keys."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.schema import Config, defaults, schemas
from utils.datasets import DATASETS

LOCATIONS = ("data_root", "backbone_checkpoint")  # what lies there is compared by its content, see utils.data.record


def counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that can change a result, with defaults filled in.

    The seed is not counted, as runs state it separately. Data and weights count by the last name of their path, so that
    their folder can be moved; data only if `data_root` alone determines the images. Keys that this version does not
    know are counted.
    """
    kept = _counted(values)
    return kept | {key: _last_name(kept[key]) for key in LOCATIONS if key in kept}


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
    """Return the configuration for the files of a run, with absolute paths, so that it holds in any folder."""
    values = config.model_dump(mode="json")
    paths = [key for key, schema in schemas().items() if _is_path(schema) and values[key] is not None]
    return values | {key: os.path.abspath(values[key]) for key in paths}


def _is_path(schema: Mapping[str, Any]) -> bool:
    return any(part.get("format") == "path" for part in schema.get("anyOf", [schema]))


def _last_name(path: object) -> object:
    return Path(path).absolute().name if isinstance(path, str) else path


def digest(values: Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits over keys such as those of `counted`.

    This is BLAKE2b of the canonical JSON (sorted keys, no spaces) of the keys that differ from their default. A new key
    whose default keeps the old behaviour therefore does not change the hash of old configurations.
    """
    usual = defaults()
    kept = {key: value for key, value in values.items() if key not in usual or usual[key] != value}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def counted_digest(values: Mapping[str, Any]) -> str:
    """Return the digest of the keys of `counted`."""
    return digest(counted(values))


def digests(values: Mapping[str, Any]) -> tuple[str, str]:
    """Return `counted_digest`, and the one of earlier versions, which counted the whole paths of data and weights."""
    return counted_digest(values), digest(_counted(values))


def result_hash(config: Config) -> str:
    """Return the hash in the name of a run directory."""
    return counted_digest(config.model_dump(mode="json"))
