"""What a table lacks, starts first, and how long each run will take, by hand from each source."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from record_factory import CPU, V100, make_record, with_recipe

from bench.net_cost import resnet9
from bench.planner.command import make_plan, modelled
from bench.records.grouping import MachineKey, kind_of_machine, machine_key
from bench.records.paper import load_paper
from bench.records.paper_tables import TABLE_1, TABLE_2, TABLE_4, RunTable
from bench.report.runs_to_do import (
    PRECISION,
    Eta,
    RunToDo,
    agrees,
    eta,
    find_run,
    images_of,
    is_run_of,
    jobs_of,
    phase1_epochs,
    starts_of,
)
from swap_fast.config.execution import default_execution
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, plain

HERE = machine_key(make_record())
DATA = "ab" * 32
"""The content hash of `make_record`'s data."""


def _made(recipe: str, seed: int = 0, **changed: Any) -> RunRecord:
    """A run of the recipe as it is, on part of its data where the table takes that."""
    record = make_record(recipe, seed)
    if recipe.startswith("cifar100"):
        record = replace(record, data={**record.data, "kind": "subset"})
    return replace(with_recipe(record, **plain(asdict(RECIPES[recipe]()))), **changed)


FP16 = {**_made("cifar10_swap").configuration, "execution": {"precision": "fp16"}}
BF16 = {**_made("cifar10_cpu").configuration, "execution": {"precision": "bf16"}}


def test_a_table_s_precision_is_the_default() -> None:
    assert {kind: default_execution(kind).precision for kind in PRECISION} == PRECISION


def _jobs(table: RunTable, runs: int, *records: RunRecord) -> list[RunToDo]:
    return jobs_of(table, "cpu", runs, records, lambda recipe: HERE, DATA)


def test_what_rows_begin_from_comes_before_them() -> None:
    order = list(starts_of(TABLE_4, "paper").items())
    assert order == [
        ("cifar100_sgd_large", None),
        ("cifar100_swa_large", "cifar100_sgd_large"),
        ("cifar100_swap", None),
        ("cifar100_swa_large_small", "cifar100_swap"),
        ("cifar100_sgd_small", None),
        ("cifar100_swa_small", "cifar100_sgd_small"),
        ("cifar100_swap_40", "cifar100_swap"),
    ]
    assert list(starts_of(TABLE_1, "cpu")) == [
        "cifar10_sgd_small_cpu",
        "cifar10_sgd_large_cpu",
        "cifar10_cpu",
    ]


def test_runs_that_are_there_are_not_made_again() -> None:
    there = [_made("cifar10_cpu"), _made("cifar10_sgd_small_cpu", 1)]
    jobs = _jobs(TABLE_1, 2, *there)
    assert [(job.recipe, job.seed) for job in jobs] == [
        (recipe, seed) for seed in (0, 1) for recipe in starts_of(TABLE_1, "cpu")
    ]
    found = {(job.recipe, job.seed): job.record for job in jobs if job.record is not None}
    assert found == {("cifar10_cpu", 0): there[0], ("cifar10_sgd_small_cpu", 1): there[1]}


def test_a_start_of_another_table_is_made_only_for_a_run_that_needs_it() -> None:
    # Table 2's small-batch SGD is no row of Table 4.
    assert "cifar100_sgd_small_cpu" in {job.recipe for job in _jobs(TABLE_4, 1)}
    done = _made("cifar100_swa_small_cpu", method="swa")
    assert "cifar100_sgd_small_cpu" not in {job.recipe for job in _jobs(TABLE_4, 1, done)}
    start = _made("cifar100_sgd_small_cpu")
    assert "cifar100_sgd_small_cpu" not in {job.recipe for job in _jobs(TABLE_4, 1, start)}
    # SWAP is a row of both.
    swap = _made("cifar100_swap_cpu")
    for table in (TABLE_2, TABLE_4):
        jobs = {job.recipe: job for job in _jobs(table, 1, swap)}
        assert jobs["cifar100_swap_cpu"].record == swap


@pytest.mark.parametrize(
    "record",
    [
        _made("cifar10_cpu", 1),
        _made("cifar10_cpu", machine={**CPU, "device_count": 4}),
        _made("cifar10_cpu", threads=1),
        _made("cifar10_cpu", data={"name": "cifar10", "kind": "synthetic", "sha256": DATA}),
        _made("cifar10_cpu", data={"name": "cifar10", "kind": "published", "sha256": "cd" * 32}),
        _made("cifar10_cpu", data={"name": "cifar10", "kind": "published"}),
        _made("cifar10_cpu", configuration=BF16),
        _made("cifar10_cpu", overrides=["width=17"]),
        with_recipe(_made("cifar10_cpu"), width=17),
    ],
)
def test_another_run_is_no_run_of_it(record: RunRecord) -> None:
    recipe = RECIPES["cifar10_cpu"]()
    assert find_run(recipe, 0, HERE, [record], DATA) is None
    there = _made("cifar10_cpu")
    assert find_run(recipe, 0, HERE, [record, there], DATA) == there


