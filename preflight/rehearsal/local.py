"""A throwaway PostgreSQL server inside the job: where a copy can be tried at no cost to production.

Its cluster lies in a hidden directory of this run, which a file lock holds; it listens on a socket
in there alone, makes nothing durable, and ends with the job, however that ends. What a killed run
leaves, the next one removes: the server by its pid and its directory, never a stranger's process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import itertools
import json
import os
import pwd
import random
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preflight.backup import mounts
from preflight.base import console, landlock, memory, stop, threads
from preflight.rehearsal import confined

DIRECTORY = Path("/scratch")
SUPERUSER = "preflight_rehearsal_superuser"  # a name that no live server has: its roles come here
HOME = "template1"  # the database that is always there
SPARE = "postgres"  # initdb's other one, which the image's cluster has not
OWN = SUPERUSER  # instead of it where the copy has its name; nobody may stay in the first one
TEMPLATE = "cluster"  # beside bin/: what initdb made when the image was built
PREFIX = ".preflight-rehearsal-"
ABANDONED_S = 3600.0  # a directory without its lock file is being made, or is left over
LOCK, DATA, SOCKET, LOG = ".lock", "data", "socket", "log"
SPACES, TEMPORARY = "tablespaces", "tmp"
CONF = ".conf"
SHARE, EXTRA_BYTES = 1.2, 300_000_000  # of the database, and for WAL, sorting and the cluster
RESERVE_BYTES = 64_000_000  # what a restore leaves free: of a disk, of a cgroup's memory
SOCKET_BYTES = 107  # the longest path of a socket, but for its final zero
PORT = 5432  # in the socket's name
START_S, END_S = 60.0, 2.0
TURN_S = 15.0  # for a look at a directory's room: who has that lock keeps it for milliseconds
WATCH_S, WATCH_MOST_S, FASTEST_BYTES_S = 0.2, 5.0, 4e9  # what fills a disk is not faster
QUIT, KILL = 3, 9
NOBODY = 65534
AT_ONCE = 1000  # files that are listed at a time
END_BYTES = 8192  # of its log, and more than any other file has that is read
SETTINGS: Mapping[str, str] = {
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "128MB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",  # no locks but the files' own; what they need is analyzed beforehand
    "max_logical_replication_workers": "0",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",  # not /dev/shm, which may be small or not there
    "huge_pages": "off",
    "restart_after_crash": "off",
    "shared_preload_libraries": "",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_min_messages": "log",  # no statement that fails, no row: only how the server does
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "lc_messages": "C",
    "cluster_name": "pg-preflight rehearsal",
}
_SINCE = {18: {"io_method": "sync"}}  # three processes less


CARRIED = "build-id"  # image/assemble.py: our own directory, which may lie in another image
ZONES = Path("/usr/share/zoneinfo")  # compiled into Debian's server


class Unavailable(Exception):
    """There can be no throwaway server; the message says why, as the end of a sentence."""


class NotHere(Unavailable):
    """Not with these programs, this directory, this user: another run will find the same."""


class NoRoom(Unavailable):
    """Less room than the copy needs, known before a byte is written or while it is filled."""


class Broken(Unavailable):
    """The server did not start, or it ended by itself."""


# the programs


@dataclass(frozen=True, slots=True)
class Programs:
    """A server's programs, of one folder; `template` is a cluster to copy instead of initdb."""

    postgres: Path
    initdb: Path | None
    template: Path | None
    version: str
    major: int


def find(major: int, pg_dump: str, path: str) -> Programs:
    """Return the server programs of a major: beside pg_dump, on PATH, where systems put them.

    Raises NotHere that says where they were looked for, and what was found instead.
    """
    others: dict[str, Path] = {}
    folders = list(dict.fromkeys(_folders(major, pg_dump, path)))
    for folder in folders:
        postgres = folder / "postgres"
        if not _runs(postgres):
            continue
        version = _version(postgres)
        if version.partition(".")[0] != str(major):
            others.setdefault(version or "no version", folder)
            continue
        if (folder.parent / CARRIED).is_file() and not ZONES.is_dir():
            raise NotHere(
                f"the server that was brought along reads {ZONES}, which this image has not: "
                "install its tzdata"
            )
        template, initdb = folder.parent / TEMPLATE, folder / "initdb"
        return Programs(
            postgres,
            initdb if _runs(initdb) else None,
            template if (template / "PG_VERSION").is_file() else None,
            version,
            major,
        )
    found = "; ".join(f"{version} in {folder}" for version, folder in others.items())
    raise NotHere(
        f"no server program of PostgreSQL {major} is here: no `postgres` of that major beside "
        f"{pg_dump}, on PATH or in /usr/lib/postgresql/{major}/bin"
        + (f" (found: {found})" if found else "")
        + f"; of the image, a tag pg{major}-full would have it"
    )


