"""The last word of a program that cannot be loaded: one line and 70, where Python would end with 1.

It uses nothing but Python's own, of which nothing can be missing.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

INTERNAL = 70
LEAST = (3, 11)  # of Python; an older one is to come as far as to say so
DAMAGED = (EOFError, ValueError, TypeError)  # of a module's bytes, where the import itself met it


def listen() -> None:
    """Have the last word whatever ends the process from now on; at once with an old Python."""
    sys.excepthook = _tell
    if sys.version_info < LEAST:
        raise ImportError


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
