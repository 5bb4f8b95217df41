"""The network that a configuration describes, against timm's own model."""

import copy
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from adapter_cases import OWN, Gain, ThreeBranches, registered
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.nested_lora import NestedLoRAAdapter
from backbone.registry import ADAPTERS
from utils.errors import ConfigError
from utils.inc_net import SEMAVitNet, check_backbone, get_backbone

NAME = "vit_tiny_patch16_224"
TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
KINDS = ("adaptmlp", "nested_lora", *OWN)


@pytest.fixture(autouse=True)
def own_types() -> Iterator[None]:
    with registered(*OWN):
        yield


@pytest.fixture
def weights(config, tmp_path) -> Path:
    """A file with random weights of the tiny ViT."""
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model(NAME, num_classes=0, **config().backbone_kwargs).state_dict(), path)
    return path


@pytest.fixture
def net(config, weights) -> Callable[..., SEMAVitNet]:
    return lambda nb_classes=6, **keys: SEMAVitNet(config(backbone_checkpoint=str(weights), **keys), nb_classes)


@pytest.fixture
def timms(config, weights) -> Callable[..., VisionTransformer]:
    def make(**kwargs: object) -> VisionTransformer:
        shape = {**config().backbone_kwargs, **kwargs}
        return timm.create_model(NAME, num_classes=0, checkpoint_path=str(weights), **shape).eval()

    return make


