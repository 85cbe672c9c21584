"""SpeedNet against its size by hand and torch's functions; its fixed filters and first weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swap_fast.models import SpeedNet, WhitenedResNet9, whitening_filters


def images_of(count: int) -> Tensor:
    """Smooth random images: neighbours are correlated, in space and among colours."""
    drawn = torch.randn(count, 3, 34, 34, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(drawn, 3, stride=1)
    return smooth + 0.5 * smooth.mean(1, keepdim=True)


def speed_net(width: int = 4, num_classes: int = 10) -> SpeedNet:
    torch.manual_seed(1)
    return SpeedNet(num_classes, width, whitening_filters(images_of(50), 2, 5e-4))


@pytest.mark.parametrize(("num_classes", "head"), [(10, 2_560), (100, 25_600)])
def test_parameters(num_classes: int, head: int) -> None:
    net = speed_net(64, num_classes)
    channels = [24, 64, 64, 256, 256, 256, 256]
    filters = sum(9 * i * o for i, o in pairwise(channels))
    norms = sum(channels[1:])
    fixed, trained = 24 * 12 + norms, 24 + filters + norms + head
    assert sum(p.numel() for p in net.parameters()) == fixed + trained
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained
    assert num_classes != 10 or fixed + trained == 1_972_792


@pytest.mark.parametrize("side", [2, 3])
def test_filters_make_the_values_of_patches_uncorrelated(side: int) -> None:
    images = images_of(200)
    filters = whitening_filters(images, side, 5e-4)
    responses = F.conv2d(images, filters).permute(1, 0, 2, 3).flatten(1).double()
    moments = responses @ responses.T / (responses.shape[1] - 1)
    off = moments - moments.diag().diag()
    assert off.abs().max() < 1e-3
    # An eigenvalue e gives e / (e + epsilon): 1 but for the smallest ones.
    patches = F.unfold(images, side).transpose(0, 1).flatten(1).double()
    values = torch.linalg.eigvalsh(patches @ patches.T / (patches.shape[1] - 1)).flip(0)
    torch.testing.assert_close(moments.diag(), values / (values + 5e-4), rtol=1e-3, atol=1e-3)


def reference(net: SpeedNet, images: Tensor) -> Tensor:
    """In torch's functions, in training mode."""
    state = dict(net.named_parameters())
    x = F.conv2d(images, state["whiten.weight"], state["whiten.bias"])
    assert x.shape[1:] == (24, 31, 31)
    x = F.gelu(x)
    for group in (1, 2, 3):
        for conv, norm in ((0, 2), (4, 5)):
            x = F.conv2d(x, state[f"groups.{group}.{conv}.weight"], padding=1)
            x = F.max_pool2d(x, 2) if conv == 0 else x
            x = F.batch_norm(
                x, None, None, bias=state[f"groups.{group}.{norm}.bias"], training=True
            )
            x = F.gelu(x)
    x = F.max_pool2d(x, 3)
    assert x.shape[2:] == (1, 1)
    return x.flatten(1) @ state["head.weight"].T / state["head.weight"].shape[1]


def test_logits_and_gradients_are_those_of_torch_s_functions() -> None:
    net, images = speed_net().double(), images_of(8).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    trained = [p for p in net.parameters() if p.requires_grad]
    ours, theirs = net(images), reference(net, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # theirs: epsilon 1e-5
    for pair in zip(
        *(torch.autograd.grad(y.square().sum(), trained) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(*pair, rtol=1e-2, atol=1e-3)


def test_the_whitening_is_fixed_and_has_each_filter_and_its_negative() -> None:
    net = speed_net()
    weight, bias = net.whiten.weight, net.whiten.bias
    assert torch.equal(weight[:12], -weight[12:])
    assert bias is not None
    assert (weight.requires_grad, bias.requires_grad) == (False, True)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(n.weight.requires_grad, n.bias.requires_grad) for n in norms} == {(False, True)}
    assert {(n.momentum, n.eps) for n in norms} == {(0.4, 1e-12)}


def test_convolutions_start_with_an_identity_part() -> None:
    net, x = speed_net(64), torch.randn(2, 64, 5, 5)
    convolutions = [m for m in net.groups.modules() if isinstance(m, nn.Conv2d)]
    assert torch.equal(convolutions[1](x), F.conv2d(x, convolutions[1].weight, padding=1))
    torch.testing.assert_close(convolutions[1](x), x)
    torch.testing.assert_close(convolutions[2](x)[:, :64], x)
    rest = convolutions[2].weight[64:]
    bound = (9 * 64) ** -0.5  # torch's default: uniform within 1 / sqrt(fan-in)
    assert 0.9 * bound < rest.abs().max() <= bound
    assert net.head.weight.std().item() == pytest.approx(1.0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near_at_full_width(precision: torch.dtype) -> None:
    # Batch norm's epsilon of 1e-12 is below half precision's smallest number: it stays in fp32.
    net, images = speed_net(64), images_of(16)
    images[:4] = images[:1, :, :1, :1]  # of one colour
    whole = net(images)
    with torch.autocast("cpu", precision):
        half = net(images)
        (half.float().logsumexp(1).mean() * 1024).backward()
    torch.testing.assert_close(half.float(), whole, rtol=0.1, atol=0.1)
    for name, parameter in net.named_parameters():
        assert not parameter.requires_grad or torch.isfinite(parameter.grad).all(), name


def test_the_authors_net_has_the_same_first_layer_of_3x3() -> None:
    filters = whitening_filters(images_of(20))
    net = WhitenedResNet9(10, 2, filters, num_groups=1)
    assert torch.equal(net.whiten.weight, filters)
    assert not net.whiten.weight.requires_grad
    assert net(images_of(2)).shape == (2, 10)
