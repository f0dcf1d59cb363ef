"""k8s/ and its page, without a cluster: schemas, the restricted profile, and our exit codes."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from preflight.base.errors import ExitCode

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "kubernetes.md"
EXAMPLES = REPOSITORY / "examples" / "kubernetes"
FOLDERS = [REPOSITORY / "k8s", EXAMPLES]
MANIFESTS = sorted(
    path
    for folder in FOLDERS
    for path in folder.rglob("*.yaml")
    if path.name != "kustomization.yaml"
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
    ours = [each for each in found if each.get("kind") != "Kustomization"]  # tests/cluster
    return [each if "kind" in each else pod_of(each) for each in ours]


def pod_of(part: dict[str, Any]) -> dict[str, Any]:
    """Return a pod with these volumes, whose container has the rest."""
    container = {"name": "preflight", "image": "preflight-image", **part}
    spec = {"volumes": container.pop("volumes"), "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "part"}, "spec": spec}


def patched(example: str, component: str) -> dict[str, Any]:
    """Return the Deployment of an example with what a component's first patch puts before it."""
    (deployment,) = documents(EXAMPLES / example / "deployment.yaml")
    gate = documents(REPOSITORY / "k8s" / "components" / component / "kustomization.yaml")[0]
    selector = gate["patches"][0]["target"]["labelSelector"]
    assert selector.split("=") in [list(each) for each in deployment["metadata"]["labels"].items()]
    spec = yaml.safe_load(gate["patches"][0]["patch"])["spec"]
    pod = spec["template"]["spec"]
    deployment["spec"].update({key: spec[key] for key in spec if key != "template"})
    for key in ("initContainers", "volumes"):
        deployment["spec"]["template"]["spec"][key] = pod.pop(key)
    assert {} == pod, "nothing else of the pod is touched"
    return deployment


PATCHED = {
    "components/init-container": patched("init-container", "init-container"),
    "components/wait": patched("job", "wait"),
}
EVERY = [each for path in MANIFESTS for each in documents(path)] + list(PATCHED.values())
SOURCES = {str(path.relative_to(REPOSITORY)): documents(path) for path in MANIFESTS}
SOURCES |= {name: [each] for name, each in PATCHED.items()}


def named(value: dict[str, Any]) -> str:
    """Name a workload in a test's id."""
    pod = value["spec"].get("template", {}).get("spec", {})
    gate = next((f"-{each['name']}" for each in pod.get("initContainers", ())), "")
    return f"{value['kind']}-{value['spec'].get('replicas', 1)}{gate}"


def pods() -> Iterator[Any]:
    """Yield the pod of every workload; a CronJob has its own in a Job."""
    for each in EVERY:
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield pytest.param(spec["template"]["spec"], id=named(each))


PODS = list(pods())


def runs_the_job(container: dict[str, Any]) -> bool:
    """Tell whether a container works on the database: our image, or ours in the app's."""
    wrapped = container.get("command") == ["/opt/pg-preflight/bin/pg-preflight"]
    installs = container.get("args", [""])[0] == "install"
    return (container["image"] == "preflight-image" and not installs) or wrapped


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
    for volume in pod.get("volumes", ()):
        assert VOLUMES >= volume.keys() - {"name"}
    for container in containers(pod):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert {"drop": ["ALL"]} == own["capabilities"]
        assert 0 != own.get("runAsUser", security.get("runAsUser"))
        assert {"type": "RuntimeDefault"} == own.get("seccompProfile", security["seccompProfile"])
        assert own.get("runAsNonRoot", True) is True
        assert not {"privileged", "procMount", "seLinuxOptions"} & own.keys()
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
        ours = runs_the_job(container)
        assert ours is ("POSTGRES_PASSWORD_FILE" in names)
        assert ours is ("preflight-password" in mounts)
        assert not {"PGPASSWORD", "POSTGRES_PASSWORD", "DATABASE_URL"} & names


@pytest.mark.parametrize("pod", PODS)
def test_bound_of_the_throwaway_server_is_below_its_volumes(pod: dict[str, Any]) -> None:
    """The kubelet evicts a pod whose emptyDir is too large; we are told its size by a variable."""
    for container in containers(pod):
        mounts = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", ())}
        said = {each["name"]: each.get("value") for each in container.get("env", ())}
        assert ("/backups" in mounts) is ("/scratch" in mounts)
        if "/scratch" in mounts:
            volumes = {each["name"]: each for each in pod["volumes"]}
            limit = volumes[mounts["/scratch"]]["emptyDir"]["sizeLimit"]
            bound = int(said["PREFLIGHT_REHEARSE_DIR_MB"]) * 1_000_000
            assert 0.9 < bound / (int(limit.removesuffix("Gi")) * 2**30) < 1


