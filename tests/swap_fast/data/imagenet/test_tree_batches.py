"""Both loaders of an image tree, held to each other and to Pillow; what updates and passes see."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import damaged_in_the_middle, encoded, legal_forms, texture, write_tree
from PIL import Image
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.batches import Batch
from swap_fast.data.imagenet.batches import (
    Decoder,
    DecoderName,
    TreeBatches,
    make_decoder,
    one_pass,
    pass_buffer,
)
from swap_fast.data.imagenet.crops import Crops, evaluation_batches, plan_crops
from swap_fast.data.imagenet.scan import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageSplit,
    ImageTree,
    scan_tree,
)
from swap_fast.distributed import Comm

CPU = torch.device("cpu")
LOADERS: tuple[DecoderName, ...] = ("dali", "torchvision")
SLOW = pytest.mark.slow  # processes of a DataLoader take seconds to start
BATCH = 12

# On the scale 0..255. Pillow rounds to whole numbers between its two passes, DALI does not; and at
# an image's border DALI's smoothing filter repeats the last pixel, where Pillow's leaves it out.
INNER_TOLERANCE, BORDER_TOLERANCE, MEAN_TOLERANCE = 1, 12, 0.3


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> ImageTree:
    root = write_tree(tmp_path_factory.mktemp("tree"), classes=3, train_images=9, test_images=7)
    for split in ("train", "val"):
        for name, content in legal_forms(texture(1, 5, 131, 97)).items():
            (root / split / "class1" / name).write_bytes(content)
    return scan_tree(root)


def loader_of(
    name: DecoderName, split: ImageSplit, *, threads: int = 0, centred: bool = False, **options: str
) -> Decoder:
    execution = Execution(**options)  # type: ignore[arg-type]
    # DALI has no way to go without a thread.
    threads = max(threads, 1) if name == "dali" else threads
    return make_decoder(
        name,
        split,
        batch_size=BATCH,
        execution=execution,
        device=CPU,
        threads=threads,
        centred=centred,
    )


def plan_of(split: ImageSplit, *, px: int = 48, epoch: int = 0) -> Crops:
    return plan_crops(split.sizes, px=px, min_scale=0.08, seed=3, phase=1, worker=0, epoch=epoch)


def batches_of(split: ImageSplit, **changed: int) -> list[Crops]:
    plan = plan_of(split, **changed)
    return [plan[start : start + BATCH] for start in range(0, len(plan), BATCH)]


def shown(
    loader: Decoder, batches: list[Crops], execution: Execution, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Crops]]:
    return one_pass(loader, batches, pass_buffer(batches, execution, device), execution)


def loaded(loader: Decoder, batches: list[Crops], **options: str) -> list[Tensor]:
    execution = Execution(**options)  # type: ignore[arg-type]
    return [images.clone() for images, _ in shown(loader, batches, execution)]


def as_bytes(images: Tensor) -> np.ndarray:
    """Normalised images back on the scale 0..255, float64 [n, H, W, 3]."""
    values = images.double().permute(0, 2, 3, 1).numpy()
    return values * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)


def pillow_crop(split: ImageSplit, crops: Crops, row: int) -> np.ndarray:
    """One crop by Pillow alone, float64 [H, W, 3]; without a crop after the resize."""
    top, left, height, width = crops.window[row].tolist()
    image = Image.open(split.path(crops.image[row])).convert("RGB")
    image = image.crop((left, top, left + width, top + height))
    image = image.resize(crops.size[::-1], Image.Resampling.BILINEAR)
    if crops.flip[row]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).astype(np.float64)


def test_torchvision_shows_what_pillow_shows(tree: ImageTree) -> None:
    batches = batches_of(tree.train)
    together = loaded(loader_of("torchvision", tree.train), batches)
    for images, crops in zip(together, batches, strict=True):
        for row, image in enumerate(as_bytes(images)):
            assert np.abs(image - pillow_crop(tree.train, crops, row)).max() < 1e-4


def require_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    apart = np.abs(ours - theirs)
    assert apart[:, 2:-2, 2:-2].max() <= INNER_TOLERANCE + 1e-4
    assert apart.max() <= BORDER_TOLERANCE
    assert apart.mean() <= MEAN_TOLERANCE


@pytest.mark.parametrize("px", [32, 48, 90])
def test_dali_shows_the_same_crops(tree: ImageTree, px: int) -> None:
    batches = batches_of(tree.train, px=px)
    both = [loaded(loader_of(name, tree.train), batches) for name in LOADERS]
    for dali, torchvision in zip(*both, strict=True):
        require_close(as_bytes(dali), as_bytes(torchvision))


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("px", [40, 64])
def test_dali_evaluates_as_torchvision_to_one_part_in_255(
    tree: ImageTree, px: int, rectangular: bool
) -> None:
    batches = evaluation_batches(tree.test.sizes, px=px, batch_size=BATCH, rectangular=rectangular)
    both = [loaded(loader_of(name, tree.test, centred=True), batches) for name in LOADERS]
    for dali, torchvision, crops in zip(*both, batches, strict=True):
        assert dali.shape == (len(crops), 3, *crops.size)
        ours, theirs = as_bytes(dali), as_bytes(torchvision)
        # Only a crop that reaches the resized image's border sees how borders are smoothed.
        away = ((crops.start >= 2) & (crops.start + crops.size <= crops.resized - 2)).all(axis=1)
        if not rectangular:
            assert away.all()
        assert np.abs(ours - theirs)[away].max() <= INNER_TOLERANCE + 1e-4
        require_close(ours, theirs)


@pytest.mark.parametrize("name", ["dali", pytest.param("torchvision", marks=SLOW)])
def test_the_batches_do_not_depend_on_threads(tree: ImageTree, name: DecoderName) -> None:
    batches = batches_of(tree.train)
    one, two = (loaded(loader_of(name, tree.train, threads=n), batches) for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("bf16", 1.2e-2)])
def test_every_type_and_layout_holds_the_same_values(
    tree: ImageTree, name: DecoderName, precision: str, tolerance: float
) -> None:
    batches = batches_of(tree.train)
    exact = loaded(loader_of(name, tree.train), batches)
    for memory_format in ("channels_last", "contiguous"):
        options = {"precision": precision, "memory_format": memory_format}
        other = loaded(loader_of(name, tree.train, **options), batches, **options)
        for a, b in zip(exact, other, strict=True):
            assert b.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
            assert b.is_contiguous(memory_format=Execution(**options).format)
            assert (a - b.float()).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["dali", pytest.param("torchvision", marks=SLOW)])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_new_start_drops_what_was_decoded_ahead(
    tree: ImageTree, name: DecoderName, taken: int
) -> None:
    first, second = batches_of(tree.train), batches_of(tree.train, epoch=1)
    loader = loader_of(name, tree.train, threads=1)
    expected = loaded(loader, second)
    images = Execution().empty_images((BATCH, 3, 48, 48), CPU)
    loader.start(first)
    for _ in range(taken):
        loader.load_(images)
    got = loaded(loader, second)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert len(loaded(loader, second[:1])) == 1  # fewer than are decoded ahead
    assert torch.equal(loaded(loader, second)[-1], expected[-1])


# What an update sees.


def tree_batches(tree: ImageTree, name: DecoderName, rank: int = 0, world_size: int = 1):
    replicas = Comm(rank=rank, world_size=world_size).replicas(4)
    batch = Batch.empty(3 * len(replicas), 32, Execution(), CPU)
    batches = TreeBatches(
        tree.train,
        loader_of(name, tree.train),
        px=32,
        min_scale=0.3,
        global_batch_size=12,
        num_replicas=4,
        replicas=replicas,
        seed=5,
        number=2,
        into=batch,
    )
    return batches, *batch


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_replicas_of_all_ranks_make_the_global_batch(
    tree: ImageTree, name: DecoderName, world_size: int
) -> None:
    plan = plan_crops(tree.train.sizes, px=32, min_scale=0.3, seed=5, phase=2, worker=1, epoch=4)
    whole = loaded(loader_of(name, tree.train), [plan[k : k + 12] for k in range(0, 36, 12)])
    for rank in range(world_size):
        batches, images, labels = tree_batches(tree, name, rank, world_size)
        assert batches.steps_per_epoch == len(tree.train) // 12 == 3
        batches.start_epoch(1, 4)
        for step in range(3):
            batches.load(step)
            replicas = np.arange(12).reshape(4, 3)[rank::world_size].flatten()
            assert torch.equal(images, whole[step][replicas])
            shown = plan.image[step * 12 + replicas]
            assert labels.tolist() == tree.train.labels[shown].tolist()


@pytest.mark.parametrize("name", LOADERS)
def test_a_step_out_of_order_shows_the_same(tree: ImageTree, name: DecoderName) -> None:
    batches, images, labels = tree_batches(tree, name)
    batches.start_epoch(0, 0)
    inorder = []
    for step in range(3):
        batches.load(step)
        inorder.append((images.clone(), labels.clone()))
    for step in (2, 0, 1):
        batches.load(step)
        assert torch.equal(images, inorder[step][0])
        assert torch.equal(labels, inorder[step][1])


def test_fewer_images_than_a_batch_are_refused(tree: ImageTree) -> None:
    with pytest.raises(ValueError, match=r"^phase 1: expected .* 64 images, got 42; [^\n]+$"):
        TreeBatches(
            tree.train,
            loader_of("torchvision", tree.train),
            px=32,
            min_scale=0.3,
            global_batch_size=64,
            num_replicas=1,
            replicas=range(1),
            seed=0,
            number=1,
            into=Batch.empty(64, 32, Execution(), CPU),
        )


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_pass_shows_each_image_once(tree: ImageTree, name: DecoderName, world_size: int) -> None:
    alone: list[Tensor] = []
    by_rank: list[list[Tensor]] = []
    for count, into in ((1, alone), (world_size, by_rank)):
        for rank in range(count):
            plan = plan_crops(
                tree.train.sizes, px=32, min_scale=0.08, seed=2, phase=3, worker=0, epoch=0
            )
            passed = one_pass(
                loader_of(name, tree.train),
                [plan[start : start + BATCH] for start in range(0, len(plan), BATCH)],
                Execution().empty_images((BATCH, 3, 32, 32), CPU),
                Execution(),
                Comm(rank=rank, world_size=count),
            )
            images = [batch.clone() for batch, _ in passed]
            into.extend(images) if into is alone else into.append(images)
    assert [len(batch) for batch in alone] == [12, 12, 12, 6]
    rows = {image.numpy().tobytes() for image in torch.cat(alone)}
    assert len(rows) == len(tree.train)
    for rank, mine in enumerate(by_rank):
        expected = alone[rank::world_size]
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
    dealt = chain.from_iterable(by_rank)
    assert sum(len(batch) for batch in dealt) == len(tree.train)


# Bad input that a scan does not find.


@pytest.mark.parametrize(
    ("name", "threads"),
    [("dali", 1), ("torchvision", 0), pytest.param("torchvision", 1, marks=SLOW)],
)
@pytest.mark.parametrize(
    "damage", ["noise in a JPEG", "noise in a PNG", "gone", "cut since", "other size"]
)
def test_what_is_found_at_decoding_is_named(
    tmp_path: Path, name: DecoderName, threads: int, damage: str
) -> None:
    root = write_tree(tmp_path, classes=2, train_images=10)
    path = root / "train/class1/bad\nname.jpg"
    image = texture(0, 9, 120, 100)
    content = encoded(image)
    if damage == "noise in a JPEG":
        content = damaged_in_the_middle(image)
    if damage == "noise in a PNG":
        png = bytearray(encoded(image, "PNG"))
        png[9_000:9_100] = bytes(range(100))
        content = bytes(png)
    path.write_bytes(content)
    split = scan_tree(root).train
    if damage == "gone":
        path.unlink()
    if damage == "cut since":
        path.write_bytes(content[:-500])
    if damage == "other size":
        path.write_bytes(encoded(texture(0, 9, 99, 100)))
    loader = loader_of(name, split, threads=threads)
    with pytest.raises(ValueError, match=r"train/class1/bad\\nname.jpg' \(") as raised:
        loaded(loader, batches_of(split))
    (line,) = str(raised.value).splitlines()
    assert line.endswith("cannot be used; mend or remove it")


@pytest.mark.parametrize("centred", [False, True])
def test_the_graph_for_a_gpu_can_be_built_without_one(tree: ImageTree, centred: bool) -> None:
    """That it is right, only a GPU can show; that its arguments are known, this does."""
    from swap_fast.data.imagenet.dali import _Source, define_pipeline

    pipeline = define_pipeline(
        _Source(tree.train, centred=centred),
        batch_size=4,
        threads=1,
        device_id=0,
        half=True,
        channels_last=True,
        centred=centred,
    )
    pipeline._build_graph()
    (images,) = pipeline._graph_out
    assert images.device == "gpu"


@pytest.mark.gpu
def test_a_gpu_shows_the_same_crops(tree: ImageTree) -> None:
    """Its decoder smooths colours otherwise than libjpeg, so that the values are only alike."""
    device = torch.device("cuda")
    execution = Execution(device_type="cuda", precision="fp16")
    batches = batches_of(tree.train)
    loader = make_decoder(
        "dali", tree.train, batch_size=BATCH, execution=execution, device=device, threads=2
    )
    on_gpu = [images.float().cpu() for images, _ in shown(loader, batches, execution, device)]
    on_cpu = loaded(loader_of("dali", tree.train), batches)
    for ours, expected in zip(torch.cat(on_gpu), torch.cat(on_cpu), strict=True):
        assert np.corrcoef(ours.flatten(), expected.flatten())[0, 1] > 0.98


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_stays_flat_over_rebuilds_and_batches(tree: ImageTree) -> None:
    def stage(epochs: int) -> None:
        loader = loader_of("dali", tree.train)
        for epoch in range(epochs):
            for _ in shown(loader, batches_of(tree.train, epoch=epoch), Execution()):
                pass

    for _ in range(5):
        stage(5)
    gc.collect()
    before = resident_bytes()
    for _ in range(20):
        stage(25)  # of 4 batches
    gc.collect()
    assert resident_bytes() < 1.02 * before
