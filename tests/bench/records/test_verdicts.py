"""Welch's test against its formulas and a numerical integral, and each verdict by construction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from record_factory import CPU, V100, make_record
from scipy.stats import ttest_ind_from_stats

from bench.records.paper import (
    HIGHER,
    LOWER,
    NOT_DISTINGUISHABLE,
    REPRODUCED,
    PaperValue,
    difference_from,
    is_comparable,
    load_paper,
    verdict,
)
from bench.statistics import Summary, summarize

PAPER = load_paper()
ACCURACY = PAPER.value("Table 1", "SWAP (after averaging)", "test_accuracy")  # 95.23 +- 0.08, 10
TIME = PAPER.value("Table 1", "SWAP (after averaging)", "train_time")  # 169.20 +- 3.25, 10
SMALL_TIME = PAPER.value("Table 1", "SGD (small-batch)", "train_time")


def summary(mean: float, std: float, n: int = 10) -> Summary:
    """n values of that mean and sample deviation."""
    signs = np.array([1, -1] * (n // 2) + [0] * (n % 2), dtype=float)
    return summarize(float(v) for v in mean + signs * std / signs.std(ddof=1))


def t_density(x: np.ndarray, degrees: float) -> np.ndarray:
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    scale = math.exp(log_scale) / math.sqrt(degrees * math.pi)
    return scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)


@pytest.mark.parametrize(("mean", "std", "n"), [(95.10, 0.15, 5), (95.3, 0.05, 12), (94.0, 1.0, 3)])
def test_welch_by_its_formulas(mean: float, std: float, n: int) -> None:
    ours = summary(mean, std, n)
    assert ours.std == pytest.approx(std)
    found = difference_from(ours, ACCURACY)
    assert found is not None
    a, b = std**2 / n, ACCURACY.sd**2 / ACCURACY.n
    degrees = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (ACCURACY.n - 1))
    t = (mean - ACCURACY.mean) / math.sqrt(a + b)
    assert found.mean == pytest.approx(mean - ACCURACY.mean)
    by_scipy = ttest_ind_from_stats(
        *(mean, std, n, ACCURACY.mean, ACCURACY.sd, ACCURACY.n), equal_var=False
    )
    assert found.p_value == pytest.approx(by_scipy.pvalue, rel=1e-12)
    # The tail beyond t, by the trapezoid rule after x = 1 / u.
    u = np.linspace(1e-9, 1 / abs(t), 400_001)
    tail = np.trapezoid(t_density(1 / u, degrees) / u**2, u)
    assert found.p_value == pytest.approx(2 * tail, rel=1e-4)
    # Between the interval's ends, in standard errors, lie 95% of the density.
    reach = (found.interval.high - found.mean) / math.sqrt(a + b)
    assert found.mean - found.interval.low == pytest.approx(found.interval.high - found.mean)
    x = np.linspace(-reach, reach, 400_001)
    assert np.trapezoid(t_density(x, degrees), x) == pytest.approx(0.95, abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "published", "expected"),
    [
        (95.23, 0.1, ACCURACY, REPRODUCED),
        (95.40, 0.05, ACCURACY, REPRODUCED),  # higher, and by less than 0.3 points
        (95.40, 0.30, ACCURACY, NOT_DISTINGUISHABLE),
        (95.70, 0.1, ACCURACY, HIGHER),
        (94.70, 0.2, ACCURACY, LOWER),
        (95.23, 2.0, ACCURACY, NOT_DISTINGUISHABLE),
        (171.0, 3.0, TIME, REPRODUCED),  # 5% of 169.2 are 8.46 s
        (176.0, 3.0, TIME, HIGHER),
        (27.0, 0.1, TIME, LOWER),
        (175.0, 40.0, TIME, NOT_DISTINGUISHABLE),
    ],
)
def test_verdicts(mean: float, std: float, published: PaperValue, expected: str) -> None:
    assert verdict(summary(mean, std), published) == expected


def test_one_run_is_not_distinguishable_from_anything() -> None:
    assert difference_from(summarize([50.0]), ACCURACY) is None
    assert verdict(summarize([50.0]), ACCURACY) == NOT_DISTINGUISHABLE


def _gpu(**changed: Any) -> Any:
    standard = {"machine": V100, "world_size": 8, "emulated_workers": False}
    return make_record("cifar10_swap", **{**standard, **changed})


@pytest.mark.parametrize(
    ("changed", "accuracy", "time"),
    [
        ({}, True, True),
        ({"world_size": 2}, True, False),
        ({"emulated_workers": True}, True, False),
        ({"machine": {**V100, "device": "NVIDIA H200"}}, True, False),
        ({"machine": CPU}, True, False),
        ({"data": {"kind": "subset"}}, False, False),
        ({"overrides": ["phase1.peak_lr=1"]}, False, False),
    ],
)
def test_what_may_be_compared(changed: dict[str, Any], accuracy: bool, time: bool) -> None:
    records = [_gpu(), _gpu(**changed)]
    assert is_comparable(records, ACCURACY) is accuracy
    assert is_comparable(records, TIME) is time


def test_times_need_as_many_devices_as_the_paper_names() -> None:
    small = make_record("cifar10_sgd_small", machine=V100, world_size=2, emulated_workers=False)
    assert is_comparable([small], SMALL_TIME)
    assert not is_comparable([small], TIME)


def test_table_4_s_machine_is_that_of_all_its_rows() -> None:
    # One worker in sequence can use one of its eight devices, and 2048 images at a time all eight.
    for recipe, label, replicas in (
        ("cifar100_swa_small", "Small-batch SWA", 1),
        ("cifar100_swa_large", "Large-batch SWA", 8),
    ):
        time = PAPER.value("Table 4", label, "train_time")
        for ranks in (1, 2, 8):
            record = make_record(recipe, machine=V100, world_size=ranks)
            assert is_comparable([record], time) is (ranks == replicas)


def test_five_percent_of_minutes() -> None:
    published = PAPER.value("Table 3", "SGD (large-batch)", "train_time")  # 127.20 +- 0.78, 3
    assert verdict(summary(130.0, 0.5, 3), published) == REPRODUCED
    assert verdict(summary(127.2 * 60, 0.5, 3), published) == HIGHER


def test_forms_for_a_cpu_are_compared_with_nothing() -> None:
    assert not is_comparable([make_record("cifar10_cpu")], ACCURACY)
