"""The commands besides `up`: each a short story of the same steps."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight import history, lasting, lock, logs, migrations, plan, report, server, stop, verify
from preflight.errors import (
    BackupDamaged,
    BackupUnverified,
    ConfigInvalid,
    Failure,
    HistoryConflict,
    LockBusy,
    NeedsRepair,
    Pending,
    PlanChanged,
    RehearsalFailed,
    SchemaAhead,
    VerifyFailed,
)

if TYPE_CHECKING:
    from preflight.arguments import Arguments
    from preflight.config import Config
    from preflight.migrations import Migration
    from preflight.server import Session

POLL_S = (0.2, 1.0)


# looking


def check(config: Config, said: Arguments) -> None:
    """Show every migration and its state; raises what stands in the way, then Pending."""
    files = migrations.load(config.migrations_dir)
    with server.connect(config) as session:
        known = history.read(session)
        details = history.listing(session) if known.present else []
        adoptable, problem = first_look(session, files, known)
        with history.looking(session):
            repair = stuck(session, files, known)
        database = session.facts.database if session.facts else config.database
    rows = states(files, known, details, adoptable)
    verdict = judge(config, files, known, repair)
    if problem and (verdict is None or isinstance(verdict, Pending)):
        verdict = problem
    document = {"database": database, "current": verdict is None, "migrations": rows}
    show(config, said, document, _check_table(rows), _listed(rows))
    if verdict:
        raise verdict


def first_look(
    session: Session, files: Sequence[Migration], known: plan.History
) -> tuple[set[int], Failure | None]:
    """While nothing was ever run here: return the versions that `up` would adopt; writes nothing.

    The failure is what would stop it; the versions are then those before.
    """
    unrecorded = [file for file in files if file.version not in known.records]
    found: set[int] = set()
    try:
        with history.looking(session):
            if _first_contact(session, known):
                for file, _ in history.adoptable(session, unrecorded):
                    found.add(file.version)
    except (VerifyFailed, HistoryConflict) as failure:
        return found, failure
    return found, None


def _first_contact(session: Session, known: plan.History) -> bool:
    try:
        return (not known.present or history.untold(session)) and not history.is_empty(session)
    except psycopg.errors.InsufficientPrivilege:
        return False  # the journal is not for everyone: nothing to tell by


def stuck(session: Session, files: Sequence[Migration], known: plan.History) -> NeedsRepair | None:
    """Tell what stopped part-way and cannot be resumed, as far as this role may see.

    Without the lock a `running` row may belong to a live run: only that of a dead one counts.
    """
    for file in files:
        if file.version not in known.records or known.done(file.version):
            continue
        try:
            row = history.row_of(session, file.version)
        except psycopg.errors.InsufficientPrivilege:
            return None  # the texts are not for everyone
        if row is None or row.state == "done" or _alive(session, row):
            continue
        try:
            history.require_resumable(file, row)
        except NeedsRepair as failure:
            return failure
    return None


def _alive(session: Session, row: history.Row) -> bool:
    """Tell whether a run may be at work on a row; a standby does not see its primary's locks."""
    if session.facts is None or session.facts.standby:
        return row.state == "running"
    return bool(lock.holder(session)) or history.row_of(session, row.version) != row


def judge(
    config: Config,
    files: Sequence[Migration],
    known: plan.History,
    repair: NeedsRepair | None = None,
) -> Failure | None:
    """Return the first that holds of 26, 28, 32 and 3."""
    try:
        made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
    except (HistoryConflict, SchemaAhead) as failure:
        return failure
    if repair:
        return repair
    if made.empty:
        return None
    return Pending(
        "schema.pending",
        f"{len(made.todo)} of {len(files)} migrations are pending, first {made.todo[0].name}",
        "Run `up`.",
        migration=made.todo[0].name,
        version=made.todo[0].version,
    )


