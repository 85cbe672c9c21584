"""A split's images, resident on a device as uint8, and the gather that makes batches of them."""

import warnings
from typing import Protocol

import torch
from torch import Tensor

from swap_fast.data.cifar.augment import IMAGE_SIZE, AugmentationPlan
from swap_fast.data.cifar.dataset import Channels, Split

ROW = 3 * IMAGE_SIZE  # values in one row of an image in HWC order


class DevicePlan:
    """A plan on the device: six int64 rows of N entries, and the side of the cutout."""

    def __init__(self, columns: Tensor, cutout: int) -> None:
        self.columns = columns  # [6, N]: order, flip, row, column, cutout row, cutout column
        self.cutout = cutout

    def __len__(self) -> int:
        """N, the number of positions."""
        return self.columns.shape[1]


class Gather(Protocol):
    """Makes a batch of resident images."""

    def fill_(self, images: Tensor, affine: Tensor) -> None:
        """Take as many other images [N, 32, 32, 3] into the same memory."""

    def __call__(
        self, plan: DevicePlan, positions: Tensor | slice, images: Tensor, labels: Tensor
    ) -> None:
        """Write the batch at `positions` of the plan into `images` and `labels`."""


class DeviceImages:
    """A split on the device, from which batches are gathered as a plan wants them.

    On a GPU one kernel makes a batch (`gather_kernel.py`); on a CPU, and where Triton is absent or
    cannot build the kernel, torch's own operations do.

    Arguments:
        split: uint8 images [N, 32, 32, 3] and labels [N].
        mean, std: of the three channels, on the scale 0..255.
        device: where the images live and the batches are made.
        pad: pixels of reflected border; 0 for a split that is never cropped.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: Channels,
        std: Channels,
        device: torch.device,
        pad: int = 0,
    ) -> None:
        self.labels = torch.from_numpy(split.labels).to(device, torch.int64)
        self.pad = pad
        images = torch.from_numpy(split.images).to(device)
        affine = _affine(mean, std).to(device)
        kernel = _try_kernel(images, self.labels, affine, pad) if device.type == "cuda" else None
        self._gather: Gather = kernel or WindowGather(images, self.labels, affine, pad)

    def fill_(self, split: Split, *, mean: Channels, std: Channels) -> None:
        """Take a split of as many images into the same memory, where a captured gather finds it."""
        self.labels.copy_(torch.from_numpy(split.labels).long())
        self._gather.fill_(torch.from_numpy(split.images), _affine(mean, std))

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.labels)

    @property
    def on_gpu(self) -> bool:
        """Whether the images are on a GPU."""
        return self.labels.device.type == "cuda"

    def pack(self, plan: AugmentationPlan) -> DevicePlan:
        """A plan on the host as the device will have it, its crops turned into window places.

        For a GPU its memory is pinned, so that `upload` does not wait for the copy.
        """
        flip = torch.from_numpy(plan.flip)
        crop_x = torch.from_numpy(plan.crop_x)
        columns = (
            torch.from_numpy(plan.order),
            flip,
            torch.from_numpy(plan.crop_y),
            # The orientations are those of the padded image: a mirrored crop starts as far from
            # the right border as its original from the left.
            torch.where(flip.bool(), 2 * self.pad - crop_x, crop_x),
            torch.from_numpy(plan.cutout_y),
            torch.from_numpy(plan.cutout_x),
        )
        packed = torch.stack(columns)
        return DevicePlan(packed.pin_memory() if self.on_gpu else packed, plan.cutout)

    def empty_plan(self, cutout: int) -> DevicePlan:
        """Memory on the device for a plan of all images, which says that each is the first one."""
        columns = torch.zeros((6, len(self)), dtype=torch.int64, device=self.labels.device)
        return DevicePlan(columns, cutout)

    def upload(
        self, plan: AugmentationPlan | DevicePlan, into: DevicePlan | None = None
    ) -> DevicePlan:
        """Move a plan, packed or not, to the device.

        Arguments:
            into: a plan of as many positions to write over, so that its tensor stays where it is.
        """
        packed = plan if isinstance(plan, DevicePlan) else self.pack(plan)
        if into is None:
            device = self.labels.device
            return DevicePlan(packed.columns.to(device, non_blocking=True), packed.cutout)
        assert into.cutout == packed.cutout
        into.columns.copy_(packed.columns, non_blocking=True)
        return into

    def load_(
        self, plan: DevicePlan, positions: Tensor | slice, images: Tensor, labels: Tensor
    ) -> None:
        """Write the batch at `positions` of the plan into `images` and `labels`.

        images: [B, 3, 32, 32], floating, channels_last or contiguous. labels: [B] int64. Nothing
        waits for the device, and all of a plan's batches are read from the same addresses.
        """
        self._gather(plan, positions, images, labels)


def _affine(mean: Channels, std: Channels) -> Tensor:
    """Factor and summand of each channel, float32 [2, 3]."""
    scale = 1 / torch.tensor(std, dtype=torch.float64)
    return torch.stack([scale, -torch.tensor(mean, dtype=torch.float64) * scale]).float()


class WindowGather:
    """Images padded once, by reflection, and kept in both orientations.

    A crop of either orientation is then one strided window, and a batch of crops one indexing
    operation with rows of 96 bytes: no per-sample work, and no flip of its own.

    Arguments:
        images: uint8 [N, 32, 32, 3].
        labels: int64 [N].
        affine: [2, 3], factor and summand of each channel, on the scale 0..255.
        pad: pixels of border.
    """

    def __init__(self, images: Tensor, labels: Tensor, affine: Tensor, pad: int) -> None:
        device, side = images.device, IMAGE_SIZE + 2 * pad
        places = torch.arange(-pad, IMAGE_SIZE + pad, device=device).abs()
        self._reflected = torch.minimum(places, 2 * (IMAGE_SIZE - 1) - places)
        shape = (len(images), 2, side, side, 3)
        self._both = torch.empty(shape, dtype=torch.uint8, device=device)
        self._windows = self._both.as_strided(
            (len(images), 2, 2 * pad + 1, 2 * pad + 1, IMAGE_SIZE, ROW),
            (2 * side * side * 3, side * side * 3, side * 3, 3, side * 3, 1),
        )
        self._labels = labels
        # Repeated to a whole image: a last dimension of 3 would be ten times slower on a CPU.
        self._affine = torch.empty((2, IMAGE_SIZE * ROW), device=device)
        self._scale, self._offset = self._affine
        self.fill_(images, affine)

    def fill_(self, images: Tensor, affine: Tensor) -> None:
        """Pad and mirror images [N, 32, 32, 3] into the memory of those before."""
        reflected, small = self._reflected, 4096  # images of a copy
        for part, of in zip(self._both.split(small), images.split(small), strict=True):
            part[:, 0] = of.to(reflected.device)[:, reflected][:, :, reflected]
            part[:, 1] = part[:, 0].flip(2)
        self._affine.copy_(affine.repeat(1, IMAGE_SIZE**2))

    def __call__(
        self, plan: DevicePlan, positions: Tensor | slice, images: Tensor, labels: Tensor
    ) -> None:
        """Write the batch at `positions` of the plan into `images` and `labels`."""
        order, flip, row, column, cutout_y, cutout_x = plan.columns[:, positions]
        crops = self._windows[order, flip, row, column].view(len(order), -1)  # [B, 3072] uint8 HWC
        nhwc = images.permute(0, 2, 3, 1)
        direct = images.dtype == torch.float32 and nhwc.is_contiguous()
        values = nhwc.view(len(order), -1) if direct else torch.empty_like(crops, dtype=torch.float)
        values.copy_(crops)
        torch.addcmul(self._offset, values, self._scale, out=values)
        if plan.cutout:
            places = IMAGE_SIZE - plan.cutout + 1
            squares = values.as_strided(
                (len(order), places, places, plan.cutout, 3 * plan.cutout),
                (IMAGE_SIZE * ROW, ROW, 3, ROW, 1),
                values.storage_offset(),
            )
            squares[torch.arange(len(order), device=order.device), cutout_y, cutout_x] = 0.0
        if not direct:
            nhwc.copy_(values.view(nhwc.shape))
        torch.index_select(self._labels, 0, order, out=labels)


def _try_kernel(images: Tensor, labels: Tensor, affine: Tensor, pad: int) -> Gather | None:
    """The kernel, once it has made a batch; None, with a warning, where it cannot be built."""
    try:
        from swap_fast.data.cifar.gather_kernel import KernelGather

        gather = KernelGather(images, labels, affine, pad)
        plan = DevicePlan(torch.zeros((6, 1), dtype=torch.int64, device=images.device), 0)
        batch = torch.empty((1, 3, IMAGE_SIZE, IMAGE_SIZE), device=images.device)
        gather(plan, slice(0, 1), batch, labels.new_empty(1))
    except Exception as error:  # Triton, its compiler and the driver each raise their own types
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"batches are made by torch's operations, which is slower: the kernel for them "
            f"cannot be built: {type(error).__name__}: {reason}",
            stacklevel=3,
        )
        return None
    return gather
