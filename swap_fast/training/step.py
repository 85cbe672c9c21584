"""One update of theta from one global batch: lines 10-15 of Algorithm 1, and 21-24."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swap_fast.config.execution import DTYPES, Execution
from swap_fast.config.phase import BatchShape, Phase, shapes
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.batches import Batch, Batches
from swap_fast.distributed import Comm
from swap_fast.training.all_reduce import GradientSum
from swap_fast.training.batchnorm import ReplicaStatistics
from swap_fast.training.capture import Captures, DeviceFeed
from swap_fast.training.optimizer import ScaledOptimizer
from swap_fast.training.weights import Weights

# The gradient noise scale of McCandlish et al. (2018), from gradients that are taken anyway. With G
# the gradient over all images and S the trace of the covariance of one image's gradient, that
# of B images has E|g_B|^2 = |G|^2 + S / B. Two batch sizes give both unknowns (their appendix A.1):
# here the replicas' micro-batches, and the global batch, whose gradient is their mean. S / |G|^2 is
# the noise scale: the batch of whose gradient's squared norm one half is noise.


@dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """What the gradients of some updates say of signal and noise."""

    squared_norm: float
    """|G|^2, without bias: where little signal is left, the estimate may be below 0."""
    variance: float
    """S, without bias."""
    global_batch_size: int
    """Images of an update: the larger of the two batches."""

    @property
    def scale(self) -> float | None:
        """The noise scale S / |G|^2 in images; None where no signal is found."""
        return self.variance / self.squared_norm if self.squared_norm > 0 else None

    def exceeds(self, ratio: float) -> bool:
        """Whether the noise scale is above `ratio` global batches, as it is where no signal is."""
        return self.variance > ratio * self.global_batch_size * self.squared_norm


def gradient_noise(
    micro_square: float, global_square: float, *, micro_batch_size: int, global_batch_size: int
) -> GradientNoise:
    """Signal and noise from the mean squared norms of gradients of two batch sizes.

    Both estimates are linear in the norms, so that norms averaged over many updates give the mean
    estimates; their ratio is taken last, since a ratio of single estimates is biased.

    Arguments:
        micro_square: mean of |g|^2 over micro-batches.
        global_square: mean of |g|^2 over global batches.
    """
    small, large = micro_batch_size, global_batch_size
    return GradientNoise(
        squared_norm=(large * global_square - small * micro_square) / (large - small),
        variance=(micro_square - global_square) / (1 / small - 1 / large),
        global_batch_size=global_batch_size,
    )


class NoiseMeter:
    """Takes the norms of an update's gradients: tensors of fixed addresses, nothing waits.

    A replica's gradient must stand alone for its norm, so that all but the last of a rank are put
    aside and added up there, in the order in which they would have been added up anyway: the sum
    is the same to the bit. With L replicas on a rank an update reads the gradient L + 1 times for
    the norms and, if L > 1, reads or writes 4 L - 2 more vectors of its size to put it aside.

    Arguments:
        gradient: [P] fp32, into which backward passes add.
        num_replicas: that share an update, 2 or more.
        replicas: of these, the ones on this rank.
        global_batch_size: images of an update.
    """

    def __init__(
        self, gradient: Tensor, *, num_replicas: int, replicas: int, global_batch_size: int
    ) -> None:
        self._gradient, self._num_replicas = gradient, num_replicas
        self._global_batch_size = global_batch_size
        self._aside = torch.empty_like(gradient) if replicas > 1 else None
        self._norms = gradient.new_zeros(replicas)
        # [4] fp64, since the last reading: the sum of micro-batches' squared norms and how many
        # they are, then the same of updates.
        self.sums = gradient.new_zeros(4, dtype=torch.float64)
        self._counts = self.sums.new_tensor([replicas, 1])
        self._one = self.sums.new_ones(())

    def after_replica_(self, replica: int) -> None:
        """Take the norm of a replica's gradient, and make room for the next one's.

        Arguments:
            replica: counted on this rank, from 0.
        """
        self._norms[replica].copy_(torch.linalg.vector_norm(self._gradient))
        if self._aside is None:
            return
        if replica == len(self._norms) - 1:
            self._gradient.add_(self._aside)
            return
        if replica == 0:
            self._aside.copy_(self._gradient)
        else:
            self._aside.add_(self._gradient)
        self._gradient.zero_()

    def after_sum_(self, scale: Callable[[Tensor], Tensor]) -> None:
        """Take the norm of the global batch's gradient, and count the update if it is finite.

        Arguments:
            scale: what is done to a loss against underflow.
        """
        factor = scale(self._one)
        whole = torch.linalg.vector_norm(self._gradient).double() / factor
        # A replica's loss is divided by the number of replicas, and so is its gradient.
        replicas = self._norms.double() * self._num_replicas / factor
        squares = torch.stack([replicas.square().sum(), whole.square()])
        update = torch.stack([squares, self._counts], dim=1).flatten()
        # An update that overflows is left out; on every rank alike its norm is not finite.
        self.sums += torch.where(whole.isfinite(), update, 0.0)

    def estimate(self, sums: Sequence[float]) -> GradientNoise | None:
        """Signal and noise from the `sums` of all ranks; None where no update was finite."""
        micro, num_micro, whole, num_updates = sums
        if num_updates == 0:
            return None
        return gradient_noise(
            micro / num_micro,
            whole / num_updates,
            micro_batch_size=self._global_batch_size // self._num_replicas,
            global_batch_size=self._global_batch_size,
        )


# The update.


class Metrics(NamedTuple):
    """Of the images since the last reading."""

    loss: float
    """Their mean."""
    accuracy: float
    """The share that was right; NaN where the loss counts none."""
    noise: GradientNoise | None = None
    """Of the gradients, where the phase's end depends on it."""
    skipped_updates: int = 0
    """In fp16, left out since their gradient was not finite."""
    loss_scale: float = 1.0
    """Of fp16, after them."""


