"""Which databases and schemas a fleet is of, and what differs between them."""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from preflight.backup import manifests, restored
from preflight.base import config as settings
from preflight.base import console, plain, urls
from preflight.base.errors import ConfigInvalid, Problem
from preflight.rehearsal import scratch
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.base.config import Config

KEYS = ("name", "url_file", "database", "schema", "role", "search_path")
WHERE = ("host", "hostaddr", "port", "user", "password", "dbname")
MOST_BYTES = 16 << 20
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # as PostgreSQL does
_PATH = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^",\s]+))\s*(?:,|\Z)')
# neither templates nor what an interrupted DROP DATABASE has left (-2): nobody can connect to it
_DATABASES = """
SELECT d.datname::text, d.datallowconn,
 coalesce(pg_catalog.shobj_description(d.oid, 'pg_database'), '')
FROM pg_catalog.pg_database d
WHERE d.datname::text LIKE %s::text AND NOT d.datistemplate AND d.datconnlimit <> -2
ORDER BY d.datname
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One database, or one schema of it, and how this run is to go there."""

    name: str
    config: Config
    extra: Mapping[str, str] = field(default_factory=dict)  # its role and search_path
    options: str = ""  # of libpq, without these
    said: Mapping[str, str] = field(default_factory=dict)  # what is its own, by the keys of a file

    def whole(self) -> Target:
        """Return its database as a whole, in nobody's role: what is backed up for many."""
        target = {**self.config.target}
        if self.extra:
            target["options"] = self.options
        return Target(self.name, dataclasses.replace(self.config, target=target, schemas=()))

    @property
    def database(self) -> tuple[str, ...]:
        """Which database it is, whatever schema of it, as far as its address tells."""
        target = self.config.target
        server = (manifests.address(target), target.get("hostaddr", ""), target.get("service", ""))
        return (*server, target.get("dbname") or target.get("user", ""))

    @property
    def way(self) -> tuple[str, ...]:
        """Which database it is and how one goes there, whatever schema of it."""
        return (*self.database, self.config.target.get("user", ""), self.options)


class _Wrong(Exception):
    """What is wrong with a line; the text is the rest of a sentence."""


