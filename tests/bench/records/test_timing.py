"""The timing report, against the laps of the factory added up by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from record_factory import LAPS, make_record, with_recipe

from bench.records import timing
from swap_fast.record import RunRecord


def _with_ranks(record: RunRecord, laps: list[dict[str, float]]) -> RunRecord:
    return replace(record, times=replace(record.times, laps_by_rank=laps))


def test_laps_say_who_counts_them() -> None:
    table = timing.lap_table(make_record())
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["phase1"] == ("60.00", "49.69", "paper, DAWNBench, MLPerf")  # 60 of 120.75 s
    assert rows["data_loading"][2] == "DAWNBench, MLPerf"
    assert rows["evaluation"][2] == "MLPerf"
    assert rows["analysis"][2] == "none"
    assert rows["unattributed (harness)"] == ("1.25", "1.04", "none")
    assert rows["wall"][:2] == ("120.75", "100.00")
    assert len(rows) == len(LAPS) + 2
    paper, dawnbench, mlperf = table.footnotes
    assert paper.startswith("paper: 98.00 s = data_preparation + model_init + phase1 + phase2")
    assert dawnbench.startswith("DAWNBench: 100.00 s = data_loading + ")
    assert mlperf.startswith("MLPerf: 110.50 s = ")


def test_laps_of_a_later_clock_are_shown_last() -> None:
    record = make_record()
    laps = timing.laps_of_slowest_rank(_with_ranks(record, [{"zzz": 1.0, **LAPS}]))
    assert list(laps)[-1] == "zzz"
    assert sum(laps.values()) == sum(LAPS.values()) + 1.0


def test_laps_are_those_of_the_rank_of_the_readings() -> None:
    record = make_record()
    quick = {name: seconds / 2 for name, seconds in LAPS.items()}
    assert timing.laps_of_slowest_rank(_with_ranks(record, [quick, LAPS]))["phase1"] == 60.0


def test_images_per_second_by_hand() -> None:
    record = make_record()
    # Phase 1: 5 epochs of 48 whole batches of 1024 in 60 s. Phase 2: 4 workers, 2 epochs each,
    # of 390 whole batches of 128, in 32 s.
    assert timing.images_per_second(record, 1) == pytest.approx(5 * 48 * 1024 / 60)
    assert timing.images_per_second(record, 2) == pytest.approx(4 * 2 * 390 * 128 / 32)
    part = with_recipe(record, train_images=10_000)
    assert timing.images_per_second(part, 1) == pytest.approx(5 * 9 * 1024 / 60)
    assert timing.images_per_second(make_record("cifar10_sgd_small_cpu"), 2) is None
    assert timing.images_per_second(replace(record, data={"kind": "published"}), 1) is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # Epoch 3 ends at 1.5 + 36 s of the paper's reading, after 2 s of loading.
        (0.66, 39.5),
        (0.6601, 51.5),
        # Workers end at 79.0 to 79.6%: only the average counts, at the end, 100 s.
        (0.79, 100.0),
        (0.81, 100.0),
        (0.8101, None),
    ],
)
def test_time_to_target_of_swap(target: float, expected: float | None) -> None:
    assert timing.dawnbench_time(with_recipe(make_record(), target_accuracy=target)) == expected


def test_time_to_target_of_sgd() -> None:
    record = make_record("cifar10_sgd_large_cpu")
    assert timing.dawnbench_time(with_recipe(record, target_accuracy=0.76)) == 63.5
    assert timing.dawnbench_time(with_recipe(record, target_accuracy=0.77)) is None


def test_epochs_that_were_not_evaluated_reach_nothing() -> None:
    record = with_recipe(make_record(), target_accuracy=0.5)
    blind = [replace(row, test_accuracy=None) for row in record.epochs]
    assert timing.dawnbench_time(replace(record, epochs=blind)) == 100.0


def test_readings_by_hand() -> None:
    table = timing.readings_table([make_record(), make_record("cifar10_sgd_small_cpu", 1)])
    swap, sgd = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert [swap[f"{name} (s)"] for name in ("Paper", "DAWNBench", "MLPerf", "Wall")] == [
        "98.00",
        "100.00",
        "110.50",
        "120.75",
    ]
    assert swap["Modelled parallel (s), not measured"] == "74.00"
    assert sgd["Modelled parallel (s), not measured"] == "—"
    assert sgd["Paper (s)"] == "62.50"
    assert (swap["To target (s)"], sgd["To target (s)"]) == ("100.00", "—")
    assert "Not the paper's hardware or net" in table.caption
    assert swap["Peak host memory (GiB a process)"] == "1.25"


@pytest.mark.parametrize(
    "changed",
    [
        {"interruptions": {"count": 1, "lost_s": 5.0}},
        {"start": {"run_id": "another", "origin": "ab"}},
    ],
)
def test_laps_of_several_processes_have_no_share_of_the_wall_clock(changed: dict[str, Any]) -> None:
    record = make_record(**changed)
    table = timing.readings_table([record, make_record(seed=1)])
    several, one = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    for column in ("Unattributed (s)", "Unattributed (%)", "Checkpoints (%)"):
        assert several[column] == "—"
        assert one[column] != "—"
    assert [note for note in table.footnotes if "several processes" in note]
    assert "(n = 1)" in table.footnotes[-1]
    rows = {row[0]: row[1:] for row in timing.lap_table(record).rows}
    assert rows["phase1"][:2] == ("60.00", "—")
    assert "unattributed (harness)" not in rows


def test_the_device_s_memory_has_a_column_where_any_run_has_it() -> None:
    host = make_record()
    device = replace(host, peak_device_reserved_gib=3.5, peak_device_allocated_gib=2.75)
    column = "Peak device memory (GiB)"
    assert not [text for text in timing.readings_table([host]).columns if "device" in text]
    table = timing.readings_table([host, device])
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [each[column] for each in cells] == ["—", "3.50"]
    assert [each["Peak host memory (GiB a process)"] for each in cells] == ["1.25", "1.25"]
    assert [note for note in table.footnotes if note.startswith("Peak device memory")]


def test_all_laps_has_every_run() -> None:
    records = [make_record(seed=seed) for seed in (0, 1)]
    assert len(timing.all_laps_table(records).rows) == 2 * (len(LAPS) + 2)


def test_a_wall_clock_of_nothing_has_no_share() -> None:
    record = make_record("cifar10_cpu", 0)
    (note,) = timing.checkpoint_notes([replace(record, times=replace(record.times, wall_s=0.0))])
    assert note == "Checkpoints of cifar10_cpu took —% of the wall clock, —% at most (n = 1)."


def test_what_checkpoints_took_of_all_runs_and_of_one_at_most() -> None:
    one, two = make_record("cifar10_cpu", 0), make_record("cifar10_cpu", 1)
    (laps,) = two.times.laps_by_rank
    slower = _with_ranks(two, [{**laps, "checkpoint": 1.5}])
    # 0.5 s of 120.75 s and 1.5 s of 121.75 s
    assert timing.checkpoint_notes([one, slower]) == [
        "Checkpoints of cifar10_cpu took 0.82% of the wall clock, 1.23% at most (n = 2)."
    ]


def test_mirrored_test_images_do_not_count_for_the_target() -> None:
    record = with_recipe(make_record("cifar10_sgd_large_cpu"), target_accuracy=0.77)
    better = [replace(row, mirrored_test_accuracy=0.78) for row in record.epochs]
    mirrored = replace(record, epochs=better, mirrored_test_accuracy=0.78)
    assert timing.dawnbench_time(mirrored) == timing.dawnbench_time(record)
