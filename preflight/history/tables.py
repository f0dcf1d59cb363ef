"""Whose our two tables are and what they are: looked at before a row of them is read or written.

A view in their place would run its maker's code as us, and a stranger's table would be believed.
So the table's owner must be us or somebody who could do anything here anyway, and the schema's
owner, too: he may put another table there at any moment.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import structlog

from preflight.base import quoting, stop
from preflight.base.errors import DatabaseBusy, HistoryConflict, SchemaAhead
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.files.planned import Blocker
    from preflight.server.sessions import Session
T = TypeVar("T")

COLUMNS = {
    "migrations": {
        "version": "bigint",
        "name": "text",
        "checksum": "text",
        "state": "text",
        "how": "text",
        "statements_done": "integer",
        "statements_started": "integer",
        "undoing": "boolean",
        "up_sql": "text",
        "rollback_sql": "text",
        "breaking": "boolean",
        "applied_at": "timestamp with time zone",
        "duration_ms": "bigint",
        "applied_by": "text",
        "backup": "text",
        "tool_version": "text",
        "run_id": "text",
    },
    "journal": {
        "id": "bigint",
        "at": "timestamp with time zone",
        "event": "text",
        "version": "bigint",
        "name": "text",
        "checksum": "text",
        "checksum_before": "text",
        "run_id": "text",
        "host": "text",
        "role": "text",
        "duration_ms": "bigint",
        "backup": "text",
        "sqlstate": "text",
        "error": "text",
        "tool_version": "text",
    },
    "wraps": {
        "id": "bigint",
        "key": "text",
        "command": "text",
        "watched": "text",
        "at": "timestamp with time zone",
        "duration_ms": "bigint",
        "backup": "text",
        "run_id": "text",
        "tool_version": "text",
    },
}
LATER = {"wraps"}  # made when it is first needed; without it the others are whole
# what tables of an older version lack: added when we write, and read where it is there
ADDED: dict[str, dict[str, str]] = {
    "migrations": {"verify_sql": "text", "export_sql": "text"},
    "journal": {},
    "wraps": {},
}
# what only a history has that was taken over, or is of a folder whose versions are text
OPTIONAL: dict[str, dict[str, str]] = {
    "migrations": {"label": "text"},
    "journal": {},
    "wraps": {},
}
PUBLIC = ("version", "name", "checksum", "state", "breaking")  # what everybody may read
WRAPS_PUBLIC = ("id", "key")
GIVEN = {  # what every row of ours brings along; all else has a default, or may be null
    "migrations": {
        "version", "name", "checksum", "state", "how", "up_sql", "tool_version", "run_id",
    },
    "journal": {"event", "version", "name", "run_id", "host", "tool_version"},
    "wraps": {"key", "command", "watched", "run_id", "tool_version"},
}  # fmt: skip
_KINDS = {
    "v": "a view", "m": "a materialized view", "S": "a sequence", "p": "a partitioned table",
    "f": "a foreign table", "i": "an index", "I": "an index", "c": "a type",
}  # fmt: skip

# A superuser has every role's rights, so of him membership says nothing: he believes who could act
# as the database's owner. A schema is `vouched` for when its owner could, or may make none himself.
# Before PostgreSQL 15 a role can make anybody its member by itself: such a membership is no trust.
_LOOK = """
WITH RECURSIVE granted(role) AS (
 SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname IN (current_user, 'pg_database_owner')
 UNION SELECT m.roleid FROM granted g JOIN pg_catalog.pg_auth_members m ON m.member = g.role
 WHERE m.grantor <> m.roleid
)
SELECT n.oid::int8 AS place, beside.*,
 pg_catalog.pg_get_userbyid(n.nspowner)::text AS schema_owner,
 vouched.schema OR NOT us.super AND pg_catalog.pg_has_role(n.nspowner, 'MEMBER')
  AND n.nspowner IN (SELECT g.role FROM granted g) AS schema_believed,
 pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create,
 c.relname::text AS relation, c.relkind::text AS kind,
 pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
 CASE WHEN us.super THEN vouched.owner ELSE pg_catalog.pg_has_role(c.relowner, 'USAGE')
  AND (vouched.owner OR c.relowner IN (SELECT g.role FROM granted g)) END AS ours,
 vouched.owner OR NOT us.super AND pg_catalog.pg_has_role(c.relowner, 'MEMBER')
  AND c.relowner IN (SELECT g.role FROM granted g)
  OR vouched.schema AND NOT pg_catalog.has_schema_privilege('public', n.oid, 'CREATE') AS believed,
 c.relrowsecurity AS row_security,
 EXISTS (SELECT FROM pg_catalog.pg_rewrite w WHERE w.ev_class = c.oid) AS rules,
 EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) AS children,
 EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
  WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
   AND NOT pg_catalog.pg_has_role(p.proowner, c.relowner, 'USAGE')
   AND NOT pg_catalog.pg_has_role(p.proowner, d.datdba, 'USAGE')) AS triggers,
 pg_catalog.has_table_privilege(c.oid, 'SELECT')
  AND pg_catalog.has_table_privilege(c.oid, 'INSERT') AND (c.relname <> 'migrations'
  OR pg_catalog.has_table_privilege(c.oid, 'UPDATE')
   AND pg_catalog.has_table_privilege(c.oid, 'DELETE')) AS writable,
 c.relname <> 'migrations' OR EXISTS (SELECT FROM pg_catalog.pg_index k
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.indkey[0]
  WHERE k.indrelid = c.oid AND k.indisunique AND k.indimmediate AND k.indisvalid
   AND k.indnkeyatts = 1 AND k.indpred IS NULL AND a.attname = 'version') AS keyed,
 ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
   AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '') AS needed,
 ARRAY(SELECT a.attname::text || ' ' || CASE a.attgenerated WHEN '' THEN '' ELSE 'generated ' END
   || pg_catalog.format_type(a.atttypid, NULL)
  FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_catalog.pg_namespace n
JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
LEFT JOIN pg_catalog.pg_class c
 ON c.relnamespace = n.oid AND c.relname IN ('migrations', 'journal', 'wraps')
CROSS JOIN LATERAL (SELECT pg_catalog.pg_has_role(c.relowner, d.datdba, 'USAGE') AS owner,
 pg_catalog.pg_has_role(n.nspowner, d.datdba, 'USAGE')
  OR pg_catalog.pg_get_userbyid(n.nspowner) = 'pg_database_owner'
  OR NOT pg_catalog.has_database_privilege(n.nspowner, d.oid, 'CREATE') AS schema) vouched
CROSS JOIN LATERAL (SELECT pg_catalog.current_setting('is_superuser') = 'on' AS super) us
CROSS JOIN LATERAL (SELECT pg_catalog.count(*) FILTER (WHERE t.relname = 'takeovers') AS taken_over,
 pg_catalog.count(*) FILTER (WHERE t.relname = 'repeatables') AS repeats,
 pg_catalog.min(t.relname::text) FILTER (WHERE t.relkind <> 'r' OR t.relrowsecurity
  OR EXISTS (SELECT FROM pg_catalog.pg_rewrite w WHERE w.ev_class = t.oid)
  OR EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = t.oid)
  OR EXISTS (SELECT FROM pg_catalog.pg_attribute a
   WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
   AND pg_catalog.format_type(a.atttypid, NULL)
    NOT IN ('text', 'bigint', 'timestamp with time zone'))
  OR EXISTS (SELECT FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
   WHERE g.tgrelid = t.oid AND NOT g.tgisinternal
    AND NOT pg_catalog.pg_has_role(p.proowner, t.relowner, 'USAGE')
    AND NOT pg_catalog.pg_has_role(p.proowner, d.datdba, 'USAGE'))) AS odd,
 pg_catalog.min(pg_catalog.pg_get_userbyid(t.relowner)::text) FILTER (WHERE NOT (
  pg_catalog.pg_has_role(t.relowner, d.datdba, 'USAGE')
  OR NOT us.super AND pg_catalog.pg_has_role(t.relowner, 'MEMBER')
   AND t.relowner IN (SELECT g.role FROM granted g)
  OR vouched.schema AND NOT pg_catalog.has_schema_privilege('public', n.oid, 'CREATE'))) AS theirs
 FROM pg_catalog.pg_class t
 WHERE t.relnamespace = n.oid AND t.relname IN ('takeovers', 'repeatables')) beside
