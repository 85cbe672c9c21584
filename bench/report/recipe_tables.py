"""Tables 5 and 6: our recipes' settings beside the published values. No torch."""

from collections.abc import Callable

from bench.document.table import Table
from bench.records.paper import Paper, PaperSetting
from bench.records.paper_tables import RUN_TABLES, RunTable, Size
from swap_fast.config.phase import Phase
from swap_fast.recipes.cifar10 import RECIPES

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
        size: the recipes to compare with the paper's values.
    """
    runs, name = RUN_TABLES[RUNS_OF[number]], f"Table {number}"
    settings = [each for each in paper.settings if each.table == name]
    cells = {(each.row, each.column): each.value for each in settings}
    labels = list(dict.fromkeys(row for row, _ in cells))
    phases = {each.column: phase_of(runs, each, size) for each in settings}
    columns = list(phases)
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
        if name in each.tables
    ]
    recipes = ", ".join(runs.recipes(size))
    is_cpu = size == "cpu"
    forms = ": forms for a CPU, with other nets and settings than the paper's"
    return Table(
        name=f"table{number}" + "_cpu" * is_cpu,
        title=name + " at CPU size" * is_cpu,
        caption=f"Settings of the runs of {runs.name}. Ours are read from the recipes {recipes}"
        + f"{forms * is_cpu}.",
        columns=(runs.dataset, "Whose", *columns),
        rows=tuple(rows),
        footnotes=(
            "Stopping accuracy 100%: all epochs are trained.",
            *(notes if any(DIFFERS in cell for row in rows for cell in row) else []),
        ),
    )


def phase_of(runs: RunTable, setting: PaperSetting, size: Size) -> Phase:
    """The phase of our recipe that a setting of Table 5 or 6 is for."""
    (row,) = (row for row in runs.rows if row.label == setting.run)
    phase = getattr(RECIPES[row.recipes[size]](), f"phase{setting.phase}")
    assert isinstance(phase, Phase), setting
    return phase
