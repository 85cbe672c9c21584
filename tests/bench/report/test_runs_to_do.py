"""What a table lacks: in an order in which starts come first, and only what is not there."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from record_factory import CPU, V100, make_record, with_recipe

from bench.records.grouping import MachineKey, kind_of_machine, machine_key
from bench.records.paper_tables import TABLE_1, TABLE_2, TABLE_4, RunTable
from bench.report.runs_to_do import RunToDo, agrees, find_run, is_run_of, jobs_of, starts_of
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
        _made("cifar10_cpu", overrides=["width=17"]),
        with_recipe(_made("cifar10_cpu"), width=17),
    ],
    ids=["seed", "cores", "threads", "kind", "content", "no hash", "overrides", "recipe"],
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
        _made("cifar10_swap", machine=V100, world_size=ranks, threads=3) for ranks in (2, 8)
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
