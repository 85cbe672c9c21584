"""Stages of a phase: their sums, their schedule, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from swap_fast.config.phase import Phase, Stage, StagedPhase, pieces

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
