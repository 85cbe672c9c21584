"""Lists of a report: the runs, the machines, the whole configurations. No torch."""

from collections.abc import Callable, Sequence

from bench.document.page import Folded
from bench.document.table import EMULATED, NOTHING, Table, counted, mark_notes, number_cell, percent
from bench.records.grouping import (
    Host,
    accuracy_key,
    group_by,
    host_of,
    machine_key,
    scale_note,
    values_by_field,
)
from bench.records.paper_tables import OTHER, number_machines, place_of, why_other
from swap_fast.record import RunRecord


def runs_table(records: Sequence[RunRecord]) -> Table:
    """Every run that stands in another table, one a line, so that no mean hides its values."""
    return _list_of_runs(
        [record for record in records if place_of(record) != OTHER],
        {"Workers (%), lowest to highest": _workers, "Best epoch (%)": _best_epoch},
        number_machines(records),
        name="runs",
        title="Runs",
        caption="Best epoch is the highest test accuracy over the epochs of SGD, or of the running "
        "average; it is chosen on the test set and stands in no other table.",
    )


def other_runs(records: Sequence[RunRecord]) -> Table:
    """Runs that may not be compared with published figures, and why."""
    return _list_of_runs(
        [record for record in records if place_of(record) == OTHER],
        {"Why": why_other},
        number_machines(records),
        name="other_runs",
        title="Other runs",
        caption="These stand beside no published figure, and are in no mean.",
    )


def _list_of_runs(
    runs: Sequence[RunRecord],
    more: dict[str, Callable[[RunRecord], str]],
    numbers: dict[Host, int],
    *,
    name: str,
    title: str,
    caption: str,
) -> Table:
    """One line a run.

    Arguments:
        more: the columns that only this list has.
        numbers: of the machines.
    """
    columns: dict[str, Callable[[RunRecord], str]] = {
        "Run": lambda run: run.run_id,
        "Recipe": lambda run: run.recipe,
        "Phase 1 ended by": lambda run: run.stopped_by,
        "Phase 1 (epochs)": lambda run: str(run.phase1_epochs),
        "Before averaging (%)": lambda run: _percent(run.accuracy_before_averaging),
        "Final test accuracy (%)": lambda run: percent(run.test_accuracy),
        "Time (s), measured": lambda run: (
            number_cell(run.times.after_averaging_s) + EMULATED * run.emulated_workers
        ),
        **({MIRRORED: mirrored} if any(r.mirrored_test_accuracy is not None for r in runs) else {}),
        **more,
        "Machine": lambda run: str(numbers[host_of(run)]),
        "Devices": lambda run: machine_key(run).used,
    }
    rows = tuple(tuple(cell(run) for cell in columns.values()) for run in runs)
    return Table(
        name=name,
        title=title,
        caption=caption + scale_note(runs),
        columns=tuple(columns),
        rows=rows,
        footnotes=tuple(mark_notes(rows)),
        details=("Recipe", "Phase 1 ended by", "Phase 1 (epochs)", "Machine", "Devices"),
    )


MIRRORED = "With mirrored test images (%)"


def mirrored(run: RunRecord) -> str:
    """The final accuracy by the mean logits of an image and its mirror image."""
    return _percent(run.mirrored_test_accuracy)


def _percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else percent(fraction)


def _workers(run: RunRecord) -> str:
    accuracies = sorted(run.worker_accuracies)
    if run.method != "swap" or not accuracies:
        return NOTHING
    return f"{percent(accuracies[0])} to {percent(accuracies[-1])}"


def _best_epoch(run: RunRecord) -> str:
    rows = run.average_by_epoch or run.epochs  # SGD has no average
    seen = [row.test_accuracy for row in rows if row.test_accuracy is not None]
    return _percent(max(seen, default=None))


def machines_table(records: Sequence[RunRecord]) -> Table:
    """What each kind of machine is, and with which code and data its runs were made."""
    rows: list[tuple[str, str, str]] = []
    groups = group_by(records, host_of)
    for host, number in number_machines(records).items():
        facts = values_by_field(
            groups[host],
            lambda run: {
                "processes": run.world_size,
                "threads a process": run.threads,
                "machine": run.machine,
                "code": run.code,
                "data": run.data,
            },
        )
        rows.append((str(number), "kind", host.label))
        rows += [(str(number), name, "; ".join(values)) for name, values in facts.items()]
    return Table(
        name="machines",
        title="Machines, code and data",
        caption="Where runs of one kind of machine differ, all values are given.",
        columns=("Machine", "What", "Value"),
        rows=tuple(rows),
    )


def configurations(records: Sequence[RunRecord]) -> list[Folded]:
    """Whole configurations: a table for all runs of a recipe that agree in it and in machine."""
    groups = group_by(records, lambda run: (run.recipe, accuracy_key(run), machine_key(run)))
    return [
        Folded(summary=f"{runs[0].recipe}: {counted(len(runs), 'run')}", table=_configuration(runs))
        for runs in groups.values()
    ]


def _configuration(runs: Sequence[RunRecord]) -> Table:
    facts = values_by_field(
        runs,
        lambda run: {
            **run.configuration,
            "seed": run.seed,
            "world_size": run.world_size,
            "threads": run.threads,
            "overrides": ", ".join(run.overrides) or None,
            "data": run.data,
            "machine": run.machine,
            "code": run.code,
        },
    )
    return Table(
        name="configuration",
        title=f"Configuration of {runs[0].recipe}",
        caption=f"Of {', '.join(run.run_id for run in runs)}. Where they differ, all values.",
        columns=("Field", "Value"),
        rows=tuple((name, "; ".join(values)) for name, values in facts.items()),
    )
