"""The paper's Tables 1 to 4: whose runs are in each row, and which of their figures. No torch.

Each table is defined once, by its rows, its columns and the recipes of each size; how it is drawn,
what it lacks and what its statistics are follow from that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from bench.records.grouping import (
    Host,
    MachineKey,
    Measure,
    accuracy_key,
    group_by,
    host_of,
    machine_key,
    why_not_comparable,
)
from swap_fast.record import RunRecord

Size = Literal["paper", "narrow", "modern", "cpu"]
"""The paper's net and data, or other nets and epochs; no run is in a table of two sizes."""

AT_SIZE: dict[Size, str] = {
    "paper": "at the paper's size",
    "narrow": "at width 16",
    "modern": "on a modern base",
    "cpu": "at CPU size",
}
"""In a title; the nearest to the paper first."""
SIZES: dict[Size, str] = {
    "narrow": "the paper's ResNet-9 with 16 channels in place of 64, near convergence",
    "modern": "SpeedNet, the net and optimizer of airbench94_muon",
    "cpu": "runs of minutes, far from convergence",
}
"""What the titles mean."""


LANDSCAPES: dict[Size, str] = {"narrow": "cifar10_narrow_4"}
"""A recipe of a size that is in no table, but whose planes and paths Figures 3 and 4 show."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One accuracy that a table gives for each row."""

    name: str
    """Of the column in results/paper.json."""
    title: str
    """As printed, with its unit."""
    short: str
    """As a verdict names it."""
    final: Measure
    """Of what the run returns, a fraction."""
    before: Measure
    """Of the mean of the workers, in a row before averaging, a fraction."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of a table: whose runs, and which of their figures."""

    label: str
    recipes: Mapping[Size, str]
    """Whose runs, by size."""
    start: Mapping[Size, str] | None = None
    """The recipes from whose phase 1, of the same seed, these begin; None: their own."""
    is_final: bool = True
    """Whether these are the figures of what the run returns, or of its workers before averaging."""

    def accuracy(self, column: Column, record: RunRecord) -> float | None:
        """The row's accuracy in that column, a fraction."""
        return (column.final if self.is_final else column.before)(record)

    def mirrored_accuracy(self, record: RunRecord) -> float | None:
        """The mean over each test image and its mirror image, a fraction."""
        if self.is_final:
            return record.mirrored_test_accuracy
        return record.mirrored_accuracy_before_averaging

    def time_s(self, record: RunRecord) -> float | None:
        """By the paper's reading, as measured."""
        times = record.times
        return times.after_averaging_s if self.is_final else times.before_averaging_s

    def modelled_s(self, record: RunRecord) -> float | None:
        """Had the workers of phase 2 run at the same time; None of a run without workers."""
        times = record.times
        if record.method != "swap":
            return None
        if self.is_final:
            return times.modelled_after_averaging_s
        return times.modelled_before_averaging_s


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """One of the paper's tables of measured runs, its rows and columns in the paper's order."""

    number: int
    dataset: str
    """As the first column's head prints it."""
    accuracies: tuple[Column, ...]
    target: Column
    """The one of them that is held against the recipe's target."""
    rows: tuple[PaperRow, ...]
    cpu_data: tuple[str, ...]
    """Kinds of data that the table takes of runs of CPU size; of paper size, published data."""
    counts_phase1: bool = True
    """Whether the epochs of phase 1 differ from run to run, and are shown."""

    @property
    def name(self) -> str:
        """As results/paper.json has it."""
        return f"Table {self.number}"

    @property
    def sizes(self) -> list[Size]:
        """Those of which it has recipes, in the order of `AT_SIZE`."""
        return [size for size in AT_SIZE if size in self.rows[0].recipes]

    def place(self, size: Size) -> str:
        """The table's name at that size, as files have it."""
        return f"table{self.number}" + (f"_{size}" if size != "paper" else "")

    def title(self, size: Size) -> str:
        """The table's name at that size, as printed."""
        return self.name + (f" {AT_SIZE[size]}" if size != "paper" else "")

    def recipes(self, size: Size) -> list[str]:
        """Whose runs are in the table, each once, in the order of its rows."""
        return list(dict.fromkeys(row.recipes[size] for row in self.rows))

    def data_kinds(self, size: Size) -> Sequence[str]:
        """The kinds of data on which its runs may be made."""
        return ("published",) if size == "paper" else self.cpu_data


def _forms(name: str, **others: str) -> dict[Size, str]:
    """A recipe and its form for a CPU.

    Arguments:
        others: recipes of further sizes, or another one's name in place of these.
    """
    return {"paper": name, "cpu": f"{name}_cpu", **others}  # type: ignore[dict-item]


