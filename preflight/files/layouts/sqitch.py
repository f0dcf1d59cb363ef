"""sqitch: the order is that of `sqitch.plan`; `deploy/NAME.sql` and `revert/NAME.sql`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.base.errors import ConfigInvalid
from preflight.files import foreign, reading
from preflight.files.layout import Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

_PROJECT = re.compile(r"(?m)^%project=(.*)$")
_WAYS = {"deploy": "up", "revert": "rollback"}


class Sqitch(foreign.Foreign):
    """Its history has a row a change, by project, with the SHA-1 of the script."""

    tool = "sqitch"
    hint = "Changes stand in sqitch.plan, their scripts in deploy/ and revert/."
    lone = True
    labelled = True
    table = foreign.Table(
        "changes",
        {
            "change_id": "text",
            "script_hash": "text",
            "change": "text",
            "project": "text",
            "planned_at": "timestamp with time zone",
        },
        ("change", "script_hash", "project", "committed_at"),
        apart=True,
    )

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.project: str | None = None  # of no plan: the history is looked at, not the folder
        self.changes: list[tuple[str, str]] = []
        self.wrong: Exception | None = None
        try:
            plan = reading.beside(directory / "sqitch.plan")
        except (OSError, ValueError) as error:
            self.wrong = error
            return
        found = _PROJECT.search(plan)
        self.project = found[1].strip() if found else ""
        self.changes = _changes(plan)

    def names(self) -> list[str]:
        """Return the scripts of the plan, and the companions beside them; raises ConfigInvalid."""
        if self.wrong is not None:
            raise ConfigInvalid(
                "config.migrations_dir",
                f"{self.directory}/sqitch.plan cannot be read: {self.wrong}",
                "Set PREFLIGHT_MIGRATIONS_DIR to the folder that holds it.",
            ) from self.wrong
        found = [
            f"{way}/{script}.sql"
            for _, script in self.changes
            for way in _WAYS
            if way == "deploy" or (self.directory / way / f"{script}.sql").exists()
        ]
        return found + [name for name in super().names() if name.startswith(foreign.BESIDE)]

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        way, _, script = file.partition("/")
        return super().source(file) if way == foreign.BESIDE else self._script(way, script)

    def named(self, file: str) -> Source | None:
        """Return what a script of deploy/ is."""
        way, _, script = file.partition("/")
        return self._script(way, script)

    def _script(self, way: str, script: str) -> Source | None:
        name = script.removesuffix(".sql")
        labels = [label for label, each in self.changes if each == name]
        return Source(0, name, _WAYS[way], labels[0]) if labels else None

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        ways = {kind: way for way, kind in _WAYS.items()}
        return f"{ways[kind]}/{name}.sql" if kind in ways else super().file(name, kind)

    def order(self, label: str) -> int:
        """Return the place in the plan."""
        labels = [each for each, _ in self.changes]
        return labels.index(label) if label in labels else -1

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """Return what is deployed of this project; a change that was reworked has several rows."""
        known = (self.project,) if self.project is not None else {row[2] for row in rows}
        mine = sorted((row for row in rows if row[2] in known), key=lambda row: row[3])
        names = [row[0] for row in mine]
        labels = {name: [label for label, _ in self.changes if _change(label) == name]
                  for name in names}  # fmt: skip
        applied: dict[str, str | None] = {}
        for name, checksum, *_ in mine:
            left = [label for label in labels[name] if label not in applied]
            applied[left[0] if left else name] = checksum
        return foreign.Said(applied, lasting=sorted(names))

    def version(self, text: str) -> str:
        """Return a change's name as it is."""
        return text

    def agrees(self, file: Migration, checksum: str) -> bool:
        """Compare the SHA-1 of the deploy script."""
        return checksum in {
            hashlib.sha1(each, usedforsecurity=False).hexdigest()
            for each in foreign.variants(self.directory / file.up.file, file.up.text)
        }


def _changes(plan: str) -> list[tuple[str, str]]:
    """Return each change of a plan: its label, and what its scripts are called.

    One that is worked over later keeps its old scripts under the name of the tag that follows it.
    """
    names: list[str] = []
    tags: list[tuple[int, str]] = []
    for line in plan.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0].startswith("%"):
            continue
        if words[0].startswith("@"):
            tags.append((len(names), words[0]))
        else:
            names.append(words[0].lstrip("+"))
    found = []
    for place, name in enumerate(names):
        later = name in names[place + 1 :]
        tag = next((tag for at, tag in tags if at > place), "") if later else ""
        found.append((name + tag, name + tag))
    return found


def _change(label: str) -> str:
    return label.partition("@")[0]


LAYOUT = Sqitch
