"""The net and the data of an average of files: the user's, or those of one of our own runs.

With them there are accuracies, and batch-norm statistics are recomputed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swap_fast.averaging_files.inputs import read_run
from swap_fast.averaging_files.weight_files import WeightFile, plain_names
from swap_fast.checkpoint.files import COUNT, load_state_, tensors_of
from swap_fast.config.checks import one_line
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import shapes
from swap_fast.config.recipe import SWAPRecipe, recipe_from
from swap_fast.data.cifar.files import load_dataset, locate_dataset
from swap_fast.distributed import ALONE
from swap_fast.models import make_net
from swap_fast.tasks.cifar import CifarSource
from swap_fast.training.batchnorm import BatchNormRecompute
from swap_fast.training.evaluate import Count, Evaluator, count_right, logits_of, require_classes
from swap_fast.training.weights import Weights

Batches = Callable[[], Iterable[tuple[Tensor, Tensor | None]]]
"""Goes through the inputs and labels of a split, on the net's device."""


class Evaluation:
    """A net into which files are loaded one after the other, and data to evaluate them with.

    Arguments:
        weights: the net, in float32 on its device.
        tests: by the name of a split, "held_out" or "test": measures the accuracy of the net as it
            is, a fraction.
        batches: gives the training inputs [B, ...] once, on the net's device, for batch-norm
            statistics; None: there is no training data.
        autocast: makes the context of a forward pass over these.
        forward: runs the net on a batch of another kind than inputs [B, ...].
        length: the examples of a batch.
    """

    def __init__(
        self,
        weights: Weights,
        tests: Mapping[str, Callable[[], float]],
        batches: Callable[[], Iterable[Any]] | None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        forward: Callable[[Any], object] | None = None,
        length: Callable[[Any], int] = len,
    ) -> None:
        self.weights, self._tests, self.batches = weights, tests, batches
        self.splits, self._length = tuple(tests), length
        self._recompute = BatchNormRecompute(
            weights, autocast, forward=forward, leave_out_lone=True
        )
        self._names = plain_names(tensors_of(weights.model))

    def fitted(self, file: WeightFile) -> tuple[WeightFile, str]:
        """A file by the net's own names, and the prefix that all of these have in the file.

        So has a checkpoint of Lightning `model.`; what does not begin with it is left out.
        """
        own = set(self._names.values())
        needed = [name for name in own if not name.endswith(COUNT)]
        longest = max(needed, key=len, default="")
        starts = [name.removesuffix(longest) for name in file.tensors if name.endswith(longest)]
        found = [each for each in starts if all(each + name in file.tensors for name in needed)]
        if len(found) != 1 or not found[0]:
            return file, ""
        (prefix,) = found
        short = {name.removeprefix(prefix): t for name, t in file.tensors.items()}
        return replace(file, tensors={n: t for n, t in short.items() if n in own}), prefix

    def load_(self, tensors: Mapping[str, Tensor], where: Path | str) -> None:
        """Put a file's tensors into the net.

        Raises:
            ValueError: names or shapes that are not the net's; it is then as it was.
        """
        own = {short: name for name, short in self._names.items()}
        given = {own.get(name, name): t for name, t in tensors.items()}
        state = tensors_of(self.weights.model)
        if given and not given.keys() & state.keys():
            raise ValueError(
                f"{where}: expected the net's names, {next(iter(state))} and the like, got "
                f"{next(iter(tensors))} and the like; make the net that the file is of"
            )
        # Of weights that two layers share, safetensors files often keep one name.
        by_memory = {_memory(state[name]): t for name, t in given.items() if name in state}
        for name in state.keys() - given.keys():
            if (shared := by_memory.get(_memory(state[name]))) is not None:
                given[name] = shared
        load_state_(self.weights, given, str(where))

    def recompute_(self, images: int | None = None) -> dict[str, Tensor]:
        """Compute the batch-norm statistics from all training data, or the first `images`.

        Without training data, or batch norms, nothing is done.

        Returns:
            Copies of the statistics on the host, by their plain names; none if nothing was done.
        """
        if self.batches is None or not self.weights.norms:
            return {}
        self._recompute(self._first(images))
        prefixes = {module: prefix for prefix, module in self.weights.model.named_modules()}
        return {
            self._names[f"{prefixes[norm]}.{name}".lstrip(".")]: norm.get_buffer(name).cpu().clone()
            for norm in self.weights.norms
            for name in ("running_mean", "running_var")
        }

    def _first(self, images: int | None) -> Iterator[Any]:
        """Training batches until there are that many images."""
        assert self.batches is not None, "there is training data"
        seen = 0
        for batch in self.batches():
            yield batch
            seen += self._length(batch)
            if images is not None and seen >= images:
                return

    def accuracy(self, split: str) -> float:
        """Of the net as it is, on a split: a fraction."""
        return self._tests[split]()

    def accuracies(self) -> dict[str, float]:
        """Of the net as it is, on each split."""
        return {split: self.accuracy(split) for split in self.splits}


def _memory(tensor: Tensor) -> tuple[int, torch.Size]:
    """The same for two names of one tensor."""
    return tensor.data_ptr(), tensor.shape


