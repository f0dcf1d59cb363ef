"""What a statement does, whether it destroys something, and which lock it takes on which table.

Locks are the documented ones (PostgreSQL manual, "Explicit Locking" and the page of each command).
What only the catalogs know is named for them to tell (`Reach`); not what functions do.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preflight.files import kinds, parser, scan

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import AlterTableStmt, DropStmt, Node, RangeVar

ACCESS_SHARE = "ACCESS SHARE"
ROW_SHARE = "ROW SHARE"
ROW_EXCLUSIVE = "ROW EXCLUSIVE"
SHARE_UPDATE = "SHARE UPDATE EXCLUSIVE"
SHARE = "SHARE"
SHARE_ROW = "SHARE ROW EXCLUSIVE"
EXCLUSIVE = "EXCLUSIVE"
ACCESS_EXCLUSIVE = "ACCESS EXCLUSIVE"
STRENGTH = (
    ACCESS_SHARE, ROW_SHARE, ROW_EXCLUSIVE, SHARE_UPDATE, SHARE, SHARE_ROW, EXCLUSIVE,
    ACCESS_EXCLUSIVE,
)  # fmt: skip

Inner = Any  # the node inside a Node: each kind has fields of its own
UPDATES, INSERTS, DELETES = 3, 4, 5  # libpg_query's CmdType
CASCADE = 2  # libpg_query's DropBehavior
# sub-commands of ALTER TABLE that take less than ACCESS EXCLUSIVE
_ALTER_LOCKS = {
    "AT_ValidateConstraint": SHARE_UPDATE,
    "AT_SetStatistics": SHARE_UPDATE,
    "AT_SetOptions": SHARE_UPDATE,
    "AT_ResetOptions": SHARE_UPDATE,
    "AT_ClusterOn": SHARE_UPDATE,
    "AT_DropCluster": SHARE_UPDATE,
    "AT_SetRelOptions": SHARE_UPDATE,
    "AT_ResetRelOptions": SHARE_UPDATE,
    "AT_AttachPartition": SHARE_UPDATE,
    "AT_EnableTrig": SHARE_ROW,
    "AT_EnableAlwaysTrig": SHARE_ROW,
    "AT_EnableReplicaTrig": SHARE_ROW,
    "AT_EnableTrigAll": SHARE_ROW,
    "AT_EnableTrigUser": SHARE_ROW,
    "AT_DisableTrig": SHARE_ROW,
    "AT_DisableTrigAll": SHARE_ROW,
    "AT_DisableTrigUser": SHARE_ROW,
}
_ALTER_PARENT = {"AT_AddInherit": SHARE_UPDATE, "AT_DropInherit": ACCESS_SHARE}
_ALTER_WORDS = {
    "AT_AddColumn": "add column",
    "AT_DropColumn": "drop column",
    "AT_AlterColumnType": "change type of",
    "AT_ColumnDefault": "change default of",
    "AT_SetNotNull": "set not null on",
    "AT_DropNotNull": "drop not null on",
    "AT_AddConstraint": "add constraint",
    "AT_DropConstraint": "drop constraint",
    "AT_ValidateConstraint": "validate constraint",
    "AT_AttachPartition": "attach partition",
    "AT_DetachPartition": "detach partition",
}
_ALTER_DESTROYS = {"AT_DropColumn", "AT_AlterColumnType"}
_DROPPED_DATA = {
    "OBJECT_TABLE", "OBJECT_SCHEMA", "OBJECT_MATVIEW", "OBJECT_SEQUENCE", "OBJECT_TYPE",
    "OBJECT_DOMAIN", "OBJECT_EXTENSION", "OBJECT_FOREIGN_TABLE",
}  # fmt: skip
_DROPPED_KINDS = {
    "OBJECT_TABLE": "relation", "OBJECT_VIEW": "relation", "OBJECT_MATVIEW": "relation",
    "OBJECT_SEQUENCE": "relation", "OBJECT_FOREIGN_TABLE": "relation", "OBJECT_INDEX": "relation",
    "OBJECT_SCHEMA": "schema", "OBJECT_TYPE": "type", "OBJECT_DOMAIN": "type",
    "OBJECT_FUNCTION": "function", "OBJECT_PROCEDURE": "function", "OBJECT_ROUTINE": "function",
    "OBJECT_AGGREGATE": "function", "OBJECT_EXTENSION": "extension",
    "OBJECT_FOREIGN_SERVER": "server", "OBJECT_FDW": "wrapper",
}  # fmt: skip
_FIXED = {  # kind of node: what it does, the lock on the tables it names
    "insert_stmt": ("insert rows", ROW_EXCLUSIVE),
    "update_stmt": ("update rows", ROW_EXCLUSIVE),
    "delete_stmt": ("delete rows", ROW_EXCLUSIVE),
    "merge_stmt": ("merge rows", ROW_EXCLUSIVE),
    "truncate_stmt": ("truncate", ACCESS_EXCLUSIVE),
    "create_trig_stmt": ("create trigger", SHARE_ROW),
    "rule_stmt": ("create rule", ACCESS_EXCLUSIVE),
    "create_policy_stmt": ("create policy", ACCESS_EXCLUSIVE),
    "alter_policy_stmt": ("alter policy", ACCESS_EXCLUSIVE),
    "create_stats_stmt": ("create statistics", SHARE_UPDATE),
    "alter_object_schema_stmt": ("move to another schema", ACCESS_EXCLUSIVE),
}
# what a parent's lock says of its partitions and of those that inherit from it
_ALL_BELOW = {
    "select_stmt", "insert_stmt", "update_stmt", "delete_stmt", "merge_stmt", "truncate_stmt",
    "lock_stmt", "copy_stmt", "create_table_as_stmt", "rename_stmt", "refresh_mat_view_stmt",
    "vacuum_stmt",
}  # fmt: skip
_PARTITIONS = {
    "index_stmt", "create_trig_stmt", "create_stmt", "create_publication_stmt", "reindex_stmt",
    "cluster_stmt",
}  # fmt: skip
_ALONE = {  # commands of ALTER TABLE that leave others as they are
    "AT_SetRelOptions", "AT_ResetRelOptions", "AT_ChangeOwner", "AT_ClusterOn", "AT_DropCluster",
    "AT_ReplicaIdentity", "AT_SetLogged", "AT_SetUnLogged", "AT_SetTableSpace",
    "AT_EnableRowSecurity", "AT_DisableRowSecurity", "AT_ForceRowSecurity",
    "AT_NoForceRowSecurity", "AT_AddInherit", "AT_DropInherit", "AT_DetachPartitionFinalize",
    "AT_EnableRule", "AT_EnableAlwaysRule", "AT_EnableReplicaRule", "AT_DisableRule",
}  # fmt: skip
_FOREIGN_KEY = "a foreign key"
_NO_HEIRS = _ALONE | {  # those that go on to partitions, and not to what only inherits
    _FOREIGN_KEY, "AT_EnableTrig", "AT_EnableAlwaysTrig", "AT_EnableReplicaTrig", "AT_DisableTrig",
    "AT_EnableTrigAll", "AT_DisableTrigAll", "AT_EnableTrigUser", "AT_DisableTrigUser",
}  # fmt: skip
_OF_PARTITION = {"AT_AttachPartition", "AT_DetachPartition"}  # of others below a table nothing
# what can be set of a table or an index under less than ACCESS EXCLUSIVE
_MILD_OF_INDEX = {"fillfactor", "deduplicate_items"}
_STRICT_OF_TABLE = {"user_catalog_table"}
# what nothing depends on, or only what is no table's
_LONELY = {
    "OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE", "OBJECT_PUBLICATION", "OBJECT_SUBSCRIPTION",
    "OBJECT_EVENT_TRIGGER", "OBJECT_TRANSFORM", "OBJECT_STATISTIC_EXT",
}  # fmt: skip
_LISTING = {"create_publication_stmt", "alter_publication_stmt"}  # a lock on each that they list
_DESTROYING = {"delete_stmt", "truncate_stmt", "dropdb_stmt", "drop_table_space_stmt",
               "drop_owned_stmt", "drop_role_stmt"}  # fmt: skip


_OPTIONED = re.compile(rb"(?i)\s*(?:explain|vacuum|reindex)\b")


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock on a table, as the file writes the table's name."""

    table: str
    mode: str
    of_index: bool = False  # `table` is an index: the lock is on its table


