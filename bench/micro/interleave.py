"""Interleaved timing of several variants of one thing: each in its own processes, taking turns.

A machine's speed drifts. Variants that take turns in one run drift together, so that their ratio,
round by round, says more than any single figure.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from bench.micro.records import Described, Timing
from bench.runner.process import RemoteFunction

Turn = Callable[[], int]
"""Does one turn's work, and returns how much: the images that it took, or another unit."""


@dataclass(frozen=True, kw_only=True)
class ObservedTurn:
    """A turn that also reports other facts, when asked once after all rounds."""

    turn: Turn
    facts: Callable[[], dict[str, float]]
    """Seconds, counts and bytes by name; of several processes the largest counts."""

    def __call__(self) -> int:
        return self.turn()


@dataclass(frozen=True)
class Variant(Described):
    """One variant: a function that prepares its turn, and the processes that take it together."""

    name: str
    make: Callable[..., Turn]
    """A function at the top level of a module, called with `arguments` in each process."""
    arguments: tuple[Any, ...] = field(default=())


def time_interleaved(variants: list[Variant], *, rounds: int) -> list[Timing]:
    """Time each variant once a round, after one round that is not counted.

    Raises:
        RuntimeError: a variant's process failed.
    """
    speeds: list[list[float]] = [[] for _ in variants]
    with ExitStack() as stack:
        groups = [
            [
                stack.enter_context(
                    RemoteFunction(_prepare, variant.threads, variant.make, variant.arguments)
                )
                for _ in range(variant.processes)
            ]
            for variant in variants
        ]
        for process in (process for group in groups for process in group):
            process.start()
        for variant, group in zip(variants, groups, strict=True):
            _answers(variant, group)
        for number in range(rounds + 1):
            for variant, group, of_variant in zip(variants, groups, speeds, strict=True):
                done = _ask(variant, group, "turn")
                if number > 0:
                    longest_s = max(seconds for _, seconds in done)
                    of_variant.append(sum(amount for amount, _ in done) / longest_s)
        facts: list[dict[str, float]] = []
        for variant, group in zip(variants, groups, strict=True):
            of_processes = _ask(variant, group, "facts")
            names = of_processes[0]
            facts.append({name: max(each[name] for each in of_processes) for name in names})
    return [
        Timing(
            **{each.name: getattr(variant, each.name) for each in fields(Described)},
            per_s=per_s,
            ratios=[first / speed for first, speed in zip(speeds[0], per_s, strict=True)]
            if variant.unit == variants[0].unit
            else [],
            facts=found,
        )
        for variant, per_s, found in zip(variants, speeds, facts, strict=True)
    ]


def _ask(
    variant: Variant, group: list[RemoteFunction], what: Literal["turn", "facts"]
) -> list[Any]:
    """Ask all of a variant's processes at once, and wait for all their answers."""
    for process in group:
        process.send(what)
    return _answers(variant, group)


def _answers(variant: Variant, group: list[RemoteFunction]) -> list[Any]:
    try:
        return [process.receive() for process in group]
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(f"{variant.name}: {error}") from None


def _prepare(
    threads: int, make: Callable[..., Turn], arguments: tuple[Any, ...]
) -> Callable[[Literal["turn", "facts"]], object]:
    """In a variant's process: prepare its turn. What is returned takes it and gives (amount,
    seconds), or gives the facts."""
    import torch

    torch.set_num_threads(threads)
    turn = make(*arguments)

    def answer(what: Literal["turn", "facts"]) -> object:
        if what == "facts":
            return turn.facts() if isinstance(turn, ObservedTurn) else {}
        started = time.perf_counter()
        amount = turn()
        return amount, time.perf_counter() - started

    return answer
