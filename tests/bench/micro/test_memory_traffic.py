"""What a step costs by count: hand counts of the paper's net, and of a net of three layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.micro.peak import step_bytes, step_cost, step_flop
from swap_fast.models import ResNet9
from swap_fast.models.resnet9 import Block, Residual

# Output places, input channels and output channels of ResNet-9's convolutions, 3x3 each.
CONVOLUTIONS = [
    (32 * 32, 3, 64),
    (32 * 32, 64, 128),
    (16 * 16, 128, 128),
    (16 * 16, 128, 128),
    (16 * 16, 128, 256),
    (8 * 8, 256, 512),
    (4 * 4, 512, 512),
    (4 * 4, 512, 512),
]


def test_the_papers_net_by_hand() -> None:
    macs = sum(9 * places * i * o for places, i, o in CONVOLUTIONS) + 512 * 10
    assert macs == 379_261_952
    with torch.device("meta"):
        forward, both = step_flop(ResNet9(), torch.empty(2, 3, 32, 32))
    assert forward == 2 * 2 * macs
    # Backward twice the forward's, but for the images' own gradient.
    assert both == 2 * 2 * (3 * macs - 9 * 1024 * 3 * 64)
    assert both / 2 == pytest.approx(2.272e9, rel=1e-4)


def test_the_count_is_per_image_and_computes_nothing() -> None:
    cost = step_cost(ResNet9(), 64)
    assert cost.flop == 2_272_032_768
    assert step_cost(ResNet9(), 256).flop == cost.flop
    # The update of the weights is shared out over more images.
    assert step_cost(ResNet9(), 256).bytes < cost.bytes


def test_bytes_of_three_layers_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
    )
    images = torch.zeros(2, 3, 8, 8)
    x, y, w = 2 * 3 * 64, 2 * 4 * 64, 3 * 4 * 9
    convolution = (x + y) + (y + x)  # forward; backward w's gradient alone, of the first layer
    norm, relu = 3 * y + 5 * y, 2 * y + 3 * y
    update = 9 * (w + 8) * 4
    assert step_bytes(net, images) == (convolution + norm + relu + 2 * w) * 4 + update
    narrow = (convolution + norm + relu + 2 * w) * 2 + update + (w + 8) * 6
    assert step_bytes(net, images, activation_bytes=2) == narrow


def test_bytes_of_a_pooled_block_by_hand() -> None:
    net = nn.Sequential(Block(3, 4, pool=2), Block(4, 4))
    images = torch.zeros(1, 3, 8, 8)
    x, between, y = 3 * 64, 4 * 64, 4 * 16
    weights = 4 * 3 * 9 + 4 * 4 * 9
    first = 2 * (x + between) + 8 * between + 2 * (between + y) + 5 * y
    second = 3 * (y + y) + 8 * y + 5 * y
    reads = 2 * 4 * 3 * 9 + 3 * 4 * 4 * 9
    update = 9 * (weights + 16) * 4
    expected = (first + second + reads) * 4 + 2 * y * 8 + update
    assert step_bytes(net, images) == expected
    # Fused: moments, then values; their sums, then the gradient. Pool and ReLU are in the latter.
    first = 2 * (x + between) + (2 * between + y) + (between + y) + (2 * between + y)
    second = 3 * (y + y) + 8 * y
    assert step_bytes(net, images, fused=True) == (first + second + reads) * 4 + update


def test_a_residual_sum_is_read_twice_and_written_once_each_way() -> None:
    images = torch.zeros(1, 4, 8, 8)
    net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), Residual(4))
    blocks = nn.Sequential(net[0], net[1].block1, net[1].block2)
    one = 4 * 64 * 4
    assert step_bytes(net, images) - step_bytes(blocks, images) == 6 * one
    fused = [step_bytes(each, images, fused=True) for each in (net, blocks)]
    assert fused[0] - fused[1] == 4 * one


def test_hooks_are_gone_after_a_failed_pass() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))
    with pytest.raises(RuntimeError):
        step_bytes(net, torch.zeros(1, 5, 8, 8))
    assert not net[0]._forward_hooks
