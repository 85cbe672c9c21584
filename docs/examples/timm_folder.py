"""A timm net on your own folder of images: TREE/train/CLASS/*.jpg and TREE/val/CLASS/*.jpg."""

import sys
from functools import partial
from pathlib import Path

import timm
from timm.data import create_transform
from torchvision.datasets import ImageFolder

import swap_fast
from swap_fast import Phase


def main(
    tree: Path,
    net: str = "resnet50",
    *,
    pretrained: bool = True,
    side: int = 224,
    batch: int = 64,
    epochs: int = 10,
    loader_processes: int = 4,
) -> swap_fast.SwapResult:
    """Fine-tune a net on two workers, with timm's own augmentation."""
    train = ImageFolder(tree / "train", create_transform(side, is_training=True))
    val = ImageFolder(tree / "val", create_transform(side))
    make_model = partial(
        timm.create_model, net, pretrained=pretrained, num_classes=len(train.classes)
    )
    return swap_fast.swap(
        make_model,
        train,
        val,
        workers=2,
        phase1=Phase(
            global_batch_size=2 * batch,
            peak_lr=0.04,
            warmup_epochs=epochs / 5,
            max_epochs=epochs,
            stopping_accuracy=0.95,
        ),
        loader_processes=loader_processes,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1])).save("swapped-timm")
