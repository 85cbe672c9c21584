"""The small tree: which images it holds, at which sizes, and that it is written whole or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeCifar
from PIL import Image

from bench import data_tools
from bench.cli import main
from bench.data_tools import CLASSES
from swap_fast.data.cifar.files import load_dataset, locate_dataset
from swap_fast.data.imagenet.scan import scan_tree

TRAIN, TEST = 80, 30  # images of the fake set: 8 and 3 a class


def one_coloured(count: int, blue: int) -> np.ndarray:
    """Records of a label and an image of one colour, which tells the record's place."""
    places = np.arange(count)
    records = np.full((count, 3073), blue, np.uint8)
    records[:, 0] = places[::-1] % 10  # the classes do not come in their order
    records[:, 1:1025] = 3 * places[:, None]
    records[:, 1025:2049] = 200 - 2 * places[:, None]
    return records


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar")
    FakeCifar("cifar10", one_coloured(TRAIN, 40), one_coloured(TEST, 90)).write_binary(folder)
    return folder


def make(cifar: Path, destination: Path, *others: str) -> int:
    counts = ("--per-class", "7", "--test-per-class", "2", "--size", "24")
    return main(["small-tree", str(destination), "--data", str(cifar), *counts, *others])


def test_it_holds_the_first_images_of_each_class(cifar: Path, tmp_path: Path) -> None:
    root = tmp_path / "made" / "tree"
    assert make(cifar, root) == 0
    tree = scan_tree(root)
    assert tree.classes == CLASSES
    assert (len(tree.train), len(tree.test)) == (70, 20)
    dataset = load_dataset("cifar10", locate_dataset("cifar10", cifar))  # its canonical order
    for split, per_class, blue in (("train", 7, 40), ("val", 2, 90)):
        held = dataset.train if split == "train" else dataset.test
        for label, name in enumerate(CLASSES):
            of_class = held.images[held.labels == label]
            places = (of_class[:, 0, 0, 0] // 3).tolist()
            assert all((len(held) - 1 - place) % 10 == label for place in places)
            files = sorted((root / split / name).iterdir())
            assert [file.name for file in files] == [f"{name}_{i:05}.jpg" for i in range(per_class)]
            for file, place in zip(files, places, strict=False):
                with Image.open(file) as image:
                    colour = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0)
                expected = (3 * place, 200 - 2 * place, blue)
                np.testing.assert_allclose(colour, expected, atol=2.0)
    about = json.loads((root / "about.json").read_text())
    assert (about["made_from"], about["size"]) == ("cifar10", 24)


def test_the_shorter_side_is_the_size_and_seven_ratios_go_from_3_4_to_4_3(
    cifar: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    make(cifar, root)
    sizes = []
    for file in sorted((root / "train" / "frog").iterdir()):
        with Image.open(file) as image:
            assert image.format == "JPEG"
            sizes.append(image.size)
    # By hand: 24 times 1.3333, 1.2114, 1.1006, 1 and back.
    assert sizes == [(24, 32), (24, 29), (24, 26), (24, 24), (26, 24), (29, 24), (32, 24)]


def test_two_trees_have_the_same_bytes(cifar: Path, tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    contents = []
    for root in roots:
        make(cifar, root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        contents.append({file.relative_to(root): file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 91


def test_what_is_there_is_refused_and_left_alone(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "mine").write_text("kept")
    assert make(cifar, root) == 2
    assert capsys.readouterr().err == (
        f"bench: {root}: expected a new folder, got one that is there\n"
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["tree", "mine"]


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--per-class", "train: expected at most 8 images a class, got 9"),
        ("--test-per-class", "val: expected at most 3 images a class, got 9"),
    ],
)
def test_too_few_images_leave_nothing_behind(
    option: str, line: str, cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(cifar, tmp_path / "tree", option, "9") == 2
    assert capsys.readouterr().err == f"bench: {line}\n"
    assert list(tmp_path.iterdir()) == []


def test_interrupted_it_leaves_nothing_behind(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = data_tools._write_jpeg, []

    def interrupted(path: Path, *others: object) -> None:
        if len(written) == 12:
            raise KeyboardInterrupt
        write(path, *others)  # type: ignore[arg-type]
        written.append(path.exists())

    monkeypatch.setattr(data_tools, "_write_jpeg", interrupted)
    assert make(cifar, tmp_path / "tree") == 130
    assert written == [True] * 12
    assert list(tmp_path.iterdir()) == []
