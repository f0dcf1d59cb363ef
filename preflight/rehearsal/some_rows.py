"""Which rows a rehearsal needs where there is no room for all: those that the files touch.

Names in the files lead to tables, also by way of views, triggers and functions; what these refer
to, and what refers to them, comes with them as far as it fits. A name without a schema is taken for
every table of that name: a table too many costs room, one too few costs the truth.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from preflight.base import console, quoting
from preflight.files import named, parser, reach, scan
from preflight.rehearsal import scratch
from preflight.server import sessions

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

    from preflight.base.config import Config
    from preflight.base.errors import RehearsalFailed
    from preflight.files.migrations import Script
    from preflight.server.sessions import Session

_OURS = "n.nspname::text NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
_MEMBER = """EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.deptype = 'e'
 AND d.classid = 'pg_catalog.{}'::regclass AND d.objid = {}.oid)"""
_RELATIONS = f"""
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text,
 CASE WHEN c.relkind = 'r' THEN coalesce(pg_catalog.pg_total_relation_size(c.oid), 0) ELSE 0 END,
 {_MEMBER.format("pg_class", "c")}
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'i', 'I') AND {_OURS}
"""  # noqa: S608 -- a constant
_UNSIZED = _RELATIONS.replace("pg_catalog.pg_total_relation_size(c.oid)", "0")
_PARENTS = "SELECT h.inhrelid::int8, h.inhparent::int8 FROM pg_catalog.pg_inherits h"
# what leads from one to another, as by what belongs to a table; a function's number is negative
_LEADING = """
SELECT i.indexrelid::int8, i.indrelid::int8 FROM pg_catalog.pg_index i
UNION ALL SELECT held.relation::int8, CASE d.refclassid WHEN 'pg_catalog.pg_proc'::regclass
  THEN -d.refobjid::int8 ELSE d.refobjid::int8 END FROM (
  SELECT w.ev_class AS relation, w.oid, 'pg_catalog.pg_rewrite'::regclass AS catalog
  FROM pg_catalog.pg_rewrite w
  UNION ALL SELECT a.adrelid, a.oid, 'pg_catalog.pg_attrdef'::regclass FROM pg_catalog.pg_attrdef a
  UNION ALL SELECT c.conrelid, c.oid, 'pg_catalog.pg_constraint'::regclass
  FROM pg_catalog.pg_constraint c WHERE c.conrelid <> 0::oid AND c.contype <> 'f'
  UNION ALL SELECT a.attrelid, c.oid, 'pg_catalog.pg_constraint'::regclass
  FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_attribute a ON a.atttypid = c.contypid
  WHERE c.contypid <> 0::oid
  UNION ALL SELECT i.indrelid, i.indexrelid, 'pg_catalog.pg_class'::regclass
  FROM pg_catalog.pg_index i
  UNION ALL SELECT t.tgrelid, t.oid, 'pg_catalog.pg_trigger'::regclass
  FROM pg_catalog.pg_trigger t WHERE NOT t.tgisinternal
  UNION ALL SELECT p.polrelid, p.oid, 'pg_catalog.pg_policy'::regclass FROM pg_catalog.pg_policy p
 ) held JOIN pg_catalog.pg_depend d ON d.objid = held.oid AND d.classid = held.catalog
 AND d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_class'::regclass)
 AND d.refobjid <> held.relation
UNION ALL SELECT -d.objid::int8, CASE d.refclassid WHEN 'pg_catalog.pg_proc'::regclass
  THEN -d.refobjid::int8 ELSE d.refobjid::int8 END
 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'n'
 AND d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_class'::regclass)
