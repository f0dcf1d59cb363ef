"""Restore a backup beside the live database and, when asked, put it in its place.

The new database is made from template0 with the live one's encoding and locale, closed to PUBLIC
until its rows are compared. Both renames of a swap are one transaction, so a swap is done or not;
what an interrupted call left is told by the comment on the new database, and used or dropped.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from preflight import archive, backup, history, lock, server, stop, store
from preflight.errors import (
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConfigInvalid,
    TargetUnusable,
)

if TYPE_CHECKING:
    from preflight.config import Config
    from preflight.server import Session
    from preflight.store import Backup

MAINTENANCE = ("postgres", "template1", "template0")  # nobody is in their way there
MARK = "pg-preflight restore: "
RENAME_TRIES = 10
UNFINISHED = f"{MARK}unfinished"
LAST_SESSIONS_S = 2.0
NAME_BYTES = 63
KNOWS_TRANSACTION_TIMEOUT = 17
NEWBORN_LIMIT = 70_613  # the connection limit of a database that has no comment yet
# settings whose value is a list of quoted names already (pg_dump's variable_is_guc_list_quote)
_WORD = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",\s]+))\s*(?:,|$)')
LISTS = {
    "local_preload_libraries", "search_path", "session_preload_libraries",
    "shared_preload_libraries", "temp_tablespaces", "unix_socket_directories",
}  # fmt: skip

_DATABASE = """
SELECT d.oid, pg_catalog.pg_get_userbyid(d.datdba)::text AS owner,
 pg_catalog.pg_encoding_to_char(d.encoding)::text AS encoding, d.datcollate::text AS lc_collate,
 d.datctype::text AS lc_ctype, d.datconnlimit AS connection_limit, d.datacl IS NULL AS default_acl,
 pg_catalog.to_jsonb(d) AS everything,
 pg_catalog.shobj_description(d.oid, 'pg_database') AS comment
FROM pg_catalog.pg_database d WHERE d.datname = %s::name
"""
_GRANTS = """
SELECT a.grantee = 0::oid AS to_public, pg_catalog.pg_get_userbyid(a.grantee)::text,
 a.privilege_type, a.is_grantable