@dataclass(frozen=True, slots=True)
class Reach:
    """What a statement takes away, which the catalogs say what depends on.

    `kind` is relation, schema, type, function (with the types of its arguments), extension, server
    or wrapper; `rows`: a TRUNCATE, which reaches along foreign keys; `kept`: what depends on it is
    locked and made anew, or the server refuses. Some take nothing away and only lock: `default`
    the default partition of the table that it names, `domain` the tables that use it, `referred`
    the tables that its foreign keys point at (those of an `other` table, too), `referring` the
    tables whose foreign keys point at it, `updated` those that follow a change of its `columns`;
    `deleted` takes the rows of those that follow their row.
    """

    kind: str
    name: str
    column: str = ""
    constraint: str = ""
    cascade: bool = False
    rows: bool = False
    kept: bool = False
    mode: str = ACCESS_EXCLUSIVE
    other: str = ""
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Through:
    """What a statement does to a relation, which may be a view: the same to what is below it.

    `event` is select, lock, insert, update, delete, or copy, which no rule takes over.
    """

    name: str
    event: str
    mode: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What one statement does."""

    does: str
    locks: tuple[Lock, ...] = ()
    destroys: str | None = None
    external: str | None = None
    losing: tuple[str, ...] = ()  # the tables that `destroys` speaks of, where it is of tables
    creates: str | None = None
    if_absent: bool = False  # what it creates may be there already
    empty: bool = False  # what it creates is a table without rows of others, near or below it
    passing: bool = False  # what it creates goes with the transaction
    renames: tuple[str, str] | None = None  # a relation, and what it is called then
    gone: tuple[str, ...] = ()  # the relations of which it is not told where they are afterwards
    moves: tuple[str, ...] = ()  # those that go to another schema
    joins: tuple[str, ...] = ()  # the tables that it puts above and below each other
    leading: tuple[str, ...] = ()  # what happens to these may happen to other tables from then on
    shuffles: bool = False  # any name may mean another table from then on
    several: bool = False  # statements, in which a name may mean one table and then another
    perhaps: tuple[str, ...] = ()  # what a block makes, unless it is there
    reaches: tuple[Reach, ...] = ()
    through: tuple[Through, ...] = ()  # what it does to what is a view, or has rules
    # what it makes a view, or calls one, or gives a rule or an INSTEAD OF trigger
    covers: tuple[str, ...] = ()
    below: str = ""  # its locks are also on `all` below its tables, or on their `partitions`
    alone: tuple[str, ...] = ()  # but not below these: ONLY
    unknown: bool = False  # what it destroys, and which locks it takes
    keeps: bool = False  # no row is lost: only its locks are unknown


def of(text: bytes) -> Effect:
    """Return what a statement does, as far as its text tells."""
    same = text if _OPTIONED.match(text) else parser.alike(text)  # a 0 switches off
    try:
        return _of(text) if same is text else _of_typical(same)
    except Exception:  # noqa: BLE001 -- a plan that says less beats none
        return _not_known(text, "not understood")


def _not_known(text: bytes, why: str) -> Effect:
    words = " ".join(scan.words(text[:200], 3)).lower()
    return Effect(f"{words} ({why} here)", unknown=True)


def matters(effect: Effect) -> bool:
    """Tell whether a statement does more than read, make or change some rows."""
    strong = any(STRENGTH.index(lock.mode) > STRENGTH.index(ROW_EXCLUSIVE) for lock in effect.locks)
    far = any(
        STRENGTH.index(reach.mode) > STRENGTH.index(ROW_EXCLUSIVE) for reach in effect.reaches
    )
    return bool(strong or far or effect.destroys or effect.external or effect.unknown)


def _of(text: bytes) -> Effect:
    node = parser.parsed(text, texts=False)
    if node is None:
        fits = parser.fits(text)
        return _not_known(text, "not understood" if fits else "too large to be understood")
    return of_node(node, text)


_of_typical = functools.lru_cache(parser.TYPICAL_MAX)(_of)


def of_node(node: Node, text: bytes) -> Effect:
    """Return what a parsed statement does; its text only names what has no better words."""
    try:
        return _of_node(node, text)
    finally:
        _walked.clear()


def _of_node(node: Node, text: bytes) -> Effect:
    kind = str(node.WhichOneof("node"))
    statement = getattr(node, kind)
    if kind in ("explain_stmt", "prepare_stmt", "declare_cursor_stmt"):
        return _wrapped(kind, statement, text)
    if kind == "alter_table_stmt":
        return _alter_table(statement)
    if kind == "drop_stmt":
        return _drop(statement)
    does, said = _described(kind, statement, text)
    locks = strongest(said)
    many, moves = _of_many(kind, statement), _moved(kind, statement)
    return Effect(
        does,
        locks,
        destroys=_destroyed(kind, statement, does),
        losing=_losing(kind, statement),
        renames=_renamed(kind, statement),
        gone=moves,
        moves=moves,
        external=_external(kind, statement),
        creates=_created(kind, statement),
        if_absent=kind in _MAKES_TABLES and statement.if_not_exists,
        empty=_empty(kind, statement),
        passing=_passing(kind, statement),
        leading=_leading(kind, statement),
        shuffles=_shuffles(kind, statement),
        reaches=_reaching(kind, statement) + _following(kind, statement),
        through=_through(kind, statement, locks),
        covers=_covered(kind, statement),
        below=_below(kind, statement),
        alone=_only(statement) + _parents(kind, statement),
        unknown=many or kind == "drop_owned_stmt",
        keeps=many,
    )


def _below(kind: str, statement: Inner) -> str:
    """Tell which of those below a table are locked with it; its own name is its own."""
    if kind == "rename_stmt" and not statement.subname:
        return ""
    return "all" if kind in _ALL_BELOW else "partitions" if kind in _PARTITIONS else ""


def _of_many(kind: str, statement: Inner) -> bool:
    """Tell whether a statement shuts others out of tables that it does not name."""
    if kind == "reindex_stmt":
        concurrent = kinds.options(statement.params).get("concurrently", False)
        return not statement.HasField("relation") and not concurrent
    if kind == "vacuum_stmt":
        return not statement.rels and kinds.options(statement.options).get("full", False)
    if kind == "cluster_stmt":
        return not statement.HasField("relation")
    return kind in ("reassign_owned_stmt", "alter_table_move_all_stmt")


def _parents(kind: str, statement: Inner) -> tuple[str, ...]:
    """Return the tables that a new one is made below: the others there do not matter."""
    made = kind == "create_stmt"
    return tuple(_name(each.range_var) for each in statement.inh_relations) if made else ()


_MAKES_TABLES = {"create_stmt", "create_table_as_stmt"}
_COMMIT_DROPS = 4  # libpg_query's OnCommitAction
_SCHEMAS, _TABLES, _VIEWS = 37, 42, 52  # its ObjectType
_ALL_ANEW = ("transaction_stmt", "discard_stmt")


def _empty(kind: str, statement: Inner) -> bool:
    """Tell whether a statement makes a table that has only the rows that are put into it."""
    if kind == "create_table_as_stmt":
        return bool(statement.objtype == _TABLES)
    return kind == "select_stmt" or (kind == "create_stmt" and not statement.inh_relations)


def _passing(kind: str, statement: Inner) -> bool:
    """Tell whether a statement makes a table ON COMMIT DROP."""
    if kind == "create_table_as_stmt":
        return bool(statement.into.on_commit == _COMMIT_DROPS)
    return bool(kind == "create_stmt" and statement.oncommit == _COMMIT_DROPS)


def _leading(kind: str, statement: Inner) -> tuple[str, ...]:
    """Return the tables whose rows may take others with them once a statement has run.

    Along an inheritance, a foreign key, a rule or a trigger.
    """
    if kind == "create_stmt":
        return (*_parents(kind, statement), *_referenced(statement.table_elts))
    if kind in ("rule_stmt", "create_trig_stmt"):
        return tuple(map(_name, _targets(statement)))
    return ()


def _shuffles(kind: str, statement: Inner) -> bool:
    """Tell whether names may mean other tables after a statement that does not name these."""
    if kind == "alter_object_schema_stmt":
        return not _targets(statement)  # an extension's
    return kind in _ALL_ANEW or (kind == "rename_stmt" and statement.rename_type == _SCHEMAS)


_CHECKS_DOMAIN = {"C", "O", "V"}  # ADD constraint, SET NOT NULL, VALIDATE


def _reaching(kind: str, statement: Inner) -> tuple[Reach, ...]:
    """Return what else a statement empties or locks, as only the catalogs know."""
    if kind == "truncate_stmt" and statement.behavior == CASCADE:
        return tuple(Reach("relation", _name(table), rows=True) for table in _targets(statement))
    if kind == "create_stmt" and statement.HasField("partbound"):
        parents = [_name(each.range_var) for each in statement.inh_relations]
        return tuple(reach for parent in parents for reach in _partitioned(parent))
    if kind == "alter_domain_stmt" and statement.subtype in _CHECKS_DOMAIN:
        if getattr(statement, "def").constraint.skip_validation:
            return ()
        name = ".".join(_written(part.string.sval) for part in statement.type_name)
        return (Reach("domain", name, mode=SHARE),)
    return ()


_LATER = ("rule_stmt", "create_function_stmt")  # what is inside runs later, if at all


def _following(kind: str, statement: Inner) -> tuple[Reach, ...]:
    """Return the rows that go or change along foreign keys with those that a statement changes."""
    if kind in _LATER:
        return ()
    deleted = [Reach("deleted", name, mode=ROW_EXCLUSIVE) for name in _deleted(statement)]
    updated = [
        Reach("updated", name, mode=ROW_EXCLUSIVE, columns=columns)
        for name, columns in _updated(statement)
        if columns
    ]
    return tuple(dict.fromkeys([*deleted, *updated]))


_GOING = {  # what is done to a view is done to what is below it
    "select_stmt", "insert_stmt", "update_stmt", "delete_stmt", "merge_stmt", "copy_stmt",
    "lock_stmt", "create_table_as_stmt",
}  # fmt: skip
_ACTIONS = {UPDATES: "update", INSERTS: "insert", DELETES: "delete"}
_INSTEAD = 1 << 6  # the timing of an INSTEAD OF trigger


def _through(kind: str, statement: Inner, locks: Iterable[Lock]) -> tuple[Through, ...]:
    """Return what a statement does to relations that may be views or have rules."""
    if kind not in _GOING:
        return ()
    found = [Through(name, event, ROW_EXCLUSIVE) for name, event in _events(kind, statement)]
    for lock in locks:
        if kind == "lock_stmt":
            found.append(Through(lock.table, "lock", lock.mode))
        elif lock.mode in (ACCESS_SHARE, ROW_SHARE):
            found.append(Through(lock.table, "select", lock.mode))
    return tuple(dict.fromkeys(found))


def _events(kind: str, statement: Inner) -> Iterator[tuple[str, str]]:
    """Yield the tables whose rows a statement changes, with how."""
    if kind == "copy_stmt" and statement.is_from:
        yield _name(statement.relation), "copy"
    for item in _inside(statement, "InsertStmt"):
        yield _name(item.relation), "insert"
        if item.on_conflict_clause.target_list:
            yield _name(item.relation), "update"
    for item in _inside(statement, "UpdateStmt"):
        yield _name(item.relation), "update"
    for item in _inside(statement, "DeleteStmt"):
        yield _name(item.relation), "delete"
    for item in _inside(statement, "MergeStmt"):
        for clause in item.merge_when_clauses:
            action = _ACTIONS.get(clause.merge_when_clause.command_type)
            if action:
                yield _name(item.relation), action


def _covered(kind: str, statement: Inner) -> tuple[str, ...]:
    """Return the relation below which others are from then on, or which something takes over."""
    if kind == "view_stmt":
        return (_name(statement.view),)
    if kind == "rename_stmt" and statement.rename_type in {_TABLES, _VIEWS}:  # a view is either's
        return (_written(statement.newname),)
    if kind == "alter_object_schema_stmt" and statement.object_type in {_TABLES, _VIEWS}:
        return (_name(statement.relation),)
    if kind == "rule_stmt" or (kind == "create_trig_stmt" and statement.timing == _INSTEAD):
        return (_name(statement.relation),)
    return ()


def _partitioned(table: str, part: str = "", *, goes: bool = False) -> tuple[Reach, ...]:
    """Return what a table's partition locks along foreign keys when it comes or goes.

    One that comes with a foreign key of its own loses that one's triggers on the other side.
    """
    there = [] if goes or not part else [Reach("referred", part, other=table)]
    return (
        Reach("default", table),
        Reach("referred", table, mode=SHARE_ROW),
        Reach("referring", table, mode=ACCESS_EXCLUSIVE if goes else SHARE_ROW),
        *there,
    )


# what is looked for in statements, found in one walk through each; no longer than one takes
_SOUGHT = ("RangeVar", "CommonTableExpr", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt")
_NOTHING_IN = frozenset({"a_const", "string", "type_name", "funcname", "fields"})
_walked: list[tuple[Inner, dict[str, list[Any]]]] = []


def _inside(message: Inner, kind: str) -> list[Any]:
    """Return the messages of a kind in a tree, the outer ones first."""
    for tree, found in _walked:
        if tree is message:
            return found[kind]
    found = {each: [] for each in _SOUGHT}
    for each in parser.every(message, *_SOUGHT, without=_NOTHING_IN):
        found[each.DESCRIPTOR.name].append(each)
    _walked.append((message, found))
    return found[kind]


def _only(statement: Inner) -> tuple[str, ...]:
    """Return the tables that a statement names with ONLY."""
    return tuple(_name(table) for table in _inside(statement, "RangeVar") if not table.inh)


def _wrapped(kind: str, statement: Inner, text: bytes) -> Effect:
    """Return what EXPLAIN, PREPARE and DECLARE do: the locks of what is inside, at once."""
    inner = _of_node(statement.query, text)
    word = kind.partition("_")[0]
    said = statement.options if kind == "explain_stmt" else ()  # those of DECLARE are a number
    runs = kinds.options(said).get("analyze", False)
    return Effect(
        f"{word} {inner.does}",
        inner.locks,
        destroys=inner.destroys if runs else None,
        losing=inner.losing,
        reaches=inner.reaches if runs else (),
        through=inner.through,
        below=inner.below,
        alone=inner.alone,
    )


def _created(kind: str, statement: Inner) -> str | None:
    """Return the relation that a statement makes, under whose name no one waits yet."""
    if kind == "create_stmt":
        return _name(statement.relation)
    if kind == "create_table_as_stmt":
        return _name(statement.into.rel)
    if kind == "view_stmt" and not statement.replace:
        return _name(statement.view)
    if kind == "select_stmt" and statement.HasField("into_clause"):
        return _name(statement.into_clause.rel)
    return None


Said = tuple[str, list[Lock]]  # in words, and the locks that it takes


def _described(kind: str, statement: Inner, text: bytes) -> Said:
    """Return what a statement does in words, and its locks."""
    if kind in _FIXED:
        return _fixed(kind, statement)
    if kind in _VARIED:
        return _VARIED[kind](statement)
    words = " ".join(scan.words(text[:200], 3)).lower().rstrip(" (,.")
    listed = _named(statement) if kind in _LISTING else ()
    return words, [Lock(name, SHARE_UPDATE) for name in listed]


def _fixed(kind: str, statement: Inner) -> Said:
    does, mode = _FIXED[kind]
    targets = [_name(table) for table in _targets(statement)]
    others = [name for name in map(_name, _tables(statement)) if name not in targets]
    locks = [Lock(name, mode) for name in targets]
    locks += _changed(statement)
    return f"{does} {', '.join(targets)}".strip(), locks + _read(others)


def _create_index(statement: Inner) -> Said:
    mode = SHARE_UPDATE if statement.concurrent else SHARE
    how = " concurrently" if statement.concurrent else ""
    called = f" {statement.idxname}" if statement.idxname else ""
    table = _name(statement.relation)
    return f"create index{how}{called} on {table}", [Lock(table, mode)]


def _create_table(statement: Inner) -> Said:
    referenced = [Lock(name, SHARE_ROW) for name in _referenced(statement.table_elts)]
    copied = [
        item for part in statement.table_elts for item in parser.every(part, "TableLikeClause")
    ]
    referenced += _read(_name(item.relation) for item in copied)
    mode = ACCESS_EXCLUSIVE if statement.HasField("partbound") else SHARE_UPDATE
    parents = [Lock(_name(item.range_var), mode) for item in statement.inh_relations]
    return f"create table {_name(statement.relation)}", referenced + parents


def _create_table_as(statement: Inner) -> Said:
    name = _name(statement.into.rel)
    locks = _read(_named(statement.query)) + _changed(statement)
    return f"create {name} from a query", locks


def _create_view(statement: Inner) -> Said:
    name = _name(statement.view)
    view = [Lock(name, ACCESS_EXCLUSIVE)] if statement.replace else []
    return f"create view {name}", view + _read(_named(statement.query))


def _rename(statement: Inner) -> Said:
    table = _name(statement.relation) if statement.HasField("relation") else ""
    what = f"rename {statement.subname or table} to {statement.newname}"
    index = statement.rename_type == 21  # noqa: PLR2004 -- OBJECT_INDEX
    mode = SHARE_UPDATE if index else ACCESS_EXCLUSIVE
    return what, [Lock(table, mode)] if table else []


def _comment(statement: Inner) -> Said:
    return "comment", _commented(statement)


def _copy(statement: Inner) -> Said:
    if not statement.HasField("relation"):
        return "copy from a query", _read(_named(statement.query)) + _changed(statement)
    table = _name(statement.relation)
    mode = ROW_EXCLUSIVE if statement.is_from else ACCESS_SHARE
    return f"copy {'into' if statement.is_from else 'from'} {table}", [Lock(table, mode)]


def _lock(statement: Inner) -> Said:
    mode = STRENGTH[statement.mode - 1]
    tables = [_name(item.range_var) for item in statement.relations]
    return f"lock {', '.join(tables)}", [Lock(table, mode) for table in tables]


def _select(statement: Inner) -> Said:
    changed = _changed(statement)
    kept = [Lock(name, ROW_SHARE) for name in _row_locked(statement)]
    read = _read(_named(statement))
    return "change rows in a query" if changed else "query", read + kept + changed


def _vacuum(statement: Inner) -> Said:
    full = kinds.options(statement.options).get("full", False)
    tables = [_name(item.vacuum_relation.relation) for item in statement.rels]
    word = "vacuum" if statement.is_vacuumcmd else "analyze"
    mode = ACCESS_EXCLUSIVE if full else SHARE_UPDATE
    does = f"{word}{' full' if full else ''} {', '.join(tables)}".strip()
    return does, [Lock(table, mode) for table in tables]


def _cluster(statement: Inner) -> Said:
    table = _name(statement.relation) if statement.HasField("relation") else ""
    return f"cluster {table}".strip(), [Lock(table, ACCESS_EXCLUSIVE)] if table else []


def _refresh(statement: Inner) -> Said:
    view = _name(statement.relation)
    mode = EXCLUSIVE if statement.concurrent else ACCESS_EXCLUSIVE
    return f"refresh {view}", [Lock(view, mode)]


def _reindex(statement: Inner) -> Said:
    table = _name(statement.relation) if statement.HasField("relation") else ""
    concurrent = kinds.options(statement.params).get("concurrently", False)
    mode = SHARE_UPDATE if concurrent else SHARE  # and ACCESS EXCLUSIVE on each index
    index = statement.kind == 1  # REINDEX_OBJECT_INDEX
    return f"reindex {table or statement.name}", [Lock(table, mode, index)] if table else []


_VARIED: dict[str, Callable[[Inner], Said]] = {  # kind of node: what its options make of the locks
    "cluster_stmt": _cluster,
    "comment_stmt": _comment,
    "copy_stmt": _copy,
    "create_stmt": _create_table,
    "create_table_as_stmt": _create_table_as,
    "index_stmt": _create_index,
    "lock_stmt": _lock,
    "refresh_mat_view_stmt": _refresh,
    "reindex_stmt": _reindex,
    "rename_stmt": _rename,
    "select_stmt": _select,
    "vacuum_stmt": _vacuum,
    "view_stmt": _create_view,
}


def _alter_table(statement: AlterTableStmt) -> Effect:
    from postgast.pg_query_pb2 import AlterTableType, ObjectType  # noqa: PLC0415 -- it is loaded

    table = _name(statement.relation)
    of = str(ObjectType.Name(statement.objtype))
    view, index = of == "OBJECT_VIEW", of == "OBJECT_INDEX"
    does, destroys, locks = [], [], []
    joins, leading = list[str](), list[str]()
    reaches: list[Reach] = []
    subtypes = set()
    for item in statement.cmds:
        command = item.alter_table_cmd
        subtype = str(AlterTableType.Name(command.subtype))
        name = command.name or getattr(command, "def").column_def.colname
        constraint = getattr(command, "def").constraint
        name = name or constraint.conname
        words = _ALTER_WORDS.get(subtype, subtype.removeprefix("AT_"))
        does.append(f"{words} {name}".strip())
        mode = _ALTER_LOCKS.get(subtype, ACCESS_EXCLUSIVE)
        key = subtype == "AT_AddConstraint" and constraint.HasField("pktable")
        subtypes.add(_FOREIGN_KEY if key else subtype)
        if key:
            mode = SHARE_ROW
            leading.append(_name(constraint.pktable))
            locks.append(Lock(_name(constraint.pktable), SHARE_ROW))
        if subtype == "AT_DetachPartition" and getattr(command, "def").partition_cmd.concurrent:
            mode = SHARE_UPDATE
        if subtype in ("AT_SetRelOptions", "AT_ResetRelOptions"):
            mode = ACCESS_EXCLUSIVE if view else _optioned(command, index=index)
        if subtype in ("AT_AddInherit", "AT_DropInherit"):
            parent = _name(getattr(command, "def").range_var)
            locks.append(Lock(parent, _ALTER_PARENT[subtype]))
            joins += [table, parent]
        if subtype in ("AT_AttachPartition", "AT_DetachPartition"):
            part = _name(getattr(command, "def").partition_cmd.name)
            locks.append(Lock(part, ACCESS_EXCLUSIVE))
            joins += [table, part]
            reaches += _partitioned(table, part, goes=subtype == "AT_DetachPartition")
        locks.append(Lock(table, mode))
        referenced = _referenced([getattr(command, "def")])
        leading += referenced
        locks += [Lock(other, SHARE_ROW) for other in referenced]
        if subtype in ("AT_DropColumn", "AT_AlterColumnType", "AT_DropConstraint"):
            retyped = subtype == "AT_AlterColumnType"
            cascade = retyped or command.behavior == CASCADE
            part = "constraint" if subtype == "AT_DropConstraint" else "column"
            gone = {part: command.name}
            reaches.append(Reach("relation", table, cascade=cascade, kept=retyped, **gone))
        if subtype in _ALTER_DESTROYS:
            destroys.append(f"{'old values of' if 'Type' in subtype else 'column'} {table}.{name}")
    return Effect(
        f"alter {table}: {', '.join(does)}",
        strongest(locks),
        destroys=", ".join(destroys) or None,
        losing=(table,),
        joins=tuple(joins),
        leading=tuple(leading),
        reaches=tuple(reaches),
        below="" if subtypes <= _ALONE else "partitions" if subtypes <= _NO_HEIRS else "all",
        alone=(table,) if not statement.relation.inh or subtypes <= _OF_PARTITION else (),
        unknown=of == "OBJECT_TYPE"
        and any(item.alter_table_cmd.behavior == CASCADE for item in statement.cmds),
    )


def _optioned(command: Inner, *, index: bool) -> str:
    """Return the lock that setting these options of a table or an index takes."""
    said = {item.def_elem.defname for item in getattr(command, "def").list.items}
    strict = said - _MILD_OF_INDEX if index else said & _STRICT_OF_TABLE
    return ACCESS_EXCLUSIVE if strict else SHARE_UPDATE


def _drop(statement: DropStmt) -> Effect:
    from postgast.pg_query_pb2 import ObjectType  # noqa: PLC0415 -- parsed, so it is loaded

    kind = str(ObjectType.Name(statement.remove_type))
    word = kind.removeprefix("OBJECT_").lower().replace("matview", "materialized view")
    names = [".".join(_strings(item)) for item in statement.objects]
    does = f"drop {word} {', '.join(filter(None, names))}"
    cascade = " and all that depends on it" if statement.behavior == CASCADE else ""
    mode = SHARE_UPDATE if statement.concurrent else ACCESS_EXCLUSIVE
    locks: list[Lock] = []
    if kind in ("OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW"):
        locks = [Lock(name, ACCESS_EXCLUSIVE) for name in names]
    elif kind == "OBJECT_INDEX":
        locks = [Lock(name, mode, of_index=True) for name in names]
    elif kind in ("OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE"):
        locks = [
            Lock(".".join(_strings(item)[:-1]), ACCESS_EXCLUSIVE) for item in statement.objects
        ]
    lost = kind in _DROPPED_DATA or cascade
    reached = _DROPPED_KINDS.get(kind)
    named = tuple(names)
    return Effect(
        does,
        strongest(locks),
        destroys=f"{word} {', '.join(names)}{cascade}" if lost else None,
        losing=named if kind == "OBJECT_TABLE" else (),
        gone=named if reached == "relation" else (),
        shuffles=reached == "schema",
        below="partitions" if kind == "OBJECT_TRIGGER" else "",
        unknown=bool(cascade) and reached is None and kind not in _LONELY,
        reaches=tuple(
            Reach(reached, name, cascade=bool(cascade), mode=mode)
            for name in ([*map(_called, statement.objects)] if reached == "function" else names)
            if reached and (reached not in _CASCADING or cascade)
        ),
    )


_CASCADING = {"function", "extension", "server", "wrapper"}  # by themselves no table's lock


def _called(node: Node) -> str:
    """Return a routine with the types of its arguments, or alone where none are said."""
    said = node.object_with_args
    name = ".".join(_written(item.string.sval) for item in said.objname)
    if said.args_unspecified:
        return name
    types = [
        ".".join(_written(part.string.sval) for part in item.type_name.names)
        + "[]" * len(item.type_name.array_bounds)
        for item in said.objargs
    ]
    return f"{name}({', '.join(types)})"


def _destroyed(kind: str, statement: Inner, does: str) -> str | None:
    if kind == "truncate_stmt":
        return f"all rows of {does.removeprefix('truncate ')}"
    if kind in _LATER:
        return None
    deleted, said = _deleted(statement), list[str]()
    if kind == "delete_stmt":
        table = _name(statement.relation)
        all_rows = not statement.HasField("where_clause")
        said.append(f"{'all rows' if all_rows else 'rows'} of {table}")
        deleted.remove(table)
    if kind == "update_stmt" and not statement.HasField("where_clause"):
        said.append(f"old values in every row of {_name(statement.relation)}")
    said += [f"rows of {', '.join(deleted)}"] if deleted else []
    said += [does] if kind in _DESTROYING and not said else []
    return ", ".join(said) or None


def _losing(kind: str, statement: Inner) -> tuple[str, ...]:
    """Return the tables that `_destroyed` speaks of, if it is of tables alone."""
    changes = ("delete_stmt", "update_stmt", "truncate_stmt")
    named = [*map(_name, _targets(statement))] if kind in changes else []
    if kind in _DESTROYING and not named:
        return ()
    return tuple(dict.fromkeys([*named, *_deleted(statement)]))


def _renamed(kind: str, statement: Inner) -> tuple[str, str] | None:
    """Return the old and the new name of a relation that a statement renames."""
    if kind != "rename_stmt" or statement.subname or not statement.HasField("relation"):
        return None
    schema = statement.relation.schemaname
    new = [_written(part) for part in (schema, statement.newname) if part]
    return _name(statement.relation), ".".join(new)


def _moved(kind: str, statement: Inner) -> tuple[str, ...]:
    """Return the tables that a statement moves to another schema."""
    return tuple(map(_name, _targets(statement))) if kind == "alter_object_schema_stmt" else ()


def external(node: Node) -> str | None:
    """Say what a statement reaches beyond its database by itself, if it does."""
    kind = str(node.WhichOneof("node"))
    return _external(kind, getattr(node, kind))


def _external(kind: str, statement: Inner) -> str | None:
    if kind == "copy_stmt" and (statement.is_program or statement.filename):
        return "reads or writes a program or a file of the server"
    words = {
        "create_role_stmt": "roles belong to the whole server",
        "alter_role_stmt": "roles belong to the whole server",
        "alter_role_set_stmt": "roles belong to the whole server",
        "drop_role_stmt": "roles belong to the whole server",
        "grant_role_stmt": "roles belong to the whole server",
        "createdb_stmt": "databases belong to the whole server",
        "dropdb_stmt": "databases belong to the whole server",
        "alter_database_stmt": "databases belong to the whole server",
        "alter_database_set_stmt": "databases belong to the whole server",
        "create_table_space_stmt": "tablespaces belong to the whole server",
        "drop_table_space_stmt": "tablespaces belong to the whole server",
        "alter_system_stmt": "changes the server's configuration",
        "create_subscription_stmt": "connects to another server",
        "alter_subscription_stmt": "connects to another server",
        "drop_subscription_stmt": "connects to another server",
    }
    return words.get(kind)


def strongest(locks: Iterable[Lock]) -> tuple[Lock, ...]:
    """Return one lock a table, the strongest."""
    found: dict[str, Lock] = {}
    for lock in locks:
        before = found.setdefault(lock.table, lock)
        if STRENGTH.index(lock.mode) > STRENGTH.index(before.mode):
            found[lock.table] = lock
    return tuple(found.values())


def _read(tables: Iterable[str]) -> list[Lock]:
    return [Lock(table, ACCESS_SHARE) for table in tables]


def _name(table: RangeVar) -> str:
    return ".".join(_written(part) for part in (table.schemaname, table.relname) if part)


def _written(name: str) -> str:
    """Return a name as SQL writes it, quoted where it must be."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_$]*", name)
    return name if plain else '"' + name.replace('"', '""') + '"'


