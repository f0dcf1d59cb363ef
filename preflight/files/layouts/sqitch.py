"""sqitch: the order is that of `sqitch.plan`; `deploy/NAME.sql` and `revert/NAME.sql`."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preflight.base.errors import ConfigInvalid, FilesInvalid, Problem
from preflight.files import foreign, reading, scan
from preflight.files.layout import Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

_PROJECT = re.compile(r"(?m)^%project=(.*)$")
_WAYS = {"deploy": "up", "revert": "rollback"}
_CONF = "sqitch.conf"
_CORE, _ENGINE = ("core", ""), ("engine", "pg")
_SECTION = re.compile(r'\[(?P<name>[^\s\[\]"]+)(?:[ \t]*"(?P<sub>(?:[^"\\\n]|\\.)*)")?\]')
_ENTRY = re.compile(r"(?P<key>[^\[=\n#;]+?)[ \t]*(?:=(?P<value>(?:\\\r?\n|[^\n])*))?(?=\n|\Z)")
_PIECE = re.compile(
    r'"(?P<quoted>(?:[^"\\]|\\.)*)"|[#;].*|\\\r?\n|\\(?P<escaped>.)|(?P<plain>[^"#;\\]+)'
)
_BESIDE = {  # what a key names where it is not said: below what, and how it is called there
    "plan_file": ("top_dir", "sqitch.plan"),
    "deploy_dir": ("top_dir", "deploy"),
    "revert_dir": ("top_dir", "revert"),
    "reworked_dir": ("top_dir", "."),
    "reworked_deploy_dir": ("reworked_dir", "deploy"),
    "reworked_revert_dir": ("reworked_dir", "revert"),
}
_READ = ("plan_file", "deploy_dir", "revert_dir")
_REWORKED = ("reworked_deploy_dir", "reworked_revert_dir")
_VARIABLE = re.compile(
    rb"(?<!:):(?P<quote>['\"]?)(?P<name>[\w\x80-\xff]+)(?P=quote)(?![\w\x80-\xff])"
)


_REQUIRED = re.compile(r"[ \t]*[+-]?[ \t]*[^\s\[]+[ \t]+\[([^\]]*)\]")  # then comes when, and who
_ID = re.compile(r"[0-9a-f]{40}")


class Change(NamedTuple):
    """A line of the plan: one that is worked over stands there again, under the same name."""

    name: str
    label: str  # which is its own, whatever is added to the plan
    script: str  # what its scripts are called, which change their names when it is worked over


class Settings:
    """What sqitch.conf says: a target's word comes before its engine's, that before the core's."""

    def __init__(self, home: Path, text: str) -> None:
        self.home = home
        self.sections = _sections(text)
        target = self._in(_CORE).get("target") or self._in(_ENGINE).get("target") or ""
        self.order = (("target", target), _ENGINE, _CORE)

    def _in(self, section: tuple[str, str]) -> dict[str, str]:
        return {key.lower(): value for key, value in self.sections.get(section, {}).items()}

    def said(self, key: str) -> str:
        """Return a value; nothing where there is none."""
        return next(filter(None, (self._in(section).get(key) for section in self.order)), "")

    def place(self, key: str) -> Path:
        """Return what a key names, said or not."""
        if value := self.said(key):
            return self.home / value
        if key not in _BESIDE:
            return self.home
        above, name = _BESIDE[key]
        return self.place(above) / name

    def speaker(self, key: str) -> str:
        """Return the key that says what another one names."""
        while key in _BESIDE and not self.said(key):
            key = _BESIDE[key][0]
        return key

    def variables(self, kind: str) -> set[str]:
        """Return the names that psql would replace in the scripts of a kind."""
        ways = [_CORE, ("deploy", ""), *self.order[:2]]
        ways += [("revert", "")] if kind == "rollback" else []
        places = [(name, f"{sub}.variables".lstrip(".")) for name, sub in ways]
        return {name for place in places for name in self.sections.get(place, {})}


