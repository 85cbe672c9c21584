"""What `swap_fast.swap` gives can be saved, loaded in a fresh net, and goes on where it was cut."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from own_nets import (
    PHASE1,
    PHASE2,
    Averaging,
    Compiled,
    Tied,
    assert_same_bits,
    bits,
    blobs,
    dropping,
    net,
    partly,
    plain_net,
    small_swap,
)
from processes import free_port, run_torchrun
from repository import TESTS
from safetensors import safe_open
from safetensors.torch import load_file
from small_trainer import calling
from torch import nn
from torch.nn import functional

from swap_fast.checkpoint.attempts import Attempt
from swap_fast.files import write_file
from swap_fast.shutdown import EXIT_STATUS, SIGNAL_INTERVAL_S, InterruptedRunError
from swap_fast.training.callback import Callback
from swap_fast.user.method import structure_of

TEST = blobs(60, seed=2)


def share(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model.eval()(TEST[0]).argmax(1) == TEST[1]).double().mean())


NETS = {
    "plain": net,
    "tied": Tied,
    "half": partly(torch.bfloat16),
    "own buffers": Averaging,
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_saved_files_give_the_reported_accuracies(make: Any, tmp_path: Path) -> None:
    result = small_swap(make, test=TEST)
    folder = result.save(tmp_path / "swapped")
    assert sorted(path.name for path in folder.iterdir()) == [
        *["README.md", "averaged.safetensors", "record.json"],
        *["worker0.safetensors", "worker1.safetensors"],
    ]
    record = json.loads((folder / "record.json").read_text())
    for name, accuracy in [
        ("averaged", record["accuracies"]["averaged"]),
        *((f"worker{w}", record["accuracies"]["workers"][w]) for w in range(2)),
    ]:
        fresh = make()
        fresh.load_state_dict(load_file(folder / f"{name}.safetensors"))
        assert share(fresh) == accuracy
    with safe_open(folder / "averaged.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("make", [net, Compiled.wrapped, Compiled.in_place])
def test_the_cards_code_loads_the_model(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded: dict[str, Any] = {"make_model": make}
    with torch.compiler.set_stance("force_eager"):
        result = small_swap(make, test=TEST)
        card = (result.save(tmp_path) / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        exec(code, loaded)
        assert share(loaded["model"]) == result.accuracy


def test_the_card_says_what_was_done(tmp_path: Path) -> None:
    phase1 = replace(PHASE1, max_epochs=9, stopping_accuracy=0.8)
    result = small_swap(net, test=TEST, phase1=phase1, schedule2=lambda epoch: 0.01)
    card = (result.save(tmp_path) / "README.md").read_text()
    done = result.record["phase1_epochs"]
    for line in (
        "# Sequential, averaged by SWAP",
        "| batch size | 16 | 8 |",
        "| peak learning rate | 0.2 | a schedule of its own |",
        f"| epochs | {done} of 9 | 2 |",
        "| stopping train accuracy | 0.8 | none |",
        f"| phase 1's model | {result.phase1_accuracy:.4f} | |",
        "To be chosen by whoever publishes these weights.",
    ):
        assert line in card
    assert "Phase 1 ended by its stopping accuracy." in card
    assert f"**{result.accuracy:.4f}**" in card
    assert "Stochastic Weight Averaging in Parallel: Large-Batch" in card
    untested = small_swap(net)
    card = (untested.save(tmp_path / "untested") / "README.md").read_text()
    assert "| **averaged** | **not measured** |" in card
    assert "Nothing was tested." in card


def test_the_record_is_json_and_says_how(tmp_path: Path) -> None:
    result = small_swap(net, test=TEST, optimizer=lambda p: torch.optim.AdamW(p, lr=0.3))
    text = (result.save(tmp_path) / "record.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)  # no NaN
    assert record["schema_version"] == 1
    assert record["settings"]["optimizer"]["name"] == "AdamW"
    assert record["settings"]["optimizer"]["groups"][0]["parameters"] == 48 + 16 + 36
    data = record["data"]
    assert (data["train_examples"], data["test_examples"]) == (44, 60)
    assert data["train_digest"] != data["test_digest"]
    assert record["environment"]["libraries"]["torch"] == torch.__version__.partition("+")[0] or (
        record["environment"]["libraries"]["torch"] == torch.__version__
    )
    assert len(record["epochs"]) == 6
    laps = record["times"]["laps_by_rank"][0]
    counted = sum(laps[name] for name in record["times"]["reading_laps"]["paper"])
    assert record["times"]["after_averaging_s"] == pytest.approx(counted)
    assert len(record["times"]["worker_phase2_s"]) == 2
    distance = record["pairwise_distances"]
    thetas = [
        torch.cat([state[n].double().flatten() for n, _ in net().named_parameters()])
        for state in result.worker_states
    ]
    assert distance[0][1] == pytest.approx(float((thetas[0] - thetas[1]).norm()))


def test_a_result_is_not_written_over_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_swap(workers=4, phase1=None, phase2=PHASE2).save(tmp_path / "run")
    other = small_swap()
    (tmp_path / "run-2").write_text("a file")
    assert other.save(tmp_path / "run") == tmp_path / "run-3"
    assert other.save(tmp_path / "run") == tmp_path / "run-4"
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{tmp_path}/run holds another result: this one is saved in {tmp_path}/run-3"
    assert (tmp_path / "run" / "worker3.safetensors").exists()
    (tmp_path / "run" / "worker3.safetensors.txt").touch()
    assert other.save(tmp_path / "run", overwrite=True) == tmp_path / "run"
    assert not (tmp_path / "run" / "worker3.safetensors").exists()
    assert (tmp_path / "run" / "worker3.safetensors.txt").exists()
    for folder in ("run", "run-3", "run-4"):
        record = json.loads((tmp_path / folder / "record.json").read_text())
        assert record == json.loads(json.dumps(other.record))


def test_two_processes_that_save_at_once_take_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, write, others = small_swap(), write_file, list[Path]()

    def late(path: Path, content: bytes) -> None:
        """The other comes before the first has written anything."""
        if not others:
            others.append(tmp_path)
            others.append(result.save(tmp_path / "run"))
        write(path, content)

    monkeypatch.setattr("swap_fast.user.result.write_file", late)
    assert result.save(tmp_path / "run") == tmp_path / "run"
    assert others[1] == tmp_path / "run-2"
    for folder in ("run", "run-2"):
        assert json.loads((tmp_path / folder / "record.json").read_text())["method"] == "swap"


def test_a_result_that_could_not_be_saved_leaves_its_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    result = small_swap()
    with monkeypatch.context() as patched:
        patched.setattr("swap_fast.user.result.write_file", full)
        with pytest.raises(OSError, match="No space"):
            result.save(tmp_path / "run")
    assert not (tmp_path / "run" / "record.json").exists()
    assert result.save(tmp_path / "run") == tmp_path / "run"


def test_a_result_is_five_lines_and_a_table() -> None:
    result = small_swap(net, test=TEST)
    low, high = sorted(result.worker_accuracies)
    mean = f"{result.accuracy_before_averaging:.2%} ({low:.2%} to {high:.2%})"
    assert str(result).splitlines() == [
        "model          Sequential, the mean of 2 workers",
        "measured       accuracy on the test data",
        f"phase 1        {result.phase1_accuracy:.2%}",
        f"workers, mean  {mean}",
        f"averaged       {result.accuracy:.2%}",
    ]
    assert f"<tr><th>workers, mean</th><td>{mean}</td></tr>" in result._repr_html_()
    untested = small_swap(net, metric=lambda model, batch: (0, 1))
    assert str(untested).splitlines()[-1] == "averaged       not measured"
    assert "&lt;lambda&gt; on the test data" in untested._repr_html_()


def test_the_models_have_memory_of_their_own() -> None:
    result = small_swap(net)
    for parameter in result.model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
        assert parameter.grad is None
    assert not result.model.training
    one, other = result.worker_model(0), result.worker_model(1)
    assert not torch.equal(one[0].weight, other[0].weight)
    with pytest.raises(ValueError, match=r"^worker: expected 0 to 1, got 2$"):
        result.worker_model(2)


# Interrupted, and resumed.


class Cut(Callback):
    """Ends a run after so many updates, as a signal does."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def on_step(self, images: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": lambda p: torch.optim.AdamW(p, lr=1.0), "keep_momentum": True},
    "half": {"make": partly(torch.bfloat16)},
    "half with batch norm": {"make": lambda: net().bfloat16(), "clip_gradient_norm": 1.0},
    "own buffers": {"make": Averaging},
    "dropout": {"make": dropping},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("updates", [1, 3, 4, 6, 9, 14, 20])
