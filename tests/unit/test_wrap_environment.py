"""What a wrapped command depends on, and how its environment is led to the copy."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from preflight.base import config
from preflight.base.errors import ConfigInvalid
from preflight.commands.wrapping import asked, compared, environment, key, lock_timeout, tools
from tests import program, servers

LIVE = environment.Live("app", frozenset({"db", "10.0.0.5"}), frozenset({"5432"}), "me", "p@ss")
BESIDE = environment.Copy("db", "5432", "scratch", "me")  # on the same server
AWAY = environment.Copy(
    "127.0.0.1", "6000", "app", "me", "r:4nd", frozenset({"me"}), away=True, plain=True
)


def led(environ: dict[str, str], copy: environment.Copy = AWAY, **more: object) -> environment.Led:
    """Return an environment led to a copy."""
    return environment.led(environ, LIVE, copy, **more)  # type: ignore[arg-type]


# --- the key --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with two files."""
    found = tmp_path / "watched"
    (found / "sub").mkdir(parents=True)
    (found / "001.py").write_text("one")
    (found / "sub/002.py").write_text("two")
    return found


def of(*watched: Path, arguments: tuple[str, ...] = ("tool", "up")) -> str:
    """Return the key of files."""
    return key.of_files(arguments, watched)


def test_key_is_the_same_wherever_the_files_are(folder: Path, tmp_path: Path) -> None:
    """Names count from the watched path on: an image and a mount agree."""
    before = of(folder)
    moved = folder.rename(tmp_path / "elsewhere")

    assert before == of(moved)


@pytest.mark.parametrize("name", ["003.py", "sub/003.py", "003.bak"])
def test_new_file_is_another_key(folder: Path, name: str) -> None:
    """However deep it lies."""
    before = of(folder)
    (folder / name).write_text("")

    assert before != of(folder)


def test_renamed_and_edited_files_are_other_keys(folder: Path) -> None:
    """Bytes and names count, and where the one ends and the other begins."""
    found = {of(folder)}
    (folder / "001.py").write_text("One")
    found.add(of(folder))
    (folder / "001.py").rename(folder / "01.py")
    found.add(of(folder))
    found.add(of(folder, arguments=("tool", "down")))
    found.add(of(folder, arguments=("toolup",)))

    assert 5 == len(found)


@pytest.mark.parametrize(
    "name", [".git", "001.py~", "#001.py#", "x.pyc", "__pycache__/x", "001.swp", "001.py.swo"]
)
def test_leftovers_do_not_count(folder: Path, name: str) -> None:
    """What an editor or an interpreter leaves changes no key."""
    before = of(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("anything")

    assert before == of(folder)


def test_config_map_can_be_watched(folder: Path) -> None:
    """Kubernetes mounts one as links through a hidden directory."""
    before = of(folder)
    hidden = folder / "..2026"
    hidden.mkdir()
    (folder / "001.py").rename(hidden / "001.py")
    (folder / "..data").symlink_to("..2026")
    (folder / "001.py").symlink_to("..data/001.py")

    assert before == of(folder)


@pytest.mark.parametrize("what", ["missing", "out", "dangling", "circle", "fifo", "empty"])
def test_what_cannot_be_watched_is_refused(folder: Path, what: str) -> None:
    """A link out of it, a link to nowhere, a link to itself, a pipe, nothing: 20 that names it."""
    watched, named = folder, folder / "odd"
    match what:
        case "missing":
            watched = named
        case "out":
            named.symlink_to("/etc/passwd")
        case "dangling":
            named.symlink_to("nowhere")
        case "circle":
            named.symlink_to(".")
        case "fifo":
            os.mkfifo(named)
        case _:
            named.mkdir()
            watched = named

    with pytest.raises(ConfigInvalid, match="odd"):
        of(watched)


def test_key_changes_with_the_history() -> None:
    """Rows that somebody else wrote make the command due again."""
    assert key.whole("f", ["a"]) != key.whole("f", ["b"])
    assert key.whole("f", ["a", "b"]) != key.whole("f", ["ab"])


# --- led to the copy ------------------------------------------------------------------------------

TO_AWAY = "me:r%3A4nd@127.0.0.1:6000/app"
URLS = [
    ("postgres://me:p%40ss@db:5432/app", f"postgres://{TO_AWAY}"),
    ("postgresql+asyncpg://me:p%40ss@db/app", f"postgresql+asyncpg://{TO_AWAY}"),
    ("ecto://me:p@ss@db/app", f"ecto://{TO_AWAY}"),
    ("postgres://me@db,db2:5433/app", f"postgres://{TO_AWAY}"),
    ("postgres://me@[::1]:5432/app", f"postgres://{TO_AWAY}"),
    ("postgres://db/app", f"postgres://{TO_AWAY}"),
    ("postgres://other:pw@pooler:6432/app", f"postgres://{TO_AWAY}"),
    (
        "postgres://me@db/app?sslmode=require&sslrootcert=/ca&pool_size=5",
        f"postgres://{TO_AWAY}?sslmode=disable&pool_size=5",
    ),
    (
        "jdbc:postgresql://db:5432/app?user=me&password=p%40ss&ssl=true",
        "jdbc:postgresql://127.0.0.1:6000/app?user=me&password=r%3A4nd",
    ),
    (
        "jdbc:postgresql://db/app",
        "jdbc:postgresql://127.0.0.1:6000/app?user=me&password=r%3A4nd",
    ),
    ("r2dbc:postgresql://me:p@db/app", f"r2dbc:postgresql://{TO_AWAY}"),
    ("cockroachdb://me:p@db/app", f"cockroachdb://{TO_AWAY}"),
    ("driver://me:p@db:5432/app", f"driver://{TO_AWAY}"),
    (
        "postgresql://me:x@/app?host=/run/postgresql",
        "postgresql://me:r%3A4nd@/app?host=127.0.0.1&port=6000",
    ),
    ("postgresql://me:x@db:5432", f"postgresql://{TO_AWAY}"),
]


@pytest.mark.parametrize(("url", "wanted"), URLS)
def test_url_is_led_to_the_copy(url: str, wanted: str) -> None:
    """Any scheme, with host, port, user and password, and without TLS where the copy has none."""
    found = led({"ANY": url})

    assert wanted == found.environment["ANY"]
    assert ("ANY",) == found.variables


@pytest.mark.parametrize(
    "text",
    [
        "postgres://me@db:5432/other",
        "http://db:8080/app",
        "redis://db:6379/0",
        "mysql://me@mysql/app",
        "tcp://10.0.0.5:5432",
        "https://example.org/app",
        "app.example.org",
        "postgres",
        "Server=sqlserver;Database=app;User Id=me",
    ],
)
def test_other_addresses_are_left_alone(text: str) -> None:
    """What names another database, or none, is what it was."""
    found = led({"ANY": text})

    assert text == found.environment["ANY"]
    assert () == found.variables


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "host=db port=5432 dbname=app user=me password='p @'",
            "host=127.0.0.1 port=6000 dbname=app user=me password=r:4nd",
        ),
        (
            "dbname=app host=db sslmode=verify-full sslrootcert=/ca",
            "dbname=app host=127.0.0.1 sslmode=disable port=6000 user=me password=r:4nd",
        ),
        (
            "Host=db;Port=5432;Database=app;Username=me;Password=p@ss;SSL Mode=Require",
            "Host=127.0.0.1;Port=6000;Database=app;Username=me;Password=r:4nd;SSL Mode=disable",
        ),
        (
            "Server=db;Database=app;User Id=me;Password=x;Pooling=true",
            "Server=127.0.0.1;Database=app;User Id=me;Password=r:4nd;Pooling=true;Port=6000",
        ),
        (
            "pgsql:host=db;port=5432;dbname=app",
            "pgsql:host=127.0.0.1;port=6000;dbname=app;user=me;password=r:4nd",
        ),
    ],
)
def test_keyword_string_is_led_to_the_copy(text: str, wanted: str) -> None:
    """As libpq writes it, as .NET does, as PHP does."""
    assert wanted == led({"ANY": text}).environment["ANY"]


def test_groups_are_led_together() -> None:
    """Five variables with one prefix name one database; another prefix names another."""
    found = led(
        {
            "DB_HOST": "db", "DB_PORT": "5432", "DB_USER": "me", "DB_PASSWORD": "x",
            "DB_NAME": "app", "REDIS_HOST": "redis", "REDIS_PORT": "6379",
            "AUDIT_DB_HOST": "db", "AUDIT_DB_NAME": "audit", "AUDIT_DB_PASSWORD": "y",
        }
    )  # fmt: skip

    assert {
        "DB_HOST": "127.0.0.1", "DB_PORT": "6000", "DB_USER": "me", "DB_PASSWORD": "r:4nd",
        "DB_NAME": "app", "REDIS_HOST": "redis", "REDIS_PORT": "6379",
        "AUDIT_DB_HOST": "db", "AUDIT_DB_NAME": "audit", "AUDIT_DB_PASSWORD": "y",
    } == {
        name: text for name, text in found.environment.items() if name[:2] != "PG"
    }  # fmt: skip
    assert ("DB_HOST", "DB_PASSWORD", "DB_PORT") == found.variables


def test_url_and_its_user_are_led_together() -> None:
    """Flyway and Spring say the password beside the URL."""
    found = led(
        {
            "FLYWAY_URL": "jdbc:postgresql://db:5432/app",
            "FLYWAY_USER": "me",
            "FLYWAY_PASSWORD": "p@ss",
        }
    )

    assert "r:4nd" == found.environment["FLYWAY_PASSWORD"]
    assert "jdbc:postgresql://127.0.0.1:6000/app" in found.environment["FLYWAY_URL"]


def test_bare_names_are_led_beside_the_live_database() -> None:
    """On the same server only the name is another one."""
    found = led({"DB_NAME": "app", "TENANT_DATABASE": "app", "USERNAME": "app"}, BESIDE)

    assert ("DB_NAME", "TENANT_DATABASE") == found.variables
    assert "scratch" == found.environment["DB_NAME"]
    assert "app" == found.environment["USERNAME"]


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"PGHOST": "db", "PGDATABASE": "app", "PGUSER": "me"}, ("PGDATABASE",)),
        ({"POSTGRES_HOST": "db", "POSTGRES_DB": "app"}, ("POSTGRES_DB",)),
        ({"PGSERVICE": "live"}, ("PGSERVICE",)),
        ({"DATABASE_URL": "postgres://me:x@db/app"}, ("DATABASE_URL",)),
    ],
)
def test_own_vocabularies_are_led(environ: dict[str, str], names: tuple[str, ...]) -> None:
    """What this program reads, it leads; libpq's variables always point to the copy."""
    found = led(environ, BESIDE)

    assert names == found.variables
    assert "scratch" == found.environment["PGDATABASE"]
    assert "PGSERVICE" not in found.environment


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("postgresql:///?service=live", f"postgresql://{TO_AWAY}"),
        ("service=live", "host=127.0.0.1 port=6000 dbname=app user=me password=r:4nd"),
    ],
)
def test_own_url_is_led_whatever_it_says(text: str, wanted: str) -> None:
    """DATABASE_URL is where this program has the address from: it cannot name another one."""
    found = led({"DATABASE_URL": text})

    assert wanted == found.environment["DATABASE_URL"]


def test_nothing_found_is_told() -> None:
    """An environment without an address leads nowhere."""
    assert () == led({"PATH": "/bin", "HOME": "/root"}).variables


