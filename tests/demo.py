"""`make demo`: the job at work on a real PostgreSQL, from a database migrated by hand to current.

Everything is made for this and gone afterwards. Ends with 1 when a step did not end as it should.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql

from tests import program, servers

MIGRATIONS = servers.REPOSITORY / "migrations"
ROLE = "unicorn"
PASSWORD = "rainbows and 100% stars"  # noqa: S105 - of a server that lives for a minute
SECRET = "gAAAAABnDemo-not-a-real-key-"  # noqa: S105 - as it says

AS_PRODUCTION_IS: tuple[sql.SQL, ...] = (
    sql.SQL("""
        INSERT INTO user_api_keys (user_id, provider_id, key_name, encrypted_api_key)
        SELECT 'user-' || provider.id, provider.id, 'my ' || display_name, {secret} || provider_slug
        FROM llm_providers AS provider
        WHERE provider_slug IN ('openai', 'anthropic')
    """),
    sql.SQL("CREATE TABLE schema_migrations (version varchar(255) PRIMARY KEY)"),
    sql.SQL("INSERT INTO schema_migrations VALUES ('20250901'), ('20250917'), ('20251002')"),
)


class WentWrong(Exception):
    """A step did not end as it should."""


class Size(NamedTuple):
    """What can be counted about a table."""

    rows: int
    columns: int


# --- for the eye ----------------------------------------------------------------------------------


def _style(code: str, text: str) -> str:
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return text if plain else f"\033[{code}m{text}\033[0m"


def heading(text: str) -> None:
    """Begin a chapter."""
    say("", _style("1;36", text), "")


def say(*lines: str) -> None:
    """Print lines now, before a child process prints its own."""
    for line in lines:
        print(f"  {line}".rstrip())
    sys.stdout.flush()


def _bytes(size: int) -> str:
    return f"{size} B" if size < 1024 else f"{size / 1024:.1f} kB"


# --- the chapters ---------------------------------------------------------------------------------


def main() -> int:
    """Tell the story; return the exit code."""
    started = time.monotonic()
    try:
        with _server() as server, tempfile.TemporaryDirectory(prefix="pg-preflight-") as directory:
            _tell(server, Path(directory))
    except (WentWrong, servers.Unavailable, servers.Broken) as error:
        say("", _style("1;31", f"The demo stopped: {error}"))
        return 1
    except KeyboardInterrupt:
        say("", "Stopped. The server and its files are gone.")
        return 130
    heading(f"Done in {time.monotonic() - started:.0f} s; the server and its files are gone")
    say(
        "On a database of your own (check only reads):",
        "",
        "  export POSTGRES_HOST=… POSTGRES_USER=… POSTGRES_PASSWORD=… POSTGRES_DB=…",
        "  .venv/bin/python entrypoint.py check --table",
        "  PREFLIGHT_BACKUP_DIR=/a/safe/place .venv/bin/python entrypoint.py up",
        "",
        "make test proves what you have just seen; README.md has the rest.",
        "",
    )
    return 0


@contextlib.contextmanager
def _server() -> Iterator[servers.Server]:
    server = servers.start(18)
    try:
        yield server
    finally:
        server.remove()


def _tell(server: servers.Server, directory: Path) -> None:
    database = _as_production_is(server)
    before, keys = _sizes(database), _keys(database)
    _show(before)

    backups = directory / "backups"
    backups.mkdir()
    scratch = directory / "scratch"
    scratch.mkdir()
    for each in (directory, scratch):
        each.chmod(0o711)  # as root the throwaway server is another user's
    environment = _environment(server, backups, scratch)

    heading("2  Bring it up to date")
    _run(environment, "up")
    say(
        "Before the file ran here, the backup was restored on a throwaway server of the job's own,",
        "compared, and the file was tried there, with its way back. Nothing of that copy is left,",
        "and this server had no part in it: no room, no WAL, no right to create a database.",
    )

    heading("3  What is different now")
    _show(_sizes(database), before)
    if keys != _keys(database):
        raise WentWrong("the users' encrypted keys are not what they were")
    say("", f"The {len(keys)} encrypted keys of users are byte for byte what they were.")

    heading("4  What is in the backup directory")
    _list(backups)

    heading("5  Ask whether it is current")
    _run(environment, "check", "--table")

    heading("6  Start again, as every restart of the application does")
    _run(environment, "up")
    say("Nothing was pending: one connection, no lock, no second backup.")
    if len(list(backups.iterdir())) != 1:
        raise WentWrong("there should be exactly one backup")


def _as_production_is(server: servers.Server) -> servers.Database:
    """Make the database of Ops-Center: 001 by hand, keys in use, another tool's table."""
    database = servers.Database(server, "unicorn_db")
    with server.connect() as connection:
        version = connection.info.parameter_status("server_version")
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(ROLE), sql.Literal(PASSWORD)
            )
        )
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(database.name), sql.Identifier(ROLE)
            )
        )
    heading("1  A database as production has it")
    say(
        f"PostgreSQL {version} on {server.host}:{server.port}, made for this demo.",
        "Somebody applied 001_create_llm_tables.sql by hand and kept no record of it.",
        "",
    )
    as_unicorn = database.conninfo(user=ROLE, password=PASSWORD)
    with psycopg.connect(as_unicorn, autocommit=True) as connection:
        connection.execute((MIGRATIONS / "001_create_llm_tables.sql").read_bytes())
        for statement in AS_PRODUCTION_IS:
            connection.execute(statement.format(secret=sql.Literal(SECRET)))
    return database


