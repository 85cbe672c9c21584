"""Points in real processes: their values, what is kept, and what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.landscape.parallel_points import PointsFile, evaluate_points, in_words


@dataclass(frozen=True)
class Squares:
    """Squares of the numbers, each noted in a file of its own; some numbers fail."""

    folder: Path
    fails: int = -1
    error: type[Exception] = ValueError

    def __call__(self, rank: int) -> Callable[[int], list[float]]:
        def square(number: int) -> list[float]:
            if number == self.fails:
                raise self.error("expected another\nnumber")
            if number == self.fails - 1000:
                os._exit(7)
            (self.folder / f"seen-{number}-{rank}").touch()
            return [float(number), number**2]

        return square

    @property
    def seen(self) -> list[int]:
        """The numbers evaluated, once for each time."""
        return sorted(int(path.name.split("-")[1]) for path in self.folder.glob("seen-*"))


def _say_nothing(_: str) -> None:
    """Print nothing."""


def test_points_are_shared_out_and_come_back_in_order(tmp_path: Path) -> None:
    task, file = Squares(tmp_path), PointsFile(tmp_path / "a" / "part.jsonl", {"run": 1})
    values = evaluate_points(task, 7, file, processes=2, say=_say_nothing)
    assert values == [[n, n**2] for n in range(7)]
    assert task.seen == list(range(7))
    assert file.read() == {n: [n, n**2] for n in range(7)}


def test_only_missing_points_are_evaluated_again(tmp_path: Path) -> None:
    file, said = PointsFile(tmp_path / "part.jsonl", {"run": 1}), []
    with file.writing() as append:
        append(4, [0.25, 0.5])
        append(0, [0.5, 0.75])
    with open(file.path, "a", encoding="utf-8") as text:
        text.write('{"point": 2, "val')  # cut short
    task = Squares(tmp_path)
    values = evaluate_points(task, 5, file, processes=1, say=said.append)
    assert task.seen == [1, 2, 3]
    assert values == [[0.5, 0.75], [1, 1], [2, 4], [3, 9], [0.25, 0.5]]
    assert said == ["2 of 5 points are done already"]
    assert len(file.path.read_text().splitlines()) == 6
    assert evaluate_points(task, 5, file, processes=1, say=said.append) == values
    assert task.seen == [1, 2, 3]


def test_points_of_something_else_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    with PointsFile(path, {"run": 1}).writing() as append:
        append(0, [1.0])
    assert PointsFile(path, {"run": 1}).read() == {0: [1.0]}
    assert PointsFile(path, {"run": 2}).read() == {}
    assert PointsFile(tmp_path / "none.jsonl", {"run": 1}).read() == {}


@pytest.mark.parametrize(
    ("fails", "error", "raised", "words"),
    [
        (2, ValueError, ValueError, "^expected another number$"),
        (2, KeyError, RuntimeError, "KeyError: "),
        (1002, ValueError, RuntimeError, "its process ended with code 7"),
    ],
)
def test_a_failed_process_is_an_error_and_finished_points_are_kept(
    tmp_path: Path, fails: int, error: type[Exception], raised: type[Exception], words: str
) -> None:
    file = PointsFile(tmp_path / "part.jsonl", {})
    with pytest.raises(raised, match=words):
        evaluate_points(Squares(tmp_path, fails, error), 4, file, processes=1, say=_say_nothing)
    assert file.read() == {0: [0, 0], 1: [1, 1]}


@pytest.mark.parametrize(
    ("seconds", "words"), [(44.6, "about 45 s"), (600, "about 10 min"), (9000, "about 2 h 30 min")]
)
def test_durations_are_said_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
