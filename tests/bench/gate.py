"""The gate when something is pending: a proven backup, beside pg_dump and pg_restore by hand.

One database, one pending file. A whole run with a throwaway server takes turns with the same by
hand: pg_dump, a throwaway server, pg_restore into it, text sorted as in the live database on both
sides. The live server's work is counted in.
"""

import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from preflight.rehearsal import local
from tests import program, servers
from tests.bench import figures, peers, turns
from tests.bench.ground import MAJOR, Ground

JOBS = 2
ROWS_A_GB = 2_500_000  # of `events`; `people` has a fifth of them
GB, QUICK_GB = 1.0, 0.1
ROUNDS, QUICK_ROUNDS = 3, 1
TICKS = os.sysconf("SC_CLK_TCK")
TABLES = """
CREATE TABLE people (id bigint PRIMARY KEY, name text NOT NULL, mail text, born date);
INSERT INTO people SELECT n, md5(n::text), md5((n + 1)::text) || '@example.org',
 date '1950-01-01' + (n % 20000)::int FROM generate_series(1, {people}) n;
CREATE TABLE events (id bigserial PRIMARY KEY, who bigint, at timestamptz, what text, detail jsonb);
INSERT INTO events (who, at, what, detail) SELECT 1 + n % {people}, now() - n * interval '1 s',
 md5(n::text) || md5((n * 7)::text), jsonb_build_object('a', n, 'b', md5(n::text), 'c', n % 7)
 FROM generate_series(1, {events}) n;
CREATE UNIQUE INDEX ON people (mail); CREATE INDEX ON people (name);
CREATE INDEX ON events (who, at); CREATE INDEX ON events (what);
ALTER TABLE events ADD FOREIGN KEY (who) REFERENCES people;
"""
LOCALE = """
SELECT format('LC_COLLATE %L LC_CTYPE %L', datcollate, datctype) FROM pg_database
WHERE datname = current_database()
"""
BACK = "DROP TABLE one; DROP SCHEMA preflight CASCADE"  # what the one pending file left
OURS = "pg-preflight: proven, rehearsed, applied"
READ = "pg-preflight: read back, applied"
HAND = "pg_dump zstd:1, pg_restore -j2"
DEFAULT = "pg_dump (gzip), pg_restore -j2"
ALONE = "pg_dump zstd:1"


@dataclass(frozen=True)
class Clients:
    """Where the programs are, and a cluster to copy, as the full image has them."""

    path: Path
    scratch: Path
    programs: local.Programs
    environment: Mapping[str, str]


