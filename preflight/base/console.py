"""Tables, progress and plain text for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

MARKS = {"info": " ", "debug": "·", "warning": "!", "error": "✗"}
COLOURS = {"info": "", "debug": "2", "warning": "33", "error": "31"}
SLOW_S = 0.1
SHOWN = 10
GOOD = {"migration.applied", "migration.adopted", "backup.verified", "rehearsal.passed"}


def painted(text: str, code: str, *, colour: bool) -> str:
    """Return text in a colour (an SGR code), or as it is."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def event_line(event: Mapping[str, Any], *, colour: bool) -> str:
    """Return one event as a line for people."""
    data = dict(event)
    name, level = data.pop("event"), data.pop("level", "info")
    clock = painted(time.strftime("%H:%M:%S"), "2", colour=colour)
    if name == "run.finished":
        return f"{clock} {_finished(data, colour=colour)}"
    mark, code = MARKS.get(level, " "), COLOURS.get(level, "")
    if name in GOOD:
        mark, code = "✓", "32"
    told = data.pop("statements") if isinstance(data.get("statements"), list) else []
    subject = data.pop("migration", None)
    data.pop("version", None)
    words = [f"{key}={_value(value)}" for key, value in data.items() if value is not None]
    head = painted(f"{mark} {name:<20}", code, colour=colour)
    line = " ".join([clock, head, *([_plain(str(subject))] if subject else []), *words]).rstrip()
    return "\n           ".join([line, *_rehearsed(told)])


def _rehearsed(statements: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in a line each what was in somebody's way on the copy, or took its time there."""
    lines = []
    for found in statements:
        took, locks, rewrites = costs(found)
        if locks or rewrites or found["duration_s"] >= SLOW_S:
            rewriting = f"rewrites {rewrites}" if rewrites else ""
            said = "; ".join(filter(None, (f"took {took}", locks, rewriting)))
            lines.append(_plain(f"{found['file']}:{found['line']}  {said}"))
    return lines


def costs(measured: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what a statement took, its locks with the time they were held, and its rewrites."""
    locks = [
        f"{item['mode']} on {item['table']}{_parts(item)}, {item['held_s']:.2f} s"
        for item in measured.get("locks", ())
    ]
    rewrites = [
        f"{item['table']}{_parts(item)} {size(item['before_bytes'])} → {size(item['after_bytes'])}"
        for item in measured.get("rewrites", ())
    ]
    return f"{measured['duration_s']:.2f} s", "; ".join(locks), "; ".join(rewrites)


def _parts(item: Mapping[str, Any]) -> str:
    return f" ({item['partitions']} partitions)" if item.get("partitions") else ""


def _finished(data: dict[str, Any], *, colour: bool) -> str:
    code, error = data["exit_code"], data.get("error")
    seconds = f"{data['duration_s']:.2f} s"
    if not error:
        applied = data.get("applied") or []
        done = f"applied {', '.join(applied)}" if applied else data["outcome"].replace("_", " ")
        return painted(f"✓ {done}", "32", colour=colour) + f" ({seconds})"
    said = f"✗ exit {code}: {_plain(error['message'])}"
    lines = [painted(said, "31", colour=colour) + f" ({seconds})"]
    problems = error.get("problems") or [error]
    if len(problems) > 1:
        lines += [f"           - {_plain(item['message'])}" for item in problems]
    hints = dict.fromkeys(item["hint"] for item in problems if item.get("hint"))
    lines += [f"           → {_plain(hint)}" for hint in hints]
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_value(item)}" for key, item in value.items()) + "}"
    text = str(value)
    return repr(text) if " " in text or not text.isprintable() else text


def some(names: Sequence[str]) -> str:
    """Name a few, and say how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def size(count: float) -> str:
    """Return a number of bytes as people say it, in powers of 1000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:  # noqa: PLR2004 -- the next unit
        count /= 1000
        units = units[1:]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, colour: bool = False) -> str:
    """Return an aligned table; empty cells for None."""
    cells = [["" if cell is None else _plain(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(heads), *cells]) for i in range(len(heads))]
    top = "  ".join(head.upper().ljust(width) for head, width in zip(heads, widths, strict=True))
    lines = [painted(top.rstrip(), "1", colour=colour)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return text on one line, without anything that a terminal would obey."""
    text = text.replace("\n", " ")
    return "".join(char if char.isprintable() else "?" for char in text)


class Bar:
    """A progress bar on stderr, when that is a terminal; else nothing."""

    WIDTH, EVERY_S = 24, 0.1

    def __init__(self, label: str) -> None:
        self.label = label
        self.on = sys.stderr.isatty()
        self.shown = 0.0

    def show(self, share: float, words: str) -> None:
        """Draw the bar at a share from 0 to 1."""
        now = time.monotonic()
        if not self.on or now - self.shown < self.EVERY_S:
            return
        self.shown = now
        full = round(self.WIDTH * min(share, 1.0))
        bar = "█" * full + "░" * (self.WIDTH - full)
        sys.stderr.write(f"\r\x1b[K{self.label} {bar} {100 * share:3.0f} % {words}")
        sys.stderr.flush()

    def close(self) -> None:
        """Remove the bar."""
        if self.on and self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
