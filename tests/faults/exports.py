"""Exports: several versions have a table in common, and each step back destroys some of it.

What an export sees is not lost, whatever a step before its own destroys, whoever writes between the
steps, and wherever a rollback is killed and called again: it is in the database, or in a file.
`make exports SEED=7 MINUTES=10` goes on for as long as told; `SEED=7/123` does one again.
"""

import contextlib
import itertools
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests import faults, program, servers
from tests.faults import histories

PATIENCE_S = 300.0  # no promise: only so that nothing hangs for ever
OUTSIDE = "-- preflight: no-transaction\n"
OF = "public.shared"
WORD = re.compile(r"<\d+>")


@dataclass(frozen=True)
class Kind:
    """What a version does with the table that an older one made, and what its way back destroys."""

    does: str
    destroys: str


KINDS = (
    Kind("ALTER TABLE {of} ADD more_{n} text", "ALTER TABLE {of} DROP COLUMN IF EXISTS more_{n}"),
    Kind("SELECT 1", "DELETE FROM {of} WHERE id % 2 = 0"),
    Kind("SELECT 1", "UPDATE {of} SET said = NULL WHERE id % 2 = 1"),
    Kind("SELECT 1", "TRUNCATE {of}"),
    Kind(
        "CREATE TABLE {of}_{n} (id int, said text)",
        "INSERT INTO {of}_{n} SELECT id, said FROM {of}; DROP TABLE {of}_{n}; DELETE FROM {of}",
    ),
)
ALL = "SELECT * FROM {of}"
SEES = (ALL, "TABLE {of}", "SELECT said FROM {of} WHERE id % 2 = 1", "SELECT id, said FROM {of}")
HOW = (
    {"PREFLIGHT_BACKUP": "command"},
    {"PREFLIGHT_BACKUP": "required", "PREFLIGHT_BACKUP_KEEP": "1"},
)
SNAPSHOT = """#!/bin/sh
printf '{"backup": "b", "taken_at": "%s", "restore": "r"}' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
"""


