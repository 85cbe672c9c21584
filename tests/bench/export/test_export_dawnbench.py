"""DAWNBench entries, held against that benchmark's rules as it publishes them.

`problems` is written from the rules (the format in the entries' README, and what its tests ask of
a pull request), not from what writes the entries.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from record_factory import IMAGENET, V100, make_record
from repository import ROOT

from bench.cli import main
from bench.export.options import DawnbenchOptions
from bench.export.submissions import make_entry
from bench.records.timing import dawnbench_time
from swap_fast.record import RunRecord
from swap_fast.record_files import read_record, write_record

RECORDS = sorted((ROOT / "results" / "runs").glob("cifar10_*.json"))
THRESHOLDS = {"CIFAR10": ("top1Accuracy", 94.0), "ImageNet": ("top5Accuracy", 93.0)}
REQUIRED = ("version", "author", "authorEmail", "framework", "model", "hardware", "timestamp")
OPTIONAL = ("codeURL", "costPerHour", "logFilename", "misc")
COLUMNS = {
    "CIFAR10": ["epoch", "hours", "top1Accuracy"],
    "ImageNet": ["epoch", "hours", "top1Accuracy", "top5Accuracy"],
}
ME = DawnbenchOptions(author="A. N. Author", author_email="author@example.org")


def problems(json_path: Path, task: str) -> list[str]:
    """What DAWNBench would refuse of an entry; empty where it takes it."""
    found = []
    entry = json.loads(json_path.read_text(encoding="utf-8"))
    found += [f"no {field}" for field in REQUIRED if not entry.get(field)]
    found += [f"unknown {field}" for field in entry if field not in REQUIRED + OPTIONAL]
    if entry.get("version") != "v1.0":
        found.append("version")
    try:
        datetime.strptime(entry["timestamp"], "%Y-%m-%d")
    except ValueError:
        found.append("timestamp")
    if not isinstance(entry.get("misc", {}), dict):
        found.append("misc")
    cost = entry.get("costPerHour", 0.0)
    if not (isinstance(cost, int | float) and cost >= 0):
        found.append("costPerHour")
    if not re.fullmatch(r"[^_/\s]+(_[^_/\s]+){3,}\.json", json_path.name):
        found.append("name")
    with open(json_path.with_suffix(".tsv"), encoding="utf-8", newline="") as file:
        heads, *lines = csv.reader(file, delimiter="\t")
    if heads != COLUMNS[task]:
        return [*found, "columns"]
    rows = [dict(zip(heads, map(float, line), strict=True)) for line in lines]
    if not rows:
        return [*found, "no rows"]
    for before, after in pairwise(rows):
        if not (before["epoch"] < after["epoch"] and before["hours"] < after["hours"]):
            found.append("order")
    if not all(row["hours"] > 0 for row in rows):
        found.append("hours")
    shares = [row[column] for row in rows for column in COLUMNS[task][2:]]
    if not all(1 < share <= 100 for share in shares):
        found.append("percent")
    column, least = THRESHOLDS[task]
    if max(row[column] for row in rows) < least:
        found.append("threshold")
    return found


def _written(record: RunRecord, folder: Path, options: DawnbenchOptions = ME) -> Path:
    entry = make_entry(record, options)
    path = folder / f"{entry.name}.json"
    path.write_text(entry.json_text(), encoding="utf-8")
    path.with_suffix(".tsv").write_text(entry.tsv_text(), encoding="utf-8")
    return path


def _good(**changed: object) -> RunRecord:
    """A run of the paper's recipe, on its hardware, that reaches 94.3% after averaging."""
    values = {"machine": V100, "world_size": 8, "test_accuracy": 0.943, **changed}
    return make_record("cifar10_dawnbench", **values)


def _imagenet() -> RunRecord:
    record = make_record(
        "imagenet_swap",
        machine=V100,
        world_size=8,
        test_accuracy=0.765,
        test_top5_accuracy=0.934,
        data=IMAGENET,
    )
    rows = [
        replace(row, test_top5_accuracy=(row.test_accuracy or 0) + 0.1) for row in record.epochs
    ]
    return replace(record, epochs=rows)


def test_a_run_of_the_papers_recipe_is_accepted(tmp_path: Path) -> None:
    assert problems(_written(_good(), tmp_path), "CIFAR10") == []
    assert problems(_written(_imagenet(), tmp_path), "ImageNet") == []
    assert make_entry(_imagenet(), ME).caveats == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda entry, rows: (entry | {"author": ""}, rows), "no author"),
        (lambda entry, rows: (entry | {"version": "v2"}, rows), "version"),
        (lambda entry, rows: (entry | {"timestamp": "22.11.2026"}, rows), "timestamp"),
        (lambda entry, rows: (entry | {"costPerHour": None}, rows), "costPerHour"),
        (lambda entry, rows: (entry | {"cost": 1}, rows), "unknown cost"),
        (lambda entry, rows: (entry, rows.replace("hours", "seconds")), "columns"),
        (lambda entry, rows: (entry, rows.splitlines()[0] + "\n"), "no rows"),
        (lambda entry, rows: (entry, rows + rows.splitlines()[1] + "\n"), "order"),
        (lambda entry, rows: (entry, rows.replace("94.3", "93.99")), "threshold"),
        (lambda entry, rows: (entry, rows.replace("94.3", "0.943")), "percent"),
    ],
)
def test_what_the_rules_forbid_is_found(
    damage: Callable[[dict[str, object], str], tuple[dict[str, object], str]],
    problem: str,
    tmp_path: Path,
) -> None:
    path = _written(_good(), tmp_path)
    rows = path.with_suffix(".tsv")
    entry, text = damage(json.loads(path.read_text()), rows.read_text())
    path.write_text(json.dumps(entry))
    rows.write_text(text)
    assert problem in problems(path, "CIFAR10")


