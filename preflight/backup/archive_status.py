"""What is said of an archive: its newest segment and its base backups, by whichever tool keeps it.

Pure: JSON goes in, values come out. Several documents may follow each other in one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# and no half of one, as a promotion leaves it, nor what is noted of a base backup
SEGMENT = re.compile(
    r"[0-9A-F]{24}(?![0-9A-F]|\.partial|\.[0-9A-F]{8}\.backup)", re.ASCII | re.IGNORECASE
)
_TIMELINE, _FOLDER = 8, 16  # the first digits of a segment's name


class Unclear(Exception):
    """What is said is not what such a tool says; the text is a sentence's end."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base backup that came to its end."""

    name: str
    finished_at: datetime
    tool: str
    stanza: str = ""  # of pgBackRest
    segment: str = ""  # the first that is needed with it, where that is said


@dataclass(frozen=True, slots=True)
class Place:
    """Where pgBackRest keeps the segments of one server."""

    repo: int  # its number
    stanza: str
    name: str  # of its folder there


@dataclass(frozen=True, slots=True)
class Status:
    """What an archive holds of one server."""

    segments: frozenset[str] = frozenset()  # the newest one of each timeline, as far as it is said
    firsts: frozenset[str] = frozenset()  # the oldest one, likewise
    bases: tuple[Base, ...] = ()
    others: frozenset[str] = frozenset()  # system identifiers of other servers that it speaks of
    missing: frozenset[str] = frozenset()  # segments that it says are not there, with later ones
    places: frozenset[Place] = frozenset()
    troubles: frozenset[str] = frozenset()  # why it cannot say more

    @property
    def newest(self) -> Base | None:
        """The base backup that was finished last."""
        return max(self.bases, key=lambda base: base.finished_at, default=None)

    def holds(self, segment: str) -> bool:
        """Tell whether a segment has come, or a later one of its timeline."""
        return segment not in self.missing and any(
            found[:_TIMELINE] == segment[:_TIMELINE] and found >= segment for found in self.segments
        )

    def gap(self, base: Base, segment: str) -> str | None:
        """Return the first segment that is missing on the way from a base backup to another one.

        One of a timeline that was left since may be told although nobody needs it.
        """
        if base.segment and self._begins_after(base.segment):
            return base.segment
        ours = {name[:_TIMELINE] for name in (base.segment, segment) if name}
        first, last = base.segment[_TIMELINE:], segment[_TIMELINE:]
        return min(
            (
                name
                for name in self.missing
                if name[:_TIMELINE] in ours and first <= name[_TIMELINE:] <= last
            ),
            default=None,
        )

    def _begins_after(self, segment: str) -> bool:
        """Tell whether even the oldest segment that could be this one is a later one."""
        same = {each for each in self.firsts if each[:_TIMELINE] == segment[:_TIMELINE]}
        return bool(self.firsts) and min(same or self.firsts) > segment

    def beside(self, other: Status) -> Status:
        """Return both together."""
        return Status(
            self.segments | other.segments,
            self.firsts | other.firsts,
            self.bases + other.bases,
            self.others | other.others,
            self.missing | other.missing,
            self.places | other.places,
            self.troubles | other.troubles,
        )


def absent(base: Base, segment: str, there: Collection[str], size: int) -> str | None:
    """Return the first segment that is not there on the way from a base backup to another one.

    A number may be there on any timeline from the one to the other. `size` of each, in bytes.
    """
    first, last = base.segment, segment
    found = {
        name[_TIMELINE:]
        for name in there
        if first[:_TIMELINE] <= name[:_TIMELINE] <= last[:_TIMELINE]
    }
    a_file = (1 << 32) // size  # so many share the middle digits
    for number in range(_number(first, a_file), _number(last, a_file) + 1):
        digits = f"{number // a_file:08X}{number % a_file:08X}"
        if digits not in found:
            return last[:_TIMELINE] + digits
    return None


def folders(base: Base, segment: str, there: Iterable[str]) -> list[str]:
    """Return those of an archive's folders that the way to a segment may lead through."""
    first, last = base.segment, segment
    return sorted(
        each
        for each in there
        if first[:_TIMELINE] <= each[:_TIMELINE] <= last[:_TIMELINE]
        and first[_TIMELINE:_FOLDER] <= each[_TIMELINE:_FOLDER] <= last[_TIMELINE:_FOLDER]
    )


def _number(segment: str, a_file: int) -> int:
    return int(segment[_TIMELINE:_FOLDER], 16) * a_file + int(segment[_FOLDER:], 16)


def read(text: str, system: str) -> Status:
    """Return what a text says of the server with this system identifier; raises Unclear."""
    found, any_known = Status(), False
    for document in _documents(text):
        for reader in (_pgbackrest, _walg_backups, _walg_segments, _cluster, _plain):
            try:
                part = reader(document, system)
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError):
                continue
            if part is not None:
                found, any_known = found.beside(part), True
                break
    if not any_known:
        raise Unclear(
            "is not what `pgbackrest info --output=json`, `wal-g backup-list --detail --json`, "
            "`wal-g wal-show --detailed-json` or a CloudNativePG Cluster says"
        )
    return found


