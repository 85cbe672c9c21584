"""A report of a whole results folder: what it holds, what it leaves out, and its sameness."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from record_factory import V100, cpu_runs, make_record, make_telemetry, write_results
from repository import ROOT
from rich.console import Console

from bench.document import Table
from bench.report.content import collect
from bench.report.write import (
    BEGIN,
    END,
    MOST_LISTED,
    notes_once,
    print_summary,
    update_readme,
    write_report,
)

HOSTILE = "<script>|_%&$\\"


SCALED = ("scaling_cifar10_swap", "scaling_imagenet_swap")
DRAWN_ALWAYS = ("figure5", "figure6", *SCALED)
"""From the recipes alone."""


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "runs"
    }


def _report(results: Path) -> str:
    """The text of report.md, made from the folder."""
    return write_report(collect(results)).read_text(encoding="utf-8")


def test_the_run_for_time_to_an_accuracy_is_among_the_first_lines(tmp_path: Path) -> None:
    runs = [make_record("cifar10_dawnbench", seed) for seed in (0, 1)]
    first = _report(write_results(tmp_path, [*cpu_runs(), *runs])).split("**SWAP and")[0]
    (line,) = (line for line in first.splitlines() if "27 seconds" in line)
    gain = [run.test_accuracy - (run.accuracy_before_averaging or 0.0) for run in runs]
    assert "(ResNet-9 of width 64): SWAP 81.05 ± 0.07% (n = 2)" in line
    assert f"Averaging added {100 * sum(gain) / 2:.2f} " in line


def test_report_of_cpu_runs(tmp_path: Path) -> None:
    path = write_report(collect(write_results(tmp_path, cpu_runs())), appendix=True)
    assert path == tmp_path / "report.md"
    text = path.read_text(encoding="utf-8")
    appendix = (tmp_path / "appendix.md").read_text(encoding="utf-8")
    title, _, first = text.splitlines()[:3]
    assert title == "# Results"
    assert first.startswith(
        "**No GPU was used: the runs are on 2 CPU cores. All runs are of smaller"
    )
    assert "From 6 records by" in text
    assert "## Records left out: 0" in text
    links = re.findall(r"\]\(((?:plots|tables)/[^)]*)\)", text + appendix)
    assert links
    assert all((tmp_path / link).is_file() for link in links)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}.svg" for name in ("figure1-cifar10_cpu-machine1", "timing-machine1", *DRAWN_ALWAYS)
    }
    names = ("table1_cpu_machine1", "time_to_target", "runs", "other_runs", "timing", "laps",
             "machines", "statistics_table1_cpu_machine1", "claims",
             "pairs_table1_cpu_machine1", "stability",
             "table5", "table6", "plan_27_seconds", "plan_check_paper", *SCALED)  # fmt: skip
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.{ending}" for name in names for ending in ("md", "csv")
    }
    whole = (tmp_path / "tables/table1_cpu_machine1.md").read_text(encoding="utf-8")
    assert "| Paper: GPUs" in whole
    # In the report what all rows have alike is in the caption; before the first heading.
    first_table = text.partition("**Table 1 at CPU size, machine 1**")[2].partition("\n## ")[0]
    assert "Phase 1 (mean epochs): 5.0." in first_table
    assert "| Phase 1" not in first_table
    assert "Verdict" not in first_table  # nothing is compared with the paper's
    assert "![Figure 1: " in text.partition("**Table 1 at CPU size, machine 1**")[0]
    assert "27 s of 37 s are 73%" in text
    assert "- Measured: 6 runs of 3 recipes on cifar10 (published); machine 1: " in text
    assert "| Table 1 at CPU size, machine 1 | 81.05 ± 0.07 | 76.05 ± 0.07 | 5.00 | 1.59 |" in text
    assert "- Stability: 3 warnings, in tables/stability.md." in text
    # 0.5 s of 120.75 and 121.75 s
    took = "Checkpoints of cifar10\\_cpu took 0.41% of the wall clock, 0.41% at most (n = 2)."
    assert took in appendix
    assert "recipe.phase1.global\\_batch\\_size" in appendix


def test_first_looks_give_way_to_runs_at_another_size(tmp_path: Path) -> None:
    nearer = [make_record("cifar10_narrow", seed) for seed in (0, 1)]
    results = write_results(tmp_path, [*cpu_runs(), *nearer])
    content = collect(results)
    assert [table.name for table in content.main][:1] == ["table1_narrow_machine1"]
    assert [table.name for table in content.first_looks] == ["table1_cpu_machine1"]
    text = write_report(content, appendix=True).read_text(encoding="utf-8")
    appendix = (results / "appendix.md").read_text(encoding="utf-8")
    assert "**Table 1 at width 16, machine 1**" in text
    assert "**Table 1 at CPU size, machine 1**" not in text
    assert "Table 1 at CPU size, 2 CPU" not in text
    first_looks = appendix.partition("## First looks: at CPU size")[2].partition("\n## ")[0]
    assert "**Table 1 at CPU size, machine 1**" in first_looks
    assert (results / "tables/table1_cpu_machine1.md").is_file()


def test_a_note_stands_once_on_a_page_but_marks_with_each_table() -> None:
    one = Table(
        name="one", title="", caption="", columns=("a",), rows=(("1†",),), footnotes=("n", "† m")
    )
    two = replace(one, name="two", footnotes=("n", "† m", "p"))
    last = replace(one, name="last", footnotes=("q",))
    assert [table.footnotes for table in notes_once([one, two, last])] == [
        ("n", "† m"),
        ("† m", "p", "Further notes: as under the tables above."),
        ("q",),
    ]


def test_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    records = cpu_runs()
    one = write_results(tmp_path / "one", records)
    two = write_results(tmp_path / "two", records[::-1])
    write_report(collect(one))
    write_report(collect(two))
    first = _tree(one)
    assert first == _tree(two)
    write_report(collect(one))
    assert first == _tree(one)


def test_what_an_earlier_report_left_is_removed(tmp_path: Path) -> None:
    results = write_results(tmp_path, [make_record("cifar10_quick")])
    write_report(collect(results))
    (results / "plots" / "mine.svg").touch()
    assert (results / "plots/figure1-cifar10_quick-machine1-other.svg").exists()
    (results / "runs").joinpath(f"{make_record('cifar10_quick').run_id}.json").unlink()
    write_report(collect(results))
    assert {path.name for path in (results / "plots").iterdir()} == {
        "mine.svg",
        *(f"{name}.svg" for name in DRAWN_ALWAYS),
    }


def test_records_that_cannot_be_used_are_left_out_with_a_count(tmp_path: Path) -> None:
    results = write_results(tmp_path, cpu_runs())
    runs = results / "runs"
    whole = asdict(make_record(seed=7))
    (runs / "half.json").write_text(json.dumps(whole)[:300], encoding="utf-8")
    (runs / "later.json").write_text(json.dumps({**whole, "schema_version": 99}), encoding="utf-8")
    (runs / "hollow.json").write_text(json.dumps({**whole, "configuration": {}}), encoding="utf-8")
    (runs / "list.json").write_text("[1, 2]", encoding="utf-8")
    (runs / "twin.json").write_text(json.dumps(asdict(cpu_runs()[0])), encoding="utf-8")
    text = _report(results)
    assert "From 6 records by" in text
    left_out = text.partition("## Records left out: 5\n")[2]
    for part in ("half.json", "got 99", "hollow.json", "got None", "got another"):
        assert left_out.count(part) == 1, part


def test_energy_is_shown_where_there_is_any(tmp_path: Path) -> None:
    watched = make_record("cifar10_swap", machine=V100, telemetry=[make_telemetry()])
    results = write_results(tmp_path, [watched, make_record()])
    write_report(collect(results), appendix=True)
    table = (results / "tables/energy.md").read_text(encoding="utf-8")
    assert table in (results / "appendix.md").read_text(encoding="utf-8")
    assert "cifar10\\_cpu-seed0" not in table
    (results / "runs" / f"{watched.run_id}.json").unlink()
    write_report(collect(results), appendix=True)
    assert "Energy" not in (results / "appendix.md").read_text(encoding="utf-8")
    assert not list((results / "tables").glob("energy.*"))


def test_report_without_records(tmp_path: Path) -> None:
    text = _report(tmp_path)
    assert text.splitlines()[2] == "**There are no runs yet.**"


def test_report_of_runs_that_are_compared_with_nothing(tmp_path: Path) -> None:
    synthetic = replace(make_record(), data={**make_record().data, "kind": "synthetic"})
    text = _report(write_results(tmp_path, [synthetic]))
    first = text.splitlines()[2]
    assert "No run here can be compared with published figures" in first
    assert "Not the paper's hardware or net: cifar10\\_cpu." in first
    assert "Table 1 at CPU size" not in text
    assert "**Other runs**" in text
    assert "synthetic data" in text


def test_first_line_says_where_the_hardware_is_not_the_papers(tmp_path: Path) -> None:
    other = {**V100, "device": "NVIDIA H200", "device_count": 1}
    first = []
    for name, machine in (("v100", V100), ("h200", other)):
        record = make_record("cifar10_swap", machine=machine)
        first.append(_report(write_results(tmp_path / name, [record])).splitlines()[2])
    assert first == [
        "**On the paper's hardware.**",
        "**Not the paper's hardware, NVIDIA Tesla V100: 1 NVIDIA H200.**",
    ]


def test_limits_written_by_hand_are_in_the_report(tmp_path: Path) -> None:
    results = write_results(tmp_path, cpu_runs())
    assert "## Limits" not in _report(results)
    (results / "limits.md").write_text("Words before.\n\n- One,\n  two.\n- Three.\n")
    assert "## Limits\n\n- One, two.\n- Three.\n" in _report(results)


def test_figure_1_is_of_the_lowest_seed(tmp_path: Path) -> None:
    results = write_results(tmp_path, [make_record(seed=seed) for seed in (1, 0)])
    own = results / "plots" / f"figure1-{make_record().run_id}.svg"  # of `bench figure 1`
    own.parent.mkdir()
    own.write_text("")
    text = _report(results)
    ((alt, caption),) = re.findall(r"!\[(Figure 1: .*)\]\(.*\)\n\n(Figure 1: .*)\.", text)
    assert alt == caption
    assert r"79.00 to 79.60%, on average 79.30%; their average at 81.00%. cifar10\_cpu-seed0" in alt
    assert own.is_file()


def test_hostile_names_stay_text_and_in_the_folder(tmp_path: Path) -> None:
    results = tmp_path / "results"
    (results / "runs").mkdir(parents=True)
    record = replace(make_record(), run_id=f"../../x{HOSTILE}", recipe=f"../x{HOSTILE}")
    content = json.dumps(asdict(record))
    (results / "runs" / "odd.json").write_text(content, encoding="utf-8")
    write_report(collect(results))
    for path, text in _tree(results).items():
        if path.endswith(".md"):
            assert b"<script" not in text, path
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    print_summary(collect(results), Console(file=io.StringIO(), width=80))


def test_report_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = _report(write_results(tmp_path, cpu_runs()))
    assert "matplotlib is not installed" in text
    assert "Table 1 at CPU size" in text
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("width", [80, 160])
def test_summary_fits_the_screen(tmp_path: Path, width: int) -> None:
    screen = io.StringIO()
    results = write_results(tmp_path, cpu_runs())
    print_summary(collect(results), Console(file=screen, width=width))
    text = screen.getvalue()
    assert text.startswith("No GPU was used")
    assert max(map(len, text.splitlines())) <= width
    words = ("(small-batch)", "averaging)", "accuracy", "modelled", "measured")
    assert all(word in text for word in words)
    assert "emulated_workers" in text
    assert "…" not in text


def test_summary_of_other_runs_alone(tmp_path: Path) -> None:
    screen = io.StringIO()
    results = write_results(tmp_path, [make_record("cifar10_quick")])
    print_summary(collect(results), Console(file=screen, width=80))
    assert "Other runs" in screen.getvalue()
    assert "stopping_accuracy" not in screen.getvalue()  # a narrow screen has fewer columns
    assert "the paper has no" in screen.getvalue().partition("Why")[2]


def test_readme_changes_between_its_markers_alone(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", cpu_runs())
    readme = tmp_path / "README.md"
    readme.write_bytes(f"# Top\r\n\n{BEGIN}\nold\n{END}\n\nBottom\n".encode())
    update_readme(readme, collect(results))
    once = readme.read_bytes()
    assert once.startswith(b"# Top\r\n\n" + BEGIN.encode())
    assert once.endswith(END.encode() + b"\n\nBottom\n")
    assert b"old" not in once
    assert b"81.05 \xc2\xb1 0.07" in once  # seeds 0 and 1: 81.0 and 81.1%
    assert b"Not the paper's hardware, net or epochs" in once
    assert b"(results/report.md)" in once
    update_readme(readme, collect(results))
    assert readme.read_bytes() == once


def test_readme_has_each_form_of_the_first_table(tmp_path: Path) -> None:
    runs = [make_record("cifar10_narrow"), make_record("cifar10_speed"), *cpu_runs()]
    results, readme = write_results(tmp_path / "results", runs), tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    update_readme(readme, collect(results))
    titles = re.findall(r"(?m)^\*\*(Table .*)\*\*$", readme.read_text(encoding="utf-8"))
    assert titles == ["Table 1 at width 16, machine 1", "Table 1 on a modern base, machine 1"]


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_readme_without_its_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md: expected one line"):
        update_readme(readme, collect(tmp_path))
    assert readme.read_text(encoding="utf-8") == text


def test_report_is_built_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    write_results(tmp_path, cpu_runs())
    script = (
        "import sys\n"
        # As if not installed: None in sys.modules would be taken for a module by scipy.
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'torchvision', 'nvidia'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pathlib import Path\n"
        "from bench.report.content import collect\n"
        "from bench.report.write import write_report\n"
        "from bench.report.write import print_summary\n"
        "assert 'matplotlib' not in sys.modules and 'rich' not in sys.modules\n"
        "results = Path(sys.argv[1])\n"
        "print(write_report(collect(results)).name)\n"
        "print_summary(collect(results))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("report.md\n")


def test_many_runs_are_listed_in_the_appendix(tmp_path: Path) -> None:
    results = write_results(tmp_path, [make_record(seed=seed) for seed in range(MOST_LISTED + 1)])
    text = write_report(collect(results), appendix=True).read_text(encoding="utf-8")
    appendix = (results / "appendix.md").read_text(encoding="utf-8")
    row = "| cifar10\\_cpu-seed7-20261122120000 "
    assert row not in text
    assert row in appendix
    assert f"All {MOST_LISTED + 1} runs are in tables/runs.md and .csv." in text
    assert "cifar10_cpu-seed7" in (results / "tables/runs.csv").read_text(encoding="utf-8")
