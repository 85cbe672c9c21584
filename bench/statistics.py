"""Two rows' runs against each other: by seed where they share seeds, and what follows. No torch."""

import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

UNSTABLE_SHARE = 0.1
"""A standard deviation of this share of the mean, or more, marks times as unstable."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several runs' values of one quantity."""

    values: tuple[float, ...]
    """Every one, in the order given."""
    mean: float
    """Arithmetic mean."""
    std: float | None
    """Sample standard deviation (ddof = 1); None for one value."""

    @property
    def n(self) -> int:
        """How many values."""
        return len(self.values)

    @property
    def unstable(self) -> bool:
        """Whether the standard deviation is 10% of the mean or more: a warning for times."""
        return self.std is not None and self.std >= UNSTABLE_SHARE * abs(self.mean)

    def scaled(self, factor: float) -> "Summary":
        """The same quantity in another unit."""
        return Summary(
            values=tuple(factor * value for value in self.values),
            mean=factor * self.mean,
            std=None if self.std is None else factor * self.std,
        )


def summarize(values: Iterable[float]) -> Summary:
    """Mean and sample standard deviation.

    Raises:
        ValueError: no values.
    """
    kept = tuple(values)
    if not kept:
        raise ValueError("a summary needs at least one value, got none")
    std = statistics.stdev(kept) if len(kept) > 1 else None
    return Summary(values=kept, mean=statistics.fmean(kept), std=std)


# 95% intervals: of a mean, by Student's t and by the bootstrap, and of a share. No torch.
#
# scipy is imported where it is used: it takes longer to load than most commands to run.


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


HELD, DID_NOT_HOLD, NO_RUNS = "held", "did not hold", "no runs"
"""What may come of a claim, beside `not_distinguishable`."""

Values = Sequence[tuple[Hashable, float]]
"""One value a run, behind what it is paired by."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The mean difference of two rows, the first less the second."""

    mean: float
    """In the values' unit."""
    interval: Interval | None
    """95%; None where there are too few runs for one."""
    n: str
    """Runs, of each row where they are not paired."""
    paired_by: str | None
    """What pairs the runs; None: nothing does, and the test is Welch's."""

    @property
    def test(self) -> str:
        """How the interval was made."""
        return "Welch's t" if self.paired_by is None else f"paired t, by {self.paired_by}"


def contrast(first: Values, second: Values, *, paired_by: str = "seed") -> Contrast:
    """The difference of two rows' means, and its 95% interval.

    Where both rows have the same keys, each once, a run is paired with the other row's of the same
    key; else the two are independent samples of unlike spread (Welch).

    Arguments:
        paired_by: what the keys are.

    Raises:
        ValueError: a row without runs.
    """
    one, other = dict(first), dict(second)
    if len(one) == len(first) and len(other) == len(second) and one.keys() == other.keys():
        differences = summarize(value - other[key] for key, value in first)
        return Contrast(
            mean=differences.mean,
            interval=t_interval(differences),
            n=str(differences.n),
            paired_by=paired_by,
        )
    left, right = (summarize(value for _, value in row) for row in (first, second))
    mean, interval = left.mean - right.mean, None
    if left.std is not None and right.std is not None:
        squared = (left.std**2 / left.n, right.std**2 / right.n)
        reach = 0.0
        if sum(squared) > 0:  # else there is no spread, and no degrees of freedom
            degrees = sum(squared) ** 2 / (
                squared[0] ** 2 / (left.n - 1) + squared[1] ** 2 / (right.n - 1)
            )
            reach = t_quantile(degrees) * math.sqrt(sum(squared))
        interval = Interval(low=mean - reach, high=mean + reach)
    return Contrast(mean=mean, interval=interval, n=f"{left.n} and {right.n}", paired_by=None)


def outcome(found: Contrast, *, least: float = 0.0, enough: float = 0.0) -> str:
    """Whether a claim held that the difference is at least so large.

    Arguments:
        least: it held where the whole 95% interval is above this: what is claimed, less the margin
            within which two figures count as equal.
        enough: else it did not hold where the whole interval is below this: what is claimed.
    """
    if found.interval is not None and found.interval.low > least:
        return HELD
    if found.interval is not None and found.interval.high < enough:
        return DID_NOT_HOLD
    return not_distinguishable(found.n)


def not_distinguishable(n: str) -> str:
    """What so few runs leave open."""
    return f"not distinguishable at n = {n}"


def logarithms(values: Values) -> Values:
    """Of each value: a ratio is a difference of these."""
    return [(key, math.log(value)) for key, value in values]


def exponential(interval: Interval | None) -> Interval | None:
    """An interval of logarithms as one of ratios."""
    if interval is None:
        return None
    return Interval(low=math.exp(interval.low), high=math.exp(interval.high))
