"""What every store of backups promises, asked of the directory and of one that is none."""

import dataclasses
import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import pytest
import structlog

from preflight.backup import (
    clients,
    directory,
    folder,
    lanes,
    manifests,
    objects,
    reading_back,
    restore,
    retention,
    sealing,
    snapshots,
    spool,
    store,
    take,
)
from preflight.backup.directory import Directory
from preflight.backup.manifests import Backup, Identity, Manifest
from preflight.base import config, stop
from preflight.base.errors import BackupDamaged, BackupUnverified, ConfigInvalid
from preflight.server import packed
from tests import flat

ME = Identity("1", "app", "x:1")
MANIFEST = Manifest(4, sha256="s", run_id="r", database="app", system_identifier="1", address="x:1")
KINDS: dict[str, Callable[[Path], store.Store]] = {"directory": Directory, "flat": flat.Flat}


@pytest.fixture(params=KINDS)
def backups(request: pytest.FixtureRequest, tmp_path: Path) -> store.Store:
    """Return an empty store."""
    place = tmp_path / "backups"
    place.mkdir()
    return KINDS[request.param](place)


def put(backups: store.Store, name: str, file: str, data: bytes) -> None:
    """Write a file."""
    with backups.sink(name, file) as sink:
        sink.write(data)


def took(backups: store.Store, run: str = "r") -> Backup:
    """Publish a backup with a dump of four bytes."""
    with backups.draft(ME, run, 0) as draft:
        put(backups, draft, manifests.DUMP, b"dump")
        return backups.publish(draft, ME, dataclasses.replace(MANIFEST, run_id=run))


def test_file_of_a_draft_may_be_written_again(backups: store.Store) -> None:
    """A dump that was changed meanwhile is made once more: the second one counts."""
    with backups.draft(ME, "r", 0) as draft:
        put(backups, draft, manifests.DUMP, b"a longer one")
        put(backups, draft, manifests.DUMP, b"dump")
        made = backups.publish(draft, ME, MANIFEST)

    with backups.open(made.name, manifests.DUMP) as stream:
        assert b"dump" == stream.read(99)


def test_draft_is_read_as_a_backup_is_and_seen_by_nobody(backups: store.Store) -> None:
    """It is hashed and restored before it is published, and gone when it never is."""
    with backups.draft(ME, "r", 0) as draft:
        put(backups, draft, manifests.DUMP, b"dump")
        with backups.local(draft, manifests.DUMP) as path:
            assert b"dump" == path.read_bytes()
        assert 4 == reading_back.hashed(backups, draft).size_bytes
        assert [manifests.DUMP] == backups.files(draft)
        assert [] == backups.listing()

    with pytest.raises(OSError, match=r"No such|no such"):
        backups.stamp(draft, manifests.DUMP)


def test_published_backup_is_listed_and_read(backups: store.Store) -> None:
    """With the next number in its manifest, and all that it said."""
    first, second = took(backups, "a"), took(backups, "b")

    assert [first, second] == backups.listing()
    assert [1, 2] == [each.manifest.sequence for each in (first, second)]
    assert second == backups.read(second.name)
    assert [manifests.DUMP, manifests.MANIFEST] == backups.files(second.name)
    assert store.lost(backups, second) is None


def test_what_is_not_there_and_what_is_none_are_told_apart(backups: store.Store) -> None:
    """A name that nothing has is a typing error; one whose manifest is broken is a damage."""
    broken = took(backups)
    put(backups, broken.name, manifests.MANIFEST, b"{")

    with pytest.raises(FileNotFoundError):
        backups.read("nobody")
    with pytest.raises(manifests.Unreadable) as why:
        backups.read(broken.name)
    assert str(why.value) == store.lost(backups, broken)


class Broken(Exception):
    """The source of a file failed."""


def fail(backups: store.Store, name: str, file: str) -> None:
    """Write half of a file."""
    with backups.sink(name, file) as sink:
        sink.write(b"half")
        raise Broken


@pytest.mark.parametrize("published", [False, True])
def test_file_whose_source_fails_is_as_it_was(backups: store.Store, *, published: bool) -> None:
    """Half of a file is never there, neither in a draft nor in a backup."""
    with backups.draft(ME, "r", 0) as draft:
        name = took(backups, "other").name if published else draft
        if published:
            put(backups, name, "export-a-1.csv", b"before")
        with pytest.raises(Broken):
            fail(backups, name, "export-a-1.csv")
        there = [each for each in backups.files(name) if each.startswith("export")]

        assert there == (["export-a-1.csv"] if published else [])
        if published:
            assert b"before" == store.small(backups, name, "export-a-1.csv")
        put(backups, draft, manifests.DUMP, b"once more")  # as another attempt does


