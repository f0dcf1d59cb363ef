"""Crash anywhere: a run is struck down at any of its messages or events, and the next one settles.

`make crash SEED=7 MINUTES=10` strikes at random and says how to repeat what went wrong:
`make crash SEED=7/123` does number 123 of that seed alone. `make crash EVENTS=1` strikes each
victim at each event of each command in turn; `make crash MESSAGES=10` cuts connections, kills jobs
and asks them to stop at each tenth message of each command, `STORIES=up,wrap` of these commands
alone.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from tests import buckets, faults, program, servers

Environment = dict[str, str]

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
    "CREATE INDEX CONCURRENTLY items_note ON items (note);\n"
    "COPY copied FROM stdin;\n1\n2\n\\.\nINSERT INTO ran VALUES (3);\n",
    "003_index_rollback.sql": "-- preflight: no-transaction\n"
    "DROP INDEX CONCURRENTLY items_note;\nTRUNCATE copied;\nDELETE FROM ran WHERE version = 3;\n",
    "004_last.sql": "DELETE FROM ran WHERE version = 4;\nINSERT INTO ran VALUES (4);\n"
    "INSERT INTO done VALUES (true);\nUPDATE items SET note = 'y' WHERE id < 10;\n",
    "004_last_rollback.sql": "DELETE FROM ran WHERE version = 4;\n"
    "INSERT INTO done VALUES (false);\n",
}
VERSIONS = (1, 2, 3, 4)
BEFORE = (
    "CREATE TABLE items (id int PRIMARY KEY); CREATE TABLE copied (n int);"
    "CREATE TABLE done (forth bool);"  # how often 004 ran, and how often it was taken back
    "INSERT INTO items SELECT n FROM generate_series(1, 500) n"
)
# A copy of a database has its sequences as they are, but not the WAL with the next values of each:
# after a crash of the server they would come again. What was just set has logged none ahead.
LOGGED = """
SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, last_value)
FROM pg_sequences WHERE last_value IS NOT NULL
"""
# What a run says is done is on the disk, whatever its database asks of a COMMIT.
_HASTY = sql.SQL("ALTER DATABASE {} SET synchronous_commit = off")
TOOL = """
import os
import psycopg

with psycopg.connect(os.environ["DATABASE_URL"], application_name="tool", autocommit=True) as it:
    it.execute("CREATE TABLE IF NOT EXISTS ran (version int PRIMARY KEY)")
    for version in (1, 2):
        with it.transaction():
            it.execute("INSERT INTO ran VALUES (%s) ON CONFLICT DO NOTHING", [version])
            it.execute("CREATE TABLE IF NOT EXISTS made_%s ()" % version)
