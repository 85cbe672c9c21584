"""Where models lie in the basin of a plane: its centre, and who is near it (Section 4.1). No torch.

A basin's centre is here the mean of the grid's points whose train error is within the lowest
quarter of the grid: every point of the grid stands for the same area of the plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.landscape.records import PlaneRecord

SHARE = 0.25
"""Of the grid's points, those with the lowest train error, that are taken for the basin."""


@dataclass(frozen=True, kw_only=True)
class Basin:
    """The lowest part of a plane, and where the marked points are from its centre."""

    alpha: float
    """The centre's coordinate along u."""
    beta: float
    """The centre's coordinate along v."""
    level: float
    """The train error (a fraction) up to which a grid point is in it."""
    cut_off: bool
    """Whether it reaches the grid's border: then the centre is only that of what is seen."""
    distances: dict[str, float]
    """Of the marked points' projections from the centre, in weight space, by name."""

    @property
    def nearest(self) -> str:
        """The marked point that is nearest to the centre."""
        return min(self.distances, key=lambda name: self.distances[name])


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """A point of the grid."""

    alpha: float
    """Along u."""
    beta: float
    """Along v."""
    error: float
    """There, a fraction."""


def basin(record: PlaneRecord) -> Basin:
    """The basin of a plane by train error."""
    errors = sorted(error for row in record.train_error for error in row)
    level = errors[max(math.ceil(SHARE * len(errors)), 1) - 1]
    inside = [
        (row, column)
        for row, values in enumerate(record.train_error)
        for column, error in enumerate(values)
        if error <= level
    ]
    alpha = sum(record.alphas[column] for _, column in inside) / len(inside)
    beta = sum(record.betas[row] for row, _ in inside) / len(inside)
    last_row, last_column = len(record.betas) - 1, len(record.alphas) - 1
    return Basin(
        alpha=alpha,
        beta=beta,
        level=level,
        cut_off=any(row in (0, last_row) or column in (0, last_column) for row, column in inside),
        distances={
            point.name: math.hypot(point.alpha - alpha, point.beta - beta)
            for point in record.marked
        },
    )


def on_other_sides(record: PlaneRecord, first: str, second: str) -> bool:
    """Whether two marked points are on unlike sides of the basin's centre.

    Seen from the centre, the second's projection on the direction of the first is then negative.

    Raises:
        KeyError: no such point.
    """
    centre, points = basin(record), {point.name: point for point in record.marked}
    a, b = points[first], points[second]
    product = (a.alpha - centre.alpha) * (b.alpha - centre.alpha)
    return product + (a.beta - centre.beta) * (b.beta - centre.beta) < 0


def best(record: PlaneRecord) -> GridPoint:
    """Figure 3's BEST: the grid's minimum of test error. A display, never a result."""
    found = min(
        (error, row, column)
        for row, values in enumerate(record.test_error)
        for column, error in enumerate(values)
    )
    error, row, column = found
    return GridPoint(alpha=record.alphas[column], beta=record.betas[row], error=error)
