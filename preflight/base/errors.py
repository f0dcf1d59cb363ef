"""The exit codes and the errors that lead to them.

Failure                what ends a run, with a sentence and a next step
├── NotReady           10  run again unchanged
├── LockBusy           11
├── DatabaseBusy       12
├── ConnectionLost     13
├── BackupInterrupted  14
├── ConfigInvalid      20  change configuration or files first
├── AuthFailed         21
├── TargetUnusable     22
├── BackupFailed       23
├── BackupUnverified   24
│   └── BackupDamaged  24
├── FilesInvalid       25
├── HistoryConflict    26
├── RehearsalFailed    27
├── SchemaAhead        28
├── MigrationFailed    30  look at the database first
├── MigrationPartial   31
├── NeedsRepair        32
├── VerifyFailed       33
└── Pending             3  `check` and `wait --schema` only: behind
PlanChanged            another run was faster: make the plan again
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar


class ExitCode(enum.IntEnum):
    """What a run tells its caller; the tens digit is the instruction."""

    OK = 0
    PENDING = 3
    NOT_READY = 10
    LOCK_BUSY = 11
    DB_BUSY = 12
    CONNECTION_LOST = 13
    BACKUP_INTERRUPTED = 14
    CONFIG = 20
    AUTH = 21
    TARGET = 22
    BACKUP_FAILED = 23
    BACKUP_UNVERIFIED = 24
    FILES = 25
    HISTORY = 26
    REHEARSAL_FAILED = 27
    SCHEMA_AHEAD = 28
    MIGRATION_FAILED = 30
    MIGRATION_PARTIAL = 31
    NEEDS_REPAIR = 32
    VERIFY_FAILED = 33
    INTERNAL = 70
    SIGINT = 130
    SIGTERM = 143


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; lines and columns count from 1, columns in characters."""

    message: str
    hint: str | None = None
    migration: str | None = None
    version: int | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None
    sqlstate: str | None = None
    detail: str | None = None  # may hold a row's values: only with PREFLIGHT_LOG_SQL=on
    sql: str | None = None  # likewise
    context: str | None = None  # the functions and blocks that it came through
    excerpt: str | None = None  # the line and a caret, only on a terminal

    def data(self) -> dict[str, object]:
        """Return the fields that are known, as log data."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, if there is one, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


F = TypeVar("F", bound="Failure")


class Failure(Exception):
    """What ends a run: a dotted code, a sentence that is true, and what to do next."""

    exit_code: ClassVar[ExitCode]
    advice: ClassVar[str] = "Look at what is named, and run again."  # where nothing better is known

    def __init__(self, code: str, message: str, hint: str | None = None, **where: object) -> None:
        super().__init__(message)
        self.code = code
        self.problem = Problem(message, hint, **where)  # type: ignore[arg-type]
        self.problems: tuple[Problem, ...] = ()
        self.target: str | None = None  # of many, where one is to blame
        self.given: object = None  # a result that came with it all the same

    @classmethod
    def of(cls, code: str, problems: list[Problem]) -> Failure:
        """Make one failure of everything that is wrong; the first problem speaks for all."""
        first, others = problems[0], len(problems) - 1
        failure = cls(code, first.message + (f" (and {others} more)" if others else ""))
        failure.problem = Problem(**{**first.data(), "message": str(failure)})  # type: ignore[arg-type]
        failure.problems = tuple(problems)
        return failure

    def say_instead(self, said: str, now: str) -> None:
        """Put other words into the next step, where those are no longer true."""
        hint = (self.problem.hint or "").replace(said, now)
        self.problem = replace(self.problem, hint=hint or None)

    def retold(self, outcome: Callable[..., F], **other: object) -> F:
        """Return another failure at the same place, with other words or whose it is."""
        return outcome(self.code, **self.problem.data() | other)

    def data(self) -> dict[str, object]:
        """Return the `error` object of `run.finished`."""
        found: dict[str, object] = {"code": self.code, **self.problem.data()}
        found.setdefault("hint", self.advice)
        if len(self.problems) > 1:
            found["problems"] = [problem.data() for problem in self.problems]
        return found


class Pending(Failure):
    """The database is behind its files."""

    exit_code = ExitCode.PENDING


class NotReady(Failure):
    """The server was not usable before the deadline."""

    exit_code = ExitCode.NOT_READY


class LockBusy(Failure):
    """Another run still holds the lock."""

    exit_code = ExitCode.LOCK_BUSY


class DatabaseBusy(Failure):
    """Somebody was in the way, and remained so after all retries."""

    exit_code = ExitCode.DB_BUSY


class ConnectionLost(Failure):
    """The connection went away in the middle of the work."""

    exit_code = ExitCode.CONNECTION_LOST


class BackupInterrupted(Failure):
    """The dump failed for a passing reason."""

    exit_code = ExitCode.BACKUP_INTERRUPTED


class ConfigInvalid(Failure):
    """A variable, an argument, a secret file or the migrations directory is wrong."""

    exit_code = ExitCode.CONFIG
    advice = "Correct what is named, and run again."


class AuthFailed(Failure):
    """The server does not accept us: password, pg_hba, TLS, channel binding."""

    exit_code = ExitCode.AUTH


class TargetUnusable(Failure):
    """No such database, read-only, a pooler, or a server version we do not know."""

    exit_code = ExitCode.TARGET


class BackupFailed(Failure):
    """No backup can be made until something is changed."""

    exit_code = ExitCode.BACKUP_FAILED


class BackupUnverified(Failure):
    """The dump does not read back, or its counts differ."""

    exit_code = ExitCode.BACKUP_UNVERIFIED


class BackupDamaged(BackupUnverified):
    """Somebody, or the disk, changed or removed a dump: another one would fare no better."""


class FilesInvalid(Failure):
    """A migration file is invalid."""

    exit_code = ExitCode.FILES
    advice = ConfigInvalid.advice


class HistoryConflict(Failure):
    """An edited, missing or out-of-order file, or a damaged history."""

    exit_code = ExitCode.HISTORY


class RehearsalFailed(Failure):
    """The copy did not survive the pending files."""

    exit_code = ExitCode.REHEARSAL_FAILED


class SchemaAhead(Failure):
    """The database holds a newer migration that this version may not start on."""

    exit_code = ExitCode.SCHEMA_AHEAD


class MigrationFailed(Failure):
    """SQL or verify error; the file was rolled back."""

    exit_code = ExitCode.MIGRATION_FAILED


class MigrationPartial(Failure):
    """A non-transactional file failed part-way, or a wrapped command."""

    exit_code = ExitCode.MIGRATION_PARTIAL


class NeedsRepair(Failure):
    """An earlier part-way failure that cannot be resumed safely."""

    exit_code = ExitCode.NEEDS_REPAIR


class VerifyFailed(Failure):
    """The database differs from what a verify file promises."""

    exit_code = ExitCode.VERIFY_FAILED


@contextmanager
def blamed(target: str) -> Iterator[None]:
    """Say which target of a fleet a failure is of."""
    try:
        yield
    except Failure as failure:
        failure.target = failure.target or target
        raise


class PlanChanged(Exception):
    """Another run changed the history under our plan: make the plan again."""
