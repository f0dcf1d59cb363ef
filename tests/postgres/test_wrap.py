"""Other tools' commands behind the gate: led to a copy, kept off the live database, run once."""

import os
import signal
import stat
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from preflight.wrapping import wall
from tests import program, servers
from tests.conftest import Run, Start

TOOL = '''
import json, os, sys, time
import psycopg

def address():
    return os.environ["DATABASE_URL"]

def migrations():
    folder = os.path.dirname(os.path.abspath(__file__))
    return sorted(n for n in os.listdir(folder + "/versions") if n.endswith(".sql"))

def run(connection):
    folder = os.path.dirname(os.path.abspath(__file__)) + "/versions/"
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version text PRIMARY KEY)")
    done = {v for (v,) in connection.execute("SELECT version FROM schema_migrations")}
    for name in migrations():
        if name in done:
            continue
        print("applying", name, flush=True)
        with connection.transaction():
            connection.execute(open(folder + name).read())
            connection.execute("INSERT INTO schema_migrations VALUES (%s)", [name])

if __name__ == "__main__":
    print("connecting to", address(), flush=True)
    with psycopg.connect(address(), autocommit=True) as connection:
        run(connection)
'''
GOOD = "ALTER TABLE items ADD COLUMN price int NOT NULL DEFAULT 0; CREATE INDEX ON items (price)"
BREAKS = "ALTER TABLE items ADD CONSTRAINT named CHECK (name <> 'b')"


@pytest.fixture
def app(tmp_path: Path, database: servers.Database) -> Path:
    """Give an app with a small migrator, one migration that has run, and rows."""
    folder = tmp_path / "app"
    (folder / "versions").mkdir(parents=True)
    (folder / "tool.py").write_text(TOOL)
    first = "CREATE TABLE items (id int PRIMARY KEY, name text)"
    (folder / "versions/001.sql").write_text(first)
    database.script(
        f"{first}; INSERT INTO items VALUES (1, 'a'), (2, 'b');"
        "CREATE TABLE schema_migrations (version text PRIMARY KEY);"
        "INSERT INTO schema_migrations VALUES ('001.sql')"
    )
    return folder


@pytest.fixture
def wrapped(
    environment: dict[str, str], database: servers.Database, app: Path
) -> dict[str, str | None]:
    """Give what a wrapped run adds to the environment: a rehearsal, and the address as a URL."""
    del environment["PREFLIGHT_MIGRATIONS_DIR"]
    env = database.env()
    for name in env:
        environment.pop(name, None)
    url = (
        f"postgresql://{env['PGUSER']}:{quote(env['PGPASSWORD'], safe='')}@{env['PGHOST']}:{env['PGPORT']}"
        f"/{database.name}"
    )
    environment |= {"DATABASE_URL": url, "PREFLIGHT_REHEARSE": "auto"}
    return {}


def command(app: Path, *more: str) -> list[str]:
    """Return the arguments that wrap the app's migrator."""
    return ["wrap", "--watch", str(app), *more, "--", sys.executable, str(app / "tool.py")]


def local(tmp_path: Path) -> dict[str, str | None]:
    """Return what has the copy on a throwaway server."""
    place = tmp_path / "scratch"
    place.mkdir(exist_ok=True)
    for each in (place, *place.parents):
        if each.stat().st_uid == os.geteuid():
            each.chmod(each.stat().st_mode | stat.S_IXOTH)
    return {"PREFLIGHT_REHEARSE_ON": "local", "PREFLIGHT_REHEARSE_DIR": str(place)}


def test_command_is_rehearsed_run_and_recorded(
    run: Run, wrapped: dict[str, str | None], app: Path, database: servers.Database
) -> None:
    """The whole way: backup, copy, in earnest, compared; the second start starts nothing."""
    (app / "versions/002.sql").write_text(GOOD)

    first = run(*command(app))
    again = run(*command(app))

    assert 0 == first.code, first
    assert ["net"] == [each["kept_off"] for each in first.event("wrap.redirected")]
    assert [["DATABASE_URL"]] == [each["variables"] for each in first.event("wrap.redirected")]
    (rehearsed,) = first.event("wrap.rehearsed")
    assert "unchanged" == rehearsed["second_run"]
    assert "column public.items.price" in rehearsed["made"]
    assert first.event("wrap.matched"), first
    assert [2] == database.query("SELECT count(*)::int FROM schema_migrations")
    assert "***" in first.event("wrap.said")[0]["text"]
    assert servers.PASSWORD not in first.stdout.replace("PREFLIGHT", "")
    assert 0 == again.code, again
    assert [] == again.event("wrap.said")