def test_wrapped_command_finds_the_program_where_it_was_installed() -> None:
    """One init container copies it into an emptyDir, the next, the app's image, has it mounted."""
    (deployment,) = documents(EXAMPLES / "wrap" / "deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    install, gate = pod["initContainers"]
    mounted = [
        {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        for container in (install, gate)
    ]

    assert ("preflight-image", "app-image") == (install["image"], gate["image"])
    assert ["install", "/shared"] == install["args"]
    assert mounted[0]["/shared"] == mounted[1]["/opt/pg-preflight"]
    assert gate["command"][0].startswith("/opt/pg-preflight/")
    assert "wrap" == gate["args"][0]


WRAP = (REPOSITORY / "docs" / "wrap.md").read_text()
RECIPES = re.findall(
    r"^### ([\w-]+)\n\n([^\n]+)\n\n```yaml\n(.*?)```\n\n```yaml\n(.*?)```\n",
    WRAP,
    re.DOTALL | re.MULTILINE,
)


def test_every_tool_that_is_tried_has_a_recipe() -> None:
    """A short paragraph, what compose is told, what Kubernetes is told."""
    tried = "Alembic Django goose golang-migrate Knex node-pg-migrate Flyway Rails"

    assert tried.split() == [name for name, *_ in RECIPES]


@pytest.mark.parametrize(
    ("name", "words", "compose", "kubernetes"), RECIPES, ids=[each[0] for each in RECIPES]
)
def test_recipe_fits_the_examples(name: str, words: str, compose: str, kubernetes: str) -> None:
    """Both run the same command with the same variables; the whole pod is a valid one."""
    container, services = yaml.safe_load(kubernetes), yaml.safe_load(compose)
    there = services["preflight"]
    (deployment,) = documents(EXAMPLES / "wrap" / "deployment.yaml")
    gate = deployment["spec"]["template"]["spec"]["initContainers"][1]
    variables = [each["name"] for each in container["env"]]
    gate |= {"args": container["args"], "env": gate["env"] + container["env"]}

    assert len(words) < 400, name
    assert ["preflight"] == [*services]
    assert gate["name"] == container["name"]
    assert {"command", "environment"} == there.keys()
    assert {"name", "args", "env"} == container.keys()
    assert list(there["environment"]) == variables
    said = [each.replace("$$", "$") for each in there["command"]]
    assert said == container["args"]
    assert not re.findall(r"\$[({]", " ".join(said)), "an address there is part of the key"
    assert ["wrap", "--watch"] == said[:2]
    for version in VERSIONS:
        kubernetes_validate.validate(deployment, version, strict=True)


def rules(kind: str = "Job") -> dict[str, Any]:
    """Return the Job's rules by their action."""
    spec = next(each for each in EVERY if each["kind"] == kind)["spec"]
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    return {rule["action"]: rule for rule in spec["podFailurePolicy"]["rules"]}


@pytest.mark.parametrize(
    ("command", "args", "retries", "drained"),
    [("check", ["check"], 3, "Ignore"), ("rollback", ["rollback", "--to=1"], 0, "FailJob")],
)
def test_command_by_hand_is_made_of_the_nightly_backups_job(
    command: str, args: list[str], retries: int, drained: str
) -> None:
    """The page's own sed, on a Job as kubectl writes it; what may run but once has one pod."""
    found = re.search(
        rf"kubectl create job {command} .*?(sed .*?)\|\s+kubectl apply", PAGE.read_text(), re.DOTALL
    )
    assert found is not None
    (backup,) = documents(REPOSITORY / "k8s/components/nightly-backup/cronjob.yaml")
    job = yaml.safe_dump({"spec": backup["spec"]["jobTemplate"]["spec"]})

    made = subprocess.run(
        ["sh", "-c", found[1]],  # noqa: S607 - the shell of this machine
        input=job,
        text=True,
        capture_output=True,
        check=True,
    ).stdout

    spec = yaml.safe_load(made)["spec"]
    assert args == spec["template"]["spec"]["containers"][0]["args"]
    assert (retries, drained) == (
        spec["backoffLimit"],
        spec["podFailurePolicy"]["rules"][0]["action"],
    )


def test_nightly_backup_has_the_policy_of_the_job() -> None:
    """The same codes mean the same for a backup."""
    assert rules() == rules("CronJob")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "k8s").rglob("kustomization.yaml")), ids=str)
def test_images_are_left_to_the_outermost_kustomization(path: Path) -> None:
    """An `images:` here would rename the placeholder before anybody else's could."""
    names = {each["image"] for pod in PODS for each in containers(pod.values[0])}

    assert not {"images", "namespace", "namePrefix"} & documents(path)[0].keys()
    assert {"preflight-image", "app-image"} == names


def test_policy_is_not_part_of_what_everybody_gets() -> None:
    """It fits no database by itself; and no pod of the app's carries its label."""
    users = [
        path.parent.name
        for path in (REPOSITORY / "k8s").rglob("kustomization.yaml")
        if "network-policy" in path.read_text()
    ]
    labelled = [
        each["kind"]
        for each in EVERY
        if "pg-preflight/network" in str(each) and "template" in str(each)
    ]

    assert ["network-policy"] == users
    assert ["CronJob", "Job"] == sorted(labelled)


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
