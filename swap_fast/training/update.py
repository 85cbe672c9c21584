"""What every update has in common: the slots' gradients, their sum over ranks, and the metrics."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from swap_fast.config.phase import Phase
from swap_fast.distributed import Comm
from swap_fast.training.batchnorm import SlotStatistics
from swap_fast.training.noise_scale import GradientNoise, NoiseMeter
from swap_fast.training.state import AnyOptimizer
from swap_fast.training.weights import Weights


class Metrics(NamedTuple):
    """What a step says of the images since the last reading."""

    loss: float
    """Their mean."""
    accuracy: float
    """The share that was right; NaN where the loss counts none."""
    noise: GradientNoise | None = None
    """Of the gradients, where the phase's end depends on it."""


class Update(ABC):
    """An update in which every slot takes the gradient of its micro-batch, and all are averaged.

    Slots of other ranks run there, at the same time; slots of this rank run one after another and
    add up their gradients. One flat all-reduce then makes the sum of all.

    Arguments:
        weights: the model.
        optimizer: what turns the gradient into an update.
        phase: gives the slots.
        comm: the ranks that share the update; `ALONE` for a worker with one device.
        global_batch_size: images of an update, over all slots.
        statistics: batch norm's, where steps of one phase share them.
        bucket: where the gradient is summed over ranks, in fewer bytes; None: in place.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: AnyOptimizer,
        phase: Phase,
        comm: Comm,
        *,
        global_batch_size: int,
        statistics: SlotStatistics | None = None,
        bucket: Tensor | None = None,
    ) -> None:
        self._weights, self._optimizer, self._comm = weights, optimizer, comm
        self._num_slots, self._slots = phase.gpus_per_model, len(comm.slots(phase.gpus_per_model))
        self._bucket = bucket
        self.statistics = statistics or SlotStatistics(weights, phase.gpus_per_model, comm)
        # Where the gradient's noise ends the phase; without, no update does anything for it.
        self.noise_meter = (
            NoiseMeter(
                weights.gradient,
                num_slots=phase.gpus_per_model,
                slots=self._slots,
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
        self._further: list[Tensor] = []

    @abstractmethod
    def _forward_slot(self, slot: int) -> tuple[Tensor, Tensor, int]:
        """The mean loss of a slot's micro-batch, how many were right, and its images."""

    def update_no_sync(self) -> None:
        """The update itself: tensors of fixed addresses, no host state, no wait for the device."""
        meter = self.noise_meter
        self._weights.gradient.zero_()
        for slot in range(self._slots):
            self.statistics.enter_(slot)
            loss, correct, images = self._forward_slot(slot)
            # The mean over slots of their mean losses: lines 12 and 14 at once.
            self._optimizer.scale(loss / self._num_slots).backward()
            self._weights.gather_gradient_()
            self.statistics.leave_(slot)
            self.loss_sum += loss.detach() * images
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
        return torch.stack([self.loss_sum, self.correct.double(), seen, *self._further])

    def add_sums_(self, sums: tuple[float, ...]) -> None:
        """Count what an interrupted epoch had done before; nothing, where there are no sums."""
        if sums:
            loss, correct, seen, *others = sums
            further, noise = others[: len(self._further)], others[len(self._further) :]
            self.loss_sum += loss
            self.correct += int(correct)
            self._seen += int(seen)
            for own, value in zip(self._further, further, strict=True):
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
        further, noise = others[: len(self._further)], others[len(self._further) :]
        for own in (self.loss_sum, self.correct, *self._further):
            own.zero_()
        self._seen = 0
        estimate = None if meter is None else meter.estimate(noise)
        return Metrics(loss / images, self._share(correct, images, further), estimate)

    def _share(self, correct: float, images: float, further: list[float]) -> float:
        """The train accuracy, from the sums over all ranks."""
        return correct / images
