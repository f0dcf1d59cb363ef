"""Sealed backups: who takes one cannot open it, who has the key can, with `age` alone."""

import base64
import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preflight.backup import manifests, sealing, spool
from preflight.backup.directory import Directory
from preflight.base import config
from preflight.base.errors import BackupFailed, BackupUnverified, ConfigInvalid, Failure
from tests import buckets, faults, servers, tools
from tests.conftest import Run, Start, WriteMigrations
from tests.fakes import Fakes

pytestmark = pytest.mark.xdist_group("buckets")  # the libraries beside .venv
ROWS = 3000
FILES = {
    "001_a.sql": "CREATE TABLE a (id int, t text); INSERT INTO a SELECT n, md5(n::text) "
    f"FROM generate_series(1, {ROWS}) n;\n",
    "001_a_rollback.sql": "DROP TABLE a;\n",
    "001_a_export.sql": "SELECT id FROM a;\n",
}
HEADER = b"age-encryption.org/v1\n"


@pytest.fixture(scope="module")
def pyrage() -> Any:  # noqa: ANN401 -- it has no types
    """Give the library that seals."""
    buckets.importable()
    return __import__("pyrage")


@pytest.fixture
def key(pyrage: Any, tmp_path: Path) -> Path:  # noqa: ANN401 -- likewise
    """Give a file as age-keygen writes it; its public key is in it."""
    made, path = pyrage.x25519.Identity.generate(), tmp_path / "key.txt"
    path.write_text(f"# public key: {made.to_public()}\n{made}\n")
    return path


def public(key: Path) -> str:
    """Return the public key that belongs to a file."""
    return key.read_text().split()[3]


@pytest.fixture
def sealed(key: Path, environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Let runs seal what they back up; return what lets them prove it, too."""
    (tmp_path / "spool").mkdir()
    libraries = {"PYTHONPATH": str(buckets.libraries())}
    environment |= {"PREFLIGHT_BACKUP_RECIPIENTS": public(key), **libraries}
    return {"PREFLIGHT_SPOOL_DIR": str(tmp_path / "spool"), "PREFLIGHT_REHEARSE": "always"}


@pytest.mark.parametrize("place", ["directory", "bucket"])
def test_sealed_backup_is_proven_exported_into_restored_and_pruned(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run, place: str, sealed: dict[str, str], key: Path, migrations: WriteMigrations,
    database: servers.Database, environment: dict[str, str], request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The whole way, beside one that is not sealed; without the key a restore is 20."""
    migrations(FILES)
    if place == "bucket":
        bucket = request.getfixturevalue("server_of_buckets")
        url = f"{bucket.url}/{os.urandom(4).hex()}"
        environment |= buckets.Bucket(url, bucket.endpoint, bucket.keys).env()
    plain = run("backup", env={"PREFLIGHT_BACKUP_RECIPIENTS": None})
    up = run(env=sealed)
    back = run("rollback", env=sealed)
    listed = run("backups").event("backup.listed")
    name = up.event("backup.verified")[0]["backup"]
    into = f"{database.name}_r"
    shut = run("restore", name, "--into", into, env=sealed)
    no_room = run("restore", name, "--into", into, "--identity-file", str(key))
    pipe = tmp_path / "pipe"  # a vault writes there, once
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=[key.read_bytes()], daemon=True).start()
    handed = ("--identity-file", str(pipe))
    opened = run("restore", name, "--into", into, *handed, "--swap", env=sealed)
    old = run("restore", plain.event("backup.verified")[0]["backup"], "--into", f"{into}2",
              env=sealed)  # fmt: skip
    again = run("backup", env={**sealed, "PREFLIGHT_BACKUP_KEEP": "1"})

    assert (0, "restored") == (up.code, listed[1]["verified"]), str(up)
    assert [None, [public(key)], [public(key)]] == [each.get("sealed_for") for each in listed]
    assert ["export-001_a-1.csv.age"] == [each["file"] for each in back.event("export.saved")]
    assert 20 == shut.code, str(shut)
    assert "--identity-file" in shut.finished["error"]["hint"]
    assert 23 == no_room.code, str(no_room)
    assert "backup.spool" == no_room.finished["error"]["code"]
    assert "PREFLIGHT_SPOOL_DIR" in no_room.finished["error"]["hint"]
    assert 0 == opened.code, str(opened)
    assert 0 == old.code, str(old)
    assert (0, 2) == (again.code, len(again.event("backup.pruned"))), str(again)
    assert [] == list((tmp_path / "spool").iterdir())


