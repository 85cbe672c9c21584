"""Top-1 and top-5 over a tree, counted by hand, and a net that learns from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import write_tree
from PIL import Image
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.batches import Batch
from swap_fast.data.imagenet.batches import DecoderName, TreeBatches, make_decoder
from swap_fast.data.imagenet.scan import IMAGENET_MEAN, IMAGENET_STD, ImageTree, scan_tree
from swap_fast.distributed import Comm
from swap_fast.models.resnet50 import ResNet50
from swap_fast.tasks.imagenet import tree_evaluator

CPU = torch.device("cpu")
PX = 40


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> ImageTree:
    root = tmp_path_factory.mktemp("tree")
    return scan_tree(write_tree(root, classes=7, train_images=1, test_images=5))


class ByColour(nn.Module):
    """Logits from an image's mean colour: different for each image, whatever its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 7)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return self.linear(images.mean((2, 3)))


def evaluator(tree: ImageTree, model: nn.Module, name: DecoderName, rectangular: bool):
    execution = Execution()
    loader = make_decoder(
        name,
        tree.test,
        batch_size=8,
        execution=execution,
        device=CPU,
        threads=int(name == "dali"),
        centred=True,
    )
    return tree_evaluator(
        model,
        tree.test,
        loader,
        execution,
        CPU,
        px=PX,
        rectangular=rectangular,
        batch_size=8,
    )


def counted_by_hand(tree: ImageTree, model: nn.Module) -> tuple[int, int]:
    """Top-1 and top-5 hits of square centre crops, image by image, by torchvision."""
    from torchvision.transforms import v2

    show = v2.Compose(
        [
            v2.Resize(int(1.14 * PX)),
            v2.CenterCrop(PX),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    hits = np.zeros(2, dtype=int)
    for index, label in enumerate(tree.test.labels):
        image = show(Image.open(tree.test.path(index)).convert("RGB"))
        order = model.eval()(image[None])[0].argsort(descending=True).tolist()
        hits += (order[0] == label, label in order[:5])
    return int(hits[0]), int(hits[1])


@pytest.mark.parametrize("name", ["dali", "torchvision"])
def test_accuracies_are_those_counted_by_hand(tree: ImageTree, name: DecoderName) -> None:
    torch.manual_seed(1)
    model = ByColour()
    top1, top5 = counted_by_hand(tree, model)
    assert 0 < top1 < top5 < 35
    model.train()
    assert evaluator(tree, model, name, False)()[:2] == (top1 / 35, top5 / 35)
    assert model.training


@pytest.mark.parametrize("rectangular", [False, True])
def test_ranks_share_the_images_out(
    tree: ImageTree, rectangular: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    evaluate = evaluator(tree, ByColour(), "dali", rectangular)
    whole = evaluate()[:2]
    sums: list[Tensor] = []
    monkeypatch.setattr(Comm, "all_reduce_", lambda self, tensor: sums.append(tensor) or tensor)
    for rank in (0, 1):
        evaluate(Comm(rank=rank, world_size=2))
    top1, top5, total = (sums[0] + sums[1]).tolist()
    assert (top1 / total, top5 / total, total) == (*whole, 35)


def test_with_fewer_than_five_classes_every_image_is_among_the_top_five(tmp_path: Path) -> None:
    small = scan_tree(write_tree(tmp_path, classes=2, train_images=1, test_images=2))

    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.new_tensor([0.0, 1.0]).expand(len(images), 2)

    assert evaluator(small, Constant(), "torchvision", True)()[:2] == (0.5, 1.0)


@pytest.mark.slow
def test_a_narrow_resnet50_learns_from_a_tree(tmp_path: Path) -> None:
    """Five classes of textures, under two minutes on two cores; chance is 20%."""
    torch.manual_seed(0)
    tree = scan_tree(write_tree(tmp_path, classes=5, train_images=80, test_images=20))
    execution = Execution()
    model = execution.place(ResNet50(5, width=8, blocks=(1, 1, 1, 1)), CPU)
    loader = make_decoder(
        "dali", tree.train, batch_size=32, execution=execution, device=CPU, threads=2
    )
    images, labels = batch = Batch.empty(32, 48, execution, CPU)
    batches = TreeBatches(
        tree.train,
        loader,
        px=48,
        min_scale=0.35,
        global_batch_size=32,
        num_replicas=1,
        replicas=range(1),
        seed=0,
        number=1,
        into=batch,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    epochs = 12
    for epoch in range(epochs):
        batches.start_epoch(0, epoch)
        for step in range(batches.steps_per_epoch):
            batches.load(step)
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - epoch / epochs)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    accuracy = evaluator(tree, model, "dali", True)()
    assert accuracy.top1 > 0.6
    assert accuracy.top5 == 1
