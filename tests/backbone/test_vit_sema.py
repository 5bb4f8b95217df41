"""Names, refusals and weights of the backbone; the network with slots against timm's own."""

import hashlib
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from easydict import EasyDict
from huggingface_hub import constants as hub
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from backbone import vit_sema
from backbone.vit_sema import (
    BackboneError,
    create_vit,
    embed,
    insert_slots,
    load_weights,
    sema_blocks,
    slot_inputs,
    timm_name,
    unreachable,
    weights_hash,
)

NAME = "vit_tiny_patch16_224"
SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.fixture(scope="module")
def built() -> dict[str, VisionTransformer]:
    return {}


@pytest.fixture
def vit(built) -> Callable[..., VisionTransformer]:
    """Tiny networks, built once and then copied."""

    def make(**kwargs: object) -> VisionTransformer:
        if repr(kwargs) not in built:
            built[repr(kwargs)] = create_vit(NAME, False, {**SHAPE, **kwargs}).eval()
        return deepcopy(built[repr(kwargs)])

    return make


@pytest.fixture
def timms() -> Callable[..., VisionTransformer]:
    """timm's own model, with a classifier unless told otherwise, as published files have one."""
    return lambda **kwargs: timm.create_model(NAME, **{"num_classes": 7, **SHAPE, **kwargs}).eval()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any way from here to the hub fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    for module in (timm.models._builder, timm.models._hub):
        for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "load_custom_from_hf"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)


# ---- names


