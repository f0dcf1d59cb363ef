"""Prisma: a folder a migration, with `migration.sql` in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from preflight.files import foreign, nested
from preflight.files.layout import Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration


class Prisma(nested.Nested):
    """Its history has a row an attempt, with the SHA-256 of the file."""

    tool = "prisma"
    hint = "A migration is a folder, TIMESTAMP_title, with migration.sql in it."
    lone = True
    labelled = True
    parts = {  # noqa: RUF012 -- as the class says it
        "migration.sql": "up",
        "down.sql": "rollback",
        "verify.sql": "verify",
        "export.sql": "export",
    }
    table = foreign.Table(
        "_prisma_migrations",
        {
            "checksum": "character varying",
            "finished_at": "timestamp with time zone",
            "migration_name": "character varying",
            "rolled_back_at": "timestamp with time zone",
        },
        ("migration_name", "checksum", "finished_at", "rolled_back_at"),
    )

    def titled(self, folder: str, kind: str) -> Source | None:
        """Take the folder's name, whatever it is, as the version."""
        return Source(0, folder, kind, folder)

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """Leave out what was rolled back; what has no end failed."""
        live = [row for row in rows if row[3] is None]
        done = {name: checksum for name, checksum, finished, _ in live if finished}
        return foreign.Said(done, [name for name, _, finished, _ in live if not finished])

    def agrees(self, file: Migration, checksum: str) -> bool:
        """Compare the SHA-256 of the file as it is."""
        return checksum in {
            hashlib.sha256(each).hexdigest() for each in foreign.variants(file.up.text)
        }


LAYOUT = Prisma
