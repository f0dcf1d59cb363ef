"""What a command says, line by line, without its secrets."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preflight.base import masks

MOST = 8000  # bytes of a line that are shown
LAST = 20  # lines that a failure shows
TELLING = 100  # lines of each kind by which a failure is judged, however far up they are
DEEPEST = 100  # levels of a JSON object that stays one
_COLOUR = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_CONTROL = {number: f"\\x{number:02x}" for number in (*range(9), *range(10, 32), *range(127, 160))}
_CLOSED = re.compile(  # how clients say that the kernel does not let them connect
    r"(?i)(?=.*(?:permission denied(?! (?:for|to)\b)|EACCES|errno 13\b|os error 13\b))"
    r"(?=.*(?:connect|socket|dial|server|database|tcp|host))"
)
_ERROR = re.compile(  # how clients show an error of the server's
    r"\bERROR:  |\bpsql:.*\bERROR: |SQL ?STATE|SQLState|\bPG::|\bPSQLException|\bpq: |"
    r"\bpsycopg2?\.errors\.|\basyncpg\.exceptions\.|\bdjango\.db\.utils\.|"
    r"\bparseErrorMessage\b|\bPostgres(?:Error|Exception)\b|\bPostgrex\.Error\b|"
    r"\berror returned from database: |\bdb error: ERROR: |\bQueryFailedError\b|"
    r"\bSequelizeDatabaseError\b|^Database error code: "
)
# what PostgreSQL says of a thing that is not there and that a schema holds; no notice of DROP
_MISSING = re.compile(
    r"(?i)\b(schema|relation|table|view|sequence|index|type|domain|function|procedure|aggregate)"
    r" ([\w$.\"]+).*? does not exist(?!, skipping)"
)
_MISSES = re.compile(r"\b(?:42P01|42883|42704|3F000)\b")  # what says no more than that
_NO_CONNECTION = re.compile(r"\b08\d{3}\b")  # likewise of what could not connect
_ABORTED = "current transaction is aborted"  # what PostgreSQL says to all that comes then
# what a trial before this one may have made, and left there
_MADE = re.compile(r'\b(?:role|database|tablespace) "[^"]*" already exists')
# how clients say that a server has no TLS, which they demand: libpq, node-postgres and pgjdbc,
# lib/pq, pgx, asyncpg, Npgsql, Rust's, Postgrex
_NO_TLS = re.compile(
    r"(?i)\bserver does not support (?:SSL|TLS)\b|\bSSL is not enabled on the server\b|"
    r"\bserver refused TLS\b|\brejected SSL upgrade\b|\bNo SSL enabled connection\b|"
    r"\bssl not available\b"
)
# how a program says why it ends: more than _ERROR, also by its own errors
_WHY = re.compile(
    r"(?i)^\S.*\bviolate[sd]\b|^(?:[\w./:\[\]-]+: )?(?:error|fatal|panic): \S|"
    r"^[\w.$:()]+(?:Error|Exception|Violation)\b[^:]{0,60}: \S|"
    r"^\S.*\b(?-i:ERROR|FATAL): +\S|^\s*(?-i:SQLSTATE\b|ERROR: )"
)
# what stands around that: frames, brackets, the fields of an error as node and .NET print them,
# frames of Laravel and Elixir, what the server adds, spinners, who started the program
_AROUND = re.compile(
    r"^\s+at |^\s*File \"|^\s*[\^~]+$|^\s*[\]})]+[,;]?$|^\s*\.\.\. \d+ more$|[\u2800-\u28ff]|"
    r"^\s+\w+: (?:undefined|null|true|false|-?\d+(?=,)|'.*'|\".*\"|\[.*|\{.*|\w+ \{),?$|"
    r"^\s+(?:Severity|SqlState|MessageText|(?:Schema|Table|Column|Constraint)Name|Routine): |"
    r"^\s+(?:File: \w+\.c|(?:Line|Position): \d+)$|^\s+(?:raise|throw) \w|"
    r"^\s+(?:\+\d+ vendor frames|\d+ +\S+:\d+$|[\w\\]+::\w+\(\)$|\(\w+ [\d.]+\) \S+:\d+:)|"
    r"^\s+Applying \S+\.\.\.$|"
    r"^\s*(?:CONTEXT|DETAIL|HINT|STATEMENT|QUERY|LOCATION|LINE \d+):|\(Background on |"
    r"^(?:psql:.*: )?(?:NOTICE|WARNING|INFO|LOG|DEBUG): |^\[(?:SQL|parameters): |"
    r"^make(?:\[\d+\])?: (?:\*\*\* \[|\w+ing directory)|"
    r"^npm (?:ERR!|error|notice|warn)|^Node\.js v\d|"
    r"(?i:\bexited with (?:exit )?code \d|\bcommand failed with\b|\bwith exit code \d)"
)
_TELLING = (_ERROR, _MADE, _NO_TLS)
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")  # a \r at the end may be half of a \r\n


class Kept:
    """What is kept of all that a command says: its last lines, and those that may say why it fails.

    These are kept apart: how long a tool's error is, and what it says behind it, decides nothing.
    """

    def __init__(self) -> None:
        self.last: deque[str] = deque(maxlen=LAST)
        self._refusals: deque[tuple[int, str]] = deque(maxlen=TELLING)
        self._errors: deque[tuple[int, str]] = deque(maxlen=TELLING)
        self._number = 0

    def keep(self, text: str) -> None:
        """Keep a line for as long as it is needed."""
        self._number += 1
        self.last.append(text)
        if is_closed(text):
            self._refusals.append((self._number, text))
        elif missed(text) or _says_why(text) or any(each.search(text) for each in _TELLING):
            self._errors.append((self._number, text))

    @property
    def telling(self) -> tuple[str, ...]:
        """The lines that may say why it fails, as they came."""
        return tuple(text for _, text in sorted((*self._refusals, *self._errors)))


class Heard:
    """One stream of a command: what comes is cut into lines, each an event."""

    def __init__(self, stream: str, mask: masks.Mask, kept: Kept, *, rehearsal: bool) -> None:
        """Know which stream it is, and what keeps its lines."""
        self.stream = stream
        self.mask = mask
        self.kept = kept
        self.more = {"rehearsal": True} if rehearsal else {}
        self._begun = b""
        self._untold = 0  # bytes of the line that has begun which are not kept

    def hear(self, chunk: bytes) -> None:
        """Tell every line that has come to its end."""
        *lines, rest = _LINE_END.split(self._begun + chunk)
        for line in lines:
            self._tell(self._begins(line))
        self._begun = self._begins(rest)

    def end(self) -> None:
        """Tell a last line that has no end."""
        if self._begun:
            self._tell(self._begun)
        self._begun = b""

    def _begins(self, line: bytes) -> bytes:
        """Return the beginning of a line: as much as is shown, and the longest secret more."""
        most = MOST + self.mask.longest
        self._untold += len(line[most:])
        return line[:most]

    def _tell(self, line: bytes) -> None:
        untold, self._untold = self._untold, 0
        hidden = self.mask.raw(_COLOUR.sub(b"", line))
        # a line that was cut may end in the beginning of a secret, which nobody recognises
        shown = hidden[: len(hidden) - self.mask.longest] if untold else hidden
        shown = shown[:MOST]
        untold += len(hidden) - len(shown)
        text = shown.decode("utf-8", "backslashreplace").rstrip().translate(_CONTROL)
        said: dict[str, Any] = {"text": text}
        if untold:
            said["untold_bytes"] = untold
        elif (found := _object(text)) is not None:
            said = {"object": self.mask.value(found)}
            text = json.dumps(said["object"], ensure_ascii=False)
            text = text.encode("utf-8", "backslashreplace").decode()  # half an emoji is no text
        if text:
            self.kept.keep(text)
            structlog.get_logger().info("wrap.said", stream=self.stream, **said, **self.more)


def is_closed(text: str) -> bool:
    """Tell whether a line says that the kernel does not let a client connect.

    What a server says so of a role's rights (`permission denied for database app`) is no such one.
    """
    return _CLOSED.match(text) is not None


def refusal(lines: Sequence[str]) -> tuple[str, bool]:
    """Return the last line that says so, if any, and whether another reason is told later.

    Then that ended the command, which had gone on without what it could not connect to.
    """
    at = max((n for n, line in enumerate(lines) if is_closed(line)), default=-1)
    later = any(_says_why_else(line, _NO_CONNECTION) for line in lines[at + 1 :])
    return lines[at] if at >= 0 else "", later


def missed(line: str) -> tuple[str, str] | None:
    """Return the kind and the name of a thing that is not there, where a line says that of one."""
    plain = line.replace('\\"', '"')  # as JSON has it
    found = _MISSING.search(plain) if " does not exist" in plain else None
    return (found[1].lower(), found[2].replace('"', "")) if found else None


def missing(last: Sequence[str], telling: Sequence[str]) -> str | None:
    """Return the newest line that misses a thing, unless another reason is told later.

    A tool may live through one that misses a table, and end with one of the data, the server's or
    its own. What is above the last lines is to be an error, too: a tool may say that it makes what
    is not there.
    """
    for line in reversed(telling):
        if missed(line) and (_says_why(line) or line in last):
            return line
        if _says_why_else(line, _MISSES):
            return None
    return None


def without_tls(telling: Sequence[str]) -> str | None:
    """Return the newest line that says that a server has no TLS, if no other reason is told later.

    Who only prefers TLS goes on without, and ends of something else.
    """
    for line in reversed(telling):
        if _NO_TLS.search(line):
            return line
        if _says_why_else(line, _NO_CONNECTION):
            return None
    return None


def made_before(lines: Sequence[str]) -> bool:
    """Tell whether something of the whole server's is there already, as a line says."""
    return any(map(_MADE.search, lines))