def _folders(major: int, pg_dump: str, path: str) -> Iterator[Path]:
    beside = Path(pg_dump)
    yield beside.parent
    yield Path(os.path.realpath(beside)).parent
    yield from (Path(each) for each in path.split(os.pathsep) if each)
    for folder in ("/usr/lib/postgresql/{}", "/usr/pgsql-{}", "/opt/homebrew/opt/postgresql@{}"):
        yield Path(folder.format(major), "bin")
    for each in sys.path:  # wheels that bring a whole server
        with suppress(OSError):
            yield from sorted(Path(each).glob("*/pginstall/bin"))


def _runs(program: Path) -> bool:
    """Tell whether there is a program that we may start; of a folder that is closed to us: no."""
    return os.path.isfile(program) and os.access(program, os.X_OK)  # noqa: PTH113 -- never raises


@functools.cache
def _version(postgres: Path) -> str:
    found = re.search(r"\(PostgreSQL\) (\d+\S*)", _asked(postgres, _environment()))
    return found[1] if found else ""


def _asked(postgres: Path, environment: Mapping[str, str]) -> str:
    """Return what a program says of its version; nothing where it does not run."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(  # noqa: S603 -- a program that was looked for by its name
            [postgres, "--version"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=START_S,
        ).stdout
    return ""


def _environment() -> dict[str, str]:
    """Return what the server's processes see: nothing of ours, whatever our locale is."""
    return {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}


# the place