"""
VICTIMS = ("connection", "stop", "job", "pg_dump", "backend", "postmaster")
ALIVE = ("connection", "stop")  # of these nobody is killed
PARTS = 6  # of a walk along a command's messages: several servers share it
PATIENCE_S = 300.0  # none of these is a promise: only so that nothing hangs for ever
STOPS = (signal.SIGTERM, signal.SIGINT)
LISTED = {  # in `run.finished`, and the events of the journal that say the same
    "applied": ("applied", "forced"),
    "adopted": ("adopted", "vouched"),
    "rolled_back": ("rolled_back",),
}
# what a run may end with that was struck, and not killed itself
CODES = {0, 10, 11, 12, 13, 14, 31, 32}
OURS = (
    "application_name LIKE 'pg-preflight%%'"
    " OR application_name IN ('pg_dump', 'pg_restore', 'tool')"
)


@dataclasses.dataclass(frozen=True)
class Story:
    """A command that writes, what is done undisturbed before it, and what has run in the end."""

    command: tuple[str, ...] = ("up",)
    before: tuple[tuple[str, ...], ...] = ()
    script: str = "SELECT"
    ends: tuple[int, ...] = VERSIONS
    codes: frozenset[int] = frozenset(CODES)
    repeats: bool = False  # a second call does it all again, as it should
    more: tuple[tuple[str, str], ...] = ()


UP = ("up",)
FORGET = "DROP SCHEMA preflight CASCADE; TRUNCATE done"
LATE = "INSERT INTO items (id) VALUES (0)"  # after the backup
FOLDER = (("PREFLIGHT_PARALLEL_MB", "0"), ("PREFLIGHT_JOBS", "2"))
STORIES = {
    "up": Story(),
    "folder": Story(more=FOLDER),
    "bucket": Story(),
    "rollback": Story(("rollback", "--to", "1"), (UP,), ends=(1,)),
    "force": Story(("force", "4"), (UP,), repeats=True),
    "adopt": Story(("adopt", "--through", "4"), (UP,), FORGET),
    "backup": Story(("backup",), (UP,), repeats=True),
    "restore": Story(("restore", "latest"), (UP, ("backup",)), repeats=True),
    "swap": Story(("restore", "latest", "--swap"), (UP, ("backup",)), LATE),
    # the command itself may be struck, on the copy (27) or in earnest (30)
    "wrap": Story(
        ("wrap", "--watch", "tool", "--trust-environment", "--", sys.executable, "tool/tool.py"),
        ends=(1, 2),
        codes=frozenset(CODES | {27, 30}),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Strike:
    """Who is struck, and when: at a message of the server's, or at an event of the run's."""

    victim: str
    message: int = 0
    among: str = "ours"
    event: str = ""
    rehearse: str = "off"
    commit: int = 0  # instead of a message: at the answer to so many COMMITs of ours
    stop: signal.Signals = signal.SIGTERM
    answered: bool = True  # else the server says nothing more to who was asked to stop

    def __str__(self) -> str:
        """Read as in `job at message 120 of ours, rehearse off`."""
        what = f"COMMIT {self.commit}" if self.commit else f"message {self.message}"
        when = f"event {self.event}" if self.event else f"{what} of {self.among}"
        how = f" by {self.stop.name}{'' if self.answered else ', unanswered,'}"
        return f"{self.victim}{how * (self.victim == 'stop')} at {when}, rehearse {self.rehearse}"


class AtMessage(faults.Fault):
    """Calls the striker when the server has sent so many messages to us, or to our clients.

    Or when it has answered so many COMMITs that were sent alone. Rows are not counted: between one
    and the next of them nothing changes.
    """

    def __init__(self, at: Strike, strike: Callable[[int], None]) -> None:
        """Count from the first connection on."""
        self.at, self.strike = at, strike
        self.seen = {"ours": 0, "clients": 0}
        self.commits = 0
        self.lock = threading.Lock()
        self.caller = threading.local()  # a connection has a thread of its own

    def startup(self, message: bytes) -> None:
        """See who calls."""
        self.caller.kind = "clients" if b"\0application_name\0pg_" in message else "ours"

    def connected(self) -> faults.Fault:
        """Count what this caller is sent."""
        return _Counted(self, self.caller.kind)

    def due(self, caller: str, *, commit: bool) -> bool:
        """Count a message, or an answer to a COMMIT, and tell whether it is the one."""
        with self.lock:
            self.seen[caller] += 1
            self.commits += commit
            if self.at.commit:
                return commit and self.commits == self.at.commit
            return caller == self.at.among and self.seen[caller] == self.at.message


class _Counted(faults.Fault):
    def __init__(self, all_: AtMessage, caller: str) -> None:
        self.all, self.caller, self.backend = all_, caller, 0
        self.committing = False

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Notice a COMMIT of ours."""
        alone = kind == b"Q" and message[5:].startswith(b"COMMIT")
        self.committing = alone and self.caller == "ours"
        return message

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Strike when it is time; the message comes through, unless its connection is cut."""
        if kind == b"K":
            self.backend = int.from_bytes(message[5:9], "big")
        if kind in b"Dd":
            return message
        if self.all.due(self.caller, commit=kind == b"C" and self.committing):
            self.all.strike(self.backend)
        return message


class Through(faults.Fault):
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
    """A database with rows and four files to apply, and what is around it, for one story."""

    def __init__(
        self, server: servers.Server, home: Path, name: str, told: str, more: Environment | None
    ) -> None:
        """Make it on that server, below that directory."""
        self.server, self.home, self.told, self.story = server, home, told, STORIES[told]
        self.database = servers.Database(server, name)
        self.left: list[int] = []  # clients whose job was killed
        self.halves: set[str] = set()  # of backups, which killed runs left
        self.kept, self.round = home.with_name(f"{home.name}.kept"), 0
        self.backups, self.files = home / "backups", home / "migrations"
        for each in (self.backups, self.files, home / "tool"):
            each.mkdir(parents=True)
        (home / "tool/tool.py").write_text(TOOL)
        for file, text in MIGRATIONS.items():
            (self.files / file).write_text(text)
        with server.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            connection.execute(_HASTY.format(sql.Identifier(name)))
        self.database.script(BEFORE)
        self.between = Through()  # a backup is of an address, and so is what a killed run leaves
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
            **dict(self.story.more),
            **(more or {}),
        }
        if told == "wrap":  # as an app names it
            address = f"{quote(servers.PASSWORD)}@{servers.HOST}:{self.proxy.port}/{name}"
            self.environment["DATABASE_URL"] = f"postgresql://{servers.SUPERUSER}:{address}"
        for command in self.story.before:
            made = self.run(*command, PREFLIGHT_BACKUP="off" if command == UP else "required")
            assert 0 == made.code, str(made)
        self.database.script(self.story.script)
        self.database.script("CHECKPOINT")  # what is there before a strike outlives it

    def keep(self) -> None:
        """Remember how all stands, to come back to it."""
        self.database.query(LOGGED)
        self._copy(f"kept_{self.database.name}", self.database.name)
        shutil.copytree(self.home, self.kept)

    def again(self) -> None:
        """Come back to it, which costs a tenth of making another one."""
        self._forget()
        self._copy(self.database.name, f"kept_{self.database.name}")
        shutil.copytree(self.kept, self.home)
        self.round += 1
        if self.told == "bucket":
            place, _, _ = self.environment["PREFLIGHT_BACKUP_DIR"].partition("/round")
            self.environment["PREFLIGHT_BACKUP_DIR"] = f"{place}/round{self.round}"

    def _copy(self, name: str, of: str) -> None:
        with self.server.connect() as connection:
            new, old = sql.Identifier(name), sql.Identifier(of)
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(new, old))
            connection.execute(_HASTY.format(new))

    def run(self, *command: str, **more: str) -> program.Result:
        """Run the story's command, or another, undisturbed."""
        rehearse = {} if "wrap" in self.story.command else {"PREFLIGHT_REHEARSE": "off"}
        main = program.Program({**self.environment, **rehearse, **more}, self.home)
        try:
            return main.run(*(command or self.story.command), timeout=PATIENCE_S)
        finally:
            main.close()

    def struck(self, strike: Strike) -> tuple[program.Result, bool]:
        """Run the command and strike; return what it left, and whether it was struck at all."""
        hit = threading.Event()
        held: list[program.Process] = []

        def blow(backend: int) -> None:
            if strike.victim == "connection":
                hit.set()
                raise faults.Cut
            if strike.victim == "stop":
                if held[0].running:
                    hit.set()  # before it ends
                _stop(held[0], strike)
            elif _BLOWS[strike.victim](self, held[0], backend):
                hit.set()

        self.between.now = AtMessage(strike, blow)
        more = {"PREFLIGHT_REHEARSE": strike.rehearse}
        main = program.Program({**self.environment, **more}, self.home)
        try:
            held.append(main.start(*self.story.command))
            if strike.event:
                with contextlib.suppress(AssertionError):  # a run may have no such event
                    held[0].wait_for_event(strike.event, PATIENCE_S)
                    if strike.victim == "pg_dump":  # the next one that begins
                        at_work = lambda: _children(held[0].pid) or not held[0].running  # noqa: E731
                        faults.until(at_work, "a client is at work", PATIENCE_S)
                    blow(_a_backend(self.database))
            result = held[0].wait(PATIENCE_S)
        finally:
            main.close()
            self.between.now = faults.Fault()
        self.server.start()  # where the postmaster was struck
        faults.until(lambda: _answers(self.server), "the server has recovered", PATIENCE_S)
        return result, hit.is_set()

    def databases(self) -> list[str]:
        """Return the database, and what was restored or kept beside it."""
        found = "SELECT datname::text FROM pg_database WHERE datname ~ %s ORDER BY 1"
        with self.server.connect() as connection:
            return [name for (name,) in connection.execute(found, [f"^{self.database.name}(_|$)"])]

    def drop(self) -> None:
        """Forget it."""
        self.proxy.close()
        self._forget(f"kept_{self.database.name}")
        shutil.rmtree(self.kept, ignore_errors=True)

    def _forget(self, *more: str) -> None:
        with self.server.connect() as connection:
            for name in (*self.databases(), *more):
                gone = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                connection.execute(gone.format(sql.Identifier(name)))
        shutil.rmtree(self.home, ignore_errors=True)


