"""Checkpoints: what is written comes back bit by bit, and what does not belong is refused and changes nothing."""

import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import OWN, registered
from parity_cases import RECORDS
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbone.registry import ADAPTERS
from utils.errors import UserError
from utils.inc_net import SEMAVitNet
from utils.runs.checkpoint import (
    FORMAT,
    CheckpointError,
    SlotShape,
    adapter_type,
    differences,
    read_checkpoint,
    read_config,
    read_meta,
    save_checkpoint,
    structure,
)

KINDS = ("adaptmlp", "nested_lora")
ALL_KINDS = (*KINDS, *OWN)


@pytest.fixture(autouse=True)
def own_types() -> Iterator[None]:
    with registered(*OWN):
        yield


@pytest.fixture(scope="module")
def built() -> dict[str, SEMAVitNet]:
    return {}


@pytest.fixture
def net(config, built) -> Callable[..., SEMAVitNet]:
    """Networks on the same random backbone weights, whatever their adapters; built once, then copied."""

    def make(seed: int = 1, nb_classes: int = 6, **keys: object) -> SEMAVitNet:
        name = repr((seed, nb_classes, sorted(keys.items())))
        if name not in built:
            torch.manual_seed(seed)
            built[name] = SEMAVitNet(config(**keys), nb_classes).eval()
        return deepcopy(built[name])

    return make


@pytest.fixture
def grown(net, randomize) -> Callable[..., SEMAVitNet]:
    """A network after some tasks: two adapters at layer 1, three at layer 2, records, and slow ranks that grew."""

    def make(**keys: object) -> SEMAVitNet:
        model = net(nested_lora_consolidation_mode="function", **keys)
        for layer in (1, 2, 2):
            slot = model.slots[layer]
            slot.begin_func_phase()
            if model.adapter_type.branches:
                slot.consolidate_nested_lora(0.5)
                slot.trained.clear()
            slot.end_of_cycle()
            slot.expand()
        for slot in model.slots:
            slot.end_of_cycle()
            randomize(slot)
        model.slots[1].adapters[1].records.add(torch.rand(7))
        model.slots[2].adapters[0].records.add(torch.rand(20))
        return model

    return make


