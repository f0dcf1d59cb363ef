"""Seal what holds rows for age's public keys: who takes a backup cannot open it again.

A dump is looked at on its way, before it is sealed: its hash, its end, the rows of every table.
What is stored is read back by its own hash. Only who has a secret key can do more.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib
import io
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from preflight.backup import children, manifests, progress, reading_back, spool, store
from preflight.base import plain, stop, threads
from preflight.base.config import contents
from preflight.base.errors import BackupFailed, BackupUnverified, ConfigInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.clients import Clients
    from preflight.backup.manifests import Backup
    from preflight.backup.store import Sink, Store, Stream
    from preflight.base.config import Config

QUEUED = 4  # chunks that wait for the cipher
READ_BYTES = 8 << 20  # that are asked of a store at a time
RECIPIENTS = "PREFLIGHT_BACKUP_RECIPIENTS"
# of what belongs to a database, and as a manifest has it that says it in `sealed` alone
SECRET: Mapping[str, Any] = {"settings": (), "comment": None}


def _library() -> Any:  # noqa: ANN401 -- loaded only where something is sealed
    try:
        return importlib.import_module("pyrage")
    except ImportError as error:
        raise BackupFailed(
            "backup.sealing",
            f"the library that seals backups and opens them cannot be loaded: {error}",
            "Take an image whose tag ends with -full, or install the extra `sealing`.",
        ) from error


def _parsed(keys: Sequence[str]) -> list[object]:
    """Return the public keys as the library has them; raises ConfigInvalid."""
    library, found = _library(), []
    for number, key in enumerate(keys, 1):
        kind = library.ssh if key.startswith("ssh-") else library.x25519
        try:
            found.append(kind.Recipient.from_str(key))
        except library.RecipientError as error:
            raise ConfigInvalid(
                "config.invalid",
                f"key {number} of {RECIPIENTS} is not whole: {error}",
                "Copy it again, as `age-keygen -y FILE` or the .pub file has it.",
            ) from error
    return found


def fingerprint(key: str) -> str:
    """Return what tells which key opens: age's public key itself, of ssh's what ssh-keygen says."""
    if not key.startswith("ssh-"):
        return key
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


# what is written


@dataclass(frozen=True, slots=True)
class Dumped:
    """A sealed dump: what was seen of it before, and what is stored."""

    plain: reading_back.Hashed
    rows: Mapping[tuple[bytes, bytes], int]
    sha256: str
    size_bytes: int


class Seal:
    """What a run does to the files that hold rows; without recipients they stay as they are."""

    def __init__(self, config: Config) -> None:
        named = config.backup_recipients or ()
        self._keys = _parsed(named) if named else []
        self.recipients = tuple(map(fingerprint, named))
        self._spool_dir = config.spool_dir if config.rehearse != "off" else None
        self._folder_dir = config.spool_dir  # of one the rows are counted there, too
        self._spool: spool.Spool | spool.Folder | None = None
        self._why = ""  # it is not spooled
        self._expected = 0
        self.dumped: Dumped | None = None
        self.hashes: dict[str, str] = {}  # of files before they were sealed

    @property
    def on(self) -> bool:
        """Whether anything is sealed."""
        return bool(self._keys)

    def file(self, file: str) -> str:
        """Return the name under which a file is stored."""
        return f"{file}{manifests.SEALED}" if self.on else file

    @contextmanager
    def sink(self, backups: Store, name: str, file: str) -> Iterator[Sink]:
        """Yield what takes a file and stores it sealed; all else is as `Store.sink` says."""
        with backups.sink(name, self.file(file)) as inner:
            if not self.on:
                yield inner
                return
            with _Cipher(inner, self._keys) as cipher:
                yield cipher
                cipher.finish()
            self.hashes[file] = cipher.plain.hexdigest()

    @contextmanager
    def dump(
        self, backups: Store, name: str, programs: Clients, environment: Mapping[str, str]
    ) -> Iterator[Sink]:
        """Yield what takes the dump; a sealed one is read on its way. Raises BackupUnverified."""
        if not self.on:
            with backups.sink(name, manifests.DUMP) as inner:
                yield inner
            return
        self._begin_spool()
        with backups.sink(name, self.file(manifests.DUMP)) as inner, ExitStack() as stack:
            cipher = stack.enter_context(_Cipher(inner, self._keys))
            passing = stack.enter_context(reading_back.passing(programs, environment))
            yield _Through(self, cipher, passing)
            found, rows = passing.finish(cipher.plain.hexdigest())
            cipher.finish()
            self._end_spool()
            digest = cipher.sealed.hexdigest()
            self.dumped = Dumped(found, rows, digest, cipher.sealed_bytes)

    def belongings(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what belongs to a database as a manifest holds it: what may be secret is sealed.

        Nothing of it is there in clear, and nothing is there where there is nothing to seal.
        """
        secret = {key: told[key] for key in SECRET}
        if not self.on or not any(secret.values()):
            return told
        text = _library().encrypt(json.dumps(secret).encode(), self._keys)
        return {**told, **SECRET, "sealed": base64.b64encode(text).decode()}

    def sent(self, chunks: Iterable[bytes]) -> Sent:
        """Return a file as it is to be stored, and what is seen of it on its way. In any thread."""
        return Sent(chunks, self._keys)

    # the plain dump, while it is proven

    def unplaced(self) -> str | None:
        """Return why there is no place on this machine for the files of a folder."""
        if self._folder_dir is None:
            return "PREFLIGHT_SPOOL_DIR is not set"
        why = spool.unusable(self._folder_dir, self._expected)
        return why and f"PREFLIGHT_SPOOL_DIR has no room for its files: {why}"

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yield an empty folder for a client; with what it wrote it stays until `close`.

        Raises ClientFailed, which another form of dump may help against.
        """
        self.close()
        assert self._folder_dir is not None  # noqa: S101 -- `unplaced` was asked
        try:
            try:
                made = self._spool = spool.Folder(self._folder_dir)
            except OSError as error:
                raise unstaged(error) from error
            yield made.path
        except BaseException:
            self.close()
            raise

    def expect(self, size_bytes: int) -> None:
        """Say how large the dump may become: where there is no room for it, none is taken."""
        self._expected = size_bytes

    def _begin_spool(self) -> None:
        self.close()
        self._why = "it is sealed, and PREFLIGHT_SPOOL_DIR names no place for a copy of the dump"
        if self._spool_dir is not None:
            with self._spooling():
                if why := spool.unusable(self._spool_dir, self._expected):
                    raise OSError(errno.ENOSPC, why)
                self._spool = spool.Spool(self._spool_dir)

    @contextmanager
    def _spooling(self) -> Iterator[None]:
        """Go without a copy where there is no room for it: it is the proof that lacks it."""
        try:
            yield
        except OSError as error:
            self.close()
            self._why = f"PREFLIGHT_SPOOL_DIR cannot hold a copy of the dump: {error.strerror}"

    def spool(self, data: bytes | bytearray | memoryview) -> None:
        """Keep the next part of the plain dump, too, where there is a place for it."""
        if isinstance(self._spool, spool.Spool):
            with self._spooling():
                self._spool.write(data)

    def _end_spool(self) -> None:
        if isinstance(self._spool, spool.Spool):
            with self._spooling():
                self._spool.flush()

    @property
    def spooled(self) -> Path | None:
        """The plain dump, while it is there."""
        return self._spool.path if self._spool else None

    @property
    def unspooled(self) -> str:
        """Why there is no plain dump."""
        return self._why

    @contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Let the plain dump go when what is done here fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the plain dump go."""
        if self._spool:
            self._spool.close()
        self._spool = None


