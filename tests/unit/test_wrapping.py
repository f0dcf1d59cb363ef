"""Somebody else's command: heard, kept from its secrets, walled in, ended with all it started."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from preflight.base import masks, stop
from preflight.base.errors import ConfigInvalid
from preflight.commands.wrapping import child, key, onlooker, program, said, shared, tree, wall

ENVIRONMENT = {"PATH": os.environ["PATH"]}
SECRET = "s3cret/p@ss word"  # noqa: S105 - of no database
PATIENCE_S = 30.0


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('ERROR:  relation "public.users" does not exist', "public.users"),
        ('psql: ERROR:  schema "audit" does not exist', "audit"),
        ("ERROR:  function audit.f(integer) does not exist", "audit.f"),
        ('NOTICE:  schema "audit" does not exist, skipping', None),
        ('NOTICE:  table "old" does not exist, skipping', None),
        ('{"level": "error", "msg": "relation \\"bill.items\\" does not exist"}', "bill.items"),
        ('ERROR:  relation "items" already exists', None),
        ('ERROR:  role "report" does not exist', None),
        ("ERROR:  check constraint is violated by some row", None),
    ],
)
def test_only_an_error_says_that_a_thing_of_a_schema_is_missing(line: str, name: str) -> None:
    """What it excuses goes on unrehearsed: a notice beside a real failure is no excuse."""
    found = said.missed(line)
    assert name == (found[1] if found else None)


def python(text: str, *arguments: object) -> list[str]:
    """Return the command that runs a script."""
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(text), *map(str, arguments)]


def run(  # noqa: PLR0913 - what child.run takes
    command: Sequence[str],
    *,
    secrets: Sequence[str] = (),
    timeout_s: float | None = PATIENCE_S,
    around: wall.Wall | None = None,
    each: Callable[[child.Child], None] | None = None,
    environment: dict[str, str] = ENVIRONMENT,
) -> tuple[child.Ended, list[dict[str, Any]]]:
    """Run a command; return how it ended and what it was heard to say."""
    with capture_logs() as events:
        ended = child.run(
            command, environment, secrets=secrets, timeout_s=timeout_s, wall=around, each=each
        )
    return ended, [dict(event) for event in events]


def texts(events: Sequence[dict[str, Any]], stream: str = "stdout") -> list[str]:
    """Return the lines of one stream."""
    return [event["text"] for event in events if event.get("stream") == stream]


def alive(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(what: Callable[[], bool]) -> None:
    """Return as soon as something is so."""
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until, "it never was"
        time.sleep(0.01)


# --- what it says ---------------------------------------------------------------------------------


def test_every_line_is_told_with_its_stream() -> None:
    """Stdout and stderr are told apart, and the exit code is the command's."""
    ended, events = run(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    )

    assert 7 == ended.code
    assert ["out"] == texts(events)
    assert ["err"] == texts(events, "stderr")
    assert {"out", "err"} == set(ended.last)


def test_last_line_without_an_end_is_told() -> None:
    """What a command says as it dies often lacks its newline."""
    ended, events = run(python("import sys; sys.stdout.write('one\\ntwo')"))

    assert ["one", "two"] == texts(events)
    assert ("one", "two") == ended.last


def test_line_that_is_a_json_object_stays_one() -> None:
    """Whoever logs JSON finds its keys again; what only looks like it stays a text."""
    _, events = run(
        python("""
            print('{"level": "info", "n": 1}')
            print('{"n": NaN}')
            print('[1]')
            print('{broken}')
        """)
    )

    assert [{"level": "info", "n": 1}] == [e["object"] for e in events if "object" in e]
    assert ['{"n": NaN}', "[1]", "{broken}"] == [e["text"] for e in events if "text" in e]


def test_object_that_nobody_could_write_down_is_told() -> None:
    """Half an emoji, of a line that was cut, is shown as its code; an endless nest is text."""
    half, deep = r'{"msg": "cut \ud83d"}', '{"n": ' + "[" * 700 + "]" * 700 + "}"
    ended, events = run(python(f"print({half!r}); print({deep!r}); print({half!r})"))

    assert (half, deep, half) == ended.last
    assert [{"msg": "cut \ud83d"}] * 2 == [e["object"] for e in events if "object" in e]
    assert [deep] == [e["text"] for e in events if "text" in e]


def test_command_that_does_not_end_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it sees what for, on the copy as well; nothing where it ends soon."""
    again = tmp_path / "again"
    body = f"import os, time\nwhile not os.path.exists({str(again)!r}):\n    time.sleep(0.01)"
    _, quiet = run(python("print('soon')"))
    monkeypatch.setattr(child, "TELL_EVERY_S", 0.0)
    looks: list[int] = []

    def each(running: child.Child) -> None:
        looks.append(running.pid)
        if len(looks) > 1:  # it has been told of once between two looks
            again.touch()

    with capture_logs() as events:
        child.run(
            python(body), ENVIRONMENT, secrets=(), timeout_s=PATIENCE_S, each=each, rehearsal=True
        )

    assert [] == [event for event in quiet if event["event"] == "wrap.progressed"]
    (first, *_) = [event for event in events if event["event"] == "wrap.progressed"]
    assert first["rehearsal"]
    assert "starts the app" in first["waiting"]


def test_bytes_that_are_no_text_are_shown_safely() -> None:
    """Neither UTF-8 errors nor a terminal's commands reach the log."""
    _, events = run(
        python(r"import os; os.write(1, b'a\xff\xfeb\n\x1b[31mred\x1b[0m\n\x07bell\n\x00\n')")
    )

    assert [r"a\xff\xfeb", "red", r"\x07bell", r"\x00"] == texts(events)


