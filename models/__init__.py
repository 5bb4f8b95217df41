"""The registry of learners."""

from collections.abc import Mapping
from typing import Any

from models.sema import Learner

LEARNERS: dict[str, type[Learner]] = {"sema": Learner}


def get_model(name: str, args: Mapping[str, Any]) -> Learner:
    """The learner of that name.

    Args:
        name: The key `model_name`, already validated.
        args: A complete configuration with `device` as a list of one torch.device, `seed` an int and `nb_classes`.
    """
    return LEARNERS[name](args)
