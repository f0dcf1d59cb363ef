"""Migration tools, each with what it needs, installed into `.cache/tools` when a test asks."""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers

CACHE = servers.REPOSITORY / ".cache" / "tools"
INSTALL_S = 600
# the module's path with its version, and the tags that leave other databases out
GO = {
    "migrate": ("github.com/golang-migrate/migrate/v4/cmd/migrate@v4.18.1", "postgres"),
    "goose": (
        "github.com/pressly/goose/v3/cmd/goose@v3.25.0",
        "no_clickhouse no_libsql no_mssql no_mysql no_sqlite3 no_vertica no_ydb no_duckdb",
    ),
}


@functools.cache
def python(*packages: str) -> Path:
    """Return a Python that has these packages; skips the test where they cannot be installed."""
    name = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    home = CACHE / f"python-{name}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"python-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may want it at once
        if not (home / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            install = [str(home / "bin/pip"), "install", "--quiet", *packages]
            done = subprocess.run(
                install, check=False, capture_output=True, text=True, timeout=INSTALL_S
            )
            if done.returncode != 0:
                pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr[-300:]}")
            (home / "complete").touch()
    return home / "bin/python"


@functools.cache
def go(name: str) -> Path:
    """Return a program that is written in Go; skips the test where it cannot be built."""
    module, tags = GO[name]
    found = CACHE / f"{name}-{module.rpartition('@')[2]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may want it at once
        if not found.exists():
            compiler, place = shutil.which("go"), CACHE / f"{name}.building"
            if compiler is None:
                pytest.skip(f"{name} is not here, and there is no Go to build it with")
            environment = {**os.environ, "GOBIN": str(place), "CGO_ENABLED": "0"}
            build = [compiler, "install", "-tags", tags, module]
            subprocess.run(build, check=True, env=environment, timeout=INSTALL_S)
            (place / name).rename(found)
    return found
