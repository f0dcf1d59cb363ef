"""Migration files as frozen values: names, companions, directives, checksums."""

from __future__ import annotations

import codecs
import dataclasses
import errno
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from preflight.base.errors import ConfigInvalid, FilesInvalid, Problem
from preflight.files import kinds, migrations, scan
from preflight.files.layout import NATIVE, Layout, Source

MAX_BYTES = 1_000_000_000  # a server refuses a message above 1 GiB and drops the connection

_MARKS = {  # also what looks like one and is none: below it everything would run
    "dbmate": re.compile(
        rb"(?m)^--\s*migrate:(?:up|down)(?:\s|$)"
        rb"|^[ \t]*--[ \t]*(?i:migrate[ \t]*:[ \t]*(?:up|down))(?:[ \t]+\w+:\w+)*[ \t\r]*$"
    ),
    "goose": re.compile(rb"(?mi)^[ \t]*--[ \t-]*\+goose[ \t]*(?:up|down)[ \t\r-]*$"),
    "graphile": re.compile(rb"(?m)\A--! (?:Previous|Hash|AllowInvalidHash)\b"),
    # these have no reader here
    "tern": re.compile(rb"(?i)---- create above / drop below ----"),
    "sql-migrate": re.compile(rb"(?mi)^[ \t]*--[ \t]*\+migrate[ \t]*down\b"),
    "node-pg-migrate": re.compile(rb"(?mi)^[ \t]*--[ \t-]*down[ \t]+migration[ \t\r-]*$"),
    "MyBatis": re.compile(rb"(?mi)^[ \t]*--[ \t]*//[^\n]*@undo\b"),
    "rambler": re.compile(rb"(?mi)^[ \t]*--[ \t]*rambler[ \t]*down\b"),
    "shmig": re.compile(rb"(?mi)^[ \t]*--[ \t]*=+[ \t]*down[ \t]*=+[ \t\r]*$"),
    "Atlas": re.compile(rb"(?m)^--[ \t]*atlas:(?:txtar|checkpoint)\b"),
    "Liquibase": re.compile(  # above all but comments
        rb"(?mi)\A(?:[ \t]*+(?:--[^\n]*+|)?+\n)*?"
        rb"[ \t]*+--[ \t]*+liquibase[ \t]*+formatted(?:[ \t]*+sql\b|[ \t\r]*+$)"
    ),
}
# by how they begin, whatever comes behind: marks only where something stands between the two
_PAIRS = {
    "node-pg-migrate": tuple(
        re.compile(rb"(?mi)^[ \t]*--[ \t-]*%b[ \t]+migration" % way) for way in (b"down", b"up")
    ),
}
_UP = _PAIRS["node-pg-migrate"][1]
_SIGNS = (  # small letters
    b"migrat", b"goose", b"drop below", b"@undo", b"rambler", b"liquibase", b"atlas:"
)  # fmt: skip
_SIGN = re.compile(rb"down[ \t]*=")
# what heads a way back in the files of any tool: a comment of no other word, with or without a sign
_BACK = re.compile(
    rb"(?mi)^[ \t]*+(?P<head>--[-=*#/<\[{ \t]*+(?P<sign>\+\w*[ \t]*|[@!])?(?:downs?|undo|rollback)"
    rb"(?:[-=*#:>\]} \t]*+|(?P<tail>(?<=down)[ \t]+migration\b[^\n]*+)))$"
)
_BACKWARD = (b"down", b"undo", b"rollback")
_UNDOES = re.compile(rb"(?is)(?:drop|delete|truncate|revoke)\b|alter\b.*\b(?:drop|rename)\b")
# a way back that is a comment, too, or a word that says there is none
_REMARK = re.compile(
    rb"(?mi);|--[-* \t]*(?:drop|alter|delete|truncate|revoke|create|insert|update|grant|no|none|not"
    rb"|n/a)\b"
)
# sqlx's, whose plain names are ours, too
UNBOUND = re.compile(rb"-- no-transaction[ \t]*(?:\n|\Z)")
# of Alembic and Django, Rails, Knex and TypeORM, Ecto, Laravel, EF Core, goose, Liquibase
_NO_SQL = re.compile(r"[A-Za-z0-9][ -~]*\.(?:py|rb|[cm]?js|ts|exs|php|cs|go|java|kt|xml|ya?ml)")
_COUNTED = re.compile(r"[VM]?[0-9]")  # settings and environments lie beside them
_PART = 1 << 20
_DURATION = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>ms|s|min|h)?")
_LONGEST_MS = 2**31 - 1  # that a server takes
PROBLEMS_MAX = 50  # of one file: what follows is most often more of the same
DIRECTIVES_MAX = 1000
_MILLISECONDS = {None: 1, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000}


