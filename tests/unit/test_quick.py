"""What the quick look takes for plain, the configuration reads in the same way."""

import hashlib
from itertools import product
from pathlib import Path

import pytest

from preflight.base import plain
from preflight.base.config import SETTINGS, Config
from preflight.base.errors import ConfigInvalid
from preflight.quick import door, told

VALUES = (
    "", "0", "1", "01", "7", "1.5", "-1", " 1", "1 ", "\u0661", "999999", "9999999", "off", "on",
    "OFF", "auto", "json", "gcp", "console", "info", "debug", "required", "always", "local",
    "server", "refuse", "pending", "allow", "fail", "public", "select", "preflight", "preflight_x",
    "s3://", "s3://bucket/app", "s3:/bucket", "ftp://x", "file:///x",
    "preflight_", "Preflight", "pg_x", "a b", "/backups", "relative/x", "'x'", '"x"', "é", "a\tb",
)  # fmt: skip
TARGETS = {
    "PGHOST": (None, "", "db", "db,other", "a@b", "/run", "'db'", "dé"),
    "PGPORT": (None, "5433", "0", "70000", "x", "05432", "005432"),
    "PGDATABASE": (None, "app", "postgres://u:p@h/d", "host=h password=p"),
    "PGUSER": (None, "postgres://u:p@h/d"),
    "POSTGRES_HOST": (None, "db", "other"),
    "POSTGRES_PORT": (None, "5433", "tcp://10.0.0.1:5432"),
    "POSTGRES_PASSWORD": (None, "secret", "'secret'", "ü"),
    "PGCONNECT_TIMEOUT": (None, "10", "10s", "-1"),
    "PSYCOPG_IMPL": (None, "c"),
}
URLS = (
    "postgresql://u:p@h:5433/d", "postgres://u@h/d", "postgresql://h", "postgresql:///d",
    "postgresql://u:p%40x@h/d", "postgresql://u:p%zz@h/d", "postgresql://u:p%C3%A9@h/d",
    "postgresql://u:p%00@h/d", "postgresql://u:p@w@h/d", "postgresql://u:p/w@h/d",
    "postgresql://u:p:w@h/d", "postgresql://:p@h/d", "postgresql://u:@h/d", "postgresql://h:/d",
    "postgresql://h:x/d", "postgresql://h/d/e", "postgresql://[::1]/d", "postgresql://a,b/d",
    "postgresql://u:p@h/d?sslmode=require", "postgresql://u:p@h/d?sslmode=no-verify",
    "postgresql://u:p@h/d?sslmode=require&x=y", "postgresql://u:p@h/d?", "postgresql://h/d#x",
    "postgresql+asyncpg://u:p@h/d", "jdbc:postgresql://h/d", "mysql://u:p@h/d", "h", " postgres://h",
    "'postgres://h/d'", "postgresql://%68/%64", "postgresql://u%3Ax:p@h/d", "POSTGRES://h/d",
)  # fmt: skip


def plainly(environ: dict[str, str]) -> dict[str, str] | None:
    """Return the target that the quick look takes, or None."""
    try:
        return told.target(environ)
    except told.Unclear:
        return None


def test_taken_settings_are_valid() -> None:
    """A value that `Config` refuses, or that changes what is logged, is never taken."""
    taken = set()
    for name, value in product(SETTINGS, VALUES):
        variable = f"PREFLIGHT_{name}"
        try:
            told.settings(told.plain_ones({variable: value}))
        except told.Unclear:
            continue
        config = Config.from_env({variable: value}, Path(plain.MIGRATIONS), "run")
        assert () == config.warnings
        taken |= {name} if value else set()

    assert {"BACKUP_DIR", "LOG", "LOCK_TIMEOUT_MS", "SCHEMA", "REHEARSE_ON"} < taken


@pytest.mark.parametrize("url", [None, *URLS])
def test_taken_targets_are_those_of_the_configuration(url: str | None) -> None:
    """Where the quick look takes a target, `Config` reads the same one, without a warning."""
    taken = 0
    combinations = product(*TARGETS.values()) if url is None else [(None,) * len(TARGETS)]
    for values in combinations:
        said = {
            name: value for name, value in zip(TARGETS, values, strict=True) if value is not None
        }
        environ = said | ({"DATABASE_URL": url} if url else {})
        try:
            target = plainly(told.plain_ones(environ))
        except told.Unclear:
            continue
        if target is None:
            continue
        try:
            config = Config.from_env(environ, Path(plain.MIGRATIONS), "run")
        except ConfigInvalid as wrong:
            raise AssertionError(environ) from wrong
        assert (environ, dict(config.target)) == (environ, target)
        assert () == config.warnings
        assert "PSYCOPG_IMPL" not in environ  # another libpq, or none
        taken += 1

    assert taken or url


@pytest.mark.parametrize("size", [2, door.SMALL - 1, door.SMALL, door.SMALL + 1, 3 * door.SMALL])
def test_file_of_any_size_is_read_whole(tmp_path: Path, size: int) -> None:
    """To the last byte, however many reads that takes."""
    text = b"-" * (size - 1) + b"\n"
    (tmp_path / "001_one.sql").write_bytes(text)

    expected = {1: ("001_one", hashlib.sha256(text).hexdigest())}
    assert expected == door.read(str(tmp_path)).forward


@pytest.mark.parametrize("text", [b" \n", b";", b" ; \r\n;\n", b"\xef\xbb\xbf\n", b"-- x\0", b""])
def test_file_that_holds_no_statement_is_left_to_the_full_path(tmp_path: Path, text: bytes) -> None:
    """It may be refused there, as other tools record it gladly."""
    (tmp_path / "001_one.sql").write_bytes(text)

    with pytest.raises(told.Unclear):
        door.read(str(tmp_path))


def test_only_what_has_to_be_resolved_is_asked_for_in_a_thread() -> None:
    """An address and a socket's directory are known at once; whatever else may take minutes."""
    known = ("/run/postgresql", "127.0.0.1", "255.255.255.255")
    names = ("localhost", "db", "1.2.3", "1.2.3.256", "1.2.3.4.5", "1.2.3.\u0661", "::1", "a.b.c.d")

    assert dict.fromkeys(known, True) == {host: told.needs_no_name(host) for host in known}
    assert dict.fromkeys(names, False) == {host: told.needs_no_name(host) for host in names}
