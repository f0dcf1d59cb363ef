"""Which rows a rehearsal needs where there is no room for all: those that the files touch.

Names in the files lead to tables, also by way of views, triggers and functions; what these refer
to, and what refers to them, comes with them as far as it fits. A name without a schema is taken for
every table of that name: a table too many costs room, one too few costs the truth.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
_PARENTS = "SELECT h.inhrelid::int8, h.inhparent::int8 FROM pg_catalog.pg_inherits h"
# what leads from one to another; a function's number is negative
_LEADING = """
SELECT i.indexrelid::int8, i.indrelid::int8 FROM pg_catalog.pg_index i
UNION ALL SELECT w.ev_class::int8, d.refobjid::int8 FROM pg_catalog.pg_rewrite w
 JOIN pg_catalog.pg_depend d ON d.objid = w.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
 AND d.refclassid = 'pg_catalog.pg_class'::regclass WHERE d.refobjid <> w.ev_class
UNION ALL SELECT t.tgrelid::int8, -t.tgfoid::int8 FROM pg_catalog.pg_trigger t
 WHERE NOT t.tgisinternal
UNION ALL SELECT held.relation::int8, -d.refobjid::int8 FROM (
  SELECT w.ev_class AS relation, w.oid, 'pg_catalog.pg_rewrite'::regclass AS catalog
  FROM pg_catalog.pg_rewrite w
  UNION ALL SELECT a.adrelid, a.oid, 'pg_catalog.pg_attrdef'::regclass FROM pg_catalog.pg_attrdef a
  UNION ALL SELECT c.conrelid, c.oid, 'pg_catalog.pg_constraint'::regclass
  FROM pg_catalog.pg_constraint c WHERE c.conrelid <> 0::oid
  UNION ALL SELECT i.indrelid, i.indexrelid, 'pg_catalog.pg_class'::regclass
  FROM pg_catalog.pg_index i
 ) held JOIN pg_catalog.pg_depend d ON d.objid = held.oid AND d.classid = held.catalog
 AND d.refclassid = 'pg_catalog.pg_proc'::regclass
UNION ALL SELECT -d.objid::int8, CASE d.refclassid WHEN 'pg_catalog.pg_proc'::regclass
  THEN -d.refobjid::int8 ELSE d.refobjid::int8 END
 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'n'
 AND d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_class'::regclass)
"""
_FUNCTIONS = f"""
SELECT p.oid::int8, n.nspname::text, p.proname::text, l.lanname::text, p.prosrc
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE {_OURS} AND l.lanname NOT IN ('c', 'internal') AND NOT {_MEMBER.format("pg_proc", "p")}
"""  # noqa: S608 -- a constant
_TYPES = f"""
SELECT DISTINCT n.nspname::text, t.typname::text, a.attrelid::int8
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_attribute a ON a.atttypid IN (t.oid, t.typarray)
WHERE {_OURS} AND t.typrelid = 0::oid
"""  # noqa: S608 -- a constant
_KEYS = """
SELECT c.oid::int8, c.conname::text, c.conrelid::int8, c.confrelid::int8,
 pg_catalog.format('constraint %I of %I.%I', c.conname, n.nspname, r.relname)
FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_class r ON r.oid = c.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
WHERE c.contype = 'f' AND c.conparentid = 0::oid
"""
_LOCK_TIMEOUT_MS = 2000  # sizes are asked of files: whoever has a table for himself is in the way
_DEEPEST = 5
_WORD = re.compile(r'"((?:[^"]|"")+)"|([^\W\d][\w$]*)')
_ONE_NAME = re.compile(r'\s*(?:(?:"[^"]+"|[\w$]+)\s*\.\s*)?("[^"]+"|[^\W\d][\w$]*)\s*')
_MADE_UP = re.compile(r"(?i)\bexecute\b(?!\s+(?:function|procedure)\b)")
FOREIGN_KEY = "23503"
# what rows that are missing cannot be the reason of; of a duplicate where nothing is computed
_CERTAIN = re.compile(r"42...")
_DUPLICATE = re.compile(r"23505|23P01")
_BEGINS = {"CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "SET", "RESET", "VACUUM",
           "ANALYZE", "REINDEX", "CLUSTER"}  # fmt: skip
_MAKES_ROWS = {"TABLE", "TEMP", "TEMPORARY", "UNLOGGED", "MATERIALIZED"}  # may have a query
UNKNOWN = '"x"'  # what `reach` makes of a name that is put together
Names = set[tuple[str, str]]  # schema, or none, and name


# what the files say


@dataclass(slots=True)
class Said:
    """What some files name, what of them nobody can read, and whether they write rows."""

    names: Names = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    writes: bool = False


def said(scripts: Iterable[Script]) -> Said:
    """Return what the statements of some files name, their bodies and texts included."""
    found, seen = Said(), set[bytes]()
    for script in scripts:
        for statement in script.statements():
            text = parser.typical(parser.shortened(statement.text(script.text)))
            if text in seen:
                continue
            seen.add(text)
            first, *more = [*scan.words(text, 2), ""]
            found.writes |= first not in _BEGINS or (first == "CREATE" and more[0] in _MAKES_ROWS)
            for why in _read(text, found.names, 0):
                if (told := f"{script.file} {why}") not in found.unread:
                    found.unread.append(told)
    return found


def _read(text: bytes, names: Names, depth: int) -> Iterator[str]:
    """Add what a statement names; yield why there may be more."""
    node = parser.parsed(text)
    if node is None:
        names |= _words(text.decode("utf-8", "replace"))
        yield "has a statement that cannot be read here"
        return
    names |= {(each.schema, each.name) for each in named.names(text, _DEEPEST) if each.name}
    names |= {
        ("", found[1].strip('"')) for found in map(_ONE_NAME.fullmatch, _texts(node)) if found
    }
    for domain in parser.every(node, "AlterDomainStmt"):
        names |= {("", part.string.sval) for part in domain.type_name[-1:]}
    if _of_everything(node):
        yield "has a statement that works on all tables"
    for inner in reach.inner(node, text) if depth < _DEEPEST else ():
        if isinstance(inner, str):
            yield from _read(inner.encode(), names, depth + 1)
            if UNKNOWN in inner:
                names |= _words(text.decode("utf-8", "replace"))
                yield "names something that is only known when it runs"
        else:
            names |= _words(text.decode("utf-8", "replace"))
            yield inner.words


def _texts(node: Node) -> Iterator[str]:
    """Yield the texts of a statement: `'users'::regclass` is a name."""
    return (constant.sval.sval for constant in parser.every(node, "A_Const"))


def _words(text: str) -> Names:
    """Return every word that could be a name, as it is written and as the server would fold it."""
    found = {quoted.replace('""', '"') or plain for quoted, plain in _WORD.findall(text)}
    return {("", word) for word in found | {word.lower() for word in found}}


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


@dataclass(frozen=True, slots=True)
class Function:
    """A routine; `body` is its text."""

    schema: str
    name: str
    language: str
    body: str


@dataclass(frozen=True, slots=True)
class Key:
    """A foreign key; `told` is what the catalogs' comparison calls it."""

    name: str
    of: int
    to: int
    told: str


@dataclass(frozen=True, slots=True)
class Graph:
    """What of a database leads to what, by oid; functions have negative ones."""

    relations: Mapping[int, Relation]
    functions: Mapping[int, Function] = field(default_factory=dict)
    keys: Mapping[int, Key] = field(default_factory=dict)
    parents: Sequence[tuple[int, int]] = ()
    leading: Sequence[tuple[int, int]] = ()
    types: Sequence[tuple[str, str, int]] = ()

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


