"""The gradient's sum in buckets: where they are cut, when they are summed, and the bits of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_trainer import SmallNet, run_processes
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.distributed import Comm
from swap_fast.models import ResNet9
from swap_fast.training.all_reduce import GradientSum, cut
from swap_fast.training.optimizer import recipe_optimizer
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights

SIZES = [108, 4, 4, 216, 6, 6, 540, 10]
"""Of SmallNet's parameters: convolution, norm, convolution, norm, linear layer."""


def test_each_bucket_has_at_least_half_of_what_is_left() -> None:
    weights = Weights(SmallNet())
    assert [p.numel() for p in weights.trained] == SIZES
    assert [bucket.places for bucket in cut(weights, 3)] == [
        (slice(344, 894),),  # the linear layer
        (slice(116, 344),),
        (slice(0, 116),),
    ]
    assert [bucket.places for bucket in cut(weights, 1)] == [(slice(0, 894),)]
    assert len(cut(weights, 4)) == 3  # half of 116 would be nearly all: the first convolution
    assert len(cut(Weights(nn.Linear(3, 2, bias=False)), 4)) == 1
    muon = Weights(SmallNet(), groups=Optimizer(kind="muon").groups)
    assert len(cut(muon, 4)) == 1  # of its groups the largest is one matrix


def test_small_groups_are_in_the_last_bucket() -> None:
    weights = Weights(SmallNet(), groups=Optimizer(bias_lr_factor=2.0).groups)
    first, second, last = cut(weights, 3)
    assert first.places == (slice(334, 874),)
    assert second.places == (slice(112, 334),)
    assert last.places == (slice(0, 112), slice(874, 894))
    assert sum(len(bucket.parameters) for bucket in (first, second, last)) == len(SIZES)


def test_most_of_resnet_9_is_in_its_first_bucket() -> None:
    weights = Weights(ResNet9(width=64))
    shares = [
        sum(place.stop - place.start for place in bucket.places) / len(weights.gradient)
        for bucket in cut(weights, 3)
    ]
    assert shares == pytest.approx([0.72, 0.18, 0.10], abs=5e-3)


def test_a_bucket_is_summed_while_earlier_layers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, order = Weights(SmallNet()), list[str | int]()
    monkeypatch.setattr(Comm, "all_reduce_", lambda self, t: order.append(t.numel()) or t * 2)
    for name, parameter in weights.model.named_parameters():
        if name.endswith("weight"):
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    gradient_sum = GradientSum(weights, Comm(world_size=2), num_buckets=3)
    gradient_sum.backward_(weights.model(torch.randn(4, 3, 32, 32)).sum(), replaces=False)
    gradient_sum.finish_()
    assert order.index("linear.weight") < order.index(550) < order.index("body.3.weight")
    assert order.index("body.3.weight") < order.index(228) < order.index("body.0.weight")
    assert order[-1] == 116
    assert not any(
        p._post_accumulate_grad_hooks and len(p._post_accumulate_grad_hooks) > 1
        for p in weights.model.parameters()
    )


class Unused(SmallNet):
    """With parameters that no gradient comes to, and one in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(7, 80)
        self.scales = nn.Parameter(torch.ones(10, dtype=torch.half))

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, 3, 32, 32] to [B, 10]."""
        return super().forward(images) * self.scales


@pytest.mark.parametrize("is_loose", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_what_is_gathered_is_the_gradient(is_loose: bool, replaces: bool) -> None:
    found = []
    for num_buckets in (1, 4):
        torch.manual_seed(0)
        weights = Weights(Unused())
        if is_loose:
            weights.loosen_(torch.float32)
        weights.gradient.fill_(0.0 if replaces and not is_loose else 3.0)
        gradient_sum = GradientSum(weights, Comm(world_size=2), num_buckets=num_buckets)
        assert gradient_sum.in_buckets is (num_buckets > 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Comm, "all_reduce_", lambda self, tensor: tensor.mul_(2))
            loss = weights.model(torch.randn(4, 3, 32, 32)).square().sum()
            if gradient_sum.in_buckets:
                gradient_sum.backward_(loss, replaces=replaces)
            else:
                loss.backward()
                weights.gather_gradient_(replaces=replaces)
            gradient_sum.finish_()
        assert all(p.grad is None for p, _ in weights.loose)
        found.append(weights.gradient.clone())
    assert torch.equal(*found)
    assert len(found[0].unique()) > 100


FORMS = [
    ("fp32", "fp32", Optimizer()),
    ("fp16", "fp32", Optimizer(loss_scale=1024.0, bias_lr_factor=4.0)),
    ("fp16", "fp16", Optimizer(loss_scale=1024.0)),
    ("fp32", "fp32", Optimizer(without_decay="norms_and_biases")),
]


def train_in_buckets(comm: Comm, folder: Path) -> None:
    """Some updates in each form by two replicas a rank, one of which overflows in fp16."""
    for form in FORMS:
        (precision, all_reduce, optimizer), found = form, []
        for buckets in (1, 2, 4):
            torch.manual_seed(0)
            execution = Execution(
                precision=precision,  # type: ignore[arg-type]
                all_reduce=all_reduce,  # type: ignore[arg-type]
                all_reduce_buckets=buckets,  # type: ignore[arg-type]
            )
            net = execution.place(Unused(), torch.device("cpu"))
            weights = Weights(net, groups=optimizer.groups)
            made = recipe_optimizer(weights, optimizer, scale_gradients=precision == "fp16")
            phase = Phase(global_batch_size=16, peak_lr=1.0, max_epochs=1, gpus_per_model=4)
            step = Step(weights, made, phase, comm, execution)
            draw = torch.Generator().manual_seed(comm.rank)
            for number in range(4):
                step.images.copy_(torch.randn(step.images.shape, generator=draw))
                if number == 2 and comm.rank == 1 and precision == "fp16":
                    step.images[0] = torch.inf
                step.labels.copy_(torch.randint(10, step.labels.shape, generator=draw))
                step.set_learning_rate(0.01)
                step()
            found.append((weights.theta.detach(), weights.gradient))
            assert step.read_metrics().skipped_updates == (precision == "fp16")
        for theta, gradient in found[1:]:
            assert torch.equal(theta, found[0][0])
            assert torch.equal(gradient.nan_to_num(), found[0][1].nan_to_num())
        torch.save(found[0][0], folder / f"{FORMS.index(form)}-{comm.rank}")


def test_the_updates_are_those_of_one_sum_over_gloo(tmp_path: Path) -> None:
    run_processes(train_in_buckets, 2, tmp_path)
    for form in range(len(FORMS)):
        zero, one = (torch.load(tmp_path / f"{form}-{rank}") for rank in (0, 1))
        assert torch.equal(zero, one)
        assert zero.isfinite().all()