WHERE n.nspname = '{schema}'
"""
HOW = """how OPERATOR(pg_catalog.=)
   ANY (ARRAY['applied', 'adopted', 'forced', 'taken_over']::pg_catalog.text[])"""
# what anybody but the owner may do with them beyond what everybody may; grants to the owner's own
# members are no exception
_GRANTS = """
SELECT DISTINCT CASE given.grantee WHEN 0::oid THEN 'PUBLIC'
 ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(given.grantee)::text) END
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
 SELECT a.* FROM pg_catalog.aclexplode(c.relacl) a
 UNION ALL SELECT a.* FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a
  WHERE t.attrelid = c.oid AND NOT (a.privilege_type = 'SELECT' AND NOT a.is_grantable
   AND (c.relname = 'migrations' AND t.attname IN ({public})
    OR c.relname = 'wraps' AND t.attname IN ({wraps})))
) given
WHERE n.nspname = '{schema}' AND given.grantee <> c.relowner
 AND (c.relname IN ('migrations', 'journal', 'wraps') OR c.relkind = 'S' AND EXISTS (
  SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class j ON j.oid = d.refobjid
  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i'
   AND d.refclassid = 'pg_catalog.pg_class'::regclass AND j.relname IN ('journal', 'wraps')
   AND j.relnamespace = c.relnamespace))
