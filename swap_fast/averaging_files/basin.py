"""Whether a model lies in the basin of an average: accuracy along the segment between them."""

from collections.abc import Sequence

BARRIER = 0.02
"""Accuracy (a fraction) below the straight line from which on two models lie apart: Frankle et al.
(2020) call what is below 2% stable."""


def barrier(accuracies: Sequence[float]) -> float:
    """How far the accuracy falls below the straight line between a segment's ends.

    With a(t) the accuracy at t, it is the largest (1 - t) a(0) + t a(1) - a(t), as Entezari et al.
    (2022) have it, and 0 or more; Frankle et al. (2020) take the mean of the ends instead, which is
    the same where they are equally good.

    Arguments:
        accuracies: fractions, at points of equal distance with the ends among them.
    """
    last = len(accuracies) - 1
    line = ((accuracies[0] * (last - i) + accuracies[-1] * i) / last for i in range(last + 1))
    drops = (expected - got for expected, got in zip(line, accuracies, strict=True))
    return max(0.0, *drops)
