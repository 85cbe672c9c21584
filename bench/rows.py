"""Table 1's rows: whose runs stand in each, and which of their figures. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.places import TABLE_1_RECIPES
from bench.stats import accuracy_key, group_by
from swap_fast.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of Table 1: whose runs, and which of their figures."""

    label: str
    """As the paper prints it."""
    recipe: str
    """Whose runs: a key of `TABLE_1_RECIPES`' entries."""
    accuracy: Callable[[RunRecord], float | None]
    """The row's test accuracy, a fraction."""
    time_s: Callable[[RunRecord], float | None]
    """By the paper's reading, as measured."""
    modelled_s: Callable[[RunRecord], float | None]
    """Had the workers of phase 2 run at the same time; None without phase 2."""
    is_final: bool = True
    """Whether these are the figures of what the run returns."""


TABLE_1 = (
    Row(
        label="SGD (small-batch)",
        recipe="small",
        accuracy=lambda record: record.test_accuracy,
        time_s=lambda record: record.times.after_averaging_s,
        modelled_s=lambda record: None,
    ),
    Row(
        label="SGD (large-batch)",
        recipe="large",
        accuracy=lambda record: record.test_accuracy,
        time_s=lambda record: record.times.after_averaging_s,
        modelled_s=lambda record: None,
    ),
    Row(
        label="SWAP (before averaging)",
        recipe="swap",
        accuracy=lambda record: record.accuracy_before_averaging,
        time_s=lambda record: record.times.before_averaging_s,
        modelled_s=lambda record: record.times.modelled_before_averaging_s,
        is_final=False,
    ),
    Row(
        label="SWAP (after averaging)",
        recipe="swap",
        accuracy=lambda record: record.test_accuracy,
        time_s=lambda record: record.times.after_averaging_s,
        modelled_s=lambda record: record.times.modelled_after_averaging_s,
    ),
)
"""Table 1's rows, in the paper's order."""


@dataclass(frozen=True, kw_only=True)
class RowRuns:
    """The runs that one row of Table 1 puts together."""

    row: Row
    """Which row, and which of the runs' figures."""
    label: str
    """The row's; with a number where runs of its recipe may not all be put together."""
    records: list[RunRecord]
    """Runs of one recipe, data set, precision and kind of device; empty where there are none."""


def table_1_runs(place: str, records: Sequence[RunRecord]) -> list[RowRuns]:
    """The runs of one kind of machine, dealt out to Table 1's rows."""
    dealt = []
    for row in TABLE_1:
        runs = [record for record in records if record.recipe == TABLE_1_RECIPES[place][row.recipe]]
        groups = list(group_by(runs, accuracy_key).values())
        for i, group in enumerate(groups or [[]], start=1):
            mark = f" [{i}]" if len(groups) > 1 else ""
            dealt.append(RowRuns(row=row, label=f"{row.label}{mark}", records=group))
    return dealt
