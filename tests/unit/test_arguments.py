"""The command line: spellings, typing errors, and help that teaches."""

import pytest

from preflight.base.errors import ConfigInvalid
from preflight.commands import arguments, registry, wait


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
        (["force", "two"], "two"),
        (["force", "-1"], "See"),
        (["force", "1" * 19], "is not a version"),
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
