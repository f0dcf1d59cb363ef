"""Lives: nothing is done to a server that is only temporary, whatever lives it has before it stays.

An image initialises itself on a server that listens on its Unix socket alone, and stops it; one may
be a standby first, be killed, come again. A run waits there meanwhile, frozen where a clock would
decide. What is done says in which life it was done: in the last one alone; and what was said to be
done is there. `make lives SEED=7 MINUTES=10` goes on for as long as told; `SEED=7/123` does one
again.
"""

import contextlib
import dataclasses
import itertools
import json
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests import faults, program, servers

NAME = "app"
TEMPORARY = ((True, False), (True, False), (True, True), (False, True))  # alone, a standby
NOW = "SELECT pg_postmaster_start_time(), (SELECT count(*) FROM items)"
MADE = "SELECT to_regclass('public.ran'), to_regclass('preflight.migrations')"
COMES = (
    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pg-preflight%%' AND datname = %s"
)
# What a file notes of where it runs; it needs what the scripts of an image have made.
FILE = """CREATE TABLE ran AS
SELECT pg_postmaster_start_time() AS born, count(*) AS rows FROM items;
ALTER TABLE items ADD note text;
"""
# What the scripts of an image do: what the app needs, and more each time one starts again.
SCRIPTS = (
    "CREATE TABLE IF NOT EXISTS items (id int)",
    "INSERT INTO items SELECT generate_series(1, 100)",
    "ANALYZE items",
)
AWAKE, FROZEN = "while a script is at work", "frozen"
LASTED = "SELECT clock_timestamp() > %s::timestamptz + interval '4 s'"
ENDS = ("fast", "fast", "immediate", "kill")
PATIENCE_S = 300.0  # no promise: only so that nothing hangs for ever


@dataclasses.dataclass(frozen=True)
class Life:
    """How a server starts, what it is at first, and how it ends, if it does."""

    alone: bool  # no TCP
    standby: bool = False  # until it is promoted
    ends: str = ""
    lasts: str = ""  # for longer than a server must to be taken for one that stays

    def __str__(self) -> str:
        """Read as in `alone, as a standby, lasts frozen, then kill`."""
        kind = ["alone" if self.alone else "open", *["as a standby"] * self.standby]
        kind += [f"lasts {self.lasts}"] * bool(self.lasts) + [f"then {self.ends}"] * bool(self.ends)
        return ", ".join(kind)


