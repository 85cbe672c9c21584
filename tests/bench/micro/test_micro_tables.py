"""Tables and figures of measurements, by hand from small records."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from micro_factory import MICRO, timing, write
from repository import ROOT

from bench.micro.records import peak_shares, read_micro_records
from bench.micro.tables import (
    intensities,
    measured_bounds,
    micro_figures,
    micro_tables,
    roofline_figure,
)
from bench.report.content import collect
from bench.report.write import MICRO_BEGIN, MICRO_END, update_performance, write_report

COLLECTIVE: dict[str, Any] = {
    **MICRO,
    "what": "collective",
    "results": {},
    "collective": {
        "backend": "gloo",
        "ranks": 4,
        "threads": 1,
        "left_out": [],
        "rows": [
            {
                "bytes": size,
                "precision": precision,
                "gradient": size == 4096,
                "all_reduce_s": [1e-3, 2e-3, 3e-3],
                "copy_s": [1e-6],
            }
            for precision in ("fp32", "fp16")
            for size in (1024, 4096)
        ],
    },
}


def test_shares_of_the_peak_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "a.json", MICRO)
    (record,), _ = read_micro_records(tmp_path)
    (group,) = record.results.values()
    ours = peak_shares(group[0], group)
    assert ours is not None
    # 100 images/s of 1 GFLOP and 20 MB, against 125 GFLOP/s and 10 GB/s.
    assert (ours.flop_per_s, ours.matrix_share, ours.bandwidth_share) == (1e11, 0.8, 0.2)
    apart = peak_shares(group[2], group)  # no peak was measured with its processes
    assert apart is not None
    assert (apart.matrix_share, apart.bandwidth_share) == (None, None)
    assert peak_shares(group[3], group) is None


def test_speeds_and_shares_are_two_tables(tmp_path: Path) -> None:
    write(tmp_path, "a.json", MICRO)
    records, skipped = read_micro_records(tmp_path)
    speeds, shares = micro_tables(records)
    assert skipped == []
    assert speeds.rows[:2] == (
        ("the step, batch 256", "ours, eager", "100", "90 to 110", "1.000", "1.00 to 1.00"),
        ("", "torch", "50", "50 to 50", "2.000", "1.80 to 2.20"),
    )
    where = "A CPU, 2 threads, torch 2.10.0; ResNet-9 of width 16, batch 256; 3 rounds"
    assert where in speeds.caption
    assert "Record micro-step-cpu-20260302T030405.json." in speeds.caption
    assert [row[1] for row in speeds.rows] == ["ours, eager", "torch", "ours, a process a core"]
    assert speeds.footnotes == ("A note.",)
    assert shares.name == "micro_step_cpu_width16_efficiency"
    assert shares.rows[0] == (
        "the step, batch 256",
        "ours, eager",
        "0.100",
        "80.0",
        "2.0",
        "20.0",
        "1,234 operators",
        "1.50",
        "2.00",
    )
    assert shares.rows[2][3] == "—"
    assert shares.rows[3][1:5] == ("roof: product, 1 x 2 threads", "0.125", "—", "—")
    assert shares.rows[4][1:5] == ("roof: copy, 1 x 2 threads", "—", "—", "10.0")


def test_a_group_is_named_with_its_net_or_its_batch(tmp_path: Path) -> None:
    write(tmp_path, "micro-step-cpu-1.json", MICRO)
    write(tmp_path, "micro-jpeg-cpu-2.json", {**MICRO, "what": "jpeg", "batch_size": 64})
    write(tmp_path, "micro-step-cpu-3.json", {**MICRO, "net": "speed_net", "precision": "bf16"})
    named = [record.work("title") for record in read_micro_records(tmp_path)[0]]
    assert sorted(named) == [
        "title, ResNet-9 of width 16",
        "title, SpeedNet of width 16, bf16",
        "title, batch 64",
    ]


def test_all_reduces_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "a.json", COLLECTIVE)
    (table,) = micro_tables(read_micro_records(tmp_path)[0])
    # 2 x 3/4 x 4096 bytes in 2 ms; 4096 bytes in 1 us.
    gradient = ("4,096 (the gradient)", "fp32", "2,000.0", "1,000.0 to 3,000.0", "0.0031", "4.0960")
    assert table.rows[1] == gradient
    assert "n = 4" in table.caption


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {**MICRO, "schema_version": 2},
        {**MICRO, "results": {}},
        {**MICRO, "results": {"a": []}},
        {**MICRO, "what": "weather"},
        {**MICRO, "results": {"a": [timing("b", [1.0], ratios=[])]}},
        {**MICRO, "results": {"a": [timing("b", [1.0], cost={"flop": 0, "bytes": 1})]}},
        {**MICRO, "machine": {"device_type": "cpu"}},
        {**MICRO, "results": {"a": [timing("b", [])]}},
        {**MICRO, "results": {"a": [timing("b", [0.0])]}},
        {**COLLECTIVE, "collective": {"ranks": 2}},
    ],
)
def test_a_damaged_record_is_counted_and_left_out(tmp_path: Path, damaged: object) -> None:
    write(tmp_path, "micro-step-cpu-1.json", MICRO)
    write(tmp_path, "micro-step-cpu-3.json", damaged)
    records, (reason,) = read_micro_records(tmp_path)
    assert len(records) == 1
    assert reason.startswith("micro-step-cpu-3.json: ")
    assert "\n" not in reason


def test_the_newest_of_each_width_stands(tmp_path: Path) -> None:
    write(tmp_path, "micro-step-cpu-1.json", MICRO)
    write(tmp_path, "micro-step-cpu-2.json", {**MICRO, "created": "2026-04-02T03:04:05+00:00"})
    write(tmp_path, "micro-step-cpu-3.json", {**MICRO, "width": 64})
    (narrow, full), _ = read_micro_records(tmp_path)
    assert narrow.created.startswith("2026-04-02")
    assert (narrow.name, full.name) == ("micro_step_cpu_width16", "micro_step_cpu_width64")
    assert read_micro_records(tmp_path / "none") == ([], [])


def test_the_roofline_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "a.json", MICRO)
    (record,), _ = read_micro_records(tmp_path)
    assert measured_bounds(record) == {(1, 2): (1.25e11, 1e10)}
    assert [(variant.name, *place) for variant, *place in intensities(record)] == [
        ("ours, eager", 50.0, 1e11),
        ("torch", 50.0, 5e10),
        ("ours, a process a core", 50.0, 7e10),
    ]


def test_figures_are_whole_and_the_same_each_time(tmp_path: Path) -> None:
    write(tmp_path / "micro", "a.json", MICRO)
    write(tmp_path / "micro", "b.json", COLLECTIVE)
    built = []
    for plots in (tmp_path / "one", tmp_path / "two"):
        figures = micro_figures(read_micro_records(tmp_path / "micro")[0], plots)
        names = ["collective-cpu-width16.svg", "roofline-cpu-width16.svg"]
        assert sorted(path.name for path in figures.values()) == names
        texts = [path.read_text(encoding="utf-8") for path in figures.values()]
        built.append(texts)
        for text in texts:
            assert ElementTree.fromstring(text).tag.endswith("svg")
            assert "<text" not in text
            assert "<dc:date>" not in text
    assert built[0] == built[1]


def test_a_record_without_a_bound_is_no_roofline(tmp_path: Path) -> None:
    variants = [timing("ours", [90.0, 100.0]), timing("theirs", [50.0, 50.0])]
    write(tmp_path, "a.json", {**MICRO, "results": {"the step": variants}})
    (record,), _ = read_micro_records(tmp_path)
    with pytest.raises(ValueError, match="expected variants with a counted cost"):
        roofline_figure(record, tmp_path / "plots")


def test_the_report_and_the_page_hold_them(tmp_path: Path) -> None:
    write(tmp_path / "results" / "micro", "a.json", MICRO)
    batches = [
        timing("ours, tensor", [90.0]),
        timing("theirs", [30.0], ratios=[3.0], is_headline=True),
    ]
    data = {**MICRO, "what": "data", "results": {"augmented batches, 2 threads": batches}}
    write(tmp_path / "results" / "micro", "b.json", data)
    results, page = tmp_path / "results", tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    page.write_text(f"# Top\n\n{MICRO_BEGIN}\nold\n{MICRO_END}\nBottom\n", encoding="utf-8")
    text = write_report(collect(results), appendix=True).read_text(encoding="utf-8")
    appendix = (results / "appendix.md").read_text(encoding="utf-8")
    assert "plots/roofline-cpu-width16.svg" in appendix
    assert "ours, a process a core" in appendix
    assert (results / "tables" / "micro_speed.md").read_text(encoding="utf-8") in text
    assert "3.00 (3.00 to 3.00)" in text
    update_performance(page, collect(results))
    once = page.read_text(encoding="utf-8")
    assert once.startswith(f"# Top\n\n{MICRO_BEGIN}\n")
    assert once.endswith(f"{MICRO_END}\nBottom\n")
    assert "(../results/plots/roofline-cpu-width16.svg)" in once
    assert "micro-step-cpu-20260302T030405.json" in once
    update_performance(page, collect(results))
    assert page.read_text(encoding="utf-8") == once
    for name in ("a.json", "b.json"):
        (results / "micro" / name).unlink()
    write_report(collect(results))
    assert not (results / "tables" / "micro_speed.md").exists()
    assert not list((results / "plots").glob("roofline*"))
    update_performance(page, collect(results))
    assert "No measurement has been recorded yet." in page.read_text(encoding="utf-8")


def test_a_page_without_its_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Top\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"performance\.md: expected one line"):
        update_performance(page, collect(tmp_path))
    assert page.read_text(encoding="utf-8") == "# Top\n"


def test_tables_and_figures_need_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "micro", "a.json", MICRO)
    write(tmp_path / "micro", "b.json", COLLECTIVE)
    script = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'nvidia'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from bench.micro.records import read_micro_records\n"
        "from bench.micro.tables import micro_figures, micro_tables\n"
        "folder = Path(sys.argv[1])\n"
        "records, _ = read_micro_records(folder / 'micro')\n"
        "print(len(micro_tables(records)))\n"
        "print(len(micro_figures(records, folder / 'plots')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["3", "2"]), done.stderr
