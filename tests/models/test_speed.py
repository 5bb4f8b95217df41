"""The opt-in keys of speed: what each changes, what it must not change, and that it acts."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_trainer import configuration, events, images, results, run  # noqa: F401
from torch._dynamo.utils import counters

import trainer
from models import Setup, base
from models.sema import Learner
from utils.data import decoded
from utils.data import tasks as data_manager
from utils.data.decoded import DecodedImages
from utils.data.images import open_image, open_pixels
from utils.data.loader import READY, StreamLoader
from utils.inc_net import SEMAVitNet


@pytest.fixture
def x() -> torch.Tensor:  # (B, 3, S, S)
    return torch.rand(5, 3, 32, 32)


@pytest.fixture
def network(config: Callable[..., Any], randomize: Callable[..., Any]) -> Callable[..., SEMAVitNet]:
    """A network of random values, the same for the same adapters."""

    def make(**keys: Any) -> SEMAVitNet:
        torch.manual_seed(0)
        made = SEMAVitNet(config(**keys), 6)
        for slot in made.slots:
            torch.manual_seed(slot.layer)
            randomize(slot, scale=0.1)
        return made

    return make


def gradients(network: SEMAVitNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    network.train()
    network(x)["logits"].square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


# ---- precision


def test_bfloat16_computes_products_in_it_and_keeps_the_rest(network, x):
    exact, reduced = network(), network(precision="bf16")
    seen: dict[str, torch.dtype] = {}
    block = reduced.backbone.blocks[1]
    for name, module in {
        "qkv": block.attn.qkv,
        "down": block.mlp.fc1,
        "residual": block,
        "slot": block.adapter_module,
    }.items():
        module.register_forward_hook(lambda *args, name=name: seen.update({name: args[2].dtype}))
    out = reduced(x)
    assert (seen["qkv"], seen["down"], seen["residual"]) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert {p.dtype for p in reduced.parameters()} == {torch.float32}
    assert out["logits"].dtype == out["features"].dtype == torch.float32
    gap = (out["features"] - exact(x)["features"]).norm() / exact(x)["features"].norm()
    assert 0 < gap < 0.02


def test_routers_descriptors_and_records_stay_float32(network, x):
    reduced = network(precision="bf16").train()
    slot = reduced.slots[1]
    seen: list[torch.dtype] = []
    slot.newest.rd.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    slot.router.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    reduced(x)
    assert seen == [torch.float32, torch.float32]
    assert slot.newest.records.losses.dtype == torch.float32
    assert {mean.dtype for mean in reduced.token_means(x, [1, 2]).values()} == {torch.float32}


def test_an_evaluation_in_bfloat16_takes_no_gradient_from_a_later_step(network, x):
    """Autocast keeps converted weights as long as it is on, and those converted without gradients would get none."""
    evaluated, fresh = network(precision="bf16"), network(precision="bf16")
    with torch.no_grad():
        evaluated.forward_from(evaluated.forward_to(x, 1), 1)
    torch.testing.assert_close(gradients(evaluated, x), gradients(fresh, x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
def test_a_bfloat16_run_learns_and_ends_near_the_exact_one(run: Callable[..., Path], kind: str) -> None:  # noqa: F811
    exact, reduced = (run(name, ffn_adapter_type=kind, precision=name) for name in ("fp32", "bf16"))
    losses = [[event["loss"] for event in events(path, "epoch")][:4] for path in (exact, reduced)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    lines = [
        (path / "log.txt").read_text().count(" precision bf16: a layer of this backbone ") for path in (exact, reduced)
    ]
    assert lines == [0, 1]


def test_what_bfloat16_gains_is_measured_without_a_change_of_the_run(run, monkeypatch) -> None:  # noqa: F811
    measured = run("measured", precision="bf16")
    monkeypatch.setattr(Learner, "precision_note", lambda self: None)
    unmeasured = run("unmeasured", precision="bf16")
    assert events(measured, "epoch") == events(unmeasured, "epoch")


def test_a_dry_run_says_what_bfloat16_gains(images, tmp_path: Path, capsys) -> None:  # noqa: F811
    trainer.train(configuration(images, tmp_path / "dry", dry_run=True, precision="bf16"), "tiny")
    assert capsys.readouterr().out.startswith("precision bf16: a layer of this backbone takes ")


def test_a_layer_of_the_backbone_is_timed_with_the_tokens_of_a_batch(monkeypatch, config) -> None:
    asked: list[tuple[Any, int]] = []
    monkeypatch.setattr(base, "bf16_note", lambda device, layer, tokens: asked.append((layer, tokens)) or (20, "said"))
    setup = Setup(config(precision="bf16", batch_size=7), 0, torch.device("cpu"), 6)
    learner = Learner(setup)
    assert learner.precision_note() == (20, "said")
    assert asked == [(learner.network.backbone.blocks[0].mlp.fc1, 7 * 17)]  # 4 x 4 patches and the class token


# ---- compiling


# torch 2.12's inductor imports what torch itself has deprecated (2026-11)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
def test_compiled_blocks_share_their_functions_give_the_same_numbers_and_stay_as_they_are_in_an_expansion(
    network, x, monkeypatch
):
    # Torch's own backend would spend 40 s in the C++ compiler on what is the same graphs.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = network(), network(compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)["logits"], plain(x)["logits"], rtol=1e-4, atol=1e-5)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == 4  # attention and MLP, for all tokens and for the class token
        compiled.slots[1].expand()
        compiled.slots[1].end_of_cycle()
        compiled(x)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


# ---- recomputing


def test_recomputing_gives_the_same_gradients_and_notes_every_loss_once(network, x):
    plain, recomputing = network(), network(grad_checkpointing=True)
    once, again = gradients(plain, x), gradients(recomputing, x)
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert [len(slot.newest.records) for slot in recomputing.expandable] == [5, 5]


def test_recomputing_keeps_fewer_activations(network, x):
    def kept(made: SEMAVitNet) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            made.train()(x)
        return sum(sizes)

    assert kept(network(grad_checkpointing=True)) < 0.7 * kept(network())


# ---- images decoded once


@pytest.fixture
def files(images: Path, tmp_path: Path) -> dict[str, Any]:  # noqa: F811
    """The keys of a run on the same images in files."""
    with np.load(images) as arrays:
        for split in ("train", "test"):
            for number, (pixels, label) in enumerate(zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)):
                path = tmp_path / "files" / split / str(label) / f"{number:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return {"dataset": "imagefolder", "data_root": str(tmp_path / "files"), "max_tasks": 2, "rd_epoch": 1}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often training files are opened in this process, by name."""
    seen: Counter[str] = Counter()

    def counting(read: Callable[..., Any]) -> Callable[..., Any]:
        def noted(image: Any) -> Any:
            seen.update([image.name] if isinstance(image, Path) and "train" in image.parts else [])
            return read(image)

        return noted

    monkeypatch.setattr(data_manager, "open_image", counting(open_image))
    monkeypatch.setattr(decoded, "open_pixels", counting(open_pixels))
    return seen


