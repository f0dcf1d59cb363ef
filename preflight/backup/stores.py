"""Which store a configuration or a backup's name means: the one place that knows all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preflight.backup import directory

if TYPE_CHECKING:
    from preflight.backup.store import Store
    from preflight.base.config import Config


def of(config: Config) -> Store:
    """Return the store that this run writes to; nothing is looked at yet."""
    return directory.Directory(config.backup_dir)


def named(config: Config, name: str) -> tuple[Store, str]:
    """Return where a backup is looked for, and under which name: a path names its directory."""
    at = Path(name)
    if at.is_absolute() or "/" in name:
        return directory.Directory(at.parent), at.name
    return of(config), name