def states(
    files: Sequence[Migration],
    known: plan.History,
    details: Sequence[dict[str, Any]],
    adoptable: set[int],
) -> list[dict[str, Any]]:
    """Return one row a migration, on disk or recorded, in order."""
    by_version = {row["version"]: row for row in details}
    on_disk = {file.version: file for file in files}
    newest = max(on_disk, default=-1)
    rows = []
    for version in sorted(on_disk.keys() | known.records.keys()):
        file, record = on_disk.get(version), known.records.get(version)
        detail = by_version.get(version, {})
        rows.append(
            {
                "version": version,
                "name": file.name if file else record.name if record else "",
                "recorded_as": record.name
                if file and record and record.name != file.name
                else None,
                "state": _state(file, record, detail, newest, adoptable=version in adoptable),
                "applied_at": detail.get("applied_at"),
                "duration_ms": detail.get("duration_ms"),
                "applied_by": detail.get("applied_by"),
                "backup": detail.get("backup"),
            }
        )
    return rows


def _state(
    file: Migration | None,
    record: plan.Record | None,
    detail: dict[str, Any],
    newest: int,
    *,
    adoptable: bool,
) -> str:
    if record is None:
        return "adoptable" if adoptable else "pending"
    if file is None:
        return "ahead" if record.version > newest else "missing"
    if (found := plan.compared(file, record)) != "same":
        return found
    if record.state != "done":
        return "partial"
    return "adopted" if detail.get("how") == "adopted" else "applied"


def _listed(rows: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (
            "migration.listed",
            {"migration": row["name"], **{k: v for k, v in row.items() if k != "name"}},
        )
        for row in rows
    ]


def _check_table(rows: Sequence[dict[str, Any]]) -> tuple[Sequence[str], list[Sequence[object]]]:
    heads = ("version", "description", "state", "when", "took", "by")
    return heads, [
        (
            f"{row['version']:03d}",
            row["name"].partition("_")[2].replace("_", " "),
            row["state"],
            row["applied_at"] and row["applied_at"].strftime("%Y-%m-%d %H:%M:%S %Z"),
            None if row["duration_ms"] is None else f"{row['duration_ms'] / 1000:.2f} s",
            row["applied_by"],
        )
        for row in rows
    ]


def show_plan(config: Config, said: Arguments) -> None:
    """Show what `up` would do, statement by statement; raises what would stop it."""
    from preflight import watch  # noqa: PLC0415 -- other commands do without

    files = migrations.load(config.migrations_dir)
    with server.connect(config) as session:
        known = history.read(session)
        made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
        adoptable, problem = first_look(session, made.todo, known)
        if problem:
            raise problem
        lasting.require(
            [file.up for file in made.todo if file.version not in {*adoptable, *known.records}]
        )
        todo = [file for file in made.todo if file.version not in adoptable]
        steps = [step for file in todo for step in planned(file)]
        in_the_way = cache(partial(watch.in_the_way, session))  # a file may say one thing often
        with history.looking(session):
            for step in steps:
                for item in step["locks"]:
                    if index := item.pop("index", None):
                        item["table"] = watch.table_of(session, index)
                step["locks"] = [item for item in step["locks"] if item["table"]]
                step["blocked_by"] = [
                    found
                    for item in step["locks"]
                    for found in in_the_way(item["table"], item["mode"])
                ]
        database = session.facts.database if session.facts else config.database
        adopted = [file.name for file in made.todo if file.version in adoptable]
        names = [file.name for file in todo]
        structlog.get_logger().info("plan.made", pending=names, adopts=adopted)
        if said.rehearse and todo:
            try:
                measure(session, files, todo, steps)
            except RehearsalFailed as failure:
                problem = failure
    for step in steps:
        del step["start"]
    document = {
        "database": database,
        "adopts": adopted,
        "pending": [file.name for file in todo],
        "statements": steps,
    }
    events = [("statement.planned", {k: v for k, v in step.items() if v}) for step in steps]
    table = _measured_table(steps) if said.rehearse else _plan_table(steps)
    show(config, said, document, table, events)
    if problem:
        raise problem


def measure(
    session: Session,
    files: Sequence[Migration],
    todo: Sequence[Migration],
    steps: Sequence[dict[str, Any]],
) -> None:
    """Try the plan on a copy and write beside each of its steps what it took."""
    from preflight import backup, meter, rehearsal  # noqa: PLC0415 -- only when asked

    server.require_writable(session)
    session.grow_up()
    gauge = meter.Meter()

    def look() -> None:
        with backup.draft(session, todo) as saved:
            rehearsal.look(session, saved, files, todo, gauge)

    try:
        try:
            look()
        except BackupDamaged:
            raise
        except BackupUnverified:  # perhaps of what was changed while it was dumped
            look()
    finally:  # what passed was measured, whatever came after it
        for step in steps:
            item = gauge.found.get((f"{step['migration']}.sql", step["start"]))
            told = item is not None and step["version"] in gauge.passed
            step["measured"] = item.data() if item and told else None


