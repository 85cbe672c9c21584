"""What a reader sees: bars, lines and JSON, as text, from events made by hand."""

from __future__ import annotations

import io
import json

import pytest
from event_factory import at, began, done, epoch, phase_end, progress, training
from rich.console import Console

from swap_fast.callbacks import progress as shown
from swap_fast.callbacks.progress import JsonLines, Lines, RunView, Screen, duration, state_lines

RUN = [
    began(),
    training(10, 1),
    progress(15, 1, 0, 0, 5),
    epoch(20, 1, 0, 1),
    phase_end(20, 1, 0, 1, "stopping_accuracy"),
    training(20, 2, 0),
    training(20, 2, 1),
    progress(30, 2, 0, 0, 20),
    {**progress(30, 2, 1, 0, 8), "rank": 1},
]
FIRST_EPOCH = (
    "phase 1           epoch   1/3  lr 0.2500  loss 1.5000  train  50.00%  test  43.75%     20.0 s"
    "  100 images/s  at most 60 s to go"
)


def drawn(*events: dict) -> list[str]:
    """What a terminal of 120 columns shows after the last event, and has kept above it."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    screen = Screen(console)
    for event in events[:-1]:
        screen(event)
    console.export_text()  # forget what was drawn over
    screen(events[-1])
    lines = console.export_text().splitlines()
    screen.close()
    return [line.rstrip() for line in lines if line.strip()]


def test_a_bar_a_phase_and_worker() -> None:
    lines = drawn(*RUN)
    assert len(lines) == 4
    assert lines[0].split() == [
        *["phase", "1", "━" * 24, "100%", "epoch", "1/3"],
        *["train", "50.00%", "test", "43.75%", "done"],
    ]
    # 500 of 2,000 images in 10 s: a quarter of 24 cells, 30 s to go.
    assert lines[1].startswith("phase 2, worker 0  ━━━━━━")
    assert lines[1].split()[-8:] == ["25%", "epoch", "0/2", "50", "images/s", "about", "30", "s"]
    assert lines[2].split()[-8:] == ["10%", "epoch", "0/2", "50", "images/s", "about", "90", "s"]
    assert lines[3] == "training: about 90 s to go"


def test_held_out_images_are_called_so() -> None:
    lines = drawn({**began(), "held_out": 20}, *RUN[1:])
    assert lines[0].endswith("held out 43.75%  done")


def test_lines_stand_above_the_bars() -> None:
    lines = drawn(*RUN[:4])
    assert lines[0] == FIRST_EPOCH
    lines = lines[-4:]  # the bars as they were follow the line, and then those that are
    assert (
        lines[0].split()[-11:]
        == [
            *["33%", "epoch", "1/3", "100", "images/s", "train", "50.00%", "test", "43.75%"],
            *["at", "most", "20", "s"],
        ][-11:]
    )
    assert lines[1].startswith("phase 2, worker 0 ")
    assert lines[1].endswith("0%  waiting")
    assert lines[-1] == "training: at most 60 s to go"


def test_what_is_printed_meanwhile_does_not_mix_with_the_bars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(force_terminal=True, width=120)
    screen = Screen(console)
    for event in RUN:
        screen(event)
    print("a stray line")
    screen.close()
    written = capsys.readouterr().out
    before, _, after = written.partition("a stray line")
    # The four lines of bars are erased before it, drawn again behind it, and gone in the end.
    assert before.rstrip().endswith("\x1b[2K")
    assert after.count("\x1b[2K") >= 4
    assert written.endswith("\x1b[2K")


def test_of_very_many_workers_those_that_train_are_shown() -> None:
    plan = {**began()["plan"], "workers": 64}
    events = [began(plan=plan), training(0, 2, 7), phase_end(9, 2, 7, 2, "max_epochs")]
    lines = drawn(*events, training(10, 2, 40))
    assert [line.split("  ")[0] for line in lines[:2]] == ["phase 1", "phase 2, worker 40"]
    assert lines[2] == "workers: 1 done, 62 waiting"
    assert len(lines) == 3


def test_without_a_terminal_there_are_lines() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    for event in [*RUN, at(40, "averaging"), at(41, "note", text="a note"), done(50)]:
        lines(event)
    assert said == [
        FIRST_EPOCH,
        "phase 1           ended after epoch 1 by its stopping accuracy",
        "a note",
    ]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines(began())
    lines(training(1, 1, epoch=2, stopped_by="max_epochs", restored=True))
    lines(training(2, 2, 1, epoch=1, step=4, restored=True))
    lines(at(3, "interrupted", reason="SIGTERM"))
    lines(at(4, "failed", error="ValueError: no"))
    assert said == [
        "phase 1           done after epoch 2, as it was saved",
        "phase 2, worker 1 resumed after epoch 1, as it was saved",
    ]
    # The bar is where it was: 1 epoch and 4 updates of 2 epochs of 40.
    assert state_lines(lines.view)[2] == "phase 2, worker 1  55%  epoch 1/2  stopped"


def test_only_of_a_part_is_a_failure_a_line() -> None:
    """The run's own failure is the last line of the command."""
    said: list[str] = []
    lines = Lines(said.append)
    for event in (began(), at(1, "failed", error="ValueError: no")):
        lines(event)
    lines(at(2, "failed", error="FloatingPointError: no") | {"part": "worker2"})
    assert said == ["worker2 failed: FloatingPointError: no"]


def test_a_noise_scale_and_no_test_are_lines_too() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines(began())
    lines(epoch(2, 1, 0, 1, noise_scale=1234.5, test_accuracy=None, images_per_s=None))
    assert "train  50.00%  noise scale 1,234      2.0 s" in said[0]
    assert "test" not in said[0]
    assert "images/s" not in said[0]


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.0, "0.0000"), (0.25, "0.2500"), (0.001, "0.0010"), (0.00054, "5.4e-4"), (2e-5, "2.0e-5")],
)
def test_small_learning_rates_are_readable_and_as_wide(rate: float, words: str) -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines(began())
    lines(epoch(20, 1, 0, 1, learning_rate=rate))
    assert f"  lr {words}  loss 1.5000  " in said[0]


def test_json_is_the_events_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    show = JsonLines()
    for event in RUN:
        show(event)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == RUN


def test_the_form_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert isinstance(shown.progress_listener(), Screen)
    assert isinstance(shown.progress_listener("json"), JsonLines)
    assert shown.progress_listener("none") is None
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert isinstance(shown.progress_listener(), Lines)


def test_what_nobody_knows_is_left_out() -> None:
    assert state_lines(RunView()) == []
    assert shown.remaining(RunView()) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (121, "2 min"), (7100, "118 min"), (7380, "2 h 3 min")],
)
def test_a_duration_is_said_in_its_own_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words
