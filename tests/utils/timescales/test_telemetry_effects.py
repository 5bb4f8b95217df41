"""Telemetry of nested adapters: effective ranks of known maps, what it leaves behind and what it transfers."""

import pytest
import torch
from telemetry_cases import BATCH, TOKENS, D, Nested, R, batch, full_rank, watch
from torch import Tensor, nn, optim

from utils.timescales import telemetry
from utils.timescales.telemetry import Telemetry, core_of_map, effective_rank, to_host

# ---- effective rank


def rank_of(up: Tensor, down: Tensor) -> float:
    return effective_rank(core_of_map(up, down))


@pytest.mark.parametrize("rank", [1, 2, 5, D, D + 4])
def test_the_effective_rank_is_that_of_the_full_map(rank: int) -> None:
    up, down = torch.randn(D, rank, dtype=torch.float64), torch.randn(rank, D, dtype=torch.float64)
    wanted = full_rank({"up_proj.weight": up.numpy(), "down_proj.weight": down.numpy()})
    assert rank_of(up, down) == pytest.approx(wanted, rel=1e-9)
    assert core_of_map(up, down).shape == (min(D, rank),) * 2


def test_the_effective_rank_of_known_maps() -> None:
    eye = torch.eye(D)
    assert rank_of(eye[:, :4], eye[:4]) == pytest.approx(4)
    assert rank_of(torch.ones(D, 4), torch.randn(4, D)) == pytest.approx(1, abs=1e-4)
    s = torch.tensor([0.5, 0.25, 0.25])  # entropy 1.5 ln 2
    assert rank_of(eye[:, :3] * s, eye[:3]) == pytest.approx(2**1.5)
    assert rank_of(torch.zeros(D, 3), eye[:3]) == rank_of(eye[:, :3], torch.zeros(3, D)) == 0
    assert rank_of(1e-30 * eye[:, :3] * s, 1e-30 * eye[:3]) == pytest.approx(2**1.5)


# ---- what it leaves behind, and what it costs


def hooks(nested: nn.Module) -> int:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in nested.modules() for kind in kinds)


def test_a_hook_is_there_from_arm_to_the_first_forward_only() -> None:
    nested, h = Nested().double(), batch()
    measured = Telemetry([(0, 0, nested, nested)])
    assert hooks(nested) == 0
    measured.arm()
    measured.arm()
    assert hooks(nested) == 1
    nested(h)
    assert hooks(nested) == 0
    measured.measure()
    measured.arm()
    measured.disarm()
    assert hooks(nested) == 0
    measured.arm()
    with pytest.raises(RuntimeError, match="layer 0 adapter 0"):
        measured.measure()
    assert hooks(nested) == 0


def test_measuring_twice_for_one_forward_is_refused() -> None:
    nested = Nested().double()
    measured = Telemetry([(2, 1, nested, nested)])
    watch(nested, batch(), measured)
    with pytest.raises(RuntimeError, match=r"no forward pass since arm\(\) at layer 2 adapter 1"):
        measured.measure()


def test_a_step_is_bitwise_the_same_with_telemetry() -> None:
    def run(measures: bool) -> list[Tensor]:
        torch.manual_seed(5)
        nested = Nested()
        measured = Telemetry([(0, 0, nested, nested)])
        optimizer = optim.AdamW(nested.parameters(), lr=0.1)
        seen: list[Tensor] = []
        for _ in range(3):
            h = torch.randn(BATCH, TOKENS, D, requires_grad=True)
            if measures:
                measured.arm()
            output = nested(h)
            optimizer.zero_grad()
            nn.functional.dropout(output).square().sum().backward()
            optimizer.step()
            if measures:
                measured.measure()
            gradients = [parameter.grad.clone() for parameter in nested.parameters() if parameter.grad is not None]
            assert h.grad is not None
            seen += [output.detach(), h.grad, *gradients]
        return [*seen, *(p.detach() for p in nested.parameters()), torch.get_rng_state()]

    plain, measured = run(False), run(True)
    assert len(plain) == 3 * (2 + 8) + 8 + 1
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))


def test_the_kept_input_holds_neither_graph_nor_batch() -> None:
    nested = Nested().double()
    measured = Telemetry([(0, 0, nested, nested)])
    measured.arm()
    nested(batch().requires_grad_())
    (kept,) = (watched.h for watched in measured._watched)
    assert kept is not None
    assert not kept.requires_grad
    assert kept.untyped_storage().nbytes() == 8 * TOKENS * D * 8
    measured.measure()
    assert [watched.h for watched in measured._watched] == [None]


def test_no_value_is_read_before_the_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where there are no values, everything up to the transfer works."""

    class ReachedError(Exception):
        pass

    def stop(groups: list[dict[str, Tensor]]) -> None:
        assert {value.device.type for group in groups for value in group.values()} == {"meta"}
        raise ReachedError

    with torch.device("meta"):
        nested, grown, h = Nested(), Nested(slow_rank=2 * R), torch.randn(BATCH, TOKENS, D)
    monkeypatch.setattr(telemetry, "to_host", stop)
    measured = Telemetry([(0, 0, nested, nested), (1, 0, grown, grown)])
    measured.arm()
    nested(h), grown(h)
    with pytest.raises(ReachedError):
        measured.measure()


def test_the_transfer_is_one_and_keeps_names_shapes_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers: list[Tensor] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: transfers.append(tensor) or cpu(tensor))
    groups = [{"a": torch.randn(()), "b": torch.randn(2, 3)}, {"a": torch.randn(1)}]
    there = to_host(groups)
    assert len(transfers) == 1
    assert [list(group) for group in there] == [["a", "b"], ["a"]]
    for mine, theirs in zip(groups, there, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].shape == theirs[name].shape for name in mine)


def test_without_adapters_there_is_nothing_to_say() -> None:
    measured = Telemetry([])
    measured.arm()
    assert measured.measure() == []
