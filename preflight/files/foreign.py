"""What every other tool's layout has in common: how its folder is read, and its history."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.base.errors import ConfigInvalid, FilesInvalid, Problem
from preflight.files import migrations, reading, scan
from preflight.files.layout import REPEAT, STEP, Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

BESIDE = "preflight"  # the folder for companions that the other tool knows nothing of
_COMPANION = re.compile(rf"{BESIDE}/(?P<kind>rollback|verify|export)_(?P<name>.+)\.sql")


class Wrong(Exception):
    """What is wrong with a file in its own tool's terms; `at` is a byte offset."""

    def __init__(self, message: str, hint: str | None = None, at: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.at = at
        self.others: tuple[Wrong, ...] = ()  # that are wrong as well


def require_literal(found: Iterable[re.Match[bytes]], hint: str) -> None:
    """Raise Wrong for all that a tool would have replaced, each name once, where it is first."""
    names: dict[bytes, int] = {}
    for each in found:
        names.setdefault(each.group(), each.start())
        if len(names) == reading.PROBLEMS_MAX:
            break
    wrong = [
        Wrong(f"the placeholder {name.decode('utf-8', 'replace')} is not replaced here", hint, at)
        for name, at in names.items()
    ]
    if wrong:
        wrong[0].others = tuple(wrong[1:])
        raise wrong[0]


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a file that is a part of a migration; `unbound` runs in no transaction."""

    kind: str
    start: int = 0
    end: int | None = None
    unbound: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """The other tool's history: its usual name, and the columns that it is known by."""

    usual: str  # without a schema, or with the only one that it may be in
    columns: Mapping[str, str]  # by name: a type, or several with | between
    read: Sequence[str]
    renamed: bool = False  # the tool lets people choose another name
    along: bool = False  # the tool finds it anywhere on the search_path, not in its first schema
    amid: bool = False  # it always lies in the schema in which the tool runs its files
    apart: bool = False  # it lies in a schema of its own, whatever the search_path is
    like: str = ""  # what another name must hold


@dataclass(frozen=True, slots=True)
class Said:
    """What the other tool's history says: version to checksum, if it keeps one.

    Of `through` and all below it there are no rows of their own.
    """

    applied: Mapping[str, str | None]
    broken: Sequence[str] = ()
    through: str | None = None
    repeated: Mapping[str, str | None] = field(default_factory=dict)  # of files without a version
    lasting: Sequence[str] | None = None  # what is applied, in words that no later file changes
    last: str | None = None  # what its last row is of, where they are in the order of its runs


class Foreign:
    """One folder of another tool; every layout says what differs."""

    tool = ""
    hint = ""
    table: Table
    lone = False  # a file of nothing but what a transaction refuses runs outside one
    labelled = False  # versions are text
    textual = False  # they are numbers here, and the tool orders its files as text
    outside = reading.OWN.hint  # how a file says that it runs in no transaction
    checked = False  # its history has a checksum of every file

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """Return the files that count, relative to the folder."""
        return [name for name in self._listed() if self.counts(name)]

    def _listed(self) -> list[str]:
        found = os.listdir(self.directory)  # noqa: PTH208 -- names are all that is needed
        beside = self.directory / BESIDE
        if BESIDE in found and beside.is_dir():
            found += [f"{BESIDE}/{name}" for name in os.listdir(beside)]  # noqa: PTH208
        return sorted(found)

    def counts(self, file: str) -> bool:
        """Tell whether a file is meant to be a part of a migration."""
        return file.endswith(".sql") and not file.rpartition("/")[2].startswith(".")

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        if (beside := _COMPANION.fullmatch(file)) is not None:
            of = self.named(self.file(beside["name"], "up"))
            return dataclasses.replace(of, kind=beside["kind"]) if of else None
        return None if "/" in file else self.named(file)

    def named(self, file: str) -> Source | None:
        """Return what a file of the tool is."""
        raise NotImplementedError

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        return f"{name}.sql" if kind == "up" else f"{BESIDE}/{kind}_{name}.sql"

    def way_back(self, file: Migration) -> str:
        """Return what the rollback file of a migration in the folder is called."""
        return self.file(file.name, "rollback")

    def order(self, label: str) -> Any:  # noqa: ANN401 -- whatever can be compared
        """Return what a text version is ordered by; None where nothing but the folder tells.

        No file is of a version that is no number where all have one: it comes first.
        """
        if self.labelled:
            return label
        return int(label) if label.isdecimal() else 0

    def newer(self, applied: Sequence[str], files: Sequence[Migration]) -> Sequence[str]:
        """Return the applied versions that come behind all files."""
        if not files:
            return applied
        last = max(self.order(self.key(file)) for file in files)
        return [key for key in applied if self.order(key) > last]

    def sections(self, source: Source, _file: str, _text: bytes) -> Iterable[Section]:
        """Yield the parts in a file; raises Wrong."""
        return [Section(source.kind)]

    def settled(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Return the sources of the whole folder as they are meant together; raises FilesInvalid.

        A version belongs to its forward file, whatever its companions are titled.
        """
        if self.textual:
            _same_order(self.tool, sources)
        titles = {
            (each.version, each.label): each.name for each in sources.values() if each.kind == "up"
        }
        return {
            file: dataclasses.replace(each, name=titles.get((each.version, each.label), each.name))
            for file, each in sources.items()
        }

    def broken(self) -> Iterable[Problem]:
        """Yield what is wrong with the files together, once `sections` has seen each."""
        return ()

    def version(self, text: str) -> str:
        """Return a version of the other history as `key` writes it."""
        return str(int(text)) if text.isdecimal() else text

    def key(self, file: Migration) -> str:
        """Return how a file is known in the other history."""
        return file.label or str(file.version)

    def recorded(self, _labels: Sequence[str]) -> Mapping[str, str]:
        """Return the texts, names as well, under which an earlier release recorded versions.

        By those that they have now; the recorded ones are in the order of their numbers.
        """
        return {}

    def said(self, rows: Sequence[Sequence[Any]]) -> Said:
        """Return what the rows of the other history mean."""
        return Said({self.version(str(row[0])): None for row in rows})

    def forgets(self, _key: str, _files: Sequence[Migration], _said: Said) -> bool:
        """Tell whether an applied version may be without a file."""
        return False

    def stands(self, _name: str, _label: str, _said: Said) -> bool | None:
        """Tell whether a file that never runs where anything is applied is there; None: it runs."""
        return None

    def repeats(self, file: Migration) -> str:
        """Return how a file without a version is known in the other history."""
        return file.name

    def edited(self, source: Source) -> str:
        """Say what comes next where a file that is to be changed was applied; nothing: no more."""
        if not self.checked or source.kind != "up":
            return ""
        return (
            f" Where {self.tool} has applied it already, its checksum there is of the text before: "
            f"`adopt --through {source.label or source.version}` accepts it, and all below it."
        )

    def agrees(self, _file: Migration, _checksum: str) -> bool:
        """Tell whether a file is what the other tool's checksum was made of."""
        return True


def _same_order(tool: str, sources: Mapping[str, Source]) -> None:
    """Refuse versions that a tool, which compares them as text, orders otherwise."""
    files = [file for file, each in sources.items() if each.kind == "up"]
    if sorted(files) != sorted(files, key=lambda file: (sources[file].version, file)):
        raise FilesInvalid.of(
            "files.invalid",
            [
                Problem(
                    f"the versions have different numbers of digits, and {tool}, which orders "
                    "them as text, runs them in another order than their numbers say",
                    "Give them as many digits each.",
                    file=max(files),
                )
            ],
        )


def layout(tool: str, directory: Path) -> Foreign:
    """Return the layout of a tool for a folder."""
    room = importlib.import_module(f"preflight.files.layouts.{tool.replace('-', '_')}")
    made: Foreign = room.LAYOUT(directory)
    return made


def variants(path: Path, text: bytes) -> Iterator[bytes]:
    """Yield the bytes that a file may have had: with and without a BOM, with either line end.

    Line ends that are mixed are those of the file, where that is still the text that was read.
    """
    with suppress(OSError, ValueError):
        raw = reading.raw(path)
        if raw.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n") == text:
            yield raw
    for each in (text, text.replace(b"\n", b"\r\n")):
        yield each
        yield b"\xef\xbb\xbf" + each


def load(tool: str, directory: Path) -> tuple[Foreign, tuple[Migration, ...]]:
    """Read every migration of another tool's folder, in its order; raises as `reading.load`."""
    for _ in range(3):
        try:
            before = reading.mount(directory)
            os.listdir(directory)  # noqa: PTH208 -- raises for what is no folder of ours to read
            found = _load(tool, directory)
        except OSError as error:
            raise ConfigInvalid(
                "config.migrations_dir",
                f"the migrations directory {directory} cannot be read: {error.strerror}",
                "Set PREFLIGHT_MIGRATIONS_DIR, or mount the files there.",
            ) from error
        if reading.mount(directory) == before:
            return found
    raise reading.ever_changing(directory)


def _sources(rule: Foreign, names: Sequence[str], problems: list[Problem]) -> dict[str, Source]:
    """Return what each file is, by its name; what it cannot be is added to the problems."""
    sources: dict[str, Source] = {}
    for name in names:
        if name != name.encode("utf-8", "replace").decode():
            hint = "Rename it: the history records names, and a database holds text."
            problems.append(Problem(f"the name {name!r} is not UTF-8", hint, file=name))
        elif (source := rule.source(name)) is not None:
            sources[name] = source
        else:
            problems.append(Problem(f"{name!r} is not a file of {rule.tool}", rule.hint, file=name))
    return sources


def _load(tool: str, directory: Path) -> tuple[Foreign, tuple[Migration, ...]]:
    rule = layout(tool, directory)
    names = rule.names()
    if not names:
        raise ConfigInvalid(
            "config.migrations_dir",
            f"the migrations directory {directory} holds no migration of {rule.tool}",
            f"{rule.hint} {reading.nothing(directory)}",
        )
    problems: list[Problem] = []
    sources = _sources(rule, names, problems)
    if rule.labelled:
        sources = _numbered(rule, sources)
    sources = rule.settled(sources)
    parts: dict[str, Source] = {}
    scripts: dict[Source, migrations.Script] = {}
    again: list[Migration] = []
    whose: dict[Source | str, str] = {}  # which file said it first
    for name, source in sources.items():
        if source.kind == REPEAT:
            again += _repeats(rule, name, source, problems)
            _once(whose, source, name, problems)
            continue
        for each, script in _scripts(rule, name, source, problems):
            _once(whose, each, name, problems)
            parts[name if each.kind == source.kind else f"{name} ({each.kind})"] = each
            if script is not None:
                scripts[each] = script
    problems += rule.broken()
    found = reading.assemble(parts, scripts, problems, rule) if parts or not again else ()
    if problems:
        raise FilesInvalid.of("files.invalid", problems)
    return rule, (*found, *sorted(again, key=rule.repeats))


def _once(
    whose: dict[Source | str, str], what: Source | str, name: str, problems: list[Problem]
) -> None:
    """Report a part that two files claim; two forward files are told by their version."""
    first = whose.setdefault(what, name)
    if first != name and (isinstance(what, str) or what.kind != "up"):
        problems.append(
            Problem(
                f"{first} and {name} are the same part of one migration: which is meant?",
                "Remove one of them.",
                file=name,
            )
        )


def _repeats(
    rule: Foreign, name: str, source: Source, problems: list[Problem]
) -> Iterator[Migration]:
    """Yield a file without a version."""
    for _, script in _scripts(rule, name, source, problems):
        if script is None:
            continue
        if not script.transactional:
            problems.append(
                Problem(
                    f"{name} is to run again whenever it changes, and outside a transaction: where "
                    "that stops part-way nobody could go on",
                    "Give what cannot run in a transaction a version.",
                    file=name,
                )
            )
        yield migrations.Migration(0, source.name, script, repeat=True)


def _numbered(rule: Foreign, sources: Mapping[str, Source]) -> dict[str, Source]:
    """Give text versions numbers by their place; the history knows better what is recorded."""
    labels = {each.label for each in sources.values() if each.kind != REPEAT}
    numbers = {
        label: STEP * (place + 1) for place, label in enumerate(sorted(labels, key=rule.order))
    }
    return {
        file: dataclasses.replace(each, version=numbers.get(each.label, 0))
        for file, each in sources.items()
    }


def _scripts(
    rule: Foreign, name: str, source: Source, problems: list[Problem]
) -> Iterator[tuple[Source, migrations.Script | None]]:
    """Yield the parts in one file; what is wrong with it is added to `problems`."""
    whole = reading.Reading(name, source)
    text = whole.text(rule.directory / name)
    sections: list[Section] = []
    if text is not None:
        try:
            sections = list(rule.sections(source, name, text))
        except Wrong as wrong:
            for each in (wrong, *wrong.others):
                at = None if each.at is None else scan.position(text, each.at)
                whole.wrong(str(each), each.hint, at)
    problems.extend(whole.problems)
    if whole.problems or text is None:
        yield source, None
    above = min((section.start for section in sections), default=0)
    for section in sections:
        part = dataclasses.replace(source, kind=section.kind)
        said = reading.Rule(section.unbound, rule.lone, blank=True, hint=rule.outside)
        read = reading.Reading(name, part, said)
        script = read.script(_cut(text or b"", above, section))
        if section.start or section.end is not None:
            body = memoryview(text or b"")[section.start : section.end]
            script = dataclasses.replace(script, checksum=hashlib.sha256(body).hexdigest())
        found = [
            dataclasses.replace(each, hint=f"{each.hint or ''}{rule.edited(part)}" or None)
            for each in read.problems
        ]
        problems.extend(each for each in found if each not in problems)
        yield part, script if not read.problems else None


def _cut(text: bytes, above: int, section: Section) -> bytes:
    """Return a section in its place: below what stands above all of them, and empty lines."""
    between = text.count(b"\n", above, section.start)
    return text[:above] + b"\n" * between + text[section.start : section.end]


def holds(text: bytes, section: Section) -> bool:
    """Tell whether anything stands below a mark: an empty way back is none."""
    return bool(text[section.start : section.end].partition(b"\n")[2].strip())


def ways(text: bytes, found: Sequence[Section]) -> list[Section]:
    """Leave out a way back that is empty, unless there is nothing to take back either."""
    idle = not any(holds(text, each) for each in found)
    return [each for each in found if idle or each.kind == "up" or holds(text, each)]


def lines(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its offset, without its end."""
    at = 0
    while at >= 0:  # not split: the lines of 100 MB take several times that
        end = text.find(b"\n", at)
        yield at, text[at:] if end < 0 else text[at:end]
        at = end + 1 if end >= 0 else -1
