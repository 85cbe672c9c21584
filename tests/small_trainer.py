"""Small nets, data, recipes and processes for the tests of the core, and a plain numpy oracle."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import Tensor, nn

from swap_fast.clock import Clock
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.config.recipe import Recipe, SGDRecipe, SWAPRecipe, SWARecipe
from swap_fast.data.cifar.augment import AugmentationPlan
from swap_fast.data.cifar.dataset import Dataset, Split
from swap_fast.distributed import ALONE, Comm, connect
from swap_fast.record import EpochRow
from swap_fast.shutdown import NEVER, GracefulShutdown
from swap_fast.tasks.cifar import CifarSource
from swap_fast.training.callback import Callback
from swap_fast.training.state import Checkpoints, NoCheckpoints, Progress, TrainingState
from swap_fast.training.trainer import Trainer, build_trainer

# On tensors this small a second thread costs more than it gives, and sums depend on how many.
torch.set_num_threads(1)

MEAN, STD = (120.0, 130.0, 110.0), (60.0, 50.0, 70.0)
PHASE1 = Phase(global_batch_size=16, peak_lr=0.3, max_epochs=2, warmup_epochs=0.5, gpus_per_model=2)
PHASE2 = Phase(global_batch_size=8, peak_lr=0.1, max_epochs=2)
SWAP = SWAPRecipe(
    name="small",
    summary="a run of a second",
    table="none",
    paper_scale=False,
    num_workers=2,
    phase1=PHASE1,
    phase2=PHASE2,
    batch_norm_batch_size=20,
)
SGD = SGDRecipe(name="small", summary="SGD", table="none", paper_scale=False, phase1=PHASE1)
SWA = SWARecipe(
    name="small",
    summary="SWA",
    table="none",
    paper_scale=False,
    phase1=PHASE1,
    phase2=Phase(global_batch_size=8, peak_lr=0.1, max_epochs=6, cycles=3),
    batch_norm_batch_size=20,
)


class SmallNet(nn.Module):
    """Two strided convolutions with batch norm and a linear layer: 10 logits of 32x32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        )
        self.linear = nn.Linear(6 * 9, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, 3, 32, 32] to [B, 10]."""
        return self.linear(self.body(images).flatten(1))


def make_split(num_images: int, seed: int) -> Split:
    """Noise of a strength and a colour that depend on the label: learnable, and no two alike."""
    random = np.random.default_rng(seed)
    labels = random.integers(10, size=num_images).astype(np.uint8)
    noise = random.integers(0, 120, size=(num_images, 32, 32, 3))
    colour = np.stack([labels * 13, 130 - labels * 12, labels % 3 * 50], axis=1)
    return Split(images=(noise + colour[:, None, None]).astype(np.uint8), labels=labels)


def make_dataset(train_images: int = 44, test_images: int = 30) -> Dataset:
    """A data set of random images."""
    return Dataset(
        name="synthetic",
        kind="synthetic",
        train=make_split(train_images, 1),
        test=make_split(test_images, 2),
        num_classes=10,
        sha256="0" * 64,
        source="noise",
        mean=MEAN,
        std=STD,
    )


def small_trainer(
    recipe: Recipe = SWAP,
    *,
    dataset: Dataset | None = None,
    make_model: Callable[[], nn.Module] = SmallNet,
    seed: int = 3,
    comm: Comm = ALONE,
    clock: Clock | None = None,
    callbacks: Iterable[Callback] = (),
    execution: Execution | None = None,
    checkpoints: Checkpoints | None = None,
    shutdown: GracefulShutdown = NEVER,
) -> Trainer:
    """A run's trainer on the CPU in float32."""
    return build_trainer(
        recipe,
        make_model,
        CifarSource(recipe, dataset or make_dataset()),
        seed=seed,
        device=torch.device("cpu"),
        execution=execution or Execution(),
        comm=comm,
        clock=clock or Clock(),
        callbacks=callbacks,
        checkpoints=checkpoints,
        shutdown=shutdown,
    )


