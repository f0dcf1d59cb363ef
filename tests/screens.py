"""What people see on a terminal of 80 columns: the bytes, read as a terminal does."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import program

COLUMNS, INDENT = 80, 13
PAINT = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """What was shown: the lines that stay, and every state of a line on the way."""

    def __init__(self, data: bytes) -> None:
        """Take all that was written."""
        self.lines: list[str] = []
        self.drawn: list[str] = []
        self.broken: list[
            str
        ] = []  # lines that the terminal has to break, and no long word's fault
        for line in PAINT.sub("", data.decode()).replace("\r\n", "\n").split("\n"):
            states = line.split("\r\x1b[K")
            self.drawn += states[:-1]
            self.lines.append(states[-1])
            longest = max(map(len, states[-1].split()), default=0)
            if len(states[-1]) > COLUMNS and longest <= COLUMNS - INDENT:
                self.broken.append(states[-1])

    @property
    def text(self) -> str:
        """All that stays, on one line."""
        return " ".join(" ".join(self.lines).split())


def on_terminal(
    *args: str, env: Mapping[str, str], cwd: Path, see: Callable[[bytes], None] = lambda _: None
) -> tuple[int, Screen]:
    """Run the program on a terminal of its own; `see` is given all that was shown, as it grows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, program.ENTRYPOINT, *args],
        env={**env, "TERM": "xterm", "LANG": "C.UTF-8"},
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    found = b""
    while data := _read(ours):
        found += data
        see(found)
    os.close(ours)
    return process.wait(program.TIMEOUT_S), Screen(found)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the last who had it open is gone
        return b""
