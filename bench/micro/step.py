"""Variants of the training step, the batch-norm pass and whole loops: ours and torch's own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bench.micro.data import MEAN, PAD, STD, make_loader, random_split, stock_loader
from bench.micro.interleave import Turn
from bench.micro.peak import STEPS, observe, synchronize
from bench.options import MicroNet
from swap_fast.clock import Clock
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer, Phase, triangle
from swap_fast.data.cifar.batches import Batches
from swap_fast.data.cifar.dataset import Channels, Dataset, DatasetName, Split
from swap_fast.data.cifar.files import load_dataset
from swap_fast.distributed import ALONE
from swap_fast.host_memory import keep_freed_memory
from swap_fast.models import ResNet9, SpeedNet
from swap_fast.models.layers import Convolution
from swap_fast.recipes.speed import OPTIMIZER as SPEED_OPTIMIZER
from swap_fast.training.batchnorm import recompute_statistics_
from swap_fast.training.loop import TrainStage, train_epochs
from swap_fast.training.optimizer import recipe_optimizer
from swap_fast.training.state import Progress
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights

PEAK_LR = 0.1


def make_net(net: MicroNet, width: int, num_classes: int = 10) -> nn.Module:
    """The net with fresh weights; the whitening filters are random, which changes no time."""
    if net == "resnet9":
        return ResNet9(num_classes, width)
    return SpeedNet(num_classes, width, torch.randn(12, 3, 2, 2))


def with_torch_convolutions(net: nn.Module) -> nn.Module:
    """The net as others have it, with torch's own 3x3 convolutions, which share the weights."""
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, Convolution):
                plain = nn.Conv2d(
                    child.in_channels, child.out_channels, kernel_size=3, padding=1, bias=False
                )
                plain.weight = child.weight
                setattr(module, name, plain)
    return net


def make_step(
    execution: Execution,
    width: int,
    batch_size: int,
    *,
    num_classes: int = 10,
    net: MicroNet = "resnet9",
) -> tuple[Step, Phase]:
    """The step of `swap_fast` in phase 2, with the net's own optimizer, not warmed up yet."""
    device = torch.device(execution.device_type)
    config = Optimizer() if net == "resnet9" else SPEED_OPTIMIZER
    placed = execution.place(make_net(net, width, num_classes), device)
    weights = Weights(placed, groups=config.groups)
    scaled = execution.precision == "fp16"
    optimizer = recipe_optimizer(weights, config, scale_gradients=scaled)
    phase = Phase(global_batch_size=batch_size, peak_lr=PEAK_LR, max_epochs=1)
    return Step(weights, optimizer, phase, ALONE, execution), phase


def our_step(execution: Execution, width: int, batch_size: int, net: MicroNet = "resnet9") -> Turn:
    """The step of `swap_fast` on one batch, repeated."""
    keep_freed_memory()
    made: list[Step] = []

    def make() -> Step:
        made.append(make_step(execution, width, batch_size, net=net)[0])
        return made[0]

    def prepare() -> None:
        made[0].warm_up()
        made[0].images.normal_()

    return observe(torch.device(execution.device_type), make, batch_size, prepare=prepare)


def our_loop(execution: Execution, width: int, batch_size: int) -> Turn:
    """The same step in the training loop, with input, schedule, metrics and clock."""
    return training_loop(execution, width, batch_size, random_split(STEPS * batch_size), MEAN, STD)


def training_loop(
    execution: Execution, width: int, batch_size: int, split: Split, mean: Channels, std: Channels
) -> Turn:
    """An epoch of `swap_fast.training.loop` over a split, whose metrics are read at its end."""
    keep_freed_memory()
    device = torch.device(execution.device_type)
    step, phase = make_step(execution, width, batch_size)
    batches = make_loader(split, execution, phase, step.batch, mean=mean, std=std)
    if execution.capture and isinstance(batches, Batches):
        step.load_from_(batches)
    step.warm_up()
    clock = Clock()

    def turn() -> int:
        epochs = train_epochs(
            [TrainStage(epochs=range(1), step=step, open_batches=lambda: batches)],
            phase,
            begin=Progress(phase=1),
            clock=clock,
            on_step=lambda images: None,
        )
        assert len(list(epochs)) == 1
        synchronize(device)
        return batches.steps_per_epoch * batch_size

    turn()
    return turn


def nesterov_sgd(parameters: Iterable[Tensor], *, fused: bool | None = None) -> torch.optim.SGD:
    """Torch's SGD with the settings of ours."""
    config = Optimizer()
    return torch.optim.SGD(
        parameters,
        lr=PEAK_LR,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
        fused=fused,
    )


