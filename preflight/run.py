"""One run from its first line to its last: log, signals, exit code, termination message."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from preflight.base import logs, memory, plain, repeat, stop, threads, unloadable
from preflight.base.config import Config, environment, notified
from preflight.base.errors import ConfigInvalid, ExitCode, Failure

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from preflight.base import notify

HARD_STOP_S = 3.5  # a stop takes less than 5 s, even against a server that went silent
LAST_ANSWER_S = 0.5  # more for a COMMIT or a rename
LAST_WORD_S = 0.8  # more to say how it ended, where the log and the listener take it
TIDYING_S = 5.0  # between two lines that say what the last line waits for
TARGETS_MAX = 9000  # bytes of `run.finished`, which are to be no more than 16,000
# what a step says of itself as if it were the first
MORE = {
    "othing was migrated": "othing more was migrated",
    "The live database was not changed": "Nothing more was changed in the live database",
    "the live database was not changed": "nothing more was changed in the live database",
}
UNWRITTEN = "the result could not be written"
MESSAGE_MAX = 4096  # bytes; Kubernetes cuts a termination message there

# from the arguments to a command, its name, and whether its result has stdout for itself
Choose = Callable[[Sequence[str]], tuple[Callable[[Config], None], str, bool]]


class Tally:
    """What the events of a run say was done: `run.finished` repeats nothing else."""

    LISTS = {"migration.applied": "applied", "migration.adopted": "adopted"}  # noqa: RUF012
    # the first of them before a file is tried on the copy
    PROOFS = ("rehearsal.progressed", "rehearsal.passed", "wrap.rehearsed")

    def __init__(self) -> None:
        self.done: dict[str, Any] = {}
        # of the backup, for the metrics; of many by their names, else of ""
        self.figures: dict[str, dict[str, float]] = {}

    def see(self, event: Mapping[str, Any]) -> None:
        """Keep what an event says was done."""
        self._measure(event)
        if "target" in event:  # of one of many, which speaks for itself
            if event["event"] == "target.finished":
                told = ("outcome", "exit_code", *self.LISTS.values())
                said = {key: event[key] for key in told if key in event}
                self.done.setdefault("targets", {})[event["target"]] = said
        elif key := self.LISTS.get(str(event["event"])):
            self.done.setdefault(key, []).append(event["migration"])
        elif event["event"] == "migration.rolled_back":
            self.done.setdefault("rolled_back", []).append(event["migration"])
        elif event["event"] == "wrap.finished":
            self.done["wrapped"] = event["command"]
        elif event["event"] == "backup.verified":
            self.done["backup"] = event["backup"]

    def _measure(self, event: Mapping[str, Any]) -> None:
        """Keep when a backup was made, its size, and how far an event proves it."""
        target = str(event.get("target", ""))
        if event["event"] == "backup.verified":
            self.figures[target] = {
                "backup_timestamp_seconds": round(time.time(), 3),
                "backup_size_bytes": event.get("size_bytes", 0),
                "backup_duration_seconds": event["duration_s"],
                "backup_restored": 0,
            }
        elif event["event"] in self.PROOFS and "verified" in event and target in self.figures:
            self.figures[target]["backup_restored"] = int(event["verified"] == "restored")


class Run:
    """One run from its first line to its last, whatever happens in between."""

    def __init__(self, command: str, environ: Mapping[str, str]) -> None:
        self.command = command
        self.run_id = os.urandom(6).hex()
        self.began = time.monotonic()
        self.tally = Tally()
        self.termination_log = Path(
            environ.get("PREFLIGHT_TERMINATION_LOG") or "/dev/termination-log"
        )
        self.metrics_file = environ.get("PREFLIGHT_METRICS_FILE")
        self.messages: notify.Messages | None = None
        self.database = ""
        self.ended = threading.Lock()
        self.code = int(ExitCode.SIGTERM)  # once it has ended, its own
        self.told = threading.Event()
        self.as_json = False
        self.begun = False  # the settings are read: from now on a server may be asked

    def end(self, code: int, outcome: str, error: Mapping[str, Any] | None = None) -> int:
        """Leave the termination message, log `run.finished`, return the exit code; once."""
        if not self.ended.acquire(blocking=False):
            return code
        self.code = code
        data: dict[str, Any] = {
            "command": self.command,
            "outcome": outcome,
            "exit_code": code,
            "duration_s": round(time.monotonic() - self.began, 3),
            **self.tally.done,
        }
        if error:
            data["error"] = self._still_true(error)
        if "targets" in data:
            data |= fitting(data["targets"], TARGETS_MAX)
        # first: nobody need read the log
        self._as_favour("the termination message could not be left", self._leave_message, data)
        self._as_favour("PREFLIGHT_METRICS_FILE could not be written", self._write_metrics, data)
        self._as_favour("PREFLIGHT_NOTIFY_URL could not be told", self._tell, data)
        for why in logs.unwritten:
            warning = f"{UNWRITTEN}: {why}"
            structlog.get_logger().warning("config.warned", warning=warning)
        self._say_last(code, data)
        if error and self.as_json:
            self._give(code, error)
        self.told.set()
        return code

    def _still_true(self, error: Mapping[str, Any]) -> dict[str, Any]:
        """Return what went wrong, with what it says of the run where it was not the first step."""
        done = any(self.tally.done.get(key) for key in ("applied", "adopted", "rolled_back"))
        found = dict(error)
        for key in {"message", "hint"} & found.keys() if done else ():
            for said, now in MORE.items():
                found[key] = found[key].replace(said, now)
        return found

    @staticmethod
    def _as_favour(
        failed: str, give: Callable[[Mapping[str, Any]], None], data: Mapping[str, Any]
    ) -> None:
        """Give somebody what he asked for; whatever is in the way of it, the run ends as it did."""
        try:
            give(data)
        except Exception as error:  # noqa: BLE001 -- never a reason to fail
            reason = getattr(error, "strerror", None) or type(error).__name__
            with suppress(Exception):
                structlog.get_logger().warning("config.warned", warning=f"{failed}: {reason}")

    def _say_last(self, code: int, data: Mapping[str, Any]) -> None:
        """Log the last line; where that fails for a fault of ours, write it without any form."""
        log = structlog.get_logger()
        try:
            (log.error if code not in (0, ExitCode.PENDING) else log.info)("run.finished", **data)
        except Exception:  # noqa: BLE001 -- what has happened is true, however it is told
            plain = {"event": "run.finished", "run_id": self.run_id, **data}
            print(json.dumps(plain, default=str), flush=True)  # noqa: T201 -- there is no log

    def begin(self, environ: Mapping[str, str]) -> None:
        """Find out whom to tell, so that they hear of wrong settings, too."""
        if environ.get("PREFLIGHT_NOTIFY_URL") or environ.get("PREFLIGHT_NOTIFY_URL_FILE"):
            from preflight.base import notify  # noqa: PLC0415 -- only where somebody listens

            if address := notified(environ):
                self.messages = notify.Messages(address)

    def started(self, config: Config) -> None:
        """Say that the run has begun."""
        self.begun = True
        self.database = config.database
        data = {"command": self.command, "version": _version(), "database": config.database}
        structlog.get_logger().info("run.started", **data)
        if self.messages:
            self.messages.send(self._message("run.started", data))

    def _message(self, event: str, data: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        first = {"timestamp": now, "event": event, "run_id": self.run_id}
        return first | ({"database": self.database} if self.database else {}) | dict(data)

    def _write_metrics(self, data: Mapping[str, Any]) -> None:
        """Leave the numbers of this run where they are looked for."""
        if not self.metrics_file:
            return
        from preflight.base import metrics  # noqa: PLC0415 -- only where somebody looks

        now = round(time.time(), 3)
        numbers = {
            "last_run_timestamp_seconds": now,
            "last_run_exit_code": data["exit_code"],
            "last_run_duration_seconds": data["duration_s"],
            "last_run_applied_migrations": len(data.get("applied", ()))
            + sum(len(each["applied"]) for each in self.tally.done.get("targets", {}).values()),
        }
        if data["exit_code"] == ExitCode.OK:
            numbers["last_success_timestamp_seconds"] = now
        found = {self.database: numbers}
        for target, figures in self.tally.figures.items():
            ended = self.tally.done.get("targets", {}).get(target, data)
            if ended["exit_code"] != ExitCode.BACKUP_UNVERIFIED:  # else it is none
                found.setdefault(target or self.database, {}).update(figures)
        metrics.write(Path(self.metrics_file), self.command, found)

    def _tell(self, data: Mapping[str, Any]) -> None:
        """Tell who listens how it ended, and say who could not be told."""
        if not self.messages:
            return
        self.messages.send(self._message("run.finished", data))
        for event, why in self.messages.wait().items():
            where = self.messages.address.shown
            warning = f"PREFLIGHT_NOTIFY_URL: {where} was not told of {event}: {why}"
            structlog.get_logger().warning("config.warned", warning=warning)

    @staticmethod
    def _give(code: int, error: Mapping[str, Any]) -> None:
        """Leave no empty stdout to who asked for a document."""
        from preflight.base import document  # noqa: PLC0415 -- only with --json

        document.give({"exit_code": code, "error": dict(error)})

    def _leave_message(self, data: Mapping[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hang us
        told = {"run_id": self.run_id, **data}
        if "targets" in data:
            told |= fitting(self.tally.done["targets"], MESSAGE_MAX // 3)
        with (
            suppress(OSError),  # not in Kubernetes, or not writable: the log has it, too
            os.fdopen(os.open(self.termination_log, flags), "wb") as file,
        ):
            file.write(termination_message(told))

    def outcome(self) -> str:
        """Name what a run that reached its end has done."""
        done = self.tally.done
        for key in self.tally.LISTS.values():
            if any(each.get(key) for each in done.get("targets", {}).values()):
                return key
        return next(
            (key for key in ("rolled_back", "applied", "adopted", "wrapped") if key in done), "ok"
        )


def fitting(targets: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return how the targets of a fleet ended, in so many bytes: the failed ones first."""
    order = ("failed", "stopped", "pending", "applied", "adopted", "ok")
    counts = {word: sum(each["outcome"] == word for each in targets.values()) for word in order}
    shown: dict[str, Any] = {}
    for name in sorted(targets, key=lambda name: order.index(targets[name]["outcome"])):
        most -= len(json.dumps({name: targets[name]}))
        if most < 0:
            break
        shown[name] = targets[name]
    told = {"targets": shown, "target_counts": {key: n for key, n in counts.items() if n}}
    return told | (
        {"targets_untold": len(targets) - len(shown)} if len(shown) < len(targets) else {}
    )


