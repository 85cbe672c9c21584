"""The physical model against sums by hand on a device with round figures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench.net_cost import Layer, Net
from bench.planner.model import (
    FLOOR,
    Efficiency,
    Hardware,
    Modelled,
    all_reduce_bytes,
    all_reduce_s,
    epoch_s,
    estimate,
    fit,
    layers_s,
    memory_bytes,
    sent_bytes,
)
from bench.planner.workload import PhaseWork, Workload

ROUND = Hardware(
    name="round",
    matrix_flop_s=1e6,
    memory_bytes_s=1e6,
    memory_bytes=1e9,
    link_bytes_s=1e6,
    network_bytes_s=1e5,
    gpus_per_node=4,
    hop_s=0.0,
)
# One layer bound by arithmetic, one by traffic: forward 2,000 FLOP, and 400 values of 2 bytes with
# 5 places of 8, which the backward pass reads again.
NET = Net(
    layers=(
        Layer(macs=1000, parameters=1000, forward_values=100, backward_values=200, saved_values=10),
        Layer(forward_values=400, backward_values=800, saved_values=20, saved_indices=5),
    )
)
PHASE = PhaseWork(
    number=1, name="phase 1", net=NET, epochs=3, images=105, global_batch_size=20, gpus_per_model=4
)
SPEED = Modelled(hardware=ROUND, efficiency=FLOOR)
FORWARD_S = 0.002 + 0.00084
IMAGE_S = FORWARD_S + 0.004 + 0.00164
UPDATE_S = 9 * 4000 / 1e6


def test_each_layer_takes_the_longer_of_arithmetic_and_traffic() -> None:
    assert layers_s(NET, ROUND) == pytest.approx(IMAGE_S)
    assert layers_s(NET, ROUND, forward_only=True) == pytest.approx(FORWARD_S)


@pytest.mark.parametrize(("gpus", "share"), [(1, 0.0), (2, 1.0), (4, 1.5), (8, 1.75)])
def test_a_ring_sends_everything_almost_twice(gpus: int, share: float) -> None:
    assert all_reduce_bytes(100.0, gpus) == pytest.approx(100 * share)


def test_all_reduce_within_a_node_and_between_nodes() -> None:
    assert all_reduce_s(1e6, 1, ROUND) == 0.0
    assert all_reduce_s(1e6, 4, ROUND) == pytest.approx(1.5)
    # Two nodes: 1.5 s inside, and once the bytes through a tenth of the bandwidth.
    assert all_reduce_s(1e6, 8, ROUND) == pytest.approx(1.5 + 10.0)
    hops = replace(ROUND, hop_s=0.01)
    assert all_reduce_s(1e6, 8, hops) == pytest.approx(11.5 + 2 * 3 * 0.01)


def test_an_epoch_by_hand() -> None:
    # 5 whole batches of 20, 5 images a device, gradients of 4,000 bytes.
    step_s = 5 * IMAGE_S + UPDATE_S + 1.5 * 4000 / 1e6
    assert epoch_s(PHASE, SPEED, 4) == pytest.approx(5 * step_s)
    slower = Modelled(hardware=ROUND, efficiency=Efficiency(slowdown=2.0, epoch_s=0.25))
    assert epoch_s(PHASE, slower, 4) == pytest.approx(10 * step_s + 0.25)


def test_fewer_devices_take_turns() -> None:
    # Three devices for four replicas: two of them in turn on one; two models one after another.
    step_s = 2 * 5 * IMAGE_S + UPDATE_S + all_reduce_s(4000, 3, ROUND)
    assert epoch_s(PHASE, SPEED, 3) == pytest.approx(5 * step_s)
    workers = replace(PHASE, gpus_per_model=1, global_batch_size=5, num_models=8)
    one_s = epoch_s(replace(workers, num_models=1), SPEED, 1)
    assert [round(epoch_s(workers, SPEED, n) / one_s) for n in (1, 3, 4, 8)] == [8, 3, 2, 1]


def _work(**changed: object) -> Workload:
    phase2 = replace(
        PHASE, name="phase 2", epochs=2, global_batch_size=5, gpus_per_model=1, num_models=4
    )
    work = Workload(
        name="w", phases=(PHASE, phase2), averages=True, resident_bytes=700, epochs_source=""
    )
    return replace(work, **changed)  # type: ignore[arg-type]


def test_a_run_is_the_sum_of_its_phases_and_the_pass() -> None:
    work = _work()
    found = estimate(work, SPEED, 4)
    assert found.phases_s == pytest.approx(
        [3 * epoch_s(PHASE, SPEED, 4), 2 * epoch_s(work.phases[1], SPEED, 4)]
    )
    assert found.averaging_s == pytest.approx(105 / 4 * FORWARD_S + 1.5 * 4000 / 1e6)
    assert found.total_s == pytest.approx(sum(found.phases_s) + found.averaging_s)
    assert estimate(_work(averages=False), SPEED, 4).averaging_s == 0.0


def test_bytes_by_hand() -> None:
    # 3 epochs of 5 steps among 4 devices, phase 2 alone, and one average.
    assert sent_bytes(_work(), 4) == pytest.approx((15 + 1) * 1.5 * 4000)
    assert sent_bytes(_work(), 1) == 0.0
    # Five vectors of 1,000 floats; 5 images of 30 values in fp16 and 5 places; the data.
    assert memory_bytes(_work(), ROUND) == 5 * 4000 + 5 * (2 * 30 + 8 * 5) + 700


def test_a_fit_finds_what_made_the_figures() -> None:
    made = Modelled(hardware=ROUND, efficiency=Efficiency(slowdown=1.7, epoch_s=0.4))
    phases = [(PHASE, 4), (replace(PHASE, global_batch_size=4), 2), (PHASE, 1)]
    found = fit([(phase, gpus, epoch_s(phase, made, gpus)) for phase, gpus in phases], ROUND)
    assert (found.slowdown, found.epoch_s) == pytest.approx((1.7, 0.4))
    with pytest.raises(ValueError, match="two settings or more"):
        fit([(PHASE, 4, 1.0)], ROUND)


def test_no_device_is_faster_than_its_floor() -> None:
    assert math.isclose(SPEED.pass_image_s(PHASE), FORWARD_S)
    assert SPEED.micro_batch_s(PHASE) == pytest.approx(5 * IMAGE_S)
