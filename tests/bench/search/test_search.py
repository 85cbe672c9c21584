"""`search` as a user meets it: what it refuses, what it leaves behind, and that it goes on."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import fake_cifar

pytest.importorskip("optuna", reason="Optuna is not installed")

from bench.cli import main
from bench.records.grouping import why_not_comparable
from bench.records.paper_tables import place_of
from bench.runner.run_folders import RunSpec
from bench.search import study as search_study
from bench.search import trials as search_runs
from swap_fast.record_files import read_records

# Of 53 training images 20 are held out; the rest are two batches.
SMALL = (
    *("--width", "4", "--train-images", "32", "--num-workers", "2", "--phase1.gpus-per-model", "2"),
    *("--phase1.global-batch-size", "16", "--phase1.max-epochs", "3", "--batch-norm-batch-size"),
    *("16", "--phase2.global-batch-size", "8", "--device", "cpu", "--ranks", "1", "--threads"),
    *("1", "--held-out", "20", "--quiet"),
)
TAUS = ("--grid", "stopping_accuracy=0.01,0.95")
GRID = (*TAUS, "--grid", "peak_lr=0.02,0.04")
NAME = "cifar10_cpu-stopping_accuracy-peak_lr"


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(fake_cifar().write_binary(tmp_path / "data"))


def _search(data: str, out: Path, *more: str) -> int:
    return main(["search", "cifar10_cpu", *SMALL, *GRID, "--data", data, "--out", str(out), *more])


@pytest.mark.slow
def test_a_grid_leaves_a_table_a_figure_and_records_apart(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _search(data, out) == 0
    printed = capsys.readouterr().out
    folder = out / "search" / NAME
    assert not (out / "runs").exists(), "a search's runs stand apart from the others"
    records, skipped = read_records(folder / "runs")
    assert not skipped
    kinds = Counter(record.recipe.split("-")[1][:5] for record in records)
    assert kinds == {"phase": 2, "point": 4}, "a phase 1 for each learning rate, a run a point"
    for record in records:
        assert why_not_comparable(record) == "held-out data"
        assert place_of(record) == "other"
        assert (record.data["held_out"], record.data["test_images"]) == (20, 20)
    # The run of a point begins with the epochs of the phase 1 that it shares.
    longest = {
        record.configuration["recipe"]["phase1"]["peak_lr"]: list(record.epochs)
        for record in records
        if record.method == "sgd"
    }
    ends = set()
    for record in (record for record in records if record.method == "swap"):
        phase1 = record.configuration["recipe"]["phase1"]
        own = [row for row in record.epochs if row.phase == 1]
        assert own == longest[phase1["peak_lr"]][: record.phase1_epochs]
        tau = phase1["stopping_accuracy"]
        assert not any(row.train_accuracy > tau for row in own[:-1])
        assert (own[-1].train_accuracy > tau) == (record.stopped_by == "stopping_accuracy")
        ends.add(record.phase1_epochs)
    assert len(ends) == 2
    names = {"search.md", "search.csv", "search.svg"}
    assert names <= {path.name for path in folder.iterdir()}
    best = max(r.test_accuracy for r in records if r.method == "swap")
    assert f"held-out accuracy {100 * best:.2f}%" in printed
    assert not list(folder.glob("checkpoints/*point*")), "weights of points take room"

    # Nothing is left to do, and the command that it recommends is one.
    assert _search(data, out) == 0
    assert len(list((folder / "runs").glob("*.json"))) == 6
    (line,) = (line for line in printed.splitlines() if line.startswith("  python -m bench run"))
    run = [*shlex.split(line)[3:], "--data", data, "--out", str(out), "--ranks", "1", "--quiet"]
    assert main(run) == 0
    (record,), _ = read_records(out / "runs")
    assert record.data["kind"] == "subset"
    assert "phase1.stopping_accuracy" in " ".join(record.overrides)


@pytest.mark.slow
def test_an_interrupted_search_goes_on_and_repeats_no_run(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, limit, launch = [], 2, search_runs.launch

    def counted(function: Callable[..., Any], request: RunSpec, *, num_ranks: int) -> Any:
        if len(launched) == limit:
            raise KeyboardInterrupt
        launched.append(request)
        return launch(function, request, num_ranks=num_ranks)

    arguments = ("--seeds", "2", "--grid", "width=4")
    monkeypatch.setattr(search_runs, "launch", counted)
    search = ["search", "cifar10_cpu", *SMALL, *TAUS, *arguments, "--data", data]
    search += ["--out", str(tmp_path / "out"), "--name", "mine"]
    assert main(search) == 130
    # Of seed 0 phase 1 and the first point are done.
    limit = 100
    assert main(search) == 0
    assert len(launched) == 2 + 4
    records, _ = read_records(tmp_path / "out" / "search" / "mine" / "runs")
    assert Counter((r.seed, r.method) for r in records) == {
        (0, "sgd"): 1,
        (1, "sgd"): 1,
        (0, "swap"): 2,
        (1, "swap"): 2,
    }


@pytest.mark.slow
def test_a_run_of_a_point_that_was_told_to_end_goes_on(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench", "search", "cifar10_cpu", *SMALL, "--name", "mine"]
    command += ["--grid", "peak_lr=0.02,0.04", "--phase1.max-epochs", "200"]
    command += ["--data", data, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = out / "search" / "mine"
    while not list(folder.glob("checkpoints/*/phase1-epoch1.json")):
        assert process.poll() is None, "it ended before it was told"
        time.sleep(0.01)
    process.terminate()
    _, error = process.communicate(timeout=100)
    assert process.returncode == 75
    assert error.strip().splitlines()[-1].endswith("the same command continues it")
    assert not list(folder.glob("runs/*.json"))
    subprocess.run(command, check=True, timeout=300)
    records, _ = read_records(folder / "runs")
    went_on = [r.interruptions["count"] for r in records if r.interruptions is not None]
    assert (len(records), went_on) == (2, [1])


@pytest.mark.slow
def test_two_processes_share_the_points_and_each_phase_1(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench", "search", "cifar10_cpu", *SMALL, *GRID]
    command += ["--data", data, "--out", str(out)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    records, _ = read_records(out / "search" / NAME / "runs")
    points = Counter(
        (
            record.method,
            record.configuration["recipe"]["phase1"]["peak_lr"],
            record.configuration["recipe"]["phase1"]["stopping_accuracy"],
        )
        for record in records
    )
    assert set(points.values()) == {1}
    assert Counter(method for method, _, _ in points) == {"sgd": 2, "swap": 4}


@pytest.mark.slow
def test_sgd_ends_at_each_tau_of_one_run(data: str, tmp_path: Path) -> None:
    search = ["search", "cifar10_sgd_small_cpu", *TAUS, "--width", "4", "--data", data]
    search += ["--phase1.global-batch-size", "16", "--phase1.max-epochs", "3", "--held-out", "20"]
    search += ["--device", "cpu", "--ranks", "1", "--quiet", "--out", str(tmp_path)]
    assert main(search) == 0
    folder = tmp_path / "search" / "cifar10_sgd_small_cpu-stopping_accuracy"
    records, _ = read_records(folder / "runs")
    lengths = {r.configuration["recipe"]["phase1"]["stopping_accuracy"]: r for r in records}
    assert len(records) == 2
    assert lengths[0.01].phase1_epochs < lengths[0.95].phase1_epochs == 3
    assert lengths[0.01].epochs == lengths[0.95].epochs[: lengths[0.01].phase1_epochs]


def test_a_dry_run_runs_nothing(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _search(data, tmp_path / "out", "--dry-run", "--seeds", "3") == 0
    printed = capsys.readouterr().out
    assert printed.count(": waiting") == 4
    assert "left: 4 of 4, with 3 seeds each" in printed
    assert "runs of phase 1: 6, for 12 of the rest" in printed
    assert not list((tmp_path / "out").rglob("*.db"))
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "peek_lr=1"], "unknown setting 'peek_lr'; did you mean peak_lr"),
        (["--grid", "width=0"], "width: expected a whole number >= 1, got 0"),
        (
            ["--grid", "train_images=40"],
            "expected 16 to 33 training images beside the held-out ones",
        ),
        (["--storage", "nowhere"], "--storage: expected a database's URL"),
        (["--held-out", "53"], "held_out: expected 1 to 52 of the training images, got 53"),
        (["--keep-momentum"], "expected keep_momentum off, got it on"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(
    arguments: list[str],
    words: str,
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _search(data, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_tree_of_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "imagenet_swap_cpu", "--grid", "width=4"]) == 2
    assert "search: expected a recipe of CIFAR's images" in capsys.readouterr().err


def test_without_optuna_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'swap_fast\[search\]'"):
        search_study.check_installed()


def test_help_names_its_options_and_not_those_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", "cifar10_cpu", "--help"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "--held-out" in printed
    assert "--keep-epochs" not in printed


def test_without_a_recipe_it_says_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search"]) == 2
    assert "search RECIPE --grid NAME=VALUE,VALUE" in capsys.readouterr().out
