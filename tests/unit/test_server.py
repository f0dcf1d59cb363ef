"""How a failed attempt is told from another, and how long we go on; without any server."""

import contextlib
import os
import socket
import time
from pathlib import Path

import pytest
import structlog
import tenacity

from preflight.base import errors
from preflight.server import dial, ready, sessions, waiting
from tests import program

DEAD = 'connection to server at "db" (10.0.0.1), port 5432 failed: Connection refused'
CACHED = "server login has been failing, cached error:"  # of PgBouncer
REFUSED = 'connection to server at "db" (10.0.0.1), port 5432 failed:'


@pytest.mark.parametrize(
    ("kind", "sqlstate", "german"),
    [
        ("auth", "28P01", "Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen"),
        ("auth", "28000", "kein pg_hba.conf-Eintrag für Host »10.0.0.9«, Benutzer »app«"),
        ("auth", "42501", "keine Berechtigung für Datenbank »app«"),
        ("database", "3D000", "Datenbank »app« existiert nicht"),
        ("passing", "57P03", "das Datenbanksystem startet"),
        ("passing", "53300", "tut mir leid, schon zu viele Verbindungen"),
        ("config", "42704", "unbekannter Konfigurationsparameter »certificate«"),
        ("alien", "0A000", "nicht unterstütztes Frontend-Protokoll 3.0"),
    ],
)
def test_server_is_understood_in_any_language(kind: str, sqlstate: str, german: str) -> None:
    """What the server says is told by its SQLSTATE; its words may be any."""
    for words in (german, "", "does not support SSL, no password supplied, certificate"):
        text = f"FATAL:  {sqlstate}: {words}"

        assert kind == dial.kind_of(text, [sqlstate], needs_password=True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("passing", DEAD),
        ("passing", "server closed the connection unexpectedly"),
        ("passing", "SSL error: unexpected eof while reading"),
        ("passing", "SSL SYSCALL error: Connection reset by peer"),
        ("auth", "server does not support SSL, but SSL was required"),
        ("auth", "SSL error: certificate verify failed"),
        ("auth", 'server certificate for "a" does not match host name "b"'),
        ("auth", "channel binding required, but SSL not in use"),
        ("auth", "fe_sendauth: no password supplied"),
        ("auth", "server doesn't support GSSAPI encryption, but it was required"),
        ("auth", "GSSAPI encryption required but it is not supported over a local socket"),
        ("auth", "GSSAPI encryption required but no credential cache"),
        ("auth", 'requirepeer specifies "a", but actual peer user name is "b"'),
        ("auth", "authentication method 9 not supported"),
        ("auth", "none of the server's SASL authentication mechanisms are supported"),
        ("alien", "received invalid response to SSL negotiation: H"),
        ("standby", "session is read-only"),
        ("standby", f"{REFUSED} session is read-only\n{REFUSED} session is read-only"),
        ("passing", f"{REFUSED} session is read-only\n{REFUSED} Connection refused\n\tIs it up?"),
        ("config", 'invalid sslmode value: "sometimes"'),
        ("config", "local user with ID 4242 does not exist"),
        ("passing", "could not look up local user ID 4242: Input/output error"),
        ("config", "host name must be specified for a verified SSL connection"),
        ("config", 'server only supports protocol version 3.0, but "min_protocol_version" was set'),
        ("config", 'gssencmode value "require" invalid when GSSAPI support is not compiled in'),
        ("passing", f'could not parse network address "x": Name or service not known\n{DEAD}'),
    ],
)
def test_libpq_is_understood_by_its_words(kind: str, text: str) -> None:
    """Its language is English here, and it has no SQLSTATE."""
    assert kind == dial.kind_of(text, [], needs_password=False)


