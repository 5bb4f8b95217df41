"""The registry of learners."""

from collections.abc import Mapping
from typing import Any

from models.base import EventSink, no_events
from models.sema import Learner

LEARNERS: dict[str, type[Learner]] = {"sema": Learner}


def get_model(name: str, args: Mapping[str, Any], events: EventSink = no_events) -> Learner:
    """The learner of that name.

    Args:
        name: The key `model_name`, already validated.
        args: A complete configuration with `device` as a list of one torch.device, `seed` an int and `nb_classes`.
        events: Where the learner reports what happens.
    """
    return LEARNERS[name](args, events)