def _targets(statement: Inner) -> list[RangeVar]:
    """Return the tables that a statement changes."""
    names = {field.name for field in statement.DESCRIPTOR.fields}
    if "relations" in names:
        return [item.range_var for item in statement.relations]
    if "table" in names:
        return [statement.table]
    return [statement.relation] if "relation" in names and statement.HasField("relation") else []


def named_tables(node: Node) -> list[str]:
    """Return the tables that a statement names, but not its common table expressions."""
    try:
        return _named(node)
    finally:
        _walked.clear()


def _named(node: Inner) -> list[str]:
    return [_name(table) for table in _tables(node)]


def _tables(message: Inner) -> Iterator[RangeVar]:
    """Yield every table that a tree names, but not its common table expressions."""
    hidden = {item.ctename for item in _inside(message, "CommonTableExpr")}
    for table in _inside(message, "RangeVar"):
        if table.schemaname or table.relname not in hidden:
            yield table


def _changes(statement: Inner) -> list[Any]:
    """Return the statements inside another, in a WITH or a rule, that change rows."""
    return [
        item
        for kind in ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt")
        for item in _inside(statement, kind)
        if item is not statement
    ]


def _changed(statement: Inner) -> list[Lock]:
    return [Lock(_name(item.relation), ROW_EXCLUSIVE) for item in _changes(statement)]


