"""Prisma: a folder a migration, with `migration.sql` in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from preflight.base.errors import FilesInvalid, Problem
from preflight.files import foreign, nested, reading
from preflight.files.layout import Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration


_LOCK = "migration_lock.toml"
_PROVIDER = re.compile(r"""(?m)^[ \t]*provider[ \t]*=[ \t]*["']([^"']*)""")
_POSTGRES = ("postgresql", "postgres", "cockroachdb")


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
    checked = True
    table = foreign.Table(
        "_prisma_migrations",
        {
            "checksum": "character varying",
            "finished_at": "timestamp with time zone",
            "migration_name": "character varying",
            "rolled_back_at": "timestamp with time zone",
        },
        ("migration_name", "checksum", "finished_at", "rolled_back_at"),
        along=True,  # it is in `public` where its URL names no schema
        amid=True,
    )

    def settled(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Refuse a folder that was written for another kind of server."""
        try:
            found = _PROVIDER.search(reading.beside(self.directory / _LOCK))
        except (OSError, ValueError):
            found = None
        if found is not None and found[1] not in _POSTGRES:
            raise FilesInvalid.of(
                "files.invalid",
                [
                    Problem(
                        f"{_LOCK} says that these files are for {found[1]}, not for PostgreSQL",
                        "Is it the right folder? With Prisma a change of the provider begins a new "
                        "one.",
                        file=_LOCK,
                    )
                ],
            )
        return super().settled(sources)

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
            hashlib.sha256(each).hexdigest()
            for each in foreign.variants(self.directory / file.up.file, file.up.text)
        }


LAYOUT = Prisma