class Lives:
    """A server that is reached through its socket, and a run that waits for it."""

    def __init__(self, server: servers.Server, home: Path) -> None:
        """Make an empty database, and write the file; the server is down."""
        self.server, self.home = server, home
        with server.connect() as session:
            session.execute(f"CREATE DATABASE {NAME}".encode())
        server.stop()
        server.configure(unix_socket_directories=str(server.home))
        self.backups, files = home / "backups", home / "migrations"
        for each in (self.backups, files):
            each.mkdir(parents=True)
        (files / "001_one.sql").write_text(FILE)
        self.main = program.Program(
            {
                **server.env(NAME),
                "PGHOST": str(server.home),
                "PATH": program.path(),
                "PREFLIGHT_BACKUP_DIR": str(self.backups),
                "PREFLIGHT_MIGRATIONS_DIR": str(files),
                "PREFLIGHT_FIRST_CONTACT": "pending",
                "PREFLIGHT_REHEARSE": "off",
                "PREFLIGHT_TERMINATION_LOG": str(home / "none"),
            },
            home,
        )

    @contextlib.contextmanager
    def inside(self, database: str = NAME) -> Iterator[psycopg.Connection]:
        """Open a session through the socket."""
        where = self.server.conninfo(database, host=str(self.server.home))
        with psycopg.connect(where, autocommit=True) as session:
            yield session

    def begins(self, life: Life) -> None:
        """Start the server so, while nobody waits for it, or who does is frozen."""
        (self.server.data / "standby.signal").unlink(missing_ok=True)
        if life.standby:
            self.server.put("standby.signal", "")
        self.server.start(listen_addresses="" if life.alone else servers.HOST)
        if not (life.ends or life.standby):
            self.fills()

    def fills(self) -> None:
        """Do what the scripts of an image do, as far as the server takes it."""
        with self.inside() as session:
            if session.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
                for each in SCRIPTS:
                    session.execute(each.encode())

    def comes(self, life: Life, process: program.Process) -> None:
        """Wait until the run has come to this server, and waits there or has ended; freeze it.

        To a standby it comes again and again.
        """
        came: set[int] = set()
        with self.inside("postgres") as session:

            def met() -> bool:
                came.update(pid for (pid,) in session.execute(COMES, [NAME]))
                waits = any(each["event"] == "server.waiting" for each in process.events)
                return not process.running or (waits and len(came) > life.standby)

            faults.until(met, "the run comes to the server", PATIENCE_S)
        if process.running:
            process.signal(signal.SIGSTOP)

    def passes(self, life: Life, process: program.Process) -> None:
        """Let a life pass: a run comes to it and waits; scripts fill the database, and it ends."""
        self.comes(life, process)
        self._require_untouched(life, process)
        if life.standby and life.alone:
            with self.inside() as session:
                session.execute("SELECT pg_promote()")
        self.fills()
        if life.lasts:
            self.lasts(life, process)
        self._require_untouched(life, process)
        if life.ends == "kill":
            self.server.signal_postmaster(signal.SIGKILL)
        self.server.stop(life.ends if life.ends != "kill" else "immediate")

    def lasts(self, life: Life, process: program.Process) -> None:
        """Let a life last: frozen, as a machine that sleeps, or while a script is at work in it."""
        with (
            self.inside("postgres") as session,
            self.inside() as script,
            contextlib.closing(script),
        ):
            script.execute("SET application_name = 'psql'")
            script.pgconn.send_query(b"SELECT pg_sleep(3600)")  # it ends with the server
            (began,) = session.execute("SELECT clock_timestamp()").fetchone() or (None,)
            if life.lasts == AWAKE:
                process.signal(signal.SIGCONT)

            def over() -> bool:
                (found,) = session.execute(LASTED, [began]).fetchone() or (False,)
                return not process.running or bool(found)

            faults.until(over, "a life lasts", PATIENCE_S)
            process.signal(signal.SIGSTOP)

    def _require_untouched(self, life: Life, process: program.Process) -> None:
        with self.inside() as session:
            found = session.execute(MADE).fetchone()
        assert (True, (None, None)) == (process.running, found), (
            f"in a life {life} it {'waits' if process.running else process.wait()}; made: {found}"
        )

    def stays(self, life: Life, process: program.Process) -> program.Result:
        """Let the last life begin, and the run go on in it; return how it ended."""
        process.signal(signal.SIGCONT)
        if life.standby:
            self.comes(life, process)
            with self.inside() as session:
                session.execute("SELECT pg_promote()")
            self.fills()
            process.signal(signal.SIGCONT)
        return process.wait(PATIENCE_S)

    def agrees(self, result: program.Result) -> None:
        """Raise AssertionError unless all was done in the life that stays, and is there."""
        assert 0 == result.code, str(result)
        with self.inside() as session:
            (born, rows) = session.execute(NOW).fetchone() or (None, None)
            ran = session.execute("SELECT born, rows FROM ran").fetchall()
            listed = session.execute("SELECT name FROM preflight.migrations").fetchall()
        assert [(born, rows)] == ran, f"{ran}, not {(born, rows)}: {result}"
        assert [("001_one",)] == listed, f"{listed}: {result}"
        assert ["001_one"] == result.finished["applied"], str(result)
        (backup,) = result.event("backup.verified")
        manifest = json.loads((self.backups / backup["backup"] / "manifest.json").read_text())
        assert rows == manifest["rows"]["public.items"], f"{manifest['rows']}: {result}"


def some(choice: random.Random) -> list[Life]:
    """Return the lives of a server: some that end, most of them an image's, and one that stays."""
    before = [
        Life(
            *choice.choice(TEMPORARY),
            ends=choice.choice(ENDS),
            lasts=choice.choice([AWAKE, FROZEN, "", ""]),
        )
        for _ in range(choice.choice([0, 1, 1, 2]))
    ]
    return [*before, Life(alone=choice.random() < 1 / 3, standby=choice.random() < 1 / 3)]


def walk(server: servers.Server, home: Path, seed: str) -> str:
    """Have a run wait through a server's lives; return what they were.

    Raises AssertionError where it did anything to one that was only temporary, or in vain.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    lives = some(choice)
    told = "; ".join(map(str, lives))
    world = Lives(server, home)
    try:
        world.begins(lives[0])
        process = world.main.start("up")
        for life, following in itertools.pairwise(lives):
            world.passes(life, process)
            world.begins(following)
            process.signal(signal.SIGCONT)
        world.agrees(world.stays(lives[-1], process))
    except AssertionError as error:
        raise AssertionError(f"{told}: {error}") from error
    finally:
        world.main.close()
    return told


def main() -> int:
    """Walk until the time is over; 1 when something was not as promised."""

    def one(number: int, home: Path, seed: str) -> None:
        del number
        server = servers.start(17)
        try:
            walk(server, home, seed)
        finally:
            server.remove()

    return faults.walks("lives", __doc__, one)


if __name__ == "__main__":
    sys.exit(main())
