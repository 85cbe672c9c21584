"""Checkpoints on disk: safetensors files with the model's own names, proven by a manifest.

A checkpoint is whole when its manifest is there: that is written last. All files are written
aside, synced and renamed, so that none is ever half there.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from swap_fast.training.weights import Weights

MODEL, STATE, MANIFEST = ".safetensors", ".state.safetensors", ".json"
"""Endings of a checkpoint's files: the model's weights, what else training needs, and the proof."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one checkpoint holds."""

    model: dict[str, Tensor]
    """The model's state, with its own names."""
    state: dict[str, Tensor]
    """What else the next update depends on; may be empty."""
    about: dict[str, Any]
    """Plain values."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: aside, synced, then renamed.

    Raises:
        OSError: the disk is full or the folder cannot be written to; a former file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        # Its number and its words, with what a reader needs to make room.
        text = f"{error.strerror}: {len(content):,} bytes of {path.name} could not be written"
        raise type(error)(error.errno, text, str(path.parent)) from None
    finally:
        part.unlink(missing_ok=True)


def model_state(weights: Weights) -> dict[str, Tensor]:
    """The model's state on the host, with its own names."""
    # safetensors refuses tensors that share memory, as views of one vector do. Counts of batches
    # depend on how the replicas were dealt out to processes, and nothing reads them: they become 0.
    return {
        name: torch.zeros_like(t) if name.endswith("num_batches_tracked") else t.clone()
        for name, t in (
            (name, t.detach().cpu().contiguous()) for name, t in weights.state_dict().items()
        )
    }


def save_weights(weights: Weights, path: Path) -> None:
    """Write the model's state alone, as a safetensors file.

    Raises:
        OSError: as `write_file`.
    """
    write_file(path, save(model_state(weights)))


def load_state_(weights: Weights, saved: Mapping[str, Tensor], name: str) -> None:
    """Put a saved state into the model.

    Raises:
        ValueError: names or shapes that are not the model's; the model is then as it was.
    """
    state = weights.model.state_dict()
    for key in sorted(set(state) | set(saved)):
        expected = tuple(state[key].shape) if key in state else "no such tensor"
        got = tuple(saved[key].shape) if key in saved else "no such tensor"
        if expected != got:
            raise ValueError(f"{name}, {key}: expected {expected}, got {got}")
    with torch.no_grad():
        weights.load_state_dict(saved)


def load_theta(weights: Weights, path: Path) -> Tensor:
    """Read a saved state into the model, and return its vector theta [P].

    Raises:
        ValueError: a damaged file, or names and shapes that are not the model's; the model is
            then as it was.
    """
    load_state_(weights, _tensors(path.name, path.read_bytes()), path.name)
    return weights.theta.detach().clone()


def write_checkpoint(stem: Path, checkpoint: Checkpoint) -> None:
    """Write STEM.safetensors, STEM.state.safetensors and, at last, STEM.json with their hashes.

    Raises:
        OSError: as `write_file`; there is then no new manifest.
    """
    manifest: dict[str, Any] = {"files": {}, "about": checkpoint.about}
    for ending, tensors in ((MODEL, checkpoint.model), (STATE, checkpoint.state)):
        content = save(tensors)
        manifest["files"][ending] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        write_file(stem.with_name(stem.name + ending), content)
    text = json.dumps(manifest, indent=1) + "\n"
    write_file(stem.with_name(stem.name + MANIFEST), text.encode())


def read_checkpoint(stem: Path) -> Checkpoint:
    """Read a checkpoint whose every byte is as it was written.

    Raises:
        ValueError: no manifest, one that is damaged, or files that are not what it says.
    """
    about, files = read_about(stem), _manifest(stem)["files"]
    tensors = {}
    for ending in (MODEL, STATE):
        path = stem.with_name(stem.name + ending)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path.name}: expected a file, got {error.strerror}") from None
        got = hashlib.sha256(content).hexdigest()
        expected = files.get(ending, {}).get("sha256")
        if got != expected:
            raise ValueError(
                f"{path.name}: expected the bytes with sha256 {str(expected)[:12]}, got "
                f"{len(content):,} bytes with {got[:12]}"
            )
        tensors[ending] = _tensors(path.name, content)
    return Checkpoint(model=tensors[MODEL], state=tensors[STATE], about=about)


def read_about(stem: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, from its manifest alone.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    about: dict[str, Any] = _manifest(stem)["about"]
    return about


def model_sha256(stem: Path) -> str | None:
    """The hash of a checkpoint's weights, from its manifest alone; None where it names none.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    found = _manifest(stem)["files"].get(MODEL, {}).get("sha256")
    return found if isinstance(found, str) else None


def _manifest(stem: Path) -> dict[str, Any]:
    path = stem.with_name(stem.name + MANIFEST)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: expected a manifest, got {error}") from None
    if not (
        isinstance(content, dict)
        and set(content) == {"files", "about"}
        and all(isinstance(part, dict) for part in content.values())
        and all(isinstance(part, dict) for part in content["files"].values())
    ):
        raise ValueError(f"{path.name}: expected a manifest, got other JSON")
    return content


def _tensors(name: str, content: bytes) -> dict[str, Tensor]:
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{name}: expected a safetensors file, got {error}") from None
