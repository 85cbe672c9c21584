"""Files of weights from anywhere: what is in them is found, and never run."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import struct
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import save_file
from torch import nn

from swap_fast.averaging_files.weight_files import plain_names, read_weights, serialize

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


def is_state(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "compressed zip", "legacy"])
def test_every_kind_of_file_gives_the_same(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "compressed zip":
        with ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with ZipFile(path, "w", ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
    assert is_state(read_weights(path).tensors)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
        {"model": STATE, "lr": 0.1},
        {"model_state_dict": STATE, "ema": STATE},
        {"module": STATE},
        {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)},
        {**STATE, "epoch": 3},
    ],
)
def test_a_state_dict_within_a_checkpoint_is_found(checkpoint: dict, tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "w.pt")
    assert is_state(read_weights(tmp_path / "w.pt").tensors)


def test_of_several_one_is_chosen_by_its_key(tmp_path: Path) -> None:
    other = {name: -t for name, t in STATE.items()}
    torch.save({"model": other, "state_dict": other, "ema": STATE}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"got state_dict, model; choose by key"):
        read_weights(tmp_path / "w.pt")
    assert is_state(read_weights(tmp_path / "w.pt", "ema").tensors)
    with pytest.raises(ValueError, match="did you mean ema"):
        read_weights(tmp_path / "w.pt", "emma")


def test_what_has_no_state_dict_is_named_by_its_keys(tmp_path: Path) -> None:
    torch.save({"generator": {"a": torch.ones(1)}, "step": 5}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"got generator, step; choose by key"):
        read_weights(tmp_path / "w.pt")
    torch.save({"step": 5, "loss": 0.1}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"got step, loss$"):
        read_weights(tmp_path / "w.pt")
    torch.save([torch.ones(1)], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="expected a state dict, got list"):
        read_weights(tmp_path / "w.pt")


class Hostile:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 2", "pickle 4", "module"])
def test_a_hostile_pickle_is_refused_in_one_line_and_never_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What once turned torch's own care off has no effect here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, target = tmp_path / "w.pt", tmp_path / "made"
    content = {"model": STATE, "extra": Hostile(target)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(kind[-1])))
    elif kind == "module":
        torch.save(nn.Linear(2, 2), path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    # torch's unpickler does not know protocol 4 at all.
    line = "got another: " if kind == "pickle 4" else "nothing of it was run"
    with pytest.raises(ValueError, match=line) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not target.exists()


def test_what_is_no_pickle_is_not_called_one_that_would_run(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("import torch\n")
    with pytest.raises(ValueError, match="expected a file of torch or safetensors") as caught:
        read_weights(tmp_path / "w.pt")
    assert "arbitrary code" not in str(caught.value)


def test_empty_missing_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    with pytest.raises(ValueError, match="No such file"):
        read_weights(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="an empty file"):
        read_weights(path)
    with pytest.raises(ValueError, match="Is a directory"):
        read_weights(tmp_path)
    for kind in ("safetensors", "torch"):
        (save_file if kind == "safetensors" else torch.save)(STATE, path)
        whole = path.read_bytes()
        for size in {1, 7, 8, 9, 20, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="expected") as caught:
                read_weights(path)
            assert "\n" not in str(caught.value)
    path.write_bytes(struct.pack("<Q", 2**40) + b"{")
    with pytest.raises(ValueError, match="cut short"):
        read_weights(path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    contents = []
    for kind in ("safetensors", "zip", "legacy"):
        path = folder / kind
        if kind == "safetensors":
            save_file(STATE, path)
        else:
            torch.save({"model": STATE}, path, _use_new_zipfile_serialization=kind == "zip")
        contents.append(path.read_bytes())
    return folder, contents


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused_in_one_line(
    data: st.DataObject, whole_files: tuple[Path, list[bytes]]
) -> None:
    folder, contents = whole_files
    content = bytearray(data.draw(st.sampled_from(contents)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(content)
    assert _read(folder / "damaged") in ("read", "one line")


def _read(path: Path) -> str:
    try:
        found = read_weights(path)
    except ValueError as error:
        return str(error) if "\n" in str(error) else "one line"
    # Every value can be had.
    assert all(t.double().sum().dim() == 0 for t in found.tensors.values())
    return "read"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=64))
def test_random_bytes_are_refused(content: bytes, whole_files: tuple[Path, list[bytes]]) -> None:
    (whole_files[0] / "random").write_bytes(content)
    with pytest.raises(ValueError, match="random: expected"):
        read_weights(whole_files[0] / "random")


def test_prefixes_of_compile_and_ddp_are_left_out() -> None:
    for names in (
        ["_orig_mod.a", "_orig_mod.b.c"],
        ["module.a", "module.b.c"],
        ["module._orig_mod.a", "module._orig_mod.b.c"],
        ["_orig_mod.module.a", "_orig_mod.module.b.c"],
        ["a", "b._orig_mod.c"],
        ["module.module.a", "module.module.b.c"],
    ):
        assert list(plain_names(names).values()) == ["a", "b.c"]
    assert list(plain_names(["module.a", "head.b"]).values()) == ["module.a", "head.b"]
    assert plain_names([]) == {}


def test_an_averaged_model_and_a_compiled_one_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    torch.save(torch.optim.swa_utils.AveragedModel(net).state_dict(), tmp_path / "swa.pt")
    torch.save(torch.compile(net).state_dict(), tmp_path / "compiled.pt")
    for name in ("swa.pt", "compiled.pt"):
        found = read_weights(tmp_path / name).tensors
        assert found.keys() == net.state_dict().keys()
        assert all(torch.equal(found[k], v) for k, v in net.state_dict().items())


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "_orig_mod.a": torch.zeros(1)}, tmp_path / "w")
    with pytest.raises(ValueError, match="expected one tensor a, got "):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (torch.eye(2).to_sparse(), "layout sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "type complex128"),
        (torch.ones(1).expand(2**29), "536,870,912 values of 4 bytes"),
        (torch.empty(2, device="meta"), "without values"),
    ],
)
def test_tensors_that_cannot_be_averaged_are_named(
    tensor: torch.Tensor, got: str, tmp_path: Path
) -> None:
    torch.save({"fine": torch.ones(1), "odd": tensor}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"w.pt, odd: expected a plain tensor, got .*{got}"):
        read_weights(tmp_path / "w.pt")
    torch.save({"count": torch.ones(1, dtype=torch.int64)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="expected weights of floating point, got none"):
        read_weights(tmp_path / "w.pt")


def test_what_is_written_is_the_same_bytes_and_read_by_others(tmp_path: Path) -> None:
    about = {"method": "uniform", "b": "2", "z": "é", "q": "4"}
    (content,) = {serialize(STATE, about) for _ in range(8)}
    (tmp_path / "w.safetensors").write_bytes(content)
    read = read_weights(tmp_path / "w.safetensors")
    assert read.sha256 == hashlib.sha256(content).hexdigest()
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", **about}
    found = load_numpy(tmp_path / "w.safetensors")
    assert all(np.array_equal(found[name], t.numpy()) for name, t in STATE.items())
    (length,) = struct.unpack("<Q", (tmp_path / "w.safetensors").read_bytes()[:8])
    assert length % 8 == 0
    assert json.loads((tmp_path / "w.safetensors").read_bytes()[8 : 8 + length])
