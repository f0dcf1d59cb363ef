"""Crash anywhere: a run is struck down at any of its messages or events, and the next one settles.

`make crash SEED=7 MINUTES=10` strikes at random and says how to repeat what went wrong:
`make crash SEED=7/123` does number 123 of that seed alone.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from tests import faults, program, servers

# Each file says in `ran` that it ran: what the history claims is compared with it.
MIGRATIONS = {
    "001_first.sql": "CREATE TABLE ran (version int);\nINSERT INTO ran VALUES (1);\n",
    "001_first_verify.sql": "SELECT 'a' AS suite, 'ran' AS \"check\","
    " to_regclass('public.ran') IS NOT NULL AS ok;\n",
    "002_grow.sql": "ALTER TABLE items ADD COLUMN note text DEFAULT 'x';\n"
    "INSERT INTO ran VALUES (2);\n",
    "002_grow_rollback.sql": "ALTER TABLE items DROP COLUMN note;\n"
    "DELETE FROM ran WHERE version = 2;\n",
    "003_index.sql": "-- preflight: no-transaction\n"
    "CREATE INDEX CONCURRENTLY items_note ON items (note);\nINSERT INTO ran VALUES (3);\n",
    "004_last.sql": "INSERT INTO ran VALUES (4);\nUPDATE items SET note = 'y' WHERE id < 10;\n",
}
VERSIONS = [1, 2, 3, 4]
BEFORE = (
    "CREATE TABLE items (id int PRIMARY KEY);"
    "INSERT INTO items SELECT n FROM generate_series(1, 500) n"
)
VICTIMS = ("connection", "job", "pg_dump", "backend", "postmaster")
# what a run may end with that was struck, and not killed itself
CODES = {0, 10, 11, 12, 13, 14, 31, 32}
OURS = "application_name LIKE 'pg-preflight%%' OR application_name IN ('pg_dump', 'pg_restore')"


@dataclasses.dataclass(frozen=True)
class Strike:
    """Who is struck, and when: at a message of the server's, or at an event of the run's."""

    victim: str
    message: int = 0
    among: str = "ours"
    event: str = ""
    rehearse: str = "off"

    def __str__(self) -> str:
        """Read as in `job at message 120, rehearse off`."""
        when = f"event {self.event}" if self.event else f"message {self.message} of {self.among}"
        return f"{self.victim} at {when}, rehearse {self.rehearse}"


class AtMessage(faults.Fault):
    """Calls the striker when the server has sent so many messages to us, or to our clients.

    Rows are not counted: between one and the next of them nothing changes.
    """

    def __init__(self, number: int, strike: Callable[[int], None], among: str = "ours") -> None:
        """Count from the first connection on."""
        self.seen, self.number, self.strike, self.among = 0, number, strike, among
        self.lock = threading.Lock()
        self.caller = threading.local()  # a connection has a thread of its own

    def startup(self, message: bytes) -> None:
        """See who calls."""
        client = b"\0application_name\0pg_" in message
        self.caller.counts = client == (self.among == "clients")

    def connected(self) -> faults.Fault:
        """Count what this caller is sent, or let it through."""
        return _Counted(self) if self.caller.counts else faults.Fault()


class _Counted(faults.Fault):
    def __init__(self, all_: AtMessage) -> None:
        self.all, self.backend = all_, 0

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Strike when it is time; the message comes through, unless its connection is cut."""
        if kind == b"K":
            self.backend = int.from_bytes(message[5:9], "big")
        if kind in b"Dd":
            return message
        with self.all.lock:
            self.all.seen += 1
            due = self.all.seen == self.all.number
        if due:
            self.all.strike(self.backend)
        return message


class _Through(faults.Fault):
    """Does what another fault does: the address stays the same when that one changes."""

    def __init__(self) -> None:
        self.now = faults.Fault()

    def startup(self, message: bytes) -> bytes | None:
        """Ask the one of the moment."""
        return self.now.startup(message)

    def connected(self) -> faults.Fault:
        """Ask the one of the moment."""
        return self.now.connected()


