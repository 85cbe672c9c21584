"""Each backend makes the batches of the plan: held to a float64 oracle, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_trainer import MEAN, STD, make_split, oracle_image
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.batches import Batch, Loader, ShardSpec
from swap_fast.data.cifar.dataset import Channels
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.tasks import cifar as loaders
from swap_fast.tasks.cifar import choose_decoder, choose_loader, loader_maker

CPU = torch.device("cpu")
Take = Callable[[int], tuple[Tensor, Tensor]]
N, BATCH = 45, 16
SPLIT = make_split(N, 3)
PHASE = Phase(global_batch_size=BATCH, peak_lr=0.1, max_epochs=2)
RAW = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # with these the values are the pixels
PRECISIONS = {"fp32": 2e-6, "fp16": 2e-3}
STREAMED: list[LoaderName] = ["dali", "torchvision"]
BACKENDS = [
    ("tensor", 1),
    ("tensor", 2),
    ("dali", 1),
    ("dali", 2),
    ("torchvision", 1),
    pytest.param("torchvision", 2, marks=pytest.mark.slow),  # two processes import torch
]


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def share_of(*, phase: Phase = PHASE, **changed: object) -> ShardSpec:
    share = ShardSpec(
        num_images=N,
        augmentation=Augmentation(),
        phase=phase,
        seed=8,
        number=1,
        replicas=range(phase.gpus_per_model),
    )
    return replace(share, **changed)


class Made:
    """A backend for one split: makes loaders from shares."""

    def __init__(
        self,
        name: LoaderName,
        *,
        threads: int = 1,
        execution: Execution | None = None,
        statistics: tuple[Channels, Channels] = (MEAN, STD),
        augmentation: Augmentation | None = None,
    ) -> None:
        if name == "dali":
            pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        torch.set_num_threads(threads)
        self.execution = replace(execution or Execution(), loader=name)
        mean, std = statistics
        augmentation = augmentation or Augmentation()
        images = DeviceImages(SPLIT, mean=mean, std=std, device=CPU, pad=augmentation.pad)
        self.make = loader_maker(
            images, SPLIT, augmentation, mean=mean, std=std, execution=self.execution, device=CPU
        )

    def loader(self, share: ShardSpec) -> tuple[Loader, Take]:
        """A loader, and what gives a copy of a batch of it."""
        n = share.images_per_step
        images = self.execution.empty_images((n + 2, 3, 32, 32), CPU).fill_(77.0)
        labels = torch.full((n + 2,), -1)
        loader = self.make(share, Batch(images[:n], labels[:n]))

        def take(step: int) -> tuple[Tensor, Tensor]:
            loader.load(step)
            assert (images[n:] == 77.0).all()  # the rest of a larger buffer stays as it is
            assert (labels[n:] == -1).all()
            return images[:n].clone(), labels[:n].clone()

        return loader, take

    def epochs(
        self, share: ShardSpec, places: list[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """All batches of these (worker, epoch), one after another."""
        (loader, take), batches = self.loader(share), []
        for worker, epoch in places:
            loader.start_epoch(worker, epoch)
            for step in range(loader.steps_per_epoch):
                batches.append(take(step))
        return batches


def expected(
    share: ShardSpec, worker: int, epoch: int, step: int, *, raw: bool = False
) -> tuple[NDArray[np.float64], list[int]]:
    """The oracle's batch: float64 [n, 3, 32, 32], and its labels."""
    plan = share.plan(worker, epoch)
    images, labels = [], []
    for position in share.positions(step):
        number = plan.order[position]
        crop, values = oracle_image(SPLIT.images[number], share.augmentation, plan, position)
        if raw:
            top, left, side = plan.cutout_y[position], plan.cutout_x[position], plan.cutout
            values = crop.astype(np.float64).transpose(2, 0, 1)
            values[:, top : top + side, left : left + side] = 0
        images.append(values)
        labels.append(int(SPLIT.labels[number]))
    return np.stack(images), labels