def torch_step(
    execution: Execution, width: int, batch_size: int, net: MicroNet = "resnet9"
) -> Turn:
    """A plain step of torch's own parts in the precision of ours; compiled or eager."""
    device = torch.device(execution.device_type)
    return observe(device, lambda: TorchStep(execution, width, batch_size, net), batch_size)


class TorchStep:
    """A step of torch's own parts on one batch: separate parameters, default SGD.

    The filters of `speed_net` have torch's Muon, with as many iterations as ours.
    """

    def __init__(
        self, execution: Execution, width: int, batch_size: int, net: MicroNet = "resnet9"
    ) -> None:
        device = torch.device(execution.device_type)
        model = with_torch_convolutions(make_net(net, width))
        self._model = execution.place(model, device)
        images = torch.randn(batch_size, 3, 32, 32, device=device)
        self._images = images.to(memory_format=execution.format)
        self._labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        # torch's Muon takes matrices: each filter bank is seen as one, in the order of its memory.
        self._filters = [p for p in trained if p.dim() == 4 and net == "speed_net"]
        self._matrices = [nn.Parameter(_as_matrix(p.detach())) for p in self._filters]
        others = [p for p in trained if p.dim() != 4 or net != "speed_net"]
        self._optimizers: list[torch.optim.Optimizer] = [nesterov_sgd(others)]
        if self._matrices:
            muon = torch.optim.Muon(self._matrices, lr=PEAK_LR, weight_decay=0.0, ns_steps=3)
            self._optimizers.append(muon)
        scaled = execution.precision == "fp16"
        self._scaler = torch.amp.GradScaler(execution.device_type, enabled=scaled)
        self._execution = execution
        self._forward = torch.compile(self._loss) if execution.step == "compiled" else self._loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with self._execution.autocast():
            return nn.functional.cross_entropy(self._model(images).float(), labels)

    def __call__(self) -> None:
        self._model.zero_grad(set_to_none=True)
        self._scaler.scale(self._forward(self._images, self._labels)).backward()
        for matrix, parameter in zip(self._matrices, self._filters, strict=True):
            assert parameter.grad is not None, "the loss depends on every filter"
            matrix.grad = _as_matrix(parameter.grad)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()


def _as_matrix(filters: Tensor) -> Tensor:
    """[n, c, h, w] as [n, c * h * w], a view; the columns are in the order of the memory."""
    if filters.is_contiguous(memory_format=torch.channels_last):
        return filters.permute(0, 2, 3, 1).flatten(1)
    return filters.flatten(1)


def batch_norm_pass(execution: Execution, width: int, batch_size: int, ours: bool) -> Turn:
    """The statistics of a few batches recomputed, by us or by torch's `update_bn`."""
    keep_freed_memory()  # for both, so that only the pass differs
    device = torch.device(execution.device_type)
    model = execution.place(ResNet9(width=width), device)
    weights = Weights(model)
    batch = execution.empty_images((batch_size, 3, 32, 32), device).normal_()
    batches = list(repeat(batch, STEPS))

    def turn() -> int:
        if ours:
            recompute_statistics_(weights, batches, autocast=execution.autocast)
        else:
            with execution.autocast():
                update_bn(batches, model)
        synchronize(device)
        return STEPS * batch_size

    turn()
    return turn


# Whole training loops over real batches, input included: ours, a stock one, torch's best practice.
# The peers are written as an experienced user of torch writes them, in the precision of ours. All
# three draw a new crop and flip of each image in each epoch, normalise it, and have the same
# learning rates; ours also does cutout.


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The net, the data and the execution of every loop."""

    execution: Execution
    width: int
    batch_size: int
    dataset: DatasetName
    data: Path | None
    """What `locate_dataset` found."""
    num_images: int
    """From the start of the training split; a turn is one epoch of them."""

    def load(self) -> tuple[Split, Dataset]:
        """The images of an epoch, and their data set."""
        dataset = load_dataset(self.dataset, self.data)
        train = dataset.train
        images, labels = train.images[: self.num_images], train.labels[: self.num_images]
        return Split(images=images, labels=labels), dataset

    def optimizer(
        self, model: nn.Module, *, fused: bool
    ) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]:
        """Nesterov SGD with its schedule, stepped after each update."""
        sgd = nesterov_sgd(model.parameters(), fused=fused or None)
        steps = self.num_images // self.batch_size
        rate = triangle(1.0, 0.0, 1.0, 0.0)  # each epoch from the peak to 0, as in ours
        schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda i: rate((i % steps + 1) / steps))
        return sgd, schedule


Epoch = Callable[[], tuple[float, float]]
"""Trains an epoch; returns its mean loss and its accuracy."""


def our_training(setup: Setup) -> Turn:
    """Our loop, whose batches are gathered from images on the device."""
    split, dataset = setup.load()
    return training_loop(
        setup.execution, setup.width, setup.batch_size, split, dataset.mean, dataset.std
    )


def stock_training(setup: Setup, loader_processes: int) -> Turn:
    """A turn of the stock loop."""
    return _epoch_turn(setup, stock_epoch(setup, loader_processes))


def best_practice_training(setup: Setup, compile_mode: str | None) -> Turn:
    """A turn of torch's best practice."""
    return _epoch_turn(setup, best_practice_epoch(setup, compile_mode))