def test_hours_are_those_of_dawnbench_counted_by_hand() -> None:
    # 2 s of loading, 1.5 s of preparing and making the model, five epochs of 12 s; then 32 s of
    # phase 2, 0.25 and 4.25 of phase 3. Tests (10 s), checkpoints (0.5) and imports (3) are not in.
    entry = make_entry(_good(), ME)
    assert [row.epoch for row in entry.rows] == [1, 2, 3, 4, 5, 7]
    seconds = [3600 * row.hours for row in entry.rows]
    assert seconds == pytest.approx([15.5, 27.5, 39.5, 51.5, 63.5, 100.0])
    assert [row.top1 for row in entry.rows] == [40.0, 55.0, 66.0, 72.0, 76.0, 94.3]


def test_sgd_ends_with_its_last_epoch() -> None:
    rows = make_entry(make_record("cifar10_sgd_small", test_accuracy=0.76), ME).rows
    assert [row.epoch for row in rows] == [1, 2, 3, 4, 5]
    assert 3600 * rows[-1].hours == pytest.approx(2 + 1.5 + 60)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_first_row_at_the_target_is_when_the_report_says(path: Path, tmp_path: Path) -> None:
    record = read_record(path)
    target = 100 * record.configuration["recipe"]["target_accuracy"]
    with open(_written(record, tmp_path).with_suffix(".tsv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    at_target = [float(row["hours"]) for row in rows if float(row["top1Accuracy"]) >= target]
    expected = dawnbench_time(record)
    assert (3600 * at_target[0] if at_target else None) == (
        None if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize("path", RECORDS[:1], ids=lambda path: path.stem)
def test_a_cpu_run_is_in_the_format_and_says_why_it_is_no_entry(path: Path, tmp_path: Path) -> None:
    record = read_record(path)
    written = _written(record, tmp_path)
    assert problems(written, "CIFAR10") == ["threshold"]
    caveats = json.loads(written.read_text())["misc"]["notComparable"]
    assert "run on a CPU" in caveats
    assert any("less than the 94% that an entry must reach" in each for each in caveats)


def test_a_subset_is_named_as_one() -> None:
    data = {**_good().data, "kind": "subset", "train_images": 1024, "test_images": 100}
    (caveat,) = make_entry(_good(data=data), ME).caveats
    assert caveat == "1024 training and 100 test images, which are not the published set"


def test_epochs_of_imagenet_without_top5_have_no_row() -> None:
    record = _imagenet()
    rows = [replace(row, test_top5_accuracy=None) for row in record.epochs]
    (row,) = make_entry(replace(record, epochs=rows), ME).rows
    assert (row.top1, row.top5) == (76.5, 93.4)


def test_what_is_not_known_is_left_out_and_what_is_given_is_in() -> None:
    assert not {"codeURL", "costPerHour", "logFilename"} & make_entry(_good(), ME).about.keys()
    options = replace(ME, code_url="https://example.org/code", cost_per_hour=24.48)
    about = make_entry(_good(), options).about
    assert (about["codeURL"], about["costPerHour"]) == ("https://example.org/code", 24.48)


def test_a_hostile_name_stays_in_the_folder() -> None:
    record = _good(run_id="../../<script>_x")
    name = make_entry(record, replace(ME, author="../Mallory & Co")).name
    assert name == "Mallory-Co_script-x_8Tesla-V100-SXM2-16GB_pytorch"


def test_the_command_writes_both_files_and_refuses_other_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(_good(), tmp_path / "runs")
    other = make_record("cifar100_swap")
    write_record(replace(other, data={**other.data, "name": "cifar100"}), tmp_path / "runs")
    export = ["export", "dawnbench", "--results", str(tmp_path)]
    assert main([*export, "--author", "Me", "--author-email", "me@example.org"]) == 0
    (path,) = (tmp_path / "exports" / "dawnbench").glob("*.json")
    assert problems(path, "CIFAR10") == []
    assert str(path) in capsys.readouterr().out
    mine = tmp_path / "my_entry_here_pytorch.json"
    assert main([*export, "cifar10_dawnbench", "-o", str(mine)]) == 0
    assert problems(mine, "CIFAR10") == ["no authorEmail"]
    assert "not an official entry: no --author-email, which" in capsys.readouterr().out
    assert main([*export, "cifar100_swap"]) == 2
    assert "expected one on cifar10 or imagenet, got cifar100_swap-seed0" in capsys.readouterr().err
