"""States that are damaged, or not this run's, and checkpoints of another model."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from fault_record import fault
from fault_runs import KEYS, Ended, Observe, Whole, contents
from safetensors.torch import save_file
from tiny_runs import KEYS as TINY
from tiny_runs import KINDS, Workshop, differences, finish


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """With one bit the other way."""
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


HARMS = {"cut in half": cut, "one bit flipped": flip, "emptied": lambda content: b""}


@fault("the newest state is damaged", "cut in half; one bit flipped; emptied")
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_newest_state_is_passed_over(harm: str, shop: Workshop, whole: Whole, observe: Observe) -> None:
    run = shop.make("damaged", KEYS)
    newest = max((run.killed(5) / "resume").iterdir())
    newest.write_bytes(HARMS[harm](newest.read_bytes()))
    process = run.resume()
    finish(process)
    assert f"{newest}: cannot be read: its checksum is wrong" in process.errors
    assert "using the state before it" in process.errors
    assert differences(run.path, whole(**KEYS)) == []
    observe(seen="a warning that names it; goes on from the one before, to the bit-identical end")


@fault("all states are damaged", "both cut in half")
def test_without_a_whole_state_nothing_is_removed(shop: Workshop, ended: Ended, observe: Observe) -> None:
    run = shop.make("lost", KEYS)
    for state in (run.killed(5) / "resume").iterdir():
        state.write_bytes(cut(state.read_bytes()))
    before = contents(run.path)
    for go_on in (run.resume, lambda: run.start("--auto_resume")):
        code, message = ended(go_on())
        assert (code, message) == (2, f"{run.path}/resume: no state can be used; --overwrite starts the run again")
    assert contents(run.path) == before
    observe(times=2, seen="exit code 2 and what to do; nothing is removed or changed")


@fault("the states of another run", "those of a run with another adapter, or another learning rate, put in their place")
@pytest.mark.parametrize("other", [KINDS["adaptmlp"], {**KINDS["weights"], "rd_lr": 0.02}])
def test_states_of_another_run_are_refused(
    other: dict[str, object], shop: Workshop, ended: Ended, observe: Observe
) -> None:
    run, stranger = shop.make("own", KEYS), shop.make("other", {**other, "max_tasks": 2})
    run.killed(5)
    stranger.killed(2)
    shutil.rmtree(run.path / "resume")
    shutil.copytree(stranger.path / "resume", run.path / "resume")
    before, process = contents(run.path), run.resume()
    code, message = ended(process)
    assert code == 2
    assert "no state can be used" in message
    assert "of another run, " in process.errors
    assert contents(run.path) == before
    observe(seen="exit code 2, which run they are of; nothing is removed or changed")


def write_weights(path: Path, seed: int) -> None:
    """Random weights of the tiny ViT."""
    torch.manual_seed(seed)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY["backbone_kwargs"])
    save_file(vit.state_dict(), path)


@fault("the backbone's weights are others than before", "their file is replaced while the run is not at work")
def test_a_run_does_not_go_on_on_another_backbone(
    shop: Workshop, ended: Ended, tmp_path: Path, observe: Observe
) -> None:
    weights = tmp_path / "vit.safetensors"
    write_weights(weights, seed=1)
    run = shop.make("own", {**KEYS, "backbone_checkpoint": str(weights)})
    run.killed(5)
    write_weights(weights, seed=2)
    before = contents(run.path)
    code, message = ended(run.resume())
    assert code == 2
    assert message.startswith("the checkpoint was made on vit_tiny_patch16_224")
    assert contents(run.path) == before
    write_weights(weights, seed=1)
    finish(run.resume())
    observe(seen="exit code 2, both weights' hashes; goes on when they are back")


@fault("a checkpoint of another model", "of another adapter, another rank, and another backbone, given to --eval")
@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (KINDS["adaptmlp"], "the checkpoint holds adaptmlp adapters, the configuration asks for nested_lora"),
        (
            {**KINDS["weights"], "nested_lora_rank": 2},
            "adapters.0.functional.fast.down_proj.weight is (2, 32) there, (3",
        ),
        (
            {**KINDS["weights"], "backbone_kwargs": {**TINY["backbone_kwargs"], "depth": 4}},
            "the checkpoint was trained with backbone_kwargs = ",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    other: dict[str, object], reason: str, shop: Workshop, ended: Ended, observe: Observe
) -> None:
    stranger = shop.make("other", {**other, "max_tasks": 1})
    finish(stranger.start())
    checkpoint = stranger.path / "checkpoints" / "task_0.safetensors"
    process = shop.make("own", KEYS).start("--eval", "--checkpt_path", str(checkpoint))
    assert ended(process)[0] == 2
    assert reason in process.errors
    observe(seen="exit code 2 and what differs")