def test_file_that_is_given_up_is_as_it_was(backups: store.Store) -> None:
    """Its writer found that it says nothing new."""
    name = took(backups).name
    put(backups, name, "export-a-1.csv", b"before")
    with backups.sink(name, "export-a-1.csv") as sink:
        sink.write(b"again")
        sink.abandon()

    assert b"before" == store.small(backups, name, "export-a-1.csv")


def test_better_manifest_takes_the_place_of_the_other(backups: store.Store) -> None:
    """The number and the name stay."""
    backup = took(backups)
    better = backups.improve(backup, dataclasses.replace(backup.manifest, verified="restored"))

    assert [better] == backups.listing()
    assert ("restored", backup.name) == (better.manifest.verified, better.name)


def test_withdrawn_backup_is_none(backups: store.Store) -> None:
    """And that it is gone already is no failure."""
    backup = took(backups)
    backups.withdraw(backup, ME)
    backups.withdraw(backup, ME)

    assert [] == backups.listing()


def test_backup_that_is_read_is_not_removed(backups: store.Store) -> None:
    """Once nobody reads it any more it is."""
    backup = took(backups)
    with backups.reading(backup.name) as renew:
        renew()
        refused = backups.remove(backup, ME)
    removed = backups.remove(backup, ME)

    assert (False, True) == (refused, removed)
    assert [] == backups.listing()


def test_nobody_begins_to_read_what_is_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look whether anybody reads it and its new name nobody gets in."""
    monkeypatch.setattr(directory, "AWAITED_S", -1.0)
    backups = Directory(tmp_path)
    backup = took(backups)
    rename, met = Path.rename, []

    def between(path: Path, to: Path) -> Path:
        if path.name == backup.name:
            with pytest.raises(OSError, match="another run") as met_it, backups.reading(path.name):
                pass
            met.append(met_it.value)
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", between)
    removed = backups.remove(backup, ME)

    assert (True, 1) == (removed, len(met))


def test_reader_of_nothing_is_told(backups: store.Store) -> None:
    """It may have been removed a moment ago."""
    with pytest.raises(OSError, match=r"No such|no such"), backups.reading("nobody"):
        pass


def test_stamp_tells_that_somebody_wrote(backups: store.Store) -> None:
    """Then the hash is read again."""
    name = took(backups).name
    before = backups.stamp(name, manifests.DUMP)
    unchanged = backups.stamp(name, manifests.DUMP)
    put(backups, name, manifests.DUMP, b"other")

    assert before == unchanged
    assert before != backups.stamp(name, manifests.DUMP)


@pytest.mark.parametrize("name", ["nobody", "", ".", "x" * 300])
def test_name_that_no_backup_has_is_a_wrong_argument(backups: store.Store, name: str) -> None:
    """Also one that no file can have."""
    took(backups)

    with pytest.raises((ConfigInvalid, BackupUnverified)) as raised:
        restore.find(restore._sought(backups, name), name, backups.place, "app")  # noqa: SLF001
    assert raised.value.code in {"config.arguments", "backup.corrupt"}


class Elsewhere(Directory):
    """A directory of which each file is a download away."""

    remote = True


@pytest.mark.parametrize(
    ("kind", "what"), [(Directory, "the disk"), (Elsewhere, "what else writes to the bucket")]
)
def test_damage_is_looked_for_where_the_backup_is(
    kind: type[Directory], what: str, tmp_path: Path
) -> None:
    """There is no disk to check where it lies in a bucket."""
    backups = kind(tmp_path)
    broken = took(backups)
    put(backups, broken.name, manifests.MANIFEST, b"{")
    with pytest.raises(BackupUnverified) as raised:
        restore._sought(backups, broken.name)  # noqa: SLF001

    hint = f"Use another backup (`backups --table`) and check {what}."
    assert hint == raised.value.problem.hint


def test_oldest_go_and_those_with_exports_stay(backups: store.Store) -> None:
    """Retention knows the verbs alone."""
    made = [took(backups, each) for each in "abcd"]
    put(backups, made[0].name, "export-a-1.csv", b"precious")
    with structlog.testing.capture_logs() as said:
        retention.prune(backups, ME, 2)

    assert [made[0], made[2], made[3]] == backups.listing()
    assert ["backup.pruned"] == [each["event"] for each in said]


# --- a plain dump, meanwhile


def test_spool_has_no_name_and_where_it_needs_one_a_kill_is_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc others find it by its name; what nobody holds any more goes with the next."""
    with spool.Spool(tmp_path) as copy:
        assert [] == list(tmp_path.iterdir())
        copy.write(b"rows")
        copy.flush()
        assert b"rows" == copy.path.read_bytes()
    monkeypatch.setattr(spool, "DESCRIPTORS", "/nowhere")
    monkeypatch.setattr(spool, "YOUNG_S", -1.0)
    left = tmp_path / f"{spool.PREFIX}left"
    left.write_bytes(b"rows")
    with spool.Spool(tmp_path) as copy, spool.Spool(tmp_path) as other:
        assert sorted([copy.path, other.path]) == sorted(tmp_path.iterdir())
        copy.write(b"rows")
        copy.flush()
        assert b"rows" == copy.path.read_bytes()

    assert [] == list(tmp_path.iterdir())


