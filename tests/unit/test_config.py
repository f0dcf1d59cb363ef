"""Settings and the three ways to say where the database is."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import postgast
import pytest
from postgast import pg_query_pb2

from preflight.base import config, plain
from preflight.base.config import Config
from preflight.base.errors import ConfigInvalid
from preflight.quick import told
from tests import servers

SECRET = "hunter2-Sésame"  # noqa: S105 - a canary


def read(**environ: str) -> Config:
    """Read an environment."""
    return Config.from_env(environ, Path("/migrations"), "run")


def target(**environ: str) -> dict[str, str]:
    """Return the libpq parameters of an environment."""
    return dict(read(**environ).target)


def wrong(**environ: str) -> list[str]:
    """Return all that is wrong with an environment, with the hints."""
    with pytest.raises(ConfigInvalid) as raised:
        read(**environ)
    problems = raised.value.problems
    return [" ".join(filter(None, (problem.message, problem.hint))) for problem in problems]


# where the database is


def test_defaults_are_the_house_names() -> None:
    """An empty environment leads to Ops-Center's database."""
    assert {
        "host": "unicorn-postgresql", "port": "5432", "user": "unicorn", "dbname": "unicorn_db"
    } == target()  # fmt: skip


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": "postgresql://u:p%40s@h:6000/d"},
        {"DATABASE_URL": "postgres://u:p%40s@h:6000/d"},
        {"DATABASE_URL": "postgresql+asyncpg://u:p%40s@h:6000/d"},
        {"DATABASE_URL": "postgres+psycopg2://u:p%40s@h:6000/d"},
        {"DATABASE_URL": "host=h port=6000 user=u password='p@s' dbname=d"},
        {"PGHOST": "h", "PGPORT": "6000", "PGUSER": "u", "PGPASSWORD": "p@s", "PGDATABASE": "d"},
        {"POSTGRES_HOST": "h", "POSTGRES_PORT": "6000", "POSTGRES_USER": "u",
         "POSTGRES_PASSWORD": "p@s", "POSTGRES_DB": "d"},
        {"DATABASE_URL": "postgresql://u@h:6000/d", "PGPASSWORD": "p@s"},
        {"POSTGRES_HOST": "h", "PGHOST": "h", "PGPORT": "6000", "PGUSER": "u", "PGDATABASE": "d",
         "POSTGRES_PASSWORD": "p@s"},
    ],
)  # fmt: skip
def test_every_vocabulary_says_the_same(environ: dict[str, str]) -> None:
    """URL, DSN, PG* and POSTGRES_*; the password may come from any one of them."""
    assert {"host": "h", "port": "6000", "user": "u", "password": "p@s", "dbname": "d"} == target(
        **environ
    )


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"DATABASE_URL": "postgresql://h/d", "PGHOST": "x"}, ["DATABASE_URL", "PG*", "host"]),
        ({"PGPORT": "1", "POSTGRES_PORT": "2"}, ["PG*", "POSTGRES_*", "port"]),
        ({"PGUSER": "a", "POSTGRES_USER": "b"}, ["PG*", "POSTGRES_*", "user"]),
        ({"DATABASE_URL": "postgresql://h/d", "POSTGRES_DB": "x"},
         ["DATABASE_URL", "POSTGRES_*", "dbname"]),
        ({"PGPASSWORD": SECRET, "POSTGRES_PASSWORD": "x" + SECRET},
         ["PGPASSWORD", "POSTGRES_PASSWORD", "password"]),
    ],
)  # fmt: skip
def test_disagreement_names_both(environ: dict[str, str], names: list[str]) -> None:
    """Two answers are no answer; a password is compared, never shown."""
    (problem,) = wrong(**environ)

    assert [name for name in names if name in problem] == names
    assert SECRET not in problem


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give the place of libpq's service file."""
    place = tmp_path / "services"
    monkeypatch.setenv("PGSERVICEFILE", str(place))
    return place


@pytest.mark.parametrize(
    "environ", [{"PGSERVICE": "prod"}, {"DATABASE_URL": "service=prod user=me"}]
)
def test_service_file_leaves_no_room_for_defaults(environ: dict[str, str]) -> None:
    """What the service file says must not be overridden by our own names."""
    assert not {"host", "port", "dbname"} & target(**environ).keys()


@pytest.mark.parametrize(
    ("url", "service", "database"),
    [
        ("", "prod", "app"),
        ("service=prod", "", "app"),
        ("service=prod dbname=said", "", "said"),
        ("", "plain", "me"),
        ("service=plain user=you", "", "you"),
        ("", "nowhere", ""),
    ],
)
def test_database_of_a_service_is_known_by_its_name(
    services: Path, url: str, service: str, database: str
) -> None:
    """The one that libpq would take: what is said, then the service's, then the user's."""
    services.write_text("[prod]\ndbname=app\n[plain]\nuser=me\n")

    assert database == read(DATABASE_URL=url, PGSERVICE=service).database


def test_port_of_a_service_holds_beside_a_host_that_is_said(services: Path) -> None:
    """As for libpq; its default would be another server's."""
    services.write_text("[prod]\nport=6000\n")

    assert "6000" == target(DATABASE_URL="service=prod host=h")["port"]
    assert "7000" == target(DATABASE_URL="service=prod host=h port=7000")["port"]
    assert "6000" == target(PGSERVICE="prod", PGHOST="h")["port"]


SERVICE = "[prod]\nhost=h\nport=6000\nuser=u\ndbname=d\npassword=" + SECRET


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"PGHOST": "x"}, "PG* name different values for host: h / x"),
        ({"PGPORT": "1"}, "PG* name different values for port: 6000 / 1"),
        ({"POSTGRES_PORT": "5432"}, "POSTGRES_* name different values for port: 6000 / 5432"),
        ({"PGUSER": "x", "POSTGRES_USER": "x"},
         "PG* and POSTGRES_* name different values for user: u / x / x"),
        ({"PGDATABASE": "x"}, "PG* name different values for dbname: d / x"),
        ({"PGPASSWORD": "x"}, "PGPASSWORD name different values for password"),
        ({"POSTGRES_PASSWORD": "x"}, "POSTGRES_PASSWORD name different values for password"),
    ],
)  # fmt: skip
def test_service_that_disagrees_is_refused(
    services: Path, environ: dict[str, str], names: str
) -> None:
    """The app's libpq takes the service's word before a stray variable's; nothing is migrated."""
    services.write_text(SERVICE)
    by_variable = wrong(PGSERVICE="prod", **environ)
    by_url = wrong(DATABASE_URL="service=prod", **environ)

    hint = "Keep one way to say where the database is and unset the others."
    assert [f"PGSERVICE and {names} {hint}"] == by_variable
    assert [f"DATABASE_URL and {names} {hint}"] == by_url


