"""Leave at once when there is nothing to do, with the very lines that `up` would have written.

Nothing is said before everything is known: whatever is unusual is left to the full path, which
begins as if nobody had looked. What may be imported here is listed in a test.
"""

import _thread
import gc
import os
import stat
import sys
import time

try:  # OpenSSL's takes longer to load than these files to hash
    from _sha256 import sha256  # type: ignore[import-not-found]
except ImportError:  # Python 3.12 and later
    from _sha2 import sha256  # type: ignore[import-not-found]

from preflight import __version__
from preflight.base import plain, unloadable
from preflight.files import names
from preflight.quick import told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from preflight.quick import asked

UNHEARD_S, HEARD_S = 1.5, 3.0  # of silence: at first, and once the server has answered
FULL_S = 3.0  # for a place among the connections; then the full path waits, and says so
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # put together once, not ten thousand times
MARKS = b"+goose", b"migrate:"  # of tools whose folders hold more than is looked at here
BLANK = b" \t\r\n\f\v;"  # what holds no statement, whatever the layout
SMALL = 65_536  # bytes that are asked for at once: most files have fewer
SHORT = 250  # characters of a reason, so that no log cuts its sentence


class Line:
    """The lines of a run that finds nothing to do, as the log writes them."""

    def __init__(self, run_id: str, level: str) -> None:
        self.run_id = run_id
        self.level = level
        self.lines: list[str] = []

    def add(self, event: str, about: str, at_ns: int = 0, **data: object) -> None:
        """Add an event, of now unless a time is told; `about` is what its sentence ends with."""
        seconds, nanoseconds = divmod(at_ns or time.time_ns(), 1_000_000_000)
        micros = nanoseconds // 1000
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        fraction = f".{micros:06}" if micros else ""
        message = event.replace(".", " ") + about
        words = {"event": event, "run_id": self.run_id, "message": message, **data}
        self.lines.append(f'{{"timestamp": "{stamp}{fraction}Z", {self.level}, {inside(words)}}}\n')


def inside(data: dict[str, object]) -> str:
    """Return what stands between the braces of a JSON object; raises Unclear for an odd text."""
    return ", ".join(f'"{key}": {_json(value)}' for key, value in data.items())


def _json(value: object) -> str:
    if not isinstance(value, str):
        return repr(value)
    if not (value.isascii() and value.isprintable()) or "\\" in value:
        raise told.Unclear
    return '"' + value.replace('"', '\\"') + '"'


def leave_if_done() -> None:
    """End the process with 0 when there is nothing to do; else return with nothing said."""
    gc.disable()  # it would walk through thousands of names again and again
    try:
        done = answer()
    except Exception:  # noqa: BLE001 -- whatever it is, the full path meets it and says so
        return
    finally:
        gc.enable()
    if done and not unloadable.stops:
        _say(*done)


def answer() -> tuple[str, str, str] | None:
    """Return the lines, the termination message and its path, if there is nothing to do."""
    began = time.monotonic()
    if sys.argv[1:] not in ([], ["up"]) or None in (sys.stdin, sys.stdout, sys.stderr):
        return None
    environ = told.environment()
    settings, target = told.settings(environ), told.target(environ)
    choice = settings.get("log", "auto")
    if choice == "auto" and os.isatty(1):
        return None
    run_id = os.urandom(6).hex()
    log = Line(run_id, '"severity": "INFO"' if choice == "gcp" else '"level": "info"')
    database = target["dbname"]
    log.add("run.started", f" {database}", command="up", version=__version__, database=database)
    directory = settings.get("migrations_dir", plain.MIGRATIONS)
    if directory != os.path.normpath(directory) or directory.startswith("//"):
        return None  # a path is said in its plain form
    files = read(directory)  # what is wrong with it is told before anybody knocks
    lines = files.lines()
    newest, _ = files.forward[max(files.forward)]
    log.add("files.loaded", "", count=len(lines), newest=newest, directory=directory)
    connecting = time.monotonic()
    answer = _Asking(target, settings).answer()
    if answer is None or answer.lines is None:
        return None
    if len(answer.lines) != len(lines) or set(answer.lines) != lines:
        return None
    if answer.refused is not None:
        _say_why(log, target, *answer.refused)
    waited_s = round(time.monotonic() - connecting, 3)
    log.add("server.ready", "", attempts=answer.attempts, waited_s=waited_s)
    log.add("plan.made", "", pending=[])
    ended: dict[str, Any] = {"command": "up", "outcome": "ok", "exit_code": 0}
    ended["duration_s"] = round(time.monotonic() - began, 3)
    log.add("run.finished", " up: ok", **ended)
    message = f"{{{inside({'run_id': run_id, **ended})}}}"
    return "".join(log.lines), message, settings.get("termination_log", "/dev/termination-log")


def _say_why(log: Line, target: dict[str, str], reason: str, at_ns: int) -> None:
    host = f"{target['host']}:{target['port']}"
    if len(reason) > SHORT:
        raise told.Unclear
    why: dict[str, Any] = {"host": host, "reason": reason, "attempts": 1, "sqlstate": "53300"}
    log.add("server.waiting", f": {reason}", at_ns, **why)


