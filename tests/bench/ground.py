"""What every section stands on: a server, a folder, what is to be had, what is asked for."""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import servers
from tests.bench import peers

MAJOR = 17
SETTINGS: Mapping[str, str | int] = {
    "fsync": "on",  # as in production: what commits often waits for the disk
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_level": "replica",
}
LIBPQ = """
#include <libpq-fe.h>
int main(void) {
    PGconn *connection = PQconnectdb("");
    PGresult *result = PQexec(connection, "SELECT 1");
    int failed = PQresultStatus(result) != PGRES_TUPLES_OK;
    PQclear(result);
    PQfinish(connection);
    return failed;
}
"""


@dataclass(frozen=True)
class Wanted:
    """How much is to be measured."""

    quick: bool = False
    rounds: int = 0  # 0: as many as a section thinks right
    gigabytes: float = 0
    large: bool = False

    def times(self, full: int, quick: int) -> int:
        """Return how many rounds there are."""
        return self.rounds or (quick if self.quick else full)


@dataclass
class Ground:
    """A server and a folder, both gone afterwards, and what was learnt about the others."""

    wanted: Wanted
    server: servers.Server
    scratch: Path
    versions: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    @property
    def bare(self) -> dict[str, str]:
        """The environment that everybody starts from."""
        return {
            "PATH": f"{servers.client_bin(MAJOR)}:{os.environ['PATH']}",
            "HOME": str(self.scratch),
            "LC_ALL": "C.UTF-8",
        }

    def database(self, name: str) -> servers.Database:
        """Return a new database; one of that name goes."""
        with self.server.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" (FORCE)'.encode())
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return servers.Database(self.server, name)

    def folder(self, name: str) -> Path:
        """Return a new folder, inside one of its own."""
        home = self.scratch / name / "files"
        shutil.rmtree(home.parent, ignore_errors=True)
        home.mkdir(parents=True)
        return home

    def peers(self, wanted: Sequence[Callable[[], peers.Peer]]) -> list[peers.Peer]:
        """Return those that are to be had, and keep what they are."""
        there = peers.found(wanted, self.lacking)
        self.versions |= {each.name: each.version for each in there if each.version}
        return there

    def libpq(self) -> Path | None:
        """Return a program in C that connects and asks one thing, where it can be compiled."""
        source, program = self.scratch / "floor.c", self.scratch / "floor"
        source.write_text(LIBPQ)
        headers = _said("pg_config", "--includedir") or "/usr/include/postgresql"
        library = servers.client_bin(MAJOR).parent / "lib"  # psql's own
        options = [f"-I{headers}", f"-L{library}", f"-Wl,-rpath,{library}"]
        compiled = shutil.which("cc") and subprocess.run(
            ["cc", "-O2", *options, source, "-o", program, "-lpq"],  # noqa: S607 -- as on PATH
            check=False,
            capture_output=True,
            text=True,
        )
        if compiled and compiled.returncode == 0:
            return program
        lines = compiled.stderr.strip().splitlines() if compiled else ["cc is not on PATH"]
        self.lacking["libpq in C"] = f"{lines[0]} (Debian: gcc, libpq-dev)"
        return None


@contextmanager
def made(wanted: Wanted, **settings: str | int) -> Iterator[Ground]:
    """Give a ground, and leave nothing of it behind."""
    scratch = Path(tempfile.mkdtemp(prefix="pg-preflight-bench-", dir="/tmp"))
    server: servers.Server | None = None
    try:
        scratch.chmod(0o755)
        server = servers.start(MAJOR, **{**SETTINGS, **settings})
        with server.connect() as connection:
            version = connection.info.parameter_status("server_version") or ""
        versions = {"PostgreSQL": version, "Python": platform.python_version()}
        yield Ground(wanted, server, scratch, versions)
    finally:
        if server is not None:
            server.remove()
        shutil.rmtree(scratch, ignore_errors=True)


def _said(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
