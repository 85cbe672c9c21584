"""What people take for files of weights: shards, pointers, pages, and checkpoints with numbers."""

from __future__ import annotations

import json
import pathlib
import random
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from swap_fast import average_files
from swap_fast.averaging_files.weight_files import read_weights

STATE = {"a": torch.arange(3.0), "b": torch.ones(2)}


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4665\n", "a Git LFS pointer, "),
        ("<!DOCTYPE html><html>404", "a page of HTML"),
        ("\n <html>", "a page of HTML"),
        ('{"w": 1}', r"JSON: of a model in shards name its index, which ends in \.index\.json"),
        ("import torch\n", "another: text"),
    ],
)
def test_text_is_named_for_what_it_is(text: str, got: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text(text)
    line = rf"w\.pt: expected a file of torch or safetensors, got {got}[^\n]*$"
    with pytest.raises(ValueError, match=line):
        read_weights(tmp_path / "w.pt")


def default_of_lists() -> Any:
    filled = defaultdict(list)
    filled["loss"].append(0.5)
    return filled


BESIDE = {
    "a numpy number": np.float64(71.2),
    "numpy numbers": [np.int32(3), np.float16(1), np.bool_(True), np.str_("b"), np.array(["a"])],
    "arrays": {"float": np.ones(2), "whole": np.arange(3, dtype=np.uint8), "none": np.zeros(0)},
    "numpy's generator": np.random.RandomState(0).get_state(),
    "Python's generator": random.Random(0).getstate(),
    "a defaultdict": default_of_lists(),
    "paths": [pathlib.Path("a/b"), pathlib.PureWindowsPath("c:\\d")],
    "a namespace": SimpleNamespace(lr=0.1),
    "containers": OrderedDict(a=Counter("ab"), b={1, 2}),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE.keys())
def test_what_scripts_keep_beside_weights_is_left_out(
    beside: Any, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": STATE, "beside": beside}, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    assert found.tensors.keys() == STATE.keys()
    assert torch.equal(found.tensors["a"], STATE["a"])


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "beside": np.array([{}, None])}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: expected "):
        read_weights(tmp_path / "w.pt")


def sharded(folder: Path, factor: float, suffix: str) -> Path:
    """A model of two shards, and its index."""
    folder.mkdir()
    places = {name: f"model-0000{i}-of-00002.{suffix}" for i, name in enumerate(STATE, 1)}
    for name, place in places.items():
        (save_file if suffix == "safetensors" else torch.save)(
            {name: factor * STATE[name]}, folder / place
        )
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index_stands_for_its_shards(suffix: str, tmp_path: Path) -> None:
    paths = [sharded(tmp_path / str(f), f, suffix) for f in (1.0, 3.0)]
    made = average_files(paths)
    assert all(torch.equal(made.tensors[name], 2 * tensor) for name, tensor in STATE.items())
    # The same index, but not the same model.
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not any("the model counts twice" in note for note in made.report.notes)


def test_an_index_of_other_files_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model", 1.0, "safetensors")
    shard = index.parent / "model-00002-of-00002.safetensors"
    save_file({"c": torch.ones(1)}, shard)
    with pytest.raises(ValueError, match=r"00002\.safetensors: expected b in it, as the index"):
        read_weights(index)
    shard.unlink()
    with pytest.raises(ValueError, match=r"00002\.safetensors: expected a file of weights, got No"):
        read_weights(index)
    for text in ("[]", "{}", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(ValueError, match="expected an index of shards"):
            read_weights(index)
    for place in ("../model-00001-of-00002.safetensors", index.name):
        index.write_text(json.dumps({"weight_map": {"a": place}}))
        with pytest.raises(ValueError, match="expected an index of shards"):
            read_weights(index)