@pytest.mark.usefixtures("sealed")
def test_plain_backup_after_a_sealed_one_is_told(run: Run) -> None:
    """An empty variable counts as not set: a command that is not there must not open the next."""
    first = run("backup", env={"PREFLIGHT_REHEARSE": "off"})
    env = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP_RECIPIENTS": ""}
    second, third = run("backup", env=env), run("backup", env=env)

    (name,) = [each["backup"] for each in first.event("backup.verified")]
    assert [0, 0, 0] == [each.code for each in (first, second, third)], second
    said = [[each["warning"] for each in r.event("config.warned")] for r in (first, second, third)]
    of = "PREFLIGHT_BACKUP_RECIPIENTS is empty or not set"
    assert [[], [f"this backup will not be sealed, as {name} is: {of}"], []] == said


def test_age_itself_opens_what_is_sealed(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run, sealed: dict[str, str], key: Path, migrations: WriteMigrations, backup_dir: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The program and pg_restore are enough: the dump and the exports, and both hashes hold."""
    age = tools.go("age")
    migrations(FILES)
    assert 0 == run(env=sealed).code
    assert 0 == run("rollback", env=sealed).code
    (export,) = backup_dir.rglob("export-*")
    dump = export.with_name("database.dump.age")
    said = json.loads((dump.parent / "manifest.json").read_text())
    found = {}
    for file in (dump, export):
        command = [str(age), "-d", "-i", str(key), str(file)]
        found[file] = subprocess.run(command, check=True, capture_output=True).stdout
    (tmp_path / "dump").write_bytes(found[dump])
    pg_restore = str(servers.client_bin(18) / "pg_restore")
    table = [pg_restore, "-f", "-", "-t", "a", "--data-only", str(tmp_path / "dump")]
    rows = subprocess.run(table, check=True, capture_output=True, text=True).stdout

    assert ROWS == sum("\t" in line for line in rows.splitlines())
    assert ROWS + 1 == found[export].count(b"\n")
    assert hashlib.sha256(found[dump]).hexdigest() == said["sha256"]
    assert hashlib.sha256(dump.read_bytes()).hexdigest() == said["sealed_sha256"]
    assert (len(found[dump]), dump.stat().st_size) == (said["size_bytes"], said["sealed_bytes"])
    plain = [each.name for each in dump.parent.iterdir() if each.read_bytes()[:22] != HEADER]
    assert ["manifest.json"] == plain


def test_settings_and_comment_of_a_database_are_sealed_and_come_back(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run, sealed: dict[str, str], key: Path, migrations: WriteMigrations, backup_dir: Path,
    database: servers.Database,
) -> None:  # fmt: skip
    """They may hold a secret: `age` opens them, a restore gives them; a swap needs no key again."""
    migrations(FILES)
    database.script(
        f"ALTER DATABASE \"{database.name}\" SET app.jwt_secret = 'hunter2';"
        f"COMMENT ON DATABASE \"{database.name}\" IS 'pager hunter2'"
    )
    taken = run("backup", env=sealed).event("backup.verified")[0]["backup"]
    text = (backup_dir / taken / "manifest.json").read_bytes()
    into = f"{database.name}_r"
    opened = run("restore", taken, "--into", into, "--identity-file", str(key), env=sealed)
    there = servers.Database(database.server, into).query("SHOW app.jwt_secret")
    swapped = run("restore", taken, "--into", into, "--swap", env=sealed)
    belongings = base64.b64decode(json.loads(text)["belongings"]["sealed"])
    age = [str(tools.go("age")), "-d", "-i", str(key)]
    said = subprocess.run(age, input=belongings, check=True, capture_output=True).stdout

    assert b"hunter2" not in text
    assert "pager hunter2" == json.loads(said)["comment"]
    assert (0, ["hunter2"]) == (opened.code, there), str(opened)
    assert 0 == swapped.code, str(swapped)
    assert [[], []] == [each.event("restore.started")[0]["differs"] for each in (opened, swapped)]


def test_settings_that_an_older_version_left_in_clear_are_read_as_they_are(
    taken: tuple[Path, manifests.Backup], key: Path
) -> None:
    """Its sealed backups are restored, too; what is sealed and torn is told."""
    old = {"settings": [{"role": None, "setting": "a=b"}]}
    _, backup = taken

    def read(said: object) -> object:
        manifest = dataclasses.replace(backup.manifest, belongings=said)
        return sealing.belongings_of(manifests.Backup(backup.name, manifest), key)

    assert [None, old] == [read(None), read(old)]
    for torn in (1, "?", "YWdl"):
        with pytest.raises((ValueError, BackupUnverified)):
            read({**old, "sealed": torn})


def test_without_a_spool_the_plain_dump_never_touches_the_disk(
    run: Run, sealed: dict[str, str], migrations: WriteMigrations, backup_dir: Path
) -> None:
    """It is read on its way, and the log says why it was not restored; `always` is 27."""
    assert sealed
    migrations(FILES)
    refused = run(env={"PREFLIGHT_REHEARSE": "always"})
    result = run(env={"PREFLIGHT_REHEARSE": "auto"})
    (known,) = Directory(backup_dir).listing()[1:]

    assert 27 == refused.code, str(refused)
    assert 0 == result.code, str(result)
    assert "read" == known.manifest.verified
    (skipped,) = result.event("rehearsal.skipped")
    assert "PREFLIGHT_SPOOL_DIR" in skipped["reason"]


def test_full_spool_costs_the_proof_and_not_the_backup(
    run: Run, sealed: dict[str, str], migrations: WriteMigrations, tmp_path: Path
) -> None:
    """With `auto` a proof is worth having; the sealed backup is whole without it."""
    migrations(FILES)
    gone = {**sealed, "PREFLIGHT_SPOOL_DIR": str(tmp_path / "gone"), "PREFLIGHT_REHEARSE": "auto"}
    result = run(env=gone)

    assert 0 == result.code, str(result)
    assert "read" == result.event("backup.verified")[0]["verified"]
    assert "cannot hold a copy" in result.event("rehearsal.skipped")[0]["reason"]


def test_killed_run_leaves_nothing_that_can_be_read(  # noqa: PLR0913, PLR0917 -- fixtures
    start: Start, sealed: dict[str, str], migrations: WriteMigrations, backup_dir: Path,
    tmp_path: Path, environment: dict[str, str], run: Run,
) -> None:  # fmt: skip
    """Struck in the middle of the dump: what lies there is sealed, or has no name."""
    migrations({"001_a.sql": FILES["001_a.sql"].replace(str(ROWS), "60000")})
    assert 0 == run(env={"PREFLIGHT_REHEARSE": "off"}).code
    fakes = Fakes(tmp_path / "fakes")
    environment["PATH"] = fakes.hold_at_end()
    process = start("backup", env=sealed)
    faults.until((fakes.here / "pid").exists, "pg_dump has written all")
    faults.until(lambda: _size(backup_dir) > 500_000, "most of it is stored")
    process.signal(signal.SIGKILL)
    process.wait()
    os.kill(int((fakes.here / "pid").read_text()), signal.SIGKILL)  # it has nothing more to say
    (draft,) = backup_dir.glob(".partial-*")

    assert {"database.dump.age": HEADER} == {
        each.name: each.read_bytes()[:22] for each in draft.iterdir() if each.name != ".lock"
    }
    assert [] == list((tmp_path / "spool").iterdir())


def _size(place: Path) -> int:
    return sum(each.stat().st_size for each in place.glob(".partial-*/*"))


def _taken(place: Path, key: Path, data: bytes) -> manifests.Backup:
    """Seal bytes as a run seals its dump; return the backup of them."""
    environ = {"PREFLIGHT_BACKUP_RECIPIENTS": public(key), "PGDATABASE": "x"}
    seal = sealing.Seal(config.Config.from_env(environ, place, "r"))
    backups, me = Directory(place), manifests.Identity("1", "app", "x:1")
    with backups.draft(me, "r", 0) as draft:
        with seal.sink(backups, draft, manifests.DUMP) as sink:
            sink.write(data)
        stored = backups.files(draft)
        size = (place / draft / stored[0]).stat().st_size
        made = manifests.Manifest(
            len(data), hashlib.sha256(data).hexdigest(), {}, database="app", system_identifier="1",
            address="x:1", sealed_sha256="s", sealed_bytes=size, recipients=seal.recipients,
        )  # fmt: skip
        return backups.publish(draft, me, made)


@pytest.fixture
def taken(pyrage: Any, key: Path, tmp_path: Path) -> tuple[Path, manifests.Backup]:  # noqa: ANN401 -- it has no types
    """Give a directory with a sealed backup of 200 kB."""
    assert pyrage
    place = tmp_path / "place"
    place.mkdir()
    return place, _taken(place, key, random.Random(1).randbytes(200_000))  # noqa: S311 -- for the same each time


def test_flipped_bit_of_a_sealed_dump_is_found(
    taken: tuple[Path, manifests.Backup], key: Path, tmp_path: Path
) -> None:
    """Anywhere, of the header every third byte: also where its hash was not compared before."""
    place, backup = taken
    file = place / backup.name / "database.dump.age"
    whole = file.read_bytes()
    positions = [*range(0, 300, 3), *range(300, len(whole), 1999), len(whole) - 1]
    missed = []
    for at in positions:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            with sealing.opened(Directory(place), backup, key, tmp_path):
                missed.append(at)
        except Failure:
            continue
    file.write_bytes(whole)
    with sealing.opened(Directory(place), backup, key, tmp_path) as path:
        assert backup.manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    assert [] == missed


def test_full_place_for_the_opened_dump_is_no_damage(
    taken: tuple[Path, manifests.Backup], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is begun, while it is written, and at its end: 23, and what to set."""
    place, backup = taken

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for what in ("write", "flush", "__init__"):
        with monkeypatch.context() as patch:
            patch.setattr(spool.Spool, what, full)
            with (
                pytest.raises(BackupFailed) as refused,
                sealing.opened(Directory(place), backup, key, tmp_path),
            ):
                pass
        assert ("backup.spool", 23) == (refused.value.code, refused.value.exit_code)
        assert "PREFLIGHT_SPOOL_DIR" in str(refused.value.problem.hint)


def test_changed_sealed_dump_is_no_backup(
    run: Run, sealed: dict[str, str], key: Path, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Its hash tells before any key is asked for: 24, and nothing is restored."""
    migrations(FILES)
    taken = run("backup", env=sealed).event("backup.verified")[0]["backup"]
    file = backup_dir / taken / "database.dump.age"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    result = run("restore", taken, "--into", "x", "--identity-file", str(key), env=sealed)

    assert 24 == result.code, str(result)
    assert "its hash differs" in result.finished["error"]["message"]


def _another(key: Path, pyrage: Any) -> bytes:  # noqa: ANN401 -- it has no types
    del key
    return str(pyrage.x25519.Identity.generate()).encode()


def _ssh(passphrase: str) -> Callable[[Path, Any], bytes]:
    def make(key: Path, _: Any) -> bytes:  # noqa: ANN401 -- likewise
        file = str(key.with_name("ssh"))
        command = [tools.found("ssh-keygen"), "-q", "-t", "ed25519", "-N", passphrase, "-f", file]
        subprocess.run(command, check=True)
        return Path(file).read_bytes()

    return make


USELESS: dict[str, Callable[[Path, Any], bytes]] = {
    "is sealed for age1": _another,
    "protected by a passphrase": lambda key, pyrage: pyrage.passphrase.encrypt(
        key.read_bytes(), "secret"
    ),
    "is protected by a passphrase": _ssh("secret"),
    "sealed for age1": _ssh(""),
    "holds a public key": lambda key, _: public(key).encode(),
    "no secret key of age's": lambda *_: b"hunter2",
    "holds no secret key": lambda *_: b"",
    "no secret key": lambda key, _: key.read_bytes()[:-9],
    "larger than 64 KiB": lambda *_: b"x" * 70000,
}


@pytest.mark.parametrize(("said", "content"), USELESS.items(), ids=range(len(USELESS)))
def test_key_that_does_not_open_is_told_why(  # noqa: PLR0913, PLR0917 -- fixtures
    taken: tuple[Path, manifests.Backup], key: Path, tmp_path: Path, pyrage: Any,  # noqa: ANN401 -- it has no types
    said: str, content: Callable[[Path, Any], bytes],
) -> None:  # fmt: skip
    """Each of them by a sentence of its own, and none of what is in the file."""
    place, backup = taken
    other = tmp_path / "other"
    other.write_bytes(content(key, pyrage))
    with (
        pytest.raises(ConfigInvalid) as refused,
        sealing.opened(Directory(place), backup, other, tmp_path),
    ):
        pass

    assert said in str(refused.value)
    assert "SECRET-KEY-1" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_ssh_key_opens_what_is_sealed_for_it(
    pyrage: Any,  # noqa: ANN401 -- it has no types
    tmp_path: Path,
) -> None:
    """The one that somebody has already; the manifest names it as ssh-keygen does."""
    key = tmp_path / "id"
    key.write_bytes(_ssh("")(key, pyrage))
    pub = key.with_name("ssh.pub")
    keygen = [tools.found("ssh-keygen"), "-l", "-f", str(pub)]
    said = subprocess.run(keygen, check=True, capture_output=True, text=True).stdout
    environ = {"PREFLIGHT_BACKUP_RECIPIENTS_FILE": str(pub), "PGDATABASE": "x"}
    seal = sealing.Seal(config.Config.from_env(environ, tmp_path, "r"))

    assert (said.split()[1],) == seal.recipients


WRONG = {
    "AGE-SECRET-KEY-1QQQQQQQQ": "holds a secret key",
    "age1short": "key 1 is no public key",
    "age1yubikey1qwe0vrytz6zyfmlwmhakkk8k2gv94zqs6wzqlj9rzdcs4yxf7rwj4mkm3zx": "plugin",
    "ssh-dss AAAA": "key 1 is no public key",
    "age1" + "q" * 58: "key 1 of PREFLIGHT_BACKUP_RECIPIENTS is not whole",
    "# nobody": "holds no key",
}


@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_public_key_is_refused(
    run: Run, sealed: dict[str, str], value: str, migrations: WriteMigrations
) -> None:
    """Before anything is dumped: 20, and a secret key is not shown."""
    assert sealed
    migrations(FILES)
    result = run(env={"PREFLIGHT_BACKUP_RECIPIENTS": value})
    said = json.dumps(result.finished["error"])

    assert 20 == result.code, str(result)
    assert WRONG[value] in said
    assert "QQQQ" not in str(result)


def test_library_that_is_not_there_is_named(
    run: Run, sealed: dict[str, str], migrations: WriteMigrations, backup_dir: Path
) -> None:
    """The small image has none: nothing is dumped that would not be sealed."""
    assert sealed
    migrations(FILES)
    result = run(env={"PYTHONPATH": None})

    assert 23 == result.code, str(result)
    assert "backup.sealing" == result.finished["error"]["code"]
    assert "-full" in result.finished["error"]["hint"]
    assert [] == list(backup_dir.iterdir())
