"""Dumps of large databases: folders that several sessions write; the threshold is nothing here."""

import hashlib
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg.sql import SQL, Identifier

from preflight.backup import manifests, objects
from preflight.backup.directory import Directory
from tests import buckets, faults, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations
from tests.fakes import Fakes, contents, manifest, only

if TYPE_CHECKING:
    from preflight.backup.store import Store

FILLED = """
CREATE SCHEMA "o'd d";
CREATE TABLE a (id int PRIMARY KEY, t text);
INSERT INTO a SELECT n, md5(n::text) FROM generate_series(1, 3000) n;
CREATE TABLE "o'd d"."b.""c" (id int REFERENCES a);
INSERT INTO "o'd d"."b.""c" SELECT n FROM generate_series(1, 500) n;
CREATE TABLE parted (id int, t text) PARTITION BY HASH (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parted SELECT n, 'x' FROM generate_series(1, 100) n;
CREATE TABLE none (id serial);
CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM a;
SELECT lo_from_bytea(0, decode('00ff0a5c2e0a', 'hex')), lo_from_bytea(0, repeat('x', 9999)::bytea);
"""
ROWS = 3600
NOISE = """CREATE TABLE noise AS SELECT (SELECT string_agg(sha512((n * 100 + i)::text::bytea), '')
FROM generate_series(1, 80) i) AS raw FROM generate_series(1, 3000) n"""


@pytest.fixture(autouse=True)
def large(environment: dict[str, str], migrations: WriteMigrations) -> None:
    """Take every database for a large one, and have a migration to apply."""
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    environment["PREFLIGHT_REHEARSE"] = "off"
    environment["PREFLIGHT_PARALLEL_MB"] = "0"
    environment["PREFLIGHT_JOBS"] = "2"


@pytest.fixture
def filled(database: servers.Database) -> Iterator[servers.Database]:
    """Give a database with rows; what is restored beside it is dropped with it."""
    database.script(FILLED)
    yield database
    with database.server.connect() as connection:
        name = Identifier(f"{database.name}_back")
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


def listed(run: Run) -> list[str]:
    """Return the names of the backups that are shown."""
    return [each["backup"] for each in run("backups", "--json").json()["backups"]]


def test_large_database_is_dumped_into_a_folder_proven_and_restored(
    run: Run, filled: servers.Database, backup_dir: Path, tmp_path: Path
) -> None:
    """Each file has its hash in the manifest; proof and `restore` take the folder, or a copy."""
    result = run(env={"PREFLIGHT_REHEARSE": "always"})
    backup = only(backup_dir)
    said = manifest(backup)
    files = {each.name: each.read_bytes() for each in (backup / "database.dir").iterdir()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(files))
    copied = shutil.copytree(backup, tmp_path / "copied" / backup.name)
    restored = run("restore", str(copied), "--into", f"{filled.name}_back")

    assert 0 == result.code, str(result)
    assert [("folder", 2)] == [(e["form"], e["jobs"]) for e in result.event("backup.started")]
    assert [("folder", ROWS)] == [(e["form"], e["rows"]) for e in result.event("backup.verified")]
    assert {"restored"} == {said["verified"]}
    assert {"database.dir", "manifest.json"} == {each.name for each in backup.iterdir()}
    assert {n: (len(d), hashes[n]) for n, d in files.items()} == {
        name: (each["size_bytes"], each["sha256"]) for name, each in said["files"].items()
    }
    assert (2, hashlib.sha256(lines.encode()).hexdigest(), sum(map(len, files.values()))) == (
        said["format"],  # no older version takes it for one of its own
        said["sha256"],
        said["size_bytes"],
    )
    assert {0o600} == {each.stat().st_mode & 0o777 for each in (backup / "database.dir").iterdir()}
    assert 0 == restored.code, str(restored)
    with filled.server.connect(f"{filled.name}_back") as back:
        large = "SELECT md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1"
        assert filled.query(large) == [each for (each,) in back.execute(large)]


