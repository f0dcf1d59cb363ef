"""`install`: a whole copy or none, again and again, and nobody else's files touched."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from preflight.base.config import Config
from preflight.base.errors import ConfigInvalid
from preflight.commands import install
from tests import program, servers

CONFIG = Config({}, {}, Path("/"))


def made(place: Path, build: str) -> Path:
    """Make a small program as the image has it; its launcher says which build it is."""
    (place / "bin").mkdir(parents=True)
    (place / "bin/pg-preflight").write_text(f"#!/bin/sh\necho {build}\n")
    (place / "bin/pg-preflight").chmod(0o755)
    (place / "bin/pg_dump").symlink_to("pg-preflight")
    (place / "build-id").write_text(f"{build}\n")
    return place


def said(directory: Path) -> str:
    """Return what the installed program says."""
    command = [directory / "bin/pg-preflight"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run(directory: Path, home: Path | None = None) -> bool:
    """Install; tell whether anything was copied."""
    with capture_logs() as events:
        install.run(CONFIG, directory=directory, home=home)
    (event,) = events
    assert "install.finished" == event["event"]
    return bool(event["copied"])


def test_installed_program_runs_and_is_copied_once(tmp_path: Path) -> None:
    """Into a directory that is not there yet; the second time there is nothing to do."""
    home, shared = made(tmp_path / "home", "one"), tmp_path / "a/shared"

    assert [True, False] == [run(shared, home), run(shared, home)]
    assert "one" == said(shared)
    assert (shared / "bin/pg_dump").is_symlink()


def test_another_version_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """`bin` is turned at once; the one before it stays for who is at work with it, no older one."""
    shared = tmp_path / "shared"
    homes = {name: made(tmp_path / name, name) for name in ("one", "two", "three")}
    there = []
    for name in ("one", "two", "two", "three"):
        run(shared, homes[name])
        assert name == said(shared)
        there.append(sorted(path.name.rpartition("-")[2] for path in shared.iterdir()))

    both = ["bin", "one", "two"]
    assert [["bin", "one"], both, both, ["bin", "three", "two"]] == [sorted(x) for x in there]


def test_version_that_cannot_be_removed_is_said_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another user's, say: the new one is installed, and a warning names what is left."""
    shared = tmp_path / "shared"
    for name in ("one", "two"):
        run(shared, made(tmp_path / name, name))
    refuse_to_remove(shared / ".pg-preflight-one", monkeypatch)

    with capture_logs() as events:
        install.run(CONFIG, directory=shared, home=made(tmp_path / "three", "three"))

    assert ["config.warned", "install.finished"] == [each["event"] for each in events]
    assert ".pg-preflight-one" in events[0]["warning"]
    assert "three" == said(shared)


def refuse_to_remove(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a directory be as one of another user's."""
    removed = shutil.rmtree

    def refused(which: Path, **options: Any) -> None:  # noqa: ANN401 -- as shutil has it
        if which == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(which))
        removed(which, **options)

    monkeypatch.setattr(shutil, "rmtree", refused)


def test_what_a_killed_run_left_is_no_program(tmp_path: Path) -> None:
    """A copy has its name only when it is whole."""
    home, shared = made(tmp_path / "home", "one"), tmp_path / "shared"
    (shared / ".pg-preflight-one.part/bin").mkdir(parents=True)
    (shared / ".pg-preflight-one.part/bin/pg-preflight").write_text("half")
    (shared / ".pg-preflight-bin.part").symlink_to("nowhere")

    assert run(shared, home)
    assert "one" == said(shared)
    assert [".pg-preflight-one", "bin"] == sorted(path.name for path in shared.iterdir())


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_somebody_elses_bin_is_left_alone(kind: str, tmp_path: Path) -> None:
    """DIR is /usr/local by mistake: 20, and nothing changed."""
    home, shared = made(tmp_path / "home", "one"), tmp_path / "shared"
    shared.mkdir()
    if kind == "directory":
        (shared / "bin").mkdir()
    elif kind == "file":
        (shared / "bin").touch()
    else:
        (shared / "bin").symlink_to("usr/bin")

    with pytest.raises(ConfigInvalid, match="another `bin`") as caught:
        run(shared, home)
    assert "install.failed" == caught.value.code
    assert ["bin"] == [path.name for path in shared.iterdir()]


def test_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """The sentence has the reason and the path; no copy is begun."""
    home = made(tmp_path / "home", "one")
    (tmp_path / "file").touch()

    with pytest.raises(ConfigInvalid, match="Not a directory") as caught:
        run(tmp_path / "file/shared", home)
    assert "install.failed" == caught.value.code


def test_only_the_image_can_be_installed() -> None:
    """A checkout has no libraries that it could bring: 20 with the way to do it."""
    with pytest.raises(ConfigInvalid, match="not the image") as caught:
        run(Path("/nowhere"))
    assert "install.not_here" == caught.value.code


@pytest.mark.parametrize(
    ("image", "dotted"), [(False, "install.not_here"), (True, "install.failed")]
)
def test_program_that_cannot_install_itself_says_so(
    tmp_path: Path, *, image: bool, dotted: str
) -> None:
    """The process ends with 20, from a checkout and from what looks like the image."""
    app = tmp_path / "home/app"
    shutil.copytree(servers.REPOSITORY / "preflight", app / "preflight")
    shutil.copy(program.ENTRYPOINT, app)
    if image:
        (app.parent / "build-id").write_text("one\n")
    (tmp_path / "file").touch()
    ended = subprocess.run(
        [sys.executable, app / "entrypoint.py", "install", tmp_path / "file/shared"],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )

    finished = program.parse(ended.stdout)[-1]
    assert (20, dotted) == (ended.returncode, finished["error"]["code"]), ended.stderr
