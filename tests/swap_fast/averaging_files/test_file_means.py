"""Means of files against numpy's, and where the files lie to each other against plain formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from own_nets import Averaging, net, plain_net
from safetensors.torch import save_file

import swap_fast
from swap_fast.averaging_files import weight_files
from swap_fast.averaging_files.weight_files import (
    WeightFile,
    between,
    differing,
    mean_of_files,
    measure,
    read_weights,
    require_alike,
)

SHAPES = {"conv.weight": (5, 3, 3, 3), "bn.running_mean": (5,), "bn.weight": (5,), "scale": ()}


def write(folder: Path, name: str, **changed: torch.Tensor) -> WeightFile:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    state = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    state["bn.num_batches_tracked"] = torch.tensor(len(name))
    state |= {key.replace("__", "."): value for key, value in changed.items()}
    save_file(state, folder / f"{name}.safetensors")
    return read_weights(folder / f"{name}.safetensors")


@pytest.fixture
def files(tmp_path: Path) -> list[WeightFile]:
    return [write(tmp_path, name) for name in ("a", "b", "c")]


def parameters(file: WeightFile) -> np.ndarray:
    names = ("conv.weight", "bn.weight", "scale")
    return np.concatenate([file.tensors[name].double().numpy().ravel() for name in names])


@pytest.mark.parametrize("values", [1, 7, 1 << 22])
@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2], [3.0, 1.0, 4.0]])
def test_the_mean_is_numpys(
    weights: list[float] | None,
    values: int,
    files: list[WeightFile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weight_files, "_VALUES", values)
    found = mean_of_files(files, weights)
    for name in SHAPES:
        stacked = np.stack([file.tensors[name].numpy().astype(np.float64) for file in files])
        expected = np.average(stacked, axis=0, weights=weights)
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-7, atol=1e-9)
    assert found["bn.num_batches_tracked"] == 0
    assert differing(files) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_is_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    # 1 + 3 * 2**-8 lies between two numbers of bf16: summed in bf16, the digits would be lost.
    rows = [torch.full((3,), 1 + i * 2**-7, dtype=dtype) for i in (0, 1, 1, 1)]
    several = []
    for i, row in enumerate(rows):
        save_file({"w": row}, tmp_path / f"{i}")
        several.append(read_weights(tmp_path / f"{i}"))
    expected = torch.full((3,), 1 + 0.75 * 2**-7, dtype=torch.float64).to(dtype)
    assert torch.equal(mean_of_files(several)["w"], expected)


def test_a_models_mean_with_itself_is_itself(files: list[WeightFile]) -> None:
    found = mean_of_files([files[0]] * 3)
    assert all(torch.equal(found[name], files[0].tensors[name]) for name in SHAPES)


def test_whole_numbers_are_the_first_files_and_said_to_differ(tmp_path: Path) -> None:
    a = write(tmp_path, "a", table=torch.tensor([1, 2]), mask=torch.tensor([True]))
    b = write(tmp_path, "b", table=torch.tensor([1, 3]), mask=torch.tensor([True]))
    assert mean_of_files([a, b])["table"].tolist() == [1, 2]
    assert differing([a, b]) == ["table"]


@pytest.mark.parametrize("values", [5, 1 << 22])
def test_distances_and_cosines_are_those_of_the_vectors(
    values: int, files: list[WeightFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "_VALUES", values)
    start = write(tmp_path, "start")
    vectors, origin = [parameters(file) for file in files], parameters(start)
    for found in (measure(files, start), measure(files, None)):
        for i, a in enumerate(vectors):
            for j, b in enumerate(vectors):
                assert found.distances[i][j] == pytest.approx(np.linalg.norm(a - b), abs=1e-6)
    found = measure(files, start)
    ways = [each - origin for each in vectors]
    assert found.lengths == pytest.approx([np.linalg.norm(way) for way in ways])
    assert found.cosines is not None
    for i, a in enumerate(ways):
        for j, b in enumerate(ways):
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert found.cosines[i][j] == pytest.approx(cosine)
    assert measure(files, None).cosines is None


def test_a_model_that_went_nowhere_has_no_way(files: list[WeightFile]) -> None:
    found = measure(files[:2], files[0])
    assert found.lengths is not None
    assert (found.lengths[0], found.cosines[0]) == (0.0, [0.0, 0.0])


def test_weights_that_are_not_finite_are_refused_by_file(
    files: list[WeightFile], tmp_path: Path
) -> None:
    bad = write(tmp_path, "bad", bn__weight=torch.tensor([1, 2, torch.nan, 4, 5]))
    worse = write(
        tmp_path, "worse", bn__weight=torch.full((5,), torch.inf), scale=torch.tensor(torch.nan)
    )
    with pytest.raises(ValueError, match="NaN or infinity in") as caught:
        measure([files[0], bad, files[1], worse], None)
    text = str(caught.value)
    assert f"{bad.path} (bn.weight), " in text
    assert f"{worse.path} (bn.weight; so with 1 more)" in text or "scale; so with 1" in text
    assert str(files[0].path) not in text
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        measure(files, bad)


def test_files_of_another_net_are_refused_by_the_first_tensor_that_differs(
    files: list[WeightFile], tmp_path: Path
) -> None:
    require_alike(files)
    other = write(tmp_path, "shape", bn__weight=torch.ones(4), scale=torch.ones(2))
    with pytest.raises(ValueError, match="so with 1 more") as caught:
        require_alike([files[0], other])
    assert str(caught.value) == (
        f"{other.path}, bn.weight: expected float32 [5] as in {files[0].path}, got float32 [4]; "
        "so with 1 more"
    )
    halved = write(tmp_path, "halved", scale=torch.ones((), dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"scale: expected float32 \[\] .*, got bfloat16 \[\]$"):
        require_alike([files[0], halved])
    more = write(tmp_path, "more", head=torch.ones(1))
    with pytest.raises(ValueError, match=r"head: expected no such tensor as in .*float32 \[1\]$"):
        require_alike([files[0], more])
    save_file({"x.weight": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"got none of them: it has x.weight and the like, not"):
        require_alike([files[0], read_weights(tmp_path / "foreign")])


def test_a_segment_has_its_ends_and_its_middle(files: list[WeightFile]) -> None:
    a, b = files[0].tensors, files[1]
    assert torch.equal(between(a, b, 0.0)["conv.weight"], a["conv.weight"])
    assert torch.equal(between(a, b, 1.0)["conv.weight"], b.tensors["conv.weight"])
    middle = mean_of_files(files[:2])
    for name in SHAPES:
        assert torch.allclose(between(a, b, 0.5)[name], middle[name], rtol=1e-6)


def test_models_in_memory_are_averaged_in_float64() -> None:
    torch.manual_seed(0)
    models = [net() for _ in range(3)]
    states = [model.state_dict() for model in models]
    compiled = torch.compile(models[1], backend="eager")
    found = swap_fast.average_models([models[0], compiled, {"state_dict": states[2]}])
    for name, tensor in found.items():
        if "tracked" not in name:
            expected = torch.stack([state[name].double() for state in states]).mean(0)
            assert torch.equal(tensor, expected.float())
    net().load_state_dict(found)
    weighted = swap_fast.average_models(states[:2], shares=[3, 1])
    expected = 0.75 * states[0]["0.weight"].double() + 0.25 * states[1]["0.weight"].double()
    torch.testing.assert_close(weighted["0.weight"].double(), expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"^model 1, .*: expected .* as in model 0"):
        swap_fast.average_models([net(), plain_net()])
    with pytest.raises(
        ValueError, match=r"^expected two files or models, or more, to average, got"
    ):
        swap_fast.average_models([net()])


def test_what_is_no_list_of_models_or_shares_is_refused_in_one_line() -> None:
    for models in (net(), "models", net().state_dict()):
        with pytest.raises(ValueError, match=r"^models: expected a list, each a Module or a Map"):
            swap_fast.average_models(models)
    with pytest.raises(ValueError, match=r"^models: .*, got 'a.pt' in it$"):
        swap_fast.average_models([net(), "a.pt"])
    for shares in (0.5, ["1", "2"], [True, 1.0]):
        with pytest.raises(ValueError, match=r"^shares: expected a list, each a number or None"):
            swap_fast.average_models([net(), net()], shares=shares)
    with pytest.raises(ValueError, match=r"^paths: expected a list, .*, got 'a.safetensors'$"):
        swap_fast.average_files("a.safetensors")
    with pytest.raises(ValueError, match=r"^soup: expected uniform or greedy, got 'best'$"):
        swap_fast.average_files(["a.safetensors", "b.safetensors"], soup="best")
    models = [net() for _ in range(2)]
    found = swap_fast.average_models(iter(models), shares=np.array([1.0, 3.0]))
    expected = swap_fast.average_models(models, shares=[1, 3])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_state_that_is_more_than_tensors_is_refused() -> None:
    states = [{**net().state_dict(), "epoch": 3} for _ in range(2)]
    with pytest.raises(
        ValueError, match=r"^model 0: expected a state of tensors alone, .*: epoch; "
    ):
        swap_fast.average_models(states)


def test_infinity_may_stand_where_all_models_have_it() -> None:
    masked = [Averaging(), Averaging()]
    assert swap_fast.average_models(masked)["mask"].tolist() == [0.0, -torch.inf]
    masked[1].mask[0] = -torch.inf
    with pytest.raises(ValueError, match=r"^expected finite weights, .* in model 1 \(mask\)$"):
        swap_fast.average_models(masked)
