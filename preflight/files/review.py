"""What is worth a remark in a file before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preflight.files import due, parser, scan

if TYPE_CHECKING:
    from preflight.files.migrations import Migration, Script
    from preflight.files.planned import Planned


def remarks(file: Migration, statements: Sequence[Planned]) -> list[str]:
    """Say what a careful reader would of a valid file."""
    found = [] if file.repeat else _companions(file, statements)
    found += [f"line {each.line} destroys {each.destroys}" for each in statements if each.destroys]
    found += [f"line {each.line} {each.external}" for each in statements if each.external]
    found += [
        f"line {each.line} {each.does}: what it {_untold(each)} is not known"
        for each in statements
        if each.unknown
    ]
    found += [
        problem.message
        for script in (file.up, file.rollback, file.verify)
        if script
        for problem in due.refused(script)
    ]
    if not statements and not file.up.opening:
        found.append("nothing but comments: it is recorded, and nothing runs")
    for script in filter(None, (file.up, file.rollback, file.verify, file.export)):
        found += unparsed(script)
    return found


def _untold(statement: Planned) -> str:
    return "locks" if statement.keeps else "destroys and locks"


def _companions(file: Migration, statements: Sequence[Planned]) -> list[str]:
    """Say which files of a version are missing."""
    found = []
    if file.verify is None:
        found.append("no verify file: nobody can tell whether it is applied")
    if file.rollback is None:
        found.append("no rollback file: it cannot be taken back")
    elif file.way_back is None:
        found.append("no statement in its rollback file: it cannot be taken back")
    elif file.export is None and any(each.destroys or each.lost_unknown for each in statements):
        found.append("no export file")
    return found


def unparsed(script: Script) -> list[str]:
    """Name the statements that PostgreSQL's grammar does not take."""
    found = []
    starts = (statement.start for statement in script.statements())
    places = scan.places(script.text, starts)
    for statement, (line, column) in zip(script.statements(), places, strict=True):
        if said := parser.complaint(statement.read(script.text)):
            found.append(f"{script.file}:{line}:{column} does not parse: {said}")
    return found
