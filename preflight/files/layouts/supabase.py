"""Supabase: `supabase/migrations/TIMESTAMP_title.sql`, forward only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from preflight.files import foreign
from preflight.files.layout import Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

_NAME = re.compile(r"(?P<name>(?P<version>[0-9]{1,18})_.*)\.sql")
_COUNTS = re.compile(r"[0-9]+_.*\.sql")
_FOLDER = re.compile(r"[0-9]+_.*")
_FIRST = re.compile(r"([0-9]{14})_init\.sql")
_SINCE = 20211209000000


class Supabase(foreign.Foreign):
    """Its history has a row a version, which is text."""

    tool = "supabase"
    hint = "Name it TIMESTAMP_title.sql: 14 digits and an underscore."
    textual = True
    table = foreign.Table(
        "supabase_migrations.schema_migrations", {"version": "text"}, ("version",)
    )

    def names(self) -> list[str]:
        """Return the files that count, and the only SQL file of each folder that counts as one."""
        folders = [
            [f"{each.name}/{file.name}" for file in each.glob("*.sql")]
            for each in sorted(self.directory.iterdir())
            if _FOLDER.fullmatch(each.name) and each.is_dir()
        ]
        inside = [files[0] for files in folders if len(files) == 1]
        return [name for name in super().names() if name != self._skipped()] + inside

    def _skipped(self) -> str | None:
        """Return the first file, where the command line leaves it out: an old dump of its own."""
        first = min((each.name for each in self.directory.iterdir()), default="")
        found = _FIRST.fullmatch(first)
        return first if found and int(found[1]) < _SINCE else None

    def counts(self, file: str) -> bool:
        """Tell whether it is a migration; the command line passes over all other names."""
        return super().counts(file) and ("/" in file or bool(_COUNTS.fullmatch(file)))

    def named(self, file: str) -> Source | None:
        """Read the version."""
        found = _NAME.fullmatch(file)
        return Source(int(found["version"]), found["name"], "up") if found else None

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        folder, _, _ = file.rpartition("/")
        return self.named(f"{folder}.sql") if _FOLDER.fullmatch(folder) else super().source(file)

    def sections(self, source: Source, file: str, _text: bytes) -> Iterable[foreign.Section]:
        """Take the whole file; one in a folder of its own is not read here."""
        if _FOLDER.fullmatch(file.rpartition("/")[0]):
            raise foreign.Wrong(
                "Supabase would run this file of a folder, and it is not read here",
                f"Make it {source.name}.sql, beside the others.",
            )
        return [foreign.Section(source.kind)]

    def forgets(self, key: str, _files: Sequence[Migration], _said: foreign.Said) -> bool:
        """Tell whether it is the one that is left out."""
        return f"{key}_init.sql" == self._skipped()


LAYOUT = Supabase
