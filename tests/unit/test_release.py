"""`make release` in a clone, and what it makes, installed with pip into a venv of its own."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests import servers

ROOT = servers.REPOSITORY
VERSION = "9.8.7"
pytestmark = pytest.mark.xdist_group("release")  # one release is enough for all


def said(
    directory: Path, *command: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command there; return what it left behind."""
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "CLIENTS": "", **(env or {})},
        check=False,
        capture_output=True,
        text=True,
    )


def git(directory: Path, *arguments: str) -> str:
    """Run git there, which must succeed; return what it said."""
    name = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    done = said(directory, "git", *name, *arguments)
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a clone of this repository with something to release."""
    place = tmp_path_factory.mktemp("release") / "clone"
    git(ROOT, "clone", "--quiet", str(ROOT), str(place))
    git(place, "switch", "--quiet", "--force-create", "main")
    for key, value in (("user.name", "Somebody"), ("user.email", "somebody@example.com")):
        git(place, "config", key, value)
    changes = place / "CHANGELOG.md"
    head = changes.read_text("utf-8").partition("## [")[0]
    changes.write_text(f"{head}## [Unreleased]\n\n### Fixed\n\n- A cat.\n", "utf-8")
    git(place, "commit", "--quiet", "--all", "--message", "Something to release")
    return place


@pytest.fixture(scope="module")
def released(clone: Path) -> Path:
    """Give the directory that a release has made."""
    done = said(clone, clone / ".ci/release", VERSION)
    assert 0 == done.returncode, done.stderr
    return clone / "dist" / VERSION


def test_release_refuses_what_is_not_ready(clone: Path) -> None:
    """No version, a changed file, nothing in the changelog: said, and nothing is changed."""
    before = git(clone, "rev-parse", "HEAD")
    readme, changes = clone / "README.md", clone / "CHANGELOG.md"

    versionless = said(clone, clone / ".ci/release", "v1")
    readme.write_text("changed")
    dirty = said(clone, clone / ".ci/release", VERSION)
    git(clone, "checkout", "--quiet", "README.md")
    changes.write_text(changes.read_text("utf-8").replace("- A cat.\n", ""), "utf-8")
    git(clone, "commit", "--quiet", "--all", "--message", "Nothing to release")
    empty = said(clone, clone / ".ci/release", VERSION)
    git(clone, "reset", "--quiet", "--hard", before)

    assert [1, 1, 1] == [each.returncode for each in (versionless, dirty, empty)]
    assert "VERSION=0.2.0" in versionless.stderr
    assert "git status" in dirty.stderr
    assert "nothing under [Unreleased]" in empty.stderr
    assert "" == git(clone, "tag", "--list", f"v{VERSION}")


def test_release_is_tagged_and_says_what_it_is(clone: Path, released: Path) -> None:
    """The tag's tree has the version and the dated changes, and the tag every checksum."""
    tag = git(clone, "show", "--no-patch", f"v{VERSION}")
    changes = git(clone, "show", f"v{VERSION}:CHANGELOG.md")
    lines = (line.split() for line in (released / "SHA256SUMS").read_text().splitlines())
    sums = {name: digest for digest, name in lines}

    assert f'__version__ = "{VERSION}"' in git(clone, "show", f"v{VERSION}:preflight/__init__.py")
    assert re.search(rf"## \[Unreleased\]\n\n## \[{VERSION}\] - \d{{4}}-\d\d-\d\d\n", changes)
    assert "" == git(clone, "status", "--porcelain")
    assert sums.keys() == {path.name for path in released.iterdir()} - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert digest == hashlib.sha256((released / name).read_bytes()).hexdigest()
        assert digest in tag
    assert 1 == said(clone, clone / ".ci/release", VERSION).returncode, "only once"


def test_release_has_the_sources_and_the_bill_of_materials(released: Path) -> None:
    """The archive is the tag's tree; the bill names each package of the lock with its version."""
    with tarfile.open(released / f"pg-preflight-{VERSION}.tar.gz") as archive:
        names = set(archive.getnames())
    bill = json.loads((released / f"pg-preflight-{VERSION}.spdx.json").read_text())
    found = {each["name"]: each["versionInfo"] for each in bill["packages"]}
    lock = (ROOT / "requirements.lock").read_text()

    assert {
        f"pg-preflight-{VERSION}/{name}" for name in ("Makefile", "preflight/files/scan.py")
    } <= names
    assert {
        "pg-preflight": VERSION,
        **dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE)),
    } == (found)


def test_installed_program_reads_the_files_where_it_is_started(
    released: Path, tmp_path: Path
) -> None:
    """`pg-preflight lint` of the wheel, every package found, with ./migrations."""
    (wheel,) = released.glob("*.whl")
    venv = tmp_path / "venv"
    assert 0 == said(tmp_path, sys.executable, "-m", "venv", venv).returncode
    pip = (venv / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    installed = said(tmp_path, *pip, wheel)
    (site,) = venv.glob("lib/python*/site-packages")
    locked = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "locked.pth").write_text(f"{locked}\n")  # what the lock has put there
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "001_create_cat.sql").write_text("CREATE TABLE cat (name text);\n")

    link = tmp_path / "pg-preflight"  # as pipx does
    link.symlink_to(venv / "bin/pg-preflight")
    app = {"PYTHONUTF8": "x", "PYTHONIOENCODING": "x", "PYTHONHOME": "/nowhere"}  # not for us

    done = said(tmp_path, link, "lint", "--json", env=app)

    assert 0 == installed.returncode, installed.stderr
    assert 0 == done.returncode, done.stderr
    assert f'"version": "{VERSION}"' in done.stderr
    assert "001_create_cat" in done.stdout
    assert {path.relative_to(ROOT) for path in (ROOT / "preflight").rglob("*.py")} == {
        path.relative_to(site) for path in (site / "preflight").rglob("*.py")
    }


def test_workflow_runs_ci_and_builds_every_image() -> None:
    """`.ci/run`, both clients, both processors; with the right to read and no other."""
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step.get("run", "") for job in flow["jobs"].values() for step in job["steps"]]
    matrix = flow["jobs"]["image"]["strategy"]["matrix"]

    assert ".ci/run" in steps
    assert {"contents": "read"} == flow["permissions"]
    assert (["17", "18"], ["ubuntu-24.04", "ubuntu-24.04-arm"]) == (
        matrix["client"],
        matrix["runner"],
    )
    assert not [step for step in steps if "push" in step or "login" in step]
