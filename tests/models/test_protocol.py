"""Every registered learner is what trainer.py and eval.py ask for: `TaskLearner`, read by inspection."""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from models import Setup, get_model
from models.protocol import Hooks, TaskLearner
from utils.choices import LEARNERS

ATTRIBUTES = set(get_type_hints(TaskLearner))
MEMBERS = {name for name in vars(TaskLearner) if not name.startswith("_")}
PROPERTIES = {name for name in MEMBERS if isinstance(vars(TaskLearner)[name], property)}
METHODS = MEMBERS - PROPERTIES


def shortcomings(learner: Any) -> list[str]:
    """What a learner lacks of the protocol."""
    found = [f"no {name}" for name in sorted(ATTRIBUTES | PROPERTIES | METHODS) if not hasattr(learner, name)]
    for name in METHODS:
        if hasattr(learner, name) and (reason := misfit(getattr(TaskLearner, name), getattr(learner, name))):
            found.append(f"{name}: {reason}")
    for name in PROPERTIES & set(dir(type(learner))):
        asked, given = (result_of(vars_of(owner, name).fget) for owner in (TaskLearner, type(learner)))
        if asked != given:
            found.append(f"{name} is {given}, not {asked}")
    return found


def vars_of(owner: type, name: str) -> Any:
    return inspect.getattr_static(owner, name)


def result_of(function: Callable[..., Any]) -> Any:
    return get_type_hints(function)["return"]


def misfit(declared: Callable[..., Any], method: Callable[..., Any]) -> str:
    """Why a bound method cannot be called as it is declared; empty if it can."""
    _, *parameters = inspect.signature(declared).parameters.values()
    by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    by_name = {p.name: p.name for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}
    signature = inspect.signature(method)
    try:
        bound = signature.bind(*by_position)
        signature.bind(*(name for name in by_position if name not in by_name), **by_name)
    except TypeError as error:
        return str(error)
    asked, given = get_type_hints(declared), get_type_hints(method)
    taken = dict(zip(by_position, bound.arguments, strict=False))
    for name in [*by_position, "return"]:
        mine = given.get(taken.get(name, name))
        if mine != asked[name]:
            return f"{name} is {mine}, not {asked[name]}"
    return ""


def test_the_protocol_says_what_there_is_to_fulfil() -> None:
    assert {"hooks", "cur_task", "task_sizes"} <= ATTRIBUTES
    assert "provenance" in PROPERTIES
    assert {"incremental_train", "restore", "load_checkpoint"} <= METHODS


@pytest.mark.parametrize("name", LEARNERS.names())
def test_every_registered_learner_fulfils_the_protocol(config, name: str) -> None:
    learner = get_model(Setup.of(config(model_name=name)))
    assert type(learner) is LEARNERS[name]
    assert shortcomings(learner) == []
    types = get_type_hints(TaskLearner)
    for attribute in ATTRIBUTES:
        assert isinstance(getattr(learner, attribute), getattr(types[attribute], "__origin__", types[attribute]))


# ---- the inspection itself finds what is wrong


class Wrong:
    """Wraps a learner, and spoils one of its members."""

    def __init__(self, learner: Any, lacks: str = "") -> None:
        self._learner, self._lacks = learner, lacks
        self.hooks, self.cur_task, self.task_sizes = Hooks(), -1, []

    def __getattr__(self, name: str) -> Any:
        if name == self._lacks:
            raise AttributeError(name)
        return getattr(self._learner, name)


@pytest.fixture
def learner(config) -> TaskLearner:
    return get_model(Setup.of(config()))


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_a_member_that_is_missing_is_found(learner: TaskLearner, name: str) -> None:
    assert shortcomings(Wrong(learner, lacks=name)) == [f"no {name}"]


class OneMore(Wrong):
    def restore(self, state, network): ...


class OneLess(Wrong):
    def restore(self): ...


class OtherResult(Wrong):
    def after_task(self) -> int: ...


class OtherArgument(Wrong):
    def begin_after(self, sizes: tuple[int, ...]) -> None: ...


class OtherProperty(Wrong):
    @property
    def provenance(self) -> str: ...


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (OneMore, "restore: missing a required argument: 'network'"),
        (OneLess, "restore: too many positional arguments"),
        (OtherResult, "after_task: return is <class 'int'>, not <class 'NoneType'>"),
        (OtherArgument, "begin_after: task_sizes is tuple[int, ...], not list[int]"),
        (OtherProperty, "provenance is <class 'str'>, not dict[str, typing.Any]"),
    ],
)
def test_a_member_that_does_not_fit_is_found(learner: TaskLearner, kind: type[Wrong], says: str) -> None:
    assert shortcomings(kind(learner)) == [says]


class Optional(Wrong):
    def state(self, short: bool = False) -> dict[str, Any]: ...


def test_a_further_argument_with_a_default_fits(learner: TaskLearner) -> None:
    assert shortcomings(Optional(learner)) == []
