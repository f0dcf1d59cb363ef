"""compose.yaml and what our pages say to copy: nothing builds another image in the job's place."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from preflight.commands import arguments
from tests import servers

ROOT = servers.REPOSITORY
PAGE = ROOT / "docs" / "containers.md"
Document = dict[str, Any]


def blocks(path: Path) -> Iterator[str]:
    """Yield what is YAML in a file: a document's blocks, or all of it."""
    text = path.read_text("utf-8")
    yield from (
        re.findall(r"```ya?ml\n(.*?)```", text, re.DOTALL) if path.suffix == ".md" else [text]
    )


def projects() -> Iterator[tuple[str, Document]]:
    """Yield every compose project of the repository, with the name of its file."""
    files = [path for suffix in ("md", "yaml", "yml") for path in ROOT.rglob(f"*.{suffix}")]
    for path in sorted(files):
        inside = path.relative_to(ROOT)
        if not inside.parts[0].startswith(".") and "/node/" not in str(inside):
            found = [each for block in blocks(path) for each in yaml.safe_load_all(block)]
            yield from (
                (str(inside), each)
                for each in found
                if isinstance(each, dict) and isinstance(each.get("services"), dict)
            )


# a wrapped command runs in the app's own image: docs/wrap.md
PROJECTS = [each for each in projects() if "preflight" in each[1]["services"]]


def job(project: Document) -> Document:
    """Return the service that is our image: the job, or what brings it into the app's."""
    services: dict[str, Document] = project["services"]
    return services["install" if "install" in services else "preflight"]


def test_projects_are_found() -> None:
    """The one of the quick start, and the one to copy."""
    names = {name for name, _ in PROJECTS}

    assert {"compose.yaml", "docs/containers.md", "examples/wrap/compose.yaml"} <= names


def test_wrapped_command_runs_in_the_apps_image() -> None:
    """The program comes by the volume, whole before it is used, and nothing else can end with 0."""
    services = dict(PROJECTS)["examples/wrap/compose.yaml"]["services"]
    gate, install = services["preflight"], services["install"]

    assert services["app"]["image"] == gate["image"]
    assert "build" not in gate
    assert ["/opt/pg-preflight/bin/pg-preflight"] == gate["entrypoint"]
    assert ["install", "/shared"] == install["command"]
    assert "program:/shared" in install["volumes"]
    assert "program:/opt/pg-preflight:ro" in gate["volumes"]
    condition = gate["depends_on"]["install"]["condition"]
    assert "service_completed_successfully" == condition


@pytest.mark.parametrize(("name", "project"), PROJECTS, ids=[name for name, _ in PROJECTS])
def test_no_other_image_can_be_the_job(name: str, project: Document) -> None:
    """No `build`, by no other way either; the program is named, so no other one ends with 0."""
    service = job(project)

    assert not {"build", "extends", "profiles"} & service.keys(), name
    assert "never" == service["pull_policy"]
    assert ["python3", "-I", "/app/entrypoint.py"] == service["entrypoint"]
    assert not {"include", *(key for key in project if key.startswith("x-"))} & project.keys()
    assert (
        "service_completed_successfully"
        == (project["services"]["app"]["depends_on"]["preflight"]["condition"])
    )


def test_no_file_is_merged_by_itself() -> None:
    """Compose merges an override file that lies beside, also for those who copy the directory."""
    found = [
        path.name
        for pattern in ("*compose.override.y*ml", "docker-compose.y*ml", ".env")
        for path in ROOT.rglob(pattern)
        if not path.relative_to(ROOT).parts[0].startswith((".venv", ".cache"))
    ]

    assert [] == found


def test_page_shows_the_service_of_the_quick_start() -> None:
    """What is copied is what is tested: the same service, but for the names of the database."""
    (copied,) = (project for name, project in PROJECTS if name == "docs/containers.md")
    ours = next(project for name, project in PROJECTS if name == "compose.yaml")
    theirs, service = dict(job(copied)), dict(job(ours))
    for each in (theirs, service):
        names = each.pop("environment")
        assert {"POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE"} == {
            *names
        }
        del each["depends_on"]

    assert service == theirs


def test_old_commands_have_a_spelling_for_containers() -> None:
    """What was typed in the app's container has a line to type now that is the same command."""
    page = (ROOT / "docs" / "old-commands.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| .*/app/", line)]
    now = [re.findall(r"`entrypoint\.py ?([^`]*)`", row[1]) for row in rows]
    container = [
        re.findall(r"in a container `docker compose run --rm preflight ?([^`]*)`", row[2])
        for row in rows
    ]

    assert 9 == len(rows)
    assert now == container
    assert all(len(each) == 1 for each in now)


def test_pages_run_services_that_every_project_has() -> None:
    """What is to be typed works in the quick start and in a project that copied ours."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    said = [
        (verb, re.sub(r"--rm |-e \S+ ", "", rest).split("#")[0].split())
        for page in pages
        for verb, rest in re.findall(
            r"docker compose (run|exec) ([^`\n]*)", page.read_text("utf-8")
        )
    ]

    assert said
    for verb, (service, *command) in said:
        assert "run" == verb, "a job is no running container"
        assert all(service in project["services"] for _, project in PROJECTS)
        arguments.parse(command)


def test_nightly_backup_is_the_same_job() -> None:
    """Asked for by its profile alone, it differs in its command and in what it demands."""
    project = dict(PROJECTS)["compose.yaml"]
    migrate, backup = job(project), project["services"]["backup"]
    differing = {key for key in backup if backup[key] != migrate.get(key)}

    assert {"profiles", "command", "environment"} == differing
    assert (["backup"], ["backup"]) == (backup["profiles"], backup["command"])
    assert {"PREFLIGHT_REHEARSE": "always"} == dict(
        backup["environment"].items() - migrate["environment"].items()
    )
