"""The published figures, the recipes and the report's rows name each other as the paper does."""

from __future__ import annotations

import pytest

from bench.records.paper import load_paper
from bench.records.paper_tables import RUN_TABLES, SIZES, RunTable, Size
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
        for size in SIZES:
            recipe = RECIPES[row.recipes[size]]()
            assert recipe.paper_scale is (size == "paper")
            at = "" if size == "paper" else ", at CPU size"
            short = row.label.partition(" (before")[0].partition(" (after")[0]
            named = SAME.get((table.name, row.label), f"{table.name}, {short}")
            assert recipe.table == f"{named}{at}"


@pytest.mark.parametrize("size", SIZES)
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
