"""Landscapes with known shapes, for the tests of their figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from record_factory import CPU, DATA, EXECUTION, make_record

from bench.landscape.records import CosineRecord, CosineRow, MarkedPoint, PlaneRecord

COMMON: dict[str, Any] = {
    "run_id": "cifar10_cpu-seed0-20260101000000",
    "recipe": "cifar10_cpu",
    "seed": 0,
    "created": "2026-01-01T00:00:00+00:00",
    "settings": {"grid": 9},
    "execution": EXECUTION,
    "machine": CPU,
    "code": {"version": "0.1.0", "commit": None, "changed": None},
    "data": DATA,
}


def make_plane(
    error: Callable[[float, float], float],
    marked: dict[str, tuple[float, float]],
    *,
    figure: int = 2,
    count: int = 9,
    reach: float = 4.0,
    off_plane: float = 0.0,
    **changed: Any,
) -> PlaneRecord:
    """The grid -reach..reach, squared, with this train error; the test error is 1.5 times that."""
    axis = [-reach + 2 * reach * i / (count - 1) for i in range(count)]
    train = [[error(alpha, beta) for alpha in axis] for beta in axis]
    return PlaneRecord(
        **{**COMMON, "figure": figure, **changed},
        marked=[
            MarkedPoint(
                name=name,
                file=f"{name}.safetensors",
                alpha=alpha,
                beta=beta,
                off_plane=off_plane if name == "SWAP" else 0.0,
                train_error=error(alpha, beta),
                test_error=1.5 * error(alpha, beta),
            )
            for name, (alpha, beta) in marked.items()
        ],
        alphas=axis,
        betas=axis,
        train_error=train,
        test_error=[[1.5 * value for value in row] for row in train],
    )


def make_cosines(cosines: list[float], phase1_epochs: int, **changed: Any) -> CosineRecord:
    """A path with these cosines, some in phase 1."""
    return CosineRecord(
        **{**COMMON, "figure": 4, **changed},
        worker=0,
        phase1_epochs=phase1_epochs,
        rows=[
            CosineRow(
                phase=1 if i < phase1_epochs else 2,
                epoch=i + 1 if i < phase1_epochs else i + 1 - phase1_epochs,
                cosine=value,
                gradient_norm=1.0,
                distance=2.0,
            )
            for i, value in enumerate(cosines)
        ],
    )


def bowl(figure: int, **at: tuple[float, float]) -> PlaneRecord:
    """A bowl of train error around (0, 0), of the factory's first run, with models at these places.

    Its grid is -2..2 x -2..2.
    """
    run_id = make_record().run_id
    return make_plane(
        lambda a, b: (a * a + b * b) / 20, at, figure=figure, reach=2.0, run_id=run_id
    )


def cosine_path(*cosines: float) -> CosineRecord:
    """A path of the factory's first run with these cosines."""
    return make_cosines(list(cosines), 5, run_id=make_record().run_id)
