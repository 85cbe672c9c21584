"""What a search knows of each point of its grid. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.search.grid import Point

State = Literal["done", "running", "waiting", "diverged", "failed"]
"""Of a point; "running" is on any machine."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The runs of one point, a value a seed."""

    accuracies: tuple[float, ...]
    """On the held-out images: after averaging, or of SGD's last epoch."""
    times_s: tuple[float, ...]
    """Training time, phase 1 included wherever it was run."""
    phase1_epochs: tuple[int, ...]
    """Epochs of phase 1."""
    run_ids: tuple[str, ...]
    """The runs."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One point."""

    point: Point
    """Its values."""
    state: State
    """Where it stands."""
    measured: Measured | None = None
    """Where it is done."""
    why: str | None = None
    """Where it diverged or failed."""


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Best first: by mean accuracy, and the shorter time of equals; then those without one."""

    def rank(outcome: Outcome) -> tuple[float, float]:
        if outcome.measured is None:
            return 1.0, 0.0
        return -fmean(outcome.measured.accuracies), fmean(outcome.measured.times_s)

    return sorted(outcomes, key=rank)