def unstaged(error: OSError) -> children.ClientFailed:
    """Return what it is that the files of a folder have no place on this machine."""
    why = f"PREFLIGHT_SPOOL_DIR cannot hold the files of the dump: {error.strerror}"
    return children.ClientFailed(why, "passing")


class Sent:
    """A file on its way to its store, sealed or as it is, and what was seen of it."""

    def __init__(self, chunks: Iterable[bytes], keys: Sequence[object]) -> None:
        self._chunks, self._keys = chunks, keys
        self.piece: manifests.Piece | None = None  # once all of it was taken

    def __iter__(self) -> Iterator[bytes]:
        """Yield what is to be stored."""
        return self._sealed() if self._keys else self._plain()

    def _plain(self) -> Iterator[bytes]:
        digest, size = hashlib.sha256(), 0
        for chunk in self._chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk
        self.piece = manifests.Piece(size, digest.hexdigest())

    def _sealed(self) -> Iterator[bytes]:
        made, size = _Made(), 0
        with _Cipher(made, self._keys) as cipher:
            for chunk in self._chunks:
                cipher.write(chunk)
                size += len(chunk)
                yield from made.taken()
            cipher.finish()
            yield from made.taken()
        plain, sealed = cipher.plain.hexdigest(), cipher.sealed.hexdigest()
        self.piece = manifests.Piece(size, plain, cipher.sealed_bytes, sealed)