def test_named_variable_is_led_whatever_it_looks_like() -> None:
    """What --url-variable names is believed."""
    text = "weird://me:x@somewhere/else"

    assert ("ODD",) == led({"ODD": text}, also={"ODD"}).variables
    in_file = led({"ODD_FILE": "/a"}, also={"ODD_FILE"}, files={"ODD_FILE": text})
    assert ("ODD_FILE",) == in_file.variables


@pytest.mark.parametrize(
    ("text", "away", "beside"),
    [
        ("db:5432:app", "127.0.0.1:6000:app", "db:5432:scratch"),
        ("me/p@ss@10.0.0.5#5432#app", "me/r:4nd@127.0.0.1#6000#app", "me/p@ss@db#5432#scratch"),
        ("db", "127.0.0.1", None),
        ("my.db:54321/apple", None, None),
    ],
)
def test_named_variable_of_an_unknown_form_is_led_by_its_parts(
    text: str, away: str | None, beside: str | None
) -> None:
    """As whole words; it is told where there is none. Who stands beside it is led with it."""
    environ = {"DB_HOST_OF_ALL": text, "DB_USERNAME": "me", "DB_PASSWORD": "p@ss"}
    left = led(environ)
    found, near = (led(environ, copy, also={"DB_HOST_OF_ALL"}) for copy in (AWAY, BESIDE))
    in_file = {"ADDRESS_FILE": "/a/db/5432"}
    file = led(in_file, also={"ADDRESS_FILE"}, files={"ADDRESS_FILE": text})

    assert text == left.environment["DB_HOST_OF_ALL"]
    assert (away or text, beside or text) == (
        found.environment["DB_HOST_OF_ALL"],
        near.environment["DB_HOST_OF_ALL"],
    )
    assert ("r:4nd" if away else "p@ss") == found.environment["DB_PASSWORD"]
    assert (() if away else ("DB_HOST_OF_ALL",)) == found.left
    assert ((away,) if away else ()) == tuple(file.files.values())
    assert in_file["ADDRESS_FILE"] == file.environment["ADDRESS_FILE"]


def test_named_variable_that_says_only_where_a_copy_beside_is_as_well_is_not_led() -> None:
    """Its text is right, and the name of the database comes from somewhere else."""
    alone = led({"ADDRESS": "db:5432"}, BESIDE, also={"ADDRESS"})
    whole = led({"ADDRESS": "db:5432", "ADDRESS_NAME": "app"}, BESIDE, also={"ADDRESS"})
    away = led({"ADDRESS": "db:5432"}, AWAY, also={"ADDRESS"})

    assert ("ADDRESS",) == alone.left
    assert ((), "scratch") == (whole.left, whole.environment["ADDRESS_NAME"])
    assert ((), "127.0.0.1:6000") == (away.left, away.environment["ADDRESS"])


@pytest.mark.parametrize("copy", [AWAY, dataclasses.replace(BESIDE, user="app")])
def test_word_that_may_be_two_things_is_not_led(copy: environment.Copy) -> None:
    """A name that is a user's and a database's is the database's where it stands alone."""
    live = environment.Live("app", LIVE.hosts, LIVE.ports, "app", "app")
    database = copy.database

    once = environment.led({"ODD": "db#app"}, live, copy, also={"ODD"})
    twice = environment.led({"ODD": "app@db#app"}, live, copy, also={"ODD"})

    assert f"{copy.host}#{database}" == once.environment["ODD"]
    assert ("app@db#app", ("ODD",)) == (twice.environment["ODD"], twice.left)
    live = dataclasses.replace(live, hosts=frozenset({"app"}))
    host = environment.led({"HOST_OF_ALL": "app"}, live, copy, also={"HOST_OF_ALL"})
    assert copy.host == host.environment["HOST_OF_ALL"]


@pytest.mark.parametrize(
    ("environ", "changed"),
    [
        (
            {"BACKEND_HOST": "db", "BACKEND_PORT": "5432", "BACKEND_PASSWORD": "p@ss"},
            {"BACKEND_HOST": "127.0.0.1", "BACKEND_PORT": "6000", "BACKEND_PASSWORD": "r:4nd"},
        ),
        (
            {"SHOP_DB": "postgres://db/app", "SHOP_HOST": "shop.example.com", "SHOP_PORT": "8080",
             "SHOP_USER": "admin", "SHOP_PASSWORD": "theirs"},
            {"SHOP_DB": "postgres://me:r%3A4nd@127.0.0.1:6000/scratch"},
        ),
        (
            {"APP_ADDR": "db:5432:app", "APP_HOST": "10.0.0.9", "APP_PORT": "8080"},
            {"APP_ADDR": "127.0.0.1:6000:scratch"},
        ),
        (
            {"TRIPLE": "db:5432:app", "TRIPLE_USER": "you", "TRIPLE_PASSWORD": "p@ss",
             "TRIPLE_NAME": "app", "OTHER_PASSWORD": "p@ss"},
            {"TRIPLE": "127.0.0.1:6000:scratch", "TRIPLE_PASSWORD": "r:4nd",
             "TRIPLE_NAME": "scratch"},
        ),
    ],
)  # fmt: skip
def test_only_what_is_exactly_the_live_one_is_led_beside_a_named_variable(
    environ: dict[str, str], changed: dict[str, str]
) -> None:
    """It stands beside it by its prefix, which may be the name itself; all else is something's."""
    copy = dataclasses.replace(AWAY, database="scratch")
    found = led(environ, copy, also={next(iter(environ))})

    assert environ | changed == {name: found.environment[name] for name in environ}
    assert () == found.left


@pytest.mark.parametrize(
    "environ",
    [
        {"DB_HOST_MAIN": "db", "DB_PORT_MAIN": "5432", "DB_NAME_MAIN": "app"},
        {"DB_HOST_WRITE": "db", "DB_HOST_READ": "replica", "DB_USER_RO": "me"},
        {"BACKEND_SERVER_OF_EU": "db"},
        {"WHERE": "db:5432:app"},
    ],
)
def test_host_of_a_form_that_is_not_known_is_told_and_not_led(environ: dict[str, str]) -> None:
    """To lead a half of what belongs together would have a command write where no copy is."""
    first = next(iter(environ))
    url = {"DATABASE_URL": "postgres://me@db/app"}
    found = led(environ | url)

    assert environ == {name: found.environment[name] for name in environ}
    assert (("DATABASE_URL",), (first,)) == (found.variables, found.left)


@pytest.mark.parametrize("kind", ["USER", "PASSWORD"])
def test_role_that_a_migration_makes_is_no_part_of_the_group(kind: str) -> None:
    """DB_USER_RO is who CREATE ROLE names, not who connects, whatever DB_USER says."""
    group = {"DB_HOST": "db", "DB_NAME": "app", "DB_USER": "me", "DB_PASSWORD": "p@ss"}
    environ = group | {f"DB_{kind}_RO": "reader", f"DATABASE_{kind}_RO": "reader"}
    found = led(environ | {"DATABASE_URL": "postgres://db/app"})

    assert {"reader"} == {found.environment[name] for name in environ.keys() - group.keys()}
    assert "postgres://me:r%3A4nd@127.0.0.1:6000/app" == found.environment["DATABASE_URL"]


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR"])
def test_host_that_libpq_reads_is_not_told_as_left(name: str) -> None:
    """It is led, or taken away, wherever libpq's other variables are."""
    found = led({name: "10.0.0.5", "PGDATABASE": "app"})

    assert () == found.left
    assert "127.0.0.1" == found.environment["PGHOST"]


@pytest.mark.parametrize(
    "environ",
    [
        {"DB_TYPE": "db", "COMPOSE_SERVICE": "db", "REDIS_HOSTS_OF_EU": "db"},
        {"ALLOWED_HOSTS_OF_APP": "localhost"},
        {"APP_HOSTS": "db,web"},
    ],
)
def test_word_that_may_be_anybodys_is_no_host_left(environ: dict[str, str]) -> None:
    """Told is what is called a host, a server or an address, and is the live one and no more."""
    live = dataclasses.replace(LIVE, hosts=LIVE.hosts | {"localhost"})
    copy = dataclasses.replace(AWAY, host="10.9.9.9")

    assert () == environment.led(environ, live, copy).left


def test_own_settings_are_left_alone() -> None:
    """A scratch server's URL of ours is no address of the command's."""
    text = "postgres://me:x@db/app"

    assert text == led({"PREFLIGHT_REHEARSE_URL": text}).environment["PREFLIGHT_REHEARSE_URL"]


def test_url_in_another_text_is_led() -> None:
    """As in the options of a JVM, or a platform's JSON."""
    text = '{"uri": "postgres://me:x@db:5432/app", "n": 1}'

    assert f'{{"uri": "postgres://{TO_AWAY}", "n": 1}}' == led({"VCAP": text}).environment["VCAP"]


def test_arguments_are_led_too() -> None:
    """A platform has put the address there before we saw it."""
    url = "postgres://me:x@db/app"
    found = led({}, arguments=["tool", "--database", url, f"--url={url}", "up"])
    there = f"postgres://{TO_AWAY}"

    assert ["tool", "--database", there, f"--url={there}", "up"] == list(found.arguments)
    assert ("argument 3", "argument 4") == found.variables


def test_other_roles_keep_their_names_where_they_are_known() -> None:
    """The command's own role is tried, not ours."""
    copy = dataclasses.replace(AWAY, users=frozenset({"me", "migrator"}))
    found = led({"DATABASE_URL": "postgres://migrator:x@db/app"}, copy)

    assert "postgres://migrator:r%3A4nd@127.0.0.1:6000/app" == found.environment["DATABASE_URL"]
    assert {"migrator"} == found.users - {""}


def test_secret_files_are_led() -> None:
    """What a variable called NAME_FILE names is read by the command."""
    files = {"DB_URL_FILE": "postgres://me:x@db/app\n", "DB_PASSWORD_FILE": "p@ss\n"}
    found = led({"DB_URL_FILE": "/a", "DB_PASSWORD_FILE": "/b"}, files=files)

    assert {"DB_URL_FILE": f"postgres://{TO_AWAY}", "DB_PASSWORD_FILE": "r:4nd"} == found.files


def test_empty_password_is_one_on_the_copy() -> None:
    """Where the live server trusts; the copy's asks, and a driver of Java reads no other."""
    copy = dataclasses.replace(COPIED, users=frozenset({"me", "you"}))
    environ = {"DB_HOST": "db", "DB_NAME": "app", "DB_USER": "you", "DB_PASSWORD": ""}
    url = {"APP_URL": "jdbc:postgresql://db/app", "APP_USER": "you", "APP_PASSWORD": ""}
    file = {"A_DB_HOST": "db", "A_DB_NAME": "app", "A_DB_PASSWORD_FILE": "/f"}
    nothing = {"MAIL_PASSWORD": "", "PGPASSWORD": "", "DB_PORT": ""}
    said = environ | url | file | nothing
    found = led(said, copy, files={"A_DB_PASSWORD_FILE": ""})
    beside = led(said, BESIDE, files={"A_DB_PASSWORD_FILE": ""})

    assert ("r:4nd", "r:4nd", "") == tuple(
        found.environment[name] for name in ("DB_PASSWORD", "APP_PASSWORD", "MAIL_PASSWORD")
    )
    assert {"A_DB_PASSWORD_FILE": "r:4nd"} == found.files
    assert {"DB_PASSWORD", "APP_PASSWORD"} <= {*found.variables}
    assert ("", "", {}) == (
        beside.environment["DB_PASSWORD"], beside.environment["APP_PASSWORD"], beside.files,
    )  # fmt: skip
    both = environ | {"DB_PASSWORD_FILE": "/f"}
    assert {"DB_PASSWORD_FILE": "r:4nd"} == led(both, files={"DB_PASSWORD_FILE": "own"}).files
    assert beside.passfile  # he has his own from somewhere else, or needs none


