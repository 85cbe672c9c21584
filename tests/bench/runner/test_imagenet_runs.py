"""ImageNet's path from the command line: a tree of files in, a record out, or one line of error."""

from __future__ import annotations

import os
import shutil
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_trees import bad_forms, damaged_in_the_middle, legal_forms, texture, write_tree

import bench.runner.session
from bench.cli import main
from swap_fast.config.phase import BatchShape, StagedPhase
from swap_fast.config.recipe import Recipe, SWAPRecipe
from swap_fast.distributed import ALONE
from swap_fast.record import EpochRow, RunRecord
from swap_fast.record_files import read_record
from swap_fast.tasks import imagenet as tree_source

SWAP, SGD = "imagenet_swap_cpu", "imagenet_sgd_small_cpu"
SMALL = ("--width", "2", "--threads", "1", "--device", "cpu")
LOADERS = ("dali", "torchvision")
EACH_LOADER = pytest.mark.parametrize("loader", LOADERS)


def stages(phase: str, count: int, batch_size: int) -> list[str]:
    """Options: short stages at 40 px, the last at 48."""
    options = []
    for number in range(count):
        of_stage = f"--{phase}.stages.{number}"
        options += [f"{of_stage}.epochs", "1", f"{of_stage}.global-batch-size", str(batch_size)]
        options += [f"{of_stage}.image-size", "48" if number == count - 1 else "40"]
        options += [f"{of_stage}.first-lr", "0.01", f"{of_stage}.last-lr", "0.01"]
    return options


STAGES = {
    SWAP: (*stages("phase1", 3, 8), *stages("phase2", 2, 4), "--batch-norm-batch-size", "10"),
    SGD: (*stages("phase1", 5, 8),),
}


def run(recipe: str, root: Path, out: Path, *others: str) -> int:
    places = ("--data", str(root), "--out", str(out))
    return main(["run", recipe, *SMALL, *STAGES[recipe], *places, *others])


