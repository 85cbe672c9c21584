"""ResNet-50 v1.5, held to torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from swap_fast.models.resnet50 import Bottleneck, ResNet50
from swap_fast.training.weights import Weights


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def with_random_statistics(model: nn.Module) -> nn.Module:
    """Batch norms away from their start, where the last of a block would hide the block."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def test_parameters_have_torchvisions_names_and_shapes() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):
        ours, theirs = ResNet50(), resnet50()
    assert num_parameters(ours) == 25_557_032
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes


@pytest.mark.parametrize("side", [64, 97])
def test_the_logits_are_torchvisions(side: int) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs = with_random_statistics(resnet50(num_classes=7)).eval()
    ours = ResNet50(num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_it_starts_as_the_recipe_says() -> None:
    torch.manual_seed(0)
    model = ResNet50(num_classes=100)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            assert not module.bn3.weight.any()
            assert (module.bn1.weight == 1).all()
            fan_out = module.conv2.weight[:, 0].numel()
            expected = math.sqrt(2 / fan_out)
            assert module.conv2.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.fc.weight.mean().abs().item() < 1e-4


def test_a_block_starts_as_the_identity() -> None:
    block = ResNet50(width=4).layer1[1]
    images = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(images), images)


def test_the_stride_is_on_the_3x3() -> None:
    first = ResNet50(width=4).layer2[0]
    assert (first.conv1.stride, first.conv2.stride, first.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def test_a_narrow_shallow_form_keeps_the_layout_and_fits_the_weight_vector() -> None:
    torch.manual_seed(0)
    model = ResNet50(num_classes=5, width=4, blocks=(1, 2, 1, 1))
    assert [len(model.layer1), len(model.layer2)] == [1, 2]
    assert model.fc.in_features == 4 * 32
    weights = Weights(model)
    assert weights.theta.numel() == num_parameters(model)
    model(torch.randn(3, 3, 40, 48)).square().sum().backward()
    assert weights.gradient.abs().sum() > 0