def snapshot(model: SEMAVitNet) -> dict[str, Any]:
    """Values, learning parameters and module tree: all there is to a network."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "learns": {name for name, parameter in model.named_parameters() if parameter.requires_grad},
        "tree": [(name, type(module)) for name, module in model.named_modules()],
    }


def assert_unchanged(model: SEMAVitNet, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert after["tree"] == before["tree"]
    assert after["learns"] == before["learns"]
    assert after["values"].keys() == before["values"].keys()
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name


# ---- round trips


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_grown_network_comes_back_bit_by_bit(net, grown, images, tmp_path, kind):
    source, target, path = grown(ffn_adapter_type=kind), net(seed=1, ffn_adapter_type=kind), tmp_path / "a.safetensors"
    save_checkpoint(path, source.learned_state(), {"backbone": source.provenance, "adapter_type": kind})
    tensors, meta = read_checkpoint(path)
    target.load_learned(tensors, meta)
    assert [slot.num_adapters for slot in target.slots] == [1, 2, 3, 1]
    ours, theirs = source.state_dict(), target.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert torch.equal(target.eval()(images)["logits"], source.eval()(images)["logits"])
    for name in source.adapter_type.branches[:-1]:
        assert [adapter.get_submodule(name).rank for adapter in target.slots[2].functional] == [6, 6, 3]
    means = source.token_means(images, [1, 2])
    for layer, mean in means.items():
        assert torch.equal(source.slots[layer].z_scores(mean), target.slots[layer].z_scores(mean))
        assert source.slots[layer].z_scores(mean).any()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_loaded_network_learns_nothing_but_its_head(net, grown, kind):
    source, target = grown(ffn_adapter_type=kind), net(ffn_adapter_type=kind)
    target.load_learned(source.learned_state(), {"adapter_type": kind})
    assert {name for name, parameter in target.named_parameters() if parameter.requires_grad} == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_adapter_added_after_loading_is_a_living_one(net, grown, images, kind):
    target = net(ffn_adapter_type=kind)
    target.load_learned(grown(ffn_adapter_type=kind).learned_state(), {"adapter_type": kind})
    target.slots[1].begin_task()
    target.slots[1].expand()
    target.train()(images)["logits"].sum().backward()
    assert target.slots[1].added == 1
    assert target.slots[1].num_adapters == 3
    assert target.slots[1].new_router.weight.grad is not None


def test_a_restored_adapter_of_ones_own_is_an_adapter_in_every_role(net, grown):
    target = net(ffn_adapter_type="gain")
    target.load_learned(grown(ffn_adapter_type="gain").learned_state(), {"adapter_type": "gain"})
    gains = {id(parameter) for name, parameter in target.named_parameters() if name.endswith(".functional.gain")}
    assert len(gains) == 1 + 2 + 3 + 1
    assert {id(parameter) for role, parameter in target.roles() if role == "adapter"} == gains


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_task_in_progress_comes_back_with_what_learns_and_what_trained(net, grown, images, kind):
    source, target = grown(ffn_adapter_type=kind), net(ffn_adapter_type=kind)
    source.slots[1].begin_task()
    source.slots[1].expand()
    source.slots[1].begin_func_phase()
    state = source.training_state()
    assert state["adapter_type"] == kind
    target.load_training(state)
    assert snapshot(target)["learns"] == snapshot(source)["learns"]
    assert target.training_state()["slots"] == state["slots"]
    assert state["slots"][1] == {"added": 1, "trained": [2]}
    assert (target.slots[1].added, target.slots[1].trained) == (1, {2})
    assert target.slots[1].new_router is not None
    assert torch.equal(target.eval()(images)["logits"], source.eval()(images)["logits"])


def test_metadata_come_back(tmp_path):
    meta = {"task": 3, "class_order": [2, 0, 1], "config": {"seed": [1], "data_root": "ü"}, "accuracy": None}
    save_checkpoint(tmp_path / "sub" / "a.safetensors", {"x": torch.ones(2)}, meta)
    assert read_checkpoint(tmp_path / "sub" / "a.safetensors")[1] == meta
    assert read_meta(tmp_path / "sub" / "a.safetensors") == meta
    assert read_config(str(tmp_path / "sub" / "a.safetensors")) == meta["config"]


def test_views_of_larger_tensors_are_written(tmp_path):
    first, second = torch.arange(6.0).reshape(2, 3), torch.arange(9.0)
    save_checkpoint(tmp_path / "a.safetensors", {"turned": first.T, "slid": second[-4:], "none": torch.ones(3)[:0]}, {})
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensors["slid"].tolist() == [5, 6, 7, 8]
    assert tensors["none"].shape == (0,)


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path / "a.safetensors", {"x": torch.tensor([value])}, {"task": 0})
    assert read_checkpoint(tmp_path / "a.safetensors")[0]["x"].item() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"x": torch.ones(1)}, {"task": 0})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"x": torch.zeros(1)}, {"task": 1})
    monkeypatch.undo()
    assert read_checkpoint(path)[0]["x"].item() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# ---- files of the public implementation


def test_a_public_file_loads_without_records(config, tmp_path):
    stored = json.loads((RECORDS / "sgd_expand.json").read_text())
    tensors, meta = read_checkpoint(RECORDS / "sgd_expand.pth")
    assert meta == {}
    keys = {**stored["config"], "backbone_kwargs": stored["backbone_kwargs"], "device": ["cpu"], "seed": 0}
    model = SEMAVitNet(config(**keys), len(tensors["fc.bias"]))
    model.load_learned(tensors)
    assert [slot.num_adapters for slot in model.slots] == stored["tasks"][-1]["adapters"]
    loaded = model.state_dict()
    public = torch.load(RECORDS / "sgd_expand.pth", weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in public.items())
    assert {name for name in model.learned_state() if name not in public} == {
        name for name in loaded if name.endswith("records.losses")
    }
    assert all(len(adapter.records) == 0 for slot in model.expandable for adapter in slot.adapters)


def test_a_public_file_carries_no_configuration(tmp_path):
    torch.save({"fc.weight": torch.ones(1)}, tmp_path / "public.pth")
    assert read_meta(tmp_path / "public.pth") == {}
    with pytest.raises(CheckpointError, match=r"no configuration.*--config"):
        read_config(tmp_path / "public.pth")


def test_a_checkpoint_made_with_a_plugin_names_the_file_to_load(tmp_path):
    path = tmp_path / "a.safetensors"
    plugin = {"file": "my_own.py", "sha256": "ab" * 32, "adds": {"ffn_adapter_type": ["mine"]}}
    save_checkpoint(path, {"x": torch.ones(1)}, {**META, "plugins": [plugin]})
    assert read_meta(path)["plugins"] == [plugin]
    with pytest.raises(UserError, match=r"a\.safetensors was made with the plug-in .*--plugin my_own\.py"):
        read_config(path)


# ---- what does not belong


def refused(model: SEMAVitNet, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> str:
    """Load, expect a refusal that changes nothing, and give its message."""
    before = snapshot(model)
    with pytest.raises(CheckpointError) as error:
        model.load_learned(tensors, meta)
    assert_unchanged(model, before)
    return str(error.value)


@pytest.mark.parametrize(("mine", "theirs"), [KINDS, KINDS[::-1]])
def test_another_adapter_type_is_refused(net, grown, mine, theirs):
    message = refused(net(ffn_adapter_type=mine), grown(ffn_adapter_type=theirs).learned_state())
    assert message == f"the checkpoint holds {theirs} adapters, the configuration asks for {mine}"


@pytest.mark.parametrize(
    ("mine", "theirs"), [("adaptmlp", "gain"), ("gain", "adaptmlp"), ("nested_lora", "three_branches")]
)
def test_another_adapter_type_of_ones_own_is_refused_by_what_the_metadata_say(net, grown, mine, theirs):
    tensors = grown(ffn_adapter_type=theirs).learned_state()
    message = refused(net(ffn_adapter_type=mine), tensors, {"adapter_type": theirs})
    assert message == f"the checkpoint holds {theirs} adapters, the configuration asks for {mine}"


def test_a_type_that_is_not_registered_here_is_named(net):
    model = net(ffn_adapter_type="adaptmlp")
    message = refused(model, model.learned_state(), {"adapter_type": "elsewhere"})
    assert message == "the checkpoint holds elsewhere adapters, the configuration asks for adaptmlp"


def test_metadata_that_lie_about_the_type_are_refused_by_the_tensors(net, grown):
    message = refused(
        net(ffn_adapter_type="gain"), grown(ffn_adapter_type="nested_lora").learned_state(), {"adapter_type": "gain"}
    )
    assert "unexpected backbone.blocks.0.adapter_module.adapters.0.functional.fast.down_proj.bias" in message


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_classes_is_refused(net, grown, kind):
    message = refused(net(ffn_adapter_type=kind, nb_classes=9), grown(ffn_adapter_type=kind).learned_state())
    assert message == "the checkpoint was trained on a data set of 6 classes, here are 9"


@pytest.mark.parametrize("kind", KINDS)
def test_another_width_is_refused(config, net, grown, kind):
    wide = {**config().backbone_kwargs, "embed_dim": 48}
    message = refused(net(ffn_adapter_type=kind, backbone_kwargs=wide), grown(ffn_adapter_type=kind).learned_state())
    assert "down_proj.weight" in message


@pytest.mark.parametrize(("kind", "keys"), [("adaptmlp", {"ffn_num": 6}), ("nested_lora", {"nested_lora_rank": 2})])
def test_another_bottleneck_or_rank_is_refused(net, grown, kind, keys):
    message = refused(net(ffn_adapter_type=kind, **keys), grown(ffn_adapter_type=kind).learned_state())
    assert "down_proj" in message


def test_another_descriptor_width_is_refused(net, grown):
    message = refused(net(ffn_adapter_type="adaptmlp", rd_dim=6), grown(ffn_adapter_type="adaptmlp").learned_state())
    assert "rd.encoder.weight" in message


@pytest.mark.parametrize("depth", [3, 5])
def test_another_depth_is_refused(config, net, grown, depth):
    deep = {**config().backbone_kwargs, "depth": depth}
    source = grown(ffn_adapter_type="adaptmlp").learned_state()
    message = refused(net(ffn_adapter_type="adaptmlp", backbone_kwargs=deep), source)
    assert "4" in message
    assert str(depth) in message


@pytest.mark.parametrize("layers", [(0, 2), (1, 1), (2, 3)])
def test_another_layer_range_is_refused(net, grown, layers):
    start, end = layers
    model = net(ffn_adapter_type="adaptmlp", adapt_start_layer=start, adapt_end_layer=end)
    assert "rd." in refused(model, grown(ffn_adapter_type="adaptmlp").learned_state())


def test_other_backbone_weights_are_refused(net, grown):
    source = grown(ffn_adapter_type="adaptmlp")
    other = net(seed=2, ffn_adapter_type="adaptmlp")
    message = refused(other, source.learned_state(), {"backbone": source.provenance})
    assert source.provenance["sha256"][:16] in message
    assert other.provenance["sha256"][:16] in message


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_younger_checkpoint_goes_into_a_grown_network(net, grown, kind):
    model, young = grown(ffn_adapter_type=kind), net(ffn_adapter_type=kind)
    model.load_learned(young.learned_state(), {"adapter_type": kind})
    assert [slot.num_adapters for slot in model.slots] == [1, 1, 1, 1]
    ours, theirs = model.state_dict(), young.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


SLOT = "backbone.blocks.2.adapter_module"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_without("fc.bias"), "missing fc.bias"),
        (_without(f"{SLOT}.router.weight"), f"missing {SLOT}.router.weight"),
        (_without(f"{SLOT}.adapters.1.rd.decoder.bias"), f"missing {SLOT}.adapters.1.rd.decoder.bias"),
        (lambda tensors: {**tensors, "gate.weight": torch.ones(2)}, "gate.weight"),
        (lambda tensors: {**tensors, f"{SLOT}.router.bias": torch.ones(5)}, f"{SLOT}.router.bias"),
        (lambda tensors: {**tensors, f"{SLOT}.adapters.9.functional.up_proj.bias": torch.ones(32)}, "adapters.9"),
        (lambda tensors: {"norm.weight": torch.ones(32)}, "0 blocks"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(net, grown, change, named):
    message = refused(net(ffn_adapter_type="adaptmlp"), change(grown(ffn_adapter_type="adaptmlp").learned_state()))
    assert named in message


# ---- what is no checkpoint


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
    for name in ("task_0.safetensors", "task_1.safetensors"):
        save_checkpoint(tmp_path / name, {"x": torch.ones(1)}, {"task": 0})
    for read in (read_checkpoint, read_meta, read_config):
        with pytest.raises(CheckpointError, match=r"task_2.safetensors.*does not exist") as error:
            read(tmp_path / "task_2.safetensors")
        assert "task_0.safetensors" in str(error.value)
        assert "task_1.safetensors" in str(error.value)


@pytest.mark.parametrize("path", ["nowhere/a.safetensors", "nowhere/a.pth", "."])
def test_a_missing_folder_and_a_folder_are_named(tmp_path, path):
    with pytest.raises(CheckpointError, match=r"does not exist|is a directory") as error:
        read_checkpoint(tmp_path / path)
    assert str(tmp_path / path) in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_truncated_file_is_an_error_that_names_it(grown, tmp_path, share, suffix):
    path = tmp_path / f"a.{suffix}"
    state = grown(ffn_adapter_type="adaptmlp").learned_state()
    save_checkpoint(path, state, {"task": 0}) if suffix == "safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "pt", "meta": "{}"}])
def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path, metadata):
    path = tmp_path / "vit.safetensors"
    save_file({"norm.weight": torch.ones(2)}, path, metadata)
    with pytest.raises(CheckpointError, match="not a checkpoint") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("meta", ["", "{", "[1]"])
def test_unreadable_metadata_are_an_error(tmp_path, meta):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"x": torch.ones(1)}, {"task": 0})
    save_file(load_file(path), path, {"format": FORMAT, "meta": meta})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "what", [[1, 2], torch.ones(2), {"fc.weight": 3}, {"a": {"fc.weight": torch.ones(2)}, "b": {}}]
)
def test_a_torch_file_of_something_else_is_refused(tmp_path, what):
    torch.save(what, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(grown, tmp_path, value):
    """With them, the first class would be every answer."""
    tensors = grown().learned_state()
    tensors["fc.bias"][2] = value
    save_checkpoint(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(CheckpointError, match=r"a\.safetensors.* fc\.bias holds values that are NaN or infinite"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("wrap", [dict, lambda tensors: {"tasks": 3, "model_state_dict": tensors}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_that_were_wrapped_are_found(grown, tmp_path, wrap, prefix):
    tensors = grown().learned_state()
    torch.save(wrap({prefix + name: tensor for name, tensor in tensors.items()}), tmp_path / "a.pth")
    torch.testing.assert_close(read_checkpoint(tmp_path / "a.pth")[0], dict(tensors), rtol=0, atol=0)


def test_no_pickle_of_a_stranger_is_run(tmp_path):
    ran = tmp_path / "ran"

    class Stranger:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
            return Path.touch, (ran,)

    torch.save({"fc.weight": Stranger()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.pth")
    assert not ran.exists()


# ---- what a stranger's file claims


def stored(path: Path, tensors: dict[str, Any]) -> Path:
    torch.save(tensors, path)
    return path


def crafted(path: Path, header: dict[str, Any], content: bytes = b"") -> Path:
    """A safetensors file with any header."""
    text = json.dumps({"__metadata__": {"format": FORMAT, "meta": "{}"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.12, while it reads a sparse tensor
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1).expand(10**12), "claim 4,000,000,000,000 bytes, the file has"),
        (torch.empty(3, device="meta"), "on meta; expected dense floats"),
        (torch.eye(3).to_sparse(), "torch.sparse_coo.*expected dense floats"),
        (torch.ones(3, dtype=torch.int64), "torch.int64.*expected dense floats"),
        (torch.ones(3, dtype=torch.complex64), "torch.complex64.*expected dense floats"),
        (torch.ones(3).to(torch.float8_e4m3fn), "torch.float8_e4m3fn.*expected dense floats"),
        (torch.empty(10**15, 0), r"has shape \(1000000000000000, 0\) and no elements"),
    ],
)
def test_a_tensor_that_is_less_than_it_says_is_refused(tmp_path, tensor, message):
    with pytest.raises(CheckpointError, match=rf"a\.pth.*cannot be read: .*{message}"):
        read_checkpoint(stored(tmp_path / "a.pth", {"fc.weight": tensor}))


def test_one_tensor_under_many_names_claims_more_than_the_file_has(tmp_path):
    shared = torch.ones(10_000)
    path = stored(tmp_path / "a.pth", {f"x{number}": shared for number in range(100)})
    with pytest.raises(CheckpointError, match="claim 4,000,000 bytes, the file has"):
        read_checkpoint(path)


def test_a_compressed_torch_file_is_refused_unread(tmp_path, monkeypatch):
    plain = stored(tmp_path / "plain.pth", {"x": torch.zeros(10**6)})
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    assert (tmp_path / "a.pth").stat().st_size < 20_000
    assert read_checkpoint(plain)[0]["x"].shape == (10**6,)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(CheckpointError, match=r"a\.pth.*is compressed, which torch.save and numpy.savez never do"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ({"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}, b""),
        ({"dtype": "F32", "shape": [10**15, 0], "data_offsets": [0, 0]}, b""),
        ({"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}, b""),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, bytes(16)),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}, bytes(16)),
        ({"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}, bytes(16)),
        ("no entry", b""),
    ],
)
def test_a_safetensors_header_that_claims_something_else_is_refused(tmp_path, entry, content):
    with pytest.raises(CheckpointError, match=r"a\.safetensors.*cannot be read: "):
        read_checkpoint(crafted(tmp_path / "a.safetensors", {"fc.weight": entry}, content))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {f"{SLOT}.adapters.0.functional.slow.down_proj.weight": torch.ones(1).expand(10**12, 32)},
            r"\(32, 1000000000000\) here",
        ),
        ({f"{SLOT}.adapters.0.functional.slow.down_proj.weight": torch.tensor(1.0)}, r"is \(\) there, \(3, 32\) here"),
        (  # records may be of any length, so that something else has to be wrong
            {f"{SLOT}.adapters.0.records.losses": torch.ones(1).expand(10**12), "fc.bias": torch.ones(7)},
            r"fc\.bias is \(7,\) there, \(6,\) here",
        ),
        (
            {f"{SLOT}.adapters.{n}.records.losses": torch.ones(2) for n in range(9)},
            "3 adapters and 9 records at layer 2",
        ),
        (
            {f"{SLOT}.adapters.{n}.functional.slow.down_proj.weight": torch.ones(1, 1) for n in range(50_000)},
            "50000 adapters .* at most 6 adapters, one for each class",
        ),
        (
            {"backbone.blocks.999999.adapter_module.adapters.0.functional.slow.down_proj.weight": torch.ones(3, 32)},
            "5 b",
        ),
        ({"backbone.blocks.-1.adapter_module.adapters.0.functional.slow.down_proj.weight": torch.ones(3, 32)}, "unexp"),
        (
            {f"backbone.blocks.{'9' * 5000}.adapter_module.adapters.0.functional.slow.down_proj.weight": torch.ones(1)},
            "unexpected",
        ),
    ],
)
def test_a_structure_no_run_can_have_made_is_refused_before_it_is_built(net, grown, change, named):
    tensors = grown(ffn_adapter_type="nested_lora").learned_state()
    assert re.search(named, refused(net(ffn_adapter_type="nested_lora"), {**tensors, **change}))


META: dict[str, Any] = {
    "config": {"dataset": "npz"},
    "class_order": [1, 0],
    "task_sizes": [1, 1],
    "accuracy": {"task_sizes": [1, 1], "count": [5, 5], "correct": [[3], [2, 4]]},
    "backbone": {"timm_name": "vit", "weights": "hub", "sha256": "0" * 64},
    "adapter_type": "gain",
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", [1]), ("config", None), ("class_order", 3), ("class_order", ["a"]), ("class_order", [0.5]),
        ("class_order", [-1]), ("task_sizes", []), ("task_sizes", [0]), ("task_sizes", "11"), ("task_sizes", [True]),
        ("task_sizes", {"0": 1}), ("accuracy", []), ("accuracy", {}), ("accuracy", {**META["accuracy"], "count": [5]}),
        ("accuracy", {**META["accuracy"], "correct": [[6], [2, 4]]}), ("backbone", "vit"), ("backbone", {}),
        ("backbone", {**META["backbone"], "sha256": 7}), ("adapter_type", 3), ("adapter_type", ["gain"]),
        ("plugins", "a.py"), ("plugins", ["a.py"]),
    ],
)  # fmt: skip
def test_metadata_of_a_wrong_type_are_named(tmp_path, key, value):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"x": torch.ones(1)}, META)
    assert read_meta(path) == META
    save_checkpoint(path, {"x": torch.ones(1)}, {**META, key: value})
    for read in (read_meta, read_checkpoint, read_config):
        with pytest.raises(CheckpointError, match=rf"a\.safetensors.*cannot be read: {key}") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("meta", ["[[[" * 100_000, '{"config": ' * 100_000, "7", '"text"', "[]"])
def test_metadata_that_are_no_object_are_refused(tmp_path, meta):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, path, {"format": FORMAT, "meta": meta})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)


# ---- what names and shapes tell


def branches() -> dict[str, tuple[str, ...]]:
    return {name: ADAPTERS[name].branches for name in ADAPTERS.names()}


@pytest.mark.parametrize(
    ("meta", "kind"),
    [
        ({"adapter_type": "gain"}, "gain"),
        ({"adapter_type": "gain", "config": {"ffn_adapter_type": "adaptmlp"}}, "gain"),
        ({"adapter_type": "not registered here"}, "not registered here"),
        ({"config": {"ffn_adapter_type": "adaptmlp"}}, "adaptmlp"),  # our own before adapter types were on record
        ({"config": {"ffn_adapter_type": "nested_lora", "dataset": "npz"}}, "nested_lora"),
    ],
)
def test_the_adapter_type_is_what_the_metadata_say_whatever_the_tensors_are(grown, meta, kind):
    for theirs in KINDS:
        assert adapter_type(grown(ffn_adapter_type=theirs).learned_state(), meta, branches()) == kind


@pytest.mark.parametrize("meta", [{}, {"config": {}}, {"config": {"dataset": "npz"}}])
@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora", "three_branches"])
def test_without_metadata_the_adapter_type_is_the_one_with_these_branches(grown, meta, kind):
    assert adapter_type(grown(ffn_adapter_type=kind).learned_state(), meta, branches()) == kind


def test_the_adapter_type_of_a_public_file_is_adaptmlp():
    tensors, meta = read_checkpoint(RECORDS / "sgd_expand.pth")
    assert adapter_type(tensors, meta, branches()) == "adaptmlp"


def test_structure_is_read_off_names_and_shapes(grown):
    """Ranks at layers 0 to 3; `up` and `down` of an adapter of rank r have the shapes (32, r) and (r, 32)."""

    def adaptmlp(rank: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
        shapes = {"down_proj.weight": (rank, 32), "down_proj.bias": (rank,), "up_proj.weight": (32, rank)}
        return {f"{prefix}{name}": shape for name, shape in {**shapes, "up_proj.bias": (32,)}.items()}

    expected = {
        "adaptmlp": [[adaptmlp(4)] * adapters for adapters in (1, 2, 3, 1)],
        "nested_lora": [
            [adaptmlp(slow, "slow.") | adaptmlp(3, "fast.") for slow in ranks]
            for ranks in ([3], [6, 3], [6, 6, 3], [3])
        ],
        "gain": [[{"gain": (32,)}] * adapters for adapters in (1, 2, 3, 1)],
    }
    records = [[], [0, 7], [20, 0, 0], []]
    for kind, adapters in expected.items():
        found = structure(grown(ffn_adapter_type=kind).learned_state())
        assert found == {layer: SlotShape(adapters[layer], records[layer], False) for layer in range(4)}


def test_structure_counts_adapters_by_number():
    """Ten adapters and more: 10 comes after 9, not after 1."""
    name = "backbone.blocks.0.adapter_module.adapters.{}.functional.down_proj.weight"
    found = structure({name.format(index): torch.ones(index + 1, 2) for index in reversed(range(12))})
    assert found == {0: SlotShape([{"down_proj.weight": (rank, 2)} for rank in range(1, 13)], [], False)}


def test_structure_knows_whether_a_layer_is_expanding(grown):
    model = grown(ffn_adapter_type="adaptmlp")
    model.slots[2].expand()
    assert [shape.expanding for _, shape in sorted(structure(model.learned_state()).items())] == [
        False,
        False,
        True,
        False,
    ]


def test_differences_list_every_kind_once():
    mine = {"a": torch.ones(2), "b": torch.ones(2, 3), "c.records.losses": torch.ones(1), "same": torch.ones(1)}
    given = {"b": torch.ones(3, 2), "d": torch.ones(4), "same": torch.zeros(1)}
    lines = differences(mine, given)
    assert len(lines) == 3
    assert any("missing a (2,)" in line for line in lines)
    assert any("unexpected d (4,)" in line for line in lines)
    assert any("b" in line and "(3, 2)" in line and "(2, 3)" in line for line in lines)
    assert differences(mine, mine) == []
