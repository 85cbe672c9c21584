"""One update of theta from one global batch: lines 10-15 of Algorithm 1, and 21-24."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swap_fast.config.execution import DTYPES, Execution
from swap_fast.config.phase import BatchShape, Phase, shapes
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.batches import Loader
from swap_fast.distributed import Comm
from swap_fast.training.batchnorm import ReplicaStatistics
from swap_fast.training.capture import Captures
from swap_fast.training.noise_scale import GradientNoise, NoiseMeter
from swap_fast.training.optimizer import MomentumSGD, ScaledOptimizer
from swap_fast.training.weights import Weights

# What every update has in common: the replicas' gradients, their sum over ranks, and the metrics.


class Metrics(NamedTuple):
    """What a step says of the images since the last reading."""

    loss: float
    """Their mean."""
    accuracy: float
    """The share that was right; NaN where the loss counts none."""
    noise: GradientNoise | None = None
    """Of the gradients, where the phase's end depends on it."""


class Update(ABC):
    """An update in which every replica takes the gradient of its micro-batch, and all are averaged.

    Replicas of other ranks run there, at the same time; replicas of this rank run one after
    another and add up their gradients. One flat all-reduce then makes the sum of all.

    Arguments:
        weights: the model.
        optimizer: what turns the gradient into an update.
        phase: gives the replicas.
        comm: the ranks that share the update; `ALONE` for a worker with one device.
        global_batch_size: images of an update, over all replicas.
        statistics: batch norm's, where steps of one phase share them.
        bucket: where the gradient is summed over ranks, in fewer bytes; None: in place.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: ScaledOptimizer,
        phase: Phase,
        comm: Comm,
        *,
        global_batch_size: int,
        statistics: ReplicaStatistics | None = None,
        bucket: Tensor | None = None,
    ) -> None:
        self._weights, self._optimizer, self._comm = weights, optimizer, comm
        self._num_replicas, self._replicas = (
            phase.gpus_per_model,
            len(comm.replicas(phase.gpus_per_model)),
        )
        self._bucket = bucket
        self.statistics = statistics or ReplicaStatistics(weights, phase.gpus_per_model, comm)
        # Where the gradient's noise ends the phase; without, no update does anything for it.
        self.noise_meter = (
            NoiseMeter(
                weights.gradient,
                num_replicas=phase.gpus_per_model,
                replicas=self._replicas,
                global_batch_size=global_batch_size,
            )
            if phase.stop == "auto"
            else None
        )
        device = weights.theta.device
        # Over the images since the last reading: the sum of their losses, and how many were right.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self._seen = 0
        # Further sums, float64, that a kind of step has.
        self._extra_sums: list[Tensor] = []

    @abstractmethod
    def _forward_replica(self, replica: int) -> tuple[Tensor, Tensor, int]:
        """The mean loss of a replica's micro-batch, how many were right, and its images."""

    def update_no_sync(self) -> None:
        """The update itself: tensors of fixed addresses, no host state, no wait for the device."""
        meter = self.noise_meter
        self._weights.gradient.zero_()
        for replica in range(self._replicas):
            self.statistics.swap_in(replica)
            loss, correct, images = self._forward_replica(replica)
            # The mean over replicas of their mean losses: lines 12 and 14 at once.
            self._optimizer.scale(loss / self._num_replicas).backward()
            self._weights.gather_gradient_()
            self.statistics.swap_out(replica)
            self.loss_sum += loss.detach() * images
            self.correct += correct
            if meter is not None:
                meter.after_replica_(replica)
        self._sum_over_ranks_()
        if meter is not None:
            meter.after_sum_(self._optimizer.scale)
        self._optimizer.step()

    def _sum_over_ranks_(self) -> None:
        """Sum the gradient over the ranks, as it is or in half the bytes.

        Too large a sum becomes infinite on every rank alike, and the scaler leaves the update out.
        """
        gradient, bucket = self._weights.gradient, self._bucket
        if bucket is None:
            self._comm.all_reduce_(gradient)
            return
        bucket.copy_(gradient)
        gradient.copy_(self._comm.all_reduce_(bucket))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates, on the device."""
        self._optimizer.set_learning_rate(learning_rate)

    def read_sums(self) -> tuple[float, ...]:
        """This rank's sums behind the metrics since the last reading. Waits for the device."""
        noise = [] if self.noise_meter is None else self.noise_meter.sums.tolist()
        return (*self._sums().tolist(), *noise)

    def _sums(self) -> Tensor:
        seen = self.loss_sum.new_tensor(self._seen)
        return torch.stack([self.loss_sum, self.correct.double(), seen, *self._extra_sums])

    def add_sums_(self, sums: tuple[float, ...]) -> None:
        """Count what an interrupted epoch had done before; nothing, where there are no sums."""
        if sums:
            loss, correct, seen, *others = sums
            further, noise = others[: len(self._extra_sums)], others[len(self._extra_sums) :]
            self.loss_sum += loss
            self.correct += int(correct)
            self._seen += int(seen)
            for own, value in zip(self._extra_sums, further, strict=True):
                own += value
            if self.noise_meter is not None:
                self.noise_meter.sums += self.noise_meter.sums.new_tensor(noise)

    def read_metrics(self) -> Metrics:
        """Metrics of all images since the last reading, over all ranks.

        Waits for the device: an epoch's only synchronisation.
        """
        meter, sums = self.noise_meter, self._sums()
        if meter is not None:
            sums = torch.cat([sums, meter.sums])
            meter.sums.zero_()
        loss, correct, images, *others = self._comm.all_reduce_(sums).tolist()
        further, noise = others[: len(self._extra_sums)], others[len(self._extra_sums) :]
        for own in (self.loss_sum, self.correct, *self._extra_sums):
            own.zero_()
        self._seen = 0
        estimate = None if meter is None else meter.estimate(noise)
        return Metrics(loss / images, self._share(correct, images, further), estimate)

    def _share(self, correct: float, images: float, further: list[float]) -> float:
        """The train accuracy, from the sums over all ranks."""
        return correct / images


