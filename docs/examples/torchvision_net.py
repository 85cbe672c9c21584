"""A torchvision net on images like CIFAR-10's, with an augmentation; bf16 where there is a GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import swap_fast
from swap_fast import Phase
from swap_fast.data.cifar.synthetic import generate_synthetic


def make_model(channels: int = 64) -> nn.Module:
    """ResNet-18 for 32x32 images: no stride and no pool at its start."""
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def flip(batch: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror each image with probability 1/2."""
    images, labels = batch
    draw = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.where(draw < 0.5, images.flip(3), images), labels


def main(
    train_images: int = 50_000, test_images: int = 10_000, batch: int = 128, epochs: int = 20
) -> swap_fast.SwapResult:
    """Train on images that are generated here; put your own tensors in their place."""
    data = generate_synthetic(train_images=train_images, test_images=test_images)
    train, test = (
        (
            torch.from_numpy(split.images).permute(0, 3, 1, 2) / 127.5 - 1,
            torch.from_numpy(split.labels).long(),
        )
        for split in (data.train, data.test)
    )
    return swap_fast.swap(
        make_model,
        train,
        test,
        workers=4,
        phase1=Phase(
            global_batch_size=4 * batch,
            peak_lr=4 * batch * 1.2 / 4096,
            warmup_epochs=epochs / 5,
            max_epochs=epochs,
            stopping_accuracy=0.98,
        ),
        augment=flip,
        precision="bf16" if torch.cuda.is_available() else "fp32",
    )


if __name__ == "__main__":
    main().save("swapped-resnet18")
