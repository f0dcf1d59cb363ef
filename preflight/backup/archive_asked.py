"""Who is asked what is in an archive: a file that a job writes, else the tool that keeps it."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING

import structlog

from preflight.backup import archive_status, children
from preflight.base import masks, stop
from preflight.base.config import strangers_environment
from preflight.base.errors import BackupFailed, BackupInterrupted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from preflight.backup.archive_status import Base, Place, Status
    from preflight.base.config import Config

LOOK_S = (0.2, 0.5)
AGAIN_S = 3.0  # a file may be half written, a repository out of reach for a moment
ASK_S = 60.0  # for one answer of a tool
MOST_BYTES = 32 << 20
TOOLS = {  # that are asked where no file is named, the first one on PATH
    "pgbackrest": (("info", "--output=json"),),
    "wal-g": (("wal-show", "--detailed-json"), ("backup-list", "--detail", "--json")),
}
NOTHING = "Nothing was migrated."


def source(config: Config) -> str:
    """Return who is asked, for people."""
    return str(config.archive_status_file or _tool() or "nobody")


def _tool() -> str | None:
    return next((name for name in TOOLS if shutil.which(name)), None)


def status(config: Config, system: str) -> Status:
    """Return what the archive holds of this server; raises BackupFailed, BackupInterrupted."""
    if config.archive_status_file is None and _tool() is None:
        raise BackupFailed(
            "archive.unknown",
            "nobody can be asked what is in the archive: neither pgbackrest nor wal-g is on PATH, "
            "and PREFLIGHT_ARCHIVE_STATUS_FILE is not set",
            "What the server says of its archiver proves nothing. Let a job write that file; "
            f"docs/archive.md says how. {NOTHING}",
        )
    for waited in stop.looks(*LOOK_S):
        try:
            return _said(config, system)
        except BackupFailed:
            if waited >= AGAIN_S:
                raise
    raise AssertionError


def _said(config: Config, system: str) -> Status:
    if config.archive_status_file is not None:
        texts = [_read(config.archive_status_file)]
    else:
        tool = _tool() or ""
        texts = [_answer(config, tool, arguments) for arguments in TOOLS[tool]]
    try:
        return archive_status.read("\n".join(texts), system)
    except archive_status.Unclear as why:
        raise BackupFailed("archive.unclear", f"what {source(config)} says {why}", NOTHING) from why


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return (file.read(MOST_BYTES) or b"").decode("utf-8", "replace")
    except OSError as error:
        raise BackupFailed(
            "archive.unknown",
            f"PREFLIGHT_ARCHIVE_STATUS_FILE names {path}, which cannot be read: {error.strerror}",
            f"Does the job that writes it run? {NOTHING}",
        ) from error


def _answer(config: Config, tool: str, arguments: Sequence[str]) -> str:
    code, answer, words = answered([tool, *arguments], config.child_env, ASK_S)
    if code is None:
        raise BackupInterrupted(
            "archive.late",
            f"{tool} {arguments[0]} did not answer within {ASK_S:.0f} s",
            f"Is its repository in reach? Run again. {NOTHING}",
        )
    if code:
        raise BackupFailed(
            "archive.unknown",
            f"{tool} {arguments[0]} failed with {code}: {words or 'it said nothing'}",
            f"It must run here as it does where the backups are made. {NOTHING}",
        )
    return answer


def gap(config: Config, said: Status, base: Base, segment: str, size: int) -> str | None:
    """Return the first segment that is missing from a base backup to a segment, if anybody tells.

    pgBackRest says only the first and the last: its folders are looked at, where it is asked. With
    archive-push-queue-max it lets segments go and calls that a success. `size` in bytes.
    """
    if missing := said.gap(base, segment):
        return missing
    if config.archive_status_file or base.tool != "pgbackrest" or not base.segment:
        return None
    there: set[str] = set()
    for place in said.places:
        if place.stanza == base.stanza:
            listed = _listed(config, place)
            if listed is None:
                return None  # as was said
            for folder in archive_status.folders(base, segment, listed):
                names = _listed(config, place, folder)
                if names is None:
                    return None  # what was not looked at is not missing
                there |= names
    found = filter(None, map(archive_status.segment_of, there))
    return archive_status.absent(base, segment, frozenset(found), size)


def _listed(config: Config, place: Place, folder: str = "") -> set[str] | None:
    """Return the names in a folder of pgBackRest's archive; None, and a warning: it says none."""
    path = "/".join(filter(None, ("archive", place.stanza, place.name, folder)))
    try:
        answer = _answer(
            config, "pgbackrest", ("repo-ls", f"--repo={place.repo}", "--output=json", path)
        )
        names = json.loads(answer)
    except (BackupFailed, ValueError) as error:
        names = error
    if isinstance(names, dict):
        return set(names)
    structlog.get_logger().warning(
        "config.warned",
        warning="whether all segments since the base backup are in the archive is not known: "
        + (str(names) if isinstance(names, BackupFailed) else "pgbackrest repo-ls lists nothing"),
    )
    return None


def answered(
    command: Sequence[str], child_env: Mapping[str, str], limit_s: float
) -> tuple[int | None, str, str]:
    """Run a program; return its exit code (None: over its time, and ended), stdout and last words.

    It is not told where the database is. What it leaves behind is not waited for, whatever of ours
    it holds. A stop ends it, and what it started. Raises BackupFailed where it does not start.
    """
    until, parts, size = time.monotonic() + limit_s, [], 0
    environment = strangers_environment(child_env)

    def tick() -> None:
        if time.monotonic() >= until:
            raise TimeoutError

    try:
        with children.started(command, environment) as (child, words):
            try:
                for chunk in children.chunks(child, tick, 0.2, lambda: child.poll() is not None):
                    size += len(chunk)
                    if size <= MOST_BYTES:
                        parts.append(chunk)
                while child.poll() is None:
                    tick()
                    stop.sleep(0.05)
            except TimeoutError:
                return None, "", ""
            said = masks.of(environment).text(words.said()) if child.returncode else ""
            return child.returncode, b"".join(parts).decode("utf-8", "replace"), said
    except children.ClientFailed as failed:
        raise BackupFailed(
            "backup.command_not_started",
            str(failed),
            f"{failed.hint or 'Is it in this image, executable, and on PATH?'} {NOTHING}",
        ) from failed
