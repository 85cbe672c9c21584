"""Means, 95% intervals and Welch's test over runs, and what a claim's outcome is. No torch.

scipy is imported where it is used: it takes longer to load than most commands to run.
"""

import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
UNSTABLE_SHARE = 0.1
"""A standard deviation of this share of the mean, or more, marks times as unstable."""
RESAMPLES = 9999
"""Of the bootstrap."""
MOST_RESAMPLED = 250_000
"""Values that it holds at once, in 4 MB with their indices."""
BOOTSTRAP_SEED = 0
"""Fixed, so that the same records give the same report."""
WELCH = "Welch's t"
HELD, DID_NOT_HOLD, NO_RUNS = "held", "did not hold", "no runs"
"""Outcomes of a claim; the other one is "undecided at n = N"."""

Values = Sequence[tuple[Hashable, float]]
"""One (key, value) a run; runs of two rows with the same key are paired."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several runs' values of one quantity."""

    values: tuple[float, ...]
    mean: float
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


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From `low` to `high`, both included, in the unit of the values."""

    low: float
    high: float


def t_quantile(degrees: float) -> float:
    """The 97.5% quantile of Student's t with these degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, degrees))


def t_interval(summary: Summary) -> Interval | None:
    """Of the mean, by Student's t; None for one value, which has no spread."""
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
        batch=min(RESAMPLES, max(1, MOST_RESAMPLED // len(values))),
        method="BCa",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return Interval(low=float(found.low), high=float(found.high))


def share_interval(count: int, n: int) -> Interval:
    """Of a share, `count` of `n`, by Wilson's score: sensible also where all or none count.

    Raises:
        ValueError: n is 0, or the count is not between 0 and n.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"share: expected a count among 1 or more, got {count} of {n}")
    from scipy.stats import binomtest

    found = binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(low=float(found.low), high=float(found.high))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first mean less the second, by Welch's test: spreads and numbers may differ."""

    mean: float
    interval: Interval
    """95%."""
    p_value: float
    """How often equal means would differ as much or more."""


def welch(
    first: tuple[float, float | None, int], second: tuple[float, float | None, int]
) -> Difference | None:
    """Welch's test of two samples, each (mean, standard deviation, n); None if one is a single run.

    Two samples without any spread give an interval of no width.
    """
    from scipy.stats import t

    (mean, std, n), (other_mean, other_std, other_n) = first, second
    if std is None or other_std is None:
        return None
    difference, squared = mean - other_mean, (std**2 / n, other_std**2 / other_n)
    error, reach, p_value = math.sqrt(sum(squared)), 0.0, float(difference == 0)
    if error > 0:
        weights = squared[0] ** 2 / (n - 1) + squared[1] ** 2 / (other_n - 1)
        degrees = sum(squared) ** 2 / weights
        reach = t_quantile(degrees) * error
        p_value = 2 * float(t.sf(abs(difference) / error, degrees))
    return Difference(
        mean=difference,
        interval=Interval(low=difference - reach, high=difference + reach),
        p_value=p_value,
    )


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The mean difference of two rows, the first less the second."""

    mean: float
    interval: Interval | None
    """95%; None where there are too few runs for one."""
    n: str
    """Runs; of each row where they are not paired."""
    paired_by: str | None = None
    """What pairs the runs; None: nothing does, and the test is Welch's."""

    @property
    def test(self) -> str:
        """How the interval was made."""
        return WELCH if self.paired_by is None else f"paired t, by {self.paired_by}"


NO_SPREAD = 1e-9
"""An interval no wider than this comes from values that are equal, or differ by rounding only:
they say nothing of how far others would be."""


def contrast(first: Values, second: Values, *, paired_by: str = "seed") -> Contrast:
    """The difference of two rows' means, and its 95% interval.

    Where both rows have the same keys, each once, runs of one key are paired; else the two are
    independent samples (Welch). Values without any spread give no interval.

    Arguments:
        paired_by: what the keys are.

    Raises:
        ValueError: a row without runs.
    """
    one, other = dict(first), dict(second)
    if len(one) == len(first) and len(other) == len(second) and one.keys() == other.keys():
        paired = summarize(value - other[key] for key, value in first)
        found = _with_spread(t_interval(paired))
        return Contrast(mean=paired.mean, interval=found, n=str(paired.n), paired_by=paired_by)
    return independent(first, second)


def independent(first: Values, second: Values) -> Contrast:
    """The same by Welch's test, whatever their keys."""
    left, right = (summarize(value for _, value in row) for row in (first, second))
    found = welch((left.mean, left.std, left.n), (right.mean, right.std, right.n))
    return Contrast(
        mean=left.mean - right.mean,
        interval=_with_spread(None if found is None else found.interval),
        n=f"{left.n} and {right.n}",
    )


def _with_spread(found: Interval | None) -> Interval | None:
    return found if found is not None and found.high - found.low > NO_SPREAD else None


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
    return f"undecided at n = {found.n}"


def logarithms(values: Values) -> Values:
    """Of each value: a ratio is a difference of these."""
    return [(key, math.log(value)) for key, value in values]


def exponential(interval: Interval | None) -> Interval | None:
    """An interval of logarithms as one of ratios."""
    if interval is None:
        return None
    return Interval(low=math.exp(interval.low), high=math.exp(interval.high))
