"""The gradient summed in buckets beside the backward pass, on the stand-in: the bits of one sum."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cuda_stand_in import StandIn

pytestmark = pytest.mark.slow

TRAIN = """
import json, sys
import torch
from small_trainer import SmallNet
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.distributed import connect
from swap_fast.training import all_reduce
from swap_fast.training.capture import Captures
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights

settings = json.loads(sys.argv[1])
BATCH, UPDATES, OVERFLOW = 8, settings["updates"], 3
original, backward = all_reduce.GradientSum, all_reduce.GradientSum.backward_

class NoFork(original):
    def _fork(self):
        pass

class EarlyFork(NoFork):  # the stream is in the capture, but does not wait for the gradients
    def backward_(self, *given, replaces):
        original._fork(self)
        super().backward_(*given, replaces=replaces)

class NoJoin(original):
    def _sum_(self, bucket):
        for _ in range(8):  # longer than what stands between the last sum and the optimizer
            SLOW.add_(1)
        super()._sum_(bucket)

    def finish_(self):
        if not self.in_buckets:
            super().finish_()

class LateJoin(NoJoin):  # the capture ends well, but the optimizer does not wait for the sums
    pass

class LateStep(Step):
    def update_no_sync(self):
        super().update_no_sync()
        original.finish_(self._sum)

make_step = LateStep if settings["sum"] == "LateJoin" else Step
makers = {each.__name__: each for each in (original, NoFork, EarlyFork, NoJoin, LateJoin)}
from swap_fast.training import step as steps
steps.GradientSum = makers[settings["sum"]]

def train(comm, captures, buckets):
    torch.manual_seed(0)
    execution = Execution(
        device_type="cuda", precision="fp16", step=settings["step"], capture=settings["capture"],
        all_reduce=settings["all_reduce"], all_reduce_buckets=buckets,
    )
    weights = Weights(
        execution.place(SmallNet(), torch.device("cuda")), groups=Optimizer(**GROUPS).groups
    )
    optimizer = MomentumSGD(weights, Optimizer(**GROUPS), scale_gradients=True)
    phase = Phase(global_batch_size=BATCH, peak_lr=1.0, max_epochs=1, gpus_per_model=4)
    step = make_step(weights, optimizer, phase, comm, execution)
    step.warm_up(captures=captures)
    draw = torch.Generator().manual_seed(comm.rank)
    for number in range(UPDATES):
        images = torch.randn(step.images.shape, generator=draw)
        if number == OVERFLOW and comm.rank == 1:
            images[3] = torch.inf
        step.images.copy_(images)
        step.labels.copy_(torch.randint(10, step.labels.shape, generator=draw))
        step.set_learning_rate(0.01)
        step()
        if number == OVERFLOW:
            step.statistics.reset_()
    skipped = step.read_metrics().skipped_updates
    state = [weights.theta.detach().cpu(), optimizer.velocity.cpu()]
    return state, skipped, len(step._sum._buckets)

GROUPS = {"bias_lr_factor": 8.0}  # two groups, so that the last bucket is in two places
comm = connect("cuda", timeout_s=60)
SLOW = torch.zeros(1, device="cuda")
with Captures() as captures:
    expected, *_ = train(comm, captures, 1)
    found, skipped, buckets = train(comm, captures, 3)
same = all(torch.equal(a, b) for a, b in zip(found, expected))
finite = all(bool(t.isfinite().all()) for t in found)
sums = comm.gather([t.double().sum().item() for t in found])
comm.close()
print(json.dumps([same, finite, skipped, buckets, sums[0] == sums[1]]))
"""


def train(cuda: StandIn, seed: str = "", values: int = 1, **settings: Any) -> list[Any]:
    """What two ranks found: their output where they end well, else their errors."""
    plain = {"sum": "GradientSum", "step": "eager", "capture": True, "all_reduce": "fp32"}
    program = ["-c", TRAIN, json.dumps({**plain, "updates": 8, **settings})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        cuda.start(
            program,
            devices=2,
            values=values,
            env={**env, "RANK": str(r), "LOCAL_RANK": str(r), "STANDIN_DELAY": seed},
        )
        for r in (0, 1)
    ]
    said = [rank.communicate(timeout=400) for rank in ranks]
    return [
        json.loads(out) if rank.returncode == 0 else error
        for rank, (out, error) in zip(ranks, said, strict=True)
    ]


GOOD = [True, True, 1, 3, True]
"""The bits of one sum, finite weights, one update left out, three buckets, alike on both ranks."""


@pytest.mark.parametrize("all_reduce", ["fp32", "fp16"])
@pytest.mark.parametrize(("seed", "capture"), [("", True), ("1", True), ("2", True), ("1", False)])
def test_the_updates_are_those_of_one_sum(
    cuda_stand_in: StandIn, all_reduce: str, seed: str, capture: bool
) -> None:
    found = train(cuda_stand_in, seed, all_reduce=all_reduce, capture=capture)
    assert found == [GOOD, GOOD]


def test_the_fused_update_takes_the_sums_too(cuda_stand_in: StandIn) -> None:
    found = train(cuda_stand_in, "1", values=2, step="fused", updates=5)
    assert found == [GOOD, GOOD]


@pytest.mark.parametrize(
    ("wrong", "capture"),
    [("NoFork", False), ("EarlyFork", True), ("NoJoin", False), ("LateJoin", True)],
)
@pytest.mark.parametrize("all_reduce", ["fp32", "fp16"])
def test_a_missing_wait_changes_the_weights(
    cuda_stand_in: StandIn, wrong: str, capture: bool, all_reduce: str
) -> None:
    found = train(cuda_stand_in, "1", sum=wrong, capture=capture, all_reduce=all_reduce)
    assert [same for same, *_ in found] == [False, False]


@pytest.mark.parametrize("wrong", ["NoFork", "NoJoin"])
def test_a_capture_without_a_fork_or_a_join_is_refused(cuda_stand_in: StandIn, wrong: str) -> None:
    found = train(cuda_stand_in, sum=wrong)
    assert all("could not be captured as a CUDA graph" in error for error in found), found
