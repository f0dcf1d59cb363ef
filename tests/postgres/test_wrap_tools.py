"""Real tools behind the gate, as a new user has them: three migrations, and a fourth."""

import os
import shlex
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import servers, tools
from tests.conftest import Run

SLOW_S = 240.0  # an interpreter of its own, three times
FIRST = (
    "CREATE TABLE items (id int PRIMARY KEY, name text)",
    "ALTER TABLE items ADD COLUMN price int",
    "CREATE TABLE orders (id int PRIMARY KEY, item int REFERENCES items)",
)
ROWS = "INSERT INTO items VALUES (1, 'a', 10), (2, 'b', NULL); INSERT INTO orders VALUES (1, 1)"
BREAKS = "ALTER TABLE items ALTER COLUMN price SET NOT NULL"
# what is there already gets the setting of this very statement
GOOD = "ALTER TABLE items ADD COLUMN sold text NOT NULL DEFAULT current_setting('lock_timeout')"


class App:
    """An app in a folder, with a tool that migrates it."""

    waits = "3s"  # what --lock-timeout comes to

    def __init__(self, folder: Path) -> None:
        """Make it, without a migration."""
        self.folder = folder
        folder.mkdir()

    def write(self, number: int, sql: str) -> None:
        """Write a migration, or write it anew."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return what migrates it."""
        raise NotImplementedError

    def environment(self, database: servers.Database) -> dict[str, str]:
        """Return how it is told of its database."""
        return {"DATABASE_URL": url(database)}


def url(database: servers.Database, scheme: str = "postgresql", more: str = "") -> str:
    """Return the database's address as a URL."""
    env = database.env()
    password = quote(env["PGPASSWORD"], safe="")
    where = f"{env['PGHOST']}:{env['PGPORT']}/{database.name}"
    return f"{scheme}://{env['PGUSER']}:{password}@{where}{more}"


class Alembic(App):
    """Alembic with SQLAlchemy, through psycopg or asyncpg."""

    scheme = "postgresql+psycopg"
    ENV = """
import asyncio, os
from alembic import context
from sqlalchemy import create_engine, pool
from sqlalchemy.ext.asyncio import create_async_engine

URL = os.environ["DATABASE_URL"]

def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def through_asyncpg():
    engine = create_async_engine(URL, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()

if "+asyncpg" in URL:
    asyncio.run(through_asyncpg())
else:
    with create_engine(URL, poolclass=pool.NullPool).connect() as connection:
        migrate(connection)
        connection.commit()
"""
    VERSION = """
from alembic import op
revision = "{number:03d}"
down_revision = {before!r}
def upgrade():
    op.execute({sql!r})
"""

    def __init__(self, folder: Path) -> None:
        """Write env.py and the configuration."""
        super().__init__(folder)
        (folder / "migrations/versions").mkdir(parents=True)
        (folder / "migrations/env.py").write_text(self.ENV)
        (folder / "alembic.ini").write_text(f"[alembic]\nscript_location = {folder}/migrations\n")

    def write(self, number: int, sql: str) -> None:
        """Write a revision."""
        before = f"{number - 1:03d}" if number > 1 else None
        text = self.VERSION.format(number=number, before=before, sql=sql)
        (self.folder / f"migrations/versions/{number:03d}.py").write_text(text)

    def command(self) -> list[str]:
        """Upgrade to the newest."""
        program = tools.python("alembic", "sqlalchemy", "psycopg[binary]", "asyncpg", "greenlet")
        ini = str(self.folder / "alembic.ini")
        return [str(program), "-m", "alembic", "-c", ini, "upgrade", "head"]

    def environment(self, database: servers.Database) -> dict[str, str]:
        """Say the address with the driver."""
        return {"DATABASE_URL": url(database, self.scheme)}


class Asyncpg(Alembic):
    """The same through asyncpg."""

    scheme = "postgresql+asyncpg"
    waits = "0"  # it has no way to hear of it


