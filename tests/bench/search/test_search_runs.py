"""Which points of a grid have a phase 1 in common."""

import pytest

from bench.search.grid import parse_grid
from bench.search.trials import phase_one, shares_phase1
from swap_fast.config.recipe import Recipe, SGDRecipe
from swap_fast.recipes.cifar10 import cifar10_cpu, cifar10_sgd_small_cpu

SWAP, SGD = cifar10_cpu(), cifar10_sgd_small_cpu()


@pytest.mark.parametrize(
    ("recipe", "texts", "shares"),
    [
        (SWAP, ["peak_lr=0.5,1"], False),
        (SWAP, ["stopping_accuracy=0.6,0.7"], True),
        (SWAP, ["peak_lr=0.5,1", "stopping_accuracy=0.6,0.7"], True),
        (SWAP, ["phase2.peak_lr=0.05,0.1"], True),
        (SWAP, ["phase2.peak_lr=0.05,0.1", "keep_momentum=true"], False),
        (SWAP, ["stopping_accuracy=0.6"], False),
        (SGD, ["stopping_accuracy=0.6,0.7"], True),
        (SGD, ["peak_lr=0.5,1"], False),
    ],
)
def test_points_share_a_phase_1_where_only_its_end_and_what_follows_differ(
    recipe: Recipe, texts: list[str], shares: bool
) -> None:
    assert shares_phase1(recipe, parse_grid(recipe, texts)) is shares


def test_a_grid_over_tau_is_refused_where_momentum_is_kept() -> None:
    texts = ["stopping_accuracy=0.6,0.7", "keep_momentum=true"]
    with pytest.raises(ValueError, match=r"^--grid phase1.stopping_accuracy: expected keep_mom"):
        shares_phase1(SWAP, parse_grid(SWAP, texts))


def test_phase_1_alone_is_a_recipe_of_sgd() -> None:
    one = phase_one(SWAP, 0.7)
    assert type(one) is SGDRecipe
    assert (one.phase1.stopping_accuracy, one.phase1.max_epochs) == (0.7, SWAP.phase1.max_epochs)
    assert (one.width, one.num_replicas) == (SWAP.width, SWAP.num_replicas)
