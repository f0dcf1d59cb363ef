"""`backups`: list what the directory holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.backup import store
from preflight.base import console
from preflight.commands import command, results

if TYPE_CHECKING:
    from preflight.base.config import Config


def described(directory: Path) -> list[dict[str, Any]]:
    """Return what the manifests in a directory say, the oldest first; raises BackupFailed."""
    with store.usable(directory) as resolved:
        return [
            {
                "backup": item.name,
                "database": item.manifest.database,
                "address": item.manifest.address or None,
                "snapshot_at": item.manifest.snapshot_at,
                "size_bytes": item.manifest.size_bytes,
                "rows": sum((item.manifest.rows or {}).values()),
                "taken_for": item.manifest.taken_for.command if item.manifest.taken_for else None,
                "verified": item.manifest.verified,
            }
            for item in store.listing(resolved)
        ]


def run(config: Config, *, form: str | None = None) -> None:
    """List the backups of every database in the directory; needs no server."""
    rows = described(config.backup_dir)
    heads = ("backup", "database", "when", "size", "rows", "taken for", "verified")
    table = [
        (
            row["backup"],
            row["database"],
            row["snapshot_at"],
            console.size(row["size_bytes"] or 0),
            row["rows"],
            row["taken_for"],
            row["verified"],
        )
        for row in rows
    ]
    events = [("backup.listed", row) for row in rows]
    results.show(
        config, form, {"directory": str(config.backup_dir), "backups": rows}, (heads, table), events
    )


COMMAND = command.Command(
    place=8,
    does="list the backups: time, size, taken for, how far verified",
    example="entrypoint.py backups --table",
    run=run,
    result=True,
)
