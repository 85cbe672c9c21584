"""The captured update that loads its own batch and learning rate, on the stand-in for CUDA.

test_cuda_runs.py has whole runs, captured and not, and `verify-gpu`'s check.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cuda_stand_in import StandIn

pytestmark = pytest.mark.slow

COUNTED = """
import json, sys
from dataclasses import replace
import torch
from cuda_stand_in import counts
from small_trainer import SWAP, SmallNet, make_dataset
from swap_fast.algorithm import swap
from swap_fast.clock import Clock
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer
from swap_fast.tasks.cifar import CifarSource
from swap_fast.training.callback import Callback
from swap_fast.training.capture import Captures
from swap_fast.training.trainer import build_trainer

class Counts(Callback):
    def __init__(self):
        self.seen = []

    def on_step(self, images):
        self.seen.append(counts())

    def on_epoch_end(self, row):
        self.seen.append(None)

def run(capture):
    recipe = replace(SWAP, optimizer=Optimizer(bias_lr_factor=4.0))
    watch = Counts()
    execution = Execution(device_type="cuda", precision=sys.argv[1], capture=capture)
    with Captures() as captures:
        trainer = build_trainer(
            recipe, SmallNet, CifarSource(recipe, make_dataset(88)), seed=3, captures=captures,
            device=torch.device("cuda"), execution=execution, clock=Clock(torch.cuda.synchronize),
            callbacks=[watch],
        )
        result = swap(recipe, trainer)
        thetas = [w.theta.cpu() for w in result.workers]
    found = set()
    for before, after in zip(watch.seen, watch.seen[1:]):
        if before and after:  # updates of one epoch
            found.add(json.dumps({k: n - before[k] for k, n in after.items() if n > before[k]}))
    return thetas, trainer.weights.theta.detach().cpu(), sorted(map(json.loads, found), key=len)

fed, plain = run(True), run(False)
same = all(map(torch.equal, fed[0], plain[0])) and torch.equal(fed[1], plain[1])
print(json.dumps([same, fed[2], plain[2]]))
"""


@pytest.mark.parametrize(
    ("precision", "values"), [("fp16", 1), ("bf16", 1), ("fp32", 1), ("fp16", 2)]
)
def test_an_update_is_one_launch_and_the_run_the_same(
    cuda_stand_in: StandIn, precision: str, values: int
) -> None:
    """Two replicas, two workers in turn, biases at a rate of their own.

    With 2 Triton's kernel gathers; else torch's operators do.
    """
    done = cuda_stand_in.run(["-c", COUNTED, precision], values=values)
    assert done.returncode == 0, done.stderr
    assert ("slower" in done.stderr) == (values == 1)
    same, fed, plain = json.loads(done.stdout)
    assert fed == [{"graph launches": 1}]
    assert all(found["kernels"] > 50 and "graph launches" not in found for found in plain)
    assert same


WRONG_FEEDS = """
import sys
import torch
from bench.verify import step as checks
from bench.verify.check import Form
from swap_fast.training import capture, step
from swap_fast.training.capture import DeviceFeed

class StaleCounter(DeviceFeed):
    def fill_(self):
        self._batches.load_at_(self._next)
        self._optimizer.take_learning_rates_(self._rates, self._next)

class HostCounter(DeviceFeed):
    # Loads the batch that a counter on the host names, which a graph freezes.
    count = 0
    def fill_(self):
        self._batches.load(self.count % self.steps_per_epoch)
        self._optimizer.take_learning_rates_(self._rates, self._next)
        self._next += self._one
        self.count += 1

class HostRate(DeviceFeed):
    rate = 0.0
    def start_epoch(self, worker, epoch, *, first, learning_rates):
        super().start_epoch(worker, epoch, first=first, learning_rates=learning_rates)
        self.rate = learning_rates[0]
    def fill_(self):
        self._batches.load_at_(self._next)
        self._optimizer.set_learning_rate(self.rate)
        self._next += self._one

class NoRestart(DeviceFeed):
    def start_epoch(self, worker, epoch, *, first, learning_rates):
        super().start_epoch(worker, epoch, first=0, learning_rates=learning_rates)

class UploadsBeside(DeviceFeed):
    # On a stream that does not wait for the updates before, and that none after waits for.
    def start_epoch(self, worker, epoch, **told):
        with torch.cuda.stream(torch.cuda.Stream()):
            super().start_epoch(worker, epoch, **told)

step.DeviceFeed = {kind.__name__: kind for kind in DeviceFeed.__subclasses__()}.get(
    sys.argv[1], DeviceFeed
)
try:
    print(checks.feed(Form(device_type="cuda", small=True)))
except AssertionError as error:
    print("found:", error)
"""


@pytest.mark.parametrize("seed", ["", "1", "2", "3"])
def test_epochs_that_the_graph_reads_are_the_host_s(cuda_stand_in: StandIn, seed: str) -> None:
    done = cuda_stand_in.run(["-c", WRONG_FEEDS, "right"], env={"STANDIN_DELAY": seed})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("15 updates read what the host gives")
    assert done.stdout.endswith("within 0.0e+00\n")


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("StaleCounter", "update 2 reads another images"),
        ("HostCounter", "update 1 reads another images"),
        ("HostRate", "update 1 reads another learning rate"),
        ("NoRestart", "update 13 reads another images"),
    ],
)
def test_a_wrong_feed_is_found(cuda_stand_in: StandIn, kind: str, found: str) -> None:
    done = cuda_stand_in.run(["-c", WRONG_FEEDS, kind])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"found: {found}")


def test_a_plan_that_is_uploaded_beside_its_readers_is_found(cuda_stand_in: StandIn) -> None:
    outputs = []
    for seed in ("1", "2", "3"):
        done = cuda_stand_in.run(["-c", WRONG_FEEDS, "UploadsBeside"], env={"STANDIN_DELAY": seed})
        # A counter that comes late may also point beyond the table: an error on the device.
        beyond = "index out of range" in done.stderr
        outputs.append("found: beyond" if done.returncode and beyond else done.stdout)
    assert any(output.startswith("found: ") for output in outputs), outputs