def planned(file: Migration) -> list[dict[str, Any]]:
    """Return what each statement of a file does."""
    from preflight import explain, sql  # noqa: PLC0415 -- only a plan and lint need the parser

    found: list[dict[str, Any]] = []
    new: set[str] = set()  # nobody waits for a table that this file makes
    starts = (statement.start for statement in file.up.statements())
    places = sql.places(file.up.text, starts)
    for number, statement in enumerate(file.up.statements(), 1):
        effect = explain.effect(statement.text(file.up.text))
        line, column = next(places)
        if effect.creates:
            new.add(effect.creates)
        found.append(
            {
                "migration": file.name,
                "version": file.version,
                "statement": number,
                "start": statement.start,
                "line": line,
                "column": column,
                "does": effect.does,
                "locks": [
                    {"table": taken.table, "mode": taken.mode}
                    | ({"index": taken.table} if taken.of_index else {})
                    for taken in effect.locks
                    if taken.table not in new
                ],
                "destroys": effect.destroys,
                "external": effect.external,
                "in_transaction": file.up.transactional,
            }
        )
    return found


def _plan_table(steps: Sequence[dict[str, Any]]) -> tuple[Sequence[str], list[Sequence[object]]]:
    heads = ("place", "does", "lock", "destroys", "blocked now by")
    return heads, [
        (
            f"{step['version']:03d}:{step['line']}",
            _short(step["does"]),
            ", ".join(f"{item['mode']} on {item['table']}" for item in step["locks"]),
            step["destroys"] and _short(step["destroys"]),
            ", ".join(f"pid {found['pid']}" for found in step.get("blocked_by", ())),
        )
        for step in steps
    ]


def _measured_table(
    steps: Sequence[dict[str, Any]],
) -> tuple[Sequence[str], list[Sequence[object]]]:
    heads = ("place", "does", "took", "lock", "rewrites", "destroys", "blocked now by")
    _, rows = _plan_table(steps)
    return heads, [
        (place, does, *(report.costs(found) if found else (None, lock, None)), destroys, blocked)
        for step, (place, does, lock, destroys, blocked) in zip(steps, rows, strict=True)
        for found in [step.get("measured")]
    ]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"  # noqa: PLR2004 -- a table must fit


def verify_all(config: Config, said: Arguments) -> None:
    """Run the verify files of what is applied; raises VerifyFailed when a check fails."""
    files = migrations.load(config.migrations_dir)
    with server.connect(config) as session:
        known = history.read(session)
        chosen = _to_verify(files, known, said.version)
        foreign = plan.contradicted(chosen, known)
        if foreign:  # what the files of another migration say is no answer
            raise HistoryConflict.of("history.conflict", foreign)
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        results = [
            (file, check)
            for file in chosen
            if file.verify
            for check in verify.run(session, file.verify)
        ]
        history.roll_back(session)
        database = session.facts.database if session.facts else config.database
    rows = [
        {
            "migration": file.name,
            "version": file.version,
            "suite": check.suite,
            "check": check.check,
            "ok": check.ok,
            "detail": check.detail,
        }
        for file, check in results
    ]
    bad = [row for row in rows if not row["ok"]]
    document = {"database": database, "ok": bool(chosen) and not bad, "checks": rows}
    heads = ("version", "suite", "check", "result", "detail")
    table = [
        (f"{r['version']:03d}", r["suite"], r["check"], "ok" if r["ok"] else "FAILED", r["detail"])
        for r in rows
    ]
    events = [
        (
            "check.passed" if row["ok"] else "check.failed",
            {k: v for k, v in row.items() if k != "ok"},
        )
        for row in rows
    ]
    show(config, said, document, (heads, table), events)
    if not chosen:
        raise Pending(
            "verify.nothing_recorded",
            f"none of the {len(files)} files is recorded as applied in {database}, so nothing was "
            "verified",
            "Is it the right database (PGDATABASE, PREFLIGHT_SCHEMA)? Then run `up` first; "
            "`verify VERSION` asks a file's checks all the same.",
        )
    if bad:
        raise VerifyFailed(
            "verify.failed",
            f"{len(bad)} of {len(rows)} checks fail, first {bad[0]['suite']}: {bad[0]['check']}",
            "Compare the database with the migration; was it changed by hand?",
            migration=bad[0]["migration"],
            version=bad[0]["version"],
        )


