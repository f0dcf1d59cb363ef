"""The client programs: pg_dump into a file, pg_restore out of an archive, and what they said.

`pg_restore --list` proves nothing (it passes on a dump cut to 2 %), and a flipped bit in zstd or
lz4 passes a full read. So the dump is hashed as it is written, read back from the disk, and its
rows are counted.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.backup import children, manifests, passfile
from preflight.base import console, near, quoting
from preflight.base.errors import BackupFailed

if TYPE_CHECKING:
    from preflight.backup.store import Sink
    from preflight.base.config import Config
    from preflight.server.sessions import Session
Command = Callable[[Mapping[str, str]], list[str]]  # a client's call, by where it is to go
PRIOR, PRIOR_BYTES = 1000, 40  # what a row takes before any is known: as if so many had taken it
TELL_EVERY_S = 5.0
COMPRESSIONS = ("zstd:1", "1")  # what a build may lack, and gzip in the words of every version
Key = tuple[bytes, bytes]  # schema and table, in the archive's encoding


# the programs


@dataclass(frozen=True, slots=True)
class Clients:
    """The client programs, and what pg_dump says its version is."""

    pg_dump: str
    pg_restore: str
    version: str


def clients(config: Config, session: Session) -> Clients:
    """Return pg_dump and pg_restore; raises BackupFailed when they cannot dump this server."""
    path = config.child_env.get("PATH", os.defpath)
    found = {name: shutil.which(name, path=path) for name in ("pg_dump", "pg_restore")}
    server_major = session.facts.major if session.facts else 0
    hint = f"Use the image tagged pg{server_major}, or install a client {server_major} or newer."
    if missing := [name for name, at in found.items() if at is None]:
        raise BackupFailed(
            "backup.no_client", f"{' and '.join(missing)} cannot be found on PATH", hint
        )
    pg_dump, pg_restore = (str(at) for at in found.values())
    try:
        version, problem = _said_version(pg_dump, tuple(config.child_env.items()))
    except children.ClientFailed as failure:
        version, problem, hint = "", str(failure), failure.hint or hint
    number = re.search(r"\d+", version)
    if number is None:
        raise BackupFailed(
            "backup.no_client", f"{pg_dump} does not tell its version: {problem or version!r}", hint
        )
    if int(number[0]) < server_major:
        raise BackupFailed(
            "backup.client_too_old",
            f"pg_dump and pg_restore are of PostgreSQL {number[0]}, and the server is of "
            f"{server_major}: they have to be as new",
            hint,
        )
    return Clients(pg_dump, pg_restore, version)


def unusable(failure: children.ClientFailed) -> BackupFailed:
    """Return the failure of a client that was there a moment ago."""
    return BackupFailed("backup.no_client", str(failure), failure.hint or "Reinstall the client.")


_UNABLE = re.compile(
    r"[^;]*(?:unsupported version|not supported by this|build does not support)[^;]*"
)


def unable(said: str) -> str | None:
    """Return what pg_restore says when it is too old for an archive, or built with less."""
    found = _UNABLE.search(said)
    return found[0].strip() if found else None


@functools.cache
def _said_version(pg_dump: str, environment: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    with children.started([pg_dump, "--version"], dict(environment)) as (child, words):
        said = b"".join(children.chunks(child))
        children.wait(child)
        return said.decode("utf-8", "replace").strip(), words.said()


def dump_command(  # noqa: PLR0913, PLR0917 -- what of what, and how
    pg_dump: str,
    address: Mapping[str, str],
    snapshot: str,
    compression: str,
    lock_timeout_ms: int,
    encoding: str,
    schemas: Sequence[str] = (),
    how: Sequence[str] = ("--format=custom",),
) -> list[str]:
    """Return the pg_dump call, of all schemas or some; the password is in a passfile, never here.

    What is quoted is a name to pg_dump, and no pattern. The encoding is the database's own, in
    which every row can be said, whatever `client_encoding` is set for the database or the role.
    """
    conninfo = psycopg.conninfo.make_conninfo("", **address)
    return [
        pg_dump,
        *how,
        f"--encoding={encoding}",
        f"--compress={compression}",
        f"--snapshot={snapshot}",
        f"--lock-wait-timeout={lock_timeout_ms}",
        "--no-password",
        "--verbose",
        *(f"--schema={quoting.name(schema)}" for schema in schemas),
        f"--dbname={conninfo}",
    ]


def read_command(pg_restore: str, dump: Path | None) -> list[str]:
    """Return the pg_restore call that reads every data block and writes the rows to stdout.

    Without a file it reads stdin.
    """
    return [pg_restore, "--data-only", "--file=-", *([str(dump)] if dump else [])]


@contextmanager
def lists_of_data(
    dump: Path, programs: Clients, environment: Mapping[str, str], many: int
) -> Iterator[list[Path]]:
    """Yield at most so many files for --use-list, which share all entries of a folder evenly.

    The tables by their size, all else in the first. Raises ClientFailed when the list cannot be
    had.
    """
    entry = re.compile(rb"(\d+); \d+ \d+ TABLE DATA ")
    sizes = {each.name.partition(".")[0]: each.stat().st_size for each in os.scandir(dump)}
    lines = _entries(dump, programs, environment)
    found = {line: entry.match(line) for line in lines}
    tables = {line: sizes.get(at[1].decode(), 0) for line, at in found.items() if at}
    rest = sum(sizes.values()) - sum(tables.values())
    shares = [(rest, 0), *((0, number) for number in range(1, max(1, min(many, len(tables)))))]
    whose = {}
    for line in sorted(tables, key=lambda line: -tables[line]):
        size, number = heapq.heappop(shares)
        whose[line] = number
        heapq.heappush(shares, (size + tables[line], number))
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                passfile.private(line for line in lines if whose.get(line, 0) == number)
            )
            for number in range(len(shares))
        ]


@contextmanager
def list_without(  # noqa: PLR0913, PLR0917 -- of what, and less what
    dump: Path,
    programs: Clients,
    environment: Mapping[str, str],
    without: Mapping[str, Collection[int] | None],
    comments: Sequence[str] = (),
    check: Callable[[int, str], None] = lambda *_: None,
) -> Iterator[Path]:
    """Yield a file for pg_restore's --use-list: the archive's entries but those of these objects.

    `without` has their oids by kind of entry, None for all of a kind; `comments` how those on what
    is left out begin, `check` is given oid and name of each. Raises ClientFailed when the list
    cannot be had.
    """
    kinds = "|".join(map(re.escape, without)).encode()
    entry = re.compile(rb"\d+; \d+ (\d+) (" + kinds + b") ")
    gone = tuple(_unquoted(each) for each in comments)

    def stays(line: bytes) -> bool:
        if (found := entry.match(line)) is None:
            about = _COMMENT.match(line) if gone else None
            return about is None or not _unquoted(
                line[about.end() :].decode("utf-8", "replace")
            ).startswith(gone)
        oids, oid = without[found[2].decode()], int(found[1])
        if oids is not None and oid not in oids:
            return True
        check(oid, line[found.end() :].decode("utf-8", "replace"))
        return False

    with passfile.private(
        line for line in _entries(dump, programs, environment) if stays(line)
    ) as path:
        yield path


_COMMENT = re.compile(rb"\d+; \d+ \d+ COMMENT ")


def _unquoted(text: str) -> str:
    """Return an entry's words in one line, whether names are quoted there or not."""
    return in_a_line(text.replace('"', ""))


