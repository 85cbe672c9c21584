"""Which backend makes the batches: chosen by name, by recipe, and by what is there."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.batches import Batches, Loader, Share
from swap_fast.data.cifar.dataset import Channels, Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.data.cifar.streams import StreamedBatches


def choose_loader(
    asked: LoaderName | Literal["auto"], of_recipe: LoaderName | None, device_type: str
) -> tuple[LoaderName, str | None]:
    """The backend of a run, and a line that says why where it is not the one that was named.

    "auto" is the recipe's own where it names one, and else the tensor backend, which is the
    fastest on CPUs, and on GPUs by the work that it has to do. A recipe names its loader for GPUs.
    """
    named = of_recipe if asked == "auto" else asked
    if named is None or named == "tensor":
        return "tensor", None
    missing = None
    if named == "dali":
        missing = missing_for_dali(device_type)
        if asked == "auto" and device_type != "cuda":
            missing = missing or "no CUDA device, for which the recipe names it"
    if missing is None:
        return named, None
    return "tensor", f"loader {named}: {missing}; the tensor backend makes the batches"


def choose_decoder(
    asked: LoaderName | Literal["auto"], device_type: str
) -> tuple[Literal["dali", "torchvision"], str | None]:
    """What decodes the files of a tree, and a line that says why where DALI cannot.

    Raises:
        ValueError: the tensor backend, whose images are resident.
    """
    if asked == "tensor":
        raise ValueError(
            "loader: expected auto, dali or torchvision for a tree of files, got tensor"
        )
    missing = None if asked == "torchvision" else missing_for_dali(device_type)
    if asked != "torchvision" and missing is None:
        return "dali", None
    note = f"loader dali: {missing}; torchvision's DataLoader decodes the images"
    return "torchvision", note if missing else None


def missing_for_dali(device_type: str) -> str | None:
    """What DALI lacks on this machine to serve a type of device, in a few words; or None."""
    try:
        backend = importlib.import_module("nvidia.dali.backend")
    except (ImportError, OSError) as error:  # absent, or a library that it needs is
        reason = str(error).strip().partition("\n")[0]
        return f"DALI cannot be imported ({reason})"
    if device_type == "cuda" and backend.GetCUDADeviceCount() == 0:
        return "DALI finds no NVIDIA driver"
    return None


def warm_up_loader(execution: Execution) -> None:
    """Import what makes batches with the execution's backend, as no lap of training shall."""
    if execution.loader == "dali":
        from swap_fast.data.cifar.dali import define_once

        define_once()
    elif execution.loader == "torchvision":
        importlib.import_module("swap_fast.data.cifar.torchvision")


def loader_maker(
    images: DeviceImages,
    split: Split,
    augmentation: Augmentation,
    *,
    mean: Channels,
    std: Channels,
    execution: Execution,
    device: torch.device,
) -> Callable[[Share], Loader]:
    """What makes a phase's loader from this rank's share, with the execution's backend.

    Arguments:
        images: the training split on the device: the tensor backend's.
        split: the same images in memory, from which the others make their own.
        mean, std: of the three channels, on the scale 0..255.
    """
    if execution.loader == "tensor":
        return partial(Batches, images)
    pad, cutout, threads = augmentation.pad, augmentation.cutout, torch.get_num_threads()
    if execution.loader == "torchvision":
        from swap_fast.data.cifar.torchvision import TorchvisionImages

        baseline = TorchvisionImages(
            split, mean=mean, std=std, pad=pad, cutout=cutout, device=device, threads=threads
        )
        return partial(StreamedBatches, baseline)
    from swap_fast.data.cifar.dali import DaliImages

    stream = DaliImages(
        split,
        mean=mean,
        std=std,
        pad=pad,
        cutout=cutout,
        execution=execution,
        device=device,
        threads=threads,
    )
    return partial(StreamedBatches, stream)
