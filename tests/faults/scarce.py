"""Scarcity: what a bare pg_dump can dump and a bare pg_restore fill, the program saves and proves.

A server has as little as PostgreSQL takes of what sessions share, and a stranger holds as many of
its locks as a bare pg_dump of the same role, beside sessions as the program has them, can just do
without. That is asked anew before anything is called wrong; where no dump passes the case says
nothing.
"""

import contextlib
import functools
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests import program, servers

# What a server may be short of: the least that each version takes, and a little more.
SHARED: dict[str, Sequence[str | int]] = {
    "max_locks_per_transaction": (10, 16, 40),
    "max_connections": (8, 12),
    "superuser_reserved_connections": (0,),
    "max_worker_processes": (0,),
    "max_parallel_workers": (0,),
    "max_wal_senders": (0,),
    "max_replication_slots": (0,),
    "autovacuum_max_workers": (1,),
    "max_pred_locks_per_transaction": (10,),
    "max_files_per_process": (64, 100),
    "shared_buffers": ("1MB", "16MB"),
    "temp_buffers": ("800kB",),
    "wal_buffers": ("32kB",),
    "work_mem": ("64kB", "4MB"),
    "maintenance_work_mem": ("1MB",),
    "hash_mem_multiplier": (1,),
    "temp_file_limit": ("300kB", "1MB", -1),
    "max_stack_depth": ("100kB", "2MB"),
    "track_activity_query_size": (100,),
}
# What a database has many of; {i} is a number.
MANY = {
    "table": "CREATE TABLE t{i} (id int PRIMARY KEY, v text); INSERT INTO t{i} VALUES (1, 'x')",
    "serial": "CREATE TABLE t{i} (id bigserial PRIMARY KEY); INSERT INTO t{i} DEFAULT VALUES",
    "indexes": "CREATE TABLE t{i} (a int PRIMARY KEY, b int UNIQUE, c int UNIQUE, d int UNIQUE,"
    " e int UNIQUE); CREATE INDEX ON t{i} (b, c); CREATE INDEX ON t{i} ((d + e));"
    "INSERT INTO t{i} VALUES (1, 2, 3, 4, 5)",
    "partitions": "CREATE TABLE t{i} (id int PRIMARY KEY) PARTITION BY HASH (id);"
    "CREATE TABLE t{i}a PARTITION OF t{i} FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    "CREATE TABLE t{i}b PARTITION OF t{i} FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
    "CREATE INDEX ON t{i} (id); INSERT INTO t{i} SELECT generate_series(1, 9)",
    "reference": "CREATE TABLE t{i} (id int PRIMARY KEY, up int REFERENCES t{i});"
    "INSERT INTO t{i} VALUES (1, 1)",
    "child": "CREATE TABLE t{i} (id int); CREATE TABLE t{i}a () INHERITS (t{i});"
    "INSERT INTO t{i}a VALUES (1)",
    "view": "CREATE TABLE t{i} (id int); CREATE VIEW v{i} AS TABLE t{i};"
    "CREATE MATERIALIZED VIEW m{i} AS TABLE v{i}",
    "columns": "DO $$ BEGIN EXECUTE (SELECT 'CREATE TABLE t{i} (' || string_agg("
    "format('c%s text DEFAULT %L', g, g), ',') || ')' FROM generate_series(1, 200) g); END $$",
    "sequence": "CREATE SEQUENCE s{i}; SELECT nextval('s{i}')",
    "large objects": "SELECT lo_from_bytea(0, '\\x01') FROM generate_series(1, 20)",
    "functions": "CREATE FUNCTION f{i}(int) RETURNS int LANGUAGE sql AS 'SELECT $1';"
    "CREATE TYPE e{i} AS ENUM ('a', 'b')",
}
BESIDE = 3  # sessions that a backup needs: docs say so
LOCKS = 100  # that the program's looks may hold for a moment, of catalogs and their indexes
FEWEST, MOST = 60, 140  # things in a database
STEP = 25
TAKES = "SELECT pg_advisory_lock(g) FROM generate_series(%s::int, %s::int) g"
GIVES = "SELECT pg_advisory_unlock(g) FROM generate_series(%s::int, %s::int) g"
# the tables that a dump locks
LOCKED = """SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class c
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace"""


@dataclass(frozen=True)
class Verdict:
    """What was wrong, and of how many things; of none where pg_dump cannot bear one, either."""

    wrong: str
    things: int


