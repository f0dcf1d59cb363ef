"""Tell an address of one's own that a run began and how it ended; never a reason to fail.

Each message is sent by a thread of its own: neither a name that does not resolve nor a server that
answers a byte a second holds a run for longer than LIMIT_S.
"""

from __future__ import annotations

import base64
import encodings.idna  # noqa: F401 -- every look-up of a name asks for it, see below
import json
import threading
import time
import urllib.error
import urllib.request  # here, not in a thread: a child of ours would have it half loaded for ever
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from preflight.base import stop, threads

LIMIT_S = 5.0
STOPPED_S = 0.5  # after a stop was asked for


class Unusable(ValueError):
    """Not an address that can be told; the text says why, without the address."""


class Address:
    """A URL to POST to; what may be secret in it is never shown."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise Unusable("is no URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unusable("is not a URL that begins with http:// or https://")
        if not url.isascii() or any(each <= " " or each == "\x7f" for each in url):
            raise Unusable("holds a character that no URL may hold")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        place = host if port is None else f"{host}:{port}"
        self.shown = f"{parts.scheme}://{place}"
        self.url = urlunsplit((parts.scheme, place, parts.path or "/", parts.query, ""))
        self.headers = {"Content-Type": "application/json", "User-Agent": "pg-preflight"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()

    def post(self, body: bytes) -> str | None:
        """POST some JSON; return why it was not taken, if it was not."""

        class Direct(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: object) -> None:
                """Follow none: a POST would arrive as something else, or at someone else."""

        request = urllib.request.Request(self.url, body, self.headers, method="POST")  # noqa: S310 -- http(s) alone, see above
        try:
            with urllib.request.build_opener(Direct).open(request, timeout=LIMIT_S):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            if error.code // 100 == 3:  # noqa: PLR2004 -- a class of answers
                return f"it answered {error.code}: no redirect is followed, name the last address"
            return f"it answered {error.code}"
        except urllib.error.URLError as error:
            return _said(error.reason)
        except Exception as error:  # noqa: BLE001 -- whatever a server may answer
            return _said(error)


class Messages:
    """What is told of one run, in its order."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.sending: threading.Thread | None = None
        self.failed: dict[str, str] = {}

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message after those before it; do not wait for that."""
        name, before = str(message["event"]), self.sending
        body = json.dumps(message, default=str).encode()

        def work() -> None:
            if before:
                before.join(LIMIT_S / 2)
            if why := self.address.post(body):
                self.failed[name] = why
            else:
                self.failed.pop(name, None)

        self.failed[name] = f"no answer within {LIMIT_S:.0f} s"
        sending = threading.Thread(target=work, daemon=True)
        if threads.started(sending):
            self.sending = sending
        else:  # as many as the container may have are there
            self.failed[name] = "no thread could be started"

    def wait(self) -> dict[str, str]:
        """Wait for the answers, and not for long where a stop is asked for.

        Returns why a message was not taken, by its event.
        """
        began = time.monotonic()
        while self.sending and self.sending.is_alive():
            if time.monotonic() - began > (LIMIT_S if stop.requested() is None else STOPPED_S):
                break
            self.sending.join(0.05)
        return dict(self.failed)


def _said(error: object) -> str:
    """Return the words of an error that hold no part of an address."""
    if isinstance(error, OSError):
        if isinstance(error, TimeoutError):
            return f"no answer within {LIMIT_S:.0f} s"
        reason = getattr(error, "verify_message", None) or error.strerror
        return str(reason or type(error).__name__)
    return type(error).__name__
