"""Tables and figures of measurements, by hand from small records of both versions."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from micro_factory import NEW, OLD, timing, write
from repository import ROOT

from bench.micro.records import efficiency, read_micro_records
from bench.micro.tables import micro_figures, micro_tables, points, roofline_figure, roofs
from bench.report.write import MICRO_BEGIN, MICRO_END, update_performance, write_report

COLLECTIVE: dict[str, Any] = {
    **NEW,
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


def test_medians_and_ranges_of_the_first_version(tmp_path: Path) -> None:
    write(tmp_path, "micro-step-cpu-1.json", OLD)
    (table,), skipped = micro_tables(tmp_path)
    assert skipped == []
    assert table.rows == (
        ("the step", "ours", "900", "800 to 1,000", "1.000", "1.00 to 1.00"),
        ("", "theirs", "500", "400 to 600", "2.000", "1.50 to 2.00"),
    )
    assert (
        "A CPU, 2 threads, torch 2.10.0; ResNet-9 of width 16, batch 256; 3 rounds" in table.caption
    )
    assert "Record micro-step-cpu-20260102T030405.json." in table.caption


def test_shares_of_the_roof_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "a.json", NEW)
    (record,), _ = read_micro_records(tmp_path)
    (group,) = record.results.values()
    ours = efficiency(group[0], group)
    assert ours is not None
    # 100 images/s of 1 GFLOP and 20 MB, against 125 GFLOP/s and 10 GB/s.
    assert (ours.flop_per_s, ours.matrix_share, ours.bandwidth_share) == (1e11, 0.8, 0.2)
    apart = efficiency(group[2], group)  # no roof was measured with its processes
    assert apart is not None
    assert (apart.matrix_share, apart.bandwidth_share) == (None, None)
    assert efficiency(group[3], group) is None


def test_the_second_version_has_two_tables(tmp_path: Path) -> None:
    write(tmp_path, "a.json", NEW)
    (speeds, shares), skipped = micro_tables(tmp_path)
    assert skipped == []
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


def test_all_reduces_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "a.json", COLLECTIVE)
    (table,), _ = micro_tables(tmp_path)
    # 2 x 3/4 x 4096 bytes in 2 ms; 4096 bytes in 1 us.
    gradient = ("4,096 (the gradient)", "fp32", "2,000.0", "1,000.0 to 3,000.0", "0.0031", "4.0960")
    assert table.rows[1] == gradient
    assert "n = 4" in table.caption


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {**NEW, "schema_version": 3},
        {**NEW, "machine": {"device_type": "cpu"}},
        {**NEW, "results": {"a": [timing("b", [])]}},
        {**NEW, "results": {"a": [timing("b", [0.0])]}},
        {**COLLECTIVE, "collective": {"ranks": 2}},
    ],
)
def test_a_damaged_record_is_counted_and_left_out(tmp_path: Path, damaged: object) -> None:
    write(tmp_path, "micro-step-cpu-1.json", OLD)
    write(tmp_path, "micro-step-cpu-3.json", damaged)
    tables, skipped = micro_tables(tmp_path)
    assert len(tables) == 1
    (reason,) = skipped
    assert "expected a" in reason
    assert micro_figures(tmp_path, tmp_path / "plots") == {}


def test_the_newest_of_each_width_stands(tmp_path: Path) -> None:
    write(tmp_path, "micro-step-cpu-1.json", OLD)
    write(tmp_path, "micro-step-cpu-2.json", {**OLD, "created": "2026-02-02T03:04:05+00:00"})
    write(tmp_path, "micro-step-cpu-3.json", {**OLD, "width": 64})
    (narrow, full), _ = micro_tables(tmp_path)
    assert "2026-02-02" in narrow.caption
    assert (narrow.name, full.name) == ("micro_step_cpu_width16", "micro_step_cpu_width64")


def test_no_folder_is_no_table(tmp_path: Path) -> None:
    assert micro_tables(tmp_path / "none") == ([], [])


def test_the_roofline_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "a.json", NEW)
    (record,), _ = read_micro_records(tmp_path)
    assert roofs(record) == {(1, 2): (1.25e11, 1e10)}
    group = "the step, batch 256"
    assert list(points(record)) == [
        (group, "ours, eager", 50.0, 1e11),
        (group, "torch", 50.0, 5e10),
        (group, "ours, a process a core", 50.0, 7e10),
    ]


def test_figures_are_whole_and_the_same_each_time(tmp_path: Path) -> None:
    write(tmp_path / "micro", "a.json", NEW)
    write(tmp_path / "micro", "b.json", COLLECTIVE)
    built = []
    for plots in (tmp_path / "one", tmp_path / "two"):
        figures = micro_figures(tmp_path / "micro", plots)
        paths = [path for pair in figures.values() for path in pair]
        assert sorted(path.name for path in paths) == [
            "collective-cpu-width16.png",
            "collective-cpu-width16.svg",
            "roofline-cpu-width16.png",
            "roofline-cpu-width16.svg",
        ]
        built.append([path.read_bytes() for path in paths])
        for path in paths:
            if path.suffix == ".svg":
                text = path.read_text(encoding="utf-8")
                assert ElementTree.fromstring(text).tag.endswith("svg")
                assert "<text" not in text
                assert "<dc:date>" not in text
    assert built[0] == built[1]


def test_a_record_without_a_roof_is_no_roofline(tmp_path: Path) -> None:
    write(tmp_path, "a.json", OLD)
    (record,), _ = read_micro_records(tmp_path)
    with pytest.raises(ValueError, match="expected ways with a counted cost"):
        roofline_figure(record, tmp_path / "plots")


def test_the_report_and_the_page_hold_them(tmp_path: Path) -> None:
    write(tmp_path / "results" / "micro", "a.json", NEW)
    batches = [timing("ours, tensor", [90.0]), timing("theirs", [30.0], ratios=[3.0])]
    data = {**NEW, "what": "data", "results": {"augmented batches, 2 threads": batches}}
    write(tmp_path / "results" / "micro", "b.json", data)
    results, page = tmp_path / "results", tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    page.write_text(f"# Top\n\n{MICRO_BEGIN}\nold\n{MICRO_END}\nBottom\n", encoding="utf-8")
    text = write_report(results).read_text(encoding="utf-8")
    assert "plots/roofline-cpu-width16.svg" in text
    assert "ours, a process a core" in text
    assert (results / "tables" / "micro_speed.md").read_text(encoding="utf-8") in text
    assert "3.00 (3.00 to 3.00)" in text
    update_performance(page, results)
    once = page.read_text(encoding="utf-8")
    assert once.startswith(f"# Top\n\n{MICRO_BEGIN}\n")
    assert once.endswith(f"{MICRO_END}\nBottom\n")
    assert "(../results/plots/roofline-cpu-width16.svg)" in once
    assert "micro-step-cpu-20260302T030405.json" in once
    update_performance(page, results)
    assert page.read_text(encoding="utf-8") == once
    for name in ("a.json", "b.json"):
        (results / "micro" / name).unlink()
    write_report(results)
    assert not (results / "tables" / "micro_speed.md").exists()
    assert not list((results / "plots").glob("roofline*"))
    update_performance(page, results)
    assert "No measurement has been recorded yet." in page.read_text(encoding="utf-8")


def test_a_page_without_its_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Top\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"performance\.md: expected one line"):
        update_performance(page, tmp_path)
    assert page.read_text(encoding="utf-8") == "# Top\n"


def test_tables_and_figures_need_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "micro", "a.json", NEW)
    write(tmp_path / "micro", "b.json", COLLECTIVE)
    script = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'nvidia'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from bench.micro.tables import micro_figures, micro_tables\n"
        "folder = Path(sys.argv[1])\n"
        "print(len(micro_tables(folder / 'micro')[0]))\n"
        "print(len(micro_figures(folder / 'micro', folder / 'plots')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["3", "2"]), done.stderr
