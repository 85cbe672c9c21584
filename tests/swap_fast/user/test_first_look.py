"""Data, losses and nets as people have them: taken, or refused in one line before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from own_nets import PHASE1, assert_same_bits, bits, blobs, net, plain_net, small_swap
from small_trainer import calling
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from swap_fast.config.phase import Phase
from swap_fast.record import EpochRow
from swap_fast.user.batch import batch_length
from swap_fast.user.data import Placement
from swap_fast.user.objective import Objective

X, Y = blobs()


def refused(message: str, make: Any = net, train: Any = None, **said: Any) -> None:
    """Such a run ends in one line, before its first epoch."""
    rows: list[EpochRow] = []
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        small_swap(make, train, **said, callbacks=[calling(on_epoch_end=rows.append)])
    assert rows == []


# The size of a batch.


@dataclass
class Graphs:
    """A batch that moves itself."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Graphs:
        return Graphs(self.x.to(device), self.y.to(device))

    def __len__(self) -> int:
        return len(self.y)


class Counted(Graphs):
    """One whose length is not that of its examples."""

    num_graphs = 7


COLUMN, EDGES = torch.zeros(32), torch.zeros(2, 50)
IMAGES = [torch.zeros(3, side, side) for side in (5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        ({"x": COLUMN, "one number": torch.zeros(()), "text": ["a"]}, 32),
        ({"edge_index": EDGES, "x": COLUMN, "y": COLUMN}, 32),
        ([[COLUMN, COLUMN], [COLUMN, COLUMN]], 32),
        ((IMAGES, [{"boxes": torch.zeros(n, 4)} for n in (1, 0, 2, 2)]), 4),
        (Graphs(COLUMN, COLUMN), 32),
        (Counted(COLUMN, COLUMN), 7),
    ],
)
def test_the_examples_of_a_batch_are_counted(batch: Any, length: int) -> None:
    assert batch_length(batch) == length


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ({"edge_index": EDGES, "x": COLUMN}, "lengths 2, 32; make it a class with"),
        ({"text": ["a"]}, "a dict"),
        (dataclass(type("Bare", (), {}))(), "a Bare"),
    ],
)
def test_a_batch_whose_examples_cannot_be_counted_is_refused(batch: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^batch: expected tensors \[B, \.\.\.\].*, got {got}"):
        batch_length(batch)


def of_columns(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, int]:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, Mapping) else (batch.x, batch.y)
    logits = model(x)
    return functional.cross_entropy(logits, y), (logits.argmax(1) == y).sum(), len(y)


def test_batches_that_move_themselves_or_begin_with_edges_train_as_others() -> None:
    def run(collate: Any) -> dict[str, Tensor]:
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, collate_fn=collate)
        return bits(small_swap(train=loader, loss=of_columns, phase1=None, phase2=None, workers=1))

    def columns(rows: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])

    plain = run(lambda rows: dict(zip("xy", columns(rows), strict=True)))
    assert_same_bits(run(lambda rows: Graphs(*columns(rows))), plain)
    led = run(lambda rows: {"edges": EDGES} | dict(zip("xy", columns(rows), strict=True)))
    assert_same_bits(led, plain)


# Tables.


def test_tables_of_other_kinds_train_as_tensors() -> None:
    expected = bits(small_swap(train=(X, Y)))

    class Frame:
        """What pandas has: an array by request."""

        def __init__(self, values: Any) -> None:
            self.values = values

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            return np.asarray(self.values, dtype)

    reversed_twice = X.flip(0).numpy()[::-1]
    foreign = X.numpy().astype(X.numpy().dtype.newbyteorder(">"))
    still = X.numpy().copy()
    still.flags.writeable = False
    for x, y in (
        (X.double().numpy(), Y.tolist()),
        (reversed_twice, Y.int()),
        (foreign, Y.numpy().astype(np.uint8)),
        (still, Frame(Y.numpy())),
        (Frame(X.numpy()), Y),
    ):
        assert_same_bits(bits(small_swap(train=(x, y))), expected)
    assert_same_bits(bits(small_swap(train=[X, Y])), expected)

    def of_last_column(model: nn.Module, rows: Tensor) -> Tensor:
        return functional.cross_entropy(model(rows[:, :-1]), rows[:, -1].long())

    whole = torch.cat([X, Y[:, None]], dim=1)
    runs = [small_swap(train=each, loss=of_last_column) for each in (whole, Frame(whole.numpy()))]
    assert_same_bits(*map(bits, runs))


