"""Weights on disk: safetensors files with the model's own names."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from swap_fast.weights import Weights


def save_weights(weights: Weights, path: Path) -> None:
    """Write the model's state whole or not at all: aside, synced, then renamed.

    Raises:
        OSError: the disk is full or the folder cannot be written to; a former file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: t.detach().cpu().contiguous() for name, t in weights.model.state_dict().items()
    }
    # safetensors refuses tensors that share memory, as views of one vector do. Counts of batches
    # depend on how the slots were dealt out to processes, and nothing reads them: they become 0.
    tensors = {
        name: torch.zeros_like(t) if name.endswith("num_batches_tracked") else t.clone()
        for name, t in tensors.items()
    }
    content = save(tensors)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_theta(weights: Weights, path: Path) -> Tensor:
    """Read a saved state into the model, and return its vector theta [P].

    Raises:
        ValueError: a damaged file, or names and shapes that are not the model's; the model is
            then as it was.
    """
    try:
        saved = load_file(path, device=str(weights.theta.device))
    except SafetensorError as error:
        raise ValueError(f"{path.name}: expected a safetensors file, got {error}") from None
    state = weights.model.state_dict()
    for name in sorted(set(state) | set(saved)):
        expected = tuple(state[name].shape) if name in state else "no such tensor"
        got = tuple(saved[name].shape) if name in saved else "no such tensor"
        if expected != got:
            raise ValueError(f"{path.name}, {name}: expected {expected}, got {got}")
    with torch.no_grad():
        weights.model.load_state_dict(saved)
    return weights.theta.detach().clone()
