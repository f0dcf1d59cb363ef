"""Where the manifests are played: podman in a container, or the cluster that KUBECONFIG names."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from tests import containers, program

HERE = Path(__file__).resolve().parent
ON_CLUSTER = os.environ.get("PG_PREFLIGHT_CLUSTER") == "kubectl"
PATIENCE_S = 180.0 if ON_CLUSTER else 60.0  # its nodes may have to pull the images
# Images as the nodes can have them: podman wants a host in the name and gets them by `load`.
IMAGES = {
    "pg-preflight": os.environ.get("CLUSTER_IMAGE", "localhost/pg-preflight:test"),
    "postgres": os.environ.get("CLUSTER_POSTGRES", "localhost/pg-preflight-test/postgres:17"),
}
Document = dict[str, Any]


class Place(Protocol):
    """What plays manifests."""

    def play(self, documents: list[Document]) -> None:
        """Play them; whether they succeed is asked afterwards."""

    def ended(self, workload: str, container: str) -> tuple[int, program.Event]:
        """Return the exit code and the last event of a container of a workload, once it ended."""

    def started(self, workload: str, container: str) -> bool:
        """Tell whether a container of a workload has ever started."""

    def answers(self) -> bool:
        """Tell whether the database answers."""

    def query(self, statement: str) -> str:
        """Ask the database."""

    def clear(self) -> None:
        """Remove everything that was played."""


def said(*command: str, text: str = "") -> tuple[int, str]:
    """Run a command; return its exit code and what it said."""
    done = subprocess.run(
        command,
        check=False,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    return done.returncode, done.stdout


def until(found: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever is found
    """Return what is found as soon as it is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.2)  # asking again, bounded by the event
    return value


def asking(statement: str) -> tuple[str, ...]:
    """Return a command that asks the database, in its own container."""
    ask = shlex.join(["psql", "-qtA", "-U", "unicorn", "-d", "unicorn_db", "-c", statement])
    # The password's line break at the end is not part of it.
    env = 'PGHOST=127.0.0.1 PGPASSWORD=$(printf %s "$POSTGRES_PASSWORD")'
    return ("sh", "-c", f"{env} {ask}")


class Podman:
    """`podman kube play`: no kubelet, so nothing is retried and no policy is enforced."""

    def __init__(self) -> None:
        """Keep what was played."""
        self._played: list[str] = []

    @staticmethod
    def _podman(*args: str, text: str = "") -> tuple[int, str]:
        return said("docker", "exec", "-i", "podman-kube", "podman", *args, text=text)

    def play(self, documents: list[Document]) -> None:
        """Play them."""
        # It plays one after the other and waits for init containers: what they wait for is first.
        last = [each for each in documents if each["kind"] == "Deployment"]
        for each in last:  # keeps init containers, to be looked at
            kept = {"io.podman.annotations.init.container.type": "always"}
            each["metadata"]["annotations"] = kept
        documents = [each for each in documents if each not in last] + last
        text = yaml.safe_dump_all(documents)
        self._played.append(text)
        code, output = self._podman("kube", "play", "-", text=text)
        assert code in (0, 125), output  # 125: an init container failed

    def _inspect(self, workload: str, container: str) -> Document | None:
        code, text = self._podman("inspect", f"{workload}-pod-{container}")
        found: list[Document] = json.loads(text) if code == 0 else []
        return found[0] if found else None

    def ended(self, workload: str, container: str) -> tuple[int, program.Event]:
        """Return the exit code and the last event of a container, once it ended."""

        def state() -> Document | None:
            found = self._inspect(workload, container)
            return found["State"] if found and found["State"]["Status"] == "exited" else None

        code = until(state, f"{workload} {container} ended")["ExitCode"]
        logs = self._podman("logs", f"{workload}-pod-{container}")[1]
        return code, program.parse(logs)[-1]

    def started(self, workload: str, container: str) -> bool:
        """Tell whether a container has ever started."""
        found = self._inspect(workload, container)
        return found is not None and found["State"]["Status"] not in ("created", "initialized")

    def _ask(self, statement: str) -> tuple[int, str]:
        return self._podman("exec", "unicorn-postgresql-postgres", *asking(statement))

    def answers(self) -> bool:
        """Tell whether the database answers."""
        return self._ask("SELECT 1")[0] == 0

    def query(self, statement: str) -> str:
        """Ask the database."""
        code, text = self._ask(statement)
        assert 0 == code, text
        return text.strip()

    def clear(self) -> None:
        """Remove everything that was played."""
        self._podman("pod", "rm", "--all", "--force", "--time", "0")
        for text in reversed(self._played):
            self._podman("kube", "down", "--force", "-", text=text)  # its exit code means nothing
        self._podman("volume", "prune", "--force")


