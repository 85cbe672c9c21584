"""Figure 1's running average against averages and accuracies calculated by other means."""

from __future__ import annotations

import copy

import pytest
import torch
from small_trainer import MEAN, STD, SWAP, Kept, make_dataset, small_trainer, with_phases
from torch import Tensor

from swap_fast.algorithm import swap
from swap_fast.outcome import running_average

DATA = make_dataset(test_images=200)


def test_rows_are_the_accuracies_of_the_averages() -> None:
    recipe = with_phases(phase2={"max_epochs": 3})
    kept = Kept()
    parts = small_trainer(recipe, dataset=DATA, checkpoints=kept)
    result = swap(recipe, parts)
    final = parts.weights.copy()
    rows = running_average(recipe, parts, result)
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert rows[-1].test_accuracy == result.accuracies.top1
    for now, then in zip(parts.weights.copy(), final, strict=True):
        assert torch.equal(now, then)

    images = (torch.from_numpy(DATA.test.images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    for row in rows:
        mean = torch.stack([kept.theta(worker, row.epoch).double() for worker in range(2)]).mean(0)
        parts.weights.load_(mean.float(), final[1])
        # torch's own pass over the same batches, which are of 20, 20 and 4 images: made equal
        # by weights of its own average.
        reference = copy.deepcopy(parts.weights.model)
        for name, buffer in moments(reference, list(batches_of(parts))).items():
            reference.get_buffer(name).copy_(buffer)
        with torch.no_grad():
            predicted = reference.eval()(images.permute(0, 3, 1, 2)).argmax(1).numpy()
        assert row.test_accuracy == pytest.approx((predicted == DATA.test.labels).mean())
    assert len({row.test_accuracy for row in rows}) > 1


def batches_of(parts: object) -> list[Tensor]:
    return [batch.clone() for batch in parts.batch_norm_batches()]  # type: ignore[attr-defined]


def moments(model: torch.nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """The moments of what every batch norm sees, from the activations themselves."""
    model = copy.deepcopy(model).train()
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            seen[name] = []
            module.register_forward_pre_hook(
                lambda _, inputs, kept=seen[name]: kept.append(inputs[0].detach().double())
            )
    for batch in batches:
        model(batch)
    values = {n: torch.cat([a.transpose(0, 1).flatten(1) for a in s], 1) for n, s in seen.items()}
    means = {f"{n}.running_mean": v.mean(1) for n, v in values.items()}
    return means | {f"{n}.running_var": v.var(1) for n, v in values.items()}


def test_one_epoch_has_the_result_as_its_only_row() -> None:
    recipe = with_phases(phase2={"max_epochs": 1})
    parts = small_trainer(recipe, dataset=DATA)
    result = swap(recipe, parts)
    # Nothing was kept, and nothing is read.
    rows = running_average(recipe, parts, result)
    assert [(row.epoch, row.test_accuracy) for row in rows] == [(1, result.accuracies.top1)]
    assert SWAP.phase2.max_epochs == 2
