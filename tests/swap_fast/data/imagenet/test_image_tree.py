"""The scan of a tree: what it lists, in which order, what it refuses and names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from image_trees import bad_forms, encoded, legal_forms, texture, write_tree

from swap_fast.data.imagenet.scan import PREPARED, BadFile, scan_tree

IMAGE = texture(0, 0, 90, 80)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", train_images=3, test_images=2)


def message_of(root: Path, **options: bool) -> str:
    with pytest.raises(ValueError, match=r"[^ ]: ") as raised:
        scan_tree(root, **options)
    (line,) = str(raised.value).splitlines()
    return line


def test_it_lists_what_torchvision_lists(root: Path) -> None:
    from torchvision.datasets import ImageFolder

    for split in ("train", "val"):
        for name, content in legal_forms(IMAGE).items():
            below = root / split / "class1" / "deeper"
            below.mkdir(exist_ok=True)
            (below / name).write_bytes(content)
    tree = scan_tree(root)
    for split, name in ((tree.train, "train"), (tree.test, "val")):
        theirs = ImageFolder(str(root / name))
        assert list(tree.classes) == theirs.classes
        ours = {split.path(i): int(split.labels[i]) for i in range(len(split))}
        assert ours == dict(theirs.samples)
        assert all(theirs.loader(p).size == (w, h) for p, (h, w) in zip(ours, split.sizes))  # noqa: B905
        assert sorted(split.names, key=os.fsencode) == list(split.names)


def test_test_stands_in_for_val(tmp_path: Path) -> None:
    tree = scan_tree(write_tree(tmp_path, classes=2, test_name="test"))
    assert (len(tree.train), len(tree.test)) == (16, 8)
    assert tree.test.folder.name == "test"


def test_bad_files_are_each_named_and_counted(root: Path) -> None:
    reasons = {}
    for number, (name, (content, words)) in enumerate(bad_forms(IMAGE).items()):
        folder = root / ("train" if number % 2 else "val") / "class2"
        (folder / name).write_bytes(content)
        reasons[f"{folder.parent.name}/class2/{name}"] = words
    told: list[BadFile] = []
    with pytest.raises(ValueError, match="13 of 28 files cannot be used") as raised:
        scan_tree(root, on_bad_file=told.append)
    line = str(raised.value)
    assert line.count("\n") == 0
    assert "3 cut short" in line
    assert "2 neither JPEG nor PNG" in line
    assert "and 8 more" in line
    assert "--skip-bad-files" in line
    assert {bad.name for bad in told} == set(reasons)
    for bad in told:
        assert reasons[bad.name] in bad.reason


def test_bad_files_are_skipped_when_asked(root: Path) -> None:
    before = scan_tree(root)
    (root / "train/class0/new\nline.jpg").write_bytes(b"")
    told: list[BadFile] = []
    tree = scan_tree(root, skip_bad_files=True, on_bad_file=told.append)
    assert tree.train.names == before.train.names
    assert tree.sha256 == before.sha256
    assert list(tree.skipped) == told
    assert str(told[0]) == r"'train/class0/new\nline.jpg' (empty file)"
    assert tree.describe().endswith(", 1 bad files skipped")


def test_hidden_files_are_ignored(root: Path) -> None:
    before = scan_tree(root).sha256
    (root / "train/.DS_Store").write_bytes(b"x")
    (root / "train/.hidden").mkdir()
    (root / "train/class0/.partial.jpg").write_bytes(b"")
    assert scan_tree(root).sha256 == before


def test_links_are_followed_wherever_they_lead(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(encoded(IMAGE))
    train = root / "train"
    (train / "class0/link_in.jpg").symlink_to("../class1/0000.JPEG")
    (train / "class0/linked_folder").symlink_to("../class1")
    (train / "class0/link_out.jpg").symlink_to(outside)
    tree = scan_tree(root)
    assert len(tree.train) == 9 + 1 + 3 + 1
    assert tree.train.read(tree.train.names.index("class0/link_out.jpg")) == outside.read_bytes()
    (train / "class0/link_up").symlink_to("../class0")
    (train / "class0/link_to_nothing.jpg").symlink_to("gone.jpg")
    tree = scan_tree(root, skip_bad_files=True)
    assert {bad.name.rsplit("/")[-1]: bad.reason for bad in tree.skipped} == {
        "link_up": "a link to a folder that holds it",
        "link_to_nothing.jpg": "a link to nothing",
    }
    assert len(tree.train) == 14


@pytest.mark.parametrize("linked", ["files", "classes", "splits", "root"])
def test_a_tree_of_links_is_the_tree(linked: str, root: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    depth = {"root": 0, "splits": 1, "classes": 2, "files": 3}[linked]
    for path in root.glob("/".join("*" * depth)) if depth else [root]:
        link = links / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert scan_tree(links).sha256 == scan_tree(root).sha256


def test_a_pipe_is_no_file(root: Path) -> None:
    os.mkfifo(root / "val/class0/pipe.jpg")
    assert "'val/class0/pipe.jpg' (no file)" in message_of(root)


def test_the_digest_sees_names_classes_and_sizes(root: Path) -> None:
    first = scan_tree(root)
    path = root / "train/class0/0001.JPEG"
    assert scan_tree(root).sha256 == first.sha256
    path.write_bytes(path.read_bytes() + b"\0")
    grown = scan_tree(root).sha256
    path.rename(root / "train/class1/0001b.JPEG")
    moved = scan_tree(root).sha256
    shutil.move(root, root.with_name("elsewhere"))
    assert scan_tree(root.with_name("elsewhere")).sha256 == moved
    assert len({first.sha256, grown, moved}) == 3


def test_the_scan_does_not_depend_on_where_the_split_of_work_falls(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scan_tree(root)
    monkeypatch.setattr("swap_fast.data.imagenet.scan._CHUNK", 2)
    seen: list[tuple[int, int]] = []
    parts = scan_tree(root, on_progress=lambda done, total: seen.append((done, total)))
    assert parts.train.names == whole.train.names
    assert (parts.train.sizes == whole.train.sizes).all()
    assert seen[-1] == (15, 15)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: shutil.rmtree(root), "expected a folder with train/ and val/"),
        (lambda root: shutil.rmtree(root / "train"), "expected a folder train in it"),
        (lambda root: shutil.rmtree(root / "val"), "expected a folder val or test in it"),
        (lambda root: shutil.rmtree(root / "val/class1"), "class 'class1' in train and not in val"),
        (lambda root: (root / "val/extra").mkdir(), "class 'extra' in val and not in train"),
        (
            lambda root: [path.unlink() for path in (root / "train/class1").iterdir()],
            "expected at least one usable image a class, got none for class 'class1' (1 of 3",
        ),
    ],
)
def test_a_tree_that_cannot_be_trained_on_is_refused(root: Path, spoil: object, words: str) -> None:
    spoil(root)  # type: ignore[operator]
    assert words in message_of(root)


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path, classes=1)
    for path in (root / "val/class0").iterdir():
        path.rename(root / "val" / path.name)
    (root / "val/class0").rmdir()
    assert "expected a folder a class, got 4 files and no folder" in message_of(root)


def test_a_class_of_bad_files_alone_is_refused_even_when_they_are_skipped(root: Path) -> None:
    for path in (root / "val/class2").iterdir():
        path.write_bytes(b"")
    assert "got none for class 'class2'" in message_of(root, skip_bad_files=True)


def test_a_resized_tree_says_so(root: Path) -> None:
    assert scan_tree(root).prepared_size is None
    (root / PREPARED).write_text(json.dumps({"size": 160, "finished": True}))
    assert scan_tree(root).prepared_size == 160
    assert "resized to 160 px" in scan_tree(root).describe()
    (root / PREPARED).write_text(json.dumps({"size": 160, "finished": False}))
    assert "`bench prepare` has not finished" in message_of(root)
    (root / PREPARED).write_text("{")
    assert "expected what `bench prepare` writes" in message_of(root)
