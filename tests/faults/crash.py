"""Crash anywhere: a run is struck down at any of its messages or events, and the next one settles.

`make crash SEED=7 MINUTES=10` strikes at random and says how to repeat what went wrong:
`make crash SEED=7/123` does number 123 of that seed alone. `make crash EVENTS=1` strikes each
victim at each event of each command in turn; `make crash MESSAGES=10` does so at each tenth message
of each command: of ours, and of pg_dump's and pg_restore's. `make crash IMPORTS=1` asks the job to
stop at each module that it loads. `STORIES=up,wrap` takes these commands alone,
`VICTIMS=pg_dump,backend` these victims.
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
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from tests import buckets, faults, program, servers
from tests.faults import ends, leaks

Environment = dict[str, str]

# Each file says in `ran` that it ran: what the history claims is compared with it.
MIGRATIONS = {
    "001_first.sql": "CREATE TABLE ran (version int, alone bool DEFAULT locked());\n"
    "INSERT INTO ran VALUES (1);\n",
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
LOCKED = """
CREATE FUNCTION locked() RETURNS bool LANGUAGE sql AS 'SELECT EXISTS (SELECT FROM pg_locks
 WHERE locktype = ''advisory'' AND granted AND pid = pg_backend_pid() AND database =
 (SELECT oid FROM pg_database WHERE datname = current_database()))';
"""
BEFORE = (
    "CREATE TABLE items (id int PRIMARY KEY); CREATE TABLE copied (n int);"
    "CREATE SEQUENCE counted; SELECT nextval('counted');"
    f"{LOCKED}"  # each file notes whether its session held the run's lock
    "CREATE TABLE done (forth bool, alone bool DEFAULT locked());"
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
import json
import os
import pathlib
import signal
import time
import psycopg

HOW = pathlib.Path(__file__).parent.parent / "how"
ROW = "INSERT INTO copied VALUES (1)"
SLEEPS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid = %s"

def call(how):
    return psycopg.connect(how["url"], application_name="tool")

def leave(how):
    told, tells = os.pipe()
    if os.fork() == 0:
        os.setsid()
        it = call(how)
        it.execute(ROW)
        signal.signal(signal.SIGTERM, lambda *_: (it.commit(), os._exit(0)))
        os.write(tells, b"1")
        while True:
            signal.pause()
    os.read(told, 1)

def go_on(it):
    it.commit()
    it.pgconn.send_query(b"INSERT INTO copied SELECT 1 FROM (SELECT pg_sleep(1)) s")
    it.pgconn.flush()
    with psycopg.connect(it.info.dsn, password=it.info.password) as other:
        while other.execute(SLEEPS, [it.info.backend_pid]).fetchone() == (0,):
            other.rollback()

def borrow():
    (HOW / "asked").touch()
    while not (HOW / "lent").exists():
        time.sleep(0.01)

def end(how):
    kept = []
    for number, deed in enumerate(how["deeds"]):
        it = call(how)
        kept.append(it)
        if deed not in ("counts", "goes on", "leaves", "borrows"):
            it.execute(ROW)
        if deed == "aborts":
            it.rollback()
        elif deed == "commits":
            it.commit()
        elif deed == "makes":
            it.execute(f"CREATE TABLE made_by_{os.getpid()}_{number} ()")
            it.commit()
        elif deed == "counts":
            it.execute("SELECT nextval('counted')")
            it.rollback()
        elif deed == "prepares":
            it.execute(f"PREPARE TRANSACTION 'deed_{os.getpid()}_{number}'")
        elif deed == "goes on":
            go_on(it)
        elif deed == "leaves":
            leave(how)
        elif deed == "borrows":
            borrow()
    (HOW / "done").touch()
    os._exit(3)

with psycopg.connect(os.environ["DATABASE_URL"], application_name="tool", autocommit=True) as it:
    if (HOW / "how.json").exists():
        how = json.loads((HOW / "how.json").read_text())
        if (how["at"] == "live") == (it.info.dbname == how["database"]):
            end(how)
    it.execute("CREATE TABLE IF NOT EXISTS ran (version int PRIMARY KEY)")
    for version in (1, 2):
        with it.transaction():
            it.execute("INSERT INTO ran VALUES (%s) ON CONFLICT DO NOTHING", [version])
            it.execute("CREATE TABLE IF NOT EXISTS made_%s ()" % version)
"""
# The job alone, not what it starts: from the moment when there is something of ours that could hear
# a signal, which is the interpreter's affair before. A terminal is there, however tests are run.
STEPS = """
import _signal
import os
import sys

PLACE, JOB, MODULE = {place!r}, os.getpid(), {module!r}
FIRST, LAST = "preflight.base.unloadable", "preflight.commands.choice"

class Steps:
    ours = stood = False

    def find_spec(self, name, path=None, target=None):
        if os.getpid() != JOB:
            return
        if self.ours and not MODULE:
            with open(PLACE + "/seen", "a") as seen:
                seen.write(name + "\\n")
        if self.ours and name == MODULE and not self.stood:
            self.stood = True
            self.stand()
        self.ours = self.ours or name == FIRST

    def stand(self):
        with open(PLACE + "/loaded", "w") as loaded:
            loaded.write("all" if LAST in sys.modules else "part")
        os.rename(PLACE + "/loaded", PLACE + "/asked")
        os.close(os.open(PLACE + "/lets_go", os.O_RDONLY))

if {entrypoint!r} in sys.orig_argv:
    _signal.signal(_signal.SIGHUP, _signal.SIG_DFL)
    sys.meta_path.insert(0, Steps())
"""
# what a command did on the live database, each in a session of its own, when it ended with 3; the
# last two are done for it, by a process that it leaves behind and by one who was there before it
DEEDS = (
    "aborts", "opens", "commits", "makes", "counts", "prepares", "goes on", "leaves", "borrows",
)  # fmt: skip
NAUGHT = {"aborts", "opens"}  # come to naught: of all others something stays, or may
VICTIMS = ("connection", "stop", "job", "pg_dump", "backend", "postmaster", "tool")
ALIVE = ("connection", "stop", "tool")  # of these nobody is killed
ALONG = [  # a command's messages: of whose
    *itertools.product(("connection", "stop", "job", "backend", "postmaster"), ("ours", "clients")),
    ("pg_dump", "clients"),
    ("connection", "answers"),
]
PARTS = 6  # of a walk along a command's messages: several servers share it
CLIENTS = leaks.CLIENTS
OURS_S, CLIENTS_S = 30.0, 420.0  # of silence; pg_dump stands still while a store does
PATIENCE_S = 300.0  # none of these is a promise: only so that nothing hangs for ever
# a killed run's lock is free in two seconds; the server counts, in rounds of a tenth of a second
# and a new session, which take the longer the less of a processor it has
ROUNDS = 100
OF_A_LINE = ("timestamp", "level", "event", "message")  # no part of a termination message
STOPS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOPS, signal.SIGHUP)
LISTED = {  # in `run.finished`, and the events of the journal that say the same
    "applied": ("applied", "forced"),
    "adopted": ("adopted", "vouched"),
    "rolled_back": ("rolled_back",),
}
# what a run may end with that was struck, and not killed itself
CODES = {0, 10, 11, 12, 13, 14, 31, 32}
# what a COMMIT does not write, nobody writes soon; and nobody's transaction is autovacuum's
SETTINGS: dict[str, str | int] = {
    "wal_writer_delay": "10s",
    "autovacuum": "off",
    "max_prepared_transactions": 8,
}
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
    due: bool = True  # there is something to do
    rival: bool = False  # another such run waits for the lock when the first is struck

    @property
    def wraps(self) -> bool:
        """Whether it is another tool that changes something."""
        return "wrap" in self.command