def test_role_beside_a_url_is_kept() -> None:
    """A URL that says nobody means the one beside it, not the role of this program."""
    copy = dataclasses.replace(AWAY, users=frozenset({"me", "migrator"}))
    environ = {
        "FLYWAY_URL": "jdbc:postgresql://db/app",
        "FLYWAY_USER": "migrator",
        "APP_URL": "postgres://db/app",
        "APP_USERNAME": "migrator",
    }
    found = led(environ, copy)

    assert "?user=migrator&" in found.environment["FLYWAY_URL"]
    assert "migrator" == found.environment["FLYWAY_USER"]
    assert "postgres://migrator:r%3A4nd@127.0.0.1:6000/app" == found.environment["APP_URL"]


PASSWORDS = [
    ({"APP_URL": "postgres://you:own@db/app"}, (), True),
    ({"APP_URL": "postgres://db/app?user=you&password=own"}, (), True),
    ({"APP_URL": "postgres://you@db/app"}, (), False),
    ({"APP_URL": "postgres://you:@db/app"}, (), False),
    ({"APP_URL": "postgres://you@db/app", "APP_PASSWORD": "own"}, (), True),
    ({"APP_URL": "jdbc:postgresql://db/app", "APP_USERNAME": "you", "APP_PASS": "o"}, (), True),
    ({"APP_URL": "jdbc:postgresql://db/app", "APP_USERNAME": "you"}, (), False),
    ({"APP_DSN": "host=db dbname=app user=you password=own"}, (), True),
    ({"APP_DSN": "host=db dbname=app user=you"}, (), False),
    ({"DB_HOST": "db", "DB_NAME": "app", "DB_USER": "you", "DB_PASSWORD": "own"}, (), True),
    ({"DB_HOST": "db", "DB_NAME": "app", "DB_USER": "you"}, (), False),
    ({"CONFIG": '{"host": "db", "database": "app", "user": "you", "password": "own"}'}, (), True),
    ({"CONFIG": '{"host": "db", "database": "app", "user": "you"}'}, (), False),
    ({"CONFIG": '{"url": "jdbc:postgresql://db/app", "user": "you", "password": "o"}'}, (), True),
    ({"PGUSER": "you"}, (), False),
    ({}, ("psql", "-h", "db", "-U", "you", "app"), False),
    ({}, ("tool", "--db-host", "db", "--db-user", "you", "--db-password", "own"), True),
]


@pytest.mark.parametrize(("environ", "arguments", "alone"), PASSWORDS)
def test_gates_password_is_everybodys_where_the_others_have_theirs(
    environ: dict[str, str], arguments: tuple[str, ...], *, alone: bool
) -> None:
    """Beside an address or in it; else it is the gate's alone, in what only the gate uses."""
    url, pairs = "postgresql://me@db/app?sslmode=require", "host=db dbname=app user=me"
    environ = {"DATABASE_URL": url, "OUR_DSN": pairs, **environ}

    found = led(environ, BESIDE, arguments=arguments)
    given = found.environment

    assert alone != found.passfile
    assert ("p@ss" if alone else None) == given.get("PGPASSWORD")
    own = ("", "") if alone else (":p%40ss", " password=p@ss")
    assert (
        f"postgresql://me{own[0]}@db:5432/scratch?sslmode=require",
        f"host=db dbname=scratch user=me port=5432{own[1]}",
    ) == (given["DATABASE_URL"], given["OUR_DSN"])


def test_gates_password_stands_in_no_argument() -> None:
    """Others see the arguments of a process."""
    you = {"APP_URL": "postgres://you@db/app"}

    found = led(you, BESIDE, arguments=("psql", "postgres://me@db/app"))

    assert ["psql", "postgres://me@db:5432/scratch"] == found.arguments


def test_passfile_that_is_good_for_the_copy_stays() -> None:
    """A line for each database holds there, too; one of the live database's needs another."""
    every, its = "*:*:*:you:x\n", "db:*:app:you:x\n"

    assert "" == environment.passfile(every, LIVE, BESIDE, gate=False)
    assert f"{every}*:*:scratch:me:p@ss\n" == environment.passfile(every, LIVE, BESIDE, gate=True)
    assert f"db:*:scratch:you:x\n{its}*:*:scratch:me:p@ss\n" == environment.passfile(
        its, LIVE, BESIDE, gate=False
    )


@pytest.mark.parametrize("prefix", ["MYSQL", "APP_MARIADB", "MONGODB", "SQLSERVER"])
@pytest.mark.parametrize("copy", [AWAY, BESIDE], ids=["away", "beside"])
def test_other_kinds_of_servers_are_left_alone(prefix: str, copy: environment.Copy) -> None:
    """Also where the app's database there has the same name."""
    environ = {
        f"{prefix}_HOST": "other",
        f"{prefix}_DATABASE": "app",
        f"{prefix}_USER": "me",
        f"{prefix}_PASSWORD": "x",
    }
    found = led(environ, copy)

    assert () == found.variables
    assert environ == {name: found.environment[name] for name in environ}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "host=db user=me password=x",
            "host=127.0.0.1 user=me password=r:4nd port=6000 dbname=app",
        ),
        (
            "Host=db;Username=me;Target Session Attributes=standby",
            "Host=127.0.0.1;Username=me;Port=6000;Database=app;Password=r:4nd",
        ),
        ("host=elsewhere user=me password=x", "host=elsewhere user=me password=x"),
        ("host=db user=me dbname=other", "host=db user=me dbname=other"),
    ],
)
def test_keyword_string_without_a_database_is_the_servers(text: str, wanted: str) -> None:
    """The name comes from PGDATABASE or is the role's, as in a URL that ends with the host."""
    assert wanted == led({"ANY": text}).environment["ANY"]


def test_question_mark_in_a_password_is_no_option() -> None:
    """As libpq reads it; and it is a secret."""
    url = "postgres://me:p?x@db:5432/app?connect_timeout=3"

    assert (
        f"postgres://{TO_AWAY}?connect_timeout=3"
        == led({"DATABASE_URL": url}).environment["DATABASE_URL"]
    )
    assert {"p?x"} == environment.secrets({"ANY": url})


def test_groups_in_files_are_led() -> None:
    """The official image's names come as files, too."""
    files = {"DB_HOST_FILE": "db\n", "DB_NAME_FILE": "app\n", "DB_PASSWORD_FILE": "x\n"}
    away = led({"DB_USER": "me", **dict.fromkeys(files, "/f")}, files=files)
    beside = led({"DB_USER": "me", **dict.fromkeys(files, "/f")}, BESIDE, files=files)
    own = led({"DATABASE_URL_FILE": "/f"}, files={"DATABASE_URL_FILE": "service=live\n"})

    assert {"DB_HOST_FILE": "127.0.0.1", "DB_PASSWORD_FILE": "r:4nd"} == {
        name: text for name, text in away.files.items() if text != files[name].strip()
    }
    assert "scratch" == beside.files["DB_NAME_FILE"]
    assert ("DATABASE_URL_FILE",) == own.variables
    assert not {"DB_HOST", "DB_NAME", "DATABASE_URL"} & away.environment.keys()


# --- secrets --------------------------------------------------------------------------------------


def test_command_that_is_no_text_can_be_shown(tmp_path: Path) -> None:
    """An argument that is not UTF-8 is shown as its code, and a secret like it not at all."""
    environ = {"DATABASE_URL": "postgres://me@db/app", "APP_SECRET": "hidden\udcff"}
    wrapped = asked.read(
        config.Config.from_env(environ, tmp_path, "run"),
        asked.Asked(("tool", "a\udcff", "hidden\udcff"), always=True),
    )

    assert r"tool 'a\udcff' '***'" == wrapped.name


@pytest.mark.parametrize("waiting", ["", "a line\n"])
def test_only_regular_files_of_the_environment_are_read(tmp_path: Path, waiting: str) -> None:
    """LOG_FILE=/dev/stdout may be a pipe: what waits in it is not ours to take."""
    (tmp_path / "regular").write_text("text")
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    link.symlink_to(f"/proc/self/fd/{pipe}")
    os.write(pipe, waiting.encode())
    names = {"LOG_FILE": link, "FIFO_FILE": fifo, "NULL_FILE": "/dev/null", "DIRECTORY_FILE": "/",
             "ANY_FILE": tmp_path / "regular", "NO_FILE": tmp_path / "none"}  # fmt: skip
    environ = {"DATABASE_URL": "postgres://me@db/app", **{n: str(at) for n, at in names.items()}}
    wrapped = asked.read(
        config.Config.from_env(environ, tmp_path, "run"), asked.Asked(("tool",), always=True)
    )

    assert {"ANY_FILE": "text"} == wrapped.files
    os.write(pipe, b"end")
    assert f"{waiting}end" == os.read(pipe, 100).decode()
    os.close(pipe)


def test_password_that_libpq_finds_by_itself_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's libpq finds it as well, in a passfile or a service file, and may say it."""
    passfile, services = tmp_path / "passfile", tmp_path / "services"
    passfile.write_text("a:5432:*:*:hidden of a\nb:5432:*:*:hidden of b\n")
    passfile.chmod(0o600)
    services.write_text("[prod]\nhost=c\npassword=hidden of c\n")
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    for environ, words in (
        ({"PGHOST": "a,b"}, "***, ***, hidden of c"),
        ({"PGHOST": "a", "PREFLIGHT_REHEARSE_URL": "postgres://b/d"}, "***, ***, hidden of c"),
        ({"DATABASE_URL": "service=prod"}, "hidden of a, hidden of b, ***"),
    ):
        settings = config.Config.from_env(environ, tmp_path, "run")
        wrapped = asked.read(settings, asked.Asked(("tool",), always=True))
        assert words == wrapped.mask.text("hidden of a, hidden of b, hidden of c")


def test_secrets_of_the_environment_are_known() -> None:
    """Passwords, tokens and keys, in URLs as they are written and as they are meant."""
    found = environment.secrets(
        {
            "DATABASE_URL": "postgres://me:p%40ss@db/app",
            "API_TOKEN": "t0ken",
            "DB_PASSWORD": "hunter2",
            "DB_PW": "short-name",
            "JDBC": "jdbc:postgresql://db/app?user=me&password=qwert",
            "NET": "Host=db;Database=app;Password=netpw",
            "PWD": "/srv/app",
            "PGPASSFILE": "/home/me/.pgpass",
            "PATH": "/bin",
            "DB_PASSWORD_FILE": "/run/secrets/db",
        },
        {"DB_PASSWORD_FILE": "from-file\n"},
    )

    told = {"p%40ss", "p@ss", "t0ken", "hunter2", "short-name", "qwert", "netpw", "from-file"}
    assert told == found


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["tool", "--password", "hunter2", "up"], {"hunter2"}),
        (["tool", "--password=hunter2"], {"hunter2"}),
        (["flyway", "-password=hunter2", "-user=me"], {"hunter2"}),
        (["java", "-Dspring.datasource.password=hunter2"], {"hunter2"}),
        (["env", "PGPASSWORD=hunter2", "psql"], {"hunter2"}),
        (["tool", "--api-key", "k3y-of-it"], {"k3y-of-it"}),
        (["tool", "--url=postgres://me:p;w@db/app"], {"p;w"}),
        (["tool", "--password-file", "/run/secrets/db", "--passfile=/x"], set()),
        (["tool", "--no-password", "--compass=north"], set()),
    ],
)
def test_secrets_of_the_arguments_are_known(arguments: list[str], wanted: set[str]) -> None:
    """Events, the history and the metrics name a command with its arguments."""
    assert wanted == environment.secrets_of_arguments(arguments)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"username": "me", "password": "hun\\"ter2"}', {'hun\\"ter2', 'hun"ter2'}),
        ("-Xmx1g -Dspring.datasource.password=hunter2 -Dx=y", {"hunter2"}),
        ("A=b\nDB_PASS='hunter 2'\n", {"hunter 2"}),
        ("password=required", set()),
    ],
)
def test_secrets_inside_a_value_are_known(text: str, wanted: set[str]) -> None:
    """A platform's JSON, the options of a JVM, a file of variables."""
    assert wanted == environment.secrets({"ANY": text})


