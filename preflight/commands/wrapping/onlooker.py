"""Who looks on while a command runs: which sessions are its own, what it locks and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight.base import console, stop
from preflight.commands.wrapping import tools, wall
from preflight.files import effects
from preflight.rehearsal import meter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from preflight.commands.wrapping.child import Child, Ended
    from preflight.server.sessions import Session

ENDED_S = 1.0  # how soon a session is gone that was ended
STAY_S = 5.0  # for how long sessions that are over may be seen
COUNTED_S = 1.0  # how soon the server counts a session
# tools ask there whether their own is there; what they do to roles and databases is seen otherwise
_EVERYBODYS = ("postgres", "template1")
# of another role's session a role without rights sees that it is there, and not whence it comes;
# one for physical replication (pg_basebackup) is in no database, and changes no row of any
_OTHERS = """
SELECT a.pid, pg_catalog.host(a.client_addr), a.client_port,
 CASE WHEN a.datname <> pg_catalog.current_database() THEN a.datname::text END,
 a.backend_xid::text
FROM pg_catalog.pg_stat_activity a
WHERE a.datname IS NOT NULL AND (%s OR a.datname = pg_catalog.current_database())
 AND a.pid <> pg_catalog.pg_backend_pid()
 AND (a.client_port > 0 OR a.client_port IS NULL AND a.query = '<insufficient privilege>')
 AND a.usesysid IS NOT NULL
"""
# what a command that ended has left running by a way that shows no port of its own: a Unix socket,
# a pooler, a translated address
_AT_WORK = """
SELECT a.pid, coalesce(a.xact_start, a.query_start)::text FROM pg_catalog.pg_stat_activity a
WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
 AND a.usesysid IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend'
 AND a.state <> 'idle'
 AND coalesce(a.xact_start, a.query_start) >= pg_catalog.to_timestamp(%s::float8)
"""
_SEES_ALL = """
SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'),
 EXTRACT(epoch FROM pg_catalog.clock_timestamp())::float8
"""
# of these, who has begun what would be cut off, and the number of its transaction: who only reads
# loses nothing. Without a number (0) one that is idle has not written yet; a statement that is
# running may write at its end (INSERT … SELECT), or in its next transaction (CONCURRENTLY)
_WRITES = """
SELECT a.pid, coalesce(a.backend_xid::text::int8,
 CASE WHEN a.state = 'idle in transaction' THEN 0 ELSE -1 END)
FROM pg_catalog.pg_stat_activity a
WHERE {whose} AND coalesce(a.state, '') <> 'idle' AND EXISTS (SELECT FROM pg_catalog.pg_locks l
 WHERE l.pid = a.pid AND (l.locktype = 'transactionid'
  OR l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'SIReadLock')))
"""
# a session's number has no epoch: it is the one next to where the server is
_COMMITTED = """
SELECT x.xid FROM pg_catalog.unnest(%s::int8[]) x(xid),
 (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8) s(xmax)
WHERE x.xid > 0 AND pg_catalog.pg_xact_status(
 (s.xmax + ((x.xid - s.xmax + 2147483648) & 4294967295) - 2147483648)::text::pg_catalog.xid8)
 = 'committed'
"""
_END = "SELECT pg_catalog.pg_terminate_backend(%s::int4)"
UNSEEN = "sessions of other roles (GRANT pg_read_all_stats shows them)"
# of another role's session a role without rights sees no more than that it is there, and whose
_THERE = """
a.datname = pg_catalog.current_database() AND a.pid <> ALL (%s::int4[])
 AND a.usesysid IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend'
