"""`check`: every migration and its state."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from preflight import gate
from preflight.apply import contact, resume
from preflight.base.errors import (
    Failure,
    HistoryConflict,
    NeedsRepair,
    Pending,
    SchemaAhead,
)
from preflight.commands import command, results
from preflight.files import folder
from preflight.history import journal, ledger, numbers, plan
from preflight.server import lock, sessions

if TYPE_CHECKING:
    from datetime import datetime

    from preflight.base.config import Config
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session


def run(config: Config, *, form: str | None = None, **wrapped: Any) -> None:  # noqa: ANN401 -- options
    """Show every migration and its state; raises what stands in the way, then Pending."""
    if wrapped:
        from preflight.commands.wrapping import story  # noqa: PLC0415 -- only of a wrapped one

        story.check(config, wrapped, form)
        return
    files = folder.load(config)
    with sessions.connect(config) as session:
        known = gate.recorded(session)
        files = numbers.settled(files, known)
        details = ledger.listing(session) if known.present else []
        adoptable, problem = contact.first_look(session, files, known)
        with ledger.looking(session):
            repair = stuck(session, files, known)
        database = session.facts.database if session.facts else config.database
        verdict = judge(config, files, known, repair, adoptable)
        if isinstance(verdict, Pending):
            verdict = unwritable(session) or verdict
    gate.tell_ahead(plan.newer(files, known))
    rows = states(files, known, details, adoptable) + repeating(files, known, adoptable)
    rows = [stopped(row, problem) for row in rows]
    if problem and (verdict is None or isinstance(verdict, Pending)):
        verdict = problem
    listed = [_data(row) for row in rows]
    document = {"database": database, "current": verdict is None, "migrations": listed}
    results.show(config, form, document, _check_table(rows), _listed(rows), failure=verdict)
    if verdict:
        raise verdict


def stuck(session: Session, files: Sequence[Migration], known: plan.History) -> NeedsRepair | None:
    """Tell what stopped part-way and cannot be resumed, as far as this role may see.

    Without the lock a `running` row may belong to a live run: only that of a dead one counts.
    """
    for file in files:
        if file.version not in known.records or known.done(file.version):
            continue
        try:
            row = ledger.row_of(session, file.version)
        except psycopg.errors.InsufficientPrivilege:
            return None  # the texts are not for everyone
        if row is None or row.state == "done" or _alive(session, row):
            continue
        try:
            resume.require_resumable(file, row, session)
        except NeedsRepair as failure:
            return failure
    return None


def unwritable(session: Session) -> SchemaAhead | None:
    """Tell whether only a newer version can write what is pending."""
    try:
        ledger.require_writable(session)
    except SchemaAhead as failure:
        return failure
    return None


def _alive(session: Session, row: journal.Row) -> bool:
    """Tell whether a run may be at work on a row; a standby does not see its primary's locks."""
    if session.facts is None or session.facts.standby:
        return row.state == "running"
    return bool(lock.holder(session)) or ledger.row_of(session, row.version) != row


def judge(
    config: Config,
    files: Sequence[Migration],
    known: plan.History,
    repair: NeedsRepair | None = None,
    adoptable: Container[str] = (),
) -> Failure | None:
    """Return the first that holds of 26, 28, 32 and 3."""
    try:
        made = plan.of(config, files, known)
    except (HistoryConflict, SchemaAhead) as failure:
        return failure
    if repair:
        return repair
    if made.empty:
        return None
    there = [file for file in made.todo if file.name in adoptable]
    due = [file for file in made.todo if file not in there]
    first, said, count = (due or there)[0], [], len(files) + len(folder.repeats(files))
    if due:
        said.append(f"{len(due)} of {count} migrations are pending, first {first.name}")
    if there:
        said.append(f"{len(there)} of {count} are there already, and not recorded")
    return Pending(
        "schema.pending",
        "; ".join(said),
        "Run `up`: it records what is there without running it." if there else "Run `up`.",
        **first.named,
    )


@dataclass(frozen=True, slots=True)
class Shown:
    """A migration as `check` shows it; the names are the keys of its document."""

    version: int | None  # None: it has none, and runs again when its text changes
    name: str
    recorded_as: str | None
    state: str
    applied_at: datetime | None
    duration_ms: int | None
    applied_by: str | None
    backup: str | None
    label: str | None = None


