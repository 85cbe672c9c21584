"""The paper's claims, and the runs that each compares. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

from bench.records.grouping import accuracy_key, group_by, machine_key, timed_alone
from bench.records.paper import Paper, PaperValue
from bench.records.paper_tables import (
    ACCURACY,
    AFTER,
    BEFORE,
    RUN_TABLES,
    SGD_LARGE,
    SGD_SMALL,
    SWA_LARGE,
    SWA_LARGE_SMALL,
    SWA_SMALL,
    SWAP_10,
    SWAP_40,
    SWAP_AFTER,
    SWAP_BEFORE,
    TOP_1,
    Column,
    PaperRow,
    Size,
    places_of,
)
from bench.statistics import Values
from swap_fast.record import RunRecord

Rule = Literal["higher", "at least as high", "longer", "longer by a factor"]
"""How the first side of a claim is said to compare with the second."""


@dataclass(frozen=True)
class PaperCell:
    """A cell of one of the paper's tables, in the row of that label."""

    table: int
    label: str
    column: Column | None = None
    """Which accuracy; None: the time."""

    @cached_property
    def row(self) -> PaperRow:
        """Whose runs."""
        (found,) = (row for row in RUN_TABLES[self.table].rows if row.label == self.label)
        return found

    def published(self, paper: Paper) -> PaperValue:
        """The paper's own figure."""
        column = "train_time" if self.column is None else self.column.name
        return paper.value(RUN_TABLES[self.table].name, self.label, column)

    def has(self, record: RunRecord, size: Size) -> bool:
        """Whether the run is in this row."""
        table = RUN_TABLES[self.table]
        is_of_row = record.recipe == self.row.recipes.get(size)
        return is_of_row and table.place(size) in places_of(record)

    def value(self, record: RunRecord, *, modelled: bool = False) -> float | None:
        """The run's figure: a fraction, or seconds; modelled, had its workers run at once."""
        if self.column is not None:
            return self.row.accuracy(self.column, record)
        modelled_s = self.row.modelled_s(record) if modelled else None
        return self.row.time_s(record) if modelled_s is None else modelled_s


@dataclass(frozen=True)
class Claim:
    """The paper says that the first figure is higher than the second, or as high, or longer."""

    rule: Rule
    first: PaperCell
    second: PaperCell
    source: str
    says: str
    """In the paper's words."""

    @property
    def is_of_one_row(self) -> bool:
        """Whether both are figures of the same runs."""
        return self.first.row.recipes == self.second.row.recipes

    @property
    def is_of_times(self) -> bool:
        """Whether times are compared, as a ratio; else accuracies, as a difference."""
        return self.first.column is None


def _claims_of(
    table: int,
    section: str,
    column: Column,
    *,
    large: str = "Training with small batches achieves higher testing accuracy than with large "
    "batches",
    swap: str = "SWAP achieves accuracies on par with small-batch training, or better",
) -> list[Claim]:
    """The three claims that the paper makes of Tables 1, 2 and 3 alike."""
    source = f"Section {section}, Table {table}"
    averaging = "Test accuracy improves when the models are averaged"
    small, big, before, after = (
        PaperCell(table, label, column) for label in (SGD_SMALL, SGD_LARGE, SWAP_BEFORE, SWAP_AFTER)
    )
    return [
        Claim("higher", after, before, source, averaging),
        Claim("at least as high", after, small, source, swap),
        Claim("higher", small, big, source, large),
    ]


ACCURACY_CLAIMS = (
    *_claims_of(1, "5.1", ACCURACY),
    *_claims_of(2, "5.1", ACCURACY),
    *_claims_of(
        3,
        "5.2",
        TOP_1,
        large="Doubling the batch size reduces the test accuracy of the small-batch run",
        swap="SWAP recovers the generalization performance of the small-batch run",
    ),
    Claim(
        "at least as high",
        PaperCell(4, SWA_LARGE, BEFORE),
        PaperCell(4, SWA_LARGE, AFTER),
        "Section 5.3, Table 4",
        "SWA was unable to improve a large-batch run: before averaging it is as high",
    ),
    Claim(
        "at least as high",
        PaperCell(4, SWA_LARGE_SMALL, AFTER),
        PaperCell(2, SGD_SMALL, ACCURACY),
        "Section 5.3, Tables 4 and 2",
        "Large-batch followed by small-batch SWA reaches the test accuracy of a small-batch run",
    ),
    Claim(
        "higher",
        PaperCell(4, SWA_SMALL, AFTER),
        PaperCell(4, SWAP_10, AFTER),
        "Section 5.3, Table 4",
        "Small-batch SWA achieves better accuracy than SWAP (by around 0.9%)",
    ),
    Claim(
        "at least as high",
        PaperCell(4, SWAP_40, AFTER),
        PaperCell(4, SWA_SMALL, AFTER),
        "Section 5.3, Table 4",
        "SWAP with two longer cycles and two models a worker reaches the precision of small-batch "
        "SWA",
    ),
)
"""Of test accuracies, in the paper's order."""

