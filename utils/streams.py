"""Every random number comes from a named stream: the run's seed, a purpose, and a place such as task, epoch or image.

A stream depends on its name alone: on nothing that was drawn, evaluated or loaded before, and not on the process.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(*names: int | str) -> int:
    """A 63-bit seed: the first bits of BLAKE2b over the names, on every machine the same. 1 and "1" are two names."""
    text = json.dumps(names, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A CPU generator of its own at the beginning of the named stream (torch seeds it from the low 32 bits)."""
    return torch.Generator().manual_seed(derive(*names))


@contextmanager
def seeded(*names: int | str) -> Iterator[None]:
    """Let torch's global CPU generator draw from the named stream inside, and go on as if nothing had happened outside.

    Generators of other devices are left alone, which torch.manual_seed would not do.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derive(*names))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