def judge(server: servers.Server, home: Path, seed: str) -> Verdict:
    """Give a server little, and have what pg_dump can bear there backed up; tell what was wrong.

    The server is one's own, and in the end it is as it was, without the database.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    few = {
        name: str(choice.choice(values)) for name, values in SHARED.items() if choice.random() < 0.9
    }
    database, role = servers.Database(server, "scarce"), choice.choice(("postgres", "scarce"))
    server.stop()
    server.start(**few)
    try:
        with server.connect() as session:
            session.execute("CREATE ROLE scarce LOGIN CREATEDB PASSWORD 'x'")
            session.execute("CREATE DATABASE scarce OWNER scarce")
        wrong, things = _judged(database, home, choice, role)
        return Verdict(wrong and f"{wrong}\nas {role} on a server with {few}", things)
    finally:
        server.restart()
        with server.connect() as session:
            session.execute("DROP DATABASE IF EXISTS scarce WITH (FORCE)")
            session.execute("DROP ROLE scarce")


def _judged(
    database: servers.Database, home: Path, choice: random.Random, role: str
) -> tuple[str, int]:
    who = {"user": role, "password": "x"} if role == "scarce" else {}

    def by(name: str) -> str:
        return database.server.conninfo(name, **who)

    folder = choice.random() < 0.3
    dumped = functools.partial(_dumped, by("scarce"), home, folder=folder)
    kinds = ["indexes", *choice.sample(sorted(MANY), choice.randint(0, 3))]
    count = choice.randint(FEWEST, MOST)
    with psycopg.connect(by("scarce"), autocommit=True) as session:
        for i in range(count):
            session.execute(MANY[choice.choice(kinds)].format(i=i).encode())
    backups, files = home / "backups", home / "migrations"
    for each in (backups, files):
        each.mkdir(parents=True)
    env = {
        **database.env(**who),
        "PATH": program.path(),
        "PREFLIGHT_BACKUP_DIR": str(backups),
        "PREFLIGHT_MIGRATIONS_DIR": str(files),
        "PREFLIGHT_REHEARSE": "auto",
        "PREFLIGHT_JOBS": "2",
        "PREFLIGHT_TERMINATION_LOG": str(home / "none"),
        **({"PREFLIGHT_PARALLEL_MB": "0"} if folder else {}),
    }
    with _crowded(by, dumped) as bears:
        if not bears:
            return "", 0
        said, wrong = program.Program(env, home).run("backup", timeout=300), ""
        if said.code != 0 and dumped():
            wrong = f"of {count} things ({kinds}), which pg_dump dumps, there is no backup: {said}"
        elif said.code == 0 and not said.event("rehearsal.passed") and _restored(by, home):
            wrong = f"of {count} things ({kinds}), which pg_restore restores, is no proof: {said}"
    return wrong, count


@contextlib.contextmanager
def _crowded(by: Callable[[str], str], dumped: Callable[[], bool]) -> Iterator[bool]:
    """Have a stranger hold all locks that a bare pg_dump can do without; tell whether it can."""
    with psycopg.connect(by("postgres"), autocommit=True) as stranger:
        held = LOCKS
        with contextlib.suppress(psycopg.errors.OutOfMemory), _at_work(by("scarce")):
            while True:
                stranger.execute(TAKES, [held + 1, held + STEP])
                held += STEP
        stranger.execute(GIVES, [held + 1, held + STEP])
        while not (bears := dumped()) and held > LOCKS:
            stranger.execute(GIVES, [held - STEP + 1, held])
            held -= STEP
        yield bears


@contextlib.contextmanager
def _at_work(conninfo: str) -> Iterator[None]:
    """Have the sessions that stand beside a client of the program's, with what they may hold."""
    with contextlib.ExitStack() as stack:
        for _ in range(BESIDE - 1):
            session = stack.enter_context(psycopg.connect(conninfo))
        session.execute(TAKES, [1, LOCKS])
        if names := (session.execute(LOCKED).fetchone() or ("",))[0]:
            session.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE".encode())
        yield


def _dumped(conninfo: str, home: Path, *, folder: bool) -> bool:
    """Tell whether a bare pg_dump can dump it beside a session that reads the same tables."""
    dump = home / "bare"
    shutil.rmtree(dump) if dump.is_dir() else dump.unlink(missing_ok=True)
    how = ["--format=directory", "--jobs=2"] if folder else ["--format=custom"]
    try:
        with _at_work(conninfo):
            return _succeeds("pg_dump", *how, f"--file={dump}", f"--dbname={conninfo}")
    except (psycopg.OperationalError, psycopg.errors.OutOfMemory):  # no room for these either
        return False


def _restored(by: Callable[[str], str], home: Path) -> bool:
    """Tell whether a bare pg_restore can fill a new database with it."""
    with psycopg.connect(by("postgres"), autocommit=True) as session:
        session.execute("CREATE DATABASE scarce_bare TEMPLATE template0")
        try:
            with _at_work(by("postgres")):
                into = f"--dbname={by('scarce_bare')}"
                return _succeeds("pg_restore", "--jobs=2", into, str(home / "bare"))
        finally:
            session.execute("DROP DATABASE scarce_bare WITH (FORCE)")


def _succeeds(name: str, *args: str) -> bool:
    command = [str(servers.client_bin(18) / name), *args]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
