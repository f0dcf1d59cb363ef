"""What the names in a file mean on a server: which tables, what is reached with them, who is there.

Only what a plan tells: a name that means nothing there yet is no failure, for the file that makes
it may be pending, too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from preflight.base import quoting
from preflight.files import effects, parser
from preflight.files.where import START, Where
from preflight.server import watch

if TYPE_CHECKING:
    from preflight.files.effects import Lock, Reach, Through
    from preflight.files.planned import Blocker, Planned
    from preflight.server.sessions import Session

T = TypeVar("T")

_MARK = "preflight_lookup"
_NO_RIGHT = "42501"
_PASSING = ("53", "55", "57", "58")  # of the server or of another session: no answer about a name
_TEXT = "::pg_catalog.oid::pg_catalog.regclass::pg_catalog.text"
_NAMES = """ARRAY(SELECT x.oid::pg_catalog.regclass::pg_catalog.text
 FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) WITH ORDINALITY x(oid, place)
 ORDER BY x.place)"""
_INDEXED = "SELECT i.indrelid::int8 FROM pg_index i WHERE i.indexrelid = %s::oid"


class Unseen(Exception):
    """What a name means cannot be seen here: a right is missing, or only the run itself knows."""


@dataclass(frozen=True, slots=True)
class Found:
    """A relation that a statement locks, and what goes with it beside what the statement names."""

    oid: int
    name: str
    lost: str | None = None


class Lookup:
    """Looks up what a plan needs to know, each thing once; to be used inside `ledger.looking`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._answers: dict[object, Any] = {}
        self._holders: dict[int, watch.Holders] = {}
        self._covered: set[str] = set()  # what files make views, call so, or give rules
        session.execute(f"SAVEPOINT {_MARK}")

    def over(self, statement: Planned) -> Planned:
        """Return a statement with its locks on tables that are there, and who is in the way.

        Where only the run knows what its names lead to, what they mean by the settings that are
        known last is told all the same.
        """
        meant = self._playable(statement.where or START)
        where = dataclasses.replace(meant, open=False)
        unseen = meant.open and not all(map(_has_schema, _names(statement)))
        held: dict[int | str, Lock] = {}  # by oid; by name what is not there yet
        for lock in statement.locks:
            try:
                perhaps = lock.table in statement.perhaps and not meant.open
                found = self._locked(where, lock, perhaps=perhaps)
                if found is None:
                    continue
                _take(held, found.oid or found.name, found.name, lock.mode)
                below = "" if found.name in statement.alone else statement.below
                for part in self._below(where, found.oid, below):
                    _take(held, part.oid, part.name, lock.mode)
            except Unseen:
                unseen = True
                if not lock.of_index:
                    _take(held, lock.table, lock.table, lock.mode)
        self._covered |= {_last(name) for name in statement.covers}  # a block may use it, too
        lost = [statement.destroys] if statement.destroys else []
        far: list[Reach | Through] = [*statement.reaches, *statement.through]
        for reach in far:
            try:
                for found, mode in self._far(where, statement, reach):
                    _take(held, found.oid, found.name, mode)
                    lost += [found.lost] if found.lost else []
            except Unseen:
                unseen = True
        return dataclasses.replace(
            statement,
            locks=tuple(held.values()),
            blocked_by=self._in_the_way(held),
            destroys=", ".join(dict.fromkeys(lost)) or None,
            unknown=statement.unknown or unseen,
            keeps=statement.keeps and not unseen,
        )

    def _in_the_way(self, held: dict[int | str, Lock]) -> tuple[Blocker, ...]:
        """Return who stops a statement now, each once."""
        oids = {oid: lock for oid, lock in held.items() if isinstance(oid, int)}
        if new := [oid for oid in oids if oid not in self._holders]:
            self._holders |= watch.holders(self.session, new)
        found = {
            (who.pid, who.gid): who
            for oid, lock in oids.items()
            for who in watch.stopping(self._holders[oid], lock.mode)
        }
        return tuple(found.values())

    # what a name means

    def _playable(self, where: Where) -> Where:
        """Return settings that can be had here: a role may be one that only the run will have."""

        def ask() -> bool:
            return bool(self._value(Where(whom=where.whom), "true"))

        try:
            there = not where.whom or self._once(where.whom, ask)
        except Unseen:
            there = False
        return where if there else dataclasses.replace(where, whom=(), open=True)

    def _value(self, where: Where, expression: str) -> Any:  # noqa: ANN401 -- whatever it is
        """Evaluate with the search_path that a file's names are meant by; None after any error.

        No operator and no unqualified name of ours may stand in it.
        """
        sets = where.sets()
        if where == START:  # a trigger may give each session others at its login
            sets = [*self.session.role("SET LOCAL"), self.session.path("SET LOCAL")]
        back = f"ROLLBACK TO SAVEPOINT {_MARK}"
        try:
            cursor = self.session.execute("; ".join([*sets, f"SELECT {expression}", back]))
        except psycopg.Error as error:
            if self.session.lost or str(error.sqlstate)[:2] in _PASSING:
                raise
            self.session.execute(back)
            if error.sqlstate == _NO_RIGHT:
                raise Unseen from error
            return None
        for _ in sets:
            cursor.nextset()
        (value,) = cursor.fetchone() or (None,)
        return value

    def _once(self, key: object, ask: Callable[[], T]) -> T:
        """Return the answer to a question, which is asked once."""
        if key not in self._answers:
            try:
                self._answers[key] = ask()
            except Unseen as unseen:
                self._answers[key] = unseen
        answer = self._answers[key]
        if isinstance(answer, Unseen):
            raise answer
        found: T = answer
        return found

    def _oid(self, where: Where, name: str) -> int | None:
        """Return the oid of the relation that a name in a file means, or None."""
        said = f"pg_catalog.to_regclass({quoting.literal(name)}::pg_catalog.text)"
        expression = f"{said}::pg_catalog.oid::pg_catalog.int8"
        found: int | None = self._once(("oid", where, name), lambda: self._value(where, expression))
        return found

    def _named(self, where: Where, oids: Sequence[int]) -> list[Found]:
        """Return relations with their names, as short as they may be written in the file."""
        if not oids:
            return []
        said = _NAMES.format(",".join(map(str, map(int, oids))))
        names = self._value(where, said)
        if names is None:  # bytes that are no text, in a database without an encoding
            raise Unseen
        return [Found(oid, name) for oid, name in zip(oids, names, strict=True)]

    def _locked(self, where: Where, lock: Lock, *, perhaps: bool) -> Found | None:
        """Return the table that a lock is on; None where there is none to wait for."""
        oid = self._oid(where, lock.table)
        if not lock.of_index:
            return None if perhaps and oid is None else Found(oid or 0, lock.table)
        if oid is None:
            return None

        def ask() -> Found | None:
            row = self.session.execute(_INDEXED, [oid]).fetchone()
            return self._named(where, row)[0] if row else None

        return self._once(("indexed", where, oid), ask)

    # what is reached

    def _below(self, where: Where, oid: int, which: str) -> list[Found]:
        """Return the partitions of a table, or `all` that inherits from it, near or far."""
        if not which or not oid:
            return []

        def ask() -> list[Found]:
            known = {"table": oid, "all": which == "all"}
            rows = self.session.execute(_BELOW, known).fetchall()
            return self._named(where, [found for (found,) in rows])

        return self._once(("below", where, oid, which), ask)

    def _reached(self, where: Where, reach: Reach) -> list[Found]:
        """Return the tables that go, or are locked, with what a statement takes away.

        With each what of it is destroyed, if it is not what the statement names.
        """
        return self._once((where, reach), lambda: self._reaching(where, reach))

    def _reaching(self, where: Where, reach: Reach) -> list[Found]:
        start = self._start(where, reach)
        return self._following(where, reach, start) if start is not None else []

    def _following(self, where: Where, reach: Reach, start: dict[str, Any]) -> list[Found]:
        query = _TRUNCATED if reach.rows else _LOCKED_ALONE.get(reach.kind, _WITH_IT)
        other = self._oid(where, reach.other) if reach.other else None
        known = {
            **start,
            "cascade": reach.cascade,
            "kept": reach.kept,
            "other": other,
            "columns": list(reach.columns),
        }
        rows = self.session.execute(query, known).fetchall()
        relations = self._named(where, [oid for oid, _, _ in rows])
        return [
            dataclasses.replace(found, lost=None if reach.kept else _lost(found, row, start))
            for found, row in zip(relations, rows, strict=True)
        ]

    def _far(
        self, where: Where, statement: Planned, reach: Reach | Through
    ) -> list[tuple[Found, str]]:
        """Return what else a statement locks, with the modes."""
        if isinstance(reach, effects.Reach):
            return [(found, reach.mode) for found in self._reached(where, reach)]
        changes = reach.event in _CHANGES
        if changes and _last(reach.name) in self._covered:
            raise Unseen
        if all(lock.table != reach.name for lock in statement.locks):
            return []  # made by the file itself
        oid = self._oid(where, reach.name)
        if oid is None or oid not in self._views():
            return []
        if changes:
            along = tuple(
                each
                for each in statement.reaches
                if (each.kind, each.name) == (f"{reach.event}d", reach.name)
            )
            below = statement.below
            key = (where, reach, along, below, len(self._covered))
            return self._once(key, lambda: self._changed(where, oid, reach.event, along, below))

        def ask() -> list[tuple[Found, str]]:
            found = self._named(where, self._read(oid))
            parts = [self._below(where, each.oid, statement.below) for each in found]
            return [(each, reach.mode) for each in (*found, *itertools.chain(*parts))]

        return self._once((where, reach, statement.below), ask)

    # what is behind a view

    def _views(self) -> dict[int, bool]:
        """Return the oids of all views (true) and of the tables that have rules."""
        return self._once("views", lambda: dict(self.session.execute(_VIEWS).fetchall()))

    def _read(self, oid: int) -> list[int]:
        """Return all relations in the query of a view, near or far."""

        def ask() -> list[int]:
            rows = self.session.execute(_IN_VIEW, {"oid": oid}).fetchall()
            return [found for (found,) in rows]

        return self._once(("read", oid), ask)

    def _changed(
        self, where: Where, oid: int, event: str, along: Sequence[Reach], below: str
    ) -> list[tuple[Found, str]]:
        """Follow a change of rows to the table that it ends in, and from there along foreign keys.

        Raises Unseen where a rule or an INSTEAD OF trigger does something else with them, or a
        file changes what a view on the way leads to.
        """
        locked: dict[int, str] = {}
        names: dict[str, str] | None = None  # the columns there, by those of the view
        start, views = oid, self._views()
        rule, trigger = _CHANGES[event]
        while oid in views:
            known = {"oid": oid, "rule": rule, "trigger": trigger}
            if self.session.execute(_TAKEN_OVER, known).fetchone():
                raise Unseen
            if not views[oid]:
                break
            if (base := self._base(oid)) is None:
                return []  # through which no server changes rows
            locked = dict.fromkeys(self._read(oid), effects.ACCESS_SHARE) | locked
            oid, name, columns = base
            if name in self._covered:
                raise Unseen
            if names is not None:
                columns = {name: columns.get(column, "") for name, column in names.items()}
            names = columns
            locked[oid] = effects.ROW_EXCLUSIVE
        if oid == start:
            return []
        found = list(zip(self._named(where, [*locked]), locked.values(), strict=True))
        known = {"classid": 0, "objid": oid, "objsubid": 0}
        for reach in along:
            if event == "delete":
                lost = [dataclasses.replace(each, lost=f"rows of {each.name}") for each, _ in found]
                found += [(each, effects.ACCESS_SHARE) for each in lost if each.oid == oid]
            columns_there = tuple((names or {}).get(name, "") for name in reach.columns)
            there = dataclasses.replace(reach, columns=columns_there)
            found += [(each, reach.mode) for each in self._following(where, there, known)]
        return found + [(part, effects.ROW_EXCLUSIVE) for part in self._below(where, oid, below)]

    def _base(self, oid: int) -> tuple[int, str, dict[str, str]] | None:
        """Return the only relation in the FROM of a view, and its columns by the view's names.

        With the relation's own name, without its schema.
        """
        (text,) = self.session.execute(_DEFINITION, [oid]).fetchone() or (None,)
        node = parser.parsed(text.encode()) if text else None
        if node is None or len(node.select_stmt.from_clause) != 1:
            return None
        table = node.select_stmt.from_clause[0].range_var
        said = {"schema": table.schemaname, "name": table.relname}
        (found,) = self.session.execute(_CALLED, said).fetchone() or (None,)
        columns = {}
        for item in node.select_stmt.target_list:
            if fields := item.res_target.val.column_ref.fields:
                column = fields[-1].string.sval
                columns[item.res_target.name or column] = column
        return (found, table.relname, columns) if found else None

    def _row_of(self, query: str, values: Sequence[object]) -> Any:  # noqa: ANN401 -- a row
        """Return what the catalogs have under a name, which may be none of this database's."""
        try:
            return self.session.execute(query, values).fetchone()
        except psycopg.Error as error:
            if self.session.lost or str(error.sqlstate)[:2] in _PASSING:
                raise
            self.session.execute(f"ROLLBACK TO SAVEPOINT {_MARK}")
            return None

    def _start(self, where: Where, reach: Reach) -> dict[str, object] | None:
        """Return the object that a statement takes away as the catalogs know it."""
        if reach.kind in _BY_NAME:
            catalog, name = _BY_NAME[reach.kind]
            query = f"""SELECT '{catalog}'::regclass::oid::int8, oid::int8
 FROM {catalog} WHERE {name}::text = %s"""  # noqa: S608 -- a catalog's name
            return _object(self._row_of(query, quoting.parts(reach.name)[:1]))
        procedure = "regprocedure" if "(" in reach.name else "regproc"
        kind, catalog = _BY_CAST.get(reach.kind, (procedure, "pg_proc"))
        name = reach.name
        if kind == "regtype":  # it is parsed as a type is: `order` is none
            name = ".".join(map(quoting.name, quoting.parts(name)))
        said = f"pg_catalog.to_{kind}({quoting.literal(name)}::pg_catalog.text)"
        oid = self._value(where, f"{said}::pg_catalog.oid::pg_catalog.int8")
        if oid is None:
            return None
        row = self._row_of(f"SELECT '{catalog}'::regclass::oid::int8", [])
        (classid,) = row
        if reach.column:
            query = (
                "SELECT attnum FROM pg_attribute WHERE attrelid = %s::oid AND attname = %s::name"
            )
            row = self._row_of(query, [oid, reach.column])
            return _object((classid, oid, *row)) if row else None
        if reach.constraint:
            query = """SELECT 'pg_constraint'::regclass::oid::int8, oid::int8 FROM pg_constraint
 WHERE conrelid = %s::oid AND conname = %s::name"""
            return _object(self._row_of(query, [oid, reach.constraint]))
        return _object((classid, oid))


