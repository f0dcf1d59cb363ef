#!/bin/sh
# Run a command while podman runs in a container, with the images of the test in it.
# ../shared/tools/podman-kube.sh makes it; PODMAN_KUBE names another script that does the same.
set -eu
cd "$(dirname "$0")/../.."
kube=${PODMAN_KUBE:-../shared/tools/podman-kube.sh}
[ -x "$kube" ] || { echo "$kube is not there: PODMAN_KUBE names a script that starts podman" >&2; exit 1; }
docker build --quiet --tag pg-preflight-test/kubectl tests/cluster
docker build --quiet --tag localhost/pg-preflight-test/postgres:17 tests/image/postgres
docker tag "${PG_PREFLIGHT_IMAGE:-pg-preflight:pg17}" localhost/pg-preflight:test
docker inspect podman-kube >/dev/null 2>&1 && docker rm --force --volumes podman-kube >/dev/null
trap '"$kube" down >/dev/null' EXIT
"$kube" up
"$kube" load localhost/pg-preflight:test localhost/pg-preflight-test/postgres:17
"$@"