FROM pg_catalog.pg_database d, pg_catalog.aclexplode(
 coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
WHERE d.oid = %s::oid
"""
_SETTINGS = """
SELECT CASE WHEN s.setrole <> 0::oid THEN pg_catalog.pg_get_userbyid(s.setrole)::text END,
 pg_catalog.unnest(s.setconfig)
FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase = %s::oid
"""
_SESSIONS = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), a.usename::text
FROM pg_catalog.pg_stat_activity a
WHERE a.datname IN (%s::name, %s::name) AND a.pid <> pg_catalog.pg_backend_pid()
 AND a.usesysid IS NOT NULL  -- of other roles' sessions, backend_type may not be seen
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Which backup goes where."""

    source: Backup
    live: str
    into: str

    @property
    def mark(self) -> str:
        """The comment that says which backup a database holds, completely."""
        return f"{MARK}{self.source.name}"


def run(config: Config, name: str, *, into: str | None, swap: bool, end_sessions: bool) -> None:
    """Restore into a new database; with `swap`, rename it into the live one's place.

    Raises ConfigInvalid (no such backup), BackupUnverified (damaged, or rows differ),
    TargetUnusable (no right, name taken, sessions in the way).
    """
    began = time.monotonic()
    place = _place(config, name, into)
    home = next(name for name in MAINTENANCE if name not in (place.live, place.into))
    maintenance = dataclasses.replace(config, target={**config.target, "dbname": home})
    with server.connect(maintenance) as session:
        session.learn(session.ask(f"SELECT {server.FACTS}")[0])
        server.require_writable(session)
        session.grow_up()
        lock.acquire(session)
        if not _finished_before(session, place):
            _require_whole(place.source)
            with _new_database(session, place):
                _fill(session, config, place)
                try:
                    _dress(session, place)
                except psycopg.errors.InsufficientPrivilege as error:
                    raise TargetUnusable(
                        "restore.no_right",
                        "this role may not give the new database the owner, rights and settings "
                        f"of the live one: {error.diag.message_primary}",
                        "Run as the live database's owner, or as a superuser.",
                        sqlstate=error.sqlstate,
                    ) from error
        kept = _swap(session, place, end_sessions=end_sessions) if swap else None
    structlog.get_logger().info(
        "restore.finished",
        backup=place.source.name,
        database=place.live if swap else place.into,
        kept_as=kept,
        rows=sum(place.source.manifest["rows"].values()),
        duration_s=round(time.monotonic() - began, 3),
    )


def _place(config: Config, name: str, into: str | None) -> Place:
    source = find(config.backup_dir, name, config.database)
    live = config.database
    target = into or _suffixed(live, "_restored")
    if target == live or len(target.encode()) > NAME_BYTES:
        reason = "is the live database itself" if target == live else "is longer than 63 bytes"
        raise ConfigInvalid(
            "config.arguments",
            f"--into {target!r} {reason}",
            "A restore goes beside it, under another name; --swap puts it in its place.",
        )
    return Place(source, live, target)


def _suffixed(name: str, suffix: str) -> str:
    """Return a database's name with a suffix, as long as the server lets it be."""
    return name.encode()[: NAME_BYTES - len(suffix)].decode("utf-8", "ignore") + suffix


def find(directory: Path, name: str, database: str) -> Backup:
    """Return a backup by name, path, or `latest` of a database; raises ConfigInvalid."""
    at = Path(name)
    if at.is_absolute() or "/" in name:
        directory, name = at.parent, at.name
    try:
        known = store.listing(directory)
    except OSError as error:
        raise ConfigInvalid(
            "config.backup_dir",
            f"the backups in {directory} cannot be read: {error.strerror}",
            "Set PREFLIGHT_BACKUP_DIR, or mount the volume.",
        ) from error
    ours = [item for item in known if item.manifest.get("database") == database]
    if name == "latest" and ours:
        return ours[-1]
    for item in known:
        if item.name == name:
            return item
    raise ConfigInvalid(
        "config.arguments",
        f"there is no backup {name!r} in {directory}",
        "See `backups --table`." if known else "That directory holds no backup.",
    )


def _require_whole(source: Backup) -> None:
    try:
        digest, _ = archive.hash_of(source.path / store.DUMP)
    except OSError as error:
        raise BackupFailed(
            "backup.directory",
            f"{source.path / store.DUMP} cannot be read: {error.strerror}",
            "Correct its rights, or run as the user that made it.",
        ) from error
    if digest != source.manifest["sha256"]:
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} is not what was written: its hash differs from the manifest's",
            "Use another backup (`backups --table`) and check the disk.",
        )


def _finished_before(session: Session, place: Place) -> bool:
    """Tell whether an earlier call restored this backup there; drop what one left half done."""
    found = _database(session, place.into)
    if found is None:
        return False
    said = found["comment"] or ""
    if said == place.mark:
        return True
    newborn = not said and found["connection_limit"] == NEWBORN_LIMIT
    if said == UNFINISHED or (newborn and not found["everything"]["datallowconn"]):
        _drop(session, place.into)
        return False
    what = f"the restore of {said.removeprefix(MARK)}" if said.startswith(MARK) else "not ours"
    raise TargetUnusable(
        "restore.exists",
        f"the database {place.into!r} exists already and is {what}",
        "Choose another name with --into, or drop it.",
    )


def _database(session: Session, name: str) -> dict[str, Any] | None:
    cursor = session.execute(_DATABASE, [name])
    row = cursor.fetchone()
    names = [column.name for column in cursor.description or ()]
    return dict(zip(names, row, strict=True)) if row else None


@contextmanager
def _new_database(session: Session, place: Place) -> Iterator[None]:
    """Make the database, closed to everybody else; drop it again when what follows fails."""
    live = _database(session, place.live)
    name = _quoted(place.into)
    command = f"CREATE DATABASE {name} TEMPLATE template0 ALLOW_CONNECTIONS false"
    command += f" CONNECTION LIMIT {NEWBORN_LIMIT}"
    if live:
        command += locale_options(live)
    try:
        session.execute(command)
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetUnusable(
            "restore.no_right",
            "this role may not create a database",
            "ALTER ROLE … CREATEDB, or run the restore as a role that may.",
            sqlstate=error.sqlstate,
        ) from error
    try:
        with history.transaction(session):  # nobody was let in before PUBLIC is locked out
            session.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
            _comment(session, place.into, UNFINISHED)
            session.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true CONNECTION LIMIT -1")
        yield
        _comment(session, place.into, place.mark)
    except BaseException:
        if not session.lost:
            _drop(session, place.into)
        raise


