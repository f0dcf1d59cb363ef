#!/usr/bin/env python3
"""Make a PostgreSQL database ready before the app starts.

`up()` is the story; what every step promises stands in its room under `preflight/`.
"""

import os.path
import sys

HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 -- pathlib takes time to load
if globals().get("__spec__") is None and HERE not in sys.path:
    sys.path.insert(0, HERE)  # -I, -P and PYTHONSAFEPATH leave a script's own directory out

from preflight.base import unloadable

if __name__ == "__main__":
    unloadable.listen()
    unloadable.speak_utf8()
    unloadable.keep_stops()
    from preflight.quick import door

    door.leave_if_done()  # most starts: what is imported below takes five times as long
    from preflight.base import stop

    stop.listen(stop.remember)
    unloadable.tell(stop.remember)

from functools import partial
from typing import TYPE_CHECKING

from preflight import gate, run
from preflight.commands import choice
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.base.config import Config


def up(config: "Config") -> None:
    """Bring the database up to date, or stop at the first step that cannot."""
    files = gate.files(config)  # 20 25: what can fail without a server fails first
    with sessions.connect(config) as session:  # 10 21 22
        if not gate.pending(session, files):  # 26 28
            return  # the common case: one connection, one query
        from preflight.apply import forward  # noqa: PLC0415 -- only when work is due

        for attempt in gate.rounds(session, files):  # 11 22 26 28 32 33: locked, planned again
            with attempt:  # ended by a change of the history: then there is another one
                backup = attempt.proven()  # 14 23 24 27
                for migration in attempt.todo:
                    forward.forward(session, migration, backup)  # 12 13 30 31


def main() -> int:
    """Run the command of this process and return its exit code."""
    return run.process(sys.argv[1:], partial(choice.made, up=up))


if __name__ == "__main__":
    run.leave(main())