def kept(version: int, name: str, kind: str, text: bytes) -> migrations.Script:
    """Return a script whose text is at hand, as the history keeps it; raises FilesInvalid.

    Whether it may do nothing was judged when it ran: in another tool's folder it may.
    """
    reading = Reading(NATIVE.file(name, kind), Source(version, name, kind), Rule(blank=True))
    found = reading.script(text)
    if reading.problems:
        raise FilesInvalid.of("files.invalid", reading.problems)
    return found


class Changed(Exception):
    """The mount was swapped while it was read."""


def load(
    directory: Path, layout: Layout = NATIVE, marks: dict[str, str] | None = None
) -> tuple[migrations.Migration, ...]:
    """Read every migration, in order of version; `marks` gets which file has what tool's marks.

    Raises ConfigInvalid for a directory that is missing or empty (a wrong mount must not look like
    success), FilesInvalid with everything that is wrong with any file.
    """
    for _ in range(3):
        try:
            return _load(directory, layout, marks)
        except Changed:
            continue
    raise ever_changing(directory)


def ever_changing(directory: Path) -> ConfigInvalid:
    """Return the failure for a mount that is swapped again and again."""
    return ConfigInvalid(
        "config.migrations_dir", f"{directory} keeps changing while it is read", "Run again."
    )


def nothing(directory: Path) -> str:
    """Say what to do about a folder without migrations: those of its tool may be no SQL."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(directory)  # noqa: PTH208 -- names are all that is needed
    found = min(
        filter(_NO_SQL.fullmatch, names),
        key=lambda each: (not _COUNTED.match(each), each),
        default=None,
    )
    hint = "Is the volume mounted, and at the right place?"
    if found is not None:
        hint += f" If {found} is a migration, put its tool behind this gate: `wrap`."
    return hint


def checks(path: Path) -> migrations.Script:
    """Return a verify file that belongs to no migration; raises FilesInvalid."""
    problems: list[Problem] = []
    script = _script(path.parent, path.name, Source(0, path.stem, "verify"), problems, None)
    if script is None:
        raise FilesInvalid.of("files.invalid", problems)
    return script


def _load(
    directory: Path, layout: Layout, marks: dict[str, str] | None
) -> tuple[migrations.Migration, ...]:
    try:
        before = mount(directory)
        names = sorted(name for name in os.listdir(directory) if layout.counts(name))  # noqa: PTH208
    except OSError as error:
        raise ConfigInvalid(
            "config.migrations_dir",
            f"the migrations directory {directory} cannot be read: {error.strerror}",
            "Set PREFLIGHT_MIGRATIONS_DIR, or mount the files there.",
        ) from error
    if not names:
        raise ConfigInvalid(
            "config.migrations_dir",
            f"the migrations directory {directory} holds no .sql file",
            nothing(directory),
        )
    problems: list[Problem] = []
    sources = {name: source for name in names if (source := layout.source(name)) is not None}
    scripts: dict[Source, migrations.Script] = {}
    forward = {source for source in sources.values() if source.kind == "up"}
    for name in names:
        source = sources.get(name)
        if source is None:
            wrong = f"{name!r} is not a migration's name"
            problems.append(Problem(wrong, layout.hint, file=name))
            continue
        # one that is nobody's companion may be meant as a migration: that alone is told of it
        told = problems if dataclasses.replace(source, kind="up") in forward else []
        if (script := _script(directory, name, source, told, marks)) is not None:
            scripts[source] = script
    if mount(directory) != before:
        raise Changed
    found = assemble(sources, scripts, problems, layout)
    if problems:
        raise FilesInvalid.of("files.invalid", problems)
    return found


def _small(text: bytes) -> Iterator[bytes]:
    """Yield a text in small letters, in parts that overlap by a line's worth."""
    for at in range(0, len(text), _PART):
        yield text[at : at + _PART + 200].lower()


