"""Ranks and collectives. One process alone takes the same path: collectives are the identity."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

GRACE_S = 2.0
"""After a failed collective, how long a rank waits for the others to say that theirs failed too."""


@dataclass(frozen=True, kw_only=True)
class Comm:
    """This process among `world_size` equal ones.

    Replica s of a phase belongs to rank `s % world_size`. A collective that fails, or lasts longer
    than the timeout, raises a RuntimeError that names the ranks which took no part in it.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    """The processes meant; None: all of them."""
    store: dist.Store | None = None
    """Where ranks say that a collective failed, for the others to know who did not."""

    def replicas(self, num_replicas: int) -> range:
        """The replicas, or workers, that this rank runs."""
        return range(self.rank, num_replicas, self.world_size)

    def workers(self, num_workers: int) -> range:
        """The workers of phase 2 that this rank runs, alone or with others (`worker_group`)."""
        size = self.world_size // num_workers
        return (
            self.replicas(num_workers) if size <= 1 else range(num_workers)[self.rank // size :][:1]
        )

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks, in place."""
        if self.world_size > 1:
            self._together("all-reduce", lambda: dist.all_reduce(tensor, group=self.group))
        return tensor

    def any(self, value: bool) -> bool:
        """Whether `value` is true on any rank. Waits for the device."""
        if self.world_size == 1:
            return value
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        return self.all_reduce_(torch.tensor(int(value), device=device)).item() > 0

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Give every rank the tensor of rank `source`, in place."""
        if self.world_size > 1:
            self._together(
                "broadcast", lambda: dist.broadcast(tensor, group=self.group, group_src=source)
            )
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The picklable values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        self._together("gather", lambda: dist.all_gather_object(values, value, group=self.group))
        return values

    def gather_on_first(self, value: Any) -> list[Any]:
        """The picklable values of all ranks, in rank order, on rank 0; elsewhere an empty list."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        self._together(
            "gather", lambda: dist.gather_object(value, values, group=self.group, group_dst=0)
        )
        return values or []

    def on_first(self, make: Callable[[], Any]) -> Any:
        """Call `make` on rank 0 alone and give its result to every rank."""
        if self.world_size == 1:
            return make()
        values = [make() if self.rank == 0 else None]
        self._together(
            "broadcast",
            lambda: dist.broadcast_object_list(values, group=self.group, group_src=0),
        )
        return values[0]

    def last_step_requested(self, where: str, step: int) -> int | None:
        """Publish that this rank got a signal to end at `step` of `where`, if it has not yet.

        Returns:
            The last step at which any rank got one; None while some have not. Never waits.
        """
        assert self.store is not None, "ranks that were connected have a store"
        ranks = dist.get_process_group_ranks(self.group)
        own = f"shutdown/{where}/{dist.get_rank()}"
        if not self.store.check([own]):
            self.store.set(own, str(step))
        keys = [f"shutdown/{where}/{rank}" for rank in ranks]
        if not self.store.check(keys):
            return None
        return max(int(self.store.get(key)) for key in keys)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            self._together("barrier", lambda: dist.barrier(group=self.group))

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            dist.destroy_process_group()

    def worker_group(self, num_workers: int) -> "WorkerGroup":
        """Share out the workers of phase 2; every rank must call.

        With as many ranks as workers or fewer, a rank runs its workers alone, one after another;
        with more, neighbouring ranks, which a node's fast links join, run one worker together.

        Raises:
            ValueError: the ranks are no multiple of the workers.
        """
        if self.world_size <= num_workers:
            return WorkerGroup(workers=self.workers(num_workers), inside=ALONE, across=self)
        size, rest = divmod(self.world_size, num_workers)
        if rest:
            raise ValueError(
                f"processes: expected at most one a worker, or a multiple of the {num_workers} "
                f"workers, got {self.world_size}"
            )
        ranks = range(self.world_size)
        worker, place = divmod(self.rank, size)
        return WorkerGroup(
            workers=self.workers(num_workers),
            inside=self._part([ranks[w * size :][:size] for w in range(num_workers)], place),
            across=self._part([ranks[p::size] for p in range(size)], worker),
        )

    def sequence_group(self, gpus_per_model: int) -> "WorkerGroup":
        """Share out the one model that SWA trains in phase 2; every rank must call.

        A model of several replicas is trained by all ranks together. One of a single replica is
        trained
        by every rank for itself, to the same end: ranks that wait for one would wait longer than
        a collective may last, and would be no faster.
        """
        if gpus_per_model > 1:
            return self.worker_group(1)
        return WorkerGroup(workers=range(1), inside=ALONE, across=ALONE, copy=self.rank)

    def _part(self, parts: Sequence[Sequence[int]], rank: int) -> "Comm":
        """This rank's part of a division of all ranks, in which it has another number."""
        with _silent_stdout():
            group, _ = dist.new_subgroups_by_enumeration([list(part) for part in parts])
        return replace(self, rank=rank, world_size=len(parts[0]), group=group)

    def _together(self, what: str, call: Callable[[], object]) -> None:
        """Call a collective; where it fails, find out who was missing."""
        try:
            call()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            missing = self._missing(what)
            raise RuntimeError(
                f"{what}: no answer from rank {', '.join(map(str, missing))}, which hangs or has "
                f"ended ({reason})"
                if missing
                else f"{what}: {reason}"
            ) from error

    def _missing(self, what: str) -> list[int]:
        """Ranks, as numbered among all, that did not notice that a collective failed."""
        if self.store is None:
            return []
        ranks = dist.get_process_group_ranks(self.group)
        try:
            self.store.set(f"failed/{dist.get_rank()}", what)
            time.sleep(GRACE_S)
            return [rank for rank in ranks if not self.store.check([f"failed/{rank}"])]
        except RuntimeError:  # the store's process has ended too
            return []


ALONE = Comm()


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """The ranks that run the same workers of phase 2, and this rank's place among all groups."""

    workers: Sequence[int]
    """The workers that this group runs."""
    inside: Comm
    """The ranks of this group: they share each update of a worker."""
    across: Comm
    """The rank of this place in each group: over these the workers' weights are averaged."""
    copy: int = 0
    """Which of the groups that train the same model, each for itself; only the first speaks."""

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for its group."""
        return self.inside.rank == 0 and self.copy == 0


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
    timeout = timedelta(seconds=timeout_s)
    with _silent_stdout():
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=torch.device("cuda", local_rank) if device_type == "cuda" else None,
        )
        dist.barrier()
    own = dist.PrefixStore("swap_fast", store)
    return Comm(rank=rank, local_rank=local_rank, world_size=world_size, store=own)
