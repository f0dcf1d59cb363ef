"""Calls: a file system refuses some of what it is asked, and each command ends as is promised.

It may lack a call, as CIFS, NFS and FUSE do: then all goes on, where the data are safe without it.
Or a call fails, once or from then on, as on a disk that is full, broken or read-only: then nothing
half-made is seen, what is said is true, and the next run that is let alone settles it.
`make calls SEED=7 MINUTES=10` goes on for as long as told; `SEED=7/123` does one again.
"""

import errno
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from tests import faults, program, servers
from tests.fakes import contents
from tests.faults import together

Environment = dict[str, str]

SOURCE = Path(__file__).with_name("calls.c")
PATIENCE_S = 300.0  # no promise: only so that nothing hangs for ever
LINE = 128
# What some file systems do not have, and how they say so.
NOT_THERE = (errno.ENOTSUP, errno.ENOSYS)
LACKING = {
    "syncdir": (errno.EINVAL, errno.EBADF, *NOT_THERE),
    "flock": (errno.ENOLCK, errno.EINVAL, *NOT_THERE),
    "chmod": (errno.EPERM, *NOT_THERE),
    "utime": (errno.EPERM, errno.EACCES, *NOT_THERE),
    "advise": (errno.EINVAL, errno.ENOSYS),
}
# How a call fails, and which of them may fail so.
_MAKES = ("create", "mkdir", "rename", "write", "fsync", "syncdir", "close")
_CHANGES = ("create", "openwrite", "mkdir", "rename", "unlink", "chmod", "utime")
_LOOKS = ("open", "opendir", "stat", "statvfs")
FAILS = {
    errno.EIO: (*_MAKES, *_CHANGES, *_LOOKS, "read", "readdir", "flock"),
    errno.ESTALE: (*_MAKES, *_CHANGES, *_LOOKS, "read", "readdir", "flock"),
    errno.ENOTCONN: (*_MAKES, *_CHANGES, *_LOOKS, "read", "readdir", "flock"),
    errno.ENOSPC: _MAKES,
    errno.EDQUOT: _MAKES,
    errno.EROFS: _CHANGES,
    errno.EACCES: (*_CHANGES, *_LOOKS),
}
_TIDIES = {"unlink", "open", "opendir", "readdir", "stat"}  # what is needed to tidy up
SNAPSHOT = """#!/bin/sh
printf '{"backup": "b", "taken_at": "%s", "restore": "r"}' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
"""
MADE = "SELECT relname::text FROM pg_class WHERE relname LIKE 'made%%' ORDER BY 1"
CODES = {14, 20, 22, 23, 24}


@dataclass(frozen=True)
class Story:
    """A command, how it is told to work, and what it is after."""

    command: tuple[str, ...]
    more: tuple[tuple[str, str], ...] = ()
    reads: bool = False  # it leaves the place as it is


FOLDER = (("PREFLIGHT_PARALLEL_MB", "0"), ("PREFLIGHT_JOBS", "2"))
PROVEN = (("PREFLIGHT_REHEARSE", "auto"),)
STORIES = {
    "backup": Story(("backup",)),
    "folder": Story(("backup",), FOLDER),
    "up": Story(("up",)),
    "proven": Story(("up",), PROVEN),
    "proven folder": Story(("up",), (*PROVEN, *FOLDER)),
    "rollback": Story(("rollback",)),
    "apart": Story(("rollback",), (("PREFLIGHT_BACKUP", "command"),)),
    "restore": Story(("restore", "latest"), reads=True),
    "plan": Story(("plan", "--rehearse"), PROVEN, reads=True),
    "backups": Story(("backups",), reads=True),
}


@dataclass(frozen=True)
class Call:
    """What was asked, of what, and by which program."""

    what: str
    by: str
    of: str

    def __str__(self) -> str:
        """Read as in `fsync of /x by python3`."""
        return f"{self.what} of {self.of} by {self.by}"


