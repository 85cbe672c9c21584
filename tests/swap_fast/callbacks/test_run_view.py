"""What events say of a run, by hand-counted images and seconds."""

from __future__ import annotations

import pytest
from event_factory import PLAN, at, began, done, epoch, phase_end, progress, training
from small_trainer import SGD, SWAP

from swap_fast.callbacks.progress import RunView, images_until, num_epochs, plan_of
from swap_fast.recipes.imagenet import imagenet_swap


def seen(*events: dict) -> RunView:
    view = RunView()
    for event in events:
        view(event)
    return view


PHASE1 = [began(), training(10, 1), epoch(20, 1, 0, 1), phase_end(20, 1, 0, 1, "stopping_accuracy")]


def test_a_plan_counts_whole_updates() -> None:
    # 44 images: 2 updates of 16, and 5 of 8.
    assert plan_of(SWAP, 44) == {
        "workers": 2,
        "phases": [
            {"epochs": [[2, 2, 16]], "replicas": 2, "may_end_early": False},
            {"epochs": [[2, 5, 8]], "replicas": 1, "may_end_early": False},
        ],
    }
    assert plan_of(SGD, 44)["workers"] == 0
    assert len(plan_of(SGD, 44)["phases"]) == 1


def test_a_phase_in_stages_has_their_batches() -> None:
    phase = plan_of(imagenet_swap(), 1_281_167)["phases"][0]
    stages = imagenet_swap().phase1.stages
    assert num_epochs(phase) == sum(stage.epochs for stage in stages)
    images = [1_281_167 // s.global_batch_size * s.global_batch_size * s.epochs for s in stages]
    assert images_until(phase, num_epochs(phase)) == sum(images)
    assert images_until(phase, stages[0].epochs) == images[0]
    second = stages[1].global_batch_size
    assert images_until(phase, stages[0].epochs, 3) == images[0] + 3 * second


@pytest.mark.parametrize(
    ("epoch_", "step", "images"), [(0, 0, 0), (0, 4, 400), (2, 1, 2100), (3, 0, 3000)]
)
def test_images_are_counted_update_by_update(epoch_: int, step: int, images: int) -> None:
    assert images_until(PLAN["phases"][0], epoch_, step) == images


def test_phase_1_takes_at_most_what_its_pace_says() -> None:
    view = seen(began(), training(10, 1), progress(20, 1, 0, 0, 5))
    model = view.models[1, 0]
    assert view.images(model) == (500, 3000)
    assert model.pace == 50.0
    # 2,500 images at 50 a second; then 2 workers of 2,000 images at the same pace.
    assert view.seconds_to_go(model) == 50.0
    assert view.all_seconds_to_go() == 50.0 + 80.0
    assert view.is_at_most


def test_phase_1_that_ends_early_is_whole_and_phase_2_has_its_own_pace() -> None:
    view = seen(*PHASE1, training(20, 2, 0), training(20, 2, 1))
    assert view.images(view.models[1, 0]) == (1000, 1000)
    assert not view.is_at_most
    assert view.all_seconds_to_go() is None
    view(progress(30, 2, 0, 0, 20))  # 500 images in 10 s
    assert view.all_seconds_to_go() is None
    view(progress(30, 2, 1, 0, 8))  # 200 in 10 s: it is the last to end
    assert view.seconds_to_go(view.models[2, 1]) == 1800 / 20
    assert view.all_seconds_to_go() == 90.0


def test_workers_that_wait_are_shared_out() -> None:
    view = seen(*[{**event, "world_size": 1} for event in PHASE1], training(20, 2, 0))
    view(epoch(30, 2, 0, 1))
    assert view.all_seconds_to_go() == (1000 + 2000) / 100


def test_a_resumed_run_stands_where_it_was_saved() -> None:
    view = seen(began(), training(10, 1), epoch(20, 1, 0, 1), progress(25, 1, 0, 1, 9))
    view(began(100))
    assert view.models[1, 0].state == "waiting"
    view(training(110, 1, epoch=1, restored=True, test_accuracy=0.25))
    model = view.models[1, 0]
    assert view.images(model) == (1000, 3000)
    assert (model.state, model.pace, model.test_accuracy) == ("running", None, 0.25)
    view(progress(120, 1, 0, 1, 5))
    assert model.pace == 50.0  # of this process alone


def test_a_phase_1_that_was_done_before_is_done() -> None:
    view = seen(began(), training(1, 1, epoch=2, stopped_by="stopping_accuracy", restored=True))
    assert view.models[1, 0].state == "ended"
    assert view.images(view.models[1, 0]) == (2000, 2000)


def test_the_end_is_done_or_the_last_failure() -> None:
    failed = at(30, "failed", error="RuntimeError: no")
    view = seen(*PHASE1, training(20, 2, 0), failed)
    assert view.ending == failed
    assert view.models[2, 0].state == "waiting"
    view(began(40))
    assert view.ending is None
    last = done(50)
    view(last)
    assert view.ending == last


def test_a_part_that_ends_well_is_no_end_of_the_run() -> None:
    view = seen(*PHASE1, at(21, "part_done"))
    assert view.ending is None
    view({**began(30), "part": "worker1"})
    view({**training(31, 2, 1), "part": "worker1"})
    view(at(32, "failed", part="worker1", error="no"))
    assert view.models[2, 1].state == "waiting"
    assert view.ending is not None
    assert view.parts["run"] == at(21, "part_done")