def test_progress_bar_is_lines() -> None:
    """A carriage return begins a new line; Windows' line end is one, also cut in two."""
    _, events = run(
        python(r"""
            import os, time
            os.write(1, b"10%\r50%\rone\r")
            time.sleep(0.05)
            os.write(1, b"\ntwo\r\n")
        """)
    )

    assert ["10%", "50%", "one", "two"] == texts(events)


def test_long_line_is_cut_and_says_so() -> None:
    """A line of a megabyte costs neither memory nor the log; the next one is whole."""
    _, events = run(python("print('x' * 1_000_000); print('next')"))

    first = events[0]
    assert "x" * said.MOST == first["text"]
    assert 1_000_000 == len(first["text"]) + first["untold_bytes"]
    assert "next" == events[1]["text"]


def test_flood_of_lines_loses_none_and_is_looked_at_meanwhile() -> None:
    """A chatty command does not keep us from looking, and only its last lines are kept."""
    looks: list[int] = []
    ended, events = run(
        python("[print(n) for n in range(30_000)]"), each=lambda each: looks.append(each.pid)
    )

    assert [str(n) for n in range(30_000)] == texts(events)
    assert tuple(map(str, range(29_980, 30_000))) == ended.last
    assert looks


def test_command_that_closes_its_streams_is_waited_for() -> None:
    """A closed stream is no end: the exit code counts."""
    ended, _ = run(
        python("import os, sys, time; os.close(1); os.close(2); time.sleep(0.3); os._exit(5)")
    )

    assert 5 == ended.code
    assert ended.duration_s >= 0.3


def test_it_has_nothing_to_read() -> None:
    """A question that nobody can answer ends at once."""
    _, events = run(python("import sys; print(repr(sys.stdin.read()))"))

    assert ["''"] == texts(events)


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "s3cret/p@ss word",
        "s3cret%2Fp%40ss%20word",
        "s3cret%2fp%40ss%20word",
        "s3cret/p%40ss%20word",
        "s3cret%2Fp%40ss+word",
    ],
)
def test_secret_is_masked_in_each_spelling(spelling: str) -> None:
    """A password in a URL is percent-encoded by some, and not by others."""
    ended, events = run(python("import sys; print('at', sys.argv[1])", spelling), secrets=[SECRET])

    assert ["at ***"] == texts(events)
    assert ("at ***",) == ended.last


@pytest.mark.parametrize(
    ("secret", "line"),
    [
        ("it's", "password='it''s'"),
        ("it's", r"password='it\'s'"),
        ("it's", """password='it'"'"'s'"""),
        ("it's", r"password='it'\''s'"),
        ('a"b\\c', r'{"url": "x:a\"b\\c@y"}'),
        ("pä", '{"url": "x:p\\u00e4@y"}'),
        ("ab", r'{"url": "\u0061b"}'),
        ("12345", '{"password": 12345}'),
        ("key", '{"key": {"deep": ["key"]}}'),
    ],
)
def test_secret_is_masked_in_sql_and_json(secret: str, line: str) -> None:
    """Quotes are doubled or escaped, JSON has escapes of its own, and keys are texts, too."""
    ended, events = run(python("import sys; print(sys.argv[1])", line), secrets=[secret])

    shown = json.dumps([events, ended.last], ensure_ascii=False, default=str)
    assert "***" in shown
    assert secret not in shown
    assert line not in json.loads(shown)[1]


def test_each_line_of_a_secret_is_masked() -> None:
    """A private key has lines, and is said line by line."""
    _, events = run(python("print('one-line\\ntwo-line')"), secrets=["one-line\ntwo-line\n"])

    assert ["***", "***"] == texts(events)


def test_secret_is_masked_where_its_pieces_come_one_by_one() -> None:
    """A write, a buffer or a colour may cut it anywhere."""
    _, events = run(
        python(r"""
            import os, time
            for piece in (b"<hid", b"den", b"\x1b[1m-one>", b"\n"):
                os.write(1, piece)
                time.sleep(0.05)
        """),
        secrets=["hidden-one"],
    )

    assert ["<***>"] == texts(events)


@pytest.mark.parametrize("before", range(said.MOST - 12, said.MOST + 3))
def test_no_piece_of_a_secret_is_left_where_a_long_line_is_cut(before: int) -> None:
    """The cut may fall into a secret; masks before it make the line shorter."""
    mask = masks.Mask(["hidden-one"])
    with capture_logs() as events:
        heard = said.Heard("stdout", mask, said.Kept(), rehearsal=False)
        heard.hear(b"hidden-one" * 5 + b"." * (before - 50))
        heard.hear(b"hidden-one and " + b"y" * 100)
        heard.hear(b"z" * 100_000 + b"\n")

    (event,) = events
    assert event["text"].startswith("***" * 5)
    assert "hi" not in event["text"]
    assert event["untold_bytes"] >= 100_000


