"""Launches and bytes of a step, as counted: against sums by hand, and the model of the shapes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from bench import net_cost
from bench.micro.traffic import Counter, count, traffic_lines
from bench.options import MicroNet
from bench.planner.forms import UPDATE_BYTES
from swap_fast.config.execution import Execution

EAGER = Execution(device_type="cuda", precision="fp16")
WIDTH, BATCH = 8, 64  # of which each map fills whole parts of the fused norm


def counted(work: object, *tensors: Tensor) -> tuple[int, int]:
    counter = Counter()
    with counter:
        work(*tensors)  # type: ignore[operator]
    return counter.launches, counter.bytes


def test_operators_by_hand() -> None:
    x, y = torch.zeros(6, 2), torch.zeros(6, 2)
    assert counted(lambda a, b: a + b, x, y) == (1, 3 * 48)
    assert counted(lambda a, b: a.add_(b), x, y) == (1, 3 * 48)
    assert counted(lambda a: a.zero_(), x) == (1, 48)
    assert counted(lambda a, b: a.copy_(b), x, y) == (1, 2 * 48)
    assert counted(lambda a: a.half(), x) == (1, 48 + 24)
    assert counted(lambda a: a.view(3, 4).t(), x) == (0, 0)
    # What is expanded is there once.
    assert counted(lambda a, b: a + b[:1].expand(6, 2), x, y) == (1, 2 * 48 + 8)
    assert torch.equal(x, torch.zeros(6, 2))  # nothing was computed


def test_a_convolution_s_gradients_are_a_kernel_each() -> None:
    x, w = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)
    y = torch.zeros(2, 5, 4, 4)
    for of_input in (True, False):
        form = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [of_input, True, False])
        values = y.numel() + x.numel() + w.numel()  # dw: read dy, x, write dw
        values += of_input * (y.numel() + w.numel() + x.numel())  # dx: read dy, w, write dx
        backward = partial(torch.ops.aten.convolution_backward, y, x, w, *form)
        assert counted(backward) == (1 + of_input, 4 * values)


@pytest.mark.parametrize("fused", [False, True])
def test_the_counted_step_is_near_the_model_of_its_shapes(fused: bool) -> None:
    pytest.importorskip("triton", reason="no Triton")
    execution = replace(EAGER, step="fused" if fused else "eager")
    found = count(execution, WIDTH, BATCH, fused_update=fused)
    net = net_cost.resnet9(WIDTH, 10, fused=fused)
    update = net.parameters * net_cost.update_bytes(2, fused=fused)
    model = net.step_bytes(BATCH, 2, fused_update=fused) - update
    # The model leaves out what is small, such as moments and logits; and of torch's update the
    # gradients' casts and the search for overflow.
    assert model < found.bytes - found.update_bytes < 1.002 * model
    counted = net.parameters * UPDATE_BYTES["sgd"][fused]
    assert found.update_bytes == pytest.approx(counted, rel=0.03)


def test_the_fused_update_saves_launches_and_bytes() -> None:
    pytest.importorskip("triton", reason="no Triton")
    eager = count(EAGER, WIDTH, BATCH, fused_update=False)
    norm = count(replace(EAGER, step="fused"), WIDTH, BATCH, fused_update=False)
    whole = count(replace(EAGER, step="fused"), WIDTH, BATCH, fused_update=True)
    assert eager.bytes > norm.bytes > whole.bytes
    assert eager.launches is not None
    assert whole.launches is not None
    assert whole.launches <= 0.5 * eager.launches


def test_the_paper_s_net_in_a_line_each() -> None:
    pytest.importorskip("triton", reason="no Triton")
    cells = {line[:24].strip(): line[24:].split() for line in traffic_lines(64, 256)[2:]}
    assert cells["compiled (modelled)"] == ["9.84", "276.1", "—"]
    assert cells["fused"] == ["9.34", "144.9", "70"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("optimizer", "net"), [("sgd", "resnet9"), ("muon", "speed_net")])
def test_a_plan_s_updates_are_the_counted_ones(optimizer: str, net: MicroNet, fused: bool) -> None:
    pytest.importorskip("triton", reason="no Triton")
    form = replace(EAGER, step="fused" if fused else "eager")
    found = count(form, 64, 256, fused_update=fused, net=net).update_bytes
    modelled = net_cost.resnet9 if net == "resnet9" else net_cost.speed_net
    counted = found / modelled(64, 10).parameters
    assert counted == pytest.approx(UPDATE_BYTES[optimizer][fused], rel=3e-3)