def termination_message(data: Mapping[str, Any]) -> bytes:
    """Return the object as JSON of at most 4096 bytes: lists are counted and texts cut, if need be.

    A lone surrogate, of a file's name that is not UTF-8, becomes the escape that JSON knows.
    """
    message = b""
    for longest in (None, 600, 200, 60, 20):
        shown = data if longest is None else _shortened(data, longest)
        text = json.dumps(shown, default=str, ensure_ascii=False)
        message = text.encode("utf-8", "backslashreplace")
        if len(message) <= MESSAGE_MAX:
            break
    return message


def _shortened(value: object, longest: int) -> object:
    if isinstance(value, Mapping):
        return {key: _shortened(item, longest) for key, item in value.items()}
    if isinstance(value, list):
        return len(value)
    return value[:longest] if isinstance(value, str) else value


def open_streams() -> None:
    """Have streams that take everything.

    What this process was started without is opened: a connection must not become stdout.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):  # what a terminal of another encoding cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def process(arguments: Sequence[str], choose: Choose) -> int:
    """Run the command of this process; a signal that comes later changes nothing.

    Returns the exit code.
    """
    memory.one_heap()
    exit_code = once(arguments, choose)
    stop.listen(signal.SIG_IGN)  # Python puts the default back before it ends
    return exit_code


def leave(code: int) -> NoReturn:
    """End the process at once: what Python takes down before it ends takes a tenth of a second.

    Whoever cleans up beside us is waited for.
    """
    for thread in beside():
        thread.join()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def beside() -> list[threading.Thread]:
    """Return who cleans up beside us: a thread that is no daemon."""
    return [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]


def _tidied() -> None:
    """Wait for who cleans up beside us, and say so: the last line is to be the end of the run."""
    began = told = time.monotonic()
    for thread in beside():
        while thread.is_alive() and stop.requested() is None:
            thread.join(0.1)
            if (now := time.monotonic()) - told >= TIDYING_S:
                told = now
                structlog.get_logger().info(
                    "rehearsal.progressed",
                    waiting="the files of the throwaway server are being removed",
                    elapsed_s=round(now - began, 1),
                )


def once(arguments: Sequence[str], choose: Choose) -> int:
    """Run one command and return the exit code; nothing but a signal's number escapes."""
    open_streams()
    environ = environment()
    first = next(iter(arguments), "up").lstrip("-")
    run = Run(first if first.replace("-", "").isalpha() else "unknown", environ)
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    run.as_json = "--json" in ours
    logs.unwritten.clear()
    if run.as_json:
        from preflight.base import document  # noqa: PLC0415 -- only with --json

        document.begin()
    handle_signals(run)
    _set_up_logs(run, environ, to_stderr=not {"--json", "--table"}.isdisjoint(ours))
    try:
        stop.check()  # it may have come while Python was loading
        command, run.command, result_on_stdout = choose(arguments)
        _set_up_logs(run, environ, to_stderr=result_on_stdout)
        run.begin(environ)
        place, wrapping = Path(plain.MIGRATIONS), "--" in arguments
        config = Config.from_env(environ, place, run.run_id, wrapping=wrapping)
        _set_up_logs(run, environ, config, to_stderr=result_on_stdout)
        run.started(config)
        for warning in config.warnings:
            structlog.get_logger().warning("config.warned", warning=warning)
        stop.check()
        command(config)
        _written(run.command)
        _tidied()
        return run.end(ExitCode.OK, run.outcome())
    except Failure as failure:
        _tidied()
        outcome = "pending" if failure.exit_code == ExitCode.PENDING else "failed"
        return run.end(failure.exit_code, outcome, failure.data())
    except KeyboardInterrupt:
        return _stopped(run)
    except SystemExit as ended:  # the help was given, or the version
        if not logs.unwritten:
            return int(ended.code or 0)
        _set_up_logs(run, environ, to_stderr=True)
        return run.end(ExitCode.CONFIG, "failed", _lost_result().data())
    except Exception as error:  # noqa: BLE001 -- the last resort: exit 70 with a place to look at
        return run.end(ExitCode.INTERNAL, "failed", internal(error))


