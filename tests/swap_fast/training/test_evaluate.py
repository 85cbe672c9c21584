"""Test accuracy against a count by hand."""

from __future__ import annotations

import pytest
import torch
from small_trainer import MEAN, STD, SmallNet, make_split
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.distributed import Comm
from swap_fast.training.evaluate import Evaluator, count_right, image_evaluator
from swap_fast.training.weights import Weights

CPU = torch.device("cpu")
SPLIT = make_split(53, 4)


def evaluator(weights: Weights, split: Split, batch_size: int, pad: int = 0) -> Evaluator:
    images = DeviceImages(split, mean=MEAN, std=STD, device=CPU, pad=pad)
    return image_evaluator(weights, images, Execution(), batch_size=batch_size)


def normalised() -> Tensor:
    """The split's images as the net takes them: [53, 3, 32, 32]."""
    images = (torch.from_numpy(SPLIT.images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    return images.permute(0, 3, 1, 2)


def net() -> Weights:
    torch.manual_seed(0)
    weights = Weights(SmallNet())
    with torch.no_grad():
        for _ in range(40):  # so that the logits depend on the image
            weights.model(normalised())
        weights.model.get_parameter("linear.weight").mul_(10)
    return weights


@pytest.mark.parametrize("batch_size", [53, 20, 7, 500])
@pytest.mark.parametrize("pad", [0, 4])
def test_accuracy_is_counted_by_hand(batch_size: int, pad: int) -> None:
    weights = net()
    with torch.no_grad():
        logits = weights.model.eval()(normalised()).tolist()
    right = sum(
        row.index(max(row)) == label for row, label in zip(logits, SPLIT.labels, strict=True)
    )
    assert 0 < right < 53
    assert len({row.index(max(row)) for row in logits}) > 3
    assert evaluator(weights, SPLIT, batch_size, pad)().top1 == right / 53


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was(training: bool) -> None:
    weights = net()
    weights.model.train(training)
    before = weights.copy()
    evaluator(weights, SPLIT, 20)()
    assert all(m.training is training for m in weights.model.modules())
    assert all(torch.equal(a, b) for a, b in zip(weights.copy(), before, strict=True))


def test_an_ignored_class_is_not_right_where_it_is_said() -> None:
    says_0 = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    right, of = count_right(says_0, torch.tensor([0, 0, 1, 2]), ignored=0)
    assert (int(right), int(of)) == (0, 2)


class FirstPixel(nn.Module):
    """Says the class that the first pixel's red value is."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, 0, 0, 0] * STD[0] + MEAN[0]
        return nn.functional.one_hot(red.round().long(), 10).float()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_split(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each rank's own count, before the sum over ranks, adds up to the whole.
    images = SPLIT.images.copy()
    images[:, 0, 0, 0] = SPLIT.labels
    images[[3, 22, 52], 0, 0, 0] = (SPLIT.labels[[3, 22, 52]] + 1) % 10
    labelled = Split(images=images, labels=SPLIT.labels)
    check = evaluator(Weights(FirstPixel()), labelled, 10)
    sums: list[Tensor] = []
    monkeypatch.setattr(Comm, "all_reduce_", lambda self, tensor: sums.append(tensor) or tensor)
    for rank in range(world_size):
        check(Comm(rank=rank, world_size=world_size))
    assert torch.stack(sums).sum(0).tolist() == [50, 0, 53]
    assert check().top1 == 50 / 53


def test_mirrored_evaluation_is_a_second_value_of_the_mean_of_both_images() -> None:
    weights = net()
    images = DeviceImages(SPLIT, mean=MEAN, std=STD, device=CPU)
    pixels = normalised()
    with torch.no_grad():
        plain, mirrored = (weights.model.eval()(x) for x in (pixels, pixels.flip(-1)))
    both = ((plain + mirrored) / 2).argmax(1).numpy()
    assert (both != plain.argmax(1).numpy()).any()
    found = image_evaluator(weights, images, Execution(), mirrored=True, batch_size=20)()
    assert found.mirrored == (both == SPLIT.labels).mean()
    without = image_evaluator(weights, images, Execution(), batch_size=20)()
    assert (found.top1, found.top5) == (without.top1, None)
    assert without.mirrored is None
