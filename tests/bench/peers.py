"""Other tools: how each is got, how its files look, what runs it.

One that is not to be had raises `pytest.skip.Exception` with the reason, as for a test.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import migrators, program, servers, tools

ALEMBIC = ("alembic==1.20.1", "psycopg[binary]==3.3.9")
DJANGO = ("django==5.2.19", "psycopg[binary]==3.3.9")
YOYO = ("yoyo-migrations==9.0.0", "psycopg[binary]==3.3.9", "setuptools<81")
SQL_MIGRATE = """
development: {dialect: postgres, datasource: sslmode=disable, dir: FOLDER, table: gorp_migrations}
"""
ALEMBIC_ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, pool
with create_engine(os.environ["URL"], poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""
ALEMBIC_FILE = """
from alembic import op
revision, down_revision = "{number:05}", {before!r}
def upgrade():
    op.execute({sql!r})
"""
DJANGO_SETTINGS = """
INSTALLED_APPS = ["shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql"}}
import os
DATABASES["default"].update({key: os.environ["PG" + name] for key, name in (
    ("HOST", "HOST"), ("PORT", "PORT"), ("USER", "USER"), ("PASSWORD", "PASSWORD"),
    ("NAME", "DATABASE"))})
"""
DJANGO_FILE = """
from django.db import migrations
class Migration(migrations.Migration):
    dependencies = {before!r}
    operations = [migrations.RunSQL({sql!r})]
"""
# What people write where there is no gate: it waits, dumps, and lets a tool go on.
SCRIPT = """
until pg_isready -q; do sleep 0.1; done
pg_dump --format=custom --file="$DUMP" || exit
exec "$DBMATE" --no-dump-schema --migrations-dir "$FOLDER" up
"""
INSTALL_S = 600


@dataclass(frozen=True)
class Peer:
    """A tool, once it is there."""

    name: str
    version: str
    write: Callable[[Path, int, str], object]  # one file: folder, number, statement
    command: Callable[[Path, servers.Database], Sequence[object]]
    environment: Callable[[Path, servers.Database], Mapping[str, str]] = lambda _, __: {}
    recorded: str | None = None  # the first half of what writes versions n into its history

    @property
    def plain(self) -> str:
        """Return its name as a folder's and a database's."""
        return re.sub(r"\W+", "-", self.name.lower())


def url(database: servers.Database, scheme: str = "postgres", *, tls: bool = True) -> str:
    """Return the address; with a word on TLS for those that ask for it by themselves."""
    return migrators.url(database, scheme) + ("?sslmode=disable" if tls else "")


def ours() -> Peer:
    """Return the program itself, with neither backup nor rehearsal unless it is told otherwise."""
    return Peer(
        "pg-preflight",
        _first(servers.REPOSITORY / "preflight/__init__.py", r'__version__ = "(.+)"'),
        lambda folder, number, sql: _put(folder / f"{number:05}_t.sql", f"{sql};\n"),
        lambda _, __: program_command(),
        lambda folder, _: {"PREFLIGHT_MIGRATIONS_DIR": str(folder), "PREFLIGHT_BACKUP": "off"},
    )


def program_command() -> list[str]:
    """Return what starts the program."""
    return [sys.executable, str(program.ENTRYPOINT)]


def dbmate() -> Peer:
    """Return dbmate, from npm."""
    tool = tools.dbmate()
    return Peer(
        "dbmate",
        tools.DBMATE,
        lambda folder, number, sql: _put(
            folder / f"{number:05}_t.sql", f"-- migrate:up\n{sql};\n\n-- migrate:down\n"
        ),
        lambda folder, database: [
            *(tool, "--no-dump-schema", "--migrations-dir", folder),
            *("--url", url(database), "migrate"),
        ],
        recorded="INSERT INTO schema_migrations SELECT to_char(n, 'FM00000')",
    )


def script() -> Peer:
    """Return the script that people write."""
    there = dbmate()
    return Peer(
        "script: pg_isready, pg_dump, dbmate",
        there.version,
        there.write,
        lambda _, __: ["sh", "-c", SCRIPT],
        lambda folder, database: {
            "DATABASE_URL": url(database),
            "DBMATE": str(tools.dbmate()),
            "DUMP": str(folder.parent / f"{database.name}.dump"),
            "FOLDER": str(folder),
        },
        there.recorded,
    )


def goose() -> Peer:
    """Return goose, a Go module."""
    tool = tools.go("goose")
    return Peer(
        "goose",
        _go_version("goose"),
        lambda folder, number, sql: _put(
            folder / f"{number:05}_t.sql", f"-- +goose Up\n{sql};\n\n-- +goose Down\nSELECT 1;\n"
        ),
        lambda folder, database: [tool, "-dir", folder, "postgres", url(database), "up"],
        recorded="INSERT INTO goose_db_version (version_id, is_applied) SELECT n, true",
    )


def golang_migrate() -> Peer:
    """Return golang-migrate, a Go module."""
    tool = tools.go("migrate")
    return Peer(
        "golang-migrate",
        _go_version("migrate"),
        lambda folder, number, sql: _put(folder / f"{number:05}_t.up.sql", f"{sql};\n"),
        lambda folder, database: [tool, "-path", folder, "-database", url(database), "up"],
        recorded="UPDATE schema_migrations SET version = n",
    )


def sql_migrate() -> Peer:
    """Return sql-migrate, a Go module; lib/pq reads libpq's variables."""
    tool = tools.go("sql-migrate")

    def write(folder: Path, number: int, sql: str) -> None:
        _put(folder / f"{number:05}_t.sql", f"-- +migrate Up\n{sql};\n\n-- +migrate Down\n")
        _put(folder.parent / "dbconfig.yml", SQL_MIGRATE.replace("FOLDER", str(folder)))

    return Peer(
        "sql-migrate",
        _go_version("sql-migrate"),
        write,
        lambda folder, _: [tool, "up", f"-config={folder.parent}/dbconfig.yml"],
        recorded="INSERT INTO gorp_migrations SELECT to_char(n, 'FM00000') || '_t.sql', now()",
    )