class Forward(NamedTuple):
    """The forward pass of one replica's micro-batch."""

    loss: Tensor
    """The mean, a scalar with a gradient."""
    correct: Tensor | float
    """How many were right ..."""
    counted: Tensor | float
    """... of how many: of images all, of a user's loss what it counts."""
    examples: int
    """In the micro-batch: the weight of its mean loss."""


class BaseStep(ABC):
    """An update in which every replica takes the gradient of its micro-batch, and all are averaged.

    Replicas of other ranks run there, at the same time; replicas of this rank run one after
    another and add up their gradients. `GradientSum` makes the sum of all.

    Arguments:
        weights: the model.
        optimizer: what turns the gradient into an update.
        phase: gives the replicas.
        comm: the ranks that share the update; `ALONE` for a worker with one device.
        global_batch_size: images of an update, over all replicas.
        statistics: batch norm's, where steps of one phase share them.
        gradient_sum: over the ranks; None: as it is, by one all-reduce.
    """

    shape: BatchShape
    """Of its batches."""
    batch: Any
    """What a loader fills."""

    def __init__(
        self,
        weights: Weights,
        optimizer: ScaledOptimizer,
        phase: Phase,
        comm: Comm,
        *,
        global_batch_size: int,
        statistics: ReplicaStatistics | None = None,
        gradient_sum: GradientSum | None = None,
    ) -> None:
        self._weights, self._optimizer, self._comm = weights, optimizer, comm
        self._num_replicas = phase.gpus_per_model
        self._replicas = len(comm.replicas(phase.gpus_per_model))
        self._sum = gradient_sum or GradientSum(weights, comm)
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
        # Whether one backward pass makes the whole gradient, which then may lie anywhere.
        self._is_alone = self._num_replicas == 1 and self.noise_meter is None
        # Since the last reading: the sum of the images' losses, how many were right, and of how
        # many. On the device; a fourth sum, the images themselves, is counted on the host.
        zero = torch.zeros((), dtype=torch.float64, device=weights.theta.device)
        self.loss_sum, self.correct, self.counted = zero, zero.clone(), zero.clone()
        self._seen = 0
        # What a call runs in place of the update: the replay of its capture.
        self.replay: Callable[[], None] | None = None
        # What gives the update its batch and learning rate; None: the host does, before each call.
        self.feed: DeviceFeed | None = None

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Images of this rank in the update."""

    @abstractmethod
    def forward(self, replica: int) -> Forward:
        """Run the model on the micro-batch of this rank's replica number `replica`."""

    def __call__(self) -> None:
        """Update theta from the batch that was loaded: run the update, or replay its capture."""
        (self.replay or self.update_no_sync)()
        self._seen += self.num_images

    def update_no_sync(self) -> None:
        """The update itself: tensors of fixed addresses, no host state, no wait for the device."""
        meter, is_fused = self.noise_meter, self._optimizer.is_fused
        if self.feed is not None:
            self.feed.fill_()
        if not is_fused:  # there the first replica's takes its place
            self._weights.gradient.zero_()
        for replica in range(self._replicas):
            self.statistics.swap_in(replica)
            root, gradient = self.forward_(replica)
            replaces = is_fused and replica == 0
            if self._sum.in_buckets and replica == self._replicas - 1:
                self._sum.backward_(root, gradient, replaces=replaces)
            else:
                root.backward(gradient)
                if not (is_fused and self._is_alone):
                    self._weights.gather_gradient_(replaces=replaces)
            self.statistics.swap_out(replica)
            if meter is not None:
                meter.after_replica_(replica)
        self._sum.finish_()
        if meter is not None:
            meter.after_sum_(self._optimizer.scale)
        self._optimizer.step()

    def forward_(self, replica: int) -> tuple[Tensor, Tensor | None]:
        """Run a replica's forward pass, and count its losses and right answers.

        Returns:
            What its backward pass starts from, and the gradient by that; None: 1, of a loss.
        """
        loss, correct, counted, examples = self.forward(replica)
        self.loss_sum += loss.detach() * examples
        self.correct += correct
        self.counted += counted
        # The mean over replicas of their mean losses: lines 12 and 14 at once.
        return self._optimizer.scale(loss / self._num_replicas), None

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates."""
        self._optimizer.set_learning_rate(learning_rate)

    def read_sums(self) -> tuple[float, ...]:
        """This rank's sums behind the metrics since the last reading. Waits for the device."""
        return tuple(self._sums().tolist())

    def _sums(self) -> Tensor:
        seen, skipped = self.loss_sum.new_tensor(self._seen), self._optimizer.skipped
        noise = () if self.noise_meter is None else self.noise_meter.sums
        return torch.stack([self.loss_sum, self.correct, self.counted, seen, *noise, skipped])

    def add_sums_(self, sums: tuple[float, ...]) -> None:
        """Count what an interrupted epoch had done before; nothing, where there are no sums."""
        if not sums:
            return
        loss, correct, counted, seen, *others = sums
        self.loss_sum += loss
        self.correct += correct
        self.counted += counted
        self._seen += int(seen)
        if self.noise_meter is not None:
            noise, others = others[:4], others[4:]
            self.noise_meter.sums += self.noise_meter.sums.new_tensor(noise)
        self._optimizer.skipped += sum(others)  # older checkpoints have no count

    def read_metrics(self) -> Metrics:
        """Metrics of all images since the last reading, over all ranks.

        Waits for the device: an epoch's only synchronisation.
        """
        scale = self._optimizer.scale(torch.ones_like(self.loss_sum))
        sums = self._comm.all_reduce_(torch.cat([self._sums(), scale[None]])).tolist()
        loss, correct, counted, seen, *noise, skipped, loss_scale = sums
        for each in (self.loss_sum, self.correct, self.counted, self._optimizer.skipped):
            each.zero_()
        self._seen, estimate = 0, None
        if self.noise_meter is not None:
            estimate = self.noise_meter.estimate(noise)
            self.noise_meter.sums.zero_()
        ranks = self._comm.world_size  # each left out the same updates
        return Metrics(
            loss / seen,
            correct / counted if counted else math.nan,
            estimate,
            skipped_updates=round(skipped / ranks),
            loss_scale=loss_scale / ranks,
        )