def _names(statement: Planned) -> Iterator[str]:
    """Yield the names in a statement that are looked for along the path."""
    yield from (lock.table for lock in statement.locks)
    for reach in statement.reaches:
        if reach.kind != "schema" and reach.kind not in _BY_NAME:
            yield reach.name
            yield from [reach.other] if reach.other else []


def _last(name: str) -> str:
    return (quoting.parts(name) or [name])[-1]


def _has_schema(name: str) -> bool:
    return len(quoting.parts(name.partition("(")[0])) > 1


def _object(row: Sequence[object] | None) -> dict[str, object] | None:
    """Return an object, or a part of it, as the catalogs know it."""
    if row is None:
        return None
    classid, objid, *part = row
    return {"classid": classid, "objid": objid, "objsubid": part[0] if part else 0}


def _take(held: dict[int | str, Lock], key: int | str, name: str, mode: str) -> None:
    """Add a lock; of two on one table the stronger one counts."""
    before = held.setdefault(key, effects.Lock(name, mode))
    if effects.STRENGTH.index(mode) > effects.STRENGTH.index(before.mode):
        held[key] = effects.Lock(before.table, mode)


def _lost(found: Found, row: Sequence[Any], start: dict[str, object]) -> str | None:
    """Say what of a relation goes, if it is not what the statement names."""
    oid, whole, columns = row
    same = oid == start["objid"]
    if whole and not same:
        return f"{whole} {found.name}"
    if columns and (not same or start["objsubid"]):
        return ", ".join(f"column {found.name}.{column}" for column in columns)
    return None


