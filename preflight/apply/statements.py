"""Run the statements of a script, and name the place where one fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import psycopg

from preflight.base import logs, stop
from preflight.base.errors import MigrationPartial
from preflight.files import kinds, parser, scan
from preflight.server import sessions

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

    from preflight.base.errors import Failure
    from preflight.files.migrations import Migration, Script
    from preflight.server.sessions import Session

COPY_CHUNK = 1 << 16
SHOWN = 66  # characters of a line: with what stands before them, no more than a terminal has
_VALUE = re.compile(r'(["„«“»”]).*["“»”«]', re.DOTALL)  # in whatever language
_QUOTED = re.compile(r'["„«“»”]([^"„«“»”]*)["“»”«]')
_ROUTINE = re.compile(r"PL/pgSQL.*(?:inline_code_block|\)).*\d|^SQL function \"[^\"]*\" ")
# a DO block as it runs, a function as it is made: in whatever language
_BODY_LINE = re.compile(r"(?:inline_code_block|PL/pgSQL[^()]*[\"”»“])\D*(\d+)")
# a function as it runs: its name, its arguments' types, and the line of its body
_IDENTIFIER = r'(?:"(?:[^"]|"")+"|[\w$]+)'
_CALLED = re.compile(
    rf"PL/pgSQL.*?(?:{_IDENTIFIER}\.)?({_IDENTIFIER})\(((?:[^()]|\([^()]*\))*)\)\D*(\d+)"
)
_QUOTE = re.compile(rb"[$']")
HINTS = (
    "Correct the file or the data, and run again: nothing of it stayed.",
    "Correct the file from this statement on, or the data, and run again: what is finished stays.",
)
# what a server says where nothing on the search_path is there, and the file names no schema
_NO_PATH = {"RangeVarGetCreationNamespace", "QualifiedNameGetCreationNamespace"}
_PATH_LEADS_NOWHERE = (
    "No schema of the search_path is there: what the role, the database or the connection sets "
    "(ALTER ROLE or ALTER DATABASE … SET search_path, PGOPTIONS) leads nowhere. Correct that, or "
    "name the schema in the file, and run again."
)
OUT_OF_MEMORY = "53200"
ENDED = "57P01"  # by whoever may: an administrator, a shutdown, the session itself
# idle in transaction, transaction_timeout, idle session: ours are off, so a file has set one
OWN_TIMEOUTS = frozenset({"25P03", "25P04", "57P05"})
# who ends a statement, in whatever language it is told; why, only in English
_BY_SERVER = "ProcessInterrupts"
_BY_TIMEOUT = "canceling statement due to statement timeout"
_BY_REQUEST = "canceling statement due to user request"
_SETS_TIMEOUT = re.compile(rb"(?i)statement_timeout")
_TOO_LONG = "invalid memory alloc request size"  # which has no SQLSTATE of its own
_THERE_ALREADY = {"42P07", "42701", "42710", "42P06", "42723"}
_BY_STATE = {
    "42501": "This role lacks a right: run as the owner, or GRANT it.",
    "2D000": "A procedure or DO block that commits by itself cannot run here: each statement is "
    "recorded in its transaction. Split the work into several statements or files.",
    ENDED: "The statement ends its own session, too: add `pid <> pg_backend_pid()`.",
}


def head(script: Script, statement: scan.Statement) -> bytes:
    """Return enough of a statement to tell what kind it is, without comments before it."""
    return script.text[statement.start : min(statement.end, statement.start + 4000)]


def execute(session: Session, script: Script, statement: scan.Statement) -> None:
    """Run one statement; rows that it returns are thrown away as they come."""
    observed = session.observe(script, statement) if session.observe else nullcontext()
    other = session.instead(script, statement) if session.instead else None
    with observed:
        if other is not None:
            session.drain(other)
        elif scan.first_word(script.text, statement.start) == b"COPY":
            _copy(session, script, statement)
        else:
            session.drain(script.text, statement.start, statement.end)


def _copy(session: Session, script: Script, statement: scan.Statement) -> None:
    text = statement.text(script.text)
    if statement.data is None and not scan.copies(text, "TO"):
        session.drain(text)
        return
    view = memoryview(script.text)
    at, end = scan.copy_data(script.text, statement)
    with stop.allowed(), session.connection.cursor() as cursor, cursor.copy(text) as copy:
        if statement.data is None:
            for _ in copy:
                pass
        while at < end:
            copy.write(view[at : min(at + COPY_CHUNK, end)])
            at += COPY_CHUNK


def prepare(session: Session, script: Script, how: str) -> None:
    """Give the session to a file; `how` is SET or SET LOCAL."""
    session.execute("; ".join(preparing(session, script, how)))


def preparing(session: Session, script: Script, how: str) -> list[str]:
    """Return what gives the session to a file: the role's own search_path, and the timeouts.

    They are what the file's directives say, else the configuration.
    """
    lock_ms, statement_ms = timeouts(session, script)
    return [
        session.path(how),
        f"{how} lock_timeout = {lock_ms}",
        f"{how} statement_timeout = {statement_ms}",
    ]


def timeouts(session: Session, script: Script) -> tuple[int, int]:
    """Return lock_timeout and statement_timeout for a file, in milliseconds."""
    config = session.config
    lock_ms = config.lock_timeout_ms if script.lock_timeout_ms is None else script.lock_timeout_ms
    statement_ms = (
        round(config.statement_timeout_s * 1000)
        if script.statement_timeout_ms is None
        else script.statement_timeout_ms
    )
    return lock_ms, statement_ms


def located(  # noqa: PLR0913, PLR0917 -- what is needed to name a place
    outcome: Callable[..., Failure],
    session: Session,
    migration: Migration,
    script: Script,
    statement: scan.Statement | None,
    error: psycopg.Error,
) -> Failure:
    """Return the failure with file, line, column, SQLSTATE and the server's hint."""
    place(session, script, statement, error)
    hint = _hint(session, migration, script, statement, error)
    hint = hint or HINTS[outcome is MigrationPartial]
    return outcome(
        "migration.sql_error",
        f"{sessions.spot(error)}: {words(session, script, error)}",
        " ".join(filter(None, [hint, _withheld(session, script, error)])),
        sqlstate=error.sqlstate,
        **migration.named,
        **sessions.placed(error),
    )