# --- what it is given -----------------------------------------------------------------------------


def test_nothing_of_ours_is_inherited() -> None:
    """Our settings are not COMMAND's; what the launcher changed is as the app's image had it."""
    given = {
        "PATH": "/opt/pg-preflight/bin:/usr/bin",
        "_PG_PREFLIGHT_PATH": "=/app/bin:/usr/bin",
        "LC_ALL": "C.UTF-8",
        "_PG_PREFLIGHT_LC_ALL": "",
        "_PG_PREFLIGHT_LD_PRELOAD": "=libjemalloc.so",
        "PREFLIGHT_BACKUP_DIR": "/backups",
        "EMPTY": "",
        "LINES": "a\nb=c",
    }

    assert {
        "PATH": "/app/bin:/usr/bin",
        "LD_PRELOAD": "libjemalloc.so",
        "EMPTY": "",
        "LINES": "a\nb=c",
    } == child.own(given)


def test_environment_arrives_as_it_is() -> None:
    """Empty values, line breaks, and bytes that are no text."""
    given = {**ENVIRONMENT, "EMPTY": "", "LINES": "a\nb=c", "RAW": "\udcff"}
    _, events = run(
        python("import json, os; print(json.dumps({'env': dict(os.environ)}))"), environment=given
    )

    (event,) = events
    assert given == {k: v for k, v in event["object"]["env"].items() if k != "LC_CTYPE"}


def test_open_files_of_ours_are_not_inherited(tmp_path: Path) -> None:
    """Only the three streams: a connection or a lock of ours stays ours."""
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)  # noqa: FBT003 - has no name
        _, events = run(["ls", "-l", "/proc/self/fd"])

    names = [line.split()[-3] for line in texts(events) if "->" in line]
    assert ["0", "1", "2"] == names[:3]
    assert len(names) <= 4, "ls opens the directory itself"


@pytest.mark.parametrize("kind", ["absent", "directory", "not executable", "no interpreter"])
def test_command_that_cannot_be_started_is_a_configuration_error(kind: str, tmp_path: Path) -> None:
    """The sentence says which command, and why."""
    file = tmp_path / "command"
    if kind == "directory":
        file.mkdir()
    elif kind == "not executable":
        file.write_text("#!/bin/sh\n")
    elif kind == "no interpreter":
        file.write_text("#!/not/there\n")
        file.chmod(0o755)

    with pytest.raises(ConfigInvalid, match=r"command cannot be started: \w+") as caught:
        run([str(file)])
    assert "wrap.not_started" == caught.value.code


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        ("#!/bin/sh\n", 0o644, "is there and not executable"),
        ("#!/not/there -x\n", 0o755, "names the interpreter /not/there, which is not there"),
        ("#!/bin/sh\r\necho\r\n", 0o755, "ends with a carriage return"),
        ("#! /usr/bin/env sh\r\n", 0o755, "ends with a carriage return"),
        ("#!/usr/bin/env no-such-python\n", 0o755, "names the interpreter no-such-python,"),
        ("#!\n", 0o755, "names none"),
        ("echo well\n", 0o755, "has no line #!"),
        ("\ufeff#!/bin/sh\n", 0o755, "has something before its #!"),
        ("", 0o755, "has no line #!"),
        ("#! /bin/sh -e\necho\n", 0o755, ""),
        ("#!/usr/bin/env -S sh -e\n", 0o755, ""),
        ("#!/usr/bin/env sh", 0o755, ""),
        ("\x7fELF\x02\x01", 0o755, ""),
        ("#!/bin/sh -e\r\n", 0o755, ""),  # Perl allows it
        ("#!/usr/bin/env -S sh\r\n", 0o755, ""),
        ("#!\r\n", 0o755, "ends with a carriage return"),
        ("#!/not/there\0\n", 0o755, "names the interpreter /not/there, which"),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_program_that_the_kernel_does_not_start_says_why(
    tmp_path: Path,
    content: str,
    mode: int,
    expected: str,
    bare: bool,  # noqa: FBT001
) -> None:
    """Before anything is done for it: its mode, or its first line; by its path and by its name."""
    tool = tmp_path / "migrator"
    tool.write_bytes(content.encode())
    tool.chmod(mode)
    environment = {"PATH": f"/nowhere:{tmp_path}:{os.environ['PATH']}"}
    refuses = pytest.raises(ConfigInvalid, match=re.escape(expected) or None)
    with refuses if expected else contextlib.nullcontext():
        program.require_startable("migrator" if bare else str(tool), environment)


