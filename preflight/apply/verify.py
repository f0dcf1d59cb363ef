"""Run verify files: queries whose rows are checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg
import structlog

from preflight.base import quoting
from preflight.base.errors import Failure, VerifyFailed
from preflight.files import parser, scan
from preflight.history import tables
from preflight.server import sessions
from preflight.server.sessions import passing

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node
    from psycopg.pq.abc import PGresult

    from preflight.files.migrations import Migration, Script
    from preflight.server.sessions import Session

T = TypeVar("T")
BOOL = 16  # boolean's number in pg_type
ABSENT = {"42P01", "42703", "42704", "42883", "3F000"}  # what a query about missing objects raises


@dataclass(frozen=True, slots=True)
class Check:
    """One row of a verify file; `effect` is false for a condition that holds without the file."""

    suite: str
    check: str
    ok: bool
    detail: str | None = None
    effect: bool = True
    told: bool = True  # false: the query failed, and nobody knows what it would have told


# where a file has no transaction: what has run of it stays, and may not be another text
BEHIND = (
    "Add what is missing behind the statements that have run, which stay as they are, or correct "
    "the verify file; a re-run goes on there and verifies again."
)
CLOSING = "ROLLBACK TO SAVEPOINT preflight_verify; RELEASE SAVEPOINT preflight_verify"


def run(session: Session, script: Script, after: Script | None = None) -> tuple[Check, ...]:
    """Return every check of a verify file; call inside a transaction, which it leaves as it was.

    The timeouts are those of the file that it is asked `after`, whose locks are still held.
    Raises VerifyFailed for an error that means neither "not there" nor "not now".
    """
    session.execute(opening(session, script, after))
    checks = asked(session, script, after)
    session.execute(CLOSING)
    return checks


def opening(session: Session, script: Script, after: Script | None = None) -> str:
    """Return what comes before a verify file's queries; `CLOSING` comes after them."""
    from preflight.apply import statements  # noqa: PLC0415 -- with nothing pending nothing is verified

    return "; ".join(
        [
            *([sessions.FORGET] if after is not None else []),  # a later `verify` would not see it
            # without the savepoint the read-only mode could not be undone
            "SAVEPOINT preflight_verify; SET TRANSACTION READ ONLY",
            *(session.unlimited if after is None else []),  # a look, not what a file has limited
            *statements.preparing(session, after or script, "SET LOCAL"),
            "SAVEPOINT preflight_check",
        ]
    )


def asked(session: Session, script: Script, after: Script | None = None) -> tuple[Check, ...]:
    """Return every check of a verify file between its opening and its closing; raises as `run`."""
    checks: list[Check] = []
    places = scan.places(script.text, (statement.start for statement in script.statements()))
    for number, statement in enumerate(script.statements()):
        if number:
            session.execute("RELEASE SAVEPOINT preflight_check; SAVEPOINT preflight_check")
        checks += _checks(session, script, statement, next(places), after)
    return tuple(checks)


def unlocked(session: Session, look: Callable[[], T]) -> T:
    """Return what a look gives that asks verify files, once nobody holds what they read.

    It is taken again, in a transaction of its own each time. Raises DatabaseBusy after
    LOCK_RETRY_S.
    """

    def held(error: psycopg.Error) -> tables.Held:
        left = "Nothing was recorded." if session.at_work else "Nothing was begun."
        if (query := vars(error).get("reads")) is None:  # no verify file's: what it is written into
            return tables.Held(*tables.ours(session), left=left)
        what = f"what {sessions.spot(error)} reads"
        return tables.Held(what, _tables(query), sessions.placed(error), left)

    return tables.once_free(session, look, held)


def _tables(query: bytes) -> list[str]:
    """Return the tables that a query names, as far as it can be read."""
    node = parser.parsed(query)
    ranges = parser.every(node, "RangeVar") if node is not None else ()
    names = ((each.schemaname, each.relname) for each in ranges)
    return [".".join(map(quoting.name, filter(None, each))) for each in names]


def asks_more(query: bytes) -> bool:
    """Tell whether a query may make more than one check: it does not say what its check is."""
    node = parser.parsed(query)
    if node is None or node.WhichOneof("node") != "select_stmt":
        return True
    names = [each.res_target for each in node.select_stmt.target_list]
    kinds = [_bare(each.val).WhichOneof("node") for each in names if each.name == "check"]
    return kinds != ["a_const"]  # of a UNION the arms have the targets


def _bare(value: Node) -> Node:
    return _bare(value.type_cast.arg) if value.HasField("type_cast") else value