def test_every_version_dumps_into_a_folder(
    any_server: servers.Server, create_database: CreateDatabase, run: Run
) -> None:
    """Their archives differ; what is read back is the same."""
    database = create_database(any_server)
    database.script(FILLED)
    result = run("backup", env=database.env())

    assert 0 == result.code, str(result)
    assert [("folder", ROWS)] == [(e["form"], e["rows"]) for e in result.event("backup.verified")]


def truncate(folder: Path) -> None:
    """Cut the largest file."""
    file = max(folder.iterdir(), key=lambda each: each.stat().st_size)
    os.truncate(file, file.stat().st_size - 1)


def flip(folder: Path) -> None:
    """Change a byte in the middle of the largest file."""
    file = max(folder.iterdir(), key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose(folder: Path) -> None:
    """Remove the file of a table."""
    max(folder.glob("*.dat.*"), key=lambda each: each.stat().st_size).unlink()


def add(folder: Path) -> None:
    """Put something there."""
    (folder / "1.dat.gz").write_bytes(b"")


def link(folder: Path) -> None:
    """Put the folder elsewhere, and a link in its place."""
    folder.rename(folder.parent.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent.parent / "elsewhere")


@pytest.mark.usefixtures("filled")
def test_folder_that_is_not_as_it_was_is_no_backup(run: Run, backup_dir: Path) -> None:
    """A truncated file, a missing one, one more, a link: it is not listed, and is said why."""
    taken = run("backup")
    whole = only(backup_dir)
    said = {}
    for damage in (truncate, lose, add, link):
        backup = Path(shutil.copytree(whole, backup_dir / damage.__name__))
        damage(backup / "database.dir")
        with pytest.raises(manifests.Unreadable, match=manifests.FOLDER) as why:
            Directory(backup_dir).read(backup.name)
        said[damage.__name__] = str(why.value)
    shown = listed(run)
    restored = run("restore", "lose", "--into", "nothing")

    assert 0 == taken.code, str(taken)
    assert [whole.name] == shown
    assert "is no file of" in said["truncate"]
    assert "is not there" in said["lose"]
    assert "1.dat.gz is none of it" in said["add"]
    assert restored.code in {20, 24}, str(restored)
    assert said["lose"] in restored.finished["error"]["message"]


def test_flipped_byte_in_a_folder_is_found_before_it_is_restored(
    run: Run, filled: servers.Database, backup_dir: Path
) -> None:
    """Compression may not notice, the hash does."""
    run("backup")
    backup = only(backup_dir)
    flip(backup / "database.dir")
    result = run("restore", backup.name, "--into", f"{filled.name}_back")

    assert (24, "backup.corrupt") == (result.code, result.finished["error"]["code"]), str(result)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "damage",
    [
        'f=$(ls -S "$d"/*.dat.* | head -1); head -c 100 "$f" > "$f.x"; mv "$f.x" "$f"',
        'head -c 1000 "$d/toc.dat" > "$d/t"; mv "$d/t" "$d/toc.dat"',
    ],
)
def test_what_does_not_read_back_whole_is_no_backup(
    run: Run, fakes: Fakes, backup_dir: Path, damage: str
) -> None:
    """A client that says all is well, and a file that is cut or not there: 24, nothing is left."""
    find = 'for a; do case "$a" in --file=*) d=${a#--file=};; esac; done'
    result = run(env={"PATH": fakes.write(f'"$REAL" "$@" || exit\n{find}\n{damage}')})

    assert 24 == result.code, str(result)
    assert {} == contents(backup_dir)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stop_in_the_middle_leaves_no_client_and_no_backup(
    start: Start, run: Run, fakes: Fakes, backup_dir: Path, how: signal.Signals
) -> None:
    """pg_dump writes nothing to us, and so would not notice our end: it is ended with us."""
    path = fakes.hold_at_end()
    process = start("backup", env={"PATH": path})
    faults.until((fakes.here / "pid").exists, "pg_dump has written all")
    process.signal(how)
    process.wait()
    pid = int((fakes.here / "pid").read_text())
    faults.until(lambda: not Path(f"/proc/{pid}").exists(), "pg_dump has ended")
    left = {each.name[0] for each in backup_dir.iterdir()}
    again = run("backup")

    assert left <= {"."} if how == signal.SIGKILL else left == set()
    assert 0 == again.code, str(again)
    assert "database.dir" in {each.name for each in only(backup_dir).iterdir()}