def _signed(part: bytes) -> bool:
    return any(sign in part for sign in _SIGNS) or _SIGN.search(part) is not None


def marked(text: bytes) -> str | None:
    """Return the tool whose marks a file carries, as comments.

    In a text or a block comment they are what somebody writes about: a tool that cuts the file
    there, as most do, would leave a part that never ends.
    """
    if not (text.startswith(b"--! ") or any(map(_signed, _small(text)))):
        return None  # the common case, at the speed of memory
    if (tool := _whose(text)) is None:
        return None
    first = next(scan.statements(text), None)
    above = _without_texts(text[: first.start]) if first else b""  # where most tools have theirs
    return tool if _whose(above) == tool else _whose(_uttered(text))


def _whose(text: bytes) -> str | None:
    found = (tool for tool, mark in _MARKS.items() if mark.search(text))
    pairs = (tool for tool, pair in _PAIRS.items() if _apart(text, *pair))
    return next(itertools.chain(found, pairs), None)


def _uttered(text: bytes) -> bytes:
    """Return a script without what is in its texts, block comments and rows, in the same lines.

    What stands where a mark may be is in it, and a word for every statement that holds none.
    """
    kept, at, sound = list[bytes](), 0, True
    for statement in scan.items(text):
        if not isinstance(statement, scan.Statement):
            sound = sound and isinstance(statement, scan.Directive)
            continue
        said = statement.text(text)
        if not any(map(_signed, _small(said))):
            said = b"0;\n"  # it may be as long as the file
        kept.append(_without_texts(text[at : statement.start]))
        kept.append(_without_texts(said, escaped=statement.escaped))
        at = statement.data[1] if statement.data else statement.end
        kept += [b"\n"] if statement.data else []
    kept.append(_without_texts(text[at:]) if sound else text[at:])
    return b"".join(kept)


def _without_texts(piece: bytes, *, escaped: bool = False) -> bytes:
    kept, at = list[bytes](), 0
    for start, end in scan.asides(piece, len(piece), escaped=escaped):
        if not piece.startswith(b"--", start):
            kept += [piece[at:start], b"''"]
            at = end
    return b"".join([*kept, piece[at:]])


def _apart(text: bytes, *marks: re.Pattern[bytes]) -> bool:
    """Tell whether marks are there, and more than comments stands between the first of each."""
    places = sorted(found.start() for mark in marks if (found := mark.search(text)) is not None)
    return len(places) == len(marks) and any(
        not isinstance(item, scan.Directive) for item in scan.items(text[places[0] : places[-1]])
    )


def undivided(tool: str, text: bytes) -> bool:
    """Tell whether a tool's only mark in a text heads all of it, so that no other way is below."""
    return [mark.start() for mark in _MARKS[tool].finditer(text)] == [0]


def turned(file: migrations.Migration) -> int | None:
    """Return where a comment heads a way back that would run behind the way forward.

    One of `+word down` always; another only between statements, not above a way back that is a
    comment, too, and above one that takes something away; for "down migration" that may stand
    anywhere in the file, and an empty way forward above, unless there is a rollback file.
    """
    script = file.up
    text, end = script.text, 0
    if not any(word in part for part in _small(text) for word in _BACKWARD):
        return None
    heads = {found.start("head"): found for found in _BACK.finditer(text)}
    tails = file.rollback is None and any(head["tail"] for head in heads.values())
    takes = tails and any(_UNDOES.match(each.text(text)) for each in script.statements())
    for statement in script.statements() if heads else ():
        gap = text[end : statement.start]
        for at, after in scan.asides(gap, len(gap)):
            head = heads.get(end + at)
            if head is None:
                continue
            undoes = (head["tail"] and takes) or _UNDOES.match(statement.read(text))
            back = undoes and not _REMARK.search(gap, after)
            begun = end or (file.rollback is None and _UP.search(text, 0, end + at))
            if (head["sign"] or b"").startswith(b"+") or (begun and back):
                return end + at
        end = statement.data[1] if statement.data else statement.end
    return None


