"""The store of backups that is a bucket: S3 and what speaks its language, Google's, Azure's.

A file is an object `PREFIX/BACKUP/FILE`, as in a directory, and appears at once when its upload is
complete. Without a manifest there is no backup: it is put last and taken away first. Marks, whose
names begin with a dot, say who builds, reads or removes; their age is by the store's own clock.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from preflight.backup import (
    beside,
    gathered,
    lanes,
    manifests,
    parts_left,
    progress,
    reading_back,
    spool,
    store,
)
from preflight.base import stop, threads
from preflight.base.errors import BackupFailed, BackupInterrupted

if TYPE_CHECKING:
    from preflight.backup.manifests import Backup, Identity, Listed, Manifest

KINDS = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
KEY = "AWS_ACCESS_KEY_ID"
WITHIN = f"{manifests.FOLDER}/"
PART_BYTES, MOST_PARTS, AT_ONCE = 8 << 20, 9000, 2  # 10,000 parts are the stores' own limit
QUEUED = 16  # chunks of the source that wait for the upload
WIDTH = 32  # manifests that are read at the same time
DELETED_ALONE = 8  # as many objects are deleted one after the other
RENEW_S, ABANDONED_S, READER_S = 60.0, 3600.0, 300.0
# seconds: from the first to the last try of a request, silence of one, all of one that is slow
RETRY_S, ANSWER_S, SLOW_S, CONNECT_S = 300, 120, 900, 5
TRIES = 10  # of what fails at once: half a minute
READER, PRUNED, KEPT = ".reading-", "pruned", b"-"
AWAITED_S = 10.0  # for another run that removes a backup, or sees us and leaves it
GIVE_UP_S = 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where objects are: no secret in it."""

    scheme: str
    bucket: str
    prefix: str
    endpoint: str | None = None

    @property
    def shown(self) -> str:
        """As people write it."""
        return "/".join(filter(None, (f"{self.scheme}://{self.bucket}", self.prefix)))


def address(url: str, endpoint: str | None = None) -> Address:
    """Return what `s3://bucket/prefix` says."""
    parts = urlsplit(url)
    return Address(parts.scheme, parts.netloc, parts.path.strip("/"), endpoint)


