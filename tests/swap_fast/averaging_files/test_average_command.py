"""`python -m swap_fast average` from outside: what is typed, and what comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file, save_file

from bench.cli import main as bench
from swap_fast import average_files
from swap_fast.__main__ import main
from swap_fast.averaging_files.evaluate import run_evaluation
from swap_fast.averaging_files.inputs import require_one_origin, workers_of
from swap_fast.averaging_files.weight_files import read_weights
from swap_fast.checkpoint.files import write_json
from swap_fast.checkpoint.run_folder import read_run_info

USERS = """
import torch
from torch import nn

def net():
    return nn.Linear(2, 2)

def data():
    inputs = torch.eye(2)
    batches = [(inputs, torch.tensor([0, 1]))]
    return {"test": batches, "held_out": batches}

def misspelt():
    return data()["trian"]
"""


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two files of a linear net, in a working folder with the user's module beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    (tmp_path / "users_own.py").write_text(USERS)
    for i in (1, 2):
        state = {"weight": i * torch.eye(2), "bias": torch.zeros(2)}
        save_file(state, tmp_path / f"w{i}.safetensors")
    return ["w1.safetensors", "w2.safetensors"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_help_and_names_import_no_torch() -> None:
    for arguments in (["average", "--help"], ["--help"], ["averag"]):
        script = (
            f"import sys; from swap_fast.__main__ import main\n"
            f"try: main({arguments!r})\nexcept SystemExit: pass\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False"


def test_the_module_is_a_command_in_any_folder(pair: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "swap_fast", "average", *pair, "-o", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert torch.equal(load_file(tmp_path / "out.safetensors")["weight"], 1.5 * torch.eye(2))
    assert "\x1b" not in done.stdout  # no terminal, no colours
    assert done.stdout.splitlines()[1].split() == ["w1.safetensors", "50.00"]


def test_a_net_and_data_by_name(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = ["--model", "users_own:net", "--data", "users_own:data"]
    arguments = ["average", *pair, "-o", "out", *tried, "--soup", "greedy", "--json"]
    assert main([*arguments, "--json-file", "out.json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert report["after"] == {"held_out": 1.0, "test": 1.0}
    assert [each["share"] for each in report["ingredients"]] == [0.5, 0.5]
    assert "with w2.safetensors: held-out 100.00%, kept" in printed.err.splitlines()
    assert main([*arguments, "--force", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_folder_of_a_saved_result_stands_for_its_workers(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    for worker in (10, 2):
        weight = torch.full((1,), float(worker))
        save_file({"weight": weight}, saved / f"worker{worker}.safetensors")
    save_file({"weight": torch.zeros(1)}, saved / "averaged.safetensors")
    assert [path.name for path in workers_of(saved)] == [
        "worker2.safetensors",
        "worker10.safetensors",
    ]
    assert main(["average", str(saved), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert load_file(tmp_path / "out.safetensors")["weight"].item() == 6.0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "expected two files or models, or more, to average, got 0"),
        (["w1.safetensors", "gone.pt"], "gone.pt: expected a file of weights, got No such file"),
        (["w1.safetensors", "."], ".: expected files of weights, a saved result or a run's folder"),
        (["PAIR", "--model", "users_own:net"], "model: expected --data beside it, got none"),
        (["PAIR", "--data", "users_own:data"], "data: expected --model beside it, got none"),
        (["PAIR", "--data-dir", "d"], "data_dir: expected the folder of one run, got none"),
        (
            ["PAIR", "--model", "users_own:nett", "--data", "users_own:data"],
            "unknown function of --model, users_own 'nett'; did you mean net?",
        ),
        (
            ["PAIR", "--model", "gone:net", "--data", "users_own:data"],
            "--model: expected a module gone, importing it gave ModuleNotFoundError",
        ),
        (
            ["PAIR", "--model", "users_own.py:net", "--data", "users_own:data"],
            "--model: expected package.module:function, got users_own.py:net; try users_own:net",
        ),
        (
            ["PAIR", "--model", "torch.nn:Linear", "--data", "users_own:data"],
            "model: expected a function that needs no arguments and gives its result, got Type",
        ),
        (
            ["PAIR", "--model", "users_own:net", "--data", "users_own:misspelt"],
            "data: expected a function that needs no arguments and gives its result, got KeyError",
        ),
        (["PAIR", "--soup", "greedy"], "greedy: expected held_out data to choose by, got none"),
        (["PAIR", "--basin-points", "2"], "basin_points: expected 3 to 1,000"),
        (["PAIR", "--basin-images", "0"], "basin_images: expected a whole number >= 1, got 0"),
        (["PAIR", "--max-barrier", "2"], "max_barrier: expected a fraction from 0 to below 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], line: str, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [each for a in arguments for each in (pair if a == "PAIR" else [a])]
    assert main(["average", *typed, "-o", "out", "--quiet"]) == 2
    assert one_line(capsys).startswith(f"swap_fast: {line}")
    assert not Path("out.safetensors").exists()


def test_an_unknown_command_or_option_is_met_with_a_near_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["avrage"]) == 2
    assert one_line(capsys) == "swap_fast: unknown command 'avrage'; did you mean average?"
    with pytest.raises(SystemExit) as caught:
        main(["average", "a", "b", "-o", "c", "--forse"])
    assert caught.value.code == 2
    assert "--force" in capsys.readouterr().err


# Runs of our own.

QUICK = [
    *("run", "cifar10_quick", "--width", "4", "--train-images", "1024", "--phase1.max-epochs", "1"),
    *("--phase1.warmup-epochs", "0.5", "--num-workers", "2", "--phase1.gpus-per-model", "2"),
    *("--ranks", "1", "--threads", "1", "--device", "cpu", "--quiet"),
]


@pytest.fixture(scope="module")
def runs(small_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two runs, seeds 1 and 2."""
    out = tmp_path_factory.mktemp("runs")
    assert bench([*QUICK, "--data", str(small_cifar), "--out", str(out), "--runs", "2"]) == 0
    return sorted((out / "checkpoints").iterdir())


