"""What the program says about a bug of its own, and when it cannot even be loaded."""

import array
import fcntl
import importlib
import importlib.util
import json
import marshal
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import structlog

from preflight import run
from preflight.base import notify, stop
from tests import faults, program, servers

PAGE = 4096  # the least that a pipe holds
Popen = subprocess.Popen[bytes]
Ended = subprocess.CompletedProcess[str]


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
    ("module", "text", "dotted"),
    [
        (
            "psycopg.py",
            "raise ImportError('no pq wrapper available.\\n- libpq.so.5: not there')",
            "internal.installation",
        ),
        ("structlog.py", "def (", "internal.installation"),
        ("preflight/gate.py", "import nowhere", "internal.installation"),
        ("preflight/server/lock.py", None, "internal.installation"),
        ("preflight/gate.py", "1 / 0", "internal.error"),
    ],
)
def test_program_that_cannot_be_loaded_says_so(
    module: str, text: str | None, dotted: str, tmp_path: Path
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

    (finished,) = program.parse(ended.stdout)
    found = (ended.returncode, finished["event"], finished["command"], ended.stderr)
    assert (70, "run.finished", "check", "") == found
    assert dotted == finished["error"]["code"]
    assert 1 == len(ended.stdout.splitlines())
    assert finished["error"] == json.loads(message.read_text())["error"]


OLD = sorted(Path(sys.base_prefix).parent.glob("3.[6-9].*/bin/python3")) + sorted(
    Path(sys.base_prefix).parent.glob("3.10.*/bin/python3")
)


@pytest.mark.skipif(not OLD, reason="no older Python is beside this one")
@pytest.mark.parametrize("python", OLD, ids=lambda path: path.parent.parent.name)
def test_python_that_is_too_old_is_named(python: Path) -> None:
    """One line and 70, with the version that is needed; it may be the python3 of any machine."""
    ended = subprocess.run(
        [python, program.ENTRYPOINT, "lint"],
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    (finished,) = program.parse(ended.stdout)
    version = python.parent.parent.name
    assert (70, "") == (ended.returncode, ended.stderr)
    assert f"Python 3.11 or later is needed; this is {version}" == finished["error"]["message"]
    assert "internal.installation" == finished["error"]["code"]


@pytest.mark.parametrize("how", ["-I", "-P", "PYTHONSAFEPATH"])
def test_script_finds_its_rooms_beside_it(how: str, tmp_path: Path) -> None:
    """Also where Python is told to leave the script's directory out, and through a link."""
    link = tmp_path / "run_migration.py"
    link.symlink_to(program.ENTRYPOINT)
    options, environ = ([how], {}) if how.startswith("-") else ([], {how: "1"})
    ended = subprocess.run(
        [sys.executable, *options, link, "version"],
        cwd=tmp_path,
        env={"PATH": os.defpath} | environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (ended.returncode, ended.stderr)
    assert ended.stdout.startswith("pg-preflight ")


FOREIGN = "import os; os.write(1, b'the app'); os._exit(0)\n"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Give the directory of an app whose modules are called as ours and as Python's."""
    place = tmp_path / "app"
    for name in ("entrypoint.py", "json.py", "runpy.py", "preflight/__init__.py"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(FOREIGN)
    return place


def installed(place: Path, *arguments: str, cwd: Path, found: bool = True) -> Ended:
    """Run the program as `pip install --user` leaves it: no Python lies beside it."""
    site = place / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    locked = next(path for path in sys.path if path.endswith("site-packages"))
    if found:
        (site / "ours.pth").write_text(f"{servers.REPOSITORY}\n{locked}\n")
    for name in ("bin", "path"):
        (place / name).mkdir()
    shutil.copy(servers.REPOSITORY / "bin/pg-preflight", place / "bin")
    (place / "path/python3").symlink_to(Path(sys.executable).resolve())  # none of a venv
    path = os.pathsep.join([str(place / "path"), os.defpath])
    return subprocess.run(
        [place / "bin/pg-preflight", *arguments],
        cwd=cwd,
        env={"PATH": path, "PYTHONUSERBASE": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_modules_of_the_app_are_not_run_in_place_of_ours(app: Path, tmp_path: Path) -> None:
    """The installed program is started where the app is: 0 by its own `json` would be no gate."""
    (app / "migrations").mkdir()
    (app / "migrations/001_one.sql").write_text("SELECT 1;\n")
    ended = installed(tmp_path / "user", "lint", cwd=app)

    assert (0, "") == (ended.returncode, ended.stderr)
    assert "run.finished" == program.parse(ended.stdout)[-1]["event"]
    assert "the app" not in ended.stdout


def test_program_that_is_not_there_says_so(app: Path, tmp_path: Path) -> None:
    """It was installed for another Python than the one on PATH: 70, never a traceback and 1."""
    ended = installed(tmp_path / "user", "lint", cwd=app, found=False)

    assert (70, "") == (ended.returncode, ended.stdout)
    assert "pg-preflight is not installed for this Python" in ended.stderr
    assert 1 == len(ended.stderr.splitlines())


@pytest.mark.parametrize("read", [b"caf\xe9".decode, partial(marshal.loads, b"")])
def test_no_error_of_a_run_is_a_damaged_installation(read: Callable[[], object]) -> None:
    """What a file, a server or a program says may be no UTF-8; installing again helps nobody."""
    with pytest.raises((UnicodeDecodeError, EOFError)) as raised:
        read()

    assert "internal.error" == run.internal(raised.value)["code"]


@pytest.mark.parametrize("module", [b"", b"\xe9", b"\xfa\x01\xe9", b"\x81"])
def test_module_that_is_damaged_meanwhile_denies_nothing(
    module: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part may be loaded when files were applied already: it says what is left, as for a bug."""
    (tmp_path / "damaged.pyc").write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + module)
    monkeypatch.syspath_prepend(tmp_path)
    session = object()
    found = []
    for left in (None, "its first 2 statements stay"):
        stop.leaves(session, left)
        with pytest.raises((EOFError, ValueError, TypeError, ImportError)) as raised:
            importlib.import_module("damaged")
        found.append(run.internal(raised.value))
    stop.leaves(session, None)

    assert ["internal.installation"] * 2 == [each["code"] for each in found]
    assert [True, True] == [
        str(each["hint"]).endswith(f"use the image; {left}.")
        for each, left in zip(
            found, ("unfinished work was rolled back", "its first 2 statements stay"), strict=True
        )
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
@pytest.mark.parametrize("log", ["json", "console"])
def test_people_read_their_terminal_s_encoding(encoding: str, log: str) -> None:
    """What it cannot show is escaped: a result that is there must not end with 70."""
    program = (
        "import sys; from preflight import run; from preflight.base import logs\n"
        "import structlog\n"
        "def check(_):\n"
        "    logs.give('é →\\n')\n"
        "    structlog.get_logger().warning('config.warned', warning='é →')\n"
        "sys.exit(run.once(['check', '--table'], lambda _: (check, 'check', True)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=servers.REPOSITORY,
        env={"PATH": os.defpath, "PYTHONIOENCODING": encoding, "PREFLIGHT_LOG": log},
        capture_output=True,
        check=False,
    )

    said = "é →".encode(encoding, "backslashreplace")
    assert (0, said + b"\n") == (ended.returncode, ended.stdout), ended.stderr
    if log == "console":
        assert said in ended.stderr
        assert " ✓ ok".encode(encoding, "backslashreplace") in ended.stderr
    else:
        assert "é →" == program_events(ended.stderr)[-2]["warning"]


def program_events(output: bytes) -> list[program.Event]:
    """Return the events that were written as UTF-8."""
    return program.parse(output.decode())


@pytest.mark.parametrize("command", [["--help"], ["check", "--help", "--json"], ["help", "wrap"]])
def test_help_is_shown_in_any_encoding(command: list[str]) -> None:
    """With the characters that there are."""
    ended = subprocess.run(
        [sys.executable, program.ENTRYPOINT, *command],
        env={"PATH": os.defpath, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )

    assert (0, b"usage: ") == (ended.returncode, ended.stdout[:7])


def test_stop_while_a_secret_is_waited_for_speaks_of_no_server(tmp_path: Path) -> None:
    """It comes at once, and nobody was asked to free a lock."""
    path = tmp_path / "secret"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    process = subprocess.Popen(
        [sys.executable, program.ENTRYPOINT, "up"],
        env={"PATH": os.defpath, "PGPASSWORD_FILE": str(path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    files = Path(f"/proc/{process.pid}/fd")
    faults.until(
        lambda: path.resolve() in {each.resolve() for each in files.iterdir()}, "it reads the pipe"
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    os.close(writer)

    last = program.parse(output)[-1]
    assert (143, 143) == (process.returncode, last["exit_code"])
    assert "stopped by SIGTERM; nothing was begun" == last["error"]["message"]


def test_connection_without_a_thread_to_spare_is_waited_for(tmp_path: Path) -> None:
    """Others may end, or the limit be raised: 10 with the reason, and no bug to report."""
    code = (
        "import os, sys, threading, entrypoint; threading.stack_size(1 << 47);"
        f"os.environ['PGHOST'] = {str(tmp_path)!r};"
        "os.environ['PREFLIGHT_WAIT_TIMEOUT_S'] = '0';"
        "sys.argv[1:] = ['wait']; sys.exit(entrypoint.main())"
    )
    ended = program.bounded(code)

    last = program.parse(ended.stdout)[-1]
    assert (10, 10) == (ended.returncode, last["exit_code"])
    assert "no thread can be started to connect with" in last["error"]["message"]


def into(
    stdout: int, folder: Path, *arguments: str, **environ: str
) -> tuple[int, list[program.Event]]:
    """Run the program with that stdout; return its code and the events on stderr."""
    (folder / "001_one.sql").write_text("SELECT 1;\n")
    ended = subprocess.run(
        [sys.executable, program.ENTRYPOINT, *arguments],
        env={"PATH": os.defpath, "PREFLIGHT_MIGRATIONS_DIR": str(folder)} | environ,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return ended.returncode, program.parse(ended.stderr)


@pytest.fixture
def full() -> Iterator[int]:
    """Yield a stdout that has no room."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def closed() -> Iterator[int]:
    """Yield a stdout whose reader went away."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("form", ["--json", "--table"])
def test_result_that_cannot_be_written_is_a_failure(full: int, tmp_path: Path, form: str) -> None:
    """0 would be a lie to whoever reads the file, and 70 no help."""
    code, events = into(full, tmp_path, "lint", form)

    error = events[-1]["error"]
    assert (20, "config.stdout") == (code, error["code"])
    assert "the result could not be written: No space left on device" == error["message"]


def test_log_that_cannot_be_written_fails_no_run(full: int, tmp_path: Path) -> None:
    """Where the result is log events it goes the way of the log: the exit code stands."""
    assert (0, []) == into(full, tmp_path, "lint")


@pytest.mark.parametrize("form", ["--json", "--table"])
def test_reader_who_has_seen_enough_fails_no_run(closed: int, tmp_path: Path, form: str) -> None:
    """`lint --table | head` is what people do."""
    code, events = into(closed, tmp_path, "lint", form, PYTHONUNBUFFERED="1")

    assert (0, 0) == (code, events[-1]["exit_code"])
    assert [] == [each for each in events if each.get("level") == "warning"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("said", ["version", "--help"])
def test_reader_of_a_version_or_a_help_may_go(
    closed: int, tmp_path: Path, said: str, unbuffered: str
) -> None:
    """`--help | head` is no bug of ours to report."""
    assert (0, []) == into(closed, tmp_path, said, PYTHONUNBUFFERED=unbuffered)


@pytest.mark.parametrize("said", ["version", "--help"])
def test_version_and_help_that_cannot_be_written_are_a_failure(
    full: int, tmp_path: Path, said: str
) -> None:
    """20, as for any other result: whoever reads the file would find it empty."""
    code, events = into(full, tmp_path, said)

    assert (20, "config.stdout") == (code, events[-1]["error"]["code"])
    assert ["run.finished"] == [each["event"] for each in events]


@pytest.mark.parametrize("stdout", ["full", "closed"])
@pytest.mark.parametrize("form", ["--json", "--table"])
def test_failure_of_many_is_told_whatever_became_of_their_result(
    request: pytest.FixtureRequest, tmp_path: Path, stdout: str, form: str
) -> None:
    """The code is that of the worst target; on a full stdout a warning says what is lost."""
    (tmp_path / "targets").write_text('{"name": "one"}\n')
    code, events = into(
        request.getfixturevalue(stdout),
        tmp_path,
        *("check", form, "--targets", str(tmp_path / "targets")),
        PYTHONUNBUFFERED="1",
        PGHOST=str(tmp_path),  # nobody listens
        PREFLIGHT_WAIT_TIMEOUT_S="0",
    )

    lost = ["the result could not be written: No space left on device"]
    assert (10, 10) == (code, events[-1]["exit_code"])
    assert (lost if stdout == "full" else []) == [
        each["warning"] for each in events if "the result" in each.get("warning", "")
    ]


@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_code_of_a_command_outlives_its_result(request: pytest.FixtureRequest, stdout: str) -> None:
    """A command that has given its result may fail with what it found."""
    code = (
        "import sys; from preflight import run;"
        "from preflight.base import document, errors\n"
        "def check(_):\n"
        "    document.give({'current': False})\n"
        "    raise errors.Pending('schema.behind', 'behind', 'Run `up`.')\n"
        "sys.exit(run.once(['check', '--json'], lambda _: (check, 'check', True)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=servers.REPOSITORY,
        env={"PATH": os.defpath, "PYTHONUNBUFFERED": "1"},
        stdout=request.getfixturevalue(stdout),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert 3 == ended.returncode, ended.stderr
    assert (stdout == "full") == ("the result could not be written" in ended.stderr)


def told(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program of ours in a process of its own, with its events as JSON."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=servers.REPOSITORY,
        env={"PATH": os.defpath, "PREFLIGHT_LOG": "json"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_failure_of_a_second_round_does_not_deny_the_first() -> None:
    """A backup that fails after a file was applied says what holds from then on."""
    program = (
        "import sys; from preflight import run; import structlog;"
        "from preflight.base import errors\n"
        "def up(_):\n"
        "    structlog.get_logger().info('migration.applied', migration='001_a', duration_s=0.1)\n"
        "    raise errors.BackupFailed('backup.failed', 'no', 'Run again; nothing was migrated.')\n"
        "sys.exit(run.once(['up'], lambda _: (up, 'up', False)))"
    )
    ended = told(program)

    last = json.loads(ended.stdout.splitlines()[-1])
    assert (23, ["001_a"]) == (ended.returncode, last["applied"]), ended.stderr
    assert "Run again; nothing more was migrated." == last["error"]["hint"]


@pytest.mark.parametrize("code", [0, 3])
def test_last_line_waits_for_who_cleans_up_beside_and_says_so(code: int) -> None:
    """Who waits for the process reads meanwhile what it waits for, and nothing after the end."""
    program = (
        "import sys, threading, time; from preflight import run;"
        "from preflight.base import errors, logs\n"
        "run.TIDYING_S, said = 0.01, threading.Event()\n"
        "see = run.Tally.see\n"
        "def seen(self, event):\n"
        "    see(self, event)\n"
        "    if 'waiting' in event: said.set()\n"
        "run.Tally.see = seen\n"
        "def up(_):\n"
        "    threading.Thread(target=said.wait).start()\n"
        f"    if {code}: raise errors.Pending('schema.behind', 'behind', 'Run `up`.')\n"
        "code = run.once(['up'], lambda _: (up, 'up', False))\n"
        "assert said.is_set() and threading.active_count() == 1\n"
        "sys.exit(code)"
    )
    ended = told(program)

    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (code, "") == (ended.returncode, ended.stderr)
    assert ["rehearsal.progressed", "run.finished"] == [each["event"] for each in events[-2:]]


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


def test_limit_of_threads_fails_no_run(tmp_path: Path) -> None:
    """Who listens is not told, the log says so, and nothing else is another."""
    (tmp_path / "001_one.sql").write_text("SELECT 1;\n")
    code = (
        "import sys, threading, entrypoint; threading.stack_size(1 << 47);"  # no machine has it
        "sys.argv[1:] = ['lint']; sys.exit(entrypoint.main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PATH": os.defpath,
            "PREFLIGHT_MIGRATIONS_DIR": str(tmp_path),
            "PREFLIGHT_NOTIFY_URL": "http://127.0.0.1:1",
        },
        cwd=servers.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    events = program.parse(ended.stdout)
    assert (0, "run.finished") == (ended.returncode, events[-1]["event"])
    why = "no thread could be started"
    assert [f"run.started: {why}", f"run.finished: {why}"] == [
        each["warning"].partition(" was not told of ")[2]
        for each in events
        if each["event"] == "config.warned" and "was not told" in each["warning"]
    ]


def test_stop_without_a_thread_to_spare_is_a_stop() -> None:
    """Its hard end cannot be had; that is no bug to report."""
    code = (
        "import os, signal, sys, threading; from preflight import run;"
        "threading.stack_size(1 << 47);"
        "choose = lambda _: (lambda _: os.kill(os.getpid(), signal.SIGTERM)"
        " or run.stop.sleep(60), 'lint', False);"
        "sys.exit(run.process(['lint'], choose))"
    )
    ended = program.bounded(code)

    finished = program.parse(ended.stdout)[-1]
    assert (143, 143) == (ended.returncode, finished["exit_code"])


class _Broken(notify.Messages):
    def send(self, _: object) -> None:
        raise MemoryError


def test_whoever_is_told_of_a_run_does_not_end_it(tmp_path: Path) -> None:
    """Metrics and messages may fail in any way: the last line comes, with its own code."""
    told = run.Run("up", {"PREFLIGHT_METRICS_FILE": str(tmp_path / "metrics")})
    told.messages = _Broken(notify.Address("http://127.0.0.1:1"))
    told.tally.done["applied"] = 5  # as a bug of ours would leave it
    with structlog.testing.capture_logs() as events:
        code = told.end(0, "applied")

    assert (0, "run.finished", 0) == (code, events[-1]["event"], events[-1]["exit_code"])
    assert [
        "PREFLIGHT_METRICS_FILE could not be written: TypeError",
        "PREFLIGHT_NOTIFY_URL could not be told: MemoryError",
    ] == [each["warning"] for each in events[:-1]]


def test_backups_of_many_are_told_by_their_names(tmp_path: Path) -> None:
    """A monitor sees each that is one, and how far that very backup is proven."""
    file = tmp_path / "metrics"
    told = run.Run("backup", {"PREFLIGHT_METRICS_FILE": str(file)})
    told.database = "postgres"
    for name, verified, code in (("a", "restored", 0), ("b", "read", 0), ("c", "restored", 24)):
        made = {"event": "backup.verified", "target": name, "backup": "x", "duration_s": 1}
        ended = {"event": "target.finished", "outcome": "ok", "exit_code": code, "applied": []}
        told.tally.see(made)
        told.tally.see({"event": "rehearsal.passed", "target": name, "verified": verified})
        told.tally.see(ended | {"target": name})
    with structlog.testing.capture_logs():
        told.end(24, "failed")

    said = file.read_text().splitlines()
    assert ['{database="a",command="backup"} 1', '{database="b",command="backup"} 0'] == [
        each.removeprefix("pg_preflight_backup_restored")
        for each in said
        if each.startswith("pg_preflight_backup_restored")
    ]
    assert 'pg_preflight_last_run_exit_code{database="postgres",command="backup"} 24' in said


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe that holds a page and that nobody reads."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PAGE)
    yield read, write
    os.close(read)
    os.close(write)


def lint_into(
    stdout: int, folder: Path, before: str = "", command: str = "lint", **environ: str
) -> tuple[Popen, Path]:
    """Start a command whose stop has a hard end at once, with an empty termination log."""
    message = folder / "termination-log"
    message.touch()
    code = f"import sys, entrypoint; from preflight import run; run.HARD_STOP_S = 0.1; {before}\n"
    code += f"sys.argv[1:] = [{command!r}]; run.leave(entrypoint.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=servers.REPOSITORY,
        env={
            "PATH": os.defpath,
            "PREFLIGHT_MIGRATIONS_DIR": str(folder),
            "PREFLIGHT_TERMINATION_LOG": str(message),
        }
        | environ,
        stdout=stdout,
    ), message


def ends(process: Popen) -> int | None:
    """Return the exit code of a process, which is killed where it does not end."""
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def test_log_that_nobody_reads_holds_no_stopped_run(
    unread: tuple[int, int], tmp_path: Path
) -> None:
    """Who waits for room in the log may hold a transaction: the process ends, and says how."""
    read, write = unread
    for number in range(1, 40):
        (tmp_path / f"{number:03d}_one.sql").write_text("SELECT 1;\n")
    process, message = lint_into(write, tmp_path)
    faults.until(lambda: _waiting(read) > PAGE - 500, "there is no room for another line")
    process.send_signal(signal.SIGTERM)

    assert 143 == ends(process)
    assert 143 == json.loads(message.read_text())["exit_code"]


def test_last_line_that_nobody_reads_holds_no_stopped_run(
    unread: tuple[int, int], tmp_path: Path
) -> None:
    """Not even where the signal came before there was anyone to set a time."""
    os.write(unread[1], bytes(PAGE))
    early = f"run.stop.request({int(signal.SIGTERM)})"
    process, message = lint_into(unread[1], tmp_path, early)

    assert 143 == ends(process)
    assert 143 == json.loads(message.read_text())["exit_code"]


def test_signal_while_the_last_line_waits_changes_no_code(
    unread: tuple[int, int], tmp_path: Path
) -> None:
    """What is done is done, whoever reads that."""
    os.write(unread[1], bytes(PAGE))
    environ = {"PREFLIGHT_LOG_LEVEL": "error", "PREFLIGHT_BACKUP_DIR": str(tmp_path)}
    process, message = lint_into(unread[1], tmp_path, command="backups", **environ)  # it has none
    faults.until(lambda: message.stat().st_size > 0, "the termination message is there")
    process.send_signal(signal.SIGTERM)

    assert 0 == ends(process)
    assert 0 == json.loads(message.read_text())["exit_code"]


def _waiting(read: int) -> int:
    """Return how many bytes of a pipe nobody has read."""
    found = array.array("i", [0])
    fcntl.ioctl(read, termios.FIONREAD, found)
    return found[0]