def _to_verify(
    files: Sequence[Migration], known: plan.History, version: int | None
) -> list[Migration]:
    if version is None:
        return [file for file in files if known.done(file.version)]
    found = [file for file in files if file.version == version]
    if not found or found[0].verify is None:
        missing = "no file" if not found else "no verify file"
        raise ConfigInvalid(
            "config.arguments", f"version {version} has {missing}", "See `check --table`."
        )
    return found


def lint(config: Config, said: Arguments) -> None:
    """Read the files and say what a careful reader would; raises FilesInvalid."""
    files = migrations.load(config.migrations_dir)
    rows: list[dict[str, Any]] = [
        {
            "migration": file.name,
            "version": file.version,
            "statements": len(steps),
            "transactional": file.up.transactional,
            "breaking": file.up.breaking,
            "checksum": file.checksum,
            "companions": [kind for kind in migrations.KINDS if getattr(file, kind) is not None],
            "remarks": remarks(file, steps),
        }
        for file in files
        for steps in [planned(file)]
    ]
    heads = ("version", "name", "statements", "companions", "remarks")
    table = [
        (f"{r['version']:03d}", r["migration"], r["statements"], " ".join(r["companions"]),
         "; ".join(r["remarks"]))
        for r in rows
    ]  # fmt: skip
    show(config, said, {"files": rows}, (heads, table), [("migration.listed", r) for r in rows])


def remarks(file: Migration, steps: Sequence[dict[str, Any]]) -> list[str]:
    """Say what a careful reader would of a valid file."""
    found = []
    if file.verify is None:
        found.append("no verify file: nobody can tell whether it is applied")
    if file.rollback is None:
        found.append("no rollback file: it cannot be taken back")
    elif file.export is None and any(step["destroys"] for step in steps):
        found.append("no export file")
    found += [
        f"line {step['line']} destroys {step['destroys']}" for step in steps if step["destroys"]
    ]
    found += [f"line {step['line']} {step['external']}" for step in steps if step["external"]]
    found += [
        problem.message
        for script in (file.up, file.rollback)
        if script
        for problem in lasting.refused(script)
    ]
    return found


def wait(config: Config, said: Arguments) -> None:
    """Wait for the server; with `schema`, until the migrations are applied. Raises Pending."""
    if not said.schema:
        with server.connect(config, asked=True):
            return
    files = migrations.load(config.migrations_dir) if said.version is None else ()
    with server.connect(config) as session:
        known = history.read(session)
        told = False
        while True:
            if said.version is not None:
                left = [] if known.done(said.version) else [f"version {said.version}"]
            else:
                made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
                left = [file.name for file in made.todo]
            if not left:
                return
            if time.monotonic() >= session.deadline:
                raise Pending(
                    "schema.pending",
                    f"{', '.join(left)} not applied after {config.wait_timeout_s:g} s",
                    "Does the job that migrates run, and did it succeed?",
                )
            if not told:
                told = True
                structlog.get_logger().info(
                    "server.waiting", reason="migrations are pending", pending=left
                )
            stop.sleep(random.uniform(*POLL_S))  # noqa: S311 -- jitter, not a secret
            known = history.read(session)


# changing the history


def adopt(config: Config, said: Arguments) -> None:
    """Record what is in the database already; raises VerifyFailed when it is not."""
    files = migrations.load(config.migrations_dir)
    chosen = None if said.version is None else named(files, said.version)
    with server.connect(config) as session:
        history.read(session)
        server.require_writable(session)
        lock.acquire(session)
        history.ensure(session)
        known = history.read(session)
        if foreign := plan.foreign(files, known):  # others' files say nothing of this database
            raise HistoryConflict.of("history.conflict", foreign)
        todo = [file for file in files if file.version not in known.records]
        if chosen is not None:  # what is below a new record must be recorded, too
            new = chosen in todo
            todo = [file for file in todo if new and file.version < chosen.version] + [chosen]
        with history.transaction(session):  # all of it or, when one is refused, nothing
            there = _there(session, todo, chosen) if chosen else history.adoptable(session, todo)
            adopted = []
            for file, checks in there:
                history.adopt(session, file, by_name=chosen is not None)
                adopted.append((file, checks))
        history.tell_adopted(adopted)
    names = [file.name for file, _ in adopted]
    if left := [file.name for file in todo if file.name not in names]:
        structlog.get_logger().info("plan.made", pending=left, adopts=[])


