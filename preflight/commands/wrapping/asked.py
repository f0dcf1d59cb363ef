"""What a command line says of a wrapped command, and what must not be said of it."""

from __future__ import annotations

import math
import os
import re
import shlex
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.base import masks
from preflight.base.errors import ConfigInvalid
from preflight.commands.wrapping import environment, key, tools
from preflight.files import reading
from preflight.server import dial

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.files.migrations import Script

FILE_MAX = 64 * 1024  # bytes: larger files hold no secret, and no address
NAME_MAX = 1000  # characters of a command that are shown and recorded
_HERE = "Write it behind `--`: wrap --watch migrations/ -- alembic upgrade head."
_UNTIL = (
    "--timeout is of a wrapped command; PREFLIGHT_WAIT_TIMEOUT_S says how long a server or a "
    "schema is waited for."
)
_DURATION = re.compile(r"[0-9]{1,9}(?:ms|s|min|h)|0")  # a bare number would be read as seconds


@dataclass(frozen=True, slots=True)
class Asked:
    """A command and its options as they were given; `timeout` in seconds."""

    command: tuple[str, ...] = ()
    watch: tuple[Path, ...] = ()
    always: bool = False
    history: str | None = None
    url_variable: tuple[str, ...] = ()
    verify: tuple[Path, ...] = ()
    timeout: float | None = None
    lock_timeout: str | None = None
    trust_environment: bool = False
    strict: bool = False


def of(said: Mapping[str, Any]) -> Asked:
    """Return what a command line says of a command; its lists are made by argparse."""
    found: dict[str, Any] = dict(said)
    for name, value in said.items():
        found[name] = tuple(value) if isinstance(value, list) else value
    return Asked(**found)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A command that can be judged and run: its files are hashed, its environment is read."""

    asked: Asked
    environ: Mapping[str, str] = field(repr=False)
    files: Mapping[str, str] = field(repr=False)  # what stands in files that variables name
    files_key: str
    checks: tuple[Script, ...]
    mask: masks.Mask = field(repr=False)
    secrets: frozenset[str] = field(repr=False)

    @property
    def name(self) -> str:
        """The command as people see it, without its secrets."""
        name = self.mask.text(shlex.join(self.asked.command))
        return name.encode("utf-8", "backslashreplace").decode()[:NAME_MAX]


def read(config: Config, asked: Asked) -> Wrapped:
    """Return the command with all that it depends on; raises ConfigInvalid, FilesInvalid."""
    if not asked.command or not asked.command[0]:
        raise ConfigInvalid(
            "wrap.no_command",
            "there is no command to wrap",
            _UNTIL
            if asked.timeout is not None and asked == Asked(timeout=asked.timeout)
            else _HERE,
        )
    if not (asked.watch or asked.always):
        raise ConfigInvalid(
            "wrap.no_watch",
            "nobody can tell when the command has something to do",
            "Name with --watch what it reads (its migrations, the code that makes them), or run it "
            "each time with --always.",
        )
    if asked.lock_timeout is not None and not _DURATION.fullmatch(asked.lock_timeout):
        raise ConfigInvalid(
            "wrap.lock_timeout",
            f"--lock-timeout {asked.lock_timeout!r} is not a duration",
            "Write 500ms, 5s, 2min or 1h.",
        )
    if asked.timeout is not None and not 0 < asked.timeout < math.inf:
        raise ConfigInvalid(
            "wrap.timeout",
            f"--timeout {asked.timeout:g} is not a number of seconds above 0",
            "Leave it out for no limit.",
        )
    if asked.history is not None:
        tools.parts(asked.history)
    environ = config.environ
    if missing := [name for name in asked.url_variable if not environ.get(name)]:
        raise ConfigInvalid(
            "wrap.url_variable",
            f"--url-variable {missing[0]}: there is no such variable, or it is empty",
            "It is to be in the environment that this program is given. What only a file has "
            "(.env, a configuration), put there under the name that the command reads.",
        )
    files = _contents(environ)
    secrets = environment.secrets(environ, files)
    secrets |= environment.secrets_of_arguments(asked.command)
    for target in (config.target, config.rehearse_url, config.rehearse_clone_url):
        secrets |= dial.passwords(target) if target else set()
    return Wrapped(
        asked,
        environ,
        files,
        key.of_files(asked.command, asked.watch),
        tuple(map(_checks, asked.verify)),
        masks.Mask(secrets),
        secrets,
    )


def _checks(path: Path) -> Script:
    if not path.exists():
        raise ConfigInvalid(
            "wrap.verify", f"--verify {path}: there is no such file", "Check the path."
        )
    return reading.checks(path)


def _contents(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what stands in the files that variables called NAME_FILE name, if they are small.

    Not what is in a pipe or a terminal, as in LOG_FILE=/dev/stdout: somebody else reads that.
    """
    found: dict[str, str] = {}
    for name, path in environ.items():
        if not name.endswith(environment.FILE) or not path.startswith("/"):
            continue
        with suppress(OSError, UnicodeDecodeError):
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 -- a text of the environment
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as content:
                regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
                text = content.read(FILE_MAX + 1) if regular else b""
            if regular and len(text) <= FILE_MAX:
                found[name] = text.decode()
    return found