def place(
    session: Session, script: Script, statement: scan.Statement | None, error: psycopg.Error
) -> None:
    """Keep on an error at which place of a file it came, for whoever tells of it."""
    diag = error.diag
    where: dict[str, object] = {"file": script.file, "context": _context(session, script, diag)}
    if statement is not None:
        at = _offset(script, statement, diag)
        line, column = scan.position(script.text, at)
        where |= {"line": line, "column": column}
        if logs.read_by_people(session.config.log):
            where["excerpt"] = _excerpt(script.text, at)
    if session.config.log_sql == "on":
        where["detail"] = diag.message_detail
        if statement is not None:
            text = script.text[statement.start : min(statement.end, statement.start + 2000)]
            where["sql"] = text.decode("utf-8", "replace")
    sessions.place(error, **where)


@contextmanager
def committed(
    outcome: Callable[..., Failure],
    session: Session,
    migration: Migration,
    script: Script,
    statement: scan.Statement | None = None,
) -> Iterator[None]:
    """Say of an error that only the COMMIT inside raises that it is the file's own.

    As of a cursor WITH HOLD, whose rows are read then. One of our own tables is another's doing.
    """
    try:
        yield
    except psycopg.Error as error:
        raised = sessions.AT_COMMIT in getattr(error, "__notes__", ())
        ours = error.diag.schema_name == session.config.schema
        if not raised or ours or session.lost or sessions.passing(error):
            raise
        failure = located(outcome, session, migration, script, statement, error)
        place, _, said = str(failure).partition(": ")
        raise failure.retold(outcome, message=f"{place}: fails at COMMIT: {said}") from error


def _withheld(session: Session, script: Script, error: psycopg.Error) -> str | None:
    """Name the setting that shows a row, where the server told of one."""
    told = error.diag.message_detail or words(session, script, error) != error.diag.message_primary
    of_a_row = str(error.sqlstate)[:2] in ("22", "23") and session.config.log_sql != "on"
    return "PREFLIGHT_LOG_SQL=on shows the row." if of_a_row and told else None


def _context(session: Session, script: Script, diag: psycopg.errors.Diagnostic) -> str | None:
    """Return the functions and blocks that an error came through; the rest may hold values.

    Of a function that the file itself makes, also where in the file that line is.
    """
    lines = (diag.context or "").splitlines()
    if session.config.log_sql != "on":
        lines = [line for line in lines if _ROUTINE.search(line)]
    return "\n".join(f"{line}{_in_file(script, line)}" for line in lines) or None


def _in_file(script: Script, line: str) -> str:
    """Return the place in the script of a line that the server names inside a function."""
    if (found := _CALLED.search(line)) is None:
        return ""
    name = found[1][1:-1].replace('""', '"') if found[1].startswith('"') else found[1]
    types = len(found[2].split(",")) if found[2] else 0
    at = None
    for statement in script.statements():
        if scan.first_word(script.text, statement.start) != b"CREATE":
            continue
        text = statement.text(script.text)
        if name.encode() not in text or (node := parser.parsed(text)) is None:
            continue
        made = node.create_function_stmt
        inputs = [each for each in made.parameters if each.function_parameter.mode not in _GIVEN]
        if [each.string.sval for each in made.funcname][-1:] == [name] and len(inputs) == types:
            at = _line_of(script, statement, node, int(found[3]))
    if at is None:
        return ""
    number, _ = scan.position(script.text, at)
    return f" ({script.file}:{number})"


