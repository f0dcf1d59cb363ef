"""`make bench-proof`: what a proven backup takes, beside pg_dump and pg_restore by hand.

One database of `GB` gigabytes (1), `ROUNDS` rounds (3) in which a whole run with a throwaway server
takes turns with the same by hand: pg_dump, a throwaway server, pg_restore into it. What counts is
the ratio, of processor time above all: on a busy machine seconds say little.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from preflight.rehearsal import local
from tests import program, servers

MAJOR = 17
JOBS = 2
ROWS_A_GB = 2_500_000  # of `events`; `people` has a fifth of them
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
WAY = Callable[[Path], float]


@dataclass
class Taken:
    """What one way took in each round: seconds, seconds of processors, peaks in megabytes."""

    name: str
    way: WAY
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)


def processor_s(server: servers.Server) -> float:
    """Return the processor time of our children and of the live server's, whose end is known."""
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = (server.data / "postmaster.pid").read_text().splitlines()[0]
    said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ours.ru_utime + ours.ru_stime + sum(map(int, said[11:15])) / TICKS


def installed(home: Path) -> Path:
    """Return a folder with the programs and a cluster to copy, as the full image has them."""
    bare = servers.installation(MAJOR) / "bin"
    (home / "bin").mkdir()
    for name in ("postgres", "pg_dump", "pg_restore"):
        (home / "bin" / name).symlink_to(bare / name)
    found = replace(local.find(MAJOR, str(bare / "pg_dump"), ""), template=None)
    with local.started(found, home / "scratch", "template", need=0) as server:
        server.end()
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        shutil.copytree(server.data, home / local.TEMPLATE, copy_function=shutil.copyfile)
    return home / "bin"


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


def ways(database: servers.Database, home: Path) -> list[Taken]:
    """Return the ways that take turns."""
    path = installed(home)
    programs = local.find(MAJOR, str(path / "pg_dump"), "")
    (home / "files").mkdir()
    (home / "files" / "001_one.sql").write_text("CREATE TABLE one (id int);\n")
    environment = {
        **database.env(),
        "PATH": f"{path}:/usr/bin:/bin",
        "PREFLIGHT_MIGRATIONS_DIR": str(home / "files"),
        "PREFLIGHT_REHEARSE_DIR": str(home / "scratch"),
        "PREFLIGHT_REHEARSE": "always",
        "PREFLIGHT_REHEARSE_ON": "local",
        "PREFLIGHT_FIRST_CONTACT": "pending",
    }

    (rules,) = database.query(LOCALE)  # to sort text of another locale than C costs more

    def by_hand(compression: str) -> WAY:
        def do(room: Path) -> float:
            dump = room / "dump"
            command = [str(path / "pg_dump"), "--format=custom", *compression.split()]
            subprocess.run([*command, f"--file={dump}"], env=environment, check=True)
            with local.started(programs, home / "scratch", "hand", need=0) as server:
                where_to = make_conninfo("", **server.target())
                with psycopg.connect(where_to, autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE proof TEMPLATE template0 {rules}")
                where = ["--host", str(server.socket), "--username", local.SUPERUSER]
                command = [str(path / "pg_restore"), *where, f"--jobs={JOBS}", "--no-owner"]
                command += ["--dbname", "proof", str(dump)]
                subprocess.run(command, check=True)
            return 0.0

        return do

    def whole(room: Path) -> float:
        env = environment | {"PREFLIGHT_BACKUP_DIR": str(room)}
        with (
            subprocess.Popen(
                [sys.executable, program.ENTRYPOINT], env=env, stdout=subprocess.PIPE, text=True
            ) as run,
            peak_of(run.pid) as peak,
        ):
            said, _ = run.communicate()
        if run.returncode or '"verified":"restored"' not in said.replace(" ", ""):
            raise SystemExit(f"exit code {run.returncode}\n{said}")
        database.script("DROP TABLE one; DROP SCHEMA preflight CASCADE")
        return peak[0]

    return [
        Taken("pg-preflight, one file applied", whole),
        Taken("by hand, zstd:1", by_hand("--compress=zstd:1")),
        Taken("by hand, pg_dump's default", by_hand("")),
    ]


def table(found: list[Taken]) -> str:
    """Return the figures as a Markdown table; the ratios are medians over the rounds."""
    us = found[0]
    lines = [
        "| | seconds | of processors | pg-preflight takes, times | of processors |",
        "|---|---|---|---|---|",
    ]
    for each in found:
        took, cpu = statistics.median(each.seconds), statistics.median(each.cpu)
        times = [
            statistics.median([one / other for one, other in zip(a, b, strict=True)])
            for a, b in ((us.seconds, each.seconds), (us.cpu, each.cpu))
        ]
        lines.append(f"| {each.name} | {took:.1f} | {cpu:.1f} | {times[0]:.2f} | {times[1]:.2f} |")
    return "\n".join([*lines, f"\npg-preflight's own process: {max(us.peaks):.0f} MB at most"])


def main() -> None:
    """Measure, and print the table."""
    gigabytes, rounds = float(os.environ.get("GB") or 1), int(os.environ.get("ROUNDS") or 3)
    events = int(ROWS_A_GB * gigabytes)
    server = servers.start(MAJOR, shared_buffers="256MB", max_wal_size="4GB", wal_level="replica")
    home = Path(tempfile.mkdtemp(prefix="pg-preflight-proof-", dir="/tmp"))
    try:
        home.chmod(0o755)
        (home / "scratch").mkdir()
        (home / "scratch").chmod(0o777)
        with server.connect() as connection:
            connection.execute("CREATE DATABASE proof")
        database = servers.Database(server, "proof")
        database.script(TABLES.format(people=events // 5, events=events))
        database.query("VACUUM (FREEZE, ANALYZE)")
        (size,) = database.query("SELECT pg_database_size('proof')")
        print(f"{int(size) / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}", flush=True)
        found = ways(database, home)
        for number in range(rounds):
            for each in found:
                room = home / "backups"
                room.mkdir()
                before, began = processor_s(server), time.monotonic()
                each.peaks.append(each.way(room))
                each.seconds.append(time.monotonic() - began)
                each.cpu.append(processor_s(server) - before)
                shutil.rmtree(room)
                said = f"{each.seconds[-1]:.1f} s, {each.cpu[-1]:.1f} s of processors"
                print(f"round {number + 1}: {each.name}: {said}", flush=True)
        print(table(found))
    finally:
        server.remove()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