@pytest.mark.parametrize(
    ("service", "environ"), [("service=prod ", {}), ("", {"PGSERVICE": "prod"})]
)
def test_what_a_url_says_stands_beside_a_service(
    services: Path, service: str, environ: dict[str, str]
) -> None:
    """As libpq takes it, whoever names the service."""
    services.write_text(SERVICE)
    url = f"{service}dbname=other host=x user=y password=z port=1"
    found = target(DATABASE_URL=url, **environ)

    assert ("other", "x", "y", "z", "1") == tuple(
        found[key] for key in ("dbname", "host", "user", "password", "port")
    )


def test_what_a_service_says_is_its_own(services: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment counts as said by it, nor is that another one afterwards."""
    said = {"PGHOST": "a,b", "PGDATABASE": "", "PGOPTIONS": "-c a=b", "PGCONNECT_TIMEOUT": "7"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    services.write_text("[prod]\nport=6000\n[plain]\nsslmode=disable\n")
    before = dict(os.environ)

    assert {"port": "6000"} == config.of_service("prod")
    assert {} == config.of_service("plain") == config.of_service("nowhere")
    assert before == os.environ


def test_service_that_agrees_or_says_the_rest_is_no_problem(services: Path) -> None:
    """Equal values, and what only one of the two says; a file's name is not even read."""
    services.write_text(f"{SERVICE}\n[rest]\nuser=u\n")
    said = {"PGHOST": "h", "PGPORT": "6000", "PGDATABASE": "d", "PGPASSWORD": SECRET}
    expected = {"host": "h", "port": "6000", "dbname": "d", "password": SECRET}

    assert expected == target(PGSERVICE="prod", **said, POSTGRES_USER_FILE="/nowhere")
    assert expected == target(PGSERVICE="rest", **said)
    assert {"dbname": "d"} == target(PGSERVICE="prod")


def test_address_of_a_service_comes_with_its_host(services: Path) -> None:
    """Else another host's name is dialled at it by the app, and not by us."""
    services.write_text("[prod]\nhost=h\nhostaddr=10.0.0.9\n[alone]\nhostaddr=10.0.0.9\n")
    (problem,) = wrong(PGSERVICE="alone", PGHOST="h")
    other, _ = wrong(PGSERVICE="prod", PGHOSTADDR="10.0.0.8")

    assert problem.startswith("the host comes from PG* and its address (hostaddr) from PGSERVICE")
    assert other.startswith("PGSERVICE and PG* name different values for hostaddr")
    for said in ({"PGSERVICE": "prod", "PGHOST": "h"}, {"DATABASE_URL": "service=alone host=h"}):
        assert ("h", "10.0.0.9") == tuple(target(**said)[key] for key in ("host", "hostaddr"))


@pytest.mark.parametrize(
    ("url", "service", "options"),
    [
        ("", "", "-c from=environment"),
        ("", "plain", "-c from=environment"),
        ("", "prod", "-c from=service"),
        ("service=prod", "", "-c from=service"),
        ("service=prod", "plain", "-c from=service"),
        ("options='-c from=url'", "prod", "-c from=url"),
        ("service=prod options='-c from=url'", "", "-c from=url"),
        ("", "nowhere", "-c from=environment"),
    ],
)
def test_options_are_those_that_libpq_would_take(
    services: Path, url: str, service: str, options: str
) -> None:
    """The URL's before the service file's, and these before PGOPTIONS."""
    services.write_text("[prod]\noptions=-c from=service\n[plain]\nport=6000\n")
    said = {"DATABASE_URL": url, "PGSERVICE": service, "PGOPTIONS": "-c from=environment"}

    assert options == target(**said)["options"]


def test_other_parameters_of_a_url_are_kept() -> None:
    """TLS, several hosts and timeouts are libpq's business."""
    found = target(DATABASE_URL="postgresql://u@a:1,b:2/d?sslmode=require&connect_timeout=7")

    assert ("a,b", "1,2") == (found["host"], found["port"])
    assert ("require", "7") == (found["sslmode"], found["connect_timeout"])


def test_address_must_come_with_its_host() -> None:
    """A stray PGHOSTADDR would lead the URL's host to another server."""
    (problem,) = wrong(DATABASE_URL="postgresql://u@db1/x", PGHOSTADDR="10.0.0.9")

    assert problem.startswith("the host comes from DATABASE_URL and its address (hostaddr) from")


def test_address_without_a_name_gets_no_default_name() -> None:
    """PGHOSTADDR alone must not be checked against our default host."""
    assert "host" not in target(PGHOSTADDR="127.0.0.1")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@more@h/d",
        f"postgresql://u:a@{SECRET}@h/d",
        f"postgresql://u:a@b:{SECRET}@h/d",
        f"postgresql://u:{SECRET}/x@h/d",
        f"postgresql://u:123/{SECRET}@h/d",
        f"postgresql://u:{SECRET}%zz@h/d",
        f"postgresql://u:{SECRET}%00@h/d",
        f"postgresql://u:x@h/d?passwort={SECRET}",
        f"host=h password=a {SECRET}",
        f"host=h password='{SECRET}",
        f"mysql://u:{SECRET}@h/d",
        f"jdbc:mysql://h/d?password={SECRET}",
        f"jdbc:postgresql://h/d?password=x&{SECRET}=1",
        f"postgresql://u:a?{SECRET}=b@h/d",
        f"postgresql://u@h/d?{SECRET}",
        f"postgresql://u:p@h/d?schema={SECRET}",
        f"'postgresql://u:{SECRET}@h/d",
        f"'postgresql://u:{SECRET}%zz@h/d'",
        SECRET,
    ],
)
def test_malformed_url_shows_no_part_of_the_password(url: str) -> None:
    """Neither libpq's quotation nor a piece that slipped into host, port or database."""
    found = wrong(DATABASE_URL=url)

    assert not [text for text in found if "hunter" in text or "same" in text], found
    assert all("DATABASE_URL" in text for text in found)