class Step(BaseStep):
    """An update from images and their labels, in the same memory every time.

    Set the learning rate, let a loader fill `batch`, and call: eager, compiled or captured, the
    call is the same. Nothing in it waits for the device.

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
        optimizer: ScaledOptimizer,
        phase: Phase,
        comm: Comm,
        execution: Execution,
        *,
        shape: BatchShape | None = None,
        statistics: ReplicaStatistics | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.shape = shape or shapes(phase, IMAGE_SIZE)[0]
        # Its noise is measured on a rank's own gradient, which must be whole before it is summed.
        num_buckets = 1 if phase.stop == "auto" else execution.all_reduce_buckets
        dtype = None if execution.all_reduce == "fp32" else DTYPES[execution.all_reduce]
        super().__init__(
            weights,
            optimizer,
            phase,
            comm,
            global_batch_size=self.shape.global_batch_size,
            statistics=statistics,
            gradient_sum=GradientSum(weights, comm, dtype=dtype, num_buckets=num_buckets),
        )
        count = self._replicas * self.shape.global_batch_size // phase.gpus_per_model
        # What a loader fills: images [B, 3, H, W], and labels [B] int64.
        self.batch = Batch.empty(count, self.shape.image_size, execution, weights.theta.device)
        self.images, self.labels = self.batch
        self._captured = execution.capture
        self._fused_dtype = execution.dtype if execution.fused_update else None
        self._forward = _forward(weights.model, execution, label_smoothing)
        self._autocast, self._label_smoothing = execution.autocast, label_smoothing
        self._loss: Callable[..., Tensor] | None = None  # of the fused form: see `forward_`

    @property
    def num_images(self) -> int:
        """Images of this rank in an update."""
        return len(self.labels)

    def forward(self, replica: int) -> Forward:
        """Run the model on a replica's slice of the batch."""
        images, labels = self._micro_batch(replica)
        return Forward(*self._forward(images, labels), len(labels), len(labels))

    def _micro_batch(self, replica: int) -> tuple[Tensor, ...]:
        return tuple(part.chunk(self._replicas)[replica] for part in self.batch)

    def forward_(self, replica: int) -> tuple[Tensor, Tensor | None]:
        """The same; where the update is fused, with one kernel for all that follows the logits."""
        if not self._optimizer.is_fused:
            return super().forward_(replica)
        if self._loss is None:
            from swap_fast.models.fused_loss import FusedLoss  # Triton is on Linux alone

            sums = self.loss_sum, self.correct, self.counted
            self._loss = FusedLoss(sums, self._label_smoothing)
        images, labels = self._micro_batch(replica)
        with self._autocast():
            logits = self._weights.model(images)
        scale = self._optimizer.loss_scale
        return logits, self._loss(logits, labels, scale, num_replicas=self._num_replicas)

    def prepare_(self) -> None:
        """Put the model and the optimizer in the form in which this step runs them."""
        self._weights.model.train()
        self._optimizer.fuse_(self._fused_dtype)

    def load_from_(self, batches: Batches | None) -> None:
        """Make the loading of its batch a part of the update, where there is what can be loaded.

        Before the warm-up, which captures it with the update.
        """
        self.feed = None if batches is None else DeviceFeed(batches, self._optimizer)

    def first_pass(self) -> None:
        """Run one replica forward and backward, without other ranks: what is compiled, is here.

        On blank images, and without a trace: in memory that nothing was written to yet may be NaN,
        which running statistics would keep for good.
        """
        statistics = self._weights.get_statistics().clone()
        self.images.zero_()
        self.labels.zero_()
        self.prepare_()
        self.statistics.swap_in(0)
        root, gradient = self.forward_(0)
        root.backward(gradient)
        self._weights.gather_gradient_()
        self._weights.gradient.zero_()
        self._weights.set_statistics_(statistics)
        for each in (self.loss_sum, self.correct, self.counted):
            each.zero_()

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
        self.prepare_()
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

    return (
        torch.compile(loss_and_correct, dynamic=False)
        if execution.step == "compiled"
        else loss_and_correct
    )
