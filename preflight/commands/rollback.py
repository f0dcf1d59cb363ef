"""`rollback`: take migrations back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog

from preflight import gate
from preflight.apply import contact
from preflight.base import repeat
from preflight.base.errors import PlanChanged
from preflight.commands import command
from preflight.files import folder
from preflight.history import ledger, numbers, plan
from preflight.server import lock, sessions

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config
    from preflight.files.migrations import Migration
    from preflight.history.plan import History
    from preflight.server.sessions import Session


def run(config: Config, *, to: int | str | None = None) -> None:
    """Take back the newest migration, or all above a version, newest first."""
    from preflight.apply import back  # noqa: PLC0415 -- only when work is due
    from preflight.backup import exports  # noqa: PLC0415 -- only when work is due

    files = folder.load(config)
    with sessions.connect(config) as session:
        known = gate.recorded(session)
        plan.require_alone(known)
        files = numbers.settled(files, known)
        down_to = None if to is None else _floor(files, known, to)
        chosen = back.choose(files, known, down_to)
        if not chosen:
            structlog.get_logger().info("plan.made", rollback=[])
            return  # nothing recorded that could be taken back
        by = ledger.writer(session, chosen[0])
        gate.enter(session)
        ledger.ensure(session)
        before = ledger.read(session)
        plan.require_alone(before)
        versions = back.choose(files, before, down_to)
        if down_to is None:
            newest = before.records[versions[0]] if versions else None
            gate.require_chosen(session, known.records[chosen[0]], by, newest)
        steps = back.prepare(session, files, versions)
        if not steps:
            return
        contact.require_told(session, files)
        if to is None:
            repeat.instead(_again(before, steps[0].row.version))
        saved, name = gate.proven_back(session, steps)
        for done, step in enumerate(steps, 1):
            lock.require_alone(session)
            save = partial(exports.again, session, step, saved, first=step is steps[0])
            with gate.undisturbed(session):
                same_session = back.back(session, step, name, save)
                if not same_session and done < len(steps):
                    gate.enter(session)  # the lock went with the session that was replaced
                    _require_nobody_came(
                        session, before, {each.row.version for each in steps[:done]}
                    )


def _again(known: History, newest: int) -> str:
    """Say how the newest migration is taken back where it may be gone already: not one more."""
    return (
        f"Run `rollback --to {known.kept_below(newest)}`, which does nothing if this one came "
        "through: without --to one migration more would be taken back."
    )


def _floor(files: Sequence[Migration], known: History, to: int | str) -> int:
    """Return above which number everything is taken back: 0 is below version 000, and 000 is not.

    Raises ConfigInvalid.
    """
    number = numbers.of(files, known, to)
    return -1 if number == 0 and str(getattr(to, "said", to)) == "0" else number


def _require_nobody_came(session: Session, before: History, gone: Collection[int]) -> None:
    """Make sure that the history is what is left of what it was; raises PlanChanged."""
    left = {version: each for version, each in before.records.items() if version not in gone}
    if ledger.read(session).records != left:
        raise PlanChanged


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        type=command.version,
        metavar="VERSION",
        help="take back everything above VERSION, newest first (0: everything; 000 stays with 000)",
    )


COMMAND = command.Command(
    place=4,
    does="take back the newest migration: back up, export, rehearse, run its rollback file, record",
    example="entrypoint.py rollback --to 1     # take back everything above version 1",
    run=run,
    options=_options,
)