class Step(Update):
    """An update from images and their labels, in the same memory every time.

    Set the learning rate, and call with a batch, or fill `images` and `labels` and call without:
    eager, compiled or captured, the call is the same. Nothing in it waits for the device.

    Arguments:
        weights: the model.
        optimizer: what turns the gradient into an update.
        phase: gives the replicas, and the batch where no shape does.
        comm: the ranks that share the update; `ALONE` for a worker with one device.
        shape: of the batches, where a phase has several.
        statistics: batch norm's, where steps of one phase share them.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: MomentumSGD,
        phase: Phase,
        comm: Comm,
        execution: Execution,
        *,
        shape: BatchShape | None = None,
        statistics: ReplicaStatistics | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.shape = shape or shapes(phase, IMAGE_SIZE)[0]
        low_precision = comm.world_size > 1 and execution.all_reduce != "fp32"
        super().__init__(
            weights,
            optimizer,
            phase,
            comm,
            global_batch_size=self.shape.global_batch_size,
            statistics=statistics,
            bucket=torch.empty_like(weights.gradient, dtype=DTYPES[execution.all_reduce])
            if low_precision
            else None,
        )
        device = weights.theta.device
        batch = self._replicas * self.shape.global_batch_size // phase.gpus_per_model
        side = self.shape.image_size
        self.images = execution.empty_images((batch, 3, side, side), device)
        self.labels = torch.zeros(batch, dtype=torch.int64, device=device)
        # What a call runs in place of the update: the replay of its capture.
        self.replay: Callable[[], None] | None = None
        self._captured = execution.capture
        self._forward = _forward(weights.model, execution, label_smoothing)

    def __call__(self, images: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Update theta: run the update, or replay its capture.

        Arguments:
            images: copied into `images` [B, C, H, W], and must be like it; None: it is filled.
            labels: copied into `labels` [B] int64; None: it is filled.

        Raises:
            ValueError: shape, type, device or memory format is another.
        """
        if images is not None:
            self.images.copy_(_alike("images", images, self.images))
        if labels is not None:
            self.labels.copy_(_alike("labels", labels, self.labels))
        (self.replay or self.update_no_sync)()
        self._seen += len(self.labels)

    def _forward_replica(self, replica: int) -> tuple[Tensor, Tensor, int]:
        images, labels = (
            self.images.chunk(self._replicas)[replica],
            self.labels.chunk(self._replicas)[replica],
        )
        return *self._forward(images, labels), len(labels)

    def load_batch(self, batches: Loader, i: int) -> None:
        """Fill the batch with this rank's part of update i of the epoch that was started."""
        batches.load_(i, self.images, self.labels)

    @property
    def num_images(self) -> int:
        """Of this rank, in an update."""
        return len(self.labels)

    def warm_up(self, updates: int = 2, *, captures: Captures | None = None) -> None:
        """Run updates on random images, then put everything back as it was.

        Whatever libraries choose, build or allocate on first use, they do here, off the clock.

        Where the execution says so the step is captured here too: its calls are then replays.

        Arguments:
            captures: owner of the graph, which shares its memory with the owner's others; None: an
                owner of its own, for a process without a process group.
        """
        theta, statistics = self._weights.copy()
        self.images.normal_()
        self.labels.zero_()
        self._weights.model.train()
        self.statistics.reset_()
        self.set_learning_rate(0.0)
        if self._captured:
            self.replay = (captures or Captures()).capture(self.update_no_sync)
        for _ in range(updates):
            self()
        self.read_metrics()
        self._weights.load_(theta, statistics)
        self.statistics.reset_()
        self._optimizer.reset_()


def _forward(
    model: nn.Module, execution: Execution, label_smoothing: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The mean loss of images and labels, and how many are right; compiled where asked for.

    Not a method: a step that held its own method would live until the garbage collector runs.
    """

    def loss_and_correct(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with execution.autocast():
            logits = model(images)
            loss = nn.functional.cross_entropy(
                logits.float(), labels, label_smoothing=label_smoothing
            )
        return loss, (logits.argmax(1) == labels).sum()

    return torch.compile(loss_and_correct, dynamic=False) if execution.compile else loss_and_correct


def _alike(name: str, given: Tensor, static: Tensor) -> Tensor:
    """What is given, where it is of the kind of a step's own tensor."""
    nhwc = static.dim() == 4 and not static.is_contiguous()
    layout = torch.channels_last if nhwc else torch.contiguous_format
    if (
        given.shape == static.shape
        and given.dtype == static.dtype
        and given.device == static.device
        and given.is_contiguous(memory_format=layout)
    ):
        return given
    raise ValueError(f"{name}: expected {_describe(static)}, got {_describe(given)}")


def _describe(tensor: Tensor) -> str:
    layout = f"strides {list(tensor.stride())}"
    if tensor.is_contiguous():
        layout = "contiguous"
    elif tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        layout = "channels_last"
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)} {layout} on {tensor.device}"
