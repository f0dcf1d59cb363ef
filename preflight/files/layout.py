"""How a folder names its files: from a file's name to a migration's part, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from preflight.files import names

KINDS = names.KINDS
REPEAT = "repeat"  # the kind of a file without a version, run again when its text changes
OURS = "ours"
STEP = 1000  # between the numbers that text versions get, so that another one fits in


@dataclass(frozen=True, slots=True)
class Source:
    """Which part of which migration a file is: `up` or one of KINDS.

    A version that is no number is a `label`; it gets its number when it is recorded.
    """

    version: int
    name: str
    kind: str
    label: str = ""


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

    def counts(self, file: str) -> bool:
        """Tell whether it ends with `.sql` and is not hidden."""
        return names.counts(file)

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        parts = names.parts(file)
        return Source(*parts) if parts else None

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        return f"{name}.sql" if kind == "up" else f"{name}_{kind}.sql"


NATIVE = Native()
