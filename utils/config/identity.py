"""Which keys of a configuration can change a result, and the hash over these keys."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from utils.config.schema import Config, defaults, schemas
from utils.datasets import DATASETS


def counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that can change a result, with defaults filled in.

    The seed is not counted, as runs state it separately. `data_root` is counted if it alone determines the images. Keys
    that this version does not know are counted.
    """
    known = schemas()
    kept = {key: value for key, value in values.items() if known.get(key, {}).get("changes_results", True)}
    source = DATASETS.get(str(values.get("dataset")))
    if source is not None and not source.folder:
        kept["data_root"] = values.get("data_root")
    return {key: value for key, value in defaults().items() if known[key]["changes_results"]} | kept


def counted_digest(values: Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits over the keys of `counted`.

    This is BLAKE2b of the canonical JSON (sorted keys, no spaces) of the keys that differ from their default. A new key
    whose default keeps the old behaviour therefore does not change the hash of old configurations.
    """
    usual = defaults()
    kept = {key: value for key, value in counted(values).items() if key not in usual or usual[key] != value}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def result_hash(config: Config) -> str:
    """Return the hash in the name of a run directory."""
    return counted_digest(config.model_dump(mode="json"))
