"""One update of theta from one global batch: lines 10-15 of Algorithm 1, and 21-24."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swap_fast.batchnorm import SlotStatistics
from swap_fast.capture import Pool, capture
from swap_fast.comm import Comm
from swap_fast.config import Phase
from swap_fast.data.augment import IMAGE_SIZE
from swap_fast.execution import DTYPES, Execution
from swap_fast.noise_scale import GradientNoise, NoiseMeter
from swap_fast.optimizer import MomentumSGD
from swap_fast.stages import Shape, shapes
from swap_fast.weights import Weights


class Metrics(NamedTuple):
    """What a step says of the images since the last reading."""

    loss: float
    """Their mean."""
    accuracy: float
    """The share that was right."""
    noise: GradientNoise | None = None
    """Of the gradients, where the phase's end depends on it."""


class Step:
    """An update in which every slot takes the gradient of its micro-batch, and all are averaged.

    Slots of other ranks run there, at the same time; slots of this rank run one after another and
    add up their gradients. One flat all-reduce then makes the sum of all. Set the learning rate,
    and call with a batch, or fill `images` and `labels` and call without: eager, compiled or
    captured, the call is the same. Nothing in it waits for the device.

    Arguments:
        weights: the model.
        optimizer: what turns the gradient into an update.
        phase: gives the slots, and the batch where no shape does.
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
        shape: Shape | None = None,
        statistics: SlotStatistics | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self._weights, self._optimizer, self._comm = weights, optimizer, comm
        self._execution, self._num_slots = execution, phase.gpus_per_model
        self._label_smoothing = label_smoothing
        self._slots = len(comm.slots(phase.gpus_per_model))
        self.shape = shape or shapes(phase, IMAGE_SIZE)[0]
        self.statistics = statistics or SlotStatistics(weights, phase.gpus_per_model, comm)
        device = weights.theta.device
        batch = self._slots * self.shape.global_batch_size // phase.gpus_per_model
        low_precision = comm.world_size > 1 and execution.all_reduce != "fp32"
        self._bucket = (
            torch.empty_like(weights.gradient, dtype=DTYPES[execution.all_reduce])
            if low_precision
            else weights.gradient
        )
        # Where the gradient's noise ends the phase; without, no update does anything for it.
        self.noise_meter = (
            NoiseMeter(
                weights.gradient,
                num_slots=phase.gpus_per_model,
                slots=self._slots,
                global_batch_size=self.shape.global_batch_size,
            )
            if phase.stop == "auto"
            else None
        )
        side = self.shape.image_size
        self.images = execution.empty_images((batch, 3, side, side), device)
        self.labels = torch.zeros(batch, dtype=torch.int64, device=device)
        # Over the images since the last reading: the sum of their losses, and how many were right.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self._seen = 0
        # What a call runs: the update, or the replay of its capture.
        self.run: Callable[[], None] = self.update_no_sync
        forward = self._loss_and_correct
        self._forward = torch.compile(forward, dynamic=False) if execution.compile else forward

    def _loss_and_correct(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with self._execution.autocast():
            logits = self._weights.model(images)
            loss = nn.functional.cross_entropy(
                logits.float(), labels, label_smoothing=self._label_smoothing
            )
        return loss, (logits.argmax(1) == labels).sum()

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
        self.run()
        self._seen += len(self.labels)

    def update_no_sync(self) -> None:
        """The update itself: tensors of fixed addresses, no host state, no wait for the device."""
        meter = self.noise_meter
        self._weights.gradient.zero_()
        slots = zip(self.images.chunk(self._slots), self.labels.chunk(self._slots), strict=True)
        for slot, (images, labels) in enumerate(slots):
            self.statistics.enter_(slot)
            loss, correct = self._forward(images, labels)
            # The mean over slots of their mean losses: lines 12 and 14 at once.
            self._optimizer.scale(loss / self._num_slots).backward()
            self.statistics.leave_(slot)
            self.loss_sum += loss.detach() * len(labels)
            self.correct += correct
            if meter is not None:
                meter.after_slot_(slot)
        self._sum_over_ranks_()
        if meter is not None:
            meter.after_sum_(self._optimizer.scale)
        self._optimizer.step()

    def _sum_over_ranks_(self) -> None:
        """Sum the gradient over the ranks, as it is or in half the bytes.

        Too large a sum becomes infinite on every rank alike, and the scaler leaves the update out.
        """
        gradient, bucket = self._weights.gradient, self._bucket
        if bucket is gradient:
            self._comm.all_reduce_(gradient)
            return
        bucket.copy_(gradient)
        gradient.copy_(self._comm.all_reduce_(bucket))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates, on the device."""
        self._optimizer.set_learning_rate(learning_rate)

    def read_sums(self) -> tuple[float, ...]:
        """This rank's sums behind the metrics since the last reading. Waits for the device."""
        sums = [self.loss_sum, self.correct.double(), self.loss_sum.new_tensor(self._seen)]
        noise = [] if self.noise_meter is None else self.noise_meter.sums.tolist()
        return (*torch.stack(sums).tolist(), *noise)

    def add_sums_(self, sums: tuple[float, ...]) -> None:
        """Count what an interrupted epoch had done before; nothing, where there are no sums."""
        if sums:
            loss, correct, seen, *noise = sums
            self.loss_sum += loss
            self.correct += int(correct)
            self._seen += int(seen)
            if self.noise_meter is not None:
                self.noise_meter.sums += self.noise_meter.sums.new_tensor(noise)

    def read_metrics(self) -> Metrics:
        """Metrics of all images since the last reading, over all ranks.

        Waits for the device: an epoch's only synchronisation.
        """
        meter, seen = self.noise_meter, self.loss_sum.new_tensor(self._seen)
        sums = torch.stack([self.loss_sum, self.correct.double(), seen])
        if meter is not None:
            sums = torch.cat([sums, meter.sums])
            meter.sums.zero_()
        loss, correct, images, *noise = self._comm.all_reduce_(sums).tolist()
        self.loss_sum.zero_()
        self.correct.zero_()
        self._seen = 0
        estimate = None if meter is None else meter.estimate(noise)
        return Metrics(loss / images, correct / images, estimate)

    def warm_up(self, updates: int = 2, *, pool: Pool | None = None) -> None:
        """Run updates on random images, then put everything back as it was.

        Whatever libraries choose, build or allocate on first use, they do here, off the clock;
        where the execution says so, the step is captured here too.

        Arguments:
            pool: memory that its graph shares with those of steps that run at other times.
        """
        theta, statistics = self._weights.copy()
        self.images.normal_()
        self.labels.zero_()
        self._weights.model.train()
        self.statistics.reset_()
        self.set_learning_rate(0.0)
        for _ in range(updates):
            self()
        if self._execution.capture:
            self.run = capture(self.update_no_sync, pool)
        self.read_metrics()
        self._weights.load_(theta, statistics)
        self.statistics.reset_()
        self._optimizer.reset_()


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
