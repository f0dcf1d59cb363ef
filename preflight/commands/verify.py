"""`verify`: ask the verify files of what is applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from preflight import gate
from preflight.apply import verify
from preflight.base import console
from preflight.base.errors import (
    ConfigInvalid,
    HistoryConflict,
    Pending,
    VerifyFailed,
)
from preflight.commands import command, results
from preflight.files import folder
from preflight.files.layout import NATIVE
from preflight.history import numbers, plan
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.apply.verify import Check
    from preflight.base.config import Config
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session

    Answer = tuple[Migration, Check]

NOTHING = "nothing was verified: no applied file has a verify file"


def run(config: Config, *, form: str | None = None, version: int | str | None = None) -> None:
    """Run the verify files of what is applied; raises VerifyFailed when a check fails."""
    files = folder.load(config)
    with sessions.connect(config) as session:
        known = gate.recorded(session, others=False)
        files = numbers.settled(files, known)
        chosen = _to_verify(files, known, version)
        foreign = plan.contradicted(chosen, known)
        if foreign:  # what the files of another migration say is no answer
            raise HistoryConflict.of("history.conflict", foreign)
        answers = _by_suite(verify.unlocked(session, lambda: _asked(session, chosen)))
        database = session.facts.database if session.facts else config.database
    bad = [(file, check) for file, check in answers if not check.ok]
    again = files.repeats if version is None else ()
    done = [*chosen, *(each for each in again if each.name in known.repeated)]
    unverified = [file.name for file in done if not file.verify]
    _warn_of(unverified, len(done))
    ok = not bad and bool(done) and (bool(answers) or None)  # None: nothing was there to be asked
    told = {"database": database, "ok": ok, "unverified": unverified}
    failure = _failed(bad, len(answers))
    _show(config, form, told, answers, failure)
    if failure:
        raise failure
    if not done:
        raise Pending(
            "verify.nothing_recorded",
            f"none of the {len(files) + len(files.repeats)} files is recorded as applied in "
            f"{database}, so nothing was verified",
            f"Is it the right database ({config.named('dbname', 'PGDATABASE')}, "
            f"{config.named('schema', 'PREFLIGHT_SCHEMA')})? Then run `up` first; "
            "`verify VERSION` asks a file's checks all the same.",
        )


def _asked(session: Session, chosen: Sequence[Migration]) -> list[Answer]:
    """Return the answer to every check, as of one moment."""
    with session.looking():
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return [
            (file, check)
            for file in chosen
            if file.verify
            for check in verify.run(session, file.verify)
        ]


def _failed(bad: Sequence[Answer], asked: int) -> VerifyFailed | None:
    """Return the failure for checks that do not hold, if there are any."""
    if not bad:
        return None
    file, check = bad[0]
    return VerifyFailed(
        "verify.failed",
        f"{len(bad)} of {asked} checks fail, first {check.suite}: {check.check}",
        "Compare the database with the migration; was it changed by hand?",
        migration=file.name,
        version=file.version,
    )


def _warn_of(unverified: Sequence[str], applied: int) -> None:
    """Name the applied files that nothing could be asked of."""
    if unverified:
        names = console.some(unverified)
        warning = f"not verified, for want of a verify file: {names}"
        if len(unverified) == applied:
            warning = f"{NOTHING} ({names})"
        structlog.get_logger().warning("config.warned", warning=warning)


def _by_suite(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers of a suite one after the other, in the order in which suites appear."""
    place = {suite: at for at, suite in enumerate(dict.fromkeys(c.suite for _, c in answers))}
    return sorted(answers, key=lambda answer: place[answer[1].suite])


def _show(
    config: Config,
    form: str | None,
    told: Mapping[str, Any],
    answers: Sequence[Answer],
    failure: VerifyFailed | None,
) -> None:
    """Print each check's answer."""
    rows = [
        {
            "migration": file.name,
            "version": file.version,
            "suite": check.suite,
            "check": check.check,
            "ok": check.ok,
            "detail": check.detail,
        }
        for file, check in answers
    ]
    document = {**told, "checks": rows}
    heads = ("version", "suite", "check", "result", "detail")
    table = [
        (
            file.padded,
            check.suite,
            check.check,
            "ok" if check.ok else "FAILED",
            check.detail,
        )
        for file, check in answers
    ]
    events = [
        (
            "check.passed" if row["ok"] else "check.failed",
            {k: v for k, v in row.items() if k != "ok"},
        )
        for row in rows
    ]
    nothing = NOTHING if told["unverified"] else ""
    results.show(config, form, document, (heads, table), events, nothing=nothing, failure=failure)


def _to_verify(
    files: Sequence[Migration], known: plan.History, version: int | str | None
) -> list[Migration]:
    if version is None:
        return [file for file in files if known.done(file.version)]
    file = numbers.file(files, known, version)
    if file.verify is None:
        raise ConfigInvalid(
            "config.arguments",
            f"version {file.written} has no verify file",
            f"Write {(folder.rule(files) or NATIVE).file(file.name, 'verify')}; "
            "`lint --table` shows which files have one.",
        )
    return [file]


COMMAND = command.Command(
    place=3,
    does="run the verify files of what is applied; exit 33 when a check fails",
    example="entrypoint.py verify 2 --table",
    run=run,
    fleet=True,
    version="only this version, applied or not",
    result=True,
)
