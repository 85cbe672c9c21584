"""The loss of a model on the user's batches, and how much of them was right."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from swap_fast.config.checks import one_line
from swap_fast.training.evaluate import IGNORED_TARGET, count_right, logits_of, require_classes

Loss = Callable[[nn.Module, Any], Any]
"""Given the model and a batch: the mean loss, or (the mean loss, how many were right, of how many).
"""
Metric = Callable[[nn.Module, Any], tuple[Any, Any]]
"""Given the model and a test batch: a sum, and over how many."""


class Measured(NamedTuple):
    """What a forward pass says of a batch."""

    loss: Tensor
    """The mean, a scalar."""
    correct: Tensor | float | None
    """How many were right; None where the loss does not say."""
    total: Tensor | float | None
    """Of how many."""


def is_criterion(loss: Any) -> bool:
    """Whether it is a loss of what the model returns and the targets: a module, or torch's."""
    loss = _function(loss)
    return isinstance(loss, nn.Module) or getattr(loss, "__module__", "") == functional.__name__


def _function(loss: Any) -> Any:
    """The loss itself, where it is a partial."""
    return loss.func if isinstance(loss, partial) else loss


def counts_right(loss: Any) -> bool:
    """Whether accuracy is known to follow from the loss: it has classes as its targets."""
    of_classes = (functional.cross_entropy, functional.nll_loss)
    is_one = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss))
    return loss is None or is_one or _function(loss) in of_classes


def _takes_indices(loss: Any) -> bool:
    """Whether its targets stay whole numbers: those of a module of the user's, or of classes."""
    loss = _function(loss)
    kinds = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.CTCLoss)
    functions = (
        *(functional.multi_margin_loss, functional.multilabel_margin_loss),
        functional.ctc_loss,
    )
    is_own = isinstance(loss, nn.Module) and not isinstance(loss, _Loss)
    return is_own or isinstance(loss, kinds) or loss in functions


