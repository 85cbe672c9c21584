"""Soups of files: chosen by hand count, batch norm against torch's own, basins found and missed."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from swap_fast import average_files
from swap_fast.averaging_files.evaluate import user_evaluation
from swap_fast.averaging_files.report import barrier, show


class Threshold(nn.Module):
    """Class 1 where the input is above b."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(inputs), inputs - self.b], dim=1)


INPUTS = torch.arange(10.0)[:, None]
# Which of 0 to 9 are above 4.5; in two batches.
HELD_OUT = [(part, (part[:, 0] > 4.5).long()) for part in INPUTS.split(6)]
TEST = [(INPUTS, (INPUTS[:, 0] > 6.5).long())]
DATA = {"held_out": HELD_OUT, "test": TEST}


def thresholds(folder: Path, *values: float) -> list[Path]:
    paths = [folder / f"w{i}.safetensors" for i in range(len(values))]
    for path, value in zip(paths, values, strict=True):
        save_file({"b": torch.tensor([value])}, path)
    return paths


def test_a_greedy_soup_is_that_of_a_hand_count(tmp_path: Path) -> None:
    # Right of ten held out: 7, 9, 5, 8. So 3.6 first, alone right on 9; with 6.6 the mean is 5.1,
    # right on 9, and with 1.6 3.93, on 9: both are kept; with 12.6 it is 6.1, on 8: left out.
    paths = thresholds(tmp_path, 1.6, 3.6, 12.6, 6.6)
    lines: list[str] = []
    made = average_files(paths, soup="greedy", model=Threshold, data=DATA, say=lines.append)
    each = made.report.ingredients
    assert [i.accuracies["held_out"] for i in each] == [0.7, 0.9, 0.5, 0.8]
    assert [i.share for i in each] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert made.tensors["b"].item() == pytest.approx((1.6 + 3.6 + 6.6) / 3)
    assert made.report.after == {"held_out": 0.9, "test": 0.7}
    assert (made.report.before, made.report.batch_norm) == (made.report.after, "as_saved")
    assert [line for line in lines if line.startswith("with ")] == [
        "with w3.safetensors: held-out 90.00%, kept",
        "with w0.safetensors: held-out 90.00%, kept",
        "with w2.safetensors: held-out 80.00%, not",
    ]
    assert not any("chosen by the test" in note for note in made.report.notes)


def test_a_choice_by_the_test_images_must_be_wanted_and_is_said(tmp_path: Path) -> None:
    paths = thresholds(tmp_path, 1.6, 6.6)
    only_test = {"test": TEST}
    with pytest.raises(ValueError, match=r"expected held_out data .* got test; .*--select-on test"):
        average_files(paths, soup="greedy", model=Threshold, data=only_test)
    with pytest.raises(ValueError, match="got none; give a net and data"):
        average_files(paths, soup="greedy")
    made = average_files(paths, soup="greedy", model=Threshold, data=DATA, select_on="test")
    assert made.tensors["b"].item() == pytest.approx(6.6)  # all ten right; with 1.6 seven
    assert [i.share for i in made.report.ingredients] == [0, 1]
    assert any("chosen by the test images" in note for note in made.report.notes)


def test_a_uniform_soup_counts_all_and_a_weighted_one_by_its_shares(tmp_path: Path) -> None:
    paths = thresholds(tmp_path, 1.0, 2.0, 6.0)
    made = average_files(paths)
    assert (made.tensors["b"].item(), made.report.soup) == (3.0, "uniform")
    made = average_files(paths, shares=[2, 1, 1])
    assert (made.tensors["b"].item(), made.report.soup) == (2.5, "weighted")
    assert [i.share for i in made.report.ingredients] == [0.5, 0.25, 0.25]
    for wrong in ([1, 1], [1, 1, 0], [1, 1, -1], [1, 1, float("inf")], [1, 1, float("nan")]):
        with pytest.raises(ValueError, match="shares: expected a finite number > 0 for each of 3"):
            average_files(paths, shares=wrong)
    with pytest.raises(ValueError, match=r"expected two files .* got 1"):
        average_files(paths[:1])


