"""Fixtures, from the outside in: server, database, connection, environment, run."""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, LiteralString, Protocol

import psycopg
import pytest
from psycopg import sql

from tests import buckets, codes, program, servers, tools
from tests.fakes import Fakes

DEFAULT_MAJOR = 17
STRICT = os.environ.get("CI") == "true"
UNMET = pytest.StashKey[codes.Unmet]()


# --- what the run says about itself ---------------------------------------------------------------


def pytest_report_header() -> list[str]:
    """Say which servers this run has, and why it lacks the others."""
    found = servers.sources().values()
    return [
        f"postgres {each}" if each.available else f"postgres {each} (skipped)" for each in found
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run demand error codes."""
    parser.addoption(
        "--codes", help="fail unless runs have ended with these error codes: a,b or all there are"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Have each process note the error codes that it meets, in a directory of all."""
    given = getattr(config, "workerinput", {}).get("codes")
    codes.NOTES.directory = Path(given or tempfile.mkdtemp(prefix="pg-preflight-codes-"))
    codes.watch()
    servers.PLACE.of_servers = servers.in_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - xdist has no types
    """Tell a worker which directory that is."""
    node.workerinput["codes"] = str(codes.NOTES.directory)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in which all went well, and that has not met the codes that it was to meet."""
    config = session.config
    asked = config.getoption("--codes")
    if asked and exitstatus == pytest.ExitCode.OK and not hasattr(config, "workerinput"):
        wanted = codes.documented() if asked == "all" else asked.split(",")
        config.stash[UNMET] = codes.unmet(wanted, codes.NOTES.met(), _skipped(config))
        if config.stash[UNMET].failing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [each.longrepr[2].removeprefix("Skipped: ") for each in reports]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name the codes that were to be met and were not."""
    for line in config.stash.get(UNMET, codes.Unmet()).lines():
        terminalreporter.write_line(line, red=line.startswith("FAILED"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what was noted."""
    if not hasattr(config, "workerinput") and codes.NOTES.directory:
        shutil.rmtree(codes.NOTES.directory, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one where everything must run."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_to_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skipped module into a failed one where everything must run."""
    report = yield
    _refuse_to_skip(report)
    return report


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `-k B036` find what stands for that row of the fault table."""
    for mark in item.iter_markers("fault"):
        item.extra_keyword_matches.update(mark.args)


def _refuse_to_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if STRICT and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if str(reason).startswith(f"Skipped: {tools.LACKING}"):
            return
        report.outcome = "failed"
        report.longrepr = f"CI=true: nothing may be skipped. {reason}"


# --- servers --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def running() -> Iterator[Callable[[int], servers.Server]]:
    """Give the one server of each major version that this process has, started when first asked."""
    started: dict[int, servers.Server] = {}

    def get(major: int) -> servers.Server:
        if major not in started:
            started[major] = _start(major)
        return started[major]

    yield get
    for server in started.values():
        server.remove()


# One worker runs all tests of one version, so that its server is made once.
_EVERY = [
    pytest.param(major, id=f"pg{major}", marks=pytest.mark.xdist_group(f"pg{major}"))
    for major in servers.MAJORS
]


@pytest.fixture(params=_EVERY)
def any_server(
    request: pytest.FixtureRequest, running: Callable[[int], servers.Server]
) -> servers.Server:
    """Give a server of every supported major version in turn; `server` is the same one then."""
    return running(request.param)


@pytest.fixture(params=_EVERY if os.environ.get("EVERY_MAJOR") else [_EVERY[0], _EVERY[-1]])
def outer_server(
    request: pytest.FixtureRequest, running: Callable[[int], servers.Server]
) -> servers.Server:
    """Give a server of the oldest and of the newest version, for what hardly looks at the version.

    It is `server` then, as `any_server` is. EVERY_MAJOR=1 has those between as well.
    """
    return running(request.param)


@pytest.fixture
def server(
    request: pytest.FixtureRequest, running: Callable[[int], servers.Server]
) -> servers.Server:
    """Give the server to test with: 17, or the one of `any_server` or `outer_server`.

    It is shared: leave it as it is.
    """
    for each in ("any_server", "outer_server"):
        if each in request.fixturenames:
            shared: servers.Server = request.getfixturevalue(each)
            return shared
    return running(DEFAULT_MAJOR)


class StartServer(Protocol):
    """Start a server of one's own."""

    def __call__(self, major: int = DEFAULT_MAJOR, **settings: str | int) -> servers.Server:
        """Start it with these lines in postgresql.conf."""


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start servers that belong to one test: to stop, kill and configure as it likes."""
    started: list[servers.Server] = []

    def start(major: int = DEFAULT_MAJOR, **settings: str | int) -> servers.Server:
        started.append(_start(major, **settings))
        return started[-1]

    yield start
    for server in started:
        server.remove()


def _start(major: int, **settings: str | int) -> servers.Server:
    try:
        return servers.start(major, **settings)
    except servers.Unavailable as reason:
        pytest.skip(f"no PostgreSQL {major}: {reason}")


# --- databases ------------------------------------------------------------------------------------


class CreateDatabase(Protocol):
    """Create a database."""

    def __call__(
        self, server: servers.Server, name: str | None = None, options: LiteralString = ""
    ) -> servers.Database:
        """Create it, with what follows the name in CREATE DATABASE."""


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Give a new number each time."""
    return count(1)


@pytest.fixture
def create_database(numbers: Iterator[int]) -> Iterator[CreateDatabase]:
    """Create databases that are dropped after the test, whoever is connected."""
    created: list[servers.Database] = []

    def create(
        server: servers.Server, name: str | None = None, options: LiteralString = ""
    ) -> servers.Database:
        database = servers.Database(server, name or f"test_{next(numbers)}")
        statement = sql.SQL("CREATE DATABASE {} {}").format(
            sql.Identifier(database.name),
            sql.SQL(options),
        )
        with server.connect() as connection:
            connection.execute(statement)
        created.append(database)
        return database

    yield create
    for database in created:
        if database.server.running:
            with database.server.connect() as connection:
                connection.execute(
                    sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                        sql.Identifier(database.name)
                    )
                )


@pytest.fixture
def database(server: servers.Server, create_database: CreateDatabase) -> servers.Database:
    """Give an empty database of the test's own."""
    return create_database(server)


@pytest.fixture
def connection(database: servers.Database) -> Iterator[psycopg.Connection]:
    """Give the superuser's session in that database, in autocommit mode."""
    with database.server.connect(database.name) as session:
        yield session


# --- the program ----------------------------------------------------------------------------------


@pytest.fixture
def backup_dir(tmp_path: Path) -> Path:
    """Give the directory that PREFLIGHT_BACKUP_DIR names."""
    made = tmp_path / "backups"
    made.mkdir()
    return made


@pytest.fixture
def termination_log(tmp_path: Path) -> Path:
    """Give the file that PREFLIGHT_TERMINATION_LOG names; it exists, as Kubernetes makes it."""
    made = tmp_path / "termination-log"
    made.touch()
    return made


class WriteMigrations(Protocol):
    """Write files into the migrations directory."""

    directory: Path

    def __call__(self, files: Mapping[str, str | bytes]) -> Path:
        """Write them and return the directory."""


class _Migrations:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, files: Mapping[str, str | bytes]) -> Path:
        for name, text in files.items():
            content = text.encode() if isinstance(text, str) else text
            (self.directory / name).write_bytes(content)
        return self.directory


@pytest.fixture
def migrations(tmp_path: Path) -> WriteMigrations:
    """Write files into the directory that PREFLIGHT_MIGRATIONS_DIR names, empty at first."""
    directory = tmp_path / "migrations"
    directory.mkdir()
    return _Migrations(directory)


@pytest.fixture
def bare_environment(
    backup_dir: Path, termination_log: Path, migrations: WriteMigrations
) -> dict[str, str]:
    """Give the environment of a run that is told of no server; change it as the test needs."""
    return {
        "PATH": program.path(),
        "PREFLIGHT_BACKUP_DIR": str(backup_dir),
        # What a copy is good for has tests of its own; elsewhere it would only take time.
        "PREFLIGHT_REHEARSE": "off",
        # Where there is a copy, it is on the live server: the way that needs the most care. The
        # throwaway server has tests of its own, and would cost each of the others a second.
        "PREFLIGHT_REHEARSE_ON": "server",
        "PREFLIGHT_MIGRATIONS_DIR": str(migrations.directory),
        "PREFLIGHT_TERMINATION_LOG": str(termination_log),
    }


@pytest.fixture
def environment(bare_environment: dict[str, str], database: servers.Database) -> dict[str, str]:
    """Give the environment of a run against `database`; change it as the test needs."""
    return {**bare_environment, **database.env()}


class Run(Protocol):
    """Run the program."""

    def __call__(
        self,
        *args: str,
        env: Mapping[str, str | None] | None = None,
        timeout: float = program.TIMEOUT_S,
    ) -> program.Result:
        """Run it to the end."""


class Start(Protocol):
    """Start the program."""

    def __call__(self, *args: str, env: Mapping[str, str | None] | None = None) -> program.Process:
        """Start it and return at once."""


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    """Run entrypoint.py against `database`: `run("check", env={"PREFLIGHT_SCHEMA": "x"})`."""
    main = program.Program(environment, tmp_path)
    yield main.run
    main.close()


@pytest.fixture
def run_bare(bare_environment: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    """Run entrypoint.py without any server in its environment."""
    main = program.Program(bare_environment, tmp_path)
    yield main.run
    main.close()


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start entrypoint.py against `database` and go on; what still runs at the end is killed."""
    main = program.Program(environment, tmp_path)
    yield main.start
    main.close()


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    """Give a directory for fake clients."""
    return Fakes(tmp_path / "fakes")


@pytest.fixture(scope="module")
def server_of_buckets() -> Iterator[buckets.Bucket]:
    """Give a server with one bucket."""
    buckets.importable()
    with buckets.s3() as found:
        yield found
