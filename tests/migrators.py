"""Other people's migrators, fetched once into .cache from the registries of their languages."""

import os
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests import servers, tools

NODE = ("node-pg-migrate@7.9.1", "knex@3.1.0", "pg@8.16.3")
JARS = {
    "org.flywaydb:flyway-core": "11.8.2",
    "org.flywaydb:flyway-database-postgresql": "11.8.2",
    "org.postgresql:postgresql": "42.7.5",
}
CREATE = "CREATE TABLE items (id int PRIMARY KEY, name text)"
STEPS = (CREATE, "ALTER TABLE items ADD COLUMN note text", "CREATE TABLE others (id int)")
FLYWAY = """
public class Migrate {
    public static void main(String[] arguments) {
        org.flywaydb.core.Flyway.configure().envVars().load().migrate();
    }
}
"""
BREAKS = "ALTER TABLE items ADD CONSTRAINT named CHECK (name <> 'b')"
# what is there already gets the setting of this very statement
GOOD = "ALTER TABLE items ADD COLUMN price text NOT NULL DEFAULT current_setting('lock_timeout')"


@dataclass(frozen=True)
class Migrator:
    """A tool: how its files look, what starts it, how it is told of the database."""

    name: str
    history: str
    extension: str
    file: Callable[[int, str], str]  # a migration's text, of its number and one statement
    named: Callable[[int], str]
    others: Mapping[str, str]  # files beside
    ready: Callable[
        [Path], Sequence[str]
    ]  # the command in an app's folder; skips where it cannot be had
    variables: Callable[[servers.Database], dict[str, str]]

    def write(self, app: Path, number: int, statement: str) -> Path:
        """Write a migration; return its file."""
        folder = app / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.others.items():
            (app / name).write_text(textwrap.dedent(text))
        path = folder / f"{self.named(number)}.{self.extension}"
        path.write_text(self.file(number, statement))
        return path


def url(database: servers.Database, scheme: str = "postgresql") -> str:
    """Return the address as most read it."""
    env = database.env()
    password = quote(env["PGPASSWORD"], safe="")
    return f"{scheme}://{env['PGUSER']}:{password}@{env['PGHOST']}:{env['PGPORT']}/{database.name}"


def _node(app: Path, program: str) -> str:
    fetched = tools.npm(*NODE)
    modules = app / "node_modules"
    if app.is_dir() and not modules.is_symlink():
        modules.symlink_to(fetched)
    return str(modules / ".bin" / program)


def jars() -> str:
    """Return the class path of Flyway's library, fetched from Maven."""

    def make(part: Path) -> None:
        wanted = "".join(
            "<dependency><groupId>{}</groupId><artifactId>{}</artifactId>"
            "<version>{}</version></dependency>".format(*name.split(":"), version)
            for name, version in JARS.items()
        )
        (part / "pom.xml").write_text(
            '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
            "<groupId>tests</groupId><artifactId>tests</artifactId><version>1</version>"
            f"<dependencies>{wanted}</dependencies></project>"
        )
        copy = ("dependency:copy-dependencies", "-DoutputDirectory=lib", "-DincludeScope=runtime")
        tools.install("mvn", "--quiet", "--batch-mode", *copy, cwd=part)
        (part / "Migrate.java").write_text(FLYWAY)
        tools.install("javac", "-cp", "lib/*", "Migrate.java", cwd=part)

    home = tools.made("flyway-3", make)
    return f"{home}:{home}/lib/*"


def _ruby() -> str:
    ruby = tools.found("ruby")
    loads = [ruby, "-e", "require 'active_record'; require 'pg'"]
    if subprocess.run(loads, check=False, capture_output=True).returncode != 0:
        tools.lacking("Ruby has no active_record and pg (Debian: ruby-activerecord, ruby-pg)")
    return ruby


def _by_url(database: servers.Database) -> dict[str, str]:
    return {"DATABASE_URL": url(database)}


def _jdbc(database: servers.Database) -> dict[str, str]:
    env = database.env()
    return {
        "FLYWAY_URL": f"jdbc:postgresql://{env['PGHOST']}:{env['PGPORT']}/{database.name}",
        "FLYWAY_USER": env["PGUSER"],
        "FLYWAY_PASSWORD": env["PGPASSWORD"],
        "FLYWAY_LOCATIONS": "filesystem:migrations",
    }


MIGRATORS = (
    Migrator(
        name="knex",
        history="knex_migrations",
        extension="js",
        named=lambda number: f"{number:03d}_step",
        file=lambda _, sql: (
            f"exports.up = (knex) => knex.raw({sql!r});\nexports.down = () => null;\n"
        ),
        others={
            "knexfile.js": """
                module.exports = {client: "pg", connection: process.env.DATABASE_URL,
                                  migrations: {directory: "./migrations"}};
            """
        },
        ready=lambda app: [_node(app, "knex"), "migrate:latest"],
        variables=_by_url,
    ),
    Migrator(
        name="node-pg-migrate",
        history="pgmigrations",
        extension="js",
        named=lambda number: f"{number}_step",
        file=lambda _, sql: f"exports.up = (pgm) => pgm.sql({sql!r});\nexports.down = false;\n",
        others={},
        ready=lambda app: [_node(app, "node-pg-migrate"), "up"],
        variables=_by_url,
    ),
    Migrator(
        name="flyway",
        history="flyway_schema_history",
        extension="sql",
        named=lambda number: f"V{number}__step",
        file=lambda _, sql: f"{sql};\n",
        others={},
        ready=lambda _: [tools.found("java"), "-XX:TieredStopAtLevel=1", "-cp", jars(), "Migrate"],
        variables=_jdbc,
    ),
    Migrator(
        name="activerecord",
        history="schema_migrations",
        extension="rb",
        named=lambda number: f"{number:03d}_step{number}",
        file=lambda number, sql: (
            f"class Step{number} < ActiveRecord::Migration[6.1]\n"
            f"  def up\n    execute {sql!r}\n  end\nend\n"
        ),
        others={
            "migrate.rb": """
                require "active_record"
                ActiveRecord::Base.establish_connection(ENV.fetch("DATABASE_URL"))
                more = ActiveRecord::VERSION::MAJOR < 7 ? [ActiveRecord::SchemaMigration] : []
                ActiveRecord::MigrationContext.new("migrations", *more).migrate
            """
        },
        ready=lambda _: [_ruby(), "migrate.rb"],
        variables=_by_url,
    ),
)


def apply(migrator: Migrator, app: Path, database: servers.Database) -> None:
    """Run a migrator by itself, as an app does that has no gate."""
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **migrator.variables(database)}
    done = subprocess.run(
        migrator.ready(app),
        cwd=app,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
