"""Passwords, roles, TLS: what a server may refuse, and what must reach it unchanged."""

import os
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import program, servers
from tests.conftest import Run, Start, WriteMigrations

pytestmark = pytest.mark.usefixtures("one")

BRIEFLY = {"PREFLIGHT_WAIT_TIMEOUT_S": "0.2"}
EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
ODD = """ a'b"c\\d:e%f@g h/i?j#k&l=m+n%41é€ """


@pytest.fixture
def one(migrations: WriteMigrations) -> None:
    """Have one migration to apply."""
    migrations({"001_one.sql": "CREATE TABLE one (id int);\n"})


# a password's way


@pytest.fixture
def odd_role(database: servers.Database) -> Iterator[str]:
    """Give a superuser with the oddest password there is."""
    role = f"odd_{database.name}"
    literal = ODD.replace("'", "''")
    database.script(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{literal}'")
    yield role
    database.script(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@pytest.mark.fault("F142")
@pytest.mark.parametrize(
    "way", ["PGPASSWORD", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE", "DATABASE_URL"]
)
def test_password_arrives_as_it_is(
    run: Run, database: servers.Database, odd_role: str, tmp_path: Path, way: str
) -> None:
    """Every vocabulary carries any character, to us and to pg_dump, and shows it nowhere."""
    given = database.env(odd_role, ODD)
    names = {"PGHOST": "HOST", "PGPORT": "PORT", "PGUSER": "USER", "PGDATABASE": "DB"}
    others = {f"POSTGRES_{new}": given[old] for old, new in names.items()}
    secret = tmp_path / "secret"
    secret.write_text(f"{ODD}\n")
    quoted = urllib.parse.quote(ODD, safe="")
    url = f"postgresql://{odd_role}:{quoted}@{given['PGHOST']}:{given['PGPORT']}/{database.name}"
    ways: dict[str, dict[str, str]] = {
        "PGPASSWORD": given,
        "POSTGRES_PASSWORD": {**others, "POSTGRES_PASSWORD": ODD},
        "POSTGRES_PASSWORD_FILE": {**others, "POSTGRES_PASSWORD_FILE": str(secret)},
        "DATABASE_URL": {"DATABASE_URL": url},
    }
    result = run(env={**dict.fromkeys(given), **ways[way]})

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.verified"))
    assert [odd_role] == database.query("SELECT applied_by FROM preflight.migrations")
    assert [] == [each for each in (ODD, quoted, "e%f@g") if each in str(result)]


def test_password_is_told_to_the_client_whatever_passfile_a_service_names(
    run: Run, database: servers.Database, tmp_path: Path
) -> None:
    """It is not there yet, or has an old password: PGPASSWORD comes first, for pg_dump too."""
    (tmp_path / "passfile").write_text("*:*:*:*:old\n")
    (tmp_path / "passfile").chmod(0o600)
    services = tmp_path / "services"
    services.write_text(f"[live]\ndbname={database.name}\npassfile={tmp_path}/passfile\n")
    env = {"PGSERVICE": "live", "PGSERVICEFILE": str(services), "PGDATABASE": None}
    result = run(env={**env, "PREFLIGHT_REHEARSE": "off"})

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.verified"))


# what libpq opens by itself


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    """Give a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["PGSERVICEFILE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLCRL"])
@pytest.mark.parametrize("command", ["up", "check"])
def test_pipe_in_a_files_place_is_named(run: Run, pipe: str, name: str, command: str) -> None:
    """Libpq would wait there for ever, and let neither the deadline nor a stop request through."""
    service = {"PGSERVICE": "live", "PGHOST": None, "PGDATABASE": None, "PGPASSWORD": None}
    env = {name: pipe} | (service if name == "PGSERVICEFILE" else {})
    result = run(command, env={**BRIEFLY, **env}, timeout=20)

    error = result.finished["error"]
    assert (20, "config.invalid") == (result.code, error["code"])
    assert f"{name} names {pipe}, which is a pipe and no file" == error["message"]
    assert "copy what it holds into a file" in error["hint"]


def test_pipe_that_a_service_or_a_url_names_is_found(
    run: Run, database: servers.Database, pipe: str, tmp_path: Path
) -> None:
    """Who says it is named; of a URL no value is shown."""
    (tmp_path / "services").write_text(f"[live]\ndbname={database.name}\nsslcert={pipe}\n")
    service = {"PGSERVICE": "live", "PGSERVICEFILE": str(tmp_path / "services")}
    url = {"DATABASE_URL": f"dbname={database.name} sslrootcert={pipe}"}
    ways = [service, url, {"PREFLIGHT_REHEARSE_URL": f"host=h dbname=d sslcrl={pipe}"}]
    found = [run("check", env={"PGDATABASE": None, **way}, timeout=20) for way in ways]

    assert [
        "the service says as sslcert what is a pipe and no file",
        "DATABASE_URL: the URL says as sslrootcert what is a pipe and no file",
        "PREFLIGHT_REHEARSE_URL: the URL says as sslcrl what is a pipe and no file",
    ] == [each.finished["error"]["message"] for each in found]


def test_pipe_for_a_passfile_is_ignored_and_named(run: Run, pipe: str) -> None:
    """As psql does: with a password the run goes on, clients and copies too; without it is 21."""
    env = {"PGPASSFILE": pipe, "PREFLIGHT_REHEARSE": "always"}
    result = run(env=env)
    current = run(env=env, timeout=20)
    without = run("check", env={**BRIEFLY, **env, "PGPASSWORD": None}, timeout=20)

    assert (0, ["restored"]) == (
        result.code,
        [event["verified"] for event in result.event("rehearsal.passed")],
    )
    assert [0, 21] == [current.code, without.code]
    warning = f"PGPASSFILE names {pipe}, which is a pipe and no file: it is ignored"
    for each in (result, current, without):
        assert warning in [event["warning"] for event in each.event("config.warned")]


def test_pipe_below_home_is_found(run: Run, tmp_path: Path) -> None:
    """There libpq looks where nobody names another file."""
    home = tmp_path / "home"
    (home / ".postgresql").mkdir(parents=True)
    os.mkfifo(home / ".pgpass")
    os.mkfifo(home / ".postgresql/root.crt")
    result = run("up", env={"HOME": str(home)}, timeout=20)
    (home / ".postgresql/root.crt").unlink()

    message = f"{home}/.postgresql/root.crt is a pipe and no file"
    assert (20, message) == (result.code, result.finished["error"]["message"])
    assert [0, 0] == [run("up", env={"HOME": str(home)}).code for _ in range(2)]


# what a server refuses


def test_wrong_password_is_told_from_an_absent_server(run: Run) -> None:
    """At a deadline the class of the last failure decides: 21, not 10; the password stays ours."""
    result = run(env={**BRIEFLY, "PGPASSWORD": "not the pass word"})

    assert (21, "28P01") == (result.code, result.finished["error"]["sqlstate"])
    assert "not the pass word" not in str(result)


def test_no_password_is_a_lasting_failure(run: Run) -> None:
    """The server asks, and there is nothing to answer: libpq says so, without an SQLSTATE."""
    result = run(env={**BRIEFLY, "PGPASSWORD": None, "PGPASSFILE": "/nowhere"})

    assert 21 == result.code, str(result)


@pytest.mark.fault("A017")
def test_missing_database_is_a_wrong_target(run: Run) -> None:
    """It is named, with the variables that could be wrong."""
    result = run(env={**BRIEFLY, "PGDATABASE": "not there"})

    assert (22, "target.no_database") == (result.code, result.finished["error"]["code"])
    assert "'not there'" in result.finished["error"]["message"]
    assert "PGDATABASE" in result.finished["error"]["hint"]


def test_right_to_connect_is_missed(run: Run, database: servers.Database) -> None:
    """42501 at the door is 21 like a wrong password, and the right that is missing is named."""
    role = f"outsider_{database.name}"
    database.script(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x';"
        f' REVOKE CONNECT ON DATABASE "{database.name}" FROM PUBLIC'
    )
    result = run(env={**BRIEFLY, **database.env(role, "x")})
    database.script(f"DROP ROLE {role}")

    assert (21, "42501") == (result.code, result.finished["error"]["sqlstate"])
    grant = f'GRANT CONNECT ON DATABASE "{database.name}" TO "{role}"'
    assert grant in result.finished["error"]["hint"], result.finished


@pytest.mark.parametrize("option", ["log_statement=all", "role=postgres"])
def test_option_that_the_role_may_not_set_is_no_wrong_password(
    run: Run, database: servers.Database, option: str
) -> None:
    """21, and it is known to be the option's fault."""
    role = f"visitor_{database.name}"
    database.script(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    options = {"PGOPTIONS": f"-c {option}"}
    result = run(env={**BRIEFLY, **database.env(role, "x"), **options})
    database.script(f"DROP ROLE {role}")

    assert (21, "42501") == (result.code, result.finished["error"]["sqlstate"])
    assert "One of the options (PGOPTIONS)" in result.finished["error"]["hint"], result.finished


def test_right_that_a_login_trigger_lacks_is_neither_the_options_nor_connects(
    run: Run, database: servers.Database
) -> None:
    """21 with what the server says, and no advice to take out or grant what is not to blame."""
    role = f"visitor_{database.name}"
    database.script(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; CREATE TABLE audit ();"
        "CREATE FUNCTION noted() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF session_user LIKE 'visitor%' THEN PERFORM count(*) FROM audit; END IF; END $$;"
        "CREATE EVENT TRIGGER noted ON login EXECUTE FUNCTION noted()"
    )
    options = {"PGOPTIONS": "-c search_path=public"}
    result = run(env={**BRIEFLY, **database.env(role, "x"), **options})
    database.script(f"DROP EVENT TRIGGER noted; DROP ROLE {role}")

    assert (21, "42501") == (result.code, result.finished["error"]["sqlstate"])
    hint = result.finished["error"]["hint"]
    assert "a login trigger" in hint
    assert "PGOPTIONS" not in hint
    assert "GRANT" not in hint


@pytest.mark.fault("A016")
def test_role_and_database_made_late_are_waited_for(
    start: Start, server: servers.Server, database: servers.Database
) -> None:
    """Operators make them after the server is up: there is a grace of 15 seconds."""
    role = f"late_{database.name}"
    process = start(env={**database.env(role, "x"), "PGDATABASE": role, "PREFLIGHT_BACKUP": "off"})
    first = process.wait_for_event("server.waiting")
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {role}".encode())
        connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'x'".encode())
    result = process.wait()
    with server.connect() as connection:
        connection.execute(f"DROP DATABASE {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())

    assert "28P01" == first["sqlstate"]
    assert 0 == result.code, str(result)


@pytest.mark.fault("A016")
def test_role_of_the_options_that_is_made_late_is_waited_for(
    run: Run, start: Start, server: servers.Server, database: servers.Database
) -> None:
    """It may be made a moment after the server, too; one that never is, is named: 20."""
    role = f"late_{database.name}"
    env = {"PGOPTIONS": f"-c role={role}"}
    never = run("check", env={**BRIEFLY, **env})
    process = start("check", env=env)
    first = process.wait_for_event("server.waiting")
    with server.connect() as connection:
        connection.execute(f"CREATE ROLE {role}".encode())
    result = process.wait()
    with server.connect() as connection:
        connection.execute(f"DROP ROLE {role}".encode())

    assert (20, "config.connection") == (never.code, never.finished["error"]["code"])
    for said in (first["reason"], never.finished["error"]["message"]):
        assert f'role "{role}" does not exist' in said
    assert 3 == result.code, str(result)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("PGOPTIONS", "-c nope=1", "PGOPTIONS"),
        ("PGOPTIONS", "-c work_mem=lots", "PGOPTIONS"),
        ("PGSSLMODE", "requires", "sslmode, as PGSSLMODE or DATABASE_URL says it"),
        ("PGTARGETSESSIONATTRS", "master", "PGTARGETSESSIONATTRS or DATABASE_URL"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv9", "PGSSLMINPROTOCOLVERSION or DATABASE_URL"),
    ],
)
def test_setting_that_nobody_takes_is_named_by_its_variable(
    run: Run, variable: str, value: str, named: str
) -> None:
    """At once, and said once; its value is not shown, for it may be anything."""
    result = run("check", env={variable: value})
    error = result.finished["error"]

    assert (20, "config.connection") == (result.code, error["code"]), str(result)
    assert named in error["hint"]
    assert 1 >= error["message"].count("FATAL")
    assert value not in error["message"]


@pytest.mark.fault("A015")
def test_wrong_password_gives_up_before_the_deadline(run: Run) -> None:
    """Fifteen seconds after the first answer, and after few attempts: no lock-out is provoked."""
    result = run(env={"PGPASSWORD": "wrong", "PREFLIGHT_WAIT_TIMEOUT_S": "600"})

    assert 21 == result.code, str(result)
    assert "6 attempts" in result.finished["error"]["message"]


# what slipped into another place


@pytest.mark.parametrize(
    "options",
    ["sslmode=hunter2", "sslmode=%22hunter2%22", "service=hunter2", "require_auth=md5,hunter2",
     "target_session_attrs=hunter2", "channel_binding=hunter2", "gssencmode=hunter2",
     "ssl_min_protocol_version=hunter2", "keepalives=hunter2",
     "sslmode=verify-full&sslrootcert=hunter2", "options=hunter2",
     "options=-c%20work_mem%3Dhunter2", "options=-c%20hunter2"],
)  # fmt: skip
def test_what_could_not_be_read_is_not_repeated(run: Run, options: str) -> None:
    """Neither libpq's nor the server's quotation of an option: it may be a password."""
    env = {**BRIEFLY, "DATABASE_URL": f"postgresql://?{options}"}  # the PG* variables say the rest
    if options == "service=hunter2":
        env |= {"PGSERVICEFILE": "/nowhere"}

    result = run("check", env=env)

    assert "hunter2" not in result.stdout + result.stderr
    assert "run.finished" in result.names


# protection that was asked for


@pytest.mark.fault("A019")
@pytest.mark.parametrize(
    "asked",
    [
        {"PGSSLMODE": "require"},
        {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere"},
        {"PGCHANNELBINDING": "require", "PGSSLMODE": "disable"},
        {"PGREQUIREAUTH": "password"},
    ],
)
def test_protection_is_never_given_up(run: Run, asked: dict[str, str]) -> None:
    """A server that cannot give what was asked for gets no password."""
    result = run(env={**BRIEFLY, **asked})

    assert (21, "auth.rejected") == (result.code, result.finished["error"]["code"])


one_server = pytest.mark.xdist_group("tls")  # one worker, so that it is made once


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for 127.0.0.1, its authority, and an authority that has nothing to do."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not on PATH")
    place = tmp_path_factory.mktemp("tls")
    for name in ("right", "wrong"):
        _openssl(
            place,
            *("req", "-x509", *EC, "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"),
        )
    _openssl(
        place,
        *("req", *EC, "-nodes", "-subj", "/CN=server"),
        *("-keyout", "server.key", "-out", "server.csr"),
    )
    (place / "names").write_text(f"subjectAltName=IP:{servers.HOST}\n")
    _openssl(
        place,
        *("x509", "-req", "-in", "server.csr", "-CA", "right.crt", "-CAkey", "right.key"),
        *("-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.crt"),
    )
    return place


def _openssl(place: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=place, check=True, capture_output=True)  # noqa: S607 - of the system


@pytest.fixture(scope="module")
def tls_server(authorities: Path) -> Iterator[servers.Server]:
    """Start a server that speaks TLS and turns one role away."""
    try:
        server = servers.start(17)
    except servers.Unavailable as reason:
        pytest.skip(f"no PostgreSQL 17: {reason}")
    for name in ("server.crt", "server.key"):
        server.put(name, (authorities / name).read_text())
    server.put(
        "pg_hba.conf",
        "host all rejected all reject\n"
        "hostssl all postgres all scram-sha-256\n"
        "host all observer all trust\n",
    )
    server.configure(ssl="on")
    server.restart()
    with server.connect() as connection:
        connection.execute("CREATE DATABASE app")
        connection.execute("CREATE ROLE rejected LOGIN")
        connection.execute("CREATE ROLE observer LOGIN")
    yield server
    server.remove()


@one_server
def test_tls_is_verified_in_full_for_the_dump_too(
    run: Run, tls_server: servers.Server, authorities: Path
) -> None:
    """verify-full with the right authority, and channel binding on top of it."""
    result = run(
        env={
            **tls_server.env("app"),
            "PATH": program.path(17),  # the client 18 has no TLS
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": str(authorities / "right.crt"),
            "PGCHANNELBINDING": "require",
        }
    )

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.verified"))


@one_server
def test_key_with_a_passphrase_is_no_question_to_a_terminal(
    tls_server: servers.Server, authorities: Path, tmp_path: Path
) -> None:
    """OpenSSL would read it from where somebody might type, and hear no stop meanwhile."""
    secret = ("-aes256", "-passout", "pass:x")
    _openssl(authorities, "ec", "-in", "server.key", "-out", "secret.key", *secret)
    (authorities / "secret.key").chmod(0o600)
    keys = {"PGSSLCERT": "server.crt", "PGSSLKEY": "secret.key"}
    env = {**os.environ, **tls_server.env("app"), **BRIEFLY, "PGSSLMODE": "require"}
    env |= {name: str(authorities / file) for name, file in keys.items()}
    with subprocess.Popen(
        [sys.executable, program.ENTRYPOINT, "check"],
        env=env,
        cwd=tmp_path,
        stdin=subprocess.PIPE,  # open, and nobody writes
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            code = process.wait(program.TIMEOUT_S)
        finally:
            process.kill()
        said = process.stdout.read() if process.stdout else ""

    assert 21 == code, said
    assert "secret.key" in said
    assert "Enter PEM" not in said


@pytest.mark.fault("A020")
@one_server
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"PGSSLROOTCERT": "wrong.crt"}, "certificate verify failed"),
        ({"PGSSLROOTCERT": "right.crt", "PGHOST": "localhost"}, "does not match host name"),
    ],
)
def test_certificate_of_somebody_else_is_refused(
    run: Run,
    tls_server: servers.Server,
    authorities: Path,
    asked: dict[str, str],
    reason: str,
) -> None:
    """An unknown authority, a name that is not the host's: 21, and the check that failed."""
    env = {**tls_server.env("app"), **BRIEFLY, "PGSSLMODE": "verify-full", **asked}
    result = run(env={**env, "PGSSLROOTCERT": str(authorities / asked["PGSSLROOTCERT"])})

    assert 21 == result.code, str(result)
    assert reason in result.finished["error"]["message"]


@pytest.mark.fault("A018")
@one_server
@pytest.mark.parametrize(
    "asked", [{"PGUSER": "rejected"}, {"PGSSLMODE": "disable"}], ids=["reject", "no entry"]
)
def test_pg_hba_has_the_last_word(
    run: Run, tls_server: servers.Server, asked: dict[str, str]
) -> None:
    """A line that rejects, and no line at all."""
    result = run(env={**tls_server.env("app"), **BRIEFLY, **asked})

    assert (21, "28000") == (result.code, result.finished["error"]["sqlstate"])


@pytest.mark.fault("A021")
@one_server
def test_channel_binding_needs_more_than_trust(run: Run, tls_server: servers.Server) -> None:
    """A server that asks for nothing proves nothing."""
    env = {"PGUSER": "observer", "PGCHANNELBINDING": "require", "PGSSLMODE": "require"}
    result = run(env={**tls_server.env("app"), **BRIEFLY, **env})

    assert 21 == result.code, str(result)