def test_lock_timeout_comes_behind_what_was_said() -> None:
    """The last one counts."""
    found, told = lock_timeout.given({"PGOPTIONS": "-c work_mem=1MB"}, ["tool"], set(), "2s")

    assert "-c work_mem=1MB -c lock_timeout=2s" == found["PGOPTIONS"]
    assert ["tool"] == told


OPTION = "options=-c%20lock_timeout%3D2s"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("postgres://me:x@db/app", f"postgres://me:x@db/app?{OPTION}"),
        ("postgresql://db/app?sslmode=disable", f"postgresql://db/app?sslmode=disable&{OPTION}"),
        ("postgresql+psycopg://db/app", f"postgresql+psycopg://db/app?{OPTION}"),
        (
            "postgres://db/app?options=-c%20a%3Db&x=1",
            "postgres://db/app?options=-c%20a%3Db%20-c%20lock_timeout%3D2s&x=1",
        ),
        ("jdbc:postgresql://db/app?user=me", f"jdbc:postgresql://db/app?user=me&{OPTION}"),
        ("host=db dbname=app", "host=db dbname=app options='-c lock_timeout=2s'"),
        ("dbname=app options='-c a=b'", "dbname=app options='-c a=b -c lock_timeout=2s'"),
        # whose drivers would refuse the address
        ("postgresql+asyncpg://db/app", "postgresql+asyncpg://db/app"),
        ("ecto://db/app", "ecto://db/app"),
        ("r2dbc:postgresql://db/app", "r2dbc:postgresql://db/app"),
        ("Host=db;Database=app", "Host=db;Database=app"),
        ("pgsql:host=db;dbname=app", "pgsql:host=db;dbname=app"),
        ("db", "db"),
    ],
)
def test_lock_timeout_goes_into_urls_that_can_hold_it(text: str, wanted: str) -> None:
    """Of variables and arguments that name the database, and of no others."""
    names = {"ANY", "argument 2", "argument 3"}
    environ = {"ANY": text, "OTHER": text}
    found, told = lock_timeout.given(environ, ["tool", text, f"--url={text}", text], names, "2s")
    option = wanted if "://" in text else text

    assert (wanted, text) == (found["ANY"], found["OTHER"])
    assert ["tool", wanted, f"--url={option}", text] == told


@pytest.mark.parametrize(
    "told",
    [["psql", "-v", "dbname=app"], ["make", "dbname=app"], ["play", "-e", "host=db dbname=app"]],
    ids=" ".join,
)
def test_lock_timeout_is_no_part_of_a_word(told: list[str]) -> None:
    """What may be anything stays what it is, in earnest, too."""
    names = {f"argument {at}" for at in range(1, len(told) + 1)}

    assert told == lock_timeout.given({}, told, names, "2s")[1]


@pytest.mark.parametrize("program", ["/usr/bin/php8.3", "artisan"])
def test_lock_timeout_is_no_riddle_to_php(program: str) -> None:
    """Laravel takes a URL's `options` for another thing; its libpq reads PGOPTIONS."""
    environ = {"DB_URL": "postgres://db/app"}
    found, _ = lock_timeout.given(environ, [program, "migrate"], {"DB_URL"}, "2s")

    assert "postgres://db/app" == found["DB_URL"]
    assert "-c lock_timeout=2s" == found["PGOPTIONS"]


def test_value_of_many_equals_signs_is_read_once() -> None:
    """A password may be full of them; each was a place to go on from: 2 to the 40th ways."""
    looked = (
        "from preflight.commands.wrapping import lock_timeout\n"
        "text = 'host=db password=' + 'ab=' * 40 + ' dbname=app'\n"
        "for each in (text, text + ';'):\n"
        "    found, _ = lock_timeout.given({'ANY': each}, [], {'ANY'}, '2s')\n"
        "    print(found['ANY'].removeprefix(text))\n"
    )
    done = program.bounded(looked)

    assert (0, " options='-c lock_timeout=2s'\n;\n") == (done.returncode, done.stdout), done.stderr


# --- history tables -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("schema_migrations", ([], ["schema_migrations"])),
        ("App.History", (["App", "app"], ["History", "history"])),
        ('app."History"', (["app"], ["History"])),
        ('"a.b"."c""d"', (["a.b"], ['c"d'])),
    ],
)
def test_history_table_is_named_as_in_sql(name: str, wanted: tuple[list[str], list[str]]) -> None:
    """With a schema or without, quoted or not."""
    assert wanted == tools.parts(name)


@pytest.mark.parametrize("name", ["", "a.b.c", "a..b", 'a"b', '"a"b', ".a", "a."])
def test_what_names_no_table_is_refused(name: str) -> None:
    """A typing error is found before the server is asked."""
    with pytest.raises(ConfigInvalid):
        tools.parts(name)


def test_own_table_of_the_same_name_is_no_history() -> None:
    """Birds migrate, too."""
    assert not tools.known("migrations", ["id", "bird", "month"])
    assert tools.known("migrations", ["id", "migration", "batch"])
    assert tools.known("migrations", ["hash", "previous_hash", "filename", "date"])
    assert not tools.known("changes", ["id", "project", "change"])
    assert tools.known("changes", ["change_id", "script_hash", "change", "project", "note"])


def test_every_known_history_table_is_documented() -> None:
    """The page lists them, so that somebody can see whether his is one."""
    page = (servers.REPOSITORY / "docs" / "wrap.md").read_text()
    listed = page.partition("Known history tables")[2].partition("`--history TABLE`")[0]

    assert set(tools.KNOWN) == {*re.findall(r"`(\w+)`", listed)}


# --- what happened is what was rehearsed ----------------------------------------------------------


def changes(before: dict[str, str], after: dict[str, str]) -> compared.Changes:
    """Return what changed between two states."""
    return compared.between(sorted(before.items()), sorted(after.items()), "preflight")


def test_same_changes_match() -> None:
    """Also where a restore prints what was there in another way."""
    copy = changes({"table t": "r\0old"}, {"table t": "r\0changed", "column t.c": "int\0x"})
    live = changes({"table t": "r\0OLD"}, {"table t": "r\0CHANGED", "column t.c": "int\0x"})

    assert [] == compared.differing(copy, live)


@pytest.mark.parametrize(
    ("copy", "live", "words"),
    [
        ({"index i": "a\0b"}, {}, "index i was made on the copy only"),
        ({}, {"index i": "a\0b"}, "index i was made on the live database only"),
        ({"index i": "a\0b"}, {"index i": "a\0c"}, "index i came out otherwise"),
    ],
)
def test_other_changes_are_named(copy: dict[str, str], live: dict[str, str], words: str) -> None:
    """On one side only, or otherwise."""
    assert [words] == compared.differing(changes({}, copy), changes({}, live))


def test_owners_do_not_count_where_the_copy_has_none() -> None:
    """Of a copy without owners and rights only the shape can be compared."""
    copy, live = changes({}, {"table t": "r\0me"}), changes({}, {"table t": "r\0owner"})

    assert [] == compared.differing(copy, live, bare=True)
    assert compared.differing(copy, live)


def test_own_tables_are_no_changes() -> None:
    """What this program writes is not the command's doing."""
    after = {"schema preflight": "", "table preflight.wraps": "", "column preflight.wraps.id": ""}

    assert [] == changes({}, after).names


OBJECT = '{"host": "db", "port": 5432, "user": "me", "password": "p@ss", "database": "app"}'
OBJECT_AWAY = OBJECT.replace('"db"', '"127.0.0.1"').replace("5432", "6000").replace("p@ss", "r:4nd")


@pytest.mark.parametrize(
    ("text", "away"),
    [
        (OBJECT, OBJECT_AWAY),
        (
            f'{{"pg": [{{"credentials": {OBJECT}}}], "n": 1}}',
            f'{{"pg": [{{"credentials": {OBJECT_AWAY}}}], "n": 1}}',
        ),
        (
            '{"hostname": "10.0.0.5", "port": "5432", "name": "app", "ssl": true}',
            '{"hostname": "127.0.0.1", "port": "6000", "name": "app", "ssl": false}',
        ),
        ('{"host": "db"}', '{"host": "db"}'),
        (
            '{"host": "db", "user": "me", "sslmode": "require"}',
            '{"host": "127.0.0.1", "user": "me", "sslmode": "disable", "port": 6000}',
        ),
        ('{"HOST": "db", "NAME": "app"}', '{"HOST": "127.0.0.1", "NAME": "app", "PORT": 6000}'),
        ('{"host": "db", "user": "me", "port": null}',
         '{"host": "127.0.0.1", "user": "me", "port": 6000}'),
        ('{"host": "db:5432", "database": "app"}', '{"host": "127.0.0.1:6000", "database": "app"}'),
        ('[{"hosts": ["db", "db2"], "user": "me", "port": 5432}]',
         '[{"hosts": ["127.0.0.1", "127.0.0.1"], "user": "me", "port": 6000}]'),
        ('{"serverName": "db", "portNumber": 5432, "databaseName": "app", "pwd": null}',
         '{"serverName": "127.0.0.1", "portNumber": 6000, "databaseName": "app", "pwd": "r:4nd"}'),
        (f'{{"host": "db", "user": "me", "port": {{"n": 1}}, "db": {OBJECT}}}',
         f'{{"host": "127.0.0.1", "user": "me", "port": {{"n": 1}}, "db": {OBJECT_AWAY}}}'),
        ('{"host": "db", "database": "other"}', '{"host": "db", "database": "other"}'),
        ('{"HOST": "db", "PORT": 5432, "NAME": "other"}',
         '{"HOST": "db", "PORT": 5432, "NAME": "other"}'),
        (
            '{"host": "mail", "user": "me", "port": 25}',
            '{"host": "mail", "user": "me", "port": 25}',
        ),
        ('{"host": "db", ', '{"host": "db", '),
    ],
)  # fmt: skip
def test_json_object_is_led(text: str, away: str) -> None:
    """Of a platform or an ORM; one that names another server or database is left as it is."""
    assert away == led({"CONFIG": text}).environment["CONFIG"]


def test_json_object_names_the_copy_beside_the_live_database() -> None:
    """On one server only the database's name tells them apart."""
    found = led({"CONFIG": OBJECT}, BESIDE).environment["CONFIG"]

    assert OBJECT.replace('"app"', '"scratch"') == found


