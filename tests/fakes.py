"""Executables that stand before the real ones on PATH: shell scripts, written by a test."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import program, servers


class Fakes:
    """A directory of fake clients; `$REAL` in a script is the real one, `$HERE` this directory."""

    def __init__(self, here: Path, major: int = 18) -> None:
        """Put it before the clients of that major version."""
        self.here = here
        self.major = major
        here.mkdir()

    @property
    def path(self) -> str:
        """The PATH to run with."""
        return os.pathsep.join([str(self.here), program.path(self.major)])

    def write(self, script: str, name: str = "pg_dump") -> str:
        """Write one; it tells the real one's version itself. Return the PATH."""
        real = servers.client_bin(self.major) / name
        fake = self.here / name
        fake.write_text(
            f"#!/bin/sh\nREAL='{real}' HERE='{self.here}'\n"
            f'[ "$1" = --version ] && exec "$REAL" "$@"\n{script}\n'
        )
        fake.chmod(0o755)
        return self.path

    def hold(self, then: str = 'exec "$REAL" "$@"') -> str:
        """Write a pg_dump that waits for let_go(), at its first call; `held` names its passfile."""
        os.mkfifo(self.here / "gate")
        return self.write(
            'if [ ! -e "$HERE/open" ]; then echo "$PGPASSFILE" > "$HERE/held"\n'
            f'read _ < "$HERE/gate"; touch "$HERE/open"; fi\n{then}'
        )

    def hold_at_end(self) -> str:
        """Write a pg_dump that stays once it has written all, and leaves its number in `pid`."""
        os.mkfifo(self.here / "gate")
        return self.write(
            '"$REAL" "$@" || exit\necho $$ > "$HERE/new"; mv "$HERE/new" "$HERE/pid"\n'
            'read _ < "$HERE/gate"'
        )

    def hold_restore(self, then: str = 'exec "$REAL" "$@"') -> str:
        """Write a pg_restore that waits for let_go() at its first call, and leaves `waiting`."""
        os.mkfifo(self.here / "gate")
        return self.write(
            f'if mkdir "$HERE/waiting" 2>/dev/null; then read _ < "$HERE/gate"; fi\n{then}',
            "pg_restore",
        )

    def let_go(self) -> None:
        """Let the held one go on; returns when it does."""
        (self.here / "gate").write_text("\n")


def run_without_privileges(env: Mapping[str, str], *args: str) -> program.Result:
    """Run `up`, or what is said, as somebody to whom the rights of files apply; we may be root."""
    drop = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*drop, sys.executable, program.ENTRYPOINT, *args],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=program.TIMEOUT_S,
        check=False,
    )
    return program.Result(done.returncode, done.stdout, done.stderr, 0.0)


def contents(directory: Path) -> dict[str, bytes]:
    """Return everything below a directory: files with their bytes, also the hidden."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }


def only(backup_dir: Path) -> Path:
    """Return the one backup, which is all there is in a directory."""
    (found,) = backup_dir.iterdir()
    return found


def manifest(backup: Path) -> dict[str, Any]:
    """Return a backup's manifest."""
    found: dict[str, Any] = json.loads((backup / "manifest.json").read_bytes())
    return found