class _Made:
    """A sink that keeps what it was given until somebody takes it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take the next part."""
        self._parts.append(bytes(data))
        return len(data)

    def abandon(self) -> None:
        """Keep nothing."""
        self._parts.clear()

    def taken(self) -> list[bytes]:
        """Return what was given since."""
        parts, self._parts = self._parts, []
        return parts


class _Through:
    """A sink of the dump: looked at, kept beside where that is wanted, and sealed."""

    def __init__(self, seal: Seal, cipher: _Cipher, passing: reading_back.Passing) -> None:
        self.seal, self.cipher, self.passing = seal, cipher, passing

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take the next part."""
        self.passing.write(data)
        self.seal.spool(data)
        return self.cipher.write(data)

    def abandon(self) -> None:
        """Keep nothing."""
        self.cipher.abandon()


class _GivenUp(Exception):
    """The source will not come to its end."""


class _Cipher:
    """A sink that seals; the library pulls, so a thread of its own lets it. It never waits there.

    What is sealed is passed on by the writer's thread, which alone may be stopped.
    """

    def __init__(self, inner: Sink, keys: Sequence[object]) -> None:
        self.inner, self.keys, self.library = inner, keys, _library()
        self.plain, self.sealed, self.sealed_bytes = hashlib.sha256(), hashlib.sha256(), 0
        self._waiting: queue.Queue[bytes | None] = queue.Queue(QUEUED)
        self._made: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self._rest = memoryview(b"")
        self._given_up = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        threads.start(self._thread)
        return self

    def __exit__(self, *_: object) -> None:
        """End, whether it came to its end or not."""
        if self._thread.is_alive():
            self._given_up = True
            with suppress(queue.Empty):
                while True:
                    self._waiting.get_nowait()
            self._waiting.put(None)
            self._thread.join()

    # the library's side

    def _work(self) -> None:
        try:
            self.library.encrypt_io(_Reader(self._read), _Writer(self._made.put), self.keys)
        except BaseException as error:  # noqa: BLE001 -- told to the writer
            self._made.put(error)
        else:
            self._made.put(None)

    def _read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(self._waiting.get() or b"")
        if self._given_up:
            raise _GivenUp
        part, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return part

    # the writer's side

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take the next part; raises OSError."""
        if data:
            self.plain.update(data)
            self._give(bytes(data))
        return len(data)

    def abandon(self) -> None:
        """Keep nothing."""
        self._given_up = True
        self.inner.abandon()

    def _give(self, chunk: bytes | None) -> None:
        while True:
            while not self._made.empty():
                self._pass_on()
            with suppress(queue.Full):
                self._waiting.put(chunk, timeout=0.2)
                return

    def _pass_on(self) -> bool:
        """Store what is sealed next; False at the end. Raises what went wrong."""
        made = self._made.get()
        if made is None:
            return False
        if isinstance(made, BaseException):
            raise made
        self.sealed.update(made)
        self.sealed_bytes += len(made)
        self.inner.write(made)
        return True

    def finish(self) -> None:
        """Seal and store the rest."""
        if self._given_up:
            return
        self._give(None)
        while self._pass_on():
            pass