def mount(directory: Path) -> str | None:
    """Return what a ConfigMap or Secret mount points at now; it is swapped whole."""
    try:
        return str((directory / "..data").readlink())
    except OSError:
        return None


def _script(
    directory: Path,
    name: str,
    source: Source,
    problems: list[Problem],
    marks: dict[str, str] | None,
) -> migrations.Script | None:
    read = Reading(name, source)
    text = read.text(directory / name)
    if text is not None and marks is not None and (tool := marked(text)):
        marks[name] = tool
    if text is not None and source.kind in ("up", "rollback") and UNBOUND.match(text):
        read.rule = Rule(unbound=True)
    script = read.script(text) if text is not None else None
    problems.extend(read.problems)
    return script if not read.problems else None


@dataclass(slots=True)
class _Found:
    """What one script holds, as far as more than the one statement decides about it."""

    first: scan.Statement | None = None
    last: scan.Statement | None = None
    count: int = 0
    directives: list[scan.Directive] = field(default_factory=list)
    control: list[scan.Statement] = field(default_factory=list)
    alone: list[scan.Statement] = field(default_factory=list)  # refused inside a transaction
    semicolons: list[scan.Statement] = field(default_factory=list)  # that have some in them
    marked: bool = False  # by another tool's mark
    leading: bool = True  # so far nothing that a transaction's level could not be said behind
    opening: list[scan.Statement] = field(default_factory=list)  # of SET TRANSACTION

    def wrapped(self, text: bytes, *, blank: bool) -> bool:
        """Tell whether all of it stands between one BEGIN and one COMMIT; nothing, where it may."""
        return (
            self.first is not None
            and self.last is not None
            and self.control == [self.first, self.last]
            and (blank or self.count > 2)  # noqa: PLR2004 -- BEGIN, COMMIT and something to run
            and kinds.opens_transaction(self.first.text(text))
            and kinds.closes_transaction(self.last.text(text))
        )

    def isolation(self, text: bytes, *, wrapped: bool) -> str:
        """Return the level that its transaction is to have; nothing where that is the usual one."""
        saying = [self.first, *self.opening] if wrapped and self.first else self.opening
        said = [found for each in saying if (found := kinds.modes(each.read(text)))]
        level = next((each.isolation for each in reversed(said) if each.isolation), "")
        return "" if level.endswith("COMMITTED") else level


@dataclass(frozen=True, slots=True)
class Rule:
    """What a layout allows that ours does not, and what its own marks say of one script."""

    unbound: bool = False  # marked by the other tool as not to run in a transaction
    lone: bool = False  # so it is where nothing in it may run in one
    blank: bool = False  # a file without a statement is nothing to do
    hint: str = migrations.OUTSIDE  # how it says that it runs in no transaction


OWN = Rule()


def beside(path: Path) -> str:
    """Return the text of a small file that stands beside migrations; raises OSError, ValueError."""
    return raw(path).decode().replace("\r\n", "\n")


