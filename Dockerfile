# pg-preflight as an image: CPython, psycopg on Debian's libpq, pg_dump and pg_restore; no shell.
#
#   docker build -t pg-preflight:pg17 .                                    Debian 13, client 17
#   docker build -t pg-preflight:pg18 --build-arg BASE=debian:forky-slim --build-arg PG_MAJOR=18 .
#   docker build -t pg-preflight:pg17-full --build-arg FULL=1 .            with a throwaway server
#
# A release pins the base by its digest: --build-arg BASE=debian:trixie-slim@sha256:…
# There is no HEALTHCHECK, because the job ends, and no VOLUME: an anonymous volume would look like a
# place for backups that somebody keeps.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
ARG PG_MAJOR=17
# Debian's packages move with its security updates, so no patch level of theirs is named here.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
    binutils ca-certificates gcc libc6-dev libpq-dev musl-tools patchelf "postgresql-client-${PG_MAJOR}" \
    python3 python3-dev python3-pip python3-setuptools python3-wheel tzdata \
 && rm -rf /var/lib/apt/lists/*
# By hash; all but psycopg's C part from wheels. What builds that part is Debian's.
WORKDIR /build
COPY requirements-image.lock ./
RUN pip install --quiet --no-cache-dir --disable-pip-version-check --no-compile \
    --require-hashes --no-deps --only-binary :all: --no-binary psycopg-c --no-build-isolation \
    --target libraries --requirement requirements-image.lock
# The full image has a server, too: postgres, its extensions, a cluster made here. No initdb, which
# needs a shell; no JIT, which needs 120 MB. And what reaches a bucket, which is 16 MB, and what seals, 2 MB.
ARG FULL=
# hadolint ignore=DL3008
RUN if [ -n "${FULL}" ]; then \
    mkdir -p /etc/postgresql-common \
 && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
 && apt-get update \
 && apt-get install -y --no-install-recommends locales "postgresql-${PG_MAJOR}" \
 && rm -rf /var/lib/apt/lists/*; fi
COPY requirements-stores.lock ./
RUN if [ -n "${FULL}" ]; then \
    pip install --quiet --no-cache-dir --disable-pip-version-check --no-compile \
    --require-hashes --no-deps --only-binary :all: \
    --target libraries --requirement requirements-stores.lock; fi
COPY image/assemble.py image/launcher.c ./
COPY entrypoint.py app/
COPY preflight/ app/preflight/
ARG SOURCE_DATE_EPOCH
RUN python3 assemble.py /image libraries app "${PG_MAJOR}" "${FULL}"

FROM scratch
ARG BASE
ARG PG_MAJOR=17
ARG FULL=
COPY --from=build /image/ /
ENV PATH=/usr/bin \
    LANG=C.UTF-8 \
    LC_ALL=C.UTF-8 \
    PYTHONTZPATH=/usr/share/zoneinfo
# A number: Kubernetes cannot tell that a name is not root's. Any other works, too.
USER 65532:0
STOPSIGNAL SIGTERM
WORKDIR /app
# Isolated: a PYTHONUTF8 or PYTHONPATH that is meant for the app must not stop the job. What is
# imported is found by /usr/lib/python3/dist-packages/pg-preflight.pth. /app, /usr/bin and /usr/lib are
# links into /opt/pg-preflight, which runs in any other image, too: /opt/pg-preflight/bin/pg-preflight.
ENTRYPOINT ["python3", "-I", "/app/entrypoint.py"]
LABEL org.opencontainers.image.title="pg-preflight" \
      org.opencontainers.image.description="Brings a PostgreSQL database up to date before the application starts" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}" \
      io.pg-preflight.client="${PG_MAJOR}" \
      io.pg-preflight.server="${FULL:+${PG_MAJOR}}"
