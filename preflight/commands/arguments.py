"""The command line: names, options, help that teaches."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from preflight.base.errors import ConfigInvalid

PARTS = ("tablespace", "grants", "settings", "locale")  # what belongs to a database itself
SPELLINGS = {"--check": "check", "--rollback": "rollback", "--force": "force"}


@dataclass(frozen=True, slots=True)
class Command:
    """What the help says of a command, and what it takes."""

    does: str
    example: str
    version: str | None = None  # what the optional VERSION means
    result: bool = False  # --table and --json


COMMANDS = {
    "up": Command(
        "apply what is pending: back up, rehearse, migrate, verify (the default)", "entrypoint.py"
    ),
    "check": Command(
        "show every migration and its state; exit 0 current, 3 pending, 26 conflict, 33 partial",
        "entrypoint.py check --table",
        result=True,
    ),
    "plan": Command(
        "show what `up` would do: each statement, its locks, what it destroys, what blocks it now",
        "entrypoint.py plan --rehearse --table",
        result=True,
    ),
    "verify": Command(
        "run the verify files of what is applied; exit 33 when a check fails",
        "entrypoint.py verify 2 --table",
        version="only this version, applied or not",
        result=True,
    ),
    "rollback": Command(
        "take back the newest migration: back up, export, rehearse, run its rollback file, record",
        "entrypoint.py rollback --to 1     # take back everything above version 1",
    ),
    "force": Command(
        "run one recorded file again from its start, with the safety of `up`; accepts an edit",
        "entrypoint.py force 2",
        version="the version to run again (default: the newest that is recorded)",
    ),
    "adopt": Command(
        "record files that are in the database already, without running them",
        "entrypoint.py adopt 1     # also settles an edited checksum or an exit 32",
        version="this one, also when it has no verify file (default: all whose verify file agrees)",
    ),
    "backup": Command("make one backup, and restore it as proof", "entrypoint.py backup"),
    "backups": Command(
        "list the backups: time, size, taken for, how far verified",
        "entrypoint.py backups --table",
        result=True,
    ),
    "restore": Command(
        "restore a backup into a new database beside the live one",
        "entrypoint.py restore unicorn_db-20261123T120000Z-ab12 --into unicorn_copy\n"
        "  entrypoint.py restore latest --swap     # and put it in the live one's place",
    ),
    "wait": Command(
        "wait for the server; with --schema until migrations are applied (writes nothing)",
        "entrypoint.py wait --schema     # in front of an app whose migrations a Job runs",
    ),
    "lint": Command(
        "read the migration files only, no server; exit 25 when one is invalid",
        "entrypoint.py lint --table",
        result=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line said."""

    name: str = "up"
    version: int | None = None
    to: int | None = None
    rehearse: bool = False
    result: str | None = None  # table or json; None: the result is events, or a table on a terminal
    schema: bool = False
    backup: str = "latest"
    into: str | None = None
    swap: bool = False
    end_sessions: bool = False
    again: bool = False
    without: frozenset[str] = frozenset()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigInvalid("config.arguments", message, f"See `{self.prog} --help`.")


def parse(arguments: Sequence[str]) -> Arguments:
    """Return what the command line says; raises ConfigInvalid, prints help and exits for --help."""
    said = list(arguments) or ["up"]
    said[0] = SPELLINGS.get(said[0], said[0])
    if not said[0].startswith("-") and said[0] not in COMMANDS:
        near = difflib.get_close_matches(said[0], COMMANDS, 1)
        raise ConfigInvalid(
            "config.arguments",
            f"there is no command {said[0]!r}",
            f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(COMMANDS)}.",
        )
    parser = _parser()
    namespace, unknown = parser.parse_known_args(said)
    if unknown:
        _refuse(parser, said[0], unknown)
    found = vars(namespace)
    if isinstance(found.get("schema"), int):
        found["version"] = None if found["schema"] < 0 else found["schema"]
        found["schema"] = True
    return Arguments(**{name: value for name, value in found.items() if value is not None})


def _refuse(parser: argparse.ArgumentParser, command: str, unknown: Sequence[str]) -> NoReturn:
    """Name what nobody knows, and what may have been meant."""
    usage = parser if command.startswith("-") else _choices(parser)[command]
    known = [option for action in usage._actions for option in action.option_strings]  # noqa: SLF001 -- argparse tells it nowhere else
    known += SPELLINGS if command.startswith("-") else ()
    near = [option for word in unknown for option in known if option.startswith(word)] + [
        found for word in unknown for found in difflib.get_close_matches(word, known, 1, cutoff=0.5)
    ]
    raise ConfigInvalid(
        "config.arguments",
        f"unknown arguments: {' '.join(unknown)}",
        f"Did you mean {near[0]}?" if near else f"See `{usage.prog} --help`.",
    )


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001 -- likewise
    return dict(commands.choices)


def _version(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:  # noqa: PLR2004 -- the digits of a file name
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: write its number, 2 or 002")
    return int(text)


def _parts(text: str) -> frozenset[str]:
    found = frozenset(text.split(","))
    if not found <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(PARTS)}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="entrypoint.py",
        description="Make a PostgreSQL database ready before the app starts.",
        epilog="Settings are environment variables (DATABASE_URL, PG*, POSTGRES_*, PREFLIGHT_*): "
        "see docs/configuration.md.\n"
        "Exit codes: 0 done, 3 pending, 1x run again, 2x change something first, "
        "3x look at the database first: see docs/exit-codes.md.\n"
        "`entrypoint.py COMMAND --help` says more, with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.does,
            description=command.does[0].upper() + command.does[1:] + ".",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if command.version:
            one.add_argument(
                "version", nargs="?", type=_version, metavar="VERSION", help=command.version
            )
        if command.result:
            form = one.add_mutually_exclusive_group()
            for value, words in (
                ("table", "the table on stdout, also into a pipe; events go to stderr"),
                ("json", "one JSON document on stdout; events go to stderr"),
            ):
                form.add_argument(
                    f"--{value}", dest="result", action="store_const", const=value, help=words
                )
        _add_options(name, one)
    return parser


def _add_options(name: str, parser: argparse.ArgumentParser) -> None:
    if name == "rollback":
        parser.add_argument(
            "--to",
            type=_version,
            metavar="VERSION",
            help="take back everything above VERSION, newest first (0: everything)",
        )
    elif name == "plan":
        parser.add_argument(
            "--rehearse",
            action="store_true",
            default=None,
            help="try it on a restored copy, with times",
        )
    elif name == "wait":
        parser.add_argument(
            "--schema",
            nargs="?",
            type=_version,
            const=-1,
            metavar="VERSION",
            help="until every file on disk, or VERSION, is applied; exit 3 at the deadline",
        )
    elif name == "restore":
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
