"""Did a command write anything before it failed? Yes, no, or nobody can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preflight.commands.wrapping import compared, shared, tools
from preflight.server import catalog

if TYPE_CHECKING:
    from preflight.server import packed
    from preflight.server.sessions import Session

MOST = 1_000_000  # transactions that are asked one by one
# a transaction's number is the whole server's: a trial on a copy there has some, too
BY_WHOM = "the server was written to meanwhile, by the command or by others"
# whoever writes a row, or changes an object, has a number: who comes between two of our own, which
# are given back, has one between them. A snapshot knows of none above the last that has ended
_OWN = "BEGIN; SELECT pg_catalog.pg_current_xact_id()::text::int8 AS id; ROLLBACK"
_ENDED = """
SELECT count(*) FROM pg_catalog.generate_series(%s::int8, %s::int8) n
WHERE n NOT IN (SELECT pg_catalog.unnest(%s::int8[]))
 AND pg_catalog.pg_xact_status(n::text::pg_catalog.xid8) IS DISTINCT FROM 'aborted'
"""


@dataclass(frozen=True, slots=True)
class Before:
    """The live database before a command."""

    state: compared.State
    tables: Sequence[tools.Table]
    rows: Sequence[str]
    sequences: Mapping[str, object]
    invalid: Sequence[catalog.Invalid]  # indexes, which `state` leaves out
    lasting: packed.Rows  # what no rollback takes back
    sees_all: bool  # of that
    number: int  # of a transaction of ours: whose is lower was at work before


def look(session: Session, history: str | None) -> Before:
    """Return what the live database is like."""
    tables = tools.history(session, history)
    lasting, sees_all = shared.lasting(session)
    return Before(
        compared.state(session),
        tables,
        tools.rows(session, tables),
        compared.asked(session, catalog.sequences),
        invalid(session),
        lasting,
        sees_all,
        _number(session),
    )


def _number(session: Session) -> int:
    with session.looking():
        (row,) = session.rows(_OWN)
    return int(row["id"])


def nothing(session: Session, before: Before) -> bool:
    """Tell whether surely nothing was written since: all transactions came to naught.

    Whose a transaction was that came through, nobody can tell: then the answer is no. A sequence
    goes on without one.
    """
    return aborted(session, before) and not moved(session, before)


def moved(session: Session, before: Before) -> list[str]:
    """Name the sequences that went on since, or were set; no rollback takes that back."""
    ours = f"{session.config.schema}."
    now = compared.asked(session, catalog.sequences)
    return [
        f"sequence {name}"
        for name, last in sorted(now.items())
        if not name.startswith(ours) and last != before.sequences.get(name, last)
    ]


def aborted(session: Session, before: Before, ours: Sequence[int] = ()) -> bool:
    """Tell whether every transaction since came to naught, but `ours`; one at work has not."""
    after = _number(session)
    if after - before.number > MOST:
        return False
    row = session.execute(_ENDED, [before.number, after - 1, list(ours)]).fetchone()
    return row is not None and row[0] == 0


def changed(session: Session, before: Before, history: str | None) -> list[str]:
    """Name what is not as it was: objects, and the tool's history."""
    now = look(session, history)
    found = compared.between(before.state, now.state, session.config.schema).names
    found += [
        f"INVALID index {each.name} of {each.table} made" for each in left(before, now.invalid)
    ]
    return found + (["rows of the tool's history table"] if now.rows != before.rows else [])


def invalid(session: Session) -> list[catalog.Invalid]:
    """Return the INVALID indexes of a database."""
    return compared.asked(session, catalog.invalid_indexes)


def left(before: Before, now: Sequence[catalog.Invalid]) -> list[catalog.Invalid]:
    """Return which INVALID indexes have come since, and nobody is at them."""
    known = {each.oid for each in before.invalid}
    return [each for each in now if not each.busy and each.oid not in known]


def lasting(session: Session, before: Before) -> list[str]:
    """Name what is not as it was and no rollback takes back: replication slots, ALTER SYSTEM."""
    now, _ = shared.lasting(session)
    return list(map(str, shared.between(before.lasting, now)))