@pytest.mark.parametrize("copy", [AWAY, BESIDE], ids=["away", "beside"])
def test_urls_beside_a_host_are_led_too(copy: environment.Copy) -> None:
    """Cloud Foundry says one address three times: none of them stays the live database's."""
    urls = {
        "uri": "postgres://me:x@db:5432/app",
        "jdbcUrl": "jdbc:postgresql://db:5432/app?user=me&password=x",
    }
    said = {
        "name": "pg",
        "credentials": {**json.loads(OBJECT), **urls, "pool": {"uri": urls["uri"]}},
    }
    found = json.loads(
        led({"VCAP_SERVICES": json.dumps({"pg": [said]})}, copy).environment["VCAP_SERVICES"]
    )
    there = found["pg"][0]["credentials"]

    assert (copy.host, copy.database) == (there["host"], there["database"])
    assert {name: led({"ANY": url}, copy).environment["ANY"] for name, url in urls.items()} == {
        name: there[name] for name in urls
    }
    assert there["uri"] == there["pool"]["uri"]


def test_url_in_an_object_has_who_stands_beside_it() -> None:
    """As in SPRING_APPLICATION_JSON: they are led together, the app's name and mail server not."""
    copy = dataclasses.replace(COPIED, users=frozenset({"me", "migrator"}))
    source = {"url": "jdbc:postgresql://db/app", "username": "migrator", "password": "x"}
    said = {"source": {**source, "name": "app"}, "mail": {"host": "mail", **source}}
    found = json.loads(led({"ANY": json.dumps(said)}, copy).environment["ANY"])
    url = "jdbc:postgresql://127.0.0.1:6000/copied?user=migrator&password=r%3A4nd"

    assert {"url": url, "username": "migrator", "password": "r:4nd", "name": "app"} == found[
        "source"
    ]
    assert {"host": "mail", "url": url, "username": "migrator", "password": "x"} == found["mail"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"db_host": "db", "db_name": "app"}', True),
        ('{"client": "pg", "connection": {"host": "db"}}', True),
        ('{"server": ["db:5432"]}', True),
        ("host=db port=5432", True),
        ("db:\n  host: db\n  port: 5432\n", True),
        (f"[{OBJECT}]", False),
        ('{"db_host": "db", "db_name": "audit"}', False),
        ('{"host": "db", "name": "audit"}', False),
        ('{"cache": {"host": "db", "port": 6379}}', False),
        ("host=db user=me dbname=audit", False),
        ("host: elsewhere", False),
        ("[" * 2000, False),
    ],
)
def test_settings_that_cannot_be_led_are_told(text: str, told: bool) -> None:  # noqa: FBT001
    """What says the live server's name in JSON or YAML, and of no other database of it."""
    in_file = led({"CONFIG_FILE": "/f"}, files={"CONFIG_FILE": text})

    assert (("CONFIG",) if told else ()) == led({"CONFIG": text}).left
    assert (("CONFIG_FILE",) if told else ()) == in_file.left
    assert () == led({"CONFIG": text}, BESIDE).left
    assert () == led({"MYSQL_CONFIG": text}).left


def test_service_of_kubernetes_is_a_part_of_the_group() -> None:
    """DB_SERVICE_HOST belongs to DB_NAME; alone it says nothing of a database."""
    service = {"DB_SERVICE_HOST": "10.0.0.5", "DB_SERVICE_PORT": "5432"}
    found = led({**service, "DB_NAME": "app", "DB_USER": "me"}).environment

    assert ("127.0.0.1", "6000") == (found["DB_SERVICE_HOST"], found["DB_SERVICE_PORT"])
    assert service["DB_SERVICE_HOST"] == led(service).environment["DB_SERVICE_HOST"]


# --- as applications spell it ---------------------------------------------------------------------

HERE = {
    "host": "db",
    "at": "db:5432",
    "port": "5432",
    "user": "me",
    "password": "p@ss",
    "db": "app",
}
THERE = {"host": "127.0.0.1", "at": "127.0.0.1:6000", "port": "6000", "user": "me",
         "password": "r:4nd", "db": "copied", "require": "disable", "true": "false"}  # fmt: skip
SPELLINGS = {  # each variable, and what it says
    "FastAPI": "POSTGRES_SERVER=host POSTGRES_PORT=port POSTGRES_USER=user"
    " POSTGRES_PASSWORD=password POSTGRES_DB=db",
    "endpoint": "DB_ENDPOINT=at DB_USER=user DB_PASSWORD=password DB_NAME=db",
    "addr": "DB_ADDR=at DB_USER=user DB_PASSWORD=password DB_DATABASE=db",
    "address": "DB_ADDRESS=host DB_PORT=port DB_USERNAME=user DB_PASSWORD=password DB_NAME=db",
    "Laravel": "DB_CONNECTION=pgsql DB_HOST=host DB_PORT=port DB_DATABASE=db DB_USERNAME=user"
    " DB_PASSWORD=password DB_SSLMODE=require",
    "Strapi": "DATABASE_CLIENT=postgres DATABASE_HOST=host DATABASE_PORT=port DATABASE_NAME=db"
    " DATABASE_USERNAME=user DATABASE_PASSWORD=password DATABASE_SSL=true",
    "Keycloak": "KC_DB=postgres KC_DB_URL_HOST=host KC_DB_URL_PORT=port KC_DB_URL_DATABASE=db"
    " KC_DB_USERNAME=user KC_DB_PASSWORD=password",
    "n8n": "DB_TYPE=postgresdb DB_POSTGRESDB_HOST=host DB_POSTGRESDB_PORT=port"
    " DB_POSTGRESDB_DATABASE=db DB_POSTGRESDB_USER=user DB_POSTGRESDB_PASSWORD=password",
    "Metabase": "MB_DB_TYPE=postgres MB_DB_HOST=host MB_DB_PORT=port MB_DB_DBNAME=db"
    " MB_DB_USER=user MB_DB_PASS=password",
    "Gitea": "GITEA__database__DB_TYPE=postgres GITEA__database__HOST=at GITEA__database__NAME=db"
    " GITEA__database__USER=user GITEA__database__PASSWD=password",
    "Grafana": "GF_DATABASE_TYPE=postgres GF_DATABASE_HOST=at GF_DATABASE_NAME=db"
    " GF_DATABASE_USER=user GF_DATABASE_PASSWORD=password GF_DATABASE_SSL_MODE=require",
    "Temporal": "DB=postgres12 DB_PORT=port POSTGRES_SEEDS=host POSTGRES_USER=user"
    " POSTGRES_PWD=password DBNAME=db",
    "Zitadel": "ZITADEL_DATABASE_POSTGRES_HOST=host ZITADEL_DATABASE_POSTGRES_PORT=port"
    " ZITADEL_DATABASE_POSTGRES_DATABASE=db ZITADEL_DATABASE_POSTGRES_USER_USERNAME=user"
    " ZITADEL_DATABASE_POSTGRES_USER_PASSWORD=password"
    " ZITADEL_DATABASE_POSTGRES_USER_SSL_MODE=require"
    " ZITADEL_DATABASE_POSTGRES_ADMIN_USERNAME=user"
    " ZITADEL_DATABASE_POSTGRES_ADMIN_PASSWORD=password",
    "Authentik": "AUTHENTIK_POSTGRESQL__HOST=host AUTHENTIK_POSTGRESQL__PORT=port"
    " AUTHENTIK_POSTGRESQL__NAME=db AUTHENTIK_POSTGRESQL__USER=user"
    " AUTHENTIK_POSTGRESQL__PASSWORD=password",
    "Sentry": "SENTRY_POSTGRES_HOST=host SENTRY_POSTGRES_PORT=port SENTRY_DB_NAME=db"
    " SENTRY_DB_USER=user SENTRY_DB_PASSWORD=password",
    "Paperless": "PAPERLESS_DBHOST=host PAPERLESS_DBPORT=port PAPERLESS_DBNAME=db"
    " PAPERLESS_DBUSER=user PAPERLESS_DBPASS=password",
    "Kong": "KONG_PG_HOST=host KONG_PG_PORT=port KONG_PG_DATABASE=db KONG_PG_USER=user"
    " KONG_PG_PASSWORD=password",
    "ASP.NET": "Database__Server=host Database__Port=port Database__Name=db"
    " Database__Username=user Database__Password=password",
    "camel": "dbHost=host dbPort=port dbName=db dbUser=user dbPassword=password",
    "Beanstalk": "RDS_HOSTNAME=host RDS_PORT=port RDS_DB_NAME=db RDS_USERNAME=user"
    " RDS_PASSWORD=password",
    "Flagsmith": "DJANGO_DB_HOST=host DJANGO_DB_PORT=port DJANGO_DB_NAME=db DJANGO_DB_USER=user"
    " DJANGO_DB_PASSWORD=password",
}
SPELLINGS_OF_URLS = {
    "Symfony": ("DATABASE_URL", "postgresql://me:p@db:5432/app?serverVersion=16&charset=utf8",
                "postgresql://me:r%3A4nd@127.0.0.1:6000/copied?serverVersion=16&charset=utf8"),
    "Hasura": ("HASURA_GRAPHQL_DATABASE_URL", "postgres://me:p@db/app",
               "postgres://me:r%3A4nd@127.0.0.1:6000/copied"),
    "Directus": ("DB_CONNECTION_STRING", "postgresql://me:p@db/app",
                 "postgresql://me:r%3A4nd@127.0.0.1:6000/copied"),
    "Airflow": ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql+psycopg2://me:p@db/app",
                "postgresql+psycopg2://me:r%3A4nd@127.0.0.1:6000/copied"),
    "Ecto": ("DATABASE_URL", "ecto://me:p@db/app", "ecto://me:r%3A4nd@127.0.0.1:6000/copied"),
    "Vert.x": ("QUARKUS_DATASOURCE_REACTIVE_URL", "vertx-reactive:postgresql://db:5432/app",
               "vertx-reactive:postgresql://me:r%3A4nd@127.0.0.1:6000/copied"),
    "Ory": ("DSN", "postgres://me:p@db:5432/app?sslmode=require&max_conns=4",
            "postgres://me:r%3A4nd@127.0.0.1:6000/copied?sslmode=disable&max_conns=4"),
}  # fmt: skip
COPIED = dataclasses.replace(AWAY, database="copied")


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=list(SPELLINGS))
def test_applications_variables_are_led(spelling: str) -> None:
    """Each as its makers document it: away to a server of its own, and beside the live database."""
    said = dict(each.split("=") for each in spelling.split())
    environ = {name: HERE.get(what, what) for name, what in said.items()}
    away, beside = led(environ, COPIED), led(environ, BESIDE)

    assert {name: THERE.get(what, what) for name, what in said.items()} == {
        name: away.environment[name] for name in said
    }
    assert {name: "scratch" if what == "db" else environ[name] for name, what in said.items()} == {
        name: beside.environment[name] for name in said
    }
    assert () == away.left


@pytest.mark.parametrize(
    ("name", "url", "wanted"), SPELLINGS_OF_URLS.values(), ids=list(SPELLINGS_OF_URLS)
)
def test_applications_urls_are_led(name: str, url: str, wanted: str) -> None:
    """Whatever the variable is called."""
    assert wanted == led({name: url}, COPIED).environment[name]