def _deleted(statement: Inner) -> list[str]:
    """Return the tables that a statement deletes from: in a WITH, or as MERGE does."""
    found = [_name(item.relation) for item in _inside(statement, "DeleteStmt")]
    for merge in _inside(statement, "MergeStmt"):
        actions = [item.merge_when_clause for item in merge.merge_when_clauses]
        if any(action.command_type == DELETES for action in actions):
            found.append(_name(merge.relation))
    return list(dict.fromkeys(found))


def _updated(statement: Inner) -> list[tuple[str, tuple[str, ...]]]:
    """Return the tables in which a statement changes rows, each with the columns that it sets."""
    found = [(item.relation, item.target_list) for item in _inside(statement, "UpdateStmt")]
    found += [
        (item.relation, item.on_conflict_clause.target_list)
        for item in _inside(statement, "InsertStmt")
    ]
    for merge in _inside(statement, "MergeStmt"):
        actions = [item.merge_when_clause for item in merge.merge_when_clauses]
        changes = [action for action in actions if action.command_type == UPDATES]
        found += [(merge.relation, action.target_list) for action in changes]
    return [
        (_name(table), tuple(dict.fromkeys(item.res_target.name for item in targets)))
        for table, targets in found
    ]


def _row_locked(statement: Inner) -> list[str]:
    """Return the tables of a FROM whose rows FOR UPDATE and its like keep."""
    found = []
    for clause in statement.locking_clause:
        of = {item.range_var.relname for item in clause.locking_clause.locked_rels}
        for part in statement.from_clause:
            found += [
                _name(table)
                for table in _tables(part)
                if not of or of & {table.relname, table.alias.aliasname}
            ]
    return found


def _referenced(elements: Iterable[Any]) -> list[str]:
    """Return the tables that foreign keys among these elements point at."""
    return [
        _name(constraint.pktable)
        for element in elements
        for constraint in parser.every(element, "Constraint")
        if constraint.HasField("pktable")
    ]


def _strings(node: Node) -> list[str]:
    """Return the parts of a dropped object's name."""
    if node.WhichOneof("node") == "object_with_args":
        return [item.string.sval for item in node.object_with_args.objname]
    return [
        _written(item.sval) for item in parser.every(node, "String") if item.sval != "pg_catalog"
    ]


def _commented(statement: Inner) -> list[Lock]:
    from postgast.pg_query_pb2 import ObjectType  # noqa: PLC0415 -- parsed, so it is loaded

    kind = ObjectType.Name(statement.objtype)
    parts = _strings(statement.object)
    if kind in ("OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_FOREIGN_TABLE"):
        return [Lock(".".join(parts), SHARE_UPDATE)]
    if kind == "OBJECT_COLUMN":
        return [Lock(".".join(parts[:-1]), SHARE_UPDATE)]
    inside = ("OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE")
    return [Lock(".".join(parts[:-1]), ACCESS_SHARE)] if kind in inside else []
