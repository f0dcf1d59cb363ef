"""`restore`: put a backup into a new database, or in the live one's place."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.base import repeat
from preflight.base.errors import ConfigInvalid
from preflight.commands import command
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.base.config import Config


def run(config: Config, **asked: Any) -> None:  # noqa: ANN401 -- as `_options` below says
    """Restore a backup into a new database and, when asked, put it in the live one's place."""
    from preflight.backup import points, restore, restored  # noqa: PLC0415 -- only when asked
    from preflight.history import journal  # noqa: PLC0415 -- as above

    if points.names_one(asked["backup"]):
        raise _elsewhere(config, asked["backup"])
    if asked.get("again"):
        repeat.instead(
            "Run the same without --again: it goes on, or says when this backup was swapped in "
            "last. Only where that was before this run, add --again once more."
        )
    restore.run(config, restored.Asked(**asked), journal.newest_point)


def _elsewhere(config: Config, name: str) -> ConfigInvalid:
    """Return how to come back to a point: another tool does that."""
    from preflight.history import journal  # noqa: PLC0415 -- only for a point

    with sessions.connect(config) as session:
        session.look()
        said = journal.point(session, name)
    if said is None:
        return ConfigInvalid(
            "config.arguments",
            f"the history of {config.database} knows no {name}",
            "The log of the run that made it has the command (`backup.verified`, `restore`).",
        )
    return ConfigInvalid(
        "backup.elsewhere",
        f"{name} is restored by its own tool: {json.loads(said)['restore']}",
        "That command is yours to run: it replaces a whole server. Its tool's manual says what "
        "must be stopped first; docs/archive.md has examples.",
    )


PARTS = ("tablespace", "grants", "settings", "locale")  # what belongs to a database itself


def _parts(text: str) -> frozenset[str]:
    found = frozenset(text.split(","))
    if not found <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(PARTS)}")
    return found


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backup", metavar="BACKUP", help="its name or path, or `latest`")
    parser.add_argument(
        "--into", metavar="DB", help="the new database (default: the name with _restored)"
    )
    parser.add_argument(
        "--swap",
        action="store_true",
        default=None,
        help="then rename it into the live one's place, which is kept under a dated name",
    )
    parser.add_argument(
        "--end-sessions",
        action="store_true",
        default=None,
        help="with --swap: end the sessions that are connected, instead of refusing",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        default=None,
        help="with --swap: also when this very backup was swapped in before",
    )
    parser.add_argument(
        "--without",
        type=_parts,
        metavar="WHAT",
        help="leave out of the new database what this server cannot give it, with commas: "
        + ", ".join(PARTS),
    )
    parser.add_argument(
        "--skip",
        action="append",
        metavar="ENTRY",
        help="leave out an entry of the archive, as an error names it: 'EXTENSION pg_cron' (may be "
        "given several times)",
    )
    parser.add_argument(
        "--no-owner",
        action="store_true",
        default=None,
        help="leave out owners and rights of what is in it: everything belongs to this role",
    )
    parser.add_argument(
        "--identity-file",
        type=Path,
        metavar="FILE",
        help="the secret key that opens a sealed backup: age's, or ssh's without a passphrase",
    )


COMMAND = command.Command(
    place=9,
    does="restore a backup into a new database beside the live one",
    example="entrypoint.py restore unicorn_db-20261123T120000Z-ab12 --into unicorn_copy\n"
    "  entrypoint.py restore latest --swap     # and put it in the live one's place",
    run=run,
    options=_options,
)
