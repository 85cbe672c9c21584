"""A grid as an Optuna study that several processes may work on at once. No torch.

Each point is queued as a waiting trial. Optuna moves a trial from waiting to running in one
transaction, which gives it to one process. (Its GridSampler would give a point that is running
elsewhere to a second process when no other is left.) Where two processes queue a point at the same
moment, the earliest live trial counts, and the other is pruned. The process of a running trial
writes a heartbeat; after `GRACE_S` without one, the trial counts as killed, and its point is queued
again.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.search.grid import Grid, Outcome, Point, Scores, State, Value

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_S, GRACE_S = 15, 60
"""The time between heartbeats, and the time without one after which a process counts as killed."""

STARTED = "begun"
"""Attribute of a trial that has had a heartbeat; its value is in existing databases."""

OPENINGS = 8
"""Attempts to open the database: if two processes create its tables at once, one fails."""

SQLITE_TIMEOUT_S = 60
"""How long to wait for other processes' transactions."""


def check_installed() -> None:
    """Refuse a search without Optuna."""
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(
            "search: expected Optuna, which is not installed; pip install 'swap_fast[search]', or "
            "pip install optuna"
        )


class GridStudy:
    """The study `name` in a database, created if it is not there.

    Arguments:
        url: of the database, in SQLAlchemy's form.
        settings: must be equal for all processes of the study.

    Raises:
        ValueError: a database that cannot be used, or a study with other settings.
    """

    def __init__(self, url: str, name: str, grid: Grid, settings: dict[str, Any]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._grid, self._url, self._name = grid, url, name
        self._database = _open(url)
        self._study: Study = optuna.create_study(
            study_name=name, storage=self._database, direction="maximize", load_if_exists=True
        )
        for key, value in {**settings, "parameters": sorted(grid.values)}.items():
            if key not in self._study.user_attrs:
                self._study.set_user_attr(key, value)
            elif (stored := self._study.user_attrs[key]) != value:
                raise ValueError(
                    f"search {name}: was begun with {key} = {stored}, got {value}; take these, or "
                    "give the new search a --name"
                )

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcome of each point, those of other processes' grids included."""
        found = {_key(point): Outcome(point=point, state="waiting") for point in self._grid.points}
        # The last trial of a point counts, except pruned ones.
        for trial in self._trials():
            if trial.params and trial.state.name != "PRUNED":
                found[_key(trial.params)] = _outcome(trial)
        return list(found.values())

    def work(
        self,
        measure: Callable[[Point], Scores],
        *,
        limit: int | None = None,
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """Measure points until none is left, or the limit is reached.

        A point that diverges is done. One that fails for another reason waits for a later call.

        Arguments:
            measure: measures a point; FloatingPointError means divergence.
            on_end: called with each outcome.
        """
        import optuna

        count = 0

        def objective(trial: Trial) -> float:
            nonlocal count
            self._database.record_heartbeat(trial._trial_id)
            trial.set_user_attr(STARTED, True)
            if not self._is_own(trial):
                raise optuna.TrialPruned
            count += 1
            try:
                scores = measure(trial.params)
            except FloatingPointError as error:
                trial.set_user_attr("diverged", str(error))
                raise
            except RuntimeError as error:
                trial.set_user_attr("failed", str(error))
                raise
            for name, values in asdict(scores).items():
                trial.set_user_attr(name, values)
            return fmean(scores.accuracies)

        def report(_: Study, trial: FrozenTrial) -> None:
            if trial.state.name != "PRUNED":
                on_end(_outcome(trial))

        again = True
        while limit is None or count < limit:
            with _no_experimental_warning():
                optuna.storages.fail_stale_trials(self._study)
            self._fail_unstarted()
            self._queue(again=again)
            again = False
            if not any(trial.state.name == "WAITING" for trial in self._trials()):
                break
            failures = (FloatingPointError, RuntimeError)
            self._study.optimize(objective, n_trials=1, catch=failures, callbacks=[report])

    def _fail_unstarted(self) -> None:
        """Fail the trials whose process was killed between its claim and its first heartbeat.

        Optuna takes a trial that never had a heartbeat to be alive for ever.
        """
        from optuna.trial import TrialState

        latest = datetime.now() - timedelta(seconds=GRACE_S)
        for trial in self._trials():
            if trial.state.name == "RUNNING" and STARTED not in trial.user_attrs:
                assert trial.datetime_start is not None, "a claim has its time"
                if trial.datetime_start < latest:
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _queue(self, *, again: bool) -> None:
        """Queue the points without a live trial; with `again`, those that failed before too."""
        from optuna.trial import TrialState, create_trial

        taken = {
            _key(trial.params)
            for trial in self._trials()
            if _is_live(trial) or ("failed" in trial.user_attrs and not again)
        }
        for point in self._grid.points:
            if _key(point) not in taken:
                waiting = create_trial(
                    state=TrialState.WAITING,
                    params=dict(point),
                    distributions={
                        name: _distribution(values) for name, values in self._grid.values.items()
                    },
                )
                self._study.add_trial(waiting)

    def _is_own(self, trial: Trial) -> bool:
        """Whether a trial is its point's earliest live one, and the point is not done."""
        if not trial.params:
            return False  # the queue was empty, so Optuna made a trial without a point
        return not any(
            _key(other.params) == _key(trial.params)
            and _is_live(other)
            and (other.number < trial.number or other.state.is_finished())
            for other in self._trials()
        )

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def database_file(url: str) -> Path | None:
    """The file of an SQLite database; None for others."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _open(url: str) -> RDBStorage:
    """Open the database, and create its tables."""
    import sqlalchemy
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy import exc

    try:
        shown = sqlalchemy.make_url(url).render_as_string(hide_password=True)
        is_sqlite = sqlalchemy.make_url(url).get_backend_name() == "sqlite"
    except exc.ArgumentError:
        raise ValueError(
            f"--storage: expected a database's URL, such as sqlite:///FILE, got {url!r}"
        ) from None
    arguments = {"connect_args": {"timeout": SQLITE_TIMEOUT_S}} if is_sqlite else {}
    for opening in range(1, OPENINGS + 1):
        try:
            with _no_experimental_warning():
                storage = RDBStorage(
                    url,
                    engine_kwargs=arguments,
                    heartbeat_interval=HEARTBEAT_S,
                    grace_period=GRACE_S,
                )
            break
        except (exc.SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
            hopeless = isinstance(error, ImportError | exc.NoSuchModuleError)
            if hopeless or opening == OPENINGS:
                line = str(error).splitlines()[0]
                raise ValueError(f"--storage {shown}: could not be opened: {line}") from None
            time.sleep(0.1 * opening)
    if is_sqlite:
        # SQLite does not lock rows: a transaction that reads and then writes must start as a
        # writer, or two processes may claim one trial.
        def begin(connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        sqlalchemy.event.listen(storage.engine, "begin", begin)
    return storage


@contextmanager
def _no_experimental_warning() -> Iterator[None]:
    """Optuna's heartbeats have been marked experimental since 2021."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _key(point: Point) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(point.items()))


def _is_live(trial: FrozenTrial) -> bool:
    """Whether a trial is waiting, running or done."""
    return trial.state.name in ("WAITING", "RUNNING", "COMPLETE") or "diverged" in trial.user_attrs


def _outcome(trial: FrozenTrial) -> Outcome:
    attributes = trial.user_attrs
    state: State
    if trial.state.name == "COMPLETE":
        names = ("accuracies", "times_s", "phase1_epochs", "run_ids")
        scores = Scores(**{name: tuple(attributes[name]) for name in names})
        return Outcome(point=trial.params, state="done", scores=scores)
    if "diverged" in attributes:
        state = "diverged"
    elif "failed" in attributes:
        state = "failed"
    else:
        # Interrupted and killed trials fail too; their points wait for another call.
        state = "running" if trial.state.name == "RUNNING" else "waiting"
    why = attributes.get("diverged", attributes.get("failed"))
    return Outcome(point=trial.params, state=state, why=why)


def _distribution(values: tuple[Value, ...]) -> BaseDistribution:
    """Optuna's distribution of a setting; that of numbers allows a wider grid later."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values) or any(isinstance(value, bool) for value in values):
        return CategoricalDistribution(values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(min(numbers)), int(max(numbers)))
    return FloatDistribution(min(numbers), max(numbers))