def place(chosen: Path = DIRECTORY) -> Path:
    """Return the directory that throwaway servers may live in; raises NotHere.

    In a container it must be a mount; on a host that has no such directory, and none was named,
    the temporary one will do.
    """
    if chosen == DIRECTORY and not chosen.exists() and not mounts.in_container():
        try:
            chosen = Path(tempfile.gettempdir())
        except OSError as error:  # it has tried to write to each
            raise NotHere(
                "this user may write to no temporary directory: set PREFLIGHT_REHEARSE_DIR"
            ) from error
    try:
        directory = Path(os.path.realpath(chosen, strict=True))
    except OSError as error:
        raise NotHere(
            f"there is no directory {chosen} (PREFLIGHT_REHEARSE_DIR): {error.strerror}"
        ) from error
    if not directory.is_dir():
        raise NotHere(f"{chosen} (PREFLIGHT_REHEARSE_DIR) is no directory")
    if mounts.unmounted(directory):
        raise NotHere(
            f"{chosen} (PREFLIGHT_REHEARSE_DIR) is in this container's own layer: "
            "mount a volume, an emptyDir or a tmpfs there"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise NotHere(f"user {os.geteuid()} may not write to {chosen} (PREFLIGHT_REHEARSE_DIR)")
    return directory


def needed(database_bytes: int) -> int:
    """Return how many bytes a copy of a database may take, with its cluster."""
    return int(database_bytes * SHARE) + EXTRA_BYTES


def holding(free: int) -> int:
    """Return how many bytes of a database `needed` finds room for."""
    return int((free - EXTRA_BYTES) / SHARE)


@dataclass(frozen=True, slots=True)
class Room:
    """How many bytes are free for us, and what the bound is that says so."""

    free: int
    bound: str


def room(directory: Path, limit_mb: int = 0, *, taken: int | None = None) -> Room:
    """Return what is free in a directory: of its file system, its memory, its limit (0: none).

    `taken` are the bytes that lie below it; when they are not given they are counted.
    """
    free = mounts.free(directory)
    rooms = [Room(sys.maxsize if free is None else free, "on its file system")]
    if mounts.mount_kind(directory) in ("tmpfs", "ramfs"):
        rooms += [Room(left, f"of the memory ({whose})") for left, whose in memory.left()]
    if limit_mb:
        taken = size(directory) if taken is None else taken
        bound = f"below PREFLIGHT_REHEARSE_DIR_MB={limit_mb}"
        rooms.append(Room(limit_mb * 1_000_000 - taken, bound))
    return min(rooms, key=lambda each: each.free)


def size(directory: Path) -> int:
    """Return the bytes that lie on the disk below a directory; what vanishes meanwhile is none."""
    total, below = 0, [str(directory)]
    while below:
        with suppress(OSError), os.scandir(below.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
    return total


# the user


@dataclass(frozen=True, slots=True)
class User:
    """Whose a file can be; of the server, when it does not run as us: PostgreSQL refuses root."""

    uid: int
    gid: int

    def give(self, path: Path) -> None:
        """Make a file or a directory theirs; a link is not followed."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)


def user() -> User | None:
    """Return who the server runs as, None for ourselves; raises NotHere."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        found = pwd.getpwnam("nobody")
        return User(found.pw_uid, found.pw_gid)
    return User(NOBODY, NOBODY)


def _require_reachable(path: Path, whose: User | None) -> None:
    """Make sure that the server's user gets to a file of ours; raises NotHere."""
    for each in (path, *path.parents) if whose else ():
        if not each.stat().st_mode & 0o001:
            raise NotHere(
                f"as root the server runs as user {whose.uid if whose else 0}, "
                f"who may not enter {each}"
            )


# what killed runs left


def sweep(directory: Path) -> list[str]:
    """Remove what dead runs left in a directory, their servers first; return the names.

    A run is dead when the lock on its directory is free. A server is ended only when it works in
    that very directory.
    """
    _finish_leaving()
    gone = []
    mine = {os.geteuid(), *((found.uid,) if (found := user()) else ())}
    for path in directory.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if path.is_symlink() or not path.is_dir() or path.stat().st_uid not in mine:
                continue
            if _abandoned(path):
                gone.append(path.name)
    return gone


def _abandoned(path: Path) -> bool:
    """Remove a directory if its run is dead; tell whether it was."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:  # killed while it was made or removed; or it is being made just now
        if time.time() - path.stat().st_mtime < ABANDONED_S:
            return False
        _remove(path)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.lstat(path / LOCK)):
            return False  # its run has removed it, and begins another copy under that name
        _end_left(path / DATA)
        _remove(path)
    finally:
        os.close(descriptor)
    return True


def _end_left(data: Path) -> None:
    """End the server that a killed run left: the process of its pid file, if it works there."""
    for number in (QUIT, KILL):
        for waited in stop.looks(0.05, 0.05):
            pid = _postmaster(data)
            if pid is None:
                return
            if waited >= END_S:
                break
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _postmaster(data: Path) -> int | None:
    """Return the pid of the server that works in a data directory, if there is one."""
    with suppress(OSError, ValueError, IndexError), _folder(data) as inside:
        pid = int(_end_of("postmaster.pid", inside).splitlines()[0])
        if pid > 0 and os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.fstat(inside)):  # noqa: PTH116
            return pid
    return None


def _remove(path: Path) -> None:
    """Remove a run's directory and the short one of its socket; its lock goes last."""
    with suppress(OSError):
        short = (path / SOCKET).readlink()
        if short.name.startswith(PREFIX) and not short.is_symlink():
            shutil.rmtree(short, ignore_errors=True)
    # what is in there is the server's user's: no link of his leads us elsewhere
    with _folder(path) as inside:
        for name in os.listdir(inside):  # noqa: PTH208 -- of a descriptor
            if name == LOCK:
                continue
            try:
                with _folder(name, inside) as each:
                    _without_databases(each)
            except OSError:  # a file, or a link
                with suppress(OSError):
                    os.unlink(name, dir_fd=inside)
            else:
                shutil.rmtree(name, ignore_errors=True, dir_fd=inside)
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _folder(path: Path | str, inside: int | None = None) -> Iterator[int]:
    """Yield the descriptor of a directory that is one; raises OSError for a link."""
    kind = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, kind, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end_of(name: Path | str, inside: int | None = None) -> bytes:
    """Return the last bytes of a file in a directory that a server may write in; raises OSError.

    A link, a pipe, a device in its place is not opened for what it is.
    """
    kind = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, kind, dir_fd=inside)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"{name} is no file")
        return os.pread(descriptor, END_BYTES, max(0, found.st_size - END_BYTES))
    finally:
        os.close(descriptor)


