"""95% intervals: of a mean, by Student's t and by the bootstrap, and of a share. No torch.

scipy is imported where it is used: it takes longer to load than most commands to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from bench.records.grouping import Summary

CONFIDENCE = 0.95
_TAIL = (1 + CONFIDENCE) / 2
RESAMPLES = 9999
"""Of the bootstrap."""
BOOTSTRAP_SEED = 0
"""Fixed, so that the same records give the same report."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    """Its lower end, in the unit of the values."""
    high: float
    """Its upper end."""

    def lies_within(self, low: float, high: float) -> bool:
        """Whether no part of it is outside."""
        return low <= self.low and self.high <= high


def t_quantile(degrees: float) -> float:
    """What a t variable of so many degrees of freedom exceeds in size with 5% probability."""
    from scipy.stats import t

    return float(t.ppf(_TAIL, degrees))


def t_interval(summary: Summary) -> Interval | None:
    """Of the mean, by Student's t; None for one value, which says nothing of its spread."""
    if summary.std is None:
        return None
    reach = t_quantile(summary.n - 1) * summary.std / summary.n**0.5
    return Interval(low=summary.mean - reach, high=summary.mean + reach)


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Of the mean, by the bootstrap with bias correction and acceleration (BCa).

    Of few values it is too narrow: with three, no resample leaves their range. None for one value.
    """
    if len(values) < 2:
        return None
    if min(values) == max(values):  # nothing to resample, and no acceleration
        return Interval(low=values[0], high=values[0])
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return Interval(low=float(found.low), high=float(found.high))


def share_interval(count: int, n: int) -> Interval:
    """Of a share, `count` of `n`, by Wilson's score: sensible also where all or none count.

    Raises:
        ValueError: no trials, or a count that is not among them.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"share: expected a count among 1 or more, got {count} of {n}")
    z = NormalDist().inv_cdf(_TAIL)
    share, weight = count / n, 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / weight
    reach = z / weight * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    # At both ends the bound is exact; rounding must not put it outside.
    return Interval(
        low=0.0 if count == 0 else centre - reach, high=1.0 if count == n else centre + reach
    )