UP, BACK = ("up",), ("rollback", "--to", "1")
FORGET = "DROP SCHEMA preflight CASCADE; TRUNCATE done"
LATE = "INSERT INTO items (id) VALUES (0)"  # after the backup
FOLDER = (("PREFLIGHT_PARALLEL_MB", "0"), ("PREFLIGHT_JOBS", "2"))
# the command itself may be struck, on the copy (27) or in earnest (30)
WRAP = Story(
    ("wrap", "--watch", "tool", "--trust-environment", "--", sys.executable, "tool/tool.py"),
    ends=(1, 2),
    codes=frozenset(CODES | {27, 30}),
)
STORIES = {
    "up": Story(),
    "up_again": Story(before=(UP, BACK)),
    "nothing": Story(before=(UP,), due=False),
    "folder": Story(more=FOLDER),
    "bucket": Story(),
    "rollback": Story(BACK, (UP,), ends=(1,)),
    "force": Story(("force", "4"), (UP,), repeats=True),
    "adopt": Story(("adopt", "--through", "4"), (UP,), FORGET),
    "backup": Story(("backup",), (UP,), repeats=True),
    "restore": Story(("restore", "latest"), (UP, ("backup",)), repeats=True),
    "swap": Story(("restore", "latest", "--swap"), (UP, ("backup",)), LATE),
    "wrap": WRAP,
    "pair": Story(rival=True),
    "wrap_pair": dataclasses.replace(WRAP, rival=True),
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
    deeds: tuple[str, ...] = ()  # of a wrapped command, before it ends by itself
    at: str = "live"  # where it does them: in earnest, or while it should be led to the copy
    module: str = ""  # instead of a message: when the job looks for it

    def __str__(self) -> str:
        """Read as in `job at message 120 of ours, rehearse off`."""
        deeds = f"tool that {', '.join(self.deeds)} on {self.at}, rehearse {self.rehearse}"
        if self.victim == "tool":
            return deeds
        what = f"COMMIT {self.commit}" if self.commit else f"message {self.message}"
        when = f"event {self.event}" if self.event else f"{what} of {self.among}"
        when = f"import of {self.module}" if self.module else when
        how = f" by {self.stop.name}{'' if self.answered else ', unanswered,'}"
        which = f"{self.victim}{how * (self.victim == 'stop')} at {when}, rehearse {self.rehearse}"
        return which + f", {deeds}" * bool(self.deeds)


class AtMessage(faults.Fault):
    """Calls the striker when the server has sent so many messages to us, or to our clients.

    Or when it has answered so many COMMITs that were sent alone. Rows are not counted: between one
    and the next of them nothing changes.
    """

    def __init__(self, at: Strike, strike: Callable[[int], None]) -> None:
        """Count from the first connection on."""
        self.at, self.strike = at, strike
        self.seen = {"ours": 0, "clients": 0, "answers": 0}
        self.commits = 0
        self.locked = False  # the connection that was struck held the run's lock
        self.lock = threading.Lock()
        self.caller = threading.local()  # a connection has a thread of its own

    def startup(self, message: bytes) -> None:
        """See who calls."""
        self.caller.kind = "clients" if b"\0application_name\0pg_" in message else "ours"

    def connected(self) -> faults.Fault:
        """Count what this caller is sent."""
        return _Counted(self, self.caller.kind)

    def due(self, *callers: str, commit: bool) -> bool:
        """Count a message, or an answer to a COMMIT, and tell whether it is the one."""
        with self.lock:
            for each in callers:
                self.seen[each] += 1
            self.commits += commit
            if self.at.commit:
                return commit and self.commits == self.at.commit
            return self.at.among in callers and self.seen[self.at.among] == self.at.message


_LOCK = b"SELECT pg_catalog.pg_try_advisory_lock("  # the row says t


class _Counted(faults.Fault):
    def __init__(self, all_: AtMessage, caller: str) -> None:
        self.all, self.caller, self.backend = all_, caller, 0
        self.committing = self.asking = self.locked = False
        self.upstream: socket.socket | None = None

    def joined(self, client: socket.socket, upstream: socket.socket) -> None:
        """Keep what leads to the server's process before that says its number."""
        del client
        self.upstream = upstream

    def _number(self) -> int:
        """Return the number of the server's process, while somebody logs in, too."""
        if self.backend or not self.upstream:
            return self.backend
        found = ends.end(self.upstream.getpeername(), self.upstream.getsockname())
        return found.pid if found else 0

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Notice a COMMIT of ours, and who asks for the run's lock."""
        self.asking = (self.asking and kind not in b"PQ") or _LOCK in message
        alone = kind == b"Q" and message[5:].startswith(b"COMMIT")
        self.committing = alone and self.caller == "ours"
        return message

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Strike when it is time; the message comes through, unless its connection is cut."""
        if kind == b"K":
            self.backend = int.from_bytes(message[5:9], "big")
        if kind in b"Dd":
            self.locked = self.locked or (self.asking and message.endswith(b"t"))
            return message
        callers = [self.caller, *["answers"] * (self.locked and kind == b"Z")]
        if self.all.due(*callers, commit=kind == b"C" and self.committing):
            self.all.locked = self.locked
            self.all.strike(self._number())
        return message


class Through(faults.Fault):
    """Does what another fault does: the address stays the same when that one changes.

    Both ends of each connection of ours and of our clients are looked at: whose peer vanishes
    gives it up.
    """

    def __init__(self) -> None:
        self.now = faults.Fault()
        self.caller = threading.local()
        self.ends = 0  # that were looked at
        self.patient: list[str] = []  # those that wait too long

    def startup(self, message: bytes) -> bytes | None:
        """Ask the one of the moment."""
        self.caller.said = message
        return self.now.startup(message)

    def connected(self) -> faults.Fault:
        """Ask the one of the moment."""
        return _Ends(self, self.now.connected(), self.caller.said)

    def look(self, beside: socket.socket, startup: bytes) -> None:
        """Look at the other end of a socket of the proxy's."""
        found = ends.end(beside.getpeername(), beside.getsockname())
        if found and (most_s := _most_s(found, startup)):
            self.ends += 1
            if found.waits_s > most_s:
                self.patient.append(f"{found.program}, {found.waits_s:g} s of {most_s:g} s")


def _most_s(end: ends.End, startup: bytes) -> float:
    """Return after how many seconds a silent peer is to be given up there; 0: not our affair.

    A look whose statements have a timeout has a clock of its own, and a client that cancels what
    it is at is being ended by us. So may a wrapped tool be, whose way to do so is its own.
    """
    if int.from_bytes(startup[4:8], "big") == faults.CANCEL_REQUEST:
        return 0 if end.program in CLIENTS or "tool.py" in end.command else OURS_S
    texts = startup[8:].split(b"\0")
    said = dict(zip(texts[::2], texts[1::2], strict=False))
    name = said.get(b"application_name", b"").decode()
    if name == "tool" or re.search(rb"statement_timeout=[1-9]", said.get(b"options", b"")):
        return 0
    return CLIENTS_S if name in CLIENTS else OURS_S


class _Ends(faults.Fault):
    """Looks at both ends of a connection as soon as they are as they should be."""

    def __init__(self, all_: Through, fault: faults.Fault, startup: bytes) -> None:
        self.all, self.fault, self.said = all_, fault, startup
        self.upstream: socket.socket | None = None

    def joined(self, client: socket.socket, upstream: socket.socket) -> None:
        """Look at the end of who calls."""
        self.all.look(client, self.said)
        self.upstream = upstream
        self.fault.joined(client, upstream)

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Look at the server's end when the first question comes."""
        if self.upstream and kind in b"PQ":
            self.all.look(self.upstream, self.said)
            self.upstream = None
        return self.fault.to_server(kind, message)

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Ask the fault that is there."""
        return self.fault.to_client(kind, message)


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
        self.unlocked = False  # the run that was struck held the lock, and lost its connection
        self.loading = False  # it was asked to stop before it had loaded what it begins with
        self.shown: leaks.Seen = {}  # of the processes of the run that was struck
        self.verified: set[str] = set()  # backups that a run has said to be
        self.silent = False  # a run was killed that may have removed one without a word
        self.whole: set[str] = set()  # dumps that were read to their ends, by their SHA-256
        self.before: object = None  # what a wrapped command may change, as it was
        self.kept, self.round = home.with_name(f"{home.name}.kept"), 0
        self.backups, self.files = home / "backups", home / "migrations"
        for each in (self.backups, self.files, home / "tool", home / "how"):
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
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_REHEARSE_ON": "server",
            "PREFLIGHT_WAIT_TIMEOUT_S": "20",
            **dict(self.story.more),
            **(more or {}),
        }
        if self.story.wraps:  # as an app names it
            self.environment["DATABASE_URL"] = self.url(self.proxy.port)
        for command in self.story.before:
            made = self.run(*command, PREFLIGHT_BACKUP="required" if "backup" in command else "off")
            assert 0 == made.code, str(made)
        self.database.script(self.story.script)
        self.database.script("CHECKPOINT")  # what is there before a strike outlives it

    def url(self, port: int) -> str:
        """Return the database's address, straight or through the proxy."""
        secret = f"{servers.SUPERUSER}:{quote(servers.PASSWORD)}"
        return f"postgresql://{secret}@{servers.HOST}:{port}/{self.database.name}"

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
        self.verified, self.silent = set(), False
        if self.told == "bucket":
            place, _, _ = self.environment["PREFLIGHT_BACKUP_DIR"].partition("/round")
            self.environment["PREFLIGHT_BACKUP_DIR"] = f"{place}/round{self.round}"

    def _copy(self, name: str, of: str) -> None:
        with self.server.connect() as connection:
            new, old = sql.Identifier(name), sql.Identifier(of)
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(new, old))
            connection.execute(_HASTY.format(new))

    @property
    def messages(self) -> list[str]:
        """The termination messages of the last run, and of its rival."""
        return [each.read_text("utf-8") for each in self.home.glob("termination-log*")]

    def message(self, of: str = "") -> Environment:
        """Make an empty place for a termination message, as the kubelet does for each run."""
        place = self.home / f"termination-log{of}"
        place.write_bytes(b"")
        return {"PREFLIGHT_TERMINATION_LOG": str(place)}

    def run(self, *command: str, **more: str) -> program.Result:
        """Run the story's command, or another, undisturbed."""
        rehearse = {} if self.story.wraps else {"PREFLIGHT_REHEARSE": "off"}
        more = {**rehearse, **self.message(), **more}
        main = program.Program({**self.environment, **more}, self.home)
        try:
            return main.run(*(command or self.story.command), timeout=PATIENCE_S)
        finally:
            main.close()

    def struck(self, strike: Strike) -> tuple[list[program.Result], bool]:
        """Run the command and strike; return what it left, and whether it was struck at all.

        A rival's comes behind that of who was struck.
        """
        hit = threading.Event()
        held: list[program.Process] = []
        self.before = truth(self)
        self.shown = {}
        self.loading = False
        more = {"PREFLIGHT_REHEARSE": strike.rehearse} | self._straight(strike) | self.message()
        more |= self.steps(strike.module) if strike.module else {}
        if strike.victim == "postmaster":
            more |= {"PREFLIGHT_WAIT_TIMEOUT_S": "5"}  # nobody starts it before the run gives up
        main = program.Program({**self.environment, **more}, self.home)

        def blow(backend: int) -> None:
            if self.story.rival:
                held.append(main.start(*self.story.command, env=self.message("-of-the-rival")))
                _waits_or_works(held[-1], while_stands=held[0])
            for each in held:
                self.shown |= leaks.of_processes(each.pid)
            if strike.victim == "connection":
                hit.set()
                raise faults.Cut
            if strike.victim == "stop":
                if held[0].running:
                    hit.set()  # before it ends
                _stop(held[0], strike)
            elif _BLOWS[strike.victim](self, held[0], backend):
                hit.set()

        at = self.between.now = AtMessage(strike, blow)
        with self._misled(strike) as done:
            try:
                held.append(main.start(*self.story.command))
                self._beside_messages(strike, held[0], blow)
                results = [held[0].wait(PATIENCE_S)]
                results += [each.wait(PATIENCE_S) for each in held[1:]]
            finally:
                main.close()
                self.between.now = faults.Fault()
            self.server.start()  # where the postmaster was struck
            faults.until(lambda: _answers(self.server), "the server has recovered", PATIENCE_S)
            if strike.victim == "tool" and done():
                hit.set()
        self.unlocked = hit.is_set() and strike.victim == "connection" and at.locked
        return results, hit.is_set()

    def _beside_messages(
        self, strike: Strike, process: program.Process, blow: Callable[[int], None]
    ) -> None:
        if strike.event:
            self._at_event(strike, process, blow)
        if strike.module:
            self._at_import(process, blow)

    def _at_event(
        self, strike: Strike, process: program.Process, blow: Callable[[int], None]
    ) -> None:
        with contextlib.suppress(AssertionError):  # a run may have no such event
            process.wait_for_event(strike.event, PATIENCE_S)
            if strike.victim == "pg_dump":  # the next one that begins
                at_work = lambda: _children(process.pid) or not process.running  # noqa: E731
                faults.until(at_work, "a client is at work", PATIENCE_S)
            blow(_a_backend(self.database) if strike.victim == "backend" else 0)

    def steps(self, module: str = "") -> Environment:
        """Have a job say what it loads, and stand still where it looks for that module."""
        place = self.home / "steps"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.mkfifo(place / "lets_go")
        of_all = {"place": str(place), "module": module, "entrypoint": str(program.ENTRYPOINT)}
        (place / "sitecustomize.py").write_text(STEPS.format(**of_all))
        others = filter(None, [self.environment.get("PYTHONPATH")])
        return {"PYTHONPATH": os.pathsep.join([str(place), *others])}

    @property
    def imports(self) -> tuple[str, ...]:
        """What the last job with steps has looked for, once each."""
        return tuple(dict.fromkeys((self.home / "steps/seen").read_text().split()))

    def _at_import(self, process: program.Process, blow: Callable[[int], None]) -> None:
        place = self.home / "steps"
        asked = (place / "asked").exists
        faults.until(lambda: asked() or not process.running, "it loads the module", PATIENCE_S)
        if not asked():  # a run may have no such module
            return
        self.loading = (place / "asked").read_text() == "part"
        blow(0)

        def let_go() -> bool:
            with contextlib.suppress(OSError):  # it is not there yet, or no more
                os.close(os.open(place / "lets_go", os.O_WRONLY | os.O_NONBLOCK))
                return True
            return not process.running

        faults.until(let_go, "it goes on", PATIENCE_S)

    def _straight(self, strike: Strike) -> Environment:
        """Return what leads past the proxy where it is not needed: sessions are seen whose then."""
        if strike.victim != "tool":
            return {}
        return {**self.database.env(), "DATABASE_URL": self.url(self.server.port)}

    @contextlib.contextmanager
    def _misled(self, strike: Strike) -> Iterator[Callable[[], bool]]:
        """Have the command do what it is struck for; yield whether it has done all of it.

        What it leaves to others comes through in the end, as far as the server lets it.
        """
        place = self.home / "how"
        if not strike.deeds:
            yield lambda: False
            return
        how = {
            "at": strike.at,
            "database": self.database.name,
            "url": self.url(self.server.port if strike.victim == "tool" else self.proxy.port),
            "deeds": strike.deeds,
        }
        (place / "how.json").write_text(json.dumps(how))
        over = threading.Event()
        with self.server.connect(self.database.name) as lender:
            lender.execute("BEGIN")  # before anybody else
            lends = threading.Thread(target=_lend, args=(lender, place, over))
            lends.start()
            try:
                yield (place / "done").exists
            finally:
                over.set()
                lends.join()
                with contextlib.suppress(psycopg.OperationalError):  # the server was struck
                    lender.execute("COMMIT")
                for each in place.iterdir():
                    each.unlink()
                gone = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
                for name in self.database.query(gone):
                    self.database.script(f"COMMIT PREPARED '{name}'")

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


