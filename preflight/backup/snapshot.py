"""A program's answer in a dump's place: a provider's snapshot, where nothing else can be had.

What it answers is checked as far as anybody here can: a name, a time that is now, a way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from preflight.backup import archive_asked, archive_status, archiving
from preflight.backup.archiving import Point
from preflight.base.errors import BackupFailed, BackupInterrupted

if TYPE_CHECKING:
    from preflight.base.config import Config

OLDEST = timedelta(minutes=15)  # before the program was started: more would be lost in going back
LONGEST = 4000  # of a text in the answer
SAID = "It answers with one JSON object on stdout: backup, taken_at (with its zone), restore."


def made(config: Config) -> Point:
    """Run the program and return what it answers; raises BackupFailed, BackupInterrupted."""
    command = config.backup_command or ()
    program = command[0]
    began = datetime.now(UTC)
    structlog.get_logger().info("backup.started", attempt=1, client=program)
    code, answer, words = archive_asked.answered(command, config.child_env, config.lock_retry_s)
    if code is None:
        raise BackupInterrupted(
            "backup.command_late",
            f"{program} did not end within {config.lock_retry_s:g} s, and was ended",
            "Run again; PREFLIGHT_LOCK_RETRY_S says for how long it may run. Did it leave a "
            "snapshot half made? Nothing was migrated.",
        )
    if code:
        raise BackupFailed(
            "backup.command_failed",
            f"{program} failed with {code}: {words or 'it said nothing on stderr'}",
            "Run it by hand with this environment. Nothing was migrated.",
        )
    try:
        return point(answer, began)
    except ValueError as wrong:
        raise BackupFailed(
            "backup.command_answer",
            f"what {program} answered cannot be used: {wrong}",
            f"{SAID} Nothing was migrated.",
        ) from wrong


def point(answer: str, began: datetime) -> Point:
    """Return what an answer names; raises ValueError with a sentence of what is wrong."""
    if "\ufffd" in answer:
        raise ValueError("it is not UTF-8")
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON" if answer.strip() else "it is empty") from None
    if not isinstance(said, Mapping):
        raise ValueError("it is no JSON object")  # noqa: TRY004 -- one kind of wrong
    texts = {key: said.get(key) for key in ("backup", "taken_at", "restore")}
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise ValueError(f"`{key}` is no text of one line")
        if len(text) > LONGEST:
            raise ValueError(f"`{key}` is longer than {LONGEST} characters")
    try:
        at = archive_status.moment(str(texts["taken_at"]))
    except ValueError:
        raise ValueError("`taken_at` is no time with its zone, as 2026-11-28T03:00:00Z") from None
    if at < began - OLDEST:
        raise ValueError(f"the snapshot of {at.isoformat()} is older than this run's wish for one")
    if at > datetime.now(UTC) + archiving.CLOCKS:
        raise ValueError(f"`taken_at` is {at.isoformat()}, which is still to come")
    return Point(
        f"command:{texts['backup']}", at.astimezone(UTC).isoformat(), str(texts["restore"])
    )