@pytest.mark.slow
def test_the_average_of_a_runs_workers_is_the_runs_own_result(
    runs: list[Path], small_cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["average", str(runs[0]), "-o", str(tmp_path / "out"), "--basin-points", "0"]
    assert main([*arguments, "--data-dir", str(small_cifar), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    made, expected = (
        load_file(path) for path in (tmp_path / "out.safetensors", runs[0] / "final.safetensors")
    )
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        # The run sums in float32, this in float64.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    record = json.loads((runs[0].parent.parent / "runs" / f"{runs[0].name}.json").read_text())
    assert report["after"]["test"] == pytest.approx(record["test_accuracy"], abs=2e-4)
    accuracies = [each["accuracies"]["test"] for each in report["ingredients"]]
    assert accuracies == [
        each[-1] if isinstance(each, list) else each for each in record["worker_accuracies"]
    ]
    assert report["batch_norm"] == "recomputed"
    norms = [each["from_start"] for each in report["ingredients"]]
    assert norms == pytest.approx(record["displacement_norms"], rel=1e-5)
    assert report["cosines"][0][1] == pytest.approx(record["displacement_cosines"][0][1], rel=1e-5)
    assert report["distances"][0][1] == pytest.approx(record["pairwise_distances"][0][1], rel=1e-5)
    evaluation = run_evaluation(runs[0], small_cifar, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"got test; .*--select-on test"):
        average_files([runs[0]], soup="greedy", evaluation=evaluation)


@pytest.mark.slow
def test_workers_of_another_origin_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = [str(run / "worker0-epoch1.safetensors") for run in runs]
    out = ["-o", str(tmp_path / "out"), "--quiet"]
    assert main(["average", *workers, *out]) == 2
    assert "expected a worker that began from the same phase 1 as" in one_line(capsys)
    pair = [str(runs[0] / f"worker{w}-epoch1.safetensors") for w in (0, 1)]
    start = ["--start", str(runs[1] / "phase1.safetensors")]
    assert main(["average", *pair, *out, *start]) == 2
    assert "began from the same phase 1" in one_line(capsys)
    assert main(["average", *pair, *out]) == 0
    assert "cosines of displacements from phase1.safetensors" in capsys.readouterr().out


@pytest.mark.slow
def test_a_runs_folder_must_be_whole(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    assert len(workers_of(folder)) == 2
    # A flipped bit is caught where there is a manifest: phase 1's.
    content = bytearray((folder / "phase1.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "phase1.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="it was damaged or changed"):
        require_one_origin([read_weights(folder / "phase1.safetensors")])
    (folder / "worker1-epoch1.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"2 workers after 1 epochs, worker1-epoch1.safetensors is"
    ):
        workers_of(folder)
    info = read_run_info(folder)
    assert info is not None
    whole = info.settings["recipe"]
    for recipe, line in (
        ({**whole, "dataset": "imagenet"}, "got one of a tree of files"),
        ({**whole, "colour": "red"}, "expected the fields of a SWAPRecipe, got .*colour"),
        ({**whole, "dataset": "synthetic"}, "images of cifar10 that the run had, got a"),
    ):
        settings = {**info.settings, "recipe": recipe}
        write_json(folder / "run.json", replace(info, settings=settings))
        with pytest.raises(ValueError, match=line):
            run_evaluation(folder, None, torch.device("cpu"))
    del settings["recipe"]["num_workers"]
    write_json(folder / "run.json", replace(info, settings=settings))
    with pytest.raises(ValueError, match="expected a run of SWAP with one model a worker"):
        workers_of(folder)
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: expected JSON .* or name the files"):
        workers_of(folder)
    write_json(folder / "run.json", replace(info, settings={}))
    with pytest.raises(ValueError, match=r"got a folder without workers or a recipe's run\.json"):
        workers_of(folder)
