"""How a run's parts are put together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_trainer import SGD, SWAP, SmallNet, make_dataset, small_trainer, with_phases

from swap_fast.algorithm import swap
from swap_fast.clock import Clock
from swap_fast.config.execution import Execution
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.augment import plan_epoch
from swap_fast.distributed import Comm
from swap_fast.training.step import Step


def test_the_weights_are_those_of_the_seed() -> None:
    parts = small_trainer(seed=11)
    torch.manual_seed(11)
    expected = SmallNet()
    for name, tensor in expected.state_dict().items():
        if "tracked" not in name:
            assert torch.equal(parts.weights.model.state_dict()[name], tensor), name
    assert not torch.equal(small_trainer(seed=12).weights.theta, parts.weights.theta)


def test_a_run_starts_from_no_history() -> None:
    parts = small_trainer()
    assert (parts.optimizer.velocity == 0).all()
    mean, variance = parts.weights.statistics.chunk(2)
    assert (mean == 0).all()
    assert (variance == 1).all()


def test_the_laps_before_training() -> None:
    clock = Clock()
    small_trainer(clock=clock)
    assert list(clock.laps) == ["model_init", "kernel_warmup", "data_preparation"]


@pytest.mark.parametrize("recipe", [SWAP, SGD])
def test_more_ranks_than_replicas_are_refused(recipe: object) -> None:
    with pytest.raises(ValueError, match=r"^recipe small: expected 1 to 2 processes, .*, got 3$"):
        small_trainer(recipe, comm=Comm(rank=0, world_size=3))  # type: ignore[arg-type]


def test_too_little_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^phase 1: expected at least one batch of 16 images, got"
    ):
        small_trainer(dataset=make_dataset(train_images=15))
    with pytest.raises(
        ValueError, match=r"^phase 2: expected at least one batch of 32 images, got"
    ):
        small_trainer(with_phases(phase2={"global_batch_size": 32}), dataset=make_dataset(20))


def test_train_images_takes_the_first() -> None:
    dataset = make_dataset()
    recipe = with_phases()
    recipe = type(recipe)(**{**vars(recipe), "train_images": 17})
    parts = small_trainer(recipe, dataset=dataset)
    assert [s.open_batches().steps_per_epoch for p in parts.phases for s in p.stages] == [1, 2]
    stage = parts.phases[0].stages[0]
    step, batches = stage.step, stage.open_batches()
    batches.start_epoch(0, 0)
    batches.load(0)
    order = plan_epoch(17, recipe.augmentation, seed=3, phase=1, worker=0, epoch=0).order
    assert step.labels.tolist() == dataset.train.labels[order[:16]].tolist()


def test_the_batch_norm_pass_shows_every_training_image_once() -> None:
    dataset = make_dataset()
    recipe = type(SWAP)(**{**vars(SWAP), "batch_norm_augmented": False})
    parts = small_trainer(recipe, dataset=dataset)
    for _ in range(2):  # each call is a pass of its own
        batches = [batch.clone() for batch in parts.batch_norm_batches()]
        assert [len(batch) for batch in batches] == [20, 20, 4]
        pixels = torch.cat(batches).permute(0, 2, 3, 1).double().numpy()
        pixels = pixels * np.array(dataset.std) + np.array(dataset.mean)
        np.testing.assert_allclose(pixels, dataset.train.images, atol=1e-4)


def test_phase_2_runs_alone_with_its_own_batch() -> None:
    parts = small_trainer()
    assert [p.stages[0].step.images.shape[0] for p in parts.phases] == [16, 8]
    assert len(small_trainer(SGD).phases) == 1
    assert math.isfinite(parts.clock.reading())


def test_steps_are_warm_before_dali_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is captured must not meet the threads of a pipeline: see `data/cifar/dali.py`.
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from swap_fast.data.cifar import dali as dali_cifar

    events: list[str] = []
    warm_up, start = Step.warm_up, dali_cifar.DaliImages.start

    def noted_warm_up(self: Step, **options: object) -> None:
        warm_up(self, **options)  # type: ignore[arg-type]
        events.append("warm")

    def noted_start(*arguments: object) -> None:
        start(*arguments)  # type: ignore[arg-type]
        events.append("pipeline")

    monkeypatch.setattr(Step, "warm_up", noted_warm_up)
    monkeypatch.setattr(dali_cifar.DaliImages, "start", noted_start)
    parts = small_trainer(execution=Execution(loader="dali"))
    assert events == ["warm", "warm"]
    swap(SWAP, parts)
    # One pipeline for phase 1, and one for each worker of phase 2.
    assert events == ["warm", "warm", *["pipeline"] * (1 + SWAP.num_workers)]


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_a_run_does_not_depend_on_what_loads_its_batches(loader: LoaderName) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    thetas = []
    for name in ("tensor", loader):
        parts = small_trainer(execution=Execution(loader=name))
        result = swap(SWAP, parts)
        thetas.append(torch.stack([worker.theta for worker in result.workers]))
    # They normalise in another order of operations: the last digit of a pixel differs.
    torch.testing.assert_close(*thetas, rtol=0, atol=1e-4)
