"""The way to the copy: who is let in there, and with which environment a command gets there."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.backup import new_database, passfile
from preflight.base import console, quoting
from preflight.base.config import completed
from preflight.base.errors import RehearsalFailed
from preflight.commands.wrapping import environment, fences
from preflight.rehearsal import cluster
from preflight.server import dial

if TYPE_CHECKING:
    from preflight.commands.wrapping.asked import Wrapped
    from preflight.rehearsal.copies import Copy
    from preflight.server.sessions import Session

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_ROLES = "SELECT r.rolname::text FROM pg_catalog.pg_roles r WHERE r.rolname = ANY (%s::text[])"
_SETTINGS = """
SELECT r.rolname::text, s.setdatabase = 0, pg_catalog.unnest(s.setconfig)
FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
WHERE r.rolname = ANY (%s::text[])
 AND (s.setdatabase = 0 OR d.datname = pg_catalog.current_database())
"""
# where a libpq of Debian's, of PGDG's for Red Hat and of Alpine looks for services
_OF_SYSTEMS = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc/postgresql"]
_DIRECTORY = "pg-preflight-wrap-"


@contextmanager
def to_copy(session: Session, copy: Copy, wrapped: Wrapped) -> Iterator[environment.Led]:
    """Yield the environment and the arguments that lead a command to the copy.

    What leads to another database of the live server, where a command can get there, is told among
    what is not led. Secret files that it reads are private ones meanwhile. Raises RehearsalFailed
    where no variable names the live database.
    """
    live = live_of(session, wrapped)
    named = _led(wrapped, live, environment.Copy("-", "0", "-", live.user)).users
    live = dataclasses.replace(live, roles=frozenset(_known(session, named)))
    let_in = _let_in(copy, named - {""})
    _give_settings(session, copy, let_in, named)
    led = _led(wrapped, live, let_in)
    if not led.variables:
        raise RehearsalFailed(
            "wrap.no_address",
            "no variable of the environment names the live database"
            + (f" in a form that can be led ({console.some(led.left)})" if led.left else "")
            + ", so the command cannot be led to the copy",
            "Give it the address as DATABASE_URL, PGHOST and PGDATABASE, or DB_HOST and DB_NAME; "
            "one that has another form with --url-variable NAME. Nothing was started.",
        )
    with ExitStack() as stack:
        found, text, theirs = dict(led.environment), "", _passfile(wrapped.environ)
        if led.passfile:
            text = _text(theirs)
            gate = bool(wrapped.environ.get("PGSERVICE"))
            text = environment.passfile(text, live, let_in, gate=gate)
        if led.files or text:
            place = stack.enter_context(passfile.folder(_DIRECTORY))
            with passfile.placed(passfile.FILES):
                for name, new in led.files.items():
                    _write(place / name, new, Path(wrapped.environ[name]))
                    found[name] = str(place / name)
                if text:
                    _write(place / "passfile", text, theirs)
                    found["PGPASSFILE"] = str(place / "passfile")
            place.chmod(0o711)  # who may read one of them may come by, and see no names
        left = led.left if fences.walled(session, copy) else (*led.left, *led.others)
        yield dataclasses.replace(led, environment=found, left=left)


def _passfile(environ: Mapping[str, str]) -> Path:
    """Return where libpq looks for a passfile."""
    return Path(environ.get("PGPASSFILE") or f"{environ.get('HOME', '')}/.pgpass")


def _text(path: Path) -> str:
    """Return what a file holds; "" for none, and for a pipe, which would be waited at."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    return ""


def _write(path: Path, text: str, original: Path) -> None:
    """Write a file in the place of another one: who may read that may read it, and nobody else.

    A command may go on as another user than ours.
    """
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")
    with suppress(OSError):  # else it is ours alone
        was = original.stat()
        mode = was.st_mode & 0o444
        if os.geteuid() == 0:
            os.chown(path, was.st_uid, was.st_gid)
        else:
            mode = 0o600 | (was.st_mode & 0o044)
            try:
                os.chown(path, -1, was.st_gid)
            except OSError:
                mode &= ~0o040
        path.chmod(mode)


def names(session: Session, wrapped: Wrapped) -> set[str]:
    """Return the variables and arguments that name the live database."""
    live = live_of(session, wrapped)
    return set(_led(wrapped, live, environment.Copy("-", "0", "-", live.user)).variables)


