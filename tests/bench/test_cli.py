"""The command line: exit codes, helpful lines, and what each command does, as a user meets it."""

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from itertools import count
from pathlib import Path

import pytest

from bench.cli import main
from bench.hardware import machine
from bench.runner.session import differences
from swap_fast.options import flow
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record_files import read_record
from swap_fast.tasks import cifar as loaders

pytestmark = pytest.mark.usefixtures("small_cifar")

SMALL = (
    *("--dataset", "cifar10", "--train-images", "256", "--width", "4", "--device", "cpu"),
    *("--threads", "1", "--phase1.global-batch-size", "64", "--phase1.max-epochs", "1"),
    *("--phase1.horizon-epochs", "2"),
)


def test_without_a_command_it_says_how_to_use_it_and_exits_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert "python -m bench COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["rin"], "unknown command 'rin'; did you mean run"),
        (["run", "cifar10_cup"], "unknown recipe 'cifar10_cup'; did you mean cifar10_cpu"),
        (["run", "zzz"], "unknown recipe 'zzz'; expected one of cifar10_sgd_small"),
    ],
)
def test_a_wrong_name_gets_one_line_and_exit_2(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert meant in error
    assert error.count("\n") == 1


def test_a_wrong_field_gets_did_you_mean_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", "cifar10_cpu", "--phase1.peek-lr", "1"])
    assert exit_.value.code == 2
    assert "--phase1.peak-lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--phase1.global-batch-size", "1023"], "multiple of gpus_per_model = 4"),
        (["--phase1.peak-lr", "-1"], "peak_lr: expected a finite number > 0, got -1.0"),
        (["--runs", "0"], "runs: expected 1 or more, got 0"),
        (["--threads", "100000"], "or less, got 100000"),
        (["--seed", "-1"], "seed: expected 0 or more, got -1"),
        (["--seed", str(2**64)], "seed: expected 9223372036854775807 or less, got 18446744073"),
        (["--phase1.stop", "auto"], "(--phase1.stopping-accuracy None), got 0.73"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["run", "cifar10_cpu", *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in error


def test_more_processes_than_replicas_is_refused_with_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "cifar10_cpu", "--ranks", "5", "--out", str(tmp_path)]) == 2
    assert "ranks: expected 1 to 4, one a replica" in capsys.readouterr().err


def test_a_data_folder_without_the_set_is_refused_with_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    assert main(["run", "cifar10_cpu", "--out", str(out), "--data", str(empty)]) == 2
    assert "--data: expected" in capsys.readouterr().err


def test_a_results_folder_that_cannot_be_written_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main(["run", "cifar10_quick", "--out", str(tmp_path / "file")]) == 2
    assert "out: expected a folder that can be written to" in capsys.readouterr().err


def test_a_file_system_that_cannot_do_what_a_run_does_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if target.exists() and target.parent.name == "checkpoints":
            raise OSError(95, "Operation not supported")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert main(["run", "cifar10_quick", "--out", str(tmp_path)]) == 2
    assert "Operation not supported: 3 bytes of .probe-" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == []


def test_recipes_names_every_recipe_with_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("cifar10_swap ") and "Table 1, SWAP" in line for line in lines)
    assert any(line.startswith("cifar10_dawnbench ") and "8 GPUs" in line for line in lines)
    assert any(line.startswith("cifar100_swap ") and "Table 2, SWAP" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_recipes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(RECIPES)
    assert (rows["cifar10_swap"]["method"], rows["cifar10_swap"]["devices"]) == ("swap", 8)
    assert (rows["cifar10_cpu"]["dataset"], rows["cifar10_cpu"]["device"]) == ("cifar10", "core")


def test_a_reader_that_has_seen_enough_gets_no_error() -> None:
    program = (
        "import sys; from bench import cli; "
        "cli.COMMANDS['recipes'] = (lambda arguments: print('long ' * 100_000), ''); "
        "sys.exit(cli.main(['recipes']))"
    )
    command = f'"{sys.executable}" -c "{program}" | head -c 4; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("long", "", 141)


@pytest.fixture(scope="module")
def every_help() -> str:
    """What `--help` of each command prints on a terminal of 80 columns."""
    program = (
        "import sys\n"
        "import swap_fast\n"
        "SLOW = 'torch torchvision nvidia matplotlib scipy optuna sqlalchemy submitit onnx'\n"
        "def slow():\n    return sorted(set(SLOW.split()) & sys.modules.keys())\n"
        "assert not slow(), f'import swap_fast loads {slow()}'\n"
        "from bench.cli import COMMANDS, FORMATS, main\n"
        "from swap_fast.__main__ import main as library\n"
        "recipes = ('cifar10_cpu', 'imagenet_swap', 'cifar100_swa_small', 'cifar10_sgd_small')\n"
        "more = [[name, recipe] for name in ('run', 'submit', 'search') for recipe in recipes]\n"
        "more += [['export', name] for name in FORMATS]\n"
        "commands = [(main, each) for each in [[], *([name] for name in COMMANDS), *more]]\n"
        "for call, command in [*commands, (library, []), (library, ['average'])]:\n"
        "    try:\n        call([*command, '--help'])\n"
        "    except SystemExit as exit_:\n        assert exit_.code in (None, 0), command\n"
        "    assert not slow(), f'{command} --help loads {slow()}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_help_loads_what_is_slow_to_load(every_help: str) -> None:
    # This is what keeps every `--help` under half a second: the fixture asks.
    assert "--phase1.peak-lr" in every_help


def test_every_help_fits_80_columns(every_help: str) -> None:
    wide = [line for line in every_help.splitlines() if len(line) > 80]
    assert wide == []
    assert "None}" not in every_help
    assert every_help.count("The only phase.") == 3  # SGD's: run, submit, search
    for usage in re.findall(r"^usage: .*(?:\n  .*)*", every_help, re.MULTILINE):
        assert all(line.count("[") == line.count("]") for line in usage.splitlines())


def test_a_terminal_s_colours_have_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    bold = "\033[1musage:\033[0m one \033[1mtwo\033[0m"
    assert flow(bold) == bold
    assert flow("usage: one two [three four]", "  ") == "usage: one two\n  [three four]"


def test_an_option_s_text_flows_where_its_docstring_has_a_line_break(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["run", "cifar10_cpu", "--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    start, end = (
        lines.index("--resume, --no-resume") + 1,
        lines.index("--phase2 {together,separate}"),
    )
    assert lines[start:end] == textwrap.wrap(" ".join(lines[start:end]), 70)


def test_overrides_are_named_field_by_field() -> None:
    original = {"width": 16, "phase1": {"peak_lr": 1.0, "max_epochs": 7}}
    changed = {"width": 8, "phase1": {"peak_lr": 1.5, "max_epochs": 7}}
    assert differences(original, changed) == ["width=8", "phase1.peak_lr=1.5"]


@pytest.mark.parametrize("is_free", [True, False])
def test_a_run_on_one_core_says_whether_it_had_it_alone(
    is_free: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "_take", lambda core, stack: is_free)
    before, core = machine.core_numbers(), str(min(machine.core_numbers()))
    out, phase2 = ["--out", str(tmp_path)], ["--phase2.max-epochs", "1"]
    assert main(["run", "cifar10_cpu", "--cores", core, *out, *phase2, *SMALL]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = read_record(path)
    assert (record.world_size, record.num_devices) == (1, 1)  # of its four
    assert (record.is_pinned, record.emulated_workers) == (is_free, True)
    assert ("other runs have the CPU cores" in capsys.readouterr().out) is not is_free
    assert machine.core_numbers() == before


@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_whole_small_run_leaves_a_record_and_a_report(
    ranks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path)
    phase2 = ("--phase2.global-batch-size", "32", "--phase2.max-epochs", "2")
    run = ["run", "cifar10_quick", "--out", out, "--ranks", ranks, "--quiet", *SMALL, *phase2]
    assert main(run) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["world_size"] == int(ranks)
    assert record["emulated_workers"] is True
    assert record["data"]["kind"] == "subset"
    assert len(record["epochs"]) == 1 + 4 * 2
    assert [row["epoch"] for row in record["average_by_epoch"]] == [1, 2]
    assert record["average_by_epoch"][-1]["test_accuracy"] == record["test_accuracy"]
    mean = sum(record["worker_accuracies"]) / 4
    assert record["accuracy_before_averaging"] == pytest.approx(mean, abs=1e-12)
    assert all(row[i] == 0 for i, row in enumerate(record["pairwise_distances"]))
    assert min(record["pairwise_distances"][0][1:]) > 0
    assert "width=4" in record["overrides"]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*/*"))
    workers = [f"worker{w}-epoch2.{ending}" for w in range(4) for ending in ("json", "safetensors")]
    phase1 = ["phase1.json", "phase1.safetensors", "phase1.state.safetensors"]
    final = ["final.json", "final.safetensors"]
    assert kept == ["events.jsonl", *final, *phase1, "run.json", *workers]
    capsys.readouterr()
    assert main(["report", "--results", out]) == 0
    assert "cifar10 (subset)" in (tmp_path / "report.md").read_text()


def test_phase_1_ends_by_itself(tmp_path: Path) -> None:
    # A recipe with a tau, which the rule takes the place of.
    run = ["run", "cifar10_cpu", "--out", str(tmp_path), "--ranks", "1", "--quiet", *SMALL]
    rule = ("--phase1.stop", "auto", "--phase1.stopping-accuracy", "None")
    numbers = ("--phase1.stopping-noise-ratio", "1e-6", "--phase1.warmup-epochs", "0")
    assert main([*run, *rule, *numbers, "--phase2.max-epochs", "1"]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["stopped_by"] == "noise_scale"
    assert "phase1.stop=auto" in record["overrides"]
    assert [row["phase"] for row in record["epochs"]] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("loader", ["dali", pytest.param("torchvision", marks=pytest.mark.slow)])
def test_another_loader_gives_the_same_run(loader: str, tmp_path: Path) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    run = ["run", "cifar10_sgd_small_cpu", "--out", str(tmp_path), "--ranks", "1", "--quiet"]
    records = []
    for name in ("auto", loader):
        assert main([*run, *SMALL, "--loader", name]) == 0
        (path,) = (tmp_path / "runs").glob("*.json")
        records.append(json.loads(path.read_text()))
        path.unlink()
    taken = [record["configuration"]["execution"]["loader"] for record in records]
    assert taken == ["tensor", loader]
    losses = [record["epochs"][0]["train_loss"] for record in records]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert records[1]["notes"] == []


def test_a_loader_that_cannot_be_had_is_replaced_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loaders, "missing_for_dali", lambda device_type: "DALI is not there")
    run = ["run", "cifar10_sgd_small_cpu", "--out", str(tmp_path), "--ranks", "1"]
    assert main([*run, *SMALL, "--loader", "dali"]) == 0
    line = "loader dali: DALI is not there; the tensor backend makes the batches"
    assert capsys.readouterr().out.splitlines().count(line) == 1
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["notes"] == [line]
    assert record["configuration"]["execution"]["loader"] == "tensor"


def test_an_sgd_run_has_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine's time is set back all the while: no duration is measured by it.
    set_back = count(2e9, -3600.0)
    monkeypatch.setattr("time.time", lambda: next(set_back))
    run = ["run", "cifar10_sgd_small_cpu", "--out", str(tmp_path), "--ranks", "1", "--quiet"]
    assert main([*run, *SMALL, "--dataset", "synthetic"]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["data"]["kind"] == "synthetic"
    assert record["method"] == "sgd"
    assert record["emulated_workers"] is False
    assert record["accuracy_before_averaging"] is None
    assert record["test_accuracy"] == record["epochs"][-1]["test_accuracy"]
    assert record["times"]["before_averaging_s"] is None
    (laps,) = record["times"]["laps_by_rank"]
    assert 0 < sum(laps.values()) <= record["times"]["wall_s"] < 600
    assert min(laps.values()) >= 0


def test_a_run_that_diverges_ends_with_exit_1_and_leaves_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "cifar10_sgd_small_cpu", "--out", str(tmp_path), "--ranks", "1", "--quiet"]
    assert main([*run, *SMALL, "--phase1.peak-lr", "1e30"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bench: seed 0, phase 1, worker 0, epoch 1 (updates 1 to ")
    assert "): the loss is nan, expected a finite one; lower the learning rate (now " in error
    assert not list((tmp_path / "runs").glob("*.json"))


def test_two_runs_of_one_seed_are_the_same_to_the_bit(tmp_path: Path) -> None:
    run = ["run", "cifar10_sgd_small_cpu", "--out", str(tmp_path), "--ranks", "1", "--quiet"]
    assert main([*run, *SMALL]) == 0
    time.sleep(1.1)  # a run's name holds the second of its start
    assert main([*run, *SMALL]) == 0
    first, second = (json.loads(p.read_text()) for p in sorted((tmp_path / "runs").glob("*.json")))
    for record in (first, second):
        for row in record["epochs"]:
            del row["time_s"]
    assert first["epochs"] == second["epochs"]