def assert_follows(
    batches: list[tuple[Tensor, Tensor]],
    share: ShardSpec,
    places: list[tuple[int, int]],
    tolerance: float,
    *,
    raw: bool = False,
) -> None:
    steps = [(*place, step) for place in places for step in range(share.steps_per_epoch)]
    assert len(batches) == len(steps)
    for (images, labels), place in zip(batches, steps, strict=True):
        values, numbers = expected(share, *place, raw=raw)
        np.testing.assert_allclose(images.double().numpy(), values, rtol=0, atol=tolerance)
        assert labels.tolist() == numbers


@pytest.mark.parametrize(("name", "threads"), BACKENDS)
def test_two_epochs_are_the_oracle_s(name: LoaderName, threads: int) -> None:
    places = [(0, 0), (0, 1)]
    for precision, tolerance in PRECISIONS.items():
        execution = Execution(precision=precision)  # type: ignore[arg-type]
        made = Made(name, threads=threads, execution=execution)
        share = share_of()
        assert share.steps_per_epoch == 2
        assert_follows(made.epochs(share, places), share, places, tolerance)


@pytest.mark.parametrize(("name", "threads"), BACKENDS)
def test_crop_flip_and_cutout_are_exact(name: LoaderName, threads: int) -> None:
    share, places = share_of(), [(0, 0), (3, 1)]
    made = Made(name, threads=threads, statistics=RAW)
    assert_follows(made.epochs(share, places), share, places, 0.0, raw=True)


@pytest.mark.parametrize("name", ["tensor", *STREAMED])
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(pad=0, flip="none", cutout=0),
        Augmentation(pad=1, cutout=32),
        Augmentation(pad=3, cutout=5),
        Augmentation(pad=31, cutout=0),
    ],
    ids=str,
)
def test_other_augmentations_are_exact(name: LoaderName, augmentation: Augmentation) -> None:
    share = share_of(augmentation=augmentation)
    made = Made(name, statistics=RAW, augmentation=augmentation)
    assert_follows(made.epochs(share, [(0, 0)]), share, [(0, 0)], 0.0, raw=True)


@pytest.mark.parametrize("name", ["tensor", *STREAMED])
@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_type_and_layout(name: LoaderName, memory_format: str, precision: str) -> None:
    execution = Execution(precision=precision, memory_format=memory_format)  # type: ignore[arg-type]
    made, share = Made(name, execution=execution), share_of()
    batches = made.epochs(share, [(1, 2)])
    assert all(images.dtype == execution.dtype for images, _ in batches)
    tolerance = PRECISIONS.get(precision, 2e-2)
    assert_follows(batches, share, [(1, 2)], tolerance)


@pytest.mark.parametrize("name", STREAMED)
def test_an_epoch_left_early_leaves_no_batch_behind(name: LoaderName) -> None:
    made, share = Made(name), share_of()
    loader, take = made.loader(share)
    # Left before its end; the same again; another worker; straight into the midst; backwards.
    visits = [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 1, 0),
        (2, 1, 0),
        (2, 5, 1),
        (2, 5, 0),
        (2, 6, 0),
    ]
    for worker, epoch, step in visits:
        loader.start_epoch(worker, epoch)
        images, labels = take(step)
        values, numbers = expected(share, worker, epoch, step)
        np.testing.assert_allclose(images.double().numpy(), values, rtol=0, atol=2e-6)
        assert labels.tolist() == numbers


@pytest.mark.parametrize("name", STREAMED)
def test_both_phases_share_a_stream(name: LoaderName) -> None:
    made = Made(name)
    phase2 = Phase(global_batch_size=8, peak_lr=0.1, max_epochs=1)
    phase1 = replace(PHASE, gpus_per_model=2)
    shares = [share_of(phase=phase1), share_of(phase=phase2, number=2)]
    phases = [made.loader(share) for share in shares]
    # Phase 1 ends after one epoch; two workers; and phase 1 where it was left.
    for number, worker, epoch in ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1)):
        (loader, take), share = phases[number], shares[number]
        loader.start_epoch(worker, epoch)
        for step in range(loader.steps_per_epoch):
            images, labels = take(step)
            values, numbers = expected(share, worker, epoch, step)
            np.testing.assert_allclose(images.double().numpy(), values, rtol=0, atol=2e-6)
            assert labels.tolist() == numbers