# what goes with an object (always what is part of it, with CASCADE what only uses it), and the
# relation that each of it belongs to and that is locked for it
_WITH_IT = """WITH RECURSIVE gone(classid, objid, objsubid, own) AS (
 SELECT %(classid)s::oid, %(objid)s::oid, %(objsubid)s::int4, true
 UNION
 SELECT d.* FROM gone g, LATERAL (
  SELECT d.classid, d.objid, d.objsubid, false FROM pg_depend d
  WHERE d.refclassid = g.classid AND d.refobjid = g.objid
  AND (g.objsubid = 0 OR d.refobjsubid = g.objsubid)
  AND (d.deptype IN ('a', 'i', 'P', 'S', 'e') OR %(cascade)s)
  UNION ALL SELECT d.refclassid, d.refobjid, d.refobjsubid, false FROM pg_depend d  -- a rule's view
  WHERE d.classid = g.classid AND d.objid = g.objid AND d.deptype = 'i' AND NOT g.own
  UNION ALL SELECT g.classid, a.attrelid, a.attnum::int4, g.own  -- what inherits the column
  FROM pg_attribute p JOIN pg_inherits h ON h.inhparent = p.attrelid
  JOIN pg_attribute a ON a.attrelid = h.inhrelid AND a.attname = p.attname
  WHERE g.classid = 'pg_class'::regclass AND p.attrelid = g.objid AND p.attnum = g.objsubid
  AND g.objsubid > 0 AND (%(kept)s OR a.attinhcount = 1 AND NOT a.attislocal)
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
 SELECT %(objid)s::oid AS oid
 UNION SELECT c.conrelid FROM emptied e JOIN pg_constraint c
  ON c.confrelid = e.oid AND c.contype = 'f'
) SELECT oid::int8, 'all rows of', NULL FROM emptied ORDER BY oid"""

