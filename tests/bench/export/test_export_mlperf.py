"""MLPerf logs, held against mlperf-logging's own checker with the rules of 4.0.0."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from mlperf_logging.compliance_checker import mlp_compliance, mlp_parser
from mlperf_logging.mllog import mllog
from record_factory import IMAGENET, V100, make_record
from repository import ROOT

from bench.cli import main
from bench.export.options import MlperfOptions
from bench.export.submissions import mlperf_log
from swap_fast.record import RunRecord
from swap_fast.record_files import read_record, write_record

RUNS = ROOT / "results" / "runs"
# Trees of 10,000 small images and narrow nets: the log's form is MLPerf's, its figures are not.
SMALL_RESNET50S = sorted(RUNS.glob("imagenet_*_cpu-seed0-*.json"))
CIFARS = sorted(RUNS.glob("cifar*seed0-*.json"))
OPTIONS = MlperfOptions(org="An Org")
RULESET, COMMON = "4.0.0", "training_4.0.0/common.yaml"


def _checker() -> mlp_compliance.ComplianceChecker:
    return mlp_compliance.make_checker("training", RULESET, quiet=False, werror=True)


def _passes(log: str, folder: Path) -> bool:
    path = folder / "result_0.txt"
    path.write_text(log, encoding="utf-8")
    return bool(_checker().check_file(str(path), COMMON))


def _lines(log: str) -> list[dict[str, Any]]:
    token = ":::MLLOG "
    return [json.loads(line[len(token) :]) for line in log.splitlines() if line.startswith(token)]


def _only(lines: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    (line,) = (line for line in lines if line["key"] == key)
    return line


def _resnet50(**changed: Any) -> RunRecord:
    values = {"machine": V100, "world_size": 8, "data": IMAGENET, "test_accuracy": 0.765, **changed}
    return make_record("imagenet_swap", **values)


def _shared(record: RunRecord, ranks: int) -> RunRecord:
    """The record with as many ranks, all with the same laps."""
    times = replace(record.times, laps_by_rank=record.times.laps_by_rank * ranks)
    return replace(record, times=times, world_size=ranks)


def test_a_resnet50_of_the_papers_size_passes_the_checker(tmp_path: Path) -> None:
    log = mlperf_log(_resnet50(), OPTIONS)
    assert _passes(log, tmp_path)
    assert _only(_lines(log), "run_stop")["metadata"]["status"] == "success"
    aborted = mlperf_log(_resnet50(test_accuracy=0.758), OPTIONS)
    assert _only(_lines(aborted), "run_stop")["metadata"]["status"] == "aborted"


@pytest.mark.parametrize("path", SMALL_RESNET50S, ids=lambda path: path.stem)
def test_a_measured_resnet50_passes_the_checker_and_says_unofficial(
    path: Path, tmp_path: Path
) -> None:
    log = mlperf_log(read_record(path), OPTIONS)
    assert _passes(log, tmp_path)
    assert "unofficial: 10000 training and 2000 test images, which are not the published" in log
    assert (
        "resnet50 of width 8, not the paper's net or epochs"
        in _only(_lines(log), "unofficial")["value"]
    )


@pytest.mark.parametrize(
    "key", ["run_stop", "run_start", "init_stop", "submission_org", "eval_accuracy", "cache_clear"]
)
def test_the_checker_finds_a_line_that_is_missing(key: str, tmp_path: Path) -> None:
    log = mlperf_log(_resnet50(), OPTIONS)
    kept = [line for line in log.splitlines() if f'"key": "{key}"' not in line]
    assert len(kept) < len(log.splitlines())
    assert not _passes("\n".join(kept), tmp_path)


@pytest.mark.parametrize("path", CIFARS, ids=lambda path: path.stem)
def test_a_cifar_log_has_the_same_grammar_and_no_benchmarks_name(
    path: Path, tmp_path: Path
) -> None:
    log = mlperf_log(read_record(path), OPTIONS)
    written = tmp_path / "log"
    written.write_text(log, encoding="utf-8")
    lines, errors = mlp_parser.parse_file(str(written), ruleset=RULESET)
    assert errors == []
    rules = Path(mlp_compliance.__file__).parent
    checker = _checker()
    checker.configured_checks(lines, str(rules / COMMON))
    assert not checker.has_messages()
    # The one thing that a checker of MLPerf's benchmarks must refuse.
    checker.configured_checks(lines, str(rules / "training_4.0.0" / "open_common.yaml"))
    assert checker.not_overwritable == []
    assert list(checker.overwritable) == ["submission_benchmark"]
    mlp_compliance.enqueued_configs.clear()  # the rules of a benchmark that is none
    value = _only(_lines(log), "submission_benchmark")["value"]
    assert value == f"unofficial_{path.name.split('_')[0]}"
    assert f"{path.name.split('_')[0]} is no benchmark of MLPerf" in log


def test_times_are_the_runs_counted_by_hand() -> None:
    # The run was recorded when 2 s of loading were over. Of 10 s of tests and 0.5 of checkpoints,
    # each of 5 + 8 epochs and the average has 0.75 s.
    lines = _lines(mlperf_log(make_record("cifar10_cpu"), OPTIONS))
    start_ms = _only(lines, "run_start")["time_ms"]
    assert start_ms == 1000 * datetime.fromisoformat("2026-11-22T11:59:58+00:00").timestamp()
    assert _only(lines, "init_start")["time_ms"] == start_ms - 3000  # the imports
    assert _only(lines, "run_stop")["time_ms"] == start_ms + 110_500  # MLPerf's reading

    def seconds(key: str, namespace: str = "") -> list[float]:
        return [
            (line["time_ms"] - start_ms) / 1000
            for line in lines
            if line["key"] == key and line["namespace"] == namespace
        ]

    ends = [2 + 1.5 + 12 * (k + 1) + 0.75 * k for k in range(5)]
    assert seconds("epoch_stop") == pytest.approx(ends, abs=2e-3)
    assert seconds("epoch_start") == pytest.approx(
        [3.5, *(end + 0.75 for end in ends[:4])], abs=2e-3
    )
    assert seconds("block_start") == pytest.approx([3.5, ends[4] + 0.75], abs=2e-3)
    # Worker 1 in turn after worker 0: the seventh and eighth epoch of the rank's thirteen.
    after = [2 + 1.5 + 60 + 8 + 4 * epoch for epoch in (1, 2)]
    assert seconds("epoch_stop", "worker1") == pytest.approx(
        [after[0] + 7 * 0.75, after[1] + 8 * 0.75], abs=2e-3
    )
    assert seconds("eval_accuracy")[-1] == pytest.approx(110.5)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_intervals_nest_and_stay_within_the_run(ranks: int) -> None:
    _check_order(_lines(mlperf_log(_shared(make_record("cifar10_cpu"), ranks), OPTIONS)))


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.json")), ids=lambda path: path.stem)
def test_intervals_of_every_measured_run_nest(path: Path) -> None:
    record = read_record(path)
    lines = _lines(mlperf_log(record, OPTIONS))
    _check_order(lines)
    took_ms = _only(lines, "run_stop")["time_ms"] - _only(lines, "run_start")["time_ms"]
    assert took_ms == pytest.approx(1000 * record.times.readings_s["mlperf"], abs=1.1)
    tested = [line["value"] for line in lines if line["key"] == "eval_accuracy"]
    expected = [row.test_accuracy for row in record.epochs]
    expected += [] if record.method == "sgd" else [record.test_accuracy]
    assert sorted(tested) == sorted(expected)


def _check_order(lines: Sequence[dict[str, Any]]) -> None:
    times = [line["time_ms"] for line in lines]
    assert times == sorted(times)
    keys = [line["key"] for line in lines]
    assert keys.index("init_stop") < keys.index("run_start") < keys.index("block_start")
    assert keys[-1] == "run_stop"
    is_open: set[tuple[str, str]] = set()
    for line in lines:
        name = (line["namespace"], line["key"].removesuffix("_start").removesuffix("_stop"))
        if line["event_type"] == "INTERVAL_START":
            assert name not in is_open, line
            is_open.add(name)
        elif line["event_type"] == "INTERVAL_END":
            assert name in is_open, line
            is_open.remove(name)
        if line["key"] == "epoch_start":
            assert ("", "block") in is_open
    assert is_open == set()


def test_lines_are_those_that_mllog_writes() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.Logger("mllog of a test")
    logger.addHandler(handler)
    writer = mllog.MLLogger(logger)
    write = {"INTERVAL_START": writer.start, "INTERVAL_END": writer.end}
    lines = _lines(mlperf_log(_resnet50(), OPTIONS))
    for line in lines:
        write.get(line["event_type"], writer.event)(
            line["key"],
            line["value"],
            metadata=line["metadata"],
            namespace=line["namespace"],
            time_ms=line["time_ms"],
        )
    theirs = _lines("\n".join(said))
    for line in theirs:  # where in the program it was called, which a run that is over has not
        del line["metadata"]["file"], line["metadata"]["lineno"]
    assert theirs == lines


def test_a_runs_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = write_record(_resnet50(), tmp_path / "runs")
    hostile = json.loads(path.read_text()) | {"run_id": "../../x & <y>"}
    path.write_text(json.dumps(hostile))
    assert main(["export", "mlperf", str(path), "--results", str(tmp_path)]) == 0
    (log,) = (tmp_path / "exports" / "mlperf").iterdir()
    assert log.name == "..-..-x----y-.log"


def test_the_command_writes_one_log_where_it_is_told(tmp_path: Path) -> None:
    path = write_record(_resnet50(), tmp_path / "runs")
    out = tmp_path / "here.log"
    assert main(["export", "mlperf", str(path), "-o", str(out), "--org", "We"]) == 0
    assert _only(_lines(out.read_text()), "submission_org")["value"] == "We"
