"""Layouts in which a migration is a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from preflight.files import foreign

if TYPE_CHECKING:
    from preflight.files.layout import Source


class Nested(foreign.Foreign):
    """A folder a migration; `parts` says which file in it is what."""

    parts: Mapping[str, str] = {}

    def names(self) -> list[str]:
        """Return the files that count, relative to the directory.

        A folder without a forward file is one that the tools refuse, and not nothing.
        """
        forward = next(name for name, kind in self.parts.items() if kind == "up")
        folders = sorted(
            each.name
            for each in self.directory.iterdir()
            if each.is_dir() and not each.name.startswith(".") and each.name != foreign.BESIDE
        )
        return [
            f"{folder}/{name}"
            for folder in folders
            for name in self.parts
            if name == forward or (self.directory / folder / name).exists()
        ]

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        folder, _, name = file.rpartition("/")
        return self.titled(folder, self.parts[name])

    def titled(self, folder: str, kind: str) -> Source | None:
        """Return what a folder's name says."""
        raise NotImplementedError

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        return next(f"{name}/{file}" for file, each in self.parts.items() if each == kind)