@pytest.mark.parametrize("said", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_interrupted_run_goes_on_to_the_same_bits(
    said: dict[str, Any], updates: int, tmp_path: Path
) -> None:
    whole, handlers = small_swap(test=TEST, **said), _handlers()
    with pytest.raises(
        InterruptedRunError, match=r"; the same call with resume=True continues it$"
    ):
        small_swap(test=TEST, **said, folder=tmp_path, callbacks=[Cut(updates)])
    assert _handlers() == handlers
    result = small_swap(test=TEST, **said, folder=tmp_path, resume=True)
    assert_same_bits(bits(result), bits(whole))
    assert result.accuracy == whole.accuracy
    untimed = [
        [replace(row, time_s=0.0, train_accuracy=0.0) for row in each.epochs]
        for each in (result, whole)
    ]
    assert untimed[0] == untimed[1]


LONG_STEP = """
import sys, time
from pathlib import Path
from own_nets import small_swap
from small_trainer import calling

updates = []
def on_step(images):
    updates.append(images)
    if len(updates) == 3:  # of two an epoch
        (Path(sys.argv[1]) / "in-step").touch()
        time.sleep(100)

small_swap(folder=Path(sys.argv[1]) / "run", callbacks=[calling(on_step=on_step)])
"""


@pytest.mark.slow
def test_the_second_signal_ends_it_at_once_and_its_last_checkpoint_is_whole(
    tmp_path: Path,
) -> None:
    """The first waits for the end of a step, of 100 s."""
    env = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    process = subprocess.Popen([sys.executable, "-c", LONG_STEP, str(tmp_path)], env=env)
    while not (tmp_path / "in-step").exists():
        assert process.poll() is None, "it ended before it was told"
        time.sleep(0.01)
    process.terminate()
    time.sleep(SIGNAL_INTERVAL_S + 0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=20) == EXIT_STATUS
    updates: list[int] = []
    result = small_swap(
        folder=tmp_path / "run", resume=True, callbacks=[calling(on_step=updates.append)]
    )
    assert len(updates) == 2 + 2 * 2 * 5  # phase 1's second epoch, and phase 2
    assert_same_bits(bits(result), bits(small_swap()))


def test_batches_as_they_come_go_on_too(tmp_path: Path) -> None:
    def loader() -> Any:
        data = torch.utils.data.TensorDataset(*blobs())
        return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)

    whole = small_swap(train=loader())
    with pytest.raises(InterruptedRunError):
        small_swap(train=loader(), folder=tmp_path, callbacks=[Cut(8)])
    result = small_swap(train=loader(), folder=tmp_path, resume=True)
    assert_same_bits(bits(result), bits(whole))


