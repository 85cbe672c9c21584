"""The search's table and figure, from made-up outcomes."""

from pathlib import Path

import pytest

from bench.document import write_table
from bench.search.command import best_line, search_figure, search_table
from bench.search.grid import Outcome, Scores, ranked


def _outcome(accuracies: tuple[float, ...], time_s: float, **point: float | str) -> Outcome:
    count = len(accuracies)
    scores = Scores(
        accuracies=accuracies,
        times_s=(time_s,) * count,
        phase1_epochs=tuple(range(3, 3 + count)),
        run_ids=("run",) * count,
    )
    return Outcome(point=point, state="done", scores=scores)


OUTCOMES = [
    Outcome(point={"lr": 0.1, "width": 4}, state="waiting"),
    _outcome((0.5, 0.52), 9.0, lr=0.1, width=8),
    _outcome((0.6, 0.62), 8.0, lr=0.4, width=4),
    _outcome((0.61, 0.61), 7.0, lr=0.4, width=8),
    Outcome(point={"lr": 1.6, "width": 4}, state="diverged", why="the loss is nan"),
    _outcome((0.4, 0.4), 1.0, lr=1.6, width=8),
]


def test_the_best_is_first_and_the_faster_of_equals() -> None:
    assert [(o.point["lr"], o.point["width"]) for o in ranked(OUTCOMES)] == [
        (0.4, 8),
        (0.4, 4),
        (0.1, 8),
        (1.6, 8),
        (0.1, 4),
        (1.6, 4),
    ]
    assert best_line(ranked(OUTCOMES)[1]) == "held-out accuracy 61.00 ± 1.41%, 8.0 s of training"


def test_the_table_has_every_point_in_each_form(tmp_path: Path) -> None:
    table = search_table(OUTCOMES, recipe="small", held_out=5000, seeds=2)
    assert table.columns[:3] == ("lr", "width", "Held-out accuracy (%)")
    assert table.rows[1] == ("0.4", "4", "61.00 ± 1.41", "8.0", "3.5", "done")
    assert table.rows[-1] == ("1.6", "4", "—", "—", "—", "diverged: the loss is nan")
    assert "5,000 training images" in table.caption
    paths = write_table(table, tmp_path)
    assert {path.name for path in paths} == {"search.md", "search.csv"}
    assert (tmp_path / "search.csv").read_text().count("\n") == 1 + len(OUTCOMES)


@pytest.mark.parametrize(
    "names", [("lr",), ("lr", "width"), ("lr", "width", "net"), ("net",)], ids="-".join
)
def test_the_figure_is_drawn_and_the_same_again(names: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    outcomes = [
        Outcome(
            point={n: v for n, v in {**o.point, "net": f"a{i % 2}"}.items() if n in names},
            state=o.state,
            scores=o.scores,
        )
        for i, o in enumerate(OUTCOMES)
    ]
    first, second = (
        search_figure(outcomes, tmp_path / each, recipe="small") for each in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 5_000


def test_the_figure_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a point that is done"):
        search_figure(OUTCOMES[:1], tmp_path, recipe="small")