class Django(App):
    """Django with the address in five variables."""

    SETTINGS = """
import os
SECRET_KEY = "x"
INSTALLED_APPS = ["shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **{
    key: os.environ["DB_" + key] for key in ("HOST", "PORT", "USER", "PASSWORD", "NAME")}}}
"""
    MIGRATION = """
from django.db import migrations
class Migration(migrations.Migration):
    dependencies = {dependencies!r}
    operations = [migrations.RunSQL({sql!r})]
"""

    def __init__(self, folder: Path) -> None:
        """Write a project with one app."""
        super().__init__(folder)
        (folder / "shop/migrations").mkdir(parents=True)
        (folder / "settings.py").write_text(self.SETTINGS)
        for name in ("shop/__init__.py", "shop/migrations/__init__.py"):
            (folder / name).touch()

    def write(self, number: int, sql: str) -> None:
        """Write a migration of the app."""
        before = [("shop", f"{number - 1:04d}_step")] if number > 1 else []
        text = self.MIGRATION.format(dependencies=before, sql=sql)
        (self.folder / f"shop/migrations/{number:04d}_step.py").write_text(text)

    def command(self) -> list[str]:
        """Migrate."""
        program = tools.python("django", "psycopg[binary]")
        return [str(program), "-m", "django", "migrate", "--noinput"]

    def environment(self, database: servers.Database) -> dict[str, str]:
        """Say the address in a group of variables."""
        env = database.env()
        return {
            "DB_HOST": env["PGHOST"],
            "DB_PORT": env["PGPORT"],
            "DB_USER": env["PGUSER"],
            "DB_PASSWORD": env["PGPASSWORD"],
            "DB_NAME": database.name,
            "PYTHONPATH": str(self.folder),
            "DJANGO_SETTINGS_MODULE": "settings",
        }


class Goose(App):
    """Goose with its address in a variable."""

    def write(self, number: int, sql: str) -> None:
        """Write a file with goose's marks."""
        (self.folder / f"{number:05d}_step.sql").write_text(f"-- +goose Up\n{sql};\n")

    def command(self) -> list[str]:
        """Go up."""
        return [str(tools.go("goose")), "-dir", str(self.folder), "up"]

    def environment(self, database: servers.Database) -> dict[str, str]:
        """Say the address as goose reads it."""
        return {"GOOSE_DRIVER": "postgres", "GOOSE_DBSTRING": url(database, "postgres")}


class GolangMigrate(App):
    """golang-migrate, whose address a shell puts among its arguments."""

    def write(self, number: int, sql: str) -> None:
        """Write a pair of files."""
        (self.folder / f"{number:06d}_step.up.sql").write_text(f"{sql};\n")
        (self.folder / f"{number:06d}_step.down.sql").write_text("SELECT 1;\n")

    def command(self) -> list[str]:
        """Go up."""
        program, folder = shlex.quote(str(tools.go("migrate"))), shlex.quote(str(self.folder))
        return ["sh", "-c", f'{program} -path {folder} -database "$DATABASE_URL" up']

    def environment(self, database: servers.Database) -> dict[str, str]:
        """Say it where the gate has it from, too; TLS is off on both servers."""
        return {"DATABASE_URL": url(database, "postgres", "?sslmode=disable")}


APPS = [Alembic, Asyncpg, Django, Goose, GolangMigrate]


@pytest.mark.parametrize("kind", APPS, ids=[each.__name__ for each in APPS])
def test_tool_is_wrapped_as_its_recipe_says(
    run: Run,
    environment: dict[str, str],
    database: servers.Database,
    tmp_path: Path,
    kind: type[App],
) -> None:
    """Three migrations; the fourth breaks on the rows: 27; a good one: applied, then nothing."""
    app = kind(tmp_path / "app")
    for name in database.env():
        environment.pop(name, None)
    del environment["PREFLIGHT_MIGRATIONS_DIR"]
    ours = {"DATABASE_URL": url(database), "PREFLIGHT_REHEARSE": "auto"}
    environment |= ours | app.environment(database)
    environment |= {"HOME": str(tmp_path), "PATH": f"{environment['PATH']}:{os.defpath}"}
    for number, sql in enumerate(FIRST, 1):
        app.write(number, sql)

    def wrap(*options: str) -> list[str]:
        return ["wrap", "--watch", str(app.folder), *options, "--", *app.command()]

    first = run(*wrap("--trust-environment"), timeout=SLOW_S)
    assert 0 == first.code, first
    database.script(ROWS)
    app.write(4, BREAKS)
    broken = run(*wrap(), timeout=SLOW_S)
    columns = "SELECT attnotnull FROM pg_attribute WHERE attname = 'price'"
    untouched = database.query(columns)
    app.write(4, GOOD)
    good = run(*wrap("--lock-timeout", "3s"), timeout=SLOW_S)
    again = run(*wrap(), timeout=SLOW_S)

    assert 27 == broken.code, broken
    assert "contains null values" in broken.finished["error"]["message"]
    assert [False] == untouched
    assert 0 == good.code, good
    assert good.event("wrap.matched"), good
    assert "column public.items.sold" in good.event("wrap.rehearsed")[0]["made"]
    assert [app.waits] == database.query("SELECT DISTINCT sold FROM items")
    assert "unchanged" == good.event("wrap.rehearsed")[0]["second_run"], good
    assert 0 == again.code, again
    assert [] == again.event("wrap.said")
