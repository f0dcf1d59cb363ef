"""The command line: names, spellings, help that teaches."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from preflight import __version__
from preflight.base import config, errors, logs
from preflight.base.errors import ConfigInvalid, ExitCode
from preflight.base.near import nearest
from preflight.commands.command import many, version
from preflight.commands.registry import COMMANDS

SPELLINGS = {"--check": "check", "--rollback": "rollback", "--force": "force"}
VERSION = ("version", "--version", "-V")
# what other tools call it, and what it is here
ELSEWHERE = {
    **dict.fromkeys(
        ("migrate", "apply", "deploy", "upgrade", "update", "run", "start", "latest", "sync",
         "dev", "push", "execute"),
        "`up` applies what is pending.",
    ),
    **dict.fromkeys(
        ("up-to", "up-by-one", "goto", "to", "before"),
        "`up` applies all that is pending; `rollback --to VERSION` takes back all above one.",
    ),
    **dict.fromkeys(
        ("status", "info", "state", "show", "current", "history", "list", "pending", "heads",
         "log", "showmigrations", "currentversion", "up-to-date", "branches"),
        "`check --table` shows every migration and its state.",
    ),
    **dict.fromkeys(
        ("down", "undo", "revert", "downgrade", "back", "rollback-to", "down-to", "rollback-count",
         "uncommit"),
        "`rollback` takes back the newest migration, `rollback --to VERSION` all above it.",
    ),
    **dict.fromkeys(
        ("redo", "rerun", "reapply", "retry"), "`force VERSION` runs a recorded file again."
    ),
    **dict.fromkeys(
        ("dry-run", "dryrun", "preview", "diff", "explain", "pretend", "updatesql", "simulate",
         "update-sql", "sqlmigrate"),
        "`plan --rehearse --table` shows what `up` would do, tried on a copy.",
    ),
    **dict.fromkeys(
        ("baseline", "stamp", "repair", "resolve", "mark", "fake", "fix", "changelogsync",
         "changelog-sync", "skip", "set"),
        "`adopt VERSION` records a file without running it; `force VERSION` runs it again.",
    ),
    **dict.fromkeys(("test", "tests"), "`verify` runs the verify files."),
    **dict.fromkeys(("validate", "inspect"), "`lint` reads the files, `verify` asks the database."),
    **dict.fromkeys(("dump", "snapshot", "save"), "`backup` makes a proven backup."),
    **dict.fromkeys(("load", "recover"), "`restore BACKUP` restores one."),
    **dict.fromkeys(
        ("new", "create", "generate", "make", "add", "revision", "init", "makemigrations", "edit"),
        "A migration is a file, NNN_name.sql, in the migrations directory; `lint` reads it.",
    ),
    **dict.fromkeys(
        ("drop", "reset", "clean", "wipe", "fresh", "seed", "flush", "drop-all"),
        "Nothing here empties a database; `rollback --to 0` takes every migration back.",
    ),
    **dict.fromkeys(
        ("unlock", "forceunlock", "break-lock", "release-locks", "list-locks"),
        "Nothing is to be unlocked: the lock ends with the run that has it, and `up` waits for it.",
    ),
}  # fmt: skip
OPTIONS_ELSEWHERE = {
    **dict.fromkeys(("--dry-run", "--dry_run", "--plan", "--pretend", "-n"), ELSEWHERE["dry-run"]),
    **dict.fromkeys(("--status", "--list", "--info"), ELSEWHERE["status"]),
    **dict.fromkeys(("--fake", "--baseline"), ELSEWHERE["baseline"]),
    **dict.fromkeys(("--verbose", "-v", "--debug", "--quiet", "-q"), "See PREFLIGHT_LOG_LEVEL."),
    **dict.fromkeys(
        ("--url", "--database", "--dsn", "--database-url", "--host", "--port", "--user", "-d", "-h",
         "-U", "-p"),
        "DATABASE_URL, or the PG* variables, say where the database is.",
    ),
    **dict.fromkeys(("--path", "--dir", "--source", "--folder"), "See PREFLIGHT_MIGRATIONS_DIR."),
    **dict.fromkeys(("--up", "--apply", "--migrate"), ELSEWHERE["migrate"]),
    **dict.fromkeys(("--down", "--undo", "--steps", "--step"), ELSEWHERE["down"]),
    **dict.fromkeys(
        ("--yes", "-y", "--assume-yes", "--no-input", "--noinput", "--non-interactive"),
        "Leave it out: nothing here asks before it acts.",
    ),
    **dict.fromkeys(
        ("--json", "--table"),
        f"{', '.join(name for name, each in COMMANDS.items() if each.result)} have a result to "
        "show so; of every other command the log events tell.",
    ),
    "--timeout": "See PREFLIGHT_WAIT_TIMEOUT_S, PREFLIGHT_LOCK_WAIT_S and "
    "PREFLIGHT_STATEMENT_TIMEOUT_S.",
}  # fmt: skip

ONE_PATH = "--watch takes one path: write it before each, or name their directory."
BEHIND = (
    "Write another tool's command behind `--`: wrap --watch migrations/ -- alembic upgrade head."
)


@dataclass(frozen=True, slots=True)
class Said:
    """Which command the command line named, and what its options say, by their names."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