_DEFAULT = """WITH RECURSIVE locked AS (
 SELECT partdefid FROM pg_partitioned_table WHERE partrelid = %(objid)s::oid AND partdefid <> 0
 UNION SELECT h.inhrelid FROM locked l JOIN pg_inherits h ON h.inhparent = l.partdefid
) SELECT partdefid::int8, NULL, NULL FROM locked ORDER BY 1"""
_OF_DOMAIN = """WITH RECURSIVE used AS (
 SELECT %(objid)s::oid AS oid
 UNION SELECT t.oid FROM used u JOIN pg_type t ON t.typbasetype = u.oid AND t.typtype = 'd'
) SELECT DISTINCT c.oid::int8, NULL, NULL FROM used u
JOIN pg_attribute a ON a.atttypid = u.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'm') ORDER BY 1"""


# a partitioned table on either side has a constraint for each partition, too
_REFERRED = """SELECT DISTINCT c.confrelid::int8, NULL, NULL FROM pg_constraint c
WHERE c.conrelid = %(objid)s::oid AND c.contype = 'f'
AND (%(other)s::oid IS NULL OR c.confrelid IN (SELECT o.confrelid FROM pg_constraint o
 WHERE o.conrelid = %(other)s::oid AND o.contype = 'f')) ORDER BY 1"""
