"""Other tools' history tables: known by name and columns, looked for, read, never written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from preflight.base import quoting
from preflight.base.errors import ConfigInvalid, TargetUnusable

if TYPE_CHECKING:
    from preflight.server.sessions import Session

# by name, the columns that tell it from an app's own table of that name; any one set of them
KNOWN: dict[str, tuple[frozenset[str], ...]] = {
    name: tuple(frozenset(columns.split()) for columns in each)
    for name, *each in (
        ("alembic_version", "version_num"),
        ("django_migrations", "app name applied"),
        ("flyway_schema_history", "installed_rank version checksum success"),
        ("schema_version", "installed_rank version checksum success", "version"),
        ("goose_db_version", "version_id is_applied"),
        ("schema_migrations", "version"),
        ("pgmigrations", "name run_on"),
        ("knex_migrations", "name batch migration_time"),
        ("_prisma_migrations", "id checksum migration_name"),
        ("__EFMigrationsHistory", "MigrationId ProductVersion"),
        ("_sqlx_migrations", "version checksum success"),
        ("databasechangelog", "id author filename"),
        ("refinery_schema_history", "version name checksum"),
        (
            "migrations",
            *("id timestamp name", "id migration batch"),  # TypeORM, Laravel
            *("hash previous_hash filename", "id name run_on"),  # graphile-migrate, db-migrate
        ),
        ("changes", "change_id script_hash change project"),  # sqitch
        ("SequelizeMeta", "name"),
        ("mikro_orm_migrations", "name executed_at"),
        ("kysely_migration", "name timestamp"),
        ("__drizzle_migrations", "hash created_at"),
        ("__diesel_schema_migrations", "version run_on"),
        ("seaql_migrations", "version applied_at"),
        ("_yoyo_migration", "migration_hash migration_id"),
        ("phinxlog", "version migration_name"),
        ("doctrine_migration_versions", "version executed_at"),
        ("gorp_migrations", "id applied_at"),
        ("bun_migrations", "name group_id migrated_at"),
        ("atlas_schema_revisions", "version applied hash"),
        ("aerich", "version app content"),
        ("adonis_schema", "name batch"),
        ("schemaversions", "scriptname applied"),
        ("VersionInfo", "Version AppliedOn"),
        ("play_evolutions", "id hash apply_script"),
        ("migrate_version", "repository_id version"),
    )
}
# what tools keep beside it: they lock by a row, and note each of their runs
BESIDE = {
    *("_yoyo_log", "_yoyo_version", "yoyo_lock", "knex_migrations_lock", "databasechangeloglock"),
    *("kysely_migration_lock", "bun_migration_locks", "ar_internal_metadata", "migrations_lock"),
}
# first those where the command's URL says, then those on the role's own search_path; a schema that
# only the command knows comes after them
_FOUND = """
WITH path AS (
 SELECT pg_catalog.btrim(p.p, ' "') AS name FROM pg_catalog.pg_settings s,
  pg_catalog.unnest(pg_catalog.string_to_array(s.reset_val, ',')) p
 WHERE s.name = 'search_path'
)
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, n.nspname::text AS place,
 c.relname::text AS relation,
 c.oid::pg_catalog.int8 AS oid,
 n.nspname::text IN (SELECT CASE p.name WHEN '$user' THEN current_user::text ELSE p.name END
  FROM path p) AS on_path,
 ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> '{schema}'
 AND n.nspname::text NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND {which}
ORDER BY 1
"""
# however this role's settings print a time or a number, a row is printed in one way
_PLAIN = (
    "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres';"
    " SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1"
)
# `t` alone would be a column of that name, where there is one
_ROWS = """
SELECT '{name}:' || coalesce(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
 pg_catalog.string_agg((t.*)::text, E'\\n' ORDER BY (t.*)::text COLLATE "C"),
 pg_catalog.getdatabaseencoding()::name)), 'hex'), '') AS digest FROM {table} t