_SECRET = re.compile(r"\S*(?:://|=)\S*")  # may hold one


class _Parser(argparse.ArgumentParser):
    behind = ""  # what stands behind the options, where argparse does not see it

    def format_help(self) -> str:
        """Return the help, whose first paragraph is the usage."""
        usage, gap, rest = super().format_help().partition("\n\n")
        indent = " " * len(f"usage: {self.prog} ")
        return "".join((usage, f"\n{indent}{self.behind}" if self.behind else "", gap, rest))

    def print_help(self, file: object = None) -> None:
        """Write the help as a result: a reader who has seen enough may go."""
        assert file is None  # noqa: S101 -- nobody asks for another place
        logs.give(self.format_help())

    def error(self, message: str) -> NoReturn:
        message = _SECRET.sub("…", message)
        raise ConfigInvalid("config.arguments", message, f"See `{self.prog} --help`.")


def parse(arguments: Sequence[str]) -> Said:
    """Return what the command line says; raises ConfigInvalid, prints help and exits for --help."""
    said = list(arguments) or ["up"]
    said[0] = SPELLINGS.get(said[0], said[0])
    if said[0] in VERSION:
        logs.give(f"pg-preflight {__version__}\n")
        raise SystemExit(0)
    if said[0] == "help":
        asked = SPELLINGS.get(said[1], said[1]) if said[1:] else "help"
        said = ["--help"] if asked in (*VERSION, "help") else [asked, "--help"]
    if not said[0].startswith("-") and said[0] not in COMMANDS:
        word = said[0].lower().rpartition(":")[2]  # db:migrate, migrate:latest
        near = nearest(word, [*COMMANDS, "version", "help"])
        elsewhere = ELSEWHERE.get(word)
        raise ConfigInvalid(
            "config.arguments",
            f"there is no command {_SECRET.sub('…', said[0])!r}",
            elsewhere or (f"Did you mean {near}?" if near else _all()),
        )
    parser = _parser()
    said, behind = _split(said)
    namespace, unknown = parser.parse_known_args(said)
    if unknown:
        wrapping = said[0] == "wrap" or getattr(namespace, "watch", None)
        if wrapping and not unknown[0].startswith("-"):
            hint = BEHIND if behind is None else ONE_PATH
            raise ConfigInvalid("config.arguments", _unknown(unknown), hint)
        _refuse(parser, said[0], unknown)
    found = {key: value for key, value in vars(namespace).items() if value is not None}
    if behind is not None:
        found["command"] = behind
    return Said(found.pop("name"), found)


