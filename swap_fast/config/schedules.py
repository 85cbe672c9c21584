"""Learning-rate schedules: pure functions of the position in epochs."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

Schedule = Callable[[float], float]


def piecewise_linear(knots: Sequence[tuple[float, float]]) -> Schedule:
    """A schedule that joins (epoch, learning rate) knots by straight lines.

    Before the first knot and after the last one it is constant. Steps are counted from 1, so
    that step i of an epoch of n steps has the position `epoch + i / n`, and the last step of a
    schedule that ends in 0 has the learning rate 0.

    Raises:
        ValueError: fewer than one knot, or epochs that do not rise.
    """
    if not knots:
        raise ValueError("a schedule needs at least one (epoch, learning rate) knot, got none")
    for (before, _), (after, _) in pairwise(knots):
        if not before < after:
            raise ValueError(f"a schedule's epochs must rise, got {before:g} before {after:g}")

    def learning_rate(epoch: float) -> float:
        if epoch <= knots[0][0]:
            return knots[0][1]
        for (x0, y0), (x1, y1) in pairwise(knots):
            if epoch <= x1:
                t = (epoch - x0) / (x1 - x0)
                return (1 - t) * y0 + t * y1  # at a knot its own rate, to the bit
        return knots[-1][1]

    return learning_rate


def triangle(
    peak_lr: float, warmup_epochs: float, horizon_epochs: float, final_lr: float = 0.0
) -> Schedule:
    """Up from 0 over the warm-up, then down to `final_lr` at the horizon (Tables 5 and 6).

    Without warm-up it starts at its peak: the schedule of phase 2.
    """
    rise = [(0.0, 0.0)] if warmup_epochs > 0 else []
    return piecewise_linear([*rise, (warmup_epochs, peak_lr), (horizon_epochs, final_lr)])


def cyclic(peak_lr: float, cycle_epochs: float, final_lr: float = 0.0) -> Schedule:
    """Again and again from the peak down to `final_lr`: SWA's schedule (Figure 6).

    Izmailov et al.'s a(i) = (1 - t) a1 + t a2 with t = (mod(i - 1, c) + 1) / c, for steps i from
    1 and cycles of c steps: the last step of a cycle, after which a model is sampled, has
    `final_lr`, and the next one is nearly at the peak again.
    """

    def learning_rate(epoch: float) -> float:
        cycles = epoch / cycle_epochs
        t = cycles - max(math.ceil(cycles) - 1, 0)
        return (1 - t) * peak_lr + t * final_lr

    return learning_rate


def pieces(parts: Sequence[tuple[float, float, float]]) -> Schedule:
    """Straight pieces, one after another, that need not meet (Figure 5).

    Arguments:
        parts: of each piece its length in epochs, and its learning rate at both ends. A position
            between two pieces belongs to the first: an epoch's last update ends its piece.
    """
    parts = tuple(parts)

    def learning_rate(epoch: float) -> float:
        start = 0.0
        for length, first, last in parts:
            if epoch <= start + length:
                t = (epoch - start) / length
                return (1 - t) * first + t * last
            start += length
        return parts[-1][2]

    return learning_rate