"""
_ON_COPY = """
SELECT a.pid, l.relation::int8, l.mode FROM pg_catalog.pg_stat_activity a
LEFT JOIN pg_catalog.pg_locks l ON l.pid = a.pid AND l.locktype = 'relation' AND l.granted
 AND l.relation >= 16384::oid AND l.database =
  (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
WHERE {whose}
"""
_STATISTICS = """
SELECT pg_catalog.format('%I.%I', s.schemaname, s.relname), s.relname::text, s.n_tup_ins,
 s.n_tup_del FROM pg_catalog.pg_stat_user_tables s WHERE s.schemaname <> '{schema}'
"""
_EMPTY = "SELECT NOT EXISTS (SELECT FROM {table})"
_ITS = "a.pid = ANY (%s::int4[]) AND a.client_port = ANY (%s::int4[])"
_ORPHANS = "SELECT a.pid FROM pg_catalog.pg_stat_activity a WHERE {whose}"
_LEFT = "SELECT a.pid FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY (%s::int4[])"
COUNTED_SINCE = 14  # where a database knows how many sessions it had
_SESSIONS = """
SELECT {column} FROM pg_catalog.pg_stat_database s WHERE s.datname = pg_catalog.current_database()
"""


class Stays(Exception):
    """A session of the command is on the live database, and this role may not end it."""


class OnLive:
    """Looks on the live database; where it is `to_end` them, a command's sessions are ended.

    Then those in other databases of the server are told, but for those that are `meant`.
    """

    def __init__(
        self, session: Session, *, to_end: bool = False, meant: Collection[str] = ()
    ) -> None:
        """Know who is there already and cannot be looked into."""
        self.session = session
        self.to_end = to_end
        self._told = {*meant, *_EVERYBODYS}
        self.pids: set[int] = set()
        self.ports: set[int] = set()
        self.numbers: set[str] = set()  # of their transactions
        self.unsure = False  # whether who is still at work is one of the command's
        self.still: list[int] = []  # who was left when it was last asked who is gone
        self._lingering = dict[int, int]()
        self._began: float  # by the server's clock
        sees_all, self._began = session.execute(_SEES_ALL).fetchone() or (False, 0.0)
        self.blind = not sees_all
        self._others = self._hidden() if self.blind else set()

    def look(self, child: Child) -> None:
        """See which sessions belong to the command's own processes; raises Stays."""
        self._find(child)
        self._lingering = _lingering(self._writing, child, self._lingering)

    def _find(self, child: Child) -> None:
        rows = self.session.execute(_OTHERS, [self.to_end]).fetchall()
        seen = [(address, at) for _, address, at, _, _ in rows if at is not None]
        if not seen:
            return
        own = wall.sessions(child.pid, seen, self.session.connection.info.port)
        its = [row for row in rows if (row[1], row[2]) in own]
        here = [row for row in its if row[3] is None]
        found = {pid for pid, *_ in here}
        self.pids |= found
        self.ports |= {at for _, _, at, _, _ in here}
        self.numbers |= {number for *_, number in here if number is not None}
        self._tell({other for _, _, _, other, _ in its if other is not None})
        if self.to_end and not _end(self.session, found):
            raise Stays

    def _tell(self, databases: set[str]) -> None:
        """Say in which other databases of the server the command is: there is no copy of those."""
        for name in sorted(databases - self._told):
            structlog.get_logger().warning(
                "rehearsal.warned",
                reason="while it is tried on a copy the command has a session in another database "
                f"of the live server, {name}: what it does there is done for good, in each trial",
                objects=[f"database {name}"],
            )
        self._told |= databases

    def cut_off(self, ended: Ended) -> list[int]:
        """Return which sessions a command that has ended well left at work; they are ended."""
        found = _cut_off(self.session, self._writing, self._lingering, ended)
        if found or ended.left:
            self.end()
        return found

    def _writing(self) -> dict[int, int]:
        if not self.pids:
            return {}
        return dict(self.session.execute(_WRITES.format(whose=_ITS), self._its()).fetchall())

    def _its(self) -> list[list[int]]:
        return [list(self.pids), list(self.ports)]

    def end(self) -> None:
        """End the sessions of a command that has ended: nobody waits for what they are at."""
        if self.pids:
            rows = self.session.execute(_ORPHANS.format(whose=_ITS), self._its()).fetchall()
            _end(self.session, [pid for (pid,) in rows])
            self.gone(ENDED_S)

    def gone(self, within_s: float = STAY_S, *, all_new: bool = False) -> bool:
        """Tell whether no session that was seen is left, waiting for their end.

        `all_new`: nor one that came meanwhile and cannot be looked into, nor what anybody began
        meanwhile and is at without a break since: who was seen may have gone by a pooler, too.
        """
        stays: set[Any] | None = None
        for waited in stop.looks(0.02, 0.05):
            left = {pid for (pid,) in self.session.execute(_LEFT, [list(self.pids)]).fetchall()}
            self.unsure = not left
            if all_new and self.blind:
                left |= self._hidden() - self._others
            if all_new:
                found = set(self.session.execute(_AT_WORK, [self._began]).fetchall())
                stays = found if stays is None else stays & found
                left |= {pid for pid, _ in stays}
            if not left or waited >= within_s:
                break
        self.still = sorted(left)
        return not left

    def at_work(self, but: int | None) -> bool:
        """Tell whether anybody, `but` one, is at what he began meanwhile; it may write yet."""
        rows = self.session.execute(_AT_WORK, [self._began]).fetchall()
        return any(pid != but for pid, _ in rows)

    def _hidden(self) -> set[int]:
        """Return the sessions of which this role does not see whence they come."""
        rows = self.session.execute(_OTHERS, [False]).fetchall()
        return {pid for pid, _, port, _, _ in rows if port is None}


def _end(session: Session, pids: Iterable[int]) -> bool:
    """End each of these sessions; tell whether this role may."""
    refused = False
    for pid in pids:
        try:
            session.execute(_END, [pid])
        except psycopg.errors.InsufficientPrivilege:
            refused = True
    return not refused


@dataclass(slots=True)
class _Held:
    rank: int
    since: float
    until: float


def _cut_off(
    session: Session,
    writing: Callable[[], dict[int, int]],
    lingering: Mapping[int, int],
    ended: Ended,
) -> list[int]:
    """Return who was at work when what a command left behind was ended, or is at work yet.

    Not who has committed what it was at when it was asked to end.
    """
    known = _lost(session, lingering) if ended.left else set[int]()
    at_work, most_s = set(writing()), 0.0 if known or ended.code is None else STAY_S
    for waited in stop.looks(0.02, 0.05):
        if not at_work or waited >= most_s:
            break
        at_work &= writing().keys()
    return sorted(at_work | known)


def _lingering(
    writing: Callable[[], dict[int, int]], child: Child, before: dict[int, int]
) -> dict[int, int]:
    """Return who writes while what a command left behind has not been asked to end, else `before`.

    A look that is answered after that sees who has been cut off no more.
    """
    found = writing() if child.lingers() else before
    return found if child.lingers() else before


def _lost(session: Session, writers: Mapping[int, int]) -> set[int]:
    """Return who has something to lose and is not known to have committed it."""
    if not writers:
        return set()
    rows = session.execute(_COMMITTED, [list(writers.values())]).fetchall()
    kept = {0, *(xid for (xid,) in rows)}
    return {pid for pid, xid in writers.items() if xid not in kept}


def cut_off(pids: Sequence[int]) -> str:
    """Say, behind how a command ended, which sessions it left at work; nothing where none."""
    if not pids:
        return ""
    named = console.some(list(map(str, pids)))
    return f" and left a session at work, which was ended with what it was at (pid {named})"


class OnCopy:
    """Looks on the copy, where nobody is but us and the command."""

    def __init__(self, copy: Session) -> None:
        self.copy = copy
        self.tables = meter.tables(copy)
        self._held: dict[int, _Held] = {}
        self._ours = [copy.pid]
        rows = copy.execute(_ON_COPY.format(whose=_THERE), [self._ours]).fetchall()
        self._others = [*self._ours, *{pid for pid, _, _ in rows}]  # a clone may have agents
        self.begin()

    def begin(self) -> None:
        """Begin to look whether anybody comes."""
        self.seen = False
        self._sessions = self._visits()
        self._lingering = dict[int, int]()

    def look(self, child: Child) -> None:
        """See who is there, and what is locked."""
        rows = self.copy.execute(_ON_COPY.format(whose=_THERE), [self._ours]).fetchall()
        self._lingering = _lingering(self._writing, child, self._lingering)
        self.seen = self.seen or bool(rows)
        now, strongest = time.monotonic(), dict[int, int]()
        for _, oid, mode in rows:
            rank = meter.rank_of(mode) if oid in self.tables else -1
            if rank >= 0:
                strongest[oid] = max(rank, strongest.get(oid, -1))
        for oid, rank in strongest.items():
            held = self._held.get(oid)
            if held is None or rank > held.rank:
                self._held[oid] = _Held(rank, now, now)
            elif rank == held.rank:
                held.until = now

    def cut_off(self, ended: Ended) -> list[int]:
        """Return which sessions a command that has ended left at work; they are ended."""
        found = _cut_off(self.copy, self._writing, self._lingering, ended)
        _end(self.copy, found)
        return found

    def _writing(self) -> dict[int, int]:
        return dict(self.copy.execute(_WRITES.format(whose=_THERE), [self._others]).fetchall())

    def was_there(self) -> bool:
        """Tell whether anybody connected; one who left at once only the server has counted."""
        for waited in stop.looks(0.05, 0.1):
            self.seen = self.seen or self._visits() > self._sessions
            if self.seen or waited >= COUNTED_S or self._sessions < 0:
                break
        return self.seen

    def _visits(self) -> int:
        major = self.copy.facts.major if self.copy.facts else 0
        if major < COUNTED_SINCE:
            return -1
        query = _SESSIONS.format(column="s.sessions")
        self.copy.execute("SELECT pg_catalog.pg_stat_clear_snapshot()")
        return int((self.copy.execute(query).fetchone() or (0,))[0] or 0)

    def counted(self) -> dict[str, tuple[int, int]]:
        """Return how many rows of each table came and went so far, as the server counts them.

        Those of the tools' own tables are left out.
        """
        self.copy.execute("SELECT pg_catalog.pg_stat_clear_snapshot()")
        rows = self.copy.execute(_STATISTICS.format(schema=self.copy.config.schema)).fetchall()
        return {name: (came, went) for name, bare, came, went in rows if not tools.own(bare)}

    def moved(self, before: Mapping[str, tuple[int, int]]) -> list[str]:
        """Name the tables of which rows came or went since; not one that is empty as before.

        A lock that is a row is gone with its holder.
        """
        found: list[str] = []
        for name, (came, went) in sorted(self.counted().items()):
            had = before.get(name, (0, 0))
            balanced = came - had[0] == went - had[1]
            if (came, went) != had and not (balanced and self._empty(name)):
                found.append(name)
        return found

    def _empty(self, table: str) -> bool:
        query = _EMPTY.format(table=table)  # quoted by the server
        row = self.copy.execute(query).fetchone()
        return bool(row and row[0])

    def cost(self) -> dict[str, Any]:
        """Return the strongest lock on each table, and what was written anew, as log data."""
        after = meter.tables(self.copy)
        locks = [
            meter.Taken(
                self.tables[oid].name,
                effects.STRENGTH[held.rank],
                held.until - held.since,
                root=self._root(oid),
            )
            for oid, held in self._held.items()
            if held.rank > 0
        ]
        rewrites = [
            meter.Rewrite(table.name, table.size, after[oid].size, self._root(oid))
            for oid, table in self.tables.items()
            if oid in after and table.filenode != after[oid].filenode and after[oid].size
        ]
        found: dict[str, Sequence[Any]] = {
            "locks": [taken.data() for taken in _strongest_first(meter.grouped(locks))],
            "rewrites": [rewrite.data() for rewrite in meter.summed(rewrites)],
        }
        return {name: items for name, items in found.items() if items}

    def _root(self, oid: int) -> str:
        root = self.tables[oid].root
        return self.tables[root].name if root in self.tables else ""


def _strongest_first(locks: list[meter.Taken]) -> list[meter.Taken]:
    return sorted(
        locks, key=lambda taken: (-effects.STRENGTH.index(taken.mode), -taken.held_s, taken.table)
    )
