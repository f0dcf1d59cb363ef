"""Which number a version has that is text: what is recorded keeps the one it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from preflight.base.config import OTHER_LAYOUTS
from preflight.base.errors import ConfigInvalid, FilesInvalid, HistoryConflict, Problem
from preflight.files import folder, reading, scan
from preflight.files.folder import Folder
from preflight.files.layout import KINDS, STEP
from preflight.history import plan

if TYPE_CHECKING:
    from preflight.files.migrations import Migration
    from preflight.history.plan import History


_ALL = "all of it would run, also what is below a mark for the way back"
_RUNS = {
    "Atlas": "all parts of an archive would run, also its down.sql, and a checkpoint on top of "
    "what it stands for"
}
_OUT = {
    "Atlas": "Make the archive's migration.sql the file and its down.sql NNN_title_rollback.sql; "
    "leave a checkpoint out of the folder."
}


def settled(files: Folder, history: History) -> Folder:
    """Return the folder as this history knows it; raises FilesInvalid, HistoryConflict.

    Files that ours and another tool could have written are ours where they are recorded so; and
    what has the numbers of no history yet has its own.
    """
    if files.other is not None:
        files = _whose(files, history)
    elif files.layout is None:
        refuse_marked(files, plan.pending(files, history))
    return _numbered(files, history) if files.labelled else files


def _whose(files: Folder, history: History) -> Folder:
    """Return the reading of the folder that fits what is recorded."""
    ours, theirs = (files.other, files) if isinstance(files.other, Folder) else (files, files.other)
    fits, others = _fitting(ours, history, files.marks), []
    if isinstance(theirs, Folder):
        others = _fitting(theirs, history, files.marks)
    else:  # what is the same in both readings speaks for neither
        fits = [file for file in fits if not _undivided(file, files.marks)]
    if len(fits) > len(others):
        kept = Folder(ours, marks=files.marks)
        refuse_marked(kept, plan.pending(kept, history))
        return kept
    if isinstance(theirs, Folder):
        return Folder(theirs, theirs.layout)
    assert theirs is not None  # noqa: S101 -- there are always two
    raise theirs


def _fitting(
    files: Sequence[Migration], history: History, marks: Mapping[str, str]
) -> list[Migration]:
    """Return the files that are as they were recorded; a marked one has its text to the letter."""
    pairs = ((file, history.records.get(file.version)) for file in files)
    return [
        file
        for file, record in pairs
        if record is not None
        and plan.compared(file, record) == "same"
        and (file.up.file not in marks or file.checksum == record.checksum)
    ]


def _undivided(file: Migration, marks: Mapping[str, str]) -> bool:
    """Tell whether a file is the same text to us as to the tool whose mark it has."""
    tool = marks.get(file.up.file)
    return tool is not None and reading.undivided(tool, file.up.text)


def refuse_marked(files: Folder, due: Sequence[Migration]) -> None:
    """Refuse a file of ours that has another tool's marks in it, or a way back below.

    What ran as it is, and is not to run again, is not asked for.
    """
    if files.layout is not None:
        return
    problems = [
        Problem(
            f"{script.file} has marks of {files.marks[script.file]}: "
            f"{_RUNS.get(files.marks[script.file], _ALL)}",
            _way_out(files.marks[script.file]),
            **file.named,
            file=script.file,
        )
        for file in due
        for script in (file.up, file.rollback)
        if script is not None and script.file in files.marks
    ]
    problems += [
        _turned(file, at)
        for file in due
        if file.up.file not in files.marks and (at := reading.turned(file)) is not None
    ]
    if problems:
        raise FilesInvalid.of("files.layout", problems)


def _turned(file: Migration, at: int) -> Problem:
    """Say that a file goes back behind a comment."""
    text = file.up.text
    line, column = scan.position(text, at)
    said = text[at : text.index(b"\n", at)].decode().strip()
    return Problem(
        f"{file.up.file}:{line}:{column}: `{said}` heads a way back, and what is below it would "
        "run as well",
        f"Move that into {file.name}_rollback.sql; or, if it is a step forward, say in the comment "
        "what it does.",
        **file.named,
        file=file.up.file,
        line=line,
        column=column,
    )


def _way_out(tool: str) -> str:
    if tool in OTHER_LAYOUTS:
        return f"Read the folder as that tool does: PREFLIGHT_LAYOUT={tool}. Or take the marks out."
    return _OUT.get(tool, "Move the way back into NNN_title_rollback.sql, and take the marks out.")


def _numbered(files: Folder, history: History) -> Folder:
    """Give each file the number that is recorded for its label, or one that fits between."""
    known = {record.label: version for version, record in history.records.items() if record.label}
    if old := _called_before(files, history):
        called = ((file, old.get(file.label, file.label)) for file in files)
        files = Folder(
            (_with(file, name=label, label=label) for file, label in called),
            files.layout,
            repeats=files.repeats,
        )
    numbers = [known.get(file.label) for file in files]
    top = max(history.records, default=0)
    gone = _gone(files, history)
    at = 0
    while at < len(files):
        if numbers[at] is not None:
            at += 1
            continue
        end = next((i for i in range(at, len(files)) if numbers[i] is not None), len(files))
        left = max((number for number in numbers[:at] if number is not None), default=0)
        for place, number in enumerate(
            _between(left, _right(files, numbers, end, gone), max(left, top), end - at)
        ):
            numbers[at + place] = number
        at = end
    pairs = zip(files, numbers, strict=True)
    return Folder(
        (_with(file, version=number) for file, number in pairs if number is not None),
        files.layout,
        repeats=files.repeats,
    )


def _gone(files: Folder, history: History) -> list[tuple[str, int]]:
    """Return the recorded text versions that have no file, with their numbers."""
    here = {file.label for file in files}
    return [
        (record.label, version)
        for version, record in history.records.items()
        if record.label and record.label not in here
    ]


def _right(
    files: Folder, numbers: Sequence[int | None], end: int, gone: Sequence[tuple[str, int]]
) -> int | None:
    """Return the number that those before `end` have to stay below; None for none."""
    if end < len(files):
        return numbers[end]
    order: Callable[[str], Any] | None = files.layout.order if files.layout else None
    last = order(files[-1].label) if order else None
    if order is None or last is None:
        return None
    return min((number for label, number in gone if order(label) > last), default=None)


def _between(left: int, right: int | None, top: int, count: int) -> list[int]:
    """Return as many numbers above `left` and below `right`, in order."""
    if right is None or right <= left:
        return [top + STEP * (place + 1) for place in range(count)]
    if right - left <= count:
        raise HistoryConflict(
            "history.no_room",
            f"there is no room for {count} more versions between {left} and {right}",
            "Give the new files versions above the newest.",
        )
    return [left + (right - left) * (place + 1) // (count + 1) for place in range(count)]


def _with(file: Migration, **said: Any) -> Migration:  # noqa: ANN401 -- fields of it
    """Return a migration under another number or name."""
    if all(getattr(file, field) == value for field, value in said.items()):
        return file
    made = dataclasses.replace(file, **said)
    scripts = {
        kind: dataclasses.replace(script, version=made.version, migration=made.name)
        for kind in ("up", *KINDS)
        if (script := getattr(made, kind)) is not None
    }
    return dataclasses.replace(made, **scripts)


def of(files: Sequence[Migration], history: History, version: int | str) -> int:
    """Return the number of a version as a person wrote it; raises ConfigInvalid.

    What a file is called comes before what was recorded, and a text before a number.
    """
    known = {record.label: number for number, record in history.records.items() if record.label}
    known |= {file.written: file.version for file in files}
    for text in _texts(files, version):
        if text in known:
            return known[text]
    if not isinstance(version, str):
        return int(version)
    raise ConfigInvalid(
        "config.arguments",
        f"there is no version {version!r}",
        "`check --table` shows every version.",
    )


def file(files: Sequence[Migration], history: History, version: int | str) -> Migration:
    """Return the file of a version as a person wrote it; raises ConfigInvalid."""
    number = of(files, history, version)
    for each in files:
        if each.version == number:
            return each
    raise ConfigInvalid(
        "config.arguments",
        f"there is no file of version {_texts(files, version)[0]}",
        f"Versions on disk: {', '.join(each.written for each in files)}.",
    )


def applied(files: Sequence[Migration], history: History, version: int | str) -> bool:
    """Tell whether a version, as a person wrote it, was applied completely.

    One that is text is known by that alone: its number may be the text of another, which nobody
    here has heard of yet.
    """
    old = _called_before(files, history)
    texts = [old.get(text, text) for text in _texts(files, version)]
    return any(
        record.state == "done" and (record.label in texts if record.label else number == version)
        for number, record in history.records.items()
    )


def _called_before(files: Sequence[Migration], history: History) -> Mapping[str, str]:
    """Return the texts that an earlier release recorded, by those that the layout gives now."""
    layout, records = folder.rule(files), sorted(history.records.items())
    labels = [record.label for _, record in records if record.label]
    return layout.recorded(labels) if layout else {}


def _texts(files: Sequence[Migration], version: int | str) -> tuple[str, ...]:
    """Return a version as a person wrote it, and as the folder's layout does."""
    said = str(getattr(version, "said", version))
    layout = folder.rule(files)
    return (said, layout.version(said)) if layout and layout.labelled else (said,)
