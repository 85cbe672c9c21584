"""Ranks and collectives. One process alone takes the same path: collectives are the identity."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Comm:
    """This process among `world_size` equal ones.

    Slot s of a phase, and worker w of phase 2, belong to rank `s % world_size`.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    def slots(self, num_slots: int) -> range:
        """The slots, or workers, that this rank runs."""
        return range(self.rank, num_slots, self.world_size)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Give every rank the tensor of rank `source`, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The picklable values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def on_first(self, make: Callable[[], Any]) -> Any:
        """Call `make` on rank 0 alone and give its result to every rank."""
        if self.world_size == 1:
            return make()
        values = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            dist.destroy_process_group()


ALONE = Comm()


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep gloo's C++ code from printing its connections into the progress lines."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def connect(device_type: str, *, timeout_s: float = 300.0) -> Comm:
    """Join the process group that torchrun's environment names; without one, be alone.

    Collectives run over NCCL on CUDA devices and gloo on CPUs, and fail after `timeout_s`.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    if world_size == 1:
        return ALONE
    with _silent_stdout():
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            device_id=torch.device("cuda", local_rank) if device_type == "cuda" else None,
        )
        dist.barrier()
    return Comm(rank=dist.get_rank(), local_rank=local_rank, world_size=world_size)
