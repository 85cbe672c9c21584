"""Tables of measurements, by hand from a small record."""

import json
from pathlib import Path

from bench.micro_tables import micro_tables

RECORD = {
    "created": "2026-01-02T03:04:05+00:00",
    "what": "step",
    "width": 16,
    "batch_size": 256,
    "threads": 2,
    "rounds": 3,
    "machine": {"device_type": "cpu", "device": "A CPU", "libraries": {"torch": "2.10.0"}},
    "results": {
        "the step": [
            {"name": "ours", "images_per_s": [800.0, 900.0, 1000.0], "ratios": [1.0, 1.0, 1.0]},
            {"name": "theirs", "images_per_s": [400.0, 600.0, 500.0], "ratios": [2.0, 1.5, 2.0]},
        ]
    },
}


def write(folder: Path, name: str, record: object) -> None:
    (folder / name).write_text(json.dumps(record))


def test_medians_and_ranges(tmp_path: Path) -> None:
    write(tmp_path, "micro-step-cpu-1.json", RECORD)
    (table,), skipped = micro_tables(tmp_path)
    assert skipped == []
    assert table.rows == (
        ("the step", "ours", "900", "800 to 1,000", "1.000", "1.00 to 1.00"),
        ("", "theirs", "500", "400 to 600", "2.000", "1.50 to 2.00"),
    )
    assert (
        "A CPU, 2 threads, torch 2.10.0; ResNet-9 of width 16, batch 256; 3 rounds" in table.caption
    )


def test_the_newest_stands_and_a_damaged_one_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "micro-step-cpu-1.json", RECORD)
    write(tmp_path, "micro-step-cpu-2.json", {**RECORD, "created": "2026-02-02T03:04:05+00:00"})
    write(tmp_path, "micro-step-cpu-3.json", [])
    (table,), skipped = micro_tables(tmp_path)
    assert "2026-02-02" in table.caption
    assert len(skipped) == 1
    assert skipped[0].startswith("micro-step-cpu-3.json: expected a record of a measurement")


def test_no_folder_is_no_table(tmp_path: Path) -> None:
    assert micro_tables(tmp_path / "none") == ([], [])