@pytest.mark.parametrize(
    ("url", "dropped"),
    [
        ("postgresql://u:p@h:6000/d?schema=public", "schema"),
        ("postgresql://u:p@h:6000/d?pgbouncer=true&pool_timeout=1", "pgbouncer, pool_timeout"),
        ("postgres://u:p@h:6000/d?serverVersion=16&charset=utf8", "serverVersion, charset"),
        ("jdbc:postgresql://h:6000/d?user=u&password=p&prepareThreshold=0", "prepareThreshold"),
        ("postgres://u:p@h:6000/d?x-migrations-table=m", "x-migrations-table"),
        ("postgres://u:p@h:6000/d?pool=5&encoding=unicode", "pool, encoding"),
        ("pgsql://u:p@h:6000/d", None),
        ('"postgresql://u:p@h:6000/d"', None),
        (" 'postgresql://u:p@h:6000/d?schema=public'\n", "schema"),
    ],
)  # fmt: skip
def test_what_other_readers_of_a_url_need_is_left_out(url: str, dropped: str | None) -> None:
    """And said: it is harmless."""
    found = read(DATABASE_URL=url)

    named = {"host": "h", "port": "6000", "user": "u", "password": "p", "dbname": "d"}
    assert named == dict(found.target)
    said = (f"DATABASE_URL: {dropped}: not for PostgreSQL, left out",) if dropped else ()
    assert said == found.warnings


@pytest.mark.parametrize(
    ("query", "dropped", "near"),
    [
        ("schema=shop", "schema", ("shop",)),
        ("currentSchema=shop,%22Other%22", "currentSchema", ("shop", "Other")),
        ("search_path=shop&statement_timeout=9", "search_path, statement_timeout", ("shop",)),
        ("sslaccept=accept_invalid_certs&timezone=UTC", "sslaccept, timezone", ()),
    ],
)
def test_what_only_a_wrapped_command_reads_is_left_out(
    query: str, dropped: str, near: tuple[str, ...]
) -> None:
    """It has its URL as it is; without a command there is nobody who does as that says."""
    environ = {"DATABASE_URL": f"postgresql://u:p@h:6000/d?{query}"}
    found = Config.from_env(environ, Path("/x"), "run", wrapping=True)

    named = {"host": "h", "port": "6000", "user": "u", "password": "p", "dbname": "d"}
    assert (named, near) == (dict(found.target), found.near)
    assert (f"DATABASE_URL: {dropped}: not for PostgreSQL, left out",) == found.warnings
    assert wrong(**environ)


@pytest.mark.parametrize("query", ["sslaccept=strict", "sslidentity=x", "colour=blue"])
def test_what_a_wrapped_command_is_not_believed_has_a_way_out(query: str) -> None:
    """TLS that nobody would verify, or a piece of a password: the command may have its own URL."""
    environ = {"DATABASE_URL": f"postgresql://u:p@h/d?{query}"}
    with pytest.raises(ConfigInvalid) as caught:
        Config.from_env(environ, Path("/x"), "run", wrapping=True)

    assert 'DATABASE_URL="$APP_URL" exec' in str(caught.value.data())
    assert "APP_URL" not in str(wrong(**environ))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:p@h/d?schema=app", ["option schema,", "options=-csearch_path%3DNAME"]),
        ("jdbc:postgresql://h/d?currentSchema=app", ["option currentSchema,", "search_path"]),
        ("postgresql://u:p@h/d?sslmod=require", ["option sslmod,", "Did you mean sslmode?"]),
        ("postgresql://u:p@h/d?SSLMODE=require", ["option SSLMODE,", "Did you mean sslmode?"]),
        ("postgresql://u:p@h/d?colour=blue", ["option colour,", "Leave it out."]),
        ("postgresql://u:p@h/d?statement_timeout=9", ["PREFLIGHT_STATEMENT_TIMEOUT_S"]),
        ("postgresql://u:p@h/d?lock_timeout=9", ["PREFLIGHT_LOCK_TIMEOUT_MS"]),
        ("postgresql://u:p@h/d?connectionTimeoutMillis=9", ["connect_timeout, in seconds"]),
        ("jdbc:postgresql://h/d?targetServerType=primary", ["target_session_attrs"]),
        ("postgresql://u:p@h/d?application=x", ["calls it application_name"]),
        ("postgresql://u:p@h/d?sslfactory=x", ["option sslfactory,", "Leave it out."]),
        ("mysql://u:p@h/d", ["begins with mysql://", "postgresql://"]),
        ('"postgresql://u:p@h/d', ["begins with a quote"]),
    ],
)
def test_what_is_wrong_with_a_url_is_named(url: str, words: list[str]) -> None:
    """The option, the scheme or the quote, and what to write instead."""
    (found,) = wrong(DATABASE_URL=url)

    assert [] == [word for word in words if word not in found], found


@pytest.mark.parametrize(
    ("said", "sslmode"),
    [("sslmode=no-verify", "require"), ("ssl=true", "require"), ("ssl=verify-full", "verify-full"),
     ("ssl=false", None)],
)  # fmt: skip
def test_tls_is_asked_for_in_every_driver_s_words(said: str, sslmode: str | None) -> None:
    """Never less than was asked for."""
    assert sslmode == target(DATABASE_URL=f"postgresql://u@h/d?{said}").get("sslmode")


