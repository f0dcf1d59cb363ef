"""What CONCURRENTLY makes, and leaves: what a statement wants, what the catalog has."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from preflight.base import quoting
from preflight.files import kinds, parser, scan
from preflight.server import sessions

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

    from preflight.server.sessions import Session

DETACHES_CONCURRENTLY = 14  # servers since this one
SCHEMA = 3  # libpg_query's ReindexObjectType
INDEX = 21  # libpg_query's ObjectType
_NAME_SAID = r'(?:"(?:[^"]|"")+"|[^\s".]+)'
# pg_get_indexdef's words
_DEFINITION = re.compile(
    rf"(?s)CREATE (UNIQUE )?INDEX {_NAME_SAID} ON (?:ONLY )?{_NAME_SAID}\.({_NAME_SAID}) (USING .*)"
)
_LOCATION = re.compile(r"(?m)^ *location: -?\d+\n")  # a line of its own; texts have theirs escaped

# the file's own search_path finds the table, so everything else is said in full
_FIND = """SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname),
 i.indisvalid AND i.indisready, pg_catalog.pg_get_indexdef(i.indexrelid),
 (SELECT pg_catalog.format('%%I.%%I', tn.nspname, t.relname) FROM pg_catalog.pg_class t
  JOIN pg_catalog.pg_namespace tn ON tn.oid OPERATOR(pg_catalog.=) t.relnamespace
  WHERE t.oid OPERATOR(pg_catalog.=) i.indrelid),
 n.nspname,
 (SELECT s.spcname FROM pg_catalog.pg_tablespace s, pg_catalog.pg_database d
  WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
  AND s.oid OPERATOR(pg_catalog.=) CASE WHEN c.reltablespace OPERATOR(pg_catalog.=) 0
   THEN d.dattablespace ELSE c.reltablespace END),
 EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class t
   ON t.oid OPERATOR(pg_catalog.=) a.attrelid
  WHERE t.oid OPERATOR(pg_catalog.=) i.indrelid
  AND a.attname OPERATOR(pg_catalog.=) t.relname)
 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c
  ON c.oid OPERATOR(pg_catalog.=) i.indexrelid
 JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE """
_NAME = "c.relname OPERATOR(pg_catalog.=) %(name)s::pg_catalog.name"
_SAID = "OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%(table)s::pg_catalog.text)"

_PERHAPS_LEFT = """SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)
 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c
  ON c.oid OPERATOR(pg_catalog.=) i.indexrelid
 JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) i.indrelid
 JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE NOT i.indisvalid AND c.relkind OPERATOR(pg_catalog.=) 'i'
 AND t.relname OPERATOR(pg_catalog.=) %(table)s::pg_catalog.name
 AND (%(schema)s::pg_catalog.text OPERATOR(pg_catalog.=) ''
  OR n.nspname OPERATOR(pg_catalog.=) %(schema)s::pg_catalog.name)
 ORDER BY 1"""


_TAKEN = re.compile(r'relation "(.*)" already exists')
# where all relations of that name are such: in which schema one is wanted is not known here
_TAKES = """SELECT pg_catalog.min(pg_catalog.format('%%I.%%I', n.nspname, c.relname))
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
  ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 LEFT JOIN pg_catalog.pg_index i ON i.indexrelid OPERATOR(pg_catalog.=) c.oid
 WHERE c.relname OPERATOR(pg_catalog.=) %(name)s::pg_catalog.name
 HAVING pg_catalog.bool_and(i.indexrelid IS NOT NULL AND NOT i.indisvalid
  AND c.relkind OPERATOR(pg_catalog.=) 'i')"""

# what REINDEX CONCURRENTLY leaves when it is interrupted: of the table (an index's table), its
# partitions and what they TOAST; of a schema; or of the database. A copy of an index beside it,
# under its name with an ending: an index that somebody builds under such a name is none
_LEFT = """WITH said AS (
 SELECT coalesce(i.indrelid, c.oid) AS oid FROM pg_catalog.pg_class c
 LEFT JOIN pg_catalog.pg_index i ON i.indexrelid OPERATOR(pg_catalog.=) c.oid
 WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%(relation)s::pg_catalog.text)
), tables AS (
 SELECT oid FROM said
 UNION SELECT p.relid FROM said, pg_catalog.pg_partition_tree(said.oid) p
), all_tables AS (
 SELECT oid FROM tables UNION SELECT c.reltoastrelid FROM pg_catalog.pg_class c
  JOIN tables ON tables.oid OPERATOR(pg_catalog.=) c.oid
)
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname),
 (SELECT pg_catalog.format('%%I.%%I', tn.nspname, t.relname) FROM pg_catalog.pg_class t
  JOIN pg_catalog.pg_namespace tn ON tn.oid OPERATOR(pg_catalog.=) t.relnamespace
  WHERE t.reltoastrelid OPERATOR(pg_catalog.=) i.indrelid
   OR (t.oid OPERATOR(pg_catalog.=) i.indrelid AND t.relkind OPERATOR(pg_catalog.<>) 't'))
 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c
  ON c.oid OPERATOR(pg_catalog.=) i.indexrelid
 JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE NOT i.indisvalid AND c.relname OPERATOR(pg_catalog.~) '_cc(new|old)[0-9]*$'
 AND (%(everywhere)s OR n.nspname OPERATOR(pg_catalog.=) %(schema)s::pg_catalog.name
  OR EXISTS (SELECT FROM all_tables t WHERE t.oid OPERATOR(pg_catalog.=) i.indrelid))
 AND EXISTS (SELECT FROM pg_catalog.pg_index o JOIN pg_catalog.pg_class oc
   ON oc.oid OPERATOR(pg_catalog.=) o.indexrelid
  WHERE o.indrelid OPERATOR(pg_catalog.=) i.indrelid
  AND o.indexrelid OPERATOR(pg_catalog.<>) i.indexrelid
  AND o.indisunique OPERATOR(pg_catalog.=) i.indisunique
  AND pg_catalog.starts_with(oc.relname::pg_catalog.text,
   pg_catalog.regexp_replace(c.relname::pg_catalog.text, '_cc(new|old)[0-9]*$', ''))
  AND pg_catalog.regexp_replace(pg_catalog.pg_get_indexdef(o.indexrelid), '^.*? USING ', '')
   OPERATOR(pg_catalog.=)
   pg_catalog.regexp_replace(pg_catalog.pg_get_indexdef(i.indexrelid), '^.*? USING ', ''))
 ORDER BY 1"""


@dataclass(frozen=True, slots=True)
class Reindex:
    """What REINDEX CONCURRENTLY names: a table or index (quoted), a schema, or all there is."""

    relation: str = ""
    schema: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """What a statement names: an index, and the table (quoted) or, for DROP, the index itself."""

    name: str
    place: str
    dropped: bool = False
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """An index as the catalog has it; `name` and its table's are qualified and quoted."""

    name: str
    valid: bool
    definition: str
    table: str
    schema: str
    tablespace: str
    namesake: bool = False  # the table has a column of its own name


