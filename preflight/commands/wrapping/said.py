"""What a command says, line by line, without its secrets."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from preflight.base import masks

MOST = 8000  # bytes of a line that are shown
LAST = 20  # lines that a failure shows
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
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")  # a \r at the end may be half of a \r\n


class Heard:
    """One stream of a command: what comes is cut into lines, each an event."""

    def __init__(self, stream: str, mask: masks.Mask, last: deque[str], *, rehearsal: bool) -> None:
        """Know which stream it is, and where the last lines go."""
        self.stream = stream
        self.mask = mask
        self.last = last
        self.more = {"rehearsal": True} if rehearsal else {}
        self.closed = False  # it has said that it may not connect
        self._begun = b""
        self._untold = 0  # bytes of the line that has begun which are not kept

    def hear(self, chunk: bytes) -> None:
        """Tell every line that has come to its end."""
        *lines, rest = _LINE_END.split(self._begun + chunk)
        for line in lines:
            self._tell(self._kept(line))
        self._begun = self._kept(rest)

    def end(self) -> None:
        """Tell a last line that has no end."""
        if self._begun:
            self._tell(self._begun)
        self._begun = b""

    def _kept(self, line: bytes) -> bytes:
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
            self.last.append(text)
            self.closed = self.closed or is_closed(text)
            structlog.get_logger().info("wrap.said", stream=self.stream, **said, **self.more)


def is_closed(text: str) -> bool:
    """Tell whether a line says that the kernel does not let a client connect.

    What a server says so of a role's rights (`permission denied for database app`) is no such one.
    """
    return _CLOSED.match(text) is not None


def refusal(lines: Sequence[str]) -> tuple[str, bool]:
    """Return the last line that says so, if any, and whether an error of PostgreSQL's is later.

    Then that ended the command, which had gone on without what it could not connect to.
    """
    at = max((n for n, line in enumerate(lines) if is_closed(line)), default=-1)
    return lines[at] if at >= 0 else "", any(map(_ERROR.search, lines[at + 1 :]))


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