@pytest.mark.parametrize(
    "name", ["POSTGRES_HOST", "PGUSER", "PGSSLMODE", "PREFLIGHT_BACKUP", "PREFLIGHT_BACKUP_DIR",
             "DATABASE_URL_FILE", "PREFLIGHT_WAIT_TIMEOUT_S"]
)  # fmt: skip
@pytest.mark.parametrize("quote", ["'", '"'])
def test_value_with_its_quotes_on_is_named(name: str, quote: str) -> None:
    """As docker's --env-file leaves them; once, and not as a wrong value."""
    (found,) = wrong(**{name: f"{quote}x{quote}"})

    assert found.startswith(f"{name} has its quotes on Take them off")


@pytest.mark.parametrize(
    "name",
    ["PGADMIN_CONFIG_LOGIN_BANNER", "POSTGRES_INITDB_ARGS", "PGDATA", "PGBOUNCER", "POSTGRES_X",
     "DATABASE_URL_OF_ANOTHER"],
)  # fmt: skip
def test_quotes_of_what_nobody_reads_here_are_no_problem(name: str) -> None:
    """They are for pgAdmin, or for the server's own image."""
    assert target() == target(**{name: "'Authorised users only!'"})


@pytest.mark.parametrize("name", ["PGSSLROOTCERT", "PGSERVICEFILE", "PGTZ", "POSTGRES_DB_FILE"])
def test_quotes_of_what_libpq_reads_are_named(name: str) -> None:
    """It would take them for a part of the value."""
    (found,) = wrong(**{name: '"x"'})
    assert found.startswith(f"{name} has its quotes on")


def test_quotes_of_a_password_count_and_are_told() -> None:
    """They may belong to it."""
    found = read(PGPASSWORD="'p'")

    assert "'p'" == found.target["password"]
    assert "PGPASSWORD begins and ends with a quote" in found.warnings[0]


@pytest.mark.parametrize("port", ["0", "65536", "-1", "tcp", "5432 ", "5432,x", "\u0665", "1e3"])
def test_wrong_port_is_refused(port: str) -> None:
    """Before libpq sees it."""
    (problem,) = wrong(PGPORT=port)

    assert "the port is not a number from 1 to 65535" in problem


WRONG_PORT = "the port is not a number from 1 to 65535"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"POSTGRES_PORT": "0"}, f"POSTGRES_PORT='0': {WRONG_PORT}"),
        ({"PGPORT": "tcp"}, f"PGPORT: {WRONG_PORT}"),
        ({"DATABASE_URL": "postgresql://h:99999/d"}, f"DATABASE_URL: {WRONG_PORT}"),
        ({"PGSERVICE": "prod"}, f"PGSERVICE: {WRONG_PORT}"),
        ({"DATABASE_URL": "service=prod"}, f"DATABASE_URL: {WRONG_PORT}"),
        ({"PGHOST": "a@b"}, "PGHOST: the host holds an '@'"),
        ({"PGHOST": f"postgresql://u:{SECRET}@h:5/d"}, "PGHOST: the host is a whole URL"),
        ({"POSTGRES_HOST": "postgres://h/d"}, "POSTGRES_HOST: the host is a whole URL"),
        ({"PREFLIGHT_REHEARSE_URL": "postgresql://u@h"}, "PREFLIGHT_REHEARSE_URL names no"),
        ({"PREFLIGHT_REHEARSE_CLONE_URL": "host=h"}, "PREFLIGHT_REHEARSE_CLONE_URL names no"),
        ({"PGCONNECT_TIMEOUT": "5s"}, "PGCONNECT_TIMEOUT: the connect_timeout is not"),
        ({"PGSERVICE": "slow", "PGCONNECT_TIMEOUT": "5"}, "PGSERVICE: the connect_timeout is not"),
        ({"PGDATABASE": "postgresql://h/d"}, "PGDATABASE: the dbname is a whole URL"),
    ],
)
def test_wrong_value_of_a_connection_is_named_as_it_was_said(
    services: Path, environ: dict[str, str], said: str
) -> None:
    """The variable, or who names the service; of a URL no number: it may be a password's piece."""
    services.write_text("[prod]\nport=99999\n[slow]\nconnect_timeout=5s\n")
    (problem,) = wrong(**environ)

    assert problem.startswith(said)


def test_wrong_value_of_a_file_is_named_by_its_variable(tmp_path: Path) -> None:
    """What stands in the file is not shown."""
    (tmp_path / "said").write_text("99999")
    url = tmp_path / "url"
    url.write_text("postgresql://h:99999/d")

    assert [f"PGPORT_FILE: {WRONG_PORT}"] == wrong(PGPORT_FILE=str(tmp_path / "said"))
    assert [f"DATABASE_URL_FILE: {WRONG_PORT}"] == wrong(DATABASE_URL_FILE=str(url))


ENDS = "Windows line ends in a .env file leave a \\r, `echo` in a Secret a \\n"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("POSTGRES_PORT", "5432\r", f"Take the '\\r' off its end: {ENDS}."),
        ("POSTGRES_PORT", "5432 ", "Take the ' ' off its end."),
        ("POSTGRES_PORT", " 5432", "Take the ' ' off its front."),
        ("PGHOST", "db1, db2", "Write the list without a blank beside a comma."),
        ("PGPORT", "5432, 5433", "Write the list without a blank beside a comma."),
        ("PGPORT", " 5432,5433", "Take the ' ' off its front."),
        ("POSTGRES_HOST", "db\r", f"Take the '\\r' off its end: {ENDS}."),
        ("PGHOST", "db\n", f"Take the '\\n' off its end: {ENDS}."),
        ("PREFLIGHT_WAIT_TIMEOUT_S", "5\r", f"Take the '\\r' off its end: {ENDS}."),
        ("POSTGRES_PASSWORD_FILE", "/nowhere\r", f"Take the '\\r' off its end: {ENDS}."),
    ],
)
def test_line_end_around_a_wrong_value_is_what_has_to_go(name: str, value: str, hint: str) -> None:
    """Nobody sees it in a file; a host or a number with it looks right."""
    (problem,) = wrong(**{name: value})

    assert problem.startswith(name)
    assert problem.endswith(hint)


