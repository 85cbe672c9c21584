"""A user's net and batches: other names in the files, targets left out, what nets return."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swap_fast import average_files

X = torch.randn(33, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def saved(folder: Path, prefix: str = "", **others: Tensor) -> list[Path]:
    """Two models, as Lightning keeps them."""
    paths = [folder / f"{i}.ckpt" for i in range(2)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        state = {prefix + name: tensor for name, tensor in net().state_dict().items()}
        torch.save({"state_dict": state | others, "pytorch-lightning_version": "2.5"}, path)
    return paths


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def test_a_prefix_that_the_net_has_not_is_left_out_and_said(tmp_path: Path) -> None:
    data = (batches(X, Y, 11), [(X, Y)])
    plain = average_files(saved(tmp_path), model=net, data=data)
    other = {"loss.weight": torch.ones(3)}
    made = average_files(saved(tmp_path, "model.", **other), model=net, data=data)
    assert list(made.tensors) == list(plain.tensors)
    assert all(torch.equal(made.tensors[name], plain.tensors[name]) for name in plain.tensors)
    assert made.report.after == plain.report.after
    paths = saved(tmp_path, "model.")
    begun = average_files(paths, model=net, data=data, start=paths[0], basin_points=0)
    assert begun.report.ingredients[0].from_start == 0
    assert any(note.startswith("the files' names begin with model.,") for note in made.report.notes)
    alone = average_files(saved(tmp_path, "model."))
    assert next(iter(alone.tensors)) == "model.0.weight"  # as the program that reads it wants


@pytest.mark.parametrize("lacking", [0, 1])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_counts_of_batches_may_be_missing(prefix: str, lacking: int, tmp_path: Path) -> None:
    data = (batches(X, Y, 11), [(X, Y)])
    whole = average_files(saved(tmp_path, prefix), model=net, data=data)
    paths = saved(tmp_path, prefix)
    state = torch.load(paths[lacking])["state_dict"]
    torch.save({n: t for n, t in state.items() if "tracked" not in n}, paths[lacking])
    made = average_files(paths, model=net, data=data)
    assert made.report.after == whole.report.after
    for name, tensor in made.tensors.items():
        assert torch.equal(tensor, whole.tensors[name]), name
    net().load_state_dict(made.tensors)


class Versioned(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"version": 1}


def test_a_net_with_more_than_tensors_is_loaded(tmp_path: Path) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(nn.Linear(4, 3).state_dict(), tmp_path / f"{seed}.pt")
    paths = [tmp_path / "0.pt", tmp_path / "1.pt"]
    made = average_files(paths, model=lambda: Versioned(4, 3), data={"test": [(X, Y)]})
    assert made.report.after.keys() == {"test"}


def test_files_of_another_net_are_named_by_their_names(tmp_path: Path) -> None:
    torch.save({"body.w": torch.ones(2)}, tmp_path / "w.pt")
    line = r"w\.pt: expected the net's names, 0\.weight and the like, got body\.w and the like; "
    with pytest.raises(ValueError, match=line):
        average_files([tmp_path / "w.pt"] * 2, model=net, data=([(X, Y)], [(X, Y)]))


FORMS = {
    "logits of an object": lambda logits: SimpleNamespace(logits=logits),
    "logits of a dict": lambda logits: {"loss": None, "logits": logits},
    "out of a dict": lambda logits: {"out": logits},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_logits_are_found_and_targets_of_minus_100_are_left_out(form: Any, tmp_path: Path) -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return form(super().forward(x))

    masked = torch.where(torch.arange(33) % 2 == 0, Y, -100)
    data = {"train": [(X, Y)], "test": batches(X, masked, 20)}
    made = average_files(saved(tmp_path), model=lambda: Net(*net()), data=data)
    exact = net().eval()
    exact.load_state_dict(made.tensors)
    with torch.no_grad():
        right = exact(X).argmax(1) == Y
    assert made.report.after["test"] == pytest.approx(float(right[::2].double().mean()))


def test_a_last_batch_of_one_example_is_left_out_of_the_statistics(tmp_path: Path) -> None:
    whole, without = (
        average_files(saved(tmp_path), model=net, data={"train": batches(X[:n], Y[:n], 16)})
        for n in (33, 32)
    )
    for name, tensor in without.tensors.items():
        assert torch.equal(whole.tensors[name], tensor), name


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_an_average_may_be_a_file_of_torchs(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"average{suffix}"
    made = average_files(saved(tmp_path), output)
    loaded = net()
    loaded.load_state_dict(torch.load(output, weights_only=True))
    assert all(torch.equal(made.tensors[name], t) for name, t in loaded.state_dict().items())
    before = output.read_bytes()
    average_files(saved(tmp_path), output, overwrite=True)
    assert output.read_bytes() == before