def test_two_databases_at_once_have_a_whole_backup_each(
    start: Start, filled: servers.Database, create_database: CreateDatabase, run: Run
) -> None:
    """They share a directory, and nothing in it."""
    other = create_database(filled.server)
    other.script(FILLED)
    both = [start("backup"), start("backup", env=other.env())]
    results = [each.wait() for each in both]

    assert [0, 0] == [each.code for each in results], "\n".join(map(str, results))
    assert 2 == len(listed(run))


@pytest.mark.usefixtures("filled")
def test_only_as_many_stay_as_are_to(run: Run, backup_dir: Path) -> None:
    """Folders and files are kept and let go alike; one that is read stays."""
    kept = {"PREFLIGHT_BACKUP_KEEP": "2"}
    results = [run("backup", env={**kept, "PREFLIGHT_JOBS": jobs}) for jobs in ("2", "1", "2")]

    assert [0] * 3 == [each.code for each in results], "\n".join(map(str, results))
    forms = {manifest(each)["file"] for each in backup_dir.iterdir()}
    assert {"database.dump", "database.dir"} == forms


@pytest.mark.usefixtures("filled")
def test_lock_that_a_second_session_does_not_get_is_asked_for_again_by_one(
    run: Run, fakes: Fakes, backup_dir: Path
) -> None:
    """Who queues for a table keeps the other sessions of pg_dump out, but not its first one."""
    words = 'pg_dump: error: could not obtain lock on relation "public.a"'
    refuse = f"""case "$*" in *--format=directory*) echo '{words}' >&2; exit 1;; esac"""
    result = run(env={"PATH": fakes.write(f'{refuse}\nexec "$REAL" "$@"')})

    assert 0 == result.code, str(result)
    assert ["folder", "file"] == [each["form"] for each in result.event("backup.started")]
    assert "2 sessions" in result.event("backup.started")[1]["one_file_because"]
    assert {"database.dump", "manifest.json"} == {each.name for each in only(backup_dir).iterdir()}
    assert 1 == manifest(only(backup_dir))["format"]


def test_one_session_writes_one_file_and_says_so(run: Run) -> None:
    """Nothing falls back to it without a word."""
    result = run("backup", env={"PREFLIGHT_JOBS": "1"})

    (started,) = result.event("backup.started")
    assert ("file", "PREFLIGHT_JOBS=1") == (started["form"], started["one_file_because"]), result


in_buckets = pytest.mark.xdist_group("buckets")  # one server of them, the libraries beside .venv


@pytest.fixture
def bucket(server_of_buckets: buckets.Bucket, environment: dict[str, str]) -> buckets.Bucket:
    """Give a prefix of its own, which all runs lead to."""
    url = f"{server_of_buckets.url}/{os.urandom(4).hex()}"
    found = buckets.Bucket(url, server_of_buckets.endpoint, server_of_buckets.keys)
    environment |= found.env()
    return found


@pytest.fixture
def spool(tmp_path: Path, environment: dict[str, str]) -> Path:
    """Give a place for the files of a folder that is sent elsewhere."""
    place = tmp_path / "spool"
    place.mkdir()
    environment["PREFLIGHT_SPOOL_DIR"] = str(place)
    return place


@pytest.fixture
def key(tmp_path: Path, environment: dict[str, str]) -> Path:
    """Give the file of a secret key that every backup is sealed for."""
    buckets.importable()
    identity = __import__("pyrage").x25519.Identity.generate()
    environment["PREFLIGHT_BACKUP_RECIPIENTS"] = str(identity.to_public())
    environment["PYTHONPATH"] = str(buckets.libraries())
    (tmp_path / "key.txt").write_text(f"{identity}\n")
    return tmp_path / "key.txt"