@pytest.mark.parametrize("name", ["PGUSER", "POSTGRES_DB", "PGPASSWORD", "POSTGRES_PASSWORD"])
@pytest.mark.parametrize("end", ["\r", "\n"])
def test_line_end_that_may_belong_to_a_value_is_told(name: str, end: str) -> None:
    """It counts; the quick look leaves it to who says so."""
    said = {name: f"x{end}"}
    found = read(**said)

    assert f"x{end}" in found.target.values()
    assert (f"{name} ends with {end!r}, which counts: {ENDS}",) == found.warnings
    with pytest.raises(told.Unclear):
        told.target(said)


def test_line_end_that_is_taken_off_is_no_news(tmp_path: Path) -> None:
    """A URL's, and that of a secret's file."""
    (tmp_path / "secret").write_text("x\r\n")
    said = {"DATABASE_URL": "postgresql://u@h/d\r\n", "PGOPTIONS": "-c role=x\n"}

    assert () == read(**said, PGPASSWORD_FILE=str(tmp_path / "secret")).warnings


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": f"postgres://app:{SECRET}/app", "POSTGRES_PORT": "5432"},
        {"DATABASE_URL": f"host=h@{SECRET} dbname=d", "PGHOST": "h"},
        {"PGHOST": f"postgresql://u:{SECRET}@h/d", "POSTGRES_HOST": "h"},
        {"PGHOST": "h", "POSTGRES_HOST": f"postgresql://u:{SECRET}@h/d"},
        {"PGHOSTADDR": f"postgresql://u:{SECRET}@h/d", "DATABASE_URL": "hostaddr=10.0.0.1"},
        *(
            environ
            for name, other in (("PGDATABASE", "POSTGRES_DB"), ("PGUSER", "POSTGRES_USER"))
            for value in (f"postgresql://u:{SECRET}@h/d", f"host=h password={SECRET}")
            for environ in ({name: value}, {name: value, other: "x"}, {other: value})
        ),
        {"PGHOSTADDR": f"postgresql://u:{SECRET}@h/d"},
        {"PREFLIGHT_REHEARSE_URL": f"dbname='postgresql://u:{SECRET}@h/d'"},
    ],
)
def test_url_where_a_name_belongs_is_refused_and_not_shown(environ: dict[str, str]) -> None:
    """Whoever puts it there has a password in it; also beside another value that disagrees."""
    found = " ".join(wrong(**environ))

    assert "hunter" not in found
    assert "same" not in found


def test_service_with_a_url_in_it_is_refused_and_not_shown(services: Path) -> None:
    """As where a variable says it."""
    services.write_text(f"[prod]\ndbname=postgresql://u:{SECRET}@h/d\n")
    (alone,) = wrong(PGSERVICE="prod")
    both = " ".join(wrong(PGSERVICE="prod", PGDATABASE="d"))

    said = "PGSERVICE: the dbname is a whole URL or connection string Say that as DATABASE_URL."
    assert said == alone
    assert "hunter" not in both


# secrets in files


@pytest.mark.fault("F140")
def test_one_line_end_is_stripped_from_a_secret_file(tmp_path: Path) -> None:
    """Editors add one; more belong to the password."""
    for number, (text, expected) in enumerate(
        [("p", "p"), ("p\n", "p"), ("p\r\n", "p"), ("p\n\n", "p\n"), (" p ", " p "), ("é", "é")]
    ):
        file = tmp_path / str(number)
        file.write_bytes(text.encode())
        for name in ("PGPASSWORD_FILE", "POSTGRES_PASSWORD_FILE"):
            assert expected == target(**{name: str(file)})["password"]


def test_url_may_come_from_a_file(tmp_path: Path) -> None:
    """As a Secret of CloudNativePG gives it."""
    (tmp_path / "uri").write_text("postgresql://u:p@h/d\n")

    assert "h" == target(DATABASE_URL_FILE=str(tmp_path / "uri"))["host"]


@pytest.mark.parametrize(
    "environ", [{"PGHOST": "@/sockets"}, {"DATABASE_URL": "postgresql:///d?host=@/sockets"}]
)
def test_abstract_socket_is_named_as_what_it_is(environ: dict[str, str]) -> None:
    """No password is there whose @ could be written otherwise."""
    (problem,) = wrong(**environ)

    assert "abstract Unix socket, which is not supported" in problem


@pytest.mark.parametrize("name", ["DATABASE_URL", "PREFLIGHT_REHEARSE_URL"])
def test_mark_that_an_editor_begins_a_file_with_is_no_part_of_a_url(
    tmp_path: Path, name: str
) -> None:
    """PowerShell and Notepad write it, and no editor shows it."""
    (tmp_path / "uri").write_bytes(b"\xef\xbb\xbfpostgresql://u:p@h/d\n")
    found = read(**{f"{name}_FILE": str(tmp_path / "uri")})

    assert "h" == ((found.rehearse_url or found.target)["host"])


@pytest.mark.parametrize("name", ["PGPASSWORD", "POSTGRES_PASSWORD"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p\n\n", f"ends with '\\n', which counts: {ENDS}"),
        ('"p"\n', "begins and ends with a quote, which counts"),
        ("p\n", None),
    ],
)
def test_what_a_file_has_around_a_password_is_told(
    tmp_path: Path, name: str, text: str, said: str | None
) -> None:
    """A server would only say no; a variable's is told in the same way."""
    (tmp_path / "secret").write_text(text)
    found = read(**{f"{name}_FILE": str(tmp_path / "secret")})

    assert ([f"what {name}_FILE names {said}"] if said else []) == list(found.warnings)


