"""k8s/ and its page, without a cluster: schemas, the restricted profile, and our exit codes."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from preflight.errors import ExitCode

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "kubernetes.md"
MANIFESTS = sorted(
    path for path in (REPOSITORY / "k8s").rglob("*.yaml") if path.name != "kustomization.yaml"
)
VERSIONS = ["1.31", "1.34", "1.37"]  # podFailurePolicy is stable since the first

# Pod Security "restricted" (pod-security-admission, policy/*.go): what a volume may be
VOLUMES = {"configMap", "downwardAPI", "emptyDir", "projected", "secret", "csi"} | {
    "persistentVolumeClaim",
    "ephemeral",
    "image",
}


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def snippets() -> list[dict[str, Any]]:
    """Return the manifests on the page; a part of a pod is made a whole one."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found = [each for block in blocks for each in yaml.safe_load_all(block)]
    return [each if "kind" in each else pod_of(each) for each in found]


def pod_of(part: dict[str, Any]) -> dict[str, Any]:
    """Return a pod with these volumes, whose container has the rest."""
    container = {"name": "preflight", "image": "preflight-image", **part}
    spec = {"volumes": container.pop("volumes"), "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "part"}, "spec": spec}


EVERY = [each for path in MANIFESTS for each in documents(path)]
SOURCES = {str(path.relative_to(REPOSITORY / "k8s")): documents(path) for path in MANIFESTS}


def named(value: dict[str, Any]) -> str:
    """Name a workload in a test's id."""
    return f"{value['kind']}-{value['spec'].get('replicas', 1)}"


PODS = [
    pytest.param(each["spec"]["template"]["spec"], id=named(each))
    for each in EVERY
    if "template" in each.get("spec", {})
]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all containers of a pod."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", [*SOURCES, PAGE.name])
def test_manifests_are_valid(source: str, version: str) -> None:
    """No unknown field, no wrong type; also what the page shows."""
    found = SOURCES.get(source) or snippets()

    assert found
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_pod_is_restricted(pod: dict[str, Any]) -> None:
    """The whole list of the restricted profile, and a read-only root on top of it."""
    security = pod["securityContext"]

    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
    assert security["runAsNonRoot"] is True
    assert "RuntimeDefault" == security["seccompProfile"]["type"]
    assert not {"seLinuxOptions", "sysctls", "appArmorProfile", "windowsOptions"} & security.keys()
    for volume in pod["volumes"]:
        assert VOLUMES >= volume.keys() - {"name"}
    for container in containers(pod):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert {"drop": ["ALL"]} == own["capabilities"]
        assert 0 != own.get("runAsUser", security.get("runAsUser"))
        assert not {"privileged", "procMount", "seLinuxOptions", "seccompProfile"} & own.keys()
        assert not [port for port in container.get("ports", ()) if "hostPort" in port]
        assert not {"lifecycle", "livenessProbe"} & container.keys()


@pytest.mark.parametrize("pod", PODS)
def test_pod_has_no_token_and_no_service_links(pod: dict[str, Any]) -> None:
    """Nothing of it talks to the API, and no Service sets variables in it."""
    assert (False, False) == (pod["automountServiceAccountToken"], pod["enableServiceLinks"])


@pytest.mark.parametrize("pod", PODS)
def test_password_is_a_file(pod: dict[str, Any]) -> None:
    """Not in the environment, where /proc and `kubectl describe` show it, and only for the job."""
    for container in containers(pod):
        names = {each["name"] for each in container.get("env", ())}
        mounts = {each["name"] for each in container.get("volumeMounts", ())}
        ours = container["image"] == "preflight-image"
        assert ours is ("POSTGRES_PASSWORD_FILE" in names)
        assert ours is ("password" in mounts)
        assert not {"PGPASSWORD", "POSTGRES_PASSWORD", "DATABASE_URL"} & names


def rules() -> dict[str, Any]:
    """Return the Job's rules by their action."""
    job = next(each for each in EVERY if each["kind"] == "Job")
    return {rule["action"]: rule for rule in job["spec"]["podFailurePolicy"]["rules"]}


@pytest.mark.parametrize(("action", "tens"), [("FailJob", (2, 3)), ("Count", (1,))])
def test_failure_policy_is_made_from_the_exit_codes(action: str, tens: tuple[int, ...]) -> None:
    """2x and 3x stop the Job at once, 1x is run again; what is neither counts by default."""
    wanted = sorted(int(code) for code in ExitCode if code // 10 in tens)

    found = rules()[action]["onExitCodes"]

    assert ("In", wanted, "preflight") == (
        found["operator"],
        found["values"],
        found["containerName"],
    )


def test_disruption_does_not_count() -> None:
    """A drained node is nobody's failure; the rule comes before all others."""
    action, rule = next(iter(rules().items()))

    assert "Ignore" == action
    assert [{"type": "DisruptionTarget", "status": "True"}] == rule["onPodConditions"]


def test_page_has_the_policy_of_the_job() -> None:
    """docs/kubernetes.md says the same codes as the manifest."""
    table = re.findall(
        r"^\| `(Ignore|FailJob|Count)` \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE
    )
    said = {action: [int(code) for code in re.findall(r"\d+", codes)] for action, codes in table}

    assert {
        "Ignore": [],
        "FailJob": rules()["FailJob"]["onExitCodes"]["values"],
        "Count": rules()["Count"]["onExitCodes"]["values"],
    } == said


@pytest.mark.parametrize(
    "directory",
    sorted({path.parent for path in (REPOSITORY / "k8s").rglob("*.yaml")}),
    ids=lambda path: path.name,
)
def test_readme_lists_every_file(directory: Path) -> None:
    """Each folder has a table of its files, and kustomize is given each of them."""
    files = sorted(path.name for path in directory.glob("*.yaml"))
    listed = re.findall(r"^\| `([\w.-]+)` \|", (directory / "README.md").read_text(), re.MULTILINE)
    resources = documents(directory / "kustomization.yaml")[0]["resources"]

    assert files == sorted(listed)
    assert {*files} - {"kustomization.yaml"} == {name for name in resources if "/" not in name}