@pytest.mark.parametrize(
    "target",
    [
        {"sslnegotiation": "direct"},
        {"sslrootcert": "system", "sslmode": "require"},
        {"ssl_min_protocol_version": "TLSv1.3", "ssl_max_protocol_version": "TLSv1.2"},
        {"min_protocol_version": "3.2", "max_protocol_version": "3.0"},
        {"require_auth": "md5,md5"},
        {"require_auth": "md5,!password"},
        {"require_auth": "!md5,password"},
        {"scram_client_key": "x"},
        {"hostaddr": "127.0.0.1,127.0.0.2"},
        {"hostaddr": "db"},
        {"host": "a.invalid,b.invalid,c.invalid", "port": "1,2"},
        {"host": "a.invalid", "port": "1,2"},
        {"host": f"/{120 * 'x'}"},
    ],
    ids=lambda target: str(target)[:60],
)
def test_settings_that_libpq_refuses_are_not_waited_for(target: dict[str, str]) -> None:
    """It says so before it looks for any server, and will say so again."""
    with pytest.raises(dial.Refused) as refused:
        dial.connect({"host": "127.0.0.1", "port": "1", **target}, 5)

    assert "config" == refused.value.kind, str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["[y]", "[x]\nwords", "[x]\nnothing=1", "[x]\nservice=y", "[x]\nldap://", 2000 * "x", None],
    ids=["not in it", "syntax", "option", "nested", "LDAP", "line", "no file"],
)
def test_service_file_that_cannot_be_read_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """Nor one that is not there."""
    services = tmp_path / "my services"
    if text is not None:
        services.write_text(f"{text}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    with pytest.raises(dial.Refused) as refused:
        dial.connect({"service": "x"}, 5)

    assert "config" == refused.value.kind, str(refused.value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("options", "unsupported startup parameter: options"),
        ("options", "unsupported startup parameter in options: role"),
        ("auth", "password authentication failed"),
        ("auth", "SASL authentication failed"),
        ("auth", "SSL required"),
        ("auth", "login rejected"),
        ("auth", "unix socket login rejected"),
        ("auth", "no such user"),
        ("auth", "no such user: app"),
        ("auth", "Auth failed"),
        ("auth", "certificate authentication failed"),
        ("auth", "PAM authentication failed"),
        ("auth", "LDAP authentication failed"),
        ("auth", '"trust" authentication failed'),
        ("auth", "empty password returned by client"),
        ("auth", "server login failed: wrong password type"),
        ("auth", f'{CACHED} password authentication failed for user "app" (server_login_retry)'),
        ("database", "no such database: login rejected"),
        ("database", 'database "app" does not exist'),
        ("database", f'{CACHED} database "app" does not exist (server_login_retry)'),
        ("auth", 'role "app" does not exist'),
        ("auth", 'role "app" is not permitted to log in'),
        ("auth", 'no pg_hba.conf entry for host "10.0.0.9", user "app", database "app", no SSL'),
        ("auth", 'permission denied for database "app"'),
        ("passing", "query_wait_timeout"),
        ("passing", "client_login_timeout (server down)"),
        ("passing", "pgbouncer cannot connect to server"),
        ("passing", "pooler is shutting down"),
        ("passing", 'database "app" is disabled'),
        ("passing", "no more connections allowed (max_client_conn)"),
        ("passing", "error response from auth_query"),
        ("passing", f"{CACHED} connect failed"),
        ("passing", f"{CACHED} the database system is starting up (server_login_retry)"),
    ],
)
def test_pooler_is_understood_by_its_words(kind: str, text: str) -> None:
    """PgBouncer has one SQLSTATE for everything, and one language; what passes is waited for."""
    assert kind == dial.kind_of(f"FATAL:  08P01: {text}", ["08P01"], needs_password=False)


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ("-c role=owner -c search_path=app", {"owner"}),
        ("-crole=a --session-authorization=b", {"a", "b"}),
        (r"-c ROLE=my\ role", {"my role"}),
        ("-c app.role=x -c work_mem=role=y", set()),
    ],
)
def test_roles_are_found_among_the_options(options: str, roles: set[str]) -> None:
    """As libpq and the server read them."""
    assert roles == dial.roles_of(options)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (True, 'role "a" does not exist\nLOCATION:  check_role, variable.c:1'),
        (True, "Rolle »a« existiert nicht"),
        (True, "le rôle «\u00a0a\u00a0» n'existe pas"),
        (True, "le r\ufffdle \ufffd\ufffda\ufffd\ufffd n'existe pas"),
        (True, 'role "my "b" does not exist'),
        (False, 'role "ab" does not exist'),
        (False, 'invalid value for parameter "statement_timeout": "bad"'),
        (False, 'invalid value for parameter "DateStyle": "a"\nDETAIL:  No such word: "a".'),
        (False, "ungültiger Wert für Parameter »DateStyle«: »a«"),
    ],
)
def test_missing_role_is_told_from_a_wrong_value_of_another_option(
    missing: bool,  # noqa: FBT001 -- a parameter
    text: str,
) -> None:
    """In whichever language the server says it."""
    said = f'connection to server at "a", port 1 failed: FATAL:  22023: {text}\n'
    assert missing == dial.misses(said, {"a", 'my "b'})
    assert not dial.misses(said, set())