_REFERRING = """SELECT DISTINCT c.conrelid::int8, NULL, NULL FROM pg_constraint c
WHERE c.confrelid = %(objid)s::oid AND c.contype = 'f'
AND NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_constraint o ON o.conrelid = i.inhparent
 WHERE i.inhrelid = c.conrelid AND o.confrelid = c.confrelid AND o.contype = 'f') ORDER BY 1"""
# rows follow one of a partition, too; of a partition that loses rows its root is told
_DELETED = """WITH RECURSIVE parts AS (
 SELECT %(objid)s::oid AS oid
 UNION SELECT h.inhrelid FROM parts p JOIN pg_inherits h ON h.inhparent = p.oid
), hit AS (
 SELECT p.oid, 'c'::"char" AS how FROM parts p
 UNION SELECT c.conrelid, c.confdeltype FROM hit h JOIN pg_constraint c
  ON c.confrelid = h.oid AND c.contype = 'f' AND c.confdeltype IN ('c', 'n', 'd')
 WHERE h.how = 'c'
) SELECT h.oid::int8, max('rows of') FILTER (WHERE h.how = 'c' AND NOT EXISTS (
  SELECT FROM hit o JOIN pg_inherits i ON i.inhparent = o.oid WHERE i.inhrelid = h.oid
 )), NULL
FROM hit h WHERE h.oid <> ALL (ARRAY(SELECT p.oid FROM parts p)) GROUP BY h.oid ORDER BY 1"""
_UPDATED = """WITH RECURSIVE hit AS (
 SELECT %(objid)s::oid AS oid, ARRAY(SELECT a.attnum FROM pg_attribute a
  WHERE a.attrelid = %(objid)s::oid AND a.attname::text = ANY (%(columns)s::text[])) AS keys
 UNION SELECT c.conrelid, c.conkey FROM hit h JOIN pg_constraint c
  ON c.confrelid = h.oid AND c.contype = 'f' AND c.confupdtype IN ('c', 'n', 'd')
  AND c.confkey && h.keys
) SELECT DISTINCT oid::int8, NULL, NULL FROM hit WHERE oid <> %(objid)s::oid ORDER BY 1"""
_BELOW = """WITH RECURSIVE below AS (
 SELECT h.inhrelid FROM pg_inherits h WHERE h.inhparent = %(table)s::oid
 UNION SELECT h.inhrelid FROM below b JOIN pg_inherits h ON h.inhparent = b.inhrelid
) SELECT b.inhrelid::int8 FROM below b JOIN pg_class c ON c.oid = b.inhrelid
WHERE c.relkind IN ('r', 'p', 'f') AND (c.relispartition OR %(all)s) ORDER BY 1"""

