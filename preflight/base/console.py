"""Tables, progress and plain text for people."""

from __future__ import annotations

import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import accumulate, takewhile, zip_longest
from typing import Any, Self, TextIO

from preflight.base import quoting, terminal
from preflight.base.errors import ExitCode

MARKS = {"info": " ", "debug": "·", "warning": "!", "error": "✗"}
COLOURS = {"info": "", "debug": "2", "warning": "33", "error": "31"}
INDENT = " " * 11
SLOW_S = 0.1
SHOWN = 10
GAP, LEAST = "  ", 8  # between columns; how narrow one may become
LEFT_S, LEFT_SHARE = 3.0, 0.02  # before that nobody knows how long something will take
GOOD = {
    "migration.applied", "migration.adopted", "backup.verified", "rehearsal.passed",
    "wrap.rehearsed", "wrap.matched", "wrap.finished",
}  # fmt: skip


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
    data.pop("sha256", None)  # in the manifest, for whoever compares it
    if name == "migration.failed":  # the last line says it all, with a caret
        for key in ("excerpt", "context", "hint", "detail", "sql", "file", "line", "column"):
            data.pop(key, None)
    words = [_word(key, value) for key, value in data.items() if value is not None]
    head = painted(f"{mark} {name:<20}", code, colour=colour)
    line = " ".join([clock, head, *([_plain(str(subject))] if subject else []), *words]).rstrip()
    return f"\n{INDENT}".join([line, *_rehearsed(told)])


class Summary:
    """What a run has done, for people: kept from its events, and said below the last one."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Any]] = {}
        self.applied: list[dict[str, Any]] = []
        self.begun: dict[str, Any] = {}  # the file that was begun, and is not applied
        self.above: int | str | None = None  # the newest version before this run's; None: not known

    def see(self, event: Mapping[str, Any]) -> None:
        """Keep what an event says was done."""
        if "target" in event:
            return  # of one of many, which the table shows
        if event["event"] == "migration.applied":
            self.applied.append(dict(event))
            self.begun = {}
        elif event["event"] == "migration.started":
            self.begun = dict(event)
        elif event["event"] == "plan.made" and not self.applied:
            self.above = event.get("above")
        elif event["event"] in KEPT or (event["event"] == PROVEN and "verified" in event):
            if event["event"] == "backup.verified":  # nothing is known yet of how good it is
                self.seen = {key: self.seen[key] for key in self.seen.keys() - OF_A_BACKUP}
            self.seen[event["event"]] = dict(event)

    def line(self, event: Mapping[str, Any], *, colour: bool) -> str:
        """Return one event as lines for people; the last with what was done."""
        said = event_line(event, colour=colour)
        told = self.told(event) if event["event"] == "run.finished" else []
        return "\n".join([said, *(f"{INDENT}{head:<8} {_plain(text)}" for head, text in told)])

    def told(self, last: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return what to know of a run that is over: where the backup is, and the way back."""
        found = [
            ("applied", f"{each['migration']} in {each['duration_s']:.2f} s")
            for each in self.applied
        ]
        backup = self.seen.get("backup.verified")
        hidden = last.get("exit_code") == ExitCode.BACKUP_UNVERIFIED
        if backup and not hidden:
            where = f"{backup['directory']}/" if "directory" in backup else ""
            found.append(("backup", f"{where}{backup['backup']}"))
            found.append(("proof", self._proof()))
        if self.applied:
            found.append(("go back", self._way_back(last.get("exit_code", 0))))
        if (
            backup
            and not hidden
            and (self.applied or last.get("rolled_back") or last.get("wrapped"))
        ):
            said = f"`restore {backup['backup']} --swap` puts the backup in its place"
            if backup.get("restore"):
                said = str(backup["restore"])
            elif backup.get("schemas"):
                said = f"`restore {backup['backup']}` makes a database beside it, to copy from"
            found.append(("" if self.applied else "go back", said))
        restored = self.seen.get("restore.finished")
        if restored and restored.get("kept_as"):
            name = quoting.name(restored["kept_as"])
            said = f"the database from before: DROP DATABASE {name} when nobody needs it"
            found.append(("kept", said))
            if "note" in restored:
                found.append(("mind", restored["note"]))
        elif restored and not restored.get("reason"):
            said = f"{restored['database']}: --swap puts it in the live one's place, "
            if restored.get("schemas"):
                said = f"{restored['database']}: of some schemas, to copy from; "
            name = quoting.name(restored["database"])
            found.append(("beside", f"{said}DROP DATABASE {name} removes it"))
        return found

    def _way_back(self, code: int) -> str:
        """Name the command that takes back what was applied, and no more."""
        versions = [each for each in self.applied if "version" in each]
        if not versions:
            return "a file without a version is taken back by its earlier text"
        if lacking := [each["migration"] for each in versions if each.get("rollback") is False]:
            have = "has" if len(lacking) == 1 else "have"
            return f"none by `rollback`: {some(lacking)} {have} no rollback file"
        over = self._over(code)
        if self.above is None:
            said = "`rollback` takes the newest version back, `rollback --to VERSION` all above one"
        elif len(versions) == 1 and not over:
            said = "`rollback` runs the rollback files"
        else:
            said = f"`rollback --to {self.above}` runs the rollback files"
        if over.get("rollback") is False:
            said += f", but not while {over['migration']} is recorded: it has no rollback file"
        return said

    def _over(self, code: int) -> dict[str, Any]:
        """Return the file that may be recorded above what was applied, part-way or in doubt."""
        stays = self.begun.get("transactional") is False or code == ExitCode.CONNECTION_LOST
        return self.begun if code != ExitCode.OK and stays and "version" in self.begun else {}

    def _proof(self) -> str:
        backup = self.seen.get("backup.verified", {})
        if backup.get("verified") == "archive":
            return "its segment was seen in the archive, beside a young base backup; not restored"
        if backup.get("verified") == "command":
            return "none but the word of PREFLIGHT_BACKUP_COMMAND; not restored"
        passed = self.seen.get("rehearsal.passed") or self.seen.get("wrap.rehearsed") or {}
        if passed.get("where") == "clone":
            return "read back whole, not restored; the files were tried on a clone"
        if passed.get("partial"):
            return "read back whole, not restored; the files were tried with some of the rows"
        skipped = self.seen.get("rehearsal.skipped", {}).get("reason")
        if not (proven := passed or self.seen.get(PROVEN)):
            return "read back whole, not restored" + (f": {skipped}" if skipped else "")
        without = proven.get("without")
        said = "restored and compared" + (f", without {some(without)}" if without else "")
        return said if passed or not skipped else f"{said}; not all files were tried: {skipped}"


