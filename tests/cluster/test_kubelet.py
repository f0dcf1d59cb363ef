"""What only a real kubelet does: several replicas, trying again, policies, modes, admission."""

import json

import pytest
import yaml

from tests import program
from tests.cluster.conftest import ON_CLUSTER, Cluster, Document, Place, Render, until

pytestmark = pytest.mark.skipif(not ON_CLUSTER, reason="podman has no kubelet: make test-cluster")

CAT = {"001_create_cat.sql": "CREATE TABLE cat (name text);\n"}
# fails in the database itself, not in the copy that it is rehearsed on
BAD = {**CAT, "002_divide.sql": "SELECT 1 / (current_database() <> 'unicorn_db')::int;\n"}
WORSE = {**CAT, "002_divide.sql": "SELECT 1/0;\n"}
# goes on once there is a table `gate`; the copy that it is rehearsed on has none
HELD = {
    **CAT,
    "002_pass_gate.sql": """DO $$ BEGIN
  WHILE current_database() = 'unicorn_db'
    AND NOT EXISTS (SELECT FROM pg_class WHERE relname = 'gate') LOOP
    PERFORM pg_sleep(0.1);
  END LOOP;
END $$;
""",
}
THREE = (
    "- {op: replace, path: /spec/replicas, value: 3}\n"
    "- {op: replace, path: /spec/strategy, value: {type: RollingUpdate}}\n"
)
MANY = "- {op: replace, path: /spec/accessModes, value: [ReadWriteMany]}\n"
# nobody listens there, and the Job's own patience is short
NOBODY = (
    "- {op: replace, path: /spec/backoffLimit, value: 1}\n"
    "- {op: add, path: /spec/template/spec/containers/0/env/-,"
    " value: {name: POSTGRES_HOST, value: 127.0.0.1}}\n"
    "- {op: add, path: /spec/template/spec/containers/0/env/-,"
    " value: {name: PREFLIGHT_WAIT_TIMEOUT_S, value: '1'}}\n"
)
MODES = """
import json, os, pathlib
said = {"uid": os.getuid(), "groups": os.getgroups()}
for path in "/run/secrets/postgres/password", "/app/migrations/001_create_cat.sql":
    found = os.stat(path)
    said[path] = [f"{found.st_mode & 0o7777:04o}", found.st_uid, found.st_gid]
for path in "/backups", "/tmp":
    pathlib.Path(path, "written").write_text("")
try:
    pathlib.Path("/app/written").write_text("")
except OSError as error:
    said["root"] = error.strerror
pathlib.Path("/dev/termination-log").write_text(json.dumps(said))
"""
JOB = "ops-center-migrate-002"


@pytest.fixture
def cluster(place: Place) -> Cluster:
    """Give a namespace of the cluster with a database in it."""
    assert isinstance(place, Cluster)
    return place


def failure(cluster: Cluster) -> Document | None:
    """Return the condition that the Job failed with."""
    conditions = cluster.get("job", JOB)["status"].get("conditions", ())
    return next((each for each in conditions if each["type"] == "Failed"), None)


def last_line(cluster: Cluster, *args: str) -> program.Event:
    """Return what `kubectl logs` ends with, once no attempt is running."""

    def finished() -> program.Event | None:
        found = program.parse(cluster.said("logs", *args)[1])
        return found[-1] if found and found[-1]["event"] == "run.finished" else None

    found: program.Event = until(finished, "run.finished")
    return found


def described_line(described: str, key: str) -> str:
    """Return the value of the first line of `kubectl describe` with that key."""
    lines = (line.strip() for line in described.splitlines())
    return next(line.removeprefix(key).strip() for line in lines if line.startswith(key))


def test_three_replicas_at_once_apply_each_file_once(cluster: Cluster, render: Render) -> None:
    """One migrates while two wait, there is one backup, and the app of all three starts."""
    patches = {"Deployment": THREE, "PersistentVolumeClaim": MANY}
    cluster.play(render("examples/kubernetes/init-container", migrations=HELD, patches=patches))

    def waiting() -> list[str]:
        pods = cluster.statuses("ops-center", "preflight")
        logs = {pod: cluster.said("logs", pod, "-c", "preflight")[1] for pod in pods}
        return [pod for pod, log in logs.items() if '"lock.busy"' in log]

    def all_ready() -> bool:
        status = cluster.get("deployment", "ops-center")["status"]
        return bool(status.get("readyReplicas") == 3)

    waited = until(lambda: pods if len(pods := waiting()) == 2 else None, "two that wait")
    started_early = cluster.started("ops-center", "app")
    cluster.query("CREATE TABLE gate ()")
    until(all_ready, "three replicas")
    endings = cluster.endings("ops-center", "preflight")
    restarts = [
        each["restartCount"] for each in cluster.statuses("ops-center", "preflight").values()
    ]
    first = next(said for pod, (_, said) in endings.items() if pod not in waited)

    assert not started_early
    assert [0, 0, 0] == restarts
    assert [0, 0, 0] == [code for code, _ in endings.values()]
    assert ["001_create_cat", "002_pass_gate"] == first["applied"]
    assert first["backup"].startswith("unicorn_db-")
    for pod in waited:
        said = endings[pod][1]
        assert ("ok", None, None) == (said["outcome"], said.get("applied"), said.get("backup"))
    assert "1,2" == cluster.query(
        "SELECT string_agg(version::text, ',' ORDER BY id) FROM preflight.journal"
        " WHERE event = 'applied'"
    )