"""

# what this role lacks to read a table, as SQL that gives it; or that row security keeps rows back
_LACKED = """
SELECT pg_catalog.concat_ws('; ',
 CASE WHEN NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  THEN pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, current_user) END,
 CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')
  THEN pg_catalog.format('GRANT SELECT ON %I.%I TO %I', n.nspname, c.relname, current_user)
  WHEN c.relrowsecurity
  THEN pg_catalog.format('ALTER TABLE %I.%I DISABLE ROW LEVEL SECURITY', n.nspname, c.relname) END
) AS remedy
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid::pg_catalog.int8 IN ({oids}) ORDER BY n.nspname, c.relname
"""
_IDENTIFIER = r'"(?:[^"]|"")+"|[A-Za-z_][\w$]*'
_NAME = re.compile(rf"(?:({_IDENTIFIER})\.)?({_IDENTIFIER})")


@dataclass(frozen=True, slots=True)
class Table:
    """A tool's history table: its quoted name, its schema, and its oid."""

    name: str
    schema: str
    oid: int


def history(session: Session, named: str | None = None) -> list[Table]:
    """Return the history tables that are there: those known by name, or the one that was named.

    Raises ConfigInvalid where `named` is no name of a table.
    """
    which = _one_of("c.relname", KNOWN)
    if named is not None:
        schemas, relations = parts(named)
        which = _one_of("c.relname", relations)
        which += f" AND {_one_of('n.nspname', schemas)}" if schemas else ""
    rows = session.ask(_FOUND.format(schema=session.config.schema, which=which))
    if named is None:
        rows = [row for row in rows if known(row["relation"], row["columns"])]
    said = [row for row in rows if row["place"] in session.config.near]
    near = said or [row for row in rows if row["on_path"]]
    return [Table(row["name"], row["place"], row["oid"]) for row in near or rows]


def _one_of(column: str, names: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(map(quoting.literal, names))})"


def known(relation: str, columns: Sequence[str]) -> bool:
    """Tell whether a table of that name has a history's columns, whichever the tool's version."""
    return any(wanted <= set(columns) for wanted in KNOWN.get(relation, ()))


def own(relation: str) -> bool:
    """Tell whether a table's name is one that only a tool's own table has."""
    return relation in BESIDE


def rows(session: Session, tables: Sequence[Table]) -> list[str]:
    """Return a digest of the rows of each table, which says its name, too.

    Raises TargetUnusable where this role may not read them.
    """
    if not tables:
        return []
    query = " UNION ALL ".join(
        _ROWS.format(name=table.name.replace("'", "''"), table=table.name) for table in tables
    )
    try:
        return [row["digest"] for row in session.ask(f"{_PLAIN}; {query}")]
    except psycopg.errors.InsufficientPrivilege as error:
        lacked = session.ask(_LACKED.format(oids=", ".join(str(table.oid) for table in tables)))
        remedies = "; ".join(filter(None, (row["remedy"] for row in lacked)))
        if not remedies:
            raise
        raise TargetUnusable(
            "wrap.history_not_readable",
            "this role may not read the history of the command's tool, which tells whether there "
            f"is anything to do: {error.diag.message_primary or error}",
            f"{remedies}; as the role whose table that is. Then run again.",
            sqlstate=error.sqlstate,
        ) from error


def parts(name: str) -> tuple[list[str], list[str]]:
    """Return how schema and table may be called that a name as in SQL means; ConfigInvalid.

    A name without quotes also means itself: who types it in a shell has none left.
    """
    found = _NAME.fullmatch(name.strip())
    if not found:
        raise ConfigInvalid(
            "wrap.history",
            f"--history {name!r} is not the name of a table",
            'Write it as SQL does: schema_migrations, app.history, app."History".',
        )
    return _called(found[1]), _called(found[2])


def _called(part: str | None) -> list[str]:
    if part is None:
        return []
    if part.startswith('"'):
        return [part[1:-1].replace('""', '"')]
    return sorted({part, part.lower()})


def lock(session: Session, tables: Sequence[Table]) -> None:
    """Keep writers from history tables until the transaction ends; readers are not disturbed.

    Raises what the server says: psycopg.Error.
    """
    names = ", ".join(table.name for table in tables)
    session.execute(f"LOCK TABLE {names} IN SHARE MODE")
