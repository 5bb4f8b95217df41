"""Exported files: what they compute, against the network they come from and timm's own."""

import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from adapter_cases import registered
from finished_runs import NESTED, PLAIN, RECORDED
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trained_cases import constant_network

import main
from models import load_run
from models.export import export_model
from models.trained import TrainedModel
from utils.errors import ConfigError
from utils.runs.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from utils.runs.checkpoint_meta import read_config, read_meta

IMAGES = np.random.default_rng(2).integers(0, 255, (5, 20, 20, 3)).astype(np.uint8)
RUNS = pytest.mark.parametrize("run", [NESTED, PLAIN], ids=["nested", "plain"])


@pytest.fixture
def moved(tmp_path) -> Callable[[TrainedModel, str], TrainedModel]:
    """Export a network, and load it where nothing else is."""

    def export(model: TrainedModel, form: str) -> TrainedModel:
        (tmp_path / "elsewhere").mkdir()
        export_model(model, tmp_path / "it.safetensors", form)
        shutil.move(tmp_path / "it.safetensors", tmp_path / "elsewhere" / "mine.safetensors")
        return load_run(tmp_path / "elsewhere" / "mine.safetensors")

    return export


@pytest.fixture
def on_own_weights(tmp_path) -> TrainedModel:
    """The nested run on a backbone whose weights come from a file, which is then removed."""
    model = load_run(NESTED)
    state = {name: value + 0.01 for name, value in model.network.frozen_state().items()}
    save_file(state, tmp_path / "vit.safetensors")
    tensors, meta = read_checkpoint(model.file)
    save_checkpoint(tmp_path / "a.safetensors", tensors, {key: meta[key] for key in meta if key != "backbone"})
    loaded = load_run(tmp_path / "a.safetensors", backbone_checkpoint=str(tmp_path / "vit.safetensors"))
    (tmp_path / "vit.safetensors").unlink()
    return loaded


@RUNS
def test_a_network_by_itself_gives_the_same_logits_bit_by_bit(run, moved):
    model = load_run(run)
    copy = moved(model, "network")
    assert np.array_equal(copy.predict(IMAGES).logits, model.predict(IMAGES).logits)
    assert copy.class_names == model.class_names
    assert copy.network.provenance == model.network.provenance


def test_the_weights_of_the_backbone_are_in_the_file(on_own_weights, moved):
    copy = moved(on_own_weights, "network")
    assert (copy.config.pretrained, copy.config.backbone_checkpoint) == (False, None)
    assert copy.network.provenance == on_own_weights.network.provenance
    assert np.array_equal(copy.predict(IMAGES).logits, on_own_weights.predict(IMAGES).logits)
    assert not np.array_equal(copy.predict(IMAGES).logits, load_run(NESTED).predict(IMAGES).logits)


def test_nothing_of_the_machine_is_in_the_file(moved):
    config = moved(load_run(NESTED, device="cpu", output_dir="/home/me", data_root="/mnt/d"), "network").meta["config"]
    assert not {"output_dir", "data_root", "device", "checkpt_path", "export", "num_workers"} & config.keys()
    assert config["seed"] == [4]


def test_a_changed_backbone_is_refused(tmp_path):
    export_model(load_run(NESTED), tmp_path / "a.safetensors", "network")
    tensors, meta = read_checkpoint(tmp_path / "a.safetensors")
    tensors["backbone.norm.bias"][0] += 1
    save_checkpoint(tmp_path / "a.safetensors", tensors, meta)
    with pytest.raises(CheckpointError, match="the checkpoint was made on"):
        load_run(tmp_path / "a.safetensors")