def raw(path: Path) -> bytes:
    """Return the bytes of a plain file, whatever they are; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hang
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


class Reading:
    """What is found while one file is read."""

    def __init__(self, name: str, source: Source, rule: Rule = OWN) -> None:
        self.name = name
        self.source = source
        self.kind = source.kind
        self.rule = rule
        self.problems: list[Problem] = []

    def wrong(
        self, message: str, hint: str | None = None, at: tuple[int, int] | None = None
    ) -> None:
        """Add a problem, at a line and column if there is one."""
        line, column = at or (None, None)
        where = f"{self.name}:{line}:{column}: " if at else f"{self.name}: "
        self.problems.append(
            Problem(
                where + message,
                hint,
                migration=self.source.name,
                version=self.source.version,
                file=self.name,
                line=line,
                column=column,
            )
        )

    def text(self, path: Path) -> bytes | None:
        """Return the file's text; None when it cannot be used at all."""
        try:
            text = self._read(path)
        except OSError as error:
            dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
            self.wrong("a link to nothing" if dangling else f"cannot be read: {error.strerror}")
            return None
        if text is None:
            return None
        if text.startswith((b"\xff\xfe", b"\xfe\xff")):
            self.wrong("UTF-16, not UTF-8", "Save it as UTF-8.", (1, 1))
            return None
        text = text.removeprefix(codecs.BOM_UTF8)
        if b"\r\n" in text:
            text = text.replace(b"\r\n", b"\n")
        nul = text.find(b"\0")
        if nul >= 0:
            self.wrong(
                "a NUL byte: PostgreSQL would silently stop reading here",
                "Remove it.",
                scan.position(text, nul),
            )
        bad = _not_utf8(text)
        if bad is not None:
            self.wrong(
                f"byte 0x{text[bad]:02x} is not UTF-8",
                "Save it as UTF-8.",
                scan.position(text, bad),
            )
        return None if self.problems else text

    def _read(self, path: Path) -> bytes | None:
        # O_NONBLOCK: a FIFO without a writer must not hang us
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                self.wrong("not a regular file", "A migration is a plain text file.")
            elif facts.st_size > MAX_BYTES:
                self.wrong("larger than 1 GB", "Load data of this size with pg_restore or COPY.")
            else:
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    return file.read()
        finally:
            os.close(descriptor)
        return None

    def script(self, text: bytes) -> migrations.Script:
        """Return the script; what is wrong with it is in `problems`."""
        found, sound = _Found(marked=self.rule.unbound), True
        restricted: list[scan.Defect] = []
        for item in scan.items(text, unbound=self.rule.unbound):
            if isinstance(item, scan.Statement):
                found.first, found.last = found.first or item, item
                found.count += 1
                self._sort(text, item, found)
            elif isinstance(item, scan.Directive):
                found.directives.append(item)
            elif item.message in scan.RESTRICTS:
                restricted.append(item)
            else:
                sound = False
                self.wrong(item.message, item.hint, scan.position(text, item.start))
            wrong = len(self.problems) + len(restricted)
            if wrong >= PROBLEMS_MAX or len(found.directives) > DIRECTIVES_MAX:
                self.wrong("so much is wrong that the rest of the file was not looked at")
                break
        said = self._directives(text, found)
        if self._outside(text, found) and "transactional" not in said:
            said |= {"transactional": False, "elsewhere": True}
        if sound and found.first is None and self._needs_one(text):
            self.wrong(
                "holds no statement",
                "Write SQL, or a comment that says why there is nothing to do; or remove the file."
                if self.kind == "up"
                else "Write SQL, or remove the file.",
            )
        if said.get("transactional", True):
            wrapped = said["wrapped"] = self._inside_transaction(text, found)
            said["isolation"] = found.isolation(text, wrapped=wrapped)
            said["opening"] = tuple(found.opening)
        inside = said.get("transactional", True)
        for statement in found.control:
            self._at(
                text,
                statement,
                "transaction control inside a migration",
                "Leave it out: the runner opens and closes the transaction."
                if inside
                else "Leave it out: each statement is committed alone here. Put what belongs "
                "together into one DO block, or into a file of its own with a transaction.",
            )
        self._restricted(text, restricted)
        checksum = hashlib.sha256(text).hexdigest()
        of = {"migration": self.source.name, "version": self.source.version}
        said |= {"outside": self.rule.hint, "semicolons": tuple(found.semicolons)}
        return migrations.Script(self.name, text, checksum, **of, **said)  # type: ignore[arg-type]

    def _needs_one(self, text: bytes) -> bool:
        """Tell whether a script without a statement is a mistake: nothing says that it is none."""
        if self.kind in ("verify", "export"):
            return True
        return not self.rule.blank and not text.strip(b" \t\r\n\f\v;")

    def _outside(self, text: bytes, found: _Found) -> bool:
        """Tell whether another tool would run this outside a transaction, and it opens none."""
        if found.marked:
            return not found.wrapped(text, blank=self.rule.blank)
        if not self.rule.lone or not 0 < found.count == len(found.alone):
            return False
        found.alone.clear()
        return True

    def _restricted(self, text: bytes, lines: list[scan.Defect]) -> None:
        """Report the lines by which pg_dump keeps psql from obeying what a dump holds."""
        alone = not self.problems
        for line in lines:
            hint = (
                "These lines are all that is in the way of this dump: remove \\restrict and "
                "\\unrestrict."
                if alone
                else line.hint
            )
            self.wrong(line.message, hint, scan.position(text, line.start))

    def _sort(self, text: bytes, statement: scan.Statement, found: _Found) -> None:
        """Report a statement that may not stand in such a file; keep those that depend on more."""
        if statement.semicolons:
            found.semicolons.append(statement)
        if self.kind in ("verify", "export"):
            if not kinds.reads_only(statement.read(text)):
                article = "an" if self.kind == "export" else "a"
                what = f"{article} {self.kind} file holds queries only"
                self._at(text, statement, what, "Use SELECT.")
            return
        if found.leading:
            found.leading = _leads(text, statement, found)
        if scan.first_word(text, statement.start) in kinds.NOTABLE:
            body = statement.read(text)
            if kinds.is_control(body):
                found.control.append(statement)
            elif kinds.outside_transaction(body):
                found.alone.append(statement)

    def _inside_transaction(self, text: bytes, found: _Found) -> bool:
        """Report what a transaction refuses; return whether BEGIN and COMMIT wrap the file."""
        for statement in found.alone:
            self._at(
                text,
                statement,
                "cannot run inside a transaction",
                kinds.DISCARDS if kinds.discards_all(statement.read(text)) else self.rule.hint,
            )
        wrapped = found.wrapped(text, blank=self.rule.blank)
        if wrapped:
            found.control.clear()
        return wrapped

    def _directives(self, text: bytes, found: _Found) -> dict[str, object]:
        said: dict[str, object] = {}
        doubtful: list[tuple[str, str, int, int]] = []
        first = len(text) if found.first is None else found.first.start
        if len(found.directives) > DIRECTIVES_MAX:
            self.wrong(f"more than {DIRECTIVES_MAX:,} directives", "Say each once.")
        places = scan.places(text, (directive.start for directive in found.directives))
        for directive, at in zip(found.directives, places, strict=True):
            if len(self.problems) >= PROBLEMS_MAX:
                break
            word, _, value = directive.text.partition(" ")
            if directive.start > first:
                self.wrong(
                    "a directive after the first statement has no effect",
                    "Move it to the top of the file.",
                    at,
                )
            elif self.kind not in ("up", "rollback"):
                self.wrong("directives belong into forward and rollback files", None, at)
            elif directive.text == "no-transaction":
                said["transactional"] = False
            elif directive.text == "breaking":
                said["breaking"] = self.kind == "up"  # it speaks of what the forward file made
            elif word in ("lock-timeout", "statement-timeout", "max-lock"):
                doubts = self._duration(said, directive.text, word, value.strip(), at)
                doubtful += [(*doubt, *at) for doubt in doubts]
            else:
                self.wrong(
                    f"unknown directive {directive.text!r}",
                    "Known: no-transaction, lock-timeout 5s, statement-timeout 30s, max-lock 10s, "
                    "breaking.",
                    at,
                )
        said["doubtful"] = tuple(doubtful)
        return said

    def _duration(
        self, said: dict[str, object], text: str, word: str, value: str, at: tuple[int, int]
    ) -> list[tuple[str, str]]:
        """Keep what a directive says of time; return why it can hardly be meant, with hints."""
        duration = _DURATION.fullmatch(value)
        # beside a variable in seconds a bare number would be read as seconds
        bare = duration is not None and not duration["unit"] and int(duration["number"]) > 0
        if duration is None or (bare and word == "max-lock"):
            self.wrong(f"{value!r} is not a duration", migrations.DURATION, at)
            return []
        milliseconds = int(duration["number"]) * _MILLISECONDS[duration["unit"]]
        key = word.replace("-", "_") + "_ms"
        doubts = []
        if bare:
            doubts.append((f"{text!r} says no unit, and is {value} ms", migrations.DURATION))
        if milliseconds > _LONGEST_MS:
            doubts.append((f"{text!r} does not fit", "The longest is 596h."))
        if key in said:
            doubts.append((f"{text!r} is said behind another {word}", "Say each once."))
        said[key] = min(milliseconds, _LONGEST_MS)
        return doubts

    def _at(self, text: bytes, statement: scan.Statement, message: str, hint: str) -> None:
        if len(self.problems) >= PROBLEMS_MAX:
            return
        head = text[statement.start : min(statement.end, statement.start + 40)]
        shown = " ".join(head.decode("utf-8", "ignore").split())
        self.wrong(f"{shown}: {message}", hint, scan.position(text, statement.start))


