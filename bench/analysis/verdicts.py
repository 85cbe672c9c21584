"""Ours beside the paper's: a verdict by Welch's test, and which runs may be compared. No torch."""

from collections.abc import Sequence

from bench.records.paper import PaperValue
from bench.statistics import Difference, Summary, welch
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


def difference_from(ours: Summary, published: PaperValue) -> Difference | None:
    """How far ours, in the paper's units, is from the published; None for a single run."""
    return welch((ours.mean, ours.std, ours.n), (published.mean, published.sd, published.n))


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
    """Whether the runs may be compared with the published figure.

    All need the paper's net, data and epochs; times also its hardware: as many V100 as the paper
    names, one process on each. Where it names a machine for all of a table's rows (Table 4), those
    of them that the recipe can use.
    """
    if not all(record.comparable for record in records):
        return False
    if published.units == "percent":
        return True
    devices = published.devices
    return all(
        published.device in record.machine["device"]
        and record.num_devices
        == (min(devices, record.settings.num_replicas) if published.is_shared else devices)
        and not record.emulated_workers
        for record in records
    )
