"""A net and data that averages of files are tried on: accuracy, and batch-norm statistics anew."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from swap_fast.averaging_files.origins import read_run
from swap_fast.averaging_files.weight_files import plain_names
from swap_fast.checkpoint.files import load_state_
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import BatchShape, shapes
from swap_fast.config.recipe import SWAPRecipe, recipe_from
from swap_fast.data.cifar.dataset import Dataset
from swap_fast.data.cifar.files import load_dataset, locate_dataset
from swap_fast.distributed import ALONE
from swap_fast.models import make_net
from swap_fast.tasks.cifar import CifarSource
from swap_fast.training.batchnorm import BatchNormRecompute
from swap_fast.training.weights import Weights


class TrialData(Protocol):
    """What models are tried on."""

    splits: tuple[str, ...]
    """Of "held_out" and "test", those that it has."""
    trains: bool
    """Whether it has training data, for batch-norm statistics."""

    def batches(self) -> Iterable[Tensor]:
        """The training inputs [B, ...] once, on the model's device."""

    def accuracy(self, split: str) -> float:
        """Of the model as it is, on a split: a fraction."""


class Trial:
    """A net into which files are loaded one after the other.

    Arguments:
        weights: the net, in float32 on its device.
        data: what it is tried on.
        autocast: makes the context of a forward pass of the batch-norm pass.
    """

    def __init__(
        self,
        weights: Weights,
        data: TrialData,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.weights, self.data = weights, data
        self._pass = BatchNormRecompute(weights, autocast)
        self._names = plain_names(weights.model.state_dict())

    @property
    def has_statistics(self) -> bool:
        """Whether the net has batch norms whose statistics an average spoils."""
        return bool(self.weights.norms)

    def load_(self, tensors: Mapping[str, Tensor], where: Path | str) -> None:
        """Put a file's tensors into the net.

        Raises:
            ValueError: names or shapes that are not the net's; it is then as it was.
        """
        own = {short: name for name, short in self._names.items()}
        given = {own.get(name, name): t for name, t in tensors.items()}
        state = self.weights.model.state_dict()
        # Of weights that two layers share, safetensors files often keep one name.
        by_place = {_place(state[name]): t for name, t in given.items() if name in state}
        for name in state.keys() - given.keys():
            if (shared := by_place.get(_place(state[name]))) is not None:
                given[name] = shared
        load_state_(self.weights, given, str(where))

    def recompute_(self, images: int | None = None) -> None:
        """Compute the batch-norm statistics anew, of all training data or the first `images`.

        Raises:
            ValueError: no data.
        """
        self._pass(first(self.data.batches(), images))

    def statistics(self) -> dict[str, Tensor]:
        """Copies of the net's running statistics on the host, by their plain names."""
        norms = set(self.weights.norms)
        names = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.weights.model.named_modules()
            if module in norms
            for name in ("running_mean", "running_var")
        }
        state = self.weights.model.state_dict()
        return {self._names[name]: state[name].detach().cpu().clone() for name in names}

    def accuracy(self, split: str) -> float:
        """Of the net as it is, on a split: a fraction."""
        return self.data.accuracy(split)


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """The same for two names of one tensor."""
    return tensor.data_ptr(), tensor.shape


def first(batches: Iterable[Tensor], images: int | None) -> Iterator[Tensor]:
    """Batches until there are so many images."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        if images is not None and seen >= images:
            return


def users_trial(make_model: Callable[[], nn.Module], data: object, device: torch.device) -> Trial:
    """A net and data of the user's.

    Arguments:
        make_model: makes the net; its weights do not matter.
        data: a tuple (train, test) or (train, test, held_out), or a mapping with these names; each
            a list, a DataLoader or what else gives batches (inputs, labels) more than once.

    Raises:
        ValueError: no net, or data of another form.
    """
    model = make_model()
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    # It is only measured: in float32, with every weight in the file's reach.
    model.float().to(device).requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            module.momentum = 0.1  # the pass has its own
    weights = Weights(model)
    return Trial(weights, UserData(weights, data, device))


class UserData:
    """The user's batches."""

    def __init__(self, weights: Weights, data: object, device: torch.device) -> None:
        self._weights, self._device = weights, device
        self._splits = _splits(data)
        self.splits: tuple[str, ...] = tuple(
            name for name in ("held_out", "test") if name in self._splits
        )
        self.trains = "train" in self._splits

    def batches(self) -> Iterator[Tensor]:
        """The inputs of the training batches."""
        for batch in self._splits["train"]:
            yield self._inputs_and_labels(batch, "train")[0]

    @torch.no_grad()
    def accuracy(self, split: str) -> float:
        """The share of labels that the largest logit [B, C, ...] along dimension 1 gets right."""
        model, correct, total = self._weights.model, 0, 0
        was_training = model.training
        model.eval()
        try:
            for batch in self._splits[split]:
                inputs, labels = self._inputs_and_labels(batch, split)
                logits = model(inputs)
                if labels is None or logits.argmax(1).shape != labels.shape:
                    got = "none" if labels is None else f"labels {list(labels.shape)}"
                    raise ValueError(
                        f"data, {split}: expected a label for each of the logits "
                        f"{list(logits.shape)}, got {got}"
                    )
                correct += int((logits.argmax(1) == labels).sum())
                total += labels.numel()
        finally:
            model.train(was_training)
        if total == 0:
            raise ValueError(f"data, {split}: expected batches, got none")
        return correct / total

    def _inputs_and_labels(self, batch: object, split: str) -> tuple[Tensor, Tensor | None]:
        inputs, labels = batch, None
        if isinstance(batch, Mapping) and len(batch) == 2 and "labels" in batch:
            labels = batch["labels"]
            (inputs,) = (each for name, each in batch.items() if name != "labels")
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            inputs, labels = batch
        if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor | None):
            raise ValueError(
                f"data, {split}: expected batches (inputs, labels) of tensors, or a dict of both, "
                f"got {type(batch).__name__}"
            )
        on_device = inputs.to(self._device)
        return on_device, None if labels is None else labels.to(self._device)


