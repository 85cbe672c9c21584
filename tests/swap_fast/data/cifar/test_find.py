"""Where a data set is looked for, in order, and what is said of it."""

from pathlib import Path

import pytest
import torchvision.datasets
from conftest import fake_cifar

from swap_fast.data.cifar.files import find_at_hand, load_dataset, locate_dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no SWAP_DATA."""
    monkeypatch.delenv("SWAP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "swap_fast"


class Offline:
    """Stands where torchvision's class stands, and fails as it does without a network."""

    def __init__(self, root: str, *, download: bool) -> None:
        raise OSError("no route to host")


def test_what_the_user_names_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_cifar()
    named, variable, cached = (
        fake.write_binary(folder) for folder in (tmp_path / "a", tmp_path / "b", cache)
    )
    assert locate_dataset("cifar10") == find_at_hand("cifar10") == cached
    monkeypatch.setenv("SWAP_DATA", str(tmp_path / "b"))
    assert locate_dataset("cifar10") == variable
    assert locate_dataset("cifar10", tmp_path / "a") == named


def test_a_named_folder_without_the_set_is_an_error_and_not_passed_over(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cifar().write_binary(cache)
    with pytest.raises(ValueError, match="--data: expected cifar-10") as caught:
        locate_dataset("cifar10", tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("SWAP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="SWAP_DATA: expected cifar-10"):
        locate_dataset("cifar10")


def test_the_download_goes_into_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Download:
        def __init__(self, root: str, *, download: bool) -> None:
            assert download
            fake_cifar().write_binary(Path(root))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Download)
    said: list[str] = []
    found = locate_dataset("cifar10", announce=said.append)
    assert found == cache / "cifar-10-batches-bin"
    assert said == [f"CIFAR-10: downloading into {cache}"]
    assert len(load_dataset("cifar10", found).train) == 53


def test_without_a_network_the_synthetic_set_is_announced(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Offline)
    said: list[str] = []
    assert locate_dataset("cifar10", announce=said.append) is None
    assert "the download failed: no route to host" in said[1]
    assert "never compared with published ones" in said[2]
    assert all("\n" not in line for line in said)


def test_a_user_without_a_home_has_no_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    said: list[str] = []
    assert locate_dataset("cifar10", announce=said.append) is None
    assert find_at_hand("cifar10") is None
    (line,) = said
    assert line.startswith("CIFAR-10 was not found: the built-in synthetic images stand in for it")


def test_a_download_that_another_process_finished_first_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second:
        def __init__(self, root: str, *, download: bool) -> None:
            fake_cifar().write_binary(cache)
            raise OSError("connection reset")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Second)
    assert locate_dataset("cifar10", announce=print) == cache / "cifar-10-batches-bin"


def test_a_download_cut_short_leaves_nothing_that_looks_whole(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutShort:
        def __init__(self, root: str, *, download: bool) -> None:
            folder = fake_cifar().write_binary(Path(root))
            (folder / "data_batch_5.bin").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CutShort)
    with pytest.raises(KeyboardInterrupt):
        locate_dataset("cifar10", announce=print)
    assert list(cache.iterdir()) == []


def test_what_is_at_hand_is_told_without_a_download(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_cifar().write_binary(tmp_path / "a")
    assert find_at_hand("cifar10") is None
    assert not cache.exists()
    assert find_at_hand("cifar10", tmp_path) is None
    assert find_at_hand("cifar10", folder) == folder
    monkeypatch.setenv("SWAP_DATA", str(folder))
    assert find_at_hand("cifar10") == folder
    assert find_at_hand("synthetic") is None


def test_synthetic_looks_nowhere(cache: Path) -> None:
    assert locate_dataset("synthetic", Path("nowhere")) is None
