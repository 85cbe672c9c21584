"""Ranks and collectives. One process alone takes the same path: collectives are the identity."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

GRACE_S = 2.0
"""After a failure, how long a rank waits for the others to say that theirs failed too."""
STORE_S = 5.0
"""How long a call of the store may last."""
POLL_S = 0.05
"""From one look for a key that is not there yet to the next."""
T = TypeVar("T")


def within(timeout_s: float, call: Callable[..., T], *arguments: Any) -> T:
    """Call a function of torch that may wait for ever, in a thread that is given up then.

    Raises:
        TimeoutError: no result in time.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(timeout_s)


class LostStoreError(RuntimeError):
    """Rank 0's machine, which keeps the store, does not answer."""


class Store:
    """Texts that the ranks share by key; rank 0's machine keeps them.

    torch's store waits for ever for a machine that the network no longer reaches, whatever its own
    time limit. Here every call ends within `STORE_S`.

    Arguments:
        store: torch's.
        timeout_s: how long one rank waits for another.
    """

    def __init__(self, store: dist.Store, timeout_s: float = 300.0) -> None:
        self._store, self.timeout_s = store, timeout_s
        self.meetings = count()  # of all ranks: each has keys of its own

    def set(self, key: str, text: str) -> None:
        """Set a key's text."""
        self._call(self._store.set, key, text)

    def get(self, key: str) -> str | None:
        """A key's text; None where no rank has set it."""
        if not self._call(self._store.check, [key]):
            return None
        return self._call(self._store.get, key).decode()

    def wait_for(self, key: str, timeout_s: float) -> str | None:
        """A key's text as soon as a rank has set it; None where none does in this time."""
        limit = time.monotonic() + timeout_s
        while (text := self.get(key)) is None and time.monotonic() < limit:
            time.sleep(POLL_S)
        return text

    def _call(self, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return within(STORE_S, call, *arguments)
        except TimeoutError:
            raise LostStoreError(f"rank 0's machine gives no answer within {STORE_S:g} s") from None


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
    store: Store | None = None
    """Where ranks say that a collective failed, for the others to know who did not."""
    parts: dict[tuple[tuple[int, ...], ...], dist.ProcessGroup] = field(
        default_factory=dict, repr=False, compare=False
    )
    """This rank's group in each division of the ranks, for all runs of one connection: a group has
    memory on the device as long as the connection lasts."""

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

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Give every rank the tensor of rank 0, in place."""
        if self.world_size > 1:
            self._together(
                "broadcast", lambda: dist.broadcast(tensor, group=self.group, group_src=0)
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

    def finish_together(self, work: Callable[[], T]) -> T:
        """Do this rank's own work, and wait until every rank has done its own; all must call.

        By the store, as long as it takes: a compiler or a slow disk may need more time than a
        collective may last.

        Raises:
            RuntimeError: names a rank whose work failed; or the store is lost.
        """
        if self.world_size == 1:
            return work()
        assert self.store is not None, "ranks that were connected have a store"
        place = f"work/{next(self.store.meetings)}"
        try:
            result = work()
        except BaseException:
            with suppress(RuntimeError):  # the store may be what is lost
                self.store.set(f"{place}/{self.rank}", "failed")
            raise
        self.store.set(f"{place}/{self.rank}", "done")
        for rank in range(self.world_size):
            if self.store.wait_for(f"{place}/{rank}", math.inf) == "failed":
                time.sleep(GRACE_S)  # that rank's own message comes first
                raise RuntimeError(f"the other ranks wait for rank {rank}, whose work failed")
        return result

    def last_step_requested(self, where: str, step: int) -> int | None:
        """Publish that this rank got a signal to end at `step` of `where`, if it has not yet.

        Returns:
            The last step at which any rank got one; None while some have not. Never waits.
        """
        assert self.store is not None, "ranks that were connected have a store"
        ranks = dist.get_process_group_ranks(self.group)
        own = f"shutdown/{where}/{dist.get_rank()}"
        if self.store.get(own) is None:
            self.store.set(own, str(step))
        steps = [self.store.get(f"shutdown/{where}/{rank}") for rank in ranks]
        known = [int(text) for text in steps if text is not None]
        return max(known) if len(known) == len(ranks) else None

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Refuse ranks that were started with different settings; every rank must call.

        By the store: ranks of unlike devices, or of another number, make no process group.

        Arguments:
            settings: plain values by name.

        Raises:
            ValueError: names each setting that differs, with both values and ranks; the same line
                on every rank.
            RuntimeError: names the ranks that did not come.
        """
        if self.world_size == 1:
            return
        assert self.store is not None, "ranks that were connected have a store"
        place, ranks = f"settings/{next(self.store.meetings)}", range(self.world_size)
        self.store.set(f"{place}/{self.rank}", json.dumps(settings))
        first: dict[str, Any] = {}
        for rank in ranks:
            text = self.store.wait_for(f"{place}/{rank}", self.store.timeout_s)
            if text is None:
                missing = [r for r in ranks if self.store.get(f"{place}/{r}") is None]
                raise RuntimeError(
                    f"no answer from rank {', '.join(map(str, missing))} within "
                    f"{self.store.timeout_s:g} s, in which it has to start too"
                )
            here = json.loads(text)
            first = here if rank == 0 else first
            names = [n for n in sorted(first | here) if first.get(n) != here.get(n)]
            if not names:
                continue
            self._wait_until_read(place)
            got = [f"{n} {first.get(n)!r} on rank 0, {here.get(n)!r} on rank {rank}" for n in names]
            more = f"; and {len(got) - 3} more" if len(got) > 3 else ""
            raise ValueError(
                f"ranks: expected the same settings on all, got {'; '.join(got[:3])}{more}; start "
                "all with the same command"
            )

    def _wait_until_read(self, place: str) -> None:
        """Let every rank read what is in the store before this one ends, which may keep it."""
        assert self.store is not None, "ranks that were connected have a store"
        self.store.set(f"{place}/read/{self.rank}", "")
        limit = time.monotonic() + GRACE_S
        with suppress(RuntimeError):  # rank 0 has ended
            for rank in range(self.world_size):
                self.store.wait_for(f"{place}/read/{rank}", limit - time.monotonic())

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
        trained by every rank for itself, to the same end: ranks that wait for one would wait longer
        than a collective may last, and would be no faster.
        """
        if gpus_per_model > 1:
            return self.worker_group(1)
        return WorkerGroup(workers=range(1), inside=ALONE, across=ALONE, copy=self.rank)

    def _part(self, parts: Sequence[Sequence[int]], rank: int) -> "Comm":
        """This rank's part of a division of all ranks, in which it has another number."""
        key = tuple(map(tuple, parts))
        if key not in self.parts:
            timeout = None if self.store is None else timedelta(seconds=self.store.timeout_s)
            with _silent_stdout():
                self.parts[key], _ = dist.new_subgroups_by_enumeration(
                    [list(part) for part in parts], timeout=timeout
                )
        return replace(self, rank=rank, world_size=len(parts[0]), group=self.parts[key])

    def _together(self, what: str, call: Callable[[], object]) -> None:
        """Call a collective; where it fails, find out who was missing."""
        try:
            call()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
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
            return [rank for rank in ranks if self.store.get(f"failed/{rank}") is None]
        except LostStoreError:
            return [0]
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


TORCHRUN = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
)
"""The variables by which a process knows that torchrun started it."""


