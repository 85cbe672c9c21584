"""Where each joule went, against the factory's figures added up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from record_factory import make_record, make_telemetry

from bench.records import timing as energy
from swap_fast.record import RunRecord, Telemetry


def _record(*ranks: Telemetry) -> RunRecord:
    """A run of as many ranks: 60 s of phase 1 and 10 s of evaluation on each."""
    record = make_record()
    times = replace(record.times, laps_by_rank=record.times.laps_by_rank * len(ranks))
    return replace(record, telemetry=list(ranks), times=times)


def test_energy_of_all_devices_and_power_of_one() -> None:
    record = _record(make_telemetry(), make_telemetry(energy_j=9000.0))
    assert energy.energy_j(record, ["phase1"]) == 15_000
    assert energy.energy_j(record, ["phase1", "evaluation"]) == 16_000
    assert energy.mean_power_w(record, "phase1") == 15_000 / 120
    assert energy.energy_j(record, ["averaging"]) is None  # no rank ran it
    assert energy.mean_power_w(record, "averaging") is None


def test_energy_that_one_device_does_not_count_is_not_known() -> None:
    record = _record(
        make_telemetry(),
        make_telemetry(energy_j=None, samples=40, mean_power_w=200.0),
    )
    assert energy.energy_j(record, ["phase1"]) is None
    # The mean of 120 samples of 104 W and 40 of 200 W.
    assert energy.mean_power_w(record, "phase1") == pytest.approx(128.0)


def test_shares_of_throttle_reasons_over_all_samples() -> None:
    record = _record(
        make_telemetry(),
        make_telemetry(samples=40, throttle_reasons={"idle": 1.0}),
        make_telemetry(samples=1000, throttle_reasons=None),
    )
    # Of 160 samples: 60 of the power cap, 12 + 40 idle.
    shares = energy.throttle_shares(record, "phase1")
    assert list(shares) == ["software power cap", "idle"]
    assert shares == pytest.approx({"software power cap": 60 / 160, "idle": 52 / 160})
    assert energy.throttle_shares(record, "data_loading") == {}


def test_the_table_has_the_laps_that_told_something_and_their_sum() -> None:
    table = energy.energy_table([make_record(seed=1), _record(make_telemetry())])
    run_id = make_record().run_id
    assert table.rows == (
        (
            *(run_id, "phase1", "6000", "100", "1400", "1200", "90", "61"),
            "software power cap 50, idle 10",
        ),
        (run_id, "evaluation", "500", "50", *["—"] * 5),
        # Evaluation is not counted, and of what is counted phase 1 alone was measured.
        (run_id, energy.IN_PAPER, "6000", *["—"] * 6),
    )


def test_without_telemetry_there_is_nothing_to_show() -> None:
    lost = Telemetry(device=None, driver=None, interval_s=0.5, laps={}, missing={"all": "gone"})
    assert energy.energy_table([]).rows == ()
    assert energy.energy_table([make_record()]).rows == ()
    assert energy.energy_table([_record(lost)]).rows == ()
    unseen = replace(lost, laps={"data_loading": make_telemetry().laps["data_loading"]})
    assert energy.energy_table([_record(unseen)]).rows == ()