@torch.no_grad()
def norm2_inputs(vit: VisionTransformer, images: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    for block in vit.blocks:
        block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vit(images)
    return seen


# ---- forward


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("drops", [{}, {"proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5}])
def test_a_new_networks_features_are_timms(config, net, timms, images, kind, training, drops):
    shape = {**config().backbone_kwargs, **drops}
    model = net(ffn_adapter_type=kind, backbone_kwargs=shape).train(training)
    with torch.no_grad():
        torch.testing.assert_close(model(images)["features"], timms()(images), rtol=1e-5, atol=1e-5)


def test_logits_are_the_heads_on_the_features(net, images):
    model = net(nb_classes=7)
    output = model(images)
    weight, bias = (parameter.detach().numpy() for parameter in model.fc.parameters())
    np.testing.assert_allclose(
        output["logits"].detach().numpy(), output["features"].detach().numpy() @ weight.T + bias, rtol=1e-5, atol=1e-6
    )
    assert output["logits"].shape == (5, 7)


def test_the_head_is_born_with_kaiming_uniform_weights_and_zero_bias(net):
    fc = net(nb_classes=2000).fc
    assert fc.weight.abs().max().item() == pytest.approx(1 / np.sqrt(32), rel=1e-3)
    assert fc.weight.std().item() == pytest.approx(1 / np.sqrt(3 * 32), rel=0.01)
    assert not fc.bias.any()


def test_the_adapter_acts_beside_the_mlp_of_its_block(net, timms, randomize, images):
    """y = h + mlp(norm2(h)) + adapter(h), with the sum written out on timm's own blocks."""
    model = net().eval()
    slot = randomize(model.slots[3])  # the last block: outside the range, one adapter
    vit = timms()
    vit.blocks[3].register_forward_hook(lambda _, inputs, output: output + slot.adapters[0](seen[3]))
    seen: list[Tensor] = []
    for block in vit.blocks:
        block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(model(images)["features"], vit(images))
    assert not torch.allclose(model(images)["features"], timms()(images))


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_routers_and_head_get_a_gradient(net, images, kind):
    model = net(ffn_adapter_type=kind).train()
    model(images)["logits"].square().sum().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert got == {name for name in learns if ".rd." not in name}
    assert {name for name in got if ".functional." not in name} == {
        *(f"backbone.blocks.{layer}.adapter_module.router.{part}" for layer in (1, 2) for part in ("weight", "bias")),
        "fc.weight",
        "fc.bias",
    }


def test_training_mode_is_the_slots_alone(net):
    model = net().train()
    training = {name for name, module in model.named_modules() if module.training}
    outside = {name for name in training if ".adapter_module" not in name}
    assert outside == {"", "fc"}
    assert all(module.training for slot in model.slots for module in slot.modules())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_forward_never_changes_the_module_tree(net, images):
    model = net(exp_threshold=0.0).train()
    tree = [(name, id(module)) for name, module in model.named_modules()]
    for scale in (1, 1e3, 1):
        model.train()(scale * images)
        model.eval()(scale * images)
        model.token_means(scale * images, [1, 2])
    assert [(name, id(module)) for name, module in model.named_modules()] == tree


# ---- what a slot sees


def test_token_means_are_those_of_timms_norm2_inputs(net, timms, images):
    model, h = net().eval(), norm2_inputs(timms(), images)
    means = model.token_means(images, [1, 3])
    assert means.keys() == {1, 3}
    for layer, mean in means.items():
        np.testing.assert_allclose(mean.numpy(), h[layer].numpy().mean(axis=1), rtol=1e-5, atol=1e-6)
        assert not mean.requires_grad


def test_slot_inputs_are_timms_norm2_inputs(net, timms, images):
    h = norm2_inputs(timms(), images)
    inputs = net().slot_inputs(images, [0, 2])
    assert inputs.keys() == {0, 2}
    assert all(torch.equal(inputs[layer], h[layer]) for layer in inputs)
    assert net().slot_inputs(images, []) == {}


def test_token_means_compute_nothing_beyond_the_deepest_layer(net, images):
    model, called = net(), []
    for layer, block in enumerate(model.backbone.blocks):
        for name, module in block.named_children():
            module.register_forward_hook(lambda *_, place=(layer, name): called.append(place))
    for module in (model.backbone.norm, model.fc):
        module.register_forward_hook(lambda *_: called.append(("after", "")))
    model.token_means(images, [1, 2])
    assert {layer for layer, _ in called} == {0, 1, 2}
    assert not {name for layer, name in called if layer == 2} & {"norm2", "mlp", "adapter_module"}


def test_the_rd_phase_gives_the_backbone_no_gradient(net, images):
    model = net()
    means = model.token_means(images, [1, 2])
    sum(slot.rd_loss(means[slot.layer]) for slot in model.expandable).backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got
    assert all(".rd." in name for name in got)


# ---- structure


def test_slots_by_layer_and_the_expandable_ones(net):
    model = net()
    assert [slot.layer for slot in model.slots] == [0, 1, 2, 3]
    assert [slot.layer for slot in model.expandable] == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_roles_name_every_parameter_that_is_not_the_backbones_once(net, kind):
    model = net(ffn_adapter_type=kind)
    model.expandable[0].end_of_cycle()
    model.expandable[0].expand()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    roles = [(names[id(parameter)], role) for role, parameter in model.roles()]
    ours = {name for name in names.values() if ".adapter_module." in name or name.startswith("fc.")}
    assert len(roles) == len(ours)
    assert dict(roles).keys() == ours
    assert {name for name, role in roles if role == "head"} == {"fc.weight", "fc.bias"}
    assert {name for name in names.values() if name not in ours} == {
        name for name, parameter in model.named_parameters() if name not in dict(roles) and not parameter.requires_grad
    }


def test_the_learned_state_holds_every_public_name_and_the_records(net):
    state = net().learned_state()
    expected = {"fc.weight", "fc.bias"}
    for layer in range(4):
        slot = f"backbone.blocks.{layer}.adapter_module"
        expected |= {f"{slot}.router.weight", f"{slot}.router.bias"}
        parts = ["functional.down_proj", "functional.up_proj"]
        if layer in (1, 2):
            parts += ["rd.encoder", "rd.decoder"]
            expected.add(f"{slot}.adapters.0.records.losses")
        expected |= {f"{slot}.adapters.0.{part}.{name}" for part in parts for name in ("weight", "bias")}
    assert state.keys() == expected


# ---- adapter types and their branches


@pytest.mark.parametrize(
    ("kind", "cls"),
    [("adaptmlp", Adapter), ("nested_lora", NestedLoRAAdapter), ("gain", Gain), ("three_branches", ThreeBranches)],
)
def test_the_network_knows_its_adapter_type_and_its_branches(net, kind, cls):
    model = net(ffn_adapter_type=kind)
    assert model.adapter_type is cls
    assert model.active_branches == cls.branches
    found = [(layer, index, id(adapter), id(tokens)) for layer, index, adapter, tokens in model.branched_adapters()]
    slots = model.slots if cls.branches else []
    assert found == [(slot.layer, 0, id(slot.functional[0]), id(slot.tokens)) for slot in slots]


@pytest.mark.parametrize(
    ("kind", "lifetime", "continual"),
    [
        ("nested_lora", "expansion", False),
        ("nested_lora", "continual", True),
        ("three_branches", "continual", True),
        ("adaptmlp", "expansion", False),
        ("adaptmlp", "continual", True),
        ("gain", "continual", True),
    ],
)
def test_the_key_says_whether_adapters_of_any_type_learn_again_in_every_task(net, kind, lifetime, continual):
    assert net(ffn_adapter_type=kind, adapter_lifetime=lifetime).continual == continual


@torch.no_grad()
def test_chosen_branches_answer_as_if_the_others_were_zero(net, randomize, images):
    model = net(ffn_adapter_type="three_branches").eval()
    for slot in model.slots:
        randomize(slot, 0.1)
    whole = model(images)["logits"]
    for active in (("slow", "fast"), ("mid",), ()):
        with model.branches(active):
            assert model.active_branches == active
            some = model(images)["logits"]
        silenced = copy.deepcopy(model)
        for slot in silenced.slots:
            for name in {"slow", "mid", "fast"} - set(active):
                slot.functional[0].get_submodule(name).zero()
        torch.testing.assert_close(some, silenced(images)["logits"])
        assert not torch.allclose(some, whole)
        assert torch.equal(model(images)["logits"], whole)
        assert model.active_branches == ("slow", "mid", "fast")


def test_all_branches_answer_again_after_an_error(net):
    model = net(ffn_adapter_type="nested_lora")
    with pytest.raises(RuntimeError, match="in between"), model.branches(("slow",)), model.branches(()):
        raise RuntimeError("in between")
    assert model.active_branches == model.slots[0].functional[0].active == ("slow", "fast")


def test_an_unknown_adapter_type_is_refused(net):
    with pytest.raises(ValueError, match=r"'lora' is unknown; choose one of adaptmlp, nested_lora, gain"):
        net(ffn_adapter_type="lora")


# ---- configuration


def test_the_same_draws_make_the_same_network(config):
    torch.manual_seed(5)
    first = SEMAVitNet(config(), 6).state_dict()
    torch.manual_seed(5)
    second = SEMAVitNet(config(), 6).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    torch.manual_seed(6)
    other = SEMAVitNet(config(), 6).state_dict()
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_provenance_tells_tag_origin_and_hash(config, net, weights):
    first, second = net().provenance, net(ffn_adapter_type="nested_lora", nb_classes=3).provenance
    assert first == second
    assert (first["timm_name"], first["weights"], len(first["sha256"])) == (TAG, str(weights), 64)
    random = SEMAVitNet(config(), 6).provenance
    assert random["weights"] == "random"
    assert random["sha256"] != first["sha256"]


@pytest.mark.parametrize(("normalize", "mean", "std"), [(False, None, None), (True, (0.5,) * 3, (0.5,) * 3)])
def test_the_input_is_the_models_size_and_on_demand_the_weights_own_normalisation(net, normalize, mean, std):
    spec = net().input_spec(normalize)
    assert spec.size == 32
    assert (spec.mean, spec.std) == (mean, std)


def test_a_checkpoint_is_read_and_nothing_else(config, weights, monkeypatch):
    """`backbone_checkpoint` wins over `pretrained` and never touches the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "load_custom_from_hf"):
        monkeypatch.setattr(timm.models._builder, name, refuse, raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    state = SEMAVitNet(config(backbone_checkpoint=str(weights), pretrained=True), 6).backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in load_file(weights).items())
    SEMAVitNet(config(pretrained=False), 6)


def test_pretrained_asks_the_hub(config, monkeypatch):
    asked = []

    def fails(repository: str, *_: object, **__: object) -> None:
        asked.append(repository)
        raise OSError("no cable")

    monkeypatch.setattr("backbone.vit_sema.unreachable", lambda address: "")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fails)
    with pytest.raises(ConfigError, match=r"no cable.*backbone_checkpoint"):
        get_backbone(config(pretrained=True, backbone_kwargs={}))
    assert asked == [f"timm/{TAG}"]


@pytest.mark.parametrize("check", [get_backbone, check_backbone])
@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"backbone_type": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224_adapter"),
        ({"backbone_type": "resnet18_adapter", "backbone_kwargs": {}}, "resnet18"),
        ({"backbone_kwargs": {"embed_dim": 33, "num_heads": 2}}, "embed_dim"),
        ({"backbone_checkpoint": "nowhere/vit.pth"}, "nowhere/vit.pth"),
        ({"adapt_end_layer": 4}, "adapt_end_layer"),
    ],
)
def test_what_does_not_work_out_is_a_config_error_that_names_it(config, check, keys, named):
    with pytest.raises(ConfigError, match=named):
        check(config(**keys))


def test_no_pickle_of_a_stranger_is_run_for_weights(config, tmp_path):
    class Stranger:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"norm.weight": Stranger()}, tmp_path / "vit.pth")
    with pytest.raises(ConfigError, match=r"vit\.pth.*objects of other classes"):
        get_backbone(config(backbone_checkpoint=str(tmp_path / "vit.pth")))
    assert not (tmp_path / "ran").exists()


def test_compressed_weights_are_refused_unread(config, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "vit.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vit/data/0", bytes(10**6))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ConfigError, match=r"vit\.pth.*cannot be read as weights: vit/data/0 in it is compressed"):
        get_backbone(config(backbone_checkpoint=str(tmp_path / "vit.pth")))


def test_a_network_larger_than_the_memory_is_refused(config):
    kwargs = {**config().backbone_kwargs, "embed_dim": 2**20}
    with pytest.raises(ConfigError, match="bytes, the memory here is"):
        get_backbone(config(backbone_kwargs=kwargs))


class Biased(FunctionalAdapter):
    """Not the zero map."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


class Narrow(FunctionalAdapter):
    """Loses half of the width."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., ::2])


class Unfinished(FunctionalAdapter):
    """Has no forward."""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Biased, "'odd': a new adapter must be the zero map"),
        (Narrow, r"'odd': forward returns the shape \(1, 2, 16\), expected \(1, 2, 32\)"),
        (Unfinished, r"'odd': forward fails on an input of shape \(1, 2, 32\)"),
    ],
)
def test_an_adapter_that_is_no_zero_map_at_birth_is_refused(config, kind, message):
    with registered():
        ADAPTERS.register("odd")(kind)
        with pytest.raises(ConfigError, match=message):
            SEMAVitNet(config(ffn_adapter_type="odd"), 6)