@pytest.mark.parametrize(
    ("backbone_type", "name"),
    [
        ("pretrained_vit_b16_224_adapter", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("pretrained_vit_b16_224_in21k_adapter", "vit_base_patch16_224.augreg_in21k"),
        ("vit_base_patch16_224_adapter", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("vit_base_patch16_224.augreg_in21k_adapter", "vit_base_patch16_224.augreg_in21k"),
        ("vit_tiny_patch16_224.augreg_in21k_adapter", "vit_tiny_patch16_224.augreg_in21k"),
        ("deit_tiny_patch16_224_adapter", "deit_tiny_patch16_224.fb_in1k"),
        ("vit_base_patch16_224_in21k_adapter", "vit_base_patch16_224.augreg_in21k"),
        ("vit_small_patch16_224_dino_adapter", "vit_small_patch16_224.dino"),
        ("vit_huge_patch14_224_clip_laion2b_adapter", "vit_huge_patch14_clip_224.laion2b"),
    ],
)
def test_names_resolve_to_the_full_tag(backbone_type, name):
    assert timm_name(backbone_type) == name


@pytest.mark.parametrize(
    "without", ["vit_base_patch16_224", "pretrained_vit_b16_224", "vit_base_patch16_224_adapters", ""]
)
def test_a_name_without_the_suffix_is_refused(without):
    with pytest.raises(BackboneError, match=f"'{without}' is unknown"):
        timm_name(without)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("vit_bse_patch16_224_adapter", "vit_base_patch16_224_adapter"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224_adapter"),
        ("pretrained_vit_b16_244_adapter", "pretrained_vit_b16_224_adapter"),
        ("timm/vit_tiny_patch16_224_adapter", "vit_tiny_patch16_224_adapter"),
        ("VIT_base_patch16_224_adapter", "vit_base_patch16_224_adapter"),
    ],
)
def test_an_unknown_name_gets_the_nearest(wrong, near):
    with pytest.raises(BackboneError) as error:
        timm_name(wrong)
    message = str(error.value)
    assert f"{wrong!r} is unknown" in message
    assert near in message.split("nearest:")[1]
    assert all(name in message for name in ("pretrained_vit_b16_224_adapter", "pretrained_vit_b16_224_in21k_adapter"))


def test_an_unknown_tag_gets_the_tags_there_are():
    with pytest.raises(
        BackboneError, match=r"'vit_base_patch16_224.nope_adapter'.*augreg2_in21k_ft_in1k.*augreg_in21k"
    ):
        timm_name("vit_base_patch16_224.nope_adapter")


# ---- architectures


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("resnet18", "ResNet"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("vit_medium_patch16_gap_240", "class token"),
        ("vit_base_patch16_siglip_224", "class token"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
    ],
)
def test_other_architectures_are_refused_by_name(name, why):
    small = {"depth": 1} if name.startswith(("vit", "deit")) else {}
    with pytest.raises(BackboneError, match=f"^{name} .*{why}"):
        create_vit(name, False, small)


def test_refusing_builds_no_weights(monkeypatch):
    """A refused network of any size costs no memory: it is looked at on the meta device."""
    built = []
    create = timm.create_model

    def watched(*args: Any, **kwargs: Any) -> torch.nn.Module:
        model = create(*args, **kwargs)
        built.append({parameter.device.type for parameter in model.parameters()})
        return model

    monkeypatch.setattr(timm, "create_model", watched)
    vit_sema._plain.cache_clear()
    with pytest.raises(BackboneError):
        create_vit("vit_medium_patch16_gap_240", False, {"depth": 1})
    assert built == [{"meta"}]


def test_kwargs_reach_timm(vit):
    model = vit(reg_tokens=2, init_values=0.1)
    assert (model.embed_dim, len(model.blocks), model.patch_embed.img_size) == (32, 4, (32, 32))
    assert model.num_prefix_tokens == 3
    assert not list(model.head.parameters())
    assert model.blocks[0].ls1.gamma.shape == (32,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"embed_dim": 33},
            "embed_dim = 33, num_heads = 2; expected a width that is a multiple of the heads, such as 32",
        ),
        ({"num_heads": 5}, "embed_dim = 32, num_heads = 5; .* such as 30"),
        ({"depht": 4}, "depht = 4: unknown argument; did you mean depth"),
        ({"num_classes": 3}, "num_classes = 3: unknown argument; "),
        ({"xyz": None}, "xyz = null: unknown argument; there are img_size, patch_size"),
        ({"img_size": "large"}, 'img_size = "large"; expected the side of the images'),
        ({"img_size": [32, 64]}, r"img_size = \[32, 64\]; expected .* images are square"),
        ({"img_size": 0}, "img_size = 0; expected .* from 1 to 8192"),
        ({"img_size": 2**20}, "img_size = 1048576; expected .* from 1 to 8192"),
        ({"img_size": None}, "img_size = null; expected"),
        ({"img_size": 4}, "img_size = 4, patch_size = 8; expected an image of at least one patch"),
        ({"patch_size": 0}, "patch_size = 0; expected the side of a patch"),
        ({"in_chans": 1}, "in_chans = 1; expected 3, as images are read as RGB"),
        ({"in_chans": 4}, "in_chans = 4; expected 3"),
        ({"num_heads": 0}, "num_heads = 0; expected a whole number from 1"),
        ({"depth": 2.0}, "depth = 2.0; expected a whole number from 1 to 1000"),
        ({"depth": True}, "depth = true; expected a whole number"),
        ({"depth": 10**9}, "depth = 1000000000; expected a whole number from 1 to 1000"),
        ({"class_token": False}, "class_token = false; expected true"),
        ({"global_pool": "avg"}, 'global_pool = "avg"; expected "token"'),
        ({"qkv_bias": "yes"}, 'qkv_bias = "yes"; expected true or false'),
        ({"reg_tokens": -1}, "reg_tokens = -1; expected a whole number from 0"),
        ({"drop_path_rate": 1.5}, "drop_path_rate = 1.5; expected a number from 0 to 0.99"),
        ({"norm_layer": "nope"}, 'norm_layer = "nope": vit_tiny_patch16_224 cannot be built with this'),
        ({"act_layer": 3}, "act_layer = 3; expected the name of one of timm's layers"),
        ({"depth": 0, "qk_norm": 1}, "depth = 0; expected .*\nbackbone_kwargs: qk_norm = 1; expected true or false"),
    ],
)
def test_arguments_that_do_not_fit_are_named_with_what_was_expected(kwargs, message):
    with pytest.raises(BackboneError, match=f"^backbone_kwargs: {message}") as error:
        create_vit(NAME, False, {**SHAPE, **kwargs})
    assert "Error(" not in str(error.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"img_size": [32, 32]}, {"img_size": 36}, {"reg_tokens": 4}, {"no_embed_class": True, "reg_tokens": 1},
        {"dynamic_img_size": True}, {"pos_embed": "none"}, {"pre_norm": True}, {"fc_norm": True}, {"qk_norm": True},
        {"act_layer": "relu", "mlp_ratio": 2}, {"norm_layer": "rmsnorm"}, {"patch_drop_rate": 0.5},
        {"weight_init": "jax"}, {"weight_init": "moco"}, {"weight_init": "reset"}, {"final_norm": False},
    ],
)  # fmt: skip
def test_arguments_that_fit_give_timms_features(timms, with_slots, kwargs):
    model = create_vit(NAME, False, {**SHAPE, **kwargs}).eval()
    other = timms(num_classes=0, **kwargs)
    other.load_state_dict(model.state_dict())
    side = model.patch_embed.img_size[0]
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = embed(with_slots(model), pixels)
    for block in sema_blocks(model):
        x = block(x)
    torch.testing.assert_close(model.forward_head(model.norm(x)), other(pixels))