class Objective:
    """The loss of a model on a batch, and how much of the batch was right.

    Without a loss function, and with a criterion, a batch is (inputs..., targets), or a
    mapping in which "labels" are the targets. The model is called with the inputs, several of a
    mapping by their names, and gives logits [B, C] or [B, C, ...] for targets [B] or [B, ...] of
    class numbers. Inputs are rounded to the type of the model's parameters, where they share one.

    Arguments:
        loss: the user's; None: cross entropy.

    Raises:
        ValueError: a class of losses, or one with parameters to train.
    """

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        if isinstance(kind := loss, type):
            raise ValueError(
                f"loss: expected a function, or a loss that is made, got a class; pass "
                f"{kind.__name__}()"
            )
        self._model, self._loss = model, loss
        self._criterion: Any = loss if is_criterion(loss) else functional.cross_entropy
        if isinstance(self._criterion, nn.Module):  # its class weights go where the logits are
            if any(parameter.requires_grad for parameter in self._criterion.parameters()):
                raise ValueError(
                    "loss: expected one without trainable parameters, which no optimizer gets, got "
                    f"{kind_of(loss)} with some; make them a part of the net"
                )
            self._criterion.to(next(model.parameters()).device)
        # Whether the loss takes outputs and targets; another one takes the model and the batch.
        self.is_criterion = loss is None or is_criterion(loss)
        self._counts = counts_right(loss)
        self._num_classes: int | None = None  # known once a batch was tried
        said = getattr(loss, "keywords", {}).get("ignore_index", IGNORED_TARGET)  # a partial's
        self._ignored = getattr(loss, "ignore_index", said)
        self._takes_indices = _takes_indices(loss)
        types = {p.dtype for p in model.parameters() if p.is_floating_point()}
        self._dtype = types.pop() if len(types) == 1 else None

    def __call__(self, batch: Any) -> Measured:
        """Run the model on a batch.

        Raises:
            ValueError: a batch, logits or a loss of another form.
        """
        if self.is_criterion or self._loss is None:
            said = self._of_targets(batch)
        else:
            try:
                said = self._loss(self._model, batch)
            except (TypeError, AttributeError) as error:  # as of one that takes other arguments
                raise ValueError(
                    "loss: expected a function of the model and a batch, got one that fails on "
                    f"them: {type(error).__name__}: {one_line(error, 160)}; for outputs and "
                    "targets make it an nn.Module, or call the model in it"
                ) from error
        loss, *counts = said if isinstance(said, tuple) else (said,)
        if not isinstance(loss, Tensor) or loss.dim() != 0 or len(counts) not in (0, 2):
            got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else kind_of(loss)
            expected = "a mean loss, or (a mean loss, how many were right, of how many)"
            got += f" and {len(counts)} more values" if counts else ""
            raise ValueError(f"loss: expected {expected}, got {got}; take the loss's mean()")
        require_numbers("loss", counts)
        return Measured(loss, *(counts or (None, None)))

    def outputs(self, batch: Any) -> tuple[Any, Any]:
        """What the model makes of a batch's inputs, its logits where it names some; the targets.

        Raises:
            ValueError: a batch without targets.
        """
        if (targets := _targets(batch)) is None:
            expected = "(inputs, targets) for the cross entropy, or a mapping with labels"
            _refuse("batch", expected, kind_of(batch))
        if not isinstance(batch, Mapping):
            return logits_of(self._model(*map(self._rounded, batch[:-1]))), targets
        named = {name: self._rounded(x) for name, x in batch.items() if name != "labels"}
        made = self._model(**named) if len(named) > 1 else self._model(*named.values())
        return logits_of(made), targets

    def _of_targets(self, batch: Any) -> Any:
        """The criterion of a batch, and of classes how many were right and of how many."""
        logits, targets = self.outputs(batch)
        if not self._counts:
            is_tensor = isinstance(targets, Tensor) and not targets.is_complex()
            if is_tensor and not targets.is_floating_point() and not self._takes_indices:
                targets = targets.to(self._dtype or torch.float32)
            return self._criterion(logits, self._rounded(targets))
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            _refuse("model", "logits [B, C] for the cross entropy", _shape(logits))
        shape = [len(logits), *logits.shape[2:]]
        if not isinstance(targets, Tensor) or list(targets.shape) != shape:
            expected = f"class numbers {shape} for logits {list(logits.shape)}"
            _refuse("targets", expected, _shape(targets), _as_class_numbers(targets, logits))
        if targets.is_floating_point():
            remedy = f"give whole numbers, targets.long(), or {PASS_LOSS}"
            _refuse("targets", "class numbers", str(targets.dtype), remedy)
        targets = targets.long()
        exact = logits.float() if logits.dtype.itemsize == 2 else logits
        try:
            loss = self._criterion(exact, targets)
        except (IndexError, RuntimeError):
            require_classes(targets, logits.shape[1], self._ignored)
            raise
        return loss, *count_right(logits, targets, self._ignored)

    def check_targets(self, batch: Any) -> None:
        """Refuse targets on the host that the model, once tried, has no logits for.

        On a GPU their loss would end the whole process.

        Raises:
            ValueError: names the first.
        """
        targets = _targets(batch)
        if self._num_classes is None or not isinstance(targets, Tensor):
            return
        if targets.device.type == "cpu" and not targets.is_floating_point():
            require_classes(targets, self._num_classes, self._ignored)

    def try_batch(self, batch: Any, all_targets: Tensor | None) -> Measured:
        """Run the model and a criterion on a batch, before any training.

        Arguments:
            all_targets: of all examples, where they are at hand, to see that none lacks a logit.

        Raises:
            ValueError: inputs that the model does not take, or targets that it has no logits for.
        """
        logits, targets = self.outputs(batch)
        if self._counts and isinstance(logits, Tensor) and logits.dim() > 1:
            self._num_classes = logits.shape[1]
            for each in (targets, all_targets):
                if isinstance(each, Tensor) and not each.is_floating_point():
                    require_classes(each, self._num_classes, self._ignored)
        return self(batch)

    def _rounded(self, given: Any) -> Any:
        is_real = isinstance(given, Tensor) and given.is_floating_point()
        return given.to(self._dtype) if is_real and self._dtype is not None else given


def require_numbers(name: str, counts: Iterable[Any]) -> None:
    """Refuse what cannot be added up over batches: a function's numbers, or tensors of one."""
    for count in counts:
        is_number = isinstance(count, (int, float)) or getattr(count, "shape", None) == ()
        got = f"a tensor {list(count.shape)}" if isinstance(count, Tensor) else repr(count)
        if not is_number:
            raise ValueError(f"{name}: expected numbers, or tensors of one, got {got}; sum it up")


def _targets(batch: Any) -> Any:
    """A batch's targets: "labels", or the last of two parts or more; None where there are none."""
    if isinstance(batch, Mapping):
        return batch.get("labels") if len(batch) > 1 else None
    return batch[-1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


PASS_LOSS = "pass loss=, a function of the model and a batch"


def _as_class_numbers(targets: Any, logits: Tensor) -> str:
    """What makes class numbers of targets [B, 1] or [B, C]; else another loss."""
    shape = list(targets.shape) if isinstance(targets, Tensor) else []
    if shape == [len(logits), 1] != list(logits.shape):
        return f"give targets.squeeze(1), or {PASS_LOSS}"
    if shape == list(logits.shape):
        return f"give targets.argmax(1), or {PASS_LOSS}"
    return PASS_LOSS


def _refuse(what: str, expected: str, got: str, remedy: str = PASS_LOSS) -> NoReturn:
    raise ValueError(f"{what}: expected {expected}, got {got}; {remedy}")


def _shape(value: Any) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else kind_of(value)


def kind_of(value: Any) -> str:
    """A value's class, for a message."""
    return f"a {type(value).__name__}"