class Shared:
    """A table that some versions have in common, their files, and where exports are kept."""

    def __init__(self, database: servers.Database, home: Path, choice: random.Random) -> None:
        """Have no version yet."""
        self.database, self.home, self.choice = database, home, choice
        self.files, self.place, self.snapshot = home / "files", home / "place", home / "snapshot"
        for each in (self.files, self.place):
            each.mkdir()
        self.snapshot.write_text(SNAPSHOT)
        self.snapshot.chmod(0o755)
        self.words = itertools.count(1)
        self.exports: list[str] = []  # what those of the versions ask
        self.seen: set[str] = set()  # words that one of them has seen
        self.told: list[str] = []

    def __str__(self) -> str:
        """Tell what was done, in order."""
        return "; ".join(self.told)

    # --- files

    def write(self, exporting: str, *, writing: bool) -> None:
        """Write some versions, of which all export all, or the oldest and some, but not the last.

        A file without a transaction locks nobody out: while somebody writes there is none.
        """
        for each in self.files.iterdir():
            each.unlink()
        self.exports = []
        kinds = [
            Kind("CREATE TABLE {of} (id int, said text)", "DROP TABLE {of}"),
            *self.choice.sample(KINDS, 3),
        ]
        for n, kind in enumerate(kinds, 1):
            outside = "" if writing else self.choice.choice(["", "", OUTSIDE])
            rollback = outside + kind.destroys.format(of=OF, n=n).replace("; ", ";\n") + ";\n"
            stem = self.files / f"{n:03}_v"
            stem.with_name(f"{stem.name}.sql").write_text(kind.does.format(of=OF, n=n) + ";\n")
            stem.with_name(f"{stem.name}_rollback.sql").write_text(rollback)
            sees = ""
            if exporting == "all" or n == 1:
                sees = ALL
            elif n < len(kinds):
                sees = self.choice.choice(["", *SEES])
            if sees:
                self.exports.append(sees.format(of=OF))
                stem.with_name(f"{stem.name}_export.sql").write_text(self.exports[-1] + ";\n")
            self.told.append(f"{n}: {rollback.strip()!r}, {sees or 'no export'}")

    # --- the table

    def query(self, text: str) -> list[tuple[object, ...]]:
        """Ask for rows; none where there is no such table, or column."""
        with self.database.server.connect(self.database.name) as session:
            try:
                return session.execute(text.encode()).fetchall()
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                return []

    def add(self, rows: int) -> None:
        """Add rows with a word in each column; every export sees what it sees of them."""
        columns = self.query(
            "SELECT attname::text FROM pg_attribute WHERE attnum > 1 AND NOT attisdropped"
            f" AND attrelid = to_regclass('{OF}') ORDER BY attnum"
        )
        names = [str(name) for (name,) in columns]
        for n in range(rows if names else 0):
            said = ", ".join(f"'<{next(self.words)}>'" for _ in names)
            self.database.script(f"INSERT INTO {OF} (id, {', '.join(names)}) VALUES ({n}, {said})")
        for each in self.exports:
            self.seen |= {word for row in self.query(each) for word in WORD.findall(str(row))}

    def there(self) -> set[str]:
        """Return the words that are in the table."""
        return {word for row in self.query(f"TABLE {OF}") for word in WORD.findall(str(row))}

    def saved(self) -> set[str]:
        """Return the words that are in a file."""
        files = [each for each in self.place.glob("*/export-*.csv") if each.parent.name[0] != "."]
        return {word for each in files for word in WORD.findall(each.read_text())}

    @contextlib.contextmanager
    def writing(self, *, really: bool) -> Iterator[None]:
        """Have somebody add rows all the time, as long as there is the table."""
        over = threading.Event()
        committed: set[str] = set()

        def write() -> None:
            with self.database.server.connect(self.database.name) as app:
                while not over.is_set():
                    said = f"<{next(self.words)}>"
                    try:
                        app.execute(f"INSERT INTO {OF} VALUES (1, '{said}')".encode())
                    except psycopg.errors.UndefinedTable:
                        return
                    committed.add(said)

        thread = threading.Thread(target=write)
        if really:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if really:
                thread.join()
        self.seen |= committed

    # --- runs

    def run(self, *command: str, kill_at: int = 0, **more: str) -> int:
        """Run a command, and kill it once it has told so many events; return its code."""
        environment = {
            **self.database.env(),
            "PATH": program.path(),
            "PREFLIGHT_BACKUP_DIR": str(self.place),
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_MIGRATIONS_DIR": str(self.files),
            "PREFLIGHT_REHEARSE": "off",
            "PREFLIGHT_TERMINATION_LOG": str(self.home / "none"),
            **more,
        }
        if more["PREFLIGHT_BACKUP"] == "command":
            environment["PREFLIGHT_BACKUP_COMMAND"] = str(self.snapshot)
        main = program.Program(environment, self.home)
        try:
            process = main.start(*command)
            if kill_at:
                come = lambda: not process.running or len(process.events) >= kill_at  # noqa: E731
                faults.until(come, f"event {kill_at}", PATIENCE_S)
                process.signal(signal.SIGKILL)
            result = process.wait(PATIENCE_S)
        finally:
            main.close()
        self.told.append(f"{' '.join(command)} {more} kill at {kill_at} -> {result.code}")
        assert result.code in (0, -signal.SIGKILL), f"{self}\n{result}"
        return result.code

    def back(self, exporting: str, kills: int, *, writing: bool) -> None:
        """Apply some versions and take all back, killed so often, with rows written between."""
        how = self.choice.choice(HOW)
        self.told.append(f"{exporting} export, {kills} kills, somebody writes: {writing}")
        self.write(exporting, writing=writing)
        self.run("up", PREFLIGHT_BACKUP="off")
        left = kills
        while True:
            self.add(4)
            with self.writing(really=writing):
                at = self.choice.randint(4, 16) if left else 0
                code = self.run("rollback", "--to", "0", kill_at=at, **how)
            faults.until(lambda: self.database.sessions() == 0, "its sessions are gone", PATIENCE_S)
            lost = self.seen - self.saved() - self.there()
            assert not lost, f"{sorted(lost)} is gone: {self}"
            if code == 0:
                break
            left -= 1
        left_of = self.query("SELECT version FROM preflight.migrations")
        assert [] == left_of, f"{left_of}: {self}"


ROUNDS = (("some", 0, False), ("some", 2, False), ("all", 0, True), ("all", 2, True))


def walk(database: servers.Database, home: Path, seed: str) -> str:
    """Take versions back in each of these ways; return what was done.

    Raises AssertionError where something that an export has seen is gone.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    shared = Shared(database, home, choice)
    for exporting, kills, writing in choice.sample(ROUNDS, len(ROUNDS)):
        shared.back(exporting, kills, writing=writing)
    return str(shared)


def main() -> int:
    """Walk until the time is over; 1 when something was lost."""
    return histories.walks("exports", __doc__, walk)


if __name__ == "__main__":
    sys.exit(main())