def calling(**functions: Callable[..., object]) -> Callback:
    """A callback that calls these functions: `calling(on_epoch_end=rows.append)`."""
    made = Callback()
    for name, function in functions.items():
        assert hasattr(Callback, name)
        setattr(made, name, function)
    return made


class Kept(NoCheckpoints):
    """Keeps each theta [P] of this rank in memory, by (phase, worker, epoch), and the positions."""

    def __init__(self) -> None:
        self.thetas: dict[tuple[int, int, int], Tensor] = {}
        self.positions: list[Progress] = []

    def save(self, progress: Progress, state: TrainingState, row: EpochRow | None) -> None:
        """Keep them."""
        assert row is not None, "nothing interrupts it"
        assert (row.phase, row.worker, row.epoch) == (
            *(progress.phase, progress.worker),
            progress.epoch,
        )
        self.positions.append(progress)
        if state.is_first:
            where = progress.phase, progress.worker, progress.epoch
            self.thetas[where] = state.weights.copy()[0]

    def theta(self, worker: int, epoch: int) -> Tensor:
        """Of a worker of phase 2."""
        return self.thetas[2, worker, epoch]


def with_phases(recipe: SWAPRecipe = SWAP, **changed: dict[str, Any]) -> SWAPRecipe:
    """The recipe with other values in its phases: `with_phases(phase1={"max_epochs": 3})`."""
    phases = {name: replace(getattr(recipe, name), **values) for name, values in changed.items()}
    return replace(recipe, **phases)


def oracle_image(
    image: NDArray[np.uint8], augmentation: Augmentation, plan: AugmentationPlan, progress: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """One image as a plan wants it: its pixels [32, 32, 3], and normalised and cut [3, 32, 32]."""
    pad, y, x = augmentation.pad, plan.crop_y[progress], plan.crop_x[progress]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else image
    crop = padded[y : y + 32, x : x + 32]
    crop = crop[:, ::-1] if plan.flip[progress] else crop
    values = (crop.astype(np.float64) - np.array(MEAN)) / np.array(STD)
    top, left, side = plan.cutout_y[progress], plan.cutout_x[progress], plan.cutout
    values[top : top + side, left : left + side] = 0
    return crop, values.transpose(2, 0, 1)


def oracle_batch(
    split: Split, augmentation: Augmentation, plan: AugmentationPlan, positions: range
) -> tuple[Tensor, Tensor]:
    """A batch made image by image: float32 [B, 3, 32, 32] and int64 [B]."""
    order = [int(plan.order[p]) for p in positions]
    images = [
        oracle_image(split.images[i], augmentation, plan, p)[1]
        for i, p in zip(order, positions, strict=True)
    ]
    labels = torch.tensor([int(split.labels[i]) for i in order])
    return torch.from_numpy(np.stack(images)).float(), labels


def run_processes(
    function: Callable[[Comm, Path], None],
    world_size: int,
    folder: Path,
    *,
    timeout_s: float = 120,
    collectives_s: float = 60,
) -> None:
    """Run a module's function on each rank of a gloo group; a failure or a hang is an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.spawn(
        _process, (function, world_size, port, folder, collectives_s), nprocs=world_size, join=False
    )
    limit = time.monotonic() + timeout_s
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > limit:
                raise TimeoutError(f"{world_size} processes did not end in {timeout_s:g} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _process(
    rank: int,
    function: Callable[[Comm, Path], None],
    world_size: int,
    port: int,
    folder: Path,
    collectives_s: float,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    comm = connect("cpu", timeout_s=collectives_s)
    try:
        function(comm, folder)
    finally:
        comm.close()
    # Under load a thread of gloo's can outlive the interpreter's own exit, and abort it.
    sys.stdout.flush()
    os._exit(0)