def _without_databases(cluster: int) -> None:
    """Remove the files of a cluster's databases, a thousand at a time.

    `rmtree` has them all in memory: a database of ten thousand tables has thirty thousand. What
    cannot be removed is left to it.
    """
    with suppress(OSError), _folder("base", cluster) as base:
        for name in os.listdir(base):  # noqa: PTH208 -- of a descriptor
            with suppress(OSError), _folder(name, base) as database:
                while some := _files(database):
                    for file in some:
                        os.unlink(file, dir_fd=database)


def _files(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        plain = (each.name for each in entries if each.is_file(follow_symlinks=False))
        return list(itertools.islice(plain, AT_ONCE))


# a server


@dataclass(slots=True)
class Server:
    """A running throwaway server; sizes in bytes."""

    programs: Programs
    directory: Path  # of this run, below `place`
    socket: Path  # the directory of its socket
    limit_mb: int = 0
    port: int = PORT
    tcp: bool = False
    process: subprocess.Popen[bytes] | None = None
    _full: NoRoom | None = None  # why it was ended by us
    _looked: tuple[float, float, int] = field(default=(0.0, 0.0, 0))  # when again, how long, what

    @property
    def data(self) -> Path:
        """The cluster's directory."""
        return self.directory / DATA

    @property
    def running(self) -> bool:
        """Tell whether it lives."""
        return self.process is not None and self.process.poll() is None

    def said(self) -> str:
        """Return the last words that the server logged: of itself, never of a row."""
        with suppress(OSError):
            lines = _end_of(self.directory / LOG).decode(errors="replace").splitlines()
            words = [re.sub(r"^.*?\] *(?=[A-Z]+:)", "", line) for line in lines[-5:]]
            return "; ".join(word.strip()[:300] for word in words if word.strip())
        return ""

    def death(self) -> Unavailable | None:
        """Return why the server is no more, None while it lives."""
        if self.running:
            return None
        return self._full or Broken(
            f"the throwaway server ended by itself: {self.said() or 'no words'}"
        )

    def ended(self, within_s: float) -> Unavailable | None:
        """Return why the server is no more, waiting for its end; None while it lives."""
        if self.process is not None and within_s:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(within_s)
        return self.death()

    def target(self, database: str = HOME, role: str = SUPERUSER) -> dict[str, str]:
        """Return the libpq parameters that lead to it, whatever the environment says.

        Without a password: who gets into the socket's directory is us.
        """
        return {
            "host": str(self.socket),
            "hostaddr": "",  # PGHOSTADDR would lead elsewhere
            "port": str(self.port),
            "user": role,
            "dbname": database,
            "sslmode": "disable",
            "gssencmode": "disable",
            "channel_binding": "prefer",
            "target_session_attrs": "any",
            "options": "",
            # it needs no password, and is to get none of another server; libpq warns of what is
            # there and no file, as /dev/null
            "passfile": str(self.socket / "none"),
        }

    def folder(self, name: str) -> Path:
        """Make a directory of the server's beside its cluster, as for a tablespace."""
        return _its_own(self.directory / SPACES / name, user())

    def own(self) -> list[Path]:
        """Return the directories that are the server's; the one around them is ours."""
        inside = (self.directory / each for each in (DATA, SPACES, TEMPORARY))
        return [self.socket, *inside]

    def used(self) -> int:
        """Return what it has on the disk; looking again costs at most a twentieth of the time."""
        again, _, found = self._looked
        began = time.monotonic()
        if began >= again:
            found = size(self.directory)
            took = time.monotonic() - began
            self._looked = (began + max(WATCH_S, 20 * took), took, found)
        return found

    def forget(self) -> None:
        """Look again the next time, however soon."""
        self._looked = (0.0, 0.0, 0)

    def require_room(self) -> int:
        """Return how many bytes are left to it; raises NoRoom when the bound is near."""
        left = room(self.directory, self.limit_mb, taken=self.used() if self.limit_mb else 0)
        if left.free < RESERVE_BYTES:
            raise NoRoom(
                f"the copy has {console.size(self.used())} by now, and only "
                f"{console.size(max(0, left.free))} are left {left.bound}"
            )
        return left.free

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End it when the bound of its directory is near, whoever fills it; `death` says so."""
        over = threading.Event()

        def look() -> None:
            wait_s = WATCH_S
            while not over.wait(wait_s):
                try:
                    wait_s = look_again_s(self.require_room())
                except NoRoom as reason:
                    self._full = reason
                    self.end()
                    return

        thread = threading.Thread(target=look, daemon=True)
        threads.start(thread)
        try:
            yield
        finally:
            over.set()
            thread.join()

    def end(self) -> None:
        """End it at once: nothing in it is worth a shutdown."""
        for number in (QUIT, KILL):
            if self.process is None or self.process.poll() is not None:
                return
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_S)


def look_again_s(free: int) -> float:
    """Return after how many seconds room has to be looked at again, whatever fills it meanwhile."""
    return max(WATCH_S, min(WATCH_MOST_S, (free - RESERVE_BYTES) / FASTEST_BYTES_S))


@contextmanager
def started(  # noqa: PLR0913 -- what a server is made from
    programs: Programs,
    directory: Path,
    run_id: str,
    *,
    need: int,
    limit_mb: int = 0,
    settings: Mapping[str, str] | None = None,
    users: Sequence[str] = (),
    tcp: bool = False,
) -> Iterator[Server]:
    """Yield a running server in a directory that `place` returned; nothing of it stays.

    `need` are the bytes that must be free, `settings` come after ours (the live server's limits,
    its `wal_level`). Only `users` and its superuser are let in by its socket; none: everybody, who
    can only be us. With `tcp` it listens on 127.0.0.1, too, where a password is asked for. Raises
    NotHere, NoRoom, Broken. Call in the main thread: the server ends with the thread that started
    it.
    """
    whose = user()
    _require_reachable(programs.postgres, whose)
    _require_reachable(directory, whose)
    sweep(directory)
    with ExitStack() as stack:
        home = _had_ahead(stack, programs, directory, run_id, need, limit_mb)
        made = home is not None
        home = home or stack.enter_context(_held(directory, run_id, need, limit_mb, whose))
        server = Server(programs, home, stack.enter_context(_short(home, whose)), limit_mb)
        try:
            if not made:
                _make_cluster(programs, server.data, whose)
            (home / SPACES).mkdir(mode=0o711)  # those in it are his, their names are not
            _its_own(home / TEMPORARY, whose)
            _configure(server, settings or {}, users, whose, tcp=tcp)
        except OSError as error:
            raise Broken(f"no cluster can be made in {home}: {error.strerror}") from error
        stack.callback(server.end)
        _start(server, whose)
        yield server


# a cluster that is made while something else is waited for


class _Ahead:
    """A directory of this run whose cluster a thread makes, and which goes beside other work."""

    def __init__(self, directory: Path, run_id: str, need: int, limit_mb: int) -> None:
        self.home = directory / f"{PREFIX}{run_id}"
        self.programs: Programs | None = None  # once they have made it
        self.over = False
        self._wanted = (directory, run_id, need, limit_mb)
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._work, daemon=True, name="cluster")

    def begin(self, find_programs: Callable[[], Programs]) -> None:
        """Begin; what fails is left to who would make it otherwise."""
        self._find = find_programs
        threads.started(self._thread)

    def _work(self) -> None:
        with suppress(Unavailable, OSError):
            programs, whose = self._find(), user()
            directory, _, need, limit_mb = self._wanted
            if short(directory, 2 * need, limit_mb):
                return  # where it is about the last bytes nothing else lies there
            home = self._stack.enter_context(_held(*self._wanted, whose))
            _make_cluster(programs, home / DATA, whose, lambda: self.over)
            self.programs = programs

    def settled(self) -> None:
        """Wait until it is made, or has failed; a stop request ends that."""
        while self._thread.is_alive():
            with stop.allowed():
                self._thread.join(0.5)

    def leave(self) -> None:
        """Have the directory removed, beside other work: see `_finish_leaving`; once is enough."""
        if self.over:
            return
        self.over = True

        def work() -> None:
            if self._thread.ident is not None:  # else it could not be started
                self._thread.join()
            self._stack.close()

        # no daemon: who leaves the process waits for it
        thread = threading.Thread(target=work, name="leaving")
        _LEAVING.append(thread)
        if not threads.started(thread):
            _LEAVING.remove(thread)
            work()


_AHEAD: dict[Path, _Ahead] = {}  # by the run's directory
_LEAVING: list[threading.Thread] = []


@contextmanager
def ahead(
    find_programs: Callable[[], Programs],
    directory: Path,
    run_id: str,
    need: int,
    limit_mb: int = 0,
) -> Iterator[None]:
    """Make meanwhile the cluster of the server that `started` will yield inside; same arguments.

    What cannot be had is not missed: `started` makes it then, and says why it cannot. Removed in
    the end, while others go on to work.
    """
    _finish_leaving()
    begun = _Ahead(directory, run_id, need, limit_mb)
    _AHEAD[begun.home] = begun
    begun.begin(find_programs)
    try:
        yield
    finally:
        _AHEAD.pop(begun.home, None)
        begun.leave()


def _had_ahead(  # noqa: PLR0913, PLR0917 -- with what it goes, and what `started` was told
    stack: ExitStack, programs: Programs, directory: Path, run_id: str, need: int, limit_mb: int
) -> Path | None:
    """Return this run's directory where its cluster was made ahead; raises NoRoom.

    It is left with `stack`, so that the next copy of this run finds the place free.
    """
    if (begun := _AHEAD.pop(directory / f"{PREFIX}{run_id}", None)) is None:
        return None
    begun.settled()
    if begun.programs != programs:
        begun.leave()
        _finish_leaving()
        return None
    stack.callback(begun.leave)
    _require_room(directory, need, limit_mb, begun.home)
    return begun.home


def _finish_leaving() -> None:
    """Wait until directories that were left are gone."""
    while _LEAVING:
        _LEAVING.pop().join()


@contextmanager
def _held(
    directory: Path, run_id: str, need: int, limit_mb: int, whose: User | None
) -> Iterator[Path]:
    """Yield a private directory that this run holds a lock on, if there is room; removed after."""
    home = directory / f"{PREFIX}{run_id or secrets.token_hex(6)}"
    descriptor = -1
    try:
        try:
            with _one_at_a_time(directory):
                _require_room(directory, need, limit_mb)
                home.mkdir(mode=0o700)
                unlocked = home / f"{LOCK}.new"  # a sweep never meets the file without its lock
                descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                os.write(descriptor, json.dumps({"need": need}).encode())
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unlocked.rename(home / LOCK)
            if whose:
                home.chmod(0o711)  # to what is his in there; its names, and the lock, stay ours
        except OSError as error:
            raise NotHere(f"{home} cannot be made and locked: {error.strerror}") from error
        yield home
    finally:
        if descriptor >= 0:
            with suppress(OSError):
                _remove(home)
            os.close(descriptor)


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Let runs that begin together ask for room one after the other."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    until = time.monotonic() + TURN_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise NotHere(f"somebody holds a lock on {directory}") from None
            time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 -- also beside the main thread
        yield
    finally:
        os.close(descriptor)


def _require_room(directory: Path, need: int, limit_mb: int, home: Path | None = None) -> None:
    """Make sure that a copy will fit beside those of other runs; raises NoRoom."""
    if why := short(directory, need, limit_mb, home):
        raise why


def left(directory: Path, limit_mb: int) -> int:
    """Return how many bytes are free beside what other runs may still write."""
    return room(directory, limit_mb).free - _promised_there(directory)


def short(directory: Path, need: int, limit_mb: int, ours: Path | None = None) -> NoRoom | None:
    """Return what lacks for a copy beside those of other runs, if anything does.

    What was promised to `ours`, and to what is made ahead for it, is what is asked for.
    """
    free, promised = room(directory, limit_mb), _promised_there(directory, ours)
    if free.free - promised >= need:
        return None
    others = f", {console.size(promised)} of them for other runs" if promised else ""
    return NoRoom(
        f"{directory} has too little room: {console.size(max(0, free.free))} are free "
        f"{free.bound}{others}, {console.size(need)} are needed"
    )


def _promised_there(directory: Path, ours: Path | None = None) -> int:
    mine = {ours, *_AHEAD}
    return sum(_promised(home) for home in directory.glob(f"{PREFIX}*") if home not in mine)


def _promised(home: Path) -> int:
    """Return what another run may still write: what it said that it needs, but what it has."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        need = int(json.loads(_end_of(home / LOCK))["need"])
        return max(0, need - size(home))
    return 0


@contextmanager
def _short(home: Path, whose: User | None) -> Iterator[Path]:
    """Yield the socket's directory: in our own, or a short one elsewhere if that is too long."""
    if len(os.fsencode(home / SOCKET / f".s.PGSQL.{PORT}")) <= SOCKET_BYTES:
        yield _its_own(home / SOCKET, whose)
        return
    for parent in map(Path, ("/tmp", "/var/tmp", "/dev/shm", "/run")):  # noqa: S108 -- mkdir is private
        short = parent / f"{PREFIX}{secrets.token_hex(6)}"
        with suppress(OSError):
            (home / SOCKET).unlink(missing_ok=True)
            (home / SOCKET).symlink_to(short)  # first: the next run is to find it after a kill
            short.mkdir(mode=0o700)
            break
    else:
        raise NotHere(f"the path of a socket in {home} is too long, and there is no /tmp for it")
    try:
        if whose:
            whose.give(short)
        yield short
    finally:
        shutil.rmtree(short, ignore_errors=True)


# making and starting it


def _its_own(path: Path, whose: User | None) -> Path:
    """Make a directory that is the server's alone, and return it."""
    path.mkdir(mode=0o700)
    if whose:
        whose.give(path)
    return path


def initdb_command(initdb: Path, data: Path, major: int) -> list[str]:
    """Return the call that makes the cluster, as for the image's template."""
    return [
        str(initdb),
        *("--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--wal-segsize=1"),
        *(("--no-data-checksums",) if major >= 18 else ()),  # noqa: PLR2004 -- where they became the default
        f"--username={SUPERUSER}",
        f"--pgdata={data}",
    ]


def _make_cluster(
    programs: Programs, data: Path, whose: User | None, over: Callable[[], bool] = lambda: False
) -> None:
    """Copy the template; without one run initdb, which needs a shell and a name for its user.

    Where it is `over` meanwhile, what was made is of no use: raises Broken.
    """
    if programs.template:
        _copy(programs.template, data, over)
        data.chmod(0o700)
    else:
        _initialise(programs, data, whose, over)
    if whose:
        for path in (data, *data.rglob("*")):
            whose.give(path)


def _copy(template: Path, data: Path, over: Callable[[], bool]) -> None:
    def each(source: str, target: str) -> None:
        if over():
            raise Broken("it is not wanted any more")
        shutil.copyfile(source, target)

    shutil.copytree(template, data, copy_function=each)


def _initialise(
    programs: Programs, data: Path, whose: User | None, over: Callable[[], bool]
) -> None:
    if programs.initdb is None:
        raise NotHere(f"{programs.postgres.parent} has neither initdb nor a template of a cluster")
    data.mkdir(mode=0o700)
    if whose:
        whose.give(data)
    try:
        with subprocess.Popen(  # noqa: S603 -- a command that we built
            initdb_command(programs.initdb, data, programs.major),
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **_identity(whose),
        ) as child:
            said = _last_words(child, over)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotHere(f"initdb does not start: {error}") from error
    if child.returncode != 0:
        lines = [line.strip() for line in said.splitlines() if "error" in line.lower()]
        raise NotHere(f"initdb failed: {'; '.join(lines[:3]) or said.strip()[-300:]}")


def _last_words(child: subprocess.Popen[str], over: Callable[[], bool]) -> str:
    """Return what a child says on stderr until its end, or until it is over."""
    while True:
        try:
            return child.communicate(timeout=0.5)[1]
        except subprocess.TimeoutExpired:
            if over():
                child.terminate()


def _identity(whose: User | None) -> dict[str, Any]:
    return {"user": whose.uid, "group": whose.gid, "extra_groups": []} if whose else {}


def _configure(
    server: Server,
    settings: Mapping[str, str],
    users: Sequence[str],
    whose: User | None,
    *,
    tcp: bool,
) -> None:
    """Write the configuration: ours, the caller's, and where to listen."""
    ours = dict(SETTINGS)
    for since, newer in _SINCE.items():
        ours |= newer if server.programs.major >= since else {}
    if tcp:
        server.tcp, server.port = True, _free_port()
    where = {
        "listen_addresses": "127.0.0.1" if tcp else "",
        "port": str(server.port),
        "unix_socket_directories": str(server.socket),
    }
    lines = [_line(name, value) for name, value in (ours | dict(settings) | where).items()]
    host = "host all all 127.0.0.1/32 scram-sha-256\n" if tcp else ""
    said = {"postgresql": "".join(lines), "pg_hba": f"local all {_let_in(users)} trust\n{host}"}
    for name, text in said.items():
        path = server.data / f"{name}{CONF}"
        path.unlink(missing_ok=True)
        with path.open("x", encoding="utf-8") as file:  # through no link
            file.write(text)
        if whose:
            whose.give(path)


def _let_in(users: Sequence[str]) -> str:
    """Return who a line of pg_hba.conf is for; some names cannot be written there."""
    plain = users and all(re.fullmatch(r"\w[\w .$-]*", name) for name in users)
    return ",".join(f'"{name}"' for name in (SUPERUSER, *users)) if plain else "all"


def _line(name: str, value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace("'", "''")
    return f"{name} = '{quoted}'\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(server: Server, whose: User | None) -> None:
    """Start the server and wait for what it writes into its own file; raises Broken."""
    with (
        open(server.directory / LOG, "wb") as log,  # noqa: PTH123 -- as bytes
        _ready_to_be_it(server) as armed,
    ):
        try:
            server.process = subprocess.Popen(  # noqa: S603 -- a command that we built
                [server.programs.postgres, "-D", server.data],
                cwd="/",
                env=_environment() | {"TMPDIR": str(server.directory / TEMPORARY)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is ours to handle
                preexec_fn=armed,  # noqa: PLW1509 -- asks the kernel alone
                umask=0o077,
                **_identity(whose),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Broken(f"{server.programs.postgres} does not start: {error}") from error
    status = server.data / "postmaster.pid"
    for waited in stop.looks(0.01, 0.01):
        if not server.running or waited >= START_S:
            break
        with suppress(OSError, IndexError):
            lines = status.read_text().splitlines()
            if lines[0] == str(server.process.pid) and lines[7].strip() == "ready":
                if whose:  # from now on nobody but us gets to its socket, no other run's server
                    User(os.geteuid(), os.getegid()).give(server.socket)
                return
    raise Broken(f"the throwaway server does not start: {server.said() or 'it says nothing'}")


@contextmanager
def _ready_to_be_it(server: Server) -> Iterator[Callable[[], object] | None]:
    """Yield what is to be done between fork and exec: see `_dies_with_us` and `confined`."""
    postgres, ports = server.programs.postgres, [server.port] if server.tcp else []
    rules = confined.rules(postgres, functools.partial(_asked, postgres), server.own(), ports)
    mortal = _dies_with_us()
    if mortal is None or rules is None:
        yield mortal
        return
    enter = landlock.entering(rules)

    def armed() -> None:
        mortal()
        enter()

    try:
        yield armed
    finally:
        os.close(rules)


def _dies_with_us() -> Callable[[], object] | None:
    """Return what makes Linux end the server at once when we are gone, however we went."""
    if sys.platform != "linux":
        return None
    us, pr_set_pdeathsig = os.getpid(), 1
    prctl, parent, leave = ctypes.CDLL(None).prctl, os.getppid, os._exit

    def armed() -> None:
        prctl(pr_set_pdeathsig, QUIT)
        if parent() != us:  # gone in between
            leave(1)

    return armed
