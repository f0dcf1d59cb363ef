#!/bin/sh
# Build the image for one client major and say how large it is.
# usage: image/build.sh [17|18] [arguments for docker build]       tags pg-preflight:pg17 or :pg18
#        PG_PREFLIGHT_IMAGE=pg-preflight:pg17-full image/build.sh 17 --build-arg FULL=1
set -eu
cd "$(dirname "$0")/.."
major=${1:-17}
[ $# -eq 0 ] || shift
case $major in
    17) base=debian:trixie-slim ;;
    18) base=debian:forky-slim ;; # Debian's next release
    *) echo "image/build.sh: no Debian release is known here for client $major; 17 and 18 are" >&2; exit 2 ;;
esac
image=${PG_PREFLIGHT_IMAGE:-pg-preflight:pg$major}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' preflight/__init__.py)
if revision=$(git rev-parse HEAD 2>/dev/null); then
    epoch=$(git log -1 --format=%ct)
    set -- --label "org.opencontainers.image.revision=$revision" \
        --label "org.opencontainers.image.created=$(git log -1 --format=%cI)" \
        --build-arg "SOURCE_DATE_EPOCH=$epoch" "$@"
fi
if address=$(git remote get-url origin 2>/dev/null); then
    set -- --label "org.opencontainers.image.source=$address" "$@"
fi
docker build --quiet --tag "$image" --build-arg "BASE=${BASE:-$base}" --build-arg "PG_MAJOR=$major" \
    --label "org.opencontainers.image.version=$version" "$@" .
raw=$(docker image inspect --format '{{.Size}}' "$image")
packed=$(docker save "$image" | gzip -9 | wc -c)
echo "$image: $raw bytes, compressed $packed"
