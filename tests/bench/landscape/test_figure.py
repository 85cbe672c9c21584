"""`python -m bench figure`: which run it takes, what it says, and figures of a real small run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeCifar
from landscape_factory import make_cosines, make_plane
from record_factory import make_record

from bench.cli import main
from bench.landscape.measure import (
    find_run,
    image_s,
    next_seed,
    recipe_again,
    runs_of,
    saved_models,
)
from bench.landscape.records import read_all_cosines, read_planes, write_landscape
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, plain
from swap_fast.record_files import read_records, write_record

BOWL = {"LB": (-3.0, 0.0), "SGD": (2.0, 1.0), "SWAP": (0.0, 0.0)}


def _touch(record: RunRecord, results: Path, figure: int) -> None:
    for model in saved_models(figure, record, results):
        model.path.parent.mkdir(parents=True, exist_ok=True)
        model.path.touch()


def test_models_of_each_figure_by_name_and_file(tmp_path: Path) -> None:
    record = replace(make_record(), start=None)
    files = {
        figure: [(m.name, m.path.name, m.phase) for m in saved_models(figure, record, tmp_path)]
        for figure in (2, 3, 4)
    }
    assert files[2] == [
        ("LB", "phase1.safetensors", 1),
        ("SGD", "worker0-epoch2.safetensors", 2),
        ("SWAP", "final.safetensors", 3),
    ]
    assert [file for _, file, _ in files[3]] == [
        *(f"worker{w}-epoch2.safetensors" for w in range(3)),
        "final.safetensors",
    ]
    assert [file for _, file, _ in files[4]] == [
        *(f"phase1-epoch{e}.safetensors" for e in range(1, 6)),
        *("worker0-epoch1.safetensors", "worker0-epoch2.safetensors", "final.safetensors"),
    ]
    shared = replace(record, start={"run_id": "earlier"})
    folders = [m.path.parent.name for m in saved_models(4, shared, tmp_path)]
    assert folders == ["earlier"] * 5 + [record.run_id] * 3
    assert {m.path.parent.name for m in saved_models(2, shared, tmp_path)} == {record.run_id}


def test_lowest_seed_with_its_weights_is_taken(tmp_path: Path) -> None:
    records = [replace(make_record(seed=seed), run_id=f"run{seed}") for seed in (2, 0, 1)]
    for record in records:
        write_record(record, tmp_path / "runs")
    assert find_run(2, tmp_path, "cifar10_cpu") is None
    assert find_run(1, tmp_path, "cifar10_cpu").run_id == "run0"
    for record in (records[0], records[2]):
        _touch(record, tmp_path, 2)
    assert find_run(2, tmp_path, "cifar10_cpu").run_id == "run1"
    assert find_run(2, tmp_path, "cifar10_swap") is None
    assert find_run(4, tmp_path, "cifar10_cpu") is None
    assert find_run(2, tmp_path, "cifar10_cpu", "run2").run_id == "run2"
    with pytest.raises(ValueError, match=r"phase1\.safetensors is not there"):
        find_run(2, tmp_path, "cifar10_cpu", "run0")
    with pytest.raises(ValueError, match="run: expected one of"):
        find_run(2, tmp_path, "cifar10_cpu", "run9")
    assert next_seed(tmp_path, "cifar10_cpu") == 3
    assert next_seed(tmp_path, "cifar10_swap") == 0
    assert {run.seed for run in runs_of(tmp_path, "cifar10_cpu")} == {0, 1, 2}
    assert runs_of(tmp_path, "cifar10_swap") == []


def test_speed_is_that_of_the_runs_own_batch_norm_pass() -> None:
    record = make_record()
    seconds = record.times.laps_by_rank[0]["batch_norm"]
    units = record.world_size * record.threads
    assert image_s(record) == pytest.approx(seconds * units / record.data["train_images"])


@pytest.mark.parametrize("name", ["cifar10_cpu", "cifar10_swap", "cifar100_swap_40_cpu"])
def test_recipe_of_a_record_is_the_one_that_was_run(name: str) -> None:
    record = make_record(name)
    again = recipe_again(record)
    assert type(again) is type(RECIPES[name]())
    assert plain(asdict(again)) == record.configuration["recipe"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["2", "--recipe", "cifar10_cup"], "did you mean cifar10_cpu"),
        (["2", "--recipe", "cifar10_sgd_small"], "recipe: expected one of SWAP"),
        (["2", "--recipe", "imagenet_swap_cpu"], "figure 2 is of CIFAR's images"),
        (["2", "--run", "none"], "run: expected one of"),
    ],
)
def test_what_cannot_be_drawn_gets_one_line_and_exit_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figure", *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_records_are_drawn_without_weights_and_never_measured_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_landscape(make_plane(lambda a, b: 0.1 + 0.01 * (a * a + b * b), BOWL), tmp_path)
    write_landscape(make_cosines([0.2, 0.1], 1), tmp_path)
    assert main(["figure", "2", "--out", str(tmp_path)]) == 0
    assert "from the basin's centre: LB 3.00, SGD 2.24, SWAP 0.00" in capsys.readouterr().out
    assert main(["figure", "4", "--out", str(tmp_path), "--dry-run"]) == 0
    assert "drawn from figure4-" in capsys.readouterr().out
    assert {path.name.split("-")[0] for path in (tmp_path / "plots").iterdir()} == {"figure2"}
    assert main(["figure", "2", "--out", str(tmp_path), "--grid", "5"]) == 2
    assert "grid: figure 2 of cifar10_cpu-seed0" in capsys.readouterr().err


def test_dry_run_says_what_is_run_and_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["figure", "2", "--device", "cpu", "--out", str(tmp_path), "--dry-run"]
    assert main(command) == 0
    assert "runs cifar10_cpu with seed 0" in capsys.readouterr().out
    record = make_record()
    write_record(record, tmp_path / "runs")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "runs cifar10_cpu with seed 1 and keeps its weights, about" in said
    assert "measures 228 points of 8,144 images of that run" in said
    assert "in all about" in said
    _touch(record, tmp_path, 2)
    assert main([*command, "--processes", "2"]) == 0
    words = f"measures 228 points of 8,144 images of {record.run_id}, on 2 processes, about"
    assert words in capsys.readouterr().out


@pytest.mark.slow
def test_figures_of_a_real_small_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    records = [random.integers(256, size=(n, 3073), dtype=np.uint8) for n in (256, 40)]
    for each in records:
        each[:, 0] = random.integers(10, size=len(each))
    data = FakeCifar("cifar10", *records).write_binary(tmp_path / "data").parent
    out = tmp_path / "results"
    common = ["--data", str(data), "--out", str(out), "--device", "cpu", "--quiet"]
    small = [
        *("--width", "4", "--train-images", "256", "--phase1.global-batch-size", "64"),
        *("--phase1.max-epochs", "2", "--threads", "1", "--ranks", "1", "--keep-epochs"),
    ]
    assert main(["run", "cifar10_quick", *small, *common]) == 0
    (record,), _ = read_records(out / "runs")
    of_run = ["--run", record.run_id, *common]
    grid = ["--grid", "3", "--batch-norm-images", "256", "--test-images", "40"]
    for number in ("2", "3"):
        assert main(["figure", number, *grid, *of_run, "--processes", "2"]) == 0
    assert main(["figure", "4", *of_run]) == 0

    (plane, of_workers), _ = read_planes(out)
    assert [p.name for p in plane.marked] == ["LB", "SGD", "SWAP"]
    assert [p.name for p in of_workers.marked] == ["SGD1", "SGD2", "SGD3", "SWAP"]
    # Over all images, SWAP has the error of its run; the grid is its three models' surroundings.
    assert plane.marked[2].test_error == pytest.approx(1 - record.test_accuracy)
    assert plane.marked[0].alpha == plane.marked[0].beta == 0
    assert plane.alphas[0] < 0 < plane.marked[1].alpha < plane.alphas[-1]
    # A worker's distance from the others is that of its run's own record.
    distance = record.pairwise_distances[0][1]
    assert of_workers.marked[1].alpha == pytest.approx(distance, rel=1e-5)
    assert of_workers.marked[3].off_plane > 0  # of four workers' average, three span the plane
    (path,), _ = read_all_cosines(out)
    assert [(row.phase, row.epoch) for row in path.rows] == [(1, 1), (1, 2), (2, 1)]
    lb, sgd, swap = plane.marked
    distances = [
        ((p.alpha - swap.alpha) ** 2 + (p.beta - swap.beta) ** 2) ** 0.5 for p in (lb, sgd)
    ]
    assert [path.rows[1].distance, path.rows[2].distance] == pytest.approx(distances, rel=1e-4)
    assert all(-1 <= row.cosine <= 1 for row in path.rows)

    # Interrupted before its record was written, it goes on from the finished points.
    (out / "planes" / f"{plane.name}.json").unlink()
    asked = json.dumps({"key": {"figure": 2}})
    (out / "planes" / f"{plane.name}.part.jsonl").write_text(asked + "\n")
    assert main(["figure", "2", *grid, *of_run, "--processes", "1"]) == 0
    again = next(p for p in read_planes(out)[0] if p.figure == 2)
    assert (again.test_error, again.alphas) == (plane.test_error, plane.alphas)
    assert not list((out / "planes").glob("*.part.jsonl"))

    # Weights that no manifest knows may be any run's.
    (out / "planes" / f"{plane.name}.json").unlink()
    (out / "checkpoints" / record.run_id / "worker0-epoch1.json").unlink()
    capsys.readouterr()
    assert main(["figure", "2", *grid, *of_run, "--processes", "1"]) == 2
    said = "bench: worker0-epoch1.safetensors: expected its sha256 in a manifest of cifar10_quick-"
    assert capsys.readouterr().err.startswith(said)
