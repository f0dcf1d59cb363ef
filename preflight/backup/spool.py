"""A file on this machine that a dump may lie in meanwhile: without a name, and gone with us."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self


class Spool:
    """An open file, which other programs find under `path`; raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix=".preflight-spool-", dir=directory)  # noqa: SIM115 -- closed by `close`
        self.path = self._named = Path(self._file.name)
        own = Path(f"/proc/{os.getpid()}/fd/{self._file.fileno()}")
        if own.exists():
            self.path.unlink()  # a kill leaves nothing
            self.path = own

    def __enter__(self) -> Self:
        """Do nothing: it is there from the beginning."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next part."""
        self._file.write(data)

    def flush(self) -> None:
        """Let others see all of it."""
        self._file.flush()

    def close(self) -> None:
        """Let it go, and its room with it."""
        with suppress(OSError):
            if self.path != self._named:
                self._named.touch(0o600)  # which the file's own end removes
        with suppress(OSError):
            self._file.close()