@pytest.mark.fault("F140")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"x" * 70_000, "larger than 64 KiB"),
        (b"a\0b", "NUL byte"),
        (b"caf\xe9", "not valid UTF-8"),
    ],
)
def test_unusable_secret_file_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    """It says which variable, which file, and why."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    (problem,) = wrong(PGPASSWORD_FILE=str(file))

    assert "PGPASSWORD_FILE" in problem
    assert words in problem


def test_pipe_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    """It is read as what it is at that moment: empty."""
    path = tmp_path / "secret"
    os.mkfifo(path)

    assert [f"PGPASSWORD_FILE names {path}, which is empty"] == wrong(PGPASSWORD_FILE=str(path))


def test_secret_comes_from_a_pipe_whose_writer_is_slow(tmp_path: Path) -> None:
    """As `<(vault read …)` gives it: what is not there yet is waited for."""
    path = tmp_path / "secret"
    os.mkfifo(path)
    written = os.open(path, os.O_RDWR)
    done = threading.Event()

    def write() -> None:
        os.write(written, b"p\n")
        os.close(written)
        done.set()

    threading.Timer(0.2, write).start()

    assert "p" == target(PGPASSWORD_FILE=str(path))["password"]
    assert done.wait(10)


def test_address_to_tell_comes_from_a_pipe() -> None:
    """It is asked for before the other settings, and again with them; a pipe is read once."""
    pipe, written = os.pipe()
    os.write(written, b"https://example.com/hook\n")
    os.close(written)
    said = {"PREFLIGHT_NOTIFY_URL_FILE": f"/dev/fd/{pipe}"}

    found = config.notified(said), read(**said).notify_url
    os.close(pipe)
    assert ["https://example.com"] * 2 == [address.shown for address in found if address]


def test_quick_look_leaves_a_pipe_as_it_is(tmp_path: Path) -> None:
    """What it had read from one would be gone for the run that has work to do."""
    path = tmp_path / "secret"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)
    os.write(pipe, b"p\n")

    with pytest.raises(told.Unclear):
        told.target({"POSTGRES_PASSWORD_FILE": str(path)})
    assert b"p\n" == os.read(pipe, 9)
    os.close(pipe)


@pytest.mark.parametrize("name", ["PGPASSFILE", "PGSSLROOTCERT", "PGSSLCERT"])
def test_quick_look_gives_libpq_no_pipe(tmp_path: Path, name: str) -> None:
    """It would wait there for ever; the full path says what is wrong."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    with pytest.raises(told.Unclear):
        told.target({name: str(path)})
    assert "unicorn" == told.target({name: "/nowhere"})["user"]


@pytest.mark.parametrize(
    ("path", "what"), [("/", "a directory"), ("/dev/zero", "a device"), (os.devnull, None)]
)
def test_what_is_no_file_is_called_what_it_is(path: str, what: str | None) -> None:
    """A certificate in a directory's place is named; /dev/null is a way to say none."""
    message = f"PGSSLCERT names {path}, which is {what} and no file"
    found = wrong(PGSSLCERT=path, PGPORT="no")

    assert (what is not None) == any(message in each for each in found)


def test_word_for_the_systems_certificates_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGSSLROOTCERT=system stays what it is, whatever stands in the directory of the run."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("system")

    assert "unicorn" == target(PGSSLROOTCERT="system")["user"]


def test_quick_look_opens_no_pipe(tmp_path: Path) -> None:
    """It would let go who waits there to write; a socket, which cannot be opened, tells."""
    path = tmp_path / "secret"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))

        with pytest.raises(told.Unclear):
            told.target({"POSTGRES_PASSWORD_FILE": str(path)})


def test_names_that_only_a_file_tells_are_read_from_it(tmp_path: Path) -> None:
    """The official image's POSTGRES_DB_FILE and POSTGRES_USER_FILE; else it is not even opened."""
    (tmp_path / "db").write_text("app\n")
    (tmp_path / "user").write_text("deploy\n")
    said = {"POSTGRES_DB_FILE": str(tmp_path / "db"), "PGUSER_FILE": str(tmp_path / "user")}
    found = target(**said)

    assert ("app", "deploy") == (found["dbname"], found["user"])
    assert "d" == target(POSTGRES_DB_FILE="/nowhere", DATABASE_URL="postgresql://h/d")["dbname"]
    (problem,) = wrong(POSTGRES_DB_FILE="/nowhere")
    assert "POSTGRES_DB_FILE names /nowhere, which cannot be read" in problem
    both = {"POSTGRES_DB": "app2", "DATABASE_URL": "postgresql://h/app2"}
    (problem,) = wrong(**both, POSTGRES_DB_FILE=said["POSTGRES_DB_FILE"])
    assert problem.startswith("POSTGRES_DB and POSTGRES_DB_FILE are both set")

    named = {name for names in plain.VOCABULARIES.values() for name in names.values()}
    for name in named | set(told.SECRETS):
        with pytest.raises((told.Unclear, FileNotFoundError)):
            told.target({f"{name}_FILE": "/nowhere"})


@pytest.mark.parametrize(
    "host",
    ["db:5432", "[::1]", "http://db", "db.example/", "my db", "127.0.0.1 ", "db\n", "ok,db:5432"],
)
def test_host_that_can_be_none_is_not_waited_for(host: str) -> None:
    """A URL or a port in its place is the commonest slip."""
    (problem,) = wrong(POSTGRES_HOST=host)
    (other,) = wrong(PREFLIGHT_REHEARSE_URL=f"dbname=d host='{host}'")

    assert "the host is no name and no address" in problem
    assert problem.replace("POSTGRES_HOST", "PREFLIGHT_REHEARSE_URL") == other


@pytest.mark.parametrize("host", ["::1", "fe80::1%eth0", "a.b,::1,127.0.0.1", "/run/pg"])
def test_host_of_any_kind_is_one(host: str) -> None:
    """Names, addresses of both kinds, sockets."""
    assert host == target(PGHOST=host)["host"]


@pytest.mark.parametrize("said", ["5s", "abc", "1.5", "99999999999", "0x10"])
def test_connect_timeout_that_libpq_would_refuse_is_refused_at_once(said: str) -> None:
    """Only pg_dump would notice it, in the middle of a run with work to do."""
    url = f"postgresql://h/d?connect_timeout={said}"
    for name in ("PGCONNECT_TIMEOUT", "DATABASE_URL", "PREFLIGHT_REHEARSE_CLONE_URL"):
        problem = [f"{name}: the connect_timeout is not a whole number of seconds"]
        assert problem == wrong(**{name: url if name.endswith("_URL") else said})
    assert " -1 " == target(PGCONNECT_TIMEOUT=" -1 ")["connect_timeout"]


def test_directory_is_no_secret_file(tmp_path: Path) -> None:
    """A mount in the wrong place."""
    (problem,) = wrong(POSTGRES_PASSWORD_FILE=str(tmp_path))
    assert "Is a directory" in problem


