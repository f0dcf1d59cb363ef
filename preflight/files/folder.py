"""The folder as a run was told to read it: in our layout or in another tool's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from preflight.base.config import OTHER_LAYOUTS
from preflight.base.errors import ConfigInvalid, Failure, FilesInvalid, Problem
from preflight.files import reading
from preflight.files.layout import NATIVE, OURS

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.files.foreign import Foreign
    from preflight.files.migrations import Migration


class Folder(tuple["Migration", ...]):  # noqa: SLOT001 -- a tuple has no room for them
    """The migrations in order, and in which layout they are.

    `marks` are those of another tool in files that ours can read, too: whose they are is certain
    only once the history was read. `other` is then the second reading, or what speaks against it.
    """

    layout: Foreign | None
    repeats: tuple[Migration, ...]  # files without a version
    marks: Mapping[str, str]
    other: Folder | FilesInvalid | None

    def __new__(
        cls,
        files: Iterable[Migration],
        layout: Foreign | None = None,
        marks: Mapping[str, str] | None = None,
        other: Folder | FilesInvalid | None = None,
        repeats: Iterable[Migration] = (),
    ) -> Self:
        """Make it."""
        made = super().__new__(cls, tuple(files))
        made.layout, made.marks, made.other = layout, marks or {}, other
        made.repeats = tuple(repeats)
        return made

    @property
    def open(self) -> bool:
        """Whether only the history tells what the files are, or which numbers they have."""
        return bool(self.other or self.marks or self.labelled)

    @property
    def labelled(self) -> bool:
        """Whether the versions are text."""
        return bool(self.layout and self.layout.labelled)

    @property
    def tool(self) -> str:
        """Whose layout it is."""
        return self.layout.tool if self.layout else OURS


def rule(files: Sequence[Migration]) -> Foreign | None:
    """Return the layout of files that were read from another tool's folder."""
    return files.layout if isinstance(files, Folder) else None


def repeats(files: Sequence[Migration]) -> tuple[Migration, ...]:
    """Return the files without a version that stand beside others."""
    return files.repeats if isinstance(files, Folder) else ()


def load(config: Config) -> Folder:
    """Read the files as PREFLIGHT_LAYOUT says; raises ConfigInvalid, FilesInvalid."""
    directory = config.migrations_dir
    if config.layout not in ("auto", OURS):
        return _theirs(config.layout, directory)
    marks: dict[str, str] = {}
    try:
        ours = Folder(reading.load(directory, NATIVE, marks), marks=marks)
    except (FilesInvalid, ConfigInvalid) as failure:
        if config.layout == OURS:
            raise
        from preflight.files import shapes  # noqa: PLC0415 -- only for what ours does not take

        tool = _only({**shapes.marks(directory), **marks}) or shapes.tool(directory)
        if tool not in OTHER_LAYOUTS:
            raise
        return _taken_for(tool, directory, failure)
    readable = {file: tool for file, tool in marks.items() if tool in OTHER_LAYOUTS}
    if not readable or config.layout == OURS:
        return ours
    try:
        found = _taken_for(_only(marks) or OURS, directory)
    except FilesInvalid as failure:
        return Folder(ours, marks=marks, other=failure)
    return Folder(found, found.layout, marks, other=ours)


def _theirs(tool: str, directory: Path) -> Folder:
    from preflight.files import foreign  # noqa: PLC0415 -- only for another tool's folder

    found, files = foreign.load(tool, directory)
    return Folder(
        (file for file in files if not file.repeat),
        found,
        repeats=(file for file in files if file.repeat),
    )


def _only(marks: Mapping[str, str]) -> str | None:
    """Return whose the marks are; raises FilesInvalid when they contradict each other."""
    tools = dict.fromkeys(marks.values())
    if len(tools) > 1:
        examples = [next(file for file in marks if marks[file] == tool) for tool in tools]
        raise FilesInvalid.of(
            "files.layout",
            [
                Problem(
                    f"whose folder is this? It has marks of {' and of '.join(tools)}: "
                    f"{', '.join(examples)}",
                    "Say it: PREFLIGHT_LAYOUT.",
                    file=examples[-1],
                )
            ],
        )
    return next(iter(tools), None)


def _taken_for(tool: str, directory: Path, ours: Failure | None = None) -> Folder:
    """Read the folder as one of a tool; raises FilesInvalid that says what it was taken for."""
    try:
        return _theirs(tool, directory)
    except FilesInvalid as failure:
        problems = [_said(tool, problem) for problem in failure.problems]
        raise FilesInvalid.of(failure.code, problems) from ours


def _said(tool: str, problem: Problem) -> Problem:
    hint = f"It was read as a folder of {tool}; if it is another's, say so: PREFLIGHT_LAYOUT."
    return dataclasses.replace(problem, hint=f"{problem.hint or ''} {hint}".strip())
