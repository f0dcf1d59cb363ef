"""golang-migrate: `VERSION_title.up.sql`, and `.down.sql` beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from preflight.files import foreign
from preflight.files.layout import Source

_NAME = re.compile(r"(?P<name>(?P<version>[0-9]{1,18})_.*)\.(?P<way>up|down)\.sql")


_RUN = re.compile(r"[0-9]+_.*\.(?:up|down)\..*")  # whatever the extension is


class GolangMigrate(foreign.Foreign):
    """Its history is one row: the newest version, and whether that one failed."""

    tool = "golang-migrate"
    hint = "Name it VERSION_title.up.sql or .down.sql; the version has at most 18 digits."
    lone = True
    table = foreign.Table(
        "schema_migrations",
        {"version": "bigint", "dirty": "boolean"},
        ("version", "dirty"),
        renamed=True,
    )

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.alone: set[str] = set()

    def counts(self, file: str) -> bool:
        """Tell whether it is a file of either direction; the tool passes over all else."""
        return bool(_RUN.fullmatch(file)) or (
            super().counts(file)
            and ("/" in file or file.endswith((".up.sql", ".down.sql")) or file[:1].isdigit())
        )

    def named(self, file: str) -> Source | None:
        """Read the version, and the way."""
        found = _NAME.fullmatch(file)
        if found is None:
            return None
        kind = "up" if found["way"] == "up" else "rollback"
        return Source(int(found["version"]), found["name"], kind)

    def settled(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Learn which versions have a way back alone: their way forward is empty."""
        forward = {each.version for each in sources.values() if each.kind == "up"}
        self.alone = {
            file
            for file, each in sources.items()
            if file.endswith(".down.sql") and each.version not in forward
        }
        return super().settled(sources)

    def sections(self, source: Source, file: str, text: bytes) -> Iterable[foreign.Section]:
        """Take the whole file, and nothing as the way forward that is missing beside it."""
        found = [foreign.Section(source.kind)]
        if file in self.alone:
            found.append(foreign.Section("up", len(text), len(text)))
        return found

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        ways = {"up": "up", "rollback": "down"}
        return f"{name}.{ways[kind]}.sql" if kind in ways else super().file(name, kind)

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """All up to the one version is applied; -1 is where the first one was taken back."""
        newest = [(int(version), dirty) for version, dirty in rows if version >= 0]
        broken = [str(version) for version, dirty in rows if dirty]
        through = str(max(version for version, _ in newest)) if newest else None
        return foreign.Said({through: None} if through else {}, broken, through)


LAYOUT = GolangMigrate
