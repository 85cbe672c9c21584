"""Ours beside the paper's: Welch's test of the difference, and a plain verdict. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.records.grouping import replicas_of
from bench.records.paper import PaperValue
from bench.statistics import Interval, Summary, t_quantile
from swap_fast.record import RunRecord

ACCURACY_MARGIN = 0.3
"""Points of percent within which an accuracy counts as reproduced."""
TIME_MARGIN = 0.05
"""Share of the published time within which a time does."""

REPRODUCED, LOWER, HIGHER = "reproduced", "lower", "higher"
NOT_DISTINGUISHABLE = "not distinguishable"
NOT_COMPARED = "other hardware, net or data: not compared"

VERDICT_NOTE = (
    f"Verdict: {REPRODUCED}: the 95% interval of the difference from the paper (Welch) lies within "
    f"{ACCURACY_MARGIN:g} points, of times within {TIME_MARGIN:.0%}; {LOWER}, {HIGHER}: else, it "
    f"excludes 0; {NOT_DISTINGUISHABLE}: neither."
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Ours less the paper's, by Welch's test: neither spread nor number of runs need be equal."""

    mean: float
    """In the paper's units."""
    interval: Interval
    """95%."""
    p_value: float
    """How often equal means would differ so much."""


def difference_from(ours: Summary, published: PaperValue) -> Difference | None:
    """How far ours, in the paper's units, is from the published; None for a single run."""
    if ours.std is None:
        return None
    from scipy.stats import ttest_ind_from_stats

    test = ttest_ind_from_stats(
        *(ours.mean, ours.std, ours.n),
        *(published.mean, published.sd, published.n),
        equal_var=False,
    )
    squared = (ours.std**2 / ours.n, published.sd**2 / published.n)
    degrees = sum(squared) ** 2 / (
        squared[0] ** 2 / (ours.n - 1) + squared[1] ** 2 / (published.n - 1)
    )
    mean, reach = ours.mean - published.mean, t_quantile(degrees) * sum(squared) ** 0.5
    return Difference(
        mean=mean,
        interval=Interval(low=mean - reach, high=mean + reach),
        p_value=float(test.pvalue),
    )


def verdict(ours: Summary, published: PaperValue) -> str:
    """What may be said of ours, in the paper's units, beside the published figure."""
    difference = difference_from(ours, published)
    if difference is None:
        return NOT_DISTINGUISHABLE
    interval = difference.interval
    is_accuracy = published.units == "percent"
    margin = ACCURACY_MARGIN if is_accuracy else TIME_MARGIN * published.mean
    if interval.lies_within(-margin, margin):
        return REPRODUCED
    if interval.high < 0:
        return LOWER
    return HIGHER if interval.low > 0 else NOT_DISTINGUISHABLE


def is_comparable(records: Sequence[RunRecord], published: PaperValue) -> bool:
    """Whether the runs may be held against the published figure.

    All need the paper's net, data and epochs; times also its hardware: as many V100 as the paper
    names, one process on each. Where it names a machine for all of a table's rows (Table 4), those
    of them that the recipe can use.
    """
    if not all(record.comparable for record in records):
        return False
    if published.units == "percent":
        return True
    named = re.search(r"(one machine with )?(\d+) NVIDIA Tesla V100", published.hardware)
    assert named is not None, published.hardware
    is_shared, devices = named[1] is not None, int(named[2])
    return all(
        "V100" in str(record.machine.get("device"))
        and record.world_size == (min(devices, replicas_of(record)) if is_shared else devices)
        and not record.emulated_workers
        for record in records
    )
