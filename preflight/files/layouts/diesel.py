"""Diesel: a folder a migration, with `up.sql`, `down.sql` and perhaps `metadata.toml` in it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable

from preflight.files import foreign, nested, reading
from preflight.files.layout import Source

_FOLDER = re.compile(r"(?P<version>[0-9][0-9-]*)(?:_.*)?")


class Diesel(nested.Nested):
    """Its history has a row a version: what stands before the first `_`, without its hyphens."""

    tool = "diesel"
    hint = "A migration is a folder, VERSION_title, with up.sql in it."
    outside = (
        "Write `run_in_transaction = false` into metadata.toml beside it; or, for this "
        "file alone, `-- preflight: no-transaction` at its top."
    )
    labelled = True
    parts = {  # noqa: RUF012 -- as the class says it
        "up.sql": "up",
        "down.sql": "rollback",
        "verify.sql": "verify",
        "export.sql": "export",
    }
    table = foreign.Table(
        "__diesel_schema_migrations",
        {"version": "character varying"},
        ("version",),
        amid=True,
    )

    def titled(self, folder: str, kind: str) -> Source | None:
        """Read the version."""
        found = _FOLDER.fullmatch(folder)
        version = found["version"].replace("-", "") if found else ""
        return Source(0, folder, kind, version) if version else None

    def version(self, text: str) -> str:
        """Return it as it is: to Diesel it is text."""
        return text.replace("-", "")

    def sections(self, source: Source, file: str, _text: bytes) -> Iterable[foreign.Section]:
        """Take the whole file, in a transaction unless metadata.toml says otherwise."""
        beside = self.directory / file.rpartition("/")[0] / "metadata.toml"
        unbound = False
        if source.kind in ("up", "rollback") and beside.exists():
            try:
                said = tomllib.loads(reading.beside(beside))
            except (OSError, ValueError) as error:
                raise foreign.Wrong(f"metadata.toml beside it cannot be read: {error}") from error
            unbound = not said.get("run_in_transaction", False)  # a file without it says no, too
        return [foreign.Section(source.kind, unbound=unbound)]


LAYOUT = Diesel
