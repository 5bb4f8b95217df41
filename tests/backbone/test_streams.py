"""Random streams of modules."""

import torch

from backbone.streams import substream


def drawn(*names: int | str, before: int = 0, seed: int = 3) -> list[float]:
    torch.manual_seed(seed)
    torch.rand(before)
    with substream(*names):
        return torch.rand(4).tolist()


def test_a_substream_depends_on_the_seed_and_its_names_alone():
    assert drawn("a", 1) == drawn("a", 1, before=7)
    others = [drawn("a", 1), drawn("a", "1"), drawn("a"), drawn("a", 1, seed=4), drawn("a1"), drawn(1, "a")]
    assert len({tuple(values) for values in others}) == len(others)


def test_a_substream_leaves_the_enclosing_draws_alone_and_nests():
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    first = torch.rand(1).tolist()
    with substream("a"):
        torch.rand(5)
        with substream("b"):
            inner = torch.rand(4).tolist()
    assert first + torch.rand(1).tolist() == expected
    assert inner != drawn("b")


def test_a_substream_ends_after_an_error():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    try:
        with substream("a"):
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), state)