def in_a_line(text: str) -> str:
    """Return a name as the list of an archive has it, where each entry is a line."""
    return text.replace("\n", " ").replace("\r", " ")


@contextmanager
def list_skipping(
    dump: Path, programs: Clients, environment: Mapping[str, str], skip: Collection[str]
) -> Iterator[tuple[Path, list[str], dict[str, list[str]]]]:
    """Yield a file for --use-list without these entries, and what else `less` says.

    Raises ClientFailed when the list cannot be had.
    """
    lines, along, several = less(_entries(dump, programs, environment, "--verbose"), skip)
    with passfile.private(lines) as path:
        yield path, along, several


def unmeant(
    dump: Path, programs: Clients, environment: Mapping[str, str], skip: Collection[str]
) -> list[tuple[str, str | None]]:
    """Return the words that mean no entry of an archive, and the one each may be a slip of.

    Raises ClientFailed when the list cannot be had.
    """
    found = _entries(dump, programs, environment, "--verbose")  # as what is left out is looked for
    lines = (line.decode("utf-8", "replace") for line in found)
    known = set().union(*(spellings(line) for line in lines if _LISTED.match(line)))
    words = dict.fromkeys(" ".join(each.split()) for each in skip)
    return [
        (word, near.nearest(word, sorted(known)))
        for word in words
        if word not in known and not _ANYWHERE.fullmatch(word)
    ]