def test_a_run_that_is_done_gives_its_result_again(tmp_path: Path) -> None:
    phase2 = replace(PHASE2, max_epochs=4, cycles=2)
    first = small_swap(net, test=TEST, folder=tmp_path, phase2=phase2)
    steps: list[int] = []
    again = small_swap(
        *(net, None, TEST),
        folder=tmp_path,
        phase2=phase2,
        resume=True,
        callbacks=[calling(on_step=steps.append)],
    )
    assert steps == []
    assert_same_bits(bits(again), bits(first))
    kept = {path.name for path in tmp_path.glob("worker0*.safetensors")}
    assert "worker0-epoch1.safetensors" not in kept
    assert {"worker0-epoch2.safetensors", "worker0-epoch4.safetensors"} <= kept


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    small_swap(folder=tmp_path)
    with pytest.raises(ValueError, match=r"^folder: expected one without a run, .* resume=True"):
        small_swap(folder=tmp_path)
    with pytest.raises(
        ValueError, match=r"^resume: expected the settings .* got seed 1 in place of 0; give"
    ):
        small_swap(folder=tmp_path, resume=True, seed=1)
    with pytest.raises(ValueError, match=r"^resume: .*model\.made_by"):
        small_swap(plain_net, folder=tmp_path, resume=True)
    with Attempt(tmp_path), pytest.raises(ValueError, match="another process is at; wait for it"):
        small_swap(folder=tmp_path, resume=True)
    inputs, targets = blobs()
    with pytest.raises(ValueError, match=r"^resume: .* got train_digest '\w{12}' in place of '\w"):
        small_swap(net, (inputs, targets.flip(0)), folder=tmp_path, resume=True)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: expected JSON .*; delete this folder, or "):
        small_swap(folder=tmp_path, resume=True)


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, partial(partial, functional.cross_entropy)])
def test_a_loss_with_other_settings_is_another_run(kind: Any, tmp_path: Path) -> None:
    for resume in (False, True):
        small_swap(folder=tmp_path, loss=kind(label_smoothing=0.1), resume=resume)
    with pytest.raises(ValueError, match=r"^resume: .*got loss .*=0.2.* in place of .*=0.1"):
        small_swap(folder=tmp_path, loss=kind(label_smoothing=0.2), resume=True)


def weighted(last: float) -> dict[str, Any]:
    return {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 1.0, last]))}


def dropped(rate: float) -> dict[str, Any]:
    return {"make": lambda: nn.Sequential(net(), nn.Dropout(rate))}


def in_sum(scale: float) -> dict[str, Any]:
    def collate(examples: list[Any], scale: float) -> Any:
        return torch.utils.data.default_collate(examples)

    data = torch.utils.data.TensorDataset(*blobs())
    return {"train": data, "collate": partial(collate, scale=scale)}


