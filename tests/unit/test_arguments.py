"""The command line: spellings, typing errors, and help that teaches."""

import re
from pathlib import Path

import pytest

from preflight import __version__
from preflight.base import config
from preflight.base.errors import ConfigInvalid, ExitCode
from preflight.commands import arguments, registry, wait
from preflight.commands.wrapping import asked
from tests import servers


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ([], {"name": "up"}),
        (["--check"], {"name": "check"}),
        (["check", "--json"], {"name": "check", "form": "json"}),
        (["--check", "--table"], {"name": "check", "form": "table"}),
        (["verify", "002"], {"name": "verify", "version": 2}),
        (["rollback", "--to", "0"], {"name": "rollback", "to": 0}),
        (["--rollback", "--to", "2"], {"name": "rollback", "to": 2}),
        (["--force"], {"name": "force"}),
        (["--force", "2"], {"name": "force", "version": 2}),
        (["wait"], {"name": "wait"}),
        (["wait", "--schema"], {"name": "wait", "schema": wait.FILES}),
        (["wait", "--schema", "2"], {"name": "wait", "schema": 2}),
        (["wait", "--schema", "0"], {"name": "wait", "schema": 0}),
        (["adopt", "users/add"], {"name": "adopt", "version": "users/add"}),
        (["plan", "--rehearse"], {"name": "plan", "rehearse": True}),
        (["restore", "x"], {"name": "restore", "backup": "x"}),
        (
            ["restore", "latest", "--into", "a b", "--swap", "--end-sessions"],
            {
                "name": "restore",
                "backup": "latest",
                "into": "a b",
                "swap": True,
                "end_sessions": True,
            },
        ),
    ],
)
def test_command_line_means(said: list[str], meant: dict[str, object]) -> None:
    """Old and new spellings, versions as they stand in file names."""
    found = arguments.parse(said)

    assert meant == {"name": found.name, **found.options}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["chekc"], "check"),
        (["roll-back"], "rollback"),
        (["nonsense!"], "Commands: up, check"),
        (["check", "--jsno"], "--json"),
        (["rollback", "--too", "1"], "--to"),
        (["restore", "latest", "--swp"], "--swap"),
        (["restore", "latest", "--end"], "--end-sessions"),
        (["wait", "--shema"], "--schema"),
        (["up", "now"], "See"),
        (["--chekc"], "--check"),
        (["restore"], "BACKUP"),
        (["force", "number two"], "is not a version"),
        (["force", "-1"], "See"),
        (["rollback", "--to"], "--to"),
        (["check", "--json", "--table"], "not allowed"),
        ([""], "Commands"),
    ],
)
def test_typing_error_says_what_was_meant(said: list[str], words: str) -> None:
    """Every one is a failure of ours, never argparse's exit 2."""
    with pytest.raises(ConfigInvalid) as failure:
        arguments.parse(said)

    assert words in f"{failure.value} {failure.value.problem.hint}"


@pytest.mark.parametrize(
    "said",
    [
        ["postgresql://u:hidden@h/db"],
        ["up", "--url", "postgresql://u:hidden@h/db"],
        ["up", "--url=postgresql://u:hidden@h/db"],
        ["up", "postgresql://u:hidden@h/db"],
        ["up", "password=hidden"],
        ["up", "--password", "hidden"],
        ["up", "--password=hidden"],
        ["up", "-phidden"],
    ],
)
def test_word_that_may_be_a_secret_is_not_said_again(said: list[str]) -> None:
    """A URL, and what stands behind an option that nobody knows."""
    with pytest.raises(ConfigInvalid) as failure:
        arguments.parse(said)

    assert "hidden" not in f"{failure.value} {failure.value.problem.hint}"


@pytest.mark.parametrize("command", [None, *registry.COMMANDS])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_teaches_with_an_example(
    capsys: pytest.CaptureFixture[str], command: str | None, option: str
) -> None:
    """It ends with 0, says what the command does, and shows a line to copy."""
    with pytest.raises(SystemExit) as ended:
        arguments.parse([command, option] if command else [option])

    said = capsys.readouterr()
    assert (0, "") == (ended.value.code, said.err)
    assert f"entrypoint.py {command or 'COMMAND'}".removesuffix(" up") in said.out
    if command:
        assert f"example:\n  {registry.COMMANDS[command].example}" in said.out
    else:
        assert [] == [name for name in registry.COMMANDS if f"    {name} " not in said.out]