def _written(command: str) -> None:
    """Raise ConfigInvalid where the result was what a command was for, and it is lost."""
    if logs.unwritten and command not in {"up", "backup"}:  # what those did is there
        raise _lost_result()


def _lost_result() -> ConfigInvalid:
    return ConfigInvalid(
        "config.stdout",
        f"{UNWRITTEN}: {logs.unwritten.pop()}",
        "Give stdout room, or another place.",
    )


def internal(error: BaseException) -> dict[str, object]:
    """Return the error object for a bug of ours, or want of memory: where, what kind; no values."""
    left = stop.left() or "unfinished work was rolled back"
    if found := unloadable.error_of(error, left):
        return found
    import traceback  # noqa: PLC0415 -- only for a bug

    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if plain.HERE in frame.filename] or frames[-1:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-4:]))
    if isinstance(error, MemoryError):
        return {
            "code": "internal.error",
            "message": f"there is no memory left at {places}",
            "hint": f"Give the process more (the container's limit, `ulimit -v`), and run again; "
            f"{left}.",
        }
    sqlstate = getattr(error, "sqlstate", None)
    return {
        "code": "internal.error",
        "message": f"a bug in pg-preflight: {type(error).__name__} at {places}"
        + (f" (SQLSTATE {sqlstate})" if sqlstate else ""),
        "hint": f"Please report this line; {left}.",
    }


