"""Fair timing of several ways to do one thing: each in its own processes, taking turns.

A machine's speed drifts; ways that take turns in one run drift together, so that their ratio,
round by round, says more than any figure alone.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

Work = Callable[[], int]
"""Does a portion of work, and returns the images it took."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way: a function that prepares it, and the processes that do it side by side."""

    name: str
    make: Callable[..., Work]
    """A function of a module, called with `arguments` in each process."""
    arguments: tuple[object, ...] = ()
    processes: int = 1
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a way achieved in each round, and against the first way of the list."""

    name: str
    images_per_s: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median images/s over the rounds."""
        return statistics.median(self.images_per_s)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The first way's images/s over this way's, round by round: minimum, median, maximum."""
        return min(self.ratios), statistics.median(self.ratios), max(self.ratios)


def alternate(ways: list[Way], *, rounds: int) -> list[Timing]:
    """Time each way once a round, after one round that does not count.

    Raises:
        RuntimeError: a way's process failed.
    """
    timings = [Timing(name=way.name) for way in ways]
    with ExitStack() as stack:
        stations = [stack.enter_context(_station(way)) for way in ways]
        for number in range(rounds + 1):
            speeds = [_take_turn(way, station) for way, station in zip(ways, stations, strict=True)]
            if number > 0:
                for timing, speed in zip(timings, speeds, strict=True):
                    timing.images_per_s.append(speed)
                    timing.ratios.append(speeds[0] / speed)
    return timings


@contextmanager
def _station(way: Way) -> Iterator[list[Connection]]:
    """A way's processes, ready and waiting for their turn."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for _ in range(way.processes):
        ours, theirs = context.Pipe()
        arguments = (theirs, way.make, way.arguments, way.threads)
        process = context.Process(target=_serve, args=arguments)
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


def _take_turn(way: Way, connections: list[Connection]) -> float:
    """Images/s of all of a way's processes together."""
    try:
        for connection in connections:
            connection.send(None)
        done = [connection.recv() for connection in connections]
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise RuntimeError(f"{way.name}: its process ended early, see its error above") from None
    return sum(images for images, _ in done) / max(seconds for _, seconds in done)


def _serve(
    connection: Connection, make: Callable[..., Work], arguments: tuple[object, ...], threads: int
) -> None:
    """A process of a way: prepare, then work whenever asked, until the other end closes."""
    import torch

    torch.set_num_threads(threads)
    work = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        started = time.perf_counter()
        images = work()
        connection.send((images, time.perf_counter() - started))
