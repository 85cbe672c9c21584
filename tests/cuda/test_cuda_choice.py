"""The step chosen by measurement on the CUDA path, on the stand-in: captured, timed by its events.

inductor's kernels have no values there, so that the compiled step is not among the candidates; and
Triton's are interpreted, which is slow: the net is of width 1, the warm-up as short as can be, and
the eager step the faster one.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from same_bits import write_cifar

if TYPE_CHECKING:
    from cuda_stand_in import StandIn

pytestmark = pytest.mark.slow

RUN = """
import sys
import torch
from bench.cli import main
from swap_fast.models import fused_norm
from swap_fast.training import capture, choice, trainer

kind, *arguments = sys.argv[1:]
choice.REPLAYS, choice.SETTLE_S, choice.UPDATES, capture.WARM_UPS = 1, 0.0, 1, 1
trainer.candidates = lambda execution, model: ("eager", "fused")
right = fused_norm.norm_relu

def wrong(*given, **named):
    return tuple(each * 1.5 for each in right(*given, **named))

def raises(*given, **named):
    raise RuntimeError("no kernel image is available")

def waits(*given, **named):
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()
    return right(*given, **named)

kinds = {"right": right, "wrong": wrong, "raises": raises, "waits": waits}
fused_norm.norm_relu = kinds[kind]
sys.exit(main(arguments))
"""
SHAPE = "phase 1, 1 x 2 images of 32x32"


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CIFAR-10 on disk."""
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar(folder, train_images=20, test_images=10)
    return folder


def train(
    cuda: StandIn, data: Path, out: Path, kind: str, *flags: str, step: str = "auto"
) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    named = {"device": "cuda", "dataset": "cifar10", "loader": "tensor", "train-images": 20}
    named |= {"width": 1, "phase1.global-batch-size": 2, "phase1.gpus-per-model": 1}
    named |= {"phase1.max-epochs": 1, "phase1.warmup-epochs": 0.5, "step": step}
    named |= {"data": data, "out": out}
    words = [str(word) for name, value in named.items() for word in (f"--{name}", value)]
    arguments = ["-c", RUN, kind, "run", "cifar10_sgd_small", *words, *flags]
    done = cuda.run(arguments, values=2, timeout=500)
    assert done.returncode == 0, done.stderr
    return done


def only(out: Path, pattern: str) -> Any:
    """What the only such file holds."""
    (path,) = out.glob(pattern)
    return load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())


def final(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the only run."""
    found: dict[str, torch.Tensor] = only(out, "checkpoints/*/final.safetensors")
    return found


def test_the_faster_of_two_is_used_and_kept(
    cuda_stand_in: StandIn, cifar: Path, tmp_path: Path
) -> None:
    out, told = tmp_path / "auto", tmp_path / "told"
    done = train(cuda_stand_in, cifar, out, "right")
    choice = only(out, "runs/*.json")["step_choice"]
    assert (choice["chosen"], choice["dropped"]) == ("eager", {})
    seconds = [choice["times_s"][name][SHAPE] for name in ("eager", "fused")]
    assert 0 < seconds[0] < seconds[1]  # by the events of the streams
    assert "step eager is used: eager " in done.stdout
    assert only(out, "checkpoints/*/run.json")["step_choice"] == choice
    # It is the run that was told to use that step, to the bit.
    train(cuda_stand_in, cifar, told, "right", step="eager")
    record = only(told, "runs/*.json")
    assert record["step_choice"] is None
    assert record["configuration"]["execution"]["step"] == "eager"
    weights = final(out)
    assert all(torch.equal(value, weights[name]) for name, value in final(told).items())
    # Resumed, it keeps to the step, and measures nothing.
    (path,) = out.glob("runs/*.json")
    path.unlink()
    done = train(cuda_stand_in, cifar, out, "raises", "--resume")
    assert "step " not in done.stdout
    assert only(out, "runs/*.json")["step_choice"] == choice
    assert all(torch.equal(value, weights[name]) for name, value in final(out).items())


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("wrong", "ValueError: it differs from the eager step by "),
        ("raises", "RuntimeError: no kernel image is available"),
        ("waits", "RuntimeError: the step could not be captured as a CUDA graph: "),
    ],
)
def test_kernels_that_are_wrong_or_cannot_run_are_dropped(
    cuda_stand_in: StandIn, cifar: Path, tmp_path: Path, kind: str, why: str
) -> None:
    done = train(cuda_stand_in, cifar, tmp_path, kind)
    choice = only(tmp_path, "runs/*.json")["step_choice"]
    assert (choice["chosen"], [*choice["times_s"]]) == ("eager", ["eager"])
    assert choice["dropped"]["fused"].startswith(why)
    assert f"step fused is not used: {why}" in done.stdout


BROKEN = """
import torch
from swap_fast.training.capture import Captures

values = torch.ones(2, device="cuda")

def update():
    values.add_(1)
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()

before = torch.cuda.current_stream()
with Captures() as captures:
    try:
        captures.capture(update)
    except RuntimeError as error:
        print(error)
    assert torch.cuda.current_stream() == before, "the stream of the capture stayed"
    values.normal_()  # random numbers are drawn as outside a capture
    captures.capture(lambda: values.add_(1))()
    torch.cuda.synchronize()
"""


def test_after_a_capture_that_broke_work_goes_on_as_before(cuda_stand_in: StandIn) -> None:
    done = cuda_stand_in.run(["-c", BROKEN], values=2, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the step could not be captured as a CUDA graph: ")