@contextmanager
def without_torchrun() -> Iterator[None]:
    """Hide torchrun's variables: a trainer that saw them would train one net on all ranks."""
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if TORCHRUN.fullmatch(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


_CONNECTIONS = count()
"""Each has keys of its own: torchrun keeps the store from one run of a session to the next."""


def connect(
    device_type: str, *, timeout_s: float = 300.0, settings: Mapping[str, Any] | None = None
) -> Comm:
    """Join the process group that torchrun's environment names; without one, be alone.

    Collectives run over NCCL on CUDA devices and gloo on CPUs, and fail after `timeout_s`.

    Arguments:
        settings: what all ranks have to be started with, as plain values by name.

    Raises:
        ValueError: ranks were started with different settings.
        RuntimeError: other ranks did not come; names them, or where rank 0 was looked for.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    if world_size == 1:
        return ALONE
    timeout, number = timedelta(seconds=timeout_s), next(_CONNECTIONS)

    def join() -> Comm:
        if device_type == "cuda":
            torch.cuda.set_device(local_rank)  # of this thread
        # Of one rank, so that the store waits for nobody: `require_same` says who is missing.
        store, _, _ = next(rendezvous("env://", rank, 1, timeout=timeout))
        store.set_timeout(timeout)
        own = Store(dist.PrefixStore(f"swap_fast/{number}", store), timeout_s)
        comm = Comm(rank=rank, local_rank=local_rank, world_size=world_size, store=own)
        comm.require_same({"device": device_type, "world_size": world_size, **(settings or {})})
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=dist.PrefixStore(f"group/{number}", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=torch.device("cuda", local_rank) if device_type == "cuda" else None,
        )
        dist.barrier()
        return comm

    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        with _silent_stdout():
            return within(timeout_s + STORE_S, join)
    except TimeoutError:
        raise RuntimeError(
            f"rendezvous: expected rank 0 at {place}, got no answer within {timeout_s:g} s; see "
            "that its machine can be reached, and that no other program has this port"
        ) from None
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(f"rendezvous at {place}: {reason}") from error
