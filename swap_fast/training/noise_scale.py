"""The gradient noise scale of McCandlish et al. (2018), from gradients that are taken anyway.

With G the gradient over all images and S the trace of the covariance of one image's gradient, the
gradient of B images has E|g_B|^2 = |G|^2 + S / B. Two batch sizes give both unknowns (their
appendix A.1): here the replicas' micro-batches, and the global batch, whose gradient is their mean.
S / |G|^2 is the noise scale: the batch of whose gradient's squared norm one half is noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
