"""What comes before all else: the last word of a program that cannot be loaded, encoding, stops.

The word is one line and 70, where Python would end with 1. Nothing is used but Python's own, of
which nothing can be missing.
"""

import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

INTERNAL = 70
LEAST = (3, 11)  # of Python; an older one is to come as far as to say so
DAMAGED = (EOFError, ValueError, TypeError)  # of a module's bytes, where the import itself met it
stops: "list[int]" = []  # signals that came before a run could hear them


def listen() -> None:
    """Have the last word whatever ends the process from now on; at once with an old Python."""
    sys.excepthook = _tell
    if sys.version_info < LEAST:
        raise ImportError


def speak_utf8() -> None:
    """Start anew where the locale has another encoding: names of files and databases are UTF-8.

    Python has one encoding for such names, and for as long as it runs. People still read that of
    their terminal.
    """
    spoken = sys._xoptions.get("spoken")  # noqa: SLF001 -- documented
    if isinstance(spoken, str):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=spoken, errors=stream.errors)  # type: ignore[union-attr]
    elif sys.getfilesystemencoding() != "utf-8" and sys.executable and sys.stdout and sys.stderr:
        again = ["-X", "utf8", "-X", f"spoken={sys.stdout.encoding}", *sys.orig_argv[1:]]
        os.execv(sys.executable, [sys.executable, *again])  # noqa: S606 -- ourselves


def keep_stops() -> None:
    """Keep the signals that ask a run to stop until one can hear them; `tell` hands them over.

    To be called once no other Python is started in our place, which would know of none.
    """
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
        if number != _signal.SIGHUP or _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _keep)


def _keep(number: int, _frame: object) -> None:
    stops.append(number)


def tell(remember: "Callable[[int, None], object]") -> None:
    """Hand over the signals that came until now; call once others are listened to."""
    for number in stops:
        remember(number, None)


def error_of(error: BaseException, left: str = "nothing was changed") -> "dict[str, object] | None":
    """Return the error object for a part of the program that cannot be loaded; None for others.

    `left` says what has become of the work by then.
    """
    if not _is_damage(error):
        return None
    if sys.version_info < LEAST:
        return {
            "code": "internal.installation",
            "message": "Python {}.{} or later is needed; this is {}.{}.{}".format(
                *LEAST, *sys.version_info[:3]
            ),
            "hint": "Start it with a newer Python, or use the image; nothing was changed.",
        }
    said = " ".join(str(error).split())[:300]
    return {
        "code": "internal.installation",
        "message": f"a part of pg-preflight cannot be loaded: {type(error).__name__}: {said}",
        "hint": "The installation is damaged, or its libpq is missing: install it again, or use "
        f"the image; {left}.",
    }


def _is_damage(error: BaseException) -> bool:
    """Tell whether a module cannot be imported: its bytes are read by Python, not by us."""
    if isinstance(error, (ImportError, SyntaxError)):
        return True
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    place = last.tb_frame.f_code.co_filename if last else ""
    return isinstance(error, DAMAGED) and place.startswith("<frozen importlib")


def _tell(
    kind: "type[BaseException]", error: BaseException, _trace: "TracebackType | None"
) -> None:
    import json  # noqa: PLC0415 -- each only for the last word
    import time  # noqa: PLC0415
    from contextlib import suppress  # noqa: PLC0415

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    bug = {"code": "internal.error", "message": f"a bug in pg-preflight: {kind.__name__}"}
    told = {
        "run_id": os.urandom(6).hex(),
        "command": (sys.argv[1:] or ["up"])[0].lstrip("-"),
        "outcome": "failed",
        "exit_code": INTERNAL,
        "error": error_of(error) or bug,
    }
    line = {"timestamp": now, "level": "error", "event": "run.finished", **told}
    with suppress(OSError, AttributeError):  # no stdout at all
        os.write(1, json.dumps(line).encode() + b"\n")
    place = os.environ.get("PREFLIGHT_TERMINATION_LOG") or "/dev/termination-log"
    with suppress(OSError):
        descriptor = os.open(place, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK)
        os.write(descriptor, json.dumps(told).encode())
        os.close(descriptor)
    os._exit(INTERNAL)