def _set_up_logs(
    run: Run,
    environ: Mapping[str, str],
    config: Config | None = None,
    *,
    to_stderr: bool = False,
) -> None:
    choice = config.log if config else environ.get("PREFLIGHT_LOG", "")
    result = logs.RESULTS | ({"plan.made"} if run.command == "plan" else set())
    logs.set_up(
        sys.stderr if to_stderr else sys.stdout,
        choice=choice if choice in ("json", "gcp", "console") else "auto",
        level=config.log_level if config else "info",
        run_id=run.run_id,
        no_color=environ.get("NO_COLOR"),
        observe=run.tally.see,
        results=() if to_stderr else result,
    )


def _version() -> str:
    from preflight import __version__  # noqa: PLC0415 -- beside its only use

    return __version__


def handle_signals(run: Run) -> None:
    """Turn SIGTERM, SIGINT and SIGHUP into a stop request with a hard end."""

    def end_soon() -> None:
        timer = threading.Timer(HARD_STOP_S, _stop_hard, [run])
        timer.daemon = True
        threads.started(timer)  # else it is a stop without a hard end

    def ask(signum: int, _frame: FrameType | None) -> None:
        if stop.requested() is None:
            end_soon()
        stop.request(signum)

    stop.listen(ask)
    if stop.requested() is not None:  # it came while Python was loading
        end_soon()
    _hear_what_nobody_raises()


