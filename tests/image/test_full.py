"""The image with a server in it: small enough, and the server starts as any user."""

import json
import subprocess
import zlib
from pathlib import Path

import pytest

from tests import containers, servers

MOST_BYTES, MOST_COMPRESSED = 140_000_000, 50_000_000
START = """
import json, os
from pathlib import Path
from preflight.rehearsal import cluster, local
from preflight.base.config import Config
programs = local.find(CLIENT, "/usr/bin/pg_dump", os.environ["PATH"])
config = Config({}, {}, Path("/"), run_id="run")
with local.started(programs, local.place(), "run", need=0) as server:
    with cluster.connected(config, server) as session:
        names = ("pgcrypto", "pg_trgm", "uuid-ossp", "hstore")
        for name in names:
            session.execute(f'CREATE EXTENSION "{name}" SCHEMA public')
        session.execute("CREATE DATABASE german TEMPLATE template0 LOCALE_PROVIDER icu"
                        " ICU_LOCALE 'de-DE' LOCALE 'en_US.utf8'")
        version = session.facts.major
    owner = Path(f"/proc/{server.process.pid}").stat().st_uid
print(json.dumps({"major": version, "uid": owner, "left": os.listdir("/scratch")}))
"""


@pytest.mark.parametrize("user", ["65532:0", "1000720000:0", "1234:1234"])
def test_server_starts_as_any_user_with_a_read_only_root(
    docker: containers.Containers, user: str
) -> None:
    """No name in passwd, no home, no shell, 64 MB of /dev/shm: a tmpfs at /scratch is all."""
    done = docker.run(
        "-c",
        START.replace("CLIENT", str(containers.CLIENT)),
        options=[
            *containers.STRICT,
            *("--user", user, "--entrypoint", "python3", "--tmpfs", "/scratch"),
        ],
        image=containers.FULL_IMAGE,
    )

    assert 0 == done.code, done
    said = json.loads(done.stdout.splitlines()[-1])
    assert {"major": containers.CLIENT, "uid": int(user.partition(":")[0]), "left": []} == said


@pytest.mark.parametrize("zones", [True, False])
def test_server_starts_in_another_image_that_has_time_zones(
    docker: containers.Containers, tmp_path: Path, *, zones: bool
) -> None:
    """Its own loader, libraries, locales and cluster; Debian's server knows zones by one path."""
    home = "/opt/pg-preflight"
    lines = [f"COPY --from={containers.FULL_IMAGE} {home} {home}"]
    if zones:
        lines.append(
            f"COPY --from={containers.FULL_IMAGE} {home}/share/zoneinfo /usr/share/zoneinfo"
        )
    (tmp_path / "Dockerfile").write_text("\n".join(["FROM scratch", *lines, ""]))
    kind = "zones" if zones else "empty"
    image = containers.build(tmp_path, tag=f"pg-preflight-test/elsewhere-full-{kind}")
    script = START.replace("CLIENT", str(containers.CLIENT)).replace("/usr/bin", f"{home}/bin")

    done = docker.run(
        *("-I", "-c", script),
        options=[
            *(*containers.STRICT, "--user", "1234:1234", "--tmpfs", "/scratch"),
            *("--entrypoint", f"{home}/bin/python3"),
        ],
        image=image,
    )

    if zones:
        assert 0 == done.code, done
        assert containers.CLIENT == json.loads(done.stdout.splitlines()[-1])["major"]
    else:
        assert 1 == done.code
        assert "NotHere: the server that was brought along reads /usr/share/zoneinfo" in done.stderr


def test_wrapped_command_is_rehearsed_on_a_server_of_the_image(
    docker: containers.Containers, database: servers.Database
) -> None:
    """Its cluster has no database `postgres`, which many tools look at first: there it is made."""
    look = (
        "import psycopg; psycopg.connect(dbname='postgres').close();"
        "psycopg.connect(autocommit=True).execute('CREATE TABLE IF NOT EXISTS one (id int)')"
    )
    backups = docker.volume()
    options = [
        *("--read-only", "--cap-drop", "ALL", "--user", "1234:0", "--tmpfs", "/scratch"),
        *("--volume", f"{backups}:/backups", "--env", "PREFLIGHT_REHEARSE=always"),
        *("--env", "PREFLIGHT_REHEARSE_ON=local"),
    ]
    ours = ("wrap", "--always", "--trust-environment", "--")

    done = docker.run(
        *(*ours, "python3", "-c", look),
        env=database.env(),
        options=options,
        image=containers.FULL_IMAGE,
    )

    assert 0 == done.code, done
    assert ["local"] == [each["where"] for each in done.event("wrap.rehearsed")]
    assert ["one"] == database.query("SELECT relname FROM pg_class WHERE relname = 'one'")


def test_server_without_a_mount_is_refused(docker: containers.Containers) -> None:
    """A copy of the database does not belong into the container's own layer."""
    done = docker.run(
        "-c",
        START.replace("CLIENT", str(containers.CLIENT)),
        options=["--entrypoint", "python3"],
        image=containers.FULL_IMAGE,
    )

    assert 1 == done.code
    assert "is in this container's own layer: mount a volume" in done.stderr


def test_images_say_whether_they_have_a_server() -> None:
    """A label, for those who choose a tag."""
    found = [
        containers.inspect(image)["Config"]["Labels"]["io.pg-preflight.server"]
        for image in (containers.IMAGE, containers.FULL_IMAGE)
    ]

    assert ["", str(containers.CLIENT)] == found


def test_full_image_is_small_too() -> None:
    """At most 140 MB on disk, and 50 MB to download."""
    saved = subprocess.run(
        ["docker", "save", containers.FULL_IMAGE],  # noqa: S607 - the docker of this machine
        check=True,
        capture_output=True,
        timeout=120,
    ).stdout

    assert containers.inspect(containers.FULL_IMAGE)["Size"] <= MOST_BYTES
    assert len(zlib.compress(saved, 9)) <= MOST_COMPRESSED
