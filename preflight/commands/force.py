"""`force`: run a recorded file again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from preflight import gate
from preflight.apply import contact
from preflight.base import quoting, repeat
from preflight.base.errors import (
    ConfigInvalid,
    PlanChanged,
)
from preflight.commands import adopt, command
from preflight.files import due, folder
from preflight.history import ledger, numbers, plan
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.files.migrations import Migration


def run(config: Config, *, version: int | str | None = None) -> None:
    """Run a recorded file again from its start, with the safety of `up`."""
    from preflight.apply import forward  # noqa: PLC0415 -- only when work is due

    files = folder.load(config)
    with sessions.connect(config) as session:
        known = gate.recorded(session)
        files = numbers.settled(files, known)
        file = _to_force(config, files, known, version)
        numbers.refuse_marked(files, [file])
        chosen, by = known.records[file.version], ledger.writer(session, file.version)
        gate.enter(session)
        ledger.ensure(session)
        known = ledger.read(session)
        among = {file.version} if version is not None else {each.version for each in files}
        newest = max(among & known.records.keys(), default=file.version)
        gate.require_chosen(session, chosen, by, known.records.get(newest))
        file = _to_force(config, files, known, version)
        contact.require_told(session, files)
        row = ledger.row_of(session, file.version)
        due.require(due.scripts([file]))
        repeat.instead(_again(config, file))
        backup = gate.proven(session, [file], "force", row)
        with gate.undisturbed(session):
            try:
                forward.forward(session, file, backup, row)
            except PlanChanged:  # also when the COMMIT came through and only its answer was lost
                row = ledger.row_of(session, file.version)
                if row is None or (row.run_id, row.state) != (config.run_id, "done"):
                    raise


def _again(config: Config, file: Migration) -> str:
    """Say how to find out whether a file ran: it is not to run once more unseen."""
    look = "SELECT state, run_id FROM"
    of = f"{quoting.name(config.schema)}.migrations WHERE version = {file.version}"
    return (
        f"Look before you run `force {file.written}` again, for that runs the file once more: "
        f"`{look} {of}`. `done` by {config.run_id}: it came through. `done` by "
        "another: it did not. Another state: `check` says how to go on."
    )


def _to_force(
    config: Config, files: Sequence[Migration], known: plan.History, version: int | str | None
) -> Migration:
    recorded = [file for file in files if file.version in known.records]
    if version is None and not recorded:
        raise ConfigInvalid(
            "config.arguments", "no file on disk is recorded in the database", "Run `up` instead."
        )
    file = recorded[-1] if version is None else numbers.file(files, known, version)
    if file not in recorded:
        raise ConfigInvalid(
            "config.arguments", f"{file.name} was never applied", "Run `up` instead."
        )
    record = known.records[file.version]
    if plan.compared(file, record) in ("renamed", "other"):
        adopt.refuse_contradiction(file, record)
    others = [other for other in files if other.version != file.version]
    rest = {v: record for v, record in known.records.items() if v != file.version}
    plan.of(config, others, dataclasses.replace(known, records=rest))
    return file


COMMAND = command.Command(
    place=5,
    does="run one recorded file again from its start, with the safety of `up`; accepts an edit",
    example="entrypoint.py force 2",
    run=run,
    version="the version to run again (default: the newest that is recorded)",
)