def wanted(text: bytes) -> Index | None:
    """Return the index that a CREATE or DROP INDEX CONCURRENTLY names, or None."""
    node = parser.parsed(text)
    if node is None:
        return None
    if node.WhichOneof("node") == "index_stmt" and node.index_stmt.idxname:
        statement = node.index_stmt
        place = _quoted(statement.relation.schemaname, statement.relation.relname)
        return Index(statement.idxname, place, if_not_exists=statement.if_not_exists)
    if node.drop_stmt.remove_type == INDEX:
        names = [item.string.sval for item in node.drop_stmt.objects[0].list.items]
        return Index(names[-1], _quoted(*names), dropped=True)
    return None


def reindexed(text: bytes) -> Reindex | None:
    """Return what a REINDEX CONCURRENTLY names, or None for any other statement."""
    if scan.words(text, 1) != ["REINDEX"] or (node := parser.parsed(text)) is None:
        return None
    statement = node.reindex_stmt
    if not kinds.options(statement.params).get("concurrently", False):
        return None
    if statement.HasField("relation"):
        return Reindex(_quoted(statement.relation.schemaname, statement.relation.relname))
    return Reindex(schema=statement.name if statement.kind == SCHEMA else "")


def left(session: Session, reindex: Reindex) -> dict[str, str]:
    """Return the INVALID indexes of an interrupted REINDEX CONCURRENTLY, and their tables."""
    said = {
        "relation": reindex.relation,
        "schema": reindex.schema,
        "everywhere": not (reindex.relation or reindex.schema),
    }
    return dict(session.execute(_LEFT, said).fetchall())


