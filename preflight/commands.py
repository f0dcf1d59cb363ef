"""The command line, and the commands besides `up`: each a short story of the same steps."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import structlog

from preflight import history, logs, migrations, plan, report, server
from preflight.config import Config
from preflight.errors import (
    ConfigInvalid,
    Failure,
    HistoryConflict,
    NeedsRepair,
    Pending,
    SchemaAhead,
    VerifyFailed,
)

Command = Callable[[Config], None]

SPELLINGS = {"--check": "check", "--rollback": "rollback", "--force": "force"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigInvalid("config.arguments", message, f"See `{self.prog} --help`.")


def parse(arguments: Sequence[str], up: Command) -> tuple[Command, dict[str, Any]]:
    """Return the command that the arguments name, and its options; raises ConfigInvalid."""
    said = list(arguments)
    said[0] = SPELLINGS.get(said[0], said[0])
    if not said[0].startswith("-") and said[0] not in COMMANDS:
        near = difflib.get_close_matches(said[0], COMMANDS, 1)
        raise ConfigInvalid(
            "config.arguments",
            f"there is no command {said[0]!r}",
            f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(COMMANDS)}.",
        )
    options = vars(_parser().parse_args(said))
    name = options["name"] or "up"
    result = options.get("result")
    options["name"] = name
    options["result_on_stdout"] = result is not None
    run = up if name == "up" else COMMANDS[name][0]
    return (run if name == "up" else lambda config: run(config, result)), options  # type: ignore[call-arg]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="entrypoint.py",
        description="Make a PostgreSQL database ready before the app starts: wait, back up, "
        "migrate, verify.",
        epilog="Settings are environment variables: see README.md. Exit codes: 0 done, 3 pending, "
        "1x run again, 2x change something first, 3x look at the database first.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = parser.add_subparsers(dest="name", metavar="COMMAND", parser_class=_Parser)
    for name, (_, words, example) in COMMANDS.items():
        one = sub.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "check":
            form = one.add_mutually_exclusive_group()
            form.add_argument(
                "--json", dest="result", action="store_const", const="json",
                help="one JSON document on stdout; events go to stderr",
            )  # fmt: skip
            form.add_argument(
                "--table", dest="result", action="store_const", const="table",
                help="the table on stdout, also into a pipe; events go to stderr",
            )  # fmt: skip
    return parser


def check(config: Config, result: str | None) -> None:
    """Show every migration and its state; raises what stands in the way, then Pending."""
    files = migrations.load(config.migrations_dir)
    with server.connect(config) as session:
        known = history.read(session)
        details = history.listing(session) if known.present else []
        adoptable, problem = _first_look(session, files, known)
        database = session.facts.database if session.facts else config.database
    rows = states(files, known, details, adoptable)
    verdict = problem or judge(config, files, known)
    _show(config, database, rows, current=verdict is None, result=result)
    if verdict:
        raise verdict


def _first_look(
    session: server.Session, files: Sequence[migrations.Migration], known: plan.History
) -> tuple[set[int], Failure | None]:
    """Before first contact: return the versions that `up` would adopt; writes nothing."""
    if known.records:
        return set(), None
    session.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
    try:
        if history.is_empty(session):
            return set(), None
        return {file.version for file, _ in history.adoptable(session, files)}, None
    except (VerifyFailed, HistoryConflict) as failure:
        return set(), failure
    finally:
        history.roll_back(session)


def judge(
    config: Config, files: Sequence[migrations.Migration], known: plan.History
) -> Failure | None:
    """Return the first that holds of 26, 28, 32, 33 and 3."""
    try:
        made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
    except (HistoryConflict, SchemaAhead) as failure:
        return failure
    partial = [record for record in known.records.values() if record.state == "failed"]
    if partial:
        return NeedsRepair(
            "migration.partial",
            f"{partial[0].name} stopped part-way",
            "`up` resumes it where that is safe, and says so where it is not.",
            migration=partial[0].name,
            version=partial[0].version,
        )
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
    files: Sequence[migrations.Migration],
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
                "state": _state(file, record, detail, newest, adoptable=version in adoptable),
                "applied_at": detail.get("applied_at"),
                "duration_ms": detail.get("duration_ms"),
                "applied_by": detail.get("applied_by"),
                "backup": detail.get("backup"),
            }
        )
    return rows


def _state(
    file: migrations.Migration | None,
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
    if record.state != "done":
        return "partial"
    if record.checksum != file.checksum:
        return "edited"
    return "adopted" if detail.get("how") == "adopted" else "applied"


def _show(
    config: Config, database: str, rows: list[dict[str, Any]], *, current: bool, result: str | None
) -> None:
    if result == "json":
        document = {"database": database, "current": current, "migrations": rows}
        sys.stdout.write(json.dumps(document, default=_iso, indent=2) + "\n")
    elif result == "table" or logs.console_wanted(config.log, sys.stdout):
        sys.stdout.write(_table(rows) + "\n")
    else:
        for row in rows:
            fields = {key: value for key, value in row.items() if value is not None}
            fields["migration"] = fields.pop("name")
            structlog.get_logger().info("migration.listed", **fields)


def _iso(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _table(rows: list[dict[str, Any]]) -> str:
    return report.table(
        ("version", "description", "state", "when", "took", "by"),
        [
            (
                f"{row['version']:03d}",
                row["name"].partition("_")[2].replace("_", " "),
                row["state"],
                row["applied_at"] and row["applied_at"].strftime("%Y-%m-%d %H:%M:%S %Z"),
                None if row["duration_ms"] is None else f"{row['duration_ms'] / 1000:.2f} s",
                row["applied_by"],
            )
            for row in rows
        ],
    )


COMMANDS: dict[str, tuple[Any, str, str]] = {
    "up": (None, "apply what is pending (the default)", "entrypoint.py"),
    "check": (
        check,
        "show every migration and its state; 0 current, 3 pending",
        "entrypoint.py check --table",
    ),
}
