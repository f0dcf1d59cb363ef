"""A second connection's view of a long statement: who blocks us, how far is the index."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
import structlog

from preflight.base import quoting
from preflight.files.planned import Blocker
from preflight.server import dial, sessions, standby

if TYPE_CHECKING:
    from preflight.files.effects import Reach
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
            kind=None if kind == "client backend" else kind,
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
_IN_THE_WAY = f"""SELECT coalesce(l.pid, 0), a.application_name,
 coalesce(a.usename, p.owner)::text, a.state, EXTRACT(epoch FROM pg_catalog.clock_timestamp()
  - coalesce(p.prepared, a.xact_start, a.backend_start))::float8, p.gid
 {HELD} AND l.granted AND l.relation = %(table)s::oid AND l.mode = ANY (%(modes)s::text[])
 AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()"""  # noqa: S608 -- constants


_INDEXED = "SELECT i.indrelid::int8 FROM pg_catalog.pg_index i WHERE i.indexrelid = %s::oid"


def _by_the_role(session: sessions.Session, expression: str) -> Any:  # noqa: ANN401 -- whatever it is
    """Evaluate with the role's own search_path, which a file's names are meant by.

    No operator and no unqualified name of ours may stand in it. Call inside `history.looking`.
    """
    cursor = session.execute(
        f"{session.path('SET LOCAL')}; SELECT {expression}; SET LOCAL {sessions.PATH}"
    )
    cursor.nextset()
    (value,) = cursor.fetchone() or (None,)
    return value


def _oid(session: sessions.Session, name: str) -> int | None:
    """Return the oid of the relation that a name in a file means, or None."""
    said = f"pg_catalog.to_regclass({quoting.literal(name)}::pg_catalog.text)"
    found: int | None = _by_the_role(session, f"{said}::pg_catalog.oid::pg_catalog.int8")
    return found


# what goes with an object (always what is part of it, with CASCADE what only uses it), and the
# relation that each of it belongs to and that is locked for it
_WITH_IT = """WITH RECURSIVE gone(classid, objid, objsubid, own) AS (
 SELECT %(classid)s::oid, %(objid)s::oid, %(objsubid)s::int4, true
 UNION
 SELECT d.*, false FROM gone g, LATERAL (
  SELECT d.classid, d.objid, d.objsubid FROM pg_depend d
  WHERE d.refclassid = g.classid AND d.refobjid = g.objid
  AND (g.objsubid = 0 OR d.refobjsubid = g.objsubid)
  AND (d.deptype IN ('a', 'i', 'P', 'S', 'e') OR %(cascade)s)
  UNION ALL SELECT d.refclassid, d.refobjid, d.refobjsubid FROM pg_depend d  -- a rule's view
  WHERE d.classid = g.classid AND d.objid = g.objid AND d.deptype = 'i' AND NOT g.own
 ) d
), named AS (  -- and the relation that it belongs to
 SELECT g.*, CASE g.classid
  WHEN 'pg_class'::regclass THEN coalesce(
   (SELECT i.indrelid FROM pg_index i WHERE i.indexrelid = g.objid), g.objid)
  WHEN 'pg_trigger'::regclass THEN (SELECT t.tgrelid FROM pg_trigger t WHERE t.oid = g.objid)
  WHEN 'pg_rewrite'::regclass THEN (SELECT w.ev_class FROM pg_rewrite w WHERE w.oid = g.objid)
  WHEN 'pg_attrdef'::regclass THEN (SELECT a.adrelid FROM pg_attrdef a WHERE a.oid = g.objid)
  WHEN 'pg_policy'::regclass THEN (SELECT p.polrelid FROM pg_policy p WHERE p.oid = g.objid)
  WHEN 'pg_constraint'::regclass
   THEN (SELECT c.conrelid FROM pg_constraint c WHERE c.oid = g.objid)
 END AS relation FROM gone g
), around AS (  -- a partition that goes
 SELECT p.partrelid, p.partdefid FROM gone g JOIN pg_inherits h ON h.inhrelid = g.objid
 JOIN pg_partitioned_table p ON p.partrelid = h.inhparent
 WHERE g.classid = 'pg_class'::regclass AND g.objsubid = 0
)
SELECT n.relation::int8, max(CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
  WHEN 'f' THEN 'foreign table' ELSE 'table' END) FILTER (WHERE NOT n.own
  AND n.classid = 'pg_class'::regclass AND n.objsubid = 0 AND n.objid = n.relation),
 array_agg(DISTINCT a.attname::text) FILTER (WHERE NOT n.own AND a.attname IS NOT NULL
  AND n.classid = 'pg_class'::regclass)
