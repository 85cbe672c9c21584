"""Records of Figures 2, 3 and 4: JSON files from which they are drawn. No torch.

They stand beside the runs' own, in OUT/planes and OUT/cosines.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

SCHEMA_VERSION = 1
R = TypeVar("R", bound="LandscapeRecord")

PLANES, COSINES = "planes", "cosines"
"""Folders of a results folder."""


@dataclass(frozen=True, kw_only=True)
class MarkedPoint:
    """A model on a plane, or its projection on it."""

    name: str
    """As the paper has it: LB, SGD, SWAP, SGD1."""
    file: str
    """Its weights, among the run's."""
    alpha: float
    """Along u, a distance in weight space."""
    beta: float
    """Along v."""
    off_plane: float
    """Its own distance from the plane."""
    train_error: float
    """Of the model itself, a fraction, measured as the grid's points are."""
    test_error: float
    """Of the model itself, a fraction."""


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
    """UTC, ISO 8601, of the survey's end."""
    settings: dict[str, Any]
    """Images and points."""
    execution: dict[str, Any]
    """How the arithmetic was done."""
    machine: dict[str, Any]
    """What it was measured on."""
    code: dict[str, Any]
    """Version and commit."""
    data: dict[str, Any]
    """As the run's record has it."""
    schema_version: int = SCHEMA_VERSION
    """Of this layout."""

    @property
    def name(self) -> str:
        """The file's name."""
        return file_name(self.figure, self.run_id)


@dataclass(frozen=True, kw_only=True)
class PlaneRecord(LandscapeRecord):
    """Figure 2 or 3: errors on a grid of a plane, and of the models that are marked on it."""

    marked: list[MarkedPoint]
    """In the order of the figure; the first three span the plane, whose origin is the first."""
    alphas: list[float]
    """The grid's columns."""
    betas: list[float]
    """The grid's rows."""
    train_error: list[list[float]]
    """[rows][columns], fractions."""
    test_error: list[list[float]]
    """[rows][columns], fractions."""


@dataclass(frozen=True, kw_only=True)
class CosineRow:
    """One worker's model after one epoch."""

    phase: int
    """1 or 2."""
    epoch: int
    """Epochs done in this phase, from 1."""
    cosine: float
    """Between -g and the direction to the output of SWAP."""
    gradient_norm: float
    """|g|."""
    distance: float
    """Of the model from the output of SWAP."""


@dataclass(frozen=True, kw_only=True)
class CosineRecord(LandscapeRecord):
    """Figure 4: one worker's path through phases 1 and 2."""

    worker: int
    """Which."""
    phase1_epochs: int
    """Where the phases meet."""
    rows: list[CosineRow]
    """In the order of the epochs."""


def file_name(figure: int, run_id: str) -> str:
    """Of a record, a figure and a file of finished points, without its ending."""
    return f"figure{figure}-{run_id}"


def folder_of(figure: int) -> str:
    """Where a figure's records are in a results folder."""
    return COSINES if figure == 4 else PLANES


def write_landscape(record: LandscapeRecord, results: Path) -> Path:
    """Write a record whole or not at all."""
    folder = results / folder_of(record.figure)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    part = folder / f".{record.name}.{uuid4().hex}.part"
    try:
        with open(part, "x", encoding="utf-8") as file:
            json.dump(asdict(record), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_plane(path: Path) -> PlaneRecord:
    """Read a record of Figure 2 or 3.

    Raises:
        ValueError: not such a record, or not a whole one.
    """
    content = _content(path, PlaneRecord)
    try:
        content["marked"] = [MarkedPoint(**point) for point in content["marked"]]
        record = PlaneRecord(**content)
        shape = {(len(record.betas), len(record.alphas))}
        grids = (record.train_error, record.test_error)
        whole = {(len(grid), len(row)) for grid in grids for row in grid} == shape
        numbers = [*record.alphas, *record.betas, *(x for g in grids for row in g for x in row)]
        numbers += [x for p in record.marked for x in (p.alpha, p.beta, p.train_error)]
        if not (whole and len(record.marked) >= 3 and all(map(math.isfinite, numbers))):
            raise ValueError("a grid with holes")
        if record.figure not in (2, 3):
            raise ValueError(f"figure {record.figure!r}")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: expected a whole record of a plane, got {error}") from None
    return record


def read_cosines(path: Path) -> CosineRecord:
    """Read a record of Figure 4.

    Raises:
        ValueError: not such a record, or not a whole one.
    """
    content = _content(path, CosineRecord)
    try:
        content["rows"] = [CosineRow(**row) for row in content["rows"]]
        record = CosineRecord(**content)
        if not record.rows or not all(math.isfinite(row.cosine) for row in record.rows):
            raise ValueError("no cosines, or one that is no number")
        if record.figure != 4:
            raise ValueError(f"figure {record.figure!r}")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: expected a record of cosines, got {error}") from None
    return record


def read_planes(results: Path) -> tuple[list[PlaneRecord], list[str]]:
    """All planes of a results folder in the order of their names, and why others were left out."""
    return _read_all(results / PLANES, read_plane)


def read_all_cosines(results: Path) -> tuple[list[CosineRecord], list[str]]:
    """All cosines of a results folder in the order of their names; and why others were left out."""
    return _read_all(results / COSINES, read_cosines)


def _read_all(folder: Path, read: Callable[[Path], R]) -> tuple[list[R], list[str]]:
    records: list[R] = []
    skipped = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read(path))
        except ValueError as error:
            skipped.append(str(error))
    return records, skipped


def _content(path: Path, kind: type[LandscapeRecord]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: expected a JSON record, got {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path.name}: expected schema version {SCHEMA_VERSION}, got {version!r}; "
            "use the swap_fast that wrote it"
        )
    if odd := sorted(set(content) ^ {f.name for f in fields(kind)}):
        raise ValueError(f"{path.name}: missing or unknown fields {', '.join(odd)}")
    result: dict[str, Any] = content
    return result


# Where models lie in the basin of a plane: its centre, and who is near it (Section 4.1). No torch.
#
# A basin's centre is here the mean of the grid's points whose train error is within the lowest
# quarter of the grid: every point of the grid stands for the same area of the plane.


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
