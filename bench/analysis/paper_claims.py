"""What the paper claims of its rows, in its words: which figure is held against which. No torch."""

from dataclasses import dataclass
from typing import Literal

from bench.records.paper import Paper, PaperValue
from bench.records.paper_tables import ACCURACY, AFTER, BEFORE, RUN_TABLES, TOP_1, Column, Row, Size
from bench.records.places import places_of
from swap_fast.record import RunRecord

Rule = Literal["higher", "at least as high", "so many times longer"]
"""How the first side is said to stand to the second."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One quantity of one row of one of the paper's tables."""

    table: int
    """The paper's number."""
    label: str
    """The row, as the paper prints it."""
    column: Column | None = None
    """Which accuracy; None: the time."""

    @property
    def row(self) -> Row:
        """Whose runs."""
        (found,) = (row for row in RUN_TABLES[self.table].rows if row.label == self.label)
        return found

    def published(self, paper: Paper) -> PaperValue:
        """The paper's own figure."""
        column = "train_time" if self.column is None else self.column.name
        return paper.value(RUN_TABLES[self.table].name, self.label, column)

    def has(self, record: RunRecord, size: Size) -> bool:
        """Whether the run stands in this row."""
        table = RUN_TABLES[self.table]
        return record.recipe == self.row.recipes[size] and table.place(size) in places_of(record)

    def value(self, record: RunRecord, *, modelled: bool = False) -> float | None:
        """The run's figure: a fraction, or seconds; modelled, had its workers run at once."""
        if self.column is not None:
            return self.row.accuracy(self.column, record)
        modelled_s = self.row.modelled_s(record) if modelled else None
        return self.row.time_s(record) if modelled_s is None else modelled_s


@dataclass(frozen=True, kw_only=True)
class Claim:
    """How the paper says that one quantity stands to another."""

    says: str
    """In the paper's words."""
    source: str
    """Where it says so."""
    first: Side
    """What is said to be higher, or as high, or longer ..."""
    second: Side
    """... than this."""
    rule: Rule
    """How."""

    @property
    def is_of_one_row(self) -> bool:
        """Whether both are figures of the same runs."""
        return self.first.row.recipes == self.second.row.recipes


SMALL, LARGE = "SGD (small-batch)", "SGD (large-batch)"
SWAP_BEFORE, SWAP_AFTER = "SWAP (before averaging)", "SWAP (after averaging)"
SWA_LARGE, SWA_LARGE_SMALL = "Large-batch SWA", "Large-batch followed by small-batch SWA"
SWA_SMALL = "Small-batch SWA"
SWAP_10, SWAP_40 = "SWAP (10 small-batch epochs)", "SWAP (40 small-batch epochs)"


def _claims_of(table: int, section: str, column: Column, *, large: str, swap: str) -> list[Claim]:
    """What is said alike of Tables 1 to 3."""

    def claim(says: str, first: str, second: str, rule: Rule) -> Claim:
        return Claim(
            says=says,
            source=f"{section}, Table {table}",
            first=Side(table=table, label=first, column=column),
            second=Side(table=table, label=second, column=column),
            rule=rule,
        )

    return [
        claim(
            "Test accuracy improves when the models are averaged", SWAP_AFTER, SWAP_BEFORE, "higher"
        ),
        claim(swap, SWAP_AFTER, SMALL, "at least as high"),
        claim(large, SMALL, LARGE, "higher"),
    ]


_LARGE = "Training with small batches achieves higher testing accuracy than with large batches"
_SWAP = "SWAP achieves accuracies on par with small-batch training, or better"

ACCURACY_CLAIMS = (
    *_claims_of(1, "Section 5.1", ACCURACY, large=_LARGE, swap=_SWAP),
    *_claims_of(2, "Section 5.1", ACCURACY, large=_LARGE, swap=_SWAP),
    *_claims_of(
        3,
        "Section 5.2",
        TOP_1,
        large="Doubling the batch size reduces the test accuracy of the small-batch run",
        swap="SWAP recovers the generalization performance of the small-batch run",
    ),
    Claim(
        says="SWA was unable to improve a large-batch run: before averaging it is as high",
        source="Section 5.3, Table 4",
        first=Side(table=4, label=SWA_LARGE, column=BEFORE),
        second=Side(table=4, label=SWA_LARGE, column=AFTER),
        rule="at least as high",
    ),
    Claim(
        says="Large-batch followed by small-batch SWA reaches the test accuracy of a small-batch "
        "run",
        source="Section 5.3, Tables 4 and 2",
        first=Side(table=4, label=SWA_LARGE_SMALL, column=AFTER),
        second=Side(table=2, label=SMALL, column=ACCURACY),
        rule="at least as high",
    ),
    Claim(
        says="Small-batch SWA achieves better accuracy than SWAP (by around 0.9%)",
        source="Section 5.3, Table 4",
        first=Side(table=4, label=SWA_SMALL, column=AFTER),
        second=Side(table=4, label=SWAP_10, column=AFTER),
        rule="higher",
    ),
    Claim(
        says="SWAP with two longer cycles and two models a worker reaches the precision of "
        "small-batch SWA",
        source="Section 5.3, Table 4",
        first=Side(table=4, label=SWAP_40, column=AFTER),
        second=Side(table=4, label=SWA_SMALL, column=AFTER),
        rule="at least as high",
    ),
)
"""Of test accuracies, in the paper's order."""

TIME_CLAIMS = (
    Claim(
        says="Large-batch followed by small-batch SWA requires more than three times longer than "
        "SWAP",
        source="Section 5.3, Table 4",
        first=Side(table=4, label=SWA_LARGE_SMALL),
        second=Side(table=4, label=SWAP_10),
        rule="so many times longer",
    ),
    Claim(
        says="Small-batch SWA needs 6.8x more training time than SWAP",
        source="Section 5.3, Table 4",
        first=Side(table=4, label=SWA_SMALL),
        second=Side(table=4, label=SWAP_10),
        rule="so many times longer",
    ),
    Claim(
        says="SWAP reaches small-batch SWA's accuracy in 3.5x less time",
        source="Section 5.3, Table 4",
        first=Side(table=4, label=SWA_SMALL),
        second=Side(table=4, label=SWAP_40),
        rule="so many times longer",
    ),
)
"""Of training times, in the paper's order."""