# The user's net and data.


def measured_weights(model: nn.Module) -> Weights:
    """Of a net that is not trained: frozen parameters are in a file's reach too."""
    for parameter in model.parameters():
        if not isinstance(parameter, nn.UninitializedParameter):  # which `Weights` refuses
            parameter.requires_grad_(parameter.is_floating_point())
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.momentum is None:
            module.momentum = 0.1  # the pass has its own
    return Weights(model, may_move=True)


def called(name: str, function: Callable[[], Any]) -> Any:
    """What a function of the user's gives; what it raises is one line.

    Raises:
        ValueError: it has raised, as one does that needs arguments.
    """
    try:
        return function()
    except Exception as error:  # the user's function may raise anything
        raise ValueError(
            f"{name}: expected a function that needs no arguments and gives its result, got "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def user_evaluation(
    make_model: Callable[[], nn.Module], data: object, device: torch.device
) -> Evaluation:
    """A net and data of the user's.

    Arguments:
        make_model: makes the net; its weights do not matter.
        data: a tuple (train, test) or (train, test, held_out), or a mapping with these names; each
            a list, a DataLoader or what else gives batches (inputs, labels) more than once.

    Raises:
        ValueError: no net, a function that raises, or data of another form.
    """
    model = called("model", make_model)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    weights = measured_weights(model.float().to(device))
    batches = {
        name: partial(_inputs_and_labels, name, split, device)
        for name, split in _splits(data).items()
    }

    def inputs() -> Iterator[Tensor]:
        return (inputs for inputs, _ in batches["train"]())

    return Evaluation(
        weights,
        {
            name: _accuracy(model, name, batches[name], device)
            for name in ("held_out", "test")
            if name in batches
        },
        inputs if "train" in batches else None,
    )


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


def _inputs_and_labels(
    name: str, split: Iterable[object], device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of a split, on the device."""
    for batch in split:
        inputs, labels = batch, None
        if isinstance(batch, Mapping) and len(batch) == 2 and "labels" in batch:
            labels = batch["labels"]
            (inputs,) = (each for key, each in batch.items() if key != "labels")
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            inputs, labels = batch
        if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor | None):
            raise ValueError(
                f"data, {name}: expected batches (inputs, labels) of tensors, or a dict of both, "
                f"got {type(batch).__name__}"
            )
        # Numbers in the net's own type.
        inputs = inputs.to(device, torch.float32 if inputs.is_floating_point() else None)
        yield inputs, None if labels is None else labels.to(device)


def _accuracy(
    model: nn.Module, split: str, batches: Batches, device: torch.device
) -> Callable[[], float]:
    """Measures the share of labels that the largest logit [B, C, ...] of dimension 1 gets right."""

    def count(batch: tuple[Tensor, Tensor | None]) -> Count:
        inputs, labels = batch
        logits = logits_of(model(inputs))
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"model: expected logits [B, C] or [B, C, ...], got {got}; give a function "
                "that returns a net with these alone"
            )
        if labels is None or labels.shape != (len(logits), *logits.shape[2:]):
            got = "none" if labels is None else f"labels {list(labels.shape)}"
            raise ValueError(
                f"data, {split}: expected a label for each of the logits "
                f"{list(logits.shape)}, got {got}"
            )
        require_classes(labels, logits.shape[1])
        correct, total = count_right(logits, labels)
        return correct, 0, total

    evaluate = Evaluator(model, lambda comm: batches(), count, nullcontext, device)

    def accuracy() -> float:
        if (found := evaluate().tested) is None:
            raise ValueError(f"data, {split}: expected batches, got none")
        return found

    return accuracy


# The net and the data of one of our own runs.


def run_evaluation(folder: Path, data: Path | None, device: torch.device) -> Evaluation:
    """The net of a run, its training images as in its batch-norm pass, and its test images.

    Arguments:
        data: where its data set is; None: where runs look for it.

    Raises:
        ValueError: a run of a tree of files, or other images than the run's.
    """
    about = read_run(folder)
    if about["recipe"]["dataset"] == "imagenet":
        raise ValueError(
            f"{folder}: expected a run on images in memory, got one of a tree of files; give "
            "--model and --data of your own, or --no-evaluate"
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
        execution.place(make_net(recipe, dataset), device), groups=recipe.optimizer.groups
    )
    source = CifarSource(recipe, dataset)
    source.open_(weights, execution, seed=about["seed"])
    shape = shapes(recipe.phase2, source.image_size)[-1]
    side, evaluate = shape.image_size, source.evaluator(shape)
    buffer = execution.empty_images((recipe.batch_norm_batch_size, 3, side, side), device)
    return Evaluation(
        weights,
        {"test": lambda: evaluate(ALONE).top1},
        lambda: source.batch_norm_batches(buffer, shape, ALONE),
        execution.autocast,
    )


def _execution(about: dict[str, Any], device: torch.device) -> Execution:
    """The run's own arithmetic where it can be had here."""
    try:
        execution = Execution(**about["execution"])
    except (KeyError, TypeError, ValueError):
        return default_execution(device.type)
    return execution if execution.device_type == device.type else default_execution(device.type)
