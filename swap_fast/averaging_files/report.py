"""The report of an average of files: as data, and as a table on the screen. No torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BARRIER = 0.02
"""Accuracy (a fraction) below the straight line from which on two models lie apart: Frankle et al.
(2020) call what is below 2% stable."""

SPLITS = {"held_out": "held-out accuracy (%)", "test": "test accuracy (%)"}


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One file that was given."""

    name: str
    """Its path, as short as tells it from the others."""
    sha256: str
    """Of its bytes."""
    share: float
    """Its weight in the average; 0 where it was left out."""
    accuracies: dict[str, float]
    """Of its model as it is, by split: fractions."""
    from_start: float | None
    """Euclidean distance from where the models began, if that is known."""
    barrier: float | None
    """The largest drop of accuracy on the way from the average; None where not measured."""


@dataclass(frozen=True, kw_only=True)
class SoupReport:
    """An average of files."""

    soup: str
    """uniform, weighted or greedy."""
    ingredients: tuple[Ingredient, ...]
    """In the order in which they were given."""
    origin: str | None
    """Names the model that all began from, by its content, where their runs say."""
    start: str | None
    """The file of that model."""
    distances: list[list[float]]
    """Euclidean distances between them."""
    cosines: list[list[float]] | None
    """Cosines between their displacements from their start."""
    batch_norm: str
    """What the average's batch-norm statistics are: averaged, recomputed, or as_saved where there
    are none or no two models were averaged."""
    before: dict[str, float]
    """Accuracies of the average with averaged statistics: fractions, by split."""
    after: dict[str, float]
    """With the statistics that it has in the end."""
    notes: tuple[str, ...]
    """What its user should know."""
    output: str | None = None
    """The file that was written."""
    sha256: str | None = None
    """Of its bytes."""


def barrier(accuracies: Sequence[float]) -> float:
    """How far the accuracy falls below the straight line between a segment's ends.

    With a(t) the accuracy at t, it is the largest (1 - t) a(0) + t a(1) - a(t), as Entezari et al.
    (2022) have it, and 0 or more; Frankle et al. (2020) take the mean of the ends instead, which is
    the same where they are equally good. NaN, where one of them is not finite.

    Arguments:
        accuracies: fractions, at points of equal distance with the ends among them.
    """
    if not all(map(math.isfinite, accuracies)):
        return math.nan
    last = len(accuracies) - 1
    line = ((accuracies[0] * (last - i) + accuracies[-1] * i) / last for i in range(last + 1))
    drops = (expected - got for expected, got in zip(line, accuracies, strict=True))
    return max(0.0, *drops)


def show(report: SoupReport) -> None:
    """Print the table of models, how far they lie apart, and the notes."""
    _table(_rows(report))
    for line in (*_lines(report), *(f"note: {note}" for note in report.notes)):
        print(line)
    if report.output is not None:
        print(f"{report.output} sha256 {report.sha256}")


def _rows(report: SoupReport) -> list[list[str]]:
    """The table's cells, its head first; without columns that nothing is known for."""
    splits, each = list(report.after), report.ingredients
    columns = [
        ["model", *(one.name for one in each)],
        ["share (%)", *(_percent(one.share) for one in each)],
        *([SPLITS[split], *(_percent(one.accuracies[split]) for one in each)] for split in splits),
    ]
    if report.start is not None:
        columns.append(["from start", *(f"{one.from_start or 0:.4g}" for one in each)])
    if any(one.barrier is not None for one in each):
        columns.append(["barrier (points)", *(_percent(one.barrier) for one in each)])
    averages = [("average", report.after)]
    if report.batch_norm != "as_saved":
        averages = [("average, batch norm averaged", report.before)]
    if report.batch_norm == "recomputed":
        averages.append(("average, batch norm recomputed", report.after))
    rows = [list(row) for row in zip(*columns, strict=True)]
    for name, accuracies in averages if splits else []:
        cells = [name, "", *(_percent(accuracies[split]) for split in splits)]
        rows.append(cells + [""] * (len(columns) - len(cells)))
    return rows


def _lines(report: SoupReport) -> list[str]:
    """The models' places in a few words; the matrices are in the JSON."""
    lines = []
    if report.origin is not None:
        lines.append(f"all began from one phase 1: {report.origin[:12]}")
    pairs = [(i, j) for i in range(len(report.distances)) for j in range(i)]
    if pairs:
        apart = [report.distances[i][j] for i, j in pairs]
        lines.append(f"distances between models: {min(apart):.4g} to {max(apart):.4g}")
    if pairs and report.cosines is not None:
        between = [report.cosines[i][j] for i, j in pairs]
        start = Path(report.start or "").name
        least, most = min(between), max(between)
        lines.append(f"cosines of displacements from {start}: {least:.3f} to {most:.3f}")
    return lines


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        for i, name in enumerate(rows[0]):
            table.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
