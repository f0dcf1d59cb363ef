"""How a folder names its files: from a file's name to a migration's part, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

KINDS = ("rollback", "verify", "export")


@dataclass(frozen=True, slots=True)
class Source:
    """Which part of which migration a file is: `up` or one of KINDS."""

    version: int
    name: str
    kind: str


class Layout(Protocol):
    """The rule of one kind of folder; no other room knows how a file is called."""

    hint: str  # what a name has to look like

    def counts(self, file: str) -> bool:
        """Tell whether a file of the folder is meant to be a part of a migration."""

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""


class Native:
    """Our own: `NNN_what_it_does.sql`, and its companions beside it."""

    hint = "Name it NNN_snake_case.sql: 3 to 18 digits, then lower-case words."
    _name = re.compile(r"(?P<version>[0-9]{3,18})_[a-z0-9]+(?:_[a-z0-9]+)*\.sql")
    _kind = re.compile(rf"(?P<base>.+)_(?P<kind>{'|'.join(KINDS)})\.sql")

    def counts(self, file: str) -> bool:
        """Tell whether it ends with `.sql` and is not hidden."""
        return not file.startswith(".") and file.endswith(".sql")

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        named, companion = self._name.fullmatch(file), self._kind.fullmatch(file)
        if named is None:
            return None
        if companion is None:
            return Source(int(named["version"]), file.removesuffix(".sql"), "up")
        return Source(int(named["version"]), companion["base"], companion["kind"])

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        return f"{name}.sql" if kind == "up" else f"{name}_{kind}.sql"


NATIVE = Native()
