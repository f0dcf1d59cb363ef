"""What only a real cluster has: several replicas. Not for podman, which makes one of everything."""

from tests.cluster.conftest import Place, Render

CAT = {"001_create_cat.sql": "CREATE TABLE cat (name text);\n"}


def test_three_replicas_at_once_apply_each_file_once(place: Place, render: Render) -> None:
    """Each file once, one backup, and every replica's app starts."""
    three = (
        "- {op: replace, path: /spec/replicas, value: 3}\n"
        "- {op: replace, path: /spec/strategy, value: {type: RollingUpdate}}\n"
    )
    place.play(render("k8s/overlays/init-container", migrations=CAT, patch=three))

    code, _ = place.ended("ops-center", "preflight")

    assert 0 == code
    assert "1" == place.query("SELECT count(*) FROM preflight.journal WHERE event = 'applied'")