ORDER BY 1
"""
_SCHEMA_GRANTS = """
SELECT DISTINCT CASE a.grantee WHEN 0::oid THEN 'PUBLIC'
 ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)::text) END
FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a
WHERE n.nspname = '{schema}' AND a.grantee <> n.nspowner
"""
_GIVEN = """
SELECT DISTINCT CASE a.grantee WHEN 0::oid THEN 'PUBLIC'
 ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)::text) END
FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
WHERE c.oid = %s::pg_catalog.regclass AND a.grantee <> c.relowner
"""
Rows = Sequence[Mapping[str, Any]]


def look(session: Session) -> str:
    """Return the query that tells what is there, beside the server's facts.

    A row a table; or one for the schema alone, or for nothing (`place` is None).
    """
    return _query(session, "")


def look_strictly(session: Session) -> str:
    """Return the same query for what nobody may take for ours: it divides by zero there.

    So that what stands behind it in the same message is not even planned.
    """
    believed = "true" if session.copy else "t.believed AND t.schema_believed"
    sound = f"t.kind = 'r' AND {believed} AND NOT (t.row_security OR t.rules OR t.children)"
    return _query(session, f", 1 / CASE WHEN {sound} THEN 1 ELSE 0 END AS sound")


def _query(session: Session, more: str) -> str:
    there = _LOOK.format(schema=session.config.schema)
    one = "(SELECT 1) AS one"
    return f"SELECT {sessions.FACTS}, t.*{more} FROM {one} LEFT JOIN ({there}) AS t ON true"  # noqa: S608


def unlocked(
    session: Session,
    what: str,
    names: Sequence[str],
    look: Callable[[], T],
    until: float | None = None,
) -> T:
    """Return what a look at tables gives once nobody holds them against readers.

    Raises DatabaseBusy at `until`; where that is not said, after LOCK_RETRY_S.
    """
    return once_free(session, look, lambda _: Held(what, names), until)


_ALONE = "needs_it_alone"  # what an error says of a statement for which readers have to wait


@dataclass(frozen=True, slots=True)
class Held:
    """What a look did not come by: as a sentence has it, the tables, and its place in a file."""

    what: str
    names: Sequence[str]
    place: Mapping[str, Any] = field(default_factory=dict[str, Any])
    left: str = ""  # what the look that gave up leaves


def once_free(
    session: Session,
    look: Callable[[], T],
    of: Callable[[psycopg.Error], Held],
    until: float | None = None,
) -> T:
    """Return what a look gives, taken again while another session is in the way, as `unlocked`.

    `of` tells what the look did not come by.
    """
    began = time.monotonic()
    last = began + session.config.lock_retry_s if until is None else until
    for again in stop.looks(0.1, 1.0):
        try:
            return look()
        except psycopg.OperationalError as error:
            if session.lost or not sessions.passing(error):
                raise
            held = of(error)
            alone = vars(error).get(_ALONE, False)
            blockers = _holding(
                session, held.names, "ACCESS EXCLUSIVE" if alone else "ACCESS SHARE"
            )
            if (now := time.monotonic()) >= last:
                longer = "LOCK_RETRY_S" if until is None else "WAIT_TIMEOUT_S"
                raise _held(held, now - began, blockers, longer, error) from error
            if not again:
                blocked_by = [each.data() for each in blockers]
                reason = f"{held.what} is {'in use, and is to be changed' if alone else 'locked'}"
                structlog.get_logger().info("server.waiting", reason=reason, blocked_by=blocked_by)
    raise AssertionError  # looks() does not end


def _holding(session: Session, names: Sequence[str], mode: str) -> list[Blocker]:
    """Return who holds these tables, or what is read along with them, against a lock."""
    from preflight.server import watch  # noqa: PLC0415 -- only then

    def find() -> list[Blocker]:
        return watch.in_the_way(session, names, mode)

    def look() -> list[Blocker]:
        with session.looking():
            session.execute(session.beginning)
            return find()

    inside = session.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    return find() if inside else session.again(look)


def _held(
    held: Held, waited_s: float, blockers: Sequence[Blocker], longer: str, error: psycopg.Error
) -> DatabaseBusy:
    from preflight.server import watch  # noqa: PLC0415 -- only then

    said = f"blocked by {watch.named(blockers)}" if blockers else error.diag.message_primary
    ending = watch.ending(blockers)
    again = f"Run again when it is done, {ending}, or raise PREFLIGHT_{longer}."
    return DatabaseBusy(
        "database.busy",
        f"{held.what} cannot {'be changed' if vars(error).get(_ALONE) else 'be read'} after "
        f"{waited_s:.0f} s: {said or error}",
        f"{held.left} {again}".strip(),
        sqlstate=error.sqlstate,
        **held.place,
    )


def unlocked_ours(session: Session, look: Callable[[], T], until: float | None) -> T:
    """Return what a look at our own tables gives, as `unlocked` does."""
    return unlocked(session, *ours(session), look, until)


def ours(session: Session) -> tuple[str, list[str]]:
    """Return what our own tables are together, and their names."""
    schema = session.config.schema
    names = [f"{schema}.{name}" for name in (*COLUMNS, "repeatables", "takeovers")]
    return f"the history in the schema {schema}", names


def present(rows: Rows) -> bool:
    """Tell whether there is anything called as our tables are."""
    return rows[0]["relation"] is not None


def wraps_present(rows: Rows) -> bool:
    """Tell whether there is anything called as our table of wrapped commands is."""
    return any(row["relation"] == "wraps" for row in rows)


def damaged(session: Session, what: str) -> HistoryConflict:
    """Return the failure for tables that are not as we made them."""
    return HistoryConflict(
        "history.damaged",
        f"the tables in schema {session.config.schema} are not ours as we made them: {what}",
        "Was the schema made by another tool, or changed by hand? Choose another PREFLIGHT_SCHEMA, "
        "or restore the tables from a backup.",
    )


def require(session: Session, rows: Rows) -> None:
    """Make sure that both tables may be read and believed; raises HistoryConflict."""
    for row in rows:
        name = row["relation"]
        if row["kind"] != "r":
            raise damaged(session, f"{name} is {_KINDS.get(row['kind'], 'something else')}")
        if not session.copy and not (row["believed"] and row["schema_believed"]):
            raise _foreign(session, row["owner"] if row["schema_believed"] else row["schema_owner"])
        if row["row_security"]:
            raise HistoryConflict(
                "history.not_readable",
                f"row security is on for the history's table {name}: rows that it hides would be "
                "taken for files that were never applied",
                f"ALTER TABLE {session.config.schema}.{name} DISABLE ROW LEVEL SECURITY.",
            )
        if row["rules"] or row["children"]:
            what = "a rule" if row["rules"] else "another table that inherits from it"
            raise damaged(session, f"{name} has {what}")
        _require_columns(session, name, row["columns"])
        if not row["keyed"]:
            raise damaged(session, f"{name} has no primary key on version")
        if bare := set(row["needed"]) - GIVEN[name]:
            raise damaged(session, f"{name} has no default for {', '.join(sorted(bare))}")
    if (
        gone := COLUMNS.keys() - LATER - {row["relation"] for row in rows}
    ):  # to run all again is a guess
        there = {row["relation"] for row in rows}
        raise damaged(
            session,
            f"the table {' and '.join(sorted(gone))} is gone, but {' and '.join(sorted(there))} "
            "is there",
        )
    _require_beside(session, rows)


def _require_beside(session: Session, rows: Rows) -> None:
    """Make sure that what stands beside the tables may be read and believed, too."""
    if odd := rows[0]["odd"]:
        raise damaged(session, f"{odd} is not the table that we make")
    if rows[0]["theirs"] and not session.copy:
        raise _foreign(session, rows[0]["theirs"])


def _require_columns(session: Session, name: str, found: Sequence[str]) -> None:
    types = dict(column.split(" ", 1) for column in found)
    if gone := COLUMNS[name].keys() - types.keys():
        raise damaged(session, f"{name} has no column {', '.join(sorted(gone))}")
    for column, wanted in COLUMNS[name].items():
        if types[column] != wanted:
            raise damaged(session, f"{name}.{column} is {types[column]}, not {wanted}")
    for column, wanted in (ADDED[name] | OPTIONAL[name]).items():
        if types.get(column, wanted) != wanted:
            raise damaged(session, f"{name}.{column} is {types[column]}, not {wanted}")


def require_ours(session: Session, rows: Rows) -> None:
    """Make sure that both tables are ours to write; raises HistoryConflict."""
    require(session, rows)
    for row in rows:
        if not (row["ours"] or session.copy):
            raise _foreign(session, row["owner"])
        if row["triggers"]:
            raise damaged(session, f"a trigger on {row['relation']} calls a stranger's function")
        if not row["writable"]:
            raise HistoryConflict(
                "history.not_readable",
                f"this role may not read and write the history's table {row['relation']}",
                f"GRANT ALL ON {session.config.schema}.{row['relation']} TO "
                f"{quoting.name(row['owner'])}, its owner.",
                sqlstate="42501",
            )


def complete(session: Session, rows: Rows) -> None:
    """Add the columns that a later version brought; raises SchemaAhead for those of a newer one.

    Call in a transaction, under the lock.
    """
    require_known(rows)
    for row in rows:
        name = row["relation"]
        for column in sorted(ADDED[name].keys() - _columns(row)):
            kind = f"pg_catalog.{ADDED[name][column]}"
            _alter(session, f"{session.config.schema}.{name} ADD COLUMN {column} {kind}")


def _alter(session: Session, change: str) -> None:
    """Change a table of ours: whoever reads it is in the way, too."""
    try:
        define(session, f"ALTER TABLE {change}")
    except psycopg.OperationalError as error:
        vars(error)[_ALONE] = True
        raise


def require_known(rows: Rows) -> None:
    """Make sure that no newer version has made the tables: this one cannot write to them."""
    for row in rows:
        name = row["relation"]
        known = COLUMNS[name] | ADDED[name] | OPTIONAL[name]
        if newer := _columns(row) - known.keys():
            raise SchemaAhead(
                "schema.newer_history",
                f"the history's table {name} has columns that this version does not know: "
                f"{', '.join(sorted(newer))}",
                "A newer pg-preflight has been here: start that version, or a later one. Reading "
                "commands of this one still work.",
            )


def _columns(row: Mapping[str, Any]) -> set[str]:
    return {column.split(" ", 1)[0] for column in row["columns"]}


def require_place(session: Session, rows: Rows) -> None:
    """Make sure that nobody but us can take away what is made in the schema."""
    if rows[0]["schema_believed"] is False:
        raise _foreign(session, rows[0]["schema_owner"])
    _require_beside(session, rows)


# whether a role may be taken on by who is logged in; and who that is, with or without INHERIT
_TAKES_ON = """SELECT session_user::pg_catalog.text AS login, r.rolinherit AS inherits,
 pg_catalog.pg_has_role(session_user, {owner}, '{right}') AS takes_on
 FROM pg_catalog.pg_roles r
 WHERE r.rolname OPERATOR(pg_catalog.=) session_user"""
# of a superuser's history: first the schema, then its tables, with which their sequences go
_MOVES = """SELECT pg_catalog.format('ALTER %s OWNER TO %I', said.what, session_user) AS said
FROM pg_catalog.pg_roles r CROSS JOIN (
 SELECT 0 AS place, pg_catalog.format('SCHEMA %I', n.nspname) AS what
 FROM pg_catalog.pg_namespace n WHERE n.nspname = {schema}
 UNION ALL SELECT 1, pg_catalog.format('TABLE %I.%I', n.nspname, c.relname)
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = {schema} AND c.relkind = 'r'
) said WHERE r.rolname = {owner} AND r.rolsuper ORDER BY said.place, said.what"""
INHERITS_EACH = 16  # major version: since then each membership says whether it is inherited


def _foreign(session: Session, owner: str) -> HistoryConflict:
    schema = session.config.schema
    if moves := _moves(session, owner):
        return HistoryConflict(
            "history.owner",
            f"the history belongs to role {owner!r}, a superuser, and this role is none of it",
            f"Was the database restored as {owner!r}? Then give its history to the role that "
            f"migrates: {moves} Or run as {owner!r}, or choose another PREFLIGHT_SCHEMA.",
        )
    return HistoryConflict(
        "history.owner",
        f"the history belongs to role {owner!r}, of which this role is no member (with INHERIT)",
        f"Does {owner!r} migrate this database? Run as that role, {_as_owner(session, owner)}; or "
        f"let a superuser vouch for it to all that only read: ALTER SCHEMA {schema} OWNER TO the "
        f"database's owner, and GRANT CREATE ON SCHEMA {schema} TO {quoting.name(owner)}, which "
        "goes on making tables there. Else choose another PREFLIGHT_SCHEMA.",
    )


def _moves(session: Session, owner: str) -> str:
    """Return what gives a superuser's history to this role; nobody is to be made its member."""
    given = {"owner": quoting.literal(owner), "schema": quoting.literal(session.config.schema)}
    with suppress(psycopg.Error):
        said = [row["said"] for row in session.rows(_MOVES.format(**given))]
        return f"{'; '.join(said)}." if said else ""
    return ""


