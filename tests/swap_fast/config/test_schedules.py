"""Learning rates at hand-computed positions."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from swap_fast.config.phase import (
    Phase,
    Stage,
    StagedPhase,
    cyclic,
    pieces,
    piecewise_linear,
    triangle,
)


def rates(phase: Phase, steps_per_epoch: int) -> list[float]:
    """The rate of every step of a phase, steps counted from 1."""
    steps = range(1, phase.max_epochs * steps_per_epoch + 1)
    return [phase.schedule(step / steps_per_epoch) for step in steps]


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (-1.0, 0.0),
        (0.0, 0.0),
        (2.5, 0.2),
        (5.0, 0.4),
        (14.5, 0.2),
        (19.25, 0.1),
        (24.0, 0.0),
        (30.0, 0.0),
    ],
)
def test_cifar10_fast_s_knots(epoch: float, expected: float) -> None:
    schedule = piecewise_linear([(0, 0), (5, 0.4), (24, 0)])
    assert schedule(epoch) == pytest.approx(expected, abs=1e-15)


def test_one_knot_is_a_constant() -> None:
    schedule = piecewise_linear([(2, 0.25)])
    assert [schedule(epoch) for epoch in (0, 2, 9)] == [0.25] * 3


def test_before_the_first_and_after_the_last_knot_it_is_constant() -> None:
    schedule = piecewise_linear([(1, 0.1), (3, 0.5)])
    assert [schedule(epoch) for epoch in (0, 0.99, 1, 2, 3, 99)] == pytest.approx(
        [0.1, 0.1, 0.1, 0.3, 0.5, 0.5]
    )


def test_steps_of_a_triangle_by_hand() -> None:
    phase = Phase(global_batch_size=4, peak_lr=0.4, max_epochs=3, warmup_epochs=1)
    assert rates(phase, 2) == pytest.approx([0.2, 0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-15)


def test_the_last_step_is_exactly_zero() -> None:
    for peak, epochs, steps in ((0.3, 100, 97), (1.2, 150, 12), (0.12, 30, 97), (0.07, 7, 3)):
        phase = Phase(global_batch_size=4, peak_lr=peak, max_epochs=epochs, warmup_epochs=1.5)
        assert rates(phase, steps)[-1] == 0.0


def test_without_warm_up_it_starts_at_its_peak() -> None:
    phase = Phase(global_batch_size=4, peak_lr=0.12, max_epochs=2)
    assert phase.schedule(0.0) == 0.12
    assert rates(phase, 2) == pytest.approx([0.09, 0.06, 0.03, 0.0], abs=1e-15)


def test_a_horizon_after_the_last_epoch_leaves_the_rate_high() -> None:
    phase = Phase(
        global_batch_size=4, peak_lr=1.2, max_epochs=28, warmup_epochs=5.6, horizon_epochs=30
    )
    # 2 of the 24.4 epochs of descent are left.
    assert rates(phase, 1)[-1] == pytest.approx(1.2 * 2 / 24.4)


def test_a_horizon_before_the_last_epoch_holds_the_final_rate() -> None:
    phase = Phase(global_batch_size=4, peak_lr=1.0, max_epochs=5, horizon_epochs=2, final_lr=0.2)
    assert rates(phase, 1) == pytest.approx([0.6, 0.2, 0.2, 0.2, 0.2])


def test_the_paper_s_rate_where_phase_1_is_left() -> None:
    # Section 5.1: about epoch 108 of [0, 30, 150] -> [0, 1.2, 0]; 42 of 120 epochs are left.
    assert triangle(1.2, 30, 150)(108) == pytest.approx(1.2 * 42 / 120)


@pytest.mark.parametrize(
    "knots", [[], [(1.0, 0.1), (1.0, 0.2)], [(0.0, 0.0), (2.0, 1.0), (1.0, 0.0)]]
)
def test_knots_that_do_not_rise_are_refused(knots: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match=r"^a schedule.*, got [^\n]+$"):
        piecewise_linear(knots)


@pytest.mark.parametrize(
    ("peak", "final", "cycle_epochs", "steps_per_epoch"),
    [(0.05, 0.0, 2, 3), (0.05, 0.01, 3, 7), (1.2, 0.0, 10, 24), (0.05, 0.0, 20, 390)],
)
def test_cycles_are_izmailov_s_formula(
    peak: float, final: float, cycle_epochs: int, steps_per_epoch: int
) -> None:
    schedule, c = cyclic(peak, cycle_epochs, final), cycle_epochs * steps_per_epoch
    for i in range(1, 3 * c + 1):
        t = ((i - 1) % c + 1) / c
        epoch, step = divmod(i - 1, steps_per_epoch)
        # The position as the training loop makes it.
        rate = schedule(epoch + (step + 1) / steps_per_epoch)
        assert rate == pytest.approx((1 - t) * peak + t * final, abs=1e-12)
        if i % c == 0:
            assert rate == final


def test_cycles_by_hand() -> None:
    phase = Phase(global_batch_size=4, peak_lr=0.12, max_epochs=4, cycles=2)
    assert phase.cycle_epochs == 2
    assert rates(phase, 2) == pytest.approx([0.09, 0.06, 0.03, 0.0] * 2, abs=1e-15)
    assert phase.schedule(0.0) == 0.12


def test_one_cycle_is_phase_2_s_schedule() -> None:
    schedule, line = cyclic(0.12, 5, 0.02), triangle(0.12, 0, 5, 0.02)
    assert [schedule(i / 7) for i in range(36)] == pytest.approx([line(i / 7) for i in range(36)])


# Stages of a phase: their sums, their schedule, and what is refused.


SMALL = Stage(epochs=2, image_size=64, global_batch_size=16, first_lr=1.0, last_lr=2.0)
LARGE = Stage(epochs=3, image_size=96, global_batch_size=8, first_lr=0.5, last_lr=0.1)
PHASE = StagedPhase(stages=(SMALL, LARGE), gpus_per_model=4)


def test_a_phase_is_the_sum_of_its_stages() -> None:
    assert isinstance(PHASE, Phase)
    assert (PHASE.max_epochs, PHASE.global_batch_size, PHASE.peak_lr) == (5, 16, 2.0)
    assert PHASE.micro_batch_size == 4
    longer = replace(PHASE, stages=(SMALL, replace(LARGE, epochs=10)))
    assert longer.max_epochs == 12
    with pytest.raises(FrozenInstanceError):
        PHASE.max_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("epoch", "rate"),
    # An epoch of four updates: a stage's last update has its last rate, the next one starts anew.
    [(0.25, 1.125), (1.0, 1.5), (2.0, 2.0), (2.25, 0.5 - 0.4 / 12), (3.5, 0.3), (5.0, 0.1)],
)
def test_the_rate_is_one_straight_piece_a_stage(epoch: float, rate: float) -> None:
    assert PHASE.schedule(epoch) == pytest.approx(rate)


def test_the_peak_is_where_the_rate_begins_to_fall() -> None:
    assert (PHASE.peak_epoch, replace(PHASE, stages=(LARGE, SMALL)).peak_epoch) == (2, 5)
    falls = replace(SMALL, first_lr=2.0, last_lr=1.0)
    assert replace(PHASE, stages=(falls, LARGE)).peak_epoch == 0
    # Two stages meet at the peak, as ImageNet's first two do.
    assert replace(PHASE, stages=(SMALL, replace(LARGE, first_lr=2.0))).peak_epoch == 2


def test_after_the_last_piece_the_rate_stays() -> None:
    assert pieces([(2, 1.0, 0.5)])(7.0) == 0.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs: expected 1 or more, got 0"),
        ({"image_size": 32}, "image_size: expected 33 pixels or more, got 32"),
        ({"min_scale": 0.0}, "min_scale: expected a share above 0 and up to 1, got 0.0"),
        ({"min_scale": 1.5}, "min_scale: .* got 1.5"),
        ({"global_batch_size": 0}, "global_batch_size: expected 1 or more, got 0"),
        ({"first_lr": -1.0}, "first_lr: expected a finite number >= 0, got -1.0"),
        ({"last_lr": float("nan")}, "last_lr: expected a finite number >= 0, got nan"),
    ],
)
def test_a_bad_stage_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(SMALL, **changed)


def test_a_phase_without_stages_or_with_a_batch_that_replicas_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^stages: expected one or more, got none$"):
        replace(PHASE, stages=())
    odd = (SMALL, replace(LARGE, global_batch_size=6))
    with pytest.raises(
        ValueError,
        match=r"^stages\.1\.global_batch_size: expected a multiple of gpus_per_model = 4, got 6$",
    ):
        replace(PHASE, stages=odd)