FROM named n JOIN pg_class c ON c.oid = n.relation AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
LEFT JOIN pg_attribute a ON a.attrelid = n.objid AND a.attnum = n.objsubid AND n.objsubid > 0
GROUP BY n.relation
UNION ALL SELECT partrelid::int8, NULL, NULL FROM around
UNION ALL SELECT partdefid::int8, NULL, NULL FROM around WHERE partdefid <> 0
ORDER BY 1"""
_TRUNCATED = """WITH RECURSIVE emptied AS (
 SELECT %s::oid AS oid
 UNION SELECT c.conrelid FROM emptied e JOIN pg_constraint c
  ON c.confrelid = e.oid AND c.contype = 'f'
) SELECT oid::int8, 'all rows of', NULL FROM emptied ORDER BY oid"""

_DEFAULT = """WITH RECURSIVE locked AS (
 SELECT partdefid FROM pg_partitioned_table WHERE partrelid = %s::oid AND partdefid <> 0
 UNION SELECT h.inhrelid FROM locked l JOIN pg_inherits h ON h.inhparent = l.partdefid
) SELECT partdefid::int8, NULL, NULL FROM locked ORDER BY 1"""
_OF_DOMAIN = """WITH RECURSIVE used AS (
 SELECT %s::oid AS oid
 UNION SELECT t.oid FROM used u JOIN pg_type t ON t.typbasetype = u.oid AND t.typtype = 'd'
) SELECT DISTINCT c.oid::int8, NULL, NULL FROM used u
JOIN pg_attribute a ON a.atttypid = u.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'm') ORDER BY 1"""


_BELOW = """WITH RECURSIVE below AS (
 SELECT h.inhrelid FROM pg_inherits h WHERE h.inhparent = %(table)s::oid
 UNION SELECT h.inhrelid FROM below b JOIN pg_inherits h ON h.inhparent = b.inhrelid
) SELECT b.inhrelid::int8 FROM below b JOIN pg_class c ON c.oid = b.inhrelid
WHERE c.relkind IN ('r', 'p', 'f') AND (c.relispartition OR %(all)s) ORDER BY 1"""


def is_there(session: sessions.Session, table: str) -> bool:
    """Tell whether there is a relation that a name in a file means."""
    return _oid(session, table) is not None


def below(session: sessions.Session, table: str, which: str) -> list[str]:
    """Return the partitions of a table, or `all` that inherits from it, near or far."""
    oid = _oid(session, table) if which else None
    if oid is None:
        return []
    rows = session.execute(_BELOW, {"table": oid, "all": which == "all"}).fetchall()
    text = "::pg_catalog.oid::pg_catalog.regclass::pg_catalog.text"
    return [str(_by_the_role(session, f"{int(found)}{text}")) for (found,) in rows]


def reached(session: sessions.Session, reach: Reach) -> Iterator[tuple[str, str | None]]:
    """Yield the tables that go, or are locked, with what a statement takes away.

    With each what of it is destroyed, if it is not what the statement names.
    """
    start = _start(session, reach)
    if start is None:
        return
    if query := _TRUNCATED if reach.rows else _LOCKED_ALONE.get(reach.kind):
        rows = session.execute(query, [start["objid"]]).fetchall()
    else:
        rows = session.execute(_WITH_IT, {**start, "cascade": reach.cascade}).fetchall()
    text = "::pg_catalog.oid::pg_catalog.regclass::pg_catalog.text"
    for oid, whole, columns in rows:
        name = str(_by_the_role(session, f"{int(oid)}{text}"))
        same = oid == start["objid"]
        lost = None
        if whole and not same:
            lost = f"{whole} {name}"
        elif columns and (not same or start["objsubid"]):
            lost = ", ".join(f"column {name}.{column}" for column in columns)
        yield name, None if reach.kept else lost


def _start(session: sessions.Session, reach: Reach) -> dict[str, object] | None:
    """Return the object that a statement takes away as the catalogs know it."""
    if reach.kind in _BY_NAME:
        catalog, name = _BY_NAME[reach.kind]
        query = f"""SELECT '{catalog}'::regclass::oid::int8 AS classid, oid::int8 AS objid,
 0 AS objsubid FROM {catalog} WHERE {name}::text = %s"""  # noqa: S608 -- a catalog's name
        row = session.execute(query, [reach.name.strip('"')]).fetchone()
        return dict(zip(("classid", "objid", "objsubid"), row, strict=True)) if row else None
    procedure = "regprocedure" if "(" in reach.name else "regproc"
    kind, catalog = _BY_CAST.get(reach.kind, (procedure, "pg_proc"))
    name = reach.name
    if kind == "regtype":  # it is parsed as a type is: `order` is none
        name = ".".join(map(quoting.name, quoting.parts(name)))
    said = f"pg_catalog.to_{kind}({quoting.literal(name)}::pg_catalog.text)"
    try:
        with session.connection.transaction():
            oid = _by_the_role(session, f"{said}::pg_catalog.oid::pg_catalog.int8")
    except _NO_NAME:
        return None
    if oid is None:
        return None
    (classid,) = session.execute(f"SELECT '{catalog}'::regclass::oid::int8").fetchone() or (0,)
    found: dict[str, object] = {"classid": classid, "objid": oid, "objsubid": 0}
    if reach.column:
        query = "SELECT attnum FROM pg_attribute WHERE attrelid = %s::oid AND attname = %s::name"
        row = session.execute(query, [oid, reach.column]).fetchone()
        return found | {"objsubid": row[0]} if row else None
    if reach.constraint:
        query = """SELECT 'pg_constraint'::regclass::oid::int8, oid::int8 FROM pg_constraint
 WHERE conrelid = %s::oid AND conname = %s::name"""
        row = session.execute(query, [oid, reach.constraint]).fetchone()
        return {"classid": row[0], "objid": row[1], "objsubid": 0} if row else None
    return found


_NO_NAME = (
    psycopg.errors.SyntaxError, psycopg.errors.InvalidName, psycopg.errors.FeatureNotSupported,
)  # fmt: skip
_LOCKED_ALONE = {"default": _DEFAULT, "domain": _OF_DOMAIN}
_BY_CAST = {
    "relation": ("regclass", "pg_class"),
    "default": ("regclass", "pg_class"),
    "schema": ("regnamespace", "pg_namespace"),
    "type": ("regtype", "pg_type"),
    "domain": ("regtype", "pg_type"),
}
_BY_NAME = {
    "extension": ("pg_extension", "extname"),
    "server": ("pg_foreign_server", "srvname"),
    "wrapper": ("pg_foreign_data_wrapper", "fdwname"),
}


def table_of(session: sessions.Session, index: str) -> str | None:
    """Return the table of an index, or None when there is no such index yet."""
    row = session.execute(_INDEXED, [_oid(session, index)]).fetchone()
    if row is None:
        return None
    text = "::pg_catalog.oid::pg_catalog.regclass::pg_catalog.text"
    name: str | None = _by_the_role(session, f"{int(row[0])}{text}")
    return name


def in_the_way(session: sessions.Session, table: str, mode: str) -> list[Blocker]:
    """Return who holds a lock on a table which stops the wanted one now."""
    known = {"table": _oid(session, table), "modes": CONFLICTS[mode]}
    rows = session.execute(_IN_THE_WAY, known).fetchall()
    return [
        Blocker(
            pid, name, user, state, round(age or 0, 1), None if pid else "prepared transaction", gid
        )
        for pid, name, user, state, age, gid in rows
    ]


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
                self.until = watch.due
                threading.Thread(target=self.run, daemon=True, name="watch").start()
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
    who, state = item.application or "unnamed", item.state or "unknown"
    return f"pid {item.pid} ({who}, {state}, {'?' if item.age_s is None else item.age_s} s)"