def measure(ground: Ground) -> list[figures.Row]:
    """Measure one database of so many gigabytes."""
    wanted = ground.wanted
    events = int(ROWS_A_GB * (wanted.gigabytes or (QUICK_GB if wanted.quick else GB)))
    database = ground.database("proof")
    database.script(TABLES.format(people=events // 5, events=events))
    return beside(ground, database, wanted.times(ROUNDS, QUICK_ROUNDS))


def beside(
    ground: Ground,
    database: servers.Database,
    rounds: int,
    group: str = "",
    names: Sequence[str] = (OURS, READ, HAND, DEFAULT, ALONE),
) -> list[figures.Row]:
    """Let a whole run take turns with the same by hand, on one database."""
    database.query("VACUUM (FREEZE, ANALYZE)")
    (size,) = database.query("SELECT pg_database_size(current_database())")
    clients = installed(ground)
    (rules,) = database.query(LOCALE)  # to sort text of another locale than C costs more
    group = group or f"{int(size) / 1e9:.2f} GB"
    ways: dict[str, Callable[[Path], dict[str, float]]] = {
        OURS: lambda room: whole(clients, database, room, "always"),
        READ: lambda room: whole(clients, database, room, "off"),
        HAND: lambda room: by_hand(clients, database, room, rules, "--compress=zstd:1"),
        DEFAULT: lambda room: by_hand(clients, database, room, rules),
        ALONE: lambda room: dumped(clients, database, room, "--compress=zstd:1"),
    }
    rows = {name: figures.Row(group, name, more={"bytes": int(size)}) for name in names}
    for number in range(rounds):
        for name in names:
            room = clients.scratch / "backups"
            room.mkdir()
            before, began = processor_s(ground.server), time.monotonic()
            more = ways[name](room)
            rows[name].seconds.append(time.monotonic() - began)
            rows[name].cpu.append(processor_s(ground.server) - before)
            for key, value in more.items():
                rows[name].more[key] = max(value, rows[name].more.get(key, 0))
            shutil.rmtree(room)
            if "applied" in name:
                database.script(BACK)
            said = f"{rows[name].seconds[-1]:.1f} s, {rows[name].cpu[-1]:.1f} s of processors"
            print(f"  round {number + 1} of {rounds}: {name}: {said}", flush=True)
    return list(rows.values())


def processor_s(server: servers.Server) -> float:
    """Return the processor time of our children and of the live server's, whose end is known."""
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = (server.data / "postmaster.pid").read_text().splitlines()[0]
    said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ours.ru_utime + ours.ru_stime + sum(map(int, said[11:15])) / TICKS


def installed(ground: Ground) -> Clients:
    """Return the programs in one folder, with a cluster to copy, as the full image has them."""
    home, bare = ground.scratch / "full", servers.installation(MAJOR) / "bin"
    path, scratch = home / "bin", home / "scratch"
    if not path.exists():
        path.mkdir(parents=True)
        scratch.mkdir()
        scratch.chmod(0o777)
        for name in ("postgres", "pg_dump", "pg_restore"):
            (path / name).symlink_to(bare / name)
        found = replace(local.find(MAJOR, str(bare / "pg_dump"), ""), template=None)
        with local.started(found, scratch, "template", need=0) as server:
            server.end()
            (server.data / "postmaster.pid").unlink(missing_ok=True)
            shutil.copytree(server.data, home / local.TEMPLATE, copy_function=shutil.copyfile)
        (home / "files").mkdir()
        (home / "files/001_one.sql").write_text("CREATE TABLE one (id int);\n")
    environment = {
        **ground.bare,
        "PATH": f"{path}:/usr/bin:/bin",
        "PREFLIGHT_MIGRATIONS_DIR": str(home / "files"),
        "PREFLIGHT_REHEARSE_DIR": str(scratch),
        "PREFLIGHT_REHEARSE_ON": "local",
        "PREFLIGHT_FIRST_CONTACT": "pending",
    }
    return Clients(path, scratch, local.find(MAJOR, str(path / "pg_dump"), ""), environment)


def whole(
    clients: Clients, database: servers.Database, room: Path, rehearse: str
) -> dict[str, float]:
    """Run the gate; return the most memory that its own process had."""
    environment = {
        **clients.environment,
        **database.env(),
        "PREFLIGHT_BACKUP_DIR": str(room),
        "PREFLIGHT_REHEARSE": rehearse,
    }
    with (
        subprocess.Popen(
            peers.program_command(), env=environment, stdout=subprocess.PIPE, text=True
        ) as run,
        peak_of(run.pid) as peak,
    ):
        try:
            said, _ = run.communicate()
        except BaseException:
            run.terminate()  # it ends its own children
            raise
    proven = '"verified":"restored"' in said.replace(" ", "")
    if run.returncode or proven != (rehearse == "always"):
        raise turns.Failed(f"exit code {run.returncode}\n{said[-2000:]}")
    return {"peak_mb": peak[0], **phases(program.parse(said))}


def phases(events: Sequence[program.Event]) -> dict[str, float]:
    """Return what the parts of a run took: the restore, and what is compared and tried after it."""
    found = {}
    for event in events:
        if event["event"] == "backup.verified":
            found["backup_s"] = event["duration_s"]
        if event["event"] == "rehearsal.passed":
            found["restore_s"] = event["restore_s"]
            found["compare_s"] = event["duration_s"] - event["restore_s"]
    return found


def dumped(
    clients: Clients, database: servers.Database, room: Path, *options: str
) -> dict[str, float]:
    """Dump by hand."""
    command = [clients.path / "pg_dump", "--format=custom", *options, f"--file={room}/dump"]
    turns.succeed(command, {**clients.environment, **database.env()})
    return {"dump_bytes": (room / "dump").stat().st_size}


def by_hand(
    clients: Clients, database: servers.Database, room: Path, rules: str, *options: str
) -> dict[str, float]:
    """Dump, start a throwaway server and restore into it."""
    more = dumped(clients, database, room, *options)
    with local.started(clients.programs, clients.scratch, "hand", need=0) as server:
        with psycopg.connect(make_conninfo("", **server.target()), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE proof TEMPLATE template0 {rules}".encode())
        where = ["--host", str(server.socket), "--username", local.SUPERUSER, "--dbname", "proof"]
        command = [clients.path / "pg_restore", *where, f"--jobs={JOBS}", "--no-owner"]
        turns.succeed([*command, room / "dump"], clients.environment)
    return more


@contextmanager
def peak_of(pid: int) -> Iterator[list[float]]:
    """Yield a list that holds, afterwards, the most memory that a process had, in megabytes."""
    found, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                found[0] = next(int(line.split()[1]) for line in lines if "VmHWM" in line) / 1000

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
