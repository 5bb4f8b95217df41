"""Which keys of a configuration can change a result, and the digits by which equal computations are known."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from utils.config.schema import Config, defaults, schemas
from utils.datasets import DATASETS


def counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that can change a result, each with its value, defaults filled in.

    The seed, which a run states beside its configuration, does not count. `data_root` counts where it alone says which
    images are used. A key this version does not know counts.
    """
    known = schemas()
    kept = {key: value for key, value in values.items() if known.get(key, {}).get("changes_results", True)}
    source = DATASETS.get(str(values.get("dataset")))
    if source is not None and not source.folder:
        kept["data_root"] = values.get("data_root")
    return {key: value for key, value in defaults().items() if known[key]["changes_results"]} | kept


def counted_digest(values: Mapping[str, Any]) -> str:
    """8 hexadecimal digits over the keys that `counted` keeps, so that equal digits mean equal computations.

    BLAKE2b of the canonical JSON (sorted keys, no spaces) of those that are not at their default: a version with one
    more key, whose default is what was done before, gives an old configuration its old digits.
    """
    usual = defaults()
    kept = {key: value for key, value in counted(values).items() if key not in usual or usual[key] != value}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def result_hash(config: Config) -> str:
    """The hash in a run directory's name: `counted_digest` of its configuration."""
    return counted_digest(config.model_dump(mode="json"))