# --- who is struck --------------------------------------------------------------------------------


def _stop(process: program.Process, strike: Strike) -> None:
    """Ask the job to stop; return once it has been told, or, unanswered, once it has ended."""
    process.signal(strike.stop)
    told = lambda: not (process.running and _waits(process.pid, strike.stop))  # noqa: E731
    faults.until(told, "the signal has come to the job", PATIENCE_S)
    if not strike.answered:
        faults.until(lambda: not process.running, "it ends without an answer", PATIENCE_S)


def _waits(pid: int, number: signal.Signals) -> bool:
    """Tell whether the kernel still has a signal that was sent to a process."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        said = dict(line.split(":", 1) for line in status.splitlines())
        pending = int(said["SigPnd"], 16) | int(said["ShdPnd"], 16)
        return bool(pending >> (number - 1) & 1)
    return False


def _job(world: World, process: program.Process, backend: int) -> bool:
    """Kill the job; a pg_dump that writes a folder hears nothing of it, and is to end all the same.

    It stands still, so that it does not come to its end by itself.
    """
    del backend
    running = process.running
    alone = [pid for pid in _children(process.pid) if _is_dump(pid)] * (world.told == "folder")
    with contextlib.suppress(OSError):
        for pid in alone:
            os.kill(pid, signal.SIGSTOP)
    process.signal(signal.SIGKILL)
    world.left = alone
    return running


def _clients(world: World, process: program.Process, backend: int) -> bool:
    """Kill pg_dump or pg_restore, whichever is at work."""
    del world, backend
    killed = [_killed(pid) for pid in _children(process.pid)]
    return any(killed)


def _backend(world: World, process: program.Process, backend: int) -> bool:
    """Kill a server process: all others of that server end with it, and it recovers."""
    del world, process
    return backend > 0 and _killed(backend)


def _postmaster(world: World, process: program.Process, backend: int) -> bool:
    del process, backend
    running = world.server.running
    world.server.signal_postmaster(signal.SIGKILL)
    return running


def _is_dump(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "pg_dump\n"
    return False


def _killed(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


_BLOWS: dict[str, Callable[[World, program.Process, int], bool]] = {
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


def require_sound(world: World, result: program.Result, stopped: Strike | None = None) -> None:
    """Raise AssertionError unless all that is promised after any end holds.

    Each file ran once or not at all and the history says which; each backup that can be seen is
    whole; no session and no lock of ours is left; the code is one of ours and the log ends with
    it, what it says of files is true, and with 0 all is done; the password stands nowhere.
    """
    killed = result.code == -signal.SIGKILL
    _require_no_client(world)
    faults.until(lambda: not _sessions(world), "no session of ours is left", PATIENCE_S)
    assert world.database.name in world.databases(), "the live database is gone"
    assert [0] == world.database.query(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    codes = {0, 13, 128 + stopped.stop} if stopped else world.story.codes
    assert killed or result.code in codes, str(result)
    if not killed:
        assert result.code == result.finished["exit_code"], str(result)
        _require_true(world, result)
    ran, recorded = reality(world), history(world)
    assert sorted(set(ran)) == ran, f"a file ran twice: {ran}"
    assert result.code != 0 or list(world.story.ends) == ran, f"said to be done, and is not: {ran}"
    if world.told != "wrap":
        _require_as_recorded(world, ran, recorded)
    if world.told != "bucket":
        # who was not answered ends in the middle of its work, too
        _require_backups(world, killed=killed or bool(stopped and not stopped.answered))
    _require_no_secret(world, result)


def _require_true(world: World, result: program.Result) -> None:
    """Hold the last line against the history: what it lists was done by this run, and nothing else.

    With 13 one step more may be, whose answer never came: a file, or all that is adopted. What a
    stop says that stays of a file without a transaction stays, and else nothing does; and it comes
    too late where all is done.
    """
    said, error = result.finished, result.finished.get("error", {})
    if world.database.query("SELECT to_regclass('preflight.journal')") != [None]:
        for key, events in LISTED.items():
            there = world.database.query(
                "SELECT name FROM preflight.journal WHERE run_id = %s AND event = ANY (%s)"
                " ORDER BY id",
                *(said["run_id"], list(events)),
            )
            told = said.get(key, [])
            open_ = result.code == 13 and (key == "adopted" or len(there) == 1 + len(told))
            assert told == there[: len(told) if open_ else None], f"{key}: {told}, not {there}"
    if result.code - 128 not in STOPS:
        return
    assert ("stopped", "run.stopped") == (said["outcome"], error["code"])
    if world.story.command[0] in {"up", "rollback", "adopt"}:  # which write nothing but the history
        done = [version for version, state in history(world) if state == "done"]
        assert list(world.story.ends) != done, "all is done, and it is said to be stopped"
    if world.database.query("SELECT to_regclass('preflight.migrations')") != [None]:
        part_way = world.database.query(
            "SELECT statements_done FROM preflight.migrations WHERE run_id = %s AND state <> 'done'"
            " AND statements_done > 0",
            said["run_id"],
        )
        stays = re.findall(r"finished statements of \S+ \((\d+)\) stay", error["message"])
        assert part_way == [int(count) for count in stays if count != "0"], error


def _require_no_client(world: World) -> None:
    left, world.left = world.left, []
    try:
        faults.until(lambda: not any(map(_is_dump, left)), "no pg_dump is left", PATIENCE_S)
    finally:
        for pid in filter(_is_dump, left):
            _killed(pid)


def _require_as_recorded(world: World, ran: list[int], recorded: list[tuple[int, str]]) -> None:
    """Hold what is in the database against what the history and the journal say."""
    done = [version for version, state in recorded if state == "done"]
    part_way = {version for version, state in recorded if state != "done"}
    assert part_way <= {3}, f"only a file without a transaction may be part-way: {recorded}"
    done_once = [version for version in ran if version not in part_way]
    assert recorded == [] or done == done_once, (ran, recorded)
    copied = world.database.query("SELECT n FROM copied ORDER BY 1")
    assert copied in ([], [1, 2]), f"rows of a COPY came twice, or in part: {copied}"
    if world.database.query("SELECT to_regclass('preflight.journal')") != [None]:
        told = (
            "SELECT count(*) FROM preflight.journal WHERE version = 4 AND event = ANY (%s)"
            " UNION ALL SELECT count(*) FROM done WHERE forth = %s"
        )
        for events, forth in ((["applied", "forced"], True), (["rolled_back"], False)):
            journal, real = world.database.query(told, events, forth)
            assert journal == real, f"{events}: {journal} in the journal, {real} in truth"


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
            " AND (datname ~ %s OR datname LIKE 'preflight\\_scratch%%')",
            [f"^{world.database.name}(_|$)"],
        ).fetchall()


def _require_backups(world: World, *, killed: bool) -> None:
    for each in world.backups.iterdir():
        if each.name.startswith("."):
            # a killed run leaves it, until one gets so far that it sweeps
            assert killed or each.name in world.halves, f"half a backup is left: {each.name}"
            world.halves.add(each.name)
            continue
        manifest = json.loads((each / "manifest.json").read_text())
        said = manifest.get("files") or {"database.dump": manifest}
        where = each / "database.dir" if "files" in manifest else each
        for name, one in said.items():
            dump = (where / name).read_bytes()
            assert one["sha256"] == hashlib.sha256(dump).hexdigest(), where / name
            assert one["size_bytes"] == len(dump), where / name


def _require_no_secret(world: World, result: program.Result) -> None:
    texts = [result.stdout, result.stderr]
    texts += [each.read_text("utf-8") for each in world.backups.rglob("manifest.json")]
    assert not any(servers.PASSWORD in text for text in texts)
    if world.database.query("SELECT to_regclass('preflight.journal')") != [None]:
        journal = "SELECT count(*) FROM preflight.journal j WHERE strpos(j::text, %s) > 0"
        assert [0] == world.database.query(journal, servers.PASSWORD)


def require_settled(world: World) -> None:
    """Raise AssertionError unless the next call does all, and the one after it nothing more."""
    settled = world.run()
    require_sound(world, settled)
    assert 0 == settled.code, str(settled)
    assert list(world.story.ends) == reality(world), str(settled)
    if world.told != "wrap":
        assert [(each, "done") for each in world.story.ends] == history(world)
        there = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('items_note')"
        assert [True] * (3 in world.story.ends) == world.database.query(there)
    assert [] == [each.name for each in world.backups.iterdir() if each.name.startswith(".")]
    with world.server.connect() as connection:
        scratch = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"
        left = connection.execute(scratch).fetchall()
    assert [] == left, f"copies are left: {left}"
    _require_restored(world)
    if not world.story.repeats:
        kept, databases = backups(world), world.databases()
        again = world.run()
        assert 0 == again.code, str(again)
        assert "applied" not in again.finished, str(again)
        assert (kept, databases) == (backups(world), world.databases())


def backups(world: World) -> list[str]:
    """Return the names of the backups that can be seen."""
    if world.told != "bucket":
        return sorted(each.name for each in world.backups.iterdir())
    listed = world.run("backups", "--json")
    assert 0 == listed.code, str(listed)
    return [each["backup"] for each in listed.json()["backups"]]


def _require_restored(world: World) -> None:
    """Raise AssertionError unless what was, or can be, restored has all rows of its backup."""
    if world.told == "bucket":  # nothing else looks into it
        back = world.run("restore", "latest", PREFLIGHT_SPOOL_DIR=str(world.home))
        assert 0 == back.code, str(back)
    count = "SELECT count(*) FROM items"
    for name in world.databases():
        late = world.told == "swap" and name != world.database.name  # a row came after the backup
        assert [500 + late] == servers.Database(world.server, name).query(count), name
    beside = {"bucket": 1, "restore": 1, "swap": 1}.get(world.told, 0)
    assert 1 + beside == len(world.databases()), world.databases()


def crash(world: World, strikes: list[Strike]) -> list[tuple[Strike, bool]]:
    """Strike one run after the other until all is done, then let one through.

    Return the strikes that were tried, and whether each struck. Raises AssertionError when
    something that is promised does not hold.
    """
    tried = []
    for strike in strikes:
        result, hit = world.struck(strike)
        tried.append((strike, hit))
        try:
            require_sound(world, result, strike if hit and strike.victim == "stop" else None)
        except AssertionError as error:
            raise AssertionError(f"{world.told}, {strike}: {error}\n{result}") from error
        if result.code == 0 and not world.story.repeats:
            break  # nothing is left to strike at
    try:
        require_settled(world)
    except AssertionError as error:
        told = "; ".join(str(strike) for strike, _ in tried)
        raise AssertionError(f"{world.told}, after {told}: {error}") from error
    return tried


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A run that nobody struck: how many messages it and its clients get, which events it has."""

    ours: int
    clients: int
    commits: int
    events: tuple[str, ...]