def only_record(out: Path) -> RunRecord:
    (path,) = (out / "runs").glob("*.json")
    return read_record(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def tree(whole: Path, tmp_path: Path) -> Path:
    """A tree of 24 + 12 images of 3 classes, to do damage to."""
    return Path(shutil.copytree(whole, tmp_path / "tree"))


@pytest.fixture(autouse=True)
def no_named_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWAP_DATA", raising=False)


def check_rows(record: RunRecord, shape: list[tuple[int, int, int]]) -> None:
    assert [(row.phase, row.worker, row.epoch) for row in record.epochs] == shape
    for row in record.epochs:
        assert row.test_accuracy is not None
        # Of 12 test images, and of 24 training images, which the batches fill.
        assert row.test_accuracy * 12 == pytest.approx(round(row.test_accuracy * 12))
        assert row.train_accuracy * 24 == pytest.approx(round(row.train_accuracy * 24), abs=1e-3)


def check_data(record: RunRecord, *, train_images: int = 24, skipped_files: int = 0) -> None:
    data = dict(record.data)
    assert len(data.pop("sha256")) == 64
    assert data == {
        "name": "imagenet",
        "kind": "own",
        "train_images": train_images,
        "test_images": 12,
        "classes": 3,
        "prepared_size": None,
        "skipped_files": skipped_files,
    }
    assert not record.comparable


SWAP_ROWS = [(1, 0, 1), (1, 0, 2), (1, 0, 3), (2, 0, 1), (2, 0, 2), (2, 1, 1), (2, 1, 2)]


def check_swap(record: RunRecord) -> None:
    check_rows(record, SWAP_ROWS)
    check_data(record)
    recipe = record.configuration["recipe"]
    sizes = [[s["image_size"] for s in recipe[p]["stages"]] for p in ("phase1", "phase2")]
    assert sizes == [[40, 40, 48], [40, 48]]
    assert (recipe["phase1"]["max_epochs"], recipe["phase2"]["max_epochs"]) == (3, 2)
    assert record.test_top5_accuracy == 1.0  # of three classes
    assert {row.test_top5_accuracy for row in record.epochs} == {1.0}
    assert (record.phase1_epochs, record.stopped_by) == (3, "max_epochs")
    # Of phase 2 the last stage alone: before it the workers were tested at another size.
    assert [row.epoch for row in record.average_by_epoch] == [2]
    assert record.average_by_epoch[-1].test_accuracy == record.test_accuracy


@pytest.mark.slow
@EACH_LOADER
def test_swap_on_two_ranks_is_swap_on_one(loader: str, whole: Path, tmp_path: Path) -> None:
    found = []
    for ranks in ("1", "2"):
        out = tmp_path / ranks
        assert run(SWAP, whole, out, "--loader", loader, "--ranks", ranks) == 0
        found.append(only_record(out))
    for record, world_size in zip(found, (1, 2), strict=True):
        check_swap(record)
        assert record.world_size == world_size
        assert record.configuration["execution"]["loader"] == loader
    one, two = found
    assert one.data == two.data

    def in_numbers(row: EpochRow) -> tuple[float, ...]:
        assert row.test_accuracy is not None
        return row.learning_rate, row.train_loss, row.train_accuracy, row.test_accuracy

    for mine, other in zip(one.epochs, two.epochs, strict=True):
        if mine.phase == 1:
            assert in_numbers(mine) == pytest.approx(in_numbers(other), abs=1e-3)


@pytest.mark.slow
@EACH_LOADER
def test_sgd_leaves_a_record(loader: str, whole: Path, tmp_path: Path) -> None:
    assert run(SGD, whole, tmp_path, "--loader", loader, "--ranks", "1") == 0
    record = only_record(tmp_path)
    check_rows(record, [(1, 0, epoch) for epoch in range(1, 6)])
    check_data(record)
    assert (record.method, record.test_top5_accuracy) == ("sgd", 1.0)
    assert [stage["epochs"] for stage in record.configuration["recipe"]["phase1"]["stages"]] == (
        [1] * 5
    )


def test_a_run_has_one_training_decoder_at_a_time(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made, alive = tree_source.make_decoder, [], []
    batch_sizes = []

    def recorded(*arguments: Any, centred: bool, **others: Any) -> Any:
        decoder = make(*arguments, centred=centred, **others)
        if not centred:
            batch_sizes.append(others["batch_size"])
            made.append(weakref.ref(decoder))
        return decoder

    def watched(*arguments: Any, centred: bool, **others: Any) -> Any:
        if not centred:
            alive.append(sum(ref() is not None for ref in made))
        return recorded(*arguments, centred=centred, **others)

    monkeypatch.setattr(tree_source, "make_decoder", watched)
    assert run(SWAP, whole, tmp_path, "--loader", "dali", "--ranks", "1", "--quiet") == 0
    check_swap(only_record(tmp_path))
    # Phase 1, both workers of phase 2, and the batch-norm passes.
    assert batch_sizes == [8, 4, 10]
    assert alive == [0, 0, 0]


def put_bad_files(root: Path) -> list[str]:
    """Every bad file under its own and under odd names, in a class that has good ones too."""
    forms = bad_forms(texture(0, 99, 90, 80))
    odd = {"-dash.jpg": b"", "ünï🙂 code.jpg": b"", "new\nline.jpg": b"", "two words.jpg": b"x"}
    contents = {**{name: content for name, (content, _) in forms.items()}, **odd}
    for name, content in contents.items():
        (root / "train" / "class1" / name).write_bytes(content)
    return [f"train/class1/{name}" for name in contents]


def check_refused(captured: Any, out: Path) -> str:
    """One line, and nothing trained; the line."""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    assert "phase 1" not in captured.out
    assert list((out / "runs").glob("*.json")) == []
    return str(captured.err)


@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_bad_files_are_named_before_training(
    ranks: str, tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = put_bad_files(tree)
    assert run(SGD, tree, tmp_path / "out", "--ranks", ranks) == 2
    captured = capfd.readouterr()
    error = check_refused(captured, tmp_path / "out")
    assert f"{len(bad)} of {36 + len(bad)} files cannot be used" in error
    assert "--skip-bad-files" in error
    named = [line for line in captured.out.splitlines() if line.startswith("bad file: ")]
    assert len(named) == len(bad)
    for name in bad:
        assert sum(repr(name) in line for line in named) == 1


def test_cudnn_tries_no_kernels_for_the_shapes_of_test_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    evaluator = lambda *args, **settings: lambda comm: cudnn.benchmark  # noqa: E731
    monkeypatch.setattr(tree_source, "tree_evaluator", evaluator)
    tree: Any = SimpleNamespace(train=(), test=())
    source = tree_source.TreeSource(tree, loader="dali", threads=1)
    opened: Any = SimpleNamespace(model=None)
    source._weights = source._testing = source._execution = source._device = opened
    shape = BatchShape(epochs=range(1), image_size=40, global_batch_size=8)
    measured: Any = source.evaluator(shape)(ALONE)
    assert measured is False
    assert cudnn.benchmark is True


def test_with_skip_bad_files_the_run_goes_on_and_counts_them(tree: Path, tmp_path: Path) -> None:
    bad = put_bad_files(tree)
    out = tmp_path / "out"
    assert run(SGD, tree, out, "--ranks", "1", "--loader", "dali", "--skip-bad-files") == 0
    check_data(only_record(out), skipped_files=len(bad))


def test_every_legal_form_is_trained_on(tree: Path, tmp_path: Path) -> None:
    forms = legal_forms(texture(0, 99, 90, 80))
    for name, content in forms.items():
        (tree / "train" / "class0" / name).write_bytes(content)
    assert run(SGD, tree, tmp_path / "out", "--ranks", "1", "--loader", "dali") == 0
    check_data(only_record(tmp_path / "out"), train_images=24 + len(forms))


@pytest.mark.parametrize("skip", [(), ("--skip-bad-files",)])
@pytest.mark.parametrize("content", [None, b""])
def test_a_class_without_images_is_refused(
    skip: tuple[str, ...],
    content: bytes | None,
    tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for file in (tree / "val" / "class2").iterdir():
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    assert run(SGD, tree, tmp_path / "out", "--ranks", "1", *skip) == 2
    assert "class2" in check_refused(capsys.readouterr(), tmp_path / "out")


def processes_marked(mark: str) -> list[str]:
    """Other processes whose environment holds the mark; none where the system does not tell."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                int(folder.name) != os.getpid()
                and mark.encode() in (folder / "environ").read_bytes()
            ):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


@pytest.mark.parametrize(
    ("loader", "ranks"),
    [
        ("dali", "1"),
        ("torchvision", "1"),
        pytest.param("dali", "2", marks=pytest.mark.slow),
        pytest.param("torchvision", "2", marks=pytest.mark.slow),
    ],
)
def test_damage_in_the_middle_is_named_when_it_is_decoded(
    loader: str,
    ranks: str,
    tree: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SWAP_TEST_MARK", str(tmp_path))  # every process of the run inherits it
    damaged = tree / "train" / "class1" / "0003.JPEG"
    damaged.write_bytes(damaged_in_the_middle(texture(1, 3, 300, 280)))
    assert run(SGD, tree, tmp_path / "out", "--loader", loader, "--ranks", ranks) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("bench: ")]
    assert len(error) == 1
    assert "'train/class1/0003.JPEG'" in error[0]
    assert "mend or remove it" in error[0]
    assert list((tmp_path / "out" / "runs").glob("*.json")) == []
    if ranks == "2":
        deadline = time.monotonic() + 15
        while left := processes_marked(str(tmp_path)):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.2)


def test_without_data_one_line_says_how_to_make_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", SWAP, "--out", str(tmp_path), "--ranks", "1"]) == 2
    error = check_refused(capsys.readouterr(), tmp_path)
    assert error.startswith("bench: --data: expected a folder with train/ and val/")
    assert "`python -m bench small-tree DEST`" in error


def test_a_folder_without_train_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(SWAP, tmp_path, tmp_path / "out", "--ranks", "1") == 2
    assert "found no train/ in" in check_refused(capsys.readouterr(), tmp_path / "out")


def test_the_tensor_loader_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(SWAP, whole, tmp_path, "--ranks", "1", "--loader", "tensor") == 2
    error = check_refused(capsys.readouterr(), tmp_path)
    assert "tensor" in error
    assert "dali" in error


def test_a_part_of_the_training_images_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = run(SWAP, whole, tmp_path, "--train-images", "16")
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    error = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert "train_images: expected None for a tree of files" in error


def test_a_tree_smaller_than_a_batch_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = ("--phase1.stages.1.global-batch-size", "28")
    assert run(SWAP, whole, tmp_path, "--ranks", "1", *larger) == 2
    error = check_refused(capsys.readouterr(), tmp_path)
    assert "phase 1: expected at least one batch of 28 images, got 24" in error


@pytest.mark.parametrize("name", [SWAP, SGD])
def test_what_stages_sum_up_to_follows_the_command_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Recipe, Recipe]] = []

    def noted(options: object, recipe: Recipe, original: Recipe) -> int:
        given.append((recipe, original))
        return 0

    monkeypatch.setattr(bench.runner.session, "run_session", noted)
    changes = ("epochs", "9"), ("last-lr", "3.5"), ("global-batch-size", "1024")
    options = [part for field, v in changes for part in (f"--phase1.stages.1.{field}", v)]
    assert main(["run", name]) == 0
    assert main(["run", name, *options]) == 0
    (same, original), (recipe, _) = given
    assert same == original
    before, phase = original.phase1, recipe.phase1
    assert isinstance(before, StagedPhase)
    assert isinstance(phase, StagedPhase)
    assert phase.stages[1].epochs == 9
    assert phase.max_epochs == before.max_epochs - before.stages[1].epochs + 9
    assert (phase.peak_lr, phase.global_batch_size) == (3.5, 1024)
    if isinstance(recipe, SWAPRecipe):
        assert main(["run", name, "--phase2.stages.0.epochs", "4"]) == 0
        changed = given[-1][0]
        assert isinstance(changed, SWAPRecipe)
        assert changed.phase2.max_epochs == recipe.phase2.max_epochs + 2
