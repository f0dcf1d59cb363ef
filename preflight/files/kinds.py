"""What kind of statement a text is, as far as running it depends on that."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from preflight.base import quoting
from preflight.files import parser, scan

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node
# the first words of all that needs a second look
NOTABLE = frozenset(
    b"ABORT ALTER BEGIN CLUSTER COMMIT COPY CREATE DISCARD DROP END PREPARE REINDEX RELEASE"
    b" ROLLBACK SAVEPOINT START VACUUM".split()
)
IN_TRANSACTION = "25001"  # the SQLSTATE of what a transaction does not take
DISCARDS = (
    "Leave it out: it gives away the lock of this run, in a transaction or not, and each file gets "
    "a session without what another one left in it."
)
CONTROL = {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"}
RESET_ALL = 6  # libpg_query's VariableSetKind
_MODE = (
    r"(?:ISOLATION LEVEL (?P<level>SERIALIZABLE|REPEATABLE READ|READ (?:UN)?COMMITTED)"
    r"|READ (?P<access>ONLY|WRITE)|(?:NOT )?DEFERRABLE)"
)
_EACH_MODE = re.compile(_MODE)
_MODES = re.compile(re.sub(r"\?P<\w+>", "?:", rf"{_MODE}(?:(?: ,)? {_MODE})*"))
_SAYS_MODES = re.compile(
    r"(?:(?P<set>SET (?:LOCAL |SESSION )?TRANSACTION)|BEGIN(?: WORK| TRANSACTION)?"
    r"|START TRANSACTION)(?: (?P<modes>.+))?"
)
_LEVELS = {"SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED", "READ UNCOMMITTED"}
_NAMED = re.compile(rb"(?is)SET\b[^=]{1,200}?\btransaction_isolation\b")
_MODES_WORDS = 60  # of a statement that says each of them several times
READING = {"SELECT", "WITH", "VALUES", "TABLE"}
_DOUBTFUL = {"VACUUM", "REINDEX", "CLUSTER", "DISCARD"}
_ALONE = [[word] for word in ("ALTER", "CLUSTER", "CREATE", "DROP", "REINDEX", "REPACK", "VACUUM")]
_REPEATED = [
    [word]
    for word in (
        *("ALTER", "COMMENT", "CREATE", "DROP", "GRANT", "REASSIGN", "REVOKE", "SECURITY"),
        *("ANALYZE", "CLUSTER", "REFRESH", "REINDEX", "RESET", "SET", "TRUNCATE"),
        *("DELETE", "INSERT", "MERGE", "UPDATE"),
    )
]
_DOUBTFUL_PAIRS = {
    ("CREATE", "DATABASE"),
    ("DROP", "DATABASE"),
    ("ALTER", "DATABASE"),
    ("CREATE", "TABLESPACE"),
    ("DROP", "TABLESPACE"),
    ("ALTER", "SYSTEM"),
    ("CREATE", "SUBSCRIPTION"),
    ("ALTER", "SUBSCRIPTION"),
}


def is_control(text: bytes) -> bool:
    """Tell whether a statement begins or ends a transaction or a savepoint."""
    head = scan.words(text, 2)
    return bool(head) and (head[0] in CONTROL or head == ["PREPARE", "TRANSACTION"])


class Modes(NamedTuple):
    """What a statement says of the transaction that it opens or stands in."""

    isolation: str = ""  # empty where it says nothing of it
    read_only: bool | None = None


def modes(text: bytes) -> Modes | None:
    """Return what a BEGIN, a SET TRANSACTION or a SET transaction_isolation says; None of others.

    DEFERRABLE is left out, which does nothing in a transaction that may write.
    """
    if _NAMED.match(text):
        return _named(text)
    said = _SAYS_MODES.fullmatch(" ".join(scan.words(text, _MODES_WORDS)))
    if said is None or (said["set"] and not said["modes"]):
        return None
    if said["modes"] and not _MODES.fullmatch(said["modes"]):
        return None
    found = Modes()
    for each in _EACH_MODE.finditer(said["modes"] or ""):
        if each["level"]:
            found = found._replace(isolation=each["level"])
        elif each["access"]:
            found = found._replace(read_only=each["access"] == "ONLY")
    return found


def _named(text: bytes) -> Modes | None:
    """Return the level that a SET gives to the setting of that name."""
    node = parser.parsed(text)
    if node is None or node.WhichOneof("node") != "variable_set_stmt":
        return None
    said = node.variable_set_stmt
    level = said.args[0].a_const.sval.sval.upper() if len(said.args) == 1 else ""
    named = said.name.lower() == "transaction_isolation" and level in _LEVELS
    return Modes(level) if named else None


def opens_transaction(text: bytes) -> bool:
    """Tell whether a statement is a BEGIN of a transaction in which something can be written."""
    if scan.words(text, 1) not in (["BEGIN"], ["START"]):
        return False
    said = modes(text)
    return said is not None and not said.read_only


def closes_transaction(text: bytes) -> bool:
    """Tell whether a statement is a plain COMMIT."""
    said = scan.words(text, 3)
    return said[:1] in (["COMMIT"], ["END"]) and said[1:] in ([], ["WORK"], ["TRANSACTION"])


def reads_only(text: bytes) -> bool:
    """Tell whether a statement is a query."""
    return next((word for word in scan.tokens(text) if word != "("), "") in READING


def outside_transaction(text: bytes) -> bool:
    """Tell whether PostgreSQL refuses a statement inside a transaction (SQLSTATE 25001).

    The list was tried against PostgreSQL 15 and 18. What only the catalog knows the server has to
    say (`may_be_refused`).
    """
    head = scan.words(text, 2)
    pair = tuple(head)
    if not head or not (
        head[0] in _DOUBTFUL
        or pair in _DOUBTFUL_PAIRS
        or (head[0] in ("CREATE", "DROP", "ALTER") and re.search(rb"(?i)concurrently", text))
    ):
        return False
    node = parser.parsed(text)
    return node is not None and _refused_in_transaction(node)


def discards_all(text: bytes) -> bool:
    """Tell whether a statement is DISCARD ALL, which no file may say."""
    return scan.words(text, 2) == ["DISCARD", "ALL"]


def may_be_refused(text: bytes) -> bool:
    """Tell whether a statement that a transaction did not take may be run without one.

    REINDEX or CLUSTER of a partitioned relation, DROP SUBSCRIPTION with a slot, and what newer
    servers add. A query, a call or a block may have done something before it met such a refusal.
    """
    return scan.words(text, 1)[0:1] in _ALONE


def may_be_repeated(text: bytes) -> bool:
    """Tell whether nothing of a statement that was rolled back stays, as far as its kind tells.

    A query, a call or a block may keep a lock of its session, or reach beyond the database.
    """
    return scan.words(text, 1)[:1] in _REPEATED


def unsubscribed(text: bytes) -> str | None:
    """Return the name of the subscription that a statement drops."""
    if scan.words(text, 2) != ["DROP", "SUBSCRIPTION"] or (node := parser.parsed(text)) is None:
        return None
    return str(node.drop_subscription_stmt.subname)


def queues_nobody(text: bytes) -> bool:
    """Tell whether a statement waits for its locks without anybody queueing behind it.

    These are CREATE INDEX, DROP INDEX and REINDEX with CONCURRENTLY; DETACH PARTITION does not
    belong to them, whose second half takes ACCESS EXCLUSIVE on the partition.
    """
    if scan.words(text, 1) not in (["CREATE"], ["DROP"], ["REINDEX"]):
        return False
    node = parser.parsed(text)
    if node is None:
        return False
    if node.WhichOneof("node") == "reindex_stmt":
        return options(node.reindex_stmt.params).get("concurrently", False)
    return bool(node.index_stmt.concurrent or node.drop_stmt.concurrent)


def detached(text: bytes) -> tuple[str, str] | None:
    """Return the table and the partition, quoted, of a DETACH PARTITION CONCURRENTLY."""
    if scan.words(text, 2) != ["ALTER", "TABLE"] or b"concurrently" not in text.lower():
        return None
    node = parser.parsed(text)
    if node is None:
        return None
    for item in node.alter_table_stmt.cmds:
        command = getattr(item.alter_table_cmd, "def")
        if command.WhichOneof("node") == "partition_cmd" and command.partition_cmd.concurrent:
            part, table = command.partition_cmd.name, node.alter_table_stmt.relation
            return _path(table.schemaname, table.relname), _path(part.schemaname, part.relname)
    return None


def _path(*names: str) -> str:
    return ".".join(quoting.name(name) for name in names if name)


def sets_lock_timeout(text: bytes) -> bool:
    """Tell whether a SET or RESET changes lock_timeout for the rest of the session."""
    node = parser.parsed(text)
    if node is None or node.WhichOneof("node") != "variable_set_stmt":
        return False
    said = node.variable_set_stmt
    everything = said.kind == RESET_ALL
    return everything or (said.name.lower() == "lock_timeout" and not said.is_local)


def _refused_in_transaction(node: Node) -> bool:  # noqa: C901, PLR0911 -- one line a statement
    kind = node.WhichOneof("node")
    match kind:
        case "index_stmt":
            return bool(node.index_stmt.concurrent)
        case "drop_stmt":
            return bool(node.drop_stmt.concurrent)
        case "vacuum_stmt":
            return bool(node.vacuum_stmt.is_vacuumcmd)
        case "cluster_stmt":
            return not node.cluster_stmt.HasField("relation")
        case "discard_stmt":
            return bool(node.discard_stmt.target == 1)  # DISCARD_ALL
        case "reindex_stmt":
            whole = node.reindex_stmt.kind in (3, 4, 5)  # SCHEMA, SYSTEM, DATABASE
            return whole or options(node.reindex_stmt.params).get("concurrently", False)
        case "alter_table_stmt":
            commands = [item.alter_table_cmd for item in node.alter_table_stmt.cmds]
            return any(
                getattr(command, "def").partition_cmd.concurrent
                for command in commands
                if getattr(command, "def").WhichOneof("node") == "partition_cmd"
            )
        case "alter_database_stmt":
            return "tablespace" in options(node.alter_database_stmt.options)
        case "create_subscription_stmt":
            said = options(node.create_subscription_stmt.options)
            return said.get("connect", True) and said.get("create_slot", True)
        case "alter_subscription_stmt":  # SET, ADD, DROP PUBLICATION and REFRESH
            said = options(node.alter_subscription_stmt.options)
            return node.alter_subscription_stmt.kind in range(3, 7) and said.get("refresh", True)
        case _:
            return kind in (
                "createdb_stmt",
                "dropdb_stmt",
                "create_table_space_stmt",
                "drop_table_space_stmt",
                "alter_system_stmt",
            )


def options(items: Iterable[Node]) -> dict[str, bool]:
    """Return the names of a statement's options and whether each is switched on."""
    said = {item.def_elem.defname: item.def_elem.arg for item in items}
    return {name: _is_on(argument) for name, argument in said.items()}


def _is_on(argument: Node) -> bool:
    """Read an option's value as the server does: nothing said is on."""
    match argument.WhichOneof("node"):
        case "boolean":
            return bool(argument.boolean.boolval)
        case "integer":
            return bool(argument.integer.ival)
        case _:
            return str(argument.string.sval).lower() not in ("false", "off")
