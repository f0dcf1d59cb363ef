"""/opt/pg-preflight in other images: an empty one, one with musl, this machine itself."""

import json
import os
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import containers, program, servers
from tests.conftest import WriteMigrations

HOME = "/opt/pg-preflight"
CAT = {"001_create_cat.sql": "CREATE TABLE public.cat (id int);"}
# what an app's image may set for the app, and what must not reach a program with other libraries
UNKIND = {
    "LD_LIBRARY_PATH": "/lib:/usr/lib",
    "LD_PRELOAD": "/lib/libpreloaded.so",
    "OPENSSL_CONF": "/nowhere",
    "PYTHONPATH": "/nowhere",
    "PYTHONHOME": "/nowhere",
}
ROOTS = {
    "empty": "FROM scratch\n",
    "musl": f"""
        FROM {containers.BASE} AS musl
        RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev musl-tools
        RUN mkdir -p /root/lib && cp -L /lib/ld-musl-* /root/lib/ \\
         && echo 'int main(void) {{ return 0; }}' > true.c && musl-gcc -o /root/true true.c
        FROM scratch
        COPY --from=musl /root/ /
        RUN ["/true"]
    """,
}


@pytest.fixture(scope="module", params=ROOTS)
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give an image of somebody else's that our directory was copied into."""
    context = tmp_path_factory.mktemp(request.param)
    copied = f"COPY --from={containers.IMAGE} {HOME} {HOME}\n"
    (context / "Dockerfile").write_text(ROOTS[request.param] + copied)
    return containers.build(context, tag=f"pg-preflight-test/elsewhere-{request.param}")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give our directory in a place of this machine, which has another C library."""
    place = tmp_path_factory.mktemp("moved")
    name = containers.docker("create", containers.IMAGE).strip()
    try:
        containers.docker("cp", f"{name}:{HOME}", place / "program")
    finally:
        containers.docker("rm", name)
    for path in (place, place.parent, place.parent.parent):
        path.chmod(0o755)  # for another user
    return place / "program"


@pytest.mark.parametrize("user", ["0:0", "1234:1234"])
def test_up_runs_in_an_image_without_our_libraries(
    elsewhere: str,
    user: str,
    docker: containers.Containers,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """Backup, proof, migration, and then nothing to do; no shell, no /tmp, a read-only root."""
    migrations(CAT)
    backups = docker.volume(commands="chmod 1777 .")
    options = [
        *(*containers.STRICT, "--user", user, "--entrypoint", f"{HOME}/bin/pg-preflight"),
        *("--volume", f"{backups}:/backups"),
        *("--volume", f"{migrations.directory}:/app/migrations:ro"),
    ]
    env = {**database.env(), **UNKIND}

    first = docker.run(env=env, options=options, image=elsewhere)
    second = docker.run("up", env=env, options=options, image=elsewhere)
    backup = docker.run("backup", env=env, options=options, image=elsewhere)

    assert (0, 0, 0) == (first.code, second.code, backup.code), f"{first}{second}{backup}"
    assert ["001_create_cat"] == first.finished["applied"]
    assert 1 == len(first.event("rehearsal.passed"))
    assert "ok" == second.finished["outcome"]
    assert 1 == len(backup.event("backup.verified"))


@pytest.mark.parametrize("user", [None, 1234])
def test_directory_runs_wherever_it_is_copied_to(
    moved: Path,
    user: int | None,
    database: servers.Database,
    migrations: WriteMigrations,
    tmp_path: Path,
) -> None:
    """Another release of Debian, another place, another user: nothing is looked for in /opt."""
    migrations(CAT)
    backups = tmp_path / "backups"
    backups.mkdir()
    if user is not None:
        os.chown(backups, user, user)
    for path in (*tmp_path.parents, tmp_path, migrations.directory):
        if path.stat().st_uid == os.getuid():
            path.chmod(path.stat().st_mode | 0o055)
    env = {
        **database.env(),
        **UNKIND,
        "PREFLIGHT_MIGRATIONS_DIR": str(migrations.directory),
        "PREFLIGHT_BACKUP_DIR": str(backups),
    }

    done = subprocess.run(
        [moved / "bin/pg-preflight", "up"],
        env=env,
        user=user,
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
        timeout=containers.TIMEOUT_S,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert ["001_create_cat"] == program.parse(done.stdout)[-1]["applied"]


def test_neither_sees_the_others_paths(moved: Path) -> None:
    """What the app's image set is kept for its command; our programs start with ours."""
    script = "import json, os, sys; print(json.dumps([sys.executable, sys.prefix, {**os.environ}]))"
    done = subprocess.run(
        [moved / "bin/python3", "-I", "-c", script],
        env={**UNKIND, "PATH": "/app/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    executable, prefix, seen = json.loads(done.stdout)

    assert "" == done.stderr
    assert (f"{moved}/bin/python3", str(moved)) == (executable, prefix)
    assert not {"LD_LIBRARY_PATH", "LD_PRELOAD", "OPENSSL_CONF"} & seen.keys()
    assert f"{moved}/bin:/app/bin" == seen["PATH"]
    kept = {name: value for name, value in seen.items() if name.startswith("_PG_PREFLIGHT_")}
    assert "=/app/bin" == kept["_PG_PREFLIGHT_PATH"]
    assert "=/lib/libpreloaded.so" == kept["_PG_PREFLIGHT_LD_PRELOAD"]
    assert "" == kept["_PG_PREFLIGHT_PYTHONTZPATH"]


@pytest.mark.parametrize("name", ["pg_dump", "pg_restore", "python3"])
def test_each_program_is_started_by_its_name(moved: Path, name: str) -> None:
    """By PATH, by a link from elsewhere, and by a child of a program that was started so."""
    script = f"import subprocess; subprocess.run(['{name}', '--version'], check=True)"
    commands: list[list[str | Path]] = [
        [moved / "bin" / name, "--version"],
        [moved / "bin/python3", "-I", "-c", script],
    ]
    for command in commands:
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=UNKIND)
        assert ("Python 3" if name == "python3" else name) in said.stdout
        assert "" == said.stderr


def test_incomplete_copy_says_so(moved: Path, tmp_path: Path) -> None:
    """A launcher alone is no program: 20, with the file that is not there."""
    (tmp_path / "bin").mkdir()
    alone = tmp_path / "bin/pg-preflight"
    alone.write_bytes((moved / "bin/pg-preflight").read_bytes())
    alone.chmod(0o755)

    done = subprocess.run([alone], check=False, capture_output=True, text=True)

    assert 20 == done.returncode
    assert f"{tmp_path}/lib/" in done.stderr
    assert "No such file" in done.stderr


def test_install_brings_it_into_a_volume_that_another_image_runs_from(
    docker: containers.Containers,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """As compose and Kubernetes do it; a second time there is nothing to do."""
    migrations(CAT)
    shared = docker.volume(commands="chmod 1777 .")
    there = ["--volume", f"{shared}:/shared", *containers.STRICT]
    installed = [docker.run("install", "/shared", options=there) for _ in range(2)]
    options = [
        *(*containers.STRICT, "--volume", f"{shared}:{HOME}:ro", "--user", "1234:0"),
        *("--volume", f"{migrations.directory}:/app/migrations:ro"),
        *("--entrypoint", f"{HOME}/bin/pg-preflight"),
    ]

    done = docker.run("check", env=database.env(), options=options, image=containers.BASE)

    assert [0, 0] == [each.code for each in installed], str(installed)
    assert [True, False] == [each.event("install.finished")[0]["copied"] for each in installed]
    assert 3 == done.code, str(done)


# the app's own command: a script here, run by a Python that is there; it looks at what it is given
MIGRATE = """
import os, sys
import psycopg
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS schema_migrations (version text PRIMARY KEY)")
    with connection.transaction():
        connection.execute("CREATE TABLE IF NOT EXISTS dog (id int)")
        connection.execute("INSERT INTO schema_migrations VALUES ('1') ON CONFLICT DO NOTHING")
"""


def test_wrapped_command_runs_in_its_own_image(
    elsewhere: str, docker: containers.Containers, database: servers.Database, tmp_path: Path
) -> None:
    """Tried on the copy, run once, with the environment of its image and nothing of ours."""
    (tmp_path / "migrate.py").write_text(MIGRATE)
    tmp_path.chmod(0o755)
    backups = docker.volume(commands="chmod 1777 .")
    database.script("CREATE TABLE schema_migrations (version text PRIMARY KEY)")
    env = database.env()
    password = quote(env["PGPASSWORD"], safe="")
    address = f"{env['PGUSER']}:{password}@{env['PGHOST']}:{env['PGPORT']}/{database.name}"
    options = [
        *(*containers.STRICT, "--user", "1234:1234", "--entrypoint", f"{HOME}/bin/pg-preflight"),
        *("--volume", f"{backups}:/backups", "--volume", f"{tmp_path}:/app:ro"),
    ]
    command = [f"{HOME}/bin/python3", "/app/migrate.py"]
    given = {"DATABASE_URL": f"postgresql://{address}", "LD_LIBRARY_PATH": "/app/lib"}

    first, second = (
        docker.run(
            *("wrap", "--watch", "/app", "--", *command),
            env={**given, "PATH": "/app/bin"},
            options=options,
            image=elsewhere,
        )
        for _ in range(2)
    )

    assert (0, 0) == (first.code, second.code), f"{first}{second}"
    assert first.event("wrap.matched"), first
    assert [] == second.event("wrap.said")
    assert [1] == database.query("SELECT count(*)::int FROM schema_migrations")


def test_old_paths_in_the_image_still_work(docker: containers.Containers) -> None:
    """/app/entrypoint.py and its older name, with the Python on PATH."""
    for path in ("/app/entrypoint.py", "/app/run_migration.py"):
        done = docker.run("-I", path, "version", options=["--entrypoint", "python3"])
        assert 0 == done.code, str(done)
    found = docker.run(
        "-I", "-c", "import sys; print(sys.executable)", options=["--entrypoint", "python3"]
    )
    assert "/usr/bin/python3" == found.stdout.strip()
