"""`bench prepare`: what it writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from image_trees import (
    bad_forms,
    damaged_in_the_middle,
    encoded,
    legal_forms,
    texture,
    write_tree,
)
from PIL import Image

from bench import data_tools as module
from bench.cli import main
from bench.data_tools import resized
from swap_fast.data.imagenet.scan import scan_tree

Outputs = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", classes=2, train_images=5, test_images=3)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own are a slow test's concern."""

    class Here:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def map(self, function, *columns, chunksize):
            return map(function, *columns)

        def shutdown(self, **_: object) -> None: ...

    monkeypatch.setattr(module, "ProcessPoolExecutor", Here)


def run(source: Path, *arguments: str) -> int:
    return main(["prepare", str(source), str(source.with_name("small")), *arguments])


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (100, 100), (399, 41)])
def test_the_shorter_side_is_the_size(shape: tuple[int, int]) -> None:
    made = Image.open(io.BytesIO(resized(encoded(texture(0, 0, *shape)), 40)))
    assert min(made.size) == 40
    assert made.size[0] / made.size[1] == pytest.approx(shape[0] / shape[1], rel=0.03)
    assert made.format == "JPEG"


def test_a_smaller_image_is_copied_byte_for_byte() -> None:
    content = encoded(texture(0, 0, 60, 40))
    assert resized(content, 40) == content


@pytest.mark.parametrize("name", legal_forms(texture(0, 0, 9, 9)))
def test_every_legal_form_keeps_its_picture(name: str) -> None:
    content = legal_forms(texture(1, 5, 131, 97))[name]
    made = Image.open(io.BytesIO(resized(content, 48)))
    expected = Image.open(io.BytesIO(content)).convert("RGB").resize((64, 48), 2)
    assert (made.mode, made.size) == ("RGB", (64, 48))
    # JPEG keeps the brightness of such narrow stripes, and half of their colour.
    apart = [np.asarray(image.convert("L")).astype(float) for image in (made, expected)]
    assert np.abs(np.subtract(*apart)).mean() < (0.01 if made.format == "PNG" else 3)


def test_it_writes_the_whole_tree(source: Path, capsys: Outputs) -> None:
    assert run(source, "--size", "40") == 0
    before, small = scan_tree(source), scan_tree(source.with_name("small"))
    assert small.train.names == before.train.names
    assert small.test.names == before.test.names
    assert small.prepared_size == 40
    assert (small.train.sizes.min(axis=1) == 40).all()
    assert "16 images, shorter side 40 px" in capsys.readouterr().out


def test_a_second_call_writes_what_is_missing_and_nothing_else(
    source: Path, capsys: Outputs
) -> None:
    run(source, "--size", "40")
    small = source.with_name("small")
    expected = contents(small)
    (small / "train/class0/0003.JPEG").unlink()
    (small / "train/class1/.0003.JPEG.99.part").write_bytes(b"half")
    kept = small / "val/class1/0000.JPEG"
    written = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert run(source, "--size", "40") == 0
    assert "15 of 16 files are there already" in capsys.readouterr().out
    assert contents(small) == expected
    assert kept.stat().st_mtime_ns == written


