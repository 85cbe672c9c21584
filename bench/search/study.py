"""A grid as an Optuna study that several processes may work on at once. No torch.

Each point is queued as a waiting trial. Optuna moves a trial from waiting to running in one
transaction, which gives it to one process. (Its GridSampler would give a point that is running
elsewhere to a second process when no other is left.) Where two processes queue a point at the same
moment, the earliest live trial counts, and the other is pruned. The process of a running trial
writes a heartbeat; after `GRACE_S` without one, the trial counts as killed, and its point is queued
again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
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
from swap_fast.shutdown import InterruptedRunError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_S, GRACE_S = 15, 60
"""The time between heartbeats, and the time without one after which a process counts as killed."""

STARTED, PROOF = "begun", "sha256"
"""Attributes of a trial: that it has had a heartbeat; the hash of its point and of all others."""

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
        ValueError: a database that cannot be used, or a study with other settings. Any method may
            raise it, where the database is damaged.
    """

    def __init__(self, url: str, name: str, grid: Grid, settings: dict[str, Any]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._grid, self._url = grid, url
        self._database = _open(url)
        with _readable(url):
            self._study: Study = optuna.create_study(
                study_name=name, storage=self._database, direction="maximize", load_if_exists=True
            )
            known = self._study.user_attrs
        for key, value in {**settings, "parameters": sorted(grid.values)}.items():
            if key not in known:
                with _readable(url):
                    self._study.set_user_attr(key, value)
            elif (stored := known[key]) != value:
                raise ValueError(
                    f"search {name}: was started with {key} = {stored}, got {value}; take these, "
                    "or give the new search a --name"
                )

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcome of each point, those of other processes' grids included."""
        found = {_key(point): Outcome(point=point, state="waiting") for point in self._grid.points}
        # The last trial of a point counts, except pruned ones.
        for trial in self._trials():
            if trial.params and trial.state.name != "PRUNED" and not _is_damaged(trial):
                found[_key(trial.params)] = _outcome(trial)
        return list(found.values())

    @property
    def num_damaged(self) -> int:
        """Trials whose outcome is not what was stored: their points are measured again."""
        return sum(map(_is_damaged, self._trials()))

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
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

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
                store(trial, {"diverged": str(error)})
                raise
            except RuntimeError as error:
                store(trial, {"failed": str(error)})
                raise
            except InterruptedRunError:  # Optuna sees to exceptions and KeyboardInterrupt alone
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            store(trial, asdict(scores))
            return fmean(scores.accuracies)

        def store(trial: Trial, outcome: dict[str, Any]) -> None:
            for name, value in {**outcome, PROOF: _proof(trial.params, outcome)}.items():
                trial.set_user_attr(name, value)

        def report(_: Study, trial: FrozenTrial) -> None:
            if trial.state.name != "PRUNED":
                on_end(_outcome(trial))

        again = True
        while limit is None or count < limit:
            with _readable(self._url):
                with _no_experimental_warning():
                    optuna.storages.fail_stale_trials(self._study)
                self._fail_unstarted()
                self._queue(again=again)
            again = False
            if not any(trial.state.name == "WAITING" for trial in self._trials()):
                break
            failures = (FloatingPointError, RuntimeError)
            with _readable(self._url, (SQLAlchemyError, StorageInternalError)):
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
        with _readable(self._url):
            return self._study.get_trials(deepcopy=False)


def database_file(url: str) -> Path | None:
    """The file of an SQLite database; None for others."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _open(url: str) -> RDBStorage:
    """Open the database, and create its tables."""
    import sqlalchemy
    from optuna.storages import RDBStorage
    from sqlalchemy import exc

    try:
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
        except Exception as error:  # of SQLAlchemy, of its drivers, of Alembic, of Optuna
            hopeless = isinstance(error, ImportError | exc.NoSuchModuleError)
            if hopeless or opening == OPENINGS:
                line = _first_line(error)
                raise ValueError(f"--storage {_shown(url)}: could not be opened: {line}") from None
            time.sleep(0.1 * opening)
    if is_sqlite:
        with _readable(url), storage.engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise RuntimeError(found)

        # SQLite does not lock rows: a transaction that reads and then writes must start as a
        # writer, or two processes may claim one trial.
        def begin(connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        sqlalchemy.event.listen(storage.engine, "begin", begin)
    return storage


class UnreadableError(ValueError):
    """A database cannot be used."""


@contextmanager
def _readable(
    url: str, errors: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """One line for what a damaged database makes Optuna raise: anything, unless `errors` says what.

    Raises:
        UnreadableError: in place of them.
    """
    try:
        yield
    except UnreadableError:
        raise
    except errors as error:
        raise UnreadableError(
            f"--storage {_shown(url)}: could not be used: {_first_line(error)}; if it is damaged, "
            "delete it: the runs of its points are kept, and are found again"
        ) from None


def _shown(url: str) -> str:
    import sqlalchemy

    return sqlalchemy.make_url(url).render_as_string(hide_password=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _no_experimental_warning() -> Iterator[None]:
    """Optuna's heartbeats have been marked experimental since 2021."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _key(point: Point) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(point.items()))


def _proof(point: Point, outcome: dict[str, Any]) -> str:
    """The hash of a point and its outcome, both as JSON keeps them."""
    text = json.dumps([dict(point), outcome], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_damaged(trial: FrozenTrial) -> bool:
    """Whether a trial has an outcome that is not the one stored; SQLite knows no checksums."""
    others = (STARTED, PROOF)
    outcome = {name: value for name, value in trial.user_attrs.items() if name not in others}
    if not trial.state.is_finished() or not (outcome or trial.state.name == "COMPLETE"):
        return False
    return trial.user_attrs.get(PROOF) != _proof(trial.params, outcome)


def _is_live(trial: FrozenTrial) -> bool:
    """Whether a trial is waiting, running or done."""
    if trial.state.name in ("WAITING", "RUNNING"):
        return True
    is_done = trial.state.name == "COMPLETE" or "diverged" in trial.user_attrs
    return is_done and not _is_damaged(trial)


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
