"""What a run did, as a file in Prometheus' text format: for the node exporter's textfile collector.

A series of another command or database, and what this run says nothing of (the last success, the
last backup), stay as they are in the file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 1_000_000  # of a file of ours: larger is none
PREFIX = "pg_preflight_"
KNOWN = {  # in the order in which they are written
    "last_run_timestamp_seconds": "When the last run ended.",
    "last_run_exit_code": "Exit code of the last run; 0 is success.",
    "last_run_duration_seconds": "How long the last run took.",
    "last_run_applied_migrations": "Migrations that the last run applied.",
    "last_success_timestamp_seconds": "When a run last ended with 0.",
    "backup_timestamp_seconds": "When the last good backup was read back.",
    "backup_size_bytes": "Size of the last good backup's dump.",
    "backup_duration_seconds": "How long the last good backup took.",
    "backup_restored": "How far it is proven: 1 restored and compared, 0 read back.",
}

Series = tuple[str, str, str]  # name, database, command
_LINE = re.compile(
    re.escape(PREFIX)
    + r'(\w+)\{database="((?:[^"\\\n]|\\.)*)",command="((?:[^"\\\n]|\\.)*)"\} (\S+)'
)


def write(path: Path, command: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """Replace the file by one that says this of each database, too; at any moment it is whole.

    A database that is not known is "": such series are gone once one is. Raises OSError, also where
    something other than a plain file would be replaced.
    """
    path = Path(os.path.realpath(path))
    series = _series(_old(path))
    if all(found):
        series = {each: value for each, value in series.items() if each[1]}
    series |= {
        (name, _quoted(database), _quoted(command)): str(value)
        for database, values in found.items()
        for name, value in values.items()
    }
    hidden = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(hidden, flags, 0o644), "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # another user reads it
            file.write("".join(_lines(series)).encode("utf-8", "backslashreplace"))
        hidden.replace(path)
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def _old(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "it is there, and no plain file")
        found = file.read(MOST_BYTES + 1)
    return found.decode("utf-8", "replace") if len(found) <= MOST_BYTES else ""


def _series(text: str) -> dict[Series, str]:
    found = (_LINE.fullmatch(line) for line in text.split("\n"))
    return {
        (each[1], each[2], each[3]): each[4]
        for each in found
        if each and each[1] in KNOWN and _is_number(each[4])
    }


def _is_number(value: str) -> bool:
    with suppress(ValueError):
        float(value)
        return True
    return False


def _lines(series: Mapping[Series, str]) -> Iterable[str]:
    for name, told in KNOWN.items():
        ours = sorted(each for each in series if each[0] == name)
        if ours:
            yield f"# HELP {PREFIX}{name} {told}\n# TYPE {PREFIX}{name} gauge\n"
        for each in ours:
            labels = f'database="{each[1]}",command="{each[2]}"'
            yield f"{PREFIX}{name}{{{labels}}} {series[each]}\n"


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