def test_a_backbone_in_part_is_refused(tmp_path):
    export_model(load_run(NESTED), tmp_path / "a.safetensors", "network")
    tensors, meta = read_checkpoint(tmp_path / "a.safetensors")
    del tensors["backbone.norm.bias"], meta["backbone"]
    save_checkpoint(tmp_path / "a.safetensors", tensors, meta)
    with pytest.raises(CheckpointError, match=r"missing backbone\.norm\.bias"):
        load_run(tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", ["network", "merged"])
def test_an_exported_file_is_evaluated_as_its_checkpoint(form, tmp_path, capsys):
    tables = []
    for run in (NESTED, tmp_path / "a.safetensors"):
        assert main.main(["--eval", "--checkpt_path", str(run), "--data_root", str(RECORDED / "images.npz")]) == 0
        out, err = capsys.readouterr()
        assert ("task_2.safetensors" if run == NESTED else str(run)) in err
        tables.append(out)
        export_model(load_run(NESTED), tmp_path / "a.safetensors", form)
    assert tables[0] == tables[1]


@RUNS
def test_merged_branches_compute_the_sum_of_the_branches(run, moved, randomize):
    model = load_run(run)
    for slot in model.network.slots:
        randomize(slot.adapters)  # the branch fast of the recorded run is the zero map
    single = moved(model, "merged")
    np.testing.assert_allclose(single.predict(IMAGES).logits, model.predict(IMAGES).logits, rtol=1e-5, atol=1e-6)
    h = torch.randn(2, 3, 16)
    for slot, theirs in zip(single.network.slots, model.network.slots, strict=True):
        for adapter, other in zip(slot.functional, theirs.functional, strict=True):
            assert adapter.kind == "adaptmlp"
            branches = [getattr(other, name) for name in other.branches] or [other]
            x = h.numpy()
            expected = sum(
                np.maximum(x @ b.down_proj.weight.numpy().T + b.down_proj.bias.numpy(), 0) @ b.up_proj.weight.numpy().T
                + b.up_proj.bias.numpy()
                for b in branches
            )
            with torch.no_grad():
                np.testing.assert_allclose(adapter(h).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_merged_adapters_of_different_ranks_get_the_largest(moved):
    model = load_run(NESTED)
    ranks = [sum(b.rank for b in adapter.summands()) for slot in model.network.slots for adapter in slot.functional]
    assert len(set(ranks)) > 1
    single = moved(model, "merged")
    assert {a.rank for slot in single.network.slots for a in slot.functional} == {max(ranks)}
    assert single.config.ffn_num == max(ranks)


def test_merging_leaves_the_model_as_it_was(tmp_path):
    model = load_run(NESTED)
    before = model.predict(IMAGES).logits
    export_model(model, tmp_path / "a.safetensors", "merged")
    assert model.network.slots[0].functional[0].kind == "nested_lora"
    assert np.array_equal(model.predict(IMAGES).logits, before)


@pytest.mark.parametrize("biases", [{}, {0: 0.3, 2: -0.2}])
def test_constant_adapters_are_taken_up_by_timm_s_own_model(biases, tmp_path):
    model = constant_network(tmp_path, biases, ffn_adapter_type="adaptmlp")
    export_model(model, tmp_path / "timm.safetensors", "timm")
    with safe_open(tmp_path / "timm.safetensors", "pt") as file:
        about = json.loads(file.metadata()["timm"])
    assert (about["class_names"], about["normalize"]) == (list("abcd"), False)
    vit = timm.create_model(about["model"], **about["arguments"]).eval()
    vit.load_state_dict(load_file(tmp_path / "timm.safetensors"))
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        logits = vit(images).numpy()
    np.testing.assert_allclose(logits, model.predict(images).logits, rtol=1e-5, atol=1e-6)


@RUNS
def test_adapters_that_have_learned_are_not_for_timm_s_model(run, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)block 0 add U relu\(D h \+ b\) \+ c .* depends.* export_form network"):
        export_model(load_run(run), tmp_path / "a.safetensors", "timm")
    assert not (tmp_path / "a.safetensors").exists()


def test_constants_are_not_taken_up_behind_a_scale(tmp_path):
    shape = {**read_config(NESTED / "checkpoints" / "task_2.safetensors")["backbone_kwargs"], "init_values": 0.1}
    zero = constant_network(tmp_path, {}, ffn_adapter_type="adaptmlp", backbone_kwargs=shape)
    export_model(zero, tmp_path / "b.safetensors", "timm")
    other = constant_network(tmp_path, {1: 0.5}, ffn_adapter_type="adaptmlp", backbone_kwargs=shape)
    with pytest.raises(ConfigError, match="block 1"):
        export_model(other, tmp_path / "c.safetensors", "timm")


def test_a_type_that_is_no_sum_of_bottleneck_adapters_is_kept_as_it_is(tmp_path, moved):
    with registered("gain"):
        model = constant_network(tmp_path, {}, ffn_adapter_type="gain")
        with pytest.raises(ConfigError, match="export_form network keeps them"):
            export_model(model, tmp_path / "b.safetensors", "merged")
        with pytest.raises(ConfigError, match="block 0"):
            export_model(model, tmp_path / "b.safetensors", "timm")
        assert np.array_equal(moved(model, "network").predict(IMAGES).logits, model.predict(IMAGES).logits)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"export = .*a\.safetensors: cannot be written"):
        export_model(load_run(NESTED), tmp_path / "file" / "a.safetensors", "network")


def test_the_names_and_tasks_stay_on_record(moved):
    model = load_run(NESTED, task=1)
    copy = moved(model, "network")
    meta = read_meta(copy.file)
    assert meta["task_sizes"] == [2, 2]
    assert meta["class_order"] == model.meta["class_order"]
    assert len(copy.class_names) == 4
