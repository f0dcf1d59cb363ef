"""`lint`: read the files, without a server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from preflight.base.errors import FilesInvalid
from preflight.commands import command, results
from preflight.files import folder, planned, review
from preflight.files.layout import KINDS
from preflight.history import numbers, plan

if TYPE_CHECKING:
    from preflight.base.config import Config


def run(config: Config, *, form: str | None = None) -> None:
    """Read the files and say what a careful reader would; raises FilesInvalid."""
    found = _settled(folder.load(config))
    files = (*found, *found.repeats)
    rows: list[dict[str, Any]] = [
        {
            "migration": file.name,
            "version": None if file.repeat else file.version,
            "statements": told.count,
            "transactional": file.up.transactional,
            "breaking": file.up.breaking,
            "checksum": file.checksum,
            "companions": [kind for kind in KINDS if getattr(file, kind) is not None],
            "remarks": review.remarks(file, told.statements),
        }
        for file in files
        for told in [planned.each(file)]
    ]
    heads = ("version", "name", "statements", "companions", "remarks")
    table = [
        ("" if file.repeat else file.padded, file.name, r["statements"], " ".join(r["companions"]),
         "; ".join(r["remarks"]))
        for file, r in zip(files, rows, strict=True)
    ]  # fmt: skip
    results.show(
        config, form, {"files": rows}, (heads, table), [("migration.listed", r) for r in rows]
    )


def _settled(files: folder.Folder) -> folder.Folder:
    """Return the folder as a database that knows none of it would have it; raises FilesInvalid."""
    try:
        return numbers.settled(files, plan.History())
    except FilesInvalid as failure:
        if files.layout is not None:
            raise
        applied = "Where it is applied already it may stay: `up` asks only what is to run."
        raise FilesInvalid.of(
            failure.code,
            [
                replace(each, hint=f"{each.hint or ''} {applied}".strip())
                for each in failure.problems
            ],
        ) from failure


COMMAND = command.Command(
    place=11,
    does="read the migration files only, no server; exit 25 when one is invalid",
    example="entrypoint.py lint --table",
    run=run,
    result=True,
)
