"""goose: one file a version, with `-- +goose Up` and `-- +goose Down` in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from preflight.files import foreign
from preflight.files.layout import Source

_NAME = re.compile(r"(?P<name>(?P<version>[0-9]{1,18})_.*)\.(?P<type>sql|go)")
_MARK = re.compile(rb"--[ \t]*\+goose[ \t]+(?P<said>[^\n]*)")
# what goose refuses as a mark, and what it takes for a comment though somebody meant one
_LIKE = re.compile(rb"\s*--(?:.*\+goose|\s*\+(?i:goose)\s+(?i:up|down|statement|no|envsub)\b)")


class _Marks:
    """What goose's marks in a file have said so far; places are byte offsets."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}
        self.unbound = False
        self.block: int | None = None

    def see(self, at: int, said: str) -> None:
        """Take a mark in; raises Wrong."""
        match " ".join(said.upper().split()):
            case "UP" if not self.begun:
                self.begun["up"] = at
            case "DOWN" if [*self.begun] == ["up"] and self.block is None:
                self.begun["rollback"] = at
            case "STATEMENTBEGIN" if self.begun and self.block is None:
                self.block = at
            case "STATEMENTEND" if self.block is not None:
                self.block = None
            case "NO TRANSACTION":
                self.unbound = True
            case "ENVSUB OFF":
                pass
            case "ENVSUB ON":
                raise foreign.Wrong(
                    "values of the environment are not put into files here (ENVSUB ON)",
                    "Write them into the file: what the environment holds is in no checksum.",
                    at,
                )
            case _:
                raise foreign.Wrong(
                    f"`-- +goose {said}` is unknown, or in a wrong place",
                    "Known: Up, then Down; StatementBegin, StatementEnd, NO TRANSACTION.",
                    at,
                )


class Goose(foreign.Foreign):
    """Its history has a row each time; the newest of a version counts."""

    tool = "goose"
    hint = "Name it VERSION_title.sql: at most 18 digits, more than 0, and an underscore."
    outside = "Put `-- +goose NO TRANSACTION` at the top of the file."
    table = foreign.Table(
        "goose_db_version",
        {
            "id": "integer|bigint",
            "version_id": "bigint",
            "is_applied": "boolean",
            "tstamp": "timestamp without time zone|timestamp with time zone",
        },
        ("id", "version_id", "is_applied"),
        renamed=True,
        along=True,
    )

    def counts(self, file: str) -> bool:
        """Tell whether goose would count it as a version, a Go file included."""
        if file.endswith(".go"):
            return bool(_NAME.fullmatch(file)) and not file.endswith("_test.go")
        return super().counts(file) and ("/" in file or file.removeprefix("+")[:1].isdigit())

    def named(self, file: str) -> Source | None:
        """Read the version."""
        found = _NAME.fullmatch(file)
        if found is None or not int(found["version"]):  # 0 is goose's own
            return None
        return Source(int(found["version"]), found["name"], "up")

    def sections(self, source: Source, file: str, text: bytes) -> Iterable[foreign.Section]:
        """Yield what stands below `Up` and `Down`; NO TRANSACTION is said once for both."""
        if source.kind != "up":
            return [foreign.Section(source.kind)]
        if file.endswith(".go"):
            raise foreign.Wrong(
                "a migration written in Go cannot be run here",
                "Write what it does as SQL, under its number; or go on with goose behind `wrap`.",
            )
        marks = _Marks()
        for at, line in foreign.lines(text):
            if (mark := _MARK.match(line)) is not None:
                marks.see(at, mark["said"].decode("utf-8", "replace").strip())
            elif _LIKE.match(line):
                raise foreign.Wrong(
                    "this looks like a mark of goose's, and is none that goose reads",
                    "Write it at the beginning of a line, alone: `-- +goose Down`.",
                    at,
                )
            elif not marks.begun and line.strip() and not line.lstrip().startswith(b"--"):
                raise foreign.Wrong("SQL above `-- +goose Up`", "Move it below the mark.", at)
        if not marks.begun:
            raise foreign.Wrong("there is no `-- +goose Up`", "Write it above the SQL.", 0)
        if marks.block is not None:
            raise foreign.Wrong("this StatementBegin has no StatementEnd", None, marks.block)
        ends = [*list(marks.begun.values())[1:], len(text)]
        found = [
            foreign.Section(kind, at, end, marks.unbound)
            for (kind, at), end in zip(marks.begun.items(), ends, strict=True)
        ]
        return foreign.ways(text, found)

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """Let the newest row of each version decide; version 0 is goose's own."""
        newest = {version: applied for _, version, applied in sorted(map(tuple, rows))}
        return foreign.Said(
            {str(version): None for version, applied in newest.items() if applied and version}
        )


LAYOUT = Goose
