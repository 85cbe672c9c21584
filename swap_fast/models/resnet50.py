"""ResNet-50 v1.5, the paper's ImageNet net: the stride of a block is on its 3x3 convolution.

Parameters and buffers have torchvision's names, so that a state dict of either loads into the
other.
"""

import torch
from torch import Tensor, nn

EXPANSION = 4  # a block's output channels over its inner ones


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with batch norm; the input is added to the result.

    Arguments:
        channels: of the 3x3 convolution; the block gives four times as many.
        stride: of the 3x3 convolution; where it or the channels change the shape, a 1x1
            convolution brings the input to that shape.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(
            channels, channels, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, 4 * channels, ceil(H / stride), ceil(W / stride)]."""
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        return self.relu(inner + self.downsample(x))


class ResNet50(nn.Module):
    """25,557,032 parameters at width 64 with 1,000 classes; any image from 33 px on a side.

    Initial values: convolutions from He's normal distribution over the fan-out, the classifier from
    N(0, 0.01), and 0 for the weight of each block's last batch norm, so that blocks start as the
    identity.

    Arguments:
        width: channels of the first convolution; the paper's net has 64. The four groups of
            blocks have 4, 8, 16 and 32 times as many.
        blocks: blocks in each group; (3, 4, 6, 3) makes ResNet-50, fewer a form for CPUs.
    """

    def __init__(
        self,
        num_classes: int = 1_000,
        width: int = 64,
        *,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = width
        groups = []
        for group, count in enumerate(blocks):
            members = []
            for block in range(count):
                stride = 2 if group > 0 and block == 0 else 1
                members.append(Bottleneck(channels, width << group, stride))
                channels = EXPANSION * (width << group)
            groups.append(nn.Sequential(*members))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise_()

    @torch.no_grad()
    def _initialise_(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                module.bn3.weight.zero_()
        self.fc.weight.normal_(0, 0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))
