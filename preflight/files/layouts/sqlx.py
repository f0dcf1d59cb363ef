"""sqlx: `VERSION_title.sql`, or `.up.sql` and `.down.sql`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from preflight.files import foreign
from preflight.files.layout import Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

_NAME = re.compile(r"(?P<name>(?P<version>[0-9]{1,18})_.*?)(?:\.(?P<way>up|down))?\.sql")


class Sqlx(foreign.Foreign):
    """Its history has a row a version, with the SHA-384 of the file."""

    tool = "sqlx"
    hint = "Name it VERSION_title.sql, or .up.sql and .down.sql; at most 18 digits."
    outside = "Make `-- no-transaction` the first line of the file."
    checked = True
    table = foreign.Table(
        "_sqlx_migrations",
        {
            "version": "bigint",
            "description": "text",
            "installed_on": "timestamp with time zone",
            "success": "boolean",
            "checksum": "bytea",
            "execution_time": "bigint",
        },
        ("version", "success", "checksum"),
        renamed=True,
    )

    def counts(self, file: str) -> bool:
        """Tell whether it is a migration; sqlx passes over what has no `_` in its name."""
        return super().counts(file) and "_" in file

    def named(self, file: str) -> Source | None:
        """Read the version, and the way."""
        found = _NAME.fullmatch(file)
        if found is None:
            return None
        kind = "rollback" if found["way"] == "down" else "up"
        return Source(int(found["version"]), found["name"], kind)

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        pair = (self.directory / f"{name}.up.sql").exists()
        if kind == "up" and pair:
            return f"{name}.up.sql"
        return f"{name}.down.sql" if kind == "rollback" else super().file(name, kind)

    def sections(self, source: Source, _file: str, text: bytes) -> Iterable[foreign.Section]:
        """Take the whole file; its first line may say that it runs in no transaction."""
        return [foreign.Section(source.kind, unbound=text.startswith(b"-- no-transaction"))]

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """Return what is applied; a row without success is a version that failed."""
        return foreign.Said(
            {str(version): bytes(checksum).hex() for version, _, checksum in rows},
            [str(version) for version, success, _ in rows if not success],
        )

    def agrees(self, file: Migration, checksum: str) -> bool:
        """Compare the SHA-384 of the file."""
        return checksum in {
            hashlib.sha384(each).hexdigest()
            for each in foreign.variants(self.directory / file.up.file, file.up.text)
        }


LAYOUT = Sqlx
