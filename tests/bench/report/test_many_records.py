"""A report of 10,000 records stays within a minute and 300 MB: run with `pytest -m soak`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from record_factory import make_record

RECIPES = ("cifar10_cpu", "cifar10_sgd_small_cpu", "cifar10_sgd_large_cpu", "cifar100_swap_cpu")
MOST_S, MOST_MB = 60.0, 300.0


@pytest.mark.soak
def test_a_report_of_10_000_records_takes_a_minute_and_300_mb(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for recipe in RECIPES:
        records = [asdict(make_record(recipe, seed)) for seed in range(100)]
        for seed in range(2_500):
            changed = {"run_id": f"{recipe}-seed{seed}-20261122120000", "seed": seed}
            text = json.dumps(records[seed % 100] | changed, indent=1)
            (runs / f"{changed['run_id']}.json").write_text(text)
    # Its own peak: the system's figure for children is of the largest, whatever it was.
    code = (
        "import sys; from bench.cli import main; from bench.hardware.machine import peak_memory_gib"
        "; assert main(['report', '--results', sys.argv[1]]) == 0; print(peak_memory_gib())"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    taken_s = time.monotonic() - began
    peak_mb = 1024 * float(done.stdout.split()[-1])
    print(f"{taken_s:.1f} s, {peak_mb:.0f} MB")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "From 10000 records by" in text
    assert taken_s < MOST_S
    assert peak_mb < MOST_MB
