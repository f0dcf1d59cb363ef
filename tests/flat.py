"""A store of backups that is nothing like a directory of directories, to show that a second fits.

It behaves as a bucket of objects does: flat keys, no rename, an object is whole or not there. A
backup is what has a manifest, and that is written last. Run as a program it is the whole
command line with this store in the place of the directory.
"""

import dataclasses
import errno
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

from preflight.backup import manifests, store, stores
from preflight.backup.manifests import Backup, Identity, Listed, Manifest
from preflight.base.errors import BackupFailed

MARK = "reading-"


class Flat(store.Store):
    """Objects `KEY`, each a file whose name is its key in percent notation."""

    def __init__(self, bucket: Path) -> None:
        self.bucket = bucket

    @property
    def place(self) -> str:
        """As an address."""
        return f"flat://{self.bucket.name}"

    def failure(self, error: OSError) -> BackupFailed:
        """There is one reason."""
        return BackupFailed("backup.directory", f"{self.place}: {error.strerror}", "Look there.")

    # objects

    def put(self, key: str, data: bytes) -> None:
        """Make an object, or another in its place: whole, at once."""
        descriptor, new = tempfile.mkstemp(dir=self.bucket.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(new).replace(self.bucket / quote(key, ""))

    def get(self, key: str) -> bytes:
        """Return an object; raises FileNotFoundError."""
        return (self.bucket / quote(key, "")).read_bytes()

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin so."""
        every = sorted(unquote(each.name) for each in self.bucket.iterdir())
        return [key for key in every if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        (self.bucket / quote(key, "")).unlink(missing_ok=True)

    # the verbs

    def listed(self) -> Listed:
        """Return what has a manifest."""
        names = {key.partition("/")[0] for key in self.keys()}
        return store.listed(store.tried(self.read, name) for name in names)

    def read(self, name: str) -> Backup:
        """Return what the manifest says."""
        if not self.keys(f"{name}/"):
            raise FileNotFoundError(errno.ENOENT, "no such key", name)
        try:
            said = json.loads(self.get(f"{name}/{manifests.MANIFEST}"))
        except (OSError, ValueError) as error:
            raise manifests.Unreadable(str(error)) from error
        return Backup(name, manifests.parsed(said))

    def files(self, name: str) -> list[str]:
        """Return the keys below a name."""
        names = [key.partition("/")[2] for key in self.keys(f"{name}/")]
        return [each for each in names if not each.startswith(MARK)]

    def expect(self, most_bytes: int) -> None:
        """Let a file grow as it is written."""

    @contextmanager
    def draft(self, identity: Identity, run_id: str, needed: int) -> Iterator[str]:
        """Yield the final name: without a manifest nothing is seen under it."""
        assert needed >= 0
        name = f"{identity.slug}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{run_id}"
        try:
            yield name
        finally:
            if f"{name}/{manifests.MANIFEST}" not in self.keys(name):
                self._clear(name)

    @contextmanager
    def sink(self, name: str, file: str) -> Iterator[store.Sink]:
        """Put the object once all of it is there."""
        made = _Sink()
        yield made
        if not made.abandoned:
            self.put(f"{name}/{file}", made.getvalue())

    def send(self, name: str, file: str, chunks: Iterable[bytes], *, little: bool) -> None:
        """Put it, however large."""
        assert little in {True, False}
        self.put(f"{name}/{file}", b"".join(chunks))

    def discard(self, name: str, folder: str) -> None:
        """Delete what is below it."""
        self._clear(f"{name}/{folder}")

    def pieces(self, name: str, folder: str) -> dict[str, int | None]:
        """Return what is below it."""
        keys = self.keys(f"{name}/{folder}/")
        return {key.rpartition("/")[2]: len(self.get(key)) for key in keys}

    def publish(self, draft: str, identity: Identity, manifest: Manifest) -> Backup:
        """Put the manifest."""
        assert identity.database == manifest.database
        earlier = [each.manifest.sequence for each in self.listing()]
        numbered = dataclasses.replace(manifest, sequence=1 + max(earlier, default=0))
        return self.improve(Backup(draft, manifest), numbered)

    def apart(self, identity: Identity, run_id: str) -> str:
        """Return a name, which is all that it takes."""
        return f"{identity.slug}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{run_id}"

    def forget(self, name: str) -> None:
        """Delete what is below it."""
        for key in self.keys(f"{name}/"):
            self.delete(key)

    def improve(self, backup: Backup, manifest: Manifest) -> Backup:
        """Put it again."""
        self.put(f"{backup.name}/{manifests.MANIFEST}", manifest.text())
        return Backup(backup.name, manifest)

    def withdraw(self, backup: Backup, identity: Identity) -> None:
        """Delete the manifest."""
        assert identity.database == backup.manifest.database
        self.delete(f"{backup.name}/{manifests.MANIFEST}")

    def remove(self, backup: Backup, identity: Identity) -> bool:
        """Delete the manifest first."""
        if self.keys(f"{backup.name}/{MARK}"):
            return False
        self.withdraw(backup, identity)
        self._clear(backup.name)
        return True

    def _clear(self, name: str) -> None:
        for key in self.keys(f"{name}/"):
            self.delete(key)

    @contextmanager
    def open(self, name: str, file: str) -> Iterator[store.Stream]:
        """Yield the object."""
        yield io.BytesIO(self.get(f"{name}/{file}"))

    @contextmanager
    def local(self, name: str, file: str) -> Iterator[Path]:
        """Download it."""
        with tempfile.NamedTemporaryFile(suffix=file) as copy:
            copy.write(self.get(f"{name}/{file}"))
            copy.flush()
            yield Path(copy.name)

    def stamp(self, name: str, file: str) -> object:
        """Compare it all."""
        return self.get(f"{name}/{file}")

    @contextmanager
    def reading(self, name: str) -> Iterator[Callable[[], None]]:
        """Put a mark beside it."""
        self.get(f"{name}/{manifests.DUMP}")
        mark = f"{name}/{MARK}{os.urandom(6).hex()}"
        self.put(mark, b"")
        try:
            yield lambda: self.put(mark, b"")
        finally:
            self.delete(mark)


class _Sink(io.BytesIO):
    abandoned = False

    def abandon(self) -> None:
        """Put nothing."""
        self.abandoned = True


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import entrypoint

    stores.of = lambda config: Flat(Path(config.backup_dir))
    sys.exit(entrypoint.main())
