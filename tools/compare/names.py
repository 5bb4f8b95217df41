"""The names of configurations: that of their file, or what differs between them, as in `rank 8, interval 5`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.finished.reader import Run
from utils.config.schema import defaults
from utils.text import shown

MOST_KEYS = 3  # in a name; with more, only those that are needed to tell the configurations apart
LONGEST_VALUE = 40  # characters
WORDS = {  # for keys that are not well said by their own words; "": the value alone
    **dict.fromkeys(("dataset", "model_name", "backbone_type", "ffn_adapter_type"), ""),
    "ffn_num": "bottleneck",
    "nested_lora_update_interval_slow": "interval",
    "nested_lora_train": "trained branches",
}
NULLS = {"nested_lora_train": "all branches trained"}  # null in words, where it does not mean that there is none

ABSENT: Any = object()  # stands for the value of a key that a configuration does not have


def differs(key: str, values: Sequence[Any]) -> bool:
    """Return whether a key has different values. One that is `ABSENT` differs from those that are not the default."""
    present = [value for value in values if value is not ABSENT]
    changed = len(present) < len(values) and present[0] != defaults().get(key, ABSENT)
    return changed or any(value != present[0] for value in present)


def configuration_names(runs: Sequence[Run]) -> list[str]:
    """Return a unique name for each configuration, given by one of its runs.

    It is the label of its directory. Configurations that share a label are called by the values of the keys that differ
    between them, after the label if there are others.
    """
    by_label: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        by_label.setdefault(run.label, []).append(number)
    names = [run.label for run in runs]
    for label, alike in by_label.items():
        texts = _differences([runs[number].identity for number in alike])
        before = f"{label}: " if len(by_label) > 1 else ""
        for number, text in zip(alike, texts, strict=True):
            names[number] = f"{before}{text}" if text else label
    return list(unique(names))


def _differences(identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the values of the keys that differ as a text for each configuration; empty if none does."""
    keys = list(dict.fromkeys(key for identity in identities for key in identity))
    parts = {key: [_part(key, identity) for identity in identities] for key in keys}
    needed = [
        key
        for key in keys
        if len(set(parts[key])) > 1 and differs(key, [identity.get(key, ABSENT) for identity in identities])
    ]
    if len(needed) > MOST_KEYS:
        for key in needed[::-1]:
            others = [other for other in needed if other != key]
            told = set(zip(*(parts[other] for other in others), strict=True))
            if len(told) == len(identities) and all(map(any, told)):
                needed = others
    return [", ".join(filter(None, (parts[key][number] for key in needed))) for number in range(len(identities))]


def _part(key: str, identity: Mapping[str, Any]) -> str:
    """Return a key and its value in words: `rank 8`, `consolidation`, `no consolidation`; empty without the key."""
    if key not in identity:
        return ""
    value, word = identity[key], WORDS.get(key, key.removeprefix("nested_lora_").removeprefix("use_").replace("_", " "))
    if value is None or isinstance(value, bool):
        return word if value else NULLS.get(key, f"no {word}")
    text = value if isinstance(value, str) else shown(value)
    return f"{word} {text if len(text) <= LONGEST_VALUE else f'{text[: LONGEST_VALUE - 1]}…'}".strip()


def unique(names: Iterable[str]) -> Iterable[str]:
    """Number the names that occur more than once."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"