STALE, PLAIN = "#!/build/.venv/bin/python\n", "echo\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([(STALE, 0o755), ("#!/bin/sh\n", 0o755)], ""),
        ([(PLAIN, 0o755), ("#!/bin/sh\n", 0o755)], ""),
        ([("#!/bin/sh\n", 0o644), ("#!/bin/sh\n", 0o755)], ""),
        ([("#!/bin/sh\r\n", 0o755), ("#!/bin/sh\n", 0o755)], ""),
        ([(STALE, 0o755), (PLAIN, 0o755)], "0/migrator names the interpreter /build/"),
        ([(PLAIN, 0o644), (STALE, 0o755)], "0/migrator is there and not executable"),
    ],
)
def test_program_is_looked_for_on_all_of_the_path(
    tmp_path: Path, files: list[tuple[str, int]], expected: str
) -> None:
    """Who starts it goes on where one does not start: refused is what none of them could be."""
    for number, (content, mode) in enumerate(files):
        tool = tmp_path / str(number) / "migrator"
        tool.parent.mkdir()
        tool.write_bytes(content.encode())
        tool.chmod(mode)
    (tmp_path / "folder" / "migrator").mkdir(parents=True)
    folders = [tmp_path / "folder", *(tmp_path / str(number) for number in range(len(files)))]
    environment = {"PATH": ":".join(map(str, folders))}
    refuses = pytest.raises(ConfigInvalid, match=re.escape(expected) or None)

    with refuses if expected else contextlib.nullcontext():
        program.require_startable("migrator", environment)


def test_command_is_found_on_its_own_path(tmp_path: Path) -> None:
    """The PATH of COMMAND's environment, not ours."""
    tool = tmp_path / "migrator"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)

    _, events = run(["migrator"], environment={"PATH": str(tmp_path)})

    assert ["found"] == texts(events)


# --- how it ends ----------------------------------------------------------------------------------

STUBBORN = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    if len(sys.argv) > 1:
        subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[1]], start_new_session=True)
    while True:
        time.sleep(1)
"""
CHILD = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
while True:
    time.sleep(1)
"""


def test_timeout_ends_it_and_what_it_started() -> None:
    """None is no exit code: it took too long; who does not listen is killed."""
    ended, events = run(python(STUBBORN, CHILD), timeout_s=0.7)

    assert ended.code is None
    assert 2 == len(texts(events))
    assert [False, False] == [alive(int(text)) for text in texts(events)]


def test_signal_that_ended_it_is_its_code() -> None:
    """As subprocess has it: negative."""
    ended, _ = run(python("import os; os.kill(os.getpid(), 9)"))

    assert -signal.SIGKILL == ended.code


@pytest.fixture
def _no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget a stop request after the test."""
    monkeypatch.setattr(stop, "_requested", None)
    monkeypatch.setattr(stop, "_raised", False)


@pytest.mark.usefixtures("_no_stop")
def test_stop_request_is_passed_on_to_all_that_it_started() -> None:
    """Also behind a shell that passes nothing on; their last words are told."""
    script = python("""
        import os, signal, sys, time
        def end(*_):
            print("rolled back", flush=True)
            os._exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        while True:
            time.sleep(1)
    """)
    with capture_logs() as events:

        def ask(_: child.Child) -> None:
            if "ready" in texts([dict(event) for event in events]):
                stop.request(signal.SIGTERM)

        with pytest.raises(stop.Stopped):
            child.run(
                ["sh", "-c", '"$@"; exit 3', "sh", *script],
                ENVIRONMENT,
                secrets=[],
                timeout_s=PATIENCE_S,
                each=ask,
            )

    assert "rolled back" in texts([dict(event) for event in events])


def test_error_of_who_looks_on_ends_it() -> None:
    """A lost lock ends the command at once."""
    pids: list[int] = []

    def look(each: child.Child) -> None:
        pids.extend(tree.below(each.pid))
        if pids:
            raise RuntimeError("the lock is lost")

    with pytest.raises(RuntimeError, match="the lock is lost"):
        run(python("import time; time.sleep(100)"), each=look)

    assert not any(map(alive, pids))


def test_what_it_leaves_behind_is_ended_and_told() -> None:
    """A daemon that holds the pipes must neither hang us nor go on with the database."""
    ended, events = run(
        python(
            """
            import os, subprocess, sys
            subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[1]],
                             start_new_session=True, stdout=1)
            """,
            CHILD,
        )
    )

    assert 0 == ended.code
    assert [1] == [e["processes"] for e in events if e["event"] == "wrap.left_behind"]
    assert [False] == [alive(int(text)) for text in texts(events)]


def test_command_that_ended_in_time_did_not_take_too_long() -> None:
    """What it leaves behind, and does not go when asked to, is no part of its time."""
    left = "trap '' TERM; echo there; sleep 60; sleep 60"
    ended, events = run(["sh", "-c", f'sh -c "{left}" & exit 0'], timeout_s=2.5)

    assert 0 == ended.code
    assert ended.duration_s > 2.5
    assert ["there"] == texts(events)


def test_what_ends_by_itself_soon_after_is_left_alone() -> None:
    """The end of a pipeline has the last word."""
    ended, events = run(["sh", "-c", "(sleep 0.2; echo late) & echo early"])

    assert 0 == ended.code
    assert ["early", "late"] == texts(events)
    assert "wrap.left_behind" not in {event["event"] for event in events}


OURS = """
import sys
from preflight.commands.wrapping import child
child.run(sys.argv[2:], {'PATH': sys.argv[1]}, secrets=[], timeout_s=None)
"""


def test_kill_of_ours_ends_it_and_what_it_started() -> None:
    """Nobody works on the database when the lock is gone with us, also after kill -9."""
    ours = subprocess.Popen(
        [
            sys.executable,
            "-c",
            OURS,
            os.environ["PATH"],
            *python(STUBBORN, CHILD),
        ],
        cwd=Path(child.ROOT),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(tree.below(ours.pid)) >= 3)  # keeper, command, its child
        below = tree.below(ours.pid)
    finally:
        ours.kill()
        ours.wait()

    wait_until(lambda: not any(map(alive, below)))


def test_kill_of_the_keeper_ends_it_and_its_group() -> None:
    """The kernel tells COMMAND of its parent's death, and we end the rest of its group."""
    pids: list[int] = []

    def kill(each: child.Child) -> None:
        pids[:] = tree.below(each.pid)
        if len(pids) == 2:
            os.kill(each.pid, signal.SIGKILL)

    ended, _ = run(["sh", "-c", "sleep 100; echo"], each=kill)

    assert -signal.SIGKILL == ended.code
    wait_until(lambda: not any(map(alive, pids)))


