"""Each stability warning by construction, and a report of steady runs without any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from record_factory import CPU, V100, make_record, make_telemetry

from bench.report.run_lists import stability_table
from swap_fast.record import RunRecord


def _timed(seed: int, seconds: float) -> RunRecord:
    record = make_record(seed=seed)
    return replace(record, times=replace(record.times, after_averaging_s=seconds))


STEADY = [_timed(seed, 100.0 + seed) for seed in range(3)]


def _warned(records: list[RunRecord]) -> list[tuple[str, ...]]:
    return list(stability_table(records).rows)


def test_steady_runs_have_no_warning() -> None:
    assert _warned(STEADY) == []


@pytest.mark.parametrize(
    ("records", "where", "what"),
    [
        (STEADY[:2], "cifar10_cpu, machine 1, 2 CPU cores", "n = 2, fewer than 3"),
        (
            [_timed(0, 90), _timed(1, 100), _timed(2, 110)],
            "cifar10_cpu, machine 1, 2 CPU cores",
            "is 10% of",
        ),
        (
            [*STEADY, *(make_record(seed=s, machine={**CPU, "device": "X"}) for s in (0, 1, 2))],
            "cifar10_cpu",
            "ran on machines 1, 2",
        ),
        (
            [*STEADY, replace(make_record(seed=4), overrides=["width=4"])],
            "cifar10_cpu, machine 1, 2 CPU cores",
            "2 configurations, data sets or overrides",
        ),
        (
            [*STEADY[:2], replace(STEADY[2], code={"commit": "1" * 40, "changed": False})],
            "cifar10_cpu, machine 1, 2 CPU cores",
            "runs of 2 commits",
        ),
        (
            [*STEADY[:2], replace(STEADY[2], code={"commit": "0" * 40, "changed": True})],
            "cifar10_cpu, machine 1, 2 CPU cores",
            "changes that its commit does not hold",
        ),
        (
            [STEADY[0], *(replace(run, other_work=0.1 * run.seed) for run in STEADY[1:])],
            "cifar10_cpu, machine 1, 2 CPU cores",
            "other programs ran beside 2 of 3 runs, with up to 0.2 CPU cores; the time is of the "
            "rest, n = 1",
        ),
        (
            [*STEADY[:2], replace(STEADY[2], interruptions={"count": 1, "lost_s": 3.54})],
            STEADY[2].run_id,
            "was interrupted and resumed once; 3.5 s were lost",
        ),
        (
            [*STEADY[:2], replace(STEADY[2], interruptions={"count": 2, "lost_s": 3.54})],
            STEADY[2].run_id,
            "was interrupted and resumed 2 times; 3.5 s were lost",
        ),
        (
            [_timed(seed, 100 + seed % 3) for seed in range(5)] + [_timed(5, 109)],
            make_record(seed=5).run_id,
            "109.00 s stand apart",
        ),
    ],
)
def test_each_warning(records: list[RunRecord], where: str, what: str) -> None:
    ((found_where, found_what, remedy),) = _warned(records)
    assert found_where == where
    assert what in found_what
    assert remedy


def test_runs_of_unlike_precision_are_in_no_mean_together() -> None:
    execution = {**STEADY[0].configuration["execution"], "precision": "bf16"}
    configuration = {**STEADY[0].configuration, "execution": execution}
    other = make_record(
        seed=7, configuration=configuration, code={"commit": "1" * 40, "changed": False}
    )
    where = "cifar10_cpu, bf16, machine 1, 2 CPU cores"
    assert [row[:2] for row in _warned([*STEADY, other])] == [(where, "n = 1, fewer than 3")]


def test_spread_is_of_the_runs_that_were_timed_alone() -> None:
    slow = replace(_timed(3, 300.0), other_work=1.0)
    ((_, what, _),) = _warned([*STEADY, slow])
    assert what.endswith("; the time is of the rest, n = 3")


def test_throttling_counts_and_idling_does_not() -> None:
    told = make_telemetry()  # idle in 10% of phase 1's samples, at the power cap in half
    runs = [make_record(seed=seed, machine=V100, telemetry=[told]) for seed in range(3)]
    whats = [what for _, what, _ in _warned(runs)]
    assert (
        whats
        == ["the device of rank 0 was throttled (phase1: software power cap in 50% of the samples)"]
        * 3
    )
