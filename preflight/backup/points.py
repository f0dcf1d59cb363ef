"""What stands in a dump's place where none is taken: a point that others can bring back.

Of continuous archiving (`archive`), or of whatever a program answers (`command`). Nothing is
restored here, so nothing is called so.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from preflight.base.errors import ConfigInvalid
from preflight.history import journal
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.backup.archiving import Point
    from preflight.base.config import Config
    from preflight.server.sessions import Session

WAYS = ("archive", "command")  # of PREFLIGHT_BACKUP


def require(session: Session) -> None:
    """Make sure, before anything takes its time, that a point can be made; raises BackupFailed."""
    if session.config.backup == "archive":
        from preflight.backup import archiving  # noqa: PLC0415 -- only where it is wanted

        archiving.require(session)


def made(session: Session, name: str, version: int) -> Point:
    """Make the point, and say and keep how to come back to it.

    `name` and `version` are of the first file that it is made before. Raises BackupInterrupted
    (passing), BackupFailed.
    """
    began = datetime.now(UTC)
    session.tell("backing up")
    if session.config.backup == "archive":
        from preflight.backup import archiving  # noqa: PLC0415 -- only where it is wanted

        point = archiving.made(session)
    else:
        from preflight.backup import snapshot  # noqa: PLC0415 -- only where it is wanted

        point = snapshot.made(session.config)
    journal.note_point(session, name, version, point.name, json.dumps(point.data()))
    structlog.get_logger().info(
        "backup.verified",
        verified=session.config.backup,
        duration_s=round((datetime.now(UTC) - began).total_seconds(), 3),
        **point.data(),
    )
    return point


def names_one(backup: str) -> bool:
    """Tell whether a backup's name is of a point: no file of ours is called so."""
    way, colon, rest = backup.partition(":")
    return way in WAYS and bool(colon and rest)


def explain(config: Config, name: str) -> None:
    """Say how to come back to a point: another tool does that. Raises ConfigInvalid, always."""
    with sessions.connect(config) as session:
        session.look()
        said = journal.point(session, name)
    if said is None:
        raise ConfigInvalid(
            "config.arguments",
            f"the history of {config.database} knows no {name}",
            "The log of the run that made it has the command (`backup.verified`, `restore`).",
        )
    raise ConfigInvalid(
        "backup.elsewhere",
        f"{name} is restored by its own tool: {json.loads(said)['restore']}",
        "That command is yours to run: it replaces a whole server. Its tool's manual says what "
        "must be stopped first; docs/archive.md has examples.",
    )
