"""Weights on disk: safetensors files with the model's own names."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from swap_fast.weights import Weights


def save_weights(weights: Weights, path: Path) -> None:
    """Write the model's state whole or not at all: aside, synced, then renamed.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
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
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(tensors, part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_theta(weights: Weights, path: Path) -> Tensor:
    """Read a saved state into the model, and return its vector theta [P].

    Raises:
        RuntimeError: names or shapes that are not the model's.
    """
    device = str(weights.theta.device)
    with torch.no_grad():
        weights.model.load_state_dict(load_file(path, device=device))
    return weights.theta.detach().clone()