def test_the_output_names_its_inputs_and_harms_none(tmp_path: Path) -> None:
    paths = thresholds(tmp_path, 1.0, 2.0)
    made = average_files(paths, tmp_path / "out")
    output = tmp_path / "out.safetensors"
    assert made.report.output == str(output)
    assert made.report.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert load_file(output)["b"].item() == 1.5
    for path in paths:
        assert hashlib.sha256(path.read_bytes()).hexdigest().encode() in output.read_bytes()
    assert str(tmp_path).encode() not in output.read_bytes()
    with pytest.raises(ValueError, match=r"is there already; .*--force"):
        average_files(paths, output)
    os.link(paths[0], tmp_path / "link.safetensors")
    for same in (paths[0], tmp_path / "link.safetensors"):
        before = paths[0].read_bytes()
        with pytest.raises(ValueError, match="beside the inputs, got one of them"):
            average_files(paths, same, overwrite=True)
        assert paths[0].read_bytes() == before
    average_files([paths[0], paths[0]], output, overwrite=True)
    assert load_file(output)["b"].item() == 1.0
    with pytest.raises(ValueError, match=r"ends in \.safetensors, \.pt or \.pth"):
        average_files(paths, tmp_path / "out.bin")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="expected a folder that can be written to"):
        average_files(paths, tmp_path / "file" / "out")
    assert not list(tmp_path.glob("*.part"))


class Normed(nn.Module):
    """Two layers with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU()),
            *(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def normed(folder: Path, count: int = 3) -> tuple[list[Path], AveragedModel]:
    torch.manual_seed(1)
    average, paths = AveragedModel(Normed()), []
    average.n_averaged.zero_()
    for i in range(count):
        net = Normed()
        net.layers[1].running_mean.fill_(i)
        average.update_parameters(net)
        paths.append(folder / f"net{i}.pt")
        torch.save({"state_dict": net.state_dict()}, paths[-1])
    return paths, average


def batches(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    several = [2 + 3 * torch.randn(size, 3, generator=generator) for size in sizes]
    return [(inputs, (inputs.sum(1) > 6).long()) for inputs in several]


def test_batch_norm_anew_is_that_of_torchs_averaged_model(tmp_path: Path) -> None:
    paths, average = normed(tmp_path)
    (batch,) = batches([64])
    update_bn([batch[0]], average)
    made = average_files(paths, model=Normed, data=([batch], [batch]))
    assert made.report.batch_norm == "recomputed"
    expected = average.module.state_dict()
    for name, tensor in made.tensors.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    average.eval()
    right = (average(batch[0]).argmax(1) == batch[1]).double().mean().item()
    assert made.report.after["test"] == pytest.approx(right)


def test_a_greedy_soup_has_its_batch_norm_anew_for_each_choice(tmp_path: Path) -> None:
    train, held_out = batches([64, 300])
    torch.manual_seed(3)
    base = Normed()
    optimizer = torch.optim.Adam(base.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(base(train[0]), train[1]).backward()
        optimizer.step()
    nets, paths = [copy.deepcopy(base) for _ in range(5)], []
    for i, net in enumerate(nets):
        for parameter in net.parameters():
            parameter.data += 0.4 * torch.randn_like(parameter)
        paths.append(tmp_path / f"{i}.pt")
        torch.save(net.state_dict(), paths[-1])

    def right(net: nn.Module) -> float:
        net.eval()
        return (net(held_out[0]).argmax(1) == held_out[1]).double().mean().item()

    # The same recipe in torch's own parts.
    alone = [right(net) for net in nets]
    order = sorted(range(5), key=lambda i: -alone[i])
    kept, best = order[:1], alone[order[0]]
    for i in order[1:]:
        average = AveragedModel(Normed())
        for j in (*kept, i):
            average.update_parameters(nets[j])
        update_bn([train[0]], average)
        if right(average) >= best:
            kept, best = [*kept, i], right(average)
    data = {"train": [train], "held_out": [held_out]}
    report = average_files(paths, soup="greedy", model=Normed, data=data, basin_points=0).report
    assert [i for i, each in enumerate(report.ingredients) if each.share] == sorted(kept)
    assert report.after["held_out"] == pytest.approx(best)
    assert 1 < len(kept) < 5


def test_batch_norm_anew_is_that_of_all_inputs_together(tmp_path: Path) -> None:
    # update_bn's mean over batches counts a short one fully, and no variance between batches.
    paths, average = normed(tmp_path)
    train = batches([32, 32, 7])
    made = average_files(paths, model=Normed, data={"train": train}, basin_points=0)
    inputs = torch.cat([batch[0] for batch in train])
    with torch.no_grad():
        outputs = average.module.layers[0](inputs).double().numpy()
    stem = "layers.1.running"
    np.testing.assert_allclose(made.tensors[f"{stem}_mean"], outputs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(made.tensors[f"{stem}_var"], outputs.var(0, ddof=1), rtol=1e-5)
    assert made.report.after == {}


class Tokens(nn.Module):
    """Batch norms of all tokens [B * T, C]: one of them stays in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.norm, self.read = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def train(self, mode: bool = True) -> Tokens:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.norm(self.frozen(inputs.flatten(0, 1)))
        return self.read(tokens).view(*inputs.shape[:2], 2).mean(1)