def test_lasting_failure_of_one_host_outlasts_a_passing_one() -> None:
    """With several hosts, the one that answered says more than the one that did not."""
    assert "auth" == dial.kind_of(f"{DEAD}\nFATAL:  28P01: no", ["28P01"], needs_password=False)


def test_every_address_of_every_host_is_dialled() -> None:
    """A socket directory, two ports and a name that is unknown: what is known is tried in order."""
    hosts = {"host": "/run/pg,nowhere.invalid,127.0.0.1", "port": "1,2,3"}

    assert [("/run/pg", "", "1"), ("127.0.0.1", "127.0.0.1", "3")] == dial.resolve(hosts)


def test_one_port_serves_all_hosts() -> None:
    """As libpq reads it."""
    found = dial.resolve({"host": "127.0.0.1,127.0.0.2", "port": "7"})

    assert ["7", "7"] == [port for _, _, port in found]


def test_no_attempt_outlives_the_deadline() -> None:
    """Two silent hosts, and a second and a half left: both still get their turn."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        with pytest.raises(dial.Refused) as refused:
            dial.connect({"host": "127.0.0.1,127.0.0.1", "port": f"{port},{port}"}, 0.5)

    assert "passing" == refused.value.kind
    assert f"127.0.0.1:{port}" in str(refused.value)


@pytest.mark.parametrize(
    ("silent", "target"),
    [
        (1, {"hostaddr": "127.0.0.1,127.0.0.2"}),
        (1, {"host": "a,b", "hostaddr": "127.0.0.1,127.0.0.2"}),
        (1, {"host": "a,127.0.0.2", "hostaddr": "127.0.0.1,"}),
        (1, {"service": "prod"}),
        (2, {"host": "three.addresses"}),
    ],
)
def test_silent_address_hides_none_behind_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent: int, target: dict[str, str]
) -> None:
    """However they were named, and if a name has more of them than could be known."""
    services = tmp_path / "services"
    services.write_text("[prod]\nhost=127.0.0.1,127.0.0.2\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setattr(socket, "getaddrinfo", _three_addresses)
    monkeypatch.setattr(dial, "LEAST_S", 0.25)
    with contextlib.ExitStack() as open_:
        port = 0
        for number in range(1, silent + 1):
            listener = socket.create_server((f"127.0.0.{number}", port))
            port = open_.enter_context(listener).getsockname()[1]
        with pytest.raises(dial.Refused, match="Connection refused") as refused:
            dial.connect({"port": str(port), **target}, 0.1)

    assert f"127.0.0.{silent + 1}" in str(refused.value)


def _three_addresses(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
    found = [host] if host[0].isdigit() else [f"127.0.0.{number}" for number in (1, 2, 3)]
    return [(None, None, None, "", (each, 0)) for each in found]


def test_address_of_the_environment_leads_no_other_host_astray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PGHOSTADDR is the live server's; a scratch server is named without it."""
    monkeypatch.setenv("PGHOSTADDR", "203.0.113.1")

    assert [("127.0.0.1", "127.0.0.1", "5432")] == dial.resolve({"host": "127.0.0.1"})


def test_settings_stand_behind_those_of_a_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is given takes the place of what the service file says, and of no part of it."""
    services = tmp_path / "services"
    services.write_text("[prod]\noptions=-c search_path=app\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))

    assert {"service": "prod", "options": "-c search_path=app -c role=me"} == (
        sessions.with_settings({"service": "prod"}, {"role": "me"})
    )
    assert (
        "-c role=me"
        == sessions.with_settings({"service": "prod", "options": ""}, {"role": "me"})["options"]
    )


@pytest.mark.parametrize("name", ["PGPASSFILE", "PGSSLROOTCERT", "PGSSLKEY"])
def test_path_that_is_not_utf8_hides_no_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux takes any bytes; the server is merely not up, and that is what is said."""
    monkeypatch.setenv(name, "/nowhere/caf\udce9")
    with pytest.raises(dial.Refused) as raised:
        dial.connect({"host": "127.0.0.1", "port": "1"}, 5)

    assert "passing" == raised.value.kind
    assert "Connection refused" in str(raised.value)


def test_library_is_found_beside_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    """What else is mapped has any name."""
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    code = (
        "import mmap, os, sys; from preflight.server import dial\n"
        f"file = os.open(os.fsencode({str(tmp_path)!r}) + b'/caf\\xe9', os.O_RDONLY)\n"
        "mapped = mmap.mmap(file, 1, prot=mmap.PROT_READ)\n"
        "sys.exit(dial._libpq() is None)"
    )
    ended = program.bounded(code)

    assert (0, "") == (ended.returncode, ended.stderr)


