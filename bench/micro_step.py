"""Ways to run the training step, and the batch-norm pass: ours beside torch's own."""

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bench.alternation import Work
from bench.micro_data import MEAN, STD, random_split
from swap_fast.batchnorm import recompute_statistics_
from swap_fast.clock import Clock
from swap_fast.comm import ALONE
from swap_fast.config import Augmentation, Optimizer, Phase
from swap_fast.data.batches import Batches, Share
from swap_fast.data.images import DeviceImages
from swap_fast.execution import default_execution
from swap_fast.memory import keep_freed_memory
from swap_fast.models import ResNet9
from swap_fast.optimizer import MomentumSGD
from swap_fast.step import Step
from swap_fast.train import Stretch, train
from swap_fast.weights import Weights

STEPS = 4  # updates a turn


def _synchronised(device: torch.device, work: Callable[[], None], images: int) -> Work:
    def portion() -> int:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return images

    portion()
    return portion


def _our_step(device_type: str, width: int, batch_size: int) -> tuple[Step, Phase, torch.device]:
    keep_freed_memory()
    device, execution = torch.device(device_type), default_execution(device_type)
    weights = Weights(execution.place(ResNet9(width=width), device))
    scaled = execution.precision == "fp16"
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=scaled)
    phase = Phase(global_batch_size=batch_size, peak_lr=0.1, max_epochs=1)
    step = Step(weights, optimizer, phase, ALONE, execution)
    step.warm_up()
    return step, phase, device


def our_step(device_type: str, width: int, batch_size: int) -> Work:
    """The step of `swap_fast`, on one batch again and again."""
    step, _, device = _our_step(device_type, width, batch_size)
    step.images.normal_()

    def work() -> None:
        for _ in repeat(None, STEPS):
            step()

    return _synchronised(device, work, STEPS * batch_size)


def our_loop(device_type: str, width: int, batch_size: int) -> Work:
    """The same step in the training loop: input, schedule, metrics and clock with it."""
    step, phase, device = _our_step(device_type, width, batch_size)
    split = random_split(STEPS * batch_size)
    images = DeviceImages(split, mean=MEAN, std=STD, device=device, pad=4)
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

    def work() -> None:
        train(
            [Stretch(epochs=range(1), step=step, open_batches=lambda: batches)],
            phase,
            number=1,
            clock=clock,
            on_step=lambda _: None,
            after_epoch=lambda _: None,
        )

    return _synchronised(device, work, STEPS * batch_size)


def torch_step(
    device_type: str, width: int, batch_size: int, compiled: bool, channels_last: bool
) -> Work:
    """A plain loop over torch's own parts in the precision of ours; compiled or eager."""
    device = torch.device(device_type)
    execution = replace(
        default_execution(device_type),
        memory_format="channels_last" if channels_last else "contiguous",
    )
    model = execution.place(ResNet9(width=width), device)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    images = images.to(memory_format=execution.format)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    scaler = torch.amp.GradScaler(device_type, enabled=execution.precision == "fp16")

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with execution.autocast():
            return nn.functional.cross_entropy(model(images).float(), labels)

    forward = torch.compile(loss_of) if compiled else loss_of

    def work() -> None:
        for _ in repeat(None, STEPS):
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(forward(images, labels)).backward()
            scaler.step(optimizer)
            scaler.update()

    return _synchronised(device, work, STEPS * batch_size)


def batch_norm_pass(device_type: str, width: int, batch_size: int, ours: bool) -> Work:
    """The statistics of a few batches computed anew, by us or by torch's `update_bn`."""
    keep_freed_memory()  # for both: what is compared is the pass
    device, execution = torch.device(device_type), default_execution(device_type)
    model = execution.place(ResNet9(width=width), device)
    weights = Weights(model)
    batch = execution.empty_images((batch_size, 3, 32, 32), device).normal_()
    batches = [batch] * STEPS

    def work() -> None:
        if ours:
            recompute_statistics_(weights, batches, autocast=execution.autocast)
        else:
            with execution.autocast():
                update_bn(batches, model)

    return _synchronised(device, work, STEPS * batch_size)
