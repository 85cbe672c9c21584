"""The gather as one GPU kernel: from a plan's positions to a batch, in one pass.

Reflected border, crop, mirror, normalisation and cutout are a matter of which byte is read and of
one multiply-add: no padded or mirrored copy is kept, and nothing is written but the batch. Imported
only where there is a GPU, since Triton comes with torch on Linux alone.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from swap_fast.data.cifar.resident import DevicePlan

BLOCK = 1024
"""Values a program makes, a third of an image: 8 for each thread of 4 warps, 16 bytes in fp16."""

_SIDE = tl.constexpr(32)
_IMAGE = tl.constexpr(3 * 32 * 32)


@triton.jit
def _reflect(place):  # type: ignore[no-untyped-def]
    """The place in 0..31 that a place up to 31 pixels outside shows; borders are not doubled."""
    inside = tl.abs(place)
    return tl.minimum(inside, 2 * (_SIDE - 1) - inside)


# A row of positions, a part of a buffer and a count start and end anywhere. If the kernel were
# compiled again for each that is a multiple of 16, some compilations would fall within a run.
@triton.jit(
    do_not_specialize=["num_positions"],
    do_not_specialize_on_alignment=["positions", "labels_out"],
)
def gather_kernel(  # type: ignore[no-untyped-def]
    positions,  # int64 [B]: which positions of the plan
    plan,  # int64 [6, N]: see DevicePlan
    num_positions,  # N
    images,  # uint8 [images, 32, 32, 3]
    labels,  # int64 [images]
    affine,  # float32 [2, 3]: factor and summand of each channel
    images_out,  # floating [B, 32, 32, 3], or [B, 3, 32, 32] where not CHANNELS_LAST
    labels_out,  # int64 [B]
    PAD: tl.constexpr,  # noqa: N803
    CUTOUT: tl.constexpr,  # noqa: N803
    CHANNELS_LAST: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Make BLOCK values of one image; the grid is (B, 3072 / BLOCK)."""
    at = tl.program_id(0).to(tl.int64)
    entry = plan + tl.load(positions + at)
    image = tl.load(entry)
    mirrored = tl.load(entry + num_positions)
    crop_y = tl.load(entry + 2 * num_positions).to(tl.int32)
    crop_x = tl.load(entry + 3 * num_positions).to(tl.int32)
    cutout_y = tl.load(entry + 4 * num_positions).to(tl.int32)
    cutout_x = tl.load(entry + 5 * num_positions).to(tl.int32)

    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # in HWC order
    y, x, channel = value // (3 * _SIDE), value // 3 % _SIDE, value % 3
    # In the padded image, a mirrored one counted from its right border.
    across = crop_x + x
    across = tl.where(mirrored != 0, _SIDE + 2 * PAD - 1 - across, across)
    row, column = _reflect(crop_y + y - PAD), _reflect(across - PAD)
    pixel = tl.load(images + image * _IMAGE + (row * _SIDE + column) * 3 + channel)
    made = pixel.to(tl.float32) * tl.load(affine + channel) + tl.load(affine + 3 + channel)
    if CUTOUT > 0:
        down, right = y - cutout_y, x - cutout_x
        cut = (down >= 0) & (down < CUTOUT) & (right >= 0) & (right < CUTOUT)
        made = tl.where(cut, 0.0, made)
    place = value if CHANNELS_LAST else (channel * _SIDE + y) * _SIDE + x
    tl.store(images_out + at * _IMAGE + place, made.to(images_out.dtype.element_ty))
    if tl.program_id(1) == 0:
        tl.store(labels_out + at, tl.load(labels + image))


class KernelGather:
    """Images as they are, and the kernel.

    A call is one launch, with nothing that a CUDA graph would freeze but addresses: it may be
    captured, and then reads whatever plan and positions are in their place at each replay.

    Arguments:
        images: uint8 [N, 32, 32, 3].
        labels: int64 [N].
        affine: float32 [2, 3], factor and summand of each channel, on the scale 0..255.
        pad: pixels of reflected border, at most 31.
    """

    def __init__(self, images: Tensor, labels: Tensor, affine: Tensor, pad: int) -> None:
        self._images, self._labels = images.contiguous(), labels
        self._affine, self._pad = affine.contiguous(), pad

    def fill_(self, images: Tensor, affine: Tensor) -> None:
        """Take as many other images into the same memory."""
        self._images.copy_(images)
        self._affine.copy_(affine)

    def __call__(
        self, plan: "DevicePlan", positions: Tensor | slice, images: Tensor, labels: Tensor
    ) -> None:
        """Write the batch at `positions` of the plan into `images` and `labels`."""
        if isinstance(positions, slice):
            places = range(*positions.indices(len(plan)))
            positions = torch.arange(
                places.start, places.stop, places.step, device=plan.columns.device
            )
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        assert channels_last or images.is_contiguous(), "images lie in one of torch's two formats"
        assert positions.is_contiguous()
        assert labels.is_contiguous()
        gather_kernel[(len(positions), images[0].numel() // BLOCK)](
            positions,
            plan.columns,
            len(plan),
            self._images,
            self._labels,
            self._affine,
            images,
            labels,
            PAD=self._pad,
            CUTOUT=plan.cutout,
            CHANNELS_LAST=channels_last,
            BLOCK=BLOCK,
        )
