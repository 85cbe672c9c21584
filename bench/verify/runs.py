"""Checks of whole runs: they end, and a run that was stopped resumes to the same weights."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data_tools import write_cifar10
from bench.runner.launch import launch
from bench.verify.check import Form
from bench.verify.equivalence import same_kernels
from bench.verify.ranks import TIMEOUT_S, devices_for
from swap_fast.algorithm import swap
from swap_fast.checkpoint.run_folder import RunFolder
from swap_fast.config.execution import default_execution
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.synthetic import generate_synthetic
from swap_fast.distributed import Comm, connect
from swap_fast.models import net_maker
from swap_fast.recipes.cifar10 import cifar10_quick
from swap_fast.tasks.cifar import CifarSource
from swap_fast.training.callback import Callback
from swap_fast.training.capture import Captures
from swap_fast.training.clock import Clock
from swap_fast.training.shutdown import GracefulShutdown, InterruptedRunError
from swap_fast.training.trainer import build_trainer

IMAGES, TEST_IMAGES = 640, 200
EPOCHS = 3
"""Of phase 1; of phase 2 one."""
BATCH = 32
"""Images of a replica in phase 1, and of a worker in phase 2."""
STOPPED_AFTER = (7, 9)
"""Updates after which the first and the second attempt are told to stop. With one or two ranks of
two workers the first is in phase 1, and the second in phase 2."""
CONTROL_LIMIT = 0.02
"""Share of the distance that the weights move in a run: one lost or repeated update of the 20 would
be about 5%."""


def _workers(ranks: int) -> int:
    """At least 2; each is also a replica of phase 1."""
    return max(2, ranks)


def _ranks(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


def whole_run(form: Form) -> str:
    """Start `bench run` as a user does, for two runs in a row, on one rank and on all."""
    most = devices_for(form, on_cpu=2)
    with TemporaryDirectory() as folder:
        data, seen = Path(folder) / "data", []
        dataset = generate_synthetic(train_images=IMAGES, test_images=TEST_IMAGES)
        write_cifar10(data, _records(dataset.train), _records(dataset.test))
        for ranks in sorted({1, most}):
            records = _run_twice(form, ranks, data, Path(folder) / f"on{ranks}")
            for record in records:
                losses = [row["train_loss"] for row in record["epochs"]]
                assert all(map(math.isfinite, losses)), f"{_ranks(ranks)}: losses {losses}"
                first, last = (losses[at] for at in (0, EPOCHS - 1))
                assert last < first, f"{_ranks(ranks)}: phase 1's loss went from {first} to {last}"
                assert record["world_size"] == ranks, f"{record['world_size']} ranks, not {ranks}"
            accuracies = ", ".join(f"{record['test_accuracy']:.1%}" for record in records)
            seen.append(f"{_ranks(ranks)}: {accuracies} of test images right")
    return "; ".join(seen)


def _records(split: Split) -> NDArray[np.uint8]:
    """Labels and images as CIFAR-10's files have them: uint8 [n, 3073]."""
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split), -1)
    return np.concatenate([split.labels[:, None], planes], axis=1)


