"""Checkpoints on disk: safetensors files with the model's own names, proven by a manifest.

A checkpoint is whole when its manifest is there: that is written last. A JSON file has a schema
version and a checksum of itself, and is read into a typed dataclass.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from swap_fast.config.checks import one_line
from swap_fast.files import write_file
from swap_fast.record import EpochRow
from swap_fast.training.state import Progress
from swap_fast.training.weights import Weights

MODEL, STATE, MANIFEST = ".safetensors", ".state.safetensors", ".json"
"""Endings of a checkpoint's files: the model's weights, what else training needs, and the proof."""
SCHEMA_VERSION = 1
"""Of manifests and of run.json."""

Laps = dict[str, float]
"""Seconds by the name of a lap."""
T = TypeVar("T")


COUNT = "num_batches_tracked"
"""Ends the name of a batch norm's count of batches; nothing reads it, and it becomes 0."""


class DamagedError(ValueError):
    """A file is missing, or does not hold what was written."""


def _content(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DamagedError: there is no such file.
        ValueError: it cannot be read now, which says nothing of its content.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path.name}: expected a file, got {error.strerror}") from None
    except OSError as error:
        raise ValueError(
            f"{path}: could not be read: {error.strerror}; nothing was changed, try again"
        ) from None


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint holds beside its tensors."""

    progress: Progress
    """How far the model's training has come; `sums` are in `sums_by_rank`."""
    origin: str | None
    """The sha256 of the theta with which phase 1 ended; None before its end."""
    optimizer: dict[str, Any]
    """The optimizer's plain values, and the gradient scaler's."""
    laps_by_rank: list[Laps]
    """Of this phase and worker alone."""
    sums_by_rank: list[list[float]]
    """`Progress.sums` of each rank."""
    rows: list[EpochRow]
    """Of the epochs done in this phase."""
    weights_sha256: dict[str, str] = field(default_factory=dict)
    """Of the model's file after each epoch of this phase, by its stem: a worker's are read again
    when its cycles are averaged, long after their own manifests were deleted."""
    taken_from: str | None = None
    """The run whose phase 1 this is; None: this one's own."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one checkpoint holds."""

    model: dict[str, Tensor]
    """The model's state, with its own names."""
    state: dict[str, Tensor]
    """What else the next update depends on; may be empty."""
    about: CheckpointInfo
    """Plain values."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """STEM.json of a run's result: proves its weights."""

    sha256_by_ending: dict[str, str]
    """Of STEM.safetensors and, of a checkpoint, STEM.state.safetensors."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Proof):
    """STEM.json of a checkpoint: proves its other files."""

    about: CheckpointInfo


def write_json(path: Path, content: Any) -> None:
    """Write a dataclass of plain values, with a schema version and a checksum.

    Raises:
        OSError: as `write_file`.
    """
    # As JSON gives it back: tuples are lists, and all keys are strings.
    plain = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(content)}))
    text = json.dumps({**plain, "sha256": _checksum(plain)}, indent=1) + "\n"
    write_file(path, text.encode())


def read_json(path: Path, kind: type[T]) -> T:
    """Read what `write_json` wrote.

    Raises:
        DamagedError: no file, or not the bytes that were written.
        ValueError: another schema version, or a file that cannot be read now.
    """
    content = _content(path)
    try:
        plain = json.loads(content)
        if not isinstance(plain, dict) or plain.pop("sha256", None) != _checksum(plain):
            raise ValueError("JSON without it, or with another one")
        if (version := plain.pop("schema_version")) == SCHEMA_VERSION:
            return msgspec.convert(plain, kind)
    # Deep nesting is a RecursionError.
    except (ValueError, KeyError, RecursionError, msgspec.MsgspecError) as error:
        raise DamagedError(
            f"{path.name}: expected JSON with its own sha256 in it, got {one_line(error)}"
        ) from None
    raise ValueError(
        f"{path.name}: expected schema_version {SCHEMA_VERSION}, got {version}; use the version of "
        "swap_fast that wrote it, or another folder"
    )


def _checksum(plain: dict[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def on_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state on the host, each tensor in memory of its own."""
    # safetensors refuses tensors that share memory, as views of one vector do. Counts of batches
    # depend on how the replicas were dealt out to processes, and nothing reads them: they become 0.
    return {
        name: torch.zeros_like(t) if name.endswith(COUNT) else t.clone()
        for name, t in ((name, t.detach().cpu().contiguous()) for name, t in state.items())
    }