def test_name_of_any_host_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux takes any bytes for it, libpq and the history only a text."""
    named = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*named[:1], "caf\udce9", *named[2:])))

    assert r"pg-preflight@caf\udce9: up" == sessions.application_name("up")
    assert 63 == len(sessions.application_name("x" * 60).encode())


class Old(sessions.Session):
    """A session that a server of long ago answered."""

    def __init__(self) -> None:
        """Know the facts, and nothing else."""
        self.facts = sessions.Facts(
            90624, "app", "app", standby=False, read_only=False, pooler=False
        )


def test_old_server_is_refused() -> None:
    """A major version that nobody tested is no place to work."""
    with pytest.raises(errors.TargetUnusable, match=r"9 .*not supported") as raised:
        ready.require_writable(Old())

    assert "target.version" == raised.value.code


def failing(target: dict[str, str], refused: dial.Refused) -> errors.Failure:
    """Return what a refusal of the first attempt means."""
    now = time.monotonic()
    return waiting.Patience(target, now, now + 60, refused).failure(refused)


@pytest.mark.parametrize("target", [{}, {"service": "prod"}, {"service": "prod", "dbname": "app"}])
def test_user_and_database_of_a_service_are_named(
    target: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As libpq takes them: nobody is called None."""
    (tmp_path / "services").write_text("[prod]\nhost=h\nuser=me\ndbname=app\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "prod")

    auth = failing(target, dial.Refused("auth", "no password supplied"))
    missing = failing(target, dial.Refused("database", "no such database"))

    assert str(auth).startswith("h:5432 does not accept user 'me': no password supplied")
    assert str(missing).startswith("h:5432 has no database 'app': no such database")


@pytest.mark.parametrize(
    ("target", "service", "message"),
    [
        ({}, "nope", "PGSERVICE names 'nope', which no service file has"),
        ({"host": "127.0.0.1"}, "nope\r", "PGSERVICE names 'nope\\r', which no service file has"),
        ({"service": "hunter2"}, "prod", "the URL names a service that no service file has"),
        ({}, "bad", 'syntax error in service file "{}", line 4'),
    ],
)
def test_unknown_service_is_named_and_not_waited_for(
    target: dict[str, str],
    service: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No host is named, for none is called; of a URL it may be a piece of a password."""
    services = tmp_path / "services"
    services.write_text("[prod]\nuser=me\n[bad]\nwords\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv("PGSERVICE", service)
    with pytest.raises(dial.Refused) as refused:
        dial.connect(target, 5)
    now = time.monotonic()
    patience = waiting.Patience(target, now, now + 60, refused.value)
    with structlog.testing.capture_logs() as events, pytest.raises(dial.Refused):
        patience.attempt(lambda: None)

    failure = patience.failure(refused.value)
    assert ("config.connection", 20) == (failure.code, failure.exit_code)
    assert message.format(services) == str(failure)
    assert [] == events


def test_silence_of_a_pooler_that_named_its_reason_is_that_reason() -> None:
    """It holds the next login for a while: what is to be changed is not lost behind it."""
    missing = dial.Refused("database", 'database "app" does not exist', dial.POOLED)
    now = time.monotonic()
    patience = waiting.Patience({"dbname": "app"}, now, now + 60, missing)
    with pytest.raises(dial.Refused):
        patience.attempt(lambda: None)

    def refuse(words: str) -> dial.Refused:
        def connect() -> None:
            raise dial.Refused("passing", words)

        with pytest.raises(dial.Refused) as raised:
            patience.attempt(connect)
        return raised.value

    assert missing is refuse("no answer within 5 s from 127.0.0.1:6432")
    assert "target.no_database" == patience.failure(missing).code
    assert "Connection refused" == str(refuse("Connection refused"))
    assert "no answer within 5 s" == str(refuse("no answer within 5 s"))


def test_direct_tls_is_named_where_the_server_hangs_up() -> None:
    """Before version 17 it knows no beginning but its own, and says nothing."""
    refused = dial.Refused("passing", "SSL error: unexpected eof while reading")
    failure = failing({"host": "db", "sslmode": "require", "sslnegotiation": "direct"}, refused)

    assert "PGSSLNEGOTIATION" in (failure.problem.hint or "")


@pytest.mark.parametrize(
    ("mode", "helps"), [(0o640, "for its mode 0640"), (0o600, "no line is for this host")]
)
def test_passfile_that_gave_no_password_is_told_why(
    mode: int, helps: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Libpq says it on stderr alone, or not at all."""
    (tmp_path / "pass").write_text("other:*:*:*:x\n")
    (tmp_path / "pass").chmod(mode)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pass"))
    failure = failing({"host": "db"}, dial.Refused("auth", "fe_sendauth: no password supplied"))

    assert helps in (failure.problem.hint or "")
    assert f"{tmp_path}/pass" in (failure.problem.hint or "")


def test_user_without_a_name_is_told_how_to_say_one() -> None:
    """A service that says no user, in a container with a user number of its own: 20, at once."""
    refused = dial.Refused("config", "local user with ID 4242 does not exist")
    failure = failing({"host": "db"}, refused)

    assert (20, "config.connection") == (failure.exit_code, failure.code)
    assert "PGUSER" in (failure.problem.hint or "")


def test_thread_that_cannot_be_started_is_no_matter_of_the_server() -> None:
    """Nobody was called: whether the database runs is not the question."""
    refused = dial.Refused("passing", f"{dial.NO_THREAD}: can't start new thread")
    failure = failing({"dbname": "app"}, refused)

    assert (10, "server.not_ready") == (failure.exit_code, failure.code)
    assert "Is the database running" not in (failure.problem.hint or "")
    assert "pids.max" in (failure.problem.hint or "")


@pytest.mark.parametrize(
    ("state", "helps"),
    [
        ("53300", "CONNECTION LIMIT"),
        ("57P03", "PREFLIGHT_WAIT_TIMEOUT_S"),
        ("57P01", "PREFLIGHT_WAIT_TIMEOUT_S"),
        ("55000", 'ALTER DATABASE "app" ALLOW_CONNECTIONS true'),
        (dial.POOLED, "A pooler answers"),
        ("XX000", "its log says more"),
        (None, "Is the database running"),
    ],
)
def test_hint_of_a_server_that_answers_is_not_whether_it_runs(
    state: str | None, helps: str
) -> None:
    """It is there, and reached; what helps is of its reason."""
    refused = dial.Refused("passing", "words", state)
    now = time.monotonic()
    failure = waiting.Patience({"dbname": "app"}, now, now, refused).failure(refused)

    assert (10, "server.not_ready") == (failure.exit_code, failure.code)
    hint = failure.problem.hint or ""
    assert helps in hint
    assert (state is None) == ("Is the database running" in hint)


def test_a_server_is_asked_ten_to_twenty_times_a_second() -> None:
    """Soon after it is usable it is used, and until then it has other work than to refuse us."""
    refused = dial.Refused("passing", "the database system is starting up", "57P03")
    now = time.monotonic()
    patience = waiting.Patience({}, now, now + 60, refused)
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.set_exception((dial.Refused, refused, None))
    for number in [*range(1, 100), 1_000_000]:
        state.attempt_number = number

        assert 0.05 <= patience.pause(state) <= 0.1


def test_a_pooler_is_asked_more_and_more_seldom() -> None:
    """What it does not let us in for may be the password, and nobody counts how often it failed."""
    refused = dial.Refused("passing", "what nobody knows", dial.POOLED)
    now = time.monotonic()
    patience = waiting.Patience({}, now, now + 60, refused)
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.set_exception((dial.Refused, refused, None))
    found = {}
    for state.attempt_number in (1, 100):
        found[state.attempt_number] = [patience.pause(state) for _ in range(100)]

    assert max(found[1]) <= 0.1
    assert 0.1 < max(found[100]) <= 1


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b"db:5432:app:me:p\\:w", {"password": "p:w"}),
        (b"db:5432:other:me:x", {}),
        (b"db:5432:app:me:\xff", {}),
    ],
)
def test_password_of_a_passfile_is_found_without_a_call(
    tmp_path: Path, said: bytes, found: dict[str, str]
) -> None:
    """For a database that may not be there, on a host that may have no name."""
    passfile = tmp_path / "passfile"
    passfile.write_bytes(said + b"\n")
    passfile.chmod(0o600)
    target = {"host": "db", "dbname": "app", "user": "me", "passfile": str(passfile)}

    assert target | found == dial.with_password(target)
    only = target | {"host": "", "hostaddr": "10.0.0.1"}
    assert only == dial.with_password(only)
    several = target | {"host": "db,other"}
    assert several == dial.with_password(several)
    passfile.write_bytes(said.replace(b"db", b"*") + b"\n")
    assert several | found == dial.with_password(several)
    assert only | found == dial.with_password(only)
