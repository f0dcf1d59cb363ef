"""What a run writes: structlog set-up, console or JSON, and the way of a result to stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

from preflight.base import terminal

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

LAST = "run.finished"
# what a command was asked for, where neither a table nor a document was
RESULTS = frozenset({"migration.listed", "statement.planned", "check.passed", "backup.listed"})
SENTENCE_MAX = 300
LINE_MAX = 15_999  # bytes without the line end; docker and containerd split longer ones


class _Stream:
    """A stream that outlives its reader: a closed pipe must not end a migration."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failed: OSError | ValueError | None = None

    def write(self, text: str) -> None:
        if self.failed:
            return
        try:
            terminal.clear()
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.failed = error
            self._let_go()

    def _let_go(self) -> None:
        """Point the stream elsewhere: what it still holds would fail again at exit, as code 120."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def flush(self) -> None:
        """Nothing to do: every line is flushed as it is written."""


unwritten: list[str] = []  # why the result of this run could not be written, if it could not


def give(result: str) -> None:
    """Write a command's result to stdout, at once; a reader who has seen enough may go."""
    stream = _Stream(sys.stdout)
    stream.write(result)
    if stream.failed and not isinstance(stream.failed, BrokenPipeError):
        unwritten.append(getattr(stream.failed, "strerror", None) or type(stream.failed).__name__)


def pass_on(say: Callable[[EventDict], None]) -> None:
    """Give every event to another process, which says it; this one says nothing itself."""

    def give(_logger: object, _method: str, event: EventDict) -> EventDict:
        say(dict(event))
        raise structlog.DropEvent

    structlog.configure(
        processors=[_unless_muted, structlog.processors.add_log_level, give],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        cache_logger_on_first_use=False,
    )
    terminal.log_for_people(yes=True)  # nobody draws a bar here, and nobody else does meanwhile


def console_wanted(choice: str, stream: TextIO) -> bool:
    """Tell whether people read this stream: asked for, or a terminal."""
    return choice == "console" or (choice == "auto" and stream.isatty())


def colour_wanted(stream: TextIO, *, no_color: str | None) -> bool:
    """Tell whether to colour: only on a terminal, and not with NO_COLOR (no-color.org)."""
    return stream.isatty() and not no_color


def read_by_people(choice: str) -> bool:
    """Tell whether the log goes to a terminal, where its own file's text may be shown."""
    return console_wanted(choice, sys.stdout) and sys.stdout.isatty()


def set_up(  # noqa: PLR0913 -- one call, at the start
    stream: TextIO,
    *,
    choice: str,
    level: str,
    run_id: str,
    no_color: str | None = None,
    observe: Callable[[EventDict], None] | None = None,
    results: Collection[str] = (),
) -> None:
    """Send events of at least `level` to `stream`, one line each; `run.finished` always.

    So are the `results`, which are nowhere else where programs read. People get events in their
    terminal's own encoding, programs in UTF-8.
    """
    if hasattr(stream, "reconfigure"):
        encoding = None if console_wanted(choice, stream) else "utf-8"
        stream.reconfigure(encoding=encoding, errors="backslashreplace")
    processors: list[Any] = [_unless_muted, structlog.processors.add_log_level]
    if observe:
        processors.append(_seen_by(observe))
    terminal.log_for_people(yes=console_wanted(choice, stream))
    always = {LAST} if terminal.for_people() else {LAST, *results}
    processors.append(_at_least(level, always))
    if terminal.for_people():
        from preflight.base import console  # noqa: PLC0415 -- only people need it

        coloured = colour_wanted(stream, no_color=no_color)
        summary = console.Summary()
        processors.insert(2, _seen_by(summary.see))
        processors.append(
            lambda _, __, event: console.fitted(
                summary.line(event, colour=coloured), console.width(stream)
            )
        )
    else:
        stamper = structlog.processors.TimeStamper(fmt="iso", utc=True)
        level_key = "severity" if choice == "gcp" else "level"
        processors += [stamper, _with_run(run_id, level_key), _line]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.WriteLoggerFactory(file=_Stream(stream)),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


