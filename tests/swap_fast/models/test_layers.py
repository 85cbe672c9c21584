"""The 3x3 convolution against torch's own, in float64, and laid side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from swap_fast.models.layers import Convolution, side_by_side


@pytest.mark.parametrize(("batch", "side"), [(6, 3), (7, 8), (37, 4)])
def test_the_gradients_of_wide_maps_are_those_of_torch(batch: int, side: int) -> None:
    torch.manual_seed(0)
    ours = Convolution(8, 16)
    # Values that bfloat16 has exactly, so that only the results are rounded.
    images = torch.randn(batch, 8, side, side).bfloat16().requires_grad_()
    by_output = torch.randn(batch, 16, side, side).bfloat16()
    with torch.no_grad():
        ours.weight.copy_(ours.weight.bfloat16())
    exact = nn.Conv2d(8, 16, 3, padding=1, bias=False).double()
    exact.load_state_dict(ours.state_dict())
    same = images.detach().double().requires_grad_()
    exact(same).backward(by_output.double())

    with torch.autocast("cpu", torch.bfloat16):
        out = ours(images)
    assert out.dtype == torch.bfloat16
    assert "WideGradient" in type(out.grad_fn).__name__
    out.backward(by_output)

    for got, expected in ((images.grad, same.grad), (ours.weight.grad, exact.weight.grad)):
        assert got is not None
        assert expected is not None
        largest = expected.abs().max().item()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.01 * largest)


def test_other_maps_and_types_go_torch_s_way() -> None:
    net = Convolution(2, 3)
    assert "WideGradient" not in type(net(torch.zeros(2, 2, 4, 4)).grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert "WideGradient" not in type(net(torch.zeros(2, 2, 16, 16)).grad_fn).__name__
        with torch.no_grad():
            assert net(torch.zeros(2, 2, 4, 4)).grad_fn is None


def test_maps_stand_side_by_side_with_zeros_between() -> None:
    maps = torch.arange(1.0, 17.0).view(4, 1, 2, 2)
    (rows,) = side_by_side(maps)[:, 0]
    assert rows.tolist() == [
        [1, 2, 0, 5, 6, 0, 9, 10, 0, 13, 14, 0],
        [3, 4, 0, 7, 8, 0, 11, 12, 0, 15, 16, 0],
    ]
    # 33 has no divisor from 12 to 32.
    assert side_by_side(torch.zeros(33, 5, 2, 2)).shape == (3, 5, 2, 33)