def flyway() -> Peer:
    """Return Flyway's library, from Maven: its command line does more, and is slower."""
    java, jars = tools.found("java"), migrators.jars()
    return Peer(
        "Flyway",
        f"{migrators.JARS['org.flywaydb:flyway-core']} (library)",
        lambda folder, number, sql: _put(folder / f"V{number}__t.sql", f"{sql};\n"),
        lambda _, __: [java, "-XX:TieredStopAtLevel=1", "-cp", jars, "Migrate"],
        lambda folder, database: {
            "FLYWAY_URL": f"jdbc:postgresql://{servers.HOST}:{database.server.port}/{database.name}",
            "FLYWAY_USER": servers.SUPERUSER,
            "FLYWAY_PASSWORD": servers.PASSWORD,
            "FLYWAY_LOCATIONS": f"filesystem:{folder}",
        },
    )


def alembic() -> Peer:
    """Return Alembic, from PyPI."""
    python = tools.python(*ALEMBIC)

    def write(folder: Path, number: int, sql: str) -> None:
        before = f"{number - 1:05}" if number > 1 else None
        (folder / "versions").mkdir(exist_ok=True)
        if number == 1:
            _put(folder / "env.py", ALEMBIC_ENV)
            _put(folder / "alembic.ini", f"[alembic]\nscript_location = {folder}\n")
        text = ALEMBIC_FILE.format(number=number, before=before, sql=sql)
        _put(folder / f"versions/{number:05}.py", text)

    return Peer(
        "Alembic",
        _pinned(ALEMBIC),
        write,
        lambda folder, _: [
            python,
            "-m",
            "alembic",
            "-c",
            folder / "alembic.ini",
            "upgrade",
            "head",
        ],
        lambda _, database: {"URL": url(database, "postgresql+psycopg", tls=False)},
    )


def yoyo() -> Peer:
    """Return yoyo, from PyPI."""
    tool = tools.python(*YOYO).with_name("yoyo")
    return Peer(
        "yoyo",
        _pinned(YOYO),
        lambda folder, number, sql: _put(folder / f"{number:05}_t.sql", f"{sql};\n"),
        lambda folder, database: [
            *(tool, "apply", "--batch", "--no-config-file"),
            *("-d", url(database, "postgresql+psycopg", tls=False), folder),
        ],
    )


