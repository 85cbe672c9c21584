"""The training loop, given a step and batches that only note what is done to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from swap_fast.algorithm import stopped_by
from swap_fast.clock import Clock
from swap_fast.config.phase import Phase
from swap_fast.record import EpochRow
from swap_fast.training.loop import TrainStage, train_epochs
from swap_fast.training.state import Progress
from swap_fast.training.step import GradientNoise, Metrics


class Script:
    """A step and batches in one: accuracies and losses are given in advance, one an epoch."""

    steps_per_epoch = 3
    feed = None

    def __init__(
        self,
        accuracies: list[float],
        losses: list[float] | None = None,
        noises: list[GradientNoise | None] | None = None,
    ) -> None:
        count = len(accuracies)
        told = zip(losses or [1.0] * count, accuracies, noises or [None] * count, strict=True)
        self.metrics = [Metrics(*epoch) for epoch in told]
        self.events: list[Any] = []
        self.rates: list[float] = []
        self.seconds = 0.0

    def start_epoch(self, worker: int, epoch: int) -> None:
        self.events.append(("epoch", worker, epoch))

    def load(self, step: int) -> None:
        self.events.append(("load", step))

    num_images = 0

    def set_learning_rate(self, learning_rate: float) -> None:
        self.rates.append(learning_rate)

    def __call__(self) -> None:
        self.events.append("update")
        self.seconds += 2.0

    def read_metrics(self) -> Metrics:
        self.events.append("read")
        return self.metrics.pop(0)

    def run(
        self,
        phase: Phase,
        *,
        begin: Progress | None = None,
        stages: list[range] | None = None,
    ) -> tuple[str | None, list[EpochRow], Clock]:
        clock, rows, ends = Clock(now=lambda: self.seconds), [], []

        def after_epoch(row: EpochRow, stopped_by: str | None) -> None:
            self.seconds += 100.0  # an evaluation, off the clock
            self.events.append("after")
            rows.append(row)
            ends.append(stopped_by)

        epochs = train_epochs(
            [
                TrainStage(
                    epochs=epochs,
                    step=self,
                    open_batches=lambda: self.events.append("open") or self,
                )
                for epochs in stages or [range(phase.max_epochs)]
            ],
            phase,
            begin=begin or Progress(phase=1),
            clock=clock,
            on_step=lambda n: self.events.append(("on_step", n)),
        )
        for row, metrics in epochs:
            after_epoch(row, stopped_by(phase, row.epoch, metrics))
            if ends[-1]:
                break
        assert not any(ends[:-1])  # nothing follows the end
        return ends[-1] if ends else None, rows, clock


def phase(max_epochs: int, tau: float | None = None) -> Phase:
    return Phase(global_batch_size=4, peak_lr=0.6, max_epochs=max_epochs, stopping_accuracy=tau)


def test_it_ends_after_the_last_epoch() -> None:
    script = Script([0.1, 0.2, 0.3])
    ended_by, rows, _ = script.run(phase(3))
    assert ended_by == "max_epochs"
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert script.metrics == []


def test_it_ends_at_the_first_epoch_above_tau() -> None:
    ended_by, rows, _ = Script([0.5, 0.97, 0.99, 0.4, 0.4]).run(phase(5, 0.98))
    assert ended_by == "stopping_accuracy"
    assert [row.train_accuracy for row in rows] == [0.5, 0.97, 0.99]


def test_at_tau_it_goes_on() -> None:
    # Algorithm 1, line 8: while the training accuracy is at most tau.
    ended_by, rows, _ = Script([0.75, 0.75, 0.7500001]).run(phase(9, 0.75))
    assert ended_by == "stopping_accuracy"
    assert len(rows) == 3


def test_above_tau_in_the_last_epoch() -> None:
    assert Script([0.1, 0.9]).run(phase(2, 0.8))[0] == "stopping_accuracy"
    assert Script([0.1, 0.8]).run(phase(2, 0.8))[0] == "max_epochs"


def test_without_tau_it_never_ends_early() -> None:
    assert Script([1.0, 1.0]).run(phase(2))[0] == "max_epochs"


def noise(scale: float) -> GradientNoise:
    """Of batches of 4 images."""
    return GradientNoise(squared_norm=0.5, variance=0.5 * scale, global_batch_size=4)


def auto(max_epochs: int, **others: float) -> Phase:
    return replace(phase(max_epochs), stop="auto", gpus_per_model=2, **others)


def test_it_ends_at_the_first_epoch_of_more_noise_than_so_many_batches() -> None:
    noises = [noise(scale) for scale in (3.0, 11.0, 12.0, 12.1, 5.0)]
    script = Script([0.1] * 5, noises=noises)
    ended_by, rows, _ = script.run(auto(5, stopping_noise_ratio=3.0))
    assert ended_by == "noise_scale"
    assert [row.noise_scale for row in rows] == [3.0, 11.0, 12.0, 12.1]  # at 3 x 4 it goes on


def test_noise_does_not_count_before_the_peak_of_the_learning_rate() -> None:
    for warmup_epochs, epochs in ((0.0, 1), (1.0, 2), (1.5, 3)):
        script = Script([0.1] * 4, noises=[noise(1000.0)] * 4)
        ended_by, rows, _ = script.run(auto(4, warmup_epochs=warmup_epochs))
        assert (ended_by, len(rows)) == ("noise_scale", epochs)


def test_where_noise_hides_the_gradient_it_ends() -> None:
    lost = GradientNoise(squared_norm=-0.1, variance=2.0, global_batch_size=4)
    ended_by, rows, _ = Script([0.1] * 3, noises=[noise(1.0), lost, lost]).run(auto(3))
    assert ended_by == "noise_scale"
    assert [row.noise_scale for row in rows] == [1.0, None]


def test_without_a_finite_update_nothing_ends_it() -> None:
    assert Script([0.1, 0.1], noises=[None, None]).run(auto(2))[0] == "max_epochs"


def test_every_step_loads_sets_its_rate_and_updates() -> None:
    script = Script([0.1, 0.2])
    script.run(phase(2), begin=Progress(phase=2, worker=5))
    steps = [event for i in range(3) for event in (("load", i), "update", ("on_step", 0))]
    assert script.events == [
        "open",
        *[("epoch", 5, 0), *steps, "read", "after"],
        *[("epoch", 5, 1), *steps, "read", "after"],
    ]
    # From 0.6 to 0 in six steps counted from 1.
    assert script.rates == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-15)


def test_stretches_follow_one_another_and_epochs_are_counted_on() -> None:
    script = Script([0.1, 0.2, 0.3, 0.9])
    ended_by, rows, _ = script.run(phase(5, 0.8), stages=[range(1), range(1, 3), range(3, 5)])
    assert ended_by == "stopping_accuracy"
    assert [row.epoch for row in rows] == [1, 2, 3, 4]
    opened = [event for event in script.events if event == "open" or event[0] == "epoch"]
    assert opened == [
        *["open", ("epoch", 0, 0)],
        *["open", ("epoch", 0, 1), ("epoch", 0, 2)],
        *["open", ("epoch", 0, 3)],
    ]
    assert script.rates == pytest.approx([0.6 - 0.04 * i for i in range(1, 13)])


def test_it_goes_on_after_the_epochs_that_are_done() -> None:
    script = Script([0.1, 0.9])
    ended_by, rows, _ = script.run(
        phase(5, 0.8),
        begin=Progress(phase=1, epoch=2),
        stages=[range(2), range(2, 3), range(3, 5)],
    )
    assert ended_by == "stopping_accuracy"
    assert [row.epoch for row in rows] == [3, 4]
    opened = [event for event in script.events if event == "open" or event[0] == "epoch"]
    assert opened == ["open", ("epoch", 0, 2), "open", ("epoch", 0, 3)]
    assert script.rates == pytest.approx([0.6 - 0.04 * i for i in range(7, 13)])


def test_rows_say_what_happened() -> None:
    _, rows, clock = Script([0.25, 0.5], [2.0, 1.5]).run(
        phase(2), begin=Progress(phase=2, worker=3)
    )
    assert rows[0] == EpochRow(
        phase=2,
        worker=3,
        epoch=1,
        learning_rate=pytest.approx(0.3),
        train_loss=2.0,
        train_accuracy=0.25,
        time_s=6.0,
    )
    assert (rows[1].epoch, rows[1].train_loss, rows[1].time_s) == (2, 1.5, 12.0)
    assert clock.laps == {"phase2": 12.0}  # three updates of 2 s twice; what came between is out


def skipping(*scales: float) -> Script:
    """Epochs without an update: the loss scale that each ends with."""
    script = Script([0.1] * len(scales))
    script.metrics = [
        metrics._replace(skipped_updates=3, loss_scale=scale)
        for metrics, scale in zip(script.metrics, scales, strict=True)
    ]
    return script


@pytest.mark.parametrize(("scales", "epoch"), [((64.0, 8.0, 1.0), 3), ((4.0, 0.5, 0.25), 2)])
def test_fp16_that_overflows_for_ever_stops_the_run(scales: Any, epoch: int) -> None:
    script = skipping(*scales)
    expected = (
        rf"^phase 1, worker 0, epoch {epoch} .*: 3 of 3 updates were skipped, since .*; lower"
    )
    with pytest.raises(FloatingPointError, match=expected):
        script.run(phase(3))
    assert script.events.count("after") == epoch - 1


def test_rows_count_the_skipped_updates() -> None:
    script = skipping(64.0, 8.0)
    script.metrics[1] = script.metrics[1]._replace(skipped_updates=2)
    _, rows, _ = script.run(phase(2))
    assert [row.skipped_updates for row in rows] == [3, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(bad: float) -> None:
    script = Script([0.1, 0.9, 0.9], [2.0, bad, 1.0])
    with pytest.raises(FloatingPointError) as stopped:
        script.run(phase(3, 0.5), begin=Progress(phase=2, worker=4))
    message = str(stopped.value)
    at = "phase 2, worker 4, epoch 2 (updates 4 to 6)"
    assert message.startswith(f"{at}: the loss is {bad}, expected a finite one; lower the learning")
    peak = f"(now {script.rates[-1]:g}, the phase's peak 0.6)"
    assert message.endswith(f"{peak}, or look for NaN in the data")
    assert "\n" not in message
    assert script.events.count("after") == 1