"""
_EVENTS = """
SELECT -e.evtfoid::int8 FROM pg_catalog.pg_event_trigger e WHERE e.evtenabled <> 'D'
"""
_TRIGGERS = """
SELECT t.tgrelid::int8, -t.tgfoid::int8, t.tgtype::int4, t.tgenabled = 'D'
FROM pg_catalog.pg_trigger t WHERE NOT t.tgisinternal
"""
_FUNCTIONS = f"""
SELECT p.oid::int8, n.nspname::text, p.proname::text, l.lanname::text, p.prosrc
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE {_OURS} AND l.lanname NOT IN ('c', 'internal')
"""  # noqa: S608 -- a constant
# domains over domains, and tables that are of a type
_TYPES = f"""
WITH RECURSIVE made (oid, named) AS (
 SELECT t.oid, t.oid FROM pg_catalog.pg_type t
 JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE {_OURS} AND t.typrelid = 0::oid
 UNION SELECT t.oid, made.named FROM made JOIN pg_catalog.pg_type t
 ON t.typbasetype = made.oid AND t.typtype = 'd'
)
SELECT DISTINCT t.typname::text, a.attrelid::int8
FROM made JOIN pg_catalog.pg_type t ON t.oid = made.named
JOIN pg_catalog.pg_type m ON m.oid = made.oid
JOIN pg_catalog.pg_attribute a ON a.atttypid IN (m.oid, m.typarray)
UNION ALL SELECT t.typname::text, c.oid::int8
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_type t ON t.oid = c.reloftype
"""  # noqa: S608 -- a constant
_KEYS = """
SELECT c.oid::int8, c.conname::text, c.conrelid::int8, c.confrelid::int8,
 c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd'),
 pg_catalog.format('constraint %I of %I.%I', c.conname, n.nspname, r.relname)
FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_class r ON r.oid = c.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
WHERE c.contype = 'f' AND c.conparentid = 0::oid
"""
_LOCK_TIMEOUT_MS = 2000  # sizes are asked of files: whoever has a table for himself is in the way
_DEEPEST = 5
_SEEN = 10_000  # different statements that are looked at once
_WORD = re.compile(r'"((?:[^"]|"")+)"|([^\W\d][\w$]*)')
_PART = r'(?:"(?:[^"]|"")+"|[\w$]+)'
_NAMES = re.compile(rf"\s*\{{?\s*{_PART}(?:\s*[.,]\s*{_PART})*\s*\}}?\s*")  # one, or a list
_MADE_UP = re.compile(r"(?i)\bexecute\b(?!\s+(?:function|procedure)\b)")
_ALTERS_TYPES = re.compile(r"(?i)\balter\s+(?:domain|type)\b")
# what tells of rows without reading them, and of keys
_COUNTED = re.compile(
    r"(?i)\b(?:pg_(?:total_)?relation_size|pg_(?:table|indexes|database)_size|reltuples|relpages|"
    r"pg_stat\w*|n_live_tup|relispopulated|ispopulated|lo_\w+|loread|pg_largeobject)\b"
)
_KEYS_ASKED = re.compile(
    r"(?i)\b(?:pg_constraint|pg_get_constraintdef|pg_trigger|table_constraints|"
    r"referential_constraints|key_column_usage|constraint_\w+_usage)\b"
)
_QUERIES = {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "TABLE", "CALL", "MERGE", "VALUES"}
_ENABLES = re.compile(rb"(?i)\benable\s+(?:(?:always|replica)\s+)?trigger\b")
INSERT, DELETE, UPDATE, TRUNCATE = 4, 8, 16, 32  # as pg_trigger.tgtype has them
FOREIGN_KEY = "23503"
NO_RIGHT = "42501"  # also of a row that a policy does not let in
_WRONG = re.compile(r"42...")  # in the file itself
_DUPLICATE = re.compile(r"23505|23P01")
_BEGINS = {"CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "SET", "RESET", "VACUUM",
           "ANALYZE", "REINDEX", "CLUSTER"}  # fmt: skip
# may have a query
_MAKES_ROWS = {"TABLE", "TEMP", "TEMPORARY", "LOCAL", "GLOBAL", "UNLOGGED", "MATERIALIZED"}
Names = set[tuple[str, str]]  # schema, or none, and name


# what the files say


@dataclass(slots=True)
class Said:
    """What some files name, what of them nobody can read, and what they do with rows."""

    names: Names = field(default_factory=set)
    types: set[str] = field(default_factory=set)  # that they change
    unread: list[str] = field(default_factory=list)
    writes: bool = False
    decides: bool = False  # what they do, they may do because of rows
    renames: bool = False  # schemas
    asks_keys: bool = False
    events: dict[tuple[str, str], int] = field(default_factory=dict)  # what they do to which names
    hides: bool = False  # they may do more to rows than they say

    def at(self, name: tuple[str, str]) -> int:
        """Return what they do to what has a schema and a name, as `pg_trigger.tgtype` says it."""
        return self.events.get(name, 0) | self.events.get(("", name[1]), 0)


def said(scripts: Iterable[Script]) -> Said:
    """Return what the statements of some files name, their bodies and texts included."""
    found, seen = Said(), set[bytes]()
    for script in scripts:
        for statement in script.statements():
            text = parser.typical(parser.shortened(statement.read(script.text)))
            if len(text) > parser.LARGEST_TEXT:
                raise scratch.Unavailable(
                    f"{script.file} has a statement that is too large to see which tables it needs"
                )
            if text in seen:
                continue
            if len(seen) < _SEEN:
                seen.add(text)
            first, *more = [*scan.words(text, 2), ""]
            found.writes |= first not in _BEGINS or (first == "CREATE" and more[0] in _MAKES_ROWS)
            found.decides |= first in {"DO", "CALL", "EXECUTE"}
            found.hides |= first in {"DO", "CALL", "EXECUTE"}
            for why in _read(text, found, 0):
                if (told := f"{script.file} {why}") not in found.unread:
                    found.unread.append(told)
    if found.renames:
        found.names = {("", name) for _, name in found.names}
        for (_, name), events in [*found.events.items()]:
            found.events["", name] = found.events.get(("", name), 0) | events
    return found


def _read(text: bytes, found: Said, depth: int) -> Iterator[str]:
    """Add what a statement names; yield why there may be more."""
    node, plain = parser.parsed(text), text.decode("utf-8", "replace")
    found.asks_keys |= _KEYS_ASKED.search(plain) is not None
    if _COUNTED.search(plain):
        yield "asks how many rows there are, how large they are, or for large objects"
    if node is None:
        words = _words(plain)
        found.names |= words
        found.types |= {word for _, word in words}
        found.hides = True
        yield "has a statement that cannot be read here"
        return
    found.names |= {(each.schema, each.name) for each in named.names(text, _DEEPEST) if each.name}
    found.types |= _changed(node)
    found.renames |= _renames_schema(node)
    if _of_everything(node):
        yield "has a statement that works on all tables"
    for name, event in _events(node):
        found.events[name] = found.events.get(name, 0) | event
    if node.WhichOneof("node") in {"do_stmt", "create_function_stmt"}:
        found.hides = True
        found.names |= _words(plain)  # not every body has a tree
    for inner in [*_texts(node, found), *reach.inner(node, text)] if depth < _DEEPEST else ():
        if isinstance(inner, str):
            yield from _read(inner.encode(), found, depth + 1)
            if reach.OPEN in inner:
                found.names |= _words(plain)
                yield "names something that is only known when it runs"
        else:
            found.names |= _words(plain)
            yield inner.words


def _events(node: Node) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield what a statement writes to, and what it does there."""
    for written in parser.every(node, "InsertStmt"):
        also = UPDATE if written.HasField("on_conflict_clause") else 0
        yield _place(written.relation), INSERT | also
    for kind, event in {"UpdateStmt": UPDATE, "DeleteStmt": DELETE,
                        "MergeStmt": INSERT | UPDATE | DELETE}.items():  # fmt: skip
        yield from ((_place(each.relation), event) for each in parser.every(node, kind))
    for copied in parser.every(node, "CopyStmt"):
        if copied.is_from:
            yield _place(copied.relation), INSERT
    for emptied in parser.every(node, "TruncateStmt"):
        yield from ((_place(each.range_var), TRUNCATE) for each in emptied.relations)


def _place(relation: Any) -> tuple[str, str]:  # noqa: ANN401 -- protobuf
    return relation.schemaname, relation.relname


