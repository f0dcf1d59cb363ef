"""dbmate: one file a version, with `-- migrate:up` and `-- migrate:down` in it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from preflight.files import foreign
from preflight.files.layout import Source

_NAME = re.compile(r"(?P<name>(?P<version>[0-9]{1,18})(?![0-9]).*)\.sql")
_MARK = re.compile(rb"(?m)^--\s*migrate:(?P<kind>up|down)(?P<options>\s*$|[ \t]+\S[^\n]*$)")
# what dbmate takes for a comment though somebody meant a mark: all below it would run
_LIKE = re.compile(rb"(?im)(?:^|\r)[ \t]*--[ \t]*migrate[ \t]*:[ \t]*(?:up|down)\b")
_BEFORE = re.compile(rb"(?:[ \t\r]*(?:--[^\n]*)?(?:\n|\Z)|)*+")
_KINDS = {b"up": "up", b"down": "rollback"}


class Dbmate(foreign.Foreign):
    """Its history has a row a version, which is text."""

    tool = "dbmate"
    hint = "Name it VERSION_title.sql: the version is at most 18 digits."
    textual = True
    outside = "Write `transaction:false` beside the mark: `-- migrate:up transaction:false`."
    table = foreign.Table(
        "schema_migrations",
        {"version": "character varying|text"},
        ("version",),
        renamed=True,
        like="migration",
    )

    def counts(self, file: str) -> bool:
        """Tell whether it is a migration; dbmate passes over what begins with no digit."""
        return super().counts(file) and ("/" in file or file[:1].isdigit())

    def named(self, file: str) -> Source | None:
        """Read the version."""
        found = _NAME.fullmatch(file)
        return Source(int(found["version"]), found["name"], "up") if found else None

    def sections(self, source: Source, _file: str, text: bytes) -> Iterable[foreign.Section]:
        """Yield what stands below each mark; `transaction:false` beside it counts."""
        if source.kind != "up":
            return [foreign.Section(source.kind)]
        marks = list(_MARK.finditer(text))
        kinds = [mark["kind"] for mark in marks]
        read = {mark.start() for mark in marks}
        if meant := [like.start() for like in _LIKE.finditer(text) if like.start() not in read]:
            raise foreign.Wrong(
                "this looks like a mark of dbmate's, and is none that dbmate reads",
                "Write it at the beginning of a line, alone or with its options: "
                "`-- migrate:down`.",
                meant[0],
            )
        if kinds not in ([b"up"], [b"up", b"down"]):
            hint = "Write `-- migrate:up` above the SQL."
            if b"up" in kinds:
                hint = "Put what stands below each mark below the first of its kind, `up` first."
            raise foreign.Wrong(
                "one `-- migrate:up` is read here and, below it, at most one `-- migrate:down`",
                hint,
                marks[-1].start() if marks else 0,
            )
        before = _BEFORE.match(text, 0, marks[0].start())
        if before is None or before.end() < marks[0].start():
            raise foreign.Wrong(
                "SQL above `-- migrate:up`, where dbmate takes comments only",
                "Move it below the mark.",
                before.end() if before else 0,
            )
        ends = [*(mark.start() for mark in marks[1:]), None]
        found = [
            foreign.Section(
                _KINDS[mark["kind"]],
                mark.start(),
                end,
                unbound=b"transaction:false" in mark["options"].split(),
            )
            for mark, end in zip(marks, ends, strict=True)
        ]
        return foreign.ways(text, found)


LAYOUT = Dbmate
