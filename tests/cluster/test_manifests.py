"""k8s/ as it stands: the app starts after the migrations, or never, and the reason is in view."""

import os
import re
from pathlib import Path

import pytest
import yaml

from tests import containers
from tests.cluster.conftest import Document, Place, Render, kustomize, until

PAGE = containers.REPOSITORY / "docs" / "kubernetes.md"
APP = containers.REPOSITORY / "examples" / "kubernetes"

CAT = {"001_create_cat.sql": "CREATE TABLE cat (name text);\n"}
# fails in the database itself, not in the copy that it is rehearsed on
BAD = {**CAT, "002_divide.sql": "SELECT 1 / (current_database() <> 'unicorn_db')::int;\n"}
NO_PATIENCE = (
    "- {op: replace, path: /spec/template/spec/initContainers/0/env/1/value, value: '5'}\n"
)


def test_app_starts_after_its_init_container(place: Place, render: Render) -> None:
    """examples/configmap on overlays/init-container: files from a ConfigMap, backup on the PVC."""
    place.play(render("examples/configmap"))

    code, last = place.ended("ops-center", "preflight")

    assert (0, ["001_create_customers", "002_add_customer_names"]) == (code, last["applied"])
    assert last["backup"].startswith("unicorn_db-")
    until(lambda: place.started("ops-center", "app"), "the app started")
    assert "0" == place.query("SELECT count(name) FROM customers")


def test_app_never_starts_when_its_init_container_fails(place: Place, render: Render) -> None:
    """30, the file and its line; the app is not started."""
    place.play(render("examples/kubernetes/init-container", migrations=BAD))

    code, last = place.ended("ops-center", "preflight")

    assert 30 == code
    assert ("002_divide", 1) == (last["error"]["migration"], last["error"]["line"])
    assert not place.started("ops-center", "app")


def test_app_waits_for_the_schema_that_a_job_makes(place: Place, render: Render) -> None:
    """examples/kubernetes/job: the Job migrates, the app's init container only looks."""
    place.play(render("examples/kubernetes/job", migrations=CAT))

    job, made = place.ended("ops-center-migrate-002", "preflight")
    wait, seen = place.ended("ops-center", "wait-for-schema")

    assert (0, ["001_create_cat"]) == (job, made["applied"])
    assert (0, "wait") == (wait, seen["command"])
    until(lambda: place.started("ops-center", "app"), "the app started")


def test_app_never_starts_when_the_job_fails(place: Place, render: Render) -> None:
    """The Job ends with 30; the app's init container says that the schema is behind."""
    until(place.answers, "the database answers")
    place.play(
        render("examples/kubernetes/job", migrations=BAD, patches={"Deployment": NO_PATIENCE})
    )

    job, made = place.ended("ops-center-migrate-002", "preflight")
    wait, seen = place.ended("ops-center", "wait-for-schema")

    assert (30, "002_divide") == (job, made["error"]["migration"])
    assert (3, "schema.pending") == (wait, seen["error"]["code"])
    assert not place.started("ops-center", "app")


# --- rendered only --------------------------------------------------------------------------------


