"""Backups in a bucket, of a real server: the whole way, and what the store may answer."""

import contextlib
import hashlib
import http.server
import importlib
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from preflight.backup import gathered, manifests, objects, parts_left, reading_back, restore
from preflight.base.errors import BackupFailed
from tests import buckets, faults, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations

pytestmark = pytest.mark.xdist_group("buckets")  # one server of buckets for all
Front = tuple[buckets.Front, buckets.Bucket]
FILES = {
    "001_a.sql": "CREATE TABLE a (id int, t text); INSERT INTO a SELECT n, md5(n::text) "
    "FROM generate_series(1, 3000) n;\n",
    "001_a_rollback.sql": "DROP TABLE a;\n",
    "001_a_export.sql": "SELECT id FROM a;\n",
}


@pytest.fixture
def bucket(
    server_of_buckets: buckets.Bucket, environment: dict[str, str], migrations: WriteMigrations
) -> buckets.Bucket:
    """Give a prefix of its own, for runs that have one file to apply."""
    url = f"{server_of_buckets.url}/{os.urandom(4).hex()}"
    found = buckets.Bucket(url, server_of_buckets.endpoint, server_of_buckets.keys)
    migrations(FILES)
    environment |= found.env()
    return found


def store_of(bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch) -> objects.Objects:
    """Look into a bucket."""
    for name, value in bucket.keys.items():
        monkeypatch.setenv(name, value)
    where = objects.address(bucket.url, bucket.endpoint)
    return objects.Objects(where, bucket.keys, None)