class World:
    """A database with rows and four files to apply, and what is around it, for one strike."""

    def __init__(self, server: servers.Server, home: Path, name: str) -> None:
        """Make it on that server, below that directory."""
        self.server, self.home = server, home
        self.database = servers.Database(server, name)
        self.backups, self.files = home / "backups", home / "migrations"
        for each in (self.backups, self.files):
            each.mkdir(parents=True)
        for file, text in MIGRATIONS.items():
            (self.files / file).write_text(text)
        with server.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self.database.script(BEFORE)
        self.between = _Through()  # a backup is of an address, and so is what a killed run leaves
        self.proxy = faults.Proxy(server, self.between)
        self.environment = {
            **self.database.env(),
            **self.proxy.env(),
            "PATH": program.path(),
            "PREFLIGHT_BACKUP_DIR": str(self.backups),
            "PREFLIGHT_MIGRATIONS_DIR": str(self.files),
            "PREFLIGHT_TERMINATION_LOG": str(home / "termination-log"),
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_REHEARSE_ON": "server",
            "PREFLIGHT_WAIT_TIMEOUT_S": "20",
        }

    def run(self, **more: str) -> program.Result:
        """Run `up` undisturbed."""
        main = program.Program({**self.environment, **more}, self.home)
        try:
            return main.run()
        finally:
            main.close()

    def struck(self, strike: Strike) -> tuple[program.Result, bool]:
        """Run `up` and strike; return what it left, and whether it was struck at all."""
        hit = threading.Event()
        held: list[program.Process] = []

        def blow(backend: int) -> None:
            hit.set()
            _BLOWS[strike.victim](self, held[0], backend)

        self.between.now = AtMessage(strike.message, blow, strike.among)
        more = {"PREFLIGHT_REHEARSE": strike.rehearse}
        main = program.Program({**self.environment, **more}, self.home)
        try:
            held.append(main.start())
            if strike.event:
                with contextlib.suppress(AssertionError):  # a run may have no such event
                    held[0].wait_for_event(strike.event)
                    blow(_a_backend(self.database))
            result = held[0].wait()
        finally:
            main.close()
            self.between.now = faults.Fault()
        self.server.start()  # where the postmaster was struck
        faults.until(lambda: _answers(self.server), "the server has recovered", 60)
        return result, hit.is_set()

    def drop(self) -> None:
        """Forget it."""
        self.proxy.close()
        name = sql.Identifier(self.database.name)
        with self.server.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        shutil.rmtree(self.home, ignore_errors=True)


# --- who is struck --------------------------------------------------------------------------------


def _cut(world: World, process: program.Process, backend: int) -> None:
    del world, process, backend
    raise faults.Cut


def _job(world: World, process: program.Process, backend: int) -> None:
    del world, backend
    process.signal(signal.SIGKILL)