def _there(
    session: Session, files: Sequence[Migration], chosen: Migration
) -> Iterator[tuple[Migration, tuple[verify.Check, ...]]]:
    """Yield the files up to the one that a person named, with their checks, which must hold."""
    for file in files:
        checks = verify.run(session, file.verify) if file.verify else ()
        answer = verify.answer(checks)
        if answer == "unknown" and file is not chosen:
            raise HistoryConflict(
                "history.first_contact",
                f"{file.name} has no verify file that could tell whether it is there",
                f"Nothing was recorded. If you know that it is: `adopt {file.version}`.",
                migration=file.name,
                version=file.version,
            )
        if answer != "present" and file is not chosen:
            verify.report(file, checks)
            raise HistoryConflict(
                "history.gap",
                f"{file.name} is neither recorded nor in the database as it should be "
                f"({verify.described(checks)}), so {chosen.name} above it cannot be recorded",
                "Nothing was recorded. `up` applies what is absent; what is there in part needs a "
                "look.",
                migration=file.name,
                version=file.version,
            )
        if verify.failed(checks):
            verify.report(file, checks)
            raise VerifyFailed(
                "verify.not_there",
                f"{file.name} is not in the database as it should be: {verify.described(checks)}",
                "Nothing was recorded. `up` applies what is absent; what is there in part needs a "
                "look.",
                migration=file.name,
                version=file.version,
            )
        yield file, checks


def _refuse_contradiction(file: Migration, record: plan.Record) -> None:
    """Raise what stands against a file that is not what was recorded under its number."""
    if problem := plan.contradiction(file, record):
        raise HistoryConflict.of("history.conflict", [problem])


def named(files: Sequence[Migration], version: int) -> Migration:
    """Return the file of a version; raises ConfigInvalid when there is none."""
    for file in files:
        if file.version == version:
            return file
    raise ConfigInvalid(
        "config.arguments",
        f"there is no file of version {version}",
        f"Versions on disk: {', '.join(str(file.version) for file in files)}.",
    )


def force(config: Config, said: Arguments) -> None:
    """Run a recorded file again from its start, with the safety of `up`."""
    from preflight import apply, backup, rehearsal  # noqa: PLC0415 -- only when work is due

    files = migrations.load(config.migrations_dir)
    with server.connect(config) as session:
        file = _to_force(config, files, history.read(session), said.version)
        server.require_writable(session)
        lock.acquire(session)
        history.ensure(session)
        file = _to_force(config, files, history.read(session), said.version)
        row = history.row_of(session, file.version)
        lasting.require([file.up])
        saved = backup.proven(
            lambda: backup.take(session, [file], "force"),
            lambda saved: rehearsal.run(session, saved, [file], row),
        )
        with _undisturbed():
            try:
                apply.forward(session, file, saved.name if saved else None, row)
            except PlanChanged:  # also when the COMMIT came through and only its answer was lost
                row = history.row_of(session, file.version)
                if row is None or (row.run_id, row.state) != (config.run_id, "done"):
                    raise


def _to_force(
    config: Config, files: Sequence[Migration], known: plan.History, version: int | None
) -> Migration:
    recorded = [file for file in files if file.version in known.records]
    if version is None and not recorded:
        raise ConfigInvalid(
            "config.arguments", "no file on disk is recorded in the database", "Run `up` instead."
        )
    file = recorded[-1] if version is None else named(files, version)
    if file not in recorded:
        raise ConfigInvalid(
            "config.arguments", f"{file.name} was never applied", "Run `up` instead."
        )
    record = known.records[file.version]
    if plan.compared(file, record) in ("renamed", "other"):
        _refuse_contradiction(file, record)
    others = [other for other in files if other.version != file.version]
    rest = {v: record for v, record in known.records.items() if v != file.version}
    plan.make(others, plan.History(rest), ahead=config.ahead, out_of_order=config.out_of_order)
    return file