# --- the wall -------------------------------------------------------------------------------------

CONNECT = """
import socket, subprocess, sys
for port in map(int, sys.argv[2:]):
    with socket.socket() as client:
        try:
            client.connect(("127.0.0.1", port))
            print(sys.argv[1], port, "open", flush=True)
        except PermissionError:
            print(sys.argv[1], port, "closed", flush=True)
if sys.argv[1] == "child":
    script = open("/proc/self/cmdline", "rb").read().split(b"\\0")[4]
    subprocess.run([sys.executable, "-I", "-S", "-c", script, "grandchild", *sys.argv[2:]])
"""


@pytest.fixture
def two_ports() -> Iterator[tuple[int, int]]:
    """Give two ports on which somebody listens."""
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        one, two = (each.getsockname()[1] for each in listening)
        yield one, two


needs_landlock = pytest.mark.skipif(
    not wall.available(), reason="this kernel has not Landlock's TCP rules (Linux 6.7)"
)


@needs_landlock
def test_wall_lets_a_command_and_its_children_through_to_its_ports_only(
    two_ports: tuple[int, int],
) -> None:
    """Whatever their configuration says: no other TCP port answers, for them or their children."""
    copy, live = two_ports
    _, events = run(python(CONNECT, "child", copy, live), around=wall.Wall((copy,)))

    assert [
        f"child {copy} open",
        f"child {live} closed",
        f"grandchild {copy} open",
        f"grandchild {live} closed",
    ] == texts(events)


@needs_landlock
def test_wall_without_ports_lets_nobody_through(two_ports: tuple[int, int]) -> None:
    """A copy behind a Unix socket needs no port at all."""
    one, two = two_ports
    _, events = run(python(CONNECT, "child", one, two), around=wall.Wall(()))

    assert not [text for text in texts(events) if "open" in text]


def test_without_a_wall_every_port_is_open(two_ports: tuple[int, int]) -> None:
    """In earnest nothing is taken away, also after a rehearsal in the same process."""
    one, two = two_ports
    if wall.available():
        run(python("pass"), around=wall.Wall(()))
    _, events = run(python(CONNECT, "child", one, two))

    assert not [text for text in texts(events) if "closed" in text]


@needs_landlock
def test_wall_closes_nameless_unix_sockets() -> None:
    """A server may listen on a socket of the abstract kind, which no file system guards."""
    name = f"\0pg-preflight-{os.getpid()}"
    script = """
        import socket, sys
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect("\\0" + sys.argv[1])
                print("open")
            except PermissionError:
                print("closed")
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        _, walled = run(python(script, name[1:]), around=wall.Wall(()))
        _, free = run(python(script, name[1:]))

    assert ["closed"] == texts(walled)
    assert ["open"] == texts(free)


# --- whose session --------------------------------------------------------------------------------


def test_only_the_sockets_of_its_own_processes_are_its_sessions() -> None:
    """A grandchild's session is the command's, another program's on the same server is not."""
    script = """
        import socket, subprocess, sys
        client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        print(client.getsockname()[1], flush=True)
        if len(sys.argv) > 2:
            subprocess.run([sys.executable, "-I", "-S", "-c", sys.argv[2], sys.argv[1]])
        client.recv(1)
    """
    script = textwrap.dedent(script)
    found: set[tuple[str | None, int]] = set()
    with socket.create_server(("127.0.0.1", 0)) as server, capture_logs() as events:
        port = server.getsockname()[1]
        theirs: list[socket.socket] = []

        def look(each: child.Child) -> None:
            said_ports = [int(text) for text in texts([dict(event) for event in events])]
            if len(said_ports) < 2 or found:
                return
            others: list[tuple[str | None, int]] = [
                *(("127.0.0.1", own) for own in said_ports),
                ("127.0.0.1/32", other.getsockname()[1]),
                ("127.0.0.2", said_ports[0]),
                (None, -1),
            ]
            found.update(wall.sessions(each.pid, others, port))
            assert set() == wall.sessions(each.pid, others, port + 1)
            theirs.extend(server.accept()[0] for _ in range(3))
            for each_one in theirs:
                each_one.close()

        with socket.create_connection(("127.0.0.1", port)) as other:
            child.run(
                python(script, port, script),
                ENVIRONMENT,
                secrets=[],
                timeout_s=PATIENCE_S,
                each=look,
            )

    assert {("127.0.0.1", int(text)) for text in texts([dict(e) for e in events])} == found
    assert 2 == len(found)


