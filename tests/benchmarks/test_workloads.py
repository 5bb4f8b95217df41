"""Each work stands where its name says, and the variants do the same there."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.workloads import MANY, PHASES, TIMM, VARIANTS, Setting, Workshop
from models.sema import Learner
from models.workload import VIEW

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
STEPS = [phase for phase in PHASES if "step" in phase]


@pytest.fixture
def shop() -> Workshop:
    keys = {"ffn_num": 4, "rd_dim": 5, "buffer_size": 20}
    return Workshop(Setting("vit_tiny_patch16_224", 4, torch.device("cpu"), SHAPE, keys))


@pytest.fixture
def learner_of(shop, monkeypatch):
    """The learner a work was prepared on, after one run."""
    made: list[Learner] = []
    copied = Workshop.learner
    monkeypatch.setattr(Workshop, "learner", lambda shop, name: made.append(copied(shop, name)) or made[-1])

    def run(phase: str, variant: str) -> Learner:
        shop.work((phase, variant))()
        return made[-1]

    return run


def held(learner: Learner) -> set[str]:
    """Short names of what the optimizer holds: the layer, and what of it."""
    inside = {id(parameter) for parameter in learner.phase.parameters}
    names = [name for name, p in learner.network.named_parameters() if id(p) in inside]
    short = [name.removeprefix("backbone.blocks.").replace("adapter_module.", "") for name in names]
    return {".".join(name.split(".")[:4]) if "adapters" in name else name.rsplit(".", 1)[0] for name in short}


def newest(number: int, layers: list[int], part: str = "functional") -> set[str]:
    return {f"{layer}.adapters.{number}.{part}" for layer in layers}


@pytest.mark.parametrize("variant", ["reference", "exact"])
@pytest.mark.parametrize(
    ("phase", "trains"),
    [
        ("func step", {"fc"} | newest(0, [0, 1, 2, 3]) | {f"{layer}.router" for layer in (1, 2, 3)}),
        ("rd step", newest(0, [1, 2, 3], "rd")),
        ("func step, one expansion", {"fc", "2.new_router"} | newest(1, [2])),
        ("rd step, one expansion", newest(1, [2], "rd")),
        ("func step, no expansion", {"fc"}),
        ("func step, 1 adapter a layer", {"fc"} | newest(0, [1, 2, 3])),
        (
            f"func step, {MANY} adapters a layer",
            {"fc"} | newest(MANY - 1, [1, 2, 3]) | {f"{layer}.new_router" for layer in (1, 2, 3)},
        ),
    ],
)
def test_what_each_step_trains(learner_of, phase, variant, trains):
    learner = learner_of(phase, variant)
    assert type(learner) is VARIANTS[variant].learner
    assert held(learner) == trains
    assert learner.cur_task == (0 if phase in ("func step", "rd step") else 1)


@pytest.mark.parametrize("phase", STEPS)
def test_a_step_is_the_same_in_the_reference_way(learner_of, phase):
    plain, ours = (learner_of(phase, variant) for variant in ("reference", "exact"))
    gradients = [parameter.grad for parameter in ours.phase.parameters]
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    theirs = plain.network.state_dict()
    assert theirs.keys() == ours.network.state_dict().keys()
    for name, value in ours.network.state_dict().items():
        torch.testing.assert_close(theirs[name], value, msg=lambda m, n=name: f"{n}: {m}")


STEPS_OF_VIEWS = [f"{step}, one expansion{VIEW}" for step in ("func step", "rd step")]


@pytest.mark.parametrize("phase", ["func step", "rd step", *STEPS_OF_VIEWS, "evaluation"])
def test_a_step_reads_no_value_which_on_a_gpu_would_wait(shop, phase):
    work = shop.work((phase, "nested"))
    work()
    with FakeTensorMode(allow_non_fake_inputs=True):  # whose tensors have no values
        work()


def test_a_scan_reads_z_scores(shop):
    work = shop.work(("scan", "exact"))
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DataDependentOutputException):
        work()


def test_works_of_a_variant_share_the_frozen_weights_and_nothing_else(learner_of):
    first, second = (learner_of("func step", "exact").network for _ in range(2))
    changing = {name for name, p in first.named_parameters() if any(p is q for _, q in first.roles())}
    for name, parameter in first.named_parameters():
        assert (parameter is second.get_parameter(name)) == (name not in changing), name


def test_nested_has_the_parameters_of_adaptmlp_and_one_output_bias_a_layer_more():
    shop = Workshop(Setting("vit_tiny_patch16_224", 1, torch.device("cpu"), SHAPE))
    adaptmlp, nested = (sum(p.numel() for p in _functional(shop, name)) for name in ("exact", "nested"))
    assert nested - adaptmlp == 4 * 32


def _functional(shop: Workshop, name: str) -> list[nn.Parameter]:
    roles = shop.learner(name).network.roles()
    return [parameter for role, parameter in roles if role in ("adapter", "slow", "fast")]


def test_timms_forward_pass_is_timms_alone(shop):
    output = shop.work(TIMM)()
    assert output.shape == (4, 100)
    assert not output.requires_grad