PROVEN = "rehearsal.progressed"  # one of them says so, before a file is tried on the copy
OF_A_BACKUP = {"rehearsal.passed", "rehearsal.skipped", "wrap.rehearsed", PROVEN}
KEPT = {
    "backup.verified", "rehearsal.passed", "rehearsal.skipped", "restore.finished",
    "wrap.rehearsed",
}  # fmt: skip


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
    for key in ("excerpt", "context", "detail"):
        lines += [f"{INDENT}{_kept(line)}" for line in str(error.get(key) or "").splitlines()]
    by_hint: dict[str, list[str]] = {}
    for item in problems:
        by_hint.setdefault(item.get("hint") or "", []).append(item["message"])
    for hint, messages in by_hint.items():
        if len(problems) > 1:
            lines += [f"{INDENT}- {_plain(message)}" for message in messages]
        lines += [f"{INDENT}→ {_plain(hint)}"] if hint else []
    return "\n".join(lines)


def _word(key: str, value: object) -> str:
    """Return a key and its value as people say it: sizes in their unit."""
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{key.removesuffix('_bytes')}={size(value).replace(' ', '')}"
    return f"{key}={_value(value)}"


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


_PAINT = re.compile(r"\x1b\[[0-9;]*m")


def fitted(text: str, columns: int) -> str:
    """Return lines that a terminal need not break; an excerpt and its caret stay as they are."""
    lines = text.split("\n")
    carets = {number for number, line in enumerate(lines) if line.strip() == "^"}
    kept = carets | {number - 1 for number in carets}
    return "\n".join(
        line if number in kept else _broken(line, columns) for number, line in enumerate(lines)
    )


def _broken(line: str, columns: int) -> str:
    """Break a line between words; one that is longer than a line is left to be copied whole."""
    done, (now, *rest) = [], line.split(" ")
    for word in rest:
        below = f"{INDENT}  {word}"
        if now.strip() and _seen(below) <= columns < _seen(f"{now} {word}"):
            done.append(now.rstrip())
            now = below
        else:
            now = f"{now} {word}"
    return "\n".join([*done, now])


def _seen(text: str) -> int:
    return columns(_PAINT.sub("", text))


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese two each, an accent none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):  # stands on the one before it
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, most: int) -> str:
    """Return as much of a text's beginning as so many columns hold."""
    ends = accumulate(map(_columns, text))
    return text[: sum(1 for _ in takewhile(lambda end: end <= most, ends))]