def locale_options(live: Mapping[str, Any]) -> str:
    """Return the options of CREATE DATABASE that give a new one the live one's text rules."""
    everything = live["everything"]
    options = f" ENCODING {_literal(live['encoding'])}"
    options += f" LC_COLLATE {_literal(live['lc_collate'])} LC_CTYPE {_literal(live['lc_ctype'])}"
    provider = everything.get("datlocprovider")
    locale = everything.get("datlocale") or everything.get("daticulocale")
    if provider == "i":
        options += f" LOCALE_PROVIDER icu ICU_LOCALE {_literal(locale)}"
        if rules := everything.get("daticurules"):
            options += f" ICU_RULES {_literal(rules)}"
    elif provider == "c":
        options += " LOCALE_PROVIDER libc"
    elif provider == "b":
        options += f" LOCALE_PROVIDER builtin BUILTIN_LOCALE {_literal(locale)}"
    return options


def _drop(session: Session, name: str) -> None:
    session.connection.execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)".encode())


def _comment(session: Session, name: str, text: str) -> None:
    session.execute(f"COMMENT ON DATABASE {_quoted(name)} IS {_literal(text)}")


def _fill(session: Session, config: Config, place: Place) -> None:
    """Run pg_restore and compare every table's rows with the manifest."""
    clients = archive.clients(config, session)
    address = {**session.address(), "dbname": place.into}
    dump = place.source.path / store.DUMP
    with archive.passfile(session) as environment:
        # one job where each would complain of transaction_timeout: their words could mix
        old = session.facts is not None and session.facts.major < KNOWS_TRANSACTION_TIMEOUT
        jobs = 1 if old else max(1, min(4, os.cpu_count() or 1))
        command = restore_command(clients.pg_restore, address, dump, jobs)
        code, said = archive.listen(command, environment)
    _require_clean(code, said, old=old)
    found = dataclasses.replace(config, target={**config.target, "dbname": place.into})
    with server.connect(found) as other:
        other.facts = session.facts
        other.grow_up()
        rows = backup.count_rows(other)
        other.execute("ANALYZE")
    different = {
        table: (rows.get(table), count)
        for table, count in place.source.manifest["rows"].items()
        if rows.get(table) != count
    }
    if different:
        shown = [f"{t} has {found} rows, not {wanted}" for t, (found, wanted) in different.items()]
        raise BackupUnverified(
            "restore.rows_differ",
            f"{len(different)} tables differ from the manifest: {'; '.join(shown[:5])}",
            "The new database was dropped; the live one was not touched.",
        )


def _require_clean(code: int, said: list[str], *, old: bool) -> None:
    """Make sure that pg_restore did all of it; raises BackupUnverified, BackupInterrupted."""
    problems, waved = real_problems(said, old=old)
    if problems:
        raise BackupUnverified(
            "restore.failed",
            f"pg_restore reports: {'; '.join(problems[:3])}",
            "The new database was dropped; the live one was not touched. A dump of a newer major "
            "version or of roles that this server lacks cannot be restored here.",
        )
    if code not in (0, 1 if waved else 0):
        raise BackupInterrupted(
            "restore.client",
            f"pg_restore ended with {code}: {' '.join(said[-3:]) or 'without a word'}",
            "Run again; the live database was not touched.",
        )


def restore_command(
    pg_restore: str, address: Mapping[str, str], dump: Path, jobs: int
) -> list[str]:
    """Return the pg_restore call; the password is in a passfile, never here."""
    conninfo = make_conninfo("", **address)
    return [
        pg_restore,
        "--format=custom",
        f"--jobs={jobs}",
        "--no-password",
        f"--dbname={conninfo}",
        str(dump),
    ]


def real_problems(said: Sequence[str], *, old: bool) -> tuple[list[str], int]:
    """Return pg_restore's errors but the one that a client 17 causes on an older server.

    It sends SET transaction_timeout whatever wrote the archive. The server's words may be
    localised, but the setting's name and the command on the next line are not. Also return how many
    of these there were.
    """
    problems, waved, after = [], 0, [*said[1:], ""]
    for line, following in zip(said, after, strict=False):  # nothing said: no line
        found = re.match(r"pg_restore: (?:error|fatal): (.*)", line)
        if found is None:
            continue
        setting = "could not execute query" in line and "transaction_timeout" in line
        if old and setting and following.strip() == "Command was: SET transaction_timeout = 0;":
            waved += 1
        else:
            problems.append(found[1])
    return problems, waved