def _as_owner(session: Session, owner: str) -> str:
    """Say how to run as the history's owner, or to have its rights."""
    since = session.connection.info.server_version >= INHERITS_EACH * 10000
    right = "SET" if since else "MEMBER"
    query = _TAKES_ON.format(owner=quoting.literal(owner), right=right)
    rows: list[dict[str, Any]] = []
    with suppress(psycopg.Error):
        rows = session.rows(query)
    if not rows:
        return "or GRANT it to this one"
    login, role = quoting.name(rows[0]["login"]), quoting.name(owner)
    if rows[0]["takes_on"]:
        options = shlex.quote(sessions.option("role", owner))
        always = f"ALTER ROLE {login} SET role = {quoting.literal(owner)}"
        return f"which this one may: PGOPTIONS={options}, or for good {always}"
    if since:
        return f"or GRANT {role} TO {login} WITH INHERIT TRUE"
    lacks = "" if rows[0]["inherits"] else f", and ALTER ROLE {login} INHERIT"
    return f"or GRANT {role} TO {login}{lacks}"


def define(session: Session, statements: str) -> None:
    """Make or change what is ours, under the role's own search_path; call in a transaction.

    The database's event triggers fire for it, and what they name without a schema is meant by that
    path, as where they fire for a file. So all that stands in it is to be said with its schema:
    types and operators, too.
    """
    session.execute(f"{session.path('SET LOCAL')}; {statements}; SET LOCAL {sessions.PATH}")


