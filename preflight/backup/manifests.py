"""A backup and whose it is: values, read from a manifest that nobody trusts."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

FORMAT, FOLDER_FORMAT = 1, 2  # an older version takes no folder for a backup
MANIFEST_MAX_BYTES = 32 << 20  # a line for each of 200,000 tables
LOOPBACK = {"127.0.0.1", "::1"}
DUMP, FOLDER, MANIFEST = "database.dump", "database.dir", "manifest.json"
TOC = "toc.dat"  # in every folder
SEALED = ".age"  # at the end of a file's name
LAST = (1 << 53) - 1  # no sequence is higher
CALLED = re.compile(r"(.+)-(\d{8}T\d{6}Z)-.+")  # a database, a time, a run


@dataclass(frozen=True, slots=True)
class Purpose:
    """Which command a backup was taken for, and the files that were pending then, as JSON.

    `after` names the last change of the history before it: nothing came between two that have the
    same.
    """

    command: str
    pending: Sequence[object] = ()
    after: str | None = None


NOT_GIVEN = "not given to the copy"  # that proved it: the backup has it


@dataclass(frozen=True, slots=True)
class Lacking:
    """A thing that a dump is without, though nothing failed, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension of the live database, and its schema; `its_own`: which it makes by itself."""

    name: str
    schema: str
    schema_owner: str
    its_own: bool
    needed: bool  # something in a backup of some schemas uses it
    version: str


@dataclass(frozen=True, slots=True)
class Part:
    """What a backup of some schemas is of, what it needs first, and the names of what is left out.

    `outside` are the other schemas, and the foreign servers.
    """

    schemas: tuple[str, ...]
    extensions: tuple[Extension, ...] = ()
    outside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of a folder, and what it is sealed as."""

    size_bytes: int
    sha256: str
    sealed_bytes: int | None = None
    sealed_sha256: str | None = None

    @property
    def sealed(self) -> Piece:
        """The file as it is stored, of one that is sealed."""
        return Piece(self.sealed_bytes or 0, self.sealed_sha256 or "")

    def data(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Stored:
    """A dump as its store has it: a file, or a folder of `files`."""

    file: str
    size_bytes: int
    sha256: str | None
    files: Mapping[str, Piece] = field(default_factory=dict)

    def lacks(self, there: Mapping[str, int | None]) -> str | None:
        """Return what is not as it should be of a folder whose files have so many bytes.

        None: it is no plain file.
        """
        said: dict[str, int | None] = {name: each.size_bytes for name, each in self.files.items()}
        names = sorted({name for name, _ in dict(there).items() ^ said.items()})
        if not names:
            return None
        what = "is not there" if names[0] not in there else "is none of it"
        if names[0] in there and names[0] in said:
            what = f"is no file of {said[names[0]]} bytes"
        more = f", and {len(names) - 1} more are not as they were" if len(names) > 1 else ""
        return f"{self.file}/{names[0]} {what}{more}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is written of a backup; None or empty is what an older version did not say."""

    size_bytes: int
    sha256: str | None = None
    rows: Mapping[str, int] | None = None
    sequence: int = 0  # the clock may jump
    run_id: str | None = None
    database: str | None = None
    system_identifier: str = ""
    address: str = ""
    timeline: int | None = None
    snapshot_at: str | None = None
    server_version: int | None = None
    version: str | None = None
    pg_dump: str | None = None
    file: str = DUMP
    files: Mapping[str, Piece] = field(default_factory=dict)  # of a dump that is a folder
    taken_for: Purpose | None = None
    verified: str | None = None
    without: tuple[Lacking, ...] = ()
    belongings: object = None  # belongings.of_manifest reads it
    database_bytes: int | None = None  # of the live database when it was dumped
    roles: tuple[str, ...] = ()  # that a restore needs
    partial: Part | None = None  # of some schemas only
    extensions: tuple[Extension, ...] = ()  # of the live database; a dump does not say the version
    lacks: tuple[str, ...] = ()  # of new_database.BROUGHT
    switched: tuple[str, ...] = ()  # triggers of foreign keys that are off, as in `catalog`
    sealed_sha256: str | None = None  # of the file as it is stored; the others are of the dump
    sealed_bytes: int | None = None
    recipients: tuple[str, ...] = ()  # public: whose keys open it
    excepted: tuple[str, ...] = ()  # entries that cannot be there; the key is `except`
    more: Mapping[str, Any] = field(default_factory=dict)  # said by a later version, and kept

    @property
    def sealed(self) -> bool:
        """Whether the dump is sealed."""
        return self.sealed_sha256 is not None

    @property
    def stored(self) -> Stored:
        """The dump in the store."""
        if self.files and self.sealed:
            size = self.sealed_bytes or 0
            return Stored(FOLDER, size, self.sealed_sha256, sealed(self.files))
        if self.files:
            return Stored(FOLDER, self.size_bytes, self.sha256, self.files)
        if self.sealed:
            return Stored(f"{DUMP}{SEALED}", self.sealed_bytes or 0, self.sealed_sha256)
        return Stored(DUMP, self.size_bytes, self.sha256)

    def data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        said, plain["except"] = plain.pop("more"), plain.pop("excepted")
        del plain["files"]
        told = {key: value for key, value in plain.items() if value is not None and value != ()}
        if self.files:
            told["files"] = {name: piece.data() for name, piece in self.files.items()}
        if self.taken_for:
            told["taken_for"] = asdict(self.taken_for)
        if self.partial:
            told["partial"] = asdict(self.partial)
        if self.extensions:
            told["extensions"] = [asdict(each) for each in self.extensions]
        if self.without:
            told["without"] = [asdict(each) for each in self.without]
        return {"format": FOLDER_FORMAT if self.files else FORMAT, **told, **said}

    def text(self) -> bytes:
        """Return it as it is written."""
        return json.dumps(self.data(), indent=2, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Backup:
    """A verified backup: its name in its store, its manifest."""

    name: str
    manifest: Manifest

    @property
    def schemas(self) -> tuple[str, ...]:
        """The schemas that it is limited to; none: it is of all."""
        return self.manifest.partial.schemas if self.manifest.partial else ()

    @property
    def origin(self) -> tuple[str, str]:
        """The server's system identifier, and its address as configured ("": an older backup)."""
        return self.manifest.system_identifier, self.manifest.address


@dataclass(frozen=True, slots=True)
class Bad:
    """What is called like a backup, has a manifest, and cannot be used."""

    name: str
    why: str
    said: Manifest | None = None  # where that can be read


@dataclass(frozen=True, slots=True)
class Listed:
    """What a store has: whole backups, the oldest first by `sequence`, and others."""

    whole: list[Backup]
    bad: list[Bad]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose backups these are: of which server, reached where, and of which database.

    A physical copy of a server has its system identifier, too, so the address as it is configured
    tells them apart. The timeline does not: a failover changes it. A backup of some schemas is none
    of all, or of others.
    """

    system: str
    database: str
    address: str = ""
    schemas: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The database's name as a safe part of a file name."""
        return re.sub(r"[^A-Za-z0-9_.]", "_", self.database).lstrip(".") or "_"

    def ours(self, known: Sequence[Backup]) -> list[Backup]:
        """Return which backups are surely of this database.

        One that does not say its address is, where no other address is said beside it.
        """
        whose = (self.system, self.database)
        own = [item for item in known if (item.origin[0], item.manifest.database) == whose]
        agreed = {item.origin[1] for item in own} <= {"", self.address}
        return [
            item
            for item in own
            if item.origin[1] in ((self.address, "")[: 1 + agreed]) and item.schemas == self.schemas
        ]

    def stamp(self, name: str) -> str | None:
        """Return the time in the name of a backup of this database; None: no such name."""
        found = CALLED.fullmatch(name)
        return found[2] if found and found[1] == self.slug else None

    def meant(self, bad: Bad) -> bool:
        """Tell whether what cannot be used may be of this database, under whatever address.

        Its manifest says so, or, where nobody can read that, its name.
        """
        if bad.said is None:
            return self.stamp(bad.name) is not None
        systems = {self.system, bad.said.system_identifier} - {""}
        whose = bad.said.database, Backup(bad.name, bad.said).schemas
        return len(systems) <= 1 and whose == (self.database, self.schemas)

    def hidden(self, what: str, name: str) -> str:
        """Return the name of something of ours that is no backup, or none any more."""
        return f".{what}-{self.system}-{self.slug}-{self._tag}-{name}"

    def patterns(self, what: str) -> tuple[str, str]:
        """Return the globs of what `hidden` names, and of what older versions did: no address."""
        return self.hidden(what, "*"), f".{what}-{self.system}-{self.slug}-[!@]*"

    @property
    def _tag(self) -> str:
        return f"@{zlib.crc32(self.address.encode()):08x}"


def address(target: Mapping[str, str]) -> str:
    """Return how libpq parameters name a server: `host:port` of each host, in order of the names.

    No user and no secret. The names of this machine are one; a host's name is kept as it is, and
    not resolved: it may lead elsewhere tomorrow.
    """
    hosts = (target.get("host") or target.get("hostaddr") or "").split(",")
    ports = target.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    pairs = zip(hosts, ports, strict=False)
    return ",".join(sorted({f"{_host(host)}:{port or 5432}" for host, port in pairs}))


def _host(name: str) -> str:
    if name.startswith(("/", "@")):
        return name
    lower = name.lower().rstrip(".")
    return "localhost" if lower in LOOPBACK else lower


def following(known: Sequence[Backup]) -> int:
    """Return the next sequence; where somebody wrote the last one, it stays, and names tell."""
    return min(LAST, 1 + max((item.manifest.sequence for item in known), default=0))


def origins(known: Sequence[Backup]) -> dict[tuple[str, str], list[Backup]]:
    """Return backups by where they are from; one that does not say joins the only others."""
    found: dict[tuple[str, str], list[Backup]] = {}
    for item in known:
        system, where = item.origin
        said = {other.origin[1] for other in known if other.origin[0] == system} - {""}
        where = where or (said.pop() if len(said) == 1 else "")
        found.setdefault((system, where), []).append(item)
    return found


class Unreadable(Exception):
    """What is no whole backup of ours; the text says what is wrong with it."""

    def __init__(self, why: str, said: Manifest | None = None) -> None:
        super().__init__(why)
        self.said = said  # its manifest, where that can be read


class Withheld(Unreadable):
    """What this user may not read, or not now: nobody has seen anything wrong with it."""


class Never(Unreadable):
    """What never was one: a link, a hidden name, neither manifest nor dump."""


def parsed(said: object) -> Manifest:
    """Return what JSON says of a backup; raises Unreadable naming what is not as it should be."""
    wrong = _wrong(said)
    if wrong or not isinstance(said, dict):
        raise Unreadable(f"{MANIFEST} is not one of ours: {wrong}")
    known = {each.name for each in fields(Manifest)} - {"more", "excepted"} | {"except"}
    plain = {key: value for key, value in said.items() if key in known and value is not None}
    if "files" in plain:
        plain["files"] = _pieces(said["files"])
    if "taken_for" in plain:
        purpose = plain["taken_for"]
        plain["taken_for"] = Purpose(
            purpose["command"], purpose.get("pending", []), purpose.get("after")
        )
    plain["without"] = tuple(Lacking(each["what"], each["why"]) for each in said.get("without", ()))
    plain["roles"] = tuple(said.get("roles", ()))
    plain["recipients"] = tuple(said.get("recipients", ()))
    plain["lacks"] = tuple(said.get("lacks", ()))
    plain["switched"] = tuple(said.get("switched", ()))
    if "partial" in plain:
        plain["partial"] = _part(plain["partial"])
    plain["extensions"] = _extensions(said.get("extensions", ()))
    plain["excepted"] = tuple(plain.pop("except", ()))
    more = {key: value for key, value in said.items() if key not in known | {"format"}}
    return Manifest(**plain, more=more)


def _part(said: Mapping[str, Any]) -> Part:
    return Part(
        tuple(sorted(said["schemas"])), _extensions(said["extensions"]), tuple(said["outside"])
    )


def _extensions(said: Sequence[Mapping[str, Any]]) -> tuple[Extension, ...]:
    return tuple(
        Extension(**{each.name: item[each.name] for each in fields(Extension)}) for item in said
    )


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _text(value: object) -> bool:
    return isinstance(value, str)


def _or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _is_extension(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(_text(value.get(key)) for key in ("name", "schema", "schema_owner", "version"))
        and all(type(value.get(key)) is bool for key in ("its_own", "needed"))
    )


def _is_part(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _texts(value.get("schemas"))
        and len(value["schemas"]) > 0
        and _texts(value.get("outside"))
        and _are_extensions(value.get("extensions"))
    )


def _are_extensions(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_extension, value))


_PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")


def _are_files(value: object) -> bool:
    return (
        isinstance(value, dict)
        and TOC in value
        and all(map(_PLAIN_FILE.fullmatch, value))
        and all(
            isinstance(each, dict)
            and _count(each.get("size_bytes"))
            and _text(each.get("sha256"))
            and _count(each.get("sealed_bytes", 0))
            and _text(each.get("sealed_sha256", ""))
            for each in value.values()
        )
    )


def _pieces(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Piece]:
    return {
        name: Piece(**{key.name: each[key.name] for key in fields(Piece) if key.name in each})
        for name, each in said.items()
    }


def sealed(files: Mapping[str, Piece]) -> dict[str, Piece]:
    """Return the files of a sealed folder as they are stored."""
    return {f"{name}{SEALED}": each.sealed for name, each in files.items()}


def total(files: Mapping[str, Piece]) -> int:
    """Return how many bytes a folder has."""
    return sum(each.size_bytes for each in files.values())


def combined(files: Mapping[str, Piece]) -> str:
    """Return the hash of a folder: of what `sha256sum *` says of it, in order of the names."""
    said = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))
    return hashlib.sha256(said.encode()).hexdigest()


