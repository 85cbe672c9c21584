"""A grid as a study of Optuna's, at which several processes may work at once. No torch.

Each point is queued as a waiting trial, and Optuna's own claim of one, from waiting to running in
one transaction, gives it to one process. (Its GridSampler gives a point that is running elsewhere
to a second process when no other is left.) Where two processes queue a point at the same moment,
its earliest living trial stands and the other yields. A running trial's heartbeat is kept by its
process; without one for `GRACE_S`, the trial counts as killed, and its point is queued again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.search.grid import Grid, Measured, Outcome, Point, State, Value

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_S, GRACE_S = 15, 60
"""From one sign of life to the next, and how long without one a process counts as killed."""

BEGUN = "begun"
"""Attribute of a trial that has had a heartbeat."""

OPENINGS = 8
"""Times to try: of two processes that make the tables of a new database at once, one fails."""

SQLITE_TIMEOUT_S = 60
"""For the other processes' transactions to end."""


def check_installed() -> None:
    """Find out whether Optuna is there.

    Raises:
        ValueError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ValueError(
            "search: expected Optuna, which is not installed; pip install 'swap_fast[search]', or "
            "pip install optuna"
        )


class GridStudy:
    """The study `name` in a database, made where it is not there yet.

    Arguments:
        url: of the database, in SQLAlchemy's form.
        settings: what must be equal for all that work at the study.

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
            elif (begun := self._study.user_attrs[key]) != value:
                raise ValueError(
                    f"search {name}: was begun with {key} = {begun}, got {value}; take these, or "
                    "give the new search a --name"
                )

    @property
    def outcomes(self) -> list[Outcome]:
        """What is known of each point, those of other processes' grids included."""
        found = {_key(point): Outcome(point=point, state="waiting") for point in self._grid.points}
        # Of a point's trials the last one tells, but for those that yielded to another.
        for trial in self._trials():
            if trial.params and trial.state.name != "PRUNED":
                found[_key(trial.params)] = _outcome(trial)
        return list(found.values())

    def work(
        self,
        measure: Callable[[Point], Measured],
        *,
        limit: int | None = None,
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """Measure points until none is left, or as many as the limit allows.

        A point that diverges is done. One that fails for another reason is left to a later call.

        Arguments:
            measure: given a point; FloatingPointError means divergence.
            on_end: given each outcome.
        """
        import optuna

        count = 0

        def objective(trial: Trial) -> float:
            nonlocal count
            self._database.record_heartbeat(trial._trial_id)
            trial.set_user_attr(BEGUN, True)
            if not self._is_own(trial):
                raise optuna.TrialPruned
            count += 1
            try:
                measured = measure(trial.params)
            except FloatingPointError as error:
                trial.set_user_attr("diverged", str(error))
                raise
            except RuntimeError as error:
                trial.set_user_attr("failed", str(error))
                raise
            for name, values in asdict(measured).items():
                trial.set_user_attr(name, values)
            return fmean(measured.accuracies)

        def tell(_: Study, trial: FrozenTrial) -> None:
            if trial.state.name != "PRUNED":
                on_end(_outcome(trial))

        again = True
        while limit is None or count < limit:
            with _no_experimental_warning():
                optuna.storages.fail_stale_trials(self._study)
            self._fail_unbegun()
            self._queue(again=again)
            again = False
            if not any(trial.state.name == "WAITING" for trial in self._trials()):
                break
            failures = (FloatingPointError, RuntimeError)
            self._study.optimize(objective, n_trials=1, catch=failures, callbacks=[tell])

    def _fail_unbegun(self) -> None:
        """Fail the trials whose process was killed between its claim and its first heartbeat.

        Without a heartbeat Optuna itself takes a trial to be alive for ever.
        """
        from optuna.trial import TrialState

        latest = datetime.now() - timedelta(seconds=GRACE_S)
        for trial in self._trials():
            if trial.state.name == "RUNNING" and BEGUN not in trial.user_attrs:
                assert trial.datetime_start is not None, "a claim has its time"
                if trial.datetime_start < latest:
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _queue(self, *, again: bool) -> None:
        """Queue the points that no trial has in hand; again: those that failed before, too."""
        from optuna.trial import TrialState, create_trial

        taken = {
            _key(trial.params)
            for trial in self._trials()
            if _lives(trial) or ("failed" in trial.user_attrs and not again)
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
        """Whether a claimed trial is its point's earliest living one, and nothing is known yet."""
        if not trial.params:
            return False  # the queue was empty by then, and Optuna made one up
        return not any(
            _key(other.params) == _key(trial.params)
            and _lives(other)
            and (other.number < trial.number or other.state.is_finished())
            for other in self._trials()
        )

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def database_file(url: str) -> Path | None:
    """The file of an SQLite database; None for others."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _open(url: str) -> RDBStorage:
    """The database, with its tables."""
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
        # SQLite has no lock of a row: a transaction that reads, then writes, must begin as a
        # writer, or two processes may claim one trial.
        def begin(connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        sqlalchemy.event.listen(storage.engine, "begin", begin)
    return storage


@contextmanager
def _no_experimental_warning() -> Iterator[None]:
    """Heartbeats are Optuna's own answer to killed processes, marked experimental since 2021."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _key(point: Point) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(point.items()))


def _lives(trial: FrozenTrial) -> bool:
    """Whether a trial has its point in hand, or is done with it."""
    return trial.state.name in ("WAITING", "RUNNING", "COMPLETE") or "diverged" in trial.user_attrs


def _outcome(trial: FrozenTrial) -> Outcome:
    attributes = trial.user_attrs
    state: State
    if trial.state.name == "COMPLETE":
        names = ("accuracies", "times_s", "phase1_epochs", "run_ids")
        measured = Measured(**{name: tuple(attributes[name]) for name in names})
        return Outcome(point=trial.params, state="done", measured=measured)
    if "diverged" in attributes:
        state = "diverged"
    elif "failed" in attributes:
        state = "failed"
    else:
        # Interrupted or killed trials fail too: their points wait for another call.
        state = "running" if trial.state.name == "RUNNING" else "waiting"
    why = attributes.get("diverged", attributes.get("failed"))
    return Outcome(point=trial.params, state=state, why=why)


def _distribution(values: tuple[Value, ...]) -> BaseDistribution:
    """What Optuna calls the range of a setting; numbers keep theirs open to a wider grid."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values) or any(isinstance(value, bool) for value in values):
        return CategoricalDistribution(values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(min(numbers)), int(max(numbers)))
    return FloatDistribution(min(numbers), max(numbers))
