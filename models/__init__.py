"""Learners by name, what they are made of, and trained networks for new images."""

from models.base import Setup as Setup
from models.protocol import Hooks as Hooks
from models.protocol import TaskLearner as TaskLearner
from models.trained import load_run as load_run
from utils.choices import LEARNERS


def get_model(setup: Setup, hooks: Hooks | None = None) -> TaskLearner:
    """Return a new learner of the type that the key `model_name` names."""
    learner: TaskLearner = LEARNERS[setup.config.model_name](setup, hooks=hooks)
    return learner
