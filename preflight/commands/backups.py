"""`backups`: list what the directory holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from preflight.backup import manifests, store, stores
from preflight.base import console
from preflight.commands import command, results

if TYPE_CHECKING:
    from preflight.backup.store import Store
    from preflight.base.config import Config


HEADS = ("size", "rows", "taken for", "verified")
FEW = 3  # versions that a table names


@dataclass(frozen=True, slots=True)
class Shown:
    """A backup as `backups` shows it; the names are the keys of its document."""

    backup: str
    database: str | None
    address: str | None
    snapshot_at: str | None
    size_bytes: int
    rows: int
    taken_for: str | None
    pending: list[int]
    wrapped: str | None
    verified: str | None
    schemas: list[str] | None
    sealed_for: list[str] | None


def described(backups: Store) -> tuple[list[Shown], int]:
    """Return what the manifests in a store say, the oldest first, and how many cannot be used.

    Those are named in a warning. Raises BackupFailed.
    """
    with store.usable(backups):
        found = backups.listed()
    store.warn_of(found.bad)
    return [_shown(item) for item in found.whole], len(found.bad)


def _shown(backup: manifests.Backup) -> Shown:
    said = backup.manifest
    return Shown(
        backup=backup.name,
        database=said.database,
        address=said.address or None,
        snapshot_at=said.snapshot_at,
        size_bytes=said.size_bytes,
        rows=sum((said.rows or {}).values()),
        taken_for=said.taken_for.command if said.taken_for else None,
        pending=_versions(said.taken_for),
        wrapped=_wrapped(said.taken_for),
        verified=said.verified,
        schemas=list(backup.schemas) or None,
        sealed_for=list(said.recipients) if said.sealed else None,
    )


def _versions(purpose: manifests.Purpose | None) -> list[int]:
    """Return the versions that were pending, of JSON that nobody has looked at."""
    said = purpose.pending if purpose else ()
    found = [each.get("version") for each in said if isinstance(each, dict)]
    return [version for version in found if type(version) is int and version >= 0]


def _wrapped(said: manifests.Purpose | None) -> str | None:
    """Return which wrapped command was due, of JSON that nobody has looked at."""
    found = [each.get("command") for each in said.pending if isinstance(each, dict)] if said else []
    return next((str(command) for command in found if command), None)


def run(config: Config, *, form: str | None = None) -> None:
    """List the backups of every database in the directory; needs no server."""
    backups = stores.of(config)
    rows, bad = described(backups)
    unusable = f" that can be used, and {bad} that cannot" if bad else ""
    listed = [dataclasses.asdict(row) for row in rows]
    pairs = zip(rows, beginnings([row.backup for row in rows]), strict=True)
    narrow = [cells[:1] + cells[3:] for row, name in pairs for cells in [_cells(row, name)]]
    results.show(
        config,
        form,
        {"directory": backups.place, "backups": listed},
        (("backup", "database", "when", *HEADS), [_cells(row, row.backup) for row in rows]),
        [("backup.listed", row) for row in listed],
        nothing=f"there is no backup in {backups.place}{unusable}",
        narrow=(("backup", *HEADS), narrow),
    )


def _cells(row: Shown, name: str) -> tuple[object, ...]:
    return (
        name,
        row.database,
        _when(row.snapshot_at),
        console.size(row.size_bytes or 0),
        f"{row.rows:,}",
        " ".join(filter(None, (row.taken_for, _few(row.pending), row.wrapped))),
        " ".join(
            filter(
                None,
                (row.verified, "sealed" if row.sealed_for is not None else "", _only(row.schemas)),
            )
        ),
    )


def _when(text: str | None) -> str | None:
    """Return a time of a manifest as `check` says it."""
    try:
        at = datetime.fromisoformat(text or "")
        return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at.tzinfo else text
    except (ValueError, OverflowError):  # no time, or none of this era
        return text


def _only(schemas: Sequence[str] | None) -> str:
    """Return what a backup of some schemas is of."""
    if not schemas:
        return ""
    more = ", …" if len(schemas) > FEW else ""
    return f"(only {', '.join(schemas[:FEW])}{more})"


def _few(versions: Sequence[int]) -> str:
    more = "…" if len(versions) > FEW else ""
    return ",".join(f"{version:03d}" for version in versions[:FEW]) + more


def beginnings(names: Sequence[str]) -> list[str]:
    """Return the shortest beginning of each name, down to its time, that `restore` takes for it."""
    found = []
    for name in names:
        others = [other for other in names if other != name]
        least = len(name.rpartition("-")[0]) or len(name)
        lengths = range(least, len(name) + 1)
        unique = (n for n in lengths if not any(o.startswith(name[:n]) for o in others))
        found.append(name[: next(unique, len(name))])
    return found


COMMAND = command.Command(
    place=8,
    does="list the backups: time, size, taken for, how far verified",
    example="entrypoint.py backups --table",
    run=run,
    result=True,
)
