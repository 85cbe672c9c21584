"""Random numbers that follow from where they are needed, and from nothing that came before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

FETCH, AUGMENT, FORWARD = 1, 2, 3
"""What a number is drawn for, behind (seed, phase, worker, epoch, step, slot)."""


def order(num_examples: int, seed: int, phase: int, worker: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch's examples."""
    sequence = np.random.SeedSequence((seed, phase, worker, epoch))
    return np.random.default_rng(sequence).permutation(num_examples)


def seed_of(*words: int) -> int:
    """A seed of 63 bits from whole numbers of 0 or more."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators that data sets, augmentation and dropout draw from."""
    # torch.manual_seed writes a stack trace for a CUDA device that nobody uses.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def generators_kept(device_type: str) -> Iterator[None]:
    """Afterwards the user's generators go on as if nothing had been drawn."""
    numpys, pythons = np.random.get_state(), random.getstate()
    devices = [torch.cuda.current_device()] if device_type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numpys)
            random.setstate(pythons)