def rollback(config: Config, said: Arguments) -> None:
    """Take back the newest migration, or all above a version, newest first."""
    from preflight import backup, rehearsal, undo  # noqa: PLC0415 -- only when work is due

    files = migrations.load(config.migrations_dir)
    with server.connect(config) as session:
        if not undo.choose(files, history.read(session), said.to):
            structlog.get_logger().info("plan.made", rollback=[])
            return  # nothing recorded that could be taken back
        server.require_writable(session)
        lock.acquire(session)
        history.ensure(session)
        steps = undo.prepare(session, files, undo.choose(files, history.read(session), said.to))
        if not steps:
            return
        saved = backup.proven(
            lambda: backup.take(session, [step.migration for step in steps], "rollback"),
            lambda saved: rehearsal.back(session, saved, steps),
            lambda saved: undo.export(session, steps, saved.backup if saved else None),
        )
        for step in steps:
            lock.require(session)
            with _undisturbed():
                same_session = undo.back(session, step, saved.name if saved else None)
            if not same_session:  # it had to be replaced, and its lock went with it
                lock.acquire(session)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Say what it means when the history is not as it was a moment ago."""
    try:
        yield
    except PlanChanged as changed:
        raise LockBusy(
            "history.changed",
            "another run changed the history meanwhile, or the connection broke at COMMIT",
            "Look with `check --table`, and run again if it is still wanted.",
        ) from changed


# backups


def take_backup(config: Config, _said: Arguments) -> None:
    """Make one verified backup, whatever PREFLIGHT_BACKUP says, and restore it as proof."""
    from preflight import backup, rehearsal  # noqa: PLC0415 -- only when work is due

    with server.connect(dataclasses.replace(config, backup="required")) as session:
        session.learn(session.ask(f"SELECT {server.FACTS}")[0])  # whatever the history is like
        server.require_direct(session)  # a standby can be backed up
        lock.acquire(session)
        backup.proven(
            lambda: backup.take(session, (), "backup"),
            lambda saved: rehearsal.run(session, saved, ()),
        )


def backups(config: Config, said: Arguments) -> None:
    """List the backups of every database in the directory; needs no server."""
    from preflight import backup  # noqa: PLC0415 -- only when asked

    rows = backup.described(config.backup_dir)
    heads = ("backup", "database", "when", "size", "rows", "taken for", "verified")
    table = [
        (
            row["backup"],
            row["database"],
            row["snapshot_at"],
            report.size(row["size_bytes"] or 0),
            row["rows"],
            row["taken_for"],
            row["verified"],
        )
        for row in rows
    ]
    events = [("backup.listed", row) for row in rows]
    show(
        config, said, {"directory": str(config.backup_dir), "backups": rows}, (heads, table), events
    )


def restore(config: Config, said: Arguments) -> None:
    """Restore a backup into a new database and, when asked, put it in the live one's place."""
    from preflight import restore as steps  # noqa: PLC0415 -- only when asked

    steps.run(config, said)


# results


Table = tuple[Sequence[str], Sequence[Sequence[object]]]


def show(
    config: Config,
    said: Arguments,
    document: dict[str, Any],
    table: Table,
    events: Iterable[tuple[str, dict[str, Any]]],
) -> None:
    """Give a command's result: a table for people, a document for machines, else events."""
    if said.result == "json":
        sys.stdout.write(json.dumps(document, default=_plain, indent=2) + "\n")
    elif said.result == "table" or logs.console_wanted(config.log, sys.stdout):
        colour = logs.colour_wanted(sys.stdout, no_color=config.child_env.get("NO_COLOR"))
        sys.stdout.write(report.table(*table, colour=colour) + "\n")
    else:
        log = structlog.get_logger()
        for name, data in events:
            known = {key: value for key, value in data.items() if value is not None}
            (log.error if name == "check.failed" else log.info)(name, **known)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


STORIES: dict[str, Callable[[Config, Arguments], None]] = {
    "check": check,
    "plan": show_plan,
    "verify": verify_all,
    "rollback": rollback,
    "force": force,
    "adopt": adopt,
    "backup": take_backup,
    "backups": backups,
    "restore": restore,
    "wait": wait,
    "lint": lint,
}
