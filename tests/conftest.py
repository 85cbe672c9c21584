"""What many tests share: real CIFAR-10 where it is at hand, small fake sets, a CUDA stand-in."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from repository import SHARED

from swap_fast.data.cifar.files import find_cifar

if TYPE_CHECKING:
    from cuda_stand_in import StandIn

SHARED_DATA = SHARED / "data"

# Before torch is imported, and for every process that a test starts: as many tests run at a time
# as there are cores, and sums depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no device."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the real CIFAR-10 and CIFAR-100 in their binary layouts."""
    if not (SHARED_DATA / "unpack.py").exists():
        pytest.skip("no shared data")
    folder = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, str(SHARED_DATA / "unpack.py"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def cuda_stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """torch's CUDA build on no GPU: see tests/cuda_stand_in."""
    import cuda_stand_in

    reason = cuda_stand_in.why_not_here()
    if reason:
        pytest.skip(reason)
    return cuda_stand_in.build(tmp_path_factory.mktemp("cuda_stand_in"))


@pytest.fixture(scope="session")
def cifar10_dir(request: pytest.FixtureRequest) -> Path:
    """A folder that holds the real CIFAR-10."""
    named = os.environ.get("SWAP_DATA")
    if named and find_cifar("cifar10", Path(named)):
        return Path(named)
    shared: Path = request.getfixturevalue("shared_cifar")
    return shared


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A CIFAR-10 of 2,560 training and 200 test images, named by SWAP_DATA.

    For whole runs: to evaluate on the synthetic set's 10,000 test images takes most of their time.
    """
    from same_bits import write_cifar

    folder = tmp_path_factory.mktemp("small_cifar")
    write_cifar(folder, train_images=2_560, test_images=200)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SWAP_DATA", str(folder))
        yield folder


@dataclass(frozen=True)
class FakeCifar:
    """A small set of random images, written in any published layout.

    `train` and `test` are records uint8 [n, 3073]: a label, then red, green and blue planes.
    """

    name: str
    train: np.ndarray
    test: np.ndarray

    def write_binary(self, folder: Path) -> Path:
        """The binary layout; CIFAR-10's training images spread over five files."""
        folder = (
            folder / {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[self.name]
        )
        folder.mkdir(parents=True)
        for file, records in self._files(
            "data_batch_{}.bin", "train.bin", "test_batch.bin"
        ).items():
            if self.name == "cifar100":
                coarse = records[:, :1] // 5
                records = np.concatenate([coarse, records], axis=1)
            (folder / file).write_bytes(records.tobytes())
        return folder

    def write_python(self, folder: Path) -> tuple[Path, dict[str, str]]:
        """The Python layout, with keys in bytes as Python 2 wrote them, and the files' MD5s."""
        folder = (
            folder / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[self.name]
        )
        folder.mkdir(parents=True)
        md5s = {}
        key = b"labels" if self.name == "cifar10" else b"fine_labels"
        for file, records in self._files("data_batch_{}", "train", "test_batch").items():
            content = pickle.dumps(
                {key: records[:, 0].tolist(), b"data": np.ascontiguousarray(records[:, 1:])},
                protocol=2,
            )
            (folder / file).write_bytes(content)
            md5s[file] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return folder, md5s

    def _files(self, batch: str, train: str, test: str) -> dict[str, np.ndarray]:
        if self.name == "cifar100":
            suffix = Path(test).suffix
            return {train: self.train, f"test{suffix}": self.test}
        parts = np.array_split(self.train, 5)
        return {**{batch.format(i + 1): part for i, part in enumerate(parts)}, test: self.test}


def archive(folder: Path) -> Path:
    """The folder as the .tar.gz that its publishers give."""
    name = {
        "cifar-10-batches-bin": "cifar-10-binary",
        "cifar-10-batches-py": "cifar-10-python",
    }.get(folder.name, folder.name)
    path = folder.parent / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return path


def fake_cifar(name: str = "cifar10", seed: int = 0) -> FakeCifar:
    """53 training and 20 test images with every label's range."""
    random = np.random.default_rng(seed)
    classes = 10 if name == "cifar10" else 100

    def records(count: int) -> np.ndarray:
        made = random.integers(256, size=(count, 3073), dtype=np.uint8)
        made[:, 0] = random.integers(classes, size=count)
        return made

    return FakeCifar(name, records(53), records(20))
