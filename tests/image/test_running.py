"""The image at work: read-only, without capabilities, as PID 1, any user, against real servers."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests import containers, servers
from tests.conftest import StartServer, WriteMigrations
from tests.image.conftest import RunJob, StartJob

CAT = {"001_create_cat.sql": "CREATE TABLE cat (name text);"}
SLOW = {
    **CAT,
    "002_take_long.sql": "CREATE TABLE dog (name text);\nSELECT pg_sleep(3600);",
}


@pytest.mark.fault("F134", "F135")
def test_the_job_needs_only_its_volumes(
    run_job: RunJob, migrations: WriteMigrations, database: servers.Database
) -> None:
    """Read-only, no capabilities, no new privileges, 128 MB; the second run has nothing to do."""
    migrations(CAT)

    first, second = run_job(), run_job()

    assert (0, ["001_create_cat"]) == (first.code, first.finished["applied"]), str(first)
    assert 1 == len(first.event("backup.verified"))
    assert 0 == second.code
    assert [] == second.event("backup.started")
    assert "run.finished" == second.names[-1]
    assert second.finished["duration_s"] < 1
    assert ["cat"] == database.query("SELECT relname FROM pg_class WHERE relname = 'cat'")


@pytest.mark.fault("D095", "F136")
def test_statement_that_the_container_has_no_memory_for_is_refused(
    run_job: RunJob, migrations: WriteMigrations, database: servers.Database
) -> None:
    """The kernel would kill the job in the middle of it, and at each start again: 25 says why."""
    text = f"{CAT['001_create_cat.sql']}\nINSERT INTO cat VALUES ('{'x' * 40_000_000}');"
    migrations({"001_create_cat.sql": text})

    result = run_job()

    assert 25 == result.code, str(result)
    message = result.finished["error"]["message"]
    assert "001_create_cat.sql:2:1: one statement of 40.0 MB takes at least" in message
    assert "and there are 134 MB" in message
    assert [] == database.query("SELECT relname FROM pg_class WHERE relname = 'cat'")

    result = run_job(options=["--memory", "256m"])

    assert (0, ["001_create_cat"]) == (result.code, result.finished["applied"]), str(result)


@pytest.mark.fault("F133")
@pytest.mark.parametrize("user", ["65532:65532", "12345:0", "1000:1000"])
def test_any_user_will_do(
    run_job: RunJob, migrations: WriteMigrations, backups: str, user: str
) -> None:
    """Without an entry in /etc/passwd and without a home; group 0 may use a new volume at once."""
    migrations(CAT)
    if not user.endswith(":0"):
        containers.put(backups, {"used": ""}, f"chown {user} .")  # an empty one is made anew

    result = run_job(options=["--user", user])

    assert 0 == result.code, str(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--check",),
        ("check",),
    ],
    ids=["old", "new"],
)
def test_check_in_both_spellings(
    run_job: RunJob, migrations: WriteMigrations, arguments: tuple[str, ...]
) -> None:
    """`docker run IMAGE --check` is what people type, and 3 says that something is pending."""
    migrations(CAT)

    result = run_job(*arguments)

    assert (3, "pending") == (result.code, result.finished["outcome"])


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONUTF8": "x"},
        {"PYTHONIOENCODING": "x"},
        {"PYTHONHOME": "/nowhere"},
        {"PYTHONPATH": "/app/preflight", "PYTHONSAFEPATH": "1"},  # its `logs` is not a module's
        {"PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONHASHSEED": "x"},
    ],
    ids=" ".join,
)
def test_variables_for_the_apps_python_do_not_stop_the_job(
    run_job: RunJob, migrations: WriteMigrations, env: dict[str, str]
) -> None:
    """An env file that job and app share; some of these end an interpreter without a line."""
    migrations(CAT)

    result = run_job("check", env=env)

    assert (3, "pending") == (result.code, result.finished["outcome"]), str(result)


def test_old_name_of_the_program_still_works(run_job: RunJob, migrations: WriteMigrations) -> None:
    """`python3 /app/run_migration.py --check`, as Ops-Center's operators know it."""
    migrations(CAT)

    result = run_job(*("/app/run_migration.py", "--check"), options=["--entrypoint", "python3"])

    assert 3 == result.code, str(result)


def test_backup_in_the_containers_own_layer_is_refused(
    docker: containers.Containers, database: servers.Database, migrations: WriteMigrations
) -> None:
    """23, with the line that is missing; nothing was migrated."""
    result = docker.run(
        env=database.env(),
        options=["--volume", f"{migrations(CAT)}:/app/migrations:ro"],
    )

    error = result.finished["error"]
    assert (23, "backup.not_mounted") == (result.code, error["code"]), str(result)
    assert "-v backups:/backups" in error["hint"]
    assert [] == database.query("SELECT 1 FROM pg_class WHERE relname = 'cat'")