def test_password_where_its_file_belongs_is_not_shown() -> None:
    """The commonest slip with _FILE."""
    (problem,) = wrong(PGPASSWORD_FILE=SECRET)
    assert SECRET not in problem


@pytest.mark.fault("F140")
@pytest.mark.parametrize("name", config.SECRETS)
def test_value_and_file_are_not_both_allowed(tmp_path: Path, name: str) -> None:
    """Which one holds would be a guess."""
    (tmp_path / "secret").write_text("postgresql://h/d")
    found = wrong(**{name: "postgresql://h/d", f"{name}_FILE": str(tmp_path / "secret")})

    assert [f"{name} and {name}_FILE are both set Keep one of the two."] == found


# Kubernetes


def test_service_links_are_ignored_with_one_warning() -> None:
    """Services named preflight and postgres put twenty variables into every pod."""
    links: dict[str, str] = {}
    for service in ("PREFLIGHT", "POSTGRES", "PREFLIGHT_LOG"):
        links |= {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "5432",
            f"{service}_SERVICE_PORT_SQL": "5432",
            f"{service}_PORT": "tcp://10.0.0.1:5432",
            f"{service}_PORT_5432_TCP": "tcp://10.0.0.1:5432",
            f"{service}_PORT_5432_TCP_PROTO": "tcp",
            f"{service}_PORT_5432_TCP_PORT": "5432",
            f"{service}_PORT_5432_TCP_ADDR": "10.0.0.1",
        }
    found = read(**links)

    assert "5432" == found.target["port"]
    assert 1 == len(found.warnings)
    assert "POSTGRES_PORT" in found.warnings[0]


def test_service_links_of_others_are_no_news() -> None:
    """A service that nobody could mistake for a setting is not worth a line in every pod."""
    assert () == read(PGADMIN_PORT="tcp://10.0.0.1:80", REDIS_SERVICE_HOST="10.0.0.2").warnings


# settings


def test_settings_are_read() -> None:
    """Each under its name."""
    found = read(
        PREFLIGHT_SCHEMA="app_two",
        PREFLIGHT_BACKUP="off",
        PREFLIGHT_BACKUP_KEEP="3",
        PREFLIGHT_WAIT_TIMEOUT_S="0.5",
        PREFLIGHT_MIGRATIONS_DIR="/elsewhere",
    )

    assert ("app_two", "off", 3, 0.5) == (
        found.schema, found.backup, found.backup_keep, found.wait_timeout_s
    )  # fmt: skip
    assert Path("/elsewhere") == found.migrations_dir


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("WAIT_TIMEOUT_S", "LOCK_WAIT_S", "LOCK_RETRY_S", "STATEMENT_TIMEOUT_S")
        for value in ("-1", "nan", "inf", "1e3", "1_0", " 5", "5s", "2147484", "\u0665", "x")
    ]
    + [("BACKUP_KEEP", "0"), ("BACKUP_KEEP", "1.5"), ("BACKUP_KEEP", "9" * 10)]
    + [("JOBS", "0"), ("JOBS", "many")]
    + [("LOCK_TIMEOUT_MS", "0"), ("LOCK_TIMEOUT_MS", "2s"), ("REHEARSE_MAX_MB", "-1")]
    + [(name, "maybe") for name in ("BACKUP", "REHEARSE", "FIRST_CONTACT", "AHEAD", "LOG")]
    + [("OUT_OF_ORDER", "yes"), ("LOG_LEVEL", "INFO"), ("LOG_SQL", "true")]
    + [("SCHEMA", value) for value in ("public", "pg_x", "Order", "order", "a-b", "1a", "a" * 64)],
)
def test_wrong_value_is_refused(name: str, value: str) -> None:
    """The message shows the variable, the value and what would be right."""
    (problem,) = wrong(**{f"PREFLIGHT_{name}": value})
    assert f"PREFLIGHT_{name}={value!r} is not " in problem


def test_schema_needs_no_quotes() -> None:
    """No reserved word of PostgreSQL gets through."""
    reserved = {pg_query_pb2.RESERVED_KEYWORD, pg_query_pb2.TYPE_FUNC_NAME_KEYWORD}
    words = {name.lower().removesuffix("_p") for name in pg_query_pb2.Token.keys()}  # noqa: SIM118 - an enum of protobuf, not a dict
    words = {word for word in words if word.isidentifier()}
    quoted = {
        word for word in words if postgast.scan(word).tokens[0].keyword_kind in reserved
    }  # fmt: skip

    assert len(quoted) > 90
    assert set() == {word for word in quoted if not wrong(PREFLIGHT_SCHEMA=word)}


@pytest.mark.fault("F149")
def test_unknown_setting_is_refused_with_the_nearest() -> None:
    """A typo must not switch off what was asked for."""
    (problem,) = wrong(PREFLIGHT_BAKUP_DIR="/backups")
    assert "PREFLIGHT_BAKUP_DIR is not a setting Did you mean PREFLIGHT_BACKUP_DIR?" == problem


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DATABASE_URL", "It is DATABASE_URL, without the prefix."),
        ("POSTGRES_HOST", "It is POSTGRES_HOST, without the prefix."),
        ("PGPASSWORD_FILE", "It is PGPASSWORD_FILE, without the prefix."),
        *(
            (
                name,
                "Where the database is say DATABASE_URL or the PG* variables, without the prefix.",
            )
            for name in ("DB_URL", "URL", "HOST", "DATABASE", "DB_NAME", "POSTGRESQL_USERNAME")
        ),
        *(
            (name, "See `entrypoint.py --help`, which has every setting.")
            for name in ("VERBOSE", "ENVIRONMENT", "TIMEOUT", "CLONE_DATABASE_URL", "LOG_FORMAT")
        ),
        ("BACKUP_DIRS", "Did you mean PREFLIGHT_BACKUP_DIR?"),
        ("MIGRATIONS", "Did you mean PREFLIGHT_MIGRATIONS_DIR?"),
        ("WAIT_TIMEOUT", "Did you mean PREFLIGHT_WAIT_TIMEOUT_S?"),
        ("REHEARSAL_URL", "Did you mean PREFLIGHT_REHEARSE_URL?"),
        ("REHEARSE_CLONE", "Did you mean PREFLIGHT_REHEARSE_CLONE_URL?"),
        ("NOTIFY_URL_FLE", "Did you mean PREFLIGHT_NOTIFY_URL_FILE?"),
    ],
)
def test_setting_that_is_none_is_never_answered_with_another(name: str, hint: str) -> None:
    """The live database's URL would become the place to rehearse; a slip is still seen."""
    assert [f"PREFLIGHT_{name} is not a setting {hint}"] == wrong(**{f"PREFLIGHT_{name}": "x"})


