"""Names and the classes they stand for."""

import subprocess
import sys

import pytest
from adapter_cases import Gain, registered

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.nested_lora import NestedLoRAAdapter
from backbone.registry import ADAPTERS, Registry


@pytest.fixture
def registry() -> Registry:
    return Registry("colour", {"textwrap": "textwrap"})


def test_the_projects_own_names_come_first(registry):
    registry.register("blue")(type("Blue", (), {}))
    assert registry.names() == ["textwrap", "blue"]
    assert ("blue" in registry, "textwrap" in registry, "red" in registry) == (True, True, False)


def test_a_registered_class_learns_its_name_and_is_found(registry):
    @registry.register("blue")
    class Blue:
        kind: str

    assert Blue.kind == "blue"
    assert registry["blue"] is Blue


def test_an_unknown_name_lists_the_key_and_all_names(registry):
    registry.register("blue")(type("Blue", (), {}))
    with pytest.raises(ValueError, match=r"colour 'red' is unknown; choose one of textwrap, blue"):
        registry["red"]


def test_a_file_that_is_run_again_may_register_its_class_again(registry):
    for _ in range(2):

        @registry.register("blue")
        class Blue:
            kind: str

        assert registry["blue"] is Blue


def test_the_projects_own_adapter_types():
    assert ADAPTERS.names() == ["adaptmlp", "nested_lora"]
    assert (ADAPTERS["adaptmlp"], ADAPTERS["nested_lora"]) == (Adapter, NestedLoRAAdapter)
    assert (Adapter.kind, NestedLoRAAdapter.kind) == ("adaptmlp", "nested_lora")
    assert (Adapter.width_key, NestedLoRAAdapter.width_key) == ("ffn_num", "nested_lora_rank")
    assert all(issubclass(ADAPTERS[name], FunctionalAdapter) for name in ADAPTERS.names())


def test_a_type_of_the_tests_own_is_there_for_a_while():
    with registered("gain"):
        assert ADAPTERS.names() == ["adaptmlp", "nested_lora", "gain"]
        assert ADAPTERS["gain"] is Gain
    assert "gain" not in ADAPTERS


def test_names_can_be_listed_without_torch():
    code = (
        "import sys; from backbone.registry import ADAPTERS; print(*ADAPTERS.names()); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["adaptmlp", "nested_lora"]


def test_two_classes_of_one_file_cannot_share_a_name(registry):
    @registry.register("blue")
    class Blue:
        pass

    with pytest.raises(ValueError, match=r"'blue' is registered by .* already"):

        @registry.register("blue")
        class Red:
            pass

    assert registry["blue"] is Blue