def _checks(
    session: Session,
    script: Script,
    statement: scan.Statement,
    place: tuple[int, int],
    after: Script | None,
) -> list[Check]:
    line, column = place
    where = f"{script.file}:{line}"
    wrong = partial(_wrong, script, line, column)
    try:
        found = session.answer(statement.text(script.text))
    except psycopg.Error as error:
        from preflight.apply import statements  # noqa: PLC0415 -- with nothing pending nothing is verified

        if after is None and error.sqlstate in statements.OWN_TIMEOUTS:
            hint = "The file, or a function that it calls, sets a timeout that ends its session."
            raise wrong("verify.error", f"{where}: {error.diag.message_primary}", hint) from error
        if session.lost or passing(error):
            sessions.place(error, **script.named, file=script.file, line=line, column=column)
            vars(error)["reads"] = statement.text(script.text)
            raise  # somebody is in the way: that says nothing of the file
        message = statements.words(session, script, error)
        session.execute("ROLLBACK TO SAVEPOINT preflight_check")
        if error.sqlstate in ABSENT:
            told = not asks_more(statement.text(script.text))
            return [Check("objects", f"query at {where}", ok=False, detail=message, told=told)]
        hint = statements.cancelled(session, script, after, error) or (
            "The verify file itself fails: correct it, or the rights of this role."
        )
        raise wrong("verify.error", f"{where}: {message}", hint, error.sqlstate) from error
    columns = range(found.nfields)
    names = [(found.fname(number) or b"").decode("utf-8", "replace") for number in columns]
    rows = [dict(zip(names, _row(found, row), strict=True)) for row in range(found.ntuples)]
    if names and not rows:
        return [Check("rows", f"query at {where} returns a check", ok=False, detail="no rows")]
    if not {"suite", "check", "ok"} <= set(names):
        said = ", ".join(names) or "nothing"
        raise wrong("verify.columns", f"{where}: the query returns {said}, not suite, check and ok")
    truths = {names[number] for number in columns if found.ftype(number) == BOOL}
    for name in ("ok", "effect"):
        if name not in truths and any(row.get(name) is not None for row in rows):
            raise wrong("verify.columns", f"{where}: the column {name} is not boolean")
    return [
        Check(
            str(row["suite"]),
            str(row["check"]),
            ok=row["ok"] == "t",
            detail=row.get("detail"),
            effect=row.get("effect") != "f",
        )
        for row in rows
    ]


def _row(found: PGresult, row: int) -> list[str | None]:
    """Return a row as the server writes it: not every value of its has a place among Python's."""
    values = (found.get_value(row, number) for number in range(found.nfields))
    return [None if value is None else value.decode("utf-8", "replace") for value in values]


_COLUMNS = (
    'Return the columns suite text, "check" text, ok boolean, and if you like detail text '
    "and effect boolean."
)


def _wrong(  # noqa: PLR0913, PLR0917 -- a place and what is wrong there
    script: Script,
    line: int,
    column: int,
    code: str,
    message: str,
    hint: str = _COLUMNS,
    sqlstate: str | None = None,
) -> VerifyFailed:
    return VerifyFailed(
        code,
        message,
        hint,
        **script.named,
        file=script.file,
        line=line,
        column=column,
        sqlstate=sqlstate,
    )


def require(
    session: Session,
    migration: Migration,
    outcome: Callable[..., Failure],
    ask: Callable[[Session, Script, Script | None], tuple[Check, ...]] = run,
) -> None:
    """Make sure that every check holds after a file ran; raises `outcome`, naming those that fail.

    Call inside a transaction; with `ask=asked` between what opens and closes a verify file.
    """
    if migration.verify is None:
        return
    try:
        checks = ask(session, migration.verify, migration.up)
    except VerifyFailed as failure:
        named = {"migration": migration.name, "version": migration.version}
        hint = advice(session, failure.problem.hint)
        raise failure.retold(outcome, hint=hint, **named) from failure
    except psycopg.Error as error:
        if session.lost or migration.up.transactional:
            raise
        at = f"{found}: " if (found := sessions.spot(error)) else ""
        raise outcome(
            "verify.busy",
            f"{migration.name} ran, but its verify file cannot be asked now: "
            f"{at}{error.diag.message_primary or error}",
            None if session.copy else "Its statements stay, and a re-run verifies again.",
            **sessions.placed(error) | migration.named,
            sqlstate=error.sqlstate,
        ) from error
    if failed(checks):
        report(migration, checks)
        hint = "Correct the migration or its verify file."  # a copy keeps nothing
        if not session.copy and migration.up.transactional:
            hint = "Correct the migration or its verify file; everything was rolled back."
        elif not session.copy:
            hint = BEHIND
        raise outcome(
            "verify.failed",
            f"{migration.name} ran, but {described(checks)}",
            advice(session, hint),
            **migration.named,
        )


def advice(session: Session, hint: str | None) -> str | None:
    """Return a hint about checks that fail, and which settings they did not find as others do."""
    names = session.emptied()
    if not names:
        return hint
    emptied = (
        f"Do the checks read {', '.join(names)}? What a file has set is an empty text for them, "
        f"and not NULL as in a new session: nullif(current_setting('{names[0]}', true), '') reads "
        "both alike."
    )
    return f"{emptied} {hint or ''}".strip()


def answer(checks: Sequence[Check]) -> str:
    """Return present (all hold), absent (no effect holds), partial or unknown (none asked).

    `untold`: the only queries about effects failed, and might have found some.
    """
    effects = [check for check in checks if check.effect]
    if not effects:
        return "unknown"
    if all(check.ok for check in checks):
        return "present"
    if any(check.ok for check in effects):
        return "partial"
    return "absent" if any(check.told for check in effects) else "untold"


def failed(checks: Sequence[Check]) -> list[Check]:
    """Return the checks that do not hold."""
    return [check for check in checks if not check.ok]


def report(migration: Migration, checks: Sequence[Check]) -> None:
    """Log every check that does not hold."""
    log = structlog.get_logger()
    for check in failed(checks):
        log.error(
            "check.failed",
            **migration.named,
            suite=check.suite,
            check=check.check,
            detail=check.detail,
        )


def described(checks: Sequence[Check]) -> str:
    """Name the checks that do not hold, shortly."""
    names = [f"{check.suite}: {check.check}" for check in failed(checks)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""  # noqa: PLR2004 -- a line's worth
    return f"{len(names)} of {len(checks)} checks fail ({'; '.join(names[:5])}{more})"
