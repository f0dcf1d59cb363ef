"""`convert`: write another tool's folder anew in our layout."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from preflight.base.config import OTHER_LAYOUTS
from preflight.base.errors import ConfigInvalid, FilesInvalid
from preflight.commands import command, results
from preflight.files import folder, reading, scan
from preflight.files.layout import KINDS, NATIVE, OURS, Source
from preflight.history import numbers, plan

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config
    from preflight.files.migrations import Migration, Script

NOTHING = b"-- nothing to do\n"
# what the other tools write into files for themselves; ours would refuse some of it
_MARK = re.compile(rb"(?mi)^[ \t]*--(?:[ \t]*\+goose\b|\s*migrate:(?:up|down)\b|!)[^\n]*\n?")
_GAP = re.compile(rb"\n{3,}")  # where the way forward stands in the other tool's file
_VERSION = re.compile(r"[VUB]?[0-9][0-9._-]*?_+(?=[^_0-9]|$)|[0-9]+-|[VUB]?[0-9._-]+_+|[0-9-]+$")


def run(
    config: Config,
    *,
    source: Path,
    target: Path,
    form: str | None = None,
    layout: str | None = None,
) -> None:
    """Write the files of a folder in our layout; raises ConfigInvalid, FilesInvalid."""
    _require_empty(target)
    told = dataclasses.replace(config, migrations_dir=source, layout=layout or "auto")
    found = numbers.settled(folder.load(told), plan.History())
    files = dict(_files(found))
    if not files:
        raise FilesInvalid(
            "files.invalid",
            f"{source} holds no file with a version, and no other has a place in our layout",
            "Give what it holds a version each, or go on with the folder as it is.",
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (target / name).open("xb") as file:
                file.write(text)
    except OSError as error:
        raise ConfigInvalid(
            "config.arguments",
            f"{target} cannot be written: {error.strerror}",
            "Name a folder that this user may write.",
        ) from error
    _require_same(found, reading.load(target))
    for warning in _lost(found):
        structlog.get_logger().warning("config.warned", warning=warning)
    _require_accepted(config, target)
    rows: list[dict[str, Any]] = [
        {"migration": before.name, "version": number, "file": name}
        for before, number, name in _named(found)
    ]
    table = [(row["migration"], row["file"]) for row in rows]
    results.show(
        config,
        form,
        {"layout": found.tool, "files": rows},
        (("from", "to"), table),
        [("migration.listed", row) for row in rows],
    )


def _require_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigInvalid(
            "config.arguments",
            f"{target} is there already, and not an empty folder",
            "Name one that is not there yet: nothing is written over.",
        )


def _named(found: folder.Folder) -> Iterator[tuple[Migration, int, str]]:
    """Yield each migration with its number in our layout and its file's name."""
    width = max(3, *(len(str(file.version)) for file in found)) if found else 3
    for file in found:
        title = re.sub("[^a-z0-9]+", "_", _VERSION.sub("", file.name, count=1).lower()).strip("_")
        named = f"{file.version:0{width}d}_{title or 'migration'}"
        if NATIVE.source(NATIVE.file(named, "up")) != Source(file.version, named, "up"):
            named += "_migration"  # its title ends as that of a companion does
        yield file, file.version, NATIVE.file(named, "up")


def _files(found: folder.Folder) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the text of every file."""
    for file, _, name in _named(found):
        stem = name.removesuffix(".sql")
        yield name, _text(file.up)
        for kind in KINDS:
            if (script := getattr(file, kind)) is not None:
                yield NATIVE.file(stem, kind), _text(script)


def _text(script: Script) -> bytes:
    """Return what a script is in our layout: its statements, without another tool's marks."""
    text = _without_marks(script).lstrip(b"\n")
    mark = reading.UNBOUND.match(text)
    if mark and script.transactional:  # to us it is one, whoever's comment it was
        text = text[mark.end() :]
    wraps_nothing = script.wrapped and next(script.statements(), None) is None
    text = text if text.strip(b" \t\r\n\f\v;") and not wraps_nothing else NOTHING
    return (b"-- preflight: no-transaction\n" if script.elsewhere else b"") + text


def _without_marks(script: Script) -> bytes:
    """Take marks out that stand between statements, and leave alone what looks like one in them."""
    kept, at = [], 0
    for statement in scan.statements(script.text):
        end = statement.data[1] if statement.data else statement.end
        kept.append(_MARK.sub(b"", script.text[at : statement.start]))
        kept.append(script.text[statement.start : end])
        if statement.data is None and script.text.startswith(b"--", end):
            kept.append(b";\n")  # a mark ended it
        at = end
    above, *rest = [*kept, _MARK.sub(b"", script.text[at:])]
    return b"".join([_GAP.sub(b"\n\n", above), *rest])


def _require_same(before: Sequence[Migration], after: Sequence[Migration]) -> None:
    """Make sure that what was written is what was read: every statement, every directive."""
    for one, other in zip(before, after, strict=True):
        for kind in ("up", *KINDS):
            if _told(getattr(one, kind)) != _told(getattr(other, kind)):
                raise FilesInvalid(
                    "files.converted",
                    f"{one.name} could not be carried over as it is ({kind})",
                    "What was written is not the same: do not use it, and report this file.",
                    **one.named,
                )


def _require_accepted(config: Config, target: Path) -> None:
    """Read what was written as `up` would: it may hold what only the other tool runs as it stands.

    Raises FilesInvalid, which names it; the rest is good.
    """
    told = dataclasses.replace(config, migrations_dir=target, layout="auto")
    try:
        numbers.settled(folder.load(told), plan.History())
    except FilesInvalid as refused:
        raise FilesInvalid.of(
            refused.code,
            [
                dataclasses.replace(each, hint=f"All is written to {target}; there: {each.hint}")
                for each in refused.problems or [refused.problem]
            ],
        ) from refused


def _told(script: Script | None) -> tuple[object, ...] | None:
    """Return what a script does, and how: its statements, and what its directives say."""
    if script is None:
        return None
    timeouts = (script.lock_timeout_ms, script.statement_timeout_ms, script.max_lock_ms)
    return (script.said(), script.transactional, script.breaking, *timeouts)


def _lost(found: folder.Folder) -> Iterator[str]:
    """Say what our layout has no place for."""
    for file in found.repeats:
        yield f"{file.name} was not carried over: a file that runs again has no place in our layout"
    if found.labelled:
        yield (
            "the versions are text, and were numbered 1,000 apart, as they are where they are "
            "recorded: `adopt --through VERSION` accepts the new names there"
        )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the other tool's folder")
    parser.add_argument("target", type=Path, metavar="TARGET", help="a folder, absent or empty")
    parser.add_argument(
        "--from",
        dest="layout",
        choices=[*OTHER_LAYOUTS, OURS],
        metavar="LAYOUT",
        help="whose folder SOURCE is, as in PREFLIGHT_LAYOUT (default: what its files say)",
    )


COMMAND = command.Command(
    place=21,
    does="write another tool's folder anew in our layout, with the same statements; no server",
    example="entrypoint.py convert db/migrations migrations --from goose",
    run=run,
    options=_options,
    result=True,
)
