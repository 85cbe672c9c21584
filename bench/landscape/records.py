"""Records of Figures 2, 3 and 4: JSON files from which they are drawn. No torch.

They are in OUT/planes and OUT/cosines, next to OUT/runs.
"""

from __future__ import annotations

import cmath
import math
import re
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from swap_fast.record import (
    LARGEST,
    Amount,
    Code,
    Cosine,
    Count,
    Data,
    ExecutionSettings,
    Fraction,
    Index,
    Machine,
)
from swap_fast.record_files import read_folder, read_json_record, write_json_record

SCHEMA_VERSION = 3

PLANES, COSINES = "planes", "cosines"
"""Folders of a results folder."""
Coordinate = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""Along u or v, a distance in weight space."""


@dataclass(frozen=True, kw_only=True)
class MarkedPoint:
    """A model on a plane, or its projection on it."""

    name: str
    """As the paper has it: LB, SGD, SWAP, SGD1."""
    file: str
    """Its weights, among the run's."""
    alpha: Coordinate
    """Along u."""
    beta: Coordinate
    """Along v."""
    off_plane: Amount
    """Its own distance from the plane."""
    train_error: Fraction
    """Of the model itself, measured as the grid's points are."""
    test_error: Fraction
    """Of the model itself."""


@dataclass(frozen=True, kw_only=True)
class LandscapeRecord:
    """What every record of a landscape says of its run and of how it was measured."""

    figure: int
    """The paper's number."""
    run_id: str
    """The run whose models these are."""
    recipe: str
    """Its recipe."""
    seed: int
    """Its seed."""
    created: str
    """UTC, ISO 8601, of the measurement's end."""
    settings: dict[str, Any]
    """Images and points."""
    execution: ExecutionSettings
    machine: Machine
    code: Code
    data: Data
    """The run's."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a run that cannot name the figure's files."""
        if not re.fullmatch(r"[\w-]+", self.run_id):
            raise ValueError("run_id: expected letters, digits, _ and - in a run's name")

    @property
    def name(self) -> str:
        """The file's name."""
        return file_name(self.figure, self.run_id)


@dataclass(frozen=True, kw_only=True)
class PlaneRecord(LandscapeRecord):
    """Figure 2 or 3: errors on a grid of a plane, and of the models that are marked on it."""

    figure: Literal[2, 3]
    marked: list[MarkedPoint]
    """In the order of the figure; the first three span the plane, whose origin is the first."""
    alphas: list[Coordinate]
    """The grid's columns, from left to right."""
    betas: list[Coordinate]
    """The grid's rows, from the lowest up."""
    train_error: list[list[Fraction]]
    """[rows][columns]."""
    test_error: list[list[Fraction]]
    """[rows][columns]."""

    def __post_init__(self) -> None:
        """Refuse a plane that cannot be drawn."""
        super().__post_init__()
        columns, rows = len(self.alphas), len(self.betas)
        grids = (self.train_error, self.test_error)
        is_whole = all(len(g) == rows and all(len(row) == columns for row in g) for g in grids)
        if not (is_whole and min(columns, rows) >= 2):
            raise ValueError(
                "expected 2 x 2 points or more and an error at each, got a grid with holes"
            )
        for name, axis in (("alphas", self.alphas), ("betas", self.betas)):
            if not all(a < b for a, b in pairwise(axis)):
                raise ValueError(f"{name}: expected rising numbers, got others")
        names = {point.name for point in self.marked}
        if len(self.marked) < 3 or (self.figure == 2 and not {"LB", "SGD", "SWAP"} <= names):
            raise ValueError(
                "marked: expected the three points of the figure, got "
                f"{', '.join(sorted(names)) or 'none'}"
            )


@dataclass(frozen=True, kw_only=True)
class CosineRow:
    """One worker's model after one epoch."""

    phase: int
    """1 or 2."""
    epoch: Count
    """Epochs done in this phase, from 1."""
    cosine: Cosine
    """Between -g and the direction to the output of SWAP."""
    gradient_norm: Amount
    """|g|."""
    distance: Amount
    """Of the model from the output of SWAP."""


@dataclass(frozen=True, kw_only=True)
class CosineRecord(LandscapeRecord):
    """Figure 4: one worker's path through phases 1 and 2."""

    figure: Literal[4]
    worker: Index
    phase1_epochs: Count
    """Where the phases meet."""
    rows: list[CosineRow]
    """In the order of the epochs."""

    def __post_init__(self) -> None:
        """Refuse a path without its cosines."""
        super().__post_init__()
        if not self.rows:
            raise ValueError("rows: expected a cosine for each epoch, got none")


def file_name(figure: int, run_id: str) -> str:
    """Of a record, a figure and a file of finished points, without its ending."""
    return f"figure{figure}-{run_id}"


def folder_of(figure: int) -> str:
    """Where a figure's records are in a results folder."""
    return COSINES if figure == 4 else PLANES


def write_landscape(record: LandscapeRecord, results: Path) -> Path:
    """Write a record whole or not at all; one of the same figure and run is replaced."""
    folder = results / folder_of(record.figure)
    return write_json_record(asdict(record), folder, record.name, replace=True)


def read_plane(path: Path) -> PlaneRecord:
    """Read a record of Figure 2 or 3, as `read_json_record` does."""
    return read_json_record(path, PlaneRecord, SCHEMA_VERSION)


def read_cosines(path: Path) -> CosineRecord:
    """Read a record of Figure 4, as `read_json_record` does."""
    return read_json_record(path, CosineRecord, SCHEMA_VERSION)


def read_planes(results: Path) -> tuple[list[PlaneRecord], list[str]]:
    """All planes of a results folder in the order of their names, and why others were left out."""
    return read_folder(results / PLANES, read_plane)


def read_all_cosines(results: Path) -> tuple[list[CosineRecord], list[str]]:
    """All cosines of a results folder in the order of their names; and why others were left out."""
    return read_folder(results / COSINES, read_cosines)


# Where models lie in the basin of a plane: its centre, and who is near it (Section 4.1). No torch.
#
# A basin's centre is here the mean of the grid's points whose train error is within the lowest
# quarter of the grid: every point of the grid stands for the same area of the plane.


SHARE = 0.25
"""Of the grid's points, those with the lowest train error, that are taken for the basin."""
SHARES = (0.05, 0.1, SHARE, 0.4)
"""What is said of the basin should not depend on this choice."""


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


def basin(record: PlaneRecord, share: float = SHARE) -> Basin:
    """The basin of a plane by train error: that share of the grid's points."""
    errors = sorted(error for row in record.train_error for error in row)
    level = errors[max(math.ceil(share * len(errors)), 1) - 1]
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


def angle_at_centre(record: PlaneRecord, first: str, second: str, share: float = SHARE) -> float:
    """The angle, in degrees from 0 to 180, at which two marked points are seen from the centre.

    Over 90 they are on different sides of the basin.

    Raises:
        KeyError: no such point.
    """
    centre, points = basin(record, share), {point.name: point for point in record.marked}
    a, b = (
        complex(points[name].alpha - centre.alpha, points[name].beta - centre.beta)
        for name in (first, second)
    )
    return abs(math.degrees(cmath.phase(a * b.conjugate())))


def best(record: PlaneRecord) -> GridPoint:
    """Figure 3's BEST: the grid's minimum of test error. A display, never a result."""
    found = min(
        (error, row, column)
        for row, values in enumerate(record.test_error)
        for column, error in enumerate(values)
    )
    error, row, column = found
    return GridPoint(alpha=record.alphas[column], beta=record.betas[row], error=error)