def _agree(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a folder's files are what the manifest says of all of them."""
    if manifest["format"] == FORMAT:
        return "files" not in manifest
    if "files" not in manifest:
        return False
    files = _pieces(manifest["files"])
    if (said := manifest.get("sealed_sha256")) is not None:
        stored = sealed(files)
        if (combined(stored), total(stored)) != (said, manifest.get("sealed_bytes")):
            return False
    return (combined(files), total(files)) == (manifest.get("sha256"), manifest["size_bytes"])


SCHEMA: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: type(value) is int and value in {FORMAT, FOLDER_FORMAT},
    "sequence": lambda value: _count(value) and value <= LAST,
    "size_bytes": _count,
    "sha256": _text,
    "rows": lambda value: isinstance(value, dict) and all(map(_count, value.values())),
    "database": _text,
    "system_identifier": _text,
    "address": _text,
    "timeline": lambda value: value is None or _count(value),
    "snapshot_at": _text,
    "taken_for": lambda value: (
        isinstance(value, dict)
        and isinstance(value.get("command"), str)
        and isinstance(value.get("pending", []), list)
        and _or_none(value.get("after"))
    ),
    "verified": _text,
    "run_id": _text,
    "server_version": lambda value: value is None or _count(value),
    "version": _or_none,
    "pg_dump": _or_none,
    "file": _text,
    "files": _are_files,
    "sealed_sha256": _or_none,
    "sealed_bytes": lambda value: value is None or _count(value),
    "recipients": _texts,
    "lacks": _texts,
    "switched": _texts,
    "database_bytes": _count,
    "roles": _texts,
    "extensions": _are_extensions,
    "partial": lambda value: value is None or _is_part(value),
    "except": _texts,
    "without": lambda value: (
        isinstance(value, list)
        and all(
            isinstance(each, dict) and _text(each.get("what")) and _text(each.get("why"))
            for each in value
        )
    ),
}
ALWAYS = {"format", "sequence", "size_bytes"}


def _wrong(manifest: object) -> str | None:
    """Name a key of a manifest that is not as it should be."""
    if not isinstance(manifest, dict):
        return "no object"
    for key, right in SCHEMA.items():
        if (key in manifest or key in ALWAYS) and not right(manifest.get(key)):
            return f"`{key}`"
    return None if _agree(manifest) else "`files`"