@pytest.mark.parametrize(
    ("given", "changed"),
    [(weighted, "loss"), (dropped, r"model\.structure"), (in_sum, "collate")],
)
def test_a_net_loss_or_collate_of_other_values_is_another_run(
    given: Any, changed: str, tmp_path: Path
) -> None:
    for resume in (False, True):
        small_swap(folder=tmp_path, resume=resume, **given(0.5))
    with pytest.raises(ValueError, match=rf"^resume: expected the settings .* got {changed} "):
        small_swap(folder=tmp_path, resume=True, **given(0.25))


class Printed(nn.Linear):
    """A net that is printed with where something of it lies in memory."""

    def extra_repr(self) -> str:
        return f"made_by={object.__repr__(self)}"


def test_the_structure_of_a_net_says_nothing_of_addresses() -> None:
    nets = [Printed(2, 2), Printed(2, 2)]
    assert repr(nets[0]) != repr(nets[1])
    assert structure_of(nets[0]) == structure_of(nets[1])


def test_without_a_folder_nothing_is_written_and_signals_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handlers = []
    note = calling(on_step=lambda _: handlers.append(signal.getsignal(signal.SIGTERM)))
    small_swap(callbacks=[note])
    assert set(handlers) == {signal.getsignal(signal.SIGTERM)}
    assert list(tmp_path.iterdir()) == []


# Under torchrun.

SCRIPT = """
import sys
import torch
from own_nets import Averaging, bits, blobs, dropping, net, plain_net, small_swap

makes = {"net": net, "plain": plain_net, "own buffers": Averaging, "dropout": dropping}
for name, make in makes.items():
    result = small_swap(
        lambda: make().double(),
        double(blobs()),
        double(blobs(60, seed=2)),
        folder=f"{sys.argv[1]}/run of {name}",
        resume=True,
    )
    result.save(f"{sys.argv[1]}/{name}", overwrite=True)
    torch.save((result.accuracy, result.model.state_dict()), f"{sys.argv[1]}/{name}.{RANK}.pt")
"""
PRELUDE = """
import os, torch
RANK = os.environ.get("RANK", "alone")
torch.set_num_threads(1)
def double(data):
    return data[0].double(), data[1]
"""


def run_script(folder: Path, processes: int) -> None:
    run_torchrun(PRELUDE + SCRIPT, folder, processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2])
def test_processes_of_torchrun_give_what_one_gives(processes: int, tmp_path: Path) -> None:
    for number in (1, processes):
        (tmp_path / str(number)).mkdir()
        run_script(tmp_path / str(number), number)
    for name in ("net", "plain", "own buffers", "dropout"):
        alone = torch.load(tmp_path / "1" / f"{name}.alone.pt")
        for rank in range(processes):
            accuracy, state = torch.load(tmp_path / str(processes) / f"{name}.{rank}.pt")
            assert accuracy == alone[0]
            torch.testing.assert_close(state, alone[1], rtol=1e-9, atol=1e-10)
        for file in ("averaged", "worker0", "worker1"):
            one, both = (
                load_file(tmp_path / str(n) / name / f"{file}.safetensors") for n in (1, processes)
            )
            torch.testing.assert_close(both, one, rtol=1e-9, atol=1e-10)
        record = json.loads((tmp_path / str(processes) / name / "record.json").read_text())
        assert record["world_size"] == processes
        assert len(record["epochs"]) == 6
    # One process goes on with what two have done, which is all: no epoch is run again.
    run_script(tmp_path / str(processes), 1)
    again = json.loads((tmp_path / str(processes) / name / "record.json").read_text())
    assert again["world_size"] == 1
    assert [row["time_s"] for row in again["epochs"]] == [row["time_s"] for row in record["epochs"]]
    _, state = torch.load(tmp_path / str(processes) / f"{name}.alone.pt")
    torch.testing.assert_close(state, alone[1], rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_more_processes_than_workers_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"processes: expected 1 to 2, one a worker's device"):
        run_script(tmp_path, 3)


DIFFERENT = """
import os
from own_nets import small_swap
try:
    small_swap(seed=int(os.environ["RANK"]), clip_gradient_norm=1.0, timeout_s=60)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_processes_with_different_settings_are_refused_by_the_same_line() -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared["PYTHONPATH"] = f"{TESTS}{os.pathsep}{TESTS.parent}"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DIFFERENT],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    assert [rank.communicate(timeout=100)[0] for rank in ranks] == 2 * [
        "ranks: expected the same settings on all, got seed 0 on rank 0, 1 on rank 1; start all "
        "with the same command\n"
    ]
