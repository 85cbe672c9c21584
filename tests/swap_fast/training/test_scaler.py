"""Mixed precision step by step: loss scale, updates left out, and what stays as it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import pytest
import torch
from small_trainer import SmallNet
from torch import Tensor, nn

from swap_fast.config.execution import DTYPES, Execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.distributed import ALONE
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights

BATCH, GROWTH_INTERVAL, RATE = 8, 3, 0.02


@dataclass
class Reference:
    """Loss scaling as it is defined, and torch's formula of Nesterov SGD, one line each."""

    model: nn.Module
    dtype: torch.dtype
    scaled: bool
    scale: float = 2.0**16
    finite_steps: int = 0
    left_out: int = 0
    velocity: list[Tensor] = field(default_factory=list)

    def step(self, images: Tensor, labels: Tensor, config: Optimizer) -> None:
        """One update, or none where a gradient is not finite."""
        parameters = list(self.model.parameters())
        self.velocity = self.velocity or [torch.zeros_like(p) for p in parameters]
        with torch.autocast("cpu", self.dtype):
            loss = nn.functional.cross_entropy(self.model(images).float(), labels)
        scale = self.scale if self.scaled else 1.0
        gradients = torch.autograd.grad(loss * scale, parameters)
        if self.scaled and not all(g.isfinite().all() for g in gradients):
            self.scale, self.finite_steps = self.scale / 2, 0
            self.left_out += 1
            return
        with torch.no_grad():
            for p, v, g in zip(parameters, self.velocity, gradients, strict=True):
                g = g / scale + config.weight_decay * p
                v.mul_(config.momentum).add_(g)
                p.sub_(RATE * (g + config.momentum * v))
        self.finite_steps += 1
        if self.scaled and self.finite_steps == GROWTH_INTERVAL:
            self.scale, self.finite_steps = self.scale * 2, 0


def make(precision: Literal["fp16", "bf16"]) -> tuple[Step, Weights, MomentumSGD, Reference]:
    torch.manual_seed(0)
    execution = Execution(precision=precision)
    weights = Weights(execution.place(SmallNet(), torch.device("cpu")))
    scaled = precision == "fp16"
    reference = Reference(copy.deepcopy(weights.model), DTYPES[precision], scaled)
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=scaled)
    optimizer.scaler.set_growth_interval(GROWTH_INTERVAL) if scaled else None
    phase = Phase(global_batch_size=BATCH, peak_lr=1.0, max_epochs=1)
    return Step(weights, optimizer, phase, ALONE, execution), weights, optimizer, reference


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_update_is_the_reference_s(precision: Literal["fp16", "bf16"]) -> None:
    step, weights, optimizer, reference = make(precision)
    step.set_learning_rate(RATE)
    generator = torch.Generator().manual_seed(1)
    scales = []
    for _ in range(12):
        images = torch.randn(step.images.shape, generator=generator)
        images = images.to(step.images.dtype).to(memory_format=torch.channels_last)
        labels = torch.randint(10, (BATCH,), generator=generator)
        step.images.copy_(images)
        step.labels.copy_(labels)
        step()
        reference.step(images, labels, Optimizer())
        theirs = dict(reference.model.named_parameters())
        for name, ours in weights.model.named_parameters():
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, theirs[name], rtol=1e-5, atol=1e-7)
            # Each update begins from the same weights: a last digit of float32 between two formulas
            # can be a last digit of a float16 weight in the next one.
            theirs[name].data.copy_(ours)
        for name, buffer in weights.model.named_buffers():
            # Batch norm has seen the batch whether its update was made or not, as in torch.
            torch.testing.assert_close(buffer, reference.model.get_buffer(name), rtol=1e-5, atol=0)
        if reference.scaled:
            assert optimizer.scaler.get_scale() == reference.scale
            scales.append(reference.scale)
    if reference.scaled:  # the run had updates that were left out, and growth: it could have failed
        assert reference.left_out > 0
        assert any(b == 2 * a for a, b in pairwise(scales))
    metrics = step.read_metrics()
    expected = (reference.left_out, reference.scale if reference.scaled else 1.0)
    assert (metrics.skipped_updates, metrics.loss_scale) == expected


def test_an_update_left_out_keeps_weights_and_velocity_to_the_bit() -> None:
    step, weights, optimizer, _ = make("fp16")
    step.set_learning_rate(RATE)
    step.images.normal_(generator=torch.Generator().manual_seed(2))
    optimizer.scaler.update(2.0**10)
    step()
    theta, velocity = weights.theta.detach().clone(), optimizer.velocity.clone()
    assert velocity.abs().max() > 0
    optimizer.scaler.update(2.0**40)  # every gradient overflows
    step()
    assert torch.equal(weights.theta.detach(), theta)
    assert torch.equal(optimizer.velocity, velocity)
    assert optimizer.scaler.get_scale() == 2.0**39
