"""The published figures, Tables 1 to 6 as the paper has them, and our recipes' settings."""

from __future__ import annotations

import pytest

from bench.records.paper import PaperSetting, load_paper
from bench.records.paper_tables import AT_SIZE, RUN_TABLES, RunTable, Size
from bench.report.paper_tables import RUNS_OF, SETTINGS, phase_of, recipe_table
from swap_fast.recipes.cifar10 import RECIPES

PAPER = load_paper()
# Table 4's fourth row is Table 2's SWAP again.
SAME = {("Table 4", "SWAP (10 small-batch epochs)"): "Table 2, SWAP"}


def _rows(*tables: str) -> list[tuple[str, str]]:
    return list(dict.fromkeys((v.table, v.row) for v in PAPER.values if v.table in tables))


@pytest.mark.parametrize(("table", "row"), _rows("Table 1", "Table 2", "Table 3", "Table 4"))
def test_every_row_has_one_recipe(table: str, row: str) -> None:
    # Before and after averaging are two rows of one run.
    short = row.partition(" (before")[0].partition(" (after")[0]
    named = SAME.get((table, row), f"{table}, {short}")
    found = [recipe for make in RECIPES.values() if (recipe := make()).table == named]
    assert len(found) == 1
    assert found[0].paper_scale
    datasets = {"Table 1": "cifar10", "Table 3": "imagenet"}
    assert found[0].dataset == datasets.get(table, "cifar100")


def test_every_cell_has_its_units() -> None:
    for value in PAPER.values:
        of_time = "minutes" if value.table == "Table 3" else "seconds"
        assert value.units == (of_time if value.column == "train_time" else "percent")
        assert value.sd > 0


@pytest.mark.parametrize("table", RUN_TABLES.values(), ids=lambda table: table.name)
def test_the_report_s_rows_and_columns_are_the_paper_s(table: RunTable) -> None:
    assert [row.label for row in table.rows] == [row for _, row in _rows(table.name)]
    printed = {value.column for value in PAPER.values if value.table == table.name}
    assert {column.name for column in table.accuracies} | {"train_time"} == printed
    for row in table.rows:
        for size in table.sizes:
            recipe = RECIPES[row.recipes[size]]()
            assert recipe.paper_scale is (size == "paper")
            at = "" if size == "paper" else f", {AT_SIZE[size]}"
            short = row.label.partition(" (before")[0].partition(" (after")[0]
            named = SAME.get((table.name, row.label), f"{table.name}, {short}")
            assert recipe.table == f"{named}{at}"


@pytest.mark.parametrize("size", ["paper", "narrow", "cpu"])
def test_rows_that_begin_from_another_s_phase_1_have_the_same(size: Size) -> None:
    begun = [row for table in RUN_TABLES.values() for row in table.rows if row.start]
    assert len(begun) == 4
    for row in begun:
        assert row.start is not None
        assert RECIPES[row.recipes[size]]().phase1 == RECIPES[row.start[size]]().phase1


def test_phase_1_s_mean_epochs_are_those_of_the_recipes_that_stop() -> None:
    for mean in PAPER.phase1_means:
        recipe = RECIPES[f"{mean.dataset}_swap"]()
        assert recipe.phase1.stopping_accuracy is not None
        assert 0 < mean.epochs < recipe.phase1.max_epochs


# Tables 5 and 6.

# The text, Table 4 and the times say 10; see the paper's inconsistencies.
NOT_THE_PAPER_S = {("Table 6", "Total Epochs", "SWAP (Phase 2)"): (30, 10)}


def test_both_tables_are_whole() -> None:
    cells = [(each.table, each.row, each.column) for each in PAPER.settings]
    assert len(set(cells)) == len(cells) == 2 * 6 * 4
    # Some cells by hand, from the paper's page.
    values = {(s.table, s.row, s.column): s.value for s in PAPER.settings}
    assert values["Table 5", "Learning-rate Peak", "SWAP (Phase 2)"] == 0.12
    assert values["Table 6", "Warm-up Epochs", "SGD (large-batch)"] == 45
    assert values["Table 5", "Stopping Accuracy (%)", "SWAP (Phase 1)"] == 98


@pytest.mark.parametrize("cell", PAPER.settings, ids=lambda c: f"{c.table}-{c.row}-{c.column}")
def test_the_recipes_have_the_paper_s_settings(cell: PaperSetting) -> None:
    runs = RUN_TABLES[RUNS_OF[int(cell.table.removeprefix("Table "))]]
    phase = phase_of(runs, cell, "paper")
    expected = NOT_THE_PAPER_S.get((cell.table, cell.row, cell.column))
    published, ours = expected or (cell.value, cell.value)
    assert cell.value == published
    assert SETTINGS[cell.row](phase) == pytest.approx(ours)


def test_table_5_is_the_paper_s() -> None:
    table = recipe_table(5, PAPER)
    assert table.columns == (
        *("CIFAR-10", "Whose", "SGD (small-batch)", "SGD (large-batch)"),
        *("SWAP (Phase 1)", "SWAP (Phase 2)"),
    )
    assert table.rows[:2] == (
        ("Batch-size", "paper", "512", "4096", "4096", "512"),
        ("Batch-size", "ours", "512", "4096", "4096", "512"),
    )
    assert all(
        theirs[2:] == ours[2:]
        for theirs, ours in zip(table.rows[::2], table.rows[1::2], strict=True)
    )
    assert len(table.footnotes) == 1


def test_table_6_marks_where_the_paper_contradicts_itself() -> None:
    table = recipe_table(6, PAPER)
    ours = {row[0]: row[2:] for row in table.rows if row[1] == "ours"}
    assert ours["Total Epochs"] == ("150", "150", "150", "10 *")
    assert sum("*" in cell for row in table.rows for cell in row) == 1
    assert table.footnotes[-1].startswith("* Not the paper's value. Table 6 says 30 epochs")


def test_forms_for_a_cpu_have_no_marks() -> None:
    table = recipe_table(5, PAPER, "cpu")
    ours = {row[0]: row[2:] for row in table.rows if row[1] == "ours"}
    assert ours["Batch-size"] == ("128", "1024", "1024", "128")
    assert "other nets and settings" in table.caption
    assert table.name == "table5_cpu"
    assert not any("*" in cell for row in table.rows for cell in row)