def test_of_unknown_data_the_kind_alone_is_compared() -> None:
    recipe = RECIPES["cifar10_cpu"]()
    other = _made("cifar10_cpu")
    other = replace(other, data={**other.data, "sha256": "cd" * 32})
    synthetic = replace(other, data={**other.data, "kind": "synthetic"})
    assert find_run(recipe, 0, HERE, [synthetic, other], None) == other
    assert find_run(recipe, 0, HERE, [synthetic], None) is None


def test_a_run_on_fewer_of_a_machine_s_gpus_is_no_run_on_all_of_them() -> None:
    recipe = RECIPES["cifar10_swap"]()
    two, eight = (
        _made("cifar10_swap", machine=V100, world_size=ranks, threads=3, configuration=FP16)
        for ranks in (2, 8)
    )
    here = kind_of_machine(V100, 8, threads=12)  # threads are no devices of a GPU machine
    assert find_run(recipe, 0, here, [two], DATA) is None
    assert find_run(recipe, 0, here, [two, eight], DATA) == eight


def test_a_recipe_s_texts_and_later_fields_change_nothing_of_it() -> None:
    record, recipe = _made("cifar10_cpu"), RECIPES["cifar10_cpu"]()
    assert is_run_of(with_recipe(record, summary="other words", table="moved"), recipe)
    older = dict(record.configuration["recipe"])
    older["phase1"] = {k: v for k, v in older["phase1"].items() if k != "cycles"}
    del older["keep_momentum"]
    assert is_run_of(replace(record, configuration={"recipe": older}), recipe)
    older["phase1"] = {**older["phase1"], "peak_lr": 0.5}
    assert not is_run_of(replace(record, configuration={"recipe": older}), recipe)


def test_agreement_is_of_what_is_known() -> None:
    assert agrees({}, {"a": 1})
    assert agrees({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}, "d": 3})
    assert not agrees({"a": {"b": 1}}, {"a": {"b": 2}})
    assert not agrees({"gone": 1}, {})
    assert not agrees({"a": {"b": 1}}, {"a": None})


def test_each_recipe_is_looked_for_on_the_machine_that_it_would_run_on() -> None:
    def machine(recipe: Any) -> MachineKey:
        return replace(HERE, devices=1) if recipe.name == "cifar10_cpu" else HERE

    there = [_made("cifar10_cpu"), _made("cifar10_sgd_large_cpu")]
    jobs = {job.recipe: job.record for job in jobs_of(TABLE_1, "cpu", 1, there, machine, DATA)}
    assert jobs["cifar10_cpu"] is None
    assert jobs["cifar10_sgd_large_cpu"] == there[1]


# How long a run will take.

PAPER = load_paper()
CPU_ROWS = list(starts_of(TABLE_4, "cpu"))
ELSEWHERE = {**CPU, "device_count": 64}
# The factory's SWAP: five epochs of phase 1, and two of four workers.
SWAP_EPOCHS = 5 + 2 * 4


def _timed(recipe: str, wall_s: float, seed: int = 0, **changed: Any) -> RunRecord:
    record = _made(recipe, seed, **changed)
    data = {**record.data, "train_images": 10_000}
    return replace(record, data=data, times=replace(record.times, wall_s=wall_s))


def _expect(recipe: str, *records: RunRecord, shares: bool = False) -> Eta:
    job = RunToDo(recipe=recipe, seed=3, start=None, record=None)
    return eta(job, "cpu", CPU_ROWS, records, HERE, PAPER, shares=shares)


def test_the_mean_of_its_own_runs_here_comes_first() -> None:
    own = [
        _timed("cifar100_swap_cpu", seconds, seed) for seed, seconds in enumerate((100.0, 110.0))
    ]
    more = _timed("cifar100_sgd_large_cpu", 7.0)
    found = _expect("cifar100_swap_cpu", *own, more)
    assert found.seconds == 105.0
    assert found.by == "by the mean of 2 runs of it here"


def test_runs_that_began_from_another_are_no_measure_of_those_that_do_not() -> None:
    begun = _timed("cifar100_swap_40_cpu", 80.0, start={"run_id": "x", "origin": "0"})
    assert _expect("cifar100_swap_40_cpu", begun, shares=True).seconds == 80.0
    found = _expect("cifar100_swap_40_cpu", begun)
    # 80 s were for eight epochs of phase 2 alone; phase 1 took five in the one run that is known.
    recipe = RECIPES["cifar100_swap_40_cpu"]()
    per_epoch = 80.0 / 8
    assert found.seconds == pytest.approx((5 + 4 * recipe.phase2.max_epochs) * per_epoch)
    assert found.by == "by the images/s of 1 run of cifar100_swap_40_cpu here"


def test_other_rows_by_images_trained() -> None:
    swap = _timed("cifar100_swap_cpu", 130.0)  # 10 s an epoch of 10,000 images
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
    large = _timed("cifar100_sgd_large_cpu", 50.0)
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
    away = _timed("cifar100_swap_cpu", 65.0, machine=ELSEWHERE)
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
