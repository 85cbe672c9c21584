"""Random damage: an error of one line or a right answer, never a traceback, nothing elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import archive, fake_cifar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_factory import make_record

from bench.report.content import collect
from swap_fast.checkpoint.files import (
    Checkpoint,
    CheckpointInfo,
    read_checkpoint,
    write_checkpoint,
)
from swap_fast.config.phase import Augmentation, Optimizer, Phase
from swap_fast.data.cifar.files import load_dataset
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import read_record, write_record
from swap_fast.training.state import Progress

CASES = 2000
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
pytestmark = pytest.mark.slow

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([0.5, 1.0, 64, 512, 1024, True, None, "1e-3", "", [], {}]),
)


def one_line(error: BaseException) -> None:
    assert str(error), "an error says what is wrong"
    assert "\n" not in str(error)


@FUZZ
@given(data=st.data())
def test_a_configuration_is_refused_in_a_line_or_can_be_run(data: st.DataObject) -> None:
    """Of any values, what is accepted has a schedule, replicas and batches that make sense."""
    kind = data.draw(st.sampled_from([Phase, Optimizer, Augmentation]))
    names = [each.name for each in fields(kind)]
    changed = data.draw(st.dictionaries(st.sampled_from(names), NUMBERS, max_size=4))
    base: dict[str, Any] = {"global_batch_size": 64, "peak_lr": 0.1, "max_epochs": 4}
    try:
        made = kind(**{**(base if kind is Phase else {}), **changed})
    except (ValueError, TypeError) as error:
        one_line(error)
        return
    if isinstance(made, Phase):
        rates = [made.schedule(made.max_epochs * i / 7) for i in range(8)]
        assert all(0 <= rate < math.inf for rate in rates)
        assert made.micro_batch_size * made.gpus_per_model == made.global_batch_size
        recipe = RECIPES["cifar10_sgd_small_cpu"]()
        try:
            assert replace(recipe, phase1=made).num_replicas == made.gpus_per_model
        except ValueError as error:
            one_line(error)


def damage(content: bytes, draw: Callable[[Any], Any]) -> bytes:
    """Flip, cut, lengthen, repeat or overwrite some bytes."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero"])):
            case "flip" if made:
                made[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del made[at:]
            case "insert":
                made[at:at] = draw(st.binary(min_size=1, max_size=40))
            case "repeat":
                made += made[at : at + 200]
            case _:
                made[at : at + 20] = bytes(len(made[at : at + 20]))
    return bytes(made)


@pytest.fixture(scope="module")
def record_content() -> bytes:
    return json.dumps(json.loads(json.dumps(_plain(make_record("cifar10_cpu")))), indent=1).encode()


def _plain(record: Any) -> Any:
    from dataclasses import asdict

    return asdict(record)


@FUZZ
@given(data=st.data())
def test_a_damaged_record_is_left_out_or_read(
    record_content: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    """By bytes, or by values of another kind anywhere in it; the report's content still comes."""
    content = record_content
    if data.draw(st.booleans()):
        content = damage(content, data.draw)
    else:
        made = json.loads(content)
        at, parent, name = made, made, None
        for _ in range(data.draw(st.integers(1, 4))):
            if not isinstance(at, dict | list) or not at:
                break
            keys = sorted(at) if isinstance(at, dict) else range(len(at))
            parent, name = at, data.draw(st.sampled_from(list(keys)))
            at = at[name]
        parent[name] = data.draw(NUMBERS)  # type: ignore[call-overload]
        content = json.dumps(made).encode()
    runs = tmp_path / "runs"
    runs.mkdir(exist_ok=True)
    path = runs / "damaged.json"
    path.write_bytes(content)
    try:
        read_record(path)
    except ValueError as error:
        one_line(error)
    found = collect(tmp_path)
    assert len(found.records) + len(found.skipped) == 1
    for line in found.skipped:
        assert "\n" not in line


@pytest.fixture(scope="module")
def cifar_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    made = fake_cifar()
    binary = made.write_binary(root / "binary")
    python, _ = made.write_python(root / "python")
    return {"binary": binary, "python": python, "archive": archive(binary)}


@FUZZ
@given(data=st.data())
def test_damaged_cifar_files_are_refused_or_read_as_they_are(
    cifar_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """What is read has whole images with labels in their range, and is never called published."""
    root = tmp_path_factory.mktemp("damaged")
    whole = cifar_files[data.draw(st.sampled_from(sorted(cifar_files)))]
    if whole.is_dir():
        copy = root / whole.name
        copy.mkdir()
        for path in whole.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        victim = copy / data.draw(st.sampled_from(sorted(p.name for p in copy.iterdir())))
    else:
        victim = root / whole.name
        victim.write_bytes(whole.read_bytes())
    victim.write_bytes(damage(victim.read_bytes(), data.draw))
    before = sorted(root.rglob("*"))
    try:
        read = load_dataset("cifar10", root)
    except (ValueError, FileNotFoundError) as error:
        one_line(error)
    else:
        assert read.kind != "published"
        for split in (read.train, read.test):
            assert split.images.shape == (len(split.labels), 32, 32, 3)
            assert int(split.labels.max()) < 10
    assert sorted(root.rglob("*")) == before  # nothing was unpacked or left


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stem = tmp_path_factory.mktemp("checkpoint") / "worker0-epoch1"
    random = torch.Generator().manual_seed(0)
    write_checkpoint(
        stem,
        Checkpoint(
            model={"linear.weight": torch.randn(5, 3, generator=random)},
            state={"velocity": torch.randn(15, generator=random), "replicas.0": torch.zeros(1, 4)},
            about=CheckpointInfo(
                progress=Progress(phase=2, epoch=1),
                origin="ab",
                optimizer={},
                laps_by_rank=[{"phase2": 1.5}],
                sums_by_rank=[[]],
                rows=[],
            ),
        ),
    )
    return stem


@FUZZ
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_or_whole(
    checkpoint: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Weights that are read are those that were written, to the last bit."""
    names = [path.name for path in sorted(checkpoint.parent.iterdir())]
    for name in names:
        (tmp_path / name).write_bytes((checkpoint.parent / name).read_bytes())
    victim = tmp_path / data.draw(st.sampled_from(names))
    victim.write_bytes(damage(victim.read_bytes(), data.draw))
    try:
        read = read_checkpoint(tmp_path / checkpoint.name)
    except ValueError as error:
        one_line(error)
        return
    whole = read_checkpoint(checkpoint)
    assert read.about == whole.about
    for ours, expected in ((read.model, whole.model), (read.state, whole.state)):
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_what_is_undamaged_is_read(record_content: bytes, tmp_path: Path) -> None:
    path = write_record(make_record("cifar10_cpu"), tmp_path)
    assert read_record(path) == make_record("cifar10_cpu")
    assert np.isfinite(json.loads(record_content)["test_accuracy"])
