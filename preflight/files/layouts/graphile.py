"""graphile-migrate: `committed/000001-title.sql`, each with the hash of itself and of the last."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.base.errors import Problem
from preflight.files import foreign, reading
from preflight.files.layout import Source

if TYPE_CHECKING:
    from preflight.files.migrations import Migration

_NAME = re.compile(r"(?:committed/)?(?P<name>(?P<version>[0-9]{1,18})(?:-.*)?)\.sql")
_HEADER = re.compile(rb"--! (?P<key>[A-Z][A-Za-z0-9_]*)(?:: *(?P<value>[^\n]*))?\n|\n")
# what the tool replaces is known by its settings alone; where they are not here, what looks like it
_PLACEHOLDER = rb"(?<![:\w]):[A-Z][A-Z0-9_]+\b"
_DATE = (
    rb"(?:HH(?:12|24)?|MI|SS(?:SSS?)?|MS|US|FF[1-6]|[AP]M|TZ[HM]?|OF|TH|I?Y{2,4}|MON(?:TH)?|MM"
    rb"|D{2,3}|DAY|DY|WW|I[DW])+"
)
_BEHIND = rb"(?<=\w):(?!%b\b)[A-Z][A-Z0-9_]+\b" % _DATE  # letters and digits, as in HH24:MI
_ALWAYS = (":DATABASE_NAME", ":DATABASE_OWNER")
_SETTINGS = (".gmrc", ".gmrc.js", ".gmrc.cjs", ".gmrc.mjs")  # the first that is there counts
_KEY = re.compile(r"""["'`](:[A-Z][A-Z0-9_]+)["'`]\]?\s*:""")
_ASIDE = re.compile(
    r"""(?s)(?P<remark>//[^\n]*|/\*.*?\*/)"""
    r"""|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`"""
)
_OWN = re.compile(r"\bplaceholders\b(?P<own>\]?\s*:\s*\{)?")
_ADDED = re.compile(r"""[{,]\s*(?:\.\.\.|\[(?!\s*"))""")  # what is no key that stands there
_EXPORTED = re.compile(r"(?:\bmodule\.exports\s*=|\bexport\s+default\b)\s*\{")
_BROUGHT = re.compile(r"""\.\.\.|\b(?:require|import|from)\b\s*\(?\s*"\.""")
_BRACKET = re.compile(r"(?P<open>[\[({])|[\])}]")
_UNBOUND = re.compile(rb"--!\s*no-transaction\b")


class Graphile(foreign.Foreign):
    """Its history has a row a file, by hash."""

    tool = "graphile"
    hint = "Committed files are called 000001-title.sql, and begin with `--! Previous:`."
    outside = "It takes `--! no-transaction` at the top of the text, and to be committed anew."
    table = foreign.Table(
        "graphile_migrate.migrations",
        {"hash": "text", "previous_hash": "text", "filename": "text"},
        ("filename", "hash"),
    )

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.chain: dict[int, tuple[str, str, str]] = {}  # name, previous and own hash by number

    def broken(self) -> Iterable[Problem]:
        """Tell which file does not follow the one before it: one between is gone, or is another."""
        before, last = "-", "nothing"
        for _, (file, previous, said) in sorted(self.chain.items()):
            if previous != before:
                yield Problem(
                    f"{file} follows another file than the one before it here: its `--! Previous:` "
                    f"is {previous}, and {last} is {before}",
                    "graphile-migrate refuses that, too. Put back what was committed between the "
                    "two; was an old or a wrong directory mounted?",
                    file=file,
                )
            before, last = said, file

    def names(self) -> list[str]:
        """Return the committed files, in the folder or in `committed/` below it."""
        below = self.directory / "committed"
        if not below.is_dir():
            return super().names()
        return [
            *filter(
                self.counts, (f"committed/{each.name}" for each in sorted(below.glob("*.sql")))
            ),
            *(name for name in super().names() if name.startswith(foreign.BESIDE)),
        ]

    def counts(self, file: str) -> bool:
        """Tell whether it is a migration; the tool passes over what begins with no digit."""
        folder, _, name = file.rpartition("/")
        return super().counts(file) and (folder == foreign.BESIDE or name[:1].isdigit())

    def source(self, file: str) -> Source | None:
        """Return what a file is; None when its name says nothing."""
        return self.named(file) if file.startswith("committed/") else super().source(file)

    def named(self, file: str) -> Source | None:
        """Read the number."""
        found = _NAME.fullmatch(file)
        return Source(int(found["version"]), found["name"], "up") if found else None

    def file(self, name: str, kind: str) -> str:
        """Return what a part of a migration is called."""
        committed = kind == "up" and (self.directory / "committed").is_dir()
        return f"committed/{name}.sql" if committed else super().file(name, kind)

    def sections(self, source: Source, file: str, text: bytes) -> Iterable[foreign.Section]:
        """Take the whole file; what its header says of the text must be true."""
        if source.kind != "up":
            return [foreign.Section(source.kind)]
        said, body = _header(text)
        if "hash" not in said:
            raise foreign.Wrong("there is no `--! Hash:`", "Commit it with graphile-migrate.", 0)
        self.chain[source.version] = (file, said.get("previous") or "-", said["hash"])
        if "allowinvalidhash" not in said and said["hash"] != _hash(said.get("previous", ""), body):
            raise foreign.Wrong(
                "it was edited after it was committed: its `--! Hash:` is of another text",
                "Restore it; a change is a migration of its own.",
                0,
            )
        found = self._placeholder.finditer(text, len(text) - len(body))
        foreign.require_literal(found, f"Write the value.{self.edited(source)}")
        return [foreign.Section("up", unbound=_UNBOUND.match(body) is not None)]

    @functools.cached_property
    def _placeholder(self) -> re.Pattern[bytes]:
        """Find what the tool would replace: a name that it knows, whatever stands before it."""
        home = self.directory.parent if self.directory.name == "committed" else self.directory
        names, elsewhere = _named(home.parent)
        guessed = (_PLACEHOLDER, _BEHIND) if elsewhere else (_PLACEHOLDER,)
        known = "|".join(map(re.escape, sorted({*_ALWAYS, *names}))).encode()
        return re.compile(rb"(?:%b)\b|%b" % (known, b"|".join(guessed)))

    def key(self, file: Migration) -> str:
        """Know a file by its number: its title is not in the table."""
        return f"{file.version:06}.sql"

    def order(self, label: str) -> int:
        """Compare the numbers."""
        return super().order(label.removesuffix(".sql"))  # type: ignore[no-any-return]

    def version(self, text: str) -> str:
        """Return the file's name without its title."""
        return re.sub(r"-.*\.sql$", ".sql", text)

    def said(self, rows: Sequence[Sequence[Any]]) -> foreign.Said:
        """Return what is applied, with the hashes."""
        return foreign.Said({self.version(str(name)): str(checksum) for name, checksum in rows})

    def edited(self, source: Source) -> str:
        """Say that the hash in the header is of another text then, and how a file says so."""
        said = " Write `--! AllowInvalidHash` below its `--! Hash:`, which is of the text before."
        return said if source.kind == "up" else ""

    def agrees(self, file: Migration, checksum: str) -> bool:
        """Compare the hash in the header, which was found to be that of the text."""
        return _header(file.up.text)[0].get("hash") == checksum


def _named(home: Path) -> tuple[list[str], bool]:
    """Return the placeholders that the settings name, and whether there may be others."""
    for file in _SETTINGS:
        try:
            said = _ASIDE.sub(_kept, reading.beside(home / file))
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return [], True
        return _KEY.findall(said), file != ".gmrc" and _elsewhere(_ASIDE.sub(_blank, said))
    return [], False


def _kept(aside: re.Match[str]) -> str:
    """Leave a comment out, and a text as it is: `//` in it begins none."""
    return " " if aside["remark"] else aside.group()


def _blank(text: re.Match[str]) -> str:
    """Leave of a text what counts: that it is the key, or that it leads to a file beside."""
    said = text.group()[1:-1]
    return said if said == "placeholders" else '"."' if said.startswith(".") else '""'


def _elsewhere(code: str) -> bool:
    """Tell whether settings that are a program may have names that do not stand in it as keys.

    Where it says its placeholders: what is added to them, or over them. Else what it exports.
    """
    found = list(_OWN.finditer(code))
    for each in found:
        if each["own"] is None:
            return True
        _, end = _level(code, each.end())
        if _ADDED.search(code, each.end() - 1, end) or "..." in _level(code, end)[0]:
            return True
    if found:
        return False
    if (exported := _EXPORTED.search(code)) is not None:
        return "..." in _level(code, exported.end())[0]
    return _BROUGHT.search(code) is not None


def _level(code: str, at: int) -> tuple[str, int]:
    """Return what stands behind a place in no other brackets, and where those around it end."""
    kept, depth = list[str](), 0
    for found in _BRACKET.finditer(code, at):
        if depth == 0:
            kept.append(code[at : found.start()])
        at, depth = found.end(), depth + (1 if found["open"] else -1)
        if depth < 0:
            break
    return " ".join(kept), at


def _header(text: bytes) -> tuple[dict[str, str], bytes]:
    """Return what the header says, and the text below it."""
    said: dict[str, str] = {}
    at = 0
    while (line := _HEADER.match(text, at)) is not None:
        at = line.end()
        if line["key"] is None:
            break  # an empty line ends it
        value = line["value"] or b""
        said[line["key"].decode().lower()] = value.decode("utf-8", "replace").strip()
    return said, text[at:]


def _hash(previous: str, body: bytes) -> str:
    """Return the hash as the tool makes it: of the last one's and the text."""
    before = "" if previous == "-" else previous
    text = (before.encode() + b"\n" + body).strip() + b"\n"
    digest = hashlib.sha1(text, usedforsecurity=False)
    return f"sha1:{digest.hexdigest()}"


LAYOUT = Graphile