def test_all_problems_are_reported_at_once() -> None:
    """One run shows everything that has to be changed."""
    found = wrong(
        PREFLIGHT_BAKUP="off",
        PREFLIGHT_LOG="loud",
        PGPORT="x",
        PGUSER="a",
        POSTGRES_USER="b",
        PGPASSWORD_FILE="/nowhere",
    )
    assert 5 == len(found), found


def test_empty_value_is_no_value() -> None:
    """As compose files leave them."""
    names = ("PREFLIGHT_SCHEMA", "PREFLIGHT_NONSENSE", "PGHOST", "DATABASE_URL", "PGSERVICE",
             "PGPASSWORD_FILE", "POSTGRES_PORT")  # fmt: skip
    assert target() == target(**dict.fromkeys(names, ""))


@pytest.mark.parametrize("name", ["PGUSER", "PGPASSWORD", "PGOPTIONS", "PREFLIGHT_SCHEMA"])
def test_value_that_is_not_utf8_is_refused(name: str) -> None:
    """The server would get other bytes than were meant."""
    assert [f"{name} is not valid UTF-8"] == wrong(**{name: "caf\udce9"})


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.ISO-8859-1", "C.UTF-8", ""])
def test_password_is_the_same_in_every_locale(locale: str) -> None:
    """The environment is bytes, and the bytes are UTF-8."""
    code = "from preflight.base import config; print(ascii(config.environment()['PGPASSWORD']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=servers.REPOSITORY,
        env={b"LC_ALL": locale.encode(), b"PGPASSWORD": "pä ß€".encode()},
        capture_output=True,
        check=True,
    )

    assert ascii("pä ß€") == done.stdout.decode().strip()


def test_config_shows_no_secret() -> None:
    """Not in a traceback, not in a debugger's line."""
    url = f"postgresql://u:{SECRET}@h/d"
    shown = repr(read(DATABASE_URL=url, PREFLIGHT_REHEARSE_URL=url))

    assert SECRET not in shown


def test_value_that_is_wrong_is_shown_where_it_holds_no_secret() -> None:
    """An address that lacks its scheme, or has another's."""
    for value in ("minio:9000", "ftp://files/x", "http://minio:9000/a b"):
        (problem,) = wrong(PREFLIGHT_BACKUP_ENDPOINT=value)
        assert f"PREFLIGHT_BACKUP_ENDPOINT={value!r}" in problem


def test_children_get_no_secret() -> None:
    """What pg_dump needs comes through its arguments and a passfile."""
    given = dict.fromkeys(config.SECRETS, SECRET) | {"PATH": "/bin", "PGSSLMODE": "require"}
    kept = config.child_environment(given)

    assert SECRET not in kept.values()
    assert ("/bin", "require", "C") == (kept["PATH"], kept["PGSSLMODE"], kept["LC_ALL"])


def test_program_of_others_is_not_told_where_the_database_is() -> None:
    """In none of the ways that we know, nor where the password is; its own variables stay."""
    kept = {"PATH": "/bin", "PGBACKREST_STANZA": "main", "AWS_REGION": "eu", "PGDATA": "/data"}
    said = ("HOST", "PORT", "USER", "PASSWORD")
    given = dict.fromkeys([f"{each}{name}" for each in ("PG", "POSTGRES_") for name in said], "x")
    given |= dict.fromkeys(["PGHOSTADDR", "PGDATABASE", "POSTGRES_DB", "DATABASE_URL"], "x")
    given |= dict.fromkeys([f"{name}_FILE" for name in config.SECRETS], "x")
    given |= dict.fromkeys(["PGSERVICE", "PGSERVICEFILE", "PGPASSFILE"], "x")

    seen = config.strangers_environment(config.child_environment(given | kept))

    assert kept | {"LC_ALL": "C", "LANGUAGE": "C"} == seen


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PREFLIGHT_BACKUP_ENDPOINT", "https://key:hidden@minio:9000"),
        ("PREFLIGHT_BACKUP_DIR", "s3://AKIA:hidden@bucket/prefix"),
        ("PREFLIGHT_BACKUP_DIR", "s3://AKIA:ab/hidden@bucket/prefix"),
        ("PREFLIGHT_BACKUP_DIR", "s3://AKIA:ab/hidden@too@bucket/prefix"),
        ("PREFLIGHT_BACKUP_ENDPOINT", "https://key:ab/hidden@minio:9000"),
        ("PREFLIGHT_BACKUP_ENDPOINT", "key:ab/hidden@minio:9000"),
        ("PREFLIGHT_REHEARSE", "postgresql://u:a/hidden@h/d"),
        ("PREFLIGHT_REHEARSE", "postgresql://u:hidden/d"),
        ("PREFLIGHT_REHEARSE", "postgresql://u:12/hidden"),
        ("PREFLIGHT_REHEARSE", "host=h password=hidden"),
        ("PREFLIGHT_MIGRATIONS_DIR", "postgresql://u:hidden@h/d"),
        ("PREFLIGHT_SPOOL_DIR", "s3://AKIA:hidden@bucket"),
        ("PREFLIGHT_BACKUP_DIR", "az://container/p?sv=1&sig=hidden"),
        ("PREFLIGHT_BACKUP_COMMAND", "snap --token 'hidden"),
    ],
)
def test_value_that_is_wrong_is_shown_without_its_secret(variable: str, value: str) -> None:
    """It is refused for what it holds, and that is not said."""
    said = " ".join(wrong(**{variable: value}))

    assert variable in said
    assert "hidden" not in said
