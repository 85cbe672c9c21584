"""`verify-gpu`: every check's CPU form, its record, and the README's list of what it confirms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import verify
from bench.check import Check, UnavailableError
from bench.cli import main
from bench.contract import growth
from bench.verify import CHECKS

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.slow
def test_every_check_with_a_form_for_cpus_is_confirmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-gpu", "--device", "cpu", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("verify-cpu-*.json")
    record = json.loads(path.read_text())
    assert record["machine"]["device_type"] == "cpu"
    assert [check["name"] for check in record["checks"]] == [check.name for check in CHECKS]
    outcomes = {check["name"]: check["outcome"] for check in record["checks"]}
    without = {"launches", "telemetry"}
    assert {name for name, outcome in outcomes.items() if outcome == "unavailable"} <= {
        *without,
        "compiled",
        "dali-cifar",
        "dali-imagenet",
    }
    assert all(outcomes[name] == "unavailable" for name in without)
    assert "failed" not in outcomes.values()
    assert "say nothing about a GPU" in capsys.readouterr().out


def test_a_check_that_fails_is_a_failure_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device_type: str) -> str:
        raise AssertionError(f"on {device_type}\nnothing held")

    def missing(device_type: str) -> str:
        raise UnavailableError("two of them")

    checks = [
        Check(name="broken", claim="a", confirm=broken),
        Check(name="missing", claim="b", confirm=missing),
        Check(name="fine", claim="c", confirm=lambda device_type: "seen"),
    ]
    monkeypatch.setattr(verify, "CHECKS", checks)
    assert verify.verify("cpu", tmp_path) == 1
    (path,) = tmp_path.iterdir()
    outcomes = json.loads(path.read_text())["checks"]
    assert [(o["outcome"], o["detail"]) for o in outcomes] == [
        ("failed", "AssertionError: on cpu nothing held"),
        ("unavailable", "needs two of them"),
        ("confirmed", "seen"),
    ]


def test_growth_is_the_share_that_is_added() -> None:
    held: list[int] = []
    # 20 calls before the first count, then 5.
    assert growth(lambda: held.append(1), lambda: float(len(held)), times=5) == 5 / 20


def test_the_readme_lists_what_only_a_gpu_can_confirm() -> None:
    text = README.read_text()
    for check in CHECKS:
        assert f"`{check.name}`: {check.claim}" in text