@pytest.mark.parametrize("kwargs", [{"depth": 4}, {"embed_dim": 96, "num_heads": 3}, {"reg_tokens": 1}])
def test_pretrained_weights_of_another_shape_are_refused_before_they_are_fetched(offline, kwargs):
    key = next(iter(kwargs))
    with pytest.raises(BackboneError, match=f"{key} = {kwargs[key]}.*: the pretrained weights of .* another shape"):
        create_vit(f"{NAME}.augreg_in21k", True, kwargs)


# ---- weights


def as_file(state: object, path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def assert_loaded(model: VisionTransformer, state: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float()), name


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_local_file_with_a_classifier_loads(vit, timms, tmp_path, suffix, dtype):
    state = {name: value.to(dtype) for name, value in timms().state_dict().items()}
    assert "head.weight" in state
    model = vit()
    load_weights(model, as_file(state, tmp_path / f"weights.{suffix}"))
    assert_loaded(model, state)


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_training_checkpoints_weights_load(vit, timms, tmp_path, wrapper):
    state = timms(num_classes=0).state_dict()
    model = vit()
    load_weights(model, as_file({wrapper: state, "epoch": 3}, tmp_path / "weights.pth"))
    assert_loaded(model, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_position_grid_is_resampled_as_timm_does(vit, timms, tmp_path, images, dtype):
    other = timms(img_size=48)
    state = {name: value.to(dtype) for name, value in other.state_dict().items()}
    model = vit()
    load_weights(model, as_file(state, tmp_path / "weights.safetensors"))
    assert model.pos_embed.shape == (1, 17, 32)
    other.set_input_size(img_size=32)  # timm's own way to another grid
    other.reset_classifier(0)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(model(images), other(images), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: {name: value for name, value in state.items() if name != "norm.weight"}, "norm.weight"),
        (lambda state: {name: value for name, value in state.items() if not name.startswith("blocks.3")}, "blocks.3"),
        (lambda state: {**state, "blocks.4.norm1.weight": torch.ones(32)}, "blocks.4.norm1.weight"),
        (lambda state: {**state, "norm.weight": torch.ones(48)}, "norm.weight"),
        (lambda state: {"foo": torch.ones(1)}, "foo"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_that_do_not_fit_are_named(vit, timms, tmp_path, change, named, suffix):
    path = as_file(change(timms().state_dict()), tmp_path / f"weights.{suffix}")
    with pytest.raises(BackboneError) as error:
        load_weights(vit(), path)
    assert named in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth"])
def test_a_missing_file_is_named(vit, tmp_path, name):
    (tmp_path / f"x{name}").touch()
    with pytest.raises(
        BackboneError, match=r"backbone_checkpoint .* does not exist; did you mean '.*xmissing"
    ) as error:
        load_weights(vit(), tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_file_on_record_that_was_moved_is_asked_for_at_its_new_place(vit, tmp_path, monkeypatch):
    with pytest.raises(BackboneError, match=r"does not exist; if it was moved, .* with --backbone_checkpoint$"):
        load_weights(vit(), tmp_path / "away" / "weights.pth")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match=r"does not exist \(a relative path starts at the working directory, .*\)$"):
        load_weights(vit(), Path("away/weights.pth"))


@pytest.mark.parametrize("what", [[1, 2], torch.ones(2), {1: torch.ones(2)}, {"norm.weight": 3}])
def test_a_torch_file_of_something_else_is_named(vit, tmp_path, what):
    path = as_file(what, tmp_path / "weights.pth")
    with pytest.raises(BackboneError) as error:
        load_weights(vit(), path)
    assert str(path) in str(error.value)


def test_the_hash_follows_every_value_and_name(vit):
    first, second = vit().state_dict(), vit().state_dict()
    digest = hashlib.sha256()
    for name in sorted(first):
        digest.update(name.encode())
        digest.update(first[name].numpy().tobytes())
    assert weights_hash(first) == weights_hash(second) == digest.hexdigest()
    with torch.no_grad():
        second["norm.bias"][3] += 1e-6
    assert weights_hash(second) != weights_hash(first)


def test_random_weights_never_touch_the_network(offline):
    create_vit(NAME, False, SHAPE)


def test_a_failed_download_names_file_and_key(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError("the cable is cut")

    monkeypatch.setattr(vit_sema, "unreachable", lambda address: "")
    for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "load_custom_from_hf"):
        monkeypatch.setattr(timm.models._builder, name, fails, raising=False)
    with pytest.raises(BackboneError) as error:
        create_vit("vit_tiny_patch16_224.augreg_in21k", True, {})
    message = str(error.value)
    assert "the cable is cut" in message
    assert "https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k/resolve/main/model.safetensors" in message
    assert "backbone_checkpoint" in message
    assert "pretrained" in message


def test_without_a_connection_the_hub_is_given_up_soon(tmp_path, monkeypatch):
    """The client itself would try again for a minute, with lines of its own."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(
        BackboneError, match=r"no connection to https://\S+: .*refused\); download https://\S+tensors by"
    ):
        create_vit("vit_tiny_patch16_224.augreg_in21k", True, {})
    assert time.monotonic() - begun < 15
    assert not hub.HF_HUB_OFFLINE


def test_without_a_connection_the_weights_of_the_cache_are_used(monkeypatch):
    state, seen = timm.create_model(NAME).state_dict(), []
    monkeypatch.setattr(vit_sema, "unreachable", lambda address: "no route")
    monkeypatch.setattr(
        timm.models._builder,
        "load_state_dict_from_hf",
        lambda *_, **__: (seen.append(hub.HF_HUB_OFFLINE), dict(state))[1],
    )
    assert_loaded(create_vit(timm_name("vit_tiny_patch16_224.augreg_in21k_adapter"), True, {}), state)
    assert seen == [True]


def test_a_server_that_answers_is_reached_and_a_closed_port_is_not(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # which answers 501
        server.RequestHandlerClass.log_message = lambda *_: None
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert unreachable(address) == ""
        server.shutdown()
    assert "refused" in unreachable(address)


def test_a_download_asks_for_the_tags_weights(monkeypatch):
    """The tag that was resolved is the one that is fetched, and its values are those of the network."""
    state, asked = timm.create_model(NAME).state_dict(), []

    def fetched(repository: str, *_: object, **__: object) -> dict[str, Tensor]:
        asked.append(repository)
        return dict(state)

    monkeypatch.setattr(vit_sema, "unreachable", lambda address: "")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fetched)
    model = create_vit(timm_name("vit_tiny_patch16_224.augreg_in21k_adapter"), True, {})
    assert asked == ["timm/vit_tiny_patch16_224.augreg_in21k"]
    assert_loaded(model, state)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"embed_dim": 2**20, "num_heads": 2}, r"takes [\d,]{19} bytes, the memory here is 2,000,000,000"),
        ({"img_size": 8192, "patch_size": 1, "embed_dim": 64}, "takes .* bytes, the memory here is 2,000,000,000"),
    ],
)
def test_a_network_too_large_for_any_use_is_refused_before_it_is_made(kwargs, message):
    with pytest.raises(BackboneError, match=message):
        create_vit(NAME, False, {**SHAPE, **kwargs}, 2 * 10**9)


# ---- slots


@pytest.fixture
def with_slots(config) -> Callable[..., VisionTransformer]:
    def insert(vit: VisionTransformer, **keys: object) -> VisionTransformer:
        insert_slots(vit, config(d_model=vit.embed_dim, **keys))
        return vit.eval()

    return insert


KINDS = [
    {},
    {"reg_tokens": 2},
    {"init_values": 0.3},
    {"pre_norm": True},
    {"no_embed_class": True},
    {"dynamic_img_size": True},
    {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "patch_drop_rate": 0.5},
]


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
@pytest.mark.parametrize("kwargs", KINDS)
def test_new_slots_leave_timms_features(vit, with_slots, images, kwargs, kind):
    model = vit(**kwargs)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(with_slots(model, ffn_adapter_type=kind)(images), expected)


@pytest.mark.parametrize("kwargs", KINDS)
def test_slot_inputs_are_what_timm_feeds_to_norm2(vit, with_slots, images, kwargs):
    model, seen = vit(**kwargs), []
    handles = [
        block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for block in model.blocks
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    inputs = list(slot_inputs(with_slots(model), embed(model, images), 0, last=3))
    assert len(inputs) == len(seen) == 4
    for ours, timms_own in zip(inputs, seen, strict=True):
        assert torch.equal(ours, timms_own)


def test_slot_inputs_feel_the_adapters_before_them(vit, with_slots, randomize, images):
    model = with_slots(vit())
    before = list(slot_inputs(model, embed(model, images), 0, last=3))
    randomize(sema_blocks(model)[1].adapter_module)
    after = list(slot_inputs(model, embed(model, images), 0, last=3))
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize("last", [0, 2])
def test_slot_inputs_stop_at_the_last_that_is_wanted(vit, with_slots, images, last):
    model, called = with_slots(vit()), []
    for layer, block in enumerate(model.blocks):
        for name, module in block.named_children():
            module.register_forward_hook(lambda *_, place=(layer, name): called.append(place))
    model.norm.register_forward_hook(lambda *_: called.append("norm"))
    assert len(list(slot_inputs(model, embed(model, images), 0, last))) == last + 1
    at_last = {name for place in called for layer, name in [place] if layer == last}
    assert {layer for layer, _ in called} == set(range(last + 1))
    assert {"norm1", "ls1"} <= at_last
    assert not at_last & {"norm2", "mlp", "adapter_module"}


def test_embed_is_timms_input_to_the_first_block(vit, images):
    model, seen = vit(pre_norm=True), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    assert torch.equal(embed(model, images), seen[0])


def test_slots_freeze_the_network_and_keep_timms_names(vit, with_slots):
    model = vit()
    names, values = set(model.state_dict()), {name: value.clone() for name, value in model.state_dict().items()}
    with_slots(model)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns
    assert all(".adapter_module." in name for name in learns)
    assert {name for name in model.state_dict() if ".adapter_module." not in name} == names
    assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())
    assert {f"blocks.{layer}.adapter_module.router.weight" for layer in range(4)} <= set(model.state_dict())
    assert [block.adapter_module.layer for block in sema_blocks(model)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("start", "end"), [(0, 4), (9, 11)])
def test_a_layer_range_outside_the_network_is_refused(vit, with_slots, start, end):
    with pytest.raises(BackboneError, match=rf"adapt_start_layer {start}.*adapt_end_layer {end}.*0 to 3"):
        with_slots(vit(), adapt_start_layer=start, adapt_end_layer=end)


def test_width_and_depth_are_the_models(with_slots):
    model = with_slots(create_vit(NAME, False, {**SHAPE, "embed_dim": 48, "depth": 3}))
    shapes = {tuple(block.adapter_module.router.weight.shape) for block in sema_blocks(model)}
    assert len(sema_blocks(model)) == 3
    assert shapes == {(1, 48)}
    assert isinstance(sema_blocks(model)[0].adapter_module.config, EasyDict)


def test_backbone_imports_nothing_of_ours():
    sources = [path.read_text() for path in Path(vit_sema.__file__).parent.glob("*.py")]
    assert sources
    for source in sources:
        assert "from utils" not in source
        assert "import utils" not in source
        assert "from models" not in source
