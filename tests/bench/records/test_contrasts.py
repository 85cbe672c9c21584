"""Two rows against each other: scipy's own tests as the reference, and what follows from them."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from bench.statistics import DID_NOT_HOLD, HELD, contrast, exponential, logarithms, outcome

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
    assert alike.interval is not None
    assert (alike.interval.low, alike.interval.high) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one value"):
        contrast(FIRST, [])


def test_outcomes() -> None:
    def of(*differences: float, least: float = 0.0) -> str:
        values = list(enumerate(differences))
        return outcome(contrast(values, [(i, 0.0) for i, _ in values]), least=least)

    assert of(1.0, 1.1, 0.9) == HELD
    assert of(-1.0, -1.1, -0.9) == DID_NOT_HOLD
    assert of(-1.0, 1.1, 0.9) == "not distinguishable at n = 3"
    assert of(1.0) == "not distinguishable at n = 1"
    # Within the margin below, two figures count as equal.
    assert of(-0.1, -0.11, -0.09) == DID_NOT_HOLD
    assert of(-0.1, -0.11, -0.09, least=-0.3) == HELD
    assert of(-0.5, -0.51, -0.49, least=-0.3) == DID_NOT_HOLD


def test_ratios_are_differences_of_logarithms() -> None:
    found = contrast(logarithms([(0, 6.0), (1, 12.0)]), logarithms([(0, 2.0), (1, 4.0)]))
    assert math.exp(found.mean) == pytest.approx(3.0)
    ratio = exponential(found.interval)
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((3.0, 3.0))
    assert exponential(None) is None
