"""Any migrator behind the gate, and what other commands say of one."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from preflight import gate
from preflight.base import stop
from preflight.base.errors import ConfigInvalid, Pending
from preflight.commands import results
from preflight.commands.wrapping import asked, due, environment, wrapped
from preflight.history import wraps
from preflight.server import ready, sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.commands.wrapping.asked import Wrapped

Said = Mapping[str, Any]
POLL_S = (0.2, 1.0)
_DATABASE = re.compile(
    r"(?i)\b(?:postg\w*|pgsql|psql|pgx\d?|ecto|cockroach\w*|crdb\S*|timescale\w*)(?:\+\w+)?://"
    r"(?P<who>[^/\s$]*@)?"
)


def run(config: Config, **said: Any) -> None:  # noqa: ANN401 -- as `command.wrapped` says it
    """Run another tool's command behind the gate, if it has anything to do."""
    wrapped.run(config, asked.of(said))


def check(config: Config, said: Said, form: str | None) -> None:
    """Show whether a command has anything to do; raises Pending."""
    one = asked.read(config, asked.of(said))
    with sessions.connect(config) as session:
        look = due.look(session, one)
        look.warn(one)
        last = wraps.newest(session) if look.known else None
        database = session.facts.database if session.facts else config.database
    state = "current" if look.current else "pending"
    row = {"command": one.name, "state": state, "key": look.key, "last": last}
    document = {"database": database, "current": look.current, "migrations": [], "wrapped": [row]}
    told = last or {}
    took = f"{told['duration_ms'] / 1000:.2f} s" if told.get("duration_ms") is not None else None
    table = (
        ("command", "state", "last run", "took", "backup"),
        [(one.name, state, told.get("at"), took, told.get("backup"))],
    )
    listed: dict[str, Any] = {"migration": one.name, "state": state, "key": look.key}
    listed |= {"applied_at": told.get("at"), "backup": told.get("backup")}
    results.show(config, form, document, table, [("migration.listed", listed)])
    if not look.current:
        raise _pending(one)


def _pending(one: Wrapped, waited: str = "") -> Pending:
    return Pending(
        "schema.pending",
        f"{one.name} has not run on these files and this database{waited}",
        ("Run `wrap` with the same options." if not waited else
         "Does the job that migrates run, and did it succeed?") + _addressed(one),
    )  # fmt: skip


def _addressed(one: Wrapped) -> str:
    """Say, behind a hint, that who connects is part of the key where an argument says it.

    What a shell puts there (postgres://$DB_USER:$DB_PASSWORD@db/app) is not.
    """
    command = one.asked.command
    found = ((each, _DATABASE.search(each)) for each in command)
    if any(at and (at["who"] or _said([each])) for each, at in found):
        return (
            " The key has the role and the password that are among the arguments: another one makes"
            " another key. Have a shell read the address where it runs: "
            "sh -c '… \"$DATABASE_URL\" …'."
        )
    if _said([each for each in command if "://" not in each]):  # not of a registry, a cache
        return (
            " The key has the password that is among the arguments: another one makes another key. "
            "Have the command read it from a variable or a file."
        )
    return ""


def _said(arguments: Sequence[str]) -> bool:
    """Tell whether a secret stands there, and not only the name of a variable that has it."""
    return any("$" not in each for each in environment.secrets_of_arguments(arguments))


def plan(config: Config, said: Said, form: str | None, *, rehearse: bool) -> None:
    """Show whether a command has anything to do, and with `rehearse` what it does to a copy."""
    one = asked.read(config, asked.of(said))
    told: dict[str, Any] = {}
    with sessions.connect(config) as session:
        look = due.look(session, one)
        pending = wrapped.planned(look, one)
        database = session.facts.database if session.facts else config.database
        if pending and rehearse:
            from preflight.backup import take  # noqa: PLC0415 -- only when asked
            from preflight.commands.wrapping import rehearsed  # noqa: PLC0415 -- only when asked

            wrapped.require_startable(one)
            ready.require_writable(session)
            session.prepare()
            always = dataclasses.replace(config, rehearse="always")

            def attempt() -> dict[str, Any]:
                with take.draft(session, ()) as saved:
                    found = rehearsed.rehearse(session, one, look, saved, always)
                return found.told if found else {}

            told = gate.twice(attempt)
    names = [one.name] if pending else []
    document = {"database": database, "pending": names, "rehearsed": told or None}
    rows = [(one.name, *_costs(told))] if pending else []
    table = (("command", "took", "does", "locks", "rewrites"), rows)
    results.show(config, form, document, table, [], nothing="nothing is pending")


def _costs(told: Said) -> tuple[object, ...]:
    """Return what a rehearsal has shown, as cells."""
    did = [f"{len(told[what])} {what}" for what in ("made", "changed", "dropped") if what in told]
    locks = [f"{each['mode']} on {each['table']}" for each in told.get("locks", ())]
    rewrites = [each["table"] for each in told.get("rewrites", ())]
    took = f"{told['command_s']:.2f} s" if "command_s" in told else None
    return took, ", ".join(did), "; ".join(locks[:3]), ", ".join(rewrites)


def wait(config: Config, said: Said, *, schema: int | str | None) -> None:
    """Wait until a command has run on the files that are here; raises Pending at the deadline."""
    one = asked.read(config, asked.of(said))
    if not isinstance(schema, int) or schema >= 0 or one.asked.always:
        raise ConfigInvalid(
            "config.arguments",
            "`wait` knows a wrapped command by its files alone",
            "Write: wait --schema --watch PATH -- COMMAND, as `wrap` has it.",
        )
    with sessions.connect(config) as session:
        for waited in stop.looks(*POLL_S):
            look = due.look(session, one, session.deadline)
            if look.current:
                look.warn(one)
                return
            if time.monotonic() >= session.deadline:
                raise _pending(one, f" after {config.wait_timeout_s:g} s")
            if not waited:
                structlog.get_logger().info(
                    "server.waiting", reason="migrations are pending", pending=[one.name]
                )