def states(
    files: Sequence[Migration],
    known: plan.History,
    details: Sequence[ledger.Listed],
    adoptable: set[str],
) -> list[Shown]:
    """Return one row a migration, on disk or recorded, in order."""
    by_version = {row.version: row for row in details}
    on_disk = {file.version: file for file in files}
    newest = max(on_disk, default=-1)
    rows = []
    for version in sorted(on_disk.keys() | known.records.keys()):
        file, record = on_disk.get(version), known.records.get(version)
        detail = by_version.get(version)
        renamed = file and record and record.name != file.name
        rows.append(
            Shown(
                version=version,
                name=file.name if file else record.name if record else "",
                recorded_as=record.name if record and renamed else None,
                state=_state(
                    file,
                    record,
                    detail,
                    newest,
                    adoptable=file is not None and file.name in adoptable,
                ),
                applied_at=detail.applied_at if detail else None,
                duration_ms=detail.duration_ms if detail else None,
                applied_by=detail.applied_by if detail else None,
                backup=detail.backup if detail else None,
                label=(file.label if file else None) or (record.label if record else None),
            )
        )
    return rows


def stopped(row: Shown, problem: Failure | None) -> Shown:
    """Return a row as it is: one that first contact stops at is not pending, it will not run."""
    if problem is None or problem.problem.migration != row.name:
        return row
    if _ends_with(problem, "verify.partial"):
        return dataclasses.replace(row, state="partial")
    if _ends_with(problem, "verify.out_of_order"):  # it is there, above one that is absent
        return dataclasses.replace(row, state="adoptable")
    return row


def _ends_with(problem: Failure, code: str) -> bool:
    return problem.code == code


def repeating(files: folder.Folder, known: plan.History, adoptable: Container[str]) -> list[Shown]:
    """Return a row for each file without a version."""
    due = {each.name for each in plan.again(files, known)}
    return [
        Shown(None, each.name, None, _again(each, known, due, adoptable), *[None] * 4)
        for each in files.repeats
    ]


def _again(
    file: Migration, known: plan.History, due: Container[str], adoptable: Container[str]
) -> str:
    if file.name in due:
        return "adoptable" if file.name in adoptable else "pending"
    return "applied" if known.repeated[file.name] == file.checksum else "ahead"


def _state(
    file: Migration | None,
    record: plan.Record | None,
    detail: ledger.Listed | None,
    newest: int,
    *,
    adoptable: bool,
) -> str:
    if record is None:
        return "adoptable" if adoptable else "pending"
    if file is None:
        ahead = "ahead" if record.state == "done" else "partial"
        return ahead if record.version > newest else "missing"
    if (found := plan.compared(file, record)) != "same":
        return found
    if record.state != "done":
        return "partial"
    how = detail.how if detail else None
    return how if how in ("adopted", "taken_over") else "applied"


def _data(row: Shown) -> dict[str, Any]:
    """Return a row as data; a version has a text only where the layout has no numbers."""
    data = dataclasses.asdict(row)
    if data["label"] is None:
        del data["label"]
    return data


def _listed(rows: Iterable[Shown]) -> list[tuple[str, dict[str, Any]]]:
    """Return the events: as the document, but a migration is called so in every event."""
    each = map(_data, rows)
    return [("migration.listed", {"migration": data.pop("name"), **data}) for data in each]


def _check_table(rows: Sequence[Shown]) -> tuple[Sequence[str], list[Sequence[object]]]:
    heads = ("version", "description", "state", "when", "took", "by")
    return heads, [
        (
            row.label or ("" if row.version is None else f"{row.version:03d}"),
            row.name.partition("_")[2].replace("_", " "),
            row.state,
            row.applied_at and row.applied_at.strftime("%Y-%m-%d %H:%M:%S %Z"),
            None if row.duration_ms is None else f"{row.duration_ms / 1000:.2f} s",
            row.applied_by,
        )
        for row in rows
    ]


COMMAND = command.Command(
    place=1,
    does="show every migration and its state; exit 0 current, 3 pending, 26 conflict, 28 ahead, "
    "32 stuck part-way, 33 there in part at first contact",
    example="entrypoint.py check --table",
    run=run,
    fleet=True,
    result=True,
    options=command.wrapped,
    wraps=True,
)