def close_schema(session: Session) -> None:
    """Undo what default privileges gave away, or took from us, of a schema that was just made."""
    schema = session.config.schema
    define(session, f"GRANT ALL ON SCHEMA {schema} TO CURRENT_USER")
    for (whom,) in session.execute(_SCHEMA_GRANTS.format(schema=schema)).fetchall():
        define(session, f"REVOKE ALL ON SCHEMA {schema} FROM {whom} CASCADE")


def keep(session: Session) -> None:
    """Say our own rights on the tables that were just made, whatever a default takes from us."""
    names = _there(session)
    define(session, f"GRANT ALL ON {', '.join(names)} TO CURRENT_USER")
    for sequence in _sequences(session, names):
        define(session, f"GRANT ALL ON SEQUENCE {sequence} TO CURRENT_USER")


def there(session: Session, name: str) -> bool:
    """Tell whether our schema has a relation of that name."""
    row = session.execute(
        """SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
 ON n.oid = c.relnamespace WHERE n.nspname = %s::name AND c.relname = %s::name)""",
        [session.config.schema, name],
    ).fetchone()
    return bool(row and row[0])


def add(session: Session, name: str, form: str, columns: str) -> None:
    """Make a table beside the history where there is none; everybody may read `columns` of it.

    Call in a transaction, under the lock.
    """
    if there(session, name):
        return
    define(session, form.format(schema=session.config.schema))
    table = f"{session.config.schema}.{name}"
    define(session, f"GRANT ALL ON {table} TO CURRENT_USER")
    for (whom,) in session.execute(_GIVEN, [table]).fetchall():
        define(session, f"REVOKE ALL ON {table} FROM {whom} CASCADE")
    define(session, f"GRANT SELECT ({columns}) ON {table} TO PUBLIC")


