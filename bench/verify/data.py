"""Checks of the input: the gather kernel's and DALI's batches."""

import itertools
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.micro.data import MEAN, MIN_SCALE, PX, STD, make_loader, random_split, write_jpegs
from bench.verify.check import Form, UnavailableError
from bench.verify.equivalence import Trained, fp16_execution
from swap_fast.config.execution import DTYPES, default_execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.augment import AugmentationPlan, plan_epoch
from swap_fast.data.cifar.batches import Batch
from swap_fast.data.cifar.dataset import Channels, Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.data.imagenet import batches as tree_batches
from swap_fast.data.imagenet.crops import Crops, evaluation_batches, plan_crops
from swap_fast.data.imagenet.scan import IMAGENET_STD, ImageSplit, scan_tree
from swap_fast.tasks.cifar import missing_for_dali

IMAGES, BATCH = 96, 32
TOLERANCES = {"fp32": 2e-6, "fp16": 2e-3}
FILES = 16
MEAN_LIMIT, PERCENTILE_LIMIT = 2.0, 16.0
"""Limits of two decoders' difference on the scale 0..255: of its mean, and 99.9th percentile."""


def _plan(epoch: int) -> AugmentationPlan:
    return plan_epoch(IMAGES, Augmentation(), seed=2, phase=1, worker=0, epoch=epoch)


def _reference(split: Split, plan: AugmentationPlan, positions: range) -> NDArray[np.float64]:
    """The plan's batch image by image, with numpy alone: float64 [n, 3, 32, 32]."""
    pad = Augmentation().pad
    batch = []
    for at in positions:
        padded = np.pad(split.images[plan.order[at]], ((pad, pad), (pad, pad), (0, 0)), "reflect")
        top, left = plan.crop_y[at], plan.crop_x[at]
        crop = padded[top : top + 32, left : left + 32].astype(np.float64)
        if plan.flip[at]:
            crop = crop[:, ::-1]
        values = (crop - np.array(MEAN)) / np.array(STD)
        top, left = plan.cutout_y[at], plan.cutout_x[at]
        values[top : top + plan.cutout, left : left + plan.cutout] = 0.0
        batch.append(values.transpose(2, 0, 1))
    return np.stack(batch)


def gather(form: Form) -> str:
    """Compare batches of three epochs with the reference, on a GPU from a captured graph too."""
    device, split = torch.device(form.device_type), random_split(IMAGES)
    with warnings.catch_warnings(action="error"):  # a warning says that there is no kernel
        images = DeviceImages(split, mean=MEAN, std=STD, device=device, pad=Augmentation().pad)
    plan, positions = images.upload(_plan(0)), torch.arange(BATCH, device=device)
    labels = torch.empty(BATCH, dtype=torch.int64, device=device)
    seen = []
    for precision, tolerance in TOLERANCES.items():
        batch = torch.empty(BATCH, 3, 32, 32, dtype=DTYPES[precision], device=device)
        batch = batch.to(memory_format=torch.channels_last)
        images.load_(plan, positions, batch, labels)  # the kernel is built before a capture
        variants = [partial(images.load_, plan, positions, batch, labels)]
        if form.device_type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                images.load_(plan, positions, batch, labels)
            variants.append(partial(graph.replay))
        largest = 0.0
        for epoch, load in itertools.product(range(3), variants):
            drawn, start = _plan(epoch), epoch * BATCH
            images.upload(drawn, plan)
            positions.copy_(torch.arange(start, start + BATCH))
            batch.fill_(torch.nan)
            labels.fill_(-1)
            load()
            expected = _reference(split, drawn, range(start, start + BATCH))
            largest = max(largest, float(np.abs(batch.double().cpu().numpy() - expected).max()))
            numbers = split.labels[drawn.order[start : start + BATCH]]
            assert labels.tolist() == numbers.tolist(), "the labels are others"
            assert largest <= tolerance, f"{precision}: off by {largest:.1e}, not {tolerance:g}"
        seen.append(f"{precision} within {largest:.1e}")
    how = "eager and captured" if len(variants) == 2 else "eager"
    return f"{', '.join(seen)} of the reference, {how}"


def _require_dali(device_type: str) -> None:
    if missing_for_dali(device_type) is not None:
        raise UnavailableError("DALI")