def test_bucket_holds_what_a_directory_does(
    run: Run, bucket: buckets.Bucket, database: servers.Database, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A backup is taken, proven, listed, exported into, restored, swapped in and pruned there."""
    spool = tmp_path / "spool"
    spool.mkdir()
    env = {"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_SPOOL_DIR": str(spool)}
    env |= {"PREFLIGHT_BACKUP_KEEP": "1"}
    up = run(env=env)
    assert 0 == up.code, str(up)
    backups = store_of(bucket, monkeypatch)
    (known,) = backups.listing()
    back = run("rollback", env=env)
    listed = run("backups").event("backup.listed")
    restored = run("restore", known.name, "--into", f"{database.name}_r", "--swap", env=env)
    again = run("backup", env=env)

    assert (known.name, "restored") == (
        up.event("backup.verified")[0]["backup"],
        known.manifest.verified,
    )
    assert [bucket.url] == [each["directory"] for each in up.event("backup.verified")]
    assert 0 == back.code, str(back)
    assert ["export-001_a-1.csv"] == [each["file"] for each in back.event("export.saved")]
    assert ["restored", "restored"] == [each["verified"] for each in listed]
    assert 0 == restored.code, str(restored)
    assert (0, [known.name]) == (
        again.code,
        [each["backup"] for each in again.event("backup.pruned")],
    ), str(again)
    assert [] == list(spool.iterdir())
    assert [] == [each for name in backups._listed().values() for each in name if each[0] == "."]  # noqa: SLF001


PLACES: dict[str, Callable[[Path], contextlib.AbstractContextManager[buckets.Bucket]]] = {
    "S3 of another maker": lambda _: buckets.gofakes3("s3"),
    "Google's interface": lambda _: buckets.gofakes3("gs"),
    "Azure": buckets.azurite,
}


@pytest.mark.parametrize("kind", PLACES)
def test_backup_goes_the_whole_way_in_every_kind_of_bucket(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run, database: servers.Database, migrations: WriteMigrations, tmp_path: Path,
    environment: dict[str, str], kind: str,
) -> None:  # fmt: skip
    """Taken in parts, proven, listed, restored and pruned, by a real server of each protocol.

    Then the same as a folder, which takes its place.
    """
    migrations({"001_a.sql": "CREATE TABLE a (t text);\n"})
    database.script("CREATE TABLE big AS SELECT md5(n::text) FROM generate_series(1, 9000) n")
    (tmp_path / "spool").mkdir()
    environment |= {"PREFLIGHT_BACKUP_KEEP": "1", "PREFLIGHT_SPOOL_DIR": str(tmp_path / "spool")}
    with PLACES[kind](tmp_path) as bucket:
        environment |= bucket.env()
        taken = run("up", env={"PREFLIGHT_FIRST_CONTACT": "pending"})
        restored = run("restore", "latest", "--into", f"{database.name}_r")
        again = run("backup", env={"PREFLIGHT_PARALLEL_MB": "0", "PREFLIGHT_JOBS": "2"})
        listed = run("backups").event("backup.listed")
        of_folder = run("restore", "latest", "--into", f"{database.name}_f")

    assert 0 == taken.code, str(taken)
    assert ["folder"] == [each["form"] for each in again.event("backup.verified")], str(again)
    assert 0 == of_folder.code, str(of_folder)
    (name,) = [each["backup"] for each in taken.event("backup.verified")]
    assert 0 == restored.code, str(restored)
    assert [name] == [each["backup"] for each in again.event("backup.pruned")], str(again)
    assert [again.event("backup.verified")[0]["backup"]] == [each["backup"] for each in listed]


def test_without_a_spool_the_dump_never_touches_the_disk(
    run: Run, bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read back and counted as a stream, and the log says why it was not restored."""
    result = run(env={"PREFLIGHT_REHEARSE": "auto"})
    (known,) = store_of(bucket, monkeypatch).listing()

    assert 0 == result.code, str(result)
    assert "read" == known.manifest.verified
    (skipped,) = result.event("rehearsal.skipped")
    assert "PREFLIGHT_SPOOL_DIR" in skipped["reason"]
    assert "info" == skipped["level"]


def test_spool_that_was_mistyped_is_told_as_a_warning(
    run: Run, bucket: buckets.Bucket, tmp_path: Path
) -> None:
    """Somebody meant the proof to be there: it is not to be missing unnoticed."""
    result = run(
        env={"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_SPOOL_DIR": str(tmp_path / "nowhere")}
    )

    assert bucket.url
    assert 0 == result.code, str(result)
    (skipped,) = result.event("rehearsal.skipped")
    assert "warning" == skipped["level"]
    assert "PREFLIGHT_SPOOL_DIR" in skipped["reason"]


def test_proof_without_a_place_for_it_is_refused(run: Run, bucket: buckets.Bucket) -> None:
    """Demanded and not to be had: 27, and nothing is migrated; a restore says what it needs."""
    refused = run(env={"PREFLIGHT_REHEARSE": "always"})
    restore = run("restore", "latest", "--into", "elsewhere")

    assert bucket.url
    assert 27 == refused.code, str(refused)
    assert "PREFLIGHT_SPOOL_DIR" in refused.finished["error"]["hint"]
    assert 23 == restore.code, str(restore)
    assert "backup.spool" == restore.finished["error"]["code"]
    assert "PREFLIGHT_SPOOL_DIR" in restore.finished["error"]["hint"]


def test_place_is_asked_for_before_a_backup_is_read(
    run: Run, bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is a terabyte at times: what lacks is said first, so that nothing is waited for."""
    made = run("backup")
    backups = store_of(bucket, monkeypatch)
    (known,) = backups.listing()
    other = bytes(known.manifest.size_bytes)  # corrupt, if it is read
    backups.send(known.name, manifests.DUMP, [other], little=True)

    restore = run("restore", "latest", "--into", "elsewhere")

    assert (0, 23, "backup.spool") == (
        made.code,
        restore.code,
        restore.finished["error"]["code"],
    ), str(restore)


def test_missing_bucket_is_named(run: Run, bucket: buckets.Bucket) -> None:
    """None is made: 23, with what to do."""
    assert bucket.url
    result = run(env={"PREFLIGHT_BACKUP_DIR": "s3://no-such-bucket-of-ours/x"})

    assert 23 == result.code, str(result)
    assert "backup.store" == result.finished["error"]["code"]
    assert "there is no such bucket" in result.finished["error"]["message"]


def test_profile_without_keys_is_refused(run: Run, bucket: buckets.Bucket) -> None:
    """The library reads no profile files; it would look for a role for a long time."""
    assert bucket.url
    result = run(env={"AWS_PROFILE": "me", "AWS_ACCESS_KEY_ID": None})

    assert 23 == result.code, str(result)
    assert "profile files are not read" in result.finished["error"]["message"]


ACCOUNT = {"AZURE_STORAGE_ACCOUNT_NAME": "account"}
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2"}
UNUSABLE = {
    "AZURE_STORAGE_ACCOUNT_NAME is not set": ("az", {}),
    "AZURE_STORAGE_ACCOUNT_KEY": ("az", ACCOUNT | {"AZURE_STORAGE_ACCOUNT_KEY": "hunter2!"}),
    "AZURE_STORAGE_SAS_TOKEN": ("az", ACCOUNT | {"AZURE_STORAGE_SAS_TOKEN": "hunter2"}),
    "APPLICATION_CREDENTIALS cannot": ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "/response.json"}),
    "is not what it should be": ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "torn"}),
    "no private key": ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "keyless"}),
    "AWS_WEB_IDENTITY_TOKEN_FILE": (
        "s3",
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/gone", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
    ),
    "AWS_SECRET_ACCESS_KEY is not set": ("s3", {"AWS_ACCESS_KEY_ID": "hunter2"}),
    "AWS_ACCESS_KEY_ID is not set": ("s3", {"AWS_SECRET_ACCESS_KEY": "hunter2"}),
    "no certificate of an authority to trust": (
        "s3",
        KEYS | {"SSL_CERT_FILE": "/gone", "SSL_CERT_DIR": "/gone"},
    ),
    "a sign like it in AWS_SESSION_TOKEN": ("s3", KEYS | {"AWS_SESSION_TOKEN": "hunter2\n"}),
    "a sign like it in AWS_REGION": ("s3", KEYS | {"AWS_REGION": "eu hunter2"}),
}


@pytest.mark.parametrize("expected", UNUSABLE)
def test_credentials_that_no_request_can_be_made_with_are_corrected_and_not_waited_for(
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """23 with the variable's name, and not 14; nothing of what it holds is told, by nobody."""
    buckets.importable()
    (tmp_path / "torn").write_text('{"private_key": "hunter2"')
    keyless = {"client_email": "a@b", "private_key": "hunter2", "private_key_id": "1"}
    (tmp_path / "keyless").write_text(json.dumps({"type": "service_account", **keyless}))
    for name in [each for each in os.environ if each.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    scheme, variables = UNUSABLE[expected]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    endpoint = "http://127.0.0.1:9" if scheme == "s3" else None
    where = objects.address(f"{scheme}://backups/p", endpoint)
    backups = objects.Objects(where, dict(os.environ), None, 1)
    with pytest.raises(objects.Refused) as refused:
        backups.listed()
    failure = backups.failure(refused.value)

    assert 23 == failure.exit_code, str(failure)
    assert expected in str(failure)
    assert "hunter2" not in str(failure)
    assert ("", "") == capfd.readouterr()


class Forbids(http.server.BaseHTTPRequestHandler):
    """A store that lets nobody in."""

    def do_GET(self) -> None:
        """Say so."""
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        """Say nothing of it."""


@contextlib.contextmanager
def forbidding(certificate: Path) -> Iterator[str]:
    """Serve it over TLS; yield its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbids) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a refused handshake
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_certificate_of_an_authority_of_ones_own_is_trusted_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hints name SSL_CERT_FILE, and it helps; not for a server that shows the authority's."""
    buckets.importable()
    new = ["req", "-x509", "-addext", "subjectAltName=IP:127.0.0.1"]
    new += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    extensions = {"own": "critical,CA:TRUE", "signed": "critical,CA:FALSE"}
    for name, extension in extensions.items():
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        signer = [] if name == "own" else ["-CA", "own.pem", "-CAkey", "own.key"]
        command = ["openssl", *new, "-addext", f"basicConstraints={extension}", *files, *signer]
        subprocess.run(
            [*command, "-subj", f"/CN={name}"], cwd=tmp_path, check=True, capture_output=True
        )
    for name, value in (KEYS | {"SSL_CERT_DIR": "/gone"}).items():
        monkeypatch.setenv(name, value)
    found = []
    for shown, trusted in (("signed", "signed"), ("signed", "own"), ("own", "own")):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / f"{trusted}.pem"))
        with forbidding(tmp_path / f"{shown}.pem") as endpoint:
            where = objects.address("s3://backups/p", endpoint)
            backups = objects.Objects(where, dict(os.environ), None, 1)
            with pytest.raises(objects.Refused) as refused:
                backups.listed()
        failure = backups.failure(refused.value)
        found.append((refused.value.why, "SSL_CERT_FILE" in str(failure.problem.hint)))

    assert [("tls", True), ("rights", False), ("authority", True)] == found


def test_library_that_is_not_there_is_named(run: Run, bucket: buckets.Bucket) -> None:
    """The small image has none."""
    assert bucket.url
    result = run(env={"PYTHONPATH": None})

    assert 23 == result.code, str(result)
    assert "-full" in result.finished["error"]["hint"]


@pytest.mark.parametrize(
    "place", ["s3://", "s3:///x", "ftp://h/x", "s3://bucket//x", "s3://key:secret@bucket/x",
              "s3://bucket/x?y", "s3://bucket/.", "gs://bucket/../x", "s3://bucket/x/./y",
              "az://container/x\\y", "s3:/bucket/x", "gs:bucket"],
)  # fmt: skip
def test_what_is_no_bucket_is_refused(run_bare: Run, place: str) -> None:
    """Before a server is asked."""
    result = run_bare("backups", env={"PREFLIGHT_BACKUP_DIR": place})

    assert 20 == result.code, str(result)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://[::1", "https://:9000"])
def test_address_that_there_cannot_be_is_refused(run_bare: Run, endpoint: str) -> None:
    """Before the library ends over it."""
    place = {"PREFLIGHT_BACKUP_DIR": "s3://bucket", "PREFLIGHT_BACKUP_ENDPOINT": endpoint}
    result = run_bare("backups", env=place)

    assert 20 == result.code, str(result)
    assert "PREFLIGHT_BACKUP_ENDPOINT" in result.finished["error"]["message"]


ANSWERS = {
    ("403 Forbidden", "InvalidAccessKeyId"): (23, "InvalidAccessKeyId"),
    ("403 Forbidden", "RequestTimeTooSkewed"): (23, "clock"),
    ("400 Bad Request", "AuthorizationHeaderMalformed"): (23, "region"),
    ("507 Insufficient Storage", "XMinioStorageFull"): (23, "full"),
    ("301 Moved Permanently", "PermanentRedirect"): (23, "region"),  # and it does not say where
    ("409 Conflict", "OperationAborted"): (14, "OperationAborted"),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items())
def test_what_a_store_refuses_is_a_sentence_that_helps(
    run: Run, bucket: buckets.Bucket, answer: tuple[str, str], expected: tuple[int, str]
) -> None:
    """By its code, whatever else it writes; none of it is shown, for it may hold a signature."""
    assert bucket.url
    with socket.create_server((servers.HOST, 0)) as listener:
        threading.Thread(target=_answering, args=(listener, *answer), daemon=True).start()
        port = listener.getsockname()[1]
        endpoint = f"http://{servers.HOST}:{port}"
        env = {"PREFLIGHT_BACKUP_ENDPOINT": endpoint, "PREFLIGHT_LOCK_RETRY_S": "1"}
        result = run(env=env)
        listener.shutdown(socket.SHUT_RDWR)

    assert expected[0] == result.code, str(result)
    assert expected[1] in result.finished["error"]["message"]
    assert "hunter2" not in str(result)


def _answering(listener: socket.socket, status: str, code: str) -> None:
    """Answer every caller alike; without a status hang up."""
    body = f"<Error><Code>{code}</Code><Message>hunter2</Message></Error>"
    text = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:
            return
        with caller:
            caller.recv(65536)
            if status:
                caller.sendall(text.encode())


def test_store_that_does_not_answer_is_a_passing_reason(run: Run, bucket: buckets.Bucket) -> None:
    """It is tried again as long as PREFLIGHT_LOCK_RETRY_S says, then 14."""
    assert bucket.url
    for answer in ("503 Service Unavailable", "429 Too Many Requests", ""):
        with socket.create_server((servers.HOST, 0)) as listener:
            call = (listener, answer, "SlowDown")
            threading.Thread(target=_answering, args=call, daemon=True).start()
            endpoint = f"http://{servers.HOST}:{listener.getsockname()[1]}"
            env = {"PREFLIGHT_BACKUP_ENDPOINT": endpoint, "PREFLIGHT_LOCK_RETRY_S": "1"}
            result = run(env=env)
            listener.shutdown(socket.SHUT_RDWR)

        assert 14 == result.code, str(result)
        assert "backup.store" == result.finished["error"]["code"]


@pytest.mark.parametrize(
    ("endpoint", "code", "expected"),
    [
        ("http://127.0.0.1:{closed}", 14, "the connection was refused; PREFLIGHT_BACKUP_ENDPOINT"),
        ("http://no-such-host.invalid", 14, "no address is known for its name; PREFLIGHT_BACKUP"),
        ("https://127.0.0.1:{plain}", 14, "speaks no TLS (https://); PREFLIGHT_BACKUP_ENDPOINT"),
    ],
)
def test_why_nobody_answers_is_said_with_the_address(
    run: Run, bucket: buckets.Bucket, endpoint: str, code: int, expected: str
) -> None:
    """The address is what is wrong, most often."""
    assert bucket.url
    with (
        socket.create_server((servers.HOST, 0)) as listener,
        socket.socket() as bound,  # and nobody listens
    ):
        bound.bind((servers.HOST, 0))
        call = (listener, "400 Bad Request", "x")
        threading.Thread(target=_answering, args=call, daemon=True).start()
        ports = {"closed": bound.getsockname()[1], "plain": listener.getsockname()[1]}
        address = endpoint.format(**ports)
        env = {"PREFLIGHT_BACKUP_ENDPOINT": address, "PREFLIGHT_LOCK_RETRY_S": "1"}
        result = run(env=env)
        listener.shutdown(socket.SHUT_RDWR)

    assert code == result.code, str(result)
    assert f"{expected}" in result.finished["error"]["message"], str(result)
    assert address in result.finished["error"]["message"]


def test_cut_connections_are_tried_again(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a part that is sent, and of one that is read: what arrives is whole."""
    if bucket.endpoint is None:
        pytest.skip("the cloud's own server is not behind a proxy of ours")
    host, port = bucket.endpoint.removeprefix("http://").split(":")
    with socket.create_server((servers.HOST, 0)) as listener:
        cuts = [300_000, 5_000_000, 900_000, 2_000_000]
        call = (listener, (host, int(port)), cuts)
        threading.Thread(target=_cutting, args=call, daemon=True).start()
        endpoint = f"http://{servers.HOST}:{listener.getsockname()[1]}"
        backups = store_of(buckets.Bucket(bucket.url, endpoint, bucket.keys), monkeypatch)
        sent = hashlib.sha256()
        with backups.sink("draft", "database.dump") as sink:
            for number in range(20):
                chunk = bytes([number]) * (1 << 20)
                sent.update(chunk)
                sink.write(chunk)
        found = reading_back.hashed(backups, "draft")
        listener.shutdown(socket.SHUT_RDWR)

    assert [] == cuts
    assert (sent.hexdigest(), 20 << 20) == (found.sha256, found.size_bytes)


def _cutting(listener: socket.socket, behind: tuple[str, int], cuts: list[int]) -> None:
    """Lead each caller on, and cut the first ones off after so many bytes of either way."""
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:
            return
        left = [cuts.pop(0) if cuts else sys.maxsize]
        threading.Thread(target=_between, args=(caller, behind, left), daemon=True).start()


def _between(caller: socket.socket, behind: tuple[str, int], left: list[int]) -> None:
    with caller, socket.create_connection(behind) as server:
        there = threading.Thread(target=_led, args=(caller, server, left), daemon=True)
        there.start()
        _led(server, caller, left)
        there.join()


def _led(source: socket.socket, target: socket.socket, left: list[int]) -> None:
    with contextlib.suppress(OSError):
        while (data := source.recv(65536)) and left[0] > 0:
            left[0] -= len(data)
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def test_store_that_is_killed_in_the_middle_of_a_part_settles(
    monkeypatch: pytest.MonkeyPatch, server_of_buckets: buckets.Bucket
) -> None:
    """It comes back and knows nothing of the upload: 14, run again; then all is well."""
    moto = buckets.Moto()
    moto.start()
    front = buckets.Front(moto.bucket.endpoint or "", lambda *_: None)

    def strike() -> None:
        faults.until(lambda: "PUT" in front.asked, "a part is on its way")
        moto.kill()
        moto.start()

    try:
        with front.running() as address:
            keys = server_of_buckets.keys | moto.bucket.keys
            backups = store_of(buckets.Bucket("s3://backups/x", address, keys), monkeypatch)
            for _ in range(2):
                front.asked.clear()
                with pytest.raises(objects.Refused) as refused:
                    _sent(backups, strike)
                assert "passing" == refused.value.why
                assert 14 == backups.failure(refused.value).exit_code
                assert [] == backups.files("draft")
            _sent(backups, lambda: None)
            found = reading_back.hashed(backups, "draft")
    finally:
        moto.kill()

    assert 18 << 20 == found.size_bytes


def _sent(backups: objects.Objects, between: Callable[[], None]) -> None:
    with backups.sink("draft", "database.dump") as sink:
        sink.write(bytes(9 << 20))
        between()
        sink.write(bytes(9 << 20))


def test_upload_whose_source_fails_leaves_nothing(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an object nor the parts of one, however many were sent."""
    backups = store_of(bucket, monkeypatch)

    def fail() -> None:
        with backups.sink("draft", "database.dump") as sink:
            for _ in range(20):
                sink.write(bytes(1 << 20))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert [] == backups.files("draft")


def test_draft_of_a_killed_run_is_swept_and_a_living_one_is_not(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the age of its mark, which a run at work renews."""
    me = manifests.Identity("1", "app", "x:1")
    backups = store_of(bucket, monkeypatch)
    backups._put(f"app-20260101T000000Z-a/{me.hidden('partial', 'a')}", b"")  # noqa: SLF001
    backups._put("app-20260101T000000Z-a/database.dump", b"half")  # noqa: SLF001
    with backups.draft(me, "b", 0):
        living = backups.files("app-20260101T000000Z-a")
    monkeypatch.setattr(objects, "ABANDONED_S", -1.0)
    with backups.draft(me, "c", 0) as mine:
        left = backups.files("app-20260101T000000Z-a")
        assert backups._listed(f"{mine}/")  # noqa: SLF001

    assert (["database.dump"], []) == (living, left)


RULES = (
    "<LifecycleConfiguration><Rule><ID>parts</ID><Status>Enabled</Status>"
    "<Filter><Prefix></Prefix></Filter><AbortIncompleteMultipartUpload><DaysAfterInitiation>2"
    "</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>"
)


def test_bucket_without_a_rule_for_what_killed_runs_leave_is_told(
    monkeypatch: pytest.MonkeyPatch, server_of_buckets: buckets.Bucket
) -> None:
    """Once it has one, and where nobody may ask, nothing is said."""
    if not (endpoint := server_of_buckets.endpoint):
        pytest.skip("the cloud's own bucket keeps its rules")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    buckets.put(f"{endpoint}/ruled")
    front = buckets.Front(endpoint, lambda _, path: 403 if "lifecycle" in path else None)

    def told(at: str) -> list[str]:
        bucket = buckets.Bucket("s3://ruled/x", at, server_of_buckets.keys)
        backups = store_of(bucket, monkeypatch)
        me = manifests.Identity("1", "app", "x:1")
        with structlog.testing.capture_logs() as said, backups.draft(me, "a", 0):
            return [str(each["warning"]) for each in said if each["event"] == "config.warned"]

    without = told(endpoint)
    with front.running() as address:
        denied = told(address)
    buckets.put(f"{endpoint}/ruled?lifecycle", RULES)
    ruled = told(endpoint)

    assert 1 == len(without)
    assert "AbortIncompleteMultipartUpload" in without[0]
    assert ([], []) == (denied, ruled)


@pytest.mark.parametrize("token", [None, "a/token=="])
def test_question_is_signed_as_amazons_own_library_signs_it(token: str | None) -> None:
    """With the keys of a user, and with those of a session."""
    buckets.importable()
    auth, request = importlib.import_module("botocore.auth"), "http://h:1/my-bucket?lifecycle="
    sent = importlib.import_module("botocore.awsrequest").AWSRequest("GET", request)
    keys = importlib.import_module("botocore.credentials").Credentials("k", "s/x", token)
    auth.S3SigV4Auth(keys, "s3", "eu-central-1").add_auth(sent)
    now = datetime.strptime(sent.context["timestamp"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    environ = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s/x"}
    environ |= {"AWS_SESSION_TOKEN": token} if token else {}
    found = parts_left.signed("h:1", "/my-bucket", "eu-central-1", environ, now)

    assert sent.headers["Authorization"] == found["Authorization"]


@pytest.fixture
def in_front(bucket: buckets.Bucket) -> Callable[..., contextlib.AbstractContextManager[Front]]:
    """Give a server in front of the bucket that answers some requests itself."""
    if bucket.endpoint is None:
        pytest.skip("the cloud's own server is not behind a proxy of ours")
    endpoint = bucket.endpoint

    @contextlib.contextmanager
    def make(
        answer: Callable[[str, str], int | tuple[int, str] | None] = lambda *_: None,
    ) -> Iterator[Front]:
        front = buckets.Front(endpoint, answer)
        with front.running() as address:
            yield front, buckets.Bucket(bucket.url, address, bucket.keys)

    return make


def test_key_that_may_only_read_restores_and_says_what_a_backup_lacks(
    run: Run, in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    database: servers.Database, tmp_path: Path,
) -> None:  # fmt: skip
    """A drill elsewhere needs no right to write; a run that does is 23, with the rights by name."""
    taken = run("backup").event("backup.verified")[0]["backup"]
    with in_front(lambda method, _: None if method in {"GET", "HEAD"} else 403) as (front, bucket):
        env = {**bucket.env(), "PREFLIGHT_SPOOL_DIR": str(tmp_path)}
        restored = run("restore", taken, "--into", f"{database.name}_r", env=env)
        refused = run("backup", env=env)

    assert {"PUT"} <= set(front.asked)
    assert 0 == restored.code, str(restored)
    assert 23 == refused.code, str(refused)
    assert "AccessDenied" in refused.finished["error"]["message"]
    assert "PutObject" in refused.finished["error"]["hint"]


MIDWAY = {
    (507, "XMinioStorageFull"): (23, "full", "quota"),
    (403, "QuotaExceeded"): (23, "full", "quota"),
    (404, "NoSuchBucket"): (23, "no such bucket", "Make the bucket"),
    (403, "RequestTimeTooSkewed"): (23, "clock", "clock"),
    (403, "SignatureDoesNotMatch"): (23, "does not accept the key", "AWS_SECRET_ACCESS_KEY"),
    (400, "ExpiredToken"): (23, "does not accept the key", "AWS_SESSION_TOKEN"),
    (403, "AccessDenied"): (23, "refused", "PutObject"),
    (400, "RequestTimeout"): (14, "RequestTimeout", "Run again"),
}


@pytest.mark.parametrize("verb", ["POST", "PUT"])
def test_fault_in_the_middle_of_an_upload_is_a_sentence_that_helps(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    """At its begin, and at a part: what is wrong, what to do, and nothing of it is seen."""
    answers = list(MIDWAY)
    told = {}
    with in_front(lambda method, _: answers[0] if method == verb else None) as (_, bucket):
        backups = store_of(bucket, monkeypatch)
        while answers:
            with pytest.raises(objects.Refused) as refused:
                _sent(backups, lambda: None)
            failure = backups.failure(refused.value)
            told[answers.pop(0)] = (failure.exit_code, str(failure), str(failure.problem.hint))
        there = backups.files("draft")

    assert [] == there
    for answer, (code, message, hint) in MIDWAY.items():
        assert code == told[answer][0], answer
        assert message in told[answer][1]
        assert hint in told[answer][2]


def test_restore_from_a_bucket_that_refuses_says_so(
    run: Run, in_front: Callable[..., contextlib.AbstractContextManager[Front]], tmp_path: Path
) -> None:
    """23 with what the bucket says: no volume is to be mounted."""
    with in_front(lambda *_: 403) as (_, bucket):
        env = {**bucket.env(), "PREFLIGHT_SPOOL_DIR": str(tmp_path)}
        refused = run("restore", "latest", env=env)

    assert (23, "backup.store") == (refused.code, refused.finished["error"]["code"]), str(refused)


def test_two_runs_and_a_restore_on_one_prefix_do_not_disturb_each_other(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run, start: Start, in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    server: servers.Server, database: servers.Database, create_database: CreateDatabase,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All three are in the middle of a dump at the same time; one would prune what is restored."""
    first = run("backup").event("backup.verified")[0]["backup"]
    other = create_database(server)
    expected = {("POST", f"/{database.name}-"), ("POST", f"/{other.name}-"), ("GET", f"/{first}/d")}
    together = threading.Barrier(len(expected))

    def meet(method: str, path: str) -> None:
        for each in [(verb, name) for verb, name in expected if verb == method and name in path]:
            expected.discard(each)
            together.wait(60)

    with in_front(meet) as (_, bucket):
        env = {**bucket.env(), "PREFLIGHT_BACKUP_KEEP": "1", "PREFLIGHT_SPOOL_DIR": str(tmp_path)}
        into = f"{database.name}_r"
        all_three = [
            start("backup", env=env),
            start("backup", env={**env, **other.env()}),
            start("restore", first, "--into", into, env=env),
        ]
        results = [each.wait() for each in all_three]
        there = {each.manifest.database for each in store_of(bucket, monkeypatch).listing()}

    assert set() == expected
    assert [0, 0, 0] == [each.code for each in results], "\n".join(map(str, results))
    assert {database.name, other.name} == there


@pytest.mark.parametrize(
    ("command", "silent"),
    [("backup", "database.dump"), ("restore", "database.dump"), ("backup", "list-type=2")],
)
def test_stop_ends_the_waiting_for_a_store(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run, start: Start, in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    database: servers.Database, tmp_path: Path, command: str, silent: str,
) -> None:  # fmt: skip
    """It says nothing while it is listed, or a dump is read back: the run ends by itself."""
    args = ["latest", "--into", f"{database.name}_r"] if command == "restore" else []
    if args:
        assert 0 == run("backup").code
    asked, over = threading.Event(), threading.Event()

    def answer(method: str, path: str) -> None:
        if method == "GET" and silent in path:
            asked.set()
            over.wait(60)

    with in_front(answer) as (_, bucket):
        env = {**bucket.env(), "PREFLIGHT_SPOOL_DIR": str(tmp_path)}
        process = start(command, *args, env=env)
        assert asked.wait(60)
        process.signal(signal.SIGTERM)
        result = process.wait(30)  # it says nothing for 60 s
        over.set()

    assert 143 == result.code, str(result)
    assert "without the server's answer" not in result.finished["error"]["message"]


VERBS: dict[str, Callable[[objects.Objects], object]] = {
    "list": lambda backups: backups.files("name"),
    "put": lambda backups: backups._put("name/a", b""),  # noqa: SLF001
    "head": lambda backups: backups.stamp("name", "a"),
    "delete": lambda backups: backups._delete("name/a"),  # noqa: SLF001
    "manifest": lambda backups: backups._manifest("name", {"size": 1}),  # noqa: SLF001
    "gathered": lambda backups: backups._gathered(),  # noqa: SLF001
}


@pytest.mark.parametrize("verb", VERBS)
def test_signal_is_heard_while_a_store_says_nothing(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch, verb: str,
) -> None:  # fmt: skip
    """Whatever it was asked: else a stop has no hard end, and the lock stays held."""
    heard, found = threading.Event(), []

    def answer(*_: str) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        found.append(heard.wait(3))
        return 403

    before = signal.signal(signal.SIGUSR1, lambda *_: heard.set())
    try:
        with in_front(answer) as (_, bucket), contextlib.suppress(objects.Refused):
            VERBS[verb](store_of(bucket, monkeypatch))
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert [True] == found


def test_error_now_and_then_costs_nothing(
    run: Run, in_front: Callable[..., contextlib.AbstractContextManager[Front]]
) -> None:
    """Every third request is a 500: each is asked again."""
    numbers = itertools.count(1)
    with in_front(lambda *_: 500 if next(numbers) % 3 == 0 else None) as (front, bucket):
        result = run(env=bucket.env())

    assert 0 == result.code, str(result)
    assert len(front.asked) > 10


def test_listing_asks_once_for_each_manifest(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And once for each thousand objects; a second listing asks for what is new alone."""
    with in_front() as (front, bucket):
        backups = store_of(bucket, monkeypatch)
        made = [_published(backups, str(number)) for number in range(12)]
        again = store_of(bucket, monkeypatch)
        front.asked.clear()
        listed = [each.name for each in again.listing()]
        first = len(front.asked)
        _published(again, "new")
        front.asked.clear()
        more = again.listing()

    assert sorted(made) == sorted(listed)
    assert first <= 13
    assert (13, True) == (len(more), len(front.asked) <= 2)


MANY = 60


def _many(backups: objects.Objects) -> list[str]:
    """Put backups that somebody else took."""

    def put(number: int) -> str:
        name = f"app-20260101T000000Z-{number:04}"
        manifest = manifests.Manifest(4, sha256="s", sequence=number, run_id=str(number))
        backups._put(f"{name}/database.dump", b"dump")  # noqa: SLF001
        backups._put(f"{name}/manifest.json", manifest.text())  # noqa: SLF001
        return name

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(put, range(MANY)))


def test_long_listing_takes_few_requests_once_it_was_had(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read is gathered in one object, for everybody; what is new is read beside it."""
    with in_front() as (front, bucket):
        backups = store_of(bucket, monkeypatch)
        made = _many(backups)
        first = [each.name for each in backups.listing()]
        newer = _published(backups, "newer")
        better = backups.improve(
            backups.read(made[7]), manifests.Manifest(4, sequence=7, verified="restored")
        )
        backups.withdraw(backups.read(made[8]), manifests.Identity("1", "app", "x:1"))
        front.asked.clear()
        second = store_of(bucket, monkeypatch).listing()

    assert made == first
    assert {*made, newer} - {made[8]} == {each.name for each in second}
    assert better in second
    assert len(front.asked) <= 5


def test_listing_hangs_on_nothing_that_was_gathered(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is in that object, and if it cannot be written: every manifest is as it is."""
    monkeypatch.setattr(gathered, "FEW", 2)
    refused: set[str] = set()
    with in_front(lambda method, _: 403 if method in refused else None) as (_, bucket):
        backups = store_of(bucket, monkeypatch)
        for number in range(3):
            _published(backups, str(number))
        expected = backups.listing()
        lie = expected[0].manifest.text().replace(b'"s"', b'"t"')
        found = {}
        for kind, said in {
            "torn": gathered.packed([each.manifest.text() for each in expected])[:-9],
            "foreign": b"not one of ours",
            "lying": gathered.packed([lie]),
            "endless": zlib.compress(bytes(40 << 20)),
        }.items():
            backups._put(gathered.FILE, said)  # noqa: SLF001
            refused |= {"PUT"} if kind == "torn" else set()
            found[kind] = store_of(bucket, monkeypatch).listing()
            refused.clear()
        backups._delete(gathered.FILE)  # noqa: SLF001
        found["lost"] = store_of(bucket, monkeypatch).listing()

    assert 3 == len(expected)
    assert dict.fromkeys(found, expected) == found


def test_part_that_is_slow_is_tried_again(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is sent, and one that is read: a server that says nothing for once is no end."""
    assert objects.RETRY_S > 2 * objects.ANSWER_S  # else the first silence takes up all the time
    monkeypatch.setattr(objects, "ANSWER_S", 1)
    over, silent = threading.Event(), {"PUT", "GET"}

    def answer(method: str, path: str) -> None:
        if method in silent and "database.dump" in path:
            silent.discard(method)
            over.wait(60)

    with in_front(answer) as (_, bucket):
        backups = store_of(bucket, monkeypatch)
        with backups.sink("draft", "database.dump") as sink:
            sink.write(bytes(9 << 20))
        found = reading_back.hashed(backups, "draft")
        over.set()

    assert set() == silent
    assert 9 << 20 == found.size_bytes


def test_hash_of_a_large_object_takes_few_requests(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One for each 8 MiB: a gigabyte is 128, and not 4,096."""
    with in_front() as (front, bucket):
        backups = store_of(bucket, monkeypatch)
        with backups.sink("draft", "database.dump") as sink:
            sink.write(bytes(17 << 20))
        front.asked.clear()
        found = reading_back.hashed(backups, "draft")

    assert 17 << 20 == found.size_bytes
    assert ["HEAD", "GET", "GET", "GET"] == front.asked


def _published(backups: objects.Objects, run_id: str) -> str:
    me = manifests.Identity("1", "app", "x:1")
    manifest = manifests.Manifest(
        4, sha256="s", run_id=run_id, database="app", system_identifier="1", address="x:1"
    )
    name = f"app-20260101T000000Z-{run_id}"
    backups._put(f"{name}/database.dump", b"dump")  # noqa: SLF001
    return backups.publish(name, me, manifest).name


@pytest.mark.parametrize(
    ("code", "says"), [("InvalidObjectState", "it is archived"), ("AccessDenied", "refused it")]
)
def test_backup_that_the_store_does_not_give_hides_no_other(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch, code: str, says: str,
) -> None:  # fmt: skip
    """Archived, or with another's key: it is named as what cannot be used, and all others are had.

    Asked for by its name it is 23. A key that reads nothing at all is told as that.
    """
    denied: list[str] = []

    def answer(method: str, path: str) -> tuple[int, str] | None:
        there = method == "GET" and any(f"/{each}/manifest.json" in path for each in denied)
        return (403, code) if there else None

    with in_front(answer) as (_, bucket):
        one, two = [_published(store_of(bucket, monkeypatch), run_id) for run_id in "ab"]
        denied.append(one)
        found = store_of(bucket, monkeypatch).listed()
        with pytest.raises(BackupFailed) as failed:
            restore._sought(store_of(bucket, monkeypatch), one)  # noqa: SLF001
        denied.append(two)
        all_denied = store_of(bucket, monkeypatch)
        if code == "AccessDenied":
            with pytest.raises(objects.Refused, match="AccessDenied"):
                all_denied.listed()
        else:
            assert [one, two] == [each.name for each in all_denied.listed().bad]

    assert [two] == [each.name for each in found.whole]
    assert [(one, True)] == [(each.name, f"{says} ({code}" in each.why) for each in found.bad]
    assert f"{one}/manifest.json" in str(failed.value)


def test_object_that_cannot_be_called_so_is_named_and_in_no_named_backups_way(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library passes none by: a listing is 23 with its name, a backup by its name is had."""
    if not (endpoint := bucket.endpoint):
        pytest.skip("the cloud's own server looks at signatures")
    backups = store_of(bucket, monkeypatch)
    name = _published(backups, "a")
    odd = f"{bucket.url.removeprefix('s3://backups/')}//note.txt"
    buckets.put(f"{endpoint}/backups/{odd}", "hi")
    with pytest.raises(objects.Refused) as refused:
        backups.listed()
    failure = backups.failure(refused.value)

    assert (23, True) == (failure.exit_code, odd in str(failure))
    assert [name] == [each.name for each in restore._sought(backups, name).whole]  # noqa: SLF001


@pytest.mark.parametrize("name", [".", "a//b", "a\n"])
def test_name_that_no_object_can_have_is_that_of_no_backup(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A typing error, and no bug."""
    with pytest.raises(FileNotFoundError):
        store_of(bucket, monkeypatch).read(name)


PRUNED = f".unproven-1-app-@0-{objects.PRUNED}"


def test_reader_waits_for_who_removes_and_goes_on_when_he_leaves(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each puts his mark, then looks: who removes sees the reader's, and takes his own away."""
    backups = store_of(bucket, monkeypatch)
    name = _published(backups, "r")
    backups._put(f"{name}/{PRUNED}", b"")  # noqa: SLF001
    seen = []
    listed = backups._listed  # noqa: SLF001

    def look(prefix: str = "") -> Any:  # noqa: ANN401 -- the store's own
        found = listed(prefix)
        seen.append(sorted(found[name]))
        backups._delete(f"{name}/{PRUNED}")  # noqa: SLF001
        return found

    monkeypatch.setattr(backups, "_listed", look)
    with backups.reading(name):
        assert "database.dump" in backups.files(name)

    assert PRUNED in seen[0]
    assert any(file.startswith(objects.READER) for file in seen[0])
    assert PRUNED not in seen[1]


def test_backup_that_is_being_removed_is_not_read(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest is gone, its dump not yet: a restore would lose it on its way."""
    backups = store_of(bucket, monkeypatch)
    name = _published(backups, "r")
    backups._put(f"{name}/{PRUNED}", b"")  # noqa: SLF001
    backups._delete(f"{name}/manifest.json")  # noqa: SLF001

    with pytest.raises(FileNotFoundError, match="another run"), backups.reading(name):
        pass

    assert not any(each.startswith(objects.READER) for each in backups._listed(f"{name}/")[name])  # noqa: SLF001


@pytest.mark.parametrize("refused", [1, 99])
def test_backup_that_cannot_be_deleted_is_read_at_once(
    in_front: Callable[..., contextlib.AbstractContextManager[Front]],
    monkeypatch: pytest.MonkeyPatch, refused: int,
) -> None:  # fmt: skip
    """A hold on its manifest, or a key without that right: no removal is left behind."""
    monkeypatch.setattr(objects, "AWAITED_S", -1.0)
    left = [403] * refused
    me = manifests.Identity("1", "app", "x:1")
    with in_front(lambda _, path: left.pop() if left and path.endswith("?delete") else None) as (
        _,
        bucket,
    ):
        backups = store_of(bucket, monkeypatch)
        name = _published(backups, "r")
        with pytest.raises(objects.Refused):
            backups.remove(backups.read(name), me)
        with backups.reading(name), backups.open(name, "database.dump") as stream:
            read = stream.read(99)
        marked = f"-{objects.PRUNED}" in str(backups._listed(f"{name}/"))  # noqa: SLF001
        left.clear()
        monkeypatch.setattr(objects, "READER_S", -1.0)
        gone = backups.remove(backups.read(name), me)

    assert (b"dump", refused > 1, True) == (read, marked, gone)


ROUNDS = 6
READ = """
import sys
from preflight.backup import objects
backups = objects.Objects(objects.address(sys.argv[1], sys.argv[2]), {}, None)
print("ready", flush=True)
for name in sys.stdin:
    said = "gone"
    try:
        with backups.reading(name.strip()):
            said = "torn"
            for _ in range(3):
                with backups.open(name.strip(), "database.dump") as stream:
                    said = "whole" if stream.read(99) == b"dump" else "torn"
    except FileNotFoundError:
        said = "torn" if said == "whole" else said
    print(said, flush=True)
"""


def test_reader_and_who_removes_never_meet(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes at one backup, again and again: it is read whole, or not begun."""
    backups = store_of(bucket, monkeypatch)
    env = {**os.environ, **bucket.env()}
    command = [sys.executable, "-c", READ, bucket.url, bucket.endpoint or ""]
    said = []
    with subprocess.Popen(
        command, env=env, cwd=servers.REPOSITORY, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as reader:  # fmt: skip
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert "ready\n" == reader.stdout.readline()
        for number in range(ROUNDS):
            name = _published(backups, str(number))
            me, backup = manifests.Identity("1", "app", "x:1"), backups.read(name)
            reader.stdin.write(f"{name}\n")
            reader.stdin.flush()
            gone = backups.remove(backup, me)
            said.append((reader.stdout.readline().strip(), gone))
        reader.stdin.close()

    assert ROUNDS == len(said)
    assert {("whole", False), ("whole", True), ("gone", True), ("gone", False)} >= set(said)