def widen(session: Session, name: str, column: str, kind: str) -> None:
    """Add a column to a table of ours where it lacks that; everybody may read it."""
    table = f"{session.config.schema}.{name}"
    query = """SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = %s::pg_catalog.regclass AND a.attname = %s AND NOT a.attisdropped)"""
    (row,) = session.execute(query, [table, column]).fetchall()
    if not row[0]:
        _alter(session, f"{table} ADD COLUMN {column} {kind}")
        define(session, f"GRANT SELECT ({column}) ON {table} TO PUBLIC")


def _there(session: Session) -> list[str]:
    """Return which tables of ours are there, with their schema."""
    names = [f"{session.config.schema}.{name}" for name in COLUMNS]
    found = session.execute(
        "SELECT t FROM pg_catalog.unnest(%s::text[]) t WHERE pg_catalog.to_regclass(t) IS NOT NULL",
        [names],
    ).fetchall()
    return [name for (name,) in found]


def _sequences(session: Session, names: Sequence[str]) -> list[str]:
    counted = [name for name in names if not name.endswith(".migrations")]
    found = session.execute(
        "SELECT pg_catalog.pg_get_serial_sequence(t, 'id') FROM pg_catalog.unnest(%s::text[]) t",
        [counted],
    ).fetchall()
    return [name for (name,) in found if name]