def within(bucket: buckets.Bucket) -> objects.Objects:
    """Look into a bucket."""
    os.environ.update(bucket.keys)
    return objects.Objects(objects.address(bucket.url, bucket.endpoint), bucket.keys, None)


def everything(bucket: buckets.Bucket) -> dict[str, list[str]]:
    """Return what lies in a bucket, the hidden too, by backups."""
    return {name: sorted(files) for name, files in within(bucket)._listed().items()}  # noqa: SLF001


@in_buckets
@pytest.mark.parametrize("what", ["bucket", "bucket sealed", "directory sealed"])
def test_folder_is_sealed_and_sent_file_by_file(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run, filled: servers.Database, spool: Path, what: str, backup_dir: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """It is proven out of the spool, restored from where it is kept, and pruned as a whole."""
    bucket = request.getfixturevalue("bucket") if "bucket" in what else None
    sealed = "sealed" in what
    opening = ["--identity-file", str(request.getfixturevalue("key"))] if sealed else []
    result = run(env={"PREFLIGHT_REHEARSE": "always" if what == "bucket sealed" else "off"})
    kept: Store = within(bucket) if bucket else Directory(backup_dir)
    (backup,) = kept.listing()
    said, there = backup.manifest, kept.pieces(backup.name, "database.dir")
    stored = {
        name: manifests.Piece(len(data), hashlib.sha256(data).hexdigest())
        for name, data in _files(kept, backup.name, there)
    }
    restored = run("restore", backup.name, "--into", f"{filled.name}_back", *opening)
    again = run("backup", env={"PREFLIGHT_BACKUP_KEEP": "1"})

    assert 0 == result.code, str(result)
    assert [("folder", 2)] == [(e["form"], e["jobs"]) for e in result.event("backup.started")]
    assert [("folder", ROWS)] == [(e["form"], e["rows"]) for e in result.event("backup.verified")]
    assert ("restored" if what == "bucket sealed" else "read") == said.verified
    assert stored == (manifests.sealed(said.files) if sealed else said.files)
    assert {sealed} == {name.endswith(".age") for name in stored}
    assert 0 == restored.code, str(restored)
    with filled.server.connect(f"{filled.name}_back") as back:
        large = "SELECT md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1"
        assert filled.query(large) == [each for (each,) in back.execute(large)]
    assert (0, [backup.name]) == (
        again.code, [each["backup"] for each in again.event("backup.pruned")]
    ), str(again)  # fmt: skip
    assert [] == list(spool.iterdir())
    names = everything(bucket) if bucket else {each.name for each in backup_dir.iterdir()}
    assert {each["backup"] for each in again.event("backup.verified")} == set(names)


def _files(kept: "Store", name: str, files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a folder as they are stored."""
    for each in files:
        with kept.open(name, f"database.dir/{each}") as stream:
            yield each, b"".join(iter(lambda: stream.read(1 << 20), b""))


@in_buckets
@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stop_while_a_folder_is_sent_leaves_nothing_that_counts(  # noqa: PLR0913, PLR0917 -- fixtures
    start: Start, run: Run, fakes: Fakes, bucket: buckets.Bucket, spool: Path, how: signal.Signals
) -> None:
    """Files are there already, and no manifest: no backup; the spool is empty, the client ended."""
    path = fakes.hold_at_end()
    process = start("backup", env={"PATH": path})
    faults.until((fakes.here / "pid").exists, "pg_dump has written all")
    faults.until(lambda: "database.dir/" in str(everything(bucket)), "a file is sent")
    during = run("backups", "--json").json()["backups"]
    process.signal(how)
    process.wait()
    pid = int((fakes.here / "pid").read_text())
    faults.until(lambda: not Path(f"/proc/{pid}").exists(), "pg_dump has ended")
    faults.until(lambda: not list(spool.iterdir()), "the spool is empty")
    left = everything(bucket)
    again = run("backup")

    assert [] == during
    assert "manifest.json" not in str(left)
    assert how == signal.SIGKILL or {} == left
    assert 0 == again.code, str(again)
    assert 1 == len(listed(run))


@in_buckets
@pytest.mark.usefixtures("filled")
def test_file_that_the_bucket_does_not_take_ends_the_backup(
    run: Run, bucket: buckets.Bucket, spool: Path
) -> None:
    """23 with what the bucket says; nothing is left in it, nor on this machine."""
    assert bucket.endpoint
    front = buckets.Front(
        bucket.endpoint, lambda how, path: 403 if how == "PUT" and "toc.dat" in path else None
    )
    with front.running() as there:
        result = run("backup", env={"PREFLIGHT_BACKUP_ENDPOINT": there})

    assert (23, "backup.store") == (result.code, result.finished["error"]["code"]), str(result)
    assert "PutObject" in result.finished["error"]["hint"]
    assert {} == everything(bucket)
    assert [] == list(spool.iterdir())


@in_buckets
@pytest.mark.usefixtures("spool")
def test_folder_in_a_bucket_that_is_not_as_it_was_is_no_backup(
    run: Run, filled: servers.Database, bucket: buckets.Bucket
) -> None:
    """With a file too many or too few it is not listed; with another byte in one it is 24."""
    taken = run("backup")
    kept = within(bucket)
    (backup,) = kept.listing()
    name = max(kept.pieces(backup.name, "database.dir").items(), key=lambda each: each[1] or 0)[0]
    ((_, data),) = _files(kept, backup.name, [name])
    at = f"{backup.name}/database.dir/{name}"
    kept._put(at, data[:-1] + bytes([data[-1] ^ 1]))  # noqa: SLF001
    flipped = run("restore", backup.name, "--into", f"{filled.name}_back")
    kept._put(at, data)  # noqa: SLF001
    kept._put(f"{backup.name}/database.dir/1.dat", b"")  # noqa: SLF001
    more = listed(run)
    kept._delete(f"{backup.name}/database.dir/1.dat", at)  # noqa: SLF001
    fewer = listed(run)

    assert 0 == taken.code, str(taken)
    assert (24, "backup.corrupt") == (flipped.code, flipped.finished["error"]["code"]), str(flipped)
    assert ([], []) == (more, fewer)


@in_buckets
@pytest.mark.usefixtures("spool")
def test_two_databases_at_once_have_a_whole_folder_each_in_one_bucket(
    run: Run, start: Start, filled: servers.Database, create_database: CreateDatabase,
    bucket: buckets.Bucket,
) -> None:  # fmt: skip
    """They share a prefix and a spool, and nothing in them."""
    other = create_database(filled.server)
    other.script(FILLED)
    both = [start("backup"), start("backup", env=other.env())]
    results = [each.wait() for each in both]

    assert [0, 0] == [each.code for each in results], "\n".join(map(str, results))
    assert [True, True] == [bool(each.manifest.files) for each in within(bucket).listing()]
    assert 2 == len(listed(run))


@in_buckets
def test_spool_that_turns_out_too_small_makes_one_file(
    run: Run, database: servers.Database, bucket: buckets.Bucket, tmp_path: Path
) -> None:
    """There was room for what was expected; the next attempt streams, and nothing is left."""
    database.script(NOISE)
    try:
        with faults.small_disk(tmp_path / "disk", 12) as disk:
            result = run("backup", env={"PREFLIGHT_SPOOL_DIR": str(disk)})
            left = contents(disk)
    except PermissionError as error:
        pytest.skip(str(error))

    assert 0 == result.code, str(result)
    assert ["folder", "file"] == [each["form"] for each in result.event("backup.started")]
    assert "PREFLIGHT_SPOOL_DIR cannot hold" in result.event("backup.progressed")[-1]["waiting"]
    assert {} == left
    ((_, files),) = everything(bucket).items()
    assert ["database.dump", "manifest.json"] == files


@in_buckets
@pytest.mark.parametrize("what", ["bucket", "key"])
def test_without_a_spool_a_large_dump_is_one_file_and_says_so(
    run: Run, what: str, request: pytest.FixtureRequest
) -> None:
    """What is sealed or sent is a stream where its files have no place on this machine."""
    request.getfixturevalue(what)
    result = run("backup")

    (started,) = result.event("backup.started")
    meanwhile = "sealed" if what == "key" else "sent to a bucket"
    assert 0 == result.code, str(result)
    assert (
        f"it is {meanwhile} while it is written, for PREFLIGHT_SPOOL_DIR is not set"
        == (started["one_file_because"])
    )
    assert "file" == started["form"]


def test_too_few_connections_make_one_file(
    run: Run, filled: servers.Database, backup_dir: Path
) -> None:
    """A role that may have four: ours, the snapshot's, and pg_dump's one and the app's."""
    role = Identifier(f"{filled.name}_few")
    with filled.server.connect() as admin:
        admin.execute(
            SQL("CREATE ROLE {} LOGIN SUPERUSER CONNECTION LIMIT 5 PASSWORD 'p'").format(role)
        )
    try:
        result = run("backup", env={"PGUSER": f"{filled.name}_few", "PGPASSWORD": "p"})
    finally:
        with filled.server.connect() as admin:
            admin.execute(SQL("DROP ROLE {}").format(role))

    (started,) = result.event("backup.started")
    assert 0 == result.code, str(result)
    assert ("file", "too few connections are free") == (
        started["form"],
        started["one_file_because"],
    )
    assert (only(backup_dir) / "database.dump").exists()


def test_full_disk_is_told_as_one_and_nothing_is_left_on_it(
    run: Run, database: servers.Database, tmp_path: Path
) -> None:
    """pg_dump says so in its own words; it is not tried again."""
    database.script(NOISE)
    try:
        with faults.small_disk(tmp_path / "disk", 12) as disk:
            result = run("backup", env={"PREFLIGHT_BACKUP_DIR": str(disk)})
            left = contents(disk)
    except PermissionError as error:
        pytest.skip(str(error))

    code = result.finished["error"]["code"]
    assert (23, "backup.no_space") == (result.code, code), str(result)
    assert 1 == len(result.event("backup.started"))
    assert {} == left


def test_rehearsal_in_part_is_restored_out_of_a_folder(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """By a list of its entries; the duplicate is caught, and the backup is called read."""
    database.script(
        """CREATE TABLE users (email text); INSERT INTO users VALUES ('a'), ('a');
        CREATE TABLE bulk (id int PRIMARY KEY, text text);
        INSERT INTO bulk SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 10000) n"""
    )
    migrations({"001_one.sql": "CREATE UNIQUE INDEX ON users (email);"})
    result = run(env={"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_REHEARSE_MAX_MB": "3"})

    (started,) = result.event("rehearsal.started")
    assert ["folder"] == [each["form"] for each in result.event("backup.verified")]
    assert (True, ["public.users"]) == (started["partial"], started["tables"])
    assert (27, "23505") == (result.code, result.finished["error"]["sqlstate"]), result


def test_export_lies_beside_a_folder_which_is_swapped_in(
    run: Run, filled: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """A rollback saves what it destroys beside the folder, and the folder brings it back."""
    migrations(
        {
            "001_one.sql": "CREATE TABLE one AS SELECT 7 AS id;",
            "001_one_rollback.sql": "DROP TABLE one;",
            "001_one_export.sql": "SELECT id FROM one;",
        }
    )
    done = [run("up"), run("rollback")]
    latest = max(backup_dir.iterdir(), key=lambda each: manifest(each)["sequence"])
    names = {each.name for each in latest.iterdir()}
    gone = filled.query("SELECT to_regclass('one')::text")
    done.append(run("restore", "latest", "--into", f"{filled.name}_back", "--swap"))

    assert [0, 0, 0] == [each.code for each in done], "".join(map(str, done))
    assert {"database.dir", "manifest.json", "export-001_one-1.csv"} == names
    assert [None] == gone
    assert [7] == filled.query("SELECT id FROM one")
    with filled.server.connect() as admin:
        like = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) AND datname <> %s"
        for (name,) in admin.execute(like, [f"{filled.name}_", filled.name]).fetchall():
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
