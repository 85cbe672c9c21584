"""Whole runs on the CUDA path, on the stand-in: captured steps, NCCL, signals, and wrong steps.

Everything on the host is torch's and the project's own; only the devices are not there. What the
kernels compute is a CPU's work here, so that runs can be compared value by value; no time counts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from processes import all_end
from repository import TESTS
from safetensors.torch import load_file
from same_bits import write_cifar
from torch import Tensor

if TYPE_CHECKING:
    from cuda_stand_in import StandIn

pytestmark = pytest.mark.slow

SMALL = {
    "device": "cuda",
    "dataset": "cifar10",
    "loader": "tensor",
    "step": "eager",
    "train-images": 160,
    "width": 2,
    "num-workers": 2,
    "batch-norm-batch-size": 64,
    "phase1.max-epochs": 2,
    "phase1.global-batch-size": 32,
    "phase1.gpus-per-model": 2,
    "phase1.warmup-epochs": 0.5,
    "phase2.global-batch-size": 16,
}
"""Two epochs of 5 updates by two replicas, then one epoch of 10 updates by each of two workers."""


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CIFAR-10 on disk."""
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar(folder)
    return folder


def command(data: Path, out: Path, *flags: str, **options: Any) -> list[str]:
    """The arguments of `python -m bench run`."""
    named = {
        **SMALL,
        "data": data,
        "out": out,
        **{k.replace("_", "-"): v for k, v in options.items()},
    }
    words = [str(word) for name, value in named.items() for word in (f"--{name}", value)]
    return ["-m", "bench", "run", "cifar10_quick", *words, *flags]


def train(
    cuda: StandIn, data: Path, out: Path, *flags: str, devices: int = 1, **options: Any
) -> Path:
    """Run to the end; the results folder."""
    arguments = command(data, out, *flags, **options)
    done = cuda.run(arguments, devices=devices)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return out


def final_weights(out: Path) -> dict[str, Tensor]:
    """Of the only run in a results folder."""
    (path,) = out.glob("checkpoints/*/final.safetensors")
    return load_file(path)


def records(out: Path) -> list[dict[str, Any]]:
    """All run records in a results folder."""
    return [json.loads(path.read_bytes()) for path in sorted(out.glob("runs/*.json"))]


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of two models, in shares of each tensor's largest value."""
    assert ours.keys() == theirs.keys()
    return max(
        float((a.double() - theirs[name].double()).abs().max())
        / (float(theirs[name].abs().max()) or 1.0)
        for name, a in ours.items()
    )


