"""What is in the image, and what is not."""

import io
import json
import posixpath
import re
import stat
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests import containers

HOME = "/opt/pg-preflight"
APP = f"{HOME}/app"
MOST_BYTES, MOST_COMPRESSED = 45_000_000, 18_000_000


@pytest.fixture(scope="module")
def files(docker_export: bytes) -> dict[str, tarfile.TarInfo]:
    """Give every file of a container of the image, by its path."""
    with tarfile.open(fileobj=io.BytesIO(docker_export)) as archive:
        found = {f"/{member.name.rstrip('/')}": member for member in archive}
    docker = re.compile(
        r"/(dev|proc|sys)(/|$)|/\.dockerenv|/etc/(hosts|hostname|mtab|resolv\.conf)"
    )
    return {path: member for path, member in found.items() if not docker.match(path)}


@pytest.fixture(scope="module")
def docker_export() -> bytes:
    """Give the file system of a container that was never started."""
    name = containers.docker("create", containers.IMAGE).strip()
    try:
        return subprocess.run(
            ["docker", "export", name],  # noqa: S607 - the docker of this machine
            check=True,
            capture_output=True,
            timeout=120,
        ).stdout
    finally:
        containers.docker("rm", name)


def read(export: bytes, path: str) -> str:
    """Return a file of the image as text."""
    with tarfile.open(fileobj=io.BytesIO(export)) as archive:
        found = archive.extractfile(path.lstrip("/"))
        assert found is not None, path
        return found.read().decode()


def test_image_is_small(image: dict[str, Any]) -> None:
    """At most 45 MB on disk, and 18 MB to download."""
    saved = subprocess.run(
        ["docker", "save", containers.IMAGE],  # noqa: S607 - the docker of this machine
        check=True,
        capture_output=True,
        timeout=120,
    ).stdout
    compressed = len(zlib.compress(saved, 9))

    assert image["Size"] <= MOST_BYTES
    assert compressed <= MOST_COMPRESSED


def test_user_is_a_number_that_is_not_root(image: dict[str, Any]) -> None:
    """Kubernetes rejects a name under runAsNonRoot: it cannot tell whether that is root."""
    assert "65532:0" == image["Config"]["User"]


@pytest.mark.fault("F132")
def test_program_is_the_first_process_and_gets_the_signals(image: dict[str, Any]) -> None:
    """No shell in between, so PID 1 is the job; isolated from what the app tells its Python."""
    config = image["Config"]

    assert ["python3", "-I", "/app/entrypoint.py"] == config["Entrypoint"]
    assert "SIGTERM" == config["StopSignal"]
    assert not config.get("Volumes"), "an anonymous volume is a place where nobody finds a backup"


def test_image_says_what_it_is(image: dict[str, Any]) -> None:
    """The OCI's labels, for registries and scanners."""
    labels = image["Config"]["Labels"]
    wanted = ("title", "description", "licenses", "version", "base.name")

    assert [] == [name for name in wanted if not labels.get(f"org.opencontainers.image.{name}")]


def test_no_shell_and_no_package_manager(files: dict[str, tarfile.TarInfo]) -> None:
    """Who gets in finds nothing to work with: three programs and their launcher, no shell."""
    programs = {
        path
        for path, file in files.items()
        if file.isfile() and file.mode & 0o111 and ".so" not in path
    }

    carried = {f"{HOME}/libexec/{name}" for name in ("python3", "pg_dump", "pg_restore")}
    assert carried | {f"{HOME}/bin/pg-preflight"} == {
        re.sub(r"(?<=python3)\.\d+$", "", path) for path in programs
    }


def test_nothing_is_writable_but_tmp_and_backups(files: dict[str, tarfile.TarInfo]) -> None:
    """Also without --read-only, and nothing runs with rights of another user."""
    writable = {
        path: stat.filemode(file.mode)
        for path, file in files.items()
        if not file.issym() and (file.mode & 0o022 or file.uid != 0 or file.mode & 0o6000)
    }

    assert {"/tmp": "?rwxrwxrwt", "/backups": "?rwxrwx---"} == writable  # noqa: S108 - in the image