def save_weights(weights: Weights, path: Path) -> str:
    """Write the model's state alone, as a safetensors file; its sha256.

    Raises:
        OSError: as `write_file`.
    """
    content = save(on_host(weights.state_dict()))
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state, without what is no tensor (`get_extra_state`)."""
    return {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}


def load_state_(weights: Weights, saved: Mapping[str, Tensor], name: str) -> None:
    """Put a saved state into the model; counts of batches that it lacks are 0.

    Raises:
        ValueError: names or shapes that are not the model's; the model is then as it was.
    """
    state = tensors_of(weights.model)
    counts = {name: torch.zeros_like(t) for name, t in state.items() if name.endswith(COUNT)}
    saved = counts | {n: t for n, t in saved.items() if n in state or not n.endswith(COUNT)}
    for key in sorted(set(state) | set(saved)):
        expected = tuple(state[key].shape) if key in state else "no such tensor"
        got = tuple(saved[key].shape) if key in saved else "no such tensor"
        if expected != got:
            raise ValueError(f"{name}, {key}: expected {expected}, got {got}")
    with torch.no_grad():
        weights.load_state_dict(saved)


def load_theta(weights: Weights, path: Path, sha256: str | None = None) -> Tensor:
    """Read a saved state into the model, and return its vector theta [P].

    Arguments:
        sha256: of the file, where it is known.

    Raises:
        ValueError: a damaged file, or names and shapes that are not the model's; the model is
            then as it was.
    """
    load_state_(weights, read_tensors(path, sha256), path.name)
    return weights.theta.detach().clone()


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Arguments:
        sha256: of the file, where it is known.

    Raises:
        DamagedError: no file, or another one.
        ValueError: it cannot be read now.
    """
    content = _content(path)
    got = hashlib.sha256(content).hexdigest()
    if sha256 is not None and sha256 != got:
        raise DamagedError(
            f"{path.name}: expected the bytes with sha256 {sha256[:12]}, got {len(content):,} "
            f"bytes with {got[:12]}"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise DamagedError(f"{path.name}: expected a safetensors file, got {error}") from None


def known_sha256(path: Path) -> str | None:
    """What a run's manifests say of a model's file; None where none knows it."""
    stem = path.name.removesuffix(MODEL)
    try:
        return read_json(path.with_name(stem + MANIFEST), Proof).sha256_by_ending[MODEL]
    except DamagedError:  # of an earlier epoch: a later manifest of the model knows it
        model = stem.partition("-")[0]
    for manifest in path.parent.glob(f"*{MANIFEST}"):
        if manifest.name.startswith(model):
            with suppress(DamagedError):
                known = read_json(manifest, Manifest).about.weights_sha256
                if stem in known:
                    return known[stem]
    return None


def write_checkpoint(stem: Path, checkpoint: Checkpoint) -> CheckpointInfo:
    """Write STEM.safetensors, STEM.state.safetensors and, at last, STEM.json with their hashes.

    Returns:
        What the manifest says, with the hash of these weights too.

    Raises:
        OSError: as `write_file`; there is then no new manifest.
    """
    sha256_by_ending = {}
    for ending, tensors in ((MODEL, checkpoint.model), (STATE, checkpoint.state)):
        content = save(tensors)
        sha256_by_ending[ending] = hashlib.sha256(content).hexdigest()
        write_file(file_of(stem, ending), content)
    known = {**checkpoint.about.weights_sha256, stem.name: sha256_by_ending[MODEL]}
    about = replace(checkpoint.about, weights_sha256=known)
    manifest = Manifest(sha256_by_ending=sha256_by_ending, about=about)
    write_json(file_of(stem, MANIFEST), manifest)
    return about


def read_checkpoint(stem: Path) -> Checkpoint:
    """Read a checkpoint whose every byte is as it was written.

    Raises:
        DamagedError: no manifest, one that is damaged, or files that are not what it says.
        ValueError: another schema version, or a file that cannot be read now.
    """
    manifest = read_manifest(stem)
    model, state = (
        read_tensors(file_of(stem, ending), manifest.sha256_by_ending[ending])
        for ending in (MODEL, STATE)
    )
    return Checkpoint(model=model, state=state, about=manifest.about)


def read_manifest(stem: Path) -> Manifest:
    """What a checkpoint's manifest says, without a look at its other files.

    Raises:
        DamagedError, ValueError: as `read_checkpoint`.
    """
    return read_json(file_of(stem, MANIFEST), Manifest)


def file_of(stem: Path, ending: str) -> Path:
    """A file of a checkpoint; its name may have dots."""
    return stem.with_name(stem.name + ending)
