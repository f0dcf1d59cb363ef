"""What stands in a dump's place where none is taken: a point that others can bring back.

Of continuous archiving (`archive`), or of whatever a program answers (`command`). Nothing is
restored here, so nothing is called so.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from preflight.backup.archiving import Point
    from preflight.server.sessions import Session

WAYS = ("archive", "command")  # of PREFLIGHT_BACKUP


def require(session: Session) -> None:
    """Make sure, before anything takes its time, that a point can be made; raises BackupFailed."""
    if session.config.backup == "archive":
        from preflight.backup import archiving  # noqa: PLC0415 -- only where it is wanted

        archiving.require(session)


def made(session: Session, keep: Callable[[Point], None]) -> Point:
    """Make the point, have it kept, and say how to come back to it.

    Raises BackupInterrupted (passing), BackupFailed.
    """
    began = datetime.now(UTC)
    session.tell("backing up")
    if session.config.backup == "archive":
        from preflight.backup import archiving  # noqa: PLC0415 -- only where it is wanted

        point = archiving.made(session)
    else:
        from preflight.backup import snapshot  # noqa: PLC0415 -- only where it is wanted

        point = snapshot.made(session.config)
    keep(point)
    structlog.get_logger().info(
        "backup.verified",
        verified=session.config.backup,
        duration_s=round((datetime.now(UTC) - began).total_seconds(), 3),
        **point.data(),
    )
    return point


def names_one(name: str) -> bool:
    """Tell whether a backup's name is of a point: no file of ours is called so."""
    way, colon, rest = name.partition(":")
    return way in WAYS and bool(colon and rest)
