"""What is refused of the files that are due, before the first of them runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from preflight.base import memory
from preflight.base.errors import FilesInvalid
from preflight.files import kinds, lasting, parser, scan

if TYPE_CHECKING:
    from preflight.base.errors import Problem
    from preflight.files.migrations import Migration, Script

OURS = 20_000_000  # bytes that the process has at least, beside what a file takes


def require(scripts: Sequence[Script], *, back: bool = False) -> None:
    """Make sure that they could be taken up, and fit into memory; raises FilesInvalid."""
    problems = [problem for script in scripts for problem in refused(script, back=back)]
    if problems := problems + too_large(scripts, memory.limit()):
        raise FilesInvalid.of("files.invalid", problems)


def scripts(files: Iterable[Migration]) -> list[Script]:
    """Return what of files runs for the first time with them."""
    return [script for file in files for script in (file.up, file.verify) if script is not None]


def refused(script: Script, *, back: bool = False) -> list[Problem]:
    """Name what cannot be run as it was meant, or not taken up, in one file."""
    joined = (_joined(script, each) for each in script.semicolons)
    found = [
        *filter(None, joined),
        *_read_only(script),
        *_late(script),
        *lasting.refused(script, back=back),
    ]
    return found if back else [*_doubtful(script), *found]


def _doubtful(script: Script) -> list[Problem]:
    """Name the directives that can hardly be meant: a number without a unit, two of a kind.

    Here and not where a file is read: what is recorded has run as it was read, and is never judged.
    """
    return [
        script.problem((line, column), message, hint)
        for message, hint, line, column in script.doubtful
    ]


def _read_only(script: Script) -> list[Problem]:
    """Say where a file would have a transaction in which nobody could record it."""
    said = [(each, kinds.modes(each.read(script.text))) for each in script.opening]
    of_access = [(each, found) for each, found in said if found and found.read_only is not None]
    if not of_access or not of_access[-1][1].read_only:
        return []
    message = "a READ ONLY transaction cannot be recorded"
    return [script.problem(of_access[-1][0], message, "Leave READ ONLY out.")]


def _late(script: Script) -> list[Problem]:
    """Say where a file would miss what is committed while it waits for a table.

    LOCK reads nothing, so for others a level's one moment is behind it. For us it is before: the
    history is claimed first.
    """
    if not script.isolation:
        return []
    first = next(
        (
            each
            for each in script.statements()
            if scan.first_word(script.text, each.start) != b"SET"
        ),
        None,
    )
    if first is None or scan.first_word(script.text, first.start) != b"LOCK":
        return []
    return [
        script.problem(
            first,
            f"LOCK in a transaction of ISOLATION LEVEL {script.isolation} would miss what others "
            "commit while it waits",
            "Leave ISOLATION LEVEL out: behind the LOCK, READ COMMITTED reads all of it.",
        )
    ]


def _joined(script: Script, statement: scan.Statement) -> Problem | None:
    """Say where the server would run several statements in place of the one that was cut out.

    No place of a mark, no plan and no look for a COMMIT would have seen those behind the first.
    """
    if not parser.several(statement.read(script.text)):
        return None
    return script.problem(
        statement,
        "PostgreSQL reads several statements where one was found",
        "Put what stands behind it into a file of its own, and report this: it is a bug.",
    )


def too_large(scripts: Sequence[Script], limit: int | None) -> list[Problem]:
    """Name the statements and files for which the process would be ended in the middle of its work.

    `limit` is in bytes, None for none. What is needed is told too low rather than too high: nothing
    is refused that might have come through.
    """
    held = OURS + sum(len(script.text) for script in scripts)  # all are at hand from first to last
    longest = max((len(script.text) for script in scripts), default=0)
    if limit is None or held + 2 * longest <= limit:
        return []
    return [found for script in scripts if (found := _too_large(script, held, limit)) is not None]


def _too_large(script: Script, held: int, limit: int) -> Problem | None:
    """Return what is wrong with one file.

    libpq has two copies of a statement that it sends, and one of the text for the history.
    """
    largest = max(script.statements(), key=lambda each: each.end - each.start, default=None)
    size = largest.end - largest.start if largest else 0
    needed = held + max(len(script.text), 2 * size)
    if largest is None or needed <= limit:
        return None
    what = f"a file of {len(script.text) / 1e6:,.1f} MB"
    hint = "Split the file"
    if 2 * size > len(script.text):
        what = f"one statement of {size / 1e6:,.1f} MB"
        hint = "Load rows with COPY … FROM stdin, which are sent as they are read, or split them"
    return script.problem(
        largest,
        f"{what} takes at least {needed / 1e6:,.0f} MB of memory, and there are "
        f"{limit / 1e6:,.0f} MB",
        f"{hint}; or let the container have more.",
    )
