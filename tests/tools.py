"""Other migration tools, installed into `.cache/tools` when a test first asks for one."""

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from tests import servers

CACHE = servers.REPOSITORY / ".cache" / "tools"
# the module's path with its version, and the build tags that leave other databases out
GO = {
    "gofakes3": ("github.com/johannesboyne/gofakes3/cmd/gofakes3@v1.2.0", ""),
    "age": ("filippo.io/age/cmd/age@v1.2.1", ""),
    "migrate": ("github.com/golang-migrate/migrate/v4/cmd/migrate@v4.18.1", "postgres"),
    "goose": (
        "github.com/pressly/goose/v3/cmd/goose@v3.25.0",
        "no_clickhouse no_libsql no_mssql no_mysql no_sqlite3 no_vertica no_ydb no_duckdb",
    ),
    "sql-migrate": ("github.com/rubenv/sql-migrate/sql-migrate@v1.8.1", ""),
}
# the package, and the features that leave other databases out
RUST = {"sqlx": ("sqlx-cli@0.9.0", "postgres,rustls"), "diesel": ("diesel_cli@2.3.14", "postgres")}
DBMATE = "2.36.0"
INSTALL_S = 600
PIP = (sys.executable, "-m", "pip")
SLOW = {"sql-migrate", *RUST}  # to build; of the first is measured how fast it is, and nothing else
LACKING = "another tool is not to be had: "  # no promise of ours: said, also where all must run


def lacking(reason: str) -> NoReturn:
    """Skip a test that needs somebody else's tool."""
    pytest.skip(f"{LACKING}{reason}")


def made(name: str, make: Callable[[Path], None]) -> Path:
    """Return a directory of the cache, which `make` fills for whoever comes first."""
    home = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may want it at once
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            make(home)
            (home / "complete").touch()
    return home


def install(
    *command: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command that fetches or builds a tool; skips the test where it fails."""
    found(str(command[0]))
    done = call(command, environment, cwd=cwd, timeout=INSTALL_S)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-300:]
        lacking(f"{' '.join(map(str, command))}: {said}")


def found(program: str) -> str:
    """Return where a program is; skips the test where it is not."""
    return shutil.which(program) or lacking(f"{program} is not on PATH")


@functools.cache
def go(name: str) -> Path:
    """Return a tool that is written in Go; skips the test where it cannot be built."""
    module, tags = GO[name]
    _require_wanted(name, f"go-{name}-{module.rpartition('@')[2]}")

    def build(home: Path) -> None:
        environment = {"GOBIN": str(home), "CGO_ENABLED": "0"}
        install("go", "install", "-tags", tags, module, environment=environment)

    return made(f"go-{name}-{module.rpartition('@')[2]}", build) / name


@functools.cache
def rust(name: str) -> Path:
    """Return a tool that is written in Rust; skips the test where nobody had it built."""
    package, features = RUST[name]
    home = f"rust-{package}"
    _require_wanted(name, home)
    options = ("--debug", "--locked", "--no-default-features", "--features", features)
    return made(home, lambda home: _cargo(home, package, *options)) / "bin" / name


def _require_wanted(name: str, home: str) -> None:
    """Skip the test where a tool is slow to build, and nobody has set BUILD_TOOLS."""
    there = (CACHE / home / "complete").exists()
    if name in SLOW and not there and not os.environ.get("BUILD_TOOLS"):
        lacking(f"{name} is built only with BUILD_TOOLS=1")


def _cargo(home: Path, package: str, *options: str) -> None:
    environment = {"CARGO_PROFILE_DEV_DEBUG": "0"}
    install("cargo", "install", *options, "--root", home, package, environment=environment)


@functools.cache
def python(*packages: str) -> Path:
    """Return a Python that has these packages; skips the test where they cannot be installed."""

    def fill(home: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
        quickly = ("--quiet", "--disable-pip-version-check", "--no-compile")
        install(*PIP, "--python", home / "bin/python", "install", *quickly, *packages)

    return made(f"python-{_digest(packages)}", fill) / "bin/python"


@functools.cache
def npm(*packages: str) -> Path:
    """Return the `node_modules` of these packages; skips where they cannot be installed."""
    options = ("--no-audit", "--no-fund", "--silent", "--ignore-scripts", "--prefix")
    name = f"npm-{_digest(packages)}"
    home = made(name, lambda home: install("npm", "install", *options, home, *packages))
    return home / "node_modules"


def dbmate() -> Path:
    """Return dbmate, from npm; skips where it cannot be had."""
    package = f"@dbmate/linux-{'arm64' if platform.machine() == 'aarch64' else 'x64'}"
    return npm(f"{package}@{DBMATE}") / package / "bin/dbmate"


def _digest(packages: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]


def call(
    command: Sequence[object],
    environment: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end; what it says is in the result."""
    return subprocess.run(
        [str(word) for word in command],
        check=False,
        env={**os.environ, **(environment or {})},
        text=True,
        capture_output=True,
        cwd=cwd,
        timeout=timeout,
    )
