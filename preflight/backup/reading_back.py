"""Read a dump back from the disk: its hash, its end and the rows of every table."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from preflight.backup import children, clients
from preflight.base import stop
from preflight.base.errors import BackupDamaged, BackupFailed, BackupUnverified

if TYPE_CHECKING:
    import io

_END = bytes(5)  # the chunk of length 0 that ends a custom archive's last data block


def require_whole(  # noqa: PLR0913, PLR0917 -- all that it is held against
    dump: Path,
    digest: str,
    programs: clients.Clients,
    environment: Mapping[str, str],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key] | None = None,
) -> int:
    """Read a dump from the disk: hash, whole archive, rows of each table; return its size.

    `wanted` gives for each table its name for people and its rows. Raises BackupUnverified.
    """
    found, size = hash_of(dump)
    if size == 0:
        raise BackupUnverified("backup.empty", "pg_dump wrote nothing", clients.HINT)
    if found != digest:
        raise BackupDamaged(
            "backup.corrupt",
            f"the dump on disk is not what pg_dump sent: {found[:12]} instead of {digest[:12]}",
            "Check the disk below the backup directory; nothing was migrated.",
        )
    rows = _settled(rows_of(dump, programs, environment), wanted, roots or {})
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
    if wanted and not _ends_as_it_should(dump):
        raise BackupUnverified(
            "backup.unreadable", "the dump does not end as an archive ends", clients.HINT
        )
    return size


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


def hash_of(path: Path) -> tuple[str, int]:
    """Return a file's SHA-256 and size in bytes, read from the disk and not from the cache."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 -- unbuffered
        with suppress(OSError, AttributeError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := _part(file):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _part(file: io.FileIO) -> bytes:
    with stop.allowed():
        return file.read(children.CHUNK)


def _ends_as_it_should(dump: Path) -> bool:
    with dump.open("rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        return file.read() == _END


def rows_of(
    dump: Path, programs: clients.Clients, environment: Mapping[str, str]
) -> dict[clients.Key, int]:
    """Return the rows of every table in an archive; raises BackupUnverified if it does not read."""
    counter = RowCounter()
    try:
        with children.started(clients.read_command(programs.pg_restore, dump), environment) as (
            child,
            words,
        ):
            for chunk in children.chunks(child):
                counter.feed(chunk)
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
