"""Read a dump back from the disk: its hash, its end and the rows of every table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preflight.backup import children, clients, manifests
from preflight.base import console, stop
from preflight.base.errors import BackupDamaged, BackupFailed, BackupUnverified

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.store import Store, Stream

_END = bytes(5)  # the chunk of length 0 that ends a custom archive's last data block


def require_whole(  # noqa: PLR0913, PLR0917 -- all that it is held against
    backups: Store,
    name: str,
    digest: str,
    programs: clients.Clients,
    environment: Mapping[str, str],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key] | None = None,
) -> int:
    """Read a backup's dump: hash, whole archive, rows of each table; return its size in bytes.

    `wanted` gives for each table its name for people and its rows. Raises BackupUnverified.
    """
    found = hashed(backups, name)
    if found.size_bytes == 0:
        raise BackupUnverified("backup.empty", "pg_dump wrote nothing", clients.HINT)
    if found.sha256 != digest:
        raise BackupDamaged(
            "backup.corrupt",
            f"the dump on disk is not what pg_dump sent: {found.sha256[:12]} instead of "
            f"{digest[:12]}",
            "Check the disk below the backup directory; nothing was migrated.",
        )
    with backups.local(name, manifests.DUMP) as dump:
        expected = sum(rows for _, rows in wanted.values())
        rows = _settled(rows_of(dump, programs, environment, expected), wanted, roots or {})
    different = [
        f"{name} has {rows.get(key, 'no')} rows in the dump, {count} in the database"
        for key, (name, count) in wanted.items()
        if rows.get(key) != count
    ]
    if different:
        raise BackupUnverified(
            "backup.rows_differ",
            f"{len(different)} tables differ: {'; '.join(different[:5])}",
            clients.HINT,
        )
    if wanted and found.end != _END:
        raise BackupUnverified(
            "backup.unreadable", "the dump does not end as an archive ends", clients.HINT
        )
    return found.size_bytes


def _settled(
    rows: Mapping[clients.Key, int],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key],
) -> dict[clients.Key, int]:
    """Give partitions the rows that were dumped to be loaded through their root, if all are there.

    pg_dump does so where a row's hash may be another after a restore: of an enum's value.
    """
    settled = dict(rows)
    through = {key: roots[key] for key in wanted if key not in rows and roots.get(key) in rows}
    for root in set(through.values()):
        parts = [key for key, its in through.items() if its == root]
        if sum(wanted[key][1] for key in parts) == rows[root]:
            settled |= {key: wanted[key][1] for key in parts}
    return settled


@dataclass(frozen=True, slots=True)
class Hashed:
    """What a file is: its SHA-256, its size, and its last bytes."""

    sha256: str
    size_bytes: int
    end: bytes


def hashed(backups: Store, name: str, file: str = manifests.DUMP) -> Hashed:
    """Read a file as its store has it; raises OSError."""
    digest, size, end = hashlib.sha256(), 0, b""
    with backups.open(name, file) as stream:
        while chunk := _part(stream):
            digest.update(chunk)
            size += len(chunk)
            end = (end + chunk[-len(_END) :])[-len(_END) :]
    return Hashed(digest.hexdigest(), size, end)


def _part(stream: Stream) -> bytes:
    with stop.allowed():
        return stream.read(children.CHUNK)


def rows_of(
    dump: Path, programs: clients.Clients, environment: Mapping[str, str], expected: int = 0
) -> dict[clients.Key, int]:
    """Return the rows of every table in an archive; raises BackupUnverified if it does not read."""
    counter = RowCounter()
    try:
        with (
            console.Bar("read back") as bar,
            children.started(clients.read_command(programs.pg_restore, dump), environment) as (
                child,
                words,
            ),
        ):
            for chunk in children.chunks(child):
                counter.feed(chunk)
                if bar.due:
                    found = sum(counter.rows.values())
                    share = found / expected if expected else None
                    bar.show(share, f"{found:,} of {expected:,} rows")
            code, said = children.wait(child), words.said()
    except children.ClientFailed as failure:
        raise BackupFailed("backup.no_client", str(failure), "Reinstall the client.") from failure
    if code != 0 and (why := clients.unable(said)):
        raise BackupFailed(
            "backup.client_too_old",
            f"{programs.pg_restore} cannot read what {programs.version} writes: {why}",
            "Both must be of one installation: correct PATH, or use the image.",
        )
    if code != 0 or counter.inside:
        raise BackupUnverified(
            "backup.unreadable",
            f"pg_restore cannot read the dump back (it ended with {code}): {said or 'no words'}",
            clients.HINT,
        )
    return counter.rows


_NAME = rb'("(?:[^"]|"")*+"|[^\s"(.]++)'
_COPY = re.compile(rb"COPY " + _NAME + rb"\." + _NAME + rb"[ (].*FROM stdin;", re.DOTALL)
# a comment, a line for psql, or a statement (which is all that is not in quotes up to a semicolon)
_ITEM = re.compile(
    rb"""\s*+(?:--[^\n]*+\n|\\[^\n]*+\n|(?!--|\\)((?:[^'";]++|'[^']*+'|"[^"]*+")*+;))"""
)
_DATA_END = b"\n\\.\n"


class RowCounter:
    """Counts the rows in pg_restore's COPY blocks, a chunk at a time."""

    def __init__(self) -> None:
        self.rows: dict[clients.Key, int] = {}
        self.table: clients.Key | None = None
        self.rest = b""

    @property
    def inside(self) -> bool:
        """Tell whether the stream ended in the middle of a table."""
        return self.table is not None

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the stream."""
        data, again = self.rest + chunk, True
        while again:
            data, again = self._rows(data, self.table) if self.table else self._item(data)
        self.rest = data

    def _item(self, data: bytes) -> tuple[bytes, bool]:
        position = 0
        while item := _ITEM.match(data, position):
            position = item.end()
            if item[1] and (found := _COPY.fullmatch(item[1])):
                self.table = (_bare(found[1]), _bare(found[2]))
                # the header's own line end is counted with the rows; a root may come again
                self.rows[self.table] = self.rows.get(self.table, 0) - 1
                return data[position:], True
        return data[position:], False

    def _rows(self, data: bytes, table: clients.Key) -> tuple[bytes, bool]:
        end = data.find(_DATA_END)
        if end >= 0:
            self.rows[table] += data.count(b"\n", 0, end + 1)
            self.table = None
            return data[end + len(_DATA_END) :], True
        whole = max(0, len(data) - len(_DATA_END) + 1)
        self.rows[table] += data.count(b"\n", 0, whole)
        return data[whole:], False


def _bare(name: bytes) -> bytes:
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name
