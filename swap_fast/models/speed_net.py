"""The net of the public CIFAR-10 speed runs (Keller Jordan's airbench), for SWAP.

It is whitened like the authors' later ResNet-9, but has no residual branches: each 3x3 convolution
starts with an identity part instead.
"""

import torch
from torch import Tensor, nn

from swap_fast.models.layers import Convolution, fixed_convolution

FILTER_SIDE = 2
EPSILON = 5e-4  # added to the eigenvalues of the whitening filters


def _convolution(inputs: int, outputs: int) -> Convolution:
    """3x3 without bias; its first `inputs` output channels start as those of the input."""
    convolution = Convolution(inputs, outputs)
    nn.init.dirac_(convolution.weight.data[:inputs])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm whose weight is fixed at 1; its running statistics follow within some batches."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def _group(inputs: int, outputs: int) -> nn.Sequential:
    """Map [B, inputs, H, W] to [B, outputs, H / 2, W / 2]."""
    return nn.Sequential(
        _convolution(inputs, outputs),
        nn.MaxPool2d(2),
        _norm(outputs),
        nn.GELU(),
        _convolution(outputs, outputs),
        _norm(outputs),
        nn.GELU(),
    )


class SpeedNet(nn.Module):
    """A whitening convolution and three groups of two: 1,972,792 parameters at width 64.

    Arguments:
        num_classes: 10 for CIFAR-10, 100 for CIFAR-100.
        width: channels of the first group; the full net has 64. The others have 4 times as many.
        filters: [12, 3, 2, 2], from `whitening_filters(images, 2, 5e-4)`; fixed. The convolution
            has them and their negatives, and a trained bias.
    """

    def __init__(self, num_classes: int, width: int, filters: Tensor) -> None:
        super().__init__()
        self.whiten = fixed_convolution(torch.cat([filters, -filters]), bias=True)
        wide = 4 * width
        self.groups = nn.Sequential(
            nn.GELU(),
            _group(2 * len(filters), width),
            _group(width, wide),
            _group(wide, wide),
            nn.MaxPool2d(3),
        )
        self.head = nn.Linear(wide, num_classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.std())

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, num_classes]."""
        features = self.groups(self.whiten(images)).flatten(1)
        return self.head(features) / features.shape[1]
