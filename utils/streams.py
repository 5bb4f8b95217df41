"""Random numbers come from named streams: the run's seed, a purpose, and a place such as task, epoch or image.

A stream depends only on its name, not on earlier draws or on the process.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(*names: int | str) -> int:
    """Return a 63-bit seed, the first bits of BLAKE2b over the names. 1 and "1" are different names."""
    text = json.dumps(names, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*names: int | str) -> torch.Generator:
    """Return a new CPU generator for the named stream (torch uses the low 32 bits of the seed)."""
    return torch.Generator().manual_seed(derive(*names))


@contextmanager
def seeded(*names: int | str) -> Iterator[None]:
    """Let torch's global CPU generator draw from the named stream inside, and restore its state afterwards.

    Unlike torch.manual_seed, this leaves the generators of other devices unchanged.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derive(*names))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
