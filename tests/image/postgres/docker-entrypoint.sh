#!/bin/sh
# What the official image does at its first start, as far as a client can tell.
set -eu
case ${1:-postgres} in postgres | -*) ;; *) exec "$@" ;; esac
[ -z "${POSTGRES_PASSWORD_FILE:-}" ] || POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s\n' "$POSTGRES_PASSWORD" >/tmp/password
    initdb --username="$user" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust \
        --encoding=UTF8 --locale=C.UTF-8 >/dev/null
    rm /tmp/password
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    # the first phase: on the socket alone
    pg_ctl --wait --silent --options="-c listen_addresses='' -k /tmp" start
    [ "$database" = postgres ] || createdb --host=/tmp --username="$user" "$database"
    for script in /docker-entrypoint-initdb.d/*.sql; do
        [ ! -e "$script" ] || psql --quiet -v ON_ERROR_STOP=1 -h /tmp -U "$user" -d "$database" -f "$script"
    done
    pg_ctl --wait --silent --mode=fast stop
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
