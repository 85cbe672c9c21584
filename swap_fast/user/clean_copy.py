"""A clean copy of a user's model: what its batch-norm statistics are, and how good it is."""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from swap_fast.averaging_files.evaluate import Evaluation, measured_weights
from swap_fast.averaging_files.weight_files import plain_names
from swap_fast.config.checks import one_line, typed_arguments
from swap_fast.training.weights import refuse_synchronized
from swap_fast.user.batch import batch_length
from swap_fast.user.data import BatchesAsGiven, Placement, generators_kept, one_pass
from swap_fast.user.net import bare, explained, refuse_wrapped

Forward = Callable[[nn.Module, Any], object]
"""Given a model and a batch: runs the model on it."""
Measure = Callable[[nn.Module], Any]
"""Given a model in eval mode: a number, the larger the better, such as its accuracy, a fraction."""


@typed_arguments("batches")
def recompute_batchnorm(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None
) -> None:
    """Compute a model's batch-norm statistics again, from data, in place (Algorithm 1, line 29).

    For averaged weights, of which averaged statistics are not those of the data. They become the
    exact moments of each layer's input over all batches, whatever their sizes; torch's `update_bn`
    takes the mean of the batches' variances, which is a little smaller. Layers that the model keeps
    in eval mode, weights, gradients and the user's generators stay as they are; counts of batches
    too.

    Arguments:
        model: on one device, to which the batches are moved.
        batches: as training has them, such as a DataLoader.
        forward: as of `refine`; it may open an autocast.

    Raises:
        ValueError: batches that cannot be used, no trainable parameter, or one value a channel.
    """
    refuse_wrapped(model, "model")
    with generators_kept("cuda" if torch.cuda.is_initialized() else "cpu"):
        evaluation = open_evaluation(model, batches, forward, None, device_of(model))
        statistics = evaluation.recompute_()
    if not all(torch.isfinite(t).all() for t in statistics.values()):
        raise ValueError("batch-norm statistics: expected finite ones, got NaN or infinity")
    names = plain_names(model.state_dict())
    for name, tensor in model.state_dict().items():
        if names.get(name) in statistics:
            tensor.copy_(statistics[names[name]])


def open_evaluation(
    model: nn.Module,
    batches: Iterable[Any] | None,
    forward: Forward | None,
    evaluate: Measure | None,
    where: torch.device,
) -> Evaluation:
    """A clean copy of the model into which weights are loaded, with what measures it."""
    net = copied(bare(model)).to(where).eval()
    weights = measured_weights(net)
    refuse_synchronized(weights.norms)
    if weights.norms and batches is None:
        raise ValueError(
            "batches: expected training batches for the statistics of the net's batch norm, got "
            "none; pass batches=, such as a DataLoader"
        )
    one = None
    if weights.norms:
        given, place = _given(batches), Placement(device=where, seed=0, augment=None)
        size = given.batch_size
        one = partial(one_pass, given, place, batch_size=size, shuffled=False)
    return Evaluation(
        weights,
        {} if evaluate is None else {"test": partial(_measured, evaluate, net)},
        one,
        forward=partial(forward or _forward, net),
        length=batch_length,
    )


def _given(batches: Any) -> BatchesAsGiven:
    """The user's batches, where they are such: not examples, or whole columns of these."""
    parts = batches if isinstance(batches, tuple) else ()
    are_columns = len({(t.dtype, t.shape[1:]) for t in parts if isinstance(t, Tensor)}) > 1
    is_other = isinstance(batches, (Tensor, Dataset, Mapping)) or not isinstance(batches, Iterable)
    if is_other or are_columns:
        raise ValueError(
            "batches: expected a DataLoader, a list of batches or what else gives batches again "
            f"and again, got a {type(batches).__name__}; wrap it in a DataLoader"
        )
    return BatchesAsGiven(batches, "batches")


def _forward(model: nn.Module, batch: Any) -> object:
    """Run a model on a batch of a usual form: see `refine`."""
    with explained("batches", batch, model, "the data, or pass forward="):
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, (tuple, list)):
            return model(*(batch[:-1] or batch))
        return model(batch)


def _measured(evaluate: Measure, net: nn.Module) -> float:
    """What the user's function says of a net."""
    net.eval()
    with torch.no_grad():
        found = evaluate(net)
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"evaluate: expected a number, got a {type(found).__name__}; return the accuracy alone"
        ) from None


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model.

    Raises:
        ValueError: the model holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever the net holds may raise
        got = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"model: expected one that copy.deepcopy copies, got {got}") from error


def device_of(model: nn.Module) -> torch.device:
    """Of its first tensor."""
    tensors = (tensor for each in (model.parameters(), model.buffers()) for tensor in each)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
