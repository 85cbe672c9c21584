"""Two rows against each other by scipy's own tests; intervals by tables, definitions and roots."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from bench.statistics import (
    DID_NOT_HOLD,
    HELD,
    Interval,
    bootstrap_interval,
    contrast,
    exponential,
    logarithms,
    outcome,
    share_interval,
    summarize,
    t_interval,
    t_quantile,
)

FIRST = [(0, 0.812), (1, 0.807), (2, 0.821)]
SECOND = [(2, 0.815), (0, 0.801), (1, 0.805)]


def test_rows_of_the_same_seeds_are_paired_as_scipy_does() -> None:
    found = contrast(FIRST, SECOND)
    other = dict(SECOND)
    reference = stats.ttest_rel([v for _, v in FIRST], [other[s] for s, _ in FIRST])
    interval = reference.confidence_interval(0.95)
    assert (found.n, found.test) == ("3", "paired t, by seed")
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(interval, rel=1e-12)


@pytest.mark.parametrize(
    "second",
    [SECOND[:2], [*SECOND, (3, 0.8)], [(7, 0.815), (8, 0.801), (9, 0.805)], [*SECOND, (0, 0.8)]],
)
def test_rows_of_other_seeds_are_compared_as_welch_does(second: list[tuple[int, float]]) -> None:
    found = contrast(FIRST, second)
    reference = stats.ttest_ind([v for _, v in FIRST], [v for _, v in second], equal_var=False)
    assert (found.n, found.test) == (f"3 and {len(second)}", "Welch's t")
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(
        reference.confidence_interval(0.95), rel=1e-12
    )


def test_one_run_and_runs_without_spread() -> None:
    assert contrast([(0, 2.0)], [(0, 1.0)]).interval is None
    assert contrast([(0, 2.0)], [(1, 1.0), (2, 1.5)]).interval is None
    alike = contrast([(0, 2.0), (1, 2.0)], [(2, 1.5), (3, 1.5)])
    assert alike.interval is None
    assert contrast([(0, 0.3), (1, 0.4)], [(0, 0.2), (1, 0.3)]).interval is None
    with pytest.raises(ValueError, match="at least one value"):
        contrast(FIRST, [])


def test_outcomes() -> None:
    def of(*differences: float, least: float = 0.0) -> str:
        values = list(enumerate(differences))
        return outcome(contrast(values, [(i, 0.0) for i, _ in values]), least=least)

    assert of(1.0, 1.1, 0.9) == HELD
    assert of(-1.0, -1.1, -0.9) == DID_NOT_HOLD
    assert of(-1.0, 1.1, 0.9) == "undecided at n = 3"
    assert of(1.0) == "undecided at n = 1"
    # Within the margin below, two figures count as equal.
    assert of(-0.1, -0.11, -0.09) == DID_NOT_HOLD
    assert of(-0.1, -0.11, -0.09, least=-0.3) == HELD
    assert of(-0.5, -0.51, -0.49, least=-0.3) == DID_NOT_HOLD


def test_ratios_are_differences_of_logarithms() -> None:
    found = contrast(logarithms([(0, 4.0), (1, 18.0)]), logarithms([(0, 2.0), (1, 4.0)]))
    assert math.exp(found.mean) == pytest.approx(3.0)  # of 2 and 4.5
    ratio = exponential(found.interval)
    assert ratio is not None
    assert ratio.low * ratio.high == pytest.approx(9.0)
    assert exponential(None) is None


VALUES = (95.10, 95.21, 95.28, 95.33, 95.65)


@pytest.mark.parametrize(
    # Any printed table of Student's t, column 0.975.
    ("degrees", "tabled"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (30, 2.042)],
)
def test_t_quantiles_are_the_tabled_ones(degrees: int, tabled: float) -> None:
    assert t_quantile(degrees) == pytest.approx(tabled, abs=5e-4)


def test_t_interval_by_hand() -> None:
    # Mean 6, squared deviations 8 over n - 1 = 3; 3.182446 is t's 0.975 quantile at 3.
    interval = t_interval(summarize([4.0, 6.0, 6.0, 8.0]))
    assert interval is not None
    reach = 3.182446 * (8 / 3 / 4) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((6 - reach, 6 + reach), rel=1e-6)


def test_one_value_has_no_interval() -> None:
    assert t_interval(summarize([4.0])) is None
    assert bootstrap_interval([4.0]) is None


def _bca_over_all_resamples(values: tuple[float, ...]) -> tuple[float, float]:
    """Efron's BCa from every one of the n^n resamples, each equally likely."""
    normal, x = NormalDist(), np.array(values)
    means = np.sort([np.mean(each) for each in product(values, repeat=len(values))])
    below = (np.sum(means < x.mean() - 1e-12) + np.sum(np.abs(means - x.mean()) < 1e-12) / 2) / len(
        means
    )
    bias = normal.inv_cdf(float(below))
    left_out = np.array([np.delete(x, i).mean() for i in range(len(x))])
    spread = left_out.mean() - left_out
    acceleration = np.sum(spread**3) / (6 * np.sum(spread**2) ** 1.5)
    ends = []
    for tail in (0.025, 0.975):
        shifted = bias + normal.inv_cdf(tail)
        ends.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def test_bootstrap_is_bca() -> None:
    interval = bootstrap_interval(VALUES)
    assert interval is not None
    # 9,999 random resamples instead of all 3,125: the ends wander by some hundredths of a point.
    assert (interval.low, interval.high) == pytest.approx(_bca_over_all_resamples(VALUES), abs=0.02)
    plain = np.quantile([np.mean(each) for each in product(VALUES, repeat=5)], [0.025, 0.975])
    assert interval.low > plain[0], "no correction for the skew of these values"


def test_bootstrap_gives_the_same_each_time() -> None:
    assert bootstrap_interval(VALUES) == bootstrap_interval(VALUES)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_bootstrap_of_equal_values_is_that_value(n: int) -> None:
    assert bootstrap_interval([5.0] * n) == Interval(low=5.0, high=5.0)


@pytest.mark.parametrize(("count", "n"), [(1, 3), (41, 50), (5, 10)])
def test_wilson_s_ends_solve_its_equation(count: int, n: int) -> None:
    # The ends are the shares p at which the count is 1.959964 standard deviations of p from n p.
    interval = share_interval(count, n)
    for p, sign in ((interval.low, 1), (interval.high, -1)):
        reach = NormalDist().inv_cdf(0.975) * (p * (1 - p) / n) ** 0.5
        assert count / n - p == pytest.approx(sign * reach, rel=1e-11)


def test_wilson_s_ends_where_none_or_all_count() -> None:
    # z^2 / (n + z^2) for n = 3.
    assert share_interval(0, 3) == Interval(low=0.0, high=pytest.approx(0.561497, abs=1e-6))
    assert share_interval(3, 3) == Interval(low=pytest.approx(0.438503, abs=1e-6), high=1.0)


@pytest.mark.parametrize(("count", "n"), [(1, 0), (0, 0), (4, 3), (-1, 3)])
def test_a_count_that_cannot_be_is_refused(count: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {count} of {n}"):
        share_interval(count, n)
