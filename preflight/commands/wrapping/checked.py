"""Ask the verify files of a wrapped command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from preflight.apply import verify
from preflight.base.errors import VerifyFailed
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.files.migrations import Script
    from preflight.server.sessions import Session


def require(session: Session, scripts: Sequence[Script]) -> int:
    """Return how many checks there are, all of which hold; raises VerifyFailed."""
    count = 0
    for script in scripts:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            found = verify.run(session, script)
        finally:
            sessions.roll_back(session)
        for check in verify.failed(found):
            structlog.get_logger().error(
                "check.failed",
                file=script.file,
                suite=check.suite,
                check=check.check,
                detail=check.detail,
            )
        if verify.failed(found):
            raise VerifyFailed(
                "wrap.verify_failed",
                f"{script.file}: {verify.described(found)}",
                "Compare the database with what the file promises.",
                file=script.file,
            )
        count += len(found)
    return count