def look(session: Session) -> Graph:
    """Ask the live database; raises psycopg.Error where somebody has a table for himself."""
    only, own = session.config.only, session.config.schema
    with sessions.transaction(session):
        session.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
        rows = session.execute(_RELATIONS).fetchall()
        return Graph(
            {
                oid: Relation(schema, name, kind, int(size), member or schema == own)
                for oid, schema, name, kind, size, member in rows
                if not only or schema in only
            },
            {-oid: Function(*said) for oid, *said in session.execute(_FUNCTIONS).fetchall()},
            {oid: Key(*said) for oid, *said in session.execute(_KEYS).fetchall()},
            session.execute(_PARENTS).fetchall(),
            session.execute(_LEADING).fetchall(),
            session.execute(_TYPES).fetchall(),
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
    empty: Mapping[int, str]  # tables without, by oid
    views: Mapping[int, str]  # materialised ones that are not filled
    keys: Mapping[int, Key]  # foreign keys that these rows would break
    loose: frozenset[str] = frozenset()  # names of those that a new row would break
    writes: bool = False  # rows that the files compute, maybe from what is not there

    def without(self) -> dict[str, Collection[int] | None]:
        """Return what of an archive is not restored: kinds of entries, and of which oids or all."""
        return {
            "TABLE DATA": self.empty,
            "MATERIALIZED VIEW DATA": self.views,
            "FK CONSTRAINT": self.keys,
            "BLOBS": None,
        }

    def told(self) -> dict[str, Any]:
        """Return it as an event has it."""
        return {"partial": True, "tables": list(self.tables)}

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
    if config.rehearse == "always" and config.rehearse_partial != "accept":
        raise scratch.Unavailable(
            f"{reason} (PREFLIGHT_REHEARSE_PARTIAL=accept is content with the rows that the files "
            "touch)"
        )
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
    return choose(graph, said(scripts), free, reason)


def choose(graph: Graph, wanted: Said, free: int, reason: str) -> Choice:
    """Return the choice for these names; a table comes with its partitions, or not at all."""
    families = graph.families()
    touched, unread = _touched(graph, wanted, families)
    sizes: dict[int, int] = {}
    for oid, relation in graph.relations.items():
        sizes[families[oid]] = sizes.get(families[oid], 0) + relation.size
    to = [(families[key.of], families[key.to]) for key in graph.keys.values()
          if key.of in families and key.to in families]  # fmt: skip
    parents = _referenced(touched, to) - touched
    children = {of for of, what in to if what in touched} - touched - parents
    filled = {families[oid] for oid, each in graph.relations.items() if each.always}
    used = sum(sizes[each] for each in filled)
    for group in (touched, parents, children):
        for each in sorted(group - filled, key=lambda one: (sizes[one], one)):
            if used + sizes[each] <= free:
                filled.add(each)
                used += sizes[each]
    found = _choice(graph, families, filled, touched, (reason, tuple(unread), used))
    return dataclasses.replace(found, writes=wanted.writes)


def _choice(
    graph: Graph,
    families: Mapping[int, int],
    filled: Collection[int],
    touched: Collection[int],
    said: tuple[str, tuple[str, ...], int],
) -> Choice:
    reason, unread, used = said
    tables = {oid: each for oid, each in graph.relations.items() if each.kind == "r"}
    full = {oid for oid in tables if families[oid] in filled}
    empty = {oid: each.told for oid, each in tables.items() if oid not in full}
    lost = {key.to for key in graph.keys.values()
            if key.to in families and families[key.to] not in filled}  # fmt: skip
    leading = _led(graph.leading)
    views = {
        oid: each.told
        for oid, each in graph.relations.items()
        if each.kind == "m" and not _whole(graph, oid, leading, (families, filled))
    }
    return Choice(
        reason,
        tuple(sorted(each.told for oid, each in tables.items() if oid in full and not each.always)),
        tuple(sorted(each.told for oid, each in tables.items()
                     if families[oid] in touched and oid not in full)),
        unread,
        used,
        empty,
        views,
        {
            oid: key
            for oid, key in graph.keys.items()
            if key.to in lost and families.get(key.of) in filled
        },
        frozenset(key.name for key in graph.keys.values() if key.to in lost),
    )  # fmt: skip


def _touched(graph: Graph, wanted: Said, families: Mapping[int, int]) -> tuple[set[int], list[str]]:
    """Return the families of tables that names lead to, and what on the way cannot be read."""
    leading, unread, by_name = _led(graph.leading), list(wanted.unread), _by_name(graph)
    members = _led((family, oid) for oid, family in families.items())

    def named_by(names: Names) -> list[int]:
        found = ((schema, each) for schema, name in names for each in by_name.get(name, ()))
        return [oid for schema, (place, oid) in found if schema in {"", place}]

    rest, seen = named_by(wanted.names), set[int]()
    while rest:
        if (oid := rest.pop()) in seen:
            continue
        seen.add(oid)
        rest += leading.get(oid, ())
        if (function := graph.functions.get(oid)) is not None:
            rest += named_by(_words(function.body))
            if function.language not in {"sql", "plpgsql"} or _MADE_UP.search(function.body):
                unread.append(f"what the function {function.schema}.{function.name} runs")
        elif oid in families:
            rest += members[families[oid]]
    tables = {oid for oid in seen if oid in families and graph.relations[oid].kind in {"r", "p"}}
    return {families[oid] for oid in tables}, unread


def _by_name(graph: Graph) -> dict[str, list[tuple[str, int]]]:
    """Return schema and oid of all that has a name; a type stands for the tables that use it."""
    found: dict[str, list[tuple[str, int]]] = {}
    for oid, relation in graph.relations.items():
        found.setdefault(relation.name, []).append((relation.schema, oid))
    for oid, routine in graph.functions.items():
        found.setdefault(routine.name, []).append((routine.schema, oid))
    for schema, name, oid in graph.types:
        found.setdefault(name, []).append((schema, oid))
    return found


def _led(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
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
    if choice is None:
        return None
    said, state = str(failure), failure.problem.sqlstate or ""
    words = set(re.findall(r"[\w$]+", said))

    def told(names: Iterable[str]) -> bool:
        return any(name in words or f'"{name}"' in said for name in names)

    missing = {key.name for key in choice.keys.values()}
    if told(missing) or (state == FOREIGN_KEY and told(choice.loose)):
        why = f"the copy is without foreign keys that {console.some(sorted(missing)) or 'it'} needs"
        return scratch.Unavailable(f"{failure}, and the copy has rows of some tables alone: {why}",
                                   level="warning")  # fmt: skip
    certain = _CERTAIN.fullmatch(state) or (_DUPLICATE.fullmatch(state) and not choice.writes)
    if choice.doubt and not certain:
        return scratch.Unavailable(
            f"{failure}, and the copy may be without what it needs: {choice.doubt}", level="warning"
        )
    return None
