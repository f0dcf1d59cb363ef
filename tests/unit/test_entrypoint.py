"""What the program says about a bug of its own, and when it cannot even be loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from preflight import run
from tests import program, servers


def test_bug_is_told_without_values() -> None:
    """An exception's text may hold a row or a secret; its kind and place are enough."""
    try:
        int("hunter2")
    except ValueError as error:
        told = run.internal(error)

    assert "internal.error" == told["code"]
    assert "ValueError at test_entrypoint.py:" in str(told["message"])
    assert "hunter2" not in str(told)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("psycopg.py", "raise ImportError('no pq wrapper available.\\n- libpq.so.5: not there')"),
        ("structlog.py", "def ("),
        ("preflight/gate.py", "import nowhere"),
        ("preflight/server/lock.py", None),
    ],
)
def test_program_that_cannot_be_loaded_says_so(
    module: str, text: str | None, tmp_path: Path
) -> None:
    """One line, one termination message and 70: never a traceback and 1."""
    shutil.copytree(servers.REPOSITORY / "preflight", tmp_path / "preflight")
    shutil.copy(servers.REPOSITORY / "entrypoint.py", tmp_path)
    if text is None:
        (tmp_path / module).unlink()
    else:
        (tmp_path / module).write_text(text)
    message = tmp_path / "termination-log"
    message.touch()
    ended = subprocess.run(
        [sys.executable, tmp_path / "entrypoint.py", "check"],
        env={"PATH": os.defpath, "PREFLIGHT_TERMINATION_LOG": str(message)},
        capture_output=True,
        text=True,
        check=False,
    )

    (line,) = ended.stdout.splitlines()
    finished = json.loads(line)
    found = (ended.returncode, finished["event"], finished["command"], ended.stderr)
    assert (70, "run.finished", "check", "") == found
    assert finished["error"]["code"] in {"internal.installation", "internal.error"}
    assert finished["error"] == json.loads(message.read_text())["error"]


def test_options_of_a_wrapped_command_are_not_ours() -> None:
    """Its --json asks for no document: a failure is told in events alone, on stdout."""
    ended = subprocess.run(
        [sys.executable, program.ENTRYPOINT, "wrap", "--", "tool", "--json", "--table"],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )

    events = [json.loads(line)["event"] for line in ended.stdout.splitlines()]
    assert (20, "run.finished", "") == (ended.returncode, events[-1], ended.stderr)


def test_nothing_is_taken_down_before_the_process_ends() -> None:
    """Every start would pay a tenth of a second for it."""
    done = subprocess.run(
        [sys.executable, program.ENTRYPOINT, "--help"],
        env=os.environ | {"PYTHONVERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.startswith("usage:")
    assert "# cleanup[" not in done.stderr


def test_last_line_comes_also_where_it_cannot_be_formed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A fault in how a line is shown must not hide how a run has ended, nor change its code."""

    def fail(*_: object) -> structlog.typing.EventDict:
        raise KeyError("version")

    before = structlog.get_config()
    structlog.configure(processors=[fail])
    try:
        code = run.Run("up", {}).end(0, "applied")
    finally:
        structlog.configure(**before)

    last = json.loads(capsys.readouterr().out)
    assert (0, "run.finished", 0) == (code, last["event"], last["exit_code"])