class Files:
    """The hashes of the files: of the forward ones by version, of what stands beside by name."""

    def __init__(self) -> None:
        self.forward: dict[int, tuple[str, str]] = {}
        self.beside: dict[str, dict[str, str]] = {}

    def lines(self) -> set[str]:
        """Return what the history has to say of them; raises Unclear for a companion alone."""
        found, beside = set(), dict(self.beside)
        for version, (name, checksum) in self.forward.items():
            ends = "||"  # no companion
            if name in beside:
                companions = beside.pop(name)
                ends = "|".join([companions.get(kind, "") for kind in names.KINDS])
            found.add(f"{version}|{name}|done|{checksum}|{ends}")
        if beside or not found:
            raise told.Unclear
        return found


def read(directory: str) -> Files:
    """Return the hash of every file; raises OSError, Unclear, also for a version's second file."""
    before = _mount(directory)
    found = Files()
    forward, beside, parts = found.forward, found.beside, names.parts
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for file in filter(names.counts, os.listdir(place)):  # noqa: PTH208
            part = parts(file)
            if part is None:
                raise told.Unclear
            version, name, kind = part
            if kind != "up":
                beside.setdefault(name, {})[kind] = _hash(file, place)
            elif version in forward:
                raise told.Unclear
            else:
                forward[version] = name, _hash(file, place)
    finally:
        os.close(place)
    if _mount(directory) != before:
        raise told.Unclear
    return found


def _mount(directory: str) -> str:
    """Return what a ConfigMap or Secret mount points at now; "" for any other directory."""
    try:
        return os.readlink(f"{directory}/..data")  # noqa: PTH115
    except OSError:
        return ""


def _hash(file: str, place: int) -> str:
    """Return the hash of a file's text, as the history has it; raises OSError, Unclear."""
    descriptor = os.open(file, FLAGS, dir_fd=place)
    try:
        # of a file that is one: all of it, or as much as fits; a pipe has no place to read from
        text = os.pread(descriptor, SMALL, 0)
        if len(text) == SMALL or not text:
            text += _rest(descriptor)
    finally:
        os.close(descriptor)
    if not text.isascii():
        text.decode()  # a UnicodeError is for the full path
        text = text.removeprefix(b"\xef\xbb\xbf")
    if 0 in text or not text.strip(BLANK):  # a number is found without the error b"\0" costs first
        raise told.Unclear
    if text.startswith(b"--") and text[2:80].lstrip().startswith(MARKS):
        raise told.Unclear
    if 13 in text:  # noqa: PLR2004 -- "\r"
        text = text.replace(b"\r\n", b"\n")
    digest: str = sha256(text).hexdigest()
    return digest


def _rest(descriptor: int) -> bytes:
    """Return what a large file holds behind its beginning; raises Unclear for what is no file."""
    facts = os.fstat(descriptor)
    left = facts.st_size - SMALL
    if not stat.S_ISREG(facts.st_mode) or left < 0:
        raise told.Unclear
    text = os.pread(descriptor, left + 1, SMALL)
    if len(text) != left:
        raise told.Unclear
    return text


class _Asking:
    """The question to the server, given up where that is silent."""

    def __init__(self, target: dict[str, str], settings: dict[str, str]) -> None:
        self.target = target
        self.schema = settings.get("schema", "preflight")
        wait_s = int(settings.get("wait_timeout_s", "60"))
        self.full_s = min(FULL_S, wait_s)
        self.last = time.monotonic() + wait_s
        self.until = time.monotonic() + UNHEARD_S
        self.given: asked.Answer | None = None

    def _heard(self) -> None:
        self.until = min(time.monotonic() + HEARD_S, self.last)

    def _left_s(self) -> float:
        return 0.0 if unloadable.stops else max(0.0, self.until - time.monotonic())

    def answer(self) -> "asked.Answer | None":
        """Return what is recorded; None when the server is silent."""
        if told.needs_no_name(self.target["host"]):
            self._ask()
            return self.given
        done = _thread.allocate_lock()  # a name that nobody resolves cannot be given up otherwise
        done.acquire()
        _thread.start_new_thread(self._ask_beside, (done,))
        while not done.acquire(timeout=min(0.1, self._left_s())):
            if not self._left_s():
                return None
        return self.given

    def _ask_beside(self, done: _thread.LockType) -> None:
        try:
            self._ask()
        except Exception:  # noqa: BLE001, S110 -- as above
            pass
        finally:
            done.release()

    def _ask(self) -> None:
        from preflight.quick import asked  # noqa: PLC0415 -- once the files are whole

        self.given = asked.ask(self.target, self.schema, self.full_s, self._heard, self._left_s)


def _say(lines: str, message: str, path: str) -> None:
    """Write the lines and the termination message, and leave."""
    left = lines.encode("ascii")
    try:
        while left:
            left = left[os.write(1, left) :]
    except OSError:
        pass  # a reader that has gone changes nothing of what is true
    try:
        flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags)
        os.write(descriptor, message.encode("ascii"))
    except OSError:
        pass  # not in Kubernetes
    os._exit(0)