def _environment(server: servers.Server, backups: Path, scratch: Path) -> dict[str, str]:
    kept = {
        name: os.environ[name] for name in ("NO_COLOR", "TERM", "COLUMNS") if name in os.environ
    }
    return {
        **kept,
        "PATH": os.pathsep.join([str(server.bin), os.defpath]),
        "POSTGRES_HOST": server.host,
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_USER": ROLE,
        "POSTGRES_PASSWORD": PASSWORD,
        "POSTGRES_DB": "unicorn_db",
        "PREFLIGHT_BACKUP_DIR": str(backups),
        "PREFLIGHT_REHEARSE_ON": "local",
        "PREFLIGHT_REHEARSE_DIR": str(scratch),
        "PREFLIGHT_LOG": "console",
    }


def _run(environment: Mapping[str, str], *args: str) -> None:
    """Run the job as anyone would, with its own output, and say how it ended."""
    say(_style("1", f"$ {shlex.join(['entrypoint.py', *args])}"), "")
    started = time.monotonic()
    code = subprocess.run(
        [sys.executable, program.ENTRYPOINT, *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=50,
        check=False,
    ).returncode
    took = time.monotonic() - started
    say("", f"exit code {code} after {took:.2f} s")
    if code != 0:
        raise WentWrong(f"{' '.join(args)} ended with {code}, and should have ended with 0")


def _sizes(database: servers.Database) -> dict[str, Size]:
    """Count rows and columns of each table that is not the server's own."""
    tables = database.query("""
        SELECT table_schema, table_name, count(*)
        FROM information_schema.columns JOIN information_schema.tables
            USING (table_schema, table_name)
        WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
            AND table_type = 'BASE TABLE'
        GROUP BY table_schema, table_name
        ORDER BY table_schema <> 'public', table_schema, table_name
    """)
    sizes = {}
    for schema, table, columns in tables:
        count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table))
        name = table if schema == "public" else f"{schema}.{table}"
        sizes[name] = Size(database.query(count)[0], columns)
    return sizes


def _keys(database: servers.Database) -> list[str]:
    return database.query("SELECT encrypted_api_key FROM user_api_keys ORDER BY id")


def _show(sizes: Mapping[str, Size], before: Mapping[str, Size] | None = None) -> None:
    """Print a line a table, and what has changed in it."""
    say(_style("2", f"{'table':<24}{'rows':>6}{'columns':>10}"))
    for name, size in sizes.items():
        line = f"{name:<24}{size.rows:>6}{size.columns:>10}"
        was = size if before is None else before.get(name)
        if was is None:
            line += "   new: the job's own record"
        elif was != size:
            changes = zip(("rows", "columns"), was, size, strict=True)
            line += "   " + ", ".join(
                f"{new - old:+} {what}" for what, old, new in changes if old != new
            )
        say(line if was == size else _style("32", line))


def _list(backups: Path) -> None:
    """Print what is there, and how far the one backup is verified."""
    for path in sorted(backups.rglob("*")):
        depth = "  " * (len(path.relative_to(backups).parts) - 1)
        if path.is_dir():
            say(f"{depth}{path.name}/")
        else:
            say(f"{depth}{path.name:<20}{_bytes(path.stat().st_size):>10}")
    (manifest,) = backups.glob("*/manifest.json")
    verified = json.loads(manifest.read_bytes())["verified"]
    say("", f"verified: {verified}")
    if verified != "restored":
        raise WentWrong("the backup was not proven")


if __name__ == "__main__":
    sys.exit(main())
