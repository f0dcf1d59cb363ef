"""How far something long is: a bar for people, an event now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

import structlog

from preflight.base import console

TELL_EVERY_S = 5.0
KNOWN = 0.99  # from this share on nobody knows how far it is: it may grow beyond what is expected


class Progress:
    """Tells how far it is by the size of the new database.

    `event` is what the log calls it, with the bytes that are expected under the key `of`; None:
    nobody knows. The live database may be bloated, or the copy's indexes larger.
    `others` is told it in words, for whoever waits for this run.
    """

    def __init__(
        self,
        event: str,
        of: str,
        expected: int | None,
        others: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.event, self.of, self.expected = event, of, expected
        self.others = others
        self.began = self.told = time.monotonic()
        self.bar = console.Bar("restore")

    def __enter__(self) -> Self:
        """Nothing is shown yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self.bar.close()

    def tell(self, measure: Callable[[], int]) -> None:
        """Show it on a terminal, and log it now and then; `measure` returns bytes."""
        now = time.monotonic()
        if now - self.told < (1.0 if self.bar.on else TELL_EVERY_S):
            return
        size = measure()
        expected = self.expected or 0
        share = size / expected if size < KNOWN * expected else None
        of = "" if share is None else f" of {console.size(expected)} at most"
        self.bar.show(share, f"{console.size(size)}{of}")
        if now - self.told >= TELL_EVERY_S:
            self.told = now
            self.others(f"restoring{console.part(share, now - self.began)}")
            if not self.bar.instead:
                structlog.get_logger().info(
                    self.event,
                    size_bytes=size,
                    elapsed_s=round(now - self.began, 1),
                    **{self.of: self.expected},
                    **console.left_s(share, now - self.began),
                )


class Moving:
    """Tells how far the files of a folder are that are moved or read, of all that there is.

    `doing` is what is done with them, `unit` what is counted: `bytes` or `rows`.
    """

    def __init__(self, event: str, doing: str, total: int, unit: str = "bytes") -> None:
        self.event, self.doing, self.total, self.unit = event, doing, total, unit
        self.began = self.told = time.monotonic()
        self.bar = console.Bar(doing)

    def __enter__(self) -> Self:
        """Nothing is shown yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self.bar.close()

    @property
    def due(self) -> bool:
        """Tell whether it would be told now: what is done may cost something to find out."""
        return self.bar.due or time.monotonic() - self.told >= TELL_EVERY_S

    def tell(self, done: int) -> None:
        """Show it on a terminal, and log it now and then."""
        if not self.due:
            return
        now = time.monotonic()
        share = min(0.99, done / self.total) if self.total else None
        of = {"bytes": console.size, "rows": "{:,} rows".format}[self.unit]
        self.bar.show(share, f"{of(done)} of {of(self.total)}")
        if now - self.told >= TELL_EVERY_S:
            self.told = now
            if not self.bar.instead:
                structlog.get_logger().info(
                    self.event,
                    doing=self.doing,
                    **{f"{self.unit}_done": done, self.unit: self.total},
                    **({"percent": round(100 * share, 1)} if share is not None else {}),
                    elapsed_s=round(now - self.began, 1),
                    **console.left_s(share, now - self.began),
                )