def _hear_what_nobody_raises() -> None:
    """Make a stop request once more that was raised in what C called, which cannot pass it on."""
    uncaught, unraisable = sys.excepthook, sys.unraisablehook

    def printed(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, stop.Stopped):
            stop.again()
        else:
            uncaught(kind, error, trace)

    def ignored(told: sys.UnraisableHookArgs) -> None:
        if isinstance(told.exc_value, stop.Stopped):
            stop.again()
        else:
            unraisable(told)

    sys.excepthook, sys.unraisablehook = printed, ignored


def _stopped(run: Run, *, answered: bool = True) -> int:
    number = stop.requested() or signal.SIGINT
    name = signal.Signals(number).name
    if stop.busy.is_set():
        error = {
            "code": "connection.unanswered",
            "message": f"stopped by {name} while the server did not answer: whether the last step "
            "came through is not known",
            "hint": repeat.advice(),
        }
        return run.end(ExitCode.CONNECTION_LOST, "stopped", error)
    if answered:
        lock_is = "the lock is free"
    else:
        name += " without the server's answer"
        lock_is = (
            "the server ends it and frees the lock when it notices that we are gone, but not "
            "while it waits for a synchronous standby"
        )
    left = stop.left() or "unfinished work is rolled back"
    what = f"{left}; {lock_is}"
    if "targets" in run.tally.done:
        what = "what each target left stands in its target.finished"
    if not run.begun:
        name, what = signal.Signals(number).name, "nothing was begun"
    error = {
        "code": "run.stopped",
        "message": f"stopped by {name}; {what}",
        "hint": "Run again: it goes on from there." if stop.left() else "Run again.",
    }
    return run.end(stop.code(number), "stopped", error)


def _stop_hard(run: Run) -> None:
    """End the process although the server does not answer; it rolls back when it sees us gone.

    Nor need anybody read the log: who waits to write there keeps its lock, perhaps for ever.
    """
    until = time.monotonic() + (LAST_ANSWER_S if stop.busy.is_set() else 0)
    while time.monotonic() < until and not run.ended.locked():
        time.sleep(0.02)
    ends_itself = run.ended.locked()
    if not ends_itself:
        last = threading.Thread(target=_stopped, args=[run], kwargs={"answered": False})
        last.daemon = True
        threads.started(last)  # else it is an end without a word
    if not (run.told.wait(LAST_WORD_S) and ends_itself):
        os._exit(run.code)