def _cifar_batches(
    name: LoaderName, device_type: str, mean: Channels, std: Channels, beside: Trained | None = None
) -> list[tuple[Tensor, Tensor]]:
    """All fp16 batches of two epochs, on the host; steps of `beside` run before each is loaded."""
    device, execution = torch.device(device_type), replace(fp16_execution(device_type), loader=name)
    phase = Phase(global_batch_size=BATCH, peak_lr=1.0, max_epochs=2)
    batch = Batch.empty(BATCH, 32, execution, device)
    loader = make_loader(random_split(IMAGES), execution, phase, batch, mean=mean, std=std, seed=2)
    batches = []
    for epoch in range(2):
        loader.start_epoch(0, epoch)
        for step in range(loader.steps_per_epoch):
            if beside is not None:
                for _ in range(5):
                    beside.step()
            loader.load(step)
            # Nothing waits until all are made.
            batches.append((batch.images.clone(), batch.labels.clone()))
    return [(images.cpu(), labels.cpu()) for images, labels in batches]


def dali_cifar(form: Form) -> str:
    """Compare DALI's pipeline on a GPU with that on the CPU; on a CPU with the tensor backend."""
    device_type = form.device_type
    _require_dali(device_type)
    reference: LoaderName = "dali" if device_type == "cuda" else "tensor"
    trained = Trained(fp16_execution(device_type), scaled=True)
    largest = 0.0
    # Pixels that are not normalised show the geometry exactly: fp16 has every integer to 2,048.
    for mean, std, tolerance in (
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0),
        (MEAN, STD, TOLERANCES["fp16"]),
    ):
        expected = _cifar_batches(reference, "cpu", mean, std)
        for beside in (None, trained):
            made = _cifar_batches("dali", device_type, mean, std, beside)
            for (ours, labels), (theirs, numbers) in zip(made, expected, strict=True):
                assert torch.equal(labels, numbers), "the labels are others"
                largest = float((ours.double() - theirs.double()).abs().max())
                assert largest <= tolerance, f"differs by {largest:.1e}, allowed {tolerance:g}"
    where = "the CPU pipeline's" if device_type == "cuda" else "the tensor backend's"
    return f"geometry equal, values within {tolerance:g} of {where}, steps beside it too"


def _decoded(
    name: tree_batches.DecoderName,
    device_type: str,
    split: ImageSplit,
    batches: list[Crops],
    *,
    centred: bool,
) -> NDArray[np.float64]:
    """The pixels of all batches, [n, 3] on the scale 0..255, less each channel's mean."""
    device = torch.device(device_type)
    execution = replace(default_execution(device_type), precision="fp32")
    decoder = tree_batches.make_decoder(
        name,
        split,
        batch_size=FILES,
        execution=execution,
        device=device,
        threads=1 if name == "dali" else 0,
        centred=centred,
    )
    buffer = tree_batches.pass_buffer(batches, execution, device)
    made = tree_batches.one_pass(decoder, batches, buffer, execution)
    rows = [images.permute(0, 2, 3, 1).double().cpu().numpy().ravel() for images, _ in made]
    return np.concatenate(rows).reshape(-1, 3) * np.array(IMAGENET_STD)


def dali_imagenet(form: Form) -> str:
    """Compare mixed decoding with DALI's CPU decoder; on a CPU that one with torchvision's."""
    device_type = form.device_type
    _require_dali(device_type)
    reference: tree_batches.DecoderName = "dali" if device_type == "cuda" else "torchvision"
    seen = []
    with TemporaryDirectory() as folder:
        tree = scan_tree(write_jpegs(Path(folder), FILES))
        random = plan_crops(
            tree.train.sizes, px=PX, min_scale=MIN_SCALE, seed=2, phase=1, worker=0, epoch=0
        )
        whole = evaluation_batches(tree.test.sizes, px=PX, batch_size=FILES, rectangular=True)
        assert whole[0].size[0] != whole[0].size[1], "expected a batch that is not square"
        for kind, split, batches in (
            ("random", tree.train, [random]),
            ("rectangular", tree.test, whole),
        ):
            centred = kind == "rectangular"
            ours = _decoded("dali", device_type, split, batches, centred=centred)
            theirs = _decoded(reference, "cpu", split, batches, centred=centred)
            apart = np.abs(ours - theirs)
            mean, high = float(apart.mean()), float(np.percentile(apart, 99.9))
            text = f"{kind} crops differ by {mean:.2f}/255, 99.9th percentile {high:.1f}/255"
            assert mean < MEAN_LIMIT and high < PERCENTILE_LIMIT, text  # noqa: PT018
            seen.append(text)
    return "; ".join(seen)
