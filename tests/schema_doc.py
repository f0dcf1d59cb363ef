"""`make schema`: write SCHEMA.md, what the migrations make of an empty database."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from tests import program, servers

DOCUMENT = servers.REPOSITORY / "SCHEMA.md"
MIGRATIONS = servers.REPOSITORY / "migrations"
MAJOR = 17

HEAD = """\
# Schema

What the migrations make of an empty database.
Made by `make schema` from the catalog of a real server, after `entrypoint.py up`.
A test fails when it is out of date.
A database that was migrated by hand may hold more than this.
The job's own schema `preflight` is left out.
"""

# of everybody's objects: not the system's, not an extension's, not our own
_THEIRS = """n.nspname NOT IN ('pg_catalog', 'information_schema', 'preflight')
 AND n.nspname NOT LIKE 'pg\\_%' AND NOT EXISTS (
  SELECT FROM pg_depend x WHERE x.objid = o.oid AND x.deptype = 'e')"""
_TABLES = f"""
SELECT o.oid, o.oid::regclass::text COLLATE "C" AS name, obj_description(o.oid, 'pg_class')
FROM pg_class o JOIN pg_namespace n ON n.oid = o.relnamespace
WHERE o.relkind IN ('r', 'p') AND {_THEIRS} ORDER BY 2
"""
_COLUMNS = """
SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod),
 CASE WHEN a.attnotnull THEN 'yes' ELSE '' END, coalesce(pg_get_expr(d.adbin, d.adrelid, true), ''),
 coalesce(col_description(a.attrelid, a.attnum), '')
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum
"""
# PostgreSQL 18 keeps NOT NULL as constraints as well; the columns have said that already
_KEYS = """
SELECT o.conrelid, o.conname, pg_get_constraintdef(o.oid, true)
FROM pg_constraint o WHERE o.contype IN ('p', 'u', 'f', 'c', 'x')
ORDER BY o.conrelid, position(o.contype::text IN 'pufxc'), o.conname COLLATE "C"
"""
_INDEXES = """
SELECT i.indrelid, c.relname,
 regexp_replace(pg_get_indexdef(c.oid, 0, true), '^CREATE (UNIQUE )?INDEX .* USING ', '\\1')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = c.oid AND o.contype <> 'f')
ORDER BY i.indrelid, c.relname COLLATE "C"
"""
_TRIGGERS = """
SELECT t.tgrelid, t.tgname,
 regexp_replace(pg_get_triggerdef(t.oid, true), '^CREATE .*TRIGGER \\S+ ', '')
FROM pg_trigger t WHERE NOT t.tgisinternal ORDER BY t.tgrelid, t.tgname COLLATE "C"
"""
_FUNCTIONS = f"""
SELECT o.oid::regprocedure::text COLLATE "C", pg_get_function_result(o.oid),
 l.lanname, coalesce(obj_description(o.oid, 'pg_proc'), '')
FROM pg_proc o JOIN pg_namespace n ON n.oid = o.pronamespace JOIN pg_language l ON l.oid = o.prolang
WHERE {_THEIRS} ORDER BY 1
"""


def document(database: servers.Database) -> str:
    """Return the text of SCHEMA.md for a database that is up to date."""
    names = database.query("SELECT name FROM preflight.migrations ORDER BY version")
    tables = database.query(_TABLES)
    details = [
        {key: [row[1:] for row in rows] for key, rows in groupby(found, lambda row: row[0])}
        for found in map(database.query, (_COLUMNS, _KEYS, _INDEXES, _TRIGGERS))
    ]
    lines = [HEAD, f"Migrations: {', '.join(f'`{name}`' for name in names)}.", ""]
    for oid, name, comment in tables:
        columns, *rest = (detail.get(oid, []) for detail in details)
        lines += _table(name, comment, columns, rest)
    functions = database.query(_FUNCTIONS)
    if functions:
        heads = ("function", "returns", "language", "comment")
        lines += ["## Functions", "", *_grid(heads, functions, code=2), ""]
    return "\n".join(lines)


def _table(
    name: str, comment: str | None, columns: Sequence[Any], rest: Sequence[Sequence[Any]]
) -> Iterator[str]:
    yield from (f"## {name}", "")
    if comment:
        yield from (comment, "")
    heads = ["column", "type", "not null", "default", "comment"]
    wide = any(column[-1] for column in columns)
    shown = [column if wide else column[:-1] for column in columns]
    yield from _grid(heads if wide else heads[:-1], shown, code=2, code_also=3)
    yield ""
    for title, found in zip(("Keys", "Indexes", "Triggers"), rest, strict=True):
        if found:
            yield from (f"{title}:", "", *(f"- `{each}`: `{what}`" for each, what in found), "")


def _grid(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, code: int, code_also: int | None = None
) -> Iterator[str]:
    """Yield a Markdown table; the first `code` cells of a row, and one more, are code."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        cells = [
            f"`{cell}`" if cell and (at < code or at == code_also) else cell
            for at, cell in enumerate(each.replace("|", "\\|").replace("\n", " ") for each in row)
        ]
        yield "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def main() -> int:
    """Start a server, bring a database up to date, write the file."""
    server = servers.start(MAJOR)
    try:
        with server.connect() as connection:
            connection.execute("CREATE DATABASE unicorn_db")
        database = servers.Database(server, "unicorn_db")
        with tempfile.TemporaryDirectory(prefix="pg-preflight-") as backups:
            done = subprocess.run(
                [sys.executable, program.ENTRYPOINT, "up"],
                env={
                    "PATH": program.path(),
                    "PREFLIGHT_BACKUP_DIR": backups,
                    "PREFLIGHT_LOG": "console",
                    "PREFLIGHT_LOG_LEVEL": "warning",
                    **database.env(),
                },
                stdin=subprocess.DEVNULL,
                check=False,
            )
        if done.returncode == 0:
            DOCUMENT.write_text(document(database), encoding="utf-8")
        return done.returncode
    finally:
        server.remove()


if __name__ == "__main__":
    sys.exit(main())
