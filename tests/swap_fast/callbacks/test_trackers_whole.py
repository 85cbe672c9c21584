"""W&B and MLflow themselves, without a network, when asked for by `pytest -m trackers`.

They need some fifty packages (`pip install wandb mlflow-skinny sqlalchemy alembic`), which is why
CI does not install them.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swap_fast.record import RunRecord
from swap_fast.record_files import read_record

RUN = [
    *(sys.executable, "-m", "bench", "run", "cifar10_quick", "--dataset", "synthetic"),
    *("--train-images", "256", "--width", "4", "--phase1.global-batch-size", "64"),
    *("--phase1.max-epochs", "2", "--device", "cpu", "--ranks", "2", "--threads", "1"),
]

# Their own warnings are theirs.
pytestmark = [pytest.mark.trackers, pytest.mark.filterwarnings("ignore")]


def run(out: Path, *options: str) -> tuple[RunRecord, str]:
    done = subprocess.run(
        [*RUN, "--out", str(out), *options], capture_output=True, text=True, check=True
    )
    (path,) = (out / "runs").glob("*.json")
    return read_record(path), done.stderr


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, which is a log of LevelDB's behind a header of 7 bytes.

    Blocks of 32 KiB hold pieces: checksum (4 bytes), length (2), kind (1: whole, 2: first, 3:
    middle, 4: last), content.
    """
    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        rest = 32768 - at % 32768
        if rest < 7:
            at += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_mlflow_keeps_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    record, error = run(tmp_path, "--track", "mlflow")
    assert "failed" not in error
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("swap_fast")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (record.run_id, "FINISHED")
    assert found.data.metrics["final/test_accuracy"] == record.test_accuracy
    assert found.data.params["recipe.name"] == "cifar10_quick"
    for phase, worker, group in [
        (1, 0, "phase1"),
        *((2, w, f"phase2/worker{w}") for w in range(4)),
    ]:
        history = client.get_metric_history(found.info.run_id, f"{group}/train_loss")
        rows = [r for r in record.epochs if (r.phase, r.worker) == (phase, worker)]
        assert [(m.step, m.value) for m in history] == [(r.epoch, r.train_loss) for r in rows]


def test_wandb_keeps_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    record, error = run(tmp_path, "--track", "wandb", "--json")
    assert "failed" not in error
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = tmp_path.glob(f"wandb/offline-run-*-{record.run_id}/*.wandb")
    values: dict[str, list[float]] = {}
    exit_code = None
    for data in wandb_records(path):
        entry = Record()
        entry.ParseFromString(data)
        for item in entry.history.item:
            name = item.key or "/".join(item.nested_key)
            values.setdefault(name, []).append(float(item.value_json))
        if entry.HasField("exit"):
            exit_code = entry.exit.exit_code
    assert exit_code == 0
    assert values["final/test_accuracy"] == [record.test_accuracy]
    losses = [row.train_loss for row in record.epochs if row.phase == 1]
    assert values["phase1/train_loss"] == losses
    assert values["phase1/epoch"] == [1, 2]
    assert {name.split("/")[1] for name in values if name.startswith("phase2")} == {
        f"worker{worker}" for worker in range(4)
    }


def test_without_a_network_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record, error = run(tmp_path, "--track", "mlflow")
    assert record.test_accuracy > 0
    (line,) = [line for line in error.splitlines() if line.startswith("bench: ")]
    assert line.startswith("bench: mlflow failed, and gets no more events of the run: ")