def _dress(session: Session, place: Place) -> None:
    """Give the new database the live one's owner, settings, rights and connection limit."""
    live = _database(session, place.live)
    name = _quoted(place.into)
    if live is None:  # nothing to copy from: a restore on a new server
        session.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC")
        return
    for role, setting in session.execute(_SETTINGS, [live["oid"]]).fetchall():
        session.execute(setting_command(name, role, setting))
    session.execute(f"ALTER DATABASE {name} CONNECTION LIMIT {live['connection_limit']}")
    for to_public, role, privilege, grantable in session.execute(_GRANTS, [live["oid"]]).fetchall():
        if to_public or role != live["owner"]:
            to = "PUBLIC" if to_public else _quoted(role)
            option = " WITH GRANT OPTION" if grantable else ""
            session.execute(f"GRANT {privilege} ON DATABASE {name} TO {to}{option}")
    session.execute(f"ALTER DATABASE {name} OWNER TO {_quoted(live['owner'])}")


def setting_command(database: str, role: str | None, setting: str) -> str:
    """Return the ALTER that gives a (quoted) database one of its settings, `name=value`."""
    name, _, value = setting.partition("=")
    whom = f"ROLE {_quoted(role)} IN DATABASE {database}" if role else f"DATABASE {database}"
    words = [quoted.replace('""', '"') or plain for quoted, plain in _WORD.findall(value)]
    said = ", ".join(map(_literal, words)) if name in LISTS and value else _literal(value)
    quoted = ".".join(_quoted(part) for part in name.split("."))
    return f"ALTER {whom} SET {quoted} TO {said}"


def _swap(session: Session, place: Place, *, end_sessions: bool) -> str | None:
    """Rename both databases in one transaction; return the old one's new name."""
    kept = _suffixed(place.live, f"_before_{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    for attempt in range(1, RENAME_TRIES + 1):
        others = _others(session, place)
        if others and not end_sessions:
            names = ", ".join(f"pid {pid} ({name}, {user})" for pid, name, user in others[:10])
            raise _in_the_way(place, f"{len(others)} sessions are connected: {names}")
        try:
            with history.transaction(session):
                for pid, *_ in others:
                    session.execute("SELECT pg_catalog.pg_terminate_backend(%s::int4)", [pid])
                return _rename(session, place, kept)
        except psycopg.errors.ObjectInUse as error:  # somebody connected in between
            if attempt == RENAME_TRIES:
                said = f"{error.diag.message_primary}: {error.diag.message_detail}"
                raise _in_the_way(place, said) from error
            stop.sleep(0.1 * attempt)
        except psycopg.errors.InsufficientPrivilege as error:
            raise TargetUnusable(
                "restore.no_right",
                f"this role may not swap the databases: {error.diag.message_primary}",
                f"Run as the owner with CREATEDB (to end sessions: pg_signal_backend); the "
                f"restored database {place.into!r} is complete and waits.",
                sqlstate=error.sqlstate,
            ) from error
    return None


def _others(session: Session, place: Place) -> list[tuple[Any, ...]]:
    """Return who is connected to either database, once our own last sessions had time to end."""
    until = time.monotonic() + LAST_SESSIONS_S
    while found := session.execute(_SESSIONS, [place.live, place.into]).fetchall():
        if time.monotonic() >= until:
            break
        stop.sleep(0.1)
    return found


def _in_the_way(place: Place, what: str) -> TargetUnusable:
    return TargetUnusable(
        "restore.sessions",
        what,
        f"The restored database {place.into!r} is complete and waits. Stop the app and run the "
        "same command again, or add --end-sessions.",
    )


def _rename(session: Session, place: Place, kept: str) -> str | None:
    live, into = _quoted(place.live), _quoted(place.into)
    before = _database(session, place.live)
    if before:
        session.execute(f"ALTER DATABASE {live} RENAME TO {_quoted(kept)}")
    session.execute(f"ALTER DATABASE {into} RENAME TO {live}")
    comment = before["comment"] if before else None
    session.execute(f"COMMENT ON DATABASE {live} IS {_literal(comment) if comment else 'NULL'}")
    return kept if before else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"  # standard_conforming_strings is on
