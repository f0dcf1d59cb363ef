"""The pending files on a restored copy: not there yet, and it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from preflight.errors import RehearsalFailed

if TYPE_CHECKING:
    from preflight.config import Config


def run(config: Config) -> None:
    """Say that nothing is rehearsed; raises RehearsalFailed when a rehearsal was demanded."""
    reason = "this version of pg-preflight does not rehearse yet"
    if config.rehearse == "always":
        raise RehearsalFailed(
            "rehearsal.unavailable",
            f"PREFLIGHT_REHEARSE=always, but {reason}",
            "Set PREFLIGHT_REHEARSE=auto or off; nothing was migrated.",
        )
    if config.rehearse == "auto":
        structlog.get_logger().info("rehearsal.skipped", reason=reason)
