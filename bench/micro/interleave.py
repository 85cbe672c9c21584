"""Fair timing of several ways to do one thing: each in its own processes, taking turns.

A machine's speed drifts; ways that take turns in one run drift together, so that their ratio,
round by round, says more than any figure alone.
"""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

Work = Callable[[], int]
"""Does a portion of work, and returns how much: the images it took, or another unit."""

Unit = Literal["images", "FLOP", "bytes"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an image of training costs, by count: the same for everyone who does that work."""

    flop: float
    """Floating-point operations forward and backward; a multiplication and an addition are two."""
    bytes: float
    """Traffic with memory, as `bench.micro.peak` counts it."""

    def __post_init__(self) -> None:
        """Refuse a cost of nothing, over which nothing can be divided."""
        if not (self.flop > 0 and self.bytes > 0):
            raise ValueError(f"cost: expected more than 0, got {self.flop} and {self.bytes}")


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Work that, asked once when all rounds are done, also says what else it took."""

    work: Work
    facts: Callable[[], dict[str, float]]
    """Seconds, counts and bytes by name; of several processes the largest stands."""

    def __call__(self) -> int:
        """Do the portion."""
        return self.work()


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way: a function that prepares it, and the processes that do it side by side."""

    name: str
    make: Callable[..., Work]
    """A function of a module, called with `arguments` in each process."""
    arguments: tuple[object, ...] = ()
    processes: int = 1
    threads: int = 1
    unit: Unit = "images"
    """What `make`'s work counts."""
    cost: Cost | None = None
    """Of an image, where it is known."""
    is_ours: bool = False
    """Whether it is how runs of this package do it."""
    is_headline: bool = False
    """Whether the first page compares it with the first way of its group."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a way achieved in each round, and against the first way of the list."""

    name: str
    unit: Unit = "images"
    processes: int = 1
    threads: int = 1
    cost: Cost | None = None
    is_ours: bool = False
    is_headline: bool = False
    per_s: list[float]
    """Units a second in each round, of all processes together."""
    ratios: list[float] = field(default_factory=list)
    """The first way's units a second over this way's; none where the units differ."""
    facts: dict[str, float] = field(default_factory=dict)
    """What `Observed` work said."""

    def __post_init__(self) -> None:
        """Refuse what no rounds can give."""
        if not self.per_s or not all(0 < speed < math.inf for speed in self.per_s):
            raise ValueError(f"{self.name}: expected speeds above 0, got {self.per_s}")
        if self.unit == "images" and len(self.ratios) != len(self.per_s):
            raise ValueError(f"{self.name}: expected {len(self.per_s)} ratios, got {self.ratios}")

    @property
    def median(self) -> float:
        """Median units a second over the rounds."""
        return statistics.median(self.per_s)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The first way's speed over this way's, round by round: minimum, median, maximum."""
        return min(self.ratios), statistics.median(self.ratios), max(self.ratios)


def alternate(ways: list[Way], *, rounds: int) -> list[Timing]:
    """Time each way once a round, after one round that does not count.

    Raises:
        RuntimeError: a way's process failed.
    """
    speeds: list[list[float]] = [[] for _ in ways]
    facts: list[dict[str, float]] = [{} for _ in ways]
    with ExitStack() as stack:
        stations = [stack.enter_context(_station(way)) for way in ways]
        for number in range(rounds + 1):
            for of_way, way, station in zip(speeds, ways, stations, strict=True):
                speed = _take_turn(way, station)
                if number > 0:
                    of_way.append(speed)
        for largest, way, station in zip(facts, ways, stations, strict=True):
            for found in _ask(way, station, "facts"):
                for name, value in found.items():
                    largest[name] = max(value, largest.get(name, value))
    return [
        Timing(
            name=way.name,
            unit=way.unit,
            processes=way.processes,
            threads=way.threads,
            cost=way.cost,
            is_ours=way.is_ours,
            is_headline=way.is_headline,
            per_s=of_way,
            ratios=[first / speed for first, speed in zip(speeds[0], of_way, strict=True)]
            if way.unit == ways[0].unit
            else [],
            facts=found,
        )
        for way, of_way, found in zip(ways, speeds, facts, strict=True)
    ]


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
    """Units a second of all of a way's processes together."""
    done = _ask(way, connections, "turn")
    return sum(amount for amount, _ in done) / max(seconds for _, seconds in done)


def _ask(way: Way, connections: list[Connection], what: Literal["turn", "facts"]) -> list[Any]:
    """Ask all of a way's processes at once, and wait for all their answers."""
    try:
        for connection in connections:
            connection.send(what)
        return [connection.recv() for connection in connections]
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise RuntimeError(f"{way.name}: its process ended early, see its error above") from None


def _serve(
    connection: Connection, make: Callable[..., Work], arguments: tuple[object, ...], threads: int
) -> None:
    """A process of a way: prepare, then work whenever asked, until the other end closes."""
    import torch

    torch.set_num_threads(threads)
    work = make(*arguments)
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        if what == "facts":
            connection.send(work.facts() if isinstance(work, Observed) else {})
            continue
        started = time.perf_counter()
        amount = work()
        connection.send((amount, time.perf_counter() - started))
