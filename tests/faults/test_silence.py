"""Silence: a login passes, and from some message on nothing of the server's arrives any more."""

import contextlib
import random

import pytest

from tests import faults, servers
from tests.conftest import Run, Start, WriteMigrations

COMMANDS = (("check",), ("verify",), ("wait",), ("wait", "--schema"))
BRIEFLY = {"PREFLIGHT_WAIT_TIMEOUT_S": "1", "PREFLIGHT_LOCK_TIMEOUT_MS": "100"}
PATIENCE_S = 100.0  # no promise: only so that nothing hangs for ever


class Silent(faults.Fault):
    """Says nothing to any session that has heard so many messages since its login."""

    def __init__(self, after: int) -> None:
        """Let the login pass."""
        self.after, self.answered = after, False

    def connected(self) -> faults.Fault:
        """Count for each session."""
        return _Session(self)


class _Session(faults.Fault):
    def __init__(self, of: Silent) -> None:
        self.of, self.heard = of, -1  # before the login is over

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Be silent from there on."""
        if self.heard >= self.of.after:
            return b""
        self.of.answered |= self.heard >= 0 and kind == b"Z"
        self.heard += self.heard >= 0 or kind == b"Z"
        return message


@pytest.mark.parametrize("seed", ["sample/1"])
def test_who_only_looks_is_answered_or_ends_at_the_deadline(
    run: Run, start: Start, server: servers.Server, migrations: WriteMigrations, seed: str
) -> None:
    """From whatever message on nothing comes: nobody takes a login for an answer, or waits on."""
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    assert 0 == run("up", env={"PREFLIGHT_BACKUP": "off"}).code
    with contextlib.ExitStack() as stack:
        asked = []
        for command in COMMANDS:
            silent = Silent(choice.choice((0, 0, 1, 4, 6)))
            proxy = stack.enter_context(faults.through(server, silent))
            asked.append((silent, start(*command, env={**proxy.env(), **BRIEFLY})))
        ended = [(silent, process.wait(PATIENCE_S)) for silent, process in asked]

    for silent, result in ended:
        assert result.code in {0, 10}, f"after {silent.after}: {result}"
        assert silent.answered or result.code, f"nobody answered: {result}"