def _quoted(*names: str) -> str:
    return ".".join(quoting.name(name) for name in names if name)


def attached(session: Session, table: str, partition: str) -> str | None:
    """Return whether a partition is `attached` or its detaching `pending`; None when neither."""
    query = """SELECT CASE WHEN i.inhdetachpending THEN 'pending' ELSE 'attached' END
 FROM pg_catalog.pg_inherits i
 WHERE i.inhparent OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s::pg_catalog.text)
 AND i.inhrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s::pg_catalog.text)"""
    if session.facts is None or session.facts.major < DETACHES_CONCURRENTLY:
        return "attached"  # the server will say that it does not know the statement
    row = session.execute(query, [table, partition]).fetchone()
    return row[0] if row else None


def subscribed(session: Session, name: str) -> bool:
    """Tell whether the database has a subscription of that name."""
    query = """SELECT FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d
 ON d.oid OPERATOR(pg_catalog.=) s.subdbid
 WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
 AND s.subname OPERATOR(pg_catalog.=) %s::pg_catalog.name"""
    return session.execute(query, [name]).fetchone() is not None


def find(session: Session, index: Index) -> Found | None:
    """Return the index of that name on that table, if there is one."""
    query = f"{_FIND}{'c.oid' if index.dropped else 'i.indrelid'} {_SAID} AND {_NAME}"
    row = session.execute(query, {"name": index.name, "table": index.place}).fetchone()
    return Found(*row) if row else None


def quiet(session: Session) -> bool:
    """Tell whether the server keeps from this session that it skips what is there already."""
    query = """SELECT FROM pg_catalog.current_setting('client_min_messages') said
 WHERE said OPERATOR(pg_catalog.~) '^(warning|error)$'"""
    return session.execute(query).fetchone() is not None


def unnamed_index(text: bytes) -> bool:
    """Tell whether a statement makes an index that the server is to name."""
    node = parser.parsed(text)
    return (
        node is not None and node.WhichOneof("node") == "index_stmt" and not node.index_stmt.idxname
    )


def perhaps_left(session: Session, text: bytes) -> list[str]:
    """Return the INVALID indexes of a table on which a statement makes one without a name.

    Of each table of that name, for nobody knows the file's search_path here; nothing is locked.
    """
    if not unnamed_index(text) or (node := parser.parsed(text)) is None:
        return []
    relation = node.index_stmt.relation
    said = {"table": relation.relname, "schema": relation.schemaname}
    return [name for (name,) in session.execute(_PERHAPS_LEFT, said).fetchall()]


def in_the_way(session: Session, said: str) -> str | None:
    """Return the INVALID index whose name is taken, by the server's words; None: it is not one."""
    if (found := _TAKEN.search(said)) is None:
        return None
    row = session.execute(_TAKES, {"name": found[1]}).fetchone()
    return row[0] if row else None


def drops(names: Iterable[str]) -> str:
    """Return what drops these indexes: the server takes one name in each."""
    return " ".join(f"DROP INDEX CONCURRENTLY {name};" for name in names)


def unnamed(session: Session, text: bytes) -> dict[str, str]:
    """Return the INVALID indexes that a statement may have made, and their tables."""
    node = parser.parsed(text)
    if node is None:
        return {}
    relation = node.index_stmt.relation
    place = _quoted(relation.schemaname, relation.relname)
    query = f"{_FIND}i.indrelid {_SAID} AND NOT i.indisvalid ORDER BY 1"
    found = [Found(*row) for row in session.execute(query, {"table": place}).fetchall()]
    return {each.name: each.table for each in found if made_by(session, each, text) is not False}


