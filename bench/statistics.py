"""Two rows' runs against each other: by seed where they share seeds, and what follows. No torch."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from bench.intervals import Interval, t_interval, t_quantile
from bench.records.grouping import summarize

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