@pytest.mark.parametrize("prefix", ["QUARKUS_DATASOURCE", "SPRING_DATASOURCE", "SONAR"])
def test_password_beside_a_url_of_a_longer_name_is_led(prefix: str) -> None:
    """QUARKUS_DATASOURCE_PASSWORD belongs to QUARKUS_DATASOURCE_JDBC_URL; who stands there, too."""
    copy = dataclasses.replace(COPIED, users=frozenset({"me", "migrator"}))
    found = led(
        {
            f"{prefix}_JDBC_URL": "jdbc:postgresql://db:5432/app",
            f"{prefix}_USERNAME": "migrator" if prefix != "SONAR" else "me",
            f"{prefix}_PASSWORD": "p@ss",
            "APP_PASSWORD": "hunter2",
        },
        copy,
    ).environment

    who = found[f"{prefix}_USERNAME"]
    assert ("migrator" if prefix != "SONAR" else "me") == who
    assert "r:4nd" == found[f"{prefix}_PASSWORD"]
    assert f"?user={who}&password=r%3A4nd" in found[f"{prefix}_JDBC_URL"]
    assert "hunter2" == found["APP_PASSWORD"]


@pytest.mark.parametrize(
    "name",
    ["APP_ROLE_NAME", "LIQUIBASE_COMMAND_DEFAULT_SCHEMA_NAME", "DB_SCHEMA_NAME", "dbSchemaName",
     "DB_OWNER_NAME", "ALEMBIC_SECTION_NAME", "OTEL_SERVICE_NAME", "USER_NAME", "DB_USER_NAME"],
)  # fmt: skip
@pytest.mark.parametrize("copy", [COPIED, BESIDE], ids=["away", "beside"])
def test_name_of_something_else_is_no_databases(name: str, copy: environment.Copy) -> None:
    """A role, a schema or a section that is called as the database is keeps its name."""
    copy = dataclasses.replace(copy, users=frozenset({"me", "app"}))
    found = led({"DB_HOST": "db", "DB_NAME": "app", "DB_USER": "me", name: "app"}, copy)

    assert "app" == found.environment[name]
    assert (copy.host, copy.database, "me") == (
        found.environment["DB_HOST"], found.environment["DB_NAME"], found.environment["DB_USER"],
    )  # fmt: skip


def test_roles_of_a_group_are_led_each() -> None:
    """Where nobody is known but ours, both are ours; a host's name is a host."""
    environ = {"DB_HOST_NAME": "db", "DB_NAME": "app", "DB_USER_NAME": "you", "DB_ROLE_NAME": "app"}
    known = dataclasses.replace(COPIED, users=frozenset({"me", "app"}))

    assert ["127.0.0.1", "copied", "me", "me"] == [
        led(environ, COPIED).environment[name] for name in environ
    ]
    assert ["127.0.0.1", "copied", "me", "app"] == [
        led(environ, known).environment[name] for name in environ
    ]


def test_host_without_a_port_gets_one() -> None:
    """The copy's server has another than the default, and the app would go to that."""
    for host, name, port in (("DB_HOST", "DB_NAME", "DB_PORT"), ("dbHost", "dbName", "dbPort")):
        assert "6000" == led({host: "db", name: "app"}).environment[port]
    assert "DB_PORT" not in led({"DB_HOST": "db", "DB_NAME": "app"}, BESIDE).environment


@pytest.mark.parametrize(
    ("said", "away", "beside"),
    [
        (
            "tool --host db --port 5432 --dbname app --user me --password p@ss",
            "tool --host 127.0.0.1 --port 6000 --dbname copied --user me --password r:4nd",
            "tool --host db --port 5432 --dbname scratch --user me --password p@ss",
        ),
        ("psql -h db -d app", "psql -h 127.0.0.1 -d copied", "psql -h db -d scratch"),
        ("psql -hdb -p5432 app", "psql -h127.0.0.1 -p6000 copied", "psql -hdb -p5432 scratch"),
        ("tool --host=db --db=app", "tool --host=127.0.0.1 --db=copied",
         "tool --host=db --db=scratch"),
        ("tool --db-host=db:5432 --db-name=app", "tool --db-host=127.0.0.1:6000 --db-name=copied",
         "tool --db-host=db:5432 --db-name=scratch"),
        ("java -Ddb.host=db -Ddb.port=5432", "java -Ddb.host=127.0.0.1 -Ddb.port=6000",
         "java -Ddb.host=db -Ddb.port=5432"),
        ("wait-for-it db:5432 -- tool up", "wait-for-it 127.0.0.1:6000 -- tool up",
         "wait-for-it db:5432 -- tool up"),
        ("dockerize -wait tcp://db:5432", "dockerize -wait tcp://127.0.0.1:6000",
         "dockerize -wait tcp://db:5432"),
        ("env DB_HOST=db DB_NAME=app PGDATABASE=app tool",
         "env DB_HOST=127.0.0.1 DB_NAME=copied PGDATABASE=copied tool",
         "env DB_HOST=db DB_NAME=scratch PGDATABASE=scratch tool"),
        # another server's, another database, or nobody's
        ("tool --host other --dbname app", None, None),
        ("tool --host db --dbname audit", None, None),
        ("tool -d app migrate app", None, None),
        ("tool -p 5432 -h", None, None),
        ("manage.py migrate app --database default", None, None),
        ("manage.py migrate --database app", None, None),
        ("alembic --name app upgrade head", None, None),
        ("tool --database app", None, None),
        ("tool --default-schema-name=app --role-name app", None, None),
        ("tool --user me --database app", "tool --user me --database copied",
         "tool --user me --database scratch"),
        ("tool --db_host db --database app", "tool --db_host 127.0.0.1 --database copied",
         "tool --db_host db --database scratch"),
        ("env PGHOST=db tool --database app", "env PGHOST=127.0.0.1 tool --database copied",
         "env PGHOST=db tool --database scratch"),
        ("tool --db-host-name db --db-user-name app --db-name app",
         "tool --db-host-name 127.0.0.1 --db-user-name me --db-name copied",
         "tool --db-host-name db --db-user-name app --db-name scratch"),
        # a role, a schema, a file
        ("psql -U app -d app app", "psql -U app -d copied app", "psql -U app -d scratch app"),
        ("psql -U app -At app app", "psql -U app -At copied app", "psql -U app -At scratch app"),
        ("psql -hdb -q app", "psql -h127.0.0.1 -q copied", "psql -hdb -q scratch"),
        ("pg_dump -n app -hhost app", "pg_dump -n app -hhost copied",
         "pg_dump -n app -hhost scratch"),
        ("pg_dump --schema app --clean app", "pg_dump --schema app --clean copied",
         "pg_dump --schema app --clean scratch"),
        ("pg_restore -d app -n app app", "pg_restore -d copied -n app app",
         "pg_restore -d scratch -n app app"),
        ("createuser app", None, None),
        # values of options that nobody here has heard of
        ("pgbench --client 2 app", "pgbench --client 2 copied", "pgbench --client 2 scratch"),
        ("vacuumdb --parallel 2 app", "vacuumdb --parallel 2 copied",
         "vacuumdb --parallel 2 scratch"),
        ("pg_dump --lock-wait-timeout 10 app", "pg_dump --lock-wait-timeout 10 copied",
         "pg_dump --lock-wait-timeout 10 scratch"),
        ("sqitch deploy db:pg:app", "sqitch deploy db:pg:copied", "sqitch deploy db:pg:scratch"),
        ("sqitch deploy --target=db:pg:app -s dbname=app",
         "sqitch deploy --target=db:pg:copied -s dbname=copied",
         "sqitch deploy --target=db:pg:scratch -s dbname=scratch"),
        ("rake db:pg:audit db:app", None, None),
        # long words with one dash are no letters, and other words no better ones
        ("tool -path migrations -host db -port 5432 -dbname app -dir x -user me -debug",
         "tool -path migrations -host 127.0.0.1 -port 6000 -dbname copied -dir x -user me -debug",
         "tool -path migrations -host db -port 5432 -dbname scratch -dir x -user me -debug"),
        ("tool -hdb -p5432 -dapp -path x", "tool -h127.0.0.1 -p6000 -dcopied -path x",
         "tool -hdb -p5432 -dscratch -path x"),
        ("tool --host db --database app -d files -p ./files --name first",
         "tool --host 127.0.0.1 --database copied -d files -p ./files --name first",
         "tool --host db --database scratch -d files -p ./files --name first"),
        ("tool -path migrations -h", None, None),
        # letters in one word, as libpq's programs read them
        ("psql -qXd app -Ath db", "psql -qXd copied -Ath 127.0.0.1", "psql -qXd scratch -Ath db"),
        ("psql -qXhdb -Xp5432 app", "psql -qXh127.0.0.1 -Xp6000 copied",
         "psql -qXhdb -Xp5432 scratch"),
        ("psql -hdb -XcSELECT app", "psql -h127.0.0.1 -XcSELECT copied",
         "psql -hdb -XcSELECT scratch"),
        ("psql -c -dapp -h db app", "psql -c -dapp -h 127.0.0.1 copied",
         "psql -c -dapp -h db scratch"),
        ("psql -h db --password app", "psql -h 127.0.0.1 --password copied",
         "psql -h db --password scratch"),
        # each program has letters of its own; no other option is lost for one's value
        ("pg_restore -e -d app x", "pg_restore -e -d copied x", "pg_restore -e -d scratch x"),
        ("pg_restore -ved app x", "pg_restore -ved copied x", "pg_restore -ved scratch x"),
        ("pg_restore -If -d app", "pg_restore -If -d copied", "pg_restore -If -d scratch"),
        ("pg_dumpall -h db -lapp", "pg_dumpall -h 127.0.0.1 -lcopied",
         "pg_dumpall -h db -lscratch"),
        ("pgbench -ndapp", "pgbench -ndcopied", "pgbench -ndscratch"),
        ("pg_amcheck -e -d app", "pg_amcheck -e -d copied", "pg_amcheck -e -d scratch"),
        ("pg_receivewal -n -h db -D x", "pg_receivewal -n -h 127.0.0.1 -D x", None),
        ("createuser -d -S -h db app", "createuser -d -S -h 127.0.0.1 app", None),
        ("dropuser -e -h db app", "dropuser -e -h 127.0.0.1 app", None),
        ("psql -o -d app", "psql -o -d copied", "psql -o -d scratch"),
        ("pgbench -d -c 4 app", "pgbench -d -c 4 copied", "pgbench -d -c 4 scratch"),
        ("pg_repack -Z -d app", "pg_repack -Z -d copied", "pg_repack -Z -d scratch"),
        ("pg_prove -t -d app t/", "pg_prove -t -d copied t/", "pg_prove -t -d scratch t/"),
        ("pg_prove -vd app t/", None, None),
        # who is no role, or of something else
        ("x.sh -u deploy -h db -d app", "x.sh -u deploy -h 127.0.0.1 -d copied",
         "x.sh -u deploy -h db -d scratch"),
        ("x.sh -u me -h db -d app", "x.sh -u me -h 127.0.0.1 -d copied",
         "x.sh -u me -h db -d scratch"),
        ("sudo -u you -- psql -U you -h db app", "sudo -u you -- psql -U me -h 127.0.0.1 copied",
         "sudo -u you -- psql -U you -h db scratch"),
        ("sudo -u deploy -h db psql app", "sudo -u deploy -h db psql copied",
         "sudo -u deploy -h db psql scratch"),
        ("nohup nice -n 5 psql -d app", "nohup nice -n 5 psql -d copied",
         "nohup nice -n 5 psql -d scratch"),
        ("gosu app psql -h db app", "gosu app psql -h 127.0.0.1 copied",
         "gosu app psql -h db scratch"),
        ("runuser --user app env A=b B=c psql -h db app",
         "runuser --user app env A=b B=c psql -h 127.0.0.1 copied",
         "runuser --user app env A=b B=c psql -h db scratch"),
        ("sudo DB_HOST=db DB_NAME=app tool", "sudo DB_HOST=127.0.0.1 DB_NAME=copied tool",
         "sudo DB_HOST=db DB_NAME=scratch tool"),
        ("timeout -k 5 60 psql -qXd app", "timeout -k 5 60 psql -qXd copied",
         "timeout -k 5 60 psql -qXd scratch"),
        ("setpriv --reuid=you --clear-groups --no-new-privs psql app",
         "setpriv --reuid=you --clear-groups --no-new-privs psql copied",
         "setpriv --reuid=you --clear-groups --no-new-privs psql scratch"),
        ("tini -s -g -- /usr/bin/pg_restore -ed app",
         "tini -s -g -- /usr/bin/pg_restore -ed copied",
         "tini -s -g -- /usr/bin/pg_restore -ed scratch"),
        ("sudo -u you ionice -c 3 nice -n 5 psql -h db app",
         "sudo -u you ionice -c 3 nice -n 5 psql -h 127.0.0.1 copied",
         "sudo -u you ionice -c 3 nice -n 5 psql -h db scratch"),
        ("chpst -u you psql -U you -h db app", "chpst -u you psql -U me -h 127.0.0.1 copied",
         "chpst -u you psql -U you -h db scratch"),
        ("await --host db --database app -- psql -Xd app",
         "await --host 127.0.0.1 --database copied -- psql -Xd copied",
         "await --host db --database scratch -- psql -Xd scratch"),
        ("run --database files -- psql app", "run --database files -- psql copied",
         "run --database files -- psql scratch"),
        ("run --name app -- psql -h db", "run --name app -- psql -h 127.0.0.1", None),
        ("tool -a -path sql/psql -Xd app app", None, None),
        # NAME=value: its value is led, and nothing is added
        ("psql -v dbname=app -d app", "psql -v dbname=copied -d copied",
         "psql -v dbname=scratch -d scratch"),
        ("psql -v dbname=audit -h db app", "psql -v dbname=audit -h 127.0.0.1 copied",
         "psql -v dbname=audit -h db scratch"),
        ("psql -Xvdb=app --set=database=app app", "psql -Xvdb=copied --set=database=copied copied",
         "psql -Xvdb=scratch --set=database=scratch scratch"),
        ("psql dbname=app", "psql dbname=copied", "psql dbname=scratch"),
        ("psql -h db -d dbname=app", "psql -h 127.0.0.1 -d dbname=copied",
         "psql -h db -d dbname=scratch"),
        ("pg_restore --dbname=dbname=app f", "pg_restore --dbname=dbname=copied f",
         "pg_restore --dbname=dbname=scratch f"),
        ("make -s up DB_HOST=db DB_PORT=5432 DB_USER=me DB_NAME=app",
         "make -s up DB_HOST=127.0.0.1 DB_PORT=6000 DB_USER=me DB_NAME=copied",
         "make -s up DB_HOST=db DB_PORT=5432 DB_USER=me DB_NAME=scratch"),
        ("make PGHOST=db PGDATABASE=app", "make PGHOST=127.0.0.1 PGDATABASE=copied",
         "make PGHOST=db PGDATABASE=scratch"),
        ("alembic -x dbname=app upgrade head", "alembic -x dbname=copied upgrade head",
         "alembic -x dbname=scratch upgrade head"),
        ("play -e db_name=app -e name=app -e app_name=app",
         "play -e db_name=copied -e name=app -e app_name=app",
         "play -e db_name=scratch -e name=app -e app_name=app"),
        ("sqitch -d app --client psql -h db deploy",
             "sqitch -d copied --client psql -h 127.0.0.1 deploy",
             "sqitch -d scratch --client psql -h db deploy"),
            ("sqitch -h db -U psql -d app -p 5432 deploy",
             "sqitch -h 127.0.0.1 -U psql -d copied -p 6000 deploy",
             "sqitch -h db -U psql -d scratch -p 5432 deploy"),
            ("m --database app --dump-with pg_dump --host other", None, None),
            ("tool db=app name=app", None, None),
        ("tool HOST=db USER=you PASSWORD=secret", None, None),
        ("tool HOST=db PORT=5432 USER=me", "tool HOST=127.0.0.1 PORT=6000 USER=me", None),
        ("make DB_HOST=db DB_NAME=audit", None, None),
    ],
)  # fmt: skip
def test_options_of_the_command_are_led(said: str, away: str | None, beside: str | None) -> None:
    """What is the live server's behind an option of that name; an equal word elsewhere is not."""
    assert (away or said) == " ".join(led({}, COPIED, arguments=said.split()).arguments)
    assert (beside or said) == " ".join(led({}, BESIDE, arguments=said.split()).arguments)


