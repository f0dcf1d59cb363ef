"""Two runs at once: one is held anywhere while another goes to its end, and both end as alone.

They are of two apps, each with files and a history of its own, in one database or in two whose
names begin alike, and share a server and the place of their backups. `make together SEED=7
MINUTES=10` goes on for as long as told; `SEED=7/123` does one again.
"""

import hashlib
import json
import random
import sys
import threading
from pathlib import Path

from psycopg import sql

from tests import faults, program, servers
from tests.faults import crash

Environment = dict[str, str]

CONTENT = (
    "CREATE TABLE ran (app text, version int);"
    "CREATE TABLE items AS SELECT n AS id FROM generate_series(1, 500) n"
)
FORMS: tuple[Environment, ...] = ({}, {"PREFLIGHT_PARALLEL_MB": "0", "PREFLIGHT_JOBS": "2"})
SCRATCH = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"
PATIENCE_S = 300.0  # no promise: only so that nothing hangs for ever
RESTORE = "restore latest"
GUESS = {
    "off": 200,
    "auto": 600,
    RESTORE: 60,
}  # messages that a command has, as long as nobody counted
# Who is held: beside an app of the same database or not, at whose messages, with a copy or not.
HOLDS = (
    (True, "clients", "off"),
    (True, "ours", "off"),
    (True, "ours", "auto"),
    (False, "ours", "auto"),
)


class Held:
    """Where a run is held, and until when."""

    def __init__(self) -> None:
        """Hold nobody yet."""
        self.reached, self.free = threading.Event(), threading.Event()

    def __call__(self, backend: int) -> None:
        """Hold who calls."""
        del backend
        self.reached.set()
        self.free.wait(PATIENCE_S)


class App:
    """An app: its files, the history that it has of its own, and what is applied of them."""

    def __init__(self, name: str, database: servers.Database, home: Path) -> None:
        """Have no file yet."""
        self.name, self.database, self.files = name, database, home / f"files_{name}"
        self.files.mkdir()
        self.applied: list[int] = []
        self.number = 0

    def more(self) -> None:
        """Write another file, and how it is taken back."""
        self.number += 1
        stem = f"{self.number:03}_more"
        row = f"('{self.name}', {self.number})"
        (self.files / f"{stem}.sql").write_text(f"INSERT INTO ran VALUES {row};\n")
        (self.files / f"{stem}_rollback.sql").write_text(
            f"DELETE FROM ran WHERE (app, version) = {row};\n"
        )

    def ends(self, command: str) -> None:
        """Remember what a command has done."""
        if command == "up":
            self.applied = list(range(1, self.number + 1))
        if command == "rollback":
            self.applied.pop()

    def agrees(self) -> None:
        """Raise AssertionError unless the database is as the app's runs said."""
        ran = "SELECT version FROM ran WHERE app = %s ORDER BY 1"
        assert self.applied == self.database.query(ran, self.name), self.name
        recorded = sql.SQL("SELECT version::int FROM {}.migrations WHERE state = 'done' ORDER BY 1")
        done = self.database.query(recorded.format(sql.Identifier(f"history_{self.name}")))
        assert self.applied == done, self.name