class Sqitch(foreign.Foreign):
    """Its history has a row a change, by project, with the SHA-1 of the script."""

    tool = "sqitch"
    hint = "Changes stand in sqitch.plan, their scripts in deploy/ and revert/."
    lone = True
    labelled = True
    checked = True
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
        self.changes: list[Change] = []
        self.labels: dict[str, str] = {}  # by the names of their scripts
        self.places: dict[str, int] = {}
        self.wrong: Exception | None = None
        self.unmet: list[Problem] = []
        try:
            plan = reading.beside(directory / "sqitch.plan")
        except (OSError, ValueError) as error:
            self.wrong = error
            return
        found = _PROJECT.search(plan)
        self.project = found[1].strip() if found else ""
        self.unmet = list(_unmet(plan, self.project))
        self.changes = _changes(plan, directory / "deploy")
        self.labels = {each.script: each.label for each in self.changes}
        self.places = {each.label: place for place, each in enumerate(self.changes)}

    def names(self) -> list[str]:
        """Return the scripts of the plan, and the companions beside them; raises ConfigInvalid."""
        if self.wrong is not None:
            raise ConfigInvalid(
                "config.migrations_dir",
                f"{self.directory}/sqitch.plan cannot be read: {self.wrong}",
                "Set PREFLIGHT_MIGRATIONS_DIR to the folder that holds it.",
            ) from self.wrong
        found = [
            f"{way}/{each.script}.sql"
            for each in self.changes
            for way in _WAYS
            if way == "deploy" or (self.directory / way / f"{each.script}.sql").exists()
        ]
        return found + [name for name in super().names() if name.startswith(foreign.BESIDE)]

    def broken(self) -> Iterable[Problem]:
        """Return what the plan requires and does not have."""
        return self.unmet

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        way, _, script = file.partition("/")
        return super().source(file) if way == foreign.BESIDE else self._script(way, script)

    def settled(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Refuse a folder of which sqitch would read other files than are read here."""
        if (wrong := self._elsewhere()) is not None:
            hint = "Give the plan and the scripts their usual names and places, and take it out."
            raise FilesInvalid.of("files.invalid", [Problem(wrong, hint, file=_CONF)])
        return super().settled(sources)

    def _elsewhere(self) -> str | None:
        """Say which word of sqitch.conf leads to other files; None where it leads here."""
        try:
            settings = self._settings
        except (OSError, ValueError) as error:
            return f"{_CONF} cannot be read: {error}"
        if settings is None:
            return None
        if (extension := settings.said("extension")) not in {"", "sql"}:
            return f"{_CONF} says extension = {extension}, and scripts that end with .sql are read"
        reworked = any("@" in each.script for each in self.changes)
        for key in (*_READ, *(_REWORKED if reworked else ())):
            name = _BESIDE[key][1]
            if settings.place(key).resolve() != (self.directory / name).resolve():
                by = settings.speaker(key)
                return f"{_CONF} says {by} = {settings.said(by)}, and {name} beside it is read here"
        return None

    @functools.cached_property
    def _settings(self) -> Settings | None:
        """What sqitch.conf says of this folder: the one in it, or one above whose plan is here."""
        with suppress(FileNotFoundError):
            return Settings(self.directory, reading.beside(self.directory / _CONF))
        plan = (self.directory / "sqitch.plan").resolve()
        for home in self.directory.absolute().parents:
            with suppress(OSError, ValueError):
                above = Settings(home, reading.beside(home / _CONF))
                return above if above.place("plan_file").resolve() == plan else None
        return None

    def sections(self, source: Source, _file: str, text: bytes) -> Iterable[foreign.Section]:
        """Take the whole script; a variable that sqitch would hand to psql may not stand in it."""
        known = self._settings.variables(source.kind) if self._settings else set()
        if known and source.kind in _WAYS.values():
            for at, name in _used(text, known):
                raise foreign.Wrong(
                    f"the variable {name} of {_CONF} is not replaced here",
                    f"Write the value.{self.edited(source)}",
                    at,
                )
        return [foreign.Section(source.kind)]

    def named(self, file: str) -> Source | None:
        """Return what a script of deploy/ is."""
        way, _, script = file.partition("/")
        return self._script(way, script)

    def _script(self, way: str, script: str) -> Source | None:
        label = self.labels.get(script.removesuffix(".sql"))
        return Source(0, label, _WAYS[way], label) if label else None

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        ways = {kind: way for way, kind in _WAYS.items()}
        return f"{ways[kind]}/{name}.sql" if kind in ways else super().file(name, kind)

    def way_back(self, file: Migration) -> str:
        """Return the script in revert/ that is called as the one in deploy/."""
        return file.up.file.replace("deploy/", "revert/", 1)

    def order(self, label: str) -> int:
        """Return the place in the plan."""
        return self.places.get(label, -1)

    def recorded(self, labels: Sequence[str]) -> dict[str, str]:
        """Return what is recorded under the names of its scripts: `NAME@TAG` for older ones."""
        found: dict[str, str] = {}
        for name in {label.partition("@")[0] for label in labels if "@" in label}:
            mine = [each.label for each in self.changes if each.name == name]
            theirs = [label for label in labels if re.split("[@:]", label)[0] == name]
            found |= zip(mine, theirs, strict=False)
        return found

    def key(self, file: Migration) -> str:
        """Know a change by its place in the plan."""
        return self.labels[file.up.file.partition("/")[2].removesuffix(".sql")]

    def newer(self, applied: Sequence[str], files: Sequence[Migration]) -> Sequence[str]:
        """Return what was deployed after the last change of the plan."""
        here = {self.key(file) for file in files}
        last = max((at for at, key in enumerate(applied) if key in here), default=-1)
        return applied[last + 1 :]

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """Return what is deployed of this project; a change that was reworked has several rows."""
        known = (self.project,) if self.project is not None else {row[2] for row in rows}
        mine = sorted((row for row in rows if row[2] in known), key=lambda row: row[3])
        names = [row[0] for row in mine]
        applied = {label: row[1] for label, row in zip(_labels(names), mine, strict=True)}
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


def _sections(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return what a file in git's format says, by section; keys are as they are written."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    section, at = ("", ""), 0
    while at < len(text):
        if (head := _SECTION.match(text, at)) is not None:
            name, _, sub = head["name"].lower().partition(".")
            section, at = (name, re.sub(r"\\(.)", r"\1", head["sub"] or sub)), head.end()
        elif (entry := _ENTRY.match(text, at)) is not None and not text[at].isspace():
            found.setdefault(section, {})[entry["key"]] = _value(entry["value"] or "")
            at = entry.end()
        elif text[at] in "#;":
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        else:
            at += 1
    return found


def _value(said: str) -> str:
    """Return a value without its quotes, and without what is said about it."""
    pieces = (
        re.sub(r"\\(.)", r"\1", each["quoted"])
        if each["quoted"] is not None
        else each["escaped"] or each["plain"] or ""
        for each in _PIECE.finditer(said)
    )
    return "".join(pieces).strip()


def _used(text: bytes, known: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield where a script names a variable of psql's, outside comments and texts."""
    asides = scan.asides(text, len(text))
    start, end = next(asides, (len(text), len(text)))
    for found in _VARIABLE.finditer(text):
        while end <= found.start():
            start, end = next(asides, (len(text), len(text) + 1))
        if found.start() <= start and found["name"].decode("utf-8", "replace") in known:
            yield found.start(), found["name"].decode()


def _changes(plan: str, deploy: Path) -> list[Change]:
    """Return each change of a plan.

    One that is worked over later keeps its old scripts under the name of a tag between: as sqitch
    looks for them, from the last one on.
    """
    names: list[str] = []
    tags: dict[int, list[str]] = {}  # by the place of their change
    for line in plan.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0].startswith("%"):
            continue
        if words[0].startswith("@"):
            tags.setdefault(len(names) - 1, []).append(words[0])
        else:
            names.append(words[0].lstrip("+"))
    scripts = list(names)
    again: dict[str, int] = {}  # where a name comes next
    for place, name in reversed(list(enumerate(names))):
        between = range(again.get(name, place) - 1, place - 1, -1)
        if files := [name + tag for at in between for tag in tags.get(at, ())]:
            there = (file for file in files if (deploy / f"{file}.sql").exists())
            scripts[place] = next(there, files[0])
        again[name] = place
    return list(map(Change, names, _labels(names), scripts))


def _unmet(plan: str, project: str) -> Iterator[Problem]:
    """Yield each change or tag that a line requires and that stands nowhere above it.

    What is another project's nobody knows here, nor a change by its id.
    """
    known: set[str] = set()
    for number, line in enumerate(plan.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words or words[0].startswith("%"):
            continue
        required = _REQUIRED.match(line)
        for said in required[1].split() if required else ():
            wanted = said.removeprefix(f"{project}:")
            name, at, tag = wanted.partition("@")
            if said[0] == "!" or set(":^~") & set(wanted) or _ID.fullmatch(wanted):
                continue
            if (name and name not in known) or (at and f"@{tag}" not in known):
                yield Problem(
                    f"{words[0]} requires {said}, which stands nowhere above it in the plan",
                    "sqitch refuses that, too. Put the change back, or correct its name.",
                    file="sqitch.plan",
                    line=number,
                )
        known.add(words[0].lstrip("+"))


def _labels(names: Sequence[str]) -> list[str]:
    """Tell changes of one name apart by their order: `a`, `a:2`. No name has a colon in it."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return found


LAYOUT = Sqitch