@pytest.mark.parametrize(
    ("said", "away"),
    [
        (["tool", "db=app"], ["tool", "db=copied"]),
        (["psql", "-v", "conn=host=db dbname=app"],
         ["psql", "-v", "conn=host=127.0.0.1 dbname=copied"]),
        (["play", "-e", "db_host=db db_name=app"], ["play", "-e", "db_host=db db_name=app"]),
        (["tool", "x", "conn=host=db dbname=app user=me"], ["tool", "x",
         "conn=host=127.0.0.1 dbname=copied user=me port=6000 password=r:4nd"]),
        (["goose", "postgres", "user=me dbname=app"],
         ["goose", "postgres", "user=me dbname=copied host=127.0.0.1 port=6000 password=r:4nd"]),
    ],
)  # fmt: skip
def test_nothing_is_added_to_what_may_be_no_address(said: list[str], away: list[str]) -> None:
    """Above all no password; whatever is missing stands in libpq's variables."""
    environ = {"DATABASE_URL": "postgres://me:p@db/app"}

    assert away == list(led(environ, COPIED, arguments=said).arguments)


@pytest.mark.parametrize(
    ("text", "away"),
    [
        ("db=app", None),
        ("database=app", None),
        ("database=app region=eu", None),
        ("dbname=app", "dbname=copied"),
        ("db_host=db db_name=app", None),
        ("user=me db_name=app", "user=me db_name=copied"),
        ("dbname=app sslmode=prefer",
         "dbname=copied sslmode=disable host=127.0.0.1 port=6000 user=me password=r:4nd"),
        ("pgsql:dbname=app", "pgsql:dbname=copied host=127.0.0.1 port=6000 user=me password=r:4nd"),
    ],
)  # fmt: skip
def test_one_word_of_a_variable_is_no_address(text: str, away: str | None) -> None:
    """OTEL_RESOURCE_ATTRIBUTES=db=app is a tag."""
    assert (away or text) == led({"ANY": text}, COPIED).environment["ANY"]


@pytest.mark.parametrize("name", ["DSN", "PG_CONN", "ConnectionStrings__Default", "SHOP_URL"])
@pytest.mark.parametrize("text", ["database={}", "db={} env=prod", "Database={}"])
def test_one_word_of_an_addresss_variable_is_one(name: str, text: str) -> None:
    """As pgx reads it; the value alone is led, and the rest stands in libpq's variables."""
    here, there = text.format("app"), text.format("copied")
    arguments = ["make", f"--{name.lower()}={here}", f"{name}={here}"]

    assert there == led({name: here}, COPIED).environment[name]
    assert ["make", f"--{name.lower()}={there}", f"{name}={there}"] == led(
        {}, COPIED, arguments=arguments
    ).arguments


JDBC = "jdbc:postgresql://db:5432/app"
JDBC_THERE = "jdbc:postgresql://127.0.0.1:6000/copied?user=migrator&password=r%3A4nd"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "flyway -url={} -user=migrator -password=p migrate"),
        ({}, "liquibase --url {} --username migrator --password p update"),
        ({}, "java -Dspring.datasource.url={} -Dspring.datasource.username=migrator x"),
        ({}, "java -jar x.jar --db.url={} --db.user=migrator --db.password=p"),
        ({}, "mvn -Dquarkus.datasource.jdbc.url={} -Dquarkus.datasource.username=migrator x"),
        ({}, "make DB_URL={} DB_USER=migrator DB_PASSWORD=p"),
        ({"FLYWAY_USER": "migrator"}, "flyway -url={}"),
        ({"LIQUIBASE_COMMAND_USERNAME": "migrator"}, "liquibase --url={} update"),
        ({"SPRING_DATASOURCE_USERNAME": "migrator"}, "java -Dspring.datasource.url={}"),
        ({"FLYWAY_USER": "me"}, "flyway -url={} -user=migrator"),
        ({"FLYWAY_URL": JDBC}, "flyway -user=migrator -password=p migrate"),
        ({"FLYWAY_URL": JDBC}, "mvn -Dflyway.user=migrator -Dflyway.password=p x"),
    ],
)
def test_options_beside_a_url_are_led_together(environ: dict[str, str], said: str) -> None:
    """Who is named beside it is tried, and not the gate; his password there is the copy's."""
    copy = dataclasses.replace(COPIED, users=frozenset({"me", "migrator"}))
    found = led(environ, copy, arguments=said.format(JDBC).split())

    there = re.sub(r"(?i)(password[ =])p\b", r"\1r:4nd", said)
    assert there.format(JDBC_THERE).split() == found.arguments
    assert {**environ, **({"FLYWAY_URL": JDBC_THERE} if "FLYWAY_URL" in environ else {})} == {
        name: found.environment[name] for name in environ
    }
    assert ((), False) == (found.left, found.renamed)
    assert "migrator" in found.users
    beside = led(environ, BESIDE, arguments=said.format(JDBC).split())
    assert said.format(JDBC.replace("app", "scratch")).split() == beside.arguments


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("--url=postgres://me:x@db/app --user=admin --password=own", None),
        ("--url=postgres://me@db/app --user=admin --password=own", None),
        ("--url=postgres://me:x@db/app --password=own", None),
        ("--url=jdbc:postgresql://db/app?user=me&password=x --user=admin --password=own", None),
        ("--db-url=postgres://me:x@db/app --db-admin-user=root --db-admin-password=own", None),
        ("DB_URL=postgres://me:x@db/app DB_USER=admin DB_PASSWORD=own", None),
        ("--url=postgres://me@db/app --user=you --password=own", "--user=you --password=r:4nd"),
        ("--url=postgres://me@db/app --user=me --password=own", "--user=me --password=r:4nd"),
        ("--url=postgres://me@db/app --user=admin --password=p@ss",
         "--user=admin --password=r:4nd"),
        ("--url=postgres://me@db/app --password=own", "--password=r:4nd"),
    ],
)  # fmt: skip
def test_account_beside_a_url_that_names_somebody_is_left_alone(
    said: str, wanted: str | None
) -> None:
    """Unless it is a role's, or the URL has no password: it is one of the app that is set up."""
    live = dataclasses.replace(LIVE, roles=frozenset({"you"}))
    copy = dataclasses.replace(COPIED, users=frozenset({"me", "you"}))
    arguments = said.split()
    found = environment.led({}, live, copy, arguments=["tool", *arguments])

    assert (wanted.split() if wanted else arguments[1:]) == found.arguments[2:]
    assert "127.0.0.1" in found.arguments[1]
    assert ((), False) == (found.left, found.renamed)


