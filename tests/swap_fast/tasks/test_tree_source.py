"""A run's image tree: one training decoder at a time, and phase 3's pass over one buffer."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from image_trees import write_tree
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Stage, StagedPhase, shapes
from swap_fast.data.cifar.batches import Batch
from swap_fast.data.imagenet.crops import Crops
from swap_fast.data.imagenet.scan import ImageTree, scan_tree
from swap_fast.data.imagenet.torchvision import TorchvisionLoader
from swap_fast.distributed import ALONE
from swap_fast.tasks import imagenet as tree_source
from swap_fast.tasks.imagenet import TreeSource
from swap_fast.training.batchnorm import BatchNormRecompute, recompute_statistics_
from swap_fast.training.weights import Weights


def stage(image_size: int, global_batch_size: int) -> Stage:
    return Stage(
        epochs=1,
        image_size=image_size,
        global_batch_size=global_batch_size,
        first_lr=0.1,
        last_lr=0.1,
    )


PHASE = StagedPhase(stages=(stage(40, 8), stage(48, 8), stage(48, 4)), gpus_per_model=4)
SMALL, MIDDLE, LAST = shapes(PHASE, 224)


class Recorded:
    """Stands where decoders are made: notes what is asked for, and which earlier ones live."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.alive_before: list[int] = []
        self._training: list[weakref.ref[Any]] = []

    def __call__(self, name: str, split: Any, *, centred: bool, threads: int, **others: Any) -> Any:
        assert threads == 3
        self.asked.append((split.folder.name, others["batch_size"]))
        decoder = TorchvisionLoader(split, threads=0, centred=centred, **others)
        if not centred:
            self.alive_before.append(sum(ref() is not None for ref in self._training))
            self._training.append(weakref.ref(decoder))
        return decoder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> ImageTree:
    return scan_tree(write_tree(tmp_path_factory.mktemp("tree"), train_images=8, test_images=2))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(tree_source, "make_decoder", recorded)
    return recorded


def net() -> Weights:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    return Weights(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)))


def opened(tree: ImageTree, weights: Weights) -> TreeSource:
    source = TreeSource(tree, loader="torchvision", threads=3)
    source.open_(weights, Execution(), seed=1)
    return source


def test_a_new_batch_size_gets_a_new_decoder_after_the_old_one_is_gone(
    tree: ImageTree, recorded: Recorded
) -> None:
    source = opened(tree, net())
    assert source.num_images == 24
    sizes = []
    for shape in (SMALL, MIDDLE, LAST, SMALL):
        into = Batch.empty(
            shape.global_batch_size, shape.image_size, Execution(), torch.device("cpu")
        )
        batches = source.batches(PHASE, shape, number=1, replicas=range(4), into=into)
        batches.start_epoch(0, 0)
        batches.load(0)
        sizes.append(shape.global_batch_size)
        del batches
    assert sizes == [8, 8, 4, 8]
    assert recorded.asked == [("val", 128), ("train", 8), ("train", 4), ("train", 8)]
    assert recorded.alive_before == [0, 0, 0]


def test_a_rank_decodes_its_replicas_share_alone(tree: ImageTree, recorded: Recorded) -> None:
    source = opened(tree, net())
    into = Batch.empty(2, SMALL.image_size, Execution(), torch.device("cpu"))
    batches = source.batches(PHASE, SMALL, number=1, replicas=range(2, 3), into=into)
    assert batches.steps_per_epoch == 3
    assert recorded.asked[1:] == [("train", 2)]


def test_all_stages_share_the_decoder_of_test_images(tree: ImageTree, recorded: Recorded) -> None:
    source = opened(tree, net())
    tested = [source.evaluator(shape)(ALONE) for shape in (SMALL, MIDDLE, LAST)]
    assert recorded.asked == [("val", 128)]
    assert all(accuracies.top5 == 1.0 for accuracies in tested)  # of three classes


def test_the_batch_norm_pass_fills_one_buffer_so_that_a_replay_serves_its_full_batches(
    tree: ImageTree, recorded: Recorded
) -> None:
    weights = net()
    source = opened(tree, weights)
    buffer = torch.empty(10, 3, 48, 48)
    recompute_batchnorm = BatchNormRecompute(weights)
    recompute_batchnorm.warm_up(buffer)
    replays, seen = [], []

    def replay() -> None:  # as a captured graph: it knows the buffer alone
        replays.append(1)
        recompute_batchnorm.add_buffer_no_sync()

    def watched(batches: Iterable[Tensor]) -> Iterable[Tensor]:
        for images in batches:
            assert images.data_ptr() == buffer.data_ptr()
            seen.append(images.clone())
            yield images

    recompute_batchnorm.replay = replay
    recompute_batchnorm(watched(source.batch_norm_batches(buffer, LAST, ALONE)))
    assert [len(images) for images in seen] == [10, 10, 4]  # all 24, once
    assert len(replays) == 2
    assert recorded.asked[1:] == [("train", 10)]
    alone = net()
    recompute_statistics_(alone, seen)
    torch.testing.assert_close(weights.statistics, alone.statistics)


def test_the_batch_norm_pass_crops_as_the_last_stage_does(
    tree: ImageTree, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Crops] = []
    start = TorchvisionLoader.start

    def note(self: TorchvisionLoader, batches: Iterable[Crops]) -> None:
        started.extend(batches := list(batches))
        start(self, batches)

    monkeypatch.setattr(TorchvisionLoader, "start", note)
    source = opened(tree, net())
    whole = StagedPhase(stages=(Stage(**{**vars(stage(48, 4)), "min_scale": 1.0}),))
    (shape,) = shapes(whole, 224)
    list(source.batch_norm_batches(torch.empty(12, 3, 48, 48), shape, ALONE))
    shown = sorted(int(i) for crops in started for i in crops.image)
    assert shown == list(range(24))
    for crops in started:
        areas = crops.window[:, 2] * crops.window[:, 3] / tree.train.sizes[crops.image].prod(1)
        assert areas.min() > 0.5  # the whole, as far as the crop's ratio allows
