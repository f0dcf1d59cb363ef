"""Others drop things as fast as they can the whole time a run looks at the database."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests import servers
from tests.conftest import Run, WriteMigrations
from tests.fakes import manifest, only

MANY = 1000  # of each kind: there are some left when the run has made its lists
MADE = """
CREATE TABLE stays AS SELECT generate_series(1, 7) AS n;
DO $$ BEGIN FOR i IN 1..{many} LOOP
 EXECUTE format('CREATE TABLE t%s (n int); CREATE SEQUENCE s%s; CREATE VIEW v%s AS SELECT 1;
  CREATE FUNCTION f%s() RETURNS int LANGUAGE sql AS ''SELECT 1''; CREATE TYPE e%s AS ENUM (''a'')',
  i, i, i, i, i);
 PERFORM lo_create(100000 + i);
END LOOP; END $$
"""
DROPPED = (
    "DROP TABLE t{}", "DROP SEQUENCE s{}", "DROP VIEW v{}", "DROP FUNCTION f{}()", "DROP TYPE e{}",
    "SELECT lo_unlink(100000 + {})",
)  # fmt: skip


@contextmanager
def dropping(database: servers.Database, seed: str) -> Iterator[None]:
    """Have each thing dropped, in a transaction of its own, until nothing is left."""
    said = [each.format(number) for each in DROPPED for number in range(1, MANY + 1)]
    random.Random(seed).shuffle(said)  # noqa: S311 - to be repeated

    def drop() -> None:
        with psycopg.connect(database.conninfo(), autocommit=True) as connection:
            for statement in said:
                connection.execute(statement.encode())

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.fault("C057")
@pytest.mark.parametrize("rehearse", ["off", "always"])
def test_what_others_drop_is_nobody_s_lack(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
    rehearse: str,
) -> None:
    """It is no missing right, and no missing object: the backup has what stays."""
    database.script(MADE.format(many=MANY))
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    with dropping(database, rehearse):
        result = run("backup", env={"PREFLIGHT_REHEARSE": rehearse})

    assert 0 == result.code, str(result)
    assert 7 == manifest(only(backup_dir))["rows"]["public.stays"]
