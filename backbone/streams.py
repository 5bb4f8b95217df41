"""Random streams of single modules, so that the draws of one never shift those of another."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def substream(*names: int | str) -> Iterator[None]:
    """Let torch's global CPU generator draw from a stream of its own inside, and restore its state afterwards.

    The stream depends on the names and on the seed that the generator was last given (`torch.manual_seed`, an enclosing
    `substream`), not on what was drawn since.
    """
    generator = torch.default_generator
    state, text = generator.get_state(), repr((generator.initial_seed(), *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    generator.manual_seed(int.from_bytes(digest, "big") >> 1)
    try:
        yield
    finally:
        generator.set_state(state)