def _led(wrapped: Wrapped, live: environment.Live, copy: environment.Copy) -> environment.Led:
    return environment.led(
        wrapped.environ,
        live,
        copy,
        arguments=wrapped.asked.command,
        also=wrapped.asked.url_variable,
        files=wrapped.files,
        services=_services(wrapped.environ),
    )


def _services(environ: Mapping[str, str]) -> set[str]:
    """Return the services that a command's libpq finds; none where there is no file of them."""
    own = environ.get("PGSERVICEFILE") or f"{environ.get('HOME', '')}/.pg_service.conf"
    folders = [environ["PGSYSCONFDIR"]] if environ.get("PGSYSCONFDIR") else _OF_SYSTEMS
    found = set[str]()
    for path in (own, *(f"{folder}/pg_service.conf" for folder in folders)):
        found |= environment.services(_text(Path(path)))
    return found


def live_of(session: Session, wrapped: Wrapped) -> environment.Live:
    """Return the live database by every name that is known of its server."""
    service = wrapped.environ.get("PGSERVICE")
    options = completed({"service": service}).get("options", "") if service else ""
    info, target = session.connection.info, session.target
    hosts = {info.host, info.hostaddr, *target.get("host", "").split(",")}
    hosts |= set(target.get("hostaddr", "").split(","))
    ports = {str(info.port), *target.get("port", "").split(",")}
    with suppress(dial.Refused):  # it is reached all the same
        hosts |= {address for _, address, _ in dial.resolve(session.target)}
    if hosts & _LOOPBACK:
        hosts |= _LOOPBACK
    return environment.Live(
        info.dbname,
        frozenset(hosts - {""}),
        frozenset(ports - {""}),
        info.user,
        info.password or None,
        options=options,
    )


def _let_in(copy: Copy, named: frozenset[str]) -> environment.Copy:
    """Let the roles that the environment names into the copy; return how it is reached."""
    info = copy.home.connection.info
    if copy.server is None:
        away = copy.where in {"url", "clone"}
        for role in () if away else _known(copy.home, named - {info.user}):
            _grant(copy.home, copy.name, role)
        return environment.Copy(
            info.host, str(info.port), copy.name, info.user, info.password or None, away=away
        )
    us = copy.session.connection.info.user
    password = secrets.token_urlsafe(24)
    users = frozenset(_known(copy.home, named | {us}))
    for role in users:
        verifier = copy.home.connection.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        ).decode()
        copy.home.execute(
            f"ALTER ROLE {quoting.name(role)} LOGIN PASSWORD {quoting.literal(verifier)}"
            " VALID UNTIL 'infinity'"
        )
    return environment.Copy(
        "127.0.0.1",
        str(copy.server.port),
        copy.name,
        us,
        password,
        users,
        away=True,
        plain=True,
    )


def _known(home: Session, names: frozenset[str]) -> list[str]:
    """Return which roles there are."""
    return [name for (name,) in home.execute(_ROLES, [list(names)]).fetchall()]


def _give_settings(
    session: Session, copy: Copy, led: environment.Copy, named: frozenset[str]
) -> None:
    """Give the roles that keep their names on the copy what they are set to on the live database.

    Ours has it. On a server of our own those that a role has in that database are there, and beside
    the live one those that it has everywhere; what cannot be had is said, without its value.
    """
    ours = {led.user, session.connection.info.user}
    users = (led.users if led.away else named) - ours
    for role, wide, setting in session.execute(_SETTINGS, [list(users)]).fetchall():
        each = new_database.Setting(role, setting)
        if wide != (copy.server is not None) or each.name in cluster.LOADS:
            continue
        if not wide and each.name in new_database.QUIET:
            continue
        on = "" if wide else quoting.name(copy.name)
        try:  # as ours are given, by who logs in
            copy.home.execute(f"SET ROLE NONE; {each.command(on)}; RESET ROLE")
        except psycopg.Error as error:
            if copy.home.lost:
                raise
            copy.home.execute("RESET ROLE")
            structlog.get_logger().warning(
                "rehearsal.warned",
                reason=f"on the copy role {role} cannot have its setting {each.name}: "
                f"{error.diag.message_primary or error}",
            )


def _grant(home: Session, database: str, role: str) -> None:
    """Let another role into a copy that is closed to PUBLIC, if the server lets us."""
    try:
        home.execute(f"GRANT CONNECT ON DATABASE {quoting.name(database)} TO {quoting.name(role)}")
    except psycopg.Error:
        if home.lost:
            raise
