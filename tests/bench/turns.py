"""Running things in turns, and what each of them took."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import figures


class Failed(Exception):
    """A command did not do what it is measured for; the message has what it said."""


@dataclass(frozen=True)
class Way:
    """What takes turns: a command, where it runs, and what is done before, out of the measure."""

    group: str
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    before: Callable[[], object] = lambda: None
    folder: Path = Path("/")


@dataclass(frozen=True)
class Taken:
    """What one run took, and what it wrote."""

    seconds: float
    cpu: float
    code: int
    said: str


def run(
    command: Sequence[object], environment: Mapping[str, str], folder: Path = Path("/")
) -> Taken:
    """Run a command to its end; its own processes are counted in, a server's are not."""
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in command],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return Taken(seconds, usage.ru_utime + usage.ru_stime, child.returncode, said)


def succeed(
    command: Sequence[object], environment: Mapping[str, str], folder: Path = Path("/")
) -> Taken:
    """Run a command that has to end well; raises Failed."""
    taken = run(command, environment, folder)
    if taken.code:
        words = " ".join(map(str, command))[:300]
        raise Failed(f"{words}: exit code {taken.code}\n{taken.said[-2000:]}")
    return taken


def take(ways: Sequence[Way], rounds: int) -> list[figures.Row]:
    """Let them take turns for so many rounds."""
    rows = [figures.Row(way.group, way.name) for way in ways]
    for number in range(rounds):
        for way, row in zip(ways, rows, strict=True):
            way.before()
            taken = succeed(way.command, way.environment, way.folder)
            row.seconds.append(taken.seconds)
            row.cpu.append(taken.cpu)
        print(f"  round {number + 1} of {rounds}", flush=True)
    return rows