_GIVEN = {2, 5}  # FUNC_PARAM_OUT, FUNC_PARAM_TABLE: no types of theirs are in its name


def _excerpt(text: bytes, at: int) -> str:
    """Return the line of a place in a script, with a caret under it."""
    start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
    line = text[start : end if end >= 0 else len(text)].decode("utf-8", "replace")
    before = len(text[start:at].decode("utf-8", "replace"))
    first = max(0, before - SHOWN // 2)
    shown = "".join(each if each.isprintable() else " " for each in line[first : first + SHOWN])
    return f"{shown}\n{' ' * (before - first)}^"


def words(session: Session, script: Script, error: psycopg.Error) -> str:
    """Return the server's words, without the value of a row that it could not convert or find.

    Where it names no place in the statement, it was running: what it quotes is a row's, unless it
    stands in the file or is the name of what the error is about.
    """
    diag, state = error.diag, str(error.sqlstate)
    said = diag.message_primary or str(error)
    if session.config.log_sql == "on" or diag.statement_position:
        return said
    if state[:2] == "22":
        return _VALUE.sub("…", said)
    inside = diag.internal_position and state != "42601"  # that is of text which EXECUTE was given
    if state[:2] != "42" or inside:
        return said
    names = (diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name)
    known = script.text.decode("utf-8", "replace") + " ".join(filter(None, names))
    return _QUOTED.sub(lambda found: found[0] if found[1] in known else "…", said)


def _hint(
    session: Session,
    migration: Migration,
    script: Script,
    statement: scan.Statement | None,
    error: psycopg.Error,
) -> str | None:
    limits = script if script in (migration.up, migration.rollback) else None
    if ended := cancelled(session, script, limits, error):
        return ended
    text = head(script, statement) if statement is not None else b""
    if error.sqlstate == kinds.IN_TRANSACTION and scan.words(text, 1) != ["SET"]:
        return _without_transaction(script, text, error.diag)
    if error.diag.source_function in _NO_PATH:
        return _PATH_LEADS_NOWHERE
    if error.sqlstate in _THERE_ALREADY:
        return _there_already(session, migration, script)
    size = statement.end - statement.start if statement is not None else 0
    if size > parser.LARGEST and (
        str(error.sqlstate)[:2] == "54"
        or error.sqlstate == OUT_OF_MEMORY
        or _TOO_LONG in str(error)
    ):
        return (
            f"One statement of {size / 1e6:,.1f} MB is too much for this server. Load rows with "
            "COPY … FROM stdin, which are sent as they are read; else split it into several ones."
        )
    return _BY_STATE.get(str(error.sqlstate), error.diag.message_hint)


def cancelled(
    session: Session, script: Script, limits: Script | None, error: psycopg.Error
) -> str | None:
    """Say what to do about a statement that the server cancelled: whose timeout it was, if any.

    `limits` is the file whose directives hold for it; None: it can have none.
    """
    diag = error.diag
    if error.sqlstate != sessions.CANCELLED or diag.source_function != _BY_SERVER:
        return None
    if diag.message_primary == _BY_REQUEST:
        return (
            "Somebody cancelled it (pg_cancel_backend): run again. Or does the file do so itself? "
            "Then take that out."
        )
    hint = _too_long(session, script, limits)
    if diag.message_primary == _BY_TIMEOUT:
        return hint
    return f"{hint} Or did somebody cancel it (pg_cancel_backend)? Then run again."


def _too_long(session: Session, script: Script, limits: Script | None) -> str:
    """Say whose limit a statement met that took too long."""
    _, milliseconds = timeouts(session, limits or script)
    if not milliseconds:
        return (
            "It took longer than the statement_timeout that the file, or a function that it calls, "
            "sets: raise that."
        )
    seconds = f"{milliseconds / 1000:g} s"
    if limits and limits.statement_timeout_ms is not None:
        hint = f"It took longer than `statement-timeout` in {limits.file} ({seconds}): raise that"
    else:
        hint = f"It took longer than PREFLIGHT_STATEMENT_TIMEOUT_S ({seconds}): raise it"
        if limits:
            line = "`-- preflight: statement-timeout 5min`"
            hint = f"{hint}, or write {line} {_top(limits)}"
    if _SETS_TIMEOUT.search(script.text):
        return f"{hint}. Or was it the statement_timeout that {script.file} sets itself?"
    return f"{hint}."


def _top(script: Script) -> str:
    """Say where a directive goes: what another tool reads at the top has to stay there."""
    if script.text.startswith(b"--!"):
        return (
            f"below the `--!` lines of {script.file}, and `--! AllowInvalidHash` below its "
            "`--! Hash:`"
        )
    if script.text.startswith(b"-- no-transaction"):
        return f"below the first line of {script.file}"
    return f"at the top of {script.file}"


def _without_transaction(
    script: Script, text: bytes, diag: psycopg.errors.Diagnostic
) -> str | None:
    """Say how a statement gets rid of the transaction that it does not take."""
    outside = script.outside if script.transactional else ""
    itself = kinds.may_be_refused(text)  # REINDEX has a context of its own
    within = any(map(_ROUTINE.search, (diag.context or "").splitlines()))
    if within or (not itself and (diag.context or diag.internal_position)):
        alone = "It cannot run inside a block or a function: write it as a statement of its own."
        return f"{alone} {outside}".strip()
    return outside if itself and outside else None


def _there_already(session: Session, migration: Migration, script: Script) -> str:
    """Say what to do about what is in the way; only a forward file with a version is adopted."""
    if script == migration.rollback:  # which may stand for the forward file while it runs
        return (
            "What the way back would make is in its way: look what it is, and remove it or take "
            "the statement out of the rollback file. Nothing of it can be adopted."
        )
    if migration.repeat:
        return (
            "It runs again whenever its text changes, so it cannot be adopted: write it so that it "
            "takes what is there already (CREATE OR REPLACE, IF NOT EXISTS), or remove that."
        )
    if migration.recorded and (migration.up.transactional or session.copy):  # else it is no more
        back = "take it back first (`rollback`)" if migration.way_back else "remove that first"
        return (
            f"Is it what the file itself has made? It is recorded already, as it is: {back}, or "
            "write it so that it can run twice (IF NOT EXISTS, CREATE OR REPLACE)."
        )
    adopt = f"`adopt {migration.written}` records the file without running it"
    if migration.verify:
        return f"Is it there already? {adopt}, if its verify file agrees."
    return (
        f"Is all of the file there already? {adopt}, and no other statement of it runs later: it "
        "has no verify file that could tell. Else remove what is in the way, or correct the file."
    )


def _offset(script: Script, statement: scan.Statement, diag: psycopg.errors.Diagnostic) -> int:
    """Return the byte where the server sees the error, else the statement's first one."""
    if diag.statement_position:
        characters = int(diag.statement_position) - 1
        longest = script.text[statement.start : statement.start + 4 * characters]
        return statement.start + len(longest.decode("utf-8", "ignore")[:characters].encode())
    if statement.data is not None and (row := _copy_row(script, statement, diag)):
        at, end = scan.copy_data(script.text, statement)
        for _ in range(row - 1):
            at = script.text.find(b"\n", at, end) + 1 or at
        return at
    return _in_body(script, statement, diag) or statement.start


def _in_body(
    script: Script, statement: scan.Statement, diag: psycopg.errors.Diagnostic
) -> int | None:
    """Return where the line is that the context names inside a DO block or a function's text."""
    if scan.first_word(script.text, statement.start) not in (b"DO", b"CREATE"):
        return None
    found = _BODY_LINE.findall(diag.context or "")
    if not found or (node := parser.parsed(statement.text(script.text))) is None:
        return None
    return _line_of(script, statement, node, int(found[-1]))


def _line_of(script: Script, statement: scan.Statement, node: Node, line: int) -> int | None:
    """Return where a line of a body begins in a script, counted as the server does."""
    elements = [each for each in parser.every(node, "DefElem") if each.defname == "as"]
    if not elements:
        return None
    quote = _QUOTE.search(script.text, statement.start + elements[0].location, statement.end)
    at = quote.start() if quote else statement.start
    for _ in range(line - 1):
        at = script.text.find(b"\n", at, statement.end) + 1
        if not at:
            return None
    return at + len(script.text[at : statement.end]) - len(script.text[at : statement.end].lstrip())


def _copy_row(
    script: Script, statement: scan.Statement, diag: psycopg.errors.Diagnostic
) -> int | None:
    """Return the line of the data that the context names: `COPY <table>, line 3, column a`."""
    node = parser.parsed(statement.text(script.text))
    if node is None:
        return None
    table = re.escape(node.copy_stmt.relation.relname)
    found = re.search(rf"^COPY {table}, \D*(\d+)", diag.context or "", re.MULTILINE)
    return int(found[1]) if found else None
