"""ResNet-9, the "fast-to-train custom ResNet 9" of the paper's Section 5.1."""

from torch import Tensor, nn


class Block(nn.Module):
    """3x3 convolution without bias -> batch norm -> ReLU, then optionally a max pool.

    The pool stands before the ReLU: a maximum and a ReLU commute exactly, in value and in
    gradient, and the ReLU then touches a quarter of the elements.
    """

    def __init__(self, in_channels: int, out_channels: int, *, pool: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H / pool, W / pool]."""
        return self.relu(self.pool(self.bn(self.conv(x))))


class Residual(nn.Module):
    """x + block(block(x)); nothing follows the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block1 = Block(channels, channels)
        self.block2 = Block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return x + self.block2(self.block1(x))


class ResNet9(nn.Module):
    """The DAWNBench net of the paper: 6,573,120 parameters at width 64 with 10 classes.

    Arguments:
        num_classes: 10 for CIFAR-10, 100 for CIFAR-100.
        width: channels of the first block; the paper's net has 64. The others are 2, 4 and 8
            times as wide.
        logit_scale: the fixed factor on the logits.
    """

    def __init__(
        self, num_classes: int = 10, width: int = 64, *, logit_scale: float = 0.125
    ) -> None:
        super().__init__()
        self.prep = Block(3, width)
        self.layer1 = nn.Sequential(Block(width, 2 * width, pool=2), Residual(2 * width))
        self.layer2 = Block(2 * width, 4 * width, pool=2)
        self.layer3 = nn.Sequential(Block(4 * width, 8 * width, pool=2), Residual(8 * width))
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(8 * width, num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.prep(images))))
        return self.linear(self.pool(x).flatten(1)) * self.logit_scale
