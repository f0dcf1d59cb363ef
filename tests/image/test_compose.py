"""compose.yaml as it stands: the job is through before the app starts, or the app never starts."""

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import containers, program

COPIED = ("compose.yaml", "migrations", "examples/postgres_password")


STARTED = "the app of their own runs"


class Project:
    """One project directory, as somebody would have it who pasted the file."""

    def __init__(self, directory: Path, images: dict[str, str]) -> None:
        """Keep where it is."""
        self.directory = directory
        self.name = f"pg-preflight-test-{uuid.uuid4().hex[:8]}"
        self.images = images

    def compose(self, *args: str, fails: bool = False) -> str:
        """Run docker compose here; return what it said."""
        command = ("compose", "--project-directory", str(self.directory), "-p", self.name, *args)
        code, output = containers.docker_said(*command, env=self.images)
        assert fails is (code != 0), f"docker {command}: {code}\n{output}"
        return output

    def states(self) -> dict[str, str]:
        """Return the state of every service's container."""
        listed = self.compose("ps", "--all", "--format", "json").splitlines()
        return {each["Service"]: each["State"] for each in map(json.loads, listed)}

    def job(self) -> list[program.Event]:
        """Return what all runs of the job have logged."""
        container = self.compose("ps", "--all", "--quiet", "preflight").strip()
        return program.parse(containers.docker("logs", container))


@pytest.fixture(scope="session")
def postgres() -> str:
    """Give the image of a server that starts as the official one does."""
    return containers.build(
        containers.REPOSITORY / "tests" / "image" / "postgres", tag="pg-preflight-test/postgres:17"
    )


@pytest.fixture
def project(tmp_path: Path, postgres: str) -> Iterator[Project]:
    """Give a project that is gone after the test."""
    made = Project(tmp_path, {"POSTGRES_IMAGE": postgres, "PG_PREFLIGHT_IMAGE": containers.IMAGE})
    for each in COPIED:
        source, target = containers.REPOSITORY / each, tmp_path / each
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    yield made
    made.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")


@pytest.fixture
def own(tmp_path: Path, postgres: str) -> Iterator[Project]:
    """Give a project of somebody else: an app with a Dockerfile, and what our page says to copy."""
    made = Project(tmp_path, {"PG_PREFLIGHT_IMAGE": containers.IMAGE})
    page = (containers.REPOSITORY / "docs" / "containers.md").read_text("utf-8")
    section = page.split("## In front of your own app\n")[1]
    copied = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    (tmp_path / "compose.yaml").write_text(copied.replace("postgres:17", postgres))
    (tmp_path / "Dockerfile").write_text(f'FROM {containers.BASE}\nCMD ["echo", "{STARTED}"]\n')
    (tmp_path / "postgres_password").write_text("a password of theirs\n")
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "001_create_cat.sql").write_text("CREATE TABLE cat (name text);\n")
    yield made
    made.compose("down", "--volumes", "--timeout", "1")
    for each in ("app", "theirs"):
        containers.docker_said("image", "rm", "--force", f"{made.name}-{each}")


@pytest.mark.fault("F150")
def test_app_starts_after_the_job_and_a_second_up_has_nothing_to_do(project: Project) -> None:
    """The quick start; the second `up` takes no backup and well under a second."""
    project.compose("up", "--detach", "--no-build")
    first = project.job()
    states = project.states()
    project.compose("up", "--detach", "--no-build")
    second = project.job()[len(first) :]

    assert {
        "unicorn-postgresql": "running",
        "preflight": "exited",
        "app": "running",
    } == states
    assert ["001_create_llm_tables", "002_add_system_api_keys"] == first[-1]["applied"]
    assert 1 == [each["event"] for each in first].count("backup.verified")
    assert 1 == [each["event"] for each in first].count("rehearsal.passed")
    assert ("run.finished", 0) == (second[-1]["event"], second[-1]["exit_code"])
    assert not {"backup.started", "lock.acquired"} & {each["event"] for each in second}
    assert second[-1]["duration_s"] < 0.8
    assert "openai" in project.compose("logs", "app")


def test_app_never_starts_after_a_failure(project: Project) -> None:
    """`up` fails on the rehearsal, the app stays created, and the job's last line says why."""
    (project.directory / "migrations" / "003_divide.sql").write_text("SELECT 1/0;\n")

    said = project.compose("up", "--detach", "--no-build", fails=True)

    last = project.job()[-1]
    assert "exit 27" in said
    assert {"preflight": "exited", "app": "created"}.items() <= project.states().items()
    assert (27, "003_divide", "22012") == (
        last["exit_code"],
        last["error"]["migration"],
        last["error"]["sqlstate"],
    )