def test_sources_of_the_job_are_there_with_their_byte_code(
    files: dict[str, tarfile.TarInfo],
) -> None:
    """A traceback shows its lines, and a read-only root costs no compilation at each start."""
    sources = [Path(path) for path in files if re.fullmatch(rf"{APP}/preflight/[\w/]+\.py", path)]
    compiled = [path for path in files if re.fullmatch(rf"{APP}/preflight/.*\.pyc", path)]

    assert len(list((containers.REPOSITORY / "preflight").rglob("*.py"))) == len(sources)
    assert len(sources) == len(compiled)
    assert f"{APP}/entrypoint.py" in files
    assert f"../{APP[1:]}/entrypoint.py" == files["/app/entrypoint.py"].linkname


def test_everything_of_ours_lies_below_one_directory(files: dict[str, tarfile.TarInfo]) -> None:
    """So it can be copied: no file elsewhere but what names the system, no link out of it."""
    outside = {path for path, file in files.items() if file.isfile() and not path.startswith(HOME)}
    links = {
        path: file.linkname
        for path, file in files.items()
        if path.startswith(HOME)
        and file.issym()
        and not posixpath.normpath(posixpath.join(path, "..", file.linkname)).startswith(HOME)
    }

    assert {"/etc", "/var", ""} >= {path.rpartition("/")[0][:4] for path in outside}
    assert {f"{APP}/migrations": "/app/migrations"} == links


def test_every_library_belongs_to_a_package_that_is_listed(
    files: dict[str, tarfile.TarInfo], docker_export: bytes
) -> None:
    """A scanner that reads dpkg's files sees what is there, with the version it has."""
    listed = [path for path in files if path.startswith("/var/lib/dpkg/status.d/")]
    sums = "".join(read(docker_export, path) for path in listed if path.endswith(".md5sums"))
    owned = {line.split(maxsplit=1)[1] for line in sums.splitlines()}
    libraries = {
        re.sub(rf"^{HOME}/(libexec)?", lambda at: f"usr/{'bin' if at[1] else ''}", path)
        for path, file in files.items()
        if re.match(rf"{HOME}/(libexec|lib/[^/]+-linux-gnu)/", path) and file.isfile()
    }

    moved = {"usr/bin/pg_dump", "usr/bin/pg_restore"}  # from /usr/lib/postgresql
    assert [] == sorted(libraries - owned - moved)
    for name in ("libpq5", "libssl3t64", "libc6", "tzdata", "ca-certificates", "base-files"):
        status = read(docker_export, f"/var/lib/dpkg/status.d/{name}")
        assert re.search(r"^Version: \S+$", status, re.MULTILINE)
        assert f"{HOME}/share/doc/{name}/copyright" in files
    assert "/etc/os-release" in files


def test_bill_of_materials_names_every_part(
    files: dict[str, tarfile.TarInfo], docker_export: bytes
) -> None:
    """One SPDX document: us, each Debian package and each library of Python, with its purl."""
    document = json.loads(read(docker_export, f"{HOME}/share/sbom/pg-preflight.spdx.json"))
    packages = {
        each["name"]: each["externalRefs"][0]["referenceLocator"] for each in document["packages"]
    }
    debian = {
        path.rpartition("/")[2]
        for path in files
        if path.startswith("/var/lib/dpkg/status.d/") and not path.endswith(".md5sums")
    }
    python = {"postgast", "protobuf", "psycopg", "psycopg-c", "structlog", "tenacity"}
    contained = [
        each for each in document["relationships"] if each["relationshipType"] == "CONTAINS"
    ]

    assert "SPDX-2.3" == document["spdxVersion"]
    assert {"pg-preflight"} | debian | python == set(packages)
    assert len(packages) - 1 == len(contained)
    assert re.match(r"pkg:deb/debian/libpq5@\d", packages["libpq5"])
    assert re.match(r"pkg:pypi/psycopg@\d", packages["psycopg"])


def test_dockerfile_has_no_lint() -> None:
    """Hadolint finds nothing, in ours, in the one that users copy and in those of the tests."""
    hadolint = Path(sys.executable).with_name("hadolint")
    dockerfiles = [
        containers.REPOSITORY / "Dockerfile",
        *(containers.REPOSITORY / "examples").rglob("Dockerfile"),
        *(containers.REPOSITORY / "tests").rglob("Dockerfile"),
    ]
    done = subprocess.run([hadolint, *dockerfiles], check=False, capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stdout)
