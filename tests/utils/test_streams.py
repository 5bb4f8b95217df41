"""Named streams: the same everywhere, and no trace of them outside."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.streams import derive, generator, seeded

names = st.lists(st.integers() | st.text(max_size=8), max_size=4)


def test_seed_is_the_first_63_bits_of_blake2b_over_the_json_of_the_names():
    digest = hashlib.blake2b(b'[1993,"r\\u00e9seau",0,-2]', digest_size=8).hexdigest()
    assert f"{derive(1993, 'réseau', 0, -2):063b}" == f"{int(digest, 16):064b}"[:63]


@given(names, names)
def test_different_names_have_different_seeds(first: list[int | str], second: list[int | str]):
    assert (derive(*first) == derive(*second)) == (first == second)


@pytest.mark.parametrize("other", [("1", "a"), (1, "a", ""), ("1a",), ("a", 1), (1, "A")])
def test_kind_place_and_number_of_names_count(other: tuple[int | str, ...]):
    assert derive(*other) != derive(1, "a")


def test_a_name_that_has_no_fixed_spelling_is_refused():
    with pytest.raises(TypeError):
        derive(torch.tensor(1))  # type: ignore[arg-type]


def test_generators_of_one_name_agree_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    torch.testing.assert_close(
        torch.rand(5, generator=generator(1, "x")), torch.rand(5, generator=generator(1, "x")), rtol=0, atol=0
    )
    assert not torch.equal(torch.rand(5, generator=generator(1, "x")), torch.rand(5, generator=generator(2, "x")))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_draws_from_the_stream_and_restores_the_global_generator():
    torch.rand(3)
    before = torch.get_rng_state()
    with seeded(1, "x"):
        inside = torch.rand(5)
    assert torch.equal(inside, torch.rand(5, generator=generator(1, "x")))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_restores_after_an_error_and_nests():
    before = torch.get_rng_state()
    with seeded(1):
        with pytest.raises(KeyError), seeded(2, torch.rand(1).numel()):
            raise KeyError
        first = torch.rand(5, generator=generator(1))
        assert torch.equal(torch.rand(4), first[1:])
    assert torch.equal(torch.get_rng_state(), before)