def test_folder_of_a_spool_is_swept_when_nobody_holds_it(tmp_path: Path) -> None:
    """What a machine that went down left goes with the next one; a living run's stays."""
    left, young = (tmp_path / f"{spool.FOLDER}{name}" for name in ("left", "young"))
    for each in (left, young):
        each.mkdir()
        (each / "1.dat").touch()
    os.utime(left, (0, 0))
    with spool.Folder(tmp_path) as held:
        os.utime(held.path, (0, 0))
        with spool.Folder(tmp_path) as other:
            there = set(tmp_path.iterdir())

    assert {held.path, other.path, young} == there
    assert {young} == set(tmp_path.iterdir())


def test_room_for_a_copy_is_looked_at_before_a_byte_is_written(tmp_path: Path) -> None:
    """Of a bucket's dump and of a sealed one; a place that is not there is told alike."""
    where = objects.address("s3://bucket/prefix")
    free, gone = (objects.Objects(where, {}, path) for path in (tmp_path, tmp_path / "gone"))
    seal = spooling(tmp_path)
    seal.expect(1 << 60)
    seal._begin_spool()  # noqa: SLF001

    assert seal.spooled is None
    assert "are needed" in seal.unspooled
    assert free.unspooled(1) is None
    assert "are free" in str(free.unspooled(1 << 60))
    assert "No such" in str(gone.unspooled(1))


def spooling(place: Path) -> sealing.Seal:
    """Return what keeps a plain dump there."""
    environ = {"PGDATABASE": "x", "PREFLIGHT_SPOOL_DIR": str(place)}
    return sealing.Seal(config.Config.from_env(environ, place, "r"))


def test_plain_dump_goes_with_what_was_done_with_it(tmp_path: Path) -> None:
    """Whether it went well or not: rows that are sealed elsewhere do not lie about here."""
    backups = Directory(tmp_path)
    backup = took(backups)
    seal = spooling(tmp_path)
    saved = take.Taken(backups, backup, ME, snapshots.Witness(packed.Packed(()), {}), None, seal)
    seal._begin_spool()  # noqa: SLF001
    assert seal.spooled
    with pytest.raises(Broken), take.kept(saved):
        raise Broken

    assert seal.spooled is None