@dataclass(frozen=True)
class Refusal:
    """Which calls are refused, how, and which of them by their numbers."""

    what: tuple[str, ...]
    number: int
    first: int = 1
    last: int = 0  # 0: for ever
    of: str = ""

    def env(self) -> Environment:
        """Return what the library is told."""
        return {
            "CALLS_OF": self.of,
            "CALLS_WHAT": f",{','.join(self.what)},",
            "CALLS_ERRNO": str(self.number),
            "CALLS_FROM": str(self.first),
            "CALLS_TO": str(self.last),
        }

    def __str__(self) -> str:
        """Read as in `ENOSPC, call 12 to 12`."""
        name, last = errno.errorcode[self.number], self.last or "the end"
        which = ", ".join(self.what[:5]) + ", …" * (len(self.what) > 5)
        return f"{name} from call {self.first} to {last} of {which}"


@dataclass(frozen=True)
class Told:
    """A story that was told: what came of it, and what was asked meanwhile."""

    told: str
    refusal: Refusal
    result: program.Result
    asked: list[Call]

    @property
    def calls(self) -> list[Call]:
        """What was asked."""
        return [each for each in self.asked if not each.what.startswith("!")]

    @property
    def refused(self) -> list[Call]:
        """What of it was refused."""
        found = [each for each in self.asked if each.what.startswith("!")]
        return [Call(each.what.removeprefix("!"), each.by, each.of) for each in found]

    def __str__(self) -> str:
        """Tell what was refused first."""
        some = "; ".join(map(str, self.refused[:6])) or "nothing"
        which = f"{some} ({len(self.refused)} refused)"
        return f"{self.told}, {self.refusal}: {which} -> {self.result.code}"


