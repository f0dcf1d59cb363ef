"""A start in the image with nothing to do, beside nothing at all in the same image."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import tools
from tests.bench import figures, nothing, peers, turns
from tests.bench.ground import MAJOR, Ground

IMAGE = os.environ.get("PG_PREFLIGHT_IMAGE", f"pg-preflight:pg{MAJOR}")
ROUNDS, QUICK_ROUNDS = 15, 5
NOTHING = "a static program that does nothing"
BARE = "python3 -S -c ''"


def measure(ground: Ground) -> list[figures.Row]:
    """Measure with docker; where there is none, or no image, say so."""
    try:
        docker = _docker()
    except pytest.skip.Exception as reason:
        ground.lacking["the image"] = str(reason).removeprefix(tools.LACKING)
        return []
    peer = ground.peers((peers.ours,))[0]
    database = nothing.applied(ground, peer)
    nothing_at_all = _nothing(ground)
    files = ground.scratch / peer.plain / "files"
    start = [docker, "run", "--rm", "--network=host"]
    variables = {**database.env(), "PREFLIGHT_MIGRATIONS_DIR": "/files", "PREFLIGHT_BACKUP": "off"}
    led = [word for name in variables for word in ("--env", name)]
    group = "docker run --rm --network=host"
    ways = [
        turns.Way(group, BARE, [*start, "--entrypoint=python3", IMAGE, "-S", "-c", ""], os.environ),
        turns.Way(
            group,
            peer.name,
            [*start, *led, f"--volume={files}:/files:ro", IMAGE],
            {**os.environ, **variables},
        ),
    ]
    if nothing_at_all:
        volume = f"--volume={nothing_at_all}:/nothing:ro"
        command = [*start, volume, "--entrypoint=/nothing", IMAGE]
        ways.insert(0, turns.Way(group, NOTHING, command, os.environ))
    return turns.take(ways, ground.wanted.times(ROUNDS, QUICK_ROUNDS))


def _docker() -> str:
    docker = tools.found("docker")
    if tools.call([docker, "info"]).returncode:
        tools.lacking("docker does not answer here")
    if tools.call([docker, "image", "inspect", IMAGE]).returncode:
        tools.lacking(f"no image {IMAGE} here: make image")
    return docker


def _nothing(ground: Ground) -> Path | None:
    """Return a program that does nothing and needs nothing of the image, where there is a cc."""
    source, made = ground.scratch / "nothing.c", ground.scratch / "nothing"
    source.write_text("int main(void) { return 0; }\n")
    if not (cc := shutil.which("cc")):
        ground.lacking[NOTHING] = "cc is not on PATH"
        return None
    done = subprocess.run(
        [cc, "-static", "-O2", source, "-o", made], check=False, capture_output=True, text=True
    )
    if done.returncode:
        ground.lacking[NOTHING] = done.stderr.strip().splitlines()[0]
        return None
    return made
