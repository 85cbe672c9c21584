"""Records on disk: whole, written once, and refused in one line where they are not right."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from record_factory import CPU, DATA, EXECUTION, make_record, make_telemetry, with_recipe
from repository import RECORDED_RUNS

from swap_fast.config.step_choice import StepChoice
from swap_fast.record import plain, run_id
from swap_fast.record_files import read_record, read_records, write_record

RECORD = make_record()


@pytest.mark.parametrize("recipe", ["cifar10_cpu", "cifar10_sgd_small"])
def test_round_trip(tmp_path: Path, recipe: str) -> None:
    record = make_record(recipe, seed=3, notes=["quick form", "Ärger, 漢字"])
    path = write_record(record, tmp_path / "deeper" / "runs")
    assert path == tmp_path / "deeper" / "runs" / f"{record.run_id}.json"
    assert read_record(path) == record
    assert os.listdir(path.parent) == [path.name]


def test_round_trip_with_telemetry(tmp_path: Path) -> None:
    record = replace(RECORD, telemetry=[make_telemetry()], test_top5_accuracy=0.9)
    assert read_record(write_record(record, tmp_path)) == record


def test_round_trip_with_the_step_that_was_chosen(tmp_path: Path) -> None:
    times = {name: {"phase 1, 1 x 8 images of 32x32": 0.25} for name in ("eager", "fused")}
    choice = StepChoice(chosen="fused", times_s=times, dropped={"compiled": "no compiler"})
    record = replace(RECORD, step_choice=choice)
    assert read_record(write_record(record, tmp_path)) == record


def test_round_trip_with_gradients_summed_in_buckets(tmp_path: Path) -> None:
    execution = {**EXECUTION, "all_reduce_buckets": 3}
    record = replace(RECORD, configuration={**RECORD.configuration, "execution": execution})
    assert read_record(write_record(record, tmp_path)) == record


def test_every_record_of_the_project_is_read_and_holds_what_its_file_holds() -> None:
    for path in RECORDED_RUNS.glob("*.json"):
        content = {"other_work": None, "step_choice": None} | json.loads(
            path.read_text()
        )  # which some lack
        content["epochs"] = [{"skipped_updates": 0} | row for row in content["epochs"]]
        assert plain(asdict(read_record(path))) == content, path.name


def test_a_record_is_never_written_over(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        write_record(replace(RECORD, test_accuracy=0.99), tmp_path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_record(replace(RECORD, notes=[object()]), tmp_path)  # type: ignore[list-item]
    assert os.listdir(tmp_path) == []


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(RECORD, tmp_path)
    assert os.listdir(tmp_path) == []


def written(tmp_path: Path, **changed: Any) -> Path:
    """A record's file with other fields; None takes one away."""
    path = write_record(RECORD, tmp_path)
    content = json.loads(path.read_text()) | changed
    kept = {k: v for k, v in content.items() if v is not None or k not in changed}
    path.write_text(json.dumps(kept))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as refused:
        read_record(path)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("version", [0, 6, 8, "7", None, True])
def test_another_schema_is_refused(tmp_path: Path, version: object) -> None:
    message = refusal(written(tmp_path, schema_version=version))
    assert f"expected schema version 7, got {version!r}" in message


def test_a_half_written_file_is_refused(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    whole = path.read_bytes()
    for size in (0, 1, 500, len(whole) - 5):
        path.write_bytes(whole[:size])
        assert "expected a JSON record" in refusal(path)
    path.write_bytes(b"\xff\xfe" + whole)
    assert "expected a JSON record" in refusal(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}"])
def test_json_that_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    assert "schema version" in refusal(path)


ROWS = plain([asdict(row) for row in RECORD.epochs])
LAP = asdict(make_telemetry().laps["data_loading"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"world_size": 0}, "Expected `int` >= 1 - at `$.world_size`"),
        ({"threads": 0}, "Expected `int` >= 1 - at `$.threads`"),
        ({"test_accuracy": 1.01}, "Expected `float` <= 1.0 - at `$.test_accuracy`"),
        ({"times": asdict(RECORD.times) | {"wall_s": -1.0}}, "Expected `float` > 0.0"),
        ({"displacement_cosines": [[1.1]]}, "Expected `float` <= 1.000001"),
        ({"peak_memory_gib": 1e300}, "Expected `float` <= 1e+18"),
        ({"data": {**DATA, "train_images": 10**30}}, "$.data.train_images"),
        ({"epochs": [ROWS[0] | {"time_s": -1.0}, *ROWS[1:]]}, "$.epochs[0].time_s"),
        (
            {"epochs": [ROWS[0] | {"test_accuracy": 1.5}, *ROWS[1:]]},
            "epochs, test_accuracy: expected fractions, got 1.5",
        ),
        (
            {"epochs": [row | {"test_accuracy": None} for row in ROWS]},
            "epochs: expected a tested one in phase 1, got none",
        ),
        ({"epochs": ROWS[:5]}, "epochs: expected a tested one in phase 2, got none"),
        ({"phase1_epochs": 6}, "phase1_epochs: expected the 5 rows, got 6"),
        (
            {
                "telemetry": [
                    asdict(make_telemetry()) | {"laps": {"a": LAP | {"mean_power_w": 1.0}}}
                ]
            },
            "samples: expected 1 or more, got 0",
        ),
    ],
)
def test_impossible_numbers_are_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    assert words in refusal(written(tmp_path, **changed))