def test_job_can_be_run_by_hand(project: Project) -> None:
    """`docker compose run --rm preflight --check`, before and after, and the old test script."""
    before = project.compose("run", "--rm", "preflight", "--check", fails=True)
    project.compose("run", "--rm", "preflight")
    after = project.compose("run", "--rm", "preflight", "check", "--table")
    checks = project.compose("run", "--rm", "preflight", "verify", "--table")

    assert 3 == program.parse(before)[-1]["exit_code"]
    assert "add system api keys  applied" in after
    assert "table llm_providers exists" in checks


@pytest.mark.fault("A013")
def test_health_check_is_not_fooled_by_the_first_start(
    docker: containers.Containers, project: Project, postgres: str
) -> None:
    """On an empty volume a first server runs the scripts, on its socket only: not healthy yet."""
    config = json.loads(project.compose("config", "--format", "json"))
    check = config["services"]["unicorn-postgresql"]["healthcheck"]["test"]
    scripts = project.directory / "scripts"
    scripts.mkdir()
    (scripts / "slow.sql").write_text("SELECT pg_sleep(3600);\n")
    server = docker.start(
        env={"POSTGRES_USER": "unicorn", "POSTGRES_DB": "unicorn_db", "POSTGRES_PASSWORD": "x"},
        options=["--volume", f"{scripts}:/docker-entrypoint-initdb.d:ro"],
        image=postgres,
        network="none",
    )
    socket = "until psql -qh /tmp -U unicorn -d unicorn_db -c 'SELECT 1'; do sleep 0.1; done"
    containers.docker("exec", server.name, "sh", "-c", f"({socket}) >/dev/null 2>&1")

    code, _ = containers.docker_said("exec", server.name, "pg_isready", "-h", "/tmp")  # noqa: S108 - in the container
    real, said = containers.docker_said("exec", server.name, *check[1:])

    assert ("CMD", 0) == (check[0], code), "the first server is there"
    assert 2 == real, said


# --- in front of an app of one's own --------------------------------------------------------------


@pytest.mark.parametrize("build", [(), ("--build",)], ids=["up", "up --build"])
def test_missing_image_is_an_error_and_never_their_own_app(
    own: Project, build: tuple[str, ...]
) -> None:
    """Nothing is built in its place: `up` fails, names what is missing, and starts no app."""
    missing = f"pg-preflight-test/missing-{uuid.uuid4().hex[:8]}:pg17"
    own.images["PG_PREFLIGHT_IMAGE"] = missing

    said = own.compose("up", "--detach", *build, fails=True)

    assert f"No such image: {missing}" in said
    assert "" == containers.docker("image", "ls", "--quiet", missing)
    assert "running" not in own.states().get("app", "absent")
    assert STARTED not in own.compose("logs", "app")


def test_another_image_of_that_name_is_not_taken_for_the_job(own: Project) -> None:
    """A `build: .` of an older copy left their app under our tag: it cannot end with 0."""
    own.images["PG_PREFLIGHT_IMAGE"] = theirs = f"{own.name}-theirs"
    containers.build(own.directory, tag=theirs)

    own.compose("up", "--detach", fails=True)
    logs = own.compose("logs")

    assert STARTED not in logs
    assert "app" not in own.states() or own.states()["app"] == "created"


def test_page_puts_the_job_in_front_of_their_own_app(own: Project) -> None:
    """What is copied from docs/containers.md migrates with a proven backup, then the app starts.

    The page's line for cron makes a proven backup there.
    """
    page = (containers.REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    nightly = re.search(r"`docker compose (run [^`]* backup)`", page)
    assert nightly is not None
    own.compose("up", "--detach")

    done = own.job()
    containers.docker("wait", own.compose("ps", "--all", "--quiet", "app").strip())
    assert (0, ["001_create_cat"]) == (done[-1]["exit_code"], done[-1]["applied"])
    assert 1 == [each["event"] for each in done].count("backup.verified")
    assert STARTED in own.compose("logs", "app")
    backup = program.parse(own.compose(*nightly[1].split()))
    assert ["restored"] == [e["verified"] for e in backup if e["event"] == "rehearsal.passed"]
