"""A second connection's view of a long statement: who blocks us, how far is the index."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
import structlog

from preflight.base import threads
from preflight.files.planned import Blocker
from preflight.server import dial, sessions, standby

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

LOOK_EVERY_S = 1.0
IDLE_S = 0.5
TELL_EVERY_S = 10.0

_BEGAN = "(EXTRACT(epoch FROM a.backend_start) * 1000000)::int8"  # whatever the time zone
_BLOCKERS = """SELECT DISTINCT b.pid, a.application_name, a.usename::text, a.state,
 EXTRACT(epoch FROM pg_catalog.clock_timestamp() - coalesce(a.xact_start, a.backend_start))::float8,
 a.backend_type, a.query, {began}
 FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%s::int4)) AS b(pid)
 LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid ORDER BY b.pid""".replace(
    "{began}", _BEGAN
)
# pid 0 is a prepared transaction; its locks belong to no process, one of them is on its own id
_PREPARED = """SELECT DISTINCT p.gid, p.owner::text,
 EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.prepared)::float8
 FROM pg_catalog.pg_locks w JOIN pg_catalog.pg_locks h ON h.pid IS NULL AND h.granted
  AND (h.locktype, h.database, h.relation, h.page, h.tuple, h.virtualxid, h.transactionid::text,
   h.classid, h.objid, h.objsubid) IS NOT DISTINCT FROM (w.locktype, w.database, w.relation, w.page,
   w.tuple, w.virtualxid, w.transactionid::text, w.classid, w.objid, w.objsubid)
 JOIN pg_catalog.pg_locks x ON x.pid IS NULL AND x.locktype = 'transactionid'
  AND x.virtualtransaction = h.virtualtransaction
 JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
 WHERE w.pid = %s::int4 AND NOT w.granted ORDER BY p.gid"""
# a session that began then, or a prepared transaction
_GONE = """SELECT g.who FROM pg_catalog.unnest(%s::text[]) AS g(who)
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
  WHERE g.who = pg_catalog.format('%%s %%s', a.pid, {began}))
 AND NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts p WHERE g.who = p.gid)""".replace(
    "{began}", _BEGAN
)
_INDEX = """SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total
 FROM pg_catalog.pg_stat_progress_create_index WHERE pid = %s::int4"""


class Watch:
    """What the second connection saw; the thread never touches the first one."""

    def __init__(
        self,
        session: sessions.Session,
        migration: Migration,
        first_look_s: float,
        target: Mapping[str, str],
    ) -> None:
        self.target = target
        self.pid = session.pid
        self.log_sql = session.config.log_sql == "on"
        self.migration = migration
        self.over = threading.Event()
        self.looks: threading.Event | None = None  # set when the thread looks no more
        self.context = copy_context()  # of a copy nothing is told, here neither
        self.statement = 0
        self.collisions = set[
            tuple[int, str | None]
        ]()  # where a row of a catalog was there already
        self.blocked_by: list[Blocker] = []
        self._earlier: dict[int, list[Blocker]] = {}
        self._known: dict[Blocker, str] = {}  # which session or prepared transaction each is
        self.began = time.monotonic()
        self.first_look_s = first_look_s
        self.due = self.began + first_look_s
        self.tried = threading.Event()  # an attempt begins, which is to be looked at
        self._told: tuple[list[int], float] = ([], 0.0)

    def begin(self, statement: int = 0) -> None:
        """Forget who was in the way of what came before."""
        self.statement = statement
        self.blocked_by = []

    def blockers(self, sqlstate: str | None) -> list[Blocker]:
        """Return who was in the way of the statement that failed.

        A lock timeout may be too short to look, so then an earlier attempt's blocker counts.
        """
        earlier = self._earlier.get(self.statement, []) if sqlstate == "55P03" else []
        return self.blocked_by or earlier

    def recall(self, session: sessions.Session) -> None:
        """Forget who was in the way of an earlier attempt and has ended since."""
        earlier = self._earlier.get(self.statement, [])
        known = {each: self._known.get(each, "") for each in earlier}
        if not any(known.values()):
            return
        with suppress(psycopg.Error):
            rows = session.execute(_GONE, [[who for who in known.values() if who]]).fetchall()
            gone = {who for (who,) in rows}
            self._earlier[self.statement] = [each for each in earlier if known[each] not in gone]

    def run(self) -> None:
        """Look once a second, and once in each attempt, until the migration is over."""
        with suppress(dial.Refused, psycopg.Error):
            connection = dial.from_thread(
                {**self.target, "application_name": f"{sessions.application_name()[:55]} watch"}
            )
            with connection:
                connection.execute(f"SET {sessions.PATH}; SET statement_timeout = '5s'")
                while not self.over.is_set():
                    self._look(connection)
                    if self.tried.wait(LOOK_EVERY_S):
                        self.tried.clear()
                        self.over.wait(self.first_look_s)

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        before = self.blocked_by
        rows = connection.execute(_BLOCKERS, [self.pid]).fetchall()
        now = time.monotonic()
        pids = [row[0] for row in rows]
        if rows and self.statement:  # before the first, a wait on the fence is the lock being busy
            found = [self._blocker(row) for row in rows if row[0]]
            if 0 in pids:
                found += self._prepared(connection)
            if self.blocked_by is not before:
                return  # another statement has begun meanwhile
            self.blocked_by = self._earlier[self.statement] = found
            if pids != self._told[0] or now - self._told[1] >= TELL_EVERY_S:
                self._told = (pids, now)
                structlog.get_logger().warning(
                    "migration.blocked", **self._named(), blocked_by=told(found)
                )
        elif now - max(self.began, self._told[1]) >= TELL_EVERY_S:
            self._told = ([], now)
            structlog.get_logger().info(
                "migration.progressed",
                **self._named(),
                elapsed_s=round(now - self.began, 1),
                **self._index(connection),
            )

    def _named(self) -> dict[str, object]:
        return {
            "migration": self.migration.name,
            "version": self.migration.version,
            "statement": self.statement,
        }

    def _blocker(self, row: tuple[Any, ...]) -> Blocker:
        pid, application, user, state, age, kind, query, since = row
        found = Blocker(
            pid,
            application,
            user,
            state,
            None if age is None else round(age, 1),
            kind=kind_of(kind, query),
            query=query if self.log_sql else None,
        )
        self._known[found] = f"{pid} {since}" if since else ""
        return found

    def _prepared(self, connection: psycopg.Connection[Any]) -> list[Blocker]:
        some = Blocker(0, kind="prepared transaction")
        rows = connection.execute(_PREPARED, [self.pid]).fetchall()
        found = [
            dataclasses.replace(some, gid=gid, user=owner, age_s=round(age, 1))
            for gid, owner, age in rows
        ]
        self._known |= {each: each.gid or "" for each in found}
        return found or [some]

    def _index(self, connection: psycopg.Connection[Any]) -> dict[str, object]:
        row = connection.execute(_INDEX, [self.pid]).fetchone()
        if row is None:
            return {"phase": found} if (found := standby.waits(connection, self.pid)) else {}
        phase, blocks, blocks_all, tuples, tuples_all = row
        done, total = (blocks, blocks_all) if blocks_all else (tuples, tuples_all)
        percent = {"percent": round(100 * done / total, 1)} if total else {}
        return {"phase": phase} | percent


_AUTOVACUUM, _WRAPAROUND = "autovacuum worker", "to prevent wraparound"
# as it calls itself in pg_stat_activity, whatever the locale
_VACUUMS = re.compile(rf"autovacuum: [A-Z ]+ (.+?)( \({_WRAPAROUND}\))?$")
_ROW = ("RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareRowExclusiveLock")
_STRONG = ("ExclusiveLock", "AccessExclusiveLock")
CONFLICTS = {  # a wanted lock and the held ones that stop it (manual, "Explicit Locking")
    "ACCESS SHARE": ["AccessExclusiveLock"],
    "ROW SHARE": [*_STRONG],
    "ROW EXCLUSIVE": ["ShareLock", "ShareRowExclusiveLock", *_STRONG],
    "SHARE UPDATE EXCLUSIVE": [
        "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", *_STRONG
    ],
    "SHARE": [*_ROW, *_STRONG],
    "SHARE ROW EXCLUSIVE": [*_ROW, "ShareLock", *_STRONG],
    "EXCLUSIVE": ["RowShareLock", *_ROW, "ShareLock", *_STRONG],
    "ACCESS EXCLUSIVE": ["AccessShareLock", "RowShareLock", *_ROW, "ShareLock", *_STRONG],
}  # fmt: skip
# whose the locks on this database's relations are: a session's, or a prepared transaction's
HELD = """FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 LEFT JOIN (pg_catalog.pg_locks x JOIN pg_catalog.pg_prepared_xacts p
  ON p.transaction = x.transactionid AND x.locktype = 'transactionid' AND x.pid IS NULL)
 ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
 WHERE l.locktype = 'relation' AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
  WHERE d.datname = pg_catalog.current_database())"""
_HOLDERS = f"""SELECT l.relation::int8, l.mode, coalesce(l.pid, 0), a.application_name,
 coalesce(a.usename, p.owner)::text, a.state, EXTRACT(epoch FROM pg_catalog.clock_timestamp()
  - coalesce(p.prepared, a.xact_start, a.backend_start))::float8, p.gid, a.backend_type, a.query
 {HELD} AND l.granted AND l.relation = ANY (%s::oid[])
 AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()"""  # noqa: S608 -- constants


Holders = Sequence[tuple[str, Blocker]]  # the mode of each lock on a table, and whose it is


def holders(session: sessions.Session, tables: Sequence[int]) -> dict[int, Holders]:
    """Return who holds which locks on each of these relations now, by oid."""
    found: dict[int, list[tuple[str, Blocker]]] = {table: [] for table in tables}
    for table, held, pid, name, user, state, age, gid, backend, query in session.execute(
        _HOLDERS, [list(tables)]
    ).fetchall():
        kind = kind_of(backend, query) if pid else "prepared transaction"
        who = Blocker(pid, name, user, state, round(age or 0, 1), kind, gid)
        found[table].append((held, who))
    return dict(found)


def stopping(holders: Holders, mode: str) -> list[Blocker]:
    """Return who of them stops a wanted lock now."""
    return [who for held, who in holders if held in CONFLICTS[mode]]


_MEANT = """SELECT pg_catalog.to_regclass(n)::pg_catalog.oid::pg_catalog.int8
 FROM pg_catalog.unnest(%s::pg_catalog.text[]) n"""
# what a query locks along with what it names: indexes, heirs, and what a view reads
_ALONG = """WITH RECURSIVE r(oid) AS (
 SELECT u.oid FROM pg_catalog.unnest(%s::oid[]) AS u(oid) UNION
 SELECT f.oid FROM r, LATERAL (
  SELECT k.indexrelid FROM pg_catalog.pg_index k WHERE k.indrelid = r.oid
  UNION ALL SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = r.oid
  UNION ALL SELECT d.refobjid FROM pg_catalog.pg_rewrite w
   JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass
    AND d.objid = w.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
   WHERE w.ev_class = r.oid) AS f(oid)
) SELECT r.oid::int8 FROM r"""


def in_the_way(session: sessions.Session, tables: Sequence[str], mode: str) -> list[Blocker]:
    """Return who holds locks that stop the wanted one on tables now, each once; in a transaction.

    Tables are named as in a file. What is read along with them counts, too.
    """
    session.execute(session.path("SET LOCAL"))
    named = session.execute(_MEANT, [list(tables)]).fetchall()
    session.execute(f"SET LOCAL {sessions.PATH}")
    oids = [oid for (oid,) in named if oid]
    along = [oid for (oid,) in session.execute(_ALONG, [oids]).fetchall()] if oids else []
    found = holders(session, along)
    return list(
        {(who.pid, who.gid): who for each in along for who in stopping(found[each], mode)}.values()
    )


@contextmanager
def over(session: sessions.Session, migration: Migration) -> Iterator[Watch]:
    """Watch the session while a migration runs; nothing is opened for a short one."""
    timeout_ms = migration.up.lock_timeout_ms or session.config.lock_timeout_ms
    lookout = _lookouts.get(session) or _lookouts.setdefault(session, _Lookout())
    watch = Watch(session, migration, min(IDLE_S, timeout_ms / 2000), lookout.target_of(session))
    lookout.begin(watch)
    try:
        yield watch
    finally:
        lookout.end(watch)


class _Lookout:
    """The thread that watches a session, one for all its files: most are done before it looks.

    It wakes when the first look at a file is due, and ends when there is nothing to watch.
    """

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.current: Watch | None = None
        self.until: float | None = None  # it sleeps; None: there is no thread
        self.sooner = threading.Event()
        self._target: tuple[int, Mapping[str, str]] = (0, {})

    def target_of(self, session: sessions.Session) -> Mapping[str, str]:
        """Return where the session's server is; it was asked once a connection."""
        pid = session.pid
        if self._target[0] != pid:
            self._target = (pid, session.address() | session.secrets())
        return self._target[1]

    def begin(self, watch: Watch) -> None:
        """Have a file watched."""
        with self.guard:
            self.current = watch
            if self.until is None:
                watching = threading.Thread(target=self.run, daemon=True, name="watch")
                self.until = watch.due
                if not threads.started(watching):  # nothing is told of the file; the next may be
                    self.until = None
            elif watch.due < self.until:
                self.sooner.set()

    def end(self, watch: Watch) -> None:
        """Stop watching; when it returns, nothing more is told of the file."""
        watch.over.set()
        watch.tried.set()  # it need not wait for the next look
        with self.guard:
            self.current = None
        if watch.looks:
            watch.looks.wait(2.0)

    def run(self) -> None:
        """Look at whatever file is under way for long enough."""
        while self._next():
            with self.guard:
                watch = self.current
                if watch is None or time.monotonic() < watch.due:
                    continue
                watch.looks = threading.Event()
            try:
                watch.context.run(watch.run)
            except BaseException:
                with self.guard:
                    self.until = None  # the next file begins with another thread
                raise
            finally:
                watch.due = time.monotonic() + LOOK_EVERY_S  # it could not look: not at once again
                watch.looks.set()

    def _next(self) -> bool:
        """Sleep until a look is due; False when nothing was watched for a while."""
        with self.guard:
            watch = self.current
            idle = watch is None and self.until is not None and self.until <= time.monotonic()
            if idle:
                self.until = None
                return False
            self.until = watch.due if watch else time.monotonic() + IDLE_S
            pause = self.until - time.monotonic()
            self.sooner.clear()
        self.sooner.wait(max(0.0, pause))
        return True