def test_addresses_are_read_as_the_kernel_prints_them() -> None:
    """Four bytes at a time in the processor's order; an IPv4 address in IPv6's clothes is one."""
    with (
        socket.socket(socket.AF_INET6) as server,
        contextlib.ExitStack() as stack,
    ):
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 0))
        server.listen()
        port = server.getsockname()[1]
        try:
            six = stack.enter_context(socket.create_connection(("::1", port)))
        except OSError:
            pytest.skip("there is no IPv6 here")
        mapped = stack.enter_context(socket.socket(socket.AF_INET6))
        mapped.connect(("::ffff:127.0.0.1", port))
        others = [("::1", six.getsockname()[1]), ("127.0.0.1", mapped.getsockname()[1])]

        assert set(others) == wall.sessions(os.getpid(), [*others, ("::2", others[0][1])], port)


# --- what all databases share ---------------------------------------------------------------------


def test_only_what_a_command_names_or_uses_is_its_change_of_the_server() -> None:
    """Its own are a role that it names, one that has a right on the copy, and what goes with them.

    A role of somebody else's is not, though it becomes a member of one that the command names.
    """
    before = [("role app", "1", "app"), ("role gone", "2", "gone"), ("settings", "3")]
    after = [
        ("database theirs", "", "theirs"),
        ("membership of app in reader", "", "app", "reader"),
        ("membership of vault in app", "", "vault", "app"),
        ("role app", "1 VALID", "app"),
        ("role reader", "", "reader"),
        ("role vault", "", "vault"),
        ("settings", "4"),
    ]

    changes = shared.between(before, after)

    def own(used: set[str], named: set[str]) -> list[str]:
        return [str(each) for each in shared.its(changes, used, named.__contains__)]

    ours = ["membership of app in reader made", "role reader made"]
    assert ["settings changed"] == own(set(), set())
    assert [*ours, "settings changed"] == own({"reader", "gone"}, set())
    assert [ours[0], "role app changed", ours[1], "settings changed"] == own(
        set(), {"app", "reader"}
    )
    assert "role gone dropped" in own(set(), {"gone"})
    assert ["database theirs made"] == [str(e) for e in changes if not e.concerns("app")]


def test_word_is_found_whole_in_arguments_and_files(tmp_path: Path) -> None:
    """In any case, across two pieces of a large file, and in a file that an argument names."""
    watched, tool = tmp_path / "watched", tmp_path / "tool"
    watched.mkdir()
    (watched / "1.sql").write_bytes(b"-" * (key.CHUNK - 3) + b" ReadEr; my_reader")
    tool.write_text("CREATE ROLE writer")
    asked = ["sh", str(tool), "-c", "DROP ROLE old"]

    found = [
        word
        for word in ("reader", "read", "my", "writer", "old", "sh", "none")
        if key.mentions(word, asked, [watched, tmp_path / "gone"])
    ]

    assert ["reader", "writer", "old", "sh"] == found


def test_look_that_is_answered_too_late_does_not_count() -> None:
    """Who was asked to end meanwhile is gone: what was seen before that holds."""
    asked = iter([True, False])

    found = onlooker._lingering(  # noqa: SLF001 -- asked in between
        dict, child.Child(0, lambda: next(asked)), {7: 754}
    )

    assert {7: 754} == found


@pytest.mark.parametrize(
    ("line", "closed"),
    [
        ('connection to server at "127.0.0.1", port 5432 failed: Permission denied', True),
        ("dial tcp 10.0.0.5:5432: connect: permission denied", True),
        ("Error: connect EACCES 10.0.0.5:5432", True),
        ("OSError: [Errno 13] Connect call failed ('10.0.0.5', 5432)", True),
        ('FATAL:  permission denied for database "app"', False),
        ("ERROR:  permission denied to create database", False),
        ("could not open file: Permission denied", False),
    ],
)
def test_right_that_a_role_lacks_is_no_wall(line: str, *, closed: bool) -> None:
    """Clients say that they may not connect, servers that a role may not do a thing."""
    assert closed == said.is_closed(line)