def stacked(place: Path, number: int, example: str) -> list[Document]:
    """Render a kustomization of the page, its images named two layers further out."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    inner = yaml.safe_load([block for block in blocks if "Kustomization" in block][number])
    directory = place / "outer" / "middle" / "inner"
    directory.mkdir(parents=True)
    root = os.path.relpath(containers.REPOSITORY, directory)
    for key in ("resources", "components"):
        inner[key] = [each.replace("pg-preflight/k8s", f"{root}/k8s") for each in inner[key]]
    images = inner.pop("images")
    app = yaml.safe_load((APP / example / "deployment.yaml").read_text())
    app["spec"]["template"]["spec"]["initContainers"] = [{"name": "theirs", "image": "app-image"}]
    app["spec"]["template"]["spec"]["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    (directory / "deployment.yaml").write_text(yaml.safe_dump(app))
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(inner))
    for above, below in ((directory.parent, "inner"), (directory.parents[1], "middle")):
        (above / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [below]}))
    outermost = {"resources": ["outer"], "namePrefix": "shop-", "images": images}
    (place / "kustomization.yaml").write_text(yaml.safe_dump(outermost))
    return kustomize(place)


@pytest.mark.parametrize(
    ("number", "example", "gate", "kinds"),
    [
        (0, "init-container", "preflight", {"Deployment"}),
        (1, "job", "wait-for-schema", {"Deployment", "Job", "CronJob"}),
    ],
    ids=["init-container", "job"],
)
def test_outer_overlay_puts_the_gate_first_and_names_its_image(
    tmp_path: Path, number: int, example: str, gate: str, kinds: set[str]
) -> None:
    """What the page says, three layers deep: ours before theirs, and no placeholder left."""
    found = stacked(tmp_path, number, example)

    workloads = {each["kind"]: each for each in found if each["kind"] in kinds}
    pod = workloads["Deployment"]["spec"]["template"]["spec"]
    names = [each["name"] for each in pod["initContainers"]]
    assert kinds == workloads.keys()
    assert [gate, "theirs"] == names
    assert {"name": "tmp", "emptyDir": {}} in pod["volumes"]
    assert "preflight-image" not in yaml.safe_dump_all(found)
    assert "registry.example/team/pg-preflight:0.1.0-pg17-full" == pod["initContainers"][0]["image"]
    assert "NetworkPolicy" not in {each["kind"] for each in found}


def test_backups_in_a_bucket_need_no_volume(tmp_path: Path) -> None:
    """What the page says: the keys come from their Secret, and nothing of the volume is left."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (block,) = [each for each in blocks if "PREFLIGHT_BACKUP_DIR" in each]
    root = os.path.relpath(containers.REPOSITORY, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(block.replace("pg-preflight/k8s", f"{root}/k8s"))

    said = [yaml.safe_dump(each) for each in kustomize(tmp_path)]

    assert [] == [each for each in said if "preflight-backups" in each]
    assert 2 == sum("secretRef:\n" in each and "preflight-bucket" in each for each in said)


@pytest.mark.parametrize(("example", "pods"), [("init-container", 2), ("job", 3)])
def test_secret_of_an_operator_is_what_every_pod_gets(
    tmp_path: Path, example: str, pods: int
) -> None:
    """What the page says of CloudNativePG: migrations, those that wait, and the nightly backup."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (block,) = [
        each for each in blocks if "Kustomization" in each and "cluster-example-app" in each
    ]
    root = os.path.relpath(containers.REPOSITORY, tmp_path)
    wanted = yaml.safe_load(block) | {
        "resources": [f"{root}/examples/kubernetes/{example}"],
        "components": [f"{root}/k8s/components/nightly-backup"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(wanted))

    said = [yaml.safe_dump(each) for each in kustomize(tmp_path)]

    assert [] == [each for each in said if "preflight-database" in each]
    assert pods == sum("cluster-example-app" in each for each in said)


def test_what_carries_no_label_and_a_group_of_its_own_are_left_alone(tmp_path: Path) -> None:
    """Another Deployment beside it is not touched, and `fs-group: own` keeps the pod's group."""
    (app,) = yaml.safe_load_all((APP / "init-container" / "deployment.yaml").read_text())
    app["metadata"]["labels"]["pg-preflight/fs-group"] = "own"
    app["spec"]["template"]["spec"]["securityContext"]["fsGroup"] = 1000
    other = yaml.safe_load(yaml.safe_dump(app))
    other["metadata"] = {"name": "other"}
    root = os.path.relpath(containers.REPOSITORY, tmp_path)
    wanted = {
        "resources": ["apps.yaml", f"{root}/k8s/base"],
        "components": [f"{root}/k8s/components/init-container"],
    }
    (tmp_path / "apps.yaml").write_text(yaml.safe_dump_all([app, other]))
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(wanted))

    found = {each["metadata"]["name"]: each for each in kustomize(tmp_path)}

    assert other == found["other"]
    pod = found["ops-center"]["spec"]["template"]["spec"]
    assert 1000 == pod["securityContext"]["fsGroup"]
    assert ["preflight"] == [each["name"] for each in pod["initContainers"]]