def test_help_calls_a_variable_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Whose name says so is a URL, and nothing else; public keys are public keys."""
    with pytest.raises(SystemExit):
        arguments.parse(["--help"])

    said = re.findall(r"^  PREFLIGHT_(\w+) +(.*)", capsys.readouterr().out, re.MULTILINE)
    assert {name for name in config.SETTINGS if name.endswith("_URL")} == {
        name for name, words in said if words == "a URL"
    }
    assert (
        "public keys of age, one a line or with commas between them"
        == dict(said)["BACKUP_RECIPIENTS"]
    )


def test_help_and_page_of_check_name_the_same_codes() -> None:
    """A file that stands there in part has three of them, by what can be done about it."""
    page = (servers.REPOSITORY / "docs/commands.md").read_text("utf-8")
    (line,) = re.findall(r"### check\n.*?\n(Ends with [^\n]*)", page, re.DOTALL)

    assert re.findall(r"\d+", line) == re.findall(r"\d+", registry.COMMANDS["check"].does)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["status"], "`check --table`"),
        (["info"], "`check --table`"),
        (["migrate"], "`up`"),
        (["down"], "`rollback`"),
        (["Undo"], "`rollback`"),
        (["baseline"], "`adopt VERSION`"),
        (["dry-run"], "`plan"),
        (["new"], "NNN_name.sql"),
        (["reset"], "rollback --to 0"),
        (["db:migrate:status"], "`check --table`"),
        (["migrate:latest"], "`up`"),
        (["db:rollback"], "Did you mean rollback?"),
        (["break-lock"], "the lock ends with the run"),
        (["up", "--dry-run"], "`plan"),
        (["--dry-run"], "`plan"),
        (["--status"], "`check --table`"),
        (["up", "--url", "x"], "DATABASE_URL"),
        (["check", "--verbose"], "PREFLIGHT_LOG_LEVEL"),
        (["versoin"], "Did you mean version?"),
    ],
)
def test_other_tools_words_lead_to_ours(said: list[str], words: str) -> None:
    """Who knows another migrator finds the command here."""
    with pytest.raises(ConfigInvalid) as failure:
        arguments.parse(said)

    assert words in str(failure.value.problem.hint)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (["up", "--yes"], "Leave it out: nothing here asks before it acts."),
        (["rollback", "-y"], "Leave it out: nothing here asks before it acts."),
        (["up", "--force"], "`force` is a command of its own: run one recorded file again"),
        (["up", "--table"], "check, plan, verify, backups, lint, convert have a result"),
        (["wait", "--json"], "check, plan, verify, backups, lint, convert have a result"),
        (["rollback", "--steps", "1"], "`rollback` takes back the newest migration"),
        (["up", "--timeout=5"], "See PREFLIGHT_WAIT_TIMEOUT_S"),
        (["check", "--exit-code"], "See `entrypoint.py check --help`."),
        (["check", "--all"], "See `entrypoint.py check --help`."),
        (["up", "--rehearse"], "See `entrypoint.py up --help`."),
        (["up", "--", "alembic"], "See `entrypoint.py up --help`."),
        (["revret"], "Commands: up, check"),
        (["wrap", "--tiemout", "5", "--", "x"], "Did you mean --timeout?"),
        (["check", "--tabel"], "Did you mean --table?"),
    ],
)
def test_word_that_is_merely_similar_is_not_offered(said: list[str], hint: str) -> None:
    """--waves for --yes helps nobody; what is meant here is said, and a slip is still seen."""
    with pytest.raises(ConfigInvalid) as failure:
        arguments.parse(said)

    assert str(failure.value.problem.hint).startswith(hint)


@pytest.mark.parametrize(
    "said",
    [
        ["wrap", "alembic", "upgrade", "head"],
        ["wrap", "--watch", "m", "alembic", "-c", "a.ini"],
        ["check", "--watch", "m", "alembic", "current"],
    ],
)
def test_command_that_lacks_its_dashes_is_told_of_them(said: list[str]) -> None:
    """Whoever writes it as for a shell is told the one thing that is missing."""
    with pytest.raises(ConfigInvalid) as failure:
        arguments.parse(said)

    assert "Write another tool's command behind `--`" in str(failure.value.problem.hint)


@pytest.mark.parametrize("command", ["wrap", "check", "wait"])
def test_second_path_behind_watch_is_told_as_such(command: str) -> None:
    """A shell makes several words of migrations/*.py; the command stands where it should."""
    with pytest.raises(ConfigInvalid) as failure:
        arguments.parse([command, "--watch", "a.py", "b.py", "--", "alembic", "upgrade", "head"])

    assert arguments.ONE_PATH == failure.value.problem.hint


def test_word_that_no_command_takes_is_not_taken_for_a_wrapped_one() -> None:
    """Beside `check` it is likelier a version."""
    with pytest.raises(ConfigInvalid) as failure:
        arguments.parse(["check", "now"])

    assert "See `entrypoint.py check --help`." == failure.value.problem.hint


@pytest.mark.parametrize("command", registry.COMMANDS)
def test_usage_says_what_stands_behind_the_dashes(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Of whoever must, or may, be given a command."""
    with pytest.raises(SystemExit):
        arguments.parse([command, "--help"])

    usage = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    behind = {"wrap": "-- COMMAND [ARG…]"}.get(command, "[-- COMMAND [ARG…]]")
    indent = " " * len(f"usage: entrypoint.py {command} ")
    assert registry.COMMANDS[command].wraps == (f"{indent}{behind}" == usage[-1])
    assert registry.COMMANDS[command].wraps == ("COMMAND" in "".join(usage))


@pytest.mark.parametrize("command", ["wait", "check"])
def test_time_limit_of_a_wrapped_command_is_not_that_of_waiting(command: str) -> None:
    """Who names no command is told what says how long we wait."""
    with pytest.raises(ConfigInvalid) as failure:
        asked.read(config.Config({}, {}, Path()), asked.of(options([command, "--timeout", "5"])))

    assert "wrap.no_command" == failure.value.code
    assert "PREFLIGHT_WAIT_TIMEOUT_S says how long" in str(failure.value.problem.hint)
    with pytest.raises(ConfigInvalid) as failure:
        asked.read(config.Config({}, {}, Path()), asked.of(options(["wrap", "--always"])))
    assert "Write it behind `--`" in str(failure.value.problem.hint)


def options(said: list[str]) -> dict[str, object]:
    """Return what the options of a command line say."""
    return arguments.parse(said).options


@pytest.mark.parametrize("said", ["version", "--version", "-V"])
def test_version_is_said_alone(capsys: pytest.CaptureFixture[str], said: str) -> None:
    """One line, exit code 0."""
    with pytest.raises(SystemExit) as ended:
        arguments.parse([said])

    assert (0, f"pg-preflight {__version__}\n") == (ended.value.code, capsys.readouterr().out)


@pytest.mark.parametrize("command", [None, *registry.COMMANDS])
def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str], command: str | None) -> None:
    """`help restore` is `restore --help`."""
    told = []
    for said in (
        ["help", command] if command else ["help"],
        [*([command] if command else []), "-h"],
    ):
        with pytest.raises(SystemExit):
            arguments.parse(said)
        told.append(capsys.readouterr().out)

    assert told[0] == told[1]


@pytest.mark.parametrize("said", ["help", "version", "--version", "-V"])
def test_help_of_what_is_no_command_is_the_help(
    capsys: pytest.CaptureFixture[str], said: str
) -> None:
    """It names `help` and `version`, and says what they do; an old spelling is its command."""
    told = []
    for words in (["help", said], ["--help"], ["help", "--check"], ["check", "--help"]):
        with pytest.raises(SystemExit) as ended:
            arguments.parse(words)
        told.append((ended.value.code, capsys.readouterr().out))

    assert (told[1], told[3]) == (told[0], told[2])


def test_help_has_every_exit_code_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """A reader of the image has no other page; the one that is named has an address there."""
    with pytest.raises(SystemExit):
        arguments.parse(["--help"])

    said = capsys.readouterr().out
    assert [] == [code for code in ExitCode if f"\n  {int(code)} " not in said]
    assert [] == [name for name in config.SETTINGS if f" PREFLIGHT_{name} " not in said]
    lines = said.partition("  PREFLIGHT_")[2].partition("\n\n")[0].splitlines()
    assert len(config.SETTINGS) == len(lines)  # each says what it may be in the words of an error
    assert "docs/" not in said.replace("docs/ of the repository", "")
    assert "org.opencontainers.image.source" in said
