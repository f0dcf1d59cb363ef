"""Faults while files run: links that crawl, disks that fill, rights that are missing."""

import copy
import itertools
import shutil
import socket
import threading

import pytest

from tests import faults, servers
from tests.conftest import CreateDatabase, Run, StartServer, WriteMigrations

QUICKLY = {"PREFLIGHT_BACKUP": "off"}


@pytest.mark.fault("E109")
def test_e109_file_that_was_corrected_runs(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What failed was never recorded, so it is no edit."""
    migrations({"001_a.sql": "CREATE TABLE a ();\nSELECT 1/0;"})
    failed = run(env=QUICKLY)
    migrations({"001_a.sql": "CREATE TABLE a ();"})
    corrected = run(env=QUICKLY)

    assert (30, 0) == (failed.code, corrected.code), str(corrected)
    assert [1] == database.query("SELECT version FROM preflight.migrations")


class Crawls(faults.Fault):
    """A link with 300 ms there and back, which may lose the packet in the middle of an answer."""

    def __init__(self, one_of: int) -> None:
        """Have logins take their time, and one of so many other round trips."""
        self.one_of, self.numbers = one_of, itertools.count(1)

    def connected(self) -> "Crawls":
        """Count with the others."""
        return copy.copy(self)

    def joined(self, client: socket.socket, upstream: socket.socket) -> None:
        """Know whom the answers are for."""
        del upstream
        self.client = client

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Send the beginning, and keep the rest."""
        slow = kind == b"R" or (kind == b"Z" and next(self.numbers) % self.one_of == 0)
        if not slow:
            return message
        self.client.sendall(message[:3])
        threading.Event().wait(0.3)
        return message[3:]


@pytest.mark.fault("E118")
def test_e118_slow_link_only_takes_longer(
    run: Run, server: servers.Server, database: servers.Database, migrations: WriteMigrations
) -> None:
    """No bound of ours is so short: not for a login, not for the most common start, not for work.

    Each round trip of a start with nothing to do is slow, and one of four while a file runs.
    """
    migrations({"001_a.sql": "CREATE TABLE a (id int);"})
    assert 0 == run(env=QUICKLY).code
    with faults.through(server, Crawls(1)) as proxy:
        idle = run(env={**QUICKLY, **proxy.env()})
    migrations({"002_b.sql": "CREATE TABLE b (id int);"})
    with faults.through(server, Crawls(4)) as proxy:
        result = run(env={**QUICKLY, **proxy.env()})

    assert 0 == idle.code, str(idle)
    assert [] == idle.event("server.waiting")
    assert (0, ["002_b"]) == (result.code, result.finished["applied"]), str(result)
    assert ["b"] == database.query("SELECT to_regclass('b')::text")


@pytest.mark.fault("E123")
def test_e123_full_disk_of_the_server_rolls_the_file_back(
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """The server says 53100; with more room the same file runs."""
    fill = "SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, {}) n"
    server = start_server()
    database = create_database(server, "app")
    try:
        with faults.small_disk(server.home / "disk", 6) as disk:
            shutil.chown(disk, server.home.stat().st_uid, server.home.stat().st_gid)
            with server.connect() as connection:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'".encode())
            there = "CREATE TABLE a TABLESPACE small AS " + fill
            migrations({"001_a.sql": there.format(20_000)})
            full = run(env={**QUICKLY, **database.env()})
            migrations({"001_a.sql": there.format(20)})
            again = run(env={**QUICKLY, **database.env()})
            database.script("DROP TABLE a")
            database.script("DROP TABLESPACE small")
    except PermissionError as error:
        pytest.skip(str(error))

    assert (30, "53100") == (full.code, full.finished["error"]["sqlstate"]), str(full)
    assert 0 == again.code, str(again)


@pytest.mark.fault("E124")
def test_e124_right_that_is_missing_is_told_in_the_servers_words(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """42501, with the file and its line; the file is rolled back."""
    role = f"plain_{database.name}"
    database.script(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; CREATE TABLE theirs (id int);"
        f' GRANT CREATE ON DATABASE "{database.name}" TO {role};'
        f" GRANT CREATE ON SCHEMA public TO {role}"
    )
    migrations({"001_a.sql": "CREATE TABLE a ();\nALTER TABLE theirs ADD COLUMN note text;"})
    env = {**QUICKLY, **database.env(role, "x"), "PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run(env=env)
    left = database.query("SELECT to_regclass('a')")
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    error = result.finished["error"]
    assert (30, "42501") == (result.code, error["sqlstate"]), str(result)
    assert "001_a.sql:2" in error["message"]
    assert "theirs" in error["message"]
    assert [None] == left