def plain(value: object) -> str:
    """Return what JSON has no form for as text: a time in ISO 8601."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


_json = structlog.processors.JSONRenderer(default=plain)


def _line(logger: object, method: str, event: EventDict) -> str | bytes:
    """Return the event as JSON that no log driver splits: what is too long is counted and cut."""
    line = _json(logger, method, dict(event))
    for most in (200, 50, 35, 25, 20, 15, 10, 3, 1):
        if len(line) <= LINE_MAX:
            break
        shown = {key: _cut(value, most) for key, value in event.items()}
        untold = {
            f"{key}_untold": len(value) - len(shown[key]) + event.get(f"{key}_untold", 0)
            for key, value in event.items()
            if isinstance(value, list) and len(value) > len(shown[key])
        }
        error = event.get("error")
        if isinstance(error, dict) and (left := _left_out(error, shown["error"])):
            shown["error"]["problems_untold"] = left
        line = _json(logger, method, shown | untold)
    else:
        line = _least(event, shown | untold)
    return line


def _left_out(error: Mapping[str, Any], shown: Mapping[str, Any]) -> int:
    """Return how many problems of an error are not shown."""
    return len(error.get("problems") or ()) - len(shown.get("problems") or ())


def _least(event: EventDict, shown: dict[str, Any]) -> str:
    """Return an event with its largest values left out, by name, until it is short enough."""
    sizes = {key: len(json.dumps(value, default=plain)) for key, value in shown.items()}
    gone: list[str] = []
    while sum(sizes.values()) + sum(map(len, sizes)) + 8 * len(sizes) > LINE_MAX - 500:
        largest = max(sizes, key=lambda key: sizes[key] + len(key))
        del sizes[largest]
        gone.append(largest[:50])
    left = {key: value for key, value in shown.items() if key in sizes}
    told = {"event": event["event"]} | left | {"left_out": gone[:5], "left_out_count": len(gone)}
    return json.dumps(told, default=plain)


def _cut(value: Any, most: int) -> Any:  # noqa: ANN401 -- whatever an event holds
    """Return a value with the first of its lists' items and the beginning of its texts."""
    if isinstance(value, dict):
        return {key: _cut(item, most) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, most) for item in value[:most]]
    longest = 20 * most + 100
    return f"{value[:longest]}…" if isinstance(value, str) and len(value) > longest else value


_muted: ContextVar[bool] = ContextVar("muted", default=False)  # a run's own, and its threads'


@contextmanager
def muted() -> Iterator[None]:
    """Keep every event back: what a rehearsal does with its copy is no news of the database."""
    before = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(before)


def _unless_muted(_logger: object, _method: str, event: EventDict) -> EventDict:
    if not _muted.get() or event["event"] == LAST:
        return event
    if event["event"] == "migration.progressed" and "elapsed_s" in event:
        return {**event, "event": "rehearsal.progressed"}  # a long statement, on the copy
    raise structlog.DropEvent


def _seen_by(observe: Callable[[EventDict], None]) -> Processor:
    def see(_logger: object, _method: str, event: EventDict) -> EventDict:
        observe(event)
        return event

    return see


def _at_least(level: str, always: Collection[str]) -> Processor:
    least = LEVELS[level]

    def drop_below(_logger: object, method: str, event: EventDict) -> EventDict:
        if LEVELS[method] < least and event["event"] not in always:
            raise structlog.DropEvent
        return event

    return drop_below


def _with_run(run_id: str, level_key: str) -> Processor:
    def put_first(_logger: object, _method: str, event: EventDict) -> EventDict:
        level = event.pop("level")
        first = {
            "timestamp": event.pop("timestamp"),
            level_key: level.upper() if level_key == "severity" else level,
            "event": event.pop("event"),
            "run_id": run_id,
        }
        return {**first, "message": _sentence(first["event"], event), **event}

    return put_first


def _sentence(name: str, data: EventDict) -> str:
    """Return an event as a short sentence, for viewers that show one."""
    error = data.get("error") or {}
    subjects = (data.get(key) for key in ("migration", "backup", "database", "command"))
    subject = next((str(each) for each in subjects if each), "")
    reasons = (data.get(key) for key in ("reason", "warning", "waiting", "outcome"))
    reason = error.get("message") or next((str(each) for each in reasons if each), "")
    said = f"{name.replace('.', ' ').replace('_', ' ')}{f' {subject}' if subject else ''}"
    return f"{said}: {reason}"[:SENTENCE_MAX] if reason else said[:SENTENCE_MAX]