def _filled(text: str, most: int) -> str:
    return text + " " * (most - columns(text))


def width(stream: TextIO) -> int:
    """Return how many columns a terminal has; any number for what is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else sys.maxsize


def _cells(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    return [["" if cell is None else _plain(str(cell)) for cell in row] for row in rows]


def _widths(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(columns(row[i]) for row in [list(heads), *cells]) for i in range(len(heads))]


def widest(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Return how many columns of a terminal a table takes."""
    return sum(_widths(heads, _cells(rows))) + len(GAP) * (len(heads) - 1)


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    colour: bool = False,
    width: int = sys.maxsize,
) -> str:
    """Return an aligned table; empty cells for None. What is too wide goes on below in its cell."""
    cells = _cells(rows)
    widths = _widths(heads, cells)
    while sum(widths) + len(GAP) * (len(heads) - 1) > width and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    lines = [
        GAP.join(map(_filled, parts, widths)).rstrip()
        for row in [[head.upper() for head in heads], *cells]
        for parts in zip_longest(*map(_folded, row, widths), fillvalue="")
    ]
    return "\n".join([painted(lines[0], "1", colour=colour), *lines[1:]])


def _folded(cell: str, width: int) -> list[str]:
    if columns(cell) <= width:
        return [cell]
    lines, now = [], ""
    for word in cell.split():
        if now and columns(word) <= width < columns(f"{now} {word}"):
            lines.append(now)
            now = ""
        now = f"{now} {word}" if now else word
        while columns(now) > width:  # one word that is longer than a line
            first = cut(now, width)
            lines.append(first.rstrip())
            now = now[len(first) :].lstrip()
    return [*lines, now] if now else lines or [""]


def _kept(line: str) -> str:
    """Return a line without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in line)


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
        self.began = time.monotonic()
        self.shown = 0.0

    @property
    def instead(self) -> bool:
        """Tell whether it stands in the place of progress events."""
        return self.on and terminal.for_people()

    @property
    def due(self) -> bool:
        """Tell whether it would be drawn now: what it says may cost something to find out."""
        return self.on and time.monotonic() - self.shown >= self.EVERY_S

    def __enter__(self) -> Self:
        """Nothing is shown yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self.close()

    def show(self, share: float | None, words: str) -> None:
        """Draw the bar at a share from 0 to 1; None: nobody knows how much there is."""
        if not self.due:
            return
        self.shown = now = time.monotonic()
        told = self.told(share, words, now - self.began)
        if self._clear not in terminal.bars:
            terminal.bars.append(self._clear)
        self._draw(f"\r\x1b[K{cut(told, width(sys.stderr) - 1)}")

    def told(self, share: float | None, words: str, elapsed_s: float) -> str:
        """Return the bar's text."""
        words = _plain(words)
        if share is None:
            return f"{self.label} {words}"
        full = round(self.WIDTH * min(share, 1.0))
        drawn = "█" * full + "░" * (self.WIDTH - full)
        return f"{self.label} {drawn} {100 * share:3.0f} % {words}{left(share, elapsed_s)}"

    def _clear(self) -> None:
        self._draw("\r\x1b[K")

    def _draw(self, text: str) -> None:
        """Write to the terminal, which may be closed by now: then there is nobody to see a bar."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self.on = False

    def close(self) -> None:
        """Remove the bar."""
        if self._clear in terminal.bars:
            terminal.bars.remove(self._clear)
            self._clear()


def left_s(share: float | None, elapsed_s: float) -> dict[str, int]:
    """Return the seconds that are left as an event has them; nothing where nobody can tell."""
    known = share is not None and bool(left(share, elapsed_s))
    return {"left_s": round(elapsed_s * (1 - share) / share)} if share and known else {}


def left(share: float, elapsed_s: float) -> str:
    """Return how long the rest will take, to go on with; nothing while nobody knows."""
    if elapsed_s < LEFT_S or not LEFT_SHARE <= share < 1:
        return ""
    return f", {span(elapsed_s * (1 - share) / share)} left"


def part(share: float | None, elapsed_s: float) -> str:
    """Return how far something is and how long the rest will take, to go on with."""
    return "" if share is None else f", {100 * share:.0f} %{left(share, elapsed_s)}"


def span(seconds: float) -> str:
    """Return a time that nobody knows exactly."""
    if seconds < 90:  # noqa: PLR2004 -- a minute and a half
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004