def _epoch_turn(setup: Setup, epoch: Epoch) -> Turn:
    device = torch.device(setup.execution.device_type)

    def turn() -> int:
        epoch()
        synchronize(device)
        return setup.num_images // setup.batch_size * setup.batch_size

    turn()
    return turn


def stock_epoch(setup: Setup, loader_processes: int) -> Epoch:
    """Eager, NCHW, a DataLoader of torchvision's transforms, loss and accuracy read each step."""
    split, dataset = setup.load()
    execution, device = setup.execution, torch.device(setup.execution.device_type)
    loader = stock_loader(
        split,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=setup.batch_size,
        loader_processes=loader_processes,
        pin_memory=device.type == "cuda",
    )
    model = with_torch_convolutions(ResNet9(dataset.num_classes, setup.width)).to(device)
    optimizer, schedule = setup.optimizer(model, fused=False)
    scaler = torch.amp.GradScaler(device.type, enabled=execution.precision == "fp16")

    def epoch() -> tuple[float, float]:
        model.train()
        total_loss, total_correct, seen = 0.0, 0, 0
        for images, labels in loader:
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with execution.autocast():
                logits = model(images)
                loss = nn.functional.cross_entropy(logits, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            total_loss += loss.item() * len(labels)
            total_correct += int((logits.argmax(1) == labels).sum().item())
            seen += len(labels)
        return total_loss / seen, total_correct / seen

    return epoch


def best_practice_epoch(setup: Setup, compile_mode: str | None) -> Epoch:
    """Channels-last, autocast, compiled, fused SGD, batches made on the device, no sync in a step.

    Arguments:
        compile_mode: torch.compile's mode; None runs eagerly.
    """
    split, dataset = setup.load()
    execution, device = setup.execution, torch.device(setup.execution.device_type)
    images = _padded(split, device)
    labels = torch.from_numpy(split.labels).to(device, torch.int64)
    mean, std = (torch.tensor(each, device=device) for each in (dataset.mean, dataset.std))
    net = with_torch_convolutions(ResNet9(dataset.num_classes, setup.width))
    model = execution.place(net, device)  # channels_last
    optimizer, schedule = setup.optimizer(model, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=execution.precision == "fp16")

    def forward(batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with execution.autocast():
            logits = model(batch)
            loss = nn.functional.cross_entropy(logits, targets)
        return loss, (logits.argmax(1) == targets).sum()

    if compile_mode is not None:
        forward = torch.compile(forward, mode=compile_mode)

    def epoch() -> tuple[float, float]:
        model.train()
        total_loss = torch.zeros((), device=device)
        total_correct = torch.zeros((), dtype=torch.int64, device=device)
        order = torch.randperm(len(labels), device=device)
        seen = 0
        for index in order.split(setup.batch_size):
            if len(index) < setup.batch_size:
                break
            batch = (_cropped(images, index) - mean) / std
            targets = labels[index]
            torch.compiler.cudagraph_mark_step_begin()  # for modes that make graphs
            loss, correct = forward(batch.permute(0, 3, 1, 2), targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            total_loss += loss.detach() * len(index)
            total_correct += correct
            seen += len(index)
        return total_loss.item() / seen, total_correct.item() / seen

    return epoch


def _padded(split: Split, device: torch.device) -> Tensor:
    """The images with a reflected border, uint8 [N, 40, 40, 3]."""
    images = torch.from_numpy(split.images).to(device)
    side = torch.arange(-PAD, 32 + PAD, device=device).abs()
    side = torch.minimum(side, 62 - side)
    return images[:, side][:, :, side]


def _cropped(images: Tensor, index: Tensor) -> Tensor:
    """A batch of random crops, half of them mirrored: [B, 32, 32, 3], in one gather."""
    size, places = len(index), torch.arange(32, device=images.device)
    top, left = torch.randint(2 * PAD + 1, (2, size, 1), device=images.device)
    mirrored = torch.rand(size, 1, device=images.device) < 0.5
    rows, columns = top + places, left + torch.where(mirrored, 31 - places, places)
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