class Cluster:
    """The cluster that KUBECONFIG names, in a namespace that enforces the restricted profile."""

    def __init__(self) -> None:
        """Make the namespace."""
        self.namespace = f"pg-preflight-test-{secrets.token_hex(4)}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace = {"metadata": {"name": self.namespace, "labels": labels}}
        self.play([{"apiVersion": "v1", "kind": "Namespace", **namespace}])
        # A pod is refused until its account is there.
        until(lambda: self.said("get", "serviceaccount", "default")[0] == 0, "the account")

    def said(self, *args: str, text: str = "") -> tuple[int, str]:
        """Run kubectl in the namespace; return its exit code and what it said."""
        return said("kubectl", "--namespace", self.namespace, *args, text=text)

    def kubectl(self, *args: str, text: str = "") -> str:
        """Run kubectl in the namespace, which must succeed; return what it said."""
        code, output = self.said(*args, text=text)
        assert 0 == code, f"kubectl {args}: {output}"
        return output

    def play(self, documents: list[Document]) -> None:
        """Play them."""
        self.kubectl("apply", "--filename", "-", text=yaml.safe_dump_all(documents))

    def get(self, kind: str, name: str) -> Document:
        """Return an object as it is now."""
        found: Document = json.loads(self.kubectl("get", kind, name, "--output", "json"))
        return found

    def statuses(self, workload: str, container: str) -> dict[str, Document]:
        """Return the state of a container in each pod of a workload, by the pod's name."""
        selector = f"app.kubernetes.io/name={workload.removesuffix('-002')}"
        listed = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return {
            pod["metadata"]["name"]: status
            for pod in listed
            for key in ("initContainerStatuses", "containerStatuses")
            for status in pod["status"].get(key, ())
            if status["name"] == container
        }

    def endings(self, workload: str, container: str) -> dict[str, tuple[int, program.Event]]:
        """Return exit code and termination message where a container has ended, by pod."""
        found = {}
        for pod, status in self.statuses(workload, container).items():
            for state in (status["state"], status.get("lastState", {})):
                if "terminated" in state:  # the later one of two
                    ended = state["terminated"]
                    found[pod] = (ended["exitCode"], json.loads(ended["message"]))
                    break
        return found

    def ended(self, workload: str, container: str) -> tuple[int, program.Event]:
        """Return the exit code and the last event of a container, once it ended."""
        found = until(lambda: self.endings(workload, container), f"{workload} {container} ended")
        first: tuple[int, program.Event] = next(iter(found.values()))
        return first

    def started(self, workload: str, container: str) -> bool:
        """Tell whether a container has ever started."""
        return any(
            status["restartCount"] or {"running", "terminated"} & status["state"].keys()
            for status in self.statuses(workload, container).values()
        )

    def _ask(self, statement: str) -> tuple[int, str]:
        return self.said("exec", "unicorn-postgresql", "--", *asking(statement))

    def answers(self) -> bool:
        """Tell whether the database answers."""
        return self._ask("SELECT 1")[0] == 0

    def query(self, statement: str) -> str:
        """Ask the database."""
        code, text = self._ask(statement)
        assert 0 == code, text
        return text.strip()

    def clear(self) -> None:
        """Remove everything that was played."""
        self.kubectl("delete", "namespace", self.namespace, "--wait=false")


@pytest.fixture
def place() -> Iterator[Place]:
    """Give a place with a database in it, empty after the test."""
    made: Place = Cluster() if ON_CLUSTER else Podman()
    try:
        text = (HERE / "postgres.yaml").read_text().replace("postgres-image", IMAGES["postgres"])
        made.play(list(yaml.safe_load_all(text)))
        yield made
    finally:
        made.clear()


class Render(Protocol):
    """Render an overlay."""

    def __call__(
        self,
        overlay: str,
        migrations: Mapping[str, str] | None = None,
        patches: Mapping[str, str] | None = None,
    ) -> list[Document]:
        """Render it with the images of the test, these migrations mounted, JSON patches by kind."""


MOUNT = """
- {op: add, path: /spec/template/spec/volumes/-,
   value: {name: migrations, configMap: {name: migrations}}}
- {op: add, path: "/spec/template/spec/%s/0/volumeMounts/-",
   value: {name: migrations, mountPath: /app/migrations, readOnly: true}}
"""
# podman applies no fsGroup to secrets
READABLE = "- {op: replace, path: /spec/template/spec/volumes/0/secret/defaultMode, value: 0444}\n"


def kustomize(directory: Path) -> list[Document]:
    """Return what kustomize makes of a directory; without kubectl here, one in a container does."""
    kubectl: tuple[str, ...] = ("kubectl",)
    if shutil.which("kubectl") is None:
        mounts = (f"{path}:{path}:ro" for path in (containers.REPOSITORY, directory))
        volumes = (part for mount in mounts for part in ("--volume", mount))
        directory.chmod(0o755)  # whoever kubectl is in its container
        kubectl = ("docker", "run", "--rm", *volumes, "pg-preflight-test/kubectl")
    code, text = said(*kubectl, "kustomize", str(directory))
    assert 0 == code, text
    return [each for each in yaml.safe_load_all(text) if each]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Render overlays of the repository with kustomize."""

    def render(
        overlay: str,
        migrations: Mapping[str, str] | None = None,
        patches: Mapping[str, str] | None = None,
    ) -> list[Document]:
        base = containers.REPOSITORY / overlay
        names = {name: image.rpartition(":") for name, image in IMAGES.items()}
        said_of = {**(patches or {})}
        for kind, where in (("Deployment", "initContainers"), ("Job", "containers")):
            if kind == "Deployment" or base.name == "job":
                said_of.setdefault(kind, "")
                said_of[kind] += MOUNT % where if migrations else ""
                said_of[kind] += "" if ON_CLUSTER else READABLE
        wanted: Document = {
            "resources": [os.path.relpath(base, tmp_path)],
            "images": [
                {"name": name, "newName": new, "newTag": tag}
                for name, (new, _, tag) in names.items()
            ],
            "patches": [
                {"target": {"kind": kind}, "patch": patch}
                for kind, patch in said_of.items()
                if patch
            ],
        }
        if migrations:
            for name, text in migrations.items():
                (tmp_path / name).write_text(text)
            wanted["configMapGenerator"] = [{"name": "migrations", "files": list(migrations)}]
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
        return kustomize(tmp_path)

    return render
