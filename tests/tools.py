"""Other migration tools, installed into `.cache/tools` when a test first asks for one."""

import fcntl
import functools
import hashlib
import os
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
    "migrate": ("github.com/golang-migrate/migrate/v4/cmd/migrate@v4.18.1", "postgres"),
    "goose": (
        "github.com/pressly/goose/v3/cmd/goose@v3.25.0",
        "no_clickhouse no_libsql no_mssql no_mysql no_sqlite3 no_vertica no_ydb no_duckdb",
    ),
}
INSTALL_S = 600
LACKING = "another tool is not to be had: "  # no promise of ours: said, also where all must run


def lacking(reason: str) -> NoReturn:
    """Skip a test that needs somebody else's tool."""
    pytest.skip(f"{LACKING}{reason}")


@functools.cache
def go(name: str) -> Path:
    """Return a tool that is written in Go; skips the test where it cannot be built."""
    module, tags = GO[name]
    found = CACHE / f"{name}-{module.rpartition('@')[2]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may want it at once
        if not found.exists():
            if shutil.which("go") is None:
                lacking(f"{name} is not here, and there is no Go to build it with")
            building = CACHE / f"{name}.building"
            environment = {**os.environ, "GOBIN": str(building), "CGO_ENABLED": "0"}
            done = subprocess.run(
                ["go", "install", "-tags", tags, module],  # noqa: S607 -- whichever Go there is
                check=False,
                capture_output=True,
                text=True,
                env=environment,
                timeout=INSTALL_S,
            )
            if done.returncode != 0:
                lacking(f"{name} cannot be built: {done.stderr[-300:]}")
            (building / name).rename(found)
    return found


@functools.cache
def python(*packages: str) -> Path:
    """Return a Python that has these packages; skips the test where they cannot be installed."""
    home = _home("python", packages)

    def install() -> list[str]:
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        return [str(home / "bin/pip"), "install", "--quiet", *packages]

    _installed(home, packages, install)
    return home / "bin/python"


@functools.cache
def npm(*packages: str) -> Path:
    """Return the `node_modules` of these packages; skips where they cannot be installed."""
    home = _home("npm", packages)
    options = ("--no-audit", "--no-fund", "--silent", "--ignore-scripts", "--prefix", str(home))
    if shutil.which("npm") is None:
        lacking("there is no npm")
    _installed(home, packages, lambda: ["npm", "install", *options, *packages])
    return home / "node_modules"


def _home(kind: str, packages: Sequence[str]) -> Path:
    return CACHE / f"{kind}-{hashlib.sha256(chr(10).join(packages).encode()).hexdigest()[:12]}"


def _installed(home: Path, packages: Sequence[str], install: Callable[[], list[str]]) -> None:
    """Run the command that `install` returns, unless somebody has."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may want it at once
        if not (home / "complete").exists():
            home.mkdir(exist_ok=True)
            done = subprocess.run(
                install(), check=False, capture_output=True, text=True, timeout=INSTALL_S
            )
            if done.returncode != 0:
                lacking(f"{' '.join(packages)} cannot be installed: {done.stderr[-300:]}")
            (home / "complete").touch()


def call(
    command: Sequence[object], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end; what it says is in the result."""
    return subprocess.run(
        [str(word) for word in command],
        check=False,
        env={**os.environ, **(environment or {})},
        text=True,
        capture_output=True,
        timeout=60,
    )