def _leads(text: bytes, statement: scan.Statement, found: _Found) -> bool:
    """Tell whether a transaction's level may still be said behind a statement; keep what says it.

    SET asks for no snapshot; whatever else runs may.
    """
    match scan.first_word(text, statement.start):
        case b"BEGIN" | b"START":
            return found.count == 1
        case b"SET":
            if kinds.modes(statement.read(text)):
                found.opening.append(statement)
            return True
    return False


def _not_utf8(text: bytes) -> int | None:
    """Return the offset of the first byte that is not UTF-8, without a decoded copy of it all."""
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 1 << 20
    for start in range(0, len(text) + 1, size):
        chunk = text[start : start + size]
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk, final=start + size > len(text))
        except UnicodeDecodeError as error:
            return start - pending + error.start
    return None


def assemble(
    sources: Mapping[str, Source],
    scripts: Mapping[Source, migrations.Script],
    problems: list[Problem],
    layout: Layout,
) -> tuple[migrations.Migration, ...]:
    """Put the parts of each migration together; what does not fit is added to `problems`."""
    forward = {source: name for name, source in sources.items() if source.kind == "up"}
    by_version: dict[int, list[str]] = {}
    for name, source in sources.items():  # two files may be of one name in another tool's folder
        if source.kind == "up":
            by_version.setdefault(source.version, []).append(name)
    labels = {source.version: source.label for source in forward}
    problems.extend(
        Problem(
            f"version {labels[version] or version} is claimed by {' and '.join(claimed)}",
            "Give one of them a number of its own.",
            version=version,
            file=claimed[-1],
        )
        for version, claimed in by_version.items()
        if len(claimed) > 1
    )
    for name, source in sources.items():
        if dataclasses.replace(source, kind="up") not in forward:
            hint = "Add it, or name the companion after the file that it belongs to."
            if layout is NATIVE:
                hint += (
                    " Or is it a migration of its own? `_verify`, `_rollback` and `_export` at the "
                    "end are reserved: give it another ending."
                )
            missing = f"{name} has no forward file {layout.file(source.name, 'up')}"
            problems.append(Problem(missing, hint, file=name))
    if not forward and not problems:
        problems.append(Problem("there is no forward file"))
    if problems:
        return ()

    def part(source: Source, kind: str) -> migrations.Script | None:
        return scripts.get(dataclasses.replace(source, kind=kind))

    return tuple(
        migrations.Migration(
            source.version,
            source.name,
            scripts[source],
            part(source, "rollback"),
            part(source, "verify"),
            part(source, "export"),
            source.label,
        )
        for source in sorted(forward, key=lambda source: source.version)
    )