# what is of no use without an entry of a kind, and can be no other entry's; so not a foreign key
_OF_ANY = {"ACL", "COMMENT", "SECURITY LABEL"}
_OF_TABLE = {
    "CHECK CONSTRAINT", "CONSTRAINT", "DEFAULT", "INDEX", "MATERIALIZED VIEW DATA", "ROW SECURITY",
    "STATISTICS DATA", "TABLE DATA",
}  # fmt: skip
_ITS_OWN = {
    "TABLE": _OF_TABLE, "FOREIGN TABLE": _OF_TABLE, "VIEW": _OF_TABLE,
    "MATERIALIZED VIEW": _OF_TABLE, "SEQUENCE": {"SEQUENCE OWNED BY", "SEQUENCE SET"},
}  # fmt: skip
# what every database is made with: it is there without its entry, and so is what is said of it
_BROUGHT = ("SCHEMA - public ", "EXTENSION - plpgsql ", "PROCEDURAL LANGUAGE - plpgsql ")
# an archive has it or not, by the client's version and by what was changed: nothing else is meant
_ANYWHERE = re.compile(
    r"(?:COMMENT |ACL )?(?:- )?"
    r"(?:SCHEMA (?:- )?public|(?:EXTENSION|PROCEDURAL LANGUAGE) (?:- )?plpgsql|DATABASE .+)"
    r"(?: \S+)?"
)
_NEEDS = b";\tdepends on:"
_LISTED = re.compile(r"(\d+); (\d+) \d+ (.+)", re.DOTALL)


def less(
    lines: Sequence[bytes], skip: Collection[str]
) -> tuple[list[bytes], list[str], dict[str, list[str]]]:
    """Return a verbose list without these entries, and which others went with them.

    Also those that one word means, where it means several. An entry may be said with or without its
    schema and its owner, as pg_restore names it in an error. What it needs stands below it.
    """
    meant: dict[str, list[str]] = {" ".join(each.split()): [] for each in skip}
    gone: dict[str, str] = {}  # the kind of what is left out, by its number
    stay, along = [], list[str]()
    for line, below in itertools.pairwise([*lines, b""]):
        if line.startswith(_NEEDS):
            continue
        said = line.decode("utf-8", "replace")
        found = _LISTED.match(said)
        number, kind, named = (found[1], _kind(found), found[3]) if found else ("", "", "")
        needs = below[len(_NEEDS) :].decode().split() if below.startswith(_NEEDS) else ()
        if words := meant.keys() & spellings(said):
            for word in words:
                meant[word].append(" ".join(named.split()))
            if not named.startswith(_BROUGHT):
                gone[number] = kind
        elif any(kind in _goes_along(gone[n]) for n in needs if n in gone):
            gone[number] = kind
            along.append(" ".join(named.split()))
        else:
            stay.append(line)
    return stay, along, {word: entries for word, entries in meant.items() if len(entries) > 1}


def _goes_along(kind: str) -> Collection[str]:
    """Return what is of no use without an entry; rights on a column are not of those on its table.

    The archive says of them that they need these, for they are given in an order.
    """
    return () if kind in _OF_ANY else _OF_ANY | _ITS_OWN.get(kind, set())