def test_a_run_decodes_each_training_file_once_and_learns_the_same(
    run: Callable[..., Path],  # noqa: F811
    files: dict[str, Any],
    opened: Counter[str],
) -> None:
    files = {**files, "readouts": []}  # these read the images once more, prepared as test images
    plain = run("plain", **files, image_cache_gib=0)
    assert len(opened) == 40
    assert min(opened.values()) >= 3  # two func epochs and one rd epoch
    opened.clear()
    once = run("once", **files)
    assert (len(opened), set(opened.values())) == (40, {1})
    assert (results(once), events(once)) == (results(plain), events(plain))


def test_a_task_s_pixels_are_forgotten_before_the_next_ones_are_decoded(
    run: Callable[..., Path],  # noqa: F811
    files: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: list[weakref.ref[DecodedImages]] = []
    left: list[int] = []
    predict = Learner.predict

    def count(learner: Learner) -> Any:
        gc.collect()
        left.append(sum(pixels() is not None for pixels in alive))
        return predict(learner)

    def made(*given: Any) -> DecodedImages:
        new = DecodedImages(*given)
        alive.append(weakref.ref(new))
        return new

    monkeypatch.setattr(data_manager, "DecodedImages", made)
    monkeypatch.setattr(Learner, "predict", count)
    run(**files, branch_eval=False)
    assert len(alive) == 2
    assert left == [0, 0]


# ---- augmentation on the device


def test_training_images_are_augmented_on_the_device_in_every_pass_and_test_images_are_not(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, bool] = {}
    epoch = StreamLoader.epoch

    def noted(loader: StreamLoader, *stream: Any, **options: Any) -> Any:
        seen[stream[0]] = loader.way is not READY
        return epoch(loader, *stream, **options)

    monkeypatch.setattr(StreamLoader, "epoch", noted)
    consolidating = {"nested_lora_use_consolidation": True, "nested_lora_consolidation_mode": "function"}
    keys = {**consolidating, "max_tasks": 2, "rd_epoch": 1, "exp_threshold": 0.5, "branch_eval": False}
    keys["readouts"] = ["ncm"]
    host, device = run("host", **keys), run("device", **keys, augment_on="device")
    in_training = dict.fromkeys(["func", "rd", "scan", "refill", "probe"], True)
    assert seen == {**in_training, "readouts": False, "test": False}
    losses = [[event["loss"] for event in events(path, "epoch")][:3] for path in (host, device)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