@pytest.mark.parametrize(
    ("code", "files", "env"),
    [
        (10, CAT, {"PGPORT": "1", "PREFLIGHT_WAIT_TIMEOUT_S": "1"}),
        (20, CAT, {"PREFLIGHT_BAKUP_DIR": "/backups"}),
        (20, {}, {}),
        (21, CAT, {"PGPASSWORD": "wrong", "PREFLIGHT_WAIT_TIMEOUT_S": "3600"}),
        (22, CAT, {"PGDATABASE": "nowhere", "PREFLIGHT_WAIT_TIMEOUT_S": "3600"}),
        (25, {"001_x.sql": "SELECT 'open"}, {}),
        (27, {"001_x.sql": "SELECT 1/0;"}, {}),
        (30, {"001_x.sql": "SELECT 1/0;"}, {"PREFLIGHT_REHEARSE": "off"}),
    ],
)
def test_exit_code_last_line_and_termination_message_agree(  # noqa: PLR0913,PLR0917 - fixtures
    run_job: RunJob,
    migrations: WriteMigrations,
    tmp_path: Path,
    code: int,
    files: dict[str, str],
    env: dict[str, str],
) -> None:
    """What `docker wait`, the log's last line and `kubectl describe pod` show is one thing.

    A wrong password gives up soon although it was told to wait for an hour: libpq is asked for
    the SQLSTATE, through ctypes, in the image too.
    """
    migrations(files)
    message = tmp_path / "message"
    message.touch()
    message.chmod(0o666)  # as the kubelet makes it

    result = run_job(env=env, options=["--volume", f"{message}:/dev/termination-log"])

    last = json.loads(result.stdout.splitlines()[-1])
    left = message.read_bytes()
    told = json.loads(left)
    assert (code, code) == (result.code, last["exit_code"]), str(result)
    assert last["error"] == told["error"]
    assert {"code", "message"} <= told["error"].keys()
    assert len(left) <= 4096
    assert 1 == len(left.splitlines())


NEWER = [major for major in servers.MAJORS if major > containers.CLIENT]

if NEWER:  # the image with the newest client has no server to refuse

    @pytest.mark.parametrize("major", NEWER)
    def test_newer_server_is_refused_with_the_tag_to_use(
        docker: containers.Containers,
        start_server: StartServer,
        backups: str,
        migrations: WriteMigrations,
        major: int,
    ) -> None:
        """pg_dump refuses to dump a newer server: the hint names the image that can."""
        server = start_server(major)

        result = docker.run(
            env=server.env("postgres"),
            options=[
                *("--volume", f"{backups}:/backups"),
                *("--volume", f"{migrations(CAT)}:/app/migrations:ro"),
            ],
        )

        error = result.finished["error"]
        assert (23, "backup.client_too_old") == (result.code, error["code"])
        assert f"pg{major}" in error["hint"]


def test_three_at_once_apply_each_file_once(
    start_job: StartJob, migrations: WriteMigrations, database: servers.Database
) -> None:
    """Three replicas of a pod start together: all end with 0, one applies, one backup is taken."""
    migrations(CAT)
    jobs = [start_job() for _ in range(3)]

    results = [job.wait() for job in jobs]

    assert [0, 0, 0] == [result.code for result in results]
    assert 1 == sum(len(result.event("migration.applied")) for result in results)
    assert 1 == sum(len(result.event("backup.verified")) for result in results)
    assert [1] == database.query("SELECT version FROM preflight.migrations")


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_stop_while_waiting(
    start_job: StartJob, migrations: WriteMigrations, signal: str, code: int
) -> None:
    """PID 1 has no default handler: a job that did not ask for signals would never stop."""
    migrations(CAT)
    job = start_job(env={"PGPORT": "1"})
    job.wait_for_event("server.waiting")

    job.stop(signal)

    assert code == job.wait().code


@pytest.mark.fault("F132")
def test_stop_in_a_statement_leaves_no_session_and_no_zombie(
    start_job: StartJob, migrations: WriteMigrations, database: servers.Database
) -> None:
    """The programs that PID 1 started are reaped, the statement is cancelled, the file undone."""
    migrations(SLOW)
    job = start_job(env={"PREFLIGHT_REHEARSE": "off"})
    job.wait_for_event("migration.started", migration="002_take_long")
    processes = job.processes()
    began = time.monotonic()

    job.stop("SIGTERM")
    result = job.wait()
    stopped_s = time.monotonic() - began

    assert ["python3"] == [line.split()[-1] for line in processes]
    assert 143 == result.code, str(result)
    assert stopped_s < 5
    assert ["001_create_cat"] == result.finished["applied"]
    assert 0 == database.sessions()
    assert [] == database.query("SELECT 1 FROM pg_class WHERE relname = 'dog'")


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "mode", "options"),
    [
        ("65532:65532", "0400", ()),
        ("0:2000", "0440", ("--group-add", "2000")),  # what fsGroup makes of a Secret
    ],
    ids=["0400", "0440 by group"],
)
def test_password_comes_from_a_file(  # noqa: PLR0913,PLR0917 - fixtures
    docker: containers.Containers,
    run_job: RunJob,
    migrations: WriteMigrations,
    database: servers.Database,
    owner: str,
    mode: str,
    options: tuple[str, ...],
) -> None:
    """With the newline that an editor leaves, for our session and for pg_dump."""
    migrations(CAT)
    password = database.env()["PGPASSWORD"]
    secrets = docker.volume(
        {"password": f"{password}\n"},
        f"chown {owner} password; chmod {mode} password; chmod 0755 .",
    )

    result = run_job(
        env={"PGPASSWORD": None, "POSTGRES_PASSWORD_FILE": "/secrets/password"},
        options=["--volume", f"{secrets}:/secrets:ro", *options],
    )

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.verified"))


