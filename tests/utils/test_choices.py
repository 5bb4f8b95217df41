"""Names of a configuration and the classes behind them, and the user's own files that add names."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backbone.adapter import Adapter
from backbone.nested_lora import NestedLoRAAdapter
from backbone.registry import ADAPTERS, Registry
from models.sema import Learner
from utils import choices
from utils.choices import LEARNERS, PLUGINS, Plugin, load_plugin
from utils.errors import UserError

MINE = """
from backbone.adapter import FunctionalAdapter
from backbone.registry import ADAPTERS

@ADAPTERS.register("{name}")
class Mine(FunctionalAdapter):
    pass
"""

TWO_LEARNERS = """
from models.sema import Learner
from utils.choices import LEARNERS

for name in ("b", "a"):
    LEARNERS.register(name)(type(name, (Learner,), {"__module__": __name__}))
"""


@pytest.fixture
def registry() -> Registry:
    """One whose only shipped class is in a module that the tests make."""
    return Registry("animal", {"cat": "shipped_cat"})


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> Iterator[Registry]:
    """The module of the shipped class can be imported; it registers `cat`."""
    (tmp_path / "shipped_cat.py").write_text(
        "from __main__ import TESTED\n@TESTED.register('cat')\nclass Cat: pass\nIMPORTED = True\n"
    )
    monkeypatch.setattr(sys.modules["__main__"], "TESTED", registry, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield registry
    sys.modules.pop("shipped_cat", None)


@pytest.fixture
def as_before() -> Iterator[None]:
    """What a plug-in adds goes with the test."""
    kept = [(registry, dict(registry._classes), dict(registry._files)) for registry in choices.REGISTRIES.values()]
    plugins, modules = list(PLUGINS), set(sys.modules)
    yield
    for registry, classes, files in kept:
        registry._classes, registry._files = classes, files
    PLUGINS[:] = plugins
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path, as_before: None) -> Callable[..., Path]:
    def make(content: str, file: str = "mine.py") -> Path:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return make


# ---- the registry


def test_the_project_s_own_names_stand_for_their_classes() -> None:
    assert [ADAPTERS[name] for name in ("adaptmlp", "nested_lora")] == [Adapter, NestedLoRAAdapter]
    assert LEARNERS["sema"] is Learner
    assert (Adapter.kind, NestedLoRAAdapter.kind, Learner.kind) == ("adaptmlp", "nested_lora", "sema")


def test_a_class_is_imported_when_it_is_asked_for(shipped: Registry) -> None:
    assert shipped.names() == ["cat"]
    assert "cat" in shipped
    assert "shipped_cat" not in sys.modules
    assert shipped["cat"].__name__ == "Cat"
    assert shipped["cat"] is sys.modules["shipped_cat"].Cat


def test_a_class_is_registered_under_a_name_that_it_then_knows(registry: Registry) -> None:
    @registry.register("dog")
    class Dog:
        kind: str

    assert registry["dog"] is Dog
    assert Dog.kind == "dog"
    assert registry.names() == ["cat", "dog"]
    assert "dog" in registry


def test_an_unknown_name_lists_the_choices(registry: Registry) -> None:
    registry.register("dog")(type("Dog", (), {"__module__": __name__}))
    assert "lion" not in registry
    with pytest.raises(ValueError, match=r"^animal 'lion' is unknown; choose one of cat, dog$"):
        registry["lion"]


def test_the_same_file_may_register_a_name_again(registry: Registry) -> None:
    first, second = (type("Dog", (), {"__module__": __name__}) for _ in range(2))
    registry.register("dog")(first)
    registry.register("dog")(second)
    assert registry["dog"] is second


def test_a_name_of_the_project_s_own_cannot_be_taken_before_its_module_is_imported(shipped: Registry) -> None:
    with pytest.raises(ValueError, match=r"^animal 'cat' is registered by shipped_cat already; choose another name$"):
        shipped.register("cat")(type("Cat", (), {"__module__": __name__}))
    assert shipped["cat"] is sys.modules["shipped_cat"].Cat


# ---- plug-ins


def test_a_plug_in_adds_a_choice_and_is_on_record_with_its_hash(write: Callable[..., Path]) -> None:
    path = write(MINE.format(name="mine"))
    plugin = load_plugin(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert plugin == Plugin(path.resolve(), "mine.py", sha256, {"ffn_adapter_type": ["mine"]})
    assert PLUGINS[-1] == plugin
    assert "mine" in ADAPTERS.names()
    assert ADAPTERS["mine"].kind == "mine"


def test_a_plug_in_can_add_to_several_keys(write: Callable[..., Path]) -> None:
    learner = "from models.sema import Learner\nfrom utils.choices import LEARNERS\n"
    learner += (
        "for name in ('b', 'a'):\n    LEARNERS.register(name)(type(name, (Learner,), {'__module__': __name__}))\n"
    )
    plugin = load_plugin(write(MINE.format(name="mine") + learner))
    assert plugin.adds == {"ffn_adapter_type": ["mine"], "model_name": ["a", "b"]}


def test_the_same_plug_in_can_be_loaded_twice(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(MINE.format(name="mine"))
    monkeypatch.chdir(tmp_path)
    first = load_plugin(path)
    assert load_plugin(Path("mine.py")) == first
    assert PLUGINS.count(first) == 1


@pytest.mark.parametrize("other", ["other.py", "elsewhere/mine.py"])  # also two files of one name
def test_a_name_is_refused_to_a_second_file(write: Callable[..., Path], other: str) -> None:
    first, second = write(MINE.format(name="mine")), write(MINE.format(name="mine"), other)
    load_plugin(first)
    with pytest.raises(UserError) as refusal:
        load_plugin(second)
    assert str(refusal.value) == (
        f"--plugin {second}: ValueError: ffn_adapter_type 'mine' is registered by {first} already; choose another name"
    )


@pytest.mark.parametrize("name", ["adaptmlp", "nested_lora"])
def test_a_plug_in_cannot_take_a_name_of_the_project_s_own(write: Callable[..., Path], name: str) -> None:
    path, before = write(MINE.format(name=name)), ADAPTERS[name]
    with pytest.raises(UserError, match=f"ffn_adapter_type '{name}' is registered by backbone.* already"):
        load_plugin(path)
    assert ADAPTERS[name] is before


@pytest.mark.parametrize(
    ("content", "file", "says"),
    [
        ("1 / 0", "mine.py", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "mine.py", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("class", "mine.py", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("", "mine.py", "registers nothing; see docs/extending.md"),
        (MINE.format(name="mine"), "mine.txt", "expected a Python file, its name ending in .py"),
    ],
)
def test_what_is_wrong_with_a_plug_in_is_one_sentence(
    write: Callable[..., Path], content: str, file: str, says: str
) -> None:
    path, before = write(content, file), list(PLUGINS)
    with pytest.raises(UserError) as refusal:
        load_plugin(path)
    assert str(refusal.value) == f"--plugin {path}: {says}"
    assert before == PLUGINS


@pytest.mark.parametrize("name", ["none.py", "."])
def test_a_plug_in_that_is_no_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_plugin(tmp_path / name)
    assert str(refusal.value) == f"--plugin {tmp_path / name}: no such file"
