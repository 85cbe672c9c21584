"""The loss, its gradient by the logits, and what is counted of a batch: one GPU kernel.

torch takes 14 for them, each over a few values. Imported only where there is a GPU, since Triton
comes with torch on Linux alone.

Sums over classes are in float32, as torch's are, and those over images in float64. The last program
to finish adds the others' up in their order: the same logits give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swap_fast.models.fused_norm import is_last

TILE = 1024
"""Logits that a program takes at once: 8 for each thread of 4 warps."""
MERGED = tl.constexpr(256)
"""Programs whose sums are added up at once."""


@triton.jit(do_not_specialize=["num_images", "num_classes", "factor"])
def loss_kernel(  # type: ignore[no-untyped-def]
    logits,  # [num_images, num_classes]
    labels,  # int64 [num_images]
    gradient,  # of the type and shape of `logits`, out
    partial,  # float64 [2, programs], out: sums of losses, and how many are right
    loss_sum,  # float64 [], as the next two: added to
    correct,
    counted,
    scale,  # float32 [], of the loss; read where SCALED
    counter,  # int32 [1], 0 before and after
    num_images,
    num_classes,
    factor,  # float, of each image's loss
    SMOOTHING: tl.constexpr,  # noqa: N803  # share of the target spread over all classes
    SCALED: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    CLASSES: tl.constexpr,  # noqa: N803  # a power of 2, num_classes or more
):
    """The losses of ROWS images, and the sums over all; the grid is (images / ROWS)."""
    block, programs = tl.program_id(0), tl.num_programs(0)
    image = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CLASSES)[None, :]
    valid = (image < num_images)[:, None] & (column < num_classes)
    at = image.to(tl.int64)[:, None] * num_classes + column
    x = tl.load(logits + at, mask=valid, other=0.0).to(tl.float32)
    label = tl.load(labels + image, mask=image < num_images, other=0).to(tl.int32)
    own = (column == label[:, None]) & valid
    largest = tl.max(tl.where(valid, x, float("-inf")), 1)
    largest = tl.where(image < num_images, largest, 0.0)
    away = x - largest[:, None]
    exponential = tl.where(valid, tl.exp(away), 0.0)
    total = tl.sum(exponential, 1)
    total = tl.where(image < num_images, total, 1.0)
    # The loss is log(total) less the mean of the distances from the largest, by the target.
    loss = tl.log(total) - (1.0 - SMOOTHING) * tl.sum(tl.where(own, away, 0.0), 1)
    if SMOOTHING != 0.0:
        loss -= SMOOTHING * (tl.sum(tl.where(valid, away, 0.0), 1) / num_classes)
    target = tl.where(own, 1.0 - SMOOTHING, 0.0) + SMOOTHING / num_classes
    made = (exponential / total[:, None] - target) * factor
    if SCALED:
        made *= tl.load(scale)
    tl.store(gradient + at, made.to(gradient.dtype.element_ty), mask=valid)
    # Of equal logits the first is the answer.
    answer = tl.min(tl.where(valid & (x == largest[:, None]), column, CLASSES), 1)
    right = (answer == label) & (image < num_images)
    losses = tl.where(image < num_images, loss, 0.0).to(tl.float64)
    tl.store(partial + block, tl.sum(losses, 0))
    tl.store(partial + programs + block, tl.sum(right.to(tl.int32), 0).to(tl.float64))
    if is_last(counter, programs):
        all_losses = tl.zeros([MERGED], tl.float64)
        all_right = tl.zeros([MERGED], tl.float64)
        start = 0
        while start < programs:
            one = start + tl.arange(0, MERGED)
            here = partial + one
            inside = one < programs
            all_losses += tl.load(here, mask=inside, other=0.0, cache_modifier=".cg")
            all_right += tl.load(here + programs, mask=inside, other=0.0, cache_modifier=".cg")
            start += MERGED
        tl.store(loss_sum, tl.load(loss_sum) + tl.sum(all_losses, 0))
        tl.store(correct, tl.load(correct) + tl.sum(all_right, 0))
        tl.store(counted, tl.load(counted) + num_images)


class FusedLoss:
    """Cross-entropy of a step's batches, with sums over the images that it has seen.

    Arguments:
        sums: of losses, of right answers, and of images: float64 [] each, added to.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    def __init__(self, sums: tuple[Tensor, Tensor, Tensor], label_smoothing: float) -> None:
        self._sums, self._label_smoothing = sums, label_smoothing
        self._counter = torch.zeros(1, dtype=torch.int32, device=sums[0].device)

    def __call__(
        self, logits: Tensor, labels: Tensor, scale: Tensor | None, *, num_replicas: int
    ) -> Tensor:
        """The gradient by the logits of the mean loss times `scale`, over the number of replicas.

        Arguments:
            logits: [B, classes] of any floating type.
            labels: int64 [B].
            scale: float32 [], on the device.

        Returns:
            [B, classes] in the type of the logits.
        """
        logits = logits.detach().contiguous()
        num_images, num_classes = logits.shape
        classes = triton.next_power_of_2(num_classes)
        rows = max(1, TILE // classes)
        programs = triton.cdiv(num_images, rows)
        gradient = torch.empty_like(logits)
        partial = logits.new_empty((2, programs), dtype=torch.float64)
        loss_kernel[(programs,)](
            *(logits, labels, gradient, partial, *self._sums),
            *(partial if scale is None else scale, self._counter),
            *(num_images, num_classes, 1.0 / (num_images * num_replicas)),
            SMOOTHING=float(self._label_smoothing),
            SCALED=scale is not None,
            ROWS=rows,
            CLASSES=classes,
        )
        return gradient
