"""Did a command write anything before it failed? Yes, no, or nobody can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preflight.commands.wrapping import compared, tools
from preflight.server import catalog

if TYPE_CHECKING:
    from preflight.server.sessions import Session

MOST = 1_000_000  # transactions that are asked one by one
# whoever writes a row, or changes an object, has a number; one that comes is at least this
_NEXT = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8"
# and all that came are below one of our own, which is given back; a snapshot knows of no number
# that is at work above the last that has ended
_LAST = "BEGIN; SELECT pg_catalog.pg_current_xact_id()::text::int8 AS id; ROLLBACK"
_ENDED = """
SELECT count(*) FROM pg_catalog.generate_series(%s::int8, %s::int8) n
WHERE pg_catalog.pg_xact_status(n::text::pg_catalog.xid8) IS DISTINCT FROM 'aborted'
"""


@dataclass(frozen=True, slots=True)
class Before:
    """The live database before a command."""

    state: compared.State
    tables: Sequence[tools.Table]
    rows: Sequence[str]
    sequences: Mapping[str, object]
    next: int  # transaction


def look(session: Session, history: str | None) -> Before:
    """Return what the live database is like."""
    tables = tools.history(session, history)
    return Before(
        compared.state(session),
        tables,
        tools.rows(session, tables),
        compared.asked(session, catalog.sequences),
        _next(session),
    )


def _next(session: Session) -> int:
    return int((session.execute(_NEXT).fetchone() or (0,))[0])


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


def aborted(session: Session, before: Before) -> bool:
    """Tell whether every transaction since came to naught; one that is at work has not."""
    with session.looking():
        (row,) = session.rows(_LAST)
    after = int(row["id"])
    if after - before.next > MOST:
        return False
    ended = session.execute(_ENDED, [before.next, after - 1]).fetchone()
    return ended is not None and ended[0] == 0


def changed(session: Session, before: Before, history: str | None) -> list[str]:
    """Name what is not as it was: objects, and the tool's history."""
    now = look(session, history)
    found = compared.between(before.state, now.state, session.config.schema).names
    return found + (["rows of the tool's history table"] if now.rows != before.rows else [])