def wait(session: Session, table: str) -> None:
    """Let whoever builds or drops an index of a table finish; it stops no reader and no writer."""
    query = """SELECT c.relkind OPERATOR(pg_catalog.=) 'm' FROM pg_catalog.pg_class c
 WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s)"""
    (materialised,) = session.execute(query, [table]).fetchone() or (False,)
    # LOCK TABLE takes none of these; this takes the same lock, and is rolled back
    statement = (
        f"ALTER MATERIALIZED VIEW {table} RESET (autovacuum_enabled)"
        if materialised
        else f"LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE"
    )
    with sessions.undone(session):
        session.execute(statement)


def made_by(session: Session, found: Found, text: bytes) -> bool | psycopg.Error:
    """Tell whether an index is exactly what a statement makes, in the server's own words.

    It is where the catalog says the same as the statement. Else it is made on an empty copy of the
    table, undone; an error is why the server makes none.
    """
    node = parser.parsed(text)
    if node is None or node.WhichOneof("node") != "index_stmt":
        return False
    space = node.index_stmt.table_space
    if space and space != found.tablespace and not session.copy:  # a copy may lie elsewhere
        return False
    _strip(node, found)
    catalogs = parser.parsed(found.definition.encode())
    if catalogs is not None:
        _strip(catalogs, found)
        catalogs.index_stmt.relation.CopyFrom(node.index_stmt.relation)
        if _LOCATION.sub("", str(catalogs)) == _LOCATION.sub("", str(node)):
            return True
    return _compared(session, found, node)


def _strip(node: Node, found: Found) -> None:
    """Leave of a statement what the index is: columns as `t.a`, and whole rows as `t.*`."""
    statement = node.index_stmt
    statement.idxname, statement.table_space = "", ""
    statement.concurrent, statement.if_not_exists = False, False
    table = statement.relation.relname
    for column in parser.every(node, "ColumnRef"):
        whole = [each.string.sval for each in column.fields] == [table] and not found.namesake
        if whole:
            column.fields.add().a_star.SetInParent()
        del column.fields[:-1]
        column.fields.add().CopyFrom(column.fields[0])
        column.fields[0].string.sval = table


def _compared(session: Session, found: Found, node: Node) -> bool | psycopg.Error:
    """Tell what `made_by` does, by a copy of the table.

    A temporary one, or where the role may make none, one beside the table: that is no more than
    the statement itself needs. Its name is of chance: the table's own would hide a type. What takes
    the table's own rows, or may not read it, is made on a child of it.
    """
    relation, name = node.index_stmt.relation, f"preflight_{secrets.token_hex(8)}"
    relation.relname = name
    for column in parser.every(node, "ColumnRef"):
        column.fields[0].string.sval = name
    errors: list[psycopg.Error] = []
    for columns in (f"(LIKE {found.table})", f"() INHERITS ({found.table})"):
        for relation.schemaname in ("pg_temp", found.schema):
            copy = _quoted(relation.schemaname, name)
            try:
                made = _made(session, copy, columns, parser.written(node))
            except psycopg.Error as error:
                if session.lost or sessions.passing(error):
                    raise
                errors.append(error)
            else:
                return alike(made, found.definition)
    return errors[0]


def _made(session: Session, copy: str, columns: str, statement: str) -> str:
    """Return how the catalog has what a statement makes on an empty copy; nothing of it stays."""
    query = f"""SELECT pg_catalog.pg_get_indexdef(i.indexrelid)
 FROM pg_catalog.pg_index i WHERE i.indrelid {_SAID}"""  # noqa: S608 -- words of ours
    with sessions.undone(session):
        session.execute(f"CREATE TABLE {copy} {columns}")
        session.execute(statement)
        (definition,) = session.execute(query, {"table": copy}).fetchone() or ("",)
    return str(definition)


def alike(made: str, definition: str) -> bool:
    """Tell whether two definitions say the same but the names of an index and its table."""
    ours, theirs = _DEFINITION.fullmatch(made), _DEFINITION.fullmatch(definition)
    if ours is None or theirs is None:
        return False
    (unique, copy, how), table = ours.groups(), theirs[2]
    # a row of a child where one of its parent is due
    cast = rf"\({copy}\.\*\)::(?:{_NAME_SAID}\.)?{re.escape(table)}(?![\w$])"
    how = re.sub(cast, f"{copy}.*", how).replace(f"{copy}.", f"{table}.")
    return (unique, how) == theirs.group(1, 3)
