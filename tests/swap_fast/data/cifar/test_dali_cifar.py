"""DALI's pipeline itself: its source, its copies, its memory, and its graph for a GPU."""

from __future__ import annotations

import gc
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainer import MEAN, STD, make_split

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.batches import Batch, Loader, ShardSpec, plans_from
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.tasks.cifar import loader_maker

dali_cifar: Any = pytest.importorskip("swap_fast.data.cifar.dali")
pytest.importorskip("nvidia.dali", reason="DALI is not installed")

CPU = torch.device("cpu")
N, BATCH = 70, 16
SPLIT = make_split(N, 5)
PHASE = Phase(global_batch_size=BATCH, peak_lr=0.1, max_epochs=2)
SHARE = ShardSpec(
    num_images=N, augmentation=Augmentation(), phase=PHASE, seed=1, number=1, replicas=range(1)
)


def source_from(worker: int, epoch: int, step: int) -> Any:
    padded = np.pad(SPLIT.images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    plans = plans_from(SHARE, worker, epoch, step)
    return dali_cifar.Source(plans, padded, SPLIT.labels.astype(np.int64), 4)


def pipeline_on(device_id: int | None, *, half: bool = False) -> Any:
    return dali_cifar.define_pipeline(
        source_from(0, 0, 0),
        batch_size=BATCH,
        pad=4,
        cutout=8,
        mean=MEAN,
        std=STD,
        half=half,
        channels_last=True,
        device_id=device_id,
        threads=1,
    )


def loader_of(name: LoaderName, batch_size: int) -> Loader:
    """A loader of noise, large enough for a leak to show beside the libraries."""
    split, augmentation = make_split(1_000, 6), Augmentation()
    images = DeviceImages(split, mean=MEAN, std=STD, device=CPU, pad=4)
    execution = Execution(loader=name)
    make = loader_maker(
        images, split, augmentation, mean=MEAN, std=STD, execution=execution, device=CPU
    )
    phase = replace(PHASE, global_batch_size=batch_size)
    batch = Batch.empty(batch_size, 32, execution, CPU)
    return make(replace(SHARE, num_images=len(split), phase=phase), batch)


def test_the_source_goes_on_from_any_step_through_the_epochs() -> None:
    source = source_from(2, 1, 0)
    batches = [[np.ascontiguousarray(part).tobytes() for part in source()] for _ in range(9)]
    # Four batches an epoch: the ninth is the first of the epoch after the next.
    for number, later in ((3, source_from(2, 1, 3)), (8, source_from(2, 3, 0))):
        assert [np.ascontiguousarray(part).tobytes() for part in later()] == batches[number]


def test_what_dali_reads_is_kept_until_it_is_taken() -> None:
    # On a CPU it reads the source's arrays themselves, a queue of them at a time.
    source, given = source_from(0, 0, 0), []
    for _ in range(20):
        given.append(source())
        kept = {id(part) for parts in source._in_use for part in parts}
        wanted = given[-dali_cifar.QUEUE_DEPTH - 1 :]
        assert {id(part) for parts in wanted for part in parts} <= kept
    assert len(source._in_use) == dali_cifar.QUEUE_DEPTH + 2


@pytest.mark.parametrize("half", [False, True])
def test_the_same_tensors_are_filled_as_run_returns(half: bool) -> None:
    plain, fed = pipeline_on(None, half=half), pipeline_on(None, half=half)
    plain.build()
    fed.build()
    fed.schedule_run()
    dtype = torch.float16 if half else torch.float32
    images, labels = torch.empty(BATCH, 32, 32, 3, dtype=dtype), torch.empty(BATCH).long()
    addresses = images.data_ptr(), labels.data_ptr()
    for _ in range(10):
        dali_cifar.feed_(fed, (images, labels), None)
        made, numbers = plain.run()
        assert np.array_equal(images.numpy(), made.as_array())
        assert np.array_equal(labels.numpy(), numbers.as_array())
    assert (images.data_ptr(), labels.data_ptr()) == addresses


def test_an_error_in_the_source_keeps_its_type() -> None:
    pipeline = dali_cifar.define_pipeline(
        _fails,
        batch_size=BATCH,
        pad=4,
        cutout=0,
        mean=MEAN,
        std=STD,
        half=False,
        channels_last=True,
        device_id=None,
        threads=1,
    )
    pipeline.build()
    with pytest.raises(ValueError, match="no such image"):
        pipeline.schedule_run()


def _fails() -> Any:
    raise ValueError("no such image")


@pytest.mark.parametrize("half", [False, True])
def test_the_graph_for_a_gpu_works_and_ends_on_it(half: bool) -> None:
    # Built without a driver: what it computes there, only a GPU can show.
    pipeline = pipeline_on(0, half=half)
    pipeline._build_graph()
    types = dali_cifar.dali.types
    operators = [
        (
            operator.name.strip("_").rpartition("_")[0],
            {node.device for node in operator.outputs},
            [int(dtype) for dtype in re.findall(r"\bdtype: (\d+)", str(operator.spec))],
        )
        for operator in pipeline._ops
    ]
    made = [each for each in operators if each[0] != "ExternalSource"]
    # `erase` keeps its input's type, and DALI's kernel of it for a GPU has no fp16.
    assert made == [
        ("CropMirrorNormalize", {"gpu"}, [int(types.FLOAT)]),
        ("Erase", {"gpu"}, []),
        *([("Cast", {"gpu"}, [int(types.FLOAT16)])] if half else []),
    ]
    assert all(devices == {"cpu"} for name, devices, _ in operators if name == "ExternalSource")
    assert [node.device for node in pipeline._graph_outputs] == ["gpu", "gpu"]


def resident_bytes() -> int:
    """Of this process, now; Linux alone says so, and DALI runs there alone."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def work(loader: Loader, batches: int, rebuilds: int) -> Iterator[int]:
    """Load so many batches, leaving an epoch early so many times; the memory, now and then."""
    steps = loader.steps_per_epoch
    for worker in range(rebuilds + 1):
        for number in range(batches // (rebuilds + 1)):
            if number % steps == 0:
                loader.start_epoch(worker, number // steps)
            loader.load(number % steps)
        gc.collect()
        yield resident_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch_size"), [("tensor", 128), ("dali", 128), ("torchvision", 16)]
)
def test_memory_is_flat(name: LoaderName, batch_size: int) -> None:
    loader = loader_of(name, batch_size)
    before = list(work(loader, 500, 5))[-1]
    readings = list(work(loader, 2_100, 20))
    assert len(readings) == 21
    # An allocator takes tens of MB at once, now and then. A leak grows at every turn.
    growth = [after - earlier for earlier, after in pairwise(readings)]
    assert statistics.median(growth) < 2**19
    assert max(readings) < 1.1 * before


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "fp32", "bf16"])
def test_a_gpu_makes_the_tensor_backend_s_batches(precision: Any) -> None:
    device = torch.device("cuda")
    execution = Execution(device_type="cuda", precision=precision)
    made = {}
    for name in ("tensor", "dali"):
        images = DeviceImages(SPLIT, mean=MEAN, std=STD, device=device, pad=4)
        loading = Execution(device_type="cuda", precision=precision, loader=name)  # type: ignore[arg-type]
        make = loader_maker(
            images, SPLIT, Augmentation(), mean=MEAN, std=STD, execution=loading, device=device
        )
        batch = Batch.empty(BATCH, 32, execution, device)
        loader, batches = make(SHARE, batch), []
        for worker, epoch in ((0, 0), (0, 1), (1, 0)):
            loader.start_epoch(worker, epoch)
            for step in range(loader.steps_per_epoch):
                loader.load(step)
                batches.append((batch.images.clone(), batch.labels.clone()))
        made[name] = batches
    tolerance = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 2e-2}[precision]
    for (ours, our_labels), (theirs, their_labels) in zip(*made.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
        assert torch.equal(our_labels, their_labels)
