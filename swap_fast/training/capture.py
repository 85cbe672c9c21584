"""Updates as CUDA graphs: a launch for a whole step instead of one for each of its kernels."""

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch

from swap_fast.data.cifar.batches import Batches
from swap_fast.training.optimizer import ScaledOptimizer

WARM_UPS = 11
"""Updates before a capture: libraries choose their kernels, NCCL makes its communicator."""


class Captures:
    """The CUDA graphs of one process: captured on one stream, in one memory pool, reset together.

    torch shares the blocks of a pool only between captures on the same stream, so there is one
    stream. The graphs may share memory because they never run at the same time and leave nothing
    in it for one another: the stages of ImageNet would not fit side by side.

    NCCL waits, in the destruction of a communicator, until every graph that captured one of its
    collectives is destroyed; a process group that is closed while a graph lives hangs for ever. So
    the graphs have this owner, and leaving its `with` block resets all of them, whoever still
    holds a replay: close the process group after it, also where the block ends in an error.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # torch keeps the type of its handle to itself
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def __enter__(self) -> "Captures":
        """Own graphs until the block's end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Reset all graphs."""
        self.reset()

    def capture(self, update: Callable[[], None]) -> Callable[[], None]:
        """Run an update until it is warm, capture it, and return its replay.

        Whatever the update reads and writes must keep its address, it may not wait for the device,
        and nothing that it keeps on the host changes from call to call: a replay repeats the
        kernels of the captured call, and no Python. The warm-up runs the update for real, from its
        first call on the stream of the capture: what a compiler or a library allocates for a
        stream is then allocated for this one.

        Raises:
            RuntimeError: the update cannot be captured; also what a replay raises after `reset`.
        """
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        stream, before = self._stream, torch.cuda.current_stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                update()
        before.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        failed: Exception | None = None
        try:
            # Other threads, such as a loader's or a telemetry sampler's, may use CUDA meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                try:
                    update()
                except Exception as error:
                    failed = error
                    raise
        except Exception as error:
            # The capture that is broken ends in an error of its own, which hides the first.
            cause = failed or error
            self._end_broken(graph, before)
            raise RuntimeError(
                f"the step could not be captured as a CUDA graph: {cause}; use --capture off"
            ) from cause
        self._graphs.append(graph)
        return graph.replay

    def _end_broken(self, graph: torch.cuda.CUDAGraph, before: torch.cuda.Stream) -> None:
        """Leave a capture that failed, as torch's own way out does not after an error of its end.

        The stream would stay the current one, the allocator in the graph's pool, and random numbers
        in the state of a capture, which the end of another one brings back.
        """
        torch.cuda.set_stream(before)
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(before.device_index, self._pool)
        with contextlib.suppress(RuntimeError):
            graph.reset()
        empty = torch.cuda.CUDAGraph()
        with contextlib.suppress(RuntimeError):
            with torch.cuda.graph(empty, stream=self._stream, capture_error_mode="thread_local"):
                torch.zeros(1, device=before.device)
            empty.reset()
        torch.cuda.set_stream(before)

    def reset(self) -> None:
        """Destroy all graphs; a replay after it raises a RuntimeError. Again is no harm."""
        if self._graphs:
            torch.cuda.synchronize()  # none may be destroyed while it runs
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()


class DeviceFeed:
    """Gives each update its batch and its learning rate inside the graph, by a counter there.

    An epoch's plan and learning rates are uploaded at its start, in the order of the stream: behind
    the updates that read those before. After that an update is one launch. Until an epoch is
    started the counter stands still, so that a warm-up leaves it where it was; after the epoch's
    last update there is nothing to read, which is an error on the device.

    Arguments:
        batches: which fill the step's batch.
        optimizer: of that step, with its learning rates on the device.
    """

    def __init__(self, batches: Batches, optimizer: ScaledOptimizer) -> None:
        self._batches, self._optimizer = batches, optimizer
        self.steps_per_epoch = batches.steps_per_epoch
        rates = optimizer.learning_rates([0.0] * self.steps_per_epoch)
        self._rates = rates.to(batches.device)  # [groups, steps]
        # The number of the next update, and what is added to it after one.
        self._counter = torch.zeros(2, dtype=torch.int64, device=batches.device)
        self._next, self._one = self._counter.split(1)

    def start_epoch(
        self, worker: int, epoch: int, *, first: int, learning_rates: Sequence[float]
    ) -> None:
        """Upload what the epoch's updates from number `first` on read."""
        self._batches.start_epoch(worker, epoch)
        for values, into in (
            (self._optimizer.learning_rates(learning_rates), self._rates),
            (torch.tensor([first, 1]), self._counter),
        ):
            into.copy_(values.pin_memory() if into.is_cuda else values, non_blocking=True)

    def before(self, step: int) -> None:
        """The host has nothing to do for an update."""

    def fill_(self) -> None:
        """What an update begins with: its batch, its learning rate, and the next one's number."""
        self._batches.load_at_(self._next)
        self._optimizer.take_learning_rates_(self._rates, self._next)
        self._next += self._one