# what each change is to a rule and, as a bit, to a trigger; COPY asks no rule
_CHANGES = {"insert": ("3", 4), "update": ("2", 16), "delete": ("4", 8), "copy": ("", 4)}
_VIEWS = """SELECT c.oid::int8, c.relkind = 'v' FROM pg_class c
WHERE c.oid >= 16384 AND (c.relkind = 'v' OR c.relkind IN ('r', 'p', 'f') AND c.relhasrules)"""
_TAKEN_OVER = """SELECT 1 WHERE EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = %(oid)s::oid
 AND w.ev_type::text = %(rule)s AND w.ev_enabled <> 'D')
OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = %(oid)s::oid AND t.tgenabled <> 'D'
 AND t.tgtype & 64 <> 0 AND t.tgtype & %(trigger)s <> 0)"""
_IN_VIEW = """WITH RECURSIVE used AS (
 SELECT %(oid)s::oid AS oid, 'v'::"char" AS relkind
 UNION SELECT c.oid, c.relkind FROM used u JOIN pg_rewrite w ON w.ev_class = u.oid
  AND w.ev_type = '1' JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
  AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> u.oid
 JOIN pg_class c ON c.oid = d.refobjid AND c.oid >= 16384
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f') WHERE u.relkind = 'v'
) SELECT oid::int8 FROM used WHERE oid <> %(oid)s::oid ORDER BY 1"""
_DEFINITION = "SELECT pg_get_viewdef(%s::oid)"
# to_regclass() wants USAGE on the schema
_CALLED = """SELECT c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = %(name)s::name AND CASE %(schema)s::text WHEN '' THEN pg_table_is_visible(c.oid)
 ELSE n.nspname = %(schema)s::name END"""

_LOCKED_ALONE = {
    "default": _DEFAULT,
    "domain": _OF_DOMAIN,
    "referred": _REFERRED,
    "referring": _REFERRING,
    "deleted": _DELETED,
    "updated": _UPDATED,
}
_BY_CAST = {
    "relation": ("regclass", "pg_class"),
    "default": ("regclass", "pg_class"),
    "referred": ("regclass", "pg_class"),
    "referring": ("regclass", "pg_class"),
    "deleted": ("regclass", "pg_class"),
    "updated": ("regclass", "pg_class"),
    "schema": ("regnamespace", "pg_namespace"),
    "type": ("regtype", "pg_type"),
    "domain": ("regtype", "pg_type"),
}
_BY_NAME = {
    "extension": ("pg_extension", "extname"),
    "server": ("pg_foreign_server", "srvname"),
    "wrapper": ("pg_foreign_data_wrapper", "fdwname"),
}
