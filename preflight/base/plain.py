"""What is known without a library: where we are, and how a database is named for us.

Shared with who starts quickly: nothing is imported here but `os`.
"""

import os

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # noqa: PTH120
INSTALLED = HERE.endswith(("/site-packages", "/dist-packages"))  # by pip: no files of ours beside
MIGRATIONS = "migrations" if INSTALLED else os.path.realpath(f"{HERE}/migrations")

DEFAULTS = {"host": "unicorn-postgresql", "port": "5432", "user": "unicorn", "dbname": "unicorn_db"}
VOCABULARIES = {
    "PG*": {
        "host": "PGHOST",
        "hostaddr": "PGHOSTADDR",
        "port": "PGPORT",
        "user": "PGUSER",
        "dbname": "PGDATABASE",
    },
    "POSTGRES_*": {
        "host": "POSTGRES_HOST",
        "port": "POSTGRES_PORT",
        "user": "POSTGRES_USER",
        "dbname": "POSTGRES_DB",
    },
}
SECRET_MAX_BYTES = 64 * 1024
# what libpq opens by itself: its parameter, its variable, and the file below HOME where nobody says
# another; a key it looks at first
OPENED = (
    ("passfile", "PGPASSFILE", ".pgpass"),
    ("sslrootcert", "PGSSLROOTCERT", ".postgresql/root.crt"),
    ("sslcert", "PGSSLCERT", ".postgresql/postgresql.crt"),
    ("sslcrl", "PGSSLCRL", ".postgresql/root.crl"),
)


def host() -> str:
    """Return this host's name in ASCII, which every server and database takes."""
    return os.uname().nodename.encode("ascii", "backslashreplace").decode()