@pytest.mark.parametrize("name", ["tensor", *STREAMED])
def test_a_fresh_process_resumes_to_the_bit(name: LoaderName) -> None:
    share = share_of()
    through = Made(name).epochs(share, [(1, epoch) for epoch in range(4)])
    loader, take = Made(name).loader(share)
    loader.start_epoch(1, 2)
    for step, whole in ((1, through[5]), (0, through[4])):
        for ours, theirs in zip(take(step), whole, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", STREAMED)
def test_ranks_take_their_replicas(name: LoaderName) -> None:
    phase = replace(PHASE, gpus_per_model=4)
    whole = Made(name).epochs(share_of(phase=phase), [(0, 0)])
    for rank in range(2):
        part = Made(name).epochs(share_of(phase=phase, replicas=range(rank, 4, 2)), [(0, 0)])
        for (images, labels), (all_images, all_labels) in zip(part, whole, strict=True):
            assert torch.equal(images, all_images.view(4, 4, 3, 32, 32)[rank::2].flatten(0, 1))
            assert torch.equal(labels, all_labels.view(4, 4)[rank::2].flatten())


# The choice.


@pytest.mark.parametrize(
    ("asked", "of_recipe", "device_type", "chosen"),
    [
        ("auto", None, "cpu", "tensor"),
        ("auto", None, "cuda", "tensor"),
        ("auto", "dali", "cuda", "dali"),
        ("tensor", "dali", "cuda", "tensor"),
        ("torchvision", "dali", "cuda", "torchvision"),
        ("torchvision", None, "cpu", "torchvision"),
        ("dali", None, "cpu", "dali"),
        ("dali", "dali", "cuda", "dali"),
    ],
)
def test_the_loader_that_is_named_is_taken(
    monkeypatch: pytest.MonkeyPatch, asked: str, of_recipe: str, device_type: str, chosen: str
) -> None:
    monkeypatch.setattr(loaders, "missing_for_dali", lambda device_type: None)
    assert choose_loader(asked, of_recipe, device_type) == (chosen, None)  # type: ignore[arg-type]


def test_a_recipe_s_dali_waits_for_a_gpu() -> None:
    loader, line = choose_loader("auto", "dali", "cpu")
    assert loader == "tensor"
    assert line is not None
    assert line.endswith("the tensor backend makes the batches")
    assert "\n" not in line


def test_without_dali_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(loaders.importlib, "import_module", absent)
    for asked, device_type in (("dali", "cpu"), ("auto", "cuda")):
        assert choose_loader(asked, "dali", device_type) == (  # type: ignore[arg-type]
            "tensor",
            "loader dali: DALI cannot be imported (No module named 'nvidia.dali.backend'); "
            "the tensor backend makes the batches",
        )


def test_a_tree_s_files_are_decoded_by_dali_or_by_torchvision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loaders, "missing_for_dali", lambda device_type: None)
    assert choose_decoder("auto", "cpu") == choose_decoder("dali", "cpu") == ("dali", None)
    assert choose_decoder("torchvision", "cuda") == ("torchvision", None)
    with pytest.raises(ValueError, match=r"^loader: expected auto, dali or torchvision"):
        choose_decoder("tensor", "cpu")
    monkeypatch.setattr(loaders, "missing_for_dali", lambda device_type: "DALI is away")
    line = "loader dali: DALI is away; torchvision's DataLoader decodes the images"
    assert choose_decoder("auto", "cpu") == ("torchvision", line)
    assert choose_decoder("torchvision", "cpu") == ("torchvision", None)


def test_without_a_driver_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = pytest.importorskip("nvidia.dali.backend", reason="DALI is not installed")
    monkeypatch.setattr(backend, "GetCUDADeviceCount", lambda: 0)
    assert choose_loader("dali", None, "cuda") == (
        "tensor",
        "loader dali: DALI finds no NVIDIA driver; the tensor backend makes the batches",
    )
