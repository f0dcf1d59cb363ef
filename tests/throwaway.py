"""Processes that have a throwaway server each: started by the tests, to be stopped and killed.

usage: python -m tests.throwaway '{"major": 17, "pg_dump": "…", "directory": "…", "run_id": "…"}'

Each says one line of JSON once its server runs, and keeps it until its standard input ends.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preflight.base import stop
from preflight.rehearsal import local


def main(arguments: Sequence[str]) -> int:
    """Have a server, or `count` of them at once; return the worst exit code."""
    wanted = json.loads(arguments[0])
    if uid := wanted.get("uid"):
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if "count" not in wanted:
        return have(wanted)
    for number in range(wanted["count"]):
        if os.fork() == 0:
            os._exit(have({**wanted, "run_id": f"{wanted['run_id']}-{number}"}))
    return max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(wanted["count"]))


def have(wanted: Mapping[str, Any]) -> int:
    """Have a server for as long as somebody listens; a stop ends it, and us with 143."""
    signal.signal(signal.SIGTERM, lambda number, _: stop.request(number))
    programs = local.find(wanted["major"], wanted["pg_dump"], os.defpath)
    if template := wanted.get("template"):
        found = programs.postgres, None, Path(template), programs.version, programs.major
        programs = local.Programs(*found)
    directory = local.place(Path(wanted["directory"]))
    try:
        with local.started(programs, directory, wanted["run_id"], need=0) as server:
            say(
                pid=server.process.pid if server.process else 0,
                home=str(server.directory),
                socket=str(server.socket),
            )
            with stop.allowed():
                sys.stdin.read()
    except stop.Stopped as stopped:
        return 128 + stopped.signum
    except local.Unavailable as reason:
        say(unavailable=type(reason).__name__, why=str(reason))
        return 1
    return 0


def say(**what: object) -> None:
    """Say it in one write, so that the lines of several do not mix."""
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