def test_service_link_is_no_setting(run_job: RunJob, migrations: WriteMigrations) -> None:
    """A Service of that name sets these in every pod of its namespace."""
    migrations(CAT)
    links = {
        "UNICORN_POSTGRESQL_PORT": "tcp://10.0.0.1:5432",
        "UNICORN_POSTGRESQL_SERVICE_HOST": "10.0.0.1",
        "POSTGRES_PORT": "tcp://10.0.0.1:5432",
        "POSTGRES_SERVICE_HOST": "10.0.0.1",
    }

    result = run_job(env=links)

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("config.warned"))


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Make an authority, a certificate for the server, and an authority that has not signed it."""
    place = tmp_path / "tls"
    place.mkdir()
    keys = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("right", "wrong"):
        _openssl(
            place, "req", "-x509", *keys, "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.crt",
        )  # fmt: skip
    _openssl(
        place, "req", "-x509", *keys, "-subj", "/CN=server", "-CA", "right.crt", "-CAkey",
        "right.key", "-addext", f"subjectAltName=IP:{servers.HOST}",
        "-keyout", "server.key", "-out", "server.crt",
    )  # fmt: skip
    return place


def _openssl(place: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=place, check=True, capture_output=True)  # noqa: S607 - of the system


def test_tls_is_verified_in_full(
    docker: containers.Containers,
    start_server: StartServer,
    authority: Path,
    backups: str,
    migrations: WriteMigrations,
) -> None:
    """The server's own authority, by file: for us and for pg_dump; another authority is 21."""
    server = start_server(17)
    for name in ("server.crt", "server.key"):
        server.put(name, (authority / name).read_text())
    server.put("pg_hba.conf", "hostssl all all all scram-sha-256\n")
    server.configure(ssl="on")
    server.restart()
    options = [
        *containers.STRICT,
        *("--volume", f"{backups}:/backups"),
        *("--volume", f"{migrations(CAT)}:/app/migrations:ro"),
        *("--volume", f"{authority / 'right.crt'}:/tls/right.crt:ro"),
        *("--volume", f"{authority / 'wrong.crt'}:/tls/wrong.crt:ro"),
    ]
    env = {
        **server.env("postgres"),
        "PGSSLMODE": "verify-full",
        "PREFLIGHT_WAIT_TIMEOUT_S": "3600",
    }

    wrong = docker.run(env={**env, "PGSSLROOTCERT": "/tls/wrong.crt"}, options=options)
    system = docker.run(env={**env, "PGSSLROOTCERT": "system"}, options=options)
    right = docker.run(env={**env, "PGSSLROOTCERT": "/tls/right.crt"}, options=options)

    assert (21, 21, 0) == (wrong.code, system.code, right.code), str(right)
    assert "certificate verify failed" in system.finished["error"]["message"]
    assert 1 == len(right.event("backup.verified"))


def test_system_authorities_are_where_libpq_looks(docker: containers.Containers) -> None:
    """PGSSLROOTCERT=system reads the image's certificates."""
    script = (
        "import ssl; print(len(ssl.create_default_context().get_ca_certs()), "
        "ssl.get_default_verify_paths().openssl_cafile)"
    )

    result = docker.run("-c", script, options=["--entrypoint", "python3"])

    count, path = result.stdout.split()
    assert int(count) > 50
    assert re.fullmatch(r"/usr/lib/ssl/cert\.pem", path)


# --- how users bring their files ------------------------------------------------------------------


def test_user_image_with_files_copied_in(
    docker: containers.Containers, database: servers.Database, backups: str
) -> None:
    """examples/copy: FROM our image and one COPY."""
    context = containers.REPOSITORY / "examples" / "copy"
    tag = containers.build(
        context, "--build-arg", f"PREFLIGHT={containers.IMAGE}", tag="pg-preflight-test/copy"
    )

    result = docker.run(
        env=database.env(),
        options=[*containers.STRICT, "--volume", f"{backups}:/backups"],
        image=tag,
    )

    names = sorted(path.stem for path in (context / "migrations").glob("[0-9]*[a-z].sql"))
    wanted = [name for name in names if not name.endswith(("_verify", "_rollback", "_export"))]
    assert (0, wanted) == (result.code, result.finished["applied"]), str(result)


def test_image_without_files_says_how_to_bring_them(
    docker: containers.Containers, database: servers.Database
) -> None:
    """A wrong mount must not look like success."""
    result = docker.run(env=database.env())

    assert (20, "config.migrations_dir") == (result.code, result.finished["error"]["code"])