def why(last: Sequence[str], telling: Sequence[str]) -> tuple[str, ...]:
    """Return what a failure is told by: the newest line that says why, and the last one behind it.

    Where none says why, the last one that is not around something. A command may live through the
    former, so the latter is told in whatever form it is.
    """
    reason = _reason(telling)
    if reason is None:
        ends = [line for line in last if not _AROUND.search(line)] or list(last)
        return tuple(line.strip() for line in ends[-1:])
    at = max((n for n, line in enumerate(last, 1) if line == reason), default=0)
    ends = [line for line in list(last)[at:] if not _AROUND.search(line)]
    is_last = ends[-1:] == list(last)[-1:]
    told = "its last line" if is_last else "behind that it said"
    return (reason.strip(), *(f"{told}: {line.strip()}" for line in ends[-1:]))


def context(last: Sequence[str], telling: Sequence[str]) -> str | None:
    """Return the last lines, and before them the one that says why, where it is further up."""
    reason = _reason(telling)
    above = [reason, "…"] if reason is not None and reason not in last else []
    return "\n".join([*above, *last]) or None


def _reason(telling: Sequence[str]) -> str | None:
    return next((line for line in reversed(telling) if _says_why(line)), None)


def _says_why_else(line: str, same: re.Pattern[str]) -> bool:
    """Tell whether a line says why, and not only, by a code, what an earlier one has said."""
    return _says_why(line) and not same.search(line) and _ABORTED not in line


def _says_why(line: str) -> bool:
    found = _WHY.search(line) or (line[:1].strip() and _ERROR.search(line))
    return bool(found) and not _AROUND.search(line)


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a line is, if it is one."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        found: dict[str, Any] = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return None
    return None if _is_deeper(found, DEEPEST) else found


def _is_deeper(value: Any, most: int) -> bool:  # noqa: ANN401 -- JSON
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most < 0 or any(_is_deeper(each, most - 1) for each in inside)


def _no_json(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's