def part_bytes(most_bytes: int) -> int:
    """Return how large the parts of files are that have so many bytes at most, and a tenth more."""
    return max(PART_BYTES, -(-most_bytes // MOST_PARTS))


class Refused(OSError):
    """The store did not do it; `why` names the kind."""

    def __init__(self, why: str, said: str) -> None:
        super().__init__(errno.EIO, said)
        self.why = why


class Objects(store.Store):
    """Backups in a bucket."""

    def __init__(
        self,
        where: Address,
        environment: Mapping[str, str],
        spool: Path | None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._where = where
        self._environment = environment
        self._spool = spool
        self._retry_s = min(retry_s, RETRY_S)
        self._part_bytes = PART_BYTES
        self._drafts: set[str] = set()
        self._known: dict[tuple[str, object], Backup] = {}  # by name and version of the manifest

    @property
    def place(self) -> str:
        """The bucket and the prefix."""
        return self._where.shown

    @property
    def remote(self) -> bool:
        """Every byte is a download."""
        return True

    def expect(self, most_bytes: int) -> None:
        """Upload in parts so large that no file has too many."""
        self._part_bytes = part_bytes(most_bytes)

    def unspooled(self, size_bytes: int) -> str | None:
        """Say that PREFLIGHT_SPOOL_DIR names no place, or one without room."""
        if self._spool is None:
            return (
                f"there is no place for a copy of the dump from {self.place}: set "
                "PREFLIGHT_SPOOL_DIR"
            )
        why = spool.unusable(self._spool, size_bytes)
        return why and f"PREFLIGHT_SPOOL_DIR cannot hold a copy of the dump: {why}"

    def failure(self, error: OSError) -> BackupFailed | BackupInterrupted:
        """Say whose turn it is: time's, the credentials', the bucket's."""
        why = getattr(error, "why", "")
        if why == "spool":
            return BackupFailed("backup.spool", str(error.strerror), HINTS[why])
        message = f"backups cannot be kept in {self.place}: {error.strerror}"
        if why in {"key", "settings"} and (broken := _broken(self._environment)):
            message += f"; there is a line break, a space or a sign like it in {broken}"
        if why == "passing":
            if self._where.endpoint:
                message += f"; PREFLIGHT_BACKUP_ENDPOINT is {self._where.endpoint}"
            return BackupInterrupted("backup.store", message, "Run again; nothing was migrated.")
        hint = HINTS.get(why, "Look at PREFLIGHT_BACKUP_DIR and PREFLIGHT_BACKUP_ENDPOINT.")
        return BackupFailed("backup.store", message, hint)

    # objects

    @cached_property
    def _library(self) -> Any:  # noqa: ANN401 -- loaded only where a bucket is named
        try:
            return importlib.import_module("obstore")
        except ModuleNotFoundError as error:
            raise Refused("library", "the library for object stores is not installed") from error

    @cached_property
    def _bucket(self) -> Any:  # noqa: ANN401 -- the library's
        given = self._environment
        if self._where.scheme == "s3" and "AWS_PROFILE" in given and KEY not in given:
            raise Refused("profile", "AWS_PROFILE is set, and profile files are not read")
        if self._where.scheme == "s3" and _broken(given):  # the library would panic, or be refused
            raise Refused("settings", SAID["settings"])
        made = getattr(importlib.import_module(".store", "obstore"), KINDS[self._where.scheme])
        client: dict[str, object] = {
            "timeout": timedelta(seconds=SLOW_S),
            "read_timeout": timedelta(seconds=ANSWER_S),
            "connect_timeout": timedelta(seconds=CONNECT_S),
        }
        options: dict[str, object] = {}
        if endpoint := self._where.endpoint:
            client["allow_http"] = endpoint.startswith("http://")
            options = self._elsewhere(endpoint)
        with asked():
            return made(
                self._where.bucket,
                prefix=self._where.prefix or None,
                client_options=client,
                retry_config={
                    "max_retries": TRIES,
                    "retry_timeout": timedelta(seconds=self._retry_s),
                    "backoff": {"max_backoff": timedelta(seconds=5)},
                },
                **options,
            )

    def _elsewhere(self, endpoint: str) -> dict[str, object]:
        """Return how each kind is told of a server that is not the cloud's own."""
        if self._where.scheme == "gs":
            # the emulators ask for no login
            key = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": ""}
            said = json.dumps(key | {"private_key": "", "private_key_id": ""})
            own = self._environment.get("GOOGLE_SERVICE_ACCOUNT")
            return {} if own else {"service_account_key": said}
        return {"endpoint": endpoint}

    def _listed(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Return what is known of each object of each name: `{name: {file: meta}}`."""
        found: dict[str, dict[str, Any]] = {}

        def pages() -> None:
            for page in self._library.list(self._bucket, prefix or None):
                for meta in page:
                    name, _, file = meta["path"].partition("/")
                    if file and "/" not in file.removeprefix(WITHIN):
                        # of thousands that are in folders, no more than is looked at
                        told = meta if prefix or "/" not in file else _brief(meta)
                        found.setdefault(name, {})[file] = told

        with asked():
            beside.waited(pages)
        return found

    def _put(self, key: str, data: bytes, mode: str = "overwrite") -> None:
        def put() -> None:
            self._library.put(self._bucket, key, data, use_multipart=False, mode=mode)

        with asked():
            beside.waited(put)

    def _head(self, key: str) -> Any:  # noqa: ANN401 -- the library's
        with asked():
            return beside.waited(lambda: self._library.head(self._bucket, key))

    def _got(self, key: str, options: Mapping[str, object] | None = None) -> bytes:
        with asked():
            return beside.waited(
                lambda: bytes(self._library.get(self._bucket, key, options=options).bytes())
            )

    def _delete(self, *keys: str) -> None:
        def delete(key: str) -> None:
            with suppress(FileNotFoundError), asked():
                beside.waited(lambda: self._library.delete(self._bucket, key))

        if len(keys) > DELETED_ALONE:
            with threads.pool(WIDTH) as pool:
                list(pool.map(delete, keys))
            return
        for key in keys:
            delete(key)

    def _clear(self, name: str) -> None:
        """Delete all below a name, its marks last: a kill in between leaves what says so."""
        files = self._listed(f"{name}/").get(name, {})
        self._delete(*(f"{name}/{each}" for each in files if each[0] != "."))
        self._delete(*(f"{name}/{each}" for each in files if each[0] == "."))

    def _marked(self, key: str) -> datetime:
        """Put a mark; return what the store's clock says."""
        self._put(key, b"")
        when: datetime = self._head(key)["last_modified"]
        return when

    # what is there

    def listed(self) -> Listed:
        """Return every backup; all manifests that are new are read."""
        there = beside.answer(beside.asked(self._listed))
        names = sorted((name for name in there if manifests.MANIFEST in there[name]), reverse=True)
        metas = {name: there[name][manifests.MANIFEST] for name in names}
        new = [name for name in names if _version(name, metas[name]) not in self._known]
        copies = self._gathered() if len(new) > gathered.FEW else {}
        before = set(copies)

        denied: list[Refused] = []

        def known(name: str) -> Backup:
            try:
                return self._read(name, metas[name], there[name], copies)
            except Refused as refused:
                if refused.why not in OF_ONE:
                    raise
                denied.append(refused)
                raise manifests.Unreadable(str(refused.strerror)) from refused

        with threads.pool(WIDTH) as pool:
            found = store.listed(pool.map(partial(store.tried, known), names))
        if len(denied) == len(names) and "rights" in {each.why for each in denied}:
            raise denied[0]  # it is a key that may list alone
        wanted = map(gathered.tag, metas.values())
        useful = gathered.fitting({tag: copies[tag] for tag in wanted if tag in copies})
        if len(useful.keys() - before) > gathered.FEW:
            with suppress(OSError):  # who may only read, reads each the next time, too
                self._put(gathered.FILE, gathered.packed(useful.values()))
        return found

    def _gathered(self) -> dict[str, bytes]:
        """Return copies of manifests by their tags, as far as there are any."""
        most = {"range": (0, gathered.MOST_BYTES)}
        with suppress(OSError):
            return gathered.unpacked(self._got(gathered.FILE, most))
        return {}

    def read(self, name: str) -> Backup:
        """Return one backup; raises FileNotFoundError, Unreadable."""
        try:
            files = self._listed(f"{name}/").get(name)
        except ValueError:  # no object can be called so
            files = None
        if not files or not any(each[0] != "." for each in files):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        if manifests.MANIFEST not in files:
            raise manifests.Never(f"it has no {manifests.MANIFEST}")
        return self._read(name, files[manifests.MANIFEST], files)

    def _read(
        self,
        name: str,
        meta: Mapping[str, Any],
        files: Mapping[str, Any],
        copies: dict[str, bytes] | None = None,
    ) -> Backup:
        """Return what a manifest says, from a copy of just that text or from the store."""
        version = _version(name, meta)
        if version not in self._known:
            copies = {} if copies is None else copies
            text = copies.get(gathered.tag(meta))
            if text is None:
                text = self._manifest(name, meta)
                copies[gathered.tag_of(text)] = text
            try:
                said = json.loads(text)
            except (ValueError, RecursionError, MemoryError) as error:
                why = f"{manifests.MANIFEST} is not the JSON that it should be"
                raise manifests.Unreadable(why) from error
            self._known[version] = manifests.Backup(name, manifests.parsed(said))
        found = self._known[version]
        wanted = found.manifest.stored
        if wanted.files:
            if lacks := wanted.lacks(_pieces(files)):
                raise manifests.Unreadable(lacks, found.manifest)
            return found
        if wanted.file not in files or files[wanted.file]["size"] != wanted.size_bytes:
            why = f"{wanted.file} is no object of {wanted.size_bytes} bytes"
            raise manifests.Unreadable(why, found.manifest)
        return found

    def _manifest(self, name: str, meta: Mapping[str, Any]) -> bytes:
        """Read what was listed by one request: of a thousand each counts."""
        if meta["size"] > manifests.MANIFEST_MAX_BYTES:
            most = manifests.MANIFEST_MAX_BYTES
            raise manifests.Unreadable(f"{manifests.MANIFEST} is larger than {most} bytes")
        try:
            return self._got(f"{name}/{manifests.MANIFEST}")
        except Refused as refused:
            said = f"{name}/{manifests.MANIFEST}: {refused.strerror}"
            raise Refused(refused.why, said) from refused

    def files(self, name: str) -> list[str]:
        """Return the objects below a name but for the marks, and the folder."""
        files = {each.partition("/")[0] for each in self._listed(f"{name}/").get(name, {})}
        return sorted(each for each in files if not each.startswith("."))

    def pieces(self, name: str, folder: str) -> dict[str, int | None]:  # noqa: ARG002 -- there is one
        """Return what is below its name and not hidden, and its size."""
        return _pieces(self._listed(f"{name}/").get(name, {}))

    # what is written

    @contextmanager
    def draft(self, identity: Identity, run_id: str, needed: int) -> Iterator[str]:  # noqa: ARG002 -- there is room
        """Mark a name as being built, and renew the mark; all below it goes unless published."""
        name = self.apart(identity, run_id)
        mark = f"{name}/{identity.hidden('partial', run_id)}"
        now = self._marked(mark)
        self._drafts.add(name)
        try:
            self._sweep(identity, now)
            self._advise()
            with _regularly(lambda: self._put(mark, b"")):
                yield name
        finally:
            with suppress(OSError):  # the next run sweeps it
                if name in self._drafts:
                    self._drafts.discard(name)
                    self._clear(name)
                else:
                    self._delete(mark)

    def _advise(self) -> None:
        """Warn where nothing ends what a killed run leaves of an upload."""
        where = self._where
        if where.scheme == "s3" and parts_left.unruled(
            where.bucket, where.endpoint, self._environment
        ):
            structlog.get_logger().warning(
                "config.warned",
                warning=f"no rule of the bucket {where.bucket} ends uploads that a killed run "
                "leaves, and their parts cost money: give it one with "
                "AbortIncompleteMultipartUpload (docs/backups.md)",
            )

    def _sweep(self, identity: Identity, now: datetime) -> None:
        """Remove what killed runs left of this database, and what was withdrawn."""
        begun, gone = identity.hidden("partial", ""), identity.hidden("unproven", "")
        for name, files in self._listed().items():
            newest = max(each["last_modified"] for each in files.values())
            old = now - newest > timedelta(seconds=ABANDONED_S)
            left = any(file.startswith(begun) for file in files) and old
            hidden = any(file.startswith(gone) for file in files)
            if manifests.MANIFEST not in files and (left or hidden) and name not in self._drafts:
                with suppress(OSError):
                    self._clear(name)

    @contextmanager
    def sink(self, name: str, file: str) -> Iterator[store.Sink]:
        """Upload in parts meanwhile; the object appears at the end, or the upload is aborted."""
        upload = _Upload(lambda source: self._upload(f"{name}/{file}", source))
        try:
            yield upload
        except BaseException:
            upload.abandon()
            raise
        else:
            upload.finish()
        finally:
            upload.abandon()

    def _upload(self, key: str, source: Iterator[bytes]) -> None:
        with asked():
            self._library.put(
                self._bucket,
                key,
                source,
                use_multipart=True,
                chunk_size=self._part_bytes,
                max_concurrency=AT_ONCE,
            )

    def send(self, name: str, file: str, chunks: Iterable[bytes], *, little: bool) -> None:
        """Put it by one request, or upload it in parts."""
        if little:
            self._put(f"{name}/{file}", b"".join(chunks))
        else:
            self._upload(f"{name}/{file}", iter(chunks))

    def discard(self, name: str, folder: str) -> None:
        """Delete what is below it."""
        files = self._listed(f"{name}/").get(name, {})
        self._delete(*(f"{name}/{each}" for each in files if each.startswith(f"{folder}/")))

    def publish(self, draft: str, identity: Identity, manifest: Manifest) -> Backup:  # noqa: ARG002 -- a name tells
        """Put the manifest, where none is: the name is this run's alone."""
        manifest = dataclasses.replace(manifest, sequence=manifests.following(self.listing()))
        key, text = f"{draft}/{manifests.MANIFEST}", manifest.text()
        with stop.deferred():
            try:
                self._put(key, text, "create")
            except Refused as refused:
                if refused.why == "unsupported":
                    self._put(key, text)
                elif refused.why != "exists" or store.small(self, draft, "manifest.json") != text:
                    raise  # else the answer to our own was lost, and it was sent again
            self._drafts.discard(draft)
        return manifests.Backup(draft, manifest)

    def apart(self, identity: Identity, run_id: str) -> str:
        """Return a name that nothing has: without a mark and a manifest nobody looks at it."""
        name = f"{identity.slug}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{run_id}"
        while self._listed(f"{name}/"):  # two of one run in one second
            name += "b"
        return name

    def forget(self, name: str) -> None:
        """Delete what is below it."""
        self._clear(name)

    def improve(self, backup: Backup, manifest: Manifest) -> Backup:
        """Put another manifest in the place of the first."""
        self._put(f"{backup.name}/{manifests.MANIFEST}", manifest.text())
        return manifests.Backup(backup.name, manifest)

    def withdraw(self, backup: Backup, identity: Identity) -> None:
        """Take the manifest away, for somebody to look at the rest until the next draft."""
        self._put(f"{backup.name}/{identity.hidden('unproven', backup.manifest.run_id or '')}", b"")
        self._delete(f"{backup.name}/{manifests.MANIFEST}")

    def remove(self, backup: Backup, identity: Identity) -> bool:
        """Take the manifest away first, then the rest."""
        mark = f"{backup.name}/{identity.hidden('unproven', PRUNED)}"
        now = self._marked(mark)
        files = self._listed(f"{backup.name}/").get(backup.name, {})
        readers = [each["last_modified"] for file, each in files.items() if file.startswith(READER)]
        if any(now - when < timedelta(seconds=READER_S) for when in readers):
            self._delete(mark)
            return False
        try:
            self._delete(f"{backup.name}/{manifests.MANIFEST}")
        except Refused as refused:
            if refused.why != "passing":  # else it may have been deleted
                self._keep(mark)
            raise
        self._clear(backup.name)
        return True

    def _keep(self, mark: str) -> None:
        """Take back that a backup is being removed, by a byte in the mark where it cannot go."""
        try:
            self._delete(mark)
        except OSError:
            with suppress(OSError):
                self._put(mark, KEPT)

    # what is read

    @contextmanager
    def open(self, name: str, file: str) -> Iterator[store.Stream]:
        """Read part by part what the store has, of one version of the object."""
        key = f"{name}/{file}"
        yield _Download(partial(self._got, key), self._head(key))

    @contextmanager
    def local(self, name: str, file: str) -> Iterator[Path]:
        """Download it to PREFLIGHT_SPOOL_DIR, a file or a folder; raises Refused without one."""
        if file == manifests.FOLDER:
            with self._local_folder(name) as path:
                yield path
            return
        directory = self._place_for(file, self._head(f"{name}/{file}")["size"])
        with ExitStack() as stack:
            with self._room(file):
                copy = stack.enter_context(spool.Spool(directory))
            with self.open(name, file) as stream:
                while part := reading_back.part(stream, PART_BYTES):
                    with self._room(file):
                        copy.write(part)
            with self._room(file):
                copy.flush()
            yield copy.path

    def _place_for(self, file: str, size: int) -> Path:
        if self._spool is None:
            raise Refused(
                "spool",
                f"there is no place for a copy of {file} on this machine: {size / 1e6:.1f} MB, "
                "which pg_restore reads in more than one place",
            )
        if why := spool.unusable(self._spool, size):
            raise Refused("spool", f"a copy of {file} has no room in {self._spool}: {why}")
        return self._spool

    @contextmanager
    def _local_folder(self, name: str) -> Iterator[Path]:
        """Download all files of a folder, several at a time."""
        files = {file: size or 0 for file, size in self.pieces(name, manifests.FOLDER).items()}
        size = sum(files.values())
        directory = self._place_for(manifests.FOLDER, size)
        with ExitStack() as stack:
            with self._room(manifests.FOLDER):
                copy = stack.enter_context(spool.Folder(directory))

            def fetch(lane: lanes.Lanes[None], file: str) -> None:
                with self.open(name, f"{WITHIN}{file}") as stream, ExitStack() as written:
                    with self._room(file):
                        into = written.enter_context((copy.path / file).open("xb"))
                    while part := stream.read(lanes.ASKED):
                        with self._room(file):
                            into.write(part)
                        lane.went(len(part))
                    with self._room(file):
                        into.flush()

            with lanes.Lanes(fetch) as fetching:
                for file, each in files.items():
                    fetching.add(file, each)
                fetching.finish(progress.Moving("backup.progressed", "download", size))
            yield copy.path

    @contextmanager
    def _room(self, file: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            said = f"a copy of {file} has no room in {self._spool}: {error.strerror}"
            raise Refused("spool", said) from error

    def stamp(self, name: str, file: str) -> object:
        """Return the object's version, or all of those in a folder."""
        if file == manifests.FOLDER:
            metas = self._listed(f"{name}/").get(name, {})
            return sorted(
                (each, meta["e_tag"] or "", meta["size"], meta["last_modified"])
                for each, meta in metas.items()
                if each.startswith(WITHIN)
            )
        meta = self._head(f"{name}/{file}")
        return (meta["e_tag"], meta["version"], meta["size"], meta["last_modified"])

    @contextmanager
    def reading(self, name: str) -> Iterator[Callable[[], None]]:
        """Put a mark beside it and renew it each minute; who may not write reads all the same."""
        mark = f"{name}/{READER}{os.urandom(6).hex()}"
        with suppress(Refused):
            self._put(mark, b"")
        try:
            self._require_kept(name, mark)
            with _regularly(lambda: self._put(mark, b"")):
                yield lambda: None
        finally:
            with suppress(OSError):
                self._delete(mark)

    def _require_kept(self, name: str, mark: str) -> None:
        """Make sure that nobody removes it: both look after they have put their marks.

        Who removes takes his mark away when he sees ours. One of a killed run counts as long as a
        reader's. Raises FileNotFoundError.
        """
        for waited in stop.looks(0.2, 0.5):
            files = self._listed(f"{name}/").get(name, {})
            dumps = (manifests.DUMP, f"{WITHIN}{manifests.TOC}")
            if not any(f"{dump}{end}" in files for dump in dumps for end in ("", manifests.SEALED)):
                raise FileNotFoundError(errno.ENOENT, "no such object", name)
            ours = files.get(mark.rpartition("/")[2])
            now = ours["last_modified"] if ours else datetime.now(UTC)
            young = timedelta(seconds=READER_S)
            if not any(
                file.startswith(".unproven-")
                and file.endswith(f"-{PRUNED}")
                and each["size"] == 0
                and now - each["last_modified"] < young
                for file, each in files.items()
            ):
                return
            if waited > AWAITED_S or manifests.MANIFEST not in files:
                raise FileNotFoundError(errno.ENOENT, "another run is removing it", name)


def _brief(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {key: meta[key] for key in ("size", "last_modified")}


def _pieces(files: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None]:
    """Return the sizes of those objects of a backup that are in its folder and not hidden."""
    hidden = f"{WITHIN}."
    return {
        file.removeprefix(WITHIN): meta["size"]
        for file, meta in files.items()
        if file.startswith(WITHIN) and not file.startswith(hidden)
    }


def _version(name: str, meta: Mapping[str, Any]) -> tuple[str, object]:
    """Return what is another when a manifest is."""
    return name, meta["e_tag"] or meta["last_modified"]


# streams


class _Download:
    """An object that is read from its beginning, in ranges."""

    def __init__(
        self, got: Callable[[Mapping[str, object]], bytes], meta: Mapping[str, Any]
    ) -> None:
        self.got, self.meta = got, meta
        self.at = 0

    def read(self, size: int, /) -> bytes:
        """Return the next part; raises Refused when the object was replaced meanwhile."""
        end = min(self.at + max(size, 1), self.meta["size"])
        if self.at >= end:
            return b""
        options: dict[str, object] = {"range": (self.at, end)}
        if self.meta["e_tag"]:
            options["if_match"] = self.meta["e_tag"]
        part = self.got(options)
        if not part:
            raise Refused("passing", "the store gave nothing")
        self.at += len(part)
        return part


class _GivenUp(Exception):
    """The source will not come to its end."""


class _Upload:
    """Takes the bytes of an object; a thread sends them."""

    def __init__(self, send: Callable[[Iterator[bytes]], None]) -> None:
        self._send = send
        self._chunks: queue.Queue[bytes | None] = queue.Queue(QUEUED)
        self._failed: BaseException | None = None
        self._given_up = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        threads.start(self._thread)

    def _work(self) -> None:
        try:
            self._send(self._source())
        except BaseException as error:  # noqa: BLE001 -- told to the writer
            self._failed = error

    def _source(self) -> Iterator[bytes]:
        while (chunk := self._chunks.get()) is not None:
            yield chunk
        if self._given_up:
            raise _GivenUp

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take the next part; waits while the store is slower; raises Refused."""
        self._give(bytes(data))
        return len(data)

    def _give(self, chunk: bytes | None) -> None:
        while self._thread.is_alive():
            with stop.allowed(), suppress(queue.Full):
                self._chunks.put(chunk, timeout=0.2)
                return
        raise self._failed or Refused("passing", "the upload ended too early")

    def finish(self) -> None:
        """Wait until the object is there; raises Refused."""
        if self._given_up:
            return
        self._give(None)
        while self._thread.is_alive():
            with stop.allowed():
                self._thread.join(0.2)
        if self._failed:
            raise self._failed

    def abandon(self) -> None:
        """Abort the upload, unless it is complete; the object is as it was."""
        if not self._thread.is_alive():
            return
        self._given_up = True
        with suppress(queue.Empty):
            while True:
                self._chunks.get_nowait()
        self._chunks.put(None)
        self._thread.join(GIVE_UP_S)


@contextmanager
def _regularly(renew: Callable[[], None]) -> Iterator[None]:
    """Renew a mark each minute while this lasts; a failure is for the next time."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(RENEW_S):
            with suppress(OSError):
                renew()

    threads.start(threading.Thread(target=work, daemon=True))
    try:
        yield
    finally:
        ended.set()


# what the stores say

OF_ONE = {"archived", "rights", "other"}  # refusals that may be of one object and no other
HINTS = {
    "library": "Take an image whose tag ends with -full, or install the extra `stores`.",
    "profile": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the job a role: web "
    "identity, container and instance credentials are found.",
    "credentials": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what the store's kind "
    "reads), or give the job a role. Profile files are not read.",
    "settings": "Correct what is named, or the variables that docs/backups.md has under *Buckets*. "
    "It was seen before anything was asked of the store.",
    "key": "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what the store's kind reads). "
    "Keys that come with AWS_SESSION_TOKEN hold for some hours only.",
    "rights": "The key needs to list, read, write and delete below the prefix: in S3's words "
    "ListBucket on the bucket, GetObject, PutObject, DeleteObject and AbortMultipartUpload below.",
    "bucket": "Make the bucket, or correct PREFLIGHT_BACKUP_DIR; none is made here.",
    "region": "Set AWS_REGION to the bucket's region.",
    "clock": "Set this machine's clock: the store refuses what is signed at another time.",
    "quota": "Free space or raise the quota; older backups were not touched.",
    "tls": "Does PREFLIGHT_BACKUP_ENDPOINT name the right host? An authority of your own is "
    "trusted where SSL_CERT_FILE (its certificate, PEM) or SSL_CERT_DIR names it.",
    "authority": "No server may show one here, whatever SSL_CERT_FILE says. Give it one that an "
    "authority has signed, or make its own with CA:FALSE (`openssl req -x509 -addext "
    "basicConstraints=critical,CA:FALSE`).",
    "authorities": "SSL_CERT_FILE (certificates, PEM) or SSL_CERT_DIR names what holds none or "
    "cannot be read; without both it is the system's that are missing (ca-certificates).",
    "archived": "Bring it back first: restore it from the archive's tier into one that is read.",
    "path": "It is none of ours: rename or delete it. `restore NAME` does without.",
    "spool": spool.HINT,
}
SAID = {
    "bucket": "there is no such bucket",
    "region": "the bucket is in another region",
    "clock": "this machine's clock and the store's differ too much",
    "quota": "the store is full",
    "credentials": "no credentials were found",
    "settings": "its credentials or other variables of its kind cannot be used",
    "key": "the store does not accept the key",
    "tls": "its certificate is not trusted",
    "authority": "its certificate is an authority's own (CA:TRUE)",
    "authorities": "there is no certificate of an authority to trust",
    "archived": "it is archived",
    "path": 'there is an object whose name cannot be read: "{}"',
    "exists": "somebody else has written there",
    "changed": "the object was replaced while it was read",
    "unsupported": "the store does not know how to do that",
}
UNUSABLE = {  # the library's words, before it has asked anybody; what follows may hold a secret
    "Account must be specified": "AZURE_STORAGE_ACCOUNT_NAME is not set",
    "Invalid Access Key": "AZURE_STORAGE_ACCOUNT_KEY is no key: not base64",
    "SAS ": "AZURE_STORAGE_SAS_TOKEN is no whole token",
    "Unable to open service account file": "the file of GOOGLE_APPLICATION_CREDENTIALS cannot be "
    "read",
    "Unable to decode service account file": "the file of GOOGLE_APPLICATION_CREDENTIALS is not "
    "what it should be",
    "pem file": "the file of GOOGLE_APPLICATION_CREDENTIALS holds no private key",
    "Missing AccessKeyId": "AWS_ACCESS_KEY_ID is not set, and AWS_SECRET_ACCESS_KEY is",
    "Missing SecretAccessKey": "AWS_SECRET_ACCESS_KEY is not set, and AWS_ACCESS_KEY_ID is",
    "Failed to read token file": "the file of AWS_WEB_IDENTITY_TOKEN_FILE cannot be read",
}
SILENT = {  # the library's words for what came in the place of an answer
    "ConnectionRefused": "the connection was refused",
    "dns error": "no address is known for its name",
    "InvalidContentType": "what answers speaks no TLS (https://)",
    "TimedOut": "nothing came in time",
    "NetworkUnreachable": "there is no way to its network",
    "HostUnreachable": "there is no way to it",
}
CODES = {
    "NoSuchBucket": "bucket",
    "ContainerNotFound": "bucket",
    "RequestTimeTooSkewed": "clock",
    "RequestExpired": "clock",
    "AuthorizationHeaderMalformed": "region",
    "PermanentRedirect": "region",
    "InvalidObjectState": "archived",
    "BlobArchived": "archived",
    "QuotaExceeded": "quota",
    "InsufficientStorage": "quota",
    "XMinioStorageFull": "quota",
    "XMinioAdminBucketQuotaExceeded": "quota",
    "AccountIsDisabled": "rights",
    "InvalidAccessKeyId": "key",
    "SignatureDoesNotMatch": "key",
    "InvalidToken": "key",
    "ExpiredToken": "key",
    "AuthenticationFailed": "key",
    "NotImplemented": "unsupported",
    "RequestTimeout": "passing",  # a 400 of S3: we were too slow
    "OperationAborted": "passing",
    "ConditionalRequestConflict": "passing",
    "NoSuchUpload": "passing",  # the store was started anew, or a rule ended it
}
STATUSES = {301: "region", 307: "region", 401: "key", 403: "rights", 412: "changed"}
STATUSES |= {429: "passing", 501: "unsupported", 507: "quota"}
_NOT_FOUND, _SERVERS_OWN = 404, 500
_URL = re.compile(r"https?://\S+")
_KEYS_FROM = re.compile(r"//(169\.254\.|metadata(\.google\.internal)?[:/])")  # a cloud's machines
_ASKED = re.compile(r"Error performing|HTTP error|request|response|headers", re.IGNORECASE)
_PATH = re.compile(r"\S*/\S*")
_SIGNED_WITH = re.compile(r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|(DEFAULT_)?REGION)")
_SIGNABLE, _WORD = re.compile(r"[ -~]*"), re.compile(r"[!-~]*")
_BUCKET = re.compile(
    r"(?<![-\w./])bucket(?![-\w/])", re.IGNORECASE
)  # the word, and no name or path


@contextmanager
def asked() -> Iterator[None]:
    """Turn what the library raises into an OSError that says what is true, and no secret."""
    try:
        yield
    except (OSError, _GivenUp):
        if (found := _of_file_not_found()) is not None:
            raise found from None
        raise
    except BaseException as error:
        if type(error).__module__.startswith("pyo3"):  # no Exception: a header that cannot be
            raise Refused("settings", f"the library gave up: {SAID['settings']}") from None
        if not type(error).__module__.startswith("obstore"):
            raise
        raise _refusal(type(error).__name__, str(error)) from None


def _broken(environment: Mapping[str, str]) -> str:
    """Return what a request is signed with and cannot be: a file's last line end, perhaps."""
    signed = {name: value for name, value in environment.items() if _SIGNED_WITH.fullmatch(name)}
    fit = {name: _WORD if name.endswith("REGION") else _SIGNABLE for name in signed}
    return ", ".join(name for name, value in signed.items() if not fit[name].fullmatch(value))


def _of_file_not_found() -> OSError | None:
    """Return what is missing where the library says that an object is: it may be the bucket."""
    import sys  # noqa: PLC0415 -- the error under way

    error = sys.exc_info()[1]
    if type(error) is not FileNotFoundError or error.errno is not None:
        return None
    found = _refusal("NotFound", str(error))
    known = found.why == "bucket" or "NoSuchUpload" in str(found.strerror)
    return found if known else FileNotFoundError(errno.ENOENT, "no such object")


def _refusal(kind: str, text: str) -> Refused:
    """Judge an answer by its code, its status, or that there was none; never by the URL's words."""
    text, _, cause = text.partition("\nDebug source")
    code = re.search(r"<Code>(\w+)</Code>|\"code\": ?\"(\w+)\"", text)
    status = re.search(r"status code: (\d{3})", text)
    number = int(status[1]) if status else 0
    name = next(filter(None, code.groups()), "") if code else ""
    why = CODES.get(name) or STATUSES.get(number, "")
    if status and not name and number == _NOT_FOUND and _BUCKET.search(text, status.end()):
        why = "bucket"
    if kind == "AlreadyExistsError" and why != "passing":
        why = "exists"
    elif kind == "NotSupportedError":
        why = "unsupported"
    elif kind == "InvalidPathError":
        key = re.search(r'path: "((?:[^"\\]|\\.)*)"', cause)
        return Refused("path", SAID["path"].format(key[1] if key else "?"))
    elif not number:
        why = _without_answer(kind, text, cause)
    elif not why and number >= _SERVERS_OWN:
        why = "passing"
    elif why != "passing" and _KEYS_FROM.search(text):  # nobody gave it a key to be refused
        why = "credentials"
    numbered = " ".join(filter(None, (name, str(number or ""))))
    said = SAID.get(why) or ("the store refused it" if number else _silence(cause))
    if why == "settings":
        said = next((said for words, said in UNUSABLE.items() if words in text), said)
    return Refused(why or "other", f"{said} ({numbered})" if numbered else said)


def _silence(cause: str) -> str:
    """Return that nobody answered, and why where the library knows."""
    found = next((said for words, said in SILENT.items() if words in cause), None)
    return f"the store did not answer: {found}" if found else "the store did not answer"


def _without_answer(kind: str, text: str, cause: str) -> str:
    """Say why nobody answered; what is wrong with a certificate stands in the cause alone.

    What speaks of no request was found before there was one, and will be found again.
    """
    if _KEYS_FROM.search(text) or "credential" in _URL.sub("", text.lower()):  # nobody at home
        return "credentials"
    if "redirect without LOCATION" in text:
        return "region"
    cause = _URL.sub("", cause)
    if kind in {"GenericError", "UnknownConfigurationKeyError"} and not _ASKED.search(
        _PATH.sub("", text)
    ):
        return "authorities" if "No CA certificates were loaded" in cause else "settings"
    if "InvalidCertificate(" not in cause:
        return "passing"
    return "authority" if "CaUsedAsEndEntity" in cause else "tls"
