"""Lists: the runs that stand in a table, those that may not, and the machines. No torch."""

from collections.abc import Sequence
from typing import Any

from bench.document.table import EMULATED, EMULATED_NOTE, NOTHING, Table, percent
from bench.records.grouping import group_by, host_of, machine_key, scale_note
from bench.records.places import number_machines, place_of, why_other
from swap_fast.record import RunRecord

_RUN_COLUMNS = (
    "Run",
    "Recipe",
    "Phase 1 ended by",
    "Phase 1 (epochs)",
    "Before averaging (%)",
    "Final test accuracy (%)",
    "Time (s), measured",
)


def runs_table(records: Sequence[RunRecord]) -> Table:
    """Every run that stands in another table, one a line, so that no mean hides its values."""
    numbers = number_machines(records)
    shown = [record for record in records if place_of(record) != "other"]
    return Table(
        name="runs",
        title="Runs",
        caption=(
            "Best epoch is the highest test accuracy over the epochs of SGD, or of the running "
            "average; it is chosen on the test set and stands in no other table."
            + scale_note(shown)
        ),
        columns=(
            *_RUN_COLUMNS,
            "Workers (%), lowest to highest",
            "Best epoch (%)",
            "Machine",
            "Devices",
        ),
        rows=tuple(
            (
                *_run_cells(record),
                _range([percent(each) for each in sorted(record.worker_accuracies)])
                if record.method == "swap"
                else NOTHING,
                _best_epoch(record),
                str(numbers[host_of(record)]),
                machine_key(record).used,
            )
            for record in shown
        ),
        footnotes=_footnotes(shown),
    )


def other_runs(records: Sequence[RunRecord]) -> Table:
    """Runs that may not stand beside published figures, and why."""
    numbers = number_machines(records)
    others = [record for record in records if place_of(record) == "other"]
    return Table(
        name="other_runs",
        title="Other runs",
        caption="These stand beside no published figure, and are in no mean." + scale_note(others),
        columns=(*_RUN_COLUMNS, "Why", "Machine", "Devices"),
        rows=tuple(
            (
                *_run_cells(record),
                why_other(record),
                str(numbers[host_of(record)]),
                machine_key(record).used,
            )
            for record in others
        ),
        footnotes=_footnotes(others),
    )


def machines_table(records: Sequence[RunRecord]) -> Table:
    """What each kind of machine is, and with which code and data its runs were made."""
    rows: list[tuple[str, str, str]] = []
    groups = group_by(records, host_of)
    for host, number in number_machines(records).items():
        facts: dict[str, list[str]] = {"kind": [host.label]}
        for record in groups[host]:
            told = {
                "processes": record.world_size,
                "threads a process": record.threads,
                "machine": record.machine,
                "code": record.code,
                "data": record.data,
            }
            for name, value in flatten(told):
                seen = facts.setdefault(name, [])
                if value not in seen:
                    seen.append(value)
        rows += [(str(number), name, "; ".join(values)) for name, values in facts.items()]
    return Table(
        name="machines",
        title="Machines, code and data",
        caption="Where runs of one kind of machine differ, all values are given.",
        columns=("Machine", "What", "Value"),
        rows=tuple(rows),
    )


def flatten(told: dict[str, Any], at: str = "") -> list[tuple[str, str]]:
    """Every value within, as text behind its dotted name; what is None is left out."""
    facts = []
    for name, value in told.items():
        if isinstance(value, dict):
            facts += flatten(value, f"{at}{name}.")
        elif value is not None:
            facts.append((f"{at}{name}", str(value)))
    return facts


def _run_cells(record: RunRecord) -> tuple[str, ...]:
    before = record.accuracy_before_averaging
    return (
        record.run_id,
        record.recipe,
        record.stopped_by,
        str(record.phase1_epochs),
        NOTHING if before is None else percent(before),
        percent(record.test_accuracy),
        f"{record.times.after_averaging_s:.2f}" + (EMULATED if record.emulated_workers else ""),
    )


def _footnotes(records: Sequence[RunRecord]) -> tuple[str, ...]:
    return (EMULATED_NOTE,) if any(record.emulated_workers for record in records) else ()


def _best_epoch(record: RunRecord) -> str:
    rows = record.average_by_epoch or record.epochs  # SGD has no average
    seen = [row.test_accuracy for row in rows if row.test_accuracy is not None]
    return percent(max(seen)) if seen else NOTHING


def _range(texts: Sequence[str]) -> str:
    return f"{texts[0]} to {texts[-1]}" if texts else NOTHING
