"""What a monitor sees of a run: the metrics file, and the address that is told."""

import json
import os
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from preflight.base import config
from tests import faults
from tests.conftest import Run, WriteMigrations

ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}
SECRET = "hunter2-sesame"  # noqa: S105 - a canary


class Listener(HTTPServer):
    """A server that keeps what it is told."""

    def __init__(self, code: int = 200, headers: dict[str, str] | None = None) -> None:
        """Listen on a free port, and answer everything alike."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.code, self.answered = code, headers or {}
        self.told: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def events(self) -> list[str]:
        """The names of the events that arrived, in order."""
        return [body["event"] for _, _, body in self.told]


class Handler(BaseHTTPRequestHandler):
    """Takes a POST."""

    server: Listener

    def do_POST(self) -> None:
        """Keep path, headers and body; answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told.append((self.path, dict(self.headers.items()), body))
        self.send_response(self.server.code)
        for name, value in self.server.answered.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def listening(server: Listener) -> Iterator[str]:
    """Serve meanwhile; yields host and port."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def lint(run_bare: Run, migrations: WriteMigrations, bare_environment: dict[str, str]) -> Run:
    """Run the command that needs no server, on one good file."""
    migrations(ONE)
    bare_environment |= {"POSTGRES_DB": "shop", "no_proxy": "127.0.0.1"}
    return lambda *args, **more: run_bare("lint", *args, **more)


def untold(warnings: list[dict[str, Any]]) -> list[str]:
    """Return what was said of an address that could not be told."""
    said = (each["warning"] for each in warnings)
    return [each for each in said if each.startswith("PREFLIGHT_NOTIFY_URL")]


# --- the address that is told ---------------------------------------------------------------------


def test_listener_is_told_of_beginning_and_end(lint: Run) -> None:
    """In this order, with what the log says, and with the login that the URL holds."""
    server = Listener()
    with listening(server) as place:
        url = f"http://me:{SECRET}@{place}/hook?key={SECRET}"
        result = lint(env={"PREFLIGHT_NOTIFY_URL": url})

    assert 0 == result.code, str(result)
    assert ["run.started", "run.finished"] == server.events
    assert {f"/hook?key={SECRET}"} == {path for path, _, _ in server.told}
    _, headers, finished = server.told[1]
    assert "Basic bWU6aHVudGVyMi1zZXNhbWU=" == headers["Authorization"]
    assert "application/json" == headers["Content-Type"]
    logged = result.finished
    kept = ("event", "run_id", "command", "outcome", "exit_code", "duration_s")
    assert {key: logged[key] for key in kept} == {key: finished[key] for key in kept}
    assert "shop" == finished["database"]
    assert SECRET not in str(result)
    assert "run.finished" == result.names[-1]


def test_listener_is_told_of_a_failure(lint: Run, migrations: WriteMigrations) -> None:
    """With the error object; also of settings that are wrong, which leave no other trace."""
    server = Listener()
    migrations({"002_two.sql": "SELECT 'open;\n"})
    with listening(server) as place:
        env = {"PREFLIGHT_NOTIFY_URL": f"http://{place}"}
        assert 25 == lint(env=env).code
        assert 20 == lint(env=env | {"PREFLIGHT_BACKUP_KEEP": "none"}).code

    assert ["run.started", "run.finished", "run.finished"] == server.events
    assert [25, 20] == [body["exit_code"] for _, _, body in server.told[1:]]
    assert "config.invalid" == server.told[2][2]["error"]["code"]


def test_url_in_a_file_is_told(lint: Run, tmp_path: Path) -> None:
    """A URL is a secret: it may come as one."""
    server = Listener()
    with listening(server) as place:
        (tmp_path / "url").write_text(f"http://{place}/x\n")
        lint(env={"PREFLIGHT_NOTIFY_URL_FILE": str(tmp_path / "url")})

    assert ["run.started", "run.finished"] == server.events


@pytest.mark.parametrize(
    ("code", "words"), [(500, "it answered 500"), (404, "it answered 404"), (307, "no redirect")]
)
def test_listener_that_refuses_fails_no_run(lint: Run, code: int, words: str) -> None:
    """It is said, once for each message; a redirect is not followed."""
    elsewhere = Listener()
    with listening(elsewhere) as other:
        server = Listener(code, {"Location": f"http://{other}/"})
        with listening(server) as place:
            result = lint(env={"PREFLIGHT_NOTIFY_URL": f"http://{place}/{SECRET}"})

    assert 0 == result.code, str(result)
    said = untold(result.event("config.warned"))
    assert ["run.started", "run.finished"] == [each.split(": ")[1].split()[-1] for each in said]
    assert all(words in each and f"http://{place} " in each for each in said), said
    assert [] == elsewhere.told
    assert SECRET not in str(result)


@pytest.mark.parametrize("answer", [faults.hangs_up, faults.resets, faults.breaks_tls])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_broken_listener_fails_no_run(
    lint: Run, answer: Callable[[Any], None], scheme: str
) -> None:
    """Whatever answers there, the run goes its way and says who was not told."""
    with faults.stranger(answer) as stranger:
        port = stranger["PGPORT"]
        result = lint(env={"PREFLIGHT_NOTIFY_URL": f"{scheme}://127.0.0.1:{port}/{SECRET}"})

    assert 0 == result.code, str(result)
    assert 2 == len(untold(result.event("config.warned"))), str(result)
    assert SECRET not in str(result)


def test_absent_listener_fails_no_run(lint: Run) -> None:
    """Nobody listens on a port that was free a moment ago, nor under a name that is none."""
    server = Listener()
    server.server_close()
    for place in (f"127.0.0.1:{server.server_port}", "nobody.invalid"):
        result = lint(env={"PREFLIGHT_NOTIFY_URL": f"http://{place}/{SECRET}"})

        assert 0 == result.code, str(result)
        assert 2 == len(untold(result.event("config.warned"))), str(result)
        assert SECRET not in str(result)


def test_listener_that_hangs_holds_a_run_for_five_seconds(lint: Run) -> None:
    """Both messages together, and not one after the other."""
    with faults.stranger(faults.says_nothing) as stranger:
        before = lint().duration_s
        url = f"http://127.0.0.1:{stranger['PGPORT']}/"
        result = lint(env={"PREFLIGHT_NOTIFY_URL": url})

    assert 0 == result.code, str(result)
    assert ["no answer within 5 s"] * 2 == [
        each.split(": ")[-1] for each in untold(result.event("config.warned"))
    ]
    assert before + 8 > result.duration_s, result.duration_s


def test_certificate_that_nobody_vouches_for_is_not_told(lint: Run, tmp_path: Path) -> None:
    """TLS is checked; with its certificate as SSL_CERT_FILE the same server is told."""
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    request += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    request += ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run(request, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server = Listener()
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a refused handshake
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with listening(server) as place:
        env = {"PREFLIGHT_NOTIFY_URL": f"https://{place}/"}
        refused = lint(env=env)
        assert [] == server.told
        lint(env=env | {"SSL_CERT_FILE": str(tmp_path / "certificate")})

    assert 0 == refused.code
    assert all("certificate" in each for each in untold(refused.event("config.warned"))), refused
    assert ["run.started", "run.finished"] == server.events


@pytest.mark.parametrize(
    "url", [SECRET, f"ftp://h/{SECRET}", f"http://h:{SECRET}/", f"http:///{SECRET}",
            f"http://h/{SECRET} x", f"http://[{SECRET}/"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_being_shown(lint: Run, url: str) -> None:
    """It holds a secret, wherever that has slipped to."""
    result = lint(env={"PREFLIGHT_NOTIFY_URL": url})

    assert 20 == result.code
    assert "PREFLIGHT_NOTIFY_URL" in result.finished["error"]["message"]
    assert SECRET not in str(result)


# --- the metrics file -----------------------------------------------------------------------------


def numbers(path: Path, command: str = "up") -> dict[str, float]:
    """Return the series of a command, without their prefix."""
    line = re.compile(rf'pg_preflight_(\w+){{database="[^"]*",command="{command}"}} (\S+)')
    found = [line.fullmatch(each) for each in path.read_text().splitlines()]
    return {each[1]: float(each[2]) for each in found if each}


def test_metrics_tell_how_far_the_last_backup_is_proven(
    run: Run, migrations: WriteMigrations, backup_dir: Path, environment: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """What a monitor needs: last success, size, seconds, how far proven, exit code."""
    file = tmp_path / "preflight.prom"
    environment["PREFLIGHT_METRICS_FILE"] = str(file)
    migrations(ONE)
    assert 0 == run(env={"PREFLIGHT_REHEARSE": "always"}).code
    proven = numbers(file)
    (backup,) = backup_dir.iterdir()
    assert 0 == run("backup", env={"PREFLIGHT_REHEARSE": "off"}).code
    read = numbers(file, "backup")

    assert (backup / "database.dump").stat().st_size == proven["backup_size_bytes"]
    assert (0, 1, 1) == (
        proven["last_run_exit_code"],
        proven["last_run_applied_migrations"],
        proven["backup_restored"],
    )
    assert proven["last_run_timestamp_seconds"] == proven["last_success_timestamp_seconds"]
    assert 0 < proven["backup_duration_seconds"] < proven["last_run_duration_seconds"]
    assert 0 == read["backup_restored"]
    assert proven == numbers(file)
    assert 0o644 == file.stat().st_mode & 0o777


def test_backup_is_proven_whatever_becomes_of_the_files(
    run: Run, migrations: WriteMigrations, backup_dir: Path, tmp_path: Path
) -> None:
    """A file that fails on the copy makes its backup no worse: people and monitors are told so."""
    file = tmp_path / "preflight.prom"
    migrations({"001_a.sql": "SELECT 1 / 0;"})
    result = run(
        env={
            "PREFLIGHT_METRICS_FILE": str(file),
            "PREFLIGHT_REHEARSE": "always",
            "PREFLIGHT_LOG": "console",
        }
    )
    manifest = json.loads(next(backup_dir.glob("*/manifest.json")).read_text())

    assert (27, "restored") == (result.code, manifest["verified"]), result
    assert "proof    restored and compared\n" in result.stdout
    assert 1 == numbers(file)["backup_restored"]
    assert [file] == list(tmp_path.glob("*.prom*"))


def test_metrics_of_a_failure_keep_the_last_success(lint: Run, tmp_path: Path) -> None:
    """A monitor that looks after the failure still sees how old the last success is."""
    file = tmp_path / "preflight.prom"
    file.write_text("what someone else left\n")
    env = {"PREFLIGHT_METRICS_FILE": str(file)}
    lint(env=env)
    good = numbers(file, "lint")
    wrong = lint(env=env | {"PREFLIGHT_MIGRATIONS_DIR": str(tmp_path / "gone")})
    bad = numbers(file, "lint")

    assert 20 == wrong.code
    assert 20 == bad["last_run_exit_code"]
    assert good["last_success_timestamp_seconds"] == bad["last_success_timestamp_seconds"]


def test_metrics_of_wrong_settings_go_once_they_are_right(lint: Run, tmp_path: Path) -> None:
    """Nobody knows the database then; the series must not ring for ever."""
    file = tmp_path / "preflight.prom"
    env = {"PREFLIGHT_METRICS_FILE": str(file)}
    assert 20 == lint(env=env | {"PREFLIGHT_LOG_SQL": "perhaps"}).code
    assert 'exit_code{database="",command="lint"} 20\n' in file.read_text()
    assert 0 == lint(env=env).code

    assert 'database=""' not in file.read_text()


def test_metrics_never_replace_what_is_no_file(lint: Run, tmp_path: Path) -> None:
    """A device, a FIFO, a directory, a place that is not there: a warning, and the run goes on."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("fifo", "directory", "gone/file"):
        result = lint(env={"PREFLIGHT_METRICS_FILE": str(tmp_path / name)})

        assert 0 == result.code, str(result)
        (warned,) = result.event("config.warned")
        assert warned["warning"].startswith("PREFLIGHT_METRICS_FILE could not be written: ")
        assert "run.finished" == result.names[-1]
    assert (tmp_path / "fifo").is_fifo()
    assert [] == [*tmp_path.glob(".*"), *tmp_path.glob("directory/*")]


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "Ünïcorn", "a\u2028b\x85c\rd"])
def test_any_database_name_is_a_label(lint: Run, tmp_path: Path, name: str) -> None:
    """Quotes, backslashes and line ends are escaped, and found again by the next run."""
    file = tmp_path / "preflight.prom"
    env = {"PREFLIGHT_METRICS_FILE": str(file), "POSTGRES_DB": name}
    assert 0 == lint(env=env).code
    assert 20 == lint(env=env | {"PREFLIGHT_MIGRATIONS_DIR": str(tmp_path / "gone")}).code
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    labels = f'{{database="{escaped}",command="lint"}}'

    lines = file.read_bytes().decode().split("\n")
    assert 1 == lines.count(f"pg_preflight_last_run_exit_code{labels} 20")
    assert 1 == sum(f"last_success_timestamp_seconds{labels}" in each for each in lines)


def test_children_do_not_see_the_url() -> None:
    """It is a secret, and pg_dump has no use for it."""
    seen = config.child_environment({"PREFLIGHT_NOTIFY_URL": SECRET, "PATH": "/bin"})

    assert "/bin" == seen["PATH"]
    assert SECRET not in seen.values()
