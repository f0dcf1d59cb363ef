"""Prepared transactions of a session's database: no end of a session ends one, nor its locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from preflight.base import console, quoting, stop

if TYPE_CHECKING:
    from collections.abc import Collection

    from preflight.server.sessions import Session

SETTLES_S = 1.0  # how soon one is ended whose coordinator lives
_THERE = """
SELECT p.gid, p.owner::text, p.transaction::text FROM pg_catalog.pg_prepared_xacts p
WHERE p.database = pg_catalog.current_database() ORDER BY p.prepared, p.gid
"""
Prepared = tuple[str, str, str]  # its name, whose it is, and its number: a name may come again


def there(session: Session) -> list[Prepared]:
    """Return those that are there, as far as this role may look."""
    try:
        return session.execute(_THERE).fetchall()
    except psycopg.errors.InsufficientPrivilege:  # a right that PUBLIC has was revoked
        return []


def staying(session: Session, before: Collection[Prepared]) -> list[Prepared]:
    """Return those that were not there before and are not ended in a moment."""
    found = there(session)
    for waited in stop.looks(0.05, 0.1):
        now = there(session)
        found = [each for each in found if each in now and each not in before]
        if not found or waited >= SETTLES_S:
            break
    return found


def roll_back(session: Session, before: Collection[Prepared] = ()) -> list[Prepared]:
    """Roll back those that were not there before, as far as this role may; return all of them."""
    found = [each for each in there(session) if each not in before]
    for gid, owner, _ in found:
        try:
            session.execute(f"SET ROLE {quoting.name(owner)}")  # a member may, as he whose it is
            session.execute(f"ROLLBACK PREPARED {quoting.literal(gid)}")
        except psycopg.Error:
            if session.lost:
                raise
        session.execute("RESET ROLE")
    return found


def named(found: Collection[Prepared]) -> str:
    """Name them."""
    return console.some([repr(gid) for gid, _, _ in found])