def close(session: Session) -> list[str]:
    """Take back what default privileges gave away of the tables; return from whom, quoted.

    Call in a transaction, under the lock.
    """
    schema = session.config.schema
    public, wraps = (
        ", ".join(map(quoting.literal, each))
        for each in ((*PUBLIC, *OPTIONAL["migrations"]), WRAPS_PUBLIC)
    )
    query = _GRANTS.format(schema=schema, public=public, wraps=wraps)
    found = [whom for (whom,) in session.execute(query).fetchall()]
    if found:
        names, whom = _there(session), ", ".join(found)
        define(session, f"REVOKE ALL ON {', '.join(names)} FROM {whom} CASCADE")
        for sequence in _sequences(session, names):
            define(session, f"REVOKE ALL ON SEQUENCE {sequence} FROM {whom} CASCADE")
        rows = session.rows(look(session))
        open_to_all = (("migrations", open_columns(rows)), ("wraps", WRAPS_PUBLIC))
        for name, columns in open_to_all:
            if f"{schema}.{name}" in names:
                define(session, f"GRANT SELECT ({', '.join(columns)}) ON {schema}.{name} TO PUBLIC")
    return found


def open_columns(rows: Rows) -> tuple[str, ...]:
    """Return the columns of the migrations that everybody may read."""
    labelled = any("label" in _columns(row) for row in rows if row["relation"] == "migrations")
    return (*PUBLIC, *(OPTIONAL["migrations"] if labelled else ()))


def labelled(session: Session) -> None:
    """Make room for versions that are text, where there is none; call as `complete`."""
    widen(session, "migrations", "label", "pg_catalog.text UNIQUE")


def ready_to_take_over(session: Session) -> None:
    """Let the history say `taken_over`, which that of an older version does not know."""
    _alter(
        session,
        f"""{session.config.schema}.migrations
 DROP CONSTRAINT IF EXISTS migrations_how_check, ADD CONSTRAINT migrations_how_check
 CHECK ({HOW})""",
    )


def tell_closed(session: Session, found: Sequence[str]) -> None:
    """Say whose rights were taken back; call after the COMMIT, before which it is not true."""
    if found:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"rights on the history in schema {session.config.schema} were taken back from "
            f"{', '.join(found)}: nobody but its owner may do more than read what everybody may",
        )