ACCURACY = Column(
    name="test_accuracy",
    title="test accuracy (%)",
    short="accuracy",
    final=lambda record: record.test_accuracy,
    before=lambda record: record.accuracy_before_averaging,
)
TOP_1 = replace(ACCURACY, name="top1_accuracy", title="top-1 accuracy (%)", short="top-1")
TOP_5 = Column(
    name="top5_accuracy",
    title="top-5 accuracy (%)",
    short="top-5",
    final=lambda record: record.test_top5_accuracy,
    before=lambda record: None,  # of the final model alone
)
BEFORE = Column(
    name="accuracy_before_averaging",
    title="accuracy before averaging (%)",
    short="before averaging",
    final=lambda record: record.accuracy_before_averaging,
    before=lambda record: record.accuracy_before_averaging,
)
AFTER = replace(
    ACCURACY,
    name="accuracy_after_averaging",
    title="accuracy after averaging (%)",
    short="after averaging",
)

SGD_SMALL, SGD_LARGE = "SGD (small-batch)", "SGD (large-batch)"
SWAP_BEFORE, SWAP_AFTER = "SWAP (before averaging)", "SWAP (after averaging)"
SWA_LARGE, SWA_LARGE_SMALL = "Large-batch SWA", "Large-batch followed by small-batch SWA"
SWA_SMALL = "Small-batch SWA"
SWAP_10, SWAP_40 = "SWAP (10 small-batch epochs)", "SWAP (40 small-batch epochs)"
"""Labels of rows, as the paper prints them."""


def _sgd_and_swap(name: str, others: Mapping[str, str], **swap: str) -> tuple[PaperRow, ...]:
    """The four rows of Tables 1 to 3.

    Arguments:
        others: the recipe of SWAP at further sizes; those of SGD have its name and what they do.
        swap: other names of it.
    """
    small, large = (
        _forms(f"{name}_{sgd}", **{size: f"{other}_{sgd}" for size, other in others.items()})
        for sgd in ("sgd_small", "sgd_large")
    )
    recipes = _forms(f"{name}_swap", **others, **swap)
    return (
        PaperRow(label=SGD_SMALL, recipes=small),
        PaperRow(label=SGD_LARGE, recipes=large),
        PaperRow(label=SWAP_BEFORE, recipes=recipes, is_final=False),
        PaperRow(label=SWAP_AFTER, recipes=recipes),
    )


def _row_of_table_4(
    label: str, recipe: str, narrow: str, start: tuple[str, str] | None = None
) -> PaperRow:
    """A row, by its recipes at the paper's size and at width 16; likewise what it starts from."""
    return PaperRow(
        label=label,
        recipes=_forms(recipe, narrow=narrow),
        start=_forms(start[0], narrow=start[1]) if start else None,
    )


TABLE_1 = RunTable(
    number=1,
    dataset="CIFAR-10",
    accuracies=(ACCURACY,),
    target=ACCURACY,
    rows=_sgd_and_swap(
        "cifar10", {"modern": "cifar10_speed", "narrow": "cifar10_narrow"}, cpu="cifar10_cpu"
    ),
    cpu_data=("published",),
)
TABLE_2 = RunTable(
    number=2,
    dataset="CIFAR-100",
    accuracies=(ACCURACY,),
    target=ACCURACY,
    rows=_sgd_and_swap("cifar100", {"narrow": "cifar100_narrow"}),
    cpu_data=("published", "subset"),
)
TABLE_3 = RunTable(
    number=3,
    dataset="ImageNet",
    accuracies=(TOP_1, TOP_5),
    target=TOP_1,
    rows=_sgd_and_swap("imagenet", {}),
    cpu_data=("published", "own"),
    counts_phase1=False,
)
TABLE_4 = RunTable(
    number=4,
    dataset="CIFAR-100",
    accuracies=(BEFORE, AFTER),
    target=AFTER,
    rows=(
        _row_of_table_4(
            SWA_LARGE,
            *("cifar100_swa_large", "cifar100_narrow_swa_large"),
            start=("cifar100_sgd_large", "cifar100_narrow_sgd_large"),
        ),
        _row_of_table_4(
            SWA_LARGE_SMALL,
            *("cifar100_swa_large_small", "cifar100_narrow_swa_large_small"),
            start=("cifar100_swap", "cifar100_narrow"),
        ),
        _row_of_table_4(
            SWA_SMALL,
            *("cifar100_swa_small", "cifar100_narrow_swa_small"),
            start=("cifar100_sgd_small", "cifar100_narrow_sgd_small"),
        ),
        _row_of_table_4(SWAP_10, "cifar100_swap", "cifar100_narrow"),
        _row_of_table_4(
            SWAP_40,
            *("cifar100_swap_40", "cifar100_narrow_long"),
            start=("cifar100_swap", "cifar100_narrow"),
        ),
    ),
    cpu_data=("published", "subset"),
)

RUN_TABLES = {table.number: table for table in (TABLE_1, TABLE_2, TABLE_3, TABLE_4)}
"""By the paper's numbers."""


