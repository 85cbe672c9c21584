"""Which tables a run belongs in, and the number of the machine that it ran on. No torch."""

from collections.abc import Iterable

from bench.records.grouping import Host, host_of, recipe_of, why_not_comparable
from bench.records.paper_tables import RUN_TABLES, SIZES, RunTable, Size
from swap_fast.record import RunRecord

TIME_TO_TARGET, OTHER = "time_to_target", "other"
"""The times to an accuracy; and no table beside published figures."""


def places_of(record: RunRecord) -> tuple[str, ...]:
    """The tables that a run belongs in: `RunTable.place`, TIME_TO_TARGET, or OTHER alone."""
    holding = _tables_of(record)
    places = tuple(t.place(size) for t, size in holding if _why_not_in(record, t, size) is None)
    is_cifar10 = recipe_of(record)["dataset"] == "cifar10"
    if not holding and record.comparable and is_cifar10 and why_not_comparable(record) is None:
        places = (TIME_TO_TARGET,)
    return places or (OTHER,)


def place_of(record: RunRecord) -> str:
    """The first of the tables that a run belongs in, for what shows a run once."""
    return places_of(record)[0]


def why_other(record: RunRecord) -> str:
    """Why a run stands in the list of other runs."""
    reasons = [_why_not_in(record, table, size) for table, size in _tables_of(record)]
    found = next((reason for reason in reasons if reason), why_not_comparable(record))
    return found or "no published figure for this recipe"


def number_machines(records: Iterable[RunRecord]) -> dict[Host, int]:
    """Kinds of machine, numbered from 1 in a fixed order."""
    return {host: i for i, host in enumerate(sorted({host_of(r) for r in records}), start=1)}


def _tables_of(record: RunRecord) -> list[tuple[RunTable, Size]]:
    """The tables that have a row for the run's recipe."""
    return [
        (table, size)
        for table in RUN_TABLES.values()
        for size in SIZES
        if record.recipe in table.recipes(size)
    ]


def _why_not_in(record: RunRecord, table: RunTable, size: Size) -> str | None:
    """Why a run may not stand in a table that has a row for its recipe; None where it may."""
    reason = why_not_comparable(record, table.data_kinds(size))
    if reason is None and size == "paper" and not record.comparable:
        return "not the paper's net, data and epochs"
    return reason