def _waits_or_works(rival: program.Process, while_stands: program.Process) -> None:
    """Return once it waits for the run's lock, or has it, or needs none; the first stands still."""

    def begun() -> bool:
        said = {each["event"] for each in rival.events}
        return not rival.running or bool(said & {"lock.busy", "lock.acquired"})

    while_stands.signal(signal.SIGSTOP)
    try:
        faults.until(begun, "the other run has come to the lock", PATIENCE_S)
    finally:
        while_stands.signal(signal.SIGCONT)


def _lend(lender: psycopg.Connection, place: Path, over: threading.Event) -> None:
    """Write into a transaction that began before the command, once it asks for it."""
    while not over.wait(0.01):
        if (place / "asked").exists():
            lender.execute("INSERT INTO copied VALUES (2)")
            (place / "lent").touch()
            return


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
    return leaks.children().get(pid, [])


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


def require_sound(
    world: World,
    result: program.Result,
    stopped: Strike | None = None,
    *,
    alone: bool = True,
) -> None:
    """Raise AssertionError unless all that is promised after any end holds.

    Each file ran once or not at all, under the run's lock, and the history says which; each backup
    that can be seen is whole, and what was said to be verified can be seen; no session and no lock
    of ours is left within seconds, and each gave up a silent peer; the code is one of ours, each
    line is an event and the last, like the termination message, ends with it, what it says of files
    is true, and with 0 all is done; the password stands nowhere. `alone`: no other run did anything
    meanwhile.
    """
    killed = result.code == -signal.SIGKILL
    _require_no_client(world)
    _within(world, lambda: _sessions(world), "a session of ours")
    assert world.database.name in world.databases(), "the live database is gone"
    assert [0] == world.database.query(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    codes = _codes(world, stopped) if stopped else world.story.codes
    assert killed or result.code in codes, str(result)
    program.strictly(result.stdout, killed=killed)
    if not killed:
        _require_message(world, result)
        assert result.code == result.finished["exit_code"], str(result)
        _require_true(world, result, alone=alone)
        if alone and world.story.wraps:
            _require_untouched(world, result)
    ran, recorded = reality(world), history(world)
    assert sorted(set(ran)) == ran, f"a file ran twice: {ran}"
    assert result.code != 0 or list(world.story.ends) == ran, f"said to be done, and is not: {ran}"
    patient = world.between.patient
    assert not patient, f"whose peer vanishes waits too long: {patient}"
    if not world.story.wraps:
        _require_as_recorded(world, ran, recorded)
    if world.told != "bucket":
        _require_there(world, [each.name for each in world.backups.iterdir()])
        # who was not answered ends in the middle of its work, too
        _require_backups(world, killed=killed or bool(stopped and not stopped.answered))
    _require_no_secret(world, result)


def _codes(world: World, stopped: Strike) -> set[int]:
    """Return what a run may end with that was asked to stop: too late only where it has begun."""
    code = 130 if stopped.stop == signal.SIGINT else 143
    return {code} if world.loading else {0, 13, code}


def _require_true(world: World, result: program.Result, *, alone: bool) -> None:
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
    if not alone:
        return  # another run went on
    if world.loading:
        assert ["run.finished"] == result.names, "something was begun"
    only = {"up", "rollback", "adopt"}  # these write nothing but the history
    if world.story.due and world.story.command[0] in only:
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


def _require_untouched(world: World, result: program.Result) -> None:
    """Hold what is said of a command that failed against what is there when all has ended."""
    error = result.finished.get("error", {})
    said = f"{error.get('message')} {error.get('hint')}"
    if result.code == 30 or "The live database was not changed" in said:
        assert world.before == truth(world), "said to be untouched"


def _require_lock(world: World, result: program.Result) -> None:
    """Hold it against who lost the lock with his connection: he takes it again before he goes on.

    Or he stops; whose last COMMIT is read back has nothing left to do.
    """
    lost, world.unlocked = world.unlocked, False
    if not lost:
        return
    read_back = [number for number, each in enumerate(result.events) if each.get("read_back")]
    after = result.names[max(read_back, default=0) :]
    over = read_back and "migration.started" not in after
    again = result.names.count("lock.acquired") > 1
    assert result.code != 0 or again or over, "went on without the lock"
    assert "lock.lost" != result.finished.get("error", {}).get("code"), "noticed it later"


def _within(world: World, left: Callable[[], object], what: str) -> None:
    """Return once nothing is left; fail when something is after the rounds that are allowed."""
    for _ in range(ROUNDS):
        if not left():
            return
        with world.server.connect() as connection:
            connection.execute("SELECT pg_sleep(0.1)")
    raise AssertionError(f"{what} is left after {ROUNDS} rounds of the server's: {left()}")


def _require_no_client(world: World) -> None:
    left, world.left = world.left, []
    try:
        _within(world, lambda: [*filter(_is_dump, left)], "a pg_dump")
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
    for each in ("ran", "done"):
        if world.database.query("SELECT to_regclass(%s)", each) != [None]:
            bare = sql.SQL("SELECT count(*) FROM {} WHERE NOT alone").format(sql.Identifier(each))
            assert [0] == world.database.query(bare), "a file ran without the run's lock"
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


def truth(world: World) -> object:
    """Return what a wrapped command may change: tables, rows, and where a sequence stands."""
    if not world.story.wraps:
        return None
    tables = (
        "SELECT relname::text FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"
    )
    rows, numbers = "SELECT n FROM copied ORDER BY 1", "SELECT last_value FROM counted"
    return [*map(world.database.query, (tables, rows, numbers)), reality(world)]


def _sessions(world: World) -> list[tuple[object, ...]]:
    with world.server.connect() as connection:
        return connection.execute(
            f"SELECT pid, application_name, datname FROM pg_stat_activity WHERE ({OURS})"
            " AND (datname ~ %s OR datname LIKE 'preflight\\_scratch%%')",
            [f"^{world.database.name}(_|$)"],
        ).fetchall()


def _require_message(world: World, result: program.Result) -> None:
    """Hold the last line against the termination message of that run: they are one object."""
    said = {key: each for key, each in result.finished.items() if key not in OF_A_LINE}
    left = [json.loads(each) for each in world.messages if each]
    assert said in left, f"not the termination message: {left}"


def _require_there(world: World, names: list[str]) -> None:
    """Raise AssertionError unless what was said to be verified can be seen, or was too old."""
    gone = world.verified - set(names)
    younger = [each for each in names if not gone or max(gone) < each]
    assert not gone or (world.silent and younger), f"said to be verified, and not there: {gone}"


def _note_backups(world: World, results: list[program.Result]) -> None:
    """Keep in mind which backups are there, as the runs say; a killed one may not say what went."""
    events = [each for result in results for each in result.events]
    named = {"backup.verified": set[str](), "backup.pruned": set[str]()}
    for each in events:
        if each["event"] in named and "failed" not in each:
            named[each["event"]].add(each["backup"])
    world.verified = (world.verified | named["backup.verified"]) - named["backup.pruned"]
    world.silent = world.silent or any(each.code < 0 for each in results)


def _require_backups(world: World, *, killed: bool) -> None:
    for each in world.backups.iterdir():
        if each.name.startswith("."):
            # a killed run leaves it, until one gets so far that it sweeps
            assert killed or each.name in world.halves, f"half a backup is left: {each.name}"
            world.halves.add(each.name)
            continue
        manifest = json.loads((each / "manifest.json").read_text())
        assert manifest["verified"] in {"read", "restored"}, manifest
        said = manifest.get("files") or {"database.dump": manifest}
        where = each / "database.dir" if "files" in manifest else each
        for name, one in said.items():
            dump = (where / name).read_bytes()
            assert one["sha256"] == hashlib.sha256(dump).hexdigest(), where / name
            assert one["size_bytes"] == len(dump), where / name
        if each.name not in world.whole:  # no name comes twice
            _client("pg_restore", "--file=/dev/null", _dump(each))
            world.whole.add(each.name)


def _dump(backup: Path) -> Path:
    return next(backup / each for each in leaks.DUMPS if (backup / each).exists())


def _client(name: str, *arguments: str | Path, **environment: str) -> None:
    """Run a client of the server's; raises AssertionError with its words when it fails."""
    command = [program.client(name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, f"{command}: {done.stderr}"


def _require_restorable(world: World) -> None:
    """Raise AssertionError unless the newest backup makes a database with all rows of its own."""
    found = [each for each in world.backups.iterdir() if not each.name.startswith(".")]
    if not found:
        return
    newest = max(found, key=lambda each: (each / "manifest.json").stat().st_mtime_ns)
    back = servers.Database(world.server, f"back_{world.database.name}")
    name = sql.Identifier(back.name)
    with world.server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
        try:
            _client("pg_restore", "--exit-on-error", "--dbname=", _dump(newest), **back.env())
            late = world.told == "swap"  # a row came between its backups
            assert back.query("SELECT count(*) FROM items") in ([500], [500 + late]), newest
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def _require_no_secret(world: World, result: program.Result) -> None:
    """Search whatever others may see: output, messages, files, arguments, and our tables whole."""
    seen = {"stdout": result.stdout.encode(), "stderr": result.stderr.encode(), **world.shown}
    seen |= {f"termination message {n}": each.encode() for n, each in enumerate(world.messages)}
    seen |= leaks.of_files(world.backups) | leaks.of_tables(world.database)
    _require_none_leaks(world, seen)


def _require_none_leaks(world: World, seen: leaks.Seen) -> None:
    """Look for the password everywhere, and for a bucket's key where others may look."""
    shown = {name: text for name, text in seen.items() if not name.startswith("environment")}
    key = world.environment.get("AWS_SECRET_ACCESS_KEY")
    found = leaks.leaks(seen) + (leaks.leaks(shown, key) if key else [])
    assert not found, f"a secret stands in: {found}"


def require_settled(world: World) -> None:
    """Raise AssertionError unless the next call does all, and the one after it nothing more."""
    settled = world.run()
    _note_backups(world, [settled])
    require_sound(world, settled)
    assert 0 == settled.code, str(settled)
    assert list(world.story.ends) == reality(world), str(settled)
    if not world.story.wraps:
        assert [(each, "done") for each in world.story.ends] == history(world)
        there = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('items_note')"
        assert [True] * (3 in world.story.ends) == world.database.query(there)
    assert [] == [each.name for each in world.backups.iterdir() if each.name.startswith(".")]
    with world.server.connect() as connection:
        scratch = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"
        left = connection.execute(scratch).fetchall()
    assert [] == left, f"copies are left: {left}"
    _require_restored(world)
    _require_restorable(world)
    if world.told == "bucket":
        _require_there(world, backups(world))
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
    _require_none_leaks(world, {"list of backups": listed.stdout.encode()})
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


def once(world: World, strike: Strike) -> tuple[list[program.Result], bool]:
    """Strike one run; return what it left, and a rival's, and whether it was struck.

    Raises AssertionError when something that is promised does not hold.
    """
    results, hit = world.struck(strike)
    stopped = strike if hit and strike.victim == "stop" else None
    alone = len(results) == 1
    _note_backups(world, results)
    try:
        require_sound(world, results[0], stopped, alone=alone)
        _require_lock(world, results[0])
        _require_told(strike, results[0], hit=hit)
        for each in results[1:]:
            require_sound(world, each, alone=False)
    except AssertionError as error:
        seen = "\n".join(map(str, results))
        raise AssertionError(f"{world.told}, {strike}: {error}\n{seen}") from error
    return results, hit


def crash(world: World, strikes: list[Strike]) -> list[tuple[Strike, bool]]:
    """Strike one run after the other until all is done, then let one through.

    Return the strikes that were tried, and whether each struck. Raises AssertionError when
    something that is promised does not hold.
    """
    tried = []
    for strike in strikes:
        results, hit = once(world, strike)
        tried.append((strike, hit))
        if any(each.code == 0 for each in results) and not world.story.repeats:
            break  # nothing is left to strike at
    try:
        require_settled(world)
    except AssertionError as error:
        told = "; ".join(str(strike) for strike, _ in tried)
        raise AssertionError(f"{world.told}, after {told}: {error}") from error
    return tried


def _require_told(strike: Strike, result: program.Result, *, hit: bool) -> None:
    """Hold the code of a command that ended by itself in earnest against what it did there."""
    if hit and strike.victim == "tool" and strike.at == "live":
        assert (30 if set(strike.deeds) <= NAUGHT else 31) == result.code, "of what stays"


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A run that nobody struck: how many messages it and its clients get, which events it has."""

    ours: int
    clients: int
    answers: int  # whole ones, that its session gets once it holds the lock
    commits: int
    events: tuple[str, ...]
    imports: tuple[str, ...]  # the modules that it looks for once it could hear a signal


def undisturbed(world: World, rehearse: str) -> Undisturbed:
    """Tell a story and count what we are sent, and what our clients are."""
    counting = world.between.now = AtMessage(Strike("nobody"), lambda _: None)
    result = world.run(PREFLIGHT_REHEARSE=rehearse, **world.steps())
    world.between.now = faults.Fault()
    assert 0 == result.code, str(result)
    events = tuple(dict.fromkeys(result.names))
    return Undisturbed(
        **counting.seen, commits=counting.commits, events=events, imports=world.imports
    )


# --- at random ------------------------------------------------------------------------------------


Counted = Callable[[str, str], Undisturbed]


def at_random(choice: random.Random, told: str, counted: Counted) -> list[Strike]:
    """Return some strikes, most of them at our own messages.

    The first comes as likely early as late. Each leaves less to do to the next run, so that later
    ones come early in it.
    """
    found = []
    for before in range(choice.choice([1, 4, 8])):
        wraps = STORIES[told].wraps
        rehearse = "auto" if wraps else choice.choice(["off", "off", "auto"])
        most = counted(told, rehearse)
        there = {"pg_dump": most.clients, "tool": told == "wrap"}
        victim = choice.choice([each for each in VICTIMS if there.get(each, True)])
        among = choice.choice(["ours", "ours", "answers", "clients"])
        if victim == "pg_dump" and most.clients:
            among = "clients"
        if not getattr(most, among):
            among = "ours"
        message = choice.randint(1, max(1, getattr(most, among) // (1 + before)))
        strike = Strike(victim, message, among, rehearse=rehearse)
        if victim == "tool" or (wraps and choice.random() < 1 / 4):
            strike = _some_deeds(choice, strike)
        found.append(strike if victim != "stop" else _some_stop(choice, strike, most))
    return found


def _some_stop(choice: random.Random, strike: Strike, most: Undisturbed) -> Strike:
    """Return a stop there, or at a COMMIT, now and then by SIGINT, or without an answer.

    Or where the job loads something.
    """
    if choice.random() < 1 / 4:
        module, stop = choice.choice(most.imports), choice.choice(SIGNALS)
        return dataclasses.replace(strike, message=0, among="ours", module=module, stop=stop)
    commit = choice.randint(1, most.commits) if most.commits and choice.random() < 1 / 3 else 0
    stop, answered = choice.choice([*STOPS[:1] * 3, STOPS[1]]), choice.random() < 3 / 4
    return dataclasses.replace(
        strike,
        message=0 if commit else strike.message,
        among="ours" if commit else strike.among,
        commit=commit,
        stop=stop,
        answered=answered,
    )


def _some_deeds(choice: random.Random, strike: Strike) -> Strike:
    """Have the command do some things, in any order, in earnest or when it should not."""
    deeds = tuple(choice.choices(DEEDS, k=choice.randint(1, 3)))
    return dataclasses.replace(strike, deeds=deeds, at=choice.choice(["live", "live", "copy"]))


def at_each_event(told: str, victim: str, counted: Counted) -> list[Strike]:
    """Return the strikes at the events of a story, one after the other."""
    rehearse = "auto" if STORIES[told].wraps else "off"
    if victim == "tool":  # each deed in its place
        deeds = itertools.product(DEEDS if told == "wrap" else (), ("live", "copy"))
        return [Strike(victim, deeds=(deed,), at=at, rehearse=rehearse) for deed, at in deeds]
    events = counted(told, rehearse).events
    if victim != "postmaster":  # it can be struck when the run has ended, too
        events = events[:-1]
    if victim == "pg_dump":  # of more than one event before a client begins, one is enough
        events = tuple(each for each in events if each.endswith(".started"))
    return [Strike(victim, event=each, rehearse=rehearse) for each in events]


def at_messages(told: str, first: Strike, each: int, part: int, counted: Counted) -> list[Strike]:
    """Return one of PARTS of the strikes like the first at each so-many-th message of a story."""
    rehearse = "auto" if STORIES[told].wraps else "off"
    messages = range(1, 1 + getattr(counted(told, rehearse), first.among), each)
    few = -(-len(messages) // PARTS)
    return [
        dataclasses.replace(first, message=message, rehearse=rehearse)
        for message in messages[part * few : (part + 1) * few]
    ]


def at_imports(told: str, each: int, part: int, counted: Counted) -> list[Strike]:
    """Return one of PARTS of the stops at each so-many-th module of a story.

    The signals take turns, and begin with another one in the next story: all load much the same.
    Where little is loaded each comes at each module.
    """
    rehearse = "auto" if STORIES[told].wraps else "off"
    modules = counted(told, rehearse).imports[::each]
    turns, first = itertools.cycle(SIGNALS), list(STORIES).index(told)
    strikes = [
        Strike("stop", module=module, stop=number, rehearse=rehearse)
        for module, number in zip(modules, itertools.islice(turns, first, None), strict=False)
    ]
    if not STORIES[told].due:
        strikes = [
            dataclasses.replace(strike, stop=number) for strike in strikes for number in SIGNALS
        ]
    return strikes[part::PARTS]


def at_some_imports(choice: random.Random, few: int, counted: Undisturbed) -> list[Strike]:
    """Return so many stops where a run loads something, from early to late, and all along it."""
    each = -(-len(counted.imports) // few)
    return [
        Strike("stop", module=choice.choice(modules), stop=choice.choice(SIGNALS))
        for modules in (
            counted.imports[at : at + each] for at in range(0, len(counted.imports), each)
        )
    ]


class Worlds:
    """The worlds on one server, one a story, each made once and come back to."""

    def __init__(self, major: int, counts: dict[tuple[str, str], Undisturbed]) -> None:
        """Start the server; what a story has when nobody disturbs it is the same on all."""
        self.server, self.counts = servers.start(major, **SETTINGS), counts
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


def _again(tried: list[tuple[Strike, bool]]) -> list[Strike]:
    """Return those that came to nothing where others were before: there was less left to do."""
    return [strike for strike, hit in tried[1:] if not hit]


Task = tuple[str, str, Callable[[Counted], list[Strike]]]  # how it is called, its story, what


class Walk:
    """What is to be struck, and what was, by several threads with a server each."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        """Begin."""
        self.tasks, self.lock = tasks, threading.Lock()
        self.counts: dict[tuple[str, str], Undisturbed] = {}
        self.done = self.wrong = self.idle = 0
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
                left = [*_again(tried), *left[len(tried) :]] if tried else []
                self.settled(tried)
        worlds.close(remove=not wrong)

    def settled(self, tried: list[tuple[Strike, bool]]) -> None:
        """Count what was struck, and say now and then how far it is."""
        with self.lock:
            self.done += 1
            self.idle += sum(not hit for _, hit in tried[:1])  # it had a whole run before it
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
        all_ = f"{self.done} databases, {kills} kills, {self.wrong} wrong"
        return f"{all_} ({who}; {self.idle} met nobody)"


def _tasks(asked: argparse.Namespace) -> Iterator[Task]:
    """Return what is to be struck, as the command line has it."""
    seed, _, only = str(asked.seed).partition("/")
    stories, victims = asked.stories.split(","), asked.victims.split(",")

    def by_chance() -> Iterator[Task]:
        for number in faults.numbers(only, asked.minutes):
            choice = random.Random(f"{seed}/{number}")  # noqa: S311 - to be repeated, no secret
            told = choice.choice(sorted(stories))
            yield f"SEED={seed}/{number} ", told, functools.partial(at_random, choice, told)

    def in_turn() -> Iterator[Task]:
        for told, victim in itertools.product(stories, victims):
            if victim == "connection":
                continue  # at an event nobody is being talked to
            yield "", told, functools.partial(at_each_event, told, victim)

    def along() -> Iterator[Task]:
        whose = [each for each in ALONG if each[0] in victims]
        for told, (victim, among), part in itertools.product(stories, whose, range(PARTS)):
            first = Strike(victim, among=among)
            each = asked.messages if among != "answers" else -(-asked.messages // 10)
            yield "", told, functools.partial(at_messages, told, first, each, part)

    def loading() -> Iterator[Task]:
        for told, part in itertools.product(stories, range(PARTS)):
            yield "", told, functools.partial(at_imports, told, asked.imports, part)

    ways = {loading: asked.imports, along: asked.messages, in_turn: asked.events}
    return next((way() for way, wanted in ways.items() if wanted), by_chance())


def main() -> int:
    """Strike until the time is over; 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--majors", default="17", help="of the servers, as in 15,18")
    parser.add_argument("--jobs", type=int, default=4, help="servers at once; a run mostly waits")
    parser.add_argument("--events", action="store_true", help="each victim at each event in turn")
    parser.add_argument("--messages", type=int, help="in turn at each so-many-th message")
    parser.add_argument("--imports", type=int, help="stops in turn at each so-many-th module")
    parser.add_argument("--stories", default=",".join(STORIES), help="of these commands alone")
    parser.add_argument("--victims", default=",".join(VICTIMS), help="in turn these alone")
    asked = parser.parse_args()
    seed, _, only = str(asked.seed).partition("/")
    majors = [int(each) for each in asked.majors.split(",")]
    walk = Walk(_tasks(asked))
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