@pytest.mark.parametrize(
    ("line", "later"),
    [
        ('psycopg.errors.UniqueViolation: duplicate key value violates "k"', True),
        ("django.db.utils.IntegrityError: duplicate key", True),
        ("PG::CheckViolation: ERROR:  check constraint", True),
        ('psql:a.sql:3: ERROR:  column "x" does not exist', True),
        ('ERROR: relation "t" already exists (SQLSTATE 42P07)', True),
        ('error: migration failed: pq: column "x" does not exist', True),
        ("error: Recipe `migrate` failed on line 3 with exit code 1", False),
        ("ERROR:root:migration failed", False),
        ('error: script "migrate" exited with code 1', False),
    ],
)
def test_what_a_runner_says_of_the_end_is_no_error_of_the_server(line: str, later: bool) -> None:  # noqa: FBT001
    """What the command could not connect to is the cause then."""
    closed = "cannot connect to the cache server: [Errno 13] Permission denied"

    assert (closed, later) == said.refusal(["CREATE TABLE", closed, line])
    assert ("", later) == said.refusal(["CREATE TABLE", line])


@pytest.mark.parametrize(
    ("later", "other"),
    [
        (['ERROR:  check constraint "pos" is violated'], True),
        (["failed: migration 7 (SQLSTATE 23514)"], True),
        (["error: relation is violated", "    at Parser.parseErrorMessage"], True),
        (["psycopg.errors.CheckViolation: check constraint is violated"], True),
        (['PostgresError: relation "t" does not exist'], True),
        (['** (Postgrex.Error) ERROR 42P01 (undefined_table) relation "t" is missing'], True),
        (['error returned from database: relation "t" does not exist'], True),
        (["Database error code: 23514", "Database error:"], True),
        (["step"] * 40 + ["error: 3 items have no price"], True),
        (["SQL State  : 08001"], False),
        (["\tIs the server running on that host?", "error Command failed with code 1"], False),
        ([], False),
    ],
)
def test_refusal_that_a_command_lived_through_is_not_its_end(
    later: list[str], *, other: bool
) -> None:
    """A reason that was told later is; what an earlier one said is over."""
    refused = "cache: connect: Permission denied"

    assert (refused, other) == said.refusal(["ERROR:  earlier", refused, *later])
    assert ("", other) == said.refusal(later)


FRAMES = ["    at parseErrorMessage (parser.js:306:11)", "  length: 153,", "  severity: 'ERROR',"]
VIOLATED = 'check constraint "named" of relation "items" is violated by some row'
LIVED = "Error: connect ECONNREFUSED 10.0.0.7:6379 (cache), going on without"
OBJECT = [*FRAMES, *("  detail: undefined," for _ in range(said.LAST)), "}"]


ENDS = [  # by which a command says that its data are at fault
    f"ERROR:  {VIOLATED}",
    'error: could not create unique index "items_name"',
    "migrate: error: 3 items have no price",
    "ERROR: Validation error",
    "IntegrityError: 3 items have no price",
    "Database error: ERROR: 3 items have no price",
    "Error: 3 items have no price",
]