def _kind(listed: re.Match[str]) -> str:
    """Return an entry's kind: a table in the schema `DATA` is in a catalog, rows are in none."""
    words = listed[3].split(" ")
    kinds = {" ".join(words[:n]) for n in range(1, len(words))} & KINDS
    kind = max(kinds, key=len, default="")
    return kind.removesuffix(" DATA") if listed[2] != "0" else kind


@contextmanager
def in_turn(
    dump: Path, programs: Clients, environment: Mapping[str, str], options: Sequence[str]
) -> Iterator[list[Sequence[str]]]:
    """Yield pg_restore's options for each of its calls: the last one makes the event triggers.

    An archive has them before its materialised views are filled, and jobs keep no order there:
    they would fire, and might write. One call is enough where the list cannot be had (it will fail
    and say why), or has not both.
    """
    wanted = [each for each in options if each.startswith(USE_LIST)]
    lines: list[bytes] = []
    with suppress(children.ClientFailed):
        lines = asked_for(dump, programs, environment, options)
    if not (any(map(_EVENT_TRIGGER.match, lines)) and any(map(_FILLED_LATE.match, lines))):
        yield [options]
        return
    rest = (line for line in lines if not _EVENT_TRIGGER.match(line))
    with (
        passfile.private(rest) as first,
        passfile.private(filter(_EVENT_TRIGGER.match, lines)) as last,
    ):
        others = [each for each in options if each not in wanted]
        yield [[*others, f"{USE_LIST}{each}"] for each in (first, last)]


def asked_for(
    dump: Path, programs: Clients, environment: Mapping[str, str], options: Sequence[str]
) -> list[bytes]:
    """Return the list of an archive, or what the options leave of it; raises ClientFailed."""
    wanted = [each for each in options if each.startswith(USE_LIST)]
    if wanted:
        return Path(wanted[-1].removeprefix(USE_LIST)).read_bytes().splitlines(keepends=True)
    return _entries(dump, programs, environment)


USE_LIST = "--use-list="
_EVENT_TRIGGER = re.compile(
    rb"\d+; \d+ \d+ (?:EVENT TRIGGER |(?:COMMENT|SECURITY LABEL) - EVENT TRIGGER )"
)
_FILLED_LATE = re.compile(rb"\d+; \d+ \d+ MATERIALIZED VIEW DATA ")


