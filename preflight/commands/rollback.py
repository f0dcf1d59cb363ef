"""`rollback`: take migrations back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from preflight.base.errors import (
    LockBusy,
    PlanChanged,
)
from preflight.files import reading
from preflight.history import ledger
from preflight.server import lock, ready, sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.commands.arguments import Arguments


def run(config: Config, said: Arguments) -> None:
    """Take back the newest migration, or all above a version, newest first."""
    from preflight.apply import back  # noqa: PLC0415 -- only when work is due
    from preflight.backup import exports, take  # noqa: PLC0415 -- only when work is due
    from preflight.rehearsal import trial  # noqa: PLC0415 -- only when work is due

    files = reading.load(config.migrations_dir)
    with sessions.connect(config) as session:
        if not back.choose(files, ledger.read(session), said.to):
            structlog.get_logger().info("plan.made", rollback=[])
            return  # nothing recorded that could be taken back
        ready.require_writable(session)
        lock.acquire(session)
        ledger.ensure(session)
        steps = back.prepare(session, files, back.choose(files, ledger.read(session), said.to))
        if not steps:
            return
        saved = take.proven(
            lambda: take.take(session, [step.migration for step in steps], "rollback"),
            lambda saved: trial.backward(session, saved, steps),
            lambda saved: exports.export(session, steps, saved.backup if saved else None),
        )
        for step in steps:
            lock.require(session)
            with undisturbed():
                same_session = back.back(session, step, saved.name if saved else None)
            if not same_session:  # it had to be replaced, and its lock went with it
                lock.acquire(session)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Say what it means when the history is not as it was a moment ago."""
    try:
        yield
    except PlanChanged as changed:
        raise LockBusy(
            "history.changed",
            "another run changed the history meanwhile, or the connection broke at COMMIT",
            "Look with `check --table`, and run again if it is still wanted.",
        ) from changed
