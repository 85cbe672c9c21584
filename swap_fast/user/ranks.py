"""The processes of a user's script: joined where torchrun started them, and told to end."""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist

from swap_fast.distributed import ALONE, Comm, connect
from swap_fast.training.interruption import Interruption


def join_ranks(device_type: str, timeout_s: float) -> Comm:
    """This process among those that torchrun started; alone where there are no others.

    Raises:
        ValueError: the script has joined them already.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return ALONE if alone else _connected(device_type, timeout_s)


@cache
def _connected(device_type: str, timeout_s: float) -> Comm:
    """The processes that torchrun started; connected once, whatever runs follow one another."""
    if dist.is_initialized():
        raise ValueError(
            "processes: expected no process group but swap's own, got one that is initialized; "
            "leave out init_process_group"
        )
    comm = connect(device_type, timeout_s=timeout_s)
    atexit.register(comm.close)
    return comm


def listener(device_type: str) -> Interruption | None:
    """What heeds signals, where Python lets it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return Interruption(torch.cuda.synchronize if device_type == "cuda" else lambda: None)


@contextmanager
def heeded(interruption: Interruption | None) -> Iterator[None]:
    """Signals end the run within it, and afterwards do what they did before.

    Even where the run was told to end: the script or notebook around it may go on.
    """
    if interruption is None:
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with interruption.listening():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