def _clients(world: World, process: program.Process, backend: int) -> None:
    """Kill pg_dump or pg_restore, whichever is at work."""
    del world, backend
    for pid in _children(process.pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _backend(world: World, process: program.Process, backend: int) -> None:
    """Kill a server process: all others of that server end with it, and it recovers."""
    del world, process
    if backend:
        with contextlib.suppress(OSError):
            os.kill(backend, signal.SIGKILL)


def _postmaster(world: World, process: program.Process, backend: int) -> None:
    del process, backend
    world.server.signal_postmaster(signal.SIGKILL)


_BLOWS: dict[str, Callable[[World, program.Process, int], None]] = {
    "connection": _cut,
    "job": _job,
    "pg_dump": _clients,
    "backend": _backend,
    "postmaster": _postmaster,
}


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def _answers(server: servers.Server) -> bool:
    with contextlib.suppress(psycopg.OperationalError), server.connect():
        return True
    return False


def _a_backend(database: servers.Database) -> int:
    with contextlib.suppress(psycopg.Error):
        found = database.query(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'pg-preflight%' ORDER BY backend_start LIMIT 1"
        )
        return int(found[0]) if found else 0
    return 0


# --- what holds whatever happened -----------------------------------------------------------------


def require_sound(world: World, result: program.Result) -> None:
    """Raise AssertionError unless all that is promised after any end holds.

    Each file ran once or not at all and the history says which; each backup that can be seen is
    whole; no session and no lock of ours is left; the code is one of ours and the log ends with
    it; the password stands nowhere.
    """
    killed = result.code == -signal.SIGKILL
    faults.until(lambda: not _sessions(world), "no session of ours is left", 30)
    assert [0] == world.database.query(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert killed or result.code in CODES, str(result)
    if not killed:
        assert result.code == result.finished["exit_code"], str(result)
    ran, recorded = reality(world), history(world)
    assert sorted(set(ran)) == ran, f"a file ran twice: {ran}"
    done = [version for version, state in recorded if state == "done"]
    part_way = {version for version, state in recorded if state != "done"}
    assert part_way <= {3}, f"only a file without a transaction may be part-way: {recorded}"
    assert done == [version for version in ran if version not in part_way], (ran, recorded)
    _require_backups(world, killed=killed)
    _require_no_secret(world, result)


def reality(world: World) -> list[int]:
    """Return which files left their mark, once for each time."""
    if world.database.query("SELECT to_regclass('ran')") == [None]:
        return []
    return world.database.query("SELECT version FROM ran ORDER BY 1")


def history(world: World) -> list[tuple[int, str]]:
    """Return what the history says."""
    if world.database.query("SELECT to_regclass('preflight.migrations')") == [None]:
        return []
    return world.database.query("SELECT version::int, state FROM preflight.migrations ORDER BY 1")


def _sessions(world: World) -> list[tuple[object, ...]]:
    with world.server.connect() as connection:
        return connection.execute(
            f"SELECT pid, application_name, datname FROM pg_stat_activity WHERE ({OURS})"
            " AND (datname = %s OR datname LIKE 'preflight\\_scratch%%')",
            [world.database.name],
        ).fetchall()


def _require_backups(world: World, *, killed: bool) -> None:
    for each in world.backups.iterdir():
        if each.name.startswith("."):
            assert killed, f"half a backup is left: {each.name}"
            continue
        manifest = json.loads((each / "manifest.json").read_text())
        dump = (each / "database.dump").read_bytes()
        assert manifest["sha256"] == hashlib.sha256(dump).hexdigest(), each.name
        assert manifest["size_bytes"] == len(dump), each.name


def _require_no_secret(world: World, result: program.Result) -> None:
    texts = [result.stdout, result.stderr]
    texts += [each.read_text("utf-8") for each in world.backups.rglob("manifest.json")]
    assert not any(servers.PASSWORD in text for text in texts)
    if world.database.query("SELECT to_regclass('preflight.journal')") != [None]:
        journal = "SELECT count(*) FROM preflight.journal j WHERE strpos(j::text, %s) > 0"
        assert [0] == world.database.query(journal, servers.PASSWORD)


def require_settled(world: World) -> None:
    """Raise AssertionError unless the next run applies all, and the one after does nothing."""
    settled = world.run(PREFLIGHT_REHEARSE="off")
    require_sound(world, settled)
    assert 0 == settled.code, str(settled)
    assert VERSIONS == reality(world), str(settled)
    assert [(each, "done") for each in VERSIONS] == history(world)
    assert [True] == world.database.query(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'items_note'::regclass"
    )
    assert [] == [each.name for each in world.backups.iterdir() if each.name.startswith(".")]
    with world.server.connect() as connection:
        scratch = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"
        assert [] == connection.execute(scratch).fetchall()
    kept = sorted(each.name for each in world.backups.iterdir())
    again = world.run()
    assert 0 == again.code, str(again)
    assert "applied" not in again.finished, str(again)
    assert kept == sorted(each.name for each in world.backups.iterdir())


def crash(server: servers.Server, home: Path, name: str, strikes: list[Strike]) -> int:
    """Strike one run after the other, then let one through; return how many were struck.

    Raises AssertionError when something that is promised does not hold.
    """
    world = World(server, home, name)
    struck = 0
    for strike in strikes:
        result, hit = world.struck(strike)
        struck += hit
        try:
            require_sound(world, result)
        except AssertionError as error:
            raise AssertionError(f"{strike}: {error}\n{result}") from error
    try:
        require_settled(world)
    except AssertionError as error:
        raise AssertionError(f"after {'; '.join(map(str, strikes))}: {error}") from error
    world.drop()
    return struck


def messages(server: servers.Server, home: Path, among: str, rehearse: str = "off") -> int:
    """Return how many messages a run, or its clients, get that nobody disturbs."""
    world = World(server, home, f"undisturbed_{among}_{rehearse}")
    counting = AtMessage(-1, lambda _: None, among)
    world.between.now = counting
    result = world.run(PREFLIGHT_REHEARSE=rehearse)
    assert 0 == result.code, str(result)
    world.drop()
    return counting.seen


# --- at random ------------------------------------------------------------------------------------


def at_random(choice: random.Random, most: Callable[[str, str], int]) -> list[Strike]:
    """Return one or two strikes, early ones as likely as late ones, most of them at our own."""
    found = []
    for _ in range(choice.choice([1, 1, 2])):
        among = choice.choice(["ours", "ours", "ours", "clients"])
        rehearse = choice.choice(["off", "off", "auto"])
        message = choice.randint(1, most(among, rehearse))
        found.append(Strike(choice.choice(VICTIMS), message, among, rehearse=rehearse))
    return found


def main() -> int:
    """Strike until the time is over; 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--minutes", type=float, default=1.0)
    asked = parser.parse_args()
    seed, _, only = str(asked.seed).partition("/")
    server = servers.start(17)
    home = Path(tempfile.mkdtemp(prefix="pg-preflight-crash-"))

    @functools.cache
    def most(among: str, rehearse: str) -> int:
        return messages(server, home / "counted" / among / rehearse, among, rehearse)

    wrong = struck = done = 0
    for number in _numbers(only, asked.minutes):
        choice = random.Random(f"{seed}/{number}")  # noqa: S311 - to be repeated, not to be secret
        strikes = at_random(choice, most)
        done += 1
        try:
            struck += crash(server, home / str(number), f"crash_{number}", strikes)
        except AssertionError as error:
            wrong += 1
            _say(f"SEED={seed}/{number}: {error}\n{server!r}, {home / str(number)}")
    _say(f"seed {seed}: {done} databases, struck {struck} times, {wrong} wrong")
    if not wrong:
        server.remove()
        shutil.rmtree(home)
    return min(wrong, 1)


def _numbers(only: str, minutes: float) -> Iterator[int]:
    if only:
        yield int(only)
        return
    end, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        number += 1
        yield number


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
