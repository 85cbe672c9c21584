"""Lists: the runs that stand in a table, those that may not, and the machines. No torch."""

from collections.abc import Callable, Sequence

from bench.document.page import Folded
from bench.document.table import EMULATED, EMULATED_NOTE, NOTHING, Table, percent
from bench.records.grouping import accuracy_key, flatten, group_by, host_of, machine_key, scale_note
from bench.records.paper import Paper
from bench.records.paper_tables import RUN_TABLES, Size, number_machines, place_of, why_other
from swap_fast.config.phase import Phase
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord

# Tables 5 and 6: what our recipes are trained with, beside the published values. No torch.


RUNS_OF = {5: 1, 6: 2}
"""Table 5 lists the settings of Table 1's runs, Table 6 those of Table 2's."""

SETTINGS: dict[str, Callable[[Phase], float]] = {
    "Batch-size": lambda phase: phase.global_batch_size,
    "Learning-rate Peak": lambda phase: phase.peak_lr,
    "Maximum Epochs": lambda phase: phase.max_epochs,
    "Total Epochs": lambda phase: phase.max_epochs,
    "Warm-up Epochs": lambda phase: phase.warmup_epochs,
    "GPUs used per model": lambda phase: phase.gpus_per_model,
    "Stopping Accuracy (%)": lambda phase: (
        100 * (1.0 if phase.stopping_accuracy is None else phase.stopping_accuracy)
    ),
}
"""A recipe's value of each row; Table 6 calls "Total" what Table 5 calls "Maximum"."""

DIFFERS = "*"
"""Mark behind a value of ours that is not the paper's."""


def recipe_tables(paper: Paper, size: Size = "paper") -> list[Table]:
    """Tables 5 and 6."""
    return [recipe_table(number, paper, size) for number in RUNS_OF]


def recipe_table(number: int, paper: Paper, size: Size = "paper") -> Table:
    """Table 5 or 6: each published value, and behind it the recipe's own.

    Arguments:
        size: whose recipes stand beside the paper's values.
    """
    runs, name = RUN_TABLES[RUNS_OF[number]], f"Table {number}"
    cells = {(each.row, each.column): each.value for each in paper.settings if each.table == name}
    labels = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    phases = {column: phase_of(number, column, size) for column in columns}
    rows: list[tuple[str, ...]] = []
    for label in labels:
        published = [f"{cells[label, column]:g}" for column in columns]
        # By their text: a hundred times a fraction is a whole number only when printed.
        ours = [f"{SETTINGS[label](phases[column]):g}" for column in columns]
        marked = [
            mine if size == "cpu" or mine == theirs else f"{mine} {DIFFERS}"
            for mine, theirs in zip(ours, published, strict=True)
        ]
        rows += [(label, "paper", *published), (label, "ours", *marked)]
    notes = [
        f"{DIFFERS} Not the paper's value. {each.statement}"
        for each in paper.inconsistencies
        if each.source.startswith(name)
    ]
    recipes = ", ".join(runs.recipes(size))
    return Table(
        name=f"table{number}" + ("_cpu" if size == "cpu" else ""),
        title=name + (" at CPU size" if size == "cpu" else ""),
        caption=(
            f"Settings of the runs of {runs.name}. Ours are read from the recipes {recipes}"
            + (
                ": forms for a CPU, with other nets and settings than the paper's."
                if size == "cpu"
                else "."
            )
        ),
        columns=(runs.dataset, "Whose", *columns),
        rows=tuple(rows),
        footnotes=(
            "Stopping accuracy 100%: all epochs are trained.",
            *(notes if any(DIFFERS in cell for row in rows for cell in row) else []),
        ),
    )


def phase_of(number: int, column: str, size: Size) -> Phase:
    """The phase of our recipes whose settings a column of Table 5 or 6 lists."""
    method, is_swap, phase = column.partition(" (Phase ")
    wanted = f"{method} (after averaging)" if is_swap else column
    (row,) = (row for row in RUN_TABLES[RUNS_OF[number]].rows if row.label == wanted)
    recipe = RECIPES[row.recipes[size]]()
    found = getattr(recipe, f"phase{phase.rstrip(')')}") if is_swap else recipe.phase1
    assert isinstance(found, Phase), column
    return found


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


# Each recipe's whole configuration, as its runs recorded it. No torch.


def configurations(records: Sequence[RunRecord]) -> list[Folded]:
    """A table for all runs of a recipe that agree in configuration and machine."""
    groups = group_by(records, lambda run: (run.recipe, accuracy_key(run), machine_key(run)))
    return [
        Folded(
            summary=f"{runs[0].recipe}: {len(runs)} run{'' if len(runs) == 1 else 's'}",
            table=_configuration(runs),
        )
        for runs in groups.values()
    ]


def _configuration(runs: Sequence[RunRecord]) -> Table:
    facts: dict[str, list[str]] = {}
    for run in runs:
        told = {
            **run.configuration,
            "seed": run.seed,
            "world_size": run.world_size,
            "threads": run.threads,
            "overrides": ", ".join(run.overrides) or None,
            "data": run.data,
            "machine": run.machine,
            "code": run.code,
        }
        for name, value in flatten(told):
            values = facts.setdefault(name, [])
            if value not in values:
                values.append(value)
    return Table(
        name="configuration",
        title=f"Configuration of {runs[0].recipe}",
        caption=f"Of {', '.join(run.run_id for run in runs)}. Where they differ, all values.",
        columns=("Field", "Value"),
        rows=tuple((name, "; ".join(values)) for name, values in facts.items()),
    )
