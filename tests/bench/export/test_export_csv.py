"""CSV exports, held against the records' JSON, read without the package."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_factory import make_record, make_telemetry
from repository import ROOT

from bench.cli import main
from bench.export.command import epochs_csv, runs_csv
from swap_fast.record_files import write_record

RUNS = sorted((ROOT / "results" / "runs").glob("*.json"))


def _read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _scalars(values: dict[str, Any], at: str = "") -> dict[str, str]:
    """Every value that is no list, by the names on the way to it."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _scalars(value, f"{at}{name}.")
        elif not isinstance(value, list):
            found[f"{at}{name}"] = "" if value is None else str(value)
    return found


def test_every_value_of_every_measured_run_is_there(tmp_path: Path) -> None:
    out = tmp_path / "runs.csv"
    assert main(["export", "csv", "--results", str(ROOT / "results"), "-o", str(out)]) == 0
    lines = {line["run_id"]: line for line in _read(out.read_text())}
    assert len(lines) == len(RUNS)
    for path in RUNS:
        record = json.loads(path.read_text())
        line = lines[record["run_id"]]
        told = {"recipe": record["configuration"].pop("recipe")}
        told |= {"execution": record["configuration"].pop("execution")}
        times = {name: v for name, v in record.pop("times").items() if not isinstance(v, dict)}
        del record["schema_version"]  # that of the reader
        assert record.pop("telemetry", None) is None
        for name, value in _scalars({**record, **told, **times}).items():
            assert line[name] == value, (path.name, name)
        assert line["recipe"] == path.name.split("-seed")[0]


def test_laps_and_readings_have_their_units() -> None:
    (line,) = _read(runs_csv([make_record("cifar10_cpu")]))
    assert (line["lap_phase1_s"], line["lap_evaluation_s"]) == ("60.0", "10.0")
    assert (line["paper_reading_s"], line["mlperf_reading_s"]) == ("98.0", "110.5")
    assert line["time_to_target_s"] == "100.0"
    assert line["worker_accuracies"] == "0.79; 0.792; 0.794; 0.796"
    assert line["pairwise_distances"].startswith("[0.0; 1.0; 1.0; 1.0]; [1.0; 0.0;")
    assert line["energy_j"] == ""


def test_energy_is_that_of_all_devices() -> None:
    told = make_telemetry()
    partly = make_record("cifar10_cpu", telemetry=[told, told])
    loading = replace(told.laps["data_loading"], energy_j=20.0)
    told = replace(told, laps={**told.laps, "data_loading": loading})
    whole = make_record("cifar10_cpu", telemetry=[told, told])
    first, second = _read(runs_csv([whole, partly]))
    assert float(first["energy_j"]) == 2 * (6000 + 500 + 20)
    assert second["energy_j"] == ""  # not the sum of the laps that are known


def test_runs_of_other_fields_share_a_table_and_text_is_quoted() -> None:
    notes = ['a, "b"\nc', "d"]
    swap, sgd = make_record("cifar10_cpu", notes=notes), make_record("cifar10_sgd_small_cpu")
    first, second = _read(runs_csv([swap, sgd]))
    assert first["notes"] == 'a, "b"\nc; d'
    assert first["recipe.phase2.max_epochs"] == "2"
    assert second["recipe.phase2.max_epochs"] == ""
    assert second["accuracy_before_averaging"] == ""


def test_epochs_are_one_line_each_and_the_averages_too() -> None:
    record = make_record("cifar10_cpu")
    lines = _read(epochs_csv([record, make_record("cifar10_sgd_small_cpu")]))
    models = [line["model"] for line in lines if line["recipe"] == "cifar10_cpu"]
    workers = [f"worker {w}" for w in range(4) for _ in range(2)]
    assert models == ["phase 1"] * 5 + workers + ["average"] * 2
    assert len(lines) == len(models) + 5
    for line, row in zip(lines, record.epochs, strict=False):
        assert float(line["test_accuracy"]) == row.test_accuracy
        assert float(line["time_s"]) == row.time_s
    averages = [line for line in lines if line["model"] == "average"]
    assert [line["test_accuracy"] for line in averages] == ["0.8", "0.81"]
    assert averages[0]["worker"] == averages[0]["time_s"] == ""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cifar10_cpu"], ["cifar10_cpu-seed0", "cifar10_cpu-seed1"]),
        (["cifar10_cpu-seed1-20261122120000"], ["cifar10_cpu-seed1"]),
        (
            ["cifar10_cpu-seed1-20261122120000", "cifar10_cpu"],
            ["cifar10_cpu-seed1", "cifar10_cpu-seed0"],
        ),
        ([], ["cifar10_cpu-seed0", "cifar10_cpu-seed1", "cifar10_sgd_small_cpu-seed0"]),
    ],
)
def test_runs_are_named_by_recipe_and_id(
    names: list[str], expected: list[str], tmp_path: Path
) -> None:
    for recipe, seed in (("cifar10_cpu", 0), ("cifar10_cpu", 1), ("cifar10_sgd_small_cpu", 0)):
        write_record(make_record(recipe, seed), tmp_path / "runs")
    assert main(["export", "csv", *names, "--results", str(tmp_path)]) == 0
    lines = _read((tmp_path / "exports" / "runs.csv").read_text())
    assert [line["run_id"].removesuffix("-20261122120000") for line in lines] == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["csw"], "unknown format 'csw'; did you mean csv"),
        (["csv", "cifar10_cup"], "unknown run 'cifar10_cup'; did you mean cifar10_cpu"),
        (["csv", "not_there.json"], "not_there.json"),
        (["mlperf", "--org", " "], "org: expected a name, got none"),
        (["onnx"], "expected one whose weights are kept, got cifar10_cpu-seed0"),
    ],
)
def test_what_cannot_be_exported_gets_one_line_and_exit_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(make_record("cifar10_cpu"), tmp_path / "runs")
    try:
        code = main(["export", *arguments, "--results", str(tmp_path)])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_folder_without_records_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "csv", "--results", str(tmp_path)]) == 2
    assert "found none; `python -m bench run` writes one" in capsys.readouterr().err


def test_a_damaged_record_named_by_its_path_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make_record("cifar10_cpu")
    damaged = {"configuration": {"recipe": {}, "execution": None}, "machine": {}, "epochs": []}
    path = write_record(replace(record, **damaged), tmp_path / "runs")
    for form in ("dawnbench", "mlperf", "csv", "latex"):
        assert main(["export", form, str(path), "--results", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bench: {path.name}: Expected `object`, got `null`")
        assert error.count("\n") == 1
