"""Statistics over runs, against figures worked out by hand, and what may be pooled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_factory import CPU, EXECUTION, V100, make_record, with_recipe

from bench import statistics
from bench.hardware.machine import describe_machine
from bench.records import grouping as stats
from bench.records.paper import load_paper
from swap_fast.record import CPU_UNITS


def test_mean_and_sample_deviation_by_hand() -> None:
    # Deviations -2, 0, 0, 2 from 6: sum of squares 8, over n - 1 = 3.
    summary = statistics.summarize([4.0, 6.0, 6.0, 8.0])
    assert (summary.n, summary.mean) == (4, 6.0)
    assert summary.std == pytest.approx((8 / 3) ** 0.5, rel=1e-15)
    assert summary.values == (4.0, 6.0, 6.0, 8.0)


def test_one_value_has_no_deviation_and_none_no_summary() -> None:
    summary = statistics.summarize([3.5])
    assert (summary.n, summary.mean, summary.std, summary.unstable) == (1, 3.5, None, False)
    with pytest.raises(ValueError, match="at least one value"):
        statistics.summarize([])


@pytest.mark.parametrize(
    ("values", "unstable"),
    # Two values d apart have a sample deviation of d / sqrt(2).
    [([100.0, 100.0], False), ([95.0, 105.0], False), ([92.9, 107.1], True), ([9, 10, 11], True)],
)
def test_unstable_from_a_tenth_of_the_mean(values: list[float], unstable: bool) -> None:
    assert statistics.summarize(values).unstable is unstable


def test_runs_at_the_target_are_counted() -> None:
    assert stats.count_reaching([0.9399, 0.94, 0.95, 0.90], 0.94) == 2


def test_a_cpu_of_one_model_with_other_units_is_another_machine() -> None:
    plain = make_record()
    amx = replace(plain, machine={**plain.machine, "cpu_units": [*CPU_UNITS]})
    assert stats.host_of(amx) != stats.host_of(plain)
    assert stats.host_of(amx).label == stats.host_of(plain).label.replace(")", ", AMX)")
    here = describe_machine("cpu").get("cpu_units", [])
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert here == [unit for unit in CPU_UNITS if unit in flags]


def test_times_of_one_kind_of_machine_are_pooled() -> None:
    # Seeds add a second each to 98 s.
    records = [make_record(seed=seed) for seed in (0, 1, 2)]
    pooled = stats.pool_times(records, lambda record: record.times.after_averaging_s)
    assert pooled is not None
    assert (pooled.mean, pooled.std) == (99.0, 1.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"machine": V100},
        {"machine": {**CPU, "device": "Another CPU"}},
        {"machine": {**CPU, "device_count": 4}},
        {"machine": {**CPU, "libraries": {"torch": "2.11.0"}}},
        {"world_size": 2},
        {"threads": 1},
    ],
)
def test_times_of_unlike_machines_are_refused(changed: dict[str, Any]) -> None:
    records = [make_record(), make_record(seed=1, **changed)]
    with pytest.raises(ValueError, match="one kind of machine and number of devices, got 2"):
        stats.pool_times(records, lambda record: record.times.after_averaging_s)


def test_patch_release_and_build_of_torch_are_one_kind() -> None:
    other = {**CPU, "libraries": {"torch": "2.10.1"}}
    assert stats.machine_key(make_record()) == stats.machine_key(make_record(machine=other))
    assert stats.host_of(make_record()).torch_minor == "2.10"


def test_what_a_run_used_of_its_machine() -> None:
    def key(**changed: Any) -> stats.MachineKey:
        return stats.machine_key(make_record(**changed))

    eight, two = key(machine=V100, world_size=8), key(machine=V100, world_size=2)
    assert eight.host == two.host
    assert eight != two
    assert (eight.devices, eight.devices_cell, two.devices_cell) == (8, "8", "2")
    assert eight.host.devices_head == "GPUs"
    assert (eight.used, two.used) == ("8 Tesla V100-SXM2-16GB", "2 of 8 Tesla V100-SXM2-16GB")
    assert two.host.label == "8 Tesla V100-SXM2-16GB, torch 2.10"
    assert two.label == "2 of 8 Tesla V100-SXM2-16GB, torch 2.10"
    # Ranks on two machines of eight.
    assert key(machine=V100, world_size=16).used == "16 Tesla V100-SXM2-16GB"
    # On CUDA the devices do the work, whatever the threads beside them.
    assert key(machine=V100, world_size=8, threads=1) == eight
    one, both = key(threads=1), key(world_size=2, threads=1)
    assert (one.devices, one.devices_cell, one.used) == (1, "1 (1 x 1)", "1 of 2 CPU cores")
    assert (both.devices, both.devices_cell, both.used) == (2, "2 (2 x 1)", "2 CPU cores")
    # Two processes of a thread are not as fast as one of two: as many cores, and not pooled.
    assert key() != both
    assert both.host.devices_head == "Cores (processes x threads)"
    processes = "2 processes of 1 thread"
    assert both.label == f"2 CPU cores (Example CPU @ 2.0GHz), torch 2.10, {processes}"


def test_accuracies_are_pooled_over_machines_of_one_type() -> None:
    records = [make_record(), make_record(seed=2, machine={**CPU, "device_count": 4})]
    pooled = stats.pool_accuracies(records, lambda record: record.test_accuracy)
    assert pooled is not None
    assert pooled.mean == pytest.approx(0.811, rel=1e-15)
    assert stats.pool_accuracies(records, lambda record: None) is None


def test_a_field_that_an_older_record_lacks_is_at_its_default() -> None:
    new = make_record()
    recipe = new.configuration["recipe"]
    assert recipe["phase1"]["stop"] == "accuracy"
    phase1 = {name: value for name, value in recipe["phase1"].items() if name != "stop"}
    old = with_recipe(make_record(seed=1), phase1=phase1)
    assert stats.accuracy_key(old) == stats.accuracy_key(new)
    other = with_recipe(make_record(seed=1), phase1=phase1 | {"stop": "auto"})
    assert stats.accuracy_key(other) != stats.accuracy_key(new)


def test_accuracies_of_unlike_runs_are_refused() -> None:
    record = make_record()
    execution = {**EXECUTION, "precision": "bf16"}
    for other in (
        replace(record, machine=V100),
        replace(record, configuration={**record.configuration, "execution": execution}),
        replace(record, data={**record.data, "sha256": "cd" * 32}),
        replace(record, overrides=["phase1.peak_lr=1.5"]),
        with_recipe(record, width=17),
    ):
        with pytest.raises(ValueError, match="device type, got 2"):
            stats.pool_accuracies([record, other], lambda record: record.test_accuracy)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"notes": ["quicker; degraded, profiled in words alone"]}, None),
        ({"flags": ["degraded"]}, "degraded: averaged 4 of 4 workers"),
        (
            {"flags": ["profiled"]},
            "profiled: the profiler ran in some steps, and their time counts",
        ),
        ({"data": {"kind": "synthetic"}}, "synthetic data"),
        ({"data": {"kind": "subset"}}, "subset data"),
        ({"overrides": ["a=1", "b=2"]}, "overrides: a=1, b=2"),
    ],
)
def test_what_is_compared_with_no_published_figure(changed: dict, why: str | None) -> None:
    assert stats.why_not_comparable(make_record(**changed)) == why


# The published figures.


def test_paper_has_every_cell_of_tables_1_to_4() -> None:
    paper = load_paper()
    per_table = {f"Table {i}": 0 for i in range(1, 5)}
    for value in paper.values:
        per_table[value.table] += 1
        assert value.n == (3 if value.table == "Table 3" else 10)
    assert per_table == {"Table 1": 8, "Table 2": 8, "Table 3": 12, "Table 4": 15}
    assert len({(v.table, v.row, v.column) for v in paper.values}) == len(paper.values)
    after = paper.value("Table 1", "SWAP (after averaging)", "test_accuracy")
    assert (after.mean, after.sd, after.units) == (95.23, 0.08, "percent")
    assert paper.value("Table 2", "SWAP (after averaging)", "train_time").mean == 125.34
    assert paper.value("Table 4", "SWAP (10 small-batch epochs)", "train_time").mean == 125.30
    assert (paper.claim.time_s, paper.claim.source) == (27.0, "Section 5.1")
    assert {peer.name: peer.time_s for peer in paper.peers}["Apple"] == 9.43
    assert len(paper.inconsistencies) == 8
    with pytest.raises(KeyError):
        paper.value("Table 9", "SWAP", "train_time")


def test_damaged_paper_file_is_named(tmp_path) -> None:
    (tmp_path / "paper.json").write_text('{"tables": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"paper\.json: expected the published figures"):
        load_paper(tmp_path)


def test_folder_without_paper_file_has_the_one_kept_with_the_code(tmp_path) -> None:
    assert load_paper(tmp_path) == load_paper()