def test_failure_is_one_describe_or_logs_away(cluster: Cluster, render: Render) -> None:
    """Tried again by the kubelet, the app never starts, and both commands show the reason."""
    cluster.play(render("examples/kubernetes/init-container", migrations=BAD))

    def given_up() -> str | None:
        for pod, status in cluster.statuses("ops-center", "preflight").items():
            waiting = status["state"].get("waiting", {})
            if status["restartCount"] and waiting.get("reason") == "CrashLoopBackOff":
                return pod
        return None

    pod = until(given_up, "a second attempt, and CrashLoopBackOff")
    described = cluster.kubectl("describe", "pod", pod)
    last = last_line(cluster, pod, "-c", "preflight")

    assert "30" in described_line(described, "Exit Code:")
    assert "002_divide" == json.loads(described_line(described, "Message:"))["error"]["migration"]
    assert 30 == last["exit_code"]
    assert "division by zero" in last["error"]["message"]
    assert not cluster.started("ops-center", "app")
    assert "1" == cluster.query("SELECT count(*) FROM preflight.journal WHERE event = 'applied'")


@pytest.mark.parametrize(("migrations", "wanted"), [(BAD, 30), (WORSE, 27)])
def test_job_fails_at_once_where_trying_again_is_of_no_use(
    cluster: Cluster, render: Render, migrations: dict[str, str], wanted: int
) -> None:
    """30, or 27 by the rehearsal: one pod, no second one, and three app pods not started."""
    cluster.play(render("examples/kubernetes/job", migrations=migrations))

    condition = until(lambda: failure(cluster), "the Job failed")
    endings = cluster.endings(JOB, "preflight")
    last = last_line(cluster, f"job/{JOB}")

    assert "PodFailurePolicy" == condition["reason"]
    assert f"exit code {wanted}" in condition["message"]
    assert [wanted] == [code for code, _ in endings.values()]
    assert 1 == cluster.get("job", JOB)["status"]["failed"]
    assert "002_divide" == last["error"]["migration"]
    assert 3 == len(cluster.statuses("ops-center", "app"))
    assert not cluster.started("ops-center", "app")


def test_job_is_tried_again_where_that_helps(cluster: Cluster, render: Render) -> None:
    """10 counts: as many pods more as backoffLimit says, then the Job has failed."""
    cluster.play(render("examples/kubernetes/job", migrations=CAT, patches={"Job": NOBODY}))

    condition = until(lambda: failure(cluster), "the Job failed")
    endings = cluster.endings(JOB, "preflight")

    assert "BackoffLimitExceeded" == condition["reason"]
    assert [10, 10] == [code for code, _ in endings.values()]


def test_files_have_the_modes_that_the_page_says(cluster: Cluster, render: Render) -> None:
    """A secret's 0400 is 0440 by fsGroup, for our group; volumes are writable, the root is not."""
    patch = (
        "- {op: add, path: /spec/template/spec/initContainers/0/command,"
        f" value: {json.dumps(['python3', '-c', MODES])}}}\n"
    )
    cluster.play(
        render("examples/kubernetes/init-container", migrations=CAT, patches={"Deployment": patch})
    )

    code, said = cluster.ended("ops-center", "preflight")

    assert 0 == code
    assert (65532, True) == (said["uid"], 65532 in said["groups"])
    assert ["0440", 0, 65532] == said["/run/secrets/postgres/password"]
    assert ["0644", 0, 65532] == said["/app/migrations/001_create_cat.sql"]
    assert "Read-only file system" == said["root"]


def test_namespace_refuses_what_is_not_restricted(cluster: Cluster, render: Render) -> None:
    """So what runs in these tests was admitted by the restricted profile."""
    deployment = next(
        each
        for each in render("examples/kubernetes/init-container")
        if each["kind"] == "Deployment"
    )
    spec = deployment["spec"]["template"]["spec"]
    spec["serviceAccountName"] = "default"  # which is there
    spec["initContainers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}

    code, said = cluster.said("create", "--dry-run=server", "-f", "-", text=yaml.safe_dump(pod))

    assert 1 == code
    assert 'violates PodSecurity "restricted' in said