def _run_twice(form: Form, ranks: int, data: Path, out: Path) -> list[dict[str, Any]]:
    """The records of two runs in one session, a process of its own."""
    workers = _workers(ranks)
    settings = {
        "train-images": IMAGES,
        "width": 4 if form.small else 16,
        "num-workers": workers,
        "batch-norm-batch-size": 256,
        "phase1.gpus-per-model": workers,
        "phase1.global-batch-size": BATCH * workers,
        "phase1.max-epochs": EPOCHS,
        "phase1.horizon-epochs": EPOCHS + 1,
        "phase1.warmup-epochs": 1,
        "phase1.peak-lr": 0.1,
        "phase2.global-batch-size": BATCH,
        "device": form.device_type,
        "ranks": ranks,
        "threads": 1,
        "runs": 2,
        "timeout-s": TIMEOUT_S,
        "data": data,
        "out": out,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench", "run", "cifar10_quick", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{_ranks(ranks)}: status {done.returncode}: {done.stderr[-200:]}"
    records = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    assert len(records) == 2, f"{_ranks(ranks)}: two runs made {len(records)} records"
    return records


def resume(form: Form) -> str:
    """Compare a run that is stopped in each phase and resumed with one that is not stopped."""
    ranks = devices_for(form, on_cpu=2)
    many = f"{_ranks(ranks)}, told to stop in both phases"
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, stop_after in enumerate((*STOPPED_AFTER, None)):
            before = {"alone": None} if number == 0 else {}
            try:
                launch(_run_all, form, folder, {**before, "stopped": stop_after}, num_ranks=ranks)
                was_stopped = False
            except InterruptedRunError:
                was_stopped = True
            expected = stop_after is not None
            assert was_stopped == expected, f"attempt {number + 1} of 3 ended by itself"
        start, alone = _saved(folder, "alone")
        _, resumed = _saved(folder, "stopped")
        moved = _distance(alone, start)
        apart = _distance(resumed, alone) / moved
        if apart == 0:
            return f"{many}: equal to the bit"
        # Some kernels sum in no fixed order: two undisturbed runs show how much that is.
        launch(_run_all, form, folder, {"again": None}, num_ranks=ranks)
        control = _distance(_saved(folder, "again")[1], alone) / moved
    text = (
        f"{many}: {apart:.1e} of the way from the undisturbed run, another undisturbed one "
        f"{control:.1e}"
    )
    assert control < CONTROL_LIMIT, f"{text}: too far to judge"
    assert apart <= 3 * control, text
    return text


def _saved(folder: Path, run: str) -> tuple[Tensor, Tensor]:
    """The weights at a run's start and end."""
    start, end = torch.load(folder / f"{run}.pt", weights_only=True)
    return start, end


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm())


def _recipe(ranks: int, width: int) -> SWAPRecipe:
    recipe, workers = cifar10_quick(), _workers(ranks)
    return replace(
        recipe,
        train_images=None,
        width=width,
        num_workers=workers,
        batch_norm_batch_size=256,
        phase1=replace(
            recipe.phase1,
            global_batch_size=IMAGES // 5,
            gpus_per_model=workers,
            max_epochs=2,
            horizon_epochs=3,
            warmup_epochs=1,
            peak_lr=0.05,
        ),
        phase2=replace(recipe.phase2, global_batch_size=IMAGES // 10, peak_lr=0.01),
    )


def _run_all(form: Form, folder: Path, stop_after: dict[str, int | None]) -> None:
    """Run one after another, each to its end or until SIGTERM after that many updates."""
    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with same_kernels():
            comm = connect(form.device_type, timeout_s=TIMEOUT_S)
            try:
                for run, updates in stop_after.items():
                    _run(form, comm, folder, run, updates)
            finally:
                comm.close()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _EndAfter(Callback):
    """Sends this process SIGTERM after a number of updates."""

    def __init__(self, updates: int | None) -> None:
        self._left = updates or 0

    def on_step(self, images: int) -> None:
        """Count down."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def _run(form: Form, comm: Comm, folder: Path, run: str, stop_after: int | None) -> None:
    """Train in the folder `run`, and save the weights at the start and at the end."""
    device_type = form.device_type
    synchronize = torch.cuda.synchronize if device_type == "cuda" else lambda: None
    clock, shutdown = Clock(), GracefulShutdown(synchronize)
    dataset = generate_synthetic(train_images=IMAGES, test_images=TEST_IMAGES)
    recipe = _recipe(comm.world_size, 4 if form.small else 16)

    with Captures() as captures, shutdown.installed():
        parts = build_trainer(
            recipe,
            net_maker(recipe, dataset),
            CifarSource(recipe, dataset),
            seed=0,
            device=torch.device(device_type),
            execution=default_execution(device_type),
            comm=comm,
            clock=clock,
            callbacks=[_EndAfter(stop_after)],
            checkpoints=RunFolder(folder / run, clock),
            shutdown=shutdown,
            captures=captures,
        )
        start = torch.cat(parts.weights.copy()).cpu()
        swap(recipe, parts)
        if comm.rank == 0:
            end = torch.cat(parts.weights.copy()).cpu()
            torch.save((start, end), folder / f"{run}.pt")
