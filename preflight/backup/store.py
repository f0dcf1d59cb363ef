"""What every store of backups promises: few verbs, and what each of them guarantees.

A backup is a name, a manifest and files under that name. A verb that fails raises OSError whose
`strerror` says why, whatever the store is made of, and `Store.failure` says what to do about it.
Names and files are plain: no `/`, and none that begins with a dot but a draft's own name. Only
where a dump is a folder a file of it is named with it: `database.dir/toc.dat`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import structlog

from preflight.backup import manifests
from preflight.base import console

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.manifests import Backup, Bad, Identity, Listed, Manifest
    from preflight.base.errors import Failure


class Sink(Protocol):
    """Takes the bytes of one file."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take all of the next part; raises OSError."""

    def abandon(self) -> None:
        """Let nothing be kept of what was written: the file is as it was before."""


class Stream(Protocol):
    """Gives the bytes of one file."""

    def read(self, size: int, /) -> bytes:
        """Return at most as many bytes, none at the end; raises OSError."""


class Store(Protocol):
    """Where backups are kept. Each verb may be called again after it failed."""

    @property
    def place(self) -> str:
        """How people call it: a directory, or an address without a secret."""

    @property
    def remote(self) -> bool:
        """Whether a file is a download away: then it is read once, as a stream."""
        return False

    def unspooled(self, size_bytes: int) -> str | None:  # noqa: ARG002 -- where it lies already
        """Return why `local` has no place for a file of that size; raises OSError."""
        return None

    @property
    def folders(self) -> bool:
        """Whether another program can write a dump that is a folder straight into it: `folder`."""
        return False

    def failure(self, error: OSError) -> Failure:
        """Return what is true when a verb failed so, and what to do next."""

    # what is there

    def listed(self) -> Listed:
        """Return every whole backup of every database, and what is called so and cannot be used.

        What never was one is left out: drafts, what was withdrawn, what is not ours.
        """

    def listing(self) -> list[Backup]:
        """Return every whole backup of every database, the oldest first by `sequence`."""
        return self.listed().whole

    def read(self, name: str) -> Backup:
        """Return one whole backup as it is now.

        Raises FileNotFoundError (nothing is called so), manifests.Unreadable (something is, and it
        is no whole backup: the text says why), of that manifests.Never (it never was one).
        """

    def files(self, name: str) -> list[str]:
        """Return the files of a backup or draft, in order of their names; no half-written one."""

    def pieces(self, name: str, folder: str) -> Mapping[str, int | None]:
        """Return the files of a folder of a backup or draft, and their sizes.

        None begins with a dot. One that is no plain file has None for a size.
        """

    # what is written

    def expect(self, most_bytes: int) -> None:
        """Be ready for files of so many bytes; whether there is room for them, `draft` asks."""

    def draft(self, identity: Identity, run_id: str, needed: int) -> AbstractContextManager[str]:
        """Begin a backup; yields its name, under which files are written and read.

        Nobody sees it, and afterwards it is gone unless it was published. What killed runs left of
        this database is removed first; a living run's draft is let alone. Raises BackupFailed
        where `needed` bytes will not fit, or would not outlive this process.
        """

    def sink(self, name: str, file: str) -> AbstractContextManager[Sink]:
        """Yield what takes a file of a backup or draft.

        After a clean end the whole file is there, durably, in place of one of that name; after any
        other end, or a kill, all is as it was before, or nothing is there in a draft. Only this
        user may read it.
        """

    def folder(self, name: str, file: str) -> AbstractContextManager[Path]:
        """Yield an empty folder of a draft, for another program to write files into.

        After a clean end all of them are there, durably; after any other none is.
        """
        raise io.UnsupportedOperation(f"{name}/{file}")

    def send(self, name: str, file: str, chunks: Iterable[bytes], *, little: bool) -> None:
        """Store a file of a draft's folder: all of it, durably, or nothing. In any thread.

        `little`: it has so few bytes that all may be held at once.
        """

    def discard(self, name: str, folder: str) -> None:
        """Let go what was sent into a draft's folder, if there is one."""

    def publish(self, draft: str, identity: Identity, manifest: Manifest) -> Backup:
        """Make a draft a backup that everybody sees, all of it or nothing; durable at return.

        The manifest is the last that becomes visible: without one there is no backup. It gets the
        next `sequence`, and the backup its final name.
        """

    def improve(self, backup: Backup, manifest: Manifest) -> Backup:
        """Replace the manifest by one that says more: at any moment one of both is there, whole."""

    def withdraw(self, backup: Backup, identity: Identity) -> None:
        """Take a backup out of view that turned out to be none; may be gone already.

        It may be looked at until the next draft of its database.
        """

    def remove(self, backup: Backup, identity: Identity) -> bool:
        """Remove a backup, out of view first; False, and nothing is done, while somebody reads."""

    def apart(self, identity: Identity, run_id: str) -> str:
        """Return the name of a new place for files beside no dump: no backup, and never removed.

        Raises BackupFailed where it would not outlive this process.
        """

    def forget(self, name: str) -> None:
        """Remove such a place with all that is in it: nothing was destroyed that it holds."""

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:  # noqa: ARG002 -- where there are no locks
        """Keep the backup of a run at work from other runs' `remove`, where a kill lets it go."""
        yield

    # what is read

    def open(self, name: str, file: str) -> AbstractContextManager[Stream]:
        """Yield the bytes that the store has now, and not what was sent to it or is cached."""

    def local(self, name: str, file: str) -> AbstractContextManager[Path]:
        """Yield a file that another program may read and seek in, as long as this lasts."""

    def stamp(self, name: str, file: str) -> object:
        """Return what is equal as long as nobody writes to a file, replaces it or takes it away.

        Of a folder: as long as that is so of all that it holds, and nothing comes.
        """

    def reading(self, name: str) -> AbstractContextManager[Callable[[], None]]:
        """Keep a backup from being removed meanwhile, by runs on other machines, too.

        Yields what is to be called now and then, at least once a minute. It need not be writable.
        """


