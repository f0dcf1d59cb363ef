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
    return _at(config, config.backup_dir)


def _at(config: Config, place: Path | str) -> Store:
    if isinstance(place, Path):
        return directory.Directory(place)
    from preflight.backup import objects  # noqa: PLC0415 -- only where a bucket is named

    where = objects.address(place, config.backup_endpoint)
    return objects.Objects(where, config.child_env, config.spool_dir, config.lock_retry_s)


def named(config: Config, name: str) -> tuple[Store, str]:
    """Return where a backup is looked for, and under which name: a path names its directory.

    The address of a backup in a bucket names its bucket and prefix.
    """
    if "://" in name:
        place, _, last = name.rstrip("/").rpartition("/")
        return _at(config, place), last
    at = Path(name)
    if at.is_absolute() or "/" in name:
        return directory.Directory(at.parent), at.name
    return of(config), name