def listed(config: Config, path: Path) -> list[Target]:
    """Return the targets of a file, a JSON object a line; raises ConfigInvalid, all at once."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigInvalid(
            "config.targets", f"--targets names {path}, which cannot be read: {why}"
        ) from error
    if len(data) > MOST_BYTES:
        raise ConfigInvalid(
            "config.targets", f"--targets names {path}, which is larger than {MOST_BYTES >> 20} MiB"
        )
    found: list[Target] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_target(config, path.parent, line, f"{path}:{number}"))
        except _Wrong as wrong:
            problems.append(Problem(f"{path}:{number}: {wrong}", file=str(path), line=number))
    problems += [Problem(f"{path}: {each}") for each in clashes(found)]
    if problems:
        raise ConfigInvalid.of("config.targets", problems)
    if not found:
        raise ConfigInvalid("config.targets", f"--targets names {path}, which has no target")
    return found


def each_database(config: Config, pattern: str) -> list[Target]:
    """Return every database of the server whose name is LIKE a pattern; raises ConfigInvalid."""
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise ConfigInvalid(
            "config.targets",
            f"{pattern!r} ends with a backslash, which stands before the character that it means",
            "Two of them stand for one.",
        )
    with sessions.connect(config) as session:
        rows = [
            (name, is_open, comment)
            for name, is_open, comment in session.execute(_DATABASES, [pattern]).fetchall()
            # what we have made for a while, or left half done
            if not comment.startswith(scratch.MARK) and comment != restored.UNFINISHED
        ]
    rows = _without_put_aside(rows)
    names = [name for name, is_open, _ in rows if is_open]
    closed = [name for name, is_open, _ in rows if not is_open]
    if not names:
        raise ConfigInvalid(
            "config.targets",
            f"no database of this server has a name LIKE {pattern!r}"
            + (f" and takes connections; closed: {console.some(closed)}" if closed else ""),
            "% stands for any text, _ for one character; templates and copies do not count.",
        )
    for name in closed:
        warning = f"{name} takes no connections (ALLOW_CONNECTIONS false): it is left out"
        structlog.get_logger().warning("config.warned", warning=warning)
    made = [name for name, is_open, said in rows if is_open and said.startswith(restored.MARK)]
    _tell_restored(made)
    return [
        Target(
            name,
            dataclasses.replace(
                config,
                target={**config.target, "dbname": name},
                said_in={"dbname": "--each-database"},
            ),
            said={"database": name},
        )
        for name in names
    ]


def _without_put_aside(rows: list[tuple[str, bool, str]]) -> list[tuple[str, bool, str]]:
    """Leave out, and name, what a swap has put aside for one that is meant as well."""
    lives = [name for name, *_ in rows]
    aside = {name for name in lives if restored.put_aside(name, lives)}
    if aside:
        warning = (
            f"left out, for `restore --swap` has put them aside for live ones that are targets: "
            f"{console.some(sorted(aside))}. Drop them when nobody needs them any more."
        )
        structlog.get_logger().warning("config.warned", warning=warning)
    return [row for row in rows if row[0] not in aside]


def _tell_restored(names: list[str]) -> None:
    """Say which targets `restore` has made: beside a live one, perhaps, to be looked at."""
    if names:
        warning = (
            f"taken for live ones, though `restore` has made them: {console.some(names)}. One that "
            "is migrated cannot be swapped in any more. Choose a pattern without them, or drop "
            "them; of one that is live, COMMENT ON DATABASE … IS NULL ends this warning."
        )
        structlog.get_logger().warning("config.warned", warning=warning)


# what a key of a line says, by the name of `Config.said_in`: as libpq has it, or as we do
_SAYS = {"database": "dbname", "role": "role", "schema": "schema", "search_path": "schemas"}


def _target(config: Config, beside: Path, line: str, place: str) -> Target:
    said = _object(line)
    target = dict(config.target)
    said_in: dict[str, str] = {}
    if "url_file" in said:
        target = {key: value for key, value in target.items() if key not in WHERE}
        said["url_file"] = str((beside / said["url_file"]).absolute())
        url = _url(Path(said["url_file"]), config.environ)
        target |= url if "service" in url else sessions.UNSAID | url
        said_in = dict.fromkeys(WHERE, f"the URL in {said['url_file']}")
    if "database" in said:
        target["dbname"] = said["database"]
    extra: dict[str, str] = {key: said[key] for key in ("role", "search_path") if key in said}
    said_in |= {name: f"`{key}` in {place}" for key, name in _SAYS.items() if key in said}
    changed: dict[str, Any] = {"target": sessions.with_settings(target, extra), "said_in": said_in}
    if "schema" in said:
        changed["schema"] = _checked("schema", said["schema"], settings.SETTINGS["SCHEMA"])
    if "search_path" in said:
        user = said.get("role") or target.get("user", "")
        changed["schemas"] = (_first(said["search_path"], user),)
    changed_config = dataclasses.replace(config, **changed)
    name = said.pop("name")
    return Target(name, changed_config, extra, target.get("options", ""), said)


def _object(line: str) -> dict[str, str]:
    try:
        said = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _Wrong("is no JSON object") from None
    if not isinstance(said, dict):
        raise _Wrong("is no JSON object")
    if unknown := sorted(said.keys() - set(KEYS)):
        raise _Wrong(
            f"has keys that are not known: {', '.join(unknown)} (known: {', '.join(KEYS)})"
        )
    for key, value in said.items():
        if not isinstance(value, str) or not value or not value.isprintable() or "\\" in value:
            raise _Wrong(f"`{key}` is no plain text")
    if "name" not in said:
        raise _Wrong("has no `name`")
    return said


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Wrong("says a key twice")
    return found


def _checked(key: str, value: str, parse: Any) -> Any:  # noqa: ANN401 -- a setting's own kind
    try:
        return parse(value)
    except ValueError:
        raise _Wrong(f"`{key}` {value!r} is not {settings.described(parse)}") from None


def _first(path: str, user: str) -> str:
    """Return the schema that names without one are made in: a search_path's first.

    `"$user"` is of whom it acts as.
    """
    found: list[str] = []
    at = 0
    while at < len(path):
        item = _PATH.match(path, at)
        if item is None:
            raise _Wrong("`search_path` is none")
        found.append(item[1].replace('""', '"') if item[1] else item[2].translate(_LOWER))
        at = item.end()
    found = [user if name == "$user" else name for name in found]
    named = [name for name in found if name and not name.startswith("pg_")]
    if not named:
        raise _Wrong("`search_path` names no schema")
    return named[0]


def _url(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            text = file.read(plain.SECRET_MAX_BYTES).decode("utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise _Wrong(f"`url_file` names {path}, which cannot be read: {why}") from error
    try:
        found, _ = urls.read(text)
    except urls.Unreadable as wrong:
        raise _Wrong(f"the URL in {path} {wrong}") from wrong
    for message, _ in settings.misaddressed(found):
        raise _Wrong(f"the URL in {path}: {message}")
    for key, said in settings.unopenable(found, environ):
        if key != "passfile" or not {"passfile", "service"}.isdisjoint(found):
            raise _Wrong(f"in the URL in {path}: {said}")
    if "dbname" not in found:
        raise _Wrong(f"the URL in {path} names no database")
    return settings.whole(found)


def clashes(
    found: Iterable[Target], whose: Callable[[Target], object] = lambda one: one.database
) -> list[str]:
    """Name the targets that are one and the same, or would write into one another's schema.

    `whose` tells which database a target is.
    """
    names: set[str] = set()
    histories: dict[tuple[object, ...], str] = {}
    places: dict[tuple[object, ...], str] = {}
    problems = []
    for each in found:
        if each.name in names:
            problems.append(f"two targets are called {each.name!r}")
            continue
        names.add(each.name)
        history = (whose(each), each.config.schema)
        place = (whose(each), each.config.schemas if "search_path" in each.extra else None)
        if history in histories:
            problems.append(
                f"{each.name!r} and {histories[history]!r} are one database with one `schema`, "
                "which is where the history is"
            )
        elif place in places:
            problems.append(
                f"{each.name!r} and {places[place]!r} are one database with one `search_path`, or "
                "with none that is said here: the files would make the same things twice"
            )
        histories.setdefault(history, each.name)
        places.setdefault(place, each.name)
    return problems


def waves(sizes: Sequence[int], due: Sequence[Target]) -> list[list[Target]]:
    """Return who goes together: as many as each size says, the last size to the end."""
    found: list[list[Target]] = []
    at = 0
    while at < len(due):
        size = sizes[min(len(found), len(sizes) - 1)]
        found.append(list(due[at : at + size]))
        at += size
    return found


def databases(
    chosen: Iterable[Target], places: Mapping[str, str] | None = None
) -> list[list[Target]]:
    """Return the targets of each database together, as far as one goes there in one way.

    `places` says by each one's name which database was found at its address, if anybody looked.
    """
    found: dict[tuple[str, ...], list[Target]] = {}
    for each in chosen:
        found.setdefault(((places or {}).get(each.name, ""), *each.way), []).append(each)
    return list(found.values())
