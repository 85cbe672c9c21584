"""What only a GPU can confirm of the input; each has a form for CPUs."""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.micro.data import MEAN, MIN_SCALE, PX, STD, random_split, write_jpegs
from bench.verify.check import Check, Form, UnavailableError
from bench.verify.contract import Trained
from swap_fast.config.execution import DTYPES, default_execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.augment import AugmentationPlan, plan_epoch
from swap_fast.data.cifar.batches import Batch, ShardSpec
from swap_fast.data.cifar.dataset import Channels, Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.data.imagenet import batches as tree_batches
from swap_fast.data.imagenet.crops import Crops, plan_crops
from swap_fast.data.imagenet.scan import IMAGENET_STD, ImageSplit, scan_tree
from swap_fast.tasks.cifar import loader_maker, missing_for_dali
from swap_fast.tasks.imagenet import evaluation_batches

IMAGES, BATCH = 96, 32
TOLERANCES = {"fp32": 2e-6, "fp16": 2e-3}
FILES = 16
MEAN_LIMIT, PERCENTILE_LIMIT = 2.0, 16.0
"""Of decoders' differences on the scale 0..255: their mean, and their 99.9th percentile."""


def _plan(epoch: int) -> AugmentationPlan:
    return plan_epoch(IMAGES, Augmentation(), seed=2, phase=1, worker=0, epoch=epoch)


def _oracle(split: Split, plan: AugmentationPlan, positions: range) -> NDArray[np.float64]:
    """The plan's batch as the paper words it, image by image: float64 [n, 3, 32, 32]."""
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
    """Batches of three epochs against the oracle, those of a GPU from a captured graph as well."""
    device, split = torch.device(form.device_type), random_split(IMAGES)
    with warnings.catch_warnings(action="error"):  # one says that there is no kernel
        images = DeviceImages(split, mean=MEAN, std=STD, device=device, pad=Augmentation().pad)
    plan, positions = images.upload(_plan(0)), torch.arange(BATCH, device=device)
    labels = torch.empty(BATCH, dtype=torch.int64, device=device)
    seen = []
    for precision, tolerance in TOLERANCES.items():
        batch = torch.empty(BATCH, 3, 32, 32, dtype=DTYPES[precision], device=device)
        batch = batch.to(memory_format=torch.channels_last)
        images.load_(plan, positions, batch, labels)  # the kernel is built before a capture
        ways = [partial(images.load_, plan, positions, batch, labels)]
        if form.device_type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                images.load_(plan, positions, batch, labels)
            ways.append(partial(graph.replay))
        largest = 0.0
        for epoch, way in ((epoch, way) for epoch in range(3) for way in ways):
            drawn, start = _plan(epoch), epoch * BATCH
            images.upload(drawn, plan)
            positions.copy_(torch.arange(start, start + BATCH))
            batch.fill_(torch.nan)
            labels.fill_(-1)
            way()
            expected = _oracle(split, drawn, range(start, start + BATCH))
            largest = max(largest, float(np.abs(batch.double().cpu().numpy() - expected).max()))
            numbers = split.labels[drawn.order[start : start + BATCH]]
            assert labels.tolist() == numbers.tolist(), "the labels are others"
            assert largest <= tolerance, f"{precision}: off by {largest:.1e}, not {tolerance:g}"
        seen.append(f"{precision} within {largest:.1e}")
    return f"{', '.join(seen)} of the oracle, {'eager and captured' if len(ways) == 2 else 'eager'}"


def _require_dali(device_type: str) -> None:
    if missing_for_dali(device_type) is not None:
        raise UnavailableError("DALI")


def _cifar_batches(
    name: LoaderName, device_type: str, mean: Channels, std: Channels, beside: Trained | None = None
) -> list[tuple[Tensor, Tensor]]:
    """All fp16 batches of two epochs, on the host; steps of `beside` run before each is loaded."""
    device, split = torch.device(device_type), random_split(IMAGES)
    execution = replace(default_execution(device_type), precision="fp16", loader=name)
    augmentation, phase = Augmentation(), Phase(global_batch_size=BATCH, peak_lr=1.0, max_epochs=2)
    images = DeviceImages(split, mean=mean, std=std, device=device, pad=augmentation.pad)
    make = loader_maker(
        images, split, augmentation, mean=mean, std=std, execution=execution, device=device
    )
    loader = make(
        ShardSpec(
            num_images=IMAGES,
            augmentation=augmentation,
            phase=phase,
            seed=2,
            number=1,
            replicas=range(1),
        ),
        batch := Batch.empty(BATCH, 32, execution, device),
    )
    batches = []
    for epoch in range(2):
        loader.start_epoch(0, epoch)
        for step in range(loader.steps_per_epoch):
            if beside is not None:
                for _ in range(5):
                    beside.step()
            loader.load(step)
            batches.append(
                (batch.images.clone(), batch.labels.clone())
            )  # nothing waits until all are made
    return [(images.cpu(), labels.cpu()) for images, labels in batches]


def dali_cifar(form: Form) -> str:
    """DALI's pipeline on a GPU against that on the CPU; on a CPU against the tensor backend."""
    device_type = form.device_type
    _require_dali(device_type)
    reference: LoaderName = "dali" if device_type == "cuda" else "tensor"
    trained = Trained(replace(default_execution(device_type), precision="fp16"), scaled=True)
    largest = 0.0
    # Pixels as they are show the geometry exactly: fp16 holds every whole number to 2,048.
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
    """The crops of all batches in one row, but for an offset on the scale 0..255."""
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
    """Mixed decoding against DALI's CPU decoder; on a CPU that against torchvision's."""
    device_type = form.device_type
    _require_dali(device_type)
    reference: tree_batches.DecoderName = "dali" if device_type == "cuda" else "torchvision"
    seen = []
    with TemporaryDirectory() as folder:
        tree = scan_tree(write_jpegs(Path(folder), FILES))
        random = plan_crops(
            tree.train.sizes, px=PX, min_scale=MIN_SCALE, seed=2, phase=1, worker=0, epoch=0
        )
        whole = list(evaluation_batches(tree.test, px=PX, batch_size=FILES, rectangular=True))
        assert whole[0].size[0] != whole[0].size[1], "a batch that is not square was meant"
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


INPUT_CHECKS = (
    Check(
        name="gather",
        claim="the gather kernel makes the plan's batches, eager and captured",
        confirm=gather,
    ),
    Check(
        name="dali-cifar",
        claim="DALI's GPU pipeline makes the CPU pipeline's batches, beside a replayed step too",
        confirm=dali_cifar,
    ),
    Check(
        name="dali-imagenet",
        claim="JPEGs decoded on the GPU are the CPU decoder's to a few parts in 255",
        confirm=dali_imagenet,
    ),
)
