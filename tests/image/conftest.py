"""Fixtures for the image: it is there, and runs as a careful operator would run it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pytest

from tests import containers, program, servers
from tests.conftest import WriteMigrations


@pytest.fixture(scope="session")
def image() -> dict[str, Any]:
    """Give what docker knows of the image under test."""
    return containers.inspect(containers.IMAGE)


@pytest.fixture
def backups(docker: containers.Containers) -> str:
    """Give a volume for backups."""
    return docker.volume()


@pytest.fixture
def docker() -> Iterator[containers.Containers]:
    """Start containers that are gone after the test."""
    started = containers.Containers()
    yield started
    started.close()


class RunJob(Protocol):
    """Run the image."""

    def __call__(
        self,
        *command: str,
        env: Mapping[str, str | None] | None = None,
        options: Sequence[object] = (),
    ) -> program.Result:
        """Run it to the end."""


class StartJob(Protocol):
    """Start the image."""

    def __call__(
        self,
        *command: str,
        env: Mapping[str, str | None] | None = None,
        options: Sequence[object] = (),
    ) -> containers.Container:
        """Start it and return at once."""


@pytest.fixture
def start_job(
    docker: containers.Containers,
    database: servers.Database,
    migrations: WriteMigrations,
    backups: str,
) -> StartJob:
    """Start the image against `database` with `migrations`, everything taken away from it."""

    def start(
        *command: str,
        env: Mapping[str, str | None] | None = None,
        options: Sequence[object] = (),
    ) -> containers.Container:
        merged = {**database.env(), **(env or {})}
        given = {name: value for name, value in merged.items() if value is not None}
        mounts = (
            *("--volume", f"{backups}:/backups"),
            *("--volume", f"{migrations.directory}:/app/migrations:ro"),
        )
        return docker.start(*command, env=given, options=[*containers.STRICT, *mounts, *options])

    return start


@pytest.fixture
def run_job(start_job: StartJob) -> RunJob:
    """Run the image as `start_job` starts it."""

    def run(
        *command: str,
        env: Mapping[str, str | None] | None = None,
        options: Sequence[object] = (),
    ) -> program.Result:
        return start_job(*command, env=env, options=options).wait()

    return run