def test_an_interrupted_run_leaves_whole_files_only(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, "--size", "40")
    small = source.with_name("small")
    expected = contents(small)
    for name in list(expected)[:6]:
        if name.endswith("JPEG"):
            (small / name).unlink()
    calls = 0

    def interrupted(source: str, destination: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        os.rename(source, destination)

    monkeypatch.setattr(module.os, "replace", interrupted)
    assert run(source, "--size", "40") == 130
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has not finished"):
        scan_tree(small)
    visible = {name for name in contents(small) if "/." not in name}
    assert len(visible) < len(expected)
    assert all(contents(small)[name] == expected[name] for name in visible - {"prepared.json"})
    assert run(source, "--size", "40") == 0
    assert contents(small) == expected


def test_a_changed_source_is_written_again(source: Path) -> None:
    run(source, "--size", "40")
    path = source / "train/class0/0000.JPEG"
    path.write_bytes(encoded(texture(1, 77, 90, 90)))
    os.utime(path, ns=(2**62, 2**62))
    assert run(source, "--size", "40") == 0
    made = source.with_name("small") / "train/class0/0000.JPEG"
    assert made.read_bytes() == resized(path.read_bytes(), 40)


def test_bad_files_are_named_and_nothing_is_written(source: Path, capsys: Outputs) -> None:
    names = []
    for name, (content, _) in bad_forms(texture(0, 0, 90, 80)).items():
        (source / "train/class1" / name).write_bytes(content)
        names.append(f"bad file: 'train/class1/{name}' (")
    assert run(source, "--size", "40") == 2
    error = capsys.readouterr().err
    assert all(name in error for name in names)
    assert error.splitlines()[-1].startswith(f"bench: {source}: 13 of 29 files cannot be used")
    assert not source.with_name("small").exists()
    assert run(source, "--size", "40", "--skip-bad-files") == 0
    assert "16 images, shorter side 40 px; 13 bad files left out" in capsys.readouterr().out


def test_damage_in_the_middle_is_named_and_can_be_mended(source: Path, capsys: Outputs) -> None:
    path = source / "train/class0/damaged.jpg"
    image = texture(0, 0, 90, 80)
    path.write_bytes(damaged_in_the_middle(image))
    assert run(source, "--size", "40") == 2
    assert "1 of 17 files cannot be decoded, the first is 'train/class0/damaged.jpg' (damaged" in (
        capsys.readouterr().err
    )
    assert run(source, "--size", "40", "--skip-bad-files") == 0
    assert "16 images, shorter side 40 px; 1 bad files left out" in capsys.readouterr().out
    path.write_bytes(encoded(image))
    assert run(source, "--size", "40") == 0
    assert "17 images" in capsys.readouterr().out


def error_of(capsys: Outputs) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_another_size_in_the_same_folder_is_refused(source: Path, capsys: Outputs) -> None:
    run(source, "--size", "40")
    assert run(source, "--size", "48") == 2
    assert "expected {'size': 48" in error_of(capsys)


def test_a_folder_that_holds_something_else_is_refused(source: Path, capsys: Outputs) -> None:
    small = source.with_name("small")
    small.mkdir()
    (small / "thesis.tex").write_text("...")
    assert run(source, "--size", "40") == 2
    assert "expected an empty folder" in error_of(capsys)
    (small / "thesis.tex").unlink()
    assert run(source, "--size", "40") == 0
    (small / "train/class0/more.jpg").write_bytes(encoded(texture(0, 0, 40, 40)))
    assert run(source, "--size", "40") == 2
    assert "got 'train/class0/more.jpg'; remove it" in error_of(capsys)
    (small / "prepared.json").write_text("{")
    assert run(source, "--size", "40") == 2
    assert "got no note of prepare's" in error_of(capsys)


def test_a_destination_in_the_source_is_refused(source: Path, capsys: Outputs) -> None:
    assert main(["prepare", str(source), str(source / "train"), "--size", "9"]) == 2
    assert main(["prepare", str(source), str(source.parent), "--size", "9"]) == 2
    assert capsys.readouterr().err.count("expected a folder outside of the source") == 2


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--size", "9", "--processes", "0"]])
def test_values_that_cannot_be_are_refused(
    source: Path, arguments: list[str], capsys: Outputs
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(source, *arguments)
    assert exit_.value.code == 2
    assert "expected 1 or more, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_write_the_same(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, "--size", "40")
    expected = contents(source.with_name("small"))
    assert json.loads(expected["prepared.json"])["size"] == 40
    monkeypatch.undo()
    monkeypatch.setattr(module, "_CHUNK", 4)
    apart = source.with_name("apart")
    arguments = ["prepare", str(source), str(apart), "--size", "40", "--processes", "2"]
    assert main(arguments) == 0
    assert contents(apart) == expected
