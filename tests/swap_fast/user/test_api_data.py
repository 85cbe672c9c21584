"""`swap_fast.swap` on data of every form, with losses and metrics of the user's."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from own_nets import PHASE1, PHASE2, assert_same_bits, bits, blobs, plain_net, small_swap
from small_trainer import calling
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from swap_fast.config.phase import Phase
from swap_fast.record import EpochRow
from swap_fast.user.data import MicroBatch, Placement, one_pass, open_data, phase_batches
from swap_fast.user.method import UserMethod, user_method
from swap_fast.user.objective import Objective

X, Y = blobs()


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A map-style data set of the same examples."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


class Noisy(Pairs):
    """One whose transforms draw from all three generators."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(6) + random.random() * 0.1 + np.random.rand() * 0.1, y


def of_dicts(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    logits = model(batch["points"])
    right = (logits.argmax(1) == batch["classes"]).sum()
    return nn.functional.cross_entropy(logits, batch["classes"]), right, len(logits)


def test_every_form_of_the_same_examples_trains_the_same() -> None:
    expected = bits(small_swap(train=(X, Y), test=(X, Y)))
    arrays = X.numpy(), Y.numpy()
    examples = [(X[i], int(Y[i])) for i in range(len(X))]
    for data in (TensorDataset(X, Y), Pairs(), arrays, examples):
        assert_same_bits(bits(small_swap(train=data, test=data)), expected)
    columns = {"points": X, "classes": Y}
    assert_same_bits(bits(small_swap(train=columns, test=columns, loss=of_dicts)), expected)
    columns["classes"] = Y.tolist()
    assert_same_bits(bits(small_swap(train=columns, test=columns, loss=of_dicts)), expected)
    rows = [{"points": X[i], "classes": Y[i]} for i in range(len(X))]
    assert_same_bits(bits(small_swap(train=rows, loss=of_dicts)), expected)


@pytest.mark.parametrize("said", [{"collate": list}, {"loader_processes": 1}])
@pytest.mark.parametrize("train", [blobs(), DataLoader(Pairs(), batch_size=8)], ids=type)
def test_what_only_a_data_set_uses_is_refused_without_one(train: Any, said: dict[str, Any]) -> None:
    (name,) = said
    with pytest.raises(ValueError, match=f"^{name}: expected a data set of examples to use it on"):
        small_swap(train=train, **said)


def test_collate_makes_the_batches() -> None:
    def collate(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        points, classes = zip(*examples, strict=True)
        return {"points": torch.stack(points), "classes": torch.stack(classes)}

    result = small_swap(train=Pairs(), collate=collate, loss=of_dicts)
    assert_same_bits(bits(result), bits(small_swap(train=(X, Y))))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_transforms_draw_the_same_in_any_number_of_processes() -> None:
    alone, with_two = (small_swap(train=Noisy(), loader_processes=n) for n in (0, 2))
    assert_same_bits(bits(alone), bits(with_two))
    assert not torch.equal(alone.model[0].weight, small_swap(train=Pairs()).model[0].weight)


def test_augment_is_given_each_batch_and_a_generator_of_its_own() -> None:
    drawn: list[float] = []

    def augment(batch: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(batch[0].shape, generator=generator)
        drawn.append(float(noise[0, 0]))
        return batch[0] + 0.1 * noise, batch[1]

    one = bits(small_swap(augment=augment, test=(X, Y)))
    first, drawn = drawn, []
    assert_same_bits(bits(small_swap(augment=augment)), one)
    assert first == drawn  # nor is a test batch augmented
    # Of a first look, then 2 epochs of 2 updates of 2 replicas, 2 workers' 2 epochs of 5, and the
    # pass's 6 batches.
    assert len(set(first[1:])) == len(first[1:]) == 8 + 20 + 6


def test_several_inputs_come_before_the_targets() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain_net()

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.body(one + other)

    result = small_swap(Sum, (X / 2, X / 2, Y))
    expected = small_swap(plain_net, (X, Y))
    torch.testing.assert_close(result.model.body.state_dict(), expected.model.state_dict())


# Batches as they come.


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=8, **options)


def test_batches_as_they_come_are_the_replicas_micro_batches() -> None:
    # In their own order, which a plain loop can follow: phase 1's updates take two of them.
    kept = list(loader(drop_last=True))
    model = initial = plain_net_of_seed_0()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for step in range(2):
            optimizer.zero_grad()
            for x, y in kept[2 * step : 2 * step + 2]:
                (nn.functional.cross_entropy(model(x), y) / 2).backward()
            optimizer.step()
    for _ in range(2):
        for x, y in kept:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    result = small_swap(
        plain_net,
        loader(drop_last=True),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        schedule1=lambda epoch: 0.1,
        schedule2=lambda epoch: 0.1,
    )
    for state in result.worker_states:
        torch.testing.assert_close(state, dict(initial.state_dict()), rtol=1e-5, atol=1e-6)


def plain_net_of_seed_0() -> nn.Module:
    torch.manual_seed(0)
    return plain_net()


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_shuffling_loader_is_reproduced(own_generator: bool) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(99) if own_generator else None
        shuffled = loader(shuffle=True, generator=generator)
        if own_generator:
            next(iter(shuffled))  # wherever it was left
        return bits(small_swap(train=shuffled, seed=seed))

    assert_same_bits(run(1), run(1))
    assert not torch.equal(run(1)["worker0.0.weight"], run(1)["worker1.0.weight"])


def test_a_short_last_batch_is_trained_on_too() -> None:
    result = small_swap(train=loader())
    assert [row.train_accuracy * 44 for row in result.epochs if row.phase == 2] == pytest.approx(
        [round(row.train_accuracy * 44) for row in result.epochs if row.phase == 2]
    )


class Stream(IterableDataset[Any]):
    """Single examples, one after another."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


def test_batches_without_a_length_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    result = small_swap(train=DataLoader(Stream(), batch_size=8), progress=True)
    assert_same_bits(bits(result), bits(small_swap(train=loader())))
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("train_data has no length: counting its batches, which reads an epoch")


def test_a_stream_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                yield X[0], Y[0]

    monkeypatch.setattr("swap_fast.user.data.MOST_COUNTED", 20)
    line = r"^train_data: expected epochs with an end, .* got more than 20 batches .*islice$"
    with pytest.raises(ValueError, match=line):
        small_swap(train=DataLoader(Endless(), batch_size=8))


def test_what_a_fixed_order_costs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    phases = {"phase1": replace(PHASE1, global_batch_size=32), "phase2": PHASE2, "workers": 4}
    result = small_swap(train=loader(), progress=True, **phases)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("train_data gives its batches in the same order in every epoch, so")
    assert lines[3] == "phase 1 never uses the last 2 of 6 batches: an update takes 4"
    (note,) = result.notes
    assert note.startswith("workers 0 and 1 have the same weights, and 5 more pairs of workers too")
    assert lines[-1] == note
    assert result.record["notes"] == [note]
    data = TensorDataset(X, Y)
    by_sampler = BatchSampler(RandomSampler(data), 8, drop_last=False)
    for each in (DataLoader(data, 8, shuffle=True), DataLoader(data, batch_sampler=by_sampler)):
        assert small_swap(train=each, progress=True, **phases).notes == ()
        assert "same order" not in capsys.readouterr().out


def test_phases_follow_from_the_loaders_batch() -> None:
    result = small_swap(train=loader(), phase1=None, phase2=None)
    said = result.record["settings"]
    sizes = said["phase1"]["global_batch_size"], said["phase2"]["global_batch_size"]
    assert sizes == (16, 8)


# Losses and metrics.


def test_a_loss_alone_has_no_train_accuracy() -> None:
    result = small_swap(
        train=(X, X.sum(1)),
        test=(X, X.sum(1)),
        loss=lambda model, batch: nn.functional.mse_loss(model(batch[0])[:, 0], batch[1]),
        metric=lambda model, batch: (
            -(model(batch[0])[:, 0] - batch[1]).square().sum(),
            len(batch[1]),
        ),
    )
    assert all(math.isnan(row.train_accuracy) for row in result.epochs)
    assert all(row["train_accuracy"] is None for row in result.record["epochs"])
    with torch.no_grad():
        error = nn.functional.mse_loss(result.model(X)[:, 0], X.sum(1))
    assert result.accuracy == pytest.approx(-float(error), rel=1e-5)


def test_counts_may_be_of_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x[..., None]).transpose(1, 2)  # [B, 3, 6]

    targets = torch.randint(3, (44, 6), generator=torch.Generator().manual_seed(0))
    result = small_swap(Tokens, (X, targets), (X, targets))
    with torch.no_grad():
        expected = (result.model(X).argmax(1) == targets).double().mean()
    assert result.accuracy == pytest.approx(float(expected))


class Named(NamedTuple):
    points: Tensor
    classes: Tensor


def test_batches_of_any_structure_are_moved() -> None:
    class Moving:
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y, self.device = x, y, None

        def to(self, device: torch.device) -> Moving:
            moved = Moving(self.x.to(device), self.y)
            moved.device = device
            return moved

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        assert batch["own"].device == torch.device("cpu")
        assert batch["text"] == ["as", "it", "is"]
        named = batch["named"]
        assert isinstance(named, Named)
        return nn.functional.cross_entropy(model(named.points), named.classes)

    given = [
        {"named": Named(x, y), "own": Moving(x, y), "text": ["as", "it", "is"]} for x, y in loader()
    ]

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return iter(given)

    assert small_swap(train=Again(), loss=loss).accuracy is None


# Plans.


def requests_of(replicas: list[range]) -> list[Tensor]:
    """The batches of phase 2's worker 1, epoch by epoch, as each of some ranks has them."""
    data = open_data((torch.arange(44), Y), "train_data")
    phase = Phase(global_batch_size=16, peak_lr=0.1, max_epochs=2, gpus_per_model=2)
    place = Placement(device=torch.device("cpu"), seed=0, augment=None)
    made = []
    for own in replicas:
        loaded: list[MicroBatch] = []
        batches = phase_batches(data, phase, place, number=2, replicas=own, into=loaded)
        for epoch in range(2):
            batches.start_epoch(1, epoch)
            for step in range(batches.steps_per_epoch):
                batches.load(step)
                made += [each.batch[0] for each in loaded]
    return made


def test_ranks_share_out_the_replicas_of_one_plan() -> None:
    whole = requests_of([range(2)])
    first, second = requests_of([range(0, 2, 2)]), requests_of([range(1, 2, 2)])
    assert [t.tolist() for t in whole] == [
        t.tolist() for pair in zip(first, second, strict=True) for t in pair
    ]
    epoch = torch.cat(whole[:4]).tolist()
    assert len(set(epoch)) == 32


@pytest.mark.parametrize("data", [(torch.arange(44), Y), DataLoader(Pairs(), batch_size=8)])
def test_any_step_is_loaded_without_those_before_it(data: Any) -> None:
    opened = open_data(data, "train_data")
    place = Placement(device=torch.device("cpu"), seed=0, augment=None)
    phase = Phase(global_batch_size=8, peak_lr=0.1, max_epochs=3)

    def loaded(epochs: range, steps: range) -> MicroBatch:
        into: list[MicroBatch] = []
        batches = phase_batches(opened, phase, place, number=2, replicas=range(1), into=into)
        for epoch in epochs:
            batches.start_epoch(0, epoch)
            for step in steps:
                batches.load(step)
        return into[0]

    through, at_once = loaded(range(2), range(4)), loaded(range(1, 2), range(3, 4))
    assert torch.equal(at_once.batch[0], through.batch[0])
    assert at_once.seed == through.seed


def test_one_pass_has_every_example_once_and_no_batch_of_one() -> None:
    data = open_data((torch.arange(33), torch.zeros(33)), "train_data")
    place = Placement(device=torch.device("cpu"), seed=0, augment=None)
    batches = [b[0] for b in one_pass(data, place, batch_size=8, shuffled=True)]
    assert sorted(torch.cat(batches).tolist()) == list(range(33))
    assert [len(batch) for batch in batches] == [8, 8, 8, 9]
    plain = [b[0] for b in one_pass(data, place, batch_size=8, shuffled=False)]
    assert torch.cat(plain).tolist() == list(range(33))


# Defaults.


def default(num: int, workers: int = 8, **said: Any) -> UserMethod:
    data = open_data((torch.zeros(num),), "train_data")
    options = {"phase1": None, "phase2": None, "schedules": (None, None), "learning_rate": None}
    rest = {"counts": True, "keep_momentum": False}
    return user_method(data, workers=workers, **(options | rest | said))


def test_cifar10s_size_has_the_papers_rates() -> None:
    method = default(50_000)
    assert (method.phase1.global_batch_size, method.phase2.global_batch_size) == (1024, 128)
    # Table 5: 1.2 at 4096 and 0.15 at 512, so that both are the same by the example.
    assert method.phase1.peak_lr == pytest.approx(1.2 * 1024 / 4096)
    assert method.phase2.peak_lr == pytest.approx(0.15 * 128 / 512)
    assert (method.phase1.max_epochs, method.phase2.max_epochs) == (15, 4)
    assert method.phase1.stopping_accuracy == 0.98
    assert method.phase1.gpus_per_model == 8


@pytest.mark.parametrize("num", [16, 100, 1_000, 10_000, 2_000_000])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_defaults_fit_any_size(num: int, workers: int) -> None:
    method = default(num, workers)
    assert method.phase1.global_batch_size == workers * method.phase2.global_batch_size
    assert 2 <= method.phase2.global_batch_size <= 128
    assert num >= method.phase1.global_batch_size
    updates = num // method.phase1.global_batch_size * method.phase1.max_epochs
    assert updates >= 400 or method.phase1.max_epochs == 100


def test_what_is_said_of_one_phase_gives_the_other() -> None:
    phase2 = Phase(global_batch_size=32, peak_lr=0.02, max_epochs=5)
    first = default(10_000, 4, phase2=phase2).phase1
    assert (first.global_batch_size, first.peak_lr, first.max_epochs) == (128, 0.08, 20)
    phase1 = Phase(global_batch_size=128, peak_lr=0.4, max_epochs=20)
    second = default(10_000, 4, phase1=phase1).phase2
    assert (second.global_batch_size, second.peak_lr, second.max_epochs) == (32, 0.1, 5)
    own = default(10_000, 4, learning_rate=1e-3)
    assert (own.phase1.peak_lr, own.phase2.peak_lr) == (1e-3, 2.5e-4)
    assert default(10_000, counts=False).phase1.stopping_accuracy is None


# What cannot be.


class Shrinking:
    """Fewer batches at each pass."""

    def __init__(self) -> None:
        self.left = 9

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        return iter([(X[:8], Y[:8])] * self.left)


def big(**changed: Any) -> Phase:
    return replace(PHASE1, global_batch_size=64, **changed)


def logits_mean(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).mean()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "lengths": ({"train": (X, Y[:40])}, "train_data: expected tensors of one length above 0, got"),
    "empty": ({"train": (X[:0], Y[:0])}, "train_data: expected tensors of one length above 0"),
    "no examples": ({"train": []}, "train_data: expected examples, got none"),
    "small": ({"phase1": big()}, "train_data: expected at least one batch of 64 examples for phas"),
    "an iterator": ({"train": iter(loader())}, "train_data: expected batches that every epoch can"),
    "a generator": ({"train": (b for b in loader())}, "train_data: expected batches that every ep"),
    "single examples": (
        {"train": Stream()},
        "train_data: expected batches, got an IterableDataset",
    ),
    "shared out": (
        {"train": loader(sampler=DistributedSampler(Pairs(), num_replicas=2, rank=0))},
        "train_data: expected a DataLoader without DistributedSampler",
    ),
    "shrinking": ({"train": Shrinking()}, "train_data: expected 7 batches in every epoch, got 5"),
    "a number": ({"train": 3}, "train_data: expected tensors, a data set with"),
    "test data": ({"test": 3}, "test_data: expected tensors, a data set with"),
    "another batch": (
        {"train": DataLoader(Pairs(), batch_size=4)},
        "phase1.global_batch_size: expected 8: for each of 2 devices a batch of "
        "train_data, which has 4",
    ),
    "losses": (
        {"loss": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")},
        r"loss: expected a mean loss, or .* got a tensor \[8\]; take",
    ),
    "two values": ({"loss": lambda m, b: (logits_mean(m, b), 1)}, "loss: expected a mean loss"),
    "no gradient": ({"loss": lambda m, b: X.mean()}, "loss: expected one that depends on the tra"),
    "tau uncounted": (
        {"loss": logits_mean, "phase1": replace(PHASE1, stopping_accuracy=0.9)},
        r"loss: expected \(the mean loss, how many were right, of how many\), which phase 1",
    ),
    "dict batches": ({"train": {"x": X, "y": Y}}, "batch: expected .inputs, targets. for the cro"),
    "real targets": (
        {"train": (X, Y.float())},
        r"targets: expected class numbers, got torch.float32; give whole numbers, targets.long\(\)",
    ),
    "one-hot targets": (
        {"train": (X, nn.functional.one_hot(Y, 4))},
        r"targets: expected class numbers .*; give targets.argmax\(1\), or pass loss=",
    ),
    "a column of targets": (
        {"train": (X, Y[:, None])},
        r"targets: expected class numbers .*; give targets.squeeze\(1\), or pass loss=",
    ),
    "target shapes": ({"train": (X, X)}, r"targets: expected class numbers \[8\] for logits"),
    "a metric": ({"metric": lambda m, b: 1.0, "test": (X, Y)}, "metric: expected .a sum, over how"),
    "an optimizer": ({"optimizer": lambda p: 3}, "optimizer: expected a function that makes a tor"),
    "closures": ({"optimizer": torch.optim.LBFGS}, "optimizer: expected one that needs no closure"),
    "left out": (
        {"optimizer": lambda p: torch.optim.SGD(p[1:], lr=1.0)},
        "optimizer: expected every trainable parameter, got all but 1; freeze",
    ),
    "workers": ({"workers": 0}, "workers: expected a whole number >= 1, got 0"),
    "shares": ({"workers": 3}, "phase1.global_batch_size: expected a multiple of 3"),
    "devices": (
        {"phase1": replace(PHASE1, gpus_per_model=4)},
        "phase1.gpus_per_model: expected 2, the workers' devices",
    ),
    "phase 2 with tau": (
        {"phase2": replace(PHASE2, stopping_accuracy=0.9)},
        "phase2.stopping_accuracy: expected None",
    ),
    "a phase": ({"phase1": 3}, "phase1: expected a swap_fast.Phase without stages, or None, got 3"),
    "a schedule": (
        {"schedule1": 0.1},
        "schedule1: expected a function of 1 argument or None, got 0.1",
    ),
    "no rate": (
        {"schedule2": lambda epoch: -epoch},
        "learning rate at epoch 0.2: expected a finite number >= 0, got -0.2",
    ),
    "nan rate": ({"schedule1": lambda epoch: math.nan}, "learning rate at epoch .* got nan"),
    "text rate": ({"schedule1": lambda epoch: "0.1"}, "learning rate at epoch .* got '0.1'"),
    "precision": ({"precision": "int8"}, "precision: expected fp32, bf16 or fp16, got 'int8'"),
    "device": ({"device": "tpu"}, "device: expected auto, cpu or cuda, got 'tpu'"),
    "seed": ({"seed": -1}, r"seed: expected a whole number from 0 to 2\*\*63 - 1, got -1"),
    "long seed": ({"seed": 2**63}, r"seed: expected a whole number from 0 to 2\*\*63 - 1, got 92"),
    "clipping": ({"clip_gradient_norm": 0.0}, "clip_gradient_norm: expected a number > 0, or None"),
    "loaders": ({"loader_processes": -1}, "loader_processes: expected 0 or more, got -1"),
    "resume": ({"resume": True}, "resume: expected a folder= to go on from, got True"),
    "many workers": ({"workers": "8"}, "workers: expected a whole number, got '8'"),
    "true workers": ({"workers": True}, "workers: expected a whole number, got True"),
    "clipping text": ({"clip_gradient_norm": "1"}, "clip_gradient_norm: expected a number or None"),
    "clipping nan": ({"clip_gradient_norm": math.nan}, "clip_gradient_norm: expected a number > 0"),
    "momentum": ({"keep_momentum": "no"}, "keep_momentum: expected True or False, got 'no'"),
    "loader": ({"loader_processes": 1.5}, "loader_processes: expected a whole number, got 1.5"),
    "a metric of text": (
        {"metric": lambda m, b: ("a", 1), "test": (X, Y)},
        "metric: expected numbers, or tensors of one, got 'a'; sum it up",
    ),
    "a metric of many": (
        {"metric": lambda m, b: (torch.ones(3), 1), "test": (X, Y)},
        r"metric: expected numbers, or tensors of one, got a tensor \[3\]; sum it up",
    ),
    "counts": (
        {"loss": lambda m, b: (logits_mean(m, b), torch.ones(3), 8)},
        r"loss: expected numbers, or tensors of one, got a tensor \[3\]",
    ),
    "no batch": ({"augment": lambda batch, random: None}, "augment: expected the batch to train"),
    "no groups": (
        {"parameter_groups": lambda m: None},
        "parameter_groups: expected .*, got a None",
    ),
    "empty groups": ({"parameter_groups": lambda m: [{"lr": 1}]}, "parameter_groups: .*, got a d"),
    "a name": ({"train": "cifar10"}, "train_data: expected tensors, a data set with .* got a str"),
    "a class": (
        {"loss": nn.CrossEntropyLoss},
        "loss: .*, got a class; pass CrossEntropyLoss\\(\\)",
    ),
    "loss": ({"loss": "mse"}, "loss: expected a function of 2 arguments or None, got 'mse'"),
    "loss of one": (
        {"loss": lambda m: 0},
        "loss: expected .* of 2 arguments or None, got <lambda>",
    ),
    "optimizer": ({"optimizer": "sgd"}, "optimizer: expected a function of 1 argument, got 'sgd'"),
    "augment": ({"augment": 3}, "augment: expected a function of 2 arguments or None, got 3"),
    "groups": (
        {"parameter_groups": []},
        "parameter_groups: expected a function of 1 argument or None, got a l",
    ),
    "folder": ({"folder": 3}, "folder: expected a text, a Path or None, got 3"),
    "listeners": (
        {"listeners": print},
        "listeners: expected a list, each a function of 1 argument, got a bu",
    ),
    "a callback": ({"callbacks": [3]}, "callbacks: expected a list, each a Callback, got 3 in it"),
    "time limit": ({"timeout_s": math.nan}, "timeout_s: expected seconds above 0"),
}


@pytest.mark.parametrize(("said", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_refused_in_one_line(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        small_swap(**copy.copy(said))
    assert "\n" not in str(refused.value)


def test_an_argument_that_swap_does_not_have_is_told_in_python_s_words() -> None:
    with pytest.raises(TypeError, match=r"^swap\(\) got an unexpected keyword argument 'batches'"):
        small_swap(batches=3)


@pytest.mark.parametrize("of_phase", ["phase1", "phase2"])
def test_batch_norm_of_one_example_is_refused_before_training(of_phase: str) -> None:
    rows: list[EpochRow] = []
    batch = {"phase1": 2, "phase2": 1}[of_phase]  # of two devices, and of one
    said = {of_phase: Phase(global_batch_size=batch, peak_lr=0.1, max_epochs=1)}
    with pytest.raises(ValueError, match=rf"^{of_phase}.global_batch_size: expected 2 examples or"):
        small_swap(**said, callbacks=[calling(on_epoch_end=rows.append)])
    assert rows == []
    small_swap(plain_net, **said)  # without batch norm it can be trained


def test_half_precision_rounds_inputs_but_no_indices() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).bfloat16()
    measured = Objective(model, None)((torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1])))
    assert measured.loss.dtype == torch.float32
    assert measured.total == 2
