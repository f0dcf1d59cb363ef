"""Flyway: `V1_1__title.sql`, `U1_1__title.sql`, `R__title.sql`, `B1__title.sql`, in any folder."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.files import foreign, reading
from preflight.files.layout import REPEAT, Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

_NAME = re.compile(r"(?P<way>[VUB])(?P<version>[0-9]+(?:[._][0-9]+)*)(?:__.*)?(?i:\.sql)")
_REPEAT = re.compile(r"R__.*(?i:\.sql)")
_OTHER = re.compile(
    r"(?:[VUB][0-9]+(?:[._][0-9]+)*|R)__.*"
    r"\.(?:java|class|kt|groovy|scala|sh|bash|ps1|bat|cmd|py)"
)
_CALLBACK = re.compile(r"(?:(?:before|after)[A-Z]|createSchema).*\.sql")
_PLACEHOLDER = re.compile(rb"\$\{[^}\n]++(?P<end>\})?")
_COMMENTED = re.compile(rb"\s*--")
_LINE = re.compile(rb"[^\r\n]+")
_KNOWN = {"executeInTransaction", "placeholderReplacement", "encoding"}


def _placeholders(text: bytes) -> Iterator[re.Match[bytes]]:
    """Yield what Flyway would replace: not in a line that is a comment."""
    at = line = 0
    while (found := _PLACEHOLDER.search(text, at)) is not None:
        line = text.rfind(b"\n", at, found.start()) + 1 or line
        at = found.end()
        if found["end"] and not _COMMENTED.match(text, line, found.start()):
            yield found
        else:
            at = line = text.find(b"\n", at) + 1 or len(text)


class Flyway(foreign.Foreign):
    """Its history has a row each time, with a CRC-32 of the lines."""

    tool = "flyway"
    hint = "Name it V1_1__title.sql: V, U, B with a version or R, two underscores, a title."
    outside = (
        "Write `executeInTransaction=false` into a file beside it, called as this one "
        "with `.conf` after it."
    )
    lone = True
    labelled = True
    checked = True
    table = foreign.Table(
        "flyway_schema_history",
        {
            "installed_rank": "integer",
            "version": "character varying",
            "description": "character varying",
            "type": "character varying",
            "script": "character varying",
            "checksum": "integer",
            "installed_by": "character varying",
            "installed_on": "timestamp without time zone",
            "execution_time": "integer",
            "success": "boolean",
        },
        ("installed_rank", "version", "description", "type", "checksum", "success"),
        renamed=True,
        amid=True,
    )

    def names(self) -> list[str]:
        """Return the files that count, of every folder below."""
        found = []
        seen: set[str] = set()
        for folder, folders, files in os.walk(self.directory, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # a link that leads back up
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            inside = Path(folder).relative_to(self.directory)
            found += [str(inside / file) for file in files if self.counts(str(inside / file))]
        return sorted(found)

    def counts(self, file: str) -> bool:
        """Tell whether Flyway would read it; a callback it would run."""
        name = Path(file).name
        if file.startswith(f"{foreign.BESIDE}/"):
            return name.endswith(".sql")
        return any(each.fullmatch(name) for each in (_NAME, _REPEAT, _CALLBACK, _OTHER))

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        beside = super().source(file) if file.startswith(f"{foreign.BESIDE}/") else None
        return beside or self.named(Path(file).name)

    def named(self, file: str) -> Source | None:
        """Read the version, and the way."""
        if _REPEAT.fullmatch(file):
            return Source(0, file[: -len(".sql")], REPEAT)
        if _CALLBACK.fullmatch(file):
            return Source(0, file.removesuffix(".sql"), "up", file)
        found = _NAME.fullmatch(file)
        if found is None:
            return Source(0, file, "up", file) if _OTHER.fullmatch(file) else None
        kind = "rollback" if found["way"] == "U" else "up"
        return Source(0, file[: -len(".sql")], kind, self.version(found["version"]))

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called; a way back has the version of one forth."""
        return super().file(f"V{name[1:]}" if name[:1] == "U" else name, kind)

    def version(self, text: str) -> str:
        """Write a version as Flyway compares it: 1_01 and 1.1.0 are 1.1."""
        if not re.fullmatch(r"[0-9]+(?:[._][0-9]+)*", text):
            return text
        parts = [int(part) for part in re.split("[._]", text)]
        while len(parts) > 1 and not parts[-1]:
            parts.pop()
        return ".".join(map(str, parts))

    def order(self, label: str) -> tuple[int, ...]:
        """Compare the parts as numbers; a callback comes first, where it is refused."""
        parts = label.split(".")
        return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()

    def settled(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Keep one baseline at most: the newest of those that no version is at or below.

        Any other one stands for what is there.
        """
        places = [
            (self.order(each.label), _baseline(file))
            for file, each in sources.items()
            if each.kind == "up"
        ]
        versions = [place for place, baseline in places if not baseline]
        first = [
            place
            for place, baseline in places
            if baseline and not any(version <= place for version in versions)
        ]
        last = {
            file: each
            for file, each in sources.items()
            if not _baseline(file) or self.order(each.label) == max(first, default=None)
        }
        return super().settled(last)

    def sections(self, source: Source, file: str, text: bytes) -> Iterable[foreign.Section]:
        """Take the whole file; what stands beside it as `.conf` counts."""
        name = Path(file).name
        if _CALLBACK.fullmatch(name) and not _NAME.fullmatch(name):
            raise foreign.Wrong(
                "Flyway runs this callback around its migrations, and nobody does here",
                "Move what it does into a migration, and remove it.",
            )
        if _OTHER.fullmatch(name):
            raise foreign.Wrong(
                "a migration that is no SQL cannot be run here",
                "Write what it does as SQL, under its version; or go on with Flyway behind `wrap`.",
            )
        if source.kind in ("verify", "export"):
            return [foreign.Section(source.kind)]
        said = self._conf(file)
        if said.get("placeholderReplacement", "true").lower() != "false":
            foreign.require_literal(
                _placeholders(text),
                "Write the value; or, if it is meant as it stands, "
                f"`placeholderReplacement=false` into {name}.conf.{self.edited(source)}",
            )
        unbound = said.get("executeInTransaction", "true").lower() == "false"
        return [foreign.Section(source.kind, unbound=unbound)]

    def _conf(self, file: str) -> dict[str, str]:
        """Return what a script's own configuration says; raises Wrong for what it may not say."""
        path = self.directory / f"{file}.conf"
        if not path.exists():
            return {}
        try:
            lines = reading.beside(path).splitlines()
        except (OSError, ValueError) as error:
            raise foreign.Wrong(f"{path.name} cannot be read: {error}") from error
        pairs = [line.partition("=") for line in lines if not re.match(r"\s*(?:[#!]|$)", line)]
        said = {key.strip().removeprefix("flyway."): value.strip() for key, _, value in pairs}
        if strange := sorted(said.keys() - _KNOWN):
            raise foreign.Wrong(
                f"{path.name} says {', '.join(strange)}, which is not understood here",
                f"Known: {', '.join(sorted(_KNOWN))}.",
            )
        return said

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """Read the rows in the order in which they were written; later ones take back."""
        applied: dict[str, str | None] = {}
        runs: dict[str, tuple[Any, bool]] = {}  # the last one of each file that runs again
        broken: list[str] = []
        through = last = None
        for _, version, title, kind, checksum, success in sorted(rows, key=lambda row: row[0]):
            if kind == "SCHEMA":  # which it made; up to Flyway 3 this was version 0
                continue
            known = None if checksum is None else str(checksum)
            last = f"R__{title}" if version is None else self.version(version)
            if version is None:
                if kind != "BASELINE":
                    runs[title] = (kind != "DELETE" and known, success)
                continue
            label = self.version(version)
            if not success:
                broken.append(label)
            elif kind in ("BASELINE", "SQL_BASELINE"):
                through = label
            elif kind == "DELETE" or kind.startswith("UNDO"):
                applied.pop(label, None)
            else:
                applied[label] = known
        broken += [f"R__{title}" for title, (_, success) in runs.items() if not success]
        repeated = {title: known for title, (known, success) in runs.items() if known and success}
        return foreign.Said(applied, broken, through, repeated, last=last)

    def forgets(self, key: str, files: Sequence[Migration], said: foreign.Said) -> bool:
        """Tell whether a baseline file stands for it, and the history is at the baseline's version.

        Else Flyway misses the file, too.
        """
        baselines = [self.order(file.label) for file in files if _baseline(file.up.file)]
        reached = {self.order(label) for label in said.applied}
        return any(
            self.order(key) <= place
            and (place in reached or (said.through and self.order(said.through) >= place))
            for place in baselines
        )

    def stands(self, name: str, label: str, said: foreign.Said) -> bool | None:
        """Pass over a baseline file where anything is applied, as Flyway does."""
        labels = [*said.applied, *([said.through] if said.through else [])]
        if not labels or not _baseline(name):
            return None
        return max(map(self.order, labels)) >= self.order(label)

    def edited(self, source: Source) -> str:
        """Say nothing of a baseline, whose checksum is not asked."""
        return "" if _baseline(source.name) else super().edited(source)

    def agrees(self, file: Migration, checksum: str) -> bool:
        """Compare the CRC-32 of the lines, without their ends."""
        return _baseline(file.up.file) or checksum == _crc(file.up.text)

    def repeats(self, file: Migration) -> str:
        """Return how a repeatable file is known in the other history."""
        return file.name.removeprefix("R__").replace("_", " ")


def _baseline(file: str) -> bool:
    return Path(file).name.startswith("B")


def _crc(text: bytes) -> str:
    """Return the checksum as the other tool keeps it: a signed number."""
    found = 0
    for line in _LINE.finditer(text):
        found = zlib.crc32(line.group(), found)
    return str(found - (1 << 32) if found >= 1 << 31 else found)


LAYOUT = Flyway
