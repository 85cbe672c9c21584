"""Which points share a phase 1, and a start cut from a longer one: equal to the bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainer import SGD, SWA, SWAP, small_trainer
from torch import Tensor

from bench.search.grid import parse_grid
from bench.search.trials import phase_one, shares_phase1, write_start
from swap_fast.algorithm import sgd, swa, swap
from swap_fast.checkpoint.files import read_checkpoint
from swap_fast.checkpoint.run_folder import RunFolder
from swap_fast.clock import Clock
from swap_fast.config.recipe import Recipe, SGDRecipe, SWAPRecipe, SWARecipe
from swap_fast.recipes.cifar10 import cifar10_cpu, cifar10_sgd_small_cpu
from swap_fast.training.state import Result

RECIPE = cifar10_cpu()


@pytest.mark.parametrize(
    ("recipe", "texts", "shares"),
    [
        (RECIPE, ["peak_lr=0.5,1"], False),
        (RECIPE, ["stopping_accuracy=0.6,0.7"], True),
        (RECIPE, ["peak_lr=0.5,1", "stopping_accuracy=0.6,0.7"], True),
        (RECIPE, ["phase2.peak_lr=0.05,0.1"], True),
        (RECIPE, ["phase2.peak_lr=0.05,0.1", "keep_momentum=true"], False),
        (RECIPE, ["stopping_accuracy=0.6"], False),
        (cifar10_sgd_small_cpu(), ["stopping_accuracy=0.6,0.7"], True),
        (cifar10_sgd_small_cpu(), ["peak_lr=0.5,1"], False),
    ],
)
def test_points_share_a_phase_1_where_only_its_end_and_what_follows_differ(
    recipe: Recipe, texts: list[str], shares: bool
) -> None:
    assert shares_phase1(recipe, parse_grid(recipe, texts)) is shares


def test_a_grid_over_tau_is_refused_where_momentum_is_kept() -> None:
    texts = ["stopping_accuracy=0.6,0.7", "keep_momentum=true"]
    with pytest.raises(ValueError, match=r"^--grid phase1.stopping_accuracy: expected keep_mom"):
        shares_phase1(RECIPE, parse_grid(RECIPE, texts))


def test_phase_1_alone_is_a_recipe_of_sgd() -> None:
    one = phase_one(RECIPE, 0.7)
    assert type(one) is SGDRecipe
    assert (one.phase1.stopping_accuracy, one.phase1.max_epochs) == (0.7, RECIPE.phase1.max_epochs)
    assert (one.width, one.num_replicas) == (RECIPE.width, RECIPE.num_replicas)


EPOCHS = 6


def _with(recipe: Recipe, tau: float | None) -> Recipe:
    """With a longer phase 1, up to tau; the later epochs are better ones."""
    return replace(
        recipe,
        phase1=replace(recipe.phase1, max_epochs=EPOCHS, horizon_epochs=8, stopping_accuracy=tau),
    )


@dataclass
class Done:
    """A run and what it kept."""

    result: Result
    tensors: list[Tensor]
    rows: list[Any]
    folder: Path


def _run(recipe: Recipe, path: Path, *, start: Path | None = None, **kept: bool) -> Done:
    ticks = count()
    clock = Clock(now=lambda: float(next(ticks)))
    folder = RunFolder(path, clock, start=start, **kept)
    parts = small_trainer(recipe, clock=clock, checkpoints=folder)
    if isinstance(recipe, SWAPRecipe):
        result = swap(recipe, parts)
    elif isinstance(recipe, SWARecipe):
        result = swa(recipe, parts)
    else:
        result = sgd(recipe, parts)
    samples = [theta for worker in result.workers for theta in worker.samples]
    rows = [replace(row, time_s=0.0) for row in folder.rows]
    return Done(result, [*parts.weights.copy(), *samples], rows, path)


def _longest(recipe: Recipe, folder: Path) -> Done:
    return _run(phase_one(_with(recipe, None), None), folder / "longest", keep_epochs=True)


@pytest.mark.parametrize("recipe", [SWAP, SWA, SGD], ids=["swap", "swa", "sgd"])
def test_each_tau_gives_what_a_run_of_its_own_gives(recipe: Recipe, tmp_path: Path) -> None:
    longest = _longest(recipe, tmp_path)
    accuracies = [row.train_accuracy for row in longest.rows]
    # Just below each epoch's, and one that none is above.
    taus = [*(accuracy - 1e-6 for accuracy in accuracies), max(accuracies)]
    ends = set()
    for i, tau in enumerate(taus):
        write_start(longest.folder, tau, tmp_path / f"start{i}")
        shared = _run(_with(recipe, tau), tmp_path / f"shared{i}", start=tmp_path / f"start{i}")
        alone = _run(_with(recipe, tau), tmp_path / f"alone{i}")
        assert all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(shared.tensors, alone.tensors, strict=True)
        )
        assert shared.rows == alone.rows
        assert shared.result.accuracies == alone.result.accuracies
        ours, theirs = shared.result.phase1.progress, alone.result.phase1.progress
        assert (ours.epoch, ours.stopped_by) == (theirs.epoch, theirs.stopped_by)
        ends.add((ours.epoch, ours.stopped_by))
    assert len(ends) > 2, "several epochs should have been ends"
    assert (EPOCHS, "max_epochs") in ends


def test_the_time_counts_up_to_that_epoch(tmp_path: Path) -> None:
    longest = _longest(SWAP, tmp_path)
    tau = longest.rows[0].train_accuracy - 1e-6
    write_start(longest.folder, tau, tmp_path / "start")
    alone = _run(_with(SWAP, tau), tmp_path / "alone")
    (cut,), (own,), (whole,) = (
        read_checkpoint(folder / "phase1").about.laps_by_rank
        for folder in (tmp_path / "start", alone.folder, longest.folder)
    )
    # The clock counts its own readings, so that equal work takes an equal time.
    assert cut["phase1"] == own["phase1"] < whole["phase1"]
    assert cut["evaluation"] == pytest.approx(whole["evaluation"] / EPOCHS)


def test_an_epoch_that_was_not_kept_is_named(tmp_path: Path) -> None:
    recipe = phase_one(_with(SWAP, None), None)
    forgetful = _run(recipe, tmp_path / "run")
    tau = forgetful.rows[0].train_accuracy - 1e-6
    with pytest.raises(ValueError, match=r"^phase1-epoch1\.safetensors: expected a file"):
        write_start(tmp_path / "run", tau, tmp_path / "start")