def test_unknown_and_missing_fields_are_named(tmp_path: Path) -> None:
    assert "unknown fields $.extra" in refusal(written(tmp_path, extra=1))
    (tmp_path / f"{RECORD.run_id}.json").unlink()
    assert "required field `seed`" in refusal(written(tmp_path, seed=None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "0"),
        ("method", "adam"),
        ("flags", ["quick"]),
        ("data", {**DATA, "kind": "mine"}),
        ("machine", {**CPU, "device_count": None}),
        ("configuration", {}),
        ("configuration", {"recipe": {}, "execution": EXECUTION}),
        ("pairwise_distances", [[0.0, 1.0]]),
        ("epochs", [{"phase": 1}]),
        ("epochs", [3]),
        ("epochs", 3),
        ("average_by_epoch", [{"epoch": 1, "test_accuracy": 0.5, "loss": 1}]),
        ("times", {"wall_s": 1.0}),
        ("times", [1.0]),
        ("telemetry", 3),
        ("telemetry", [3]),
        ("telemetry", [{"laps": {}}]),
        ("telemetry", [asdict(make_telemetry()) | {"laps": 3}]),
        ("telemetry", [asdict(make_telemetry()) | {"laps": {"phase1": {"energy_j": 1.0}}}]),
    ],
)
def test_odd_rows_are_refused(tmp_path: Path, name: str, value: object) -> None:
    refusal(written(tmp_path, **{name: value}))


def test_a_folder_s_records_are_read_and_the_others_counted(tmp_path: Path) -> None:
    records = [make_record(seed=seed) for seed in (2, 0, 1)]
    for record in records:
        write_record(record, tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "old.json").write_text('{"schema_version": 0}')
    (tmp_path / "notes.txt").write_text("not a record")
    (tmp_path / ".cut.123.part").write_text("{")
    read, skipped = read_records(tmp_path)
    assert [record.seed for record in read] == [0, 1, 2]
    assert [line.split(":")[0] for line in skipped] == ["broken.json", "old.json"]
    assert read_records(tmp_path / "none") == ([], [])


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "<script>alert(1)</script>", "a b\n\\%$#&", "..", "", "C:\\x", "é"]
)
def test_a_run_s_name_is_safe_as_a_file_name(tmp_path: Path, name: str) -> None:
    made = run_id(name, 4, "2026-11-22T12:34:56.789012+00:00")
    assert made.endswith("-seed4-20261122123456")
    assert all(c.isascii() and (c.isalnum() or c in "_-") for c in made)
    path = write_record(replace(RECORD, run_id=made, recipe=name), tmp_path)
    assert path.resolve().parent == tmp_path.resolve()
    assert read_record(path).recipe == name


def test_a_plain_name_stays_as_it_is() -> None:
    made = run_id("cifar10_swap", 12, "2026-01-02T03:04:05+00:00")
    assert made == "cifar10_swap-seed12-20260102030405"


def test_only_the_paper_s_net_on_published_data_is_comparable() -> None:
    def record(scale: bool = True, kind: str = "published", *overrides: str) -> bool:
        changed = with_recipe(RECORD, paper_scale=scale)
        return replace(changed, data={**DATA, "kind": kind}, overrides=[*overrides]).comparable

    assert record()
    assert not record(False)
    assert not record(True, "synthetic")
    assert not record(True, "subset")
    assert not record(True, "published", "--phase1.peak-lr")


def test_records_of_a_folder_share_what_is_equal_and_nothing_else(tmp_path: Path) -> None:
    written = [make_record("cifar10_cpu", seed) for seed in range(2)]
    machine = {**written[0].machine, "memory_gib": 8}  # an integer, which a reader sees as 8.0
    written.append(make_record("cifar10_cpu", 2, machine=machine))
    written.append(make_record("cifar10_sgd_small_cpu", 3))
    for record in written:
        write_record(record, tmp_path)
    read, skipped = read_records(tmp_path)
    assert skipped == []
    assert read == [read_record(tmp_path / f"{record.run_id}.json") for record in written]
    first, second, _, other = read
    for name in ("configuration", "settings", "code", "data", "machine"):
        assert getattr(first, name) is getattr(second, name), name
    assert first.times.reading_laps is second.times.reading_laps
    assert first.times.laps_by_rank != second.times.laps_by_rank
    assert other.settings != first.settings


def test_a_recipe_with_a_number_of_over_64_bits_ends_no_reading(tmp_path: Path) -> None:
    record = make_record("cifar10_cpu")
    phase1 = {**record.configuration["recipe"]["phase1"], "peak_lr": 10**30}
    write_record(with_recipe(record, phase1=phase1), tmp_path)
    records, skipped = read_records(tmp_path)
    assert len(records) + len(skipped) == 1