def tried(read: Callable[[str], Backup], name: str) -> Backup | Bad | None:
    """Return what is called so, if it is a backup, or was one; the store may fail: OSError."""
    try:
        return read(name)
    except (FileNotFoundError, manifests.Never):  # removed since it was listed, or no backup
        return None
    except manifests.Unreadable as why:
        return manifests.Bad(name, str(why), why.said) if manifests.CALLED.fullmatch(name) else None


def listed(found: Iterable[Backup | Bad | None]) -> Listed:
    """Return what was found in its order: a clock may jump, so `sequence` says when it was."""
    each = list(found)
    whole = [item for item in each if isinstance(item, manifests.Backup)]
    bad = [item for item in each if isinstance(item, manifests.Bad)]
    return manifests.Listed(
        sorted(whole, key=lambda item: (item.manifest.sequence, item.name)),
        sorted(bad, key=lambda item: item.name),
    )


def warn_of(bad: Sequence[Bad]) -> None:
    """Say which backups cannot be used, if there are any: they are missing wherever one is read."""
    if bad:
        names = console.some([f"{item.name} ({item.why})" for item in bad])
        structlog.get_logger().warning(
            "config.warned", warning=f"backups that cannot be used, and are not counted: {names}"
        )


PART_BYTES = 1 << 16  # that are asked for at once: memory may be scarce, and most files are small


@contextmanager
def usable(store: Store) -> Iterator[None]:
    """Say in the store's words what it means when a verb fails."""
    try:
        yield
    except OSError as error:
        raise store.failure(error) from error


def small(store: Store, name: str, file: str) -> bytes:
    """Return what is in a file of bounded size; raises OSError, Unreadable."""
    most, parts = manifests.MANIFEST_MAX_BYTES, bytearray()
    with store.open(name, file) as stream:
        while len(parts) <= most and (part := stream.read(min(PART_BYTES, most + 1 - len(parts)))):
            parts += part
    if len(parts) > most:
        raise manifests.Unreadable(f"{file} is larger than {most} bytes")
    return bytes(parts)


def require_reached(store: Store, error: OSError) -> None:
    """Raise what an error says of a store elsewhere, unless it is that something is not there."""
    if store.remote and not isinstance(error, FileNotFoundError):
        raise store.failure(error) from error


def lost(store: Store, backup: Backup) -> str | None:
    """Return why a backup is not there with the manifest that was written for its dump, or None."""
    try:
        found = store.read(backup.name).manifest
    except FileNotFoundError as error:
        return error.strerror or str(error)
    except manifests.Unreadable as why:
        return str(why)
    wanted = backup.manifest
    same = (found.sha256, found.size_bytes, found.run_id) == (
        wanted.sha256,
        wanted.size_bytes,
        wanted.run_id,
    )
    return None if same else f"its {manifests.MANIFEST} is another backup's"


def space_needed(newest_bytes: int | None, database_bytes: int) -> int:
    """Return how many bytes must be free: by the newest backup, or by the database's size."""
    return database_bytes // 4 if newest_bytes is None else newest_bytes * 3 // 2


def most_expected(newest: Manifest | None, database_bytes: int) -> int:
    """Return how many bytes a dump will have at most: the first no more than the database.

    A later one half as many again as the newest, and by what the database has grown since: nobody
    knows how far that can be compressed.
    """
    if newest is None or not newest.database_bytes:
        return database_bytes
    grown = max(0, database_bytes - newest.database_bytes)
    return space_needed(newest.size_bytes, database_bytes) + grown
