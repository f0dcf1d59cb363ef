"""`adopt`: record what is in the database already, without running it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import structlog

from preflight import gate
from preflight.apply import contact, verify
from preflight.base.errors import (
    HistoryConflict,
    VerifyFailed,
)
from preflight.commands import command
from preflight.files import reading
from preflight.history import ledger, plan
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session


def run(config: Config, *, version: int | None = None) -> None:
    """Record what is in the database already; raises VerifyFailed when it is not."""
    files = reading.load(config.migrations_dir)
    chosen = None if version is None else contact.named(files, version)
    with sessions.connect(config) as session:
        ledger.read(session)
        gate.enter(session)
        ledger.ensure(session)
        known = ledger.read(session)
        if foreign := plan.foreign(files, known):  # others' files say nothing of this database
            raise HistoryConflict.of("history.conflict", foreign)
        todo = [file for file in files if file.version not in known.records]
        if chosen is not None:  # what is below a new record must be recorded, too
            new = chosen in todo
            todo = [file for file in todo if new and file.version < chosen.version] + [chosen]
        with sessions.transaction(session):  # all of it or, when one is refused, nothing
            there = _there(session, todo, chosen) if chosen else contact.adoptable(session, todo)
            adopted = []
            for file, checks in there:
                ledger.adopt(session, file, by_name=chosen is not None)
                adopted.append((file, checks))
        contact.tell_adopted(adopted)
    names = [file.name for file, _ in adopted]
    if left := [file.name for file in todo if file.name not in names]:
        structlog.get_logger().info("plan.made", pending=left, adopts=[])


def _there(
    session: Session, files: Sequence[Migration], chosen: Migration
) -> Iterator[tuple[Migration, tuple[verify.Check, ...]]]:
    """Yield the files up to the one that a person named, with their checks, which must hold."""
    for file in files:
        checks = verify.run(session, file.verify) if file.verify else ()
        answer = verify.answer(checks)
        if answer == "unknown" and file is not chosen:
            raise HistoryConflict(
                "history.first_contact",
                f"{file.name} has no verify file that could tell whether it is there",
                f"Nothing was recorded. If you know that it is: `adopt {file.version}`.",
                **file.named,
            )
        if answer != "present" and file is not chosen:
            verify.report(file, checks)
            raise HistoryConflict(
                "history.gap",
                f"{file.name} is neither recorded nor in the database as it should be "
                f"({verify.described(checks)}), so {chosen.name} above it cannot be recorded",
                "Nothing was recorded. `up` applies what is absent; what is there in part needs a "
                "look.",
                **file.named,
            )
        if verify.failed(checks):
            verify.report(file, checks)
            raise VerifyFailed(
                "verify.not_there",
                f"{file.name} is not in the database as it should be: {verify.described(checks)}",
                "Nothing was recorded. `up` applies what is absent; what is there in part needs a "
                "look.",
                **file.named,
            )
        yield file, checks


def refuse_contradiction(file: Migration, record: plan.Record) -> None:
    """Raise what stands against a file that is not what was recorded under its number."""
    if problem := plan.contradiction(file, record):
        raise HistoryConflict.of("history.conflict", [problem])


COMMAND = command.Command(
    place=6,
    does="record files that are in the database already, without running them",
    example="entrypoint.py adopt 1     # also settles an edited checksum or an exit 32",
    run=run,
    version="this one, also when it has no verify file (default: all whose verify file agrees)",
)