def test_count_that_fails_does_not_leave_the_client_standing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would wait for somebody to read what it writes, and we for it: for ever."""

    def fail(*_: object) -> None:
        raise Broken

    monkeypatch.setattr(reading_back.RowCounter, "feed", fail)
    read, write = os.pipe()
    heard, said = os.pipe()
    with (
        os.fdopen(read, "rb") as output,
        os.fdopen(write, "wb", buffering=0) as client,
        os.fdopen(said, "wb") as fed,
    ):
        passing = reading_back.Passing(fed, output, lambda rows: rows.rows)
        passing.write(b"dump")
        writing = threading.Thread(target=client.write, args=(bytes(4 << 20),), daemon=True)
        writing.start()
        writing.join(30)
        assert not writing.is_alive()
        client.close()
        with pytest.raises(Broken):
            passing.finish("digest")
    os.close(heard)


# --- a dump that is a folder ----------------------------------------------------------------------


def grown(place: Path) -> folder.Growing:
    """Write three files as a client does, bit by bit; return who looked on."""
    growing = folder.Growing(place)
    for part in (b"one", b"two" * 1_000_000, b""):
        for file in ("toc.dat", "1.dat.gz", "blob_7.dat"):
            with (place / file).open("ab") as out:
                out.write(part)
        growing.look()
    return growing


def test_what_a_client_appends_is_hashed_as_it_comes(tmp_path: Path) -> None:
    """In as many looks as there may be: the hash is that of the whole."""
    pieces = grown(tmp_path).pieces

    for file, piece in pieces.items():
        data = (tmp_path / file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (piece.size_bytes, piece.sha256)
    assert {"toc.dat", "1.dat.gz", "blob_7.dat"} == pieces.keys()


@pytest.mark.parametrize("change", ["flip", "cut", "lose", "add"])
def test_folder_that_changes_after_it_was_written_is_damaged(tmp_path: Path, change: str) -> None:
    """Before a client reads it: compression may not notice a flipped bit."""
    backups, programs = Directory(tmp_path), clients.Clients("", "", "")
    with backups.draft(ME, "r", 0) as draft:
        with backups.folder(draft, manifests.FOLDER) as place:
            pieces = grown(place).pieces
        file = place / "1.dat.gz"
        data = file.read_bytes()
        if change == "add":
            (place / "2.dat.gz").touch()
        elif change == "lose":
            file.unlink()
        else:
            file.write_bytes(data[:-1] + (b"?" if change == "flip" else b""))
        written = clients.Written(manifests.combined(pieces), [], pieces)

        with pytest.raises(BackupDamaged, match="1 files differ"):
            folder.require_whole(backups, draft, None, written, programs, {}, {}, {}, 2)


def folded(backups: Directory) -> Backup:
    """Publish a backup whose dump is a folder."""
    with backups.draft(ME, "r", 0) as draft:
        with backups.folder(draft, manifests.FOLDER) as place:
            pieces = grown(place).pieces
        manifest = dataclasses.replace(
            MANIFEST,
            file=manifests.FOLDER,
            files=pieces,
            sha256=manifests.combined(pieces),
            size_bytes=sum(each.size_bytes for each in pieces.values()),
        )
        seen = backups.stamp(draft, manifests.FOLDER)
        made = backups.publish(draft, ME, manifest)
    assert seen == backups.stamp(made.name, manifests.FOLDER)  # nothing is read again for a name
    return made


def test_folder_that_is_touched_is_known_by_its_stamp(tmp_path: Path) -> None:
    """One file more, or one that was written to."""
    backups = Directory(tmp_path)
    made = folded(backups)
    seen = backups.stamp(made.name, manifests.FOLDER)
    place = tmp_path / made.name / manifests.FOLDER
    (place / "1.dat.gz").write_bytes(b"x" * (place / "1.dat.gz").stat().st_size)
    touched = backups.stamp(made.name, manifests.FOLDER)
    (place / "2.dat.gz").touch()

    assert seen != touched
    assert touched != backups.stamp(made.name, manifests.FOLDER)


def test_folder_that_is_read_stays(tmp_path: Path) -> None:
    """A lock on the one file that every folder has."""
    backups = Directory(tmp_path)
    made = folded(backups)
    with backups.reading(made.name):
        for mark in (tmp_path / made.name).glob(".reader-*"):
            mark.unlink()  # so that the lock alone tells
        assert not backups.remove(made, ME)
    assert backups.remove(made, ME)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": 1},
        {"format": 3},
        {"files": {}},
        {"files": None},
        {"files": {"../../x": {"size_bytes": 1, "sha256": "s"}}},
        {"files": {"toc.dat": {"size_bytes": 1}}},
        {"sha256": "s"},
        {"size_bytes": 1},
        {"sealed_sha256": "s"},
    ],
)
def test_manifest_of_a_folder_that_contradicts_itself_is_none(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    """Nobody trusts a manifest: its files are what it says of all of them, and have plain names."""
    said = folded(Directory(tmp_path)).manifest.data()

    assert said == manifests.parsed(said).data()
    with pytest.raises(manifests.Unreadable):
        manifests.parsed(said | wrong)


def test_stop_is_heard_while_files_under_way_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow file is given up; a stop that comes then does not wait for its end."""
    monkeypatch.setattr(stop, "_requested", None)
    monkeypatch.setattr(lanes, "STOPPED_S", 0.1)
    ended, let_go = threading.Event(), threading.Event()

    def work(lane: lanes.Lanes[None], _: str) -> None:
        with pytest.raises(lanes.GivenUp):
            deque(map(lane.went, repeat(1)), maxlen=0)
        monkeypatch.setattr(stop, "_requested", 15)  # only when it is waited for
        let_go.wait(8)
        ended.set()

    with lanes.Lanes(work) as lane:
        lane.add("slow", 1)
        lane.__exit__()

        assert not ended.is_set()
        let_go.set()


