"""Real migrators behind the gate: Knex, node-pg-migrate, Flyway, Rails' ActiveRecord."""

import os
from pathlib import Path

import pytest

from tests import migrators, servers
from tests.conftest import Run


@pytest.fixture(params=migrators.MIGRATORS, ids=lambda each: each.name)
def migrator(request: pytest.FixtureRequest) -> migrators.Migrator:
    """Give a tool, installed."""
    found: migrators.Migrator = request.param
    found.ready(Path("/nowhere"))
    return found


@pytest.fixture
def app(
    tmp_path: Path,
    migrator: migrators.Migrator,
    database: servers.Database,
    environment: dict[str, str],
) -> Path:
    """Give an app with three migrations that have run, and rows."""
    folder = tmp_path / "app"
    for number, statement in enumerate(migrators.STEPS, 1):
        migrator.write(folder, number, statement)
    migrators.apply(migrator, folder, database)
    database.script("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
    for name in (*database.env(), "PREFLIGHT_MIGRATIONS_DIR"):
        environment.pop(name, None)
    environment["DATABASE_URL"] = migrators.url(database)
    environment |= {**migrator.variables(database), "PREFLIGHT_REHEARSE": "auto"}
    environment |= {"LC_ALL": "C.UTF-8"}  # Java reads the password in the locale's letters
    environment["PATH"] = os.pathsep.join([environment["PATH"], os.environ["PATH"]])
    return folder


def wrap(migrator: migrators.Migrator, app: Path) -> list[str]:
    """Return the arguments that wrap it, in the app's folder."""
    there = ["--", "env", "-C", str(app), *migrator.ready(app)]
    return ["wrap", "--watch", str(app / "migrations"), "--lock-timeout", "3s", *there]


def seen(database: servers.Database, migrator: migrators.Migrator) -> list[object]:
    """Return the columns and constraints of the live database, and how many files it has."""
    catalog = database.query(
        "SELECT format('%s.%s', attrelid::regclass, attname) FROM pg_attribute"
        " JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'public'::regnamespace"
        " AND attnum > 0 UNION ALL SELECT conname::text FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace ORDER BY 1"
    )
    return [catalog, database.query(f"SELECT count(*)::int FROM {migrator.history}")]


def test_real_migrator_is_tried_on_the_copy_and_then_run_once(
    run: Run, app: Path, migrator: migrators.Migrator, database: servers.Database
) -> None:
    """A file that breaks on the rows: 27, live untouched. A good one: applied, then nothing."""
    before = seen(database, migrator)
    broken = migrator.write(app, 4, migrators.BREAKS)
    refused = run(*wrap(migrator, app))

    assert 27 == refused.code, refused
    assert "is violated by some row" in refused.finished["error"]["message"]
    assert before == seen(database, migrator)
    assert "named" in str(refused.event("wrap.said"))

    broken.unlink()
    migrator.write(app, 4, migrators.GOOD)
    applied, again = run(*wrap(migrator, app)), run(*wrap(migrator, app))

    assert (0, 0) == (applied.code, again.code), f"{applied}{again}"
    assert applied.event("wrap.matched"), applied
    assert "column public.items.price" in applied.event("wrap.rehearsed")[0]["made"]
    assert "items.price" in str(seen(database, migrator))
    assert ["3s"] == database.query("SELECT DISTINCT price FROM items")
    assert [] == again.event("wrap.said")
    assert [] == again.event("wrap.started")
    assert servers.PASSWORD not in str(applied.event("wrap.said"))