def test_what_is_no_table_for_the_net_is_refused_by_its_types() -> None:
    whole = torch.randint(0, 255, X.shape, dtype=torch.uint8)
    got = r"whose parameters are float32, got uint8 \[8, 6\], int64 \[8\]: "
    refused(rf"train_data: expected a batch that the net takes, {got}", train=(whole, Y))
    got = r"whose parameters are float32, got float32 \[8, 5\], int64 \[8\]: "
    refused(rf"test_data: expected a batch that the net takes, {got}", test=(X[:, 1:], Y))
    refused("train_data: expected columns of numbers, got a list: ", train=(X, ["a"] * len(Y)))
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 44, 8)]
    refused(
        "train_data: expected at least one batch of 16 .*, got 6; .*; a list is one of examples: "
        r"of batches make DataLoader\(batches, batch_size=None\)",
        train=batches,
    )
    small_swap(train=DataLoader(batches[:-1], batch_size=None))


# Targets.


@pytest.mark.parametrize("kind", ["tensors", "data set"])
def test_classes_that_have_no_logit_are_named(kind: str) -> None:
    line = "targets: expected class numbers 0 to 3, as the logits have, got 4; number the classes "
    wrong = Y.clone()
    wrong[-1] = 4  # of the first batch it is no part
    if kind == "tensors":
        refused(line, train=(X, wrong))
        refused(line, test=(X, wrong))
    else:
        with pytest.raises(ValueError, match=f"^{line}"):
            small_swap(train=TensorDataset(X, wrong))
    refused(line.replace("got 4", "got -1"), train=(X, Y - 1))


def test_classes_are_looked_at_before_batches_go_to_a_gpu() -> None:
    # In place of a GPU the device meta, which has no values: there nothing could be read.
    objective = Objective(plain_net(), None)
    place = Placement(
        device=torch.device("meta"), seed=0, augment=None, check=objective.check_targets
    )
    place.put((X, Y + 1), 0)  # how many classes there are is not known yet
    objective.try_batch((X, Y), Y)
    place.put((X, torch.where(Y == 0, -100, Y)), 0)
    place.put({"x": X, "text": ["a"]}, 0)
    for batch in ((X, Y + 1), {"x": X, "labels": Y + 1}):
        with pytest.raises(ValueError, match="expected class numbers 0 to 3"):
            place.put(batch, 0)


@pytest.mark.parametrize("ignored", [-100, 0])
def test_targets_that_the_loss_leaves_out_are_left_out_of_accuracy(ignored: int) -> None:
    masked = torch.where(torch.arange(len(Y)) % 4 != 0, Y, ignored)
    loss = None if ignored == -100 else nn.CrossEntropyLoss(ignore_index=ignored)
    result = small_swap(train=(X, masked), test=(X, masked), loss=loss)
    with torch.no_grad():
        right = result.model(X).argmax(1) == masked
    assert result.accuracy == pytest.approx(float(right[masked != ignored].double().mean()))


# Losses of torch's own, and what nets return.

SAME = {
    "a class": nn.CrossEntropyLoss(label_smoothing=0.1),
    "a partial function": partial(functional.cross_entropy, label_smoothing=0.1),
}


@pytest.mark.parametrize("loss", SAME.values(), ids=SAME.keys())
def test_a_criterion_is_given_what_the_model_returns_and_the_targets(loss: Any) -> None:
    def own(model: nn.Module, batch: Any) -> Any:
        logits = model(batch[0])
        mean = functional.cross_entropy(logits, batch[1], label_smoothing=0.1)
        return mean, (logits.argmax(1) == batch[1]).sum(), len(logits)

    expected = small_swap(test=(X, Y), loss=own)
    result = small_swap(test=(X, Y), loss=loss)
    assert_same_bits(bits(result), bits(expected))
    assert result.accuracy == expected.accuracy


def test_a_criterion_of_numbers_counts_none() -> None:
    def own(model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[1])

    targets = X[:, :4].double()
    result = small_swap(plain_net, (X, targets), loss=nn.MSELoss())
    assert_same_bits(bits(result), bits(small_swap(plain_net, (X, targets.float()), loss=own)))
    assert result.accuracy is None
    refused(
        r"loss: expected a mean loss, .* got a tensor \[8, 4\]",
        train=(X, targets),
        loss=nn.MSELoss(reduction="none"),
    )


class Own(nn.Module):
    """A loss of outputs and targets, as many libraries have them."""

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, target)


def test_a_module_is_a_loss_of_outputs_and_targets() -> None:
    result = small_swap(test=(X, Y), loss=Own())
    assert_same_bits(bits(result), bits(small_swap(test=(X, Y))))
    assert result.accuracy is None
    scaled = Own()
    scaled.scale = nn.Parameter(torch.ones(()))
    refused("loss: expected one without trainable parameters, .* got a Own", loss=scaled)


