"""What the adapters change in the answers of a configuration, which is said before its accuracies are compared."""

import math

from tools.compare.comparison import Comparison, Group
from tools.compare.measures import CHANGED, MEASURES
from utils.text import listed

TITLE = "What the adapters change"
LITTLE = 0.01  # share of the answers after the last task, mean over seeds
FROZEN = "of the head on frozen features"


def effect_of_adapters(comparison: Comparison) -> list[str]:
    """Return sentences on what the adapters of every configuration change, as far as it is on record."""
    none, equal, some = [], [], []
    for group in comparison.groups:
        share = group.spread(CHANGED).mean
        if all(run.changed and not any(changed != 0 for changed in run.changed) for run in group.runs):
            none.append(group.name)
        elif _equal_figures(group):
            equal.append(group.name)
        elif not math.isnan(share):
            some.append(
                f"The adapters of {group.name} change {100 * share:.2f} % of the answers on the {comparison.images} "
                f"after the last task (mean over seeds){_consequence(group, share)}"
            )
    every = f"on the {comparison.images}, after any task and with any seed"
    found = (
        [f"The adapters of {listed(none)} change no answer {every}: the accuracies are those {FROZEN}."] if none else []
    )
    if equal:
        found.append(f"The adapters of {listed(equal)} change no accuracy {every}: the accuracies are those {FROZEN}.")
    return found + some


def _consequence(group: Group, share: float) -> str:
    if share < LITTLE:
        return f": its last accuracy is that {FROZEN} to within {100 * share:.2f} points."
    by_key = {measure.key: 100 * group.spread(measure).mean for measure in MEASURES if measure.unit == "%"}
    on, off = by_key["last_acc"], by_key["last_acc_off"]
    return f". Its last accuracy is {on:.2f} %; with all adapters off the same head has {off:.2f} %."


def _equal_figures(group: Group) -> bool:
    """Return whether accuracies on and off are equal; of earlier versions, the answers themselves are not known."""
    unknown = any(None in run.changed for run in group.runs)
    return unknown and all(run.off.correct == run.matrix.correct for run in group.runs)
