"""Ways to run the training step, and the batch-norm pass: ours beside torch's own."""

from itertools import repeat

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bench.micro.data import MEAN, STD, random_split
from bench.micro.footprint import STEPS, observe, synchronize
from bench.micro.interleave import Work
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Optimizer, Phase
from swap_fast.data.cifar.batches import Batches, Share
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.distributed import ALONE
from swap_fast.models import ResNet9
from swap_fast.training.batchnorm import recompute_statistics_
from swap_fast.training.clock import Clock
from swap_fast.training.loop import Stretch, train
from swap_fast.training.memory import keep_freed_memory
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.state import Position
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights

PEAK_LR = 0.1


def make_step(execution: Execution, width: int, batch_size: int) -> tuple[Step, Phase]:
    """The step of `swap_fast` as phase 2 has it, not warmed up yet."""
    device = torch.device(execution.device_type)
    weights = Weights(execution.place(ResNet9(width=width), device))
    scaled = execution.precision == "fp16"
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=scaled)
    phase = Phase(global_batch_size=batch_size, peak_lr=PEAK_LR, max_epochs=1)
    return Step(weights, optimizer, phase, ALONE, execution), phase


def our_step(execution: Execution, width: int, batch_size: int) -> Work:
    """The step of `swap_fast`, on one batch again and again."""
    keep_freed_memory()
    made: list[Step] = []

    def make() -> Step:
        made.append(make_step(execution, width, batch_size)[0])
        return made[0]

    def prepare() -> None:
        made[0].warm_up()
        made[0].images.normal_()

    return observe(torch.device(execution.device_type), make, batch_size, prepare=prepare)


def our_loop(execution: Execution, width: int, batch_size: int) -> Work:
    """The same step in the training loop: input, schedule, metrics and clock with it."""
    return training_loop(execution, width, batch_size, random_split(STEPS * batch_size), MEAN, STD)


def training_loop(
    execution: Execution,
    width: int,
    batch_size: int,
    split: Split,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Work:
    """An epoch of `swap_fast.training.loop` over a split, metrics read at its end."""
    keep_freed_memory()
    device = torch.device(execution.device_type)
    step, phase = make_step(execution, width, batch_size)
    step.warm_up()
    images = DeviceImages(split, mean=mean, std=std, device=device, pad=4)
    share = Share(
        num_images=len(images),
        augmentation=Augmentation(),
        phase=phase,
        seed=0,
        number=1,
        slots=range(1),
    )
    batches = Batches(images, share)
    clock = Clock()

    def work() -> int:
        train(
            [Stretch(epochs=range(1), step=step, open_batches=lambda: batches)],
            phase,
            begin=Position(phase=1),
            clock=clock,
            on_step=lambda images: None,
            after_epoch=lambda row, stopped_by: None,
        )
        synchronize(device)
        return batches.steps_per_epoch * batch_size

    work()
    return work


def torch_step(execution: Execution, width: int, batch_size: int) -> Work:
    """A plain loop over torch's own parts in the precision of ours; compiled or eager."""
    device = torch.device(execution.device_type)

    def make() -> "TorchStep":
        return TorchStep(execution, width, batch_size)

    return observe(device, make, batch_size)


class TorchStep:
    """A step of torch's own parts: parameters apart, default SGD, on one batch."""

    def __init__(self, execution: Execution, width: int, batch_size: int) -> None:
        device = torch.device(execution.device_type)
        self._model = execution.place(ResNet9(width=width), device)
        images = torch.randn(batch_size, 3, 32, 32, device=device)
        self._images = images.to(memory_format=execution.format)
        self._labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), lr=PEAK_LR, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        scaled = execution.precision == "fp16"
        self._scaler = torch.amp.GradScaler(execution.device_type, enabled=scaled)
        self._execution = execution
        self._forward = torch.compile(self._loss) if execution.compile else self._loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with self._execution.autocast():
            return nn.functional.cross_entropy(self._model(images).float(), labels)

    def __call__(self) -> None:
        """One update."""
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(self._forward(self._images, self._labels)).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()


def batch_norm_pass(execution: Execution, width: int, batch_size: int, ours: bool) -> Work:
    """The statistics of a few batches computed anew, by us or by torch's `update_bn`."""
    keep_freed_memory()  # for both: what is compared is the pass
    device = torch.device(execution.device_type)
    model = execution.place(ResNet9(width=width), device)
    weights = Weights(model)
    batch = execution.empty_images((batch_size, 3, 32, 32), device).normal_()
    batches = list(repeat(batch, STEPS))

    def work() -> int:
        if ours:
            recompute_statistics_(weights, batches, autocast=execution.autocast)
        else:
            with execution.autocast():
                update_bn(batches, model)
        synchronize(device)
        return STEPS * batch_size

    work()
    return work