def test_a_function_of_outputs_and_targets_is_refused() -> None:
    line = r"loss: expected a function of the model and a batch, .* fails on them: TypeError: .*"
    refused(line, test=(X, Y), loss=lambda outputs, target: Own()(outputs, target))


def one_number() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))


@pytest.mark.parametrize("loss", [nn.MSELoss(), functional.mse_loss, partial(functional.l1_loss)])
def test_whole_numbers_are_targets_of_a_loss_of_numbers(loss: Any) -> None:
    whole, real = (small_swap(one_number, (X, y), loss=loss) for y in (Y, Y.float()))
    assert_same_bits(bits(whole), bits(real))


def test_classes_stay_whole_for_a_margin_loss() -> None:
    small_swap(plain_net, (X, Y), loss=nn.MultiMarginLoss())


def returning(form: Any) -> Any:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain_net()

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
            return form(self.body(x if scale is None else x * scale))

    return Net


@dataclass
class Output:
    logits: Tensor


FORMS = {
    "logits of an object": Output,
    "logits of a dict": lambda logits: {"loss": None, "logits": logits},
    "out of a dict": lambda logits: {"out": logits},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_logits_are_found_in_what_a_net_returns(form: Any) -> None:
    expected = small_swap(returning(lambda logits: logits), test=(X, Y))
    result = small_swap(returning(form), test=(X, Y))
    assert_same_bits(bits(result), bits(expected))
    assert result.accuracy == expected.accuracy


def test_a_tuple_is_no_logits() -> None:
    refused(
        r"model: expected logits \[B, C\] .*, got a tuple; pass loss=",
        returning(lambda logits: (logits, None)),
    )


def test_mappings_with_labels_are_given_by_name() -> None:
    expected = bits(small_swap(returning(Output)))
    one = {"x": X, "labels": Y}
    assert_same_bits(bits(small_swap(returning(Output), one)), expected)
    named = {"labels": Y, "scale": torch.full((len(X), 1), 2.0), "x": X / 2}
    assert_same_bits(bits(small_swap(returning(Output), named)), expected)
    refused("targets: expected class numbers", returning(Output), {"x": X, "labels": Y + 1})


# One example alone.


def of_65(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*blobs(65)), batch_size=16, **options)


SHARED: dict[str, Any] = {
    "phase1": replace(PHASE1, global_batch_size=64, gpus_per_model=4),
    "phase2": Phase(global_batch_size=32, peak_lr=0.1, max_epochs=1, gpus_per_model=2),
}


@pytest.mark.parametrize("by_sampler", [False, True])
def test_a_last_batch_of_one_example_is_refused_before_training(by_sampler: bool) -> None:
    data = TensorDataset(*blobs(65))
    sampler = BatchSampler(range(65), 16, drop_last=False)
    loader = DataLoader(data, batch_sampler=sampler) if by_sampler else of_65()
    refused(
        "train_data: expected 2 examples or more in every batch, got 1 in the last; pass drop_last",
        train=loader,
        **SHARED,
    )
    small_swap(train=of_65(drop_last=True), test=of_65(), **SHARED)
    small_swap(plain_net, of_65(), **SHARED)


def test_one_example_of_batches_that_say_nothing_is_left_out_of_the_statistics() -> None:
    class Batches:
        def __init__(self, *, last: bool) -> None:
            self.given = list(of_65(drop_last=not last))

        def __iter__(self) -> Iterator[Any]:
            return iter(self.given)

    whole, without = (small_swap(train=Batches(last=last), **SHARED) for last in (True, False))
    assert_same_bits(bits(whole), bits(without))


# An optimizer.


def test_an_optimizer_that_is_made_already_is_refused() -> None:
    made = torch.optim.SGD(net().parameters(), lr=0.1)
    refused(
        "optimizer: expected a function that makes one of parameters, got a SGD that is made",
        optimizer=made,
    )


class Relative(torch.optim.Optimizer):
    def __init__(self, parameters: Any, lr: float | None = None) -> None:
        super().__init__(parameters, {"lr": lr})


class Closure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:
        return closure()


class ScheduleFree(torch.optim.SGD):
    def train(self) -> None: ...

    def eval(self) -> None: ...


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        (Relative, "expected groups with a learning rate lr, .* got Relative with none; give"),
        (Closure, "expected one that needs no closure, got Closure"),
        (ScheduleFree, "expected one that leaves its weights in the model, got ScheduleFree"),
    ],
)
def test_an_optimizer_that_follows_no_schedule_is_refused(optimizer: Any, line: str) -> None:
    refused(f"optimizer: {line}", optimizer=optimizer)