class _Reader:
    """What the library reads from."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


class _Writer:
    """What the library writes to."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self.take = take

    def write(self, data: bytes) -> int:
        """Take the next part."""
        self.take(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""


# what is opened again


def require_openable(
    backup: Backup, identity_file: Path | None, directory: Path | None
) -> tuple[Path, Path]:
    """Return where the keys are and where a dump is opened; raises ConfigInvalid, BackupFailed.

    To be asked before all of it is read.
    """
    if identity_file is None:
        raise ConfigInvalid(
            "config.arguments",
            f"{backup.name} is sealed for {', '.join(backup.manifest.recipients)}",
            "Name the file that holds the secret key of one of these: --identity-file FILE.",
        )
    if directory is None:
        size = backup.manifest.size_bytes
        raise BackupFailed(
            "backup.spool",
            f"{backup.name} is sealed, and there is no place for the opened dump",
            f"Set PREFLIGHT_SPOOL_DIR to a directory with room for {size / 1e6:.1f} MB. The file "
            "has no name there, and is gone when the restore ends, or is killed.",
        )
    identities(identity_file)
    if why := spool.unusable(directory, backup.manifest.size_bytes):
        raise _no_room(directory, why)
    return identity_file, directory


def is_closed(backup: Backup, identity_file: Path | None) -> bool:
    """Tell whether what may be secret of a database's belongings is not known without a key."""
    said = backup.manifest.belongings
    return identity_file is None and isinstance(said, dict) and "sealed" in said


def belongings_of(backup: Backup, identity_file: Path | None) -> object:
    """Return what a manifest says of what belongs to its database, opened where there is a key.

    Raises ConfigInvalid (a wrong one), ValueError (it is not as it should be), BackupUnverified.
    """
    said = backup.manifest.belongings
    if identity_file is None or not isinstance(said, dict) or "sealed" not in said:
        return said
    found = bytearray()
    try:
        sealed = io.BytesIO(base64.b64decode(said["sealed"], validate=True))
        _decrypt(sealed, found.extend, identities(identity_file), backup, identity_file)
        secret = json.loads(found)
        return {**said, **{key: secret[key] for key in SECRET}}
    except (ValueError, TypeError, KeyError, RecursionError) as wrong:
        raise ValueError("sealed") from wrong


@contextmanager
def opened(
    backups: Store, backup: Backup, identity_file: Path | None, directory: Path | None
) -> Iterator[Path]:
    """Yield the plain dump of a sealed backup: a file without a name, or a folder.

    Raises ConfigInvalid (no key, a wrong one), BackupFailed (no place), BackupUnverified.
    """
    named, directory = require_openable(backup, identity_file, directory)
    keys, manifest = identities(named), backup.manifest
    moving = progress.Moving("backup.progressed", "open", manifest.size_bytes)
    done = 0

    def open_one(file: str, sha256: str | None, write: Callable[[bytes], object]) -> None:
        digest = hashlib.sha256()

        def take(data: bytes) -> None:
            nonlocal done
            with stop.allowed(), _spooled(directory):
                digest.update(data)
                write(data)
            done += len(data)
            moving.tell(done)

        with store.usable(backups), backups.open(backup.name, file) as found:
            _decrypt(found, take, keys, backup, identity_file)
        if digest.hexdigest() != sha256:
            raise _not_what_was_sealed(backup)

    with ExitStack() as stack, moving:
        with _spooled(directory):
            copy: spool.Spool | spool.Folder = (
                spool.Folder(directory) if manifest.files else spool.Spool(directory)
            )
        stack.callback(copy.close)
        if isinstance(copy, spool.Spool):
            open_one(manifest.stored.file, manifest.sha256, copy.write)
            with _spooled(directory):
                copy.flush()
        for name, piece in manifest.files.items():
            with _spooled(directory), (copy.path / name).open("xb") as into:
                sealed = f"{manifests.FOLDER}/{name}{manifests.SEALED}"
                open_one(sealed, piece.sha256, into.write)
        yield copy.path


@contextmanager
def _spooled(directory: Path) -> Iterator[None]:
    """Tell a fault of the place from one of the backup."""
    try:
        yield
    except OSError as error:
        raise _no_room(directory, error.strerror) from error


def _no_room(directory: Path, why: str | None) -> BackupFailed:
    return BackupFailed(
        "backup.spool",
        f"the opened dump has no room in {directory}: {why}",
        "Set PREFLIGHT_SPOOL_DIR to a directory with room for it.",
    )


def _not_what_was_sealed(backup: Backup) -> BackupUnverified:
    return BackupUnverified(
        "backup.corrupt",
        f"what {backup.name} holds is not what its manifest says",
        "Use another backup (`backups --table`).",
    )


def _decrypt(
    stream: Stream,
    take: Callable[[bytes], object],
    keys: Sequence[object],
    backup: Backup,
    identity_file: Path | None,
) -> None:
    """Open a stream; what is raised in here comes out as it was, not as the library says it."""
    library, rest = _library(), memoryview(b"")
    raised: list[BaseException] = []

    def read(size: int) -> bytes:
        nonlocal rest
        with _noted(raised):
            if not rest:
                rest = memoryview(reading_back.part(stream, READ_BYTES))
        part, rest = bytes(rest[:size]), rest[size:]
        return part

    def write(data: bytes) -> None:
        with _noted(raised):
            take(data)

    try:
        library.decrypt_io(_Reader(read), _Writer(write), keys)
    except Exception as error:
        if raised:
            raise raised[0] from None
        if "matching keys" not in str(error):
            raise _not_what_was_sealed(backup) from error
        raise ConfigInvalid(
            "config.arguments",
            f"the key in {identity_file} does not open {backup.name}: it is sealed for "
            f"{', '.join(backup.manifest.recipients)}",
            "Give the file with the secret key that belongs to one of these.",
        ) from error


@contextmanager
def _noted(raised: list[BaseException]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        raised.append(error)
        raise


def identities(path: Path) -> list[object]:
    """Read the secret keys of a file; raises ConfigInvalid, never shows one."""
    try:
        data = contents(str(path))
    except OSError as error:
        raise _useless(path, f"cannot be read: {error.strerror}", "Correct the path.") from error
    if len(data) > plain.SECRET_MAX_BYTES:
        raise _useless(path, "is larger than 64 KiB: no key", "Correct the path.")
    return _keys_of(path, data)


def _keys_of(path: Path, data: bytes) -> list[object]:
    library, text = _library(), data.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    first = lines[0] if lines else ""
    if first.startswith(("age-encryption.org/", "-----BEGIN AGE ENCRYPTED")):
        raise _useless(
            path,
            "is protected by a passphrase, and nobody is asked for one here",
            f"Open it first, where nobody else reads: age -d {path} > KEY",
        )
    if first.startswith(("age1", "ssh-")):
        raise _useless(
            path,
            "holds a public key, which seals",
            "Give the secret one, which opens: AGE-SECRET-KEY-1…, or ssh's file without .pub.",
        )
    try:
        if "PRIVATE KEY-----" in first:
            return [library.ssh.Identity.from_buffer(data)]
        return [library.x25519.Identity.from_str(line) for line in lines or [""]]
    except library.IdentityError as error:
        if "must be decrypted" in str(error):
            raise _useless(
                path,
                "is protected by a passphrase, and nobody is asked for one here",
                "Take it off a copy where nobody else reads: ssh-keygen -p -N '' -f COPY",
            ) from error
        what = "an ssh key that cannot be used" if "PRIVATE" in first else "no secret key of age's"
        raise _useless(
            path,
            f"holds {what}",
            "It takes AGE-SECRET-KEY-1… as age-keygen writes it, or an ssh key (ed25519, rsa) "
            "without a passphrase. Plugins are not run.",
        ) from error


def _useless(path: Path, why: str, hint: str) -> ConfigInvalid:
    return ConfigInvalid("config.arguments", f"--identity-file {path} {why}", hint)
