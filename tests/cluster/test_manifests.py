"""k8s/ as it stands: the app starts after the migrations, or never, and the reason is in view."""

from tests.cluster.conftest import Place, Render, until

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
    place.play(render("k8s/overlays/init-container", migrations=BAD))

    code, last = place.ended("ops-center", "preflight")

    assert 30 == code
    assert ("002_divide", 1) == (last["error"]["migration"], last["error"]["line"])
    assert not place.started("ops-center", "app")


def test_app_waits_for_the_schema_that_a_job_makes(place: Place, render: Render) -> None:
    """overlays/job: the Job migrates, the app's init container only looks."""
    place.play(render("k8s/overlays/job", migrations=CAT))

    job, made = place.ended("ops-center-migrate-002", "preflight")
    wait, seen = place.ended("ops-center", "wait-for-schema")

    assert (0, ["001_create_cat"]) == (job, made["applied"])
    assert (0, "wait") == (wait, seen["command"])
    until(lambda: place.started("ops-center", "app"), "the app started")


def test_app_never_starts_when_the_job_fails(place: Place, render: Render) -> None:
    """The Job ends with 30; the app's init container says that the schema is behind."""
    until(place.answers, "the database answers")
    place.play(render("k8s/overlays/job", migrations=BAD, patches={"Deployment": NO_PATIENCE}))

    job, made = place.ended("ops-center-migrate-002", "preflight")
    wait, seen = place.ended("ops-center", "wait-for-schema")

    assert (30, "002_divide") == (job, made["error"]["migration"])
    assert (3, "schema.pending") == (wait, seen["error"]["code"])
    assert not place.started("ops-center", "app")