def _documents(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    text = text.strip().removeprefix("\ufeff")
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise Unclear("is no JSON") from None
        yield document
        while at < len(text) and text[at].isspace():
            at += 1


def _pgbackrest(said: Any, system: str) -> Status | None:  # noqa: ANN401 -- JSON
    """`pgbackrest info --output=json`: a list of stanzas."""
    if not isinstance(said, list) or not all("archive" in each and "db" in each for each in said):
        return None
    found = Status()
    for stanza in said:
        ours = {
            (each["id"], each.get("repo-key"))
            for each in stanza["db"]
            if str(each["system-id"]) == system
        }

        def of_ours(item: Mapping[str, Any], ours: set[tuple[Any, Any]] = ours) -> bool:
            whose = item["database"]
            return (whose["id"], whose.get("repo-key")) in ours

        archives = [each for each in stanza["archive"] if of_ours(each)]
        found = found.beside(
            Status(
                frozenset({segment_of(each["max"]) for each in archives} - {""}),
                frozenset({segment_of(each.get("min")) for each in archives} - {""}),
                tuple(
                    Base(
                        each["label"],
                        _epoch(each["timestamp"]["stop"]),
                        "pgbackrest",
                        stanza["name"],
                        segment_of(each.get("archive", {}).get("start")),
                    )
                    for each in stanza.get("backup", ())
                    if of_ours(each) and not each.get("error")
                ),
                frozenset({str(each["system-id"]) for each in stanza["db"]} - {system}),
                places=frozenset(
                    Place(each["database"].get("repo-key", 1), stanza["name"], each["id"])
                    for each in archives
                    if each.get("id")
                ),
                troubles=frozenset(_troubles(stanza)),
            )
        )
    return found


def _troubles(stanza: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a stanza cannot be told of, in the words of pgBackRest."""
    for repo in stanza.get("repo", ()):
        if repo["status"]["code"]:
            first, *_ = str(repo["status"]["message"]).splitlines() or ["?"]
            yield f"stanza {stanza['name']}, repository {repo['key']}: {first}"


def _walg_backups(said: Any, system: str) -> Status | None:  # noqa: ANN401 -- JSON
    """`wal-g backup-list --detail --json`: a list of base backups."""
    if not isinstance(said, list) or not all("backup_name" in each for each in said) or not said:
        return None
    whose = [str(each.get("system_identifier") or system) for each in said]
    bases = [
        Base(
            str(each["backup_name"]),
            moment(each.get("finish_time") or each["time"]),
            "wal-g",
            segment=segment_of(each.get("wal_file_name")),
        )
        for each, server in zip(said, whose, strict=True)
        if server == system
    ]
    return Status(bases=tuple(bases), others=frozenset(whose) - {system})


def _walg_segments(said: Any, _system: str) -> Status | None:  # noqa: ANN401 -- JSON
    """`wal-g wal-show --detailed-json`: a list of timelines."""
    if not isinstance(said, list) or not all("end_segment" in each for each in said) or not said:
        return None
    missing = {segment_of(name) for each in said for name in each.get("missing_segments") or ()}
    return Status(
        frozenset({segment_of(each["end_segment"]) for each in said} - {""}),
        frozenset({segment_of(each.get("start_segment")) for each in said} - {""}),
        missing=frozenset(missing - {""}),
    )


def _cluster(said: Any, system: str) -> Status | None:  # noqa: ANN401 -- JSON
    """A CloudNativePG Cluster: its last base backup, no segment."""  # noqa: D401 -- likewise
    if not isinstance(said, dict) or said.get("kind") != "Cluster":
        return None
    status, name = said["status"], said.get("metadata", {}).get("name", "cluster")
    whose = str(status.get("systemID") or system)
    if whose != system:
        return Status(others=frozenset({whose}))
    last = status.get("lastSuccessfulBackup")
    return Status(bases=(Base(name, moment(last), "cloudnative-pg"),) if last else ())


def _plain(said: Any, system: str) -> Status | None:  # noqa: ANN401 -- JSON
    """What any job can write: `archived` and `base_backup`."""  # noqa: D401 -- likewise
    if not isinstance(said, dict) or not said.keys() & {"archived", "base_backup"}:
        return None
    whose = str(said.get("system_identifier") or system)
    if whose != system:
        return Status(others=frozenset({whose}))
    segments = {segment_of(said["archived"])} - {""} if said.get("archived") else set()
    base = said.get("base_backup")
    bases = (Base(str(base["name"]), moment(base["finished_at"]), "file"),) if base else ()
    return Status(frozenset(segments), bases=bases)


def segment_of(text: str | None) -> str:
    """Return the bare name of a segment, without what a tool appends; "" for none."""
    found = SEGMENT.match(str(text or "").upper())
    return found[0] if found else ""


def _epoch(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def moment(text: str) -> datetime:
    """Return a time as JSON has it, which names its zone; raises ValueError."""
    text = re.sub(r"(\.\d{6})\d+", r"\1", str(text))  # some say nanoseconds
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(text)
    return found
