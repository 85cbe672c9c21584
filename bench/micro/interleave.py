"""Interleaved timing of several variants of one thing: each in its own processes, taking turns.

A machine's speed drifts. Variants that take turns in one run drift together, so that their ratio,
round by round, says more than any single figure.
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

Turn = Callable[[], int]
"""Does one turn's work, and returns how much: the images that it took, or another unit."""

Unit = Literal["images", "FLOP", "bytes"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The counted cost of training on one image: the same for every variant that does that."""

    flop: float
    """Floating-point operations forward and backward; a multiplication and an addition are two."""
    bytes: float
    """Memory traffic, as `bench.micro.peak` counts it."""

    def __post_init__(self) -> None:
        """Refuse a cost of nothing, over which nothing can be divided."""
        if not (self.flop > 0 and self.bytes > 0):
            raise ValueError(f"cost: expected more than 0, got {self.flop} and {self.bytes}")


@dataclass(frozen=True, kw_only=True)
class ObservedTurn:
    """A turn that also reports other facts, when asked once after all rounds."""

    turn: Turn
    facts: Callable[[], dict[str, float]]
    """Seconds, counts and bytes by name; of several processes the largest counts."""

    def __call__(self) -> int:
        return self.turn()


@dataclass(frozen=True)
class Variant:
    """One variant: a function that prepares its turn, and the processes that take it together."""

    name: str
    make: Callable[..., Turn]
    """A function at the top level of a module, called with `arguments` in each process."""
    arguments: tuple[object, ...] = ()
    processes: int = field(default=1, kw_only=True)
    threads: int = field(default=1, kw_only=True)
    unit: Unit = field(default="images", kw_only=True)
    """Of what a turn returns."""
    cost: Cost | None = field(default=None, kw_only=True)
    """Of an image, where it is known."""
    is_ours: bool = field(default=False, kw_only=True)
    """Whether it is how runs of this package do it."""
    is_headline: bool = field(default=False, kw_only=True)
    """Whether the README's speed table compares it with the first variant of its group."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A variant's speed in each round, and against the first variant of the list."""

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
    """The first variant's units a second over this one's; none where the units differ."""
    facts: dict[str, float] = field(default_factory=dict)
    """Of an `ObservedTurn`."""

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
        """The first variant's speed over this one's, round by round: minimum, median, maximum."""
        return min(self.ratios), statistics.median(self.ratios), max(self.ratios)


def time_interleaved(variants: list[Variant], *, rounds: int) -> list[Timing]:
    """Time each variant once a round, after one round that is not counted.

    Raises:
        RuntimeError: a variant's process failed.
    """
    speeds: list[list[float]] = [[] for _ in variants]
    facts: list[dict[str, float]] = [{} for _ in variants]
    with ExitStack() as stack:
        groups = [stack.enter_context(_processes(variant)) for variant in variants]
        for number in range(rounds + 1):
            turn = [_take_turn(*each) for each in zip(variants, groups, strict=True)]
            if number > 0:
                for of_variant, speed in zip(speeds, turn, strict=True):
                    of_variant.append(speed)
        for largest, variant, connections in zip(facts, variants, groups, strict=True):
            for found in _ask(variant, connections, "facts"):
                for name, value in found.items():
                    largest[name] = max(value, largest.get(name, value))
    return [
        Timing(
            name=variant.name,
            unit=variant.unit,
            processes=variant.processes,
            threads=variant.threads,
            cost=variant.cost,
            is_ours=variant.is_ours,
            is_headline=variant.is_headline,
            per_s=per_s,
            ratios=[first / speed for first, speed in zip(speeds[0], per_s, strict=True)]
            if variant.unit == variants[0].unit
            else [],
            facts=found,
        )
        for variant, per_s, found in zip(variants, speeds, facts, strict=True)
    ]


@contextmanager
def _processes(variant: Variant) -> Iterator[list[Connection]]:
    """Connections to a variant's processes, which wait for their turn."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for _ in range(variant.processes):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, variant))
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


def _take_turn(variant: Variant, connections: list[Connection]) -> float:
    """Units a second of all of a variant's processes together."""
    done = _ask(variant, connections, "turn")
    return sum(amount for amount, _ in done) / max(seconds for _, seconds in done)


def _ask(
    variant: Variant, connections: list[Connection], what: Literal["turn", "facts"]
) -> list[Any]:
    """Ask all of a variant's processes at once, and wait for all their answers."""
    try:
        for connection in connections:
            connection.send(what)
        return [connection.recv() for connection in connections]
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise RuntimeError(
            f"{variant.name}: its process ended early, see its error above"
        ) from None


def _serve(connection: Connection, variant: Variant) -> None:
    """A variant's process: prepare, then take a turn whenever asked, until the other end closes."""
    import torch

    torch.set_num_threads(variant.threads)
    turn = variant.make(*variant.arguments)
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        if what == "facts":
            connection.send(turn.facts() if isinstance(turn, ObservedTurn) else {})
            continue
        started = time.perf_counter()
        amount = turn()
        connection.send((amount, time.perf_counter() - started))