def _splits(data: object) -> dict[str, Iterable[object]]:
    """The user's data by the names of its splits."""
    names = ("train", "test", "held_out")
    if isinstance(data, Mapping) and data and data.keys() <= set(names):
        found = dict(data)
    elif isinstance(data, (tuple, list)) and len(data) in (2, 3):
        found = dict(zip(names, data, strict=False))
    else:
        raise ValueError(
            "data: expected (train, test), (train, test, held_out) or a dict with these names, "
            f"got {type(data).__name__}"
        )
    found = {name: batches for name, batches in found.items() if batches is not None}
    for name, batches in found.items():
        if not isinstance(batches, Iterable) or iter(batches) is batches:
            raise ValueError(
                f"data, {name}: expected batches that can be gone through again, such as a list or "
                f"a DataLoader, got {type(batches).__name__}"
            )
    return found


# The net and the data of one of our own runs, to try averages of its workers on.


def runs_trial(folder: Path, data: Path | None, device: torch.device) -> Trial:
    """The net of a run, its training images, and those that it was tested on.

    Arguments:
        data: where its data set is; None: where runs look for it.

    Raises:
        ValueError: a run of a tree of files, or other images than the run's.
    """
    about = read_run(folder)
    if about["recipe"]["dataset"] == "imagenet":
        raise ValueError(
            f"{folder}: expected a run on images in memory, got one of a tree of files; give "
            "--model and --data of your own, or --no-trial"
        )
    recipe = recipe_from(about["recipe"], SWAPRecipe, str(folder))
    assert recipe.dataset != "imagenet", "it was refused"
    dataset = load_dataset(recipe.dataset, locate_dataset(recipe.dataset, data))
    if dataset.sha256 != about["data"].get("sha256"):
        raise ValueError(
            f"{folder}: expected the images of {about['data'].get('name')} that the run had, got a "
            "set of other content; say where they are by --data-dir DIR"
        )
    execution = _execution(about, device)
    weights = Weights(
        execution.place(make_net(recipe, dataset), device), set_apart=recipe.optimizer.set_apart
    )
    images = RunImages(recipe, dataset, weights, execution, seed=about["seed"])
    return Trial(weights, images, execution.autocast)


class RunImages:
    """A run's own images: those of its batch-norm pass, and the test images."""

    splits: tuple[str, ...] = ("test",)
    trains = True

    def __init__(
        self,
        recipe: SWAPRecipe,
        dataset: Dataset,
        weights: Weights,
        execution: Execution,
        *,
        seed: int,
    ) -> None:
        self._source = CifarSource(recipe, dataset)
        self._source.open_(weights, execution, seed=seed)
        self._shape: BatchShape = shapes(recipe.phase2, self._source.image_size)[-1]
        side = self._shape.image_size
        self._buffer = execution.empty_images(
            (recipe.batch_norm_batch_size, 3, side, side), weights.theta.device
        )
        self._evaluate = self._source.evaluator(self._shape)

    def batches(self) -> Iterable[Tensor]:
        """The batches of phase 3's pass, as the run had them."""
        return self._source.batch_norm_batches(self._buffer, self._shape, ALONE)

    def accuracy(self, split: str) -> float:
        """Top-1 accuracy on the images that the run was tested on."""
        return self._evaluate(ALONE).top1


def _execution(about: dict[str, Any], device: torch.device) -> Execution:
    """The run's own arithmetic where it can be had here."""
    try:
        execution = Execution(**about["execution"])
    except (KeyError, TypeError, ValueError):
        return default_execution(device.type)
    return execution if execution.device_type == device.type else default_execution(device.type)