def entries(dump: Path, programs: Clients, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what pg_restore lists of an archive, by number: kind, schema, name and owner.

    Raises ClientFailed when the list cannot be had.
    """
    lines = [
        line.decode("utf-8", "replace").rstrip("\n")
        for line in _entries(dump, programs, environment)
    ]
    found = [re.fullmatch(r"(\d+); \d+ \d+ (.*)", line) for line in lines]
    return {each[1]: each[2] for each in found if each}


# of entries, as pg_dump has written them since 9.6 (its ARCHIVE_OPTS(.description = …))
KINDS = frozenset(
    """
    ACCESS METHOD|ACL|AGGREGATE|BLOB|BLOB METADATA|BLOBS|CAST|CHECK CONSTRAINT|COLLATION|COMMENT|
    CONSTRAINT|CONVERSION|DATABASE|DATABASE PROPERTIES|DEFAULT|DEFAULT ACL|DOMAIN|ENCODING|
    EVENT TRIGGER|EXTENSION|FK CONSTRAINT|FOREIGN DATA WRAPPER|FOREIGN TABLE|FUNCTION|INDEX|
    INDEX ATTACH|LARGE OBJECT|MATERIALIZED VIEW|MATERIALIZED VIEW DATA|OPERATOR|OPERATOR CLASS|
    OPERATOR FAMILY|POLICY|PROCEDURAL LANGUAGE|PROCEDURE|PUBLICATION|PUBLICATION TABLE|
    PUBLICATION TABLES IN SCHEMA|ROW SECURITY|RULE|SCHEMA|SEARCHPATH|SECURITY LABEL|SEQUENCE|
    SEQUENCE OWNED BY|SEQUENCE SET|SERVER|SHELL TYPE|STATISTICS|STATISTICS DATA|STDSTRINGS|
    SUBSCRIPTION|SUBSCRIPTION TABLE|TABLE|TABLE ATTACH|TABLE DATA|TEXT SEARCH CONFIGURATION|
    TEXT SEARCH DICTIONARY|TEXT SEARCH PARSER|TEXT SEARCH TEMPLATE|TRANSFORM|TRIGGER|TYPE|
    USER MAPPING|VIEW
    """.replace("\n    ", "")
    .strip()
    .split("|")
)


def spellings(line: str) -> set[str]:
    """Return how people may call an entry of pg_restore's list: less its schema, its owner."""
    number, words = line.split()[:3], line.split()[3:]
    counts = [n for n in range(1, len(words)) if " ".join(words[:n]) in KINDS]
    if number[1:2] == ["0"]:  # rows: a table in the schema `DATA` is in a catalog
        counts = counts[-1:]
    if not counts:  # one that we have not heard of
        counts = [len(list(takewhile(lambda word: word.isupper() and word.isalpha(), words)))]
    found: set[str] = set()
    for count in counts:  # a schema may be called `DATA`
        kind, rest = words[:count], words[count:]
        tails = [rest, rest[1:], rest[:-1], rest[1:-1]]
        found |= {" ".join([*kind, *tail]) for tail in tails if kind and tail}
    return found


def _entries(
    dump: Path, programs: Clients, environment: Mapping[str, str], *more: str
) -> list[bytes]:
    command = [programs.pg_restore, "--list", *more, str(dump)]
    with children.started(command, environment) as (child, words):
        entries = b"".join(children.chunks(child)).splitlines(keepends=True)
        if children.wait(child) != 0:
            raise children.ClientFailed(words.said() or "pg_restore --list failed", "none")
    return entries


def listen(
    command: Sequence[str],
    environment: Mapping[str, str],
    hear: Callable[[str], None],
    tick: Callable[[], None] = lambda: None,
    hold: Callable[[], bool] | None = None,
) -> int:
    """Run a client to its end; return its exit code. Each line of its complaints goes to `hear`.

    `tick` is called about once a second meanwhile. While `hold`, asked more often, says so, the
    client stands still.
    """
    with (
        children.started(command, environment, hear) as (child, words),
        children.Brake(child) as brake,
    ):

        def look() -> None:
            tick()
            if hold is not None:
                brake.set(on=hold())

        for _ in children.chunks(child, look, 1.0 if hold is None else children.HOLD_EVERY_S):
            pass
        code = children.wait(child)
        words.thread.join()  # a client that ended says nothing more
        return code


# dumping


@dataclass(frozen=True, slots=True)
class Written:
    """What pg_dump wrote: its SHA-256, and what it warned about though it ended with 0.

    Of a folder also its files.
    """

    sha256: str
    warnings: list[str]
    files: Mapping[str, manifests.Piece] = field(default_factory=dict)


def write(  # noqa: PLR0913, PLR0917 -- whom, with what, of what, where to, and who looks on
    session: Session,
    programs: Clients,
    snapshot: str,
    sink: Callable[[], AbstractContextManager[Sink]],
    progress: Progress,
    check: Callable[[], None],
) -> Written:
    """Run pg_dump into a file; raises ClientFailed.

    `check` is called at least once a second and may end it.
    """

    def pump(command: Command) -> Written:
        return _pump(session, command, sink, progress, check)

    return compressed(session, programs, snapshot, ["--format=custom"], pump)


def compressed(
    session: Session,
    programs: Clients,
    snapshot: str,
    how: Sequence[str],
    run: Callable[[Command], Written],
) -> Written:
    """Run pg_dump by the first compression that its build has; raises ClientFailed."""
    for compression in COMPRESSIONS:
        command = partial(
            dump_command,
            programs.pg_dump,
            snapshot=snapshot,
            compression=compression,
            lock_timeout_ms=session.config.lock_timeout_ms,
            encoding=session.connection.info.parameter_status("server_encoding") or "UTF8",
            schemas=session.config.only,
            how=how,
        )
        try:
            return run(command)
        except children.ClientFailed as failure:
            if "compress" not in str(failure) or compression == COMPRESSIONS[-1]:
                raise
    raise AssertionError  # the last compression returns or raises


def _pump(
    session: Session,
    command: Command,
    sink: Callable[[], AbstractContextManager[Sink]],
    progress: Progress,
    check: Callable[[], None],
) -> Written:
    def tick() -> None:
        check()
        progress.tell(words.begun)

    digest = hashlib.sha256()
    with ExitStack() as secret, sink() as file:
        environment, address = secret.enter_context(passfile.passfile(session))
        with children.started(command(address), environment) as (child, words), progress:
            for chunk in children.chunks(child, tick):
                secret.close()  # pg_dump is connected: nobody needs the password any more
                digest.update(chunk)
                file.write(chunk)
                progress.size += len(chunk)
            code = children.wait(child)
            said = words.said()
        if code != 0:
            raise children.ClientFailed(
                said or f"it ended with {code}", children.hope_of(code, said)
            )
    return Written(digest.hexdigest(), words.warnings)


class Progress:
    """Tells how far a long dump is: by the rows of the tables that it has begun, and by bytes.

    The rows are counted meanwhile: `rows` has those that are, of `tables` by pg_dump's names.
    `others` is told it in words, for whoever waits for this run.
    """

    def __init__(self, tables: int, rows: Mapping[str, int], others: Callable[[str], None]) -> None:
        self.tables = tables
        self.rows = rows
        self.others = others
        self.size = self.begun = 0  # bytes, and tables
        self.began = self.told = time.monotonic()
        self.bar = console.Bar("backup")
        self._tables_begun = self._before = 0

    def _guess(self, done: int, rows: int) -> int:
        """Return how many rows of the table under way are written, by the bytes that rows took."""
        each = (self._before + PRIOR * PRIOR_BYTES) / (done + PRIOR)
        return min(int((self.size - self._before) / each), rows * 19 // 20)

    def __enter__(self) -> None:
        """Nothing is shown yet."""

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self.bar.close()

    def tell(self, begun: Sequence[str]) -> None:
        """Show it on a terminal, and log it now and then."""
        if len(begun) != self._tables_begun:
            self._tables_begun, self._before = len(begun), self.size
        self._tell(begun[:-1], begun[-1:])

    def tell_of_several(
        self, begun: Sequence[str], finished: Sequence[tuple[int, str]], sizes: Mapping[str, int]
    ) -> None:
        """Show it where several sessions write a file each; `sizes` by the files' names."""
        numbers, names = {str(number) for number, _ in finished}, Counter(n for _, n in finished)
        self.size = sum(sizes.values())
        self._before = sum(
            size for file, size in sizes.items() if file.partition(".")[0] in numbers
        )
        whole: list[str] = []
        at_work: list[str] = []
        for name in begun:
            own = name.partition(".")[2]
            (whole if names[own] > 0 else at_work).append(name)
            names[own] -= 1
        self._tell(whole, at_work)

    def _tell(self, whole: Sequence[str], at_work: Sequence[str]) -> None:
        now = time.monotonic()
        rows, begun = dict(self.rows), len(whole) + len(at_work)
        self.begun = begun
        all_rows = sum(rows.values()) if len(rows) == self.tables else None
        done = sum(rows.get(name, 0) for name in whole)
        done += self._guess(done, sum(rows.get(name, 0) for name in at_work))
        share = done / all_rows if all_rows else len(whole) / max(1, self.tables)
        self.bar.show(share, f"{self.size / 1e6:.1f} MB, table {begun} of {self.tables}")
        if now - self.told < TELL_EVERY_S:
            return
        self.told = now
        self.others(f"backing up{console.part(share, now - self.began)}")
        if not self.bar.instead:
            structlog.get_logger().info(
                "backup.progressed",
                size_bytes=self.size,
                tables_begun=begun,
                tables=self.tables,
                rows_done=done,
                rows=all_rows,
                percent=round(100 * share, 1),
                elapsed_s=round(now - self.began, 1),
                **console.left_s(share, now - self.began),
            )


HINT = "Is the pg_dump on PATH a real and whole one? Nothing was migrated."