def undisturbed(world: World, rehearse: str) -> Undisturbed:
    """Tell a story and count what we are sent, and what our clients are."""
    counting = world.between.now = AtMessage(Strike("nobody"), lambda _: None)
    result = world.run(PREFLIGHT_REHEARSE=rehearse)
    world.between.now = faults.Fault()
    assert 0 == result.code, str(result)
    events = tuple(dict.fromkeys(result.names))
    return Undisturbed(**counting.seen, commits=counting.commits, events=events)


# --- at random ------------------------------------------------------------------------------------


Counted = Callable[[str, str], Undisturbed]


def at_random(choice: random.Random, told: str, counted: Counted) -> list[Strike]:
    """Return some strikes, most of them at our own messages.

    The first comes as likely early as late. Each leaves less to do to the next run, so that later
    ones come early in it.
    """
    found = []
    for before in range(choice.choice([1, 4, 8])):
        rehearse = "auto" if told == "wrap" else choice.choice(["off", "off", "auto"])
        most = counted(told, rehearse)
        victim = choice.choice([each for each in VICTIMS if each != "pg_dump" or most.clients])
        among = choice.choice(["ours", "ours", "ours", "clients"])
        if victim == "pg_dump" or not most.clients:
            among = "clients" if most.clients else "ours"
        all_ = most.clients if among == "clients" else most.ours
        message = choice.randint(1, max(1, all_ // (1 + before)))
        strike = Strike(victim, message, among, rehearse=rehearse)
        found.append(strike if victim != "stop" else _some_stop(choice, strike, most.commits))
    return found


def _some_stop(choice: random.Random, strike: Strike, commits: int) -> Strike:
    """Return a stop there, or at a COMMIT, now and then by SIGINT, or without an answer."""
    commit = choice.randint(1, commits) if commits and choice.random() < 1 / 3 else 0
    stop, answered = choice.choice([*STOPS[:1] * 3, STOPS[1]]), choice.random() < 3 / 4
    return dataclasses.replace(
        strike,
        message=0 if commit else strike.message,
        among="ours" if commit else strike.among,
        commit=commit,
        stop=stop,
        answered=answered,
    )


def at_each_event(told: str, victim: str, counted: Counted) -> list[Strike]:
    """Return the strikes at the events of a story, one after the other."""
    rehearse = "off" if told != "wrap" else "auto"
    events = counted(told, rehearse).events
    if victim != "postmaster":  # it can be struck when the run has ended, too
        events = events[:-1]
    if victim == "pg_dump":  # of more than one event before a client begins, one is enough
        events = tuple(each for each in events if each.endswith(".started"))
    return [Strike(victim, event=each, rehearse=rehearse) for each in events]


def at_messages(told: str, first: Strike, each: int, part: int, counted: Counted) -> list[Strike]:
    """Return one of PARTS of the strikes like the first at each so-many-th message of a story."""
    rehearse = "off" if told != "wrap" else "auto"
    messages = range(1, 1 + getattr(counted(told, rehearse), first.among), each)
    few = -(-len(messages) // PARTS)
    return [
        dataclasses.replace(first, message=message, rehearse=rehearse)
        for message in messages[part * few : (part + 1) * few]
    ]


class Worlds:
    """The worlds on one server, one a story, each made once and come back to."""

    def __init__(self, major: int, counts: dict[tuple[str, str], Undisturbed]) -> None:
        """Start the server; what a story has when nobody disturbs it is the same on all."""
        # what a COMMIT does not write, nobody writes soon
        self.server, self.counts = servers.start(major, wal_writer_delay="10s"), counts
        self.home = Path(tempfile.mkdtemp(prefix="pg-preflight-crash-"))
        self.opened = contextlib.ExitStack()
        self.now: dict[str, World] = {}
        self.number = 0

    @functools.cached_property
    def bucket(self) -> Environment:
        """A bucket that all worlds share, each round at a place of its own."""
        return self.opened.enter_context(buckets.s3()).env()

    def world(self, told: str) -> World:
        """Return the story's world, as it is before anything happens."""
        if told not in self.now:
            self.number += 1
            name = f"crash_{self.number}"
            more = self.bucket if told == "bucket" else None
            self.now[told] = World(self.server, self.home / name, name, told, more)
            self.now[told].keep()
        self.now[told].again()
        return self.now[told]

    def counted(self, told: str, rehearse: str) -> Undisturbed:
        """Return what the story's command does when nobody disturbs it."""
        if (told, rehearse) not in self.counts:
            self.counts[told, rehearse] = undisturbed(self.world(told), rehearse)
        return self.counts[told, rehearse]

    def leave(self, told: str) -> None:
        """Leave a world to be looked at, but no copies: the next one is not to be blamed."""
        del self.now[told]
        self.server.start()
        scratch = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"
        with self.server.connect() as connection:
            for (name,) in connection.execute(scratch).fetchall():
                gone = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
                connection.execute(gone)

    def close(self, *, remove: bool) -> None:
        """End what was started."""
        self.opened.close()
        if remove:
            self.server.remove()
            shutil.rmtree(self.home)


Task = tuple[str, str, Callable[[Counted], list[Strike]]]  # how it is called, its story, what


class Walk:
    """What is to be struck, and what was, by several threads with a server each."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        """Begin."""
        self.tasks, self.lock = tasks, threading.Lock()
        self.counts: dict[tuple[str, str], Undisturbed] = {}
        self.done = self.wrong = 0
        self.struck: collections.Counter[str] = collections.Counter()

    def next(self) -> Task | None:
        """Return the next task."""
        with self.lock:
            return next(self.tasks, None)

    def go(self, major: int) -> None:
        """Strike on a server of that version until there is nothing left."""
        worlds, wrong = Worlds(major, self.counts), False
        while task := self.next():
            words, told, chosen = task
            left = chosen(worlds.counted)
            while left:
                try:
                    tried = crash(worlds.world(told), left)
                except (AssertionError, psycopg.Error, servers.Broken) as error:
                    wrong, tried = True, []
                    self.say(f"{words}{error}\n{worlds.server!r}, {worlds.home}", wrong=1)
                    worlds.leave(told)
                left = left[len(tried) :] if tried else []
                self.settled(tried)
        worlds.close(remove=not wrong)

    def settled(self, tried: list[tuple[Strike, bool]]) -> None:
        """Count what was struck, and say now and then how far it is."""
        with self.lock:
            self.done += 1
            self.struck.update(strike.victim for strike, hit in tried if hit)
        if self.done % 20 == 0:
            self.say(str(self))

    def say(self, text: str, wrong: int = 0) -> None:
        """Say it at once."""
        with self.lock:
            self.wrong += wrong
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def __str__(self) -> str:
        """Tell how many were killed; to cut a connection kills nobody, nor does a stop."""
        kills = self.struck.total() - sum(self.struck[each] for each in ALIVE)
        who = ", ".join(f"{each} {self.struck[each]}" for each in VICTIMS)
        return f"{self.done} databases, {kills} kills, {self.wrong} wrong ({who})"


def main() -> int:
    """Strike until the time is over; 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--majors", default="17", help="of the servers, as in 15,18")
    parser.add_argument("--jobs", type=int, default=4, help="servers at once; a run mostly waits")
    parser.add_argument("--events", action="store_true", help="each victim at each event in turn")
    parser.add_argument("--messages", type=int, help="in turn at each so-many-th message")
    parser.add_argument("--stories", default=",".join(STORIES), help="of these commands alone")
    asked = parser.parse_args()
    seed, _, only = str(asked.seed).partition("/")
    stories = asked.stories.split(",")

    def by_chance() -> Iterator[Task]:
        for number in faults.numbers(only, asked.minutes):
            choice = random.Random(f"{seed}/{number}")  # noqa: S311 - to be repeated, no secret
            told = choice.choice(sorted(stories))
            yield f"SEED={seed}/{number} ", told, functools.partial(at_random, choice, told)

    def in_turn() -> Iterator[Task]:
        for told, victim in itertools.product(stories, VICTIMS[1:]):
            yield "", told, functools.partial(at_each_event, told, victim)

    def along() -> Iterator[Task]:
        victims = ("connection", "stop", "job")
        who = itertools.product(stories, victims, ("ours", "clients"), range(PARTS))
        for told, victim, among, part in who:
            first = Strike(victim, among=among)
            yield "", told, functools.partial(at_messages, told, first, asked.messages, part)

    majors = [int(each) for each in asked.majors.split(",")]
    walk = Walk(along() if asked.messages else in_turn() if asked.events else by_chance())
    threads = [
        threading.Thread(target=walk.go, args=(majors[number % len(majors)],))
        for number in range(1 if only else asked.jobs)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    walk.say(f"seed {seed}, servers {asked.majors}: {walk}")
    return min(walk.wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