class Together:
    """A server, two databases, three apps, and where all keep their backups."""

    def __init__(
        self, server: servers.Server, home: Path, name: str, choice: random.Random
    ) -> None:
        """Make the databases; each app has applied a file."""
        self.server, self.home, self.choice = server, home, choice
        self.told: list[str] = []
        self.place = home / "backups"
        self.place.mkdir()
        self.between = crash.Through()  # a backup is of an address: both go the same way
        self.proxy = faults.Proxy(server, self.between)
        self.most: dict[tuple[str, ...], int] = {}  # messages of a command, where somebody counted
        self.databases = [servers.Database(server, each) for each in (name, f"{name}_2")]
        self.apps = []
        for database, apps in zip(self.databases, ("ab", "c"), strict=True):
            servers.Database(server, "postgres").query(
                sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database.name))
            )
            database.script(CONTENT)
            self.apps += [App(each, database, home) for each in apps]
        for each in self.apps:
            each.more()
            first = self.run(each, "up", {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP": "off"})
            assert 0 == first.code, str(first)
            each.ends("up")

    def start(
        self, app: App, command: str, more: Environment
    ) -> tuple[program.Program, program.Process]:
        """Start a command of an app."""
        environment = {
            **app.database.env(),
            **self.proxy.env(),
            "PATH": program.path(),
            "PREFLIGHT_BACKUP_DIR": str(self.place),
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_MIGRATIONS_DIR": str(app.files),
            "PREFLIGHT_SCHEMA": f"history_{app.name}",
            "PREFLIGHT_REHEARSE_ON": "server",
            "PREFLIGHT_TERMINATION_LOG": str(self.home / "none"),
            **more,
        }
        main = program.Program(environment, self.home)
        return main, main.start(*command.split())

    def run(self, app: App, command: str, more: Environment) -> program.Result:
        """Run a command to its end."""
        main, process = self.start(app, command, more)
        try:
            return process.wait(PATIENCE_S)
        finally:
            main.close()

    def both(
        self, first: tuple[App, str], second: tuple[App, str], among: str, rehearse: str
    ) -> None:
        """Hold the first at one of its, or its clients', messages while the second runs."""
        also = self.choice.choice(["off", "off", "auto"])
        more = [self.options(first[1], rehearse), self.options(second[1], also)]
        keys = [
            (command, *each.values())
            for (_, command), each in zip((first, second), more, strict=True)
        ]
        for app, command in (first, second):
            if command in {"up", "plan --rehearse"}:
                app.more()
        usual = GUESS.get(first[1], GUESS[more[0]["PREFLIGHT_REHEARSE"]])
        most = self.most.get((*keys[0], among), usual)
        at = crash.Strike("nobody", round(self.choice.uniform(0.1, 0.9) * most), among)
        held = Held()
        self.told.append(
            f"{first[0].name} {first[1]} {more[0]} held at {at.message} of {most} {among},"
            f" {second[0].name} {second[1]} {more[1]}"
        )
        self.between.now = crash.AtMessage(at, held)
        main, process = self.start(*first, more[0])
        try:
            faults.until(lambda: held.reached.is_set() or not process.running, "held", PATIENCE_S)
            counting = self.between.now = crash.AtMessage(crash.Strike("nobody"), held)
            other = self.run(*second, more[1])
            self.between.now = faults.Fault()
            held.free.set()
            one = process.wait(PATIENCE_S)
        finally:
            held.free.set()
            self.between.now = faults.Fault()
            main.close()
        self.told[-1] += "" if held.reached.is_set() else " (ended before)"
        for kind, seen in counting.seen.items():
            self.most[*keys[1], kind] = seen
        for (app, command), result in ((first, one), (second, other)):
            self.ended(app, command, result)
        verified = {each["backup"] for it in (one, other) for each in it.event("backup.verified")}
        pruned = {each["backup"] for it in (one, other) for each in it.event("backup.pruned")}
        there = {each.name for each in self.place.iterdir()}
        assert verified <= there | pruned, f"a backup is gone: {self}\n{one}\n{other}"
        if held.reached.is_set():
            read = {each["backup"] for each in one.event("restore.started")}
            assert not read & pruned, f"gone while it was read: {self}\n{one}\n{other}"
        self.agrees()

    def reads(self) -> None:
        """Hold who restores the newest backup while another app of that database takes one."""
        a, b, _ = self.apps
        self.both((a, RESTORE), (b, "backup"), "clients", "off")
        with self.server.connect() as session:
            gone = sql.SQL("DROP DATABASE {}")
            session.execute(gone.format(sql.Identifier(f"{a.database.name}_restored")))

    def options(self, command: str, rehearse: str) -> Environment:
        """Return how a run makes its backup, how many stay, and whether it is proven on a copy."""
        return {
            **self.choice.choice(FORMS),
            "PREFLIGHT_BACKUP_KEEP": self.choice.choice(["1", "1", "1", "100"]),
            "PREFLIGHT_REHEARSE": "auto" if "plan" in command else rehearse,
        }

    def ended(self, app: App, command: str, result: program.Result) -> None:
        """Raise AssertionError unless a run ended as alone."""
        said = f"{self}\n{app.name} {command}: {result}"
        assert 0 == result.code, said
        app.ends(command.split(maxsplit=1)[0])
        assert not result.event("rehearsal.skipped"), said

    def agrees(self) -> None:
        """Raise AssertionError unless every backup is whole, and nothing is left of the runs."""
        for app in self.apps:
            app.agrees()
        for backup in self.place.iterdir():
            assert not backup.name.startswith("."), f"{backup.name} is left: {self}"
            require_whole(backup)
        assert [] == servers.Database(self.server, "postgres").query(SCRATCH), str(self)
        for each in self.databases:
            assert 0 == each.sessions(), str(self)

    def __str__(self) -> str:
        """Tell what was done, in order."""
        return "; ".join(self.told)

    def close(self) -> None:
        """Drop all."""
        self.proxy.close()
        with self.server.connect() as session:
            for each in self.databases:
                gone = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                session.execute(gone.format(sql.Identifier(each.name)))


def require_whole(backup: Path) -> None:
    """Raise AssertionError unless all that a backup's manifest names is there as it says."""
    manifest = json.loads((backup / "manifest.json").read_text())
    said = manifest.get("files") or {manifest["file"]: manifest}
    where = backup / manifest["file"] if manifest.get("files") else backup
    for name, one in said.items():
        dump = (where / name).read_bytes()
        found = len(dump), hashlib.sha256(dump).hexdigest()
        assert (one["size_bytes"], one["sha256"]) == found, where / name


COMMANDS = ("backup", "up", "rollback", "plan --rehearse")


def possible(app: App, command: str) -> tuple[App, str]:
    """Return what an app is to do: where nothing is applied, nothing can be taken back."""
    return app, "up" if command == "rollback" and not app.applied else command


def walk(server: servers.Server, home: Path, name: str, seed: str, rounds: int = 2) -> str:
    """Hold some commands in each of these ways, another one beside each; return what was done.

    Raises AssertionError where one of both did not end as it should.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    together = Together(server, home, name, choice)
    try:
        for command in choice.sample(COMMANDS, rounds):
            for near, among, rehearse in HOLDS:
                a, b, c = together.apps  # of which a and b are in one database
                app, other = choice.sample([a, b] if near else [c, choice.choice([a, b])], 2)
                first = possible(app, command)
                second = possible(other, choice.choice(COMMANDS))
                together.both(first, second, among, rehearse)
        together.reads()
        return str(together)
    finally:
        together.close()


def main() -> int:
    """Walk until the time is over; 1 when something did not hold."""
    return faults.walks_on_a_server("together", __doc__, walk)


if __name__ == "__main__":
    sys.exit(main())