_LONGER = "Training with small batches takes longer than SWAP"
_COMPARABLE = (
    "SWAP terminates in time comparable to the large-batch run (its time over SWAP's, as in the "
    "paper)"
)
_TIMES: tuple[tuple[Rule, int, str, str, str, str], ...] = (
    ("longer", 1, SGD_SMALL, SWAP_AFTER, "Section 5.1, Table 1", _LONGER),
    ("longer by a factor", 1, SGD_LARGE, SWAP_AFTER, "Section 5.1, Table 1", _COMPARABLE),
    ("longer", 2, SGD_SMALL, SWAP_AFTER, "Section 5.1, Table 2", _LONGER),
    ("longer by a factor", 2, SGD_LARGE, SWAP_AFTER, "Section 5.1, Table 2", _COMPARABLE),
    ("longer", 3, SGD_SMALL, SWAP_AFTER, "Section 5.2, Table 3", _LONGER),
    (
        *("longer by a factor", 4, SWA_LARGE_SMALL, SWAP_10, "Section 5.3, Table 4"),
        "Large-batch followed by small-batch SWA requires more than three times longer than SWAP",
    ),
    (
        *("longer by a factor", 4, SWA_SMALL, SWAP_10, "Section 5.3, Table 4"),
        "Small-batch SWA needs 6.8x more training time than SWAP",
    ),
    (
        *("longer by a factor", 4, SWA_SMALL, SWAP_40, "Section 5.3, Table 4"),
        "SWAP reaches small-batch SWA's accuracy in 3.5x less time",
    ),
)
TIME_CLAIMS = tuple(
    Claim(rule, PaperCell(table, slow), PaperCell(table, fast), source, says)
    for rule, table, slow, fast, source, says in _TIMES
)
"""Of training times, in the paper's order."""


# The runs that a claim compares, and their figures.


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The runs of a claim's two sides that may be compared."""

    first: list[RunRecord]
    """Of one recipe, kind of machine, number of devices, precision and data; as `second`."""
    second: list[RunRecord]
    mark: str
    """A number where there is more than one such pair; else nothing."""


def pairs_of(claim: Claim, records: Sequence[RunRecord], size: Size) -> Iterator[Pair]:
    """Every two groups of runs that may be compared; an empty pair without any."""
    sides = []
    for cell in (claim.first, claim.second):
        runs = [record for record in records if cell.has(record, size)]
        sides.append(list(group_by(runs, lambda r: (accuracy_key(r), machine_key(r))).values()))
    if claim.is_of_one_row:
        fitting = [(group, group) for group in sides[0]]
    else:
        fitting = [
            (first, second)
            for first, second in product(*sides)
            if conditions(first[0]) == conditions(second[0])
        ]
    for number, (first, second) in enumerate(fitting, start=1):
        yield Pair(first=first, second=second, mark=f" [{number}]" if len(fitting) > 1 else "")
    if not fitting:
        yield Pair(first=[], second=[], mark="")


def conditions(record: RunRecord) -> tuple[object, ...]:
    """What must be equal for runs of two recipes to be compared."""
    key = accuracy_key(record)
    return (key.precision, key.data_hash, record.settings.train_images)


def values_of(claim: Claim, pair: Pair, *, modelled: bool = False) -> tuple[Values, Values]:
    """Each side's figures; by run where both are of the same runs, else by seed."""

    def of(cell: PaperCell, runs: Sequence[RunRecord]) -> Values:
        return [
            (run.run_id if claim.is_of_one_row else run.seed, value)
            for run in (timed_alone(runs) if claim.is_of_times else runs)
            if (value := cell.value(run, modelled=modelled)) is not None
        ]

    return of(claim.first, pair.first), of(claim.second, pair.second)
