"""Containers of the image under test, run with docker as its users run it."""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import program

IMAGE = os.environ.get("PG_PREFLIGHT_IMAGE", "pg-preflight:pg17")
FULL_IMAGE = f"{IMAGE}-full"  # the same with a server in it
CLIENT = int(os.environ.get("CLIENT", "17"))  # the major of its pg_dump
REPOSITORY = program.ENTRYPOINT.parent
TIMEOUT_S = 120.0

# what a careful operator adds; the image promises to need none of what they take away
STRICT = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--pids-limit", "32", "--memory", "128m"),
)


def docker_said(*args: object, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run one docker command; return its exit code, and its stdout and stderr together."""
    done = subprocess.run(
        ["docker", *map(str, args)],  # noqa: S607 - the docker of this machine
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, **(env or {})},
        timeout=600,
    )
    return done.returncode, done.stdout


def docker(*args: object) -> str:
    """Run one docker command that must succeed; return what it said."""
    code, said = docker_said(*args)
    assert 0 == code, f"docker {args}: {code}\n{said}"
    return said


def inspect(name: str) -> dict[str, Any]:
    """Return what docker knows of an image or a container."""
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


class Container:
    """A started container; removed with its anonymous volumes by `containers()`."""

    def __init__(self, arguments: Sequence[object], command: Sequence[str]) -> None:
        """Start it."""
        self.name = f"pg-preflight-test-{uuid.uuid4().hex[:12]}"
        self._started = time.monotonic()
        docker("run", "--detach", "--name", self.name, *arguments, *command)

    def wait(self) -> program.Result:
        """Return what it left behind, once it has ended."""
        code = int(docker("wait", self.name))
        duration_s = time.monotonic() - self._started
        return program.Result(code, self.output("stdout"), self.output("stderr"), duration_s)

    def output(self, stream: str) -> str:
        """Return what it has written so far."""
        done = subprocess.run(
            ["docker", "logs", self.name],  # noqa: S607 - the docker of this machine
            check=True,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
        )
        return done.stdout if stream == "stdout" else done.stderr

    def wait_for_event(self, name: str, **data: object) -> program.Event:
        """Return the first event of that name with that data as soon as it is logged."""
        found: list[program.Event] = []
        with subprocess.Popen(
            ["docker", "logs", "--follow", self.name],  # noqa: S607 - the docker of this machine
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as following:
            assert following.stdout is not None
            for line in following.stdout:
                wanted = {"event": name, **data}.items()
                found = [event for event in program.parse(line) if wanted <= event.items()]
                if found:
                    break
            following.kill()
        assert found, f"{name} never came:\n{self.output('stdout')}"
        return found[0]

    def processes(self) -> list[str]:
        """Return the state and name of every process in it, as ps prints them."""
        return docker("top", self.name, "-eo", "pid,stat,comm").splitlines()[1:]

    def stop(self, signal: str) -> None:
        """Send its first process a signal."""
        docker("kill", "--signal", signal, self.name)


class Containers:
    """Containers that see this machine's network, where the servers of the tests listen."""

    def __init__(self, image: str = IMAGE) -> None:
        """Keep what each starts from."""
        self.image = image
        self._started: list[Container] = []
        self._volumes: list[str] = []

    def volume(self, files: Mapping[str, str] | None = None, commands: str = "") -> str:
        """Make a volume; with files or commands, a shell writes and runs them there as root."""
        name = f"pg-preflight-test-{uuid.uuid4().hex[:12]}"
        self._volumes.append(docker("volume", "create", name).strip())
        if files or commands:
            put(name, files or {}, commands)
        return name

    def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        options: Sequence[object] = (),
        image: str | None = None,
        network: str = "host",
    ) -> Container:
        """Start one and return at once."""
        settings = [f"--env={name}={value}" for name, value in (env or {}).items()]
        arguments = [f"--network={network}", *settings, *options, image or self.image]
        container = Container(arguments, command)
        self._started.append(container)
        return container

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        options: Sequence[object] = (),
        image: str | None = None,
    ) -> program.Result:
        """Run one to its end."""
        return self.start(*command, env=env, options=options, image=image).wait()

    def close(self) -> None:
        """Remove them all, and their volumes."""
        if names := [each.name for each in self._started]:
            docker("rm", "--force", "--volumes", *names)
        if self._volumes:
            docker("volume", "rm", "--force", *self._volumes)


def put(where: str, files: Mapping[str, str], commands: str = "") -> None:
    """Write files into a volume as root, and run shell commands there."""
    script = "set -eu; cd /volume; " + "".join(
        f"cat > {name} <<'END_OF_FILE'\n{text}END_OF_FILE\n" for name, text in files.items()
    )
    docker(
        *("run", "--rm", "--interactive", "--network=none", "--volume", f"{where}:/volume"),
        *("--entrypoint", "sh", BASE, "-c", script + commands),
    )


BASE = "debian:trixie-slim"  # has a shell, which the image under test has not


def build(context: Path, *arguments: object, tag: str) -> str:
    """Build an image and return its name."""
    docker("build", "--quiet", "--tag", tag, *arguments, context)
    return tag
