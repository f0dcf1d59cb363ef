"""The commands besides `up`: each a short story of the same steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from preflight.commands import (
    adopt,
    backup,
    backups,
    check,
    force,
    lint,
    plan,
    restore,
    rollback,
    verify,
    wait,
)

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.commands.arguments import Arguments


STORIES: dict[str, Callable[[Config, Arguments], None]] = {
    "check": check.run,
    "plan": plan.run,
    "verify": verify.run,
    "rollback": rollback.run,
    "force": force.run,
    "adopt": adopt.run,
    "backup": backup.run,
    "backups": backups.run,
    "restore": restore.run,
    "wait": wait.run,
    "lint": lint.run,
}