def _texts(node: Node, found: Said) -> Iterator[str]:
    """Add the names in the texts of a statement, as in `'users'::regclass`; yield those of SQL."""
    for constant in parser.every(node, "A_Const"):
        text = constant.sval.sval
        if _NAMES.fullmatch(text):
            found.names |= _words(text)
        elif {*scan.words(text.encode(), 1)} & _QUERIES and parser.parsed(text.encode()):
            yield text


def _words(text: str) -> Names:
    """Return every word that could be a name, as it is written and as the server would fold it."""
    found = {quoted.replace('""', '"') or plain for quoted, plain in _WORD.findall(text)}
    return {("", word) for word in found | {word.lower() for word in found}}


def _changed(node: Node) -> set[str]:
    """Return the types that a statement changes."""
    from postgast import pg_query_pb2  # noqa: PLC0415 -- parsed, so it is loaded

    found = {
        part.string.sval
        for domain in parser.every(node, "AlterDomainStmt")
        for part in domain.type_name[-1:]
    }
    return found | {
        altered.relation.relname
        for altered in parser.every(node, "AlterTableStmt")
        if altered.objtype == pg_query_pb2.OBJECT_TYPE
    }


def _renames_schema(node: Node) -> bool:
    from postgast import pg_query_pb2  # noqa: PLC0415 -- parsed, so it is loaded

    return any(
        renamed.rename_type == pg_query_pb2.OBJECT_SCHEMA
        for renamed in parser.every(node, "RenameStmt")
    )


def _of_everything(node: Node) -> bool:
    kind = str(node.WhichOneof("node"))
    if kind == "vacuum_stmt":
        return not node.vacuum_stmt.rels
    return kind in {"reindex_stmt", "cluster_stmt"} and not getattr(node, kind).HasField("relation")


# what the database has


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, view or index; `size` is of a table with its indexes, in bytes."""

    schema: str
    name: str
    kind: str
    size: int = 0
    always: bool = False  # its rows are ours, or an extension's

    @property
    def told(self) -> str:
        """The name as a manifest has it."""
        parts = (self.schema, self.name)
        return ".".join(quoting.name(part) if set(part) & {".", '"'} else part for part in parts)

    @property
    def listed(self) -> str:
        """Schema and name as the list of an archive has them."""
        return " ".join(" ".join(part.splitlines()) for part in (self.schema, self.name))


@dataclass(frozen=True, slots=True)
class Function:
    """A routine; `body` is its text."""

    schema: str
    name: str
    language: str
    body: str

    @property
    def unread(self) -> str | None:
        """What of it nobody can read beforehand, if there is such."""
        name = f"the function {self.schema}.{self.name}"
        if self.language not in {"sql", "plpgsql"} or _MADE_UP.search(self.body):
            return f"what {name} runs"
        return f"what {name} counts" if _COUNTED.search(self.body) else None


@dataclass(frozen=True, slots=True)
class Key:
    """A foreign key; `told` is what the catalogs' comparison calls it."""

    name: str
    of: int
    to: int
    told: str
    cascades: bool = False  # what happens to a row there happens to those that refer to it


@dataclass(frozen=True, slots=True)
class Trigger:
    """What calls a function when rows of a table change; `events` as `pg_trigger.tgtype` has it."""

    of: int
    function: int
    events: int
    off: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """What of a database leads to what, by oid; functions have negative ones."""

    relations: Mapping[int, Relation]
    functions: Mapping[int, Function] = field(default_factory=dict)
    keys: Mapping[int, Key] = field(default_factory=dict)
    parents: Sequence[tuple[int, int]] = ()
    leading: Sequence[tuple[int, int]] = ()
    types: Sequence[tuple[str, int]] = ()  # the name of one, and who uses it
    events: Sequence[int] = ()  # the functions of event triggers
    triggers: Sequence[Trigger] = ()

    def families(self) -> dict[int, int]:
        """Return for each table one that stands for all with which it shares rows: partitions."""
        found = {oid: oid for oid in self.relations}

        def first(oid: int) -> int:
            while found[oid] != oid:
                oid = found[oid]
            return oid

        for child, parent in self.parents:
            if child in found and parent in found:
                found[first(child)] = first(parent)
        return {oid: first(oid) for oid in found}