# --- what a bucket's library says -----------------------------------------------------------------

ANSWERED = (
    "Object at location p/a/x not found: Error performing {} http://h:1/my-bucket/credentials/a/x "
    "in 4.7ms - Server returned non-2xx status code: 404 Not Found: {}\n\nDebug source:\nNotFound "
    "{{ uri: Some(http://h:1/my-bucket/credentials/a/x) }}"
)
MINIO = (
    "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message>"
    "<Key>p/a/x</Key><BucketName>my-bucket</BucketName></Error>"
)
MISSING = {
    "HEAD": "",
    "GET": MINIO,
    "PUT": "<html>Cannot find /my-bucket/p/a/x at http://bucket/</html>",
    "POST": "<Error><Code>BlobNotFound</Code><Message>no bucket has it</Message></Error>",
}


@pytest.mark.parametrize("verb", MISSING)
def test_object_that_is_missing_is_no_missing_bucket(verb: str) -> None:
    """Whatever the bucket is called, and although the answer names it."""
    with pytest.raises(FileNotFoundError) as raised, objects.asked():
        raise FileNotFoundError(ANSWERED.format(verb, MISSING[verb]))

    assert errno.ENOENT == raised.value.errno


@pytest.mark.parametrize(
    "said",
    [
        "<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>",
        "<Error><Code>ContainerNotFound</Code></Error>",
        "The specified bucket does not exist.",
    ],
)
def test_bucket_that_is_missing_is_told(said: str) -> None:
    """By the code, or in words where there is none."""
    with pytest.raises(objects.Refused) as raised, objects.asked():
        raise FileNotFoundError(ANSWERED.format("GET", said))

    assert "bucket" == raised.value.why


UNANSWERED = (
    "Generic S3 error: Error performing list request: Error performing GET {0} in 102.06ms, "
    "after 1 retries, max_retries: 1, retry_timeout: 2s  - HTTP error: error sending request\n\n"
    'Debug source:\nGeneric {{ store: "S3", uri: Some(\n    {0},\n), kind: Connect, error: {1} }}'
)
PLACED = "https://h:1/my-bucket?list-type=2&prefix={}%2F"
SILENCES = {
    (PLACED.format("certificates"), "ConnectError"): "passing",
    (PLACED.format("credentials-db"), "ConnectError"): "passing",
    ("http://metadata-store:9000/my-bucket/p/a/x", "ConnectError"): "passing",
    (PLACED.format("tls"), "InvalidMessage(InvalidContentType)"): "passing",
    (PLACED.format("p"), "InvalidCertificate(\n    UnknownIssuer,\n)"): "tls",
    (PLACED.format("p"), "InvalidCertificate(\n    Other(CaUsedAsEndEntity),\n)"): "authority",
    ("http://169.254.169.254/latest/api/token", "ConnectError"): "credentials",
    ("http://metadata.google.internal/computeMetadata/v1", "ConnectError"): "credentials",
}


@pytest.mark.parametrize(("asked", "expected"), SILENCES.items())
def test_store_that_does_not_answer_is_not_judged_by_a_name(
    asked: tuple[str, str], expected: str
) -> None:
    """A prefix may be called as what goes wrong; a certificate that is not trusted is told."""
    found = objects._refusal("GenericError", UNANSWERED.format(*asked))  # noqa: SLF001

    assert expected == found.why


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("403 Forbidden", "credentials"),
        ("404 Not Found", "credentials"),
        ("500 Internal Server Error", "passing"),
        ("429 Too Many Requests", "passing"),
    ],
)
def test_machine_that_has_no_role_has_no_credentials(status: str, expected: str) -> None:
    """It is no right that a key lacks, and no object."""
    said = (
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1.5ms "
        f"- Server returned non-2xx status code: {status}: none"
    )
    found = objects._refusal("GenericError", said)  # noqa: SLF001

    assert expected == found.why