def built(home: Path) -> Path:
    """Compile what stands between the program and the system; raises FileNotFoundError."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("no C compiler: apt install gcc libc6-dev")
    library = home / "calls.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class World:
    """A database, its files and a place with an older backup of it."""

    def __init__(
        self, server: servers.Server, home: Path, name: str, choice: random.Random
    ) -> None:
        """Make all; the clients are of one of the versions that can dump the server."""
        self.server, self.home, self.library = server, home, built(home)
        self.client = choice.choice([17, 18])
        self.database = servers.Database(server, name)
        self.place, self.kept, self.files = home / "place", home / "kept", home / "files"
        for each in (self.place, self.files):
            each.mkdir()
        with server.connect() as session:
            session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self.database.script(
            "CREATE TABLE items AS SELECT n AS id, repeat('x', 100) AS said"
            " FROM generate_series(1, 1000) n"
        )
        self.snapshot = home / "snapshot"
        self.snapshot.write_text(SNAPSHOT)
        self.snapshot.chmod(0o755)
        self.number = 0
        self.more()
        first = self.run("up", PREFLIGHT_BACKUP="off")
        assert 0 == first.code, str(first)
        self.keep()

    def keep(self) -> None:
        """Have one backup there, of this database as it is now, to come back to."""
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.rmtree(self.place)
        self.place.mkdir()
        made = self.run("backup")
        assert 0 == made.code, str(made)
        shutil.copytree(self.place, self.kept)

    def more(self) -> None:
        """Write another file, and how it is taken back."""
        self.number += 1
        stem, table = f"{self.number:03}_made", f"made_{self.number:03}"
        (self.files / f"{stem}.sql").write_text(
            f"CREATE TABLE {table} AS SELECT n AS id FROM generate_series(1, 10) n;\n"
        )
        (self.files / f"{stem}_rollback.sql").write_text(f"DROP TABLE {table};\n")
        (self.files / f"{stem}_export.sql").write_text(f"SELECT id FROM {table} ORDER BY id;\n")

    def run(self, *command: str, **more: str) -> program.Result:
        """Run a command."""
        environment = {
            **self.database.env(),
            "PATH": program.path(self.client),
            "PREFLIGHT_BACKUP_DIR": str(self.place),
            "PREFLIGHT_BACKUP_KEEP": "1",
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_MIGRATIONS_DIR": str(self.files),
            "PREFLIGHT_REHEARSE": "off",
            "PREFLIGHT_REHEARSE_ON": "server",
            "PREFLIGHT_TERMINATION_LOG": str(self.home / "none"),
            **more,
        }
        if more.get("PREFLIGHT_BACKUP") == "command":
            environment["PREFLIGHT_BACKUP_COMMAND"] = str(self.snapshot)
        main = program.Program(environment, self.home)
        try:
            return main.run(*command, timeout=PATIENCE_S)
        finally:
            main.close()

    def told(self, told: str, refusal: Refusal | None) -> tuple[program.Result, list[Call]]:
        """Tell a story; return what came of it, and what was asked, of that what was refused."""
        story, log = STORIES[told], self.home / "told"
        log.unlink(missing_ok=True)
        more = {
            **dict(story.more),
            "LD_PRELOAD": str(self.library),
            "CALLS_PLACE": str(self.place.resolve()),
            "CALLS_TOLD": str(log),
            **(refusal.env() if refusal else {}),
        }
        result = self.run(*story.command, **more)
        lines = log.read_bytes().decode(errors="replace").splitlines() if log.exists() else []
        return result, [Call(*(*each.rstrip().split(" ", 2), "")[:3]) for each in lines]

    def ready(self, told: str) -> None:
        """Have the place as it was, and something to do."""
        shutil.rmtree(self.place)
        shutil.copytree(self.kept, self.place)
        if STORIES[told].command[0] in {"up", "plan"} and not self.pending():
            self.more()
        if STORIES[told].command[0] == "rollback" and (self.pending() or not self.made()):
            if not self.made():
                self.more()
            there = self.run("up", PREFLIGHT_BACKUP="off")
            assert 0 == there.code, str(there)

    def made(self) -> list[str]:
        """Return what the files have made."""
        return self.database.query(MADE)

    def pending(self) -> bool:
        """Tell whether a file has not run."""
        return f"made_{self.number:03}" not in self.made()

    def beside(self) -> list[str]:
        """Return the databases beside this one that have to do with it."""
        found = (
            "SELECT datname::text FROM pg_database WHERE datname LIKE %s"
            " OR datname LIKE 'preflight\\_scratch%%'"
        )
        return servers.Database(self.server, "postgres").query(found, f"{self.database.name}\\_%")

    def tidy(self) -> None:
        """Drop what was restored."""
        with self.server.connect() as session:
            for each in self.beside():
                gone = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                session.execute(gone.format(sql.Identifier(each)))

    def close(self) -> None:
        """Drop all."""
        self.tidy()
        with self.server.connect() as session:
            gone = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            session.execute(gone.format(sql.Identifier(self.database.name)))


# --- what holds -----------------------------------------------------------------------------------


def seen(world: World) -> set[str]:
    """Return the names of the backups that everybody sees."""
    return {each.name for each in world.place.iterdir() if not each.name.startswith(".")}


def hidden(world: World) -> set[str]:
    """Return what is hidden in the place."""
    return {each.name for each in world.place.iterdir() if each.name.startswith(".")}


def require_done(world: World, done: Told, made: list[str]) -> None:
    """Raise AssertionError unless a command that ended with 0 did what it is for."""
    command = STORIES[done.told].command[0]
    if command == "up":
        assert not world.pending(), "not applied"
    if command == "rollback":
        assert made[:-1] == world.made(), "not taken back"
        (export,) = world.place.glob("*/export-*.csv")
        assert "\n".join(["id", *map(str, range(1, 11)), ""]) == export.read_text(), export
    if command == "restore":
        (restored,) = world.beside()
        count = "SELECT count(*) FROM items"
        assert [1000] == servers.Database(world.server, restored).query(count), restored


def require_kept(world: World, done: Told, before: dict[str, bytes]) -> None:
    """Raise AssertionError unless what is seen is whole, and what is gone was said to be gone.

    What had its name already when something failed, and could not be hidden again, may be seen.
    """
    result, older = done.result, {each.partition("/")[0] for each in before}
    verified = {each["backup"] for each in result.event("backup.verified")}
    pruned = {each["backup"] for each in result.event("backup.pruned")}  # hidden, if not removed
    stuck = any(each.what == "rename" and each.of.startswith("/calls_") for each in done.refused)
    now, after = seen(world), contents(world.place)
    assert older - now <= pruned, f"gone: {older - now}"
    for name, text in before.items():
        if name.partition("/")[0] in now:
            assert text == after.get(name), f"touched: {name}"
    if done.told != "apart":
        assert stuck or now - older <= verified, f"seen, and not told: {now - older - verified}"
        assert result.code or now - older == verified, f"told, and not seen: {verified - now}"
    for each in now:
        if (world.place / each / "manifest.json").exists():
            together.require_whole(world.place / each)
        else:
            assert done.told == "apart", f"no manifest: {each}"
            assert result.code or (world.place / each / "point.json").exists(), each


def require_true(result: program.Result, number: int) -> None:
    """Raise AssertionError unless a failure has a code of ours, and says what the system said."""
    error = result.finished["error"]
    assert result.code in CODES, "code"
    said = [error["message"], *(each["warning"] for each in result.event("config.warned"))]
    assert any(os.strerror(number) in each for each in said), "does not say what the system said"


def strike(world: World, told: str, refusal: Refusal, *, lacking: bool = False) -> Told:
    """Tell a story while some calls are refused, and again; return what was asked and said.

    Raises AssertionError when something that is promised does not hold.
    """
    world.ready(told)
    before, made = contents(world.place), world.made()
    result, asked = world.told(told, refusal)
    done = Told(told, refusal, result, asked)
    kinds = {each.what for each in done.refused}
    try:
        assert "Traceback" not in result.stdout + result.stderr
        require_kept(world, done, before)
        if result.code == 0:
            require_done(world, done, made)
        else:
            assert kinds, "failed, and nothing was refused"
            assert not lacking, "it only lacks a call"
            require_true(result, refusal.number)
            assert made == world.made(), "failed, and changed the database"
        if lacking or not kinds & _TIDIES:
            assert not hidden(world), f"left: {hidden(world)}"
            assert bool(result.code == 0 and told == "restore") == bool(world.beside())
        _require_settles(world, told, made)
    except AssertionError as error:
        raise AssertionError(f"{done}: {error}\n{result}") from error
    finally:
        world.tidy()
    return done


def _require_settles(world: World, told: str, made: list[str]) -> None:
    """Raise AssertionError unless all agree on what is there, and the next run does what is due."""
    listed = world.run("backups", "--json")
    names = {each["backup"] for each in listed.json()["backups"]}
    there = {each for each in seen(world) if (world.place / each / "manifest.json").exists()}
    assert there == names, f"`backups` lists {names}, there are {there}"
    assert 0 == listed.code, str(listed)
    for path in world.place.iterdir():  # who was killed, too, is let alone for an hour
        os.utime(path, (0, 0))
    world.tidy()
    command = STORIES[told].command[0]
    again = "backup" if command in {"backups", "plan", "restore"} else command
    if made != world.made():  # it is done
        again = "backup"
    settled = world.run(again)
    assert 0 == settled.code, f"the next one: {settled}"
    assert not hidden(world), f"the next one left: {hidden(world)}\n{settled}"
    for each in seen(world):
        if (world.place / each / "manifest.json").exists():
            together.require_whole(world.place / each)


# --- at random ------------------------------------------------------------------------------------


def lacking(choice: random.Random) -> list[Refusal]:
    """Return what a file system may lack: all at once, and each alone."""
    every = Refusal(tuple(LACKING), choice.choice(NOT_THERE))
    return [every, *(Refusal((what,), choice.choice(how)) for what, how in LACKING.items())]


def failing(choice: random.Random, asked: list[Call]) -> Refusal:
    """Return how one of these calls fails, alone or with all that come behind it."""
    number = choice.choice(sorted(FAILS))
    kinds = sorted({each.what for each in asked} & {*FAILS[number]})
    kind = choice.choice(kinds or [""])
    at = choice.choice([at for at, each in enumerate(asked, 1) if each.what == kind] or [1])
    return Refusal(FAILS[number], number, at, choice.choice([at, 0]))


def walk(server: servers.Server, home: Path, name: str, seed: str, strikes: int = 10) -> str:
    """Tell each story on a file system that lacks calls, and on some that fail; return what was.

    A short walk has all that may lack at once. Raises AssertionError where something that is
    promised does not hold.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    world, done = World(server, home, name, choice), []
    try:
        for told in choice.sample(sorted(STORIES), len(STORIES)):
            some = lacking(choice)[: None if strikes > 1 else 1]
            done += [strike(world, told, each, lacking=True) for each in some]
            asked = done[-1].calls
            done += [strike(world, told, failing(choice, asked)) for _ in range(strikes)]
        return "\n".join(map(str, done))
    finally:
        world.close()


def main() -> int:
    """Walk until the time is over; 1 when something did not hold."""
    return faults.walks_on_a_server("calls", __doc__, walk)


if __name__ == "__main__":
    sys.exit(main())
