"""The paper's recipes, number by number, against Table 5 and Section 5.1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from swap_fast.config import Augmentation, Optimizer, Phase, SWAPRecipe
from swap_fast.data.batches import Batches
from swap_fast.data.images import DeviceImages
from swap_fast.recipes import RECIPES

# recipe, phase, batch, peak, epochs, warm-up, GPUs, tau, horizon, steps an epoch of 50,000 images
TABLE5 = [
    ("cifar10_sgd_small", 1, 512, 0.3, 100, 30, 2, None, None, 97),
    ("cifar10_sgd_large", 1, 4096, 1.2, 150, 30, 8, None, None, 12),
    ("cifar10_swap", 1, 4096, 1.2, 150, 30, 8, 0.98, None, 12),
    ("cifar10_swap", 2, 512, 0.12, 30, 0, 1, None, None, 97),
    ("cifar10_dawnbench", 1, 2048, 1.2, 28, 5.6, 8, None, 30, 24),
    ("cifar10_dawnbench", 2, 256, 0.08, 1, 0, 1, None, None, 195),
]
PAPER = sorted({row[0] for row in TABLE5})


@pytest.mark.parametrize("row", TABLE5, ids=lambda row: f"{row[0]}-{row[1]}")
def test_table_5(row: tuple[Any, ...]) -> None:
    name, number, batch, peak, epochs, warmup, gpus, tau, horizon, steps = row
    phase = getattr(RECIPES[name](), f"phase{number}")
    assert phase == Phase(
        global_batch_size=batch,
        peak_lr=peak,
        max_epochs=epochs,
        warmup_epochs=warmup,
        gpus_per_model=gpus,
        stopping_accuracy=tau,
        horizon_epochs=horizon,
        final_lr=0.0,
    )
    fifty_thousand = torch.zeros(50_000, dtype=torch.int64)

    class Labels(SimpleNamespace):
        def __len__(self) -> int:
            return len(fifty_thousand)

    images = cast(DeviceImages, Labels(labels=fifty_thousand))
    batches = Batches(images, Augmentation(), phase, seed=0, number=number, slots=range(gpus))
    assert batches.steps_per_epoch == steps


@pytest.mark.parametrize("name", PAPER)
def test_what_all_recipes_of_the_paper_share(name: str) -> None:
    recipe = RECIPES[name]()
    assert recipe.paper_scale
    assert (recipe.dataset, recipe.width, recipe.train_images) == ("cifar10", 64, None)
    assert recipe.target_accuracy == 0.94
    assert recipe.optimizer == Optimizer(momentum=0.9, weight_decay=5e-4)
    assert recipe.augmentation == Augmentation(pad=4, flip=True, cutout=8)
    if isinstance(recipe, SWAPRecipe):
        assert recipe.num_workers == 8
        assert not recipe.keep_momentum
        assert recipe.batch_norm_augmented


def test_every_recipe_goes_by_its_own_name() -> None:
    assert {name: make().name for name, make in RECIPES.items()} == {n: n for n in RECIPES}


def test_only_the_paper_s_net_is_at_paper_scale() -> None:
    small = [make() for name, make in RECIPES.items() if name.startswith("cifar10_")]
    small = [recipe for recipe in small if recipe.name not in PAPER]
    assert small
    assert not any(recipe.paper_scale for recipe in small)
    assert all(recipe.table for recipe in small)
