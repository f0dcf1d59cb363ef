"""The one JSON document that `--json` promises on stdout, also when a command fails."""

from __future__ import annotations

import json
import threading
from typing import Any

from preflight.base import logs

_given = threading.Event()


def begin() -> None:
    """Begin a run: none was written."""
    _given.clear()


def give(document: dict[str, Any]) -> None:
    """Write the document; a second one is not written."""
    if not _given.is_set():
        _given.set()
        logs.give(json.dumps(document, default=logs.plain, indent=2) + "\n")
