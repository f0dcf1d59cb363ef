"""Migration tools that are written in Python, each with what it needs, in `.cache/tools`."""

import fcntl
import functools
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers

CACHE = servers.REPOSITORY / ".cache" / "tools"
INSTALL_S = 600


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