def _split(said: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return what is ours, and what stands behind `--`, if anything may and does."""
    takes = said[0] in COMMANDS and COMMANDS[said[0]].wraps
    if not takes or "--" not in said:
        return list(said), None
    at = said.index("--")
    return list(said[:at]), list(said[at + 1 :])


def _all() -> str:
    return f"Commands: {', '.join(COMMANDS)}, version, help."


def _refuse(parser: argparse.ArgumentParser, command: str, unknown: Sequence[str]) -> NoReturn:
    """Name what nobody knows, and what may have been meant."""
    usage = parser if command.startswith("-") else _choices(parser)[command]
    known = [option for action in usage._actions for option in action.option_strings]  # noqa: SLF001 -- argparse tells it nowhere else
    known += SPELLINGS if command.startswith("-") else ()
    words = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    hints = [hint for word in words for hint in _meant(word, known)]
    raise ConfigInvalid(
        "config.arguments",
        _unknown(unknown),
        next(iter(hints), f"See `{usage.prog} --help`."),
    )


def _meant(word: str, known: Sequence[str]) -> Iterator[str]:
    """Yield what may have been meant by an option that is none here, the likeliest first."""
    if word in OPTIONS_ELSEWHERE:
        yield OPTIONS_ELSEWHERE[word]
    begun = [option for option in known if word.strip("-") and option.startswith(word)]
    bare = {option.lstrip("-"): option for option in known if option.startswith("--")}
    near = nearest(word.lstrip("-"), bare) if word.startswith("--") else None
    if begun or near:
        yield f"Did you mean {begun[0] if begun else bare[near or '']}?"
    if word.startswith("--") and word[2:] in COMMANDS:
        yield f"`{word[2:]}` is a command of its own: {COMMANDS[word[2:]].does}."


def _unknown(words: Sequence[str]) -> str:
    return f"unknown arguments: {' '.join(_shown(words))}"


def _shown(words: Sequence[str]) -> Iterator[str]:
    """Yield words as they may be shown: what stands behind an option may be a secret."""
    behind = False
    for word in words:
        name, said, _ = word.partition("=")
        if word.startswith("--"):
            yield f"{name}=…" if said else word
        elif word.startswith("-"):
            yield word if len(word) <= len("-x") else f"{word[:2]}…"
        else:
            yield "…" if behind else _SECRET.sub("…", word)
        behind = word.startswith("-") and not said


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001 -- likewise
    return dict(commands.choices)


def _epilog() -> str:
    """Return what the help says below the commands: exit codes and variables."""
    codes = [f"  {code:<4} {words}" for code, words in exit_codes().items()]
    settings = [
        f"  {f'{config.PREFIX}{name}':<34} {config.described(parse)}"
        for name, parse in config.SETTINGS.items()
    ]
    return "\n".join(
        [
            "  entrypoint.py COMMAND --help    says more of one, with an example",
            "  entrypoint.py version           says which version this is",
            "",
            "exit codes (1x: run again unchanged; 2x: change something first; 3x: look at the",
            "database first):",
            *codes,
            "",
            "variables (the secrets among them also as NAME_FILE):",
            "  DATABASE_URL, or PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE and what else libpq",
            "  reads, or POSTGRES_HOST POSTGRES_PORT POSTGRES_USER POSTGRES_PASSWORD POSTGRES_DB",
            *settings,
            "",
            "More is in docs/ of the repository; `docker inspect IMAGE` shows its address in the",
            "label org.opencontainers.image.source.",
        ]
    )


def exit_codes() -> dict[int, str]:
    """Return every exit code with what it means."""
    found = {
        each.exit_code: (each.__doc__ or "").partition("\n")[0]
        for each in reversed(list(vars(errors).values()))
        if isinstance(each, type)
        and issubclass(each, errors.Failure)
        and each is not errors.Failure
    }
    codes = {
        ExitCode.OK: "What was wanted is reached, or --help.",
        **found,
        ExitCode.INTERNAL: "A bug in this program.",
        ExitCode.SIGINT: "Stopped by SIGINT.",
        ExitCode.SIGTERM: "Stopped by SIGTERM or SIGHUP.",
    }
    return {int(code): codes[code] for code in ExitCode}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="entrypoint.py",
        description="Make a PostgreSQL database ready before the app starts.",
        epilog=_epilog(),
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
        if command.wraps:
            one.behind = "-- COMMAND [ARG…]" if name == "wrap" else "[-- COMMAND [ARG…]]"
        if command.fleet:
            many(one)
    return parser
