"""The published figures, the recipes and the report's rows name each other as the paper does."""

from __future__ import annotations

import pytest

from bench.paper import load_paper
from bench.places import TABLE_1_RECIPES
from bench.rows import TABLE_1
from swap_fast.recipes import RECIPES

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


def test_the_report_s_rows_are_the_paper_s() -> None:
    assert [row.label for row in TABLE_1] == [row for _, row in _rows("Table 1")]
    for row in TABLE_1:
        assert PAPER.value("Table 1", row.label, "test_accuracy").units == "percent"
        assert PAPER.value("Table 1", row.label, "train_time").units == "seconds"
        table = RECIPES[TABLE_1_RECIPES["table1"][row.recipe]]().table
        assert row.label.startswith(table.removeprefix("Table 1, "))


def test_phase_1_s_mean_epochs_are_those_of_the_recipes_that_stop() -> None:
    for mean in PAPER.phase1_means:
        recipe = RECIPES[f"{mean.dataset}_swap"]()
        assert recipe.phase1.stopping_accuracy is not None
        assert 0 < mean.epochs < recipe.phase1.max_epochs