def django() -> Peer:
    """Return Django, from PyPI."""
    python = tools.python(*DJANGO)

    def write(folder: Path, number: int, sql: str) -> None:
        home = folder / "shop/migrations"
        home.mkdir(parents=True, exist_ok=True)
        if number == 1:
            _put(folder / "settings.py", DJANGO_SETTINGS)
            _put(folder / "shop/__init__.py", "")
            _put(home / "__init__.py", "")
        before = [("shop", f"m{number - 1:05}")] if number > 1 else []
        _put(home / f"m{number:05}.py", DJANGO_FILE.format(before=before, sql=sql))

    return Peer(
        "Django",
        _pinned(DJANGO),
        write,
        lambda _, __: [python, "-m", "django", "migrate", "--noinput", "--skip-checks"],
        lambda folder, _: {"PYTHONPATH": str(folder), "DJANGO_SETTINGS_MODULE": "settings"},
    )


def node_pg_migrate() -> Peer:
    """Return node-pg-migrate, from npm."""
    tool = tools.npm(*migrators.NODE) / ".bin/node-pg-migrate"
    return Peer(
        "node-pg-migrate",
        migrators.NODE[0].rpartition("@")[2],
        lambda folder, number, sql: _put(
            folder / f"{number + 10**12}_t.js",
            f"exports.up = (pgm) => pgm.sql({sql!r});\nexports.down = false;\n",
        ),
        lambda folder, _: [tool, "up", "--migrations-dir", folder],
        lambda _, database: {"DATABASE_URL": url(database, "postgresql", tls=False)},
    )


def sqitch() -> Peer:
    """Return sqitch, from Debian."""
    if not shutil.which("sqitch") and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)  # noqa: S607
        tools.install(
            *("apt-get", "install", "-y", "-qq", "--no-install-recommends"),
            *("sqitch", "libdbd-pg-perl"),
            environment={"DEBIAN_FRONTEND": "noninteractive"},
        )
    tool = tools.found("sqitch")

    def write(folder: Path, number: int, sql: str) -> None:
        home = folder / "deploy"
        home.mkdir(exist_ok=True)
        if number == 1:
            _put(folder / "sqitch.conf", "[core]\n\tengine = pg\n")
            _put(folder / "sqitch.plan", "%syntax-version=1.0.0\n%project=shop\n\n")
        with (folder / "sqitch.plan").open("a") as plan:
            plan.write(f"t{number:05} 2026-01-01T00:00:00Z A Person <a@example.org> # t\n")
        _put(home / f"t{number:05}.sql", f"BEGIN;\n{sql};\nCOMMIT;\n")

    return Peer(
        "sqitch",
        tools.call([tool, "--version"]).stdout.strip().rpartition("v")[2],
        write,
        lambda folder, database: [
            *(tool, "--chdir", folder, "deploy", "--no-verify"),
            f"db:pg://{servers.SUPERUSER}@{servers.HOST}:{database.server.port}/{database.name}",
        ],
        lambda folder, _: {"SQITCH_CONFIG": str(folder / "sqitch.conf")},
    )


FAST = (ours, dbmate, goose, golang_migrate, sql_migrate)
ALL = (*FAST, script, yoyo, alembic, django, node_pg_migrate, flyway, sqitch)


def found(wanted: Sequence[Callable[[], Peer]], lacking: dict[str, str]) -> list[Peer]:
    """Return those that are to be had; the others go into `lacking`, with why."""
    there = []
    for each in wanted:
        name = each.__name__.replace("_", "-")
        try:
            print(f"  {name} ...", flush=True)
            there.append(each())
        except (pytest.skip.Exception, OSError, subprocess.SubprocessError) as reason:
            lacking[name] = " ".join(str(reason).removeprefix(tools.LACKING).split())[:200]
    return there


def _go_version(name: str) -> str:
    return tools.GO[name][0].rpartition("@v")[2]


def _pinned(packages: Sequence[str]) -> str:
    return packages[0].rpartition("==")[2]


def _first(path: Path, pattern: str) -> str:
    seen = re.search(pattern, path.read_text("utf-8"))
    return seen[1] if seen else "unknown"


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
