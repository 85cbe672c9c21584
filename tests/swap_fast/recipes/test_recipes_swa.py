"""Table 4's recipes against Section 5.3, number by number."""

from __future__ import annotations

from typing import Any

import pytest

from bench.records.paper import load_paper
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import SWAPRecipe, SWARecipe
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.recipes.cifar100 import SWA_RECIPES

CYCLES = {"global_batch_size": 128, "peak_lr": 0.05, "max_epochs": 80, "cycles": 8}

# recipe, its phase 1 is that of, phase 2
TABLE4: list[tuple[str, str, dict[str, Any]]] = [
    (
        "cifar100_swa_large",
        "cifar100_sgd_large",
        {**CYCLES, "global_batch_size": 2048, "peak_lr": 1.2, "gpus_per_model": 8},
    ),
    ("cifar100_swa_large_small", "cifar100_swap", CYCLES),
    ("cifar100_swa_small", "cifar100_sgd_small", CYCLES),
    ("cifar100_swap_40", "cifar100_swap", {**CYCLES, "max_epochs": 40, "cycles": 2}),
]


@pytest.mark.parametrize("row", TABLE4, ids=lambda row: row[0])
def test_table_4(row: tuple[str, str, dict[str, Any]]) -> None:
    name, start, phase2 = row
    recipe = RECIPES[name]()
    assert isinstance(recipe, SWAPRecipe | SWARecipe)
    # A run may start from the other's phase 1, as in the paper.
    assert recipe.phase1 == RECIPES[start]().phase1
    assert recipe.phase2 == Phase(**phase2)
    assert (recipe.dataset, recipe.width, recipe.paper_scale) == ("cifar100", 64, True)


def test_every_row_of_table_4_has_a_recipe() -> None:
    rows = {value.row for value in load_paper().values if value.table == "Table 4"}
    made = {make().table.removeprefix("Table 4, ") for make in SWA_RECIPES}
    assert rows - made == {"SWAP (10 small-batch epochs)"}
    assert RECIPES["cifar100_swap"]().phase2.max_epochs == 10


def test_swap_40_averages_16_models() -> None:
    recipe = RECIPES["cifar100_swap_40"]()
    assert isinstance(recipe, SWAPRecipe)
    assert recipe.num_workers * recipe.phase2.cycles == 16
    assert recipe.phase2.cycle_epochs == 20