def kept(lines: Sequence[str]) -> said.Kept:
    """Return what is kept of some lines."""
    found = said.Kept()
    for line in lines:
        found.keep(line)
    return found


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"QueryFailedError: {VIOLATED}", *OBJECT], [f"QueryFailedError: {VIOLATED}"]),
        ([f"error: {VIOLATED}", *OBJECT], [f"error: {VIOLATED}"]),
        ([f"error: {VIOLATED}", *FRAMES[:1]], [f"error: {VIOLATED}"]),
        (
            [
                f"sqlalchemy.exc.IntegrityError: (psycopg.errors.CheckViolation) {VIOLATED}",
                *(
                    "[SQL: ALTER TABLE items]",
                    "(Background on this error at: https://sqlalche.me/)",
                ),
            ],
            [f"sqlalchemy.exc.IntegrityError: (psycopg.errors.CheckViolation) {VIOLATED}"],
        ),
        (
            [f"django.db.utils.IntegrityError: {VIOLATED}", "  Applying shop.0003_unique..."],
            [f"django.db.utils.IntegrityError: {VIOLATED}"],
        ),
        (
            [f"psql:a.sql:1: ERROR:  {VIOLATED}", "Deploy failed"],
            [f"psql:a.sql:1: ERROR:  {VIOLATED}", "its last line: Deploy failed"],
        ),
        (
            [f"ERROR:  {VIOLATED}", "Deploy failed", "make: *** [migrate] Error 1"],
            [f"ERROR:  {VIOLATED}", "behind that it said: Deploy failed"],
        ),
        (
            [LIVED, "migrating", "  x 005_price: 3 items have no price"],
            [LIVED, "its last line: x 005_price: 3 items have no price"],
        ),
        ([LIVED, "\t005: 3 are without"], [LIVED, "its last line: 005: 3 are without"]),
        ([LIVED, *(f"  step {n}" for n in range(30))], [LIVED, "its last line: step 29"]),
        (
            [f"error: {VIOLATED}", "  length: 153,", "  routine: 'ATRewriteTable'", "}"],
            [f"error: {VIOLATED}"],
        ),
        (
            [f"error: {VIOLATED}", "    File: tablecmds.c", "    Line: 5900", "    Routine: AT"],
            [f"error: {VIOLATED}"],
        ),
        (
            [f"error: {VIOLATED}", "  37  artisan:13", "      A\\B\\Application::handle()"],
            [f"error: {VIOLATED}"],
        ),
        (
            [f"error: {VIOLATED}", "    (ecto_sql 3.10.1) lib/ecto/m.ex:1: A.b/3"],
            [f"error: {VIOLATED}"],
        ),
        (
            [f"ERROR:  {VIOLATED}", "CONTEXT:  PL/pgSQL function", "make: *** [migrate] Error 1"],
            [f"ERROR:  {VIOLATED}"],
        ),
        (
            [f"Npgsql.PostgresException (0x80004005): 23514: {VIOLATED}", "  Severity: ERROR"],
            [f"Npgsql.PostgresException (0x80004005): 23514: {VIOLATED}"],
        ),
        (
            ["In Driver.php:", f"  SQLSTATE[23514]: {VIOLATED}"],
            [f"SQLSTATE[23514]: {VIOLATED}"],
        ),
        (
            ["ModuleNotFoundError: No module named 'x'"],
            ["ModuleNotFoundError: No module named 'x'"],
        ),
        (["going on", 'NOTICE:  relation "a" already exists, skipping'], ["going on"]),
        (["read the file", "[⣷] applying migrations..."], ["read the file"]),
        (["nobody knows", "why"], ["why"]),
        (
            [f"error: {VIOLATED}", 'error: script "migrate" exited with code 1'],
            [f"error: {VIOLATED}"],
        ),
        ([f"error: {VIOLATED}", "    raise PostgresError(text)"], [f"error: {VIOLATED}"]),
        ([f"error: {VIOLATED} {{", "  error: undefined,", "}"], [f"error: {VIOLATED} {{"]),
        (
            ["make: alembic: No such file or directory", "make: *** [Makefile:2: up] Error 127"],
            ["make: alembic: No such file or directory"],
        ),
        (["make: *** No rule to make target 'up'.  Stop."],) * 2,
        (["}"], ["}"]),
        ([], []),
    ],
)
def test_failure_is_told_by_the_line_that_says_why(lines: list[str], expected: list[str]) -> None:
    """However much a tool says behind it; and where none says why, by the last one that is one.

    A tool may live through what it said why, so its last line is told, too, and no other as that.
    """
    found = kept(lines)

    assert tuple(expected) == said.why(found.last, found.telling)
    assert not lines or expected[0] in str(said.context(found.last, found.telling))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['QueryFailedError: relation "bill.items" does not exist', *OBJECT], True),
        (['ERROR:  relation "a.b" does not exist', f"ERROR:  {VIOLATED}"], False),
        (['ERROR:  relation "a.b" does not exist', f"ERROR:  {VIOLATED}", *OBJECT], False),
        (['SQLSTATE[42P01]: ERROR: relation "a.b" does not exist', "SQLState: 42P01"], True),
        (
            [
                'ERROR:  relation "a.b" does not exist',
                "ERROR:  current transaction is aborted, commands ignored until end of block",
            ],
            True,
        ),
        (['table "a.b" does not exist: it is made', *OBJECT], False),
        *(
            (['ERROR: relation "a.b" does not exist (going on)', "step", end], False)
            for end in ENDS
        ),
        (['ERROR: relation "a.b" does not exist', "make: *** [Makefile:2: up] Error 1"], True),
    ],
)
def test_how_long_an_error_is_decides_nothing(lines: list[str], *, expected: bool) -> None:
    """What misses a table excuses a trial, unless another reason came later."""
    found = kept(lines)

    assert expected == (said.missing(found.last, found.telling) is not None)


@pytest.mark.parametrize(
    "line",
    [
        "psycopg.OperationalError: server does not support SSL, but SSL was required",
        "Error: The server does not support SSL connections",
        "Caused by: org.postgresql.util.PSQLException: The server does not support SSL.",
        "error: pq: SSL is not enabled on the server",
        "failed to connect: tls error (server refused TLS connection)",
        'ConnectionError: PostgreSQL server at "127.0.0.1:1" rejected SSL upgrade',
        "Npgsql.NpgsqlException: No SSL enabled connection from this host is configured.",
        "error: while attempting to establish a TLS connection: server does not support TLS",
        "** (DBConnection.ConnectionError) ssl not available",
    ],
)
def test_server_without_tls_is_known_by_the_words_of_clients(line: str) -> None:
    """Unless the command went on without, and another reason is told later."""
    assert line == said.without_tls(kept([line, "SQLState: 08004", *OBJECT]).telling)
    for end in ENDS:
        assert said.without_tls(kept([line, "migrating", end]).telling) is None
    assert said.without_tls(kept(["SSL is off", f"ERROR:  {VIOLATED}"]).telling) is None


def test_flood_of_errors_is_not_kept() -> None:
    """Of a tool that fails again and again the newest lines are, and what else it said before."""
    refused = "cache: connect: Permission denied"
    found = kept([refused, *(f"ERROR:  {number}" for number in range(10 * said.TELLING))])

    assert (refused, True) == said.refusal(found.telling)
    assert (said.TELLING + 1, f"ERROR:  {10 * said.TELLING - 1}") == (
        len(found.telling),
        found.telling[-1],
    )
