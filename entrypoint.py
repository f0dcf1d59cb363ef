#!/usr/bin/env python3
"""Make a PostgreSQL database ready before the app starts.

`up()` is the story; what every step promises stands in its room under `preflight/`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog

from preflight import run
from preflight.apply import contact
from preflight.base import stop
from preflight.base.errors import PlanChanged
from preflight.commands import choice
from preflight.files import migrations, reading
from preflight.history import fence, ledger, plan
from preflight.server import lock, ready, sessions

if TYPE_CHECKING:
    from preflight.base.config import Config

ROUNDS = 5  # plans in a row that come to nothing before the history is called damaged


def up(config: Config) -> None:
    """Bring the database up to date, or stop at the first step that cannot."""
    files = load(config)  # what can fail without a server fails first

    with sessions.connect(config) as session:  # 10 21 22
        todo = make_plan(config, files, ledger.read(session))  # 26 28
        if todo.empty:
            return  # the common case: one connection, one query

        from preflight.apply import forward  # noqa: PLC0415 -- only when work is due
        from preflight.backup import take  # noqa: PLC0415 -- only when work is due
        from preflight.rehearsal import trial  # noqa: PLC0415 -- only when work is due

        saved, due, rounds = None, True, 0
        while not todo.empty:
            ready.require_writable(session)  # 22
            lock.acquire(session)  # 11; held until the session ends
            todo = make_plan(config, files, contact.settle(session, files))  # 26 28 32 33
            if todo.empty:
                return  # another run did it, or everything was there already
            if due:
                saved = take.proven(  # 14 23 24 27
                    partial(take.take, session, todo.todo),
                    partial(trial.run, session, todo=todo.todo),
                )
                due = False
            try:
                for migration in todo.todo:
                    lock.require(session)
                    forward.forward(
                        session, migration, saved.name if saved else None
                    )  # 12 13 30 31
            except PlanChanged:  # another run was there, or the session had to be replaced
                due = config.backup != "off"  # the old backup is of another state
                before, todo = todo, make_plan(config, files, ledger.read(session))
                rounds = rounds + 1 if todo == before else 0
                if rounds == ROUNDS:
                    raise fence.unwritable(session) from None
                stop.sleep(random.uniform(0.05, 0.25))  # noqa: S311 -- jitter, not a secret
            else:
                return


def load(config: Config) -> tuple[migrations.Migration, ...]:
    """Read the files and say so."""
    files = reading.load(config.migrations_dir)  # 20 25
    structlog.get_logger().info(
        "files.loaded",
        count=len(files),
        newest=files[-1].name,
        directory=str(config.migrations_dir),
    )
    return files


def make_plan(
    config: Config, files: Sequence[migrations.Migration], known: plan.History
) -> plan.Plan:
    """Make the plan and say so."""
    made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
    log = structlog.get_logger()
    if made.ahead:
        log.warning("schema.ahead", migrations=[record.name for record in made.ahead])
    log.info("plan.made", pending=[migration.name for migration in made.todo])
    return made


def main() -> int:
    """Run the command of this process and return its exit code."""
    return run.process(sys.argv[1:], partial(choice.made, up=up))


if __name__ == "__main__":
    sys.exit(main())