@dataclass(frozen=True, kw_only=True)
class RowRuns:
    """The runs that one row of a table puts together."""

    row: PaperRow
    precision: str | None = None
    """Where runs of the table were made in several: theirs."""
    number: int | None = None
    """Of the row's groups, from 1, where its runs may not all be put together for other reasons."""
    records: list[RunRecord]
    """Runs of one recipe, data set and precision, on one kind of machine and number of its devices;
    empty where there are none."""

    @property
    def mark(self) -> str:
        """What tells them apart from other runs in the table; of most, nothing."""
        precision = "" if self.precision is None else f", {self.precision}"
        return precision if self.number is None else f"{precision} [{self.number}]"

    @property
    def label(self) -> str:
        """The row's, and the mark."""
        return self.row.label + self.mark

    @property
    def machine(self) -> MachineKey | None:
        """What all of them used; None where there are none."""
        return machine_key(self.records[0]) if self.records else None


def deal(table: RunTable, size: Size, records: Sequence[RunRecord]) -> list[RowRuns]:
    """The runs of one kind of machine, dealt out to a table's rows, those on few devices first."""
    dealt = []
    in_several = len({accuracy_key(record).precision for record in records}) > 1
    for row in table.rows:
        runs = [record for record in records if record.recipe == row.recipes[size]]
        if not runs:
            dealt.append(RowRuns(row=row, records=[]))
        by_precision = group_by(runs, lambda record: accuracy_key(record).precision)
        for precision in sorted(by_precision):
            kinds = group_by(by_precision[precision], lambda r: (machine_key(r), accuracy_key(r)))
            for i, kind in enumerate(sorted(kinds, key=lambda kind: kind[0]), start=1):
                dealt.append(
                    RowRuns(
                        row=row,
                        precision=precision if in_several else None,
                        number=i if len(kinds) > 1 else None,
                        records=kinds[kind],
                    )
                )
    return dealt


# Which tables a run belongs in, and the number of the machine that it ran on.

TIME_TO_TARGET, OTHER = "time_to_target", "other"
"""The times to an accuracy; and no table with published figures."""


def places_of(record: RunRecord) -> tuple[str, ...]:
    """The tables that a run belongs in: `RunTable.place`, TIME_TO_TARGET, or OTHER alone."""
    holding = _tables_of(record.recipe)
    places = tuple(t.place(size) for t, size in holding if _why_not_in(record, t, size) is None)
    is_cifar10 = record.settings.dataset == "cifar10"
    if not holding and record.comparable and is_cifar10 and why_not_comparable(record) is None:
        places = (TIME_TO_TARGET,)
    return places or (OTHER,)


def place_of(record: RunRecord) -> str:
    """The first of the tables that a run belongs in, for what shows a run once."""
    return places_of(record)[0]


def why_other(record: RunRecord) -> str:
    """Why a run is in the list of other runs."""
    reasons = [_why_not_in(record, table, size) for table, size in _tables_of(record.recipe)]
    found = next((reason for reason in reasons if reason), why_not_comparable(record))
    return found or "the paper has no such run"


def number_machines(records: Iterable[RunRecord]) -> dict[Host, int]:
    """Kinds of machine, numbered from 1 in a fixed order."""
    return {host: i for i, host in enumerate(sorted({host_of(r) for r in records}), start=1)}


@cache
def _tables_of(recipe: str) -> list[tuple[RunTable, Size]]:
    """The tables that have a row for a recipe."""
    return [
        (table, size)
        for table in RUN_TABLES.values()
        for size in table.sizes
        if recipe in table.recipes(size)
    ]


def _why_not_in(record: RunRecord, table: RunTable, size: Size) -> str | None:
    """Why a run is in no row of a table that has one for its recipe; None where it is."""
    reason = why_not_comparable(record, table.data_kinds(size))
    if reason is None and size == "paper" and not record.comparable:
        return "not the paper's net, data and epochs"
    return reason


@dataclass(frozen=True, kw_only=True)
class TableGroup:
    """The runs of one kind of machine that are in one of Tables 1 to 4, at one size."""

    table: RunTable
    size: Size
    host: Host
    number: int
    """The machine's, the same in all tables."""
    records: list[RunRecord]
    is_first_look: bool
    """Whether runs at another size are nearer to the paper's accuracies: these are at CPU size."""

    @property
    def name(self) -> str:
        """As files have it, such as "table1_cpu_machine1"."""
        return f"{self.table.place(self.size)}_machine{self.number}"

    @property
    def title(self) -> str:
        """As printed, such as "Table 1 at CPU size, machine 1"."""
        return f"{self.table.title(self.size)}, machine {self.number}"


def table_groups(records: Sequence[RunRecord]) -> list[TableGroup]:
    """Every form of Tables 1 to 4 that has runs: by table, size and kind of machine."""
    numbers = number_machines(records)
    groups = []
    for table in RUN_TABLES.values():
        standing = {
            size: group_by((r for r in records if table.place(size) in places_of(r)), host_of)
            for size in table.sizes
        }
        groups += [
            TableGroup(
                table=table,
                size=size,
                host=host,
                number=numbers[host],
                records=by_host[host],
                is_first_look=size == "cpu" and any(standing[s] for s in standing if s != "cpu"),
            )
            for size, by_host in standing.items()
            for host in sorted(by_host)
        ]
    return groups