@pytest.fixture(scope="module")
def captured(cuda_stand_in: StandIn, cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a captured run on one device."""
    return train(cuda_stand_in, cifar, tmp_path_factory.mktemp("captured"))


def test_a_captured_run_is_the_eager_one(
    cuda_stand_in: StandIn, cifar: Path, captured: Path, tmp_path: Path
) -> None:
    eager = train(cuda_stand_in, cifar, tmp_path, capture="off")
    assert distance(final_weights(captured), final_weights(eager)) == 0.0
    (record,) = records(captured)
    assert record["configuration"]["execution"]["capture"] is True
    assert record["machine"]["device"].startswith("Stand-in")
    assert record["peak_device_reserved_gib"] > 0


def test_two_runs_follow_one_another(cuda_stand_in: StandIn, cifar: Path, tmp_path: Path) -> None:
    train(cuda_stand_in, cifar, tmp_path, "--runs", "2", devices=2)
    assert [record["seed"] for record in records(tmp_path)] == [0, 1]
    assert [record["world_size"] for record in records(tmp_path)] == [2, 2]


def test_two_devices_train_the_same_model(
    cuda_stand_in: StandIn, cifar: Path, tmp_path: Path
) -> None:
    # In fp32 and at low rates: sums of another order differ in their last digits, which ReLU and
    # high rates make much of, on any device.
    options = {"precision": "fp32", "phase1.peak-lr": 1e-3, "phase2.peak-lr": 1e-4}
    states = [
        final_weights(train(cuda_stand_in, cifar, tmp_path / str(n), devices=n, **options))
        for n in (1, 2)
    ]
    assert distance(*states) < 1e-3


@pytest.mark.parametrize(("all_reduce", "buckets"), [("fp32", 1), ("fp16", 1), ("fp16", 3)])
def test_groups_of_devices_share_a_worker(
    cuda_stand_in: StandIn, cifar: Path, tmp_path: Path, all_reduce: str, buckets: int
) -> None:
    options = {"phase1.gpus-per-model": 4, "phase2.gpus-per-model": 2, "all-reduce": all_reduce}
    options["all-reduce-buckets"] = buckets
    train(cuda_stand_in, cifar, tmp_path, devices=4, **options)
    (record,) = records(tmp_path)
    assert record["world_size"] == 4
    assert record["configuration"]["execution"].get("all_reduce_buckets", 1) == buckets
    assert len(record["worker_accuracies"]) == 2
    assert all(weight.isfinite().all() for weight in final_weights(tmp_path).values())


def test_the_stages_of_imagenet_are_captured(
    cuda_stand_in: StandIn, cifar: Path, tmp_path: Path
) -> None:
    tree = ["-m", "bench", "small-tree", str(tmp_path / "tree"), "--data", str(cifar)]
    done = cuda_stand_in.run([*tree, "--size", "64", "--per-class", "4", "--test-per-class", "1"])
    assert done.returncode == 0, done.stderr
    batches = {
        "1.stages.0": 16,
        "1.stages.1": 16,
        "1.stages.2": 8,
        "2.stages.0": 8,
        "2.stages.1": 8,
    }
    options: dict[str, Any] = {"device": "cuda", "loader": "torchvision", "width": 4}
    options["step"] = "eager"
    options |= {"batch-norm-batch-size": 30, "data": tmp_path / "tree", "out": tmp_path / "out"}
    options |= {f"phase{stage}.epochs": 1 for stage in batches}
    options |= {f"phase{stage}.global-batch-size": size for stage, size in batches.items()}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    done = cuda_stand_in.run(["-m", "bench", "run", "imagenet_swap_cpu", *words])
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "out")
    assert len(record["worker_accuracies"]) == 2


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """Until something is there, while the process runs."""
    end = time.monotonic() + 200
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took longer than 200 s"
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a run's ranks, rank 0 first."""
    done = subprocess.run(
        [
            "ps",
            "-ww",
            "-o",
            "pid=",
            "-o",
            "args=",
            "--ppid",
            str(process.pid),
            "--sort=start_time,pid",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line.split()[0]) for line in done.stdout.splitlines() if "spawn_main" in line]


@contextmanager
def started(
    cuda: StandIn, data: Path, out: Path, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A run on two devices that has done its first epoch; killed, if it is left running."""
    process = cuda.start(command(data, out, **options), devices=2)
    try:
        wait_for(process, lambda: any(out.glob("checkpoints/*/phase1*.safetensors")))
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_told_to_end_on_two_devices_it_goes_on_there(
    cuda_stand_in: StandIn, cifar: Path, tmp_path: Path
) -> None:
    cut, whole, options = tmp_path / "cut", tmp_path / "whole", {"phase1.max-epochs": 8}
    with started(cuda_stand_in, cifar, cut, **options) as process:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 75, error
        assert "destroy_process_group" not in error  # it was
    train(cuda_stand_in, cifar, cut, "--resume", devices=2, **options)
    train(cuda_stand_in, cifar, whole, devices=2, **options)
    assert distance(final_weights(cut), final_weights(whole)) == 0.0


MANY = {"phase1.max-epochs": 50}


def test_a_killed_rank_is_named(cuda_stand_in: StandIn, cifar: Path, tmp_path: Path) -> None:
    with started(cuda_stand_in, cifar, tmp_path, **MANY) as process:
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "rank 1 was ended by SIGKILL in phase 1 after epoch" in error
        assert all_end(process.pid)


def test_a_rank_that_hangs_inside_a_graph_s_collective_is_named(
    cuda_stand_in: StandIn, cifar: Path, tmp_path: Path
) -> None:
    with started(cuda_stand_in, cifar, tmp_path, **MANY, **{"timeout-s": 10}) as process:
        os.kill(ranks_of(process)[1], signal.SIGSTOP)
        _, error = process.communicate(timeout=200)
        assert process.returncode == 1
        assert "no update was done for 10 s: no sign of life from rank 1" in error
        assert all_end(process.pid)


@pytest.mark.parametrize("ranks", [1, 2])
def test_counted_laps_hold_no_import_and_no_first_use_of_a_shape(
    cuda_stand_in: StandIn, tmp_path: Path, ranks: int
) -> None:
    script = [str(TESTS / "watched_laps.py"), str(tmp_path), "--ranks", str(ranks)]
    done = cuda_stand_in.run(script, devices=ranks)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(ranks)]
    assert found == [[]] * ranks


def test_a_first_use_inside_a_counted_lap_is_found(cuda_stand_in: StandIn, tmp_path: Path) -> None:
    script = [str(TESTS / "watched_laps.py"), str(tmp_path), "--cold"]
    done = cuda_stand_in.run(script)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found0.json").read_text())
    assert found
    assert all(line.startswith("batch_norm: first use of ('cudnn_convolution'") for line in found)


def test_the_function_for_any_net_gives_on_cuda_what_it_gives_on_a_cpu(
    cuda_stand_in: StandIn, tmp_path: Path
) -> None:
    code = """
    import sys
    import torch
    from safetensors.torch import save_file
    from torch import nn
    from same_bits import by_function
    from swap_fast import Phase

    def net():
        first = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(8 * 25, 5))

    # No drop-out and no noise, whose random numbers are each device's own; and low rates: high
    # ones make much of last digits.
    low = {"peak_lr": 1e-2, "max_epochs": 2}
    phases = {f"phase{i}": Phase(global_batch_size=32 // i, **low) for i in (1, 2)}
    labels = torch.arange(200) % 5  # an epoch's last batch is short
    images = torch.randn(200, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for device in ("cpu", "cuda"):
        state = by_function(net, (images, labels), device=device, precision="fp32", **phases)
        save_file({k: v.cpu().contiguous() for k, v in state.items()}, f"{sys.argv[1]}/{device}")
    """
    done = cuda_stand_in.run(["-c", textwrap.dedent(code), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert distance(load_file(tmp_path / "cuda"), load_file(tmp_path / "cpu")) < 1e-4


WRONG_STEPS = """
import sys
import torch
from bench.verify.equivalence import largest_difference
from swap_fast.config.execution import Execution
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step

class Item(Step):
    def update_no_sync(self):
        super().update_no_sync()
        self._weights.theta.detach().mul_(1 - 1e-3 * self.correct.item())

class PageableCopy(Step):
    def update_no_sync(self):
        super().update_no_sync()
        self._weights.theta.detach()[:1].copy_(torch.ones(1), non_blocking=True)

class HostCounter(Step):
    count = 0
    def update_no_sync(self):
        super().update_no_sync()
        self.count += 1
        self._weights.theta.detach().mul_(1 - 1e-3 * self.count)

class ReplacedTensor(Step):
    def update_no_sync(self):
        super().update_no_sync()
        self.correct = self.correct + 1

class FloatRate(Step):
    rate = 0.0
    def set_learning_rate(self, learning_rate):
        self.rate = learning_rate
    def update_no_sync(self):
        super().update_no_sync()
        self._weights.theta.detach().mul_(1 - self.rate)

class UnseededMomentum(Step):
    def __init__(self, weights, optimizer, *arguments, **options):
        super().__init__(weights, optimizer, *arguments, **options)
        for state in optimizer._torch.state.values():
            state.clear()

class OnSideStream(Step):
    # Decays the weights on a stream of its own, which waits for the update.
    waits_early = False
    def update_no_sync(self):
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        if self.waits_early:
            side.wait_stream(current)
        super().update_no_sync()
        if not self.waits_early:
            side.wait_stream(current)
        with torch.cuda.stream(side):
            self._weights.theta.detach().mul_(0.99)
        current.wait_stream(side)

class MissingWait(OnSideStream):
    waits_early = True

kinds = [*Step.__subclasses__(), MissingWait]
kind = {step.__name__: step for step in kinds}
execution = Execution(device_type="cuda", precision="fp16", capture=True)
for name in sys.argv[1:]:
    print(largest_difference(execution, scaled=True, step_type=kind.get(name, Step)), flush=True)
"""


def differences(cuda: StandIn, *kinds: str, **options: Any) -> list[float]:
    """Of each kind of step as a CUDA graph from the step done at once; all in one process."""
    done = cuda.run(["-c", WRONG_STEPS, *kinds], **options)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


def test_a_wrong_step_is_found(cuda_stand_in: StandIn) -> None:
    wrong = ["HostCounter", "ReplacedTensor", "FloatRate", "UnseededMomentum"]
    right, *found, again = differences(cuda_stand_in, "right", *wrong, "right")
    assert right == again == 0.0
    assert all(difference > 0 for difference in found), found


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("Item", "as a CUDA graph: CUDA error: operation not permitted when stream is capturing"),
        ("PageableCopy", "could not be captured as a CUDA graph"),
    ],
)
def test_a_step_that_cannot_be_captured_is_named(
    cuda_stand_in: StandIn, kind: str, answer: str
) -> None:
    done = cuda_stand_in.run(["-c", WRONG_STEPS, kind])
    assert done.returncode != 0
    assert answer in done.stderr


def test_a_missing_stream_wait_is_found(cuda_stand_in: StandIn) -> None:
    # Work is done late, in an order of the seed's among those that CUDA allows.
    found = [
        differences(cuda_stand_in, "OnSideStream", "MissingWait", env={"STANDIN_DELAY": seed})
        for seed in ("1", "2", "3")
    ]
    right, wrong = zip(*found, strict=True)
    assert max(right) == 0.0
    assert max(wrong) > 0.0


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_counted_laps_hold_no_import_of_a_loader(tmp_path: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    script = [str(TESTS / "watched_laps.py"), str(tmp_path), "--ranks", "2", "--device", "cpu"]
    places = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *script, "--loader", loader],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(2)]
    assert found == [[], []]


CLOSED_TOO_EARLY = """
import sys
import torch
from bench.runner.launch import launch
from swap_fast.training.capture import Captures
from swap_fast.distributed import connect

def rank(order):
    comm = connect("cuda", timeout_s=60)
    tensor = torch.ones(4, device="cuda")
    captures = Captures()
    replay = captures.capture(lambda: comm.all_reduce_(tensor))
    tensor.fill_(1.0)
    replay()
    assert tensor.tolist() == [2.0] * 4
    if order == "right":
        captures.reset()
    comm.close()

if __name__ == "__main__":
    launch(rank, sys.argv[1], num_ranks=2)
    print("closed")
"""


@pytest.mark.parametrize("order", ["right", "wrong"])
def test_a_group_that_is_closed_before_its_graphs_is_found(
    cuda_stand_in: StandIn, tmp_path: Path, order: str
) -> None:
    script = tmp_path / "closes.py"
    script.write_text(CLOSED_TOO_EARLY)
    done = cuda_stand_in.run([str(script), order], devices=2)
    if order == "right":
        assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
    else:
        assert done.returncode != 0
        assert "NCCL would wait for ever" in done.stderr


# DALI's libraries bring a CUDA runtime along, the profiler sees nothing of a stand-in, and of
# inductor's kernels there are no values: their checks, and that of speed, need a device.
ON_ONE_DEVICE = (
    "replay feed statistics memory precision overflow telemetry no-waiting accuracy shared-pool "
    "imagenet-memory teardown"
)
ON_TWO_DEVICES = "together groups teardown whole-run resume"


@pytest.mark.parametrize(("devices", "checks"), [(1, ON_ONE_DEVICE), (2, ON_TWO_DEVICES)])
def test_verify_gpu(cuda_stand_in: StandIn, tmp_path: Path, devices: int, checks: str) -> None:
    options = ["--device", "cuda", "--small", "--out", str(tmp_path), "--only", *checks.split()]
    done = cuda_stand_in.run(["-m", "bench", "verify-gpu", *options], devices=devices, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("verify-cuda-*.json")
    outcomes = {c["name"]: c["outcome"] for c in json.loads(path.read_bytes())["checks"]}
    assert {outcomes[name] for name in checks.split()} == {"confirmed"}


@pytest.mark.parametrize(
    ("file", "values"),
    [
        # The kernels are compiled, launched, and interpreted for their values.
        ("swap_fast/data/cifar/test_gather_kernel.py", 2),
        ("swap_fast/models/test_fused_norm.py", 2),
        ("swap_fast/training/test_update_kernel.py", 2),
        ("bench/micro/test_micro_workers.py", 1),
    ],
)
def test_what_is_marked_gpu_passes(cuda_stand_in: StandIn, file: str, values: int) -> None:
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", str(TESTS / file)]
    done = cuda_stand_in.run(words, values=values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


MUON = """
import copy, sys
import torch
from swap_fast.config.phase import Optimizer
from swap_fast.models import SpeedNet
from swap_fast.training.capture import Captures
from swap_fast.training.optimizer import recipe_optimizer
from swap_fast.training.weights import Weights

config = Optimizer(kind="muon", momentum=0.6, bias_lr_factor=4.0, head_lr_factor=2.0)
generator = torch.Generator().manual_seed(0)
filters = torch.randn(12, 3, 2, 2, generator=generator)

def train(captured):
    torch.manual_seed(0)
    net = SpeedNet(10, 4, filters).cuda().to(memory_format=torch.channels_last)
    weights = Weights(net, groups=config.groups)
    optimizer = recipe_optimizer(weights, config, scale_gradients=True)
    theta = weights.theta.detach().clone()
    with Captures() as captures:
        update = captures.capture(optimizer.step) if captured else optimizer.step
        weights.theta.data.copy_(theta)
        optimizer.reset_()
        draw = torch.Generator().manual_seed(1)
        for number in range(20):
            gradient = torch.randn(len(theta), generator=draw).cuda()
            weights.gradient.copy_(optimizer.scale(gradient))
            before = weights.theta.detach().clone(), optimizer.velocity.clone()
            if number == 7:
                weights.gradient[5] = torch.inf
            optimizer.set_learning_rate(0.1 / (number + 1))
            update()
            after = weights.theta.detach(), optimizer.velocity
            same = all(map(torch.equal, before, after))
            assert same == (number == 7), number
        scale = optimizer.scale(torch.ones((), device="cuda"))
        return [t.cpu().clone() for t in (*after, scale, optimizer.skipped)]

eager, captured = train(False), train(True)
print(*(float((a - b).abs().max()) for a, b in zip(eager, captured)), *map(float, eager[2:]))
"""


def test_muon_captured_is_muon_eager_through_an_overflow(cuda_stand_in: StandIn) -> None:
    done = cuda_stand_in.run(["-c", MUON])
    assert done.returncode == 0, done.stderr
    *differences, scale, skipped = map(float, done.stdout.split())
    assert differences == [0.0] * 4
    assert (scale, skipped) == (32768, 1)
