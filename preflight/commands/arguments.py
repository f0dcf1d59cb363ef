"""The command line: names, spellings, help that teaches."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from preflight.base.errors import ConfigInvalid
from preflight.commands.command import version
from preflight.commands.registry import COMMANDS

SPELLINGS = {"--check": "check", "--rollback": "rollback", "--force": "force"}


@dataclass(frozen=True, slots=True)
class Said:
    """Which command the command line named, and what its options say, by their names."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigInvalid("config.arguments", message, f"See `{self.prog} --help`.")


def parse(arguments: Sequence[str]) -> Said:
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
    found = {key: value for key, value in vars(namespace).items() if value is not None}
    return Said(found.pop("name"), found)


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
                "version", nargs="?", type=version, metavar="VERSION", help=command.version
            )
        if command.result:
            form = one.add_mutually_exclusive_group()
            for value, words in (
                ("table", "the table on stdout, also into a pipe; events go to stderr"),
                ("json", "one JSON document on stdout; events go to stderr"),
            ):
                form.add_argument(
                    f"--{value}", dest="form", action="store_const", const=value, help=words
                )
        command.options(one)
    return parser
