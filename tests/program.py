"""The program under test, run as its users run it: a process with an environment of its own."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests import codes, servers

ENTRYPOINT = servers.REPOSITORY / "entrypoint.py"
TIMEOUT_S = 60.0
# `make coverage` names a file; without one the program runs as it always does
_FILE = os.environ.get("COVERAGE_FILE")
_MEASURED = [
    *("-m", "coverage", "run", f"--rcfile={servers.REPOSITORY}/tests/coverage.ini"),
    f"--include={ENTRYPOINT},{servers.REPOSITORY}/preflight/*",
    f"--data-file={_FILE}",
]
PYTHON = [sys.executable, *(_MEASURED if _FILE else [])]

Event = dict[str, Any]


def path(client: int = 18) -> str:
    """Return a PATH whose pg_dump and pg_restore are of that major version."""
    return os.pathsep.join([str(servers.client_bin(client)), "/usr/bin", "/bin"])


def client(name: str, major: int = 18) -> Path:
    """Return where that client of that major version is."""
    return servers.client_bin(major) / name


def bounded(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code, which is ended when it takes more than 20 s of a processor."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
    command = [sys.executable, "-c", limit + code]
    return subprocess.run(
        command, cwd=servers.REPOSITORY, capture_output=True, text=True, check=False
    )


def parse(output: str) -> list[Event]:
    """Return the log events among the lines of an output."""
    found = []
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "event" in value:
            found.append(value)
    codes.ended(found)
    return found


def strictly(output: str, *, killed: bool = False) -> list[Event]:
    """Return the log events that an output consists of; AssertionError where a line is none.

    The last one is `run.finished`. Who was killed has not come to it, nor to the end of a line.
    """
    *lines, rest = output.split("\n")
    assert killed or not rest, f"a line without an end: {rest!r}"
    found = []
    for line in lines:
        try:
            value = json.loads(line, parse_constant=_no_number)
        except ValueError:
            value = None
        assert isinstance(value, dict) and "event" in value, f"no event: {line!r}"  # noqa: PT018
        found.append(value)
    last = "".join(each["event"] for each in found[-1:])
    assert killed or last == "run.finished", f"the last line is of {last or 'nothing'}"
    return found


def _no_number(word: str) -> None:
    raise ValueError(word)  # NaN and the like are no JSON


@dataclass(frozen=True)
class Result:
    """What a finished run left behind."""

    code: int
    stdout: str
    stderr: str
    duration_s: float

    def __post_init__(self) -> None:
        """Note the code that it has ended with."""
        codes.told(self.stdout, self.stderr)

    @property
    def events(self) -> list[Event]:
        """The log events: of stdout or, where a table or document has stdout, of stderr."""
        return parse(self.stdout) or parse(self.stderr)

    @property
    def finished(self) -> Event:
        """The one `run.finished`."""
        found = self.event("run.finished")
        assert len(found) == 1, f"{len(found)} times run.finished:\n{self}"
        return found[0]

    @property
    def names(self) -> list[str]:
        """The names of all events, in order."""
        return [each["event"] for each in self.events]

    def event(self, name: str) -> list[Event]:
        """Return the events of that name."""
        return [each for each in self.events if each["event"] == name]

    def json(self) -> Any:  # noqa: ANN401 - whatever the document is
        """Return the document that stdout is (`--json`)."""
        return json.loads(self.stdout)

    def __str__(self) -> str:
        """Show everything, for a failing test."""
        return f"exit code {self.code}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"


class Process:
    """A run that is still going on; its output is read as it comes."""

    def __init__(self, args: tuple[str, ...], env: Mapping[str, str], cwd: Path) -> None:
        """Start it."""
        self._started = time.monotonic()
        self._popen = subprocess.Popen(
            [*PYTHON, ENTRYPOINT, *args],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.pid = self._popen.pid
        self._grew = threading.Condition()
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self._popen.stdout, self._stdout), (self._popen.stderr, self._stderr))
        ]
        self._open = len(self._readers)
        for each in self._readers:
            each.start()

    @property
    def events(self) -> list[Event]:
        """The log events so far."""
        with self._grew:
            return self._events()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    def wait_for_event(self, name: str, timeout: float = 30.0) -> Event:
        """Return the first event of that name as soon as it is there."""
        with self._grew:
            self._grew.wait_for(lambda: self._first(name) or not self._open, timeout)
            found = self._first(name)
            if found is None:
                why = "did not come in time" if self._open else "never came"
                output = "".join(self._stdout + self._stderr)
                raise AssertionError(f"{name} {why}:\n{output}")
            return found

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def wait(self, timeout: float = TIMEOUT_S) -> Result:
        """Return what it left behind, once it has ended; one that does not end is killed."""
        try:
            code = self._ended(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            output = "".join(self._stdout + self._stderr)
            raise AssertionError(f"still running after {timeout} s:\n{output}") from None
        duration_s = time.monotonic() - self._started
        self._join()
        return Result(code, "".join(self._stdout), "".join(self._stderr), duration_s)

    def _ended(self, timeout: float) -> int:
        """Wait for its end, of which the kernel tells at once: Popen.wait looks every 0.05 s."""
        if self.running and hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self.pid)
            with open(descriptor, "rb", buffering=0):  # noqa: PTH123 - to be closed
                ended, _, _ = select.select([descriptor], [], [], timeout)
            timeout = 1.0 if ended else 0.0
        return self._popen.wait(timeout)

    def kill(self) -> None:
        """Kill it if it lives, and read the rest."""
        self._popen.kill()
        self._popen.wait()
        self._join()

    def _join(self) -> None:
        for each in self._readers:
            each.join(10)
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None and not any(each.is_alive() for each in self._readers):
                pipe.close()

    def _read(self, pipe: IO[str], lines: list[str]) -> None:
        for line in pipe:
            with self._grew:
                lines.append(line)
                self._grew.notify_all()
        with self._grew:
            self._open -= 1
            self._grew.notify_all()

    def _events(self) -> list[Event]:
        return parse("".join(self._stdout)) or parse("".join(self._stderr))

    def _first(self, name: str) -> Event | None:
        return next((each for each in self._events() if each["event"] == name), None)


class Program:
    """The program with a default environment; a variable given as None is left out."""

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        """Keep what each run starts with."""
        self._environment = environment
        self._cwd = cwd
        self._processes: list[Process] = []

    def start(self, *args: str, env: Mapping[str, str | None] | None = None) -> Process:
        """Start a run and return at once."""
        merged = {**self._environment, **(env or {})}
        given = {name: value for name, value in merged.items() if value is not None}
        process = Process(args, given, self._cwd)
        self._processes.append(process)
        return process

    def run(
        self,
        *args: str,
        env: Mapping[str, str | None] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Result:
        """Run to the end."""
        return self.start(*args, env=env).wait(timeout)

    def close(self) -> None:
        """Kill what a failed test left running."""
        for process in self._processes:
            process.kill()