_lookouts: WeakKeyDictionary[sessions.Session, _Lookout] = WeakKeyDictionary()


def kind_of(backend: str | None, query: str | None) -> str | None:
    """Return what is in the way where that is no client: of autovacuum also on which table."""
    if backend != _AUTOVACUUM:
        return None if backend == "client backend" else backend
    found = _VACUUMS.match(query or "")
    if found is None:
        return backend
    return f"autovacuum of {found[1]}{', ' + _WRAPAROUND if found[2] else ''}"


def ending(blockers: Sequence[Blocker]) -> str:
    """Say what to do about blockers, as a part of a hint.

    An autovacuum gives way by itself, but for one that must be done.
    """
    if blockers and all((each.kind or "").endswith(_WRAPAROUND) for each in blockers):
        return "let the autovacuum finish (ended, it starts anew, until the table is VACUUMed)"
    return "end the blocker"


def told(blockers: Sequence[Blocker]) -> list[dict[str, Any]]:
    """Return blockers as an event has them."""
    return [each.data() for each in blockers]


def named(blockers: Sequence[Blocker]) -> str:
    """Name blockers in a sentence."""
    if not blockers:
        return "the blocker was gone before it could be named"
    return ", ".join(_name(item) for item in blockers)


def _name(item: Blocker) -> str:
    if item.gid is not None:
        return (
            f"prepared transaction {item.gid!r} of {item.user} ({item.age_s} s): "
            "COMMIT PREPARED or ROLLBACK PREPARED ends it"
        )
    if item.pid == 0:
        return "a prepared transaction (see pg_prepared_xacts)"
    who, state = item.application or item.kind or "unnamed", item.state or "unknown"
    return f"pid {item.pid} ({who}, {state}, {'?' if item.age_s is None else item.age_s} s)"
