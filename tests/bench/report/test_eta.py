"""How long a run is expected to take, by hand, from each source in turn."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from record_factory import CPU, V100, make_record, with_recipe

from bench.net_cost import resnet9
from bench.planner.command import make_plan, modelled
from bench.records.grouping import machine_key
from bench.records.paper import load_paper
from bench.records.paper_tables import TABLE_4
from bench.report.runs_to_do import Eta, RunToDo, eta, images_of, phase1_epochs, starts_of
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, plain

PAPER = load_paper()
HERE = machine_key(make_record())
CPU_ROWS = list(starts_of(TABLE_4, "cpu"))
ELSEWHERE = {**CPU, "device_count": 64}
# The factory's SWAP: five epochs of phase 1, and two of four workers.
SWAP_EPOCHS = 5 + 2 * 4


def _made(recipe: str, wall_s: float, seed: int = 0, **changed: Any) -> RunRecord:
    record = make_record(recipe, seed)
    data = {**record.data, "kind": "subset", "train_images": 10_000}
    record = replace(record, data=data, times=replace(record.times, wall_s=wall_s))
    return replace(with_recipe(record, **plain(asdict(RECIPES[recipe]()))), **changed)


def _expect(recipe: str, *records: RunRecord, shares: bool = False) -> Eta:
    job = RunToDo(recipe=recipe, seed=3, start=None, record=None)
    return eta(job, "cpu", CPU_ROWS, records, HERE, PAPER, shares=shares)


def test_the_mean_of_its_own_runs_here_comes_first() -> None:
    own = [_made("cifar100_swap_cpu", seconds, seed) for seed, seconds in enumerate((100.0, 110.0))]
    more = _made("cifar100_sgd_large_cpu", 7.0)
    found = _expect("cifar100_swap_cpu", *own, more)
    assert found.seconds == 105.0
    assert found.by == "by the mean of 2 runs of it here"


def test_runs_that_began_from_another_are_no_measure_of_those_that_do_not() -> None:
    begun = _made("cifar100_swap_40_cpu", 80.0, start={"run_id": "x", "origin": "0"})
    assert _expect("cifar100_swap_40_cpu", begun, shares=True).seconds == 80.0
    found = _expect("cifar100_swap_40_cpu", begun)
    # 80 s were for eight epochs of phase 2 alone; phase 1 took five in the one run that is known.
    recipe = RECIPES["cifar100_swap_40_cpu"]()
    per_epoch = 80.0 / 8
    assert found.seconds == pytest.approx((5 + 4 * recipe.phase2.max_epochs) * per_epoch)
    assert found.by == "by the images/s of 1 run of cifar100_swap_40_cpu here"


def test_other_rows_by_images_trained() -> None:
    swap = _made("cifar100_swap_cpu", 130.0)  # 10 s an epoch of 10,000 images
    assert _expect("cifar100_sgd_large_cpu", swap).seconds == pytest.approx(
        10.0 * RECIPES["cifar100_sgd_large_cpu"]().phase1.max_epochs
    )
    swa = RECIPES["cifar100_swa_large_small_cpu"]()
    found = _expect("cifar100_swa_large_small_cpu", swap, shares=True)
    assert found.seconds == pytest.approx(10.0 * swa.phase2.max_epochs)
    # Its phase 1 is SWAP's, which took five epochs.
    found = _expect("cifar100_swa_large_small_cpu", swap)
    assert found.seconds == pytest.approx(10.0 * (5 + swa.phase2.max_epochs))
    assert found.by == "by the images/s of 1 run of cifar100_swap_cpu here"


def test_a_phase_1_that_nobody_has_run_is_taken_at_its_longest_and_said_so() -> None:
    large = _made("cifar100_sgd_large_cpu", 50.0)
    found = _expect("cifar100_swap_cpu", large)
    most = RECIPES["cifar100_swap_cpu"]().phase1.max_epochs
    assert found.by.endswith(f", phase 1 at most {most} epochs")


def test_other_nets_by_arithmetic() -> None:
    other = make_record("cifar10_cpu")
    other = replace(other, times=replace(other.times, wall_s=500.0))
    found = _expect("cifar100_sgd_small_cpu", other)
    recipe = RECIPES["cifar100_sgd_small_cpu"]()
    rate = 50_000 * SWAP_EPOCHS * resnet9(16, 10).train_flop / 500
    images = recipe.phase1.max_epochs * (recipe.train_images or 0)
    flop = images * resnet9(recipe.width, 10).train_flop
    assert found.seconds == pytest.approx(flop / rate)
    assert "roughly" in found.by


def test_other_machines_come_last_and_then_nothing() -> None:
    away = _made("cifar100_swap_cpu", 65.0, machine=ELSEWHERE)
    found = _expect("cifar100_swap_cpu", away)
    recipe = RECIPES["cifar100_swap_cpu"]()
    assert found.seconds == pytest.approx(
        65.0 / SWAP_EPOCHS * (5 + recipe.num_workers * recipe.phase2.max_epochs)
    )
    assert "on other machines" in found.by
    assert _expect("cifar100_swap_cpu").seconds is None


@pytest.mark.parametrize("shares", [False, True])
def test_the_paper_s_size_by_the_planner(shares: bool) -> None:
    job = RunToDo(recipe="cifar100_swap_40", seed=0, start="cifar100_swap", record=None)
    machine = machine_key(make_record("cifar100_swap", machine=V100, world_size=4))
    found = eta(job, "paper", [], [], machine, PAPER, shares=shares)
    plan = make_plan(RECIPES[job.recipe](), modelled("v100", None, PAPER), 4, PAPER)
    phase1_s, phase2_s = plan.expected.phases_s
    assert found.seconds == pytest.approx(
        phase2_s + plan.expected.averaging_s + (0 if shares else phase1_s)
    )
    assert found.by == "by the planner, 4 x V100 SXM2"
    on_a_cpu = eta(job, "paper", [], [], HERE, PAPER, shares=shares)
    assert on_a_cpu.by == "by the planner, 8 x V100 SXM2, not this machine"


def test_images_and_epochs() -> None:
    swap = RECIPES["cifar100_swap"]()
    assert images_of(swap, 3.0, []) == 50_000 * (3 + 8 * 10)
    tree = replace(make_record(), data={"kind": "own", "train_images": 77})
    tree = with_recipe(tree, dataset="imagenet", net="resnet50")
    sgd = RECIPES["imagenet_sgd_small_cpu"]()
    assert images_of(sgd, sgd.phase1.max_epochs, [tree]) == 77 * sgd.phase1.max_epochs
    assert phase1_epochs(RECIPES["cifar100_sgd_large"](), []) == (150.0, "")
    assert phase1_epochs(swap, []) == (150.0, ", phase 1 at most 150 epochs")