def look(session: Session, *, sized: bool = True) -> Graph:
    """Ask the live database; for sizes, raises psycopg.Error where one has a table for himself."""
    only, own = session.config.only, session.config.schema
    with sessions.transaction(session):
        session.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
        rows = session.execute(_RELATIONS if sized else _UNSIZED).fetchall()
        return Graph(
            {
                oid: Relation(schema, name, kind, int(size), member or schema == own)
                for oid, schema, name, kind, size, member in rows
                if not only or schema in only
            },
            {-oid: Function(*said) for oid, *said in session.execute(_FUNCTIONS).fetchall()},
            {
                oid: Key(name, of, to, told, cascades)
                for oid, name, of, to, cascades, told in session.execute(_KEYS).fetchall()
            },
            session.execute(_PARENTS).fetchall(),
            session.execute(_LEADING).fetchall(),
            session.execute(_TYPES).fetchall(),
            [number for (number,) in session.execute(_EVENTS).fetchall()],
            [Trigger(*each) for each in session.execute(_TRIGGERS).fetchall()],
        )


# what is chosen


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tables of a copy have rows, and what follows from it."""

    reason: str  # why not all
    tables: tuple[str, ...]
    left_out: tuple[str, ...]  # of those that the files touch: there was no room
    unread: tuple[str, ...]  # what else may be touched
    size: int  # of the tables with rows, in bytes
    empty: Mapping[int, Relation]  # tables without, by oid
    views: Mapping[int, Relation]  # materialised ones that are not filled
    keys: Mapping[int, Key]  # foreign keys that these rows would break
    relations: Mapping[int, Relation] = field(default_factory=dict)
    loose: frozenset[str] = frozenset()  # names of those that a new row would break
    untried: tuple[str, ...] = ()  # what no file can fail on here
    writes: bool = False  # rows that the files compute, maybe from what is not there
    decides: bool = False  # so may they what they do
    asks_keys: bool = False

    def without(self) -> dict[str, Collection[int] | None]:
        """Return what of an archive is not restored: kinds of entries, and of which oids or all."""
        return {
            "TABLE DATA": self.empty,
            "MATERIALIZED VIEW DATA": self.views,
            "FK CONSTRAINT": self.keys,
            "BLOBS": None,
        }

    def comments(self) -> list[str]:
        """Return how the entries of an archive begin that are about keys that are left out."""
        whose = [(self.relations[key.of], key.name) for key in self.keys.values()]
        return [f"{each.schema} CONSTRAINT {name} ON {each.name} " for each, name in whose]

    def renamed(self, oid: int, entry: str) -> str | None:
        """Return what a table is called by now, where an entry of an archive has another name."""
        now = self.empty.get(oid)
        if now is None or not now.listed.isascii() or entry.startswith(f"{now.listed} "):
            return None
        return now.told

    def told(self) -> dict[str, Any]:
        """Return it as an event has it."""
        return {"partial": True, "tables": list(self.tables)}

    @property
    def lacking(self) -> list[str]:
        """What is not there although all objects are."""
        return [*sorted(key.told for key in self.keys.values()),
                *sorted(f"rows of {view.told}" for view in self.views.values())]  # fmt: skip

    @property
    def doubt(self) -> str:
        """What may be needed and is not there."""
        return console.some([*(f"the rows of {name}" for name in self.left_out), *self.unread])


def chosen(
    session: Session, config: Config, scripts: Sequence[Script], free: int, reason: str
) -> Choice:
    """Return which rows to restore into so many bytes, `reason` being why not all.

    Raises Unavailable where nothing is gained by it, or a partial rehearsal is not wanted.
    """
    if not scripts or free <= 0:
        raise scratch.Unavailable(reason)
    try:
        graph = look(session)
    except psycopg.Error as error:
        if session.lost:
            raise
        raise scratch.Unavailable(
            f"{reason}, and which tables are needed cannot be asked: {error.diag.message_primary}"
        ) from error
    choice = choose(graph, said(scripts), free, reason)
    if config.rehearse == "always" and config.rehearse_partial != "accept":
        raise scratch.Unavailable(
            f"{reason} (PREFLIGHT_REHEARSE_PARTIAL=accept is content with the rows that the files "
            "touch)"
        )
    return choice


def choose(graph: Graph, wanted: Said, free: int, reason: str) -> Choice:
    """Return the choice for these names; a table comes with its partitions, or not at all.

    Raises Unavailable where even what always has rows has no room.
    """
    families = graph.families()
    reached = _reached(graph, wanted, families)
    touched = {families[oid] for oid in reached.seen if oid in families}
    sizes: dict[int, int] = {}
    for oid, relation in graph.relations.items():
        sizes[families[oid]] = sizes.get(families[oid], 0) + relation.size
    to = [(families[key.of], families[key.to]) for key in graph.keys.values()
          if key.of in families and key.to in families]  # fmt: skip
    parents = _referenced(touched, to) - touched
    children = {of for of, what in to if what in touched} - touched - parents
    filled = {families[oid] for oid, each in graph.relations.items() if each.always}
    used = sum(sizes[each] for each in filled)
    if used > free:
        raise scratch.Unavailable(reason)
    for group in (touched, parents, children):
        for each in sorted(group - filled, key=lambda one: (sizes[one], one)):
            if used + sizes[each] <= free:
                filled.add(each)
                used += sizes[each]
    found = _choice(graph, families, filled, reached.seen, (reason, tuple(reached.unread), used))
    return dataclasses.replace(
        found,
        untried=_untried(graph, families, filled, touched) if wanted.writes else (),
        writes=wanted.writes,
        decides=wanted.decides or reached.calls,
        asks_keys=wanted.asks_keys and bool(found.keys),
    )


def _untried(
    graph: Graph, families: Mapping[int, int], filled: Collection[int], touched: Collection[int]
) -> tuple[str, ...]:
    """Name the tables whose rows would keep one that they refer to, and are not there."""
    return tuple(sorted(
        f"rows of {graph.relations[key.of].told}" for key in graph.keys.values()
        if families.get(key.to) in touched
        and key.of in families and families[key.of] not in {*filled, *touched}
    ))  # fmt: skip


def _choice(
    graph: Graph,
    families: Mapping[int, int],
    filled: Collection[int],
    reached: Collection[int],
    said: tuple[str, tuple[str, ...], int],
) -> Choice:
    reason, unread, used = said
    tables = {oid: each for oid, each in graph.relations.items() if each.kind == "r"}
    full = {oid for oid in tables if families[oid] in filled}
    touched = {families[oid] for oid in reached if oid in families}
    lost = {key.to for key in graph.keys.values()
            if key.to in families and families[key.to] not in filled}  # fmt: skip
    leading = _led(graph.leading)
    views = {
        oid: each
        for oid, each in graph.relations.items()
        if each.kind == "m" and not _whole(graph, oid, leading, (families, filled))
    }
    return Choice(
        reason,
        tuple(sorted(each.told for oid, each in tables.items() if oid in full and not each.always)),
        tuple(sorted(each.told for oid, each in graph.relations.items()
                     if (families[oid] in touched and oid in tables.keys() - full)
                     or (oid in reached and oid in views))),
        unread,
        used,
        {oid: each for oid, each in tables.items() if oid not in full},
        views,
        {
            oid: key
            for oid, key in graph.keys.items()
            if key.to in lost and families.get(key.of) in filled
        },
        graph.relations,
        frozenset(key.name for key in graph.keys.values() if key.to in lost),
    )  # fmt: skip


@dataclass(slots=True)
class _Reached:
    """What names lead to: oids of relations and numbers of functions; what nobody can read."""

    seen: set[int] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    calls: bool = False  # a function of the database


def _reached(
    graph: Graph, wanted: Said, families: Mapping[int, int], begun: Iterable[int] = ()
) -> _Reached:
    """Return what names lead to, event triggers included; what rows pull along, if any change.

    And what that leads to which is `begun` with.
    """
    pulled = ((key.to, key.of) for key in graph.keys.values() if key.cascades and wanted.writes)
    leading = _led([*graph.leading, *pulled])
    members = _led((family, oid) for oid, family in families.items())
    found = _Reached(unread=list(wanted.unread))
    named_by = _meaning(graph)
    rest = named_by(wanted.names, wanted.types)
    found.calls = any(oid in graph.functions for oid in rest)
    rest += [*graph.events, *begun]
    while rest:
        if (oid := rest.pop()) in found.seen:
            continue
        found.seen.add(oid)
        rest += leading.get(oid, ())
        if (function := graph.functions.get(oid)) is not None:
            words = _words(function.body)
            alters = _ALTERS_TYPES.search(function.body)
            rest += named_by(words, [word for _, word in words] if alters else [])
            if why := function.unread:
                found.unread.append(why)
        elif oid in families:
            rest += members[families[oid]]
    return found


def _meaning(graph: Graph) -> Callable[[Names, Iterable[str]], list[int]]:
    """Return what tells which oids some names mean, and what is of types of such names."""
    by_name, users = _by_name(graph), _led(graph.types)

    def meant(names: Names, types: Iterable[str]) -> list[int]:
        places = ((schema, each) for schema, name in names for each in by_name.get(name, ()))
        of_types = [oid for name in types for oid in users.get(name, ())]
        return [*of_types, *(oid for schema, (place, oid) in places if schema in {"", place})]

    return meant


# what functions do elsewhere


def far(session: Session, scripts: Iterable[Script]) -> tuple[Script, str, str] | None:
    """Return by which file a function may be called that reaches beyond the database.

    With the function, and what it holds. Raises psycopg.Error.
    """

    def kept(rows: Iterator[tuple[Any, ...]]) -> dict[int, tuple[str, str]]:
        return {
            -oid: (f"{schema}.{name}", words)
            for oid, schema, name, language, body in rows
            if (words := reach.in_routine(language, body))
        }

    if not (wild := session.read(_FUNCTIONS, kept)):
        return None
    scripts, graph = list(scripts), look(session, sized=False)
    if not any(_ENABLES.search(script.text) for script in scripts):
        graph = _calling(graph, lambda trigger: not trigger.off)
    without_rows, families = _calling(graph, lambda _: False), graph.families()
    for script in scripts:
        try:
            wanted = said([script])
        except scratch.Unavailable:  # as large as that are rows, and nobody reads their names
            continue
        found = _reached(without_rows, wanted, families)
        if found.calls or (wanted.hides and _writes(script)):
            found = _reached(graph, wanted, families)
        elif _writes(script):
            found = _written(graph, wanted, families)
        if called := sorted(found.seen & wild.keys()):
            return script, *wild[called[0]]
    return None


def _writes(script: Script) -> bool:
    """Tell whether a file may write rows by itself: triggers are called then."""
    firsts = {
        word for each in script.statements() for word in scan.words(each.read(script.text), 1)
    }
    return not firsts <= _BEGINS | {"SELECT", "TABLE", "VALUES"}


def _calling(graph: Graph, fires: Callable[[Trigger], bool]) -> Graph:
    """Return a graph with the ways to functions of those triggers alone that fire."""
    kept = {(each.of, each.function) for each in graph.triggers if fires(each)}
    gone = {(each.of, each.function) for each in graph.triggers} - kept
    return dataclasses.replace(graph, leading=[each for each in graph.leading if each not in gone])


def _written(graph: Graph, wanted: Said, families: Mapping[int, int]) -> _Reached:
    """Return what statements lead to that say all that they do to rows.

    Of what they name themselves, triggers for that are called. What rules, views and functions do,
    and keys that cascade, nobody has said.
    """
    done = _done(graph, wanted, families)
    own = _calling(graph, lambda each: bool(each.events & done.get(families.get(each.of, 0), 0)))
    leading, members = _led(own.leading), _led((family, oid) for oid, family in families.items())
    rest, begun, seen = _meaning(graph)(wanted.names, wanted.types), list[int](), set[int]()
    while rest:
        if (oid := rest.pop()) in seen:
            continue
        seen.add(oid)
        rest += members.get(families.get(oid, 0), ())
        written = done.get(families.get(oid, 0), 0)
        for to in leading.get(oid, ()):
            (begun if written or to < 0 else rest).append(to)
    for key in graph.keys.values():
        events = done.get(families.get(key.to, 0), 0)
        if events & TRUNCATE or (key.cascades and events & (UPDATE | DELETE)):
            begun.append(key.of)
    found = _reached(graph, Said(writes=True), families, begun)
    found.seen |= seen
    return found


def _done(graph: Graph, wanted: Said, families: Mapping[int, int]) -> dict[int, int]:
    """Return what happens to the tables of each family; a row may move among partitions."""
    done: dict[int, int] = {}
    for oid, each in graph.relations.items():
        done[families[oid]] = done.get(families[oid], 0) | wanted.at((each.schema, each.name))
    for oid, each in graph.relations.items():
        if each.kind == "p" and done[families[oid]] & UPDATE:
            done[families[oid]] |= INSERT | DELETE
    return done


def _by_name(graph: Graph) -> dict[str, list[tuple[str, int]]]:
    """Return schema and oid of all that has a name."""
    found: dict[str, list[tuple[str, int]]] = {}
    for oid, relation in graph.relations.items():
        found.setdefault(relation.name, []).append((relation.schema, oid))
    for oid, routine in graph.functions.items():
        found.setdefault(routine.name, []).append((routine.schema, oid))
    return found


def _led(pairs: Iterable[tuple[Any, int]]) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for one, other in pairs:
        found.setdefault(one, []).append(other)
    return found


def _referenced(begun: Collection[int], to: Collection[tuple[int, int]]) -> set[int]:
    """Return what some tables refer to, and what that refers to: none is whole without it."""
    found, rest, leading = set(begun), list(begun), _led(to)
    while rest:
        for each in leading.get(rest.pop(), ()):
            if each not in found:
                found.add(each)
                rest.append(each)
    return found


def _whole(
    graph: Graph,
    view: int,
    leading: Mapping[int, Sequence[int]],
    rows: tuple[Mapping[int, int], Collection[int]],
) -> bool:
    """Tell whether a view reads nothing that has lost its rows."""
    (families, filled), rest, seen = rows, [view], set[int]()
    while rest:
        if (oid := rest.pop()) in seen:
            continue
        seen.add(oid)
        if oid < 0:
            return False  # nobody knows what a function reads
        relation = graph.relations.get(oid)
        if relation is None or relation.kind not in {"r", "p"}:
            rest += leading.get(oid, ())
        elif families[oid] not in filled:
            return False
    return True


# what a failure on such a copy means


def explained(choice: Choice | None, failure: RehearsalFailed) -> scratch.Unavailable | None:
    """Return why a failure tells nothing of the live database: rows that are not here may be it."""
    if choice is None or failure.code.endswith(".lock_too_long"):  # all take longer
        return None
    said, state = scratch.server_said(failure), failure.problem.sqlstate or ""
    words = set(re.findall(r"[\w$]+", said))
    words |= {word.rstrip("0123456789") for word in words}  # as a second key of that name has it

    def told(names: Iterable[str]) -> bool:
        return any(name in words or f'"{name}"' in said for name in names)

    missing = {key.name for key in choice.keys.values()}
    if told(missing) or (state == FOREIGN_KEY and told(choice.loose)):
        why = f"the copy is without foreign keys that {console.some(sorted(missing)) or 'it'} needs"
        return scratch.Unavailable(f"{failure}, and the copy has rows of some tables alone: {why}",
                                   level="warning")  # fmt: skip
    doubt = choice.doubt or ("foreign keys" if choice.asks_keys else "")
    if doubt and not _certain(choice, state):
        return scratch.Unavailable(
            f"{failure}, and the copy may be without what it needs: {doubt}", level="warning"
        )
    return None


def _certain(choice: Choice, state: str) -> bool:
    """Tell whether rows that are missing cannot be the reason of an error."""
    if _WRONG.fullmatch(state):
        return not choice.decides and state != NO_RIGHT
    return _DUPLICATE.fullmatch(state) is not None and not choice.writes