def test_option_of_an_address_is_not_the_variables() -> None:
    """A program's own variables may be of something else."""
    environ = {"APP_HOST": "mail", "APP_PORT": "25", "APP_PASSWORD": "p", "APP_USER": "me"}
    found = led(environ, COPIED, arguments=["app", "--url=postgres://me:p@db/app"])

    assert environ == {name: found.environment[name] for name in environ}


@pytest.mark.parametrize(
    ("environ", "said", "wanted"),
    [
        ({"APP_JDBC": JDBC}, "tool", ("APP_JDBC",)),
        ({}, "flyway -url={}", ("argument 2",)),
        ({}, "java Migrate {}", ("argument 3",)),
        ({"DB_USER": "migrator"}, "flyway -url={}", ("argument 2",)),
        ({"DB_USER": "me"}, "flyway -url={}", ()),
        ({"APP_JDBC": f"{JDBC}?user=you"}, "tool", ()),
        ({"APP_URL": "postgres://db/app"}, "tool", ()),
        ({"APP_JDBC": "jdbc:postgresql://other/shop"}, "tool", ()),
    ],
)
def test_url_that_nobody_is_named_for_is_told(
    environ: dict[str, str], said: str, wanted: tuple[str, ...]
) -> None:
    """Whoever it is in earnest, on the copy it is the gate, and what he may it may, too."""
    copy = dataclasses.replace(COPIED, users=frozenset({"me", "migrator", "you"}))
    found = led(environ, copy, arguments=said.format(JDBC).split())

    assert (wanted, bool(wanted)) == (found.left, found.renamed)
    assert () == led(environ, BESIDE, arguments=said.format(JDBC).split()).left


def test_letter_names_a_role_where_there_is_one() -> None:
    """On a server where everybody is another one."""
    live = dataclasses.replace(LIVE, roles=frozenset({"you"}))
    for name, wanted in (("you", "me"), ("deploy", "deploy")):
        found = environment.led({}, live, COPIED, arguments=["x.sh", "-u", name, "-h", "db"])

        assert ["x.sh", "-u", wanted, "-h", "127.0.0.1"] == found.arguments
        assert name in found.users
        assert (name == "you") == found.renamed


@pytest.mark.parametrize(
    "environ",
    [
        {"PGHOST": "db"},
        {"POSTGRES_HOST": "db", "POSTGRES_USER": "me"},
        {"DB_HOST": "db"},
        {"DATABASE_URL": "postgres://me:pw@db/app"},
        {"PGSERVICE": "live"},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("copy", [COPIED, BESIDE], ids=["away", "beside"])
def test_lone_database_is_led_where_a_variable_names_the_server(
    environ: dict[str, str], copy: environment.Copy
) -> None:
    """The option would win over what the environment says."""
    found = led(environ, copy, arguments=["tool", "--database", "app", "--name", "app"])

    assert ["tool", "--database", copy.database, "--name", "app"] == list(found.arguments)


@pytest.mark.parametrize(
    ("arguments", "copy", "wanted"),
    [
        (["sh", "-c", "psql -h db -f x.sql"], AWAY, ("argument 3",)),
        (["sh", "-c", "PGHOST=db tool up"], AWAY, ("argument 3",)),
        (["sh", "-c", "psql -d app -f x.sql"], BESIDE, ("argument 3",)),
        (["wait", "db", "5432"], AWAY, ("argument 2",)),
        (["rake", "SERVER=db", "USER=admin"], AWAY, ("argument 2",)),
        (["sh", "-c", "cd db && rails db:migrate"], AWAY, ()),
        (["rake", "db:migrate"], AWAY, ()),
        (["psql", "-h", "db", "app"], AWAY, ()),
        (["psql", "-h", "db", "app"], BESIDE, ()),
        (["tool", "--url", "postgres://me:x@db/audit"], AWAY, ()),
        (["tool", "--url=postgres://me:x@db/audit"], BESIDE, ()),
        (["tool", "--database", "app"], BESIDE, ("argument 3",)),
        (["tool", "--db=app"], COPIED, ("argument 2",)),
        (["tool", "-d", "app"], BESIDE, ("argument 3",)),
        (["tool", "database=app"], COPIED, ("argument 2",)),
        (["tool", "database=app timeout=5"], BESIDE, ("argument 2",)),
        (["alembic", "-x", "db=app"], COPIED, ("argument 3",)),
        (["sh", "-c", "DB=app ./deploy"], COPIED, ("argument 3",)),
        (["tool", "database=apps", "mydb=app x=y", "db=app.x"], COPIED, ()),
        (["tool", "-qXd", "app"], BESIDE, ("argument 3",)),
        (["timeout", "-k", "5", "60", "psql", "-qXd", "app"], BESIDE, ()),
        (["pg_prove", "-vd", "app", "t/"], COPIED, ("argument 3",)),
        (["tool", "-qXd", "other", "-mode", "app"], BESIDE, ()),
        (["psql", "-d", "app", "-c", "UPDATE t SET database = 'app' WHERE id=1"], BESIDE, ()),
        (["tool", "-id", "app", "-cmd", "app", "-prod", "app"], BESIDE, ()),
        (["rsync", "-avzd", "app", "there"], COPIED, ()),
        (["rake", "x", "SERVER=db", "USER=db", "PASSWORD=db"], AWAY, ("argument 3",)),
        (["psql", "service=app"], BESIDE, ("argument 2",)),
        (["psql", "user=me service='other'"], BESIDE, ("argument 2",)),
        (["sh", "-c", "./deploy", "service=web"], AWAY, ()),
        (["deploy", "service=app: up"], AWAY, ()),
        (["psql", "postgresql:///?service=app"], AWAY, ("argument 2",)),
        (["tool", "--url=postgres://me:x@db/audit?service=app"], BESIDE, ()),
        (["tool", "--database", "app"], AWAY, ()),
        (["tool", "--host", "other", "--database", "app"], BESIDE, ()),
        (["tool", "-u", "app", "--mysql-db", "app"], BESIDE, ()),
        (["python", "-m", "django", "migrate", "--database", "app"], BESIDE, ()),
    ],
)
def test_argument_that_cannot_be_led_is_told(
    arguments: list[str], copy: environment.Copy, wanted: tuple[str, ...]
) -> None:
    """Nobody reads a shell's script for us: what seems to name the live database there is said."""
    services = environment.services("# [web]\n[app]\nhost=db\n [other]\n")

    assert wanted == led({}, copy, arguments=arguments, services=services).left


AUDIT = '{"host": "db", "database": "audit"}'


@pytest.mark.parametrize(
    ("environ", "said", "away", "beside"),
    [
        ({"AUDIT_URL": "postgres://me:x@db:5432/audit"}, "", "AUDIT_URL", "AUDIT_URL"),
        ({"AUDIT_URL": "jdbc:postgresql://10.0.0.5/audit"}, "", "AUDIT_URL", "AUDIT_URL"),
        ({"AUDIT_DSN": "host=db dbname=audit user=me"}, "", "AUDIT_DSN", "AUDIT_DSN"),
        ({"AUDIT_DB_HOST": "db", "AUDIT_DB_NAME": "audit"}, "", "AUDIT_DB_NAME", "AUDIT_DB_NAME"),
        ({"CONFIG": AUDIT}, "", "CONFIG", "CONFIG"),
        ({"POSTGRES_HOST": "db", "POSTGRES_DB": "audit"}, "", "", "POSTGRES_DB"),
        ({}, "tool --url postgres://db/audit", "argument 3", "argument 3"),
        ({}, "tool --url=postgres://db/audit", "argument 2", "argument 2"),
        ({}, "make URL=postgres://db/audit", "argument 2", "argument 2"),
        ({}, "env URL=postgres://db/audit tool", "argument 2", "argument 2"),
        ({}, "tool --host db --dbname audit", "argument 5", "argument 5"),
        ({}, "make DB_HOST=db DB_NAME=audit", "argument 3", "argument 3"),
        ({}, "psql -h db -qXd audit", "argument 5", "argument 5"),
        ({}, "psql -f x.sql audit", "", "argument 4"),
        ({}, "psql -d audit", "", "argument 3"),
        # another server's, ours, or nobody's
        ({"A_URL": "postgres://other/audit", "B_URL": "postgres://db:6000/audit"}, "", "", ""),
        ({"A_URL": "redis://db:6379/0", "B_URL": "http://db/audit"}, "", "", ""),
        ({"MYSQL_URL": "mysql://db/audit", "MYSQL_HOST": "db", "MYSQL_DB": "a"}, "", "", ""),
        ({"APP_URL": "postgres://db/app", "DB_HOST": "db", "DB_NAME": "app"}, "", "", ""),
        ({"DATABASE_URL": "postgres://db/audit"}, "", "", ""),
        ({"TENANT_DATABASE": "audit", "SHOP_NAME": "shop", "SHOP_HOST": "db"}, "", "", ""),
        ({}, "tool --database audit -d audit", "", ""),
        ({}, "psql -h other -d audit", "", ""),
        ({}, "psql -h db -U me app deploy", "", ""),
        ({}, "psql -v dbname=audit app", "", ""),
        ({}, "pg_ctl start", "", ""),
        ({}, "sqitch deploy --to x --client psql db:pg:app", "", ""),
        ({}, "m --url=jdbc:postgresql://db/app -tool psql migrate", "", ""),
        ({}, "timeout -k 5 60 psql -Xd audit", "", "argument 7"),
        ({}, "run --database audit -- psql app", "", ""),
        ({}, "pg_upgrade -d old -D new", "", ""),
        ({}, "createuser -d -h db deploy", "", ""),
        ({}, "pg_dump --lock-wait-timeout 10 app", "", ""),
    ],
)  # fmt: skip
def test_other_database_of_the_server_is_told(
    environ: dict[str, str], said: str, away: str, beside: str
) -> None:
    """It has no copy: what a command does there it does for good. It is what it was, too."""
    for copy, wanted in ((COPIED, away), (BESIDE, beside)):
        found = led(environ, copy, arguments=said.split())

        assert (*filter(None, [wanted]),) == found.others
        assert said.split() == found.arguments or not wanted
        assert environ == {name: found.environment[name] for name in environ} or not wanted


def test_other_server_of_this_machine_is_none_of_ours() -> None:
    """Without a port nobody can tell."""
    here = dataclasses.replace(LIVE, hosts=frozenset({"localhost"}))
    environ = {
        "A": "Host=localhost;Database=audit;Username=me",
        "B": AUDIT.replace("db", "localhost"),
    }
    known = {"A": "postgres://localhost/audit", "B": "host=localhost port=5432 dbname=audit"}

    assert () == environment.led(environ, here, BESIDE).others
    assert ("A", "B") == environment.led(known, here, BESIDE).others


def test_variable_that_cannot_be_led_is_told() -> None:
    """A host alone may be the database's; one of another database is meant so."""
    environ = {"BACKEND_HOST": "db", "AUDIT_DB_HOST": "db", "AUDIT_DB_NAME": "audit",
               "MYSQL_HOST": "db", "DB_PORT_5432_TCP_ADDR": "10.0.0.5"}  # fmt: skip

    assert ("BACKEND_HOST",) == led(environ).left
    assert ("URL",) == led({"URL": "postgresql:///?service=app", "TAGS": "service=app"}).left
    loose = {"HOST": "db", "KEYCLOAK_DB_URL": "db:5432/app", "UPSTREAM": "db:5432", "CACHE": "db:1"}
    assert ("HOST", "UPSTREAM", "KEYCLOAK_DB_URL") == led(loose).left
    assert () == led(environ, BESIDE).left
