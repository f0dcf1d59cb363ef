"""Poolers whose clients share a session: a lock that another client has, too, is none."""

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from tests import servers
from tests.conftest import Run, WriteMigrations
from tests.faults import pooling
from tests.faults.pooling import Environment, Way

QUICKLY = {"PREFLIGHT_BACKUP": "off"}
ONE = {"001_one.sql": "CREATE TABLE one (id int);"}
PID, LOCKED = "SELECT pg_backend_pid()", "SELECT pg_try_advisory_lock(7)"
# PgBouncer itself sets the name of a client before his turn
LEFT = """SELECT name FROM pg_settings WHERE source = 'session' AND name <> 'application_name'
UNION ALL SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"""


@contextlib.contextmanager
def client(database: servers.Database, there: Environment) -> Iterator[psycopg.Connection]:
    """Be a client of the pooler, as an app is."""
    where = database.conninfo(port=there["PGPORT"], sslmode="disable", gssencmode="disable")
    with psycopg.connect(where, autocommit=True) as session:
        yield session


def require_only_looked_through(run: Run, database: servers.Database, there: Environment) -> None:
    """Raise AssertionError unless a pooler is only looked through, and stays as it was."""
    looked, refused = run("check", env=there), run(env=there, timeout=20)
    with client(database, there) as app:
        left = [name for (name,) in app.execute(LEFT)]

    error = refused.finished["error"]
    assert 3 == looked.code, str(looked)
    assert (22, "target.pooler") == (refused.code, error["code"]), str(refused)
    assert "directly" in error["hint"]
    assert "server.waiting" not in refused.names
    assert ([None], []) == (database.query("SELECT to_regnamespace('preflight')"), left)


def require_shared(database: servers.Database, there: Environment) -> None:
    """Raise AssertionError unless two clients at once have one process, and so a lock both."""
    with client(database, there) as one, client(database, there) as other:
        pids = [each.execute(PID).fetchone() for each in (one, other)]
        locks = [each.execute(LOCKED).fetchone() for each in (one, other)]
        one.execute("SELECT pg_advisory_unlock_all()")

    assert pids[0] == pids[1]
    assert [(True,), (True,)] == locks


@pytest.mark.fault("A026")
@pytest.mark.parametrize("options", ["ignored", "passed"])
def test_a026_pooler_that_shares_sessions_by_transaction_is_only_looked_through(
    run: Run, database: servers.Database, migrations: WriteMigrations, options: str
) -> None:
    """A lock that another client has, too, is none."""
    migrations(ONE)
    with pooling.pooled(database, Way("transaction", options)) as there:
        require_only_looked_through(run, database, there)
        require_shared(database, there)


@pytest.mark.fault("A026")
def test_a026_pgbouncer_is_only_looked_through(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """By transaction, with one session, and told to ignore what it does not know."""
    migrations(ONE)
    with pooling.pgbouncer(database) as there:
        require_only_looked_through(run, database, there)
        require_shared(database, there)


@pytest.mark.fault("A025")
def test_a025_pooler_that_hands_sessions_on_is_only_looked_through(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A client has it to himself, and then another one; with nothing to do it does not matter."""
    migrations(ONE)
    pids = []
    with pooling.pooled(database, Way("session")) as there:
        require_only_looked_through(run, database, there)
        for _ in range(2):
            with client(database, there) as app:
                pids.append(app.execute(PID).fetchone())
        directly, through = run(env=QUICKLY), run(env=there)

    assert pids[0] == pids[1]
    assert (0, 0) == (directly.code, through.code), str(through)
