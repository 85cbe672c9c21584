"""Random settings, records and data: an error of one line, or the right answer.

Never another answer, never a traceback of another kind, nothing written elsewhere.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import archive, fake_cifar
from hypothesis import strategies as st
from landscape_factory import bowl, cosine_path
from micro_factory import MICRO, write
from own_nets import PHASE1, PHASE2, small_swap
from random_damage import CASES, Draw, copied, damage, one_line, try_many
from record_factory import make_record

from bench.landscape.plots import cosine_figure, plane_figure
from bench.landscape.records import write_landscape
from bench.micro.tables import micro_figures
from bench.plots.training import figure_1, timing_figure
from bench.report.content import Content, collect
from bench.report.write import SCALING, SPEED, TIMING, build_document
from swap_fast.config.phase import Augmentation, Optimizer, Phase
from swap_fast.data.cifar.files import load_dataset
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record_files import write_record

pytestmark = pytest.mark.slow

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([0.5, 1.0, 64, 512, 1024, True, None, "1e-3", "", [], {}]),
)


# Settings.


@CASES
def test_a_configuration_is_refused_in_a_line_or_can_be_run(cases: int) -> None:
    """Of any values, what is accepted has a schedule, replicas and batches that make sense."""

    def check(data: st.DataObject) -> None:
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

    try_many(check, cases)


SMALL_NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 3, 0.5, 1.0, math.inf, math.nan, True, None, "1e-3", "fp32", "cpu", "", [], {}]
)
API_OPTIONS = (
    *("workers", "keep_momentum", "clip_gradient_norm", "loader_processes", "precision"),
    *("device", "seed", "resume", "data_on_device", "timeout_s"),
)
PHASE_OPTIONS = ("global_batch_size", "peak_lr", "max_epochs", "warmup_epochs", "gpus_per_model")


@CASES
def test_settings_of_the_api_are_refused_in_a_line_or_run(cases: int) -> None:
    """What is accepted gives as many models as were asked for, with finite weights."""

    def check(data: st.DataObject) -> None:
        options = data.draw(
            st.dictionaries(st.sampled_from(API_OPTIONS), SMALL_NUMBERS, max_size=2)
        )
        phases = {"phase1": PHASE1, "phase2": PHASE2}
        try:
            name = data.draw(st.sampled_from([*phases, None]))
            if name is not None:
                some = st.dictionaries(st.sampled_from(PHASE_OPTIONS), SMALL_NUMBERS, max_size=2)
                phases[name] = replace(phases[name], **data.draw(some))
            result = small_swap(**phases, **options)
        except (ValueError, TypeError, FloatingPointError) as error:
            one_line(error)
            return
        assert len(result.worker_states) == options.get("workers", 2)
        assert all(bool(tensor.isfinite().all()) for tensor in result.model.state_dict().values())

    try_many(check, cases)


# Records of all kinds.

KINDS = ("runs", "micro", "planes", "cosines")


@pytest.fixture(scope="module")
def whole_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A record of each kind, as its file has it."""
    results = tmp_path_factory.mktemp("results")
    write_record(make_record("cifar10_cpu"), results / "runs")
    write_landscape(bowl(2, LB=(-1.5, 0.2), SGD=(1.5, 0.0), SWAP=(0.1, 0.0)), results)
    write_landscape(cosine_path(0.5, 0.4, 0.3, 0.2, 0.1, 0.0), results)
    write(results / "micro", "whole.json", MICRO)
    return {kind: next((results / kind).glob("*.json")).read_bytes() for kind in KINDS}


def with_another_value(content: bytes, draw: Draw) -> bytes:
    """A record with a value of another kind anywhere in it."""
    made = json.loads(content)
    at, parent, name = made, made, None
    for _ in range(draw(st.integers(1, 5))):
        if not isinstance(at, dict | list) or not at:
            break
        keys = sorted(at) if isinstance(at, dict) else range(len(at))
        parent, name = at, draw(st.sampled_from(list(keys)))
        at = at[name]
    parent[name] = draw(NUMBERS)  # type: ignore[call-overload]
    return json.dumps(made).encode()


def draw_all(content: Content, folder: Path) -> None:
    """Every figure that is made of a record."""
    swaps = [record for record in content.records if record.method == "swap"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's, of odd numbers
        for record in swaps:
            figure_1(record, folder)
        if content.records:
            timing_figure(content.records, folder)
        micro_figures(content.micro, folder)
        for plane in content.planes:
            plane_figure(plane, folder)
        for path in content.cosines:
            cosine_figure(path, folder)


@CASES
def test_a_damaged_record_is_left_out_or_read(
    whole_results: dict[str, bytes], tmp_path: Path, cases: int
) -> None:
    """By bytes, or by a value of another kind anywhere in it; the report can still be made."""

    def check(data: st.DataObject) -> None:
        bad = data.draw(st.sampled_from(KINDS))
        by_bytes = data.draw(st.booleans())
        for kind, whole in whole_results.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            content = whole
            if kind == bad:
                content = (damage if by_bytes else with_another_value)(whole, data.draw)
            (tmp_path / kind / "one.json").write_bytes(content)
        found = collect(tmp_path)
        records = [*found.records, *found.micro, *found.planes, *found.cosines]
        assert len(records) + len(found.skipped) == len(KINDS)
        assert not any("\n" in line for line in found.skipped)
        figures: dict[str, Any] = {f"Figure {number}": {} for number in range(1, 7)}
        build_document(found, {**figures, TIMING: {}, SPEED: {}, SCALING: {}})
        if len(records) == len(KINDS) and not by_bytes:
            draw_all(found, tmp_path / "plots")

    try_many(check, cases)


# Data sets.


@pytest.fixture(scope="module")
def cifar_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    made = fake_cifar()
    binary = made.write_binary(root / "binary")
    python, _ = made.write_python(root / "python")
    return {"binary": binary, "python": python, "archive": archive(binary)}


@CASES
def test_damaged_cifar_files_are_refused_or_read_as_they_are(
    cifar_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, cases: int
) -> None:
    """What is read has whole images with labels in their range, and is never called published."""

    def check(data: st.DataObject) -> None:
        root = tmp_path_factory.mktemp("damaged")
        whole = cifar_files[data.draw(st.sampled_from(sorted(cifar_files)))]
        victim = root / whole.name
        if whole.is_dir():
            copied(whole, victim)
            victim /= data.draw(st.sampled_from(sorted(p.name for p in whole.iterdir())))
        else:
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

    try_many(check, cases)


def test_what_is_undamaged_is_read(whole_results: dict[str, bytes], tmp_path: Path) -> None:
    """The cases' own records are whole, so that damage is what is tried."""
    for kind, content in whole_results.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "one.json").write_bytes(content)
    found = collect(tmp_path)
    assert found.records == [make_record("cifar10_cpu")]
    assert [len(found.micro), len(found.planes), len(found.cosines)] == [1, 1, 1]
    assert found.skipped == []
