"""Randomness as a function of named things: nothing depends on what was drawn before."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from numpy.random import mtrand  # what np.random takes its functions from


def seed_of(*key: int | str) -> int:
    """Mix the key into a 63-bit seed, the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*key: int | str) -> None:
    """Seed Python, NumPy and torch (all devices) by the key, as `seed_everything(0, epoch, step)`.

    Called before each step, it leaves no random state to save: a step is a function of its key.
    """
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if has_accelerator():
        torch.manual_seed(seed)
    else:  # without one, torch.manual_seed takes 0.4 ms to note the seed for GPUs that may come
        torch.default_generator.manual_seed(seed)


@cache
def has_accelerator() -> bool:
    return torch.accelerator.is_available()


SCRATCH = np.random.MT19937()  # NumPy's state is large: changing generators is 30 times faster


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed everything by the key for a while, then put the CPU's random states back."""
    states = random.getstate(), mtrand.get_bit_generator(), torch.get_rng_state()
    seed = seed_of(*key)
    random.seed(seed)
    mtrand.set_bit_generator(SCRATCH)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        mtrand.set_bit_generator(states[1])
        torch.set_rng_state(states[2])