def test_each_layer_s_own_rows_are_counted_and_a_frozen_one_keeps_its_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    paths = [tmp_path / f"{i}.pt" for i in range(2)]
    for path in paths:
        net = Tokens()
        net.frozen.running_mean.normal_()
        net.frozen.running_var.uniform_(1, 2)
        torch.save(net.state_dict(), path)
    train = [torch.randn(size, 5, 3) + size for size in (4, 1, 2)]
    labelled = [(inputs, torch.zeros(len(inputs), dtype=torch.long)) for inputs in train]
    made = average_files(paths, model=Tokens, data=(labelled, labelled), basin_points=0).tensors
    states = [torch.load(path, weights_only=True) for path in paths]
    for name in ("frozen.running_mean", "frozen.running_var"):
        torch.testing.assert_close(made[name], (states[0][name] + states[1][name]) / 2)
    average = Tokens()
    average.load_state_dict(made)
    tokens = average.eval().frozen(torch.cat(train).flatten(0, 1)).detach().double().numpy()
    np.testing.assert_allclose(made["norm.running_mean"], tokens.mean(0), rtol=1e-5)
    np.testing.assert_allclose(made["norm.running_var"], tokens.var(0, ddof=1), rtol=1e-5)


class Rotary(nn.Linear):
    """With a complex buffer, as of rotary position embeddings."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("rotations", torch.polar(torch.ones(3), torch.randn(3)))


def test_complex_numbers_are_averaged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets, paths = [Rotary(), Rotary()], [tmp_path / "a", tmp_path / "b"]
    for net, path in zip(nets, paths, strict=True):
        save_file(net.state_dict(), path)
    data = {"test": [(torch.eye(2), torch.tensor([0, 1]))]}
    made = average_files(paths, tmp_path / "out", model=Rotary, data=data)
    expected = (nets[0].rotations + nets[1].rotations) / 2
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["rotations"], expected)
    assert all(each.barrier is not None for each in made.report.ingredients)


def test_the_basins_look_leaves_the_average_as_it_was_tested(tmp_path: Path) -> None:
    paths, _ = normed(tmp_path)
    data = (batches([32, 32]), batches([50]))
    looked = average_files(paths, tmp_path / "a", model=Normed, data=data, basin_images=32)
    plain = average_files(paths, tmp_path / "b", model=Normed, data=data, basin_points=0)
    assert all(i.barrier is not None for i in looked.report.ingredients)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert plain.report.after == looked.report.after
    evaluation = user_evaluation(Normed, data, torch.device("cpu"))
    evaluation.load_(load_file(tmp_path / "a.safetensors"), "a")
    assert evaluation.accuracy("test") == looked.report.after["test"]


def test_mere_averages_of_statistics_are_warned_of(tmp_path: Path) -> None:
    paths, _ = normed(tmp_path)
    notes = average_files(paths).report.notes
    assert any("mere averages" in note for note in notes)
    assert any("whether the models share a basin was not tested" in note for note in notes)
    no_training = average_files(paths, model=Normed, data={"test": batches([9])})
    assert no_training.report.batch_norm == "averaged"
    assert any("mere averages" in note for note in no_training.report.notes)
    for path in thresholds(tmp_path, 1.0, 1.0):
        assert path.is_file()
    twice = average_files(thresholds(tmp_path, 1.0, 1.0)).report
    assert twice.batch_norm == "as_saved"
    assert any("w1.safetensors has the bytes of w0.safetensors" in note for note in twice.notes)


def moons() -> list[tuple[Tensor, Tensor]]:
    """Two interleaved half circles."""
    angle = torch.linspace(0, torch.pi, 100)
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    inner = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    labels = torch.tensor([0] * 100 + [1] * 100)
    return [(torch.cat([outer, inner]), labels)]


def hidden_net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))


def trained(net: nn.Module, steps: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    ((inputs, labels),) = moons()
    for _ in range(steps):
        noisy = inputs + 0.05 * torch.randn(inputs.shape, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(noisy), labels).backward()
        optimizer.step()
    return net


@pytest.fixture(scope="module")
def basins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """near0 and near1 began from start; far is near1 with its hidden units in another order."""
    folder = tmp_path_factory.mktemp("basins")
    torch.manual_seed(0)
    start = trained(hidden_net(), 200, 0).state_dict()
    save_file(start, folder / "start.safetensors")
    for seed in (0, 1):
        net = hidden_net()
        net.load_state_dict(start)
        state = trained(net, 20, seed + 1).state_dict()
        save_file(state, folder / f"near{seed}.safetensors")
    permutation = torch.randperm(32)
    far = {
        "0.weight": state["0.weight"][permutation],
        "0.bias": state["0.bias"][permutation],
        "2.weight": state["2.weight"][:, permutation],
        "2.bias": state["2.bias"],
    }
    save_file({name: t.contiguous() for name, t in far.items()}, folder / "far.safetensors")
    return folder


def test_models_of_one_basin_have_no_barrier(basins: Path) -> None:
    paths = [basins / "near0.safetensors", basins / "near1.safetensors"]
    made = average_files(
        paths, model=hidden_net, data={"test": moons()}, start=basins / "start.safetensors"
    )
    assert max(i.barrier for i in made.report.ingredients) < 0.02
    assert not any("another basin" in note for note in made.report.notes)
    assert made.report.cosines is not None
    assert made.report.start == str(basins / "start.safetensors")


def test_the_same_net_with_its_units_in_another_order_lies_in_another_basin(basins: Path) -> None:
    paths = [basins / "near0.safetensors", basins / "far.safetensors"]
    data = {"test": moons()}
    made = average_files(paths, model=hidden_net, data=data)
    near, far = made.report.ingredients
    assert near.accuracies["test"] > 0.97
    assert far.accuracies["test"] > 0.97
    assert made.report.after["test"] < 0.9
    assert any("far.safetensors lies in another basin" in n for n in made.report.notes) or any(
        "near0.safetensors lies in another basin" in n for n in made.report.notes
    )
    with pytest.raises(ValueError, match="nothing was written"):
        average_files(
            paths, basins / "out", model=hidden_net, data=data, require_basin=True, overwrite=True
        )
    assert not (basins / "out.safetensors").exists()
    with pytest.raises(ValueError, match="require_basin: expected a net"):
        average_files(paths, require_basin=True)


def test_a_barrier_is_the_drop_below_the_straight_line() -> None:
    assert barrier([0.9, 0.5, 0.7]) == pytest.approx(0.3)
    assert barrier([0.8, 0.8, 0.7, 0.8, 1.0]) == pytest.approx(0.2)
    assert barrier([0.6, 0.75, 0.9]) == pytest.approx(0)
    assert barrier([0.6, 0.9, 0.9]) == 0


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    yield from TEST


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (TEST, r"expected \(train, test\), .* got list"),
        ({"validation": TEST}, "a dict with these names, got dict"),
        ({"test": endless()}, "test: expected batches that can be gone through again"),
        ({"test": []}, "test: expected batches, got none"),
        ({"test": [INPUTS]}, "expected a label for each of the logits .* got none"),
        ({"test": [(INPUTS, torch.zeros(3))]}, r"logits \[10, 2\], got labels \[3\]"),
        ({"test": [(INPUTS, torch.full((10,), 2))]}, "expected class numbers 0 to 1, .*, got 2"),
        ({"test": ["text"]}, "expected batches .* of tensors, or a dict of both, got str"),
    ],
)
def test_data_of_another_form_is_refused(data: object, line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=line):
        average_files(thresholds(tmp_path, 1.0, 2.0), model=Threshold, data=data)


@pytest.mark.parametrize("output", [tuple, Tensor])
def test_a_net_that_gives_no_logits_is_refused_in_one_line(output: type, tmp_path: Path) -> None:
    class Net(Threshold):
        def forward(self, inputs: Tensor) -> object:
            logits = super().forward(inputs)
            return (logits, None) if output is tuple else logits[:, 0]

    got = "tuple" if output is tuple else r"\[10\]"
    with pytest.raises(
        ValueError, match=rf"^model: expected logits \[B, C\] .*, got {got}; [^\n]+$"
    ):
        average_files(thresholds(tmp_path, 1.0, 2.0), model=Net, data={"test": TEST})


def test_a_dict_batch_and_a_compiled_net_are_taken(tmp_path: Path) -> None:
    data = {"test": [{"inputs": INPUTS.double(), "labels": TEST[0][1]}]}
    made = average_files(
        thresholds(tmp_path, 6.0, 7.0),
        model=lambda: torch.compile(Threshold(), backend="eager"),
        data=data,
    )
    assert made.report.after == {"test": 1.0}


def test_a_net_of_another_form_is_refused_before_the_average(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the net's names, 0.weight and the"):
        average_files(
            thresholds(tmp_path, 1.0, 2.0),
            model=lambda: nn.Sequential(nn.Linear(1, 2)),
            data={"test": TEST},
        )
    with pytest.raises(ValueError, match=r"expected a torch.nn.Module, got int"):
        average_files(thresholds(tmp_path, 1.0, 2.0), model=lambda: 3, data={"test": TEST})


def test_half_precision_files_are_tried_in_float32_and_written_as_they_were(tmp_path: Path) -> None:
    paths, _ = normed(tmp_path)
    for path in paths:
        state = torch.load(path, weights_only=True)["state_dict"]
        halved = {k: t.bfloat16() if t.is_floating_point() else t for k, t in state.items()}
        torch.save(halved, path)
    made = average_files(paths, model=Normed, data=(batches([64]), batches([64])))
    assert {t.dtype for t in made.tensors.values()} == {torch.bfloat16, torch.int64}


def test_the_table_says_what_the_report_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, _ = normed(tmp_path)
    made = average_files(paths, tmp_path / "o", model=Normed, data=(batches([64]), batches([64])))
    capsys.readouterr()
    show(made.report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "model"
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        *("net0.pt", "net1.pt", "net2.pt"),
        *("average, batch norm averaged", "average, batch norm recomputed"),
    ]
    assert f"{100 * made.report.after['test']:.2f}" in lines[5]
    assert lines[-1] == f"{tmp_path / 'o.safetensors'} sha256 {made.report.sha256}"


class Tied(nn.Module):
    """Two names of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.out.weight = self.into.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.into(inputs))


def test_tied_weights_may_have_one_name_or_two(tmp_path: Path) -> None:
    paths = []
    for i in (1.0, 3.0):
        paths.append(tmp_path / f"w{i}.safetensors")
        save_file({"into.weight": i * torch.eye(2)}, paths[-1])
    data = {"test": [(torch.eye(2), torch.tensor([0, 1]))]}
    one = average_files(paths, model=Tied, data=data)
    assert (list(one.tensors), one.report.after) == (["into.weight"], {"test": 1.0})
    for i, path in enumerate(paths):
        net = Tied()
        nn.init.constant_(net.into.weight, i)
        torch.save(net.state_dict(), path)
    two = average_files(paths, model=Tied, data=data, basin_points=0)
    assert torch.equal(two.tensors["into.weight"], two.tensors["out.weight"])
