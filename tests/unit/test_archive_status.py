"""What the tools that keep an archive say of it, in the form in which each says it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from preflight.backup import archive_asked, archive_status
from preflight.base.config import Config

OURS, THEIRS = 7425873164002341901, 7425873164002349999
FIRST = "0000000100000003000000FE"


def walg_backup(name: str, system: int = OURS, **more: object) -> dict[str, Any]:
    """Return an entry of `wal-g backup-list --detail --json`: all that it writes."""
    return {
        "backup_name": f"base_{name}",
        "time": "2026-11-28T01:04:09Z",
        "modified": "2026-11-28T01:04:09Z",
        "wal_file_name": name,
        "wal_segment_backup_start": name,
        "storage_name": "default",
        "start_time": "2026-11-28T01:00:02.481204Z",
        "finish_time": "2026-11-28T01:04:08.118277113Z",
        "date_fmt": "%Y-%m-%dT%H:%M:%S.%fZ",
        "hostname": "db-0",
        "data_dir": "/var/lib/postgresql/17/main",
        "pg_version": 170002,
        "start_lsn": 17146314792,
        "finish_lsn": 17146315080,
        "is_permanent": False,
        "system_identifier": system,
        "uncompressed_size": 31457280,
        "compressed_size": 4194304,
    } | more


def walg_timeline(end: str, *missing: str, number: int = 1) -> dict[str, Any]:
    """Return an entry of `wal-g wal-show --detailed-json`."""
    return {
        "id": number,
        "parent_id": number - 1,
        "switch_point_lsn": 0,
        "start_segment": f"{number:08X}0000000300000001",
        "end_segment": end,
        "segments_count": 254,
        "missing_segments": list(missing),
        "segment_range_size": 254 + len(missing),
        "status": "LOST_SEGMENTS" if missing else "OK",
    }


def read(*documents: object) -> archive_status.Status:
    """Return what is made of several documents in one file."""
    text = "\n".join(json.dumps(each, indent=1) for each in documents)
    return archive_status.read(text, str(OURS))


def test_walg_says_the_newest_segment_and_whose_backups_they_are() -> None:
    """Both answers in one file; a base backup of another server is none."""
    there = read(
        [walg_timeline("000000010000000400000002")],
        [walg_backup(FIRST), walg_backup("000000010000000900000001", THEIRS)],
    )

    assert f"base_{FIRST}" == (there.newest.name if there.newest else None)
    assert {str(THEIRS)} == there.others
    assert there.holds("000000010000000400000002")
    assert not there.holds("000000010000000400000003")


@pytest.mark.parametrize(
    ("missing", "held", "gap"),
    [
        ((), True, None),
        (("0000000100000003000000FD",), True, None),  # before the base backup
        (("0000000100000003000000FE",), True, "0000000100000003000000FE"),
        (("000000010000000400000000", "0000000100000003000000FF"), True,
         "0000000100000003000000FF"),
        (("000000010000000400000001",), False, "000000010000000400000001"),  # itself, on its way
        (("000000010000000400000002",), True, None),  # after the point
    ],
)  # fmt: skip
def test_segment_that_walg_misses_is_not_skipped(
    missing: tuple[str, ...],
    held: bool,  # noqa: FBT001 -- what is expected
    gap: str | None,
) -> None:
    """Later segments do not stand for one that is not there: nobody gets past it."""
    there = read([walg_timeline("000000010000000400000003", *missing)], [walg_backup(FIRST)])
    base = there.newest
    assert base is not None

    segment = "000000010000000400000001"
    assert (held, gap) == (there.holds(segment), there.gap(base, segment))


def test_segments_are_compared_as_digits_of_one_timeline() -> None:
    """Across a border of 4 GB, of other sizes than 16 MB, in either case, not past a switch."""
    pairs = {
        ("0000000100000004", "00000000"): ("0000000100000003", "000000FF"),  # of 16 MB
        ("000000010000000A", "00000000"): ("0000000100000009", "00000003"),  # of 1 GB
        ("0000000100000010", "00000000"): ("000000010000000F", "00000FFF"),  # of 1 MB
    }
    for later, earlier in pairs.items():
        there = read({"archived": "".join(later).lower()})
        assert there.holds("".join(earlier))
        assert not read({"archived": "".join(earlier)}).holds("".join(later))
        other = "00000002" + "".join(earlier)[8:]
        assert not there.holds(other)
        assert there.beside(read({"archived": other})).holds(other)


def test_name_with_what_a_tool_appends_is_the_segments() -> None:
    """As a listing of an archive has it; a history file and a half segment are none."""
    whole = read({"archived": "000000010000000400000001-4a5b6c.zst"})
    assert {"000000010000000400000001"} == whole.segments
    named = "000000010000000400000001"
    for none in ("00000002.history", f"{named}.partial", f"{named}.00000028.backup", f"{named}0"):
        assert frozenset() == read({"archived": none}).segments


def cluster(**status: object) -> dict[str, Any]:
    """Return what `kubectl get cluster main -o json` says, as far as it matters."""
    return {
        "apiVersion": "postgresql.cnpg.io/v1",
        "kind": "Cluster",
        "metadata": {"name": "main", "namespace": "app", "generation": 3},
        "spec": {"instances": 3, "backup": {"barmanObjectStore": {"destinationPath": "s3://b/"}}},
        "status": {
            "phase": "Cluster in healthy state",
            "currentPrimary": "main-1",
            "timelineID": 4,
            "systemID": str(OURS),
            "conditions": [
                {"type": "ContinuousArchiving", "status": "True", "reason": "Success"},
                {"type": "LastBackupSucceeded", "status": "True", "reason": "Success"},
            ],
            "firstRecoverabilityPoint": "2026-11-20T01:00:07Z",
            "firstRecoverabilityPointByMethod": {"barmanObjectStore": "2026-11-20T01:00:07Z"},
            "lastSuccessfulBackup": "2026-11-28T01:00:07Z",
            "lastSuccessfulBackupByMethod": {"barmanObjectStore": "2026-11-28T01:00:07Z"},
        }
        | status,
    }


def test_cloudnativepg_says_its_last_base_backup_and_no_segment() -> None:
    """Of this server; where a plugin makes the backups, the Cluster does not say it."""
    there = read(cluster(), {"archived": "000000040000000000000012"})
    assert there.newest is not None
    assert ("main", "cloudnative-pg") == (there.newest.name, there.newest.tool)
    assert there.holds("000000040000000000000012")
    assert frozenset() == read(cluster()).segments
    assert None is read(cluster(systemID=str(THEIRS))).newest
    assert None is read(cluster(lastSuccessfulBackup=None)).newest


@pytest.mark.parametrize(
    "text",
    ["", "null", "{}", "[1]", '{"kind": "Pod"}', '[{"backup_name": "x"}]', '{"archived": "0"} {',
     '{"base_backup": {"name": "x", "finished_at": "yesterday"}}',
     '{"base_backup": {"name": "x", "finished_at": "2026-11-28T01:00:00"}}'],
)  # fmt: skip
def test_what_no_tool_says_is_unclear(text: str) -> None:
    """Half a form is none, and a time without its zone is no time."""
    with pytest.raises(archive_status.Unclear):
        archive_status.read(text, str(OURS))


def pgbackrest(**more: object) -> dict[str, Any]:
    """Return a stanza of `pgbackrest info --output=json`, with a base backup."""
    whose = {"id": 1, "repo-key": 1}
    return {
        "name": "main",
        "db": [whose | {"system-id": OURS, "version": "17"}],
        "archive": [{"database": whose, "id": "17-1", "min": FIRST, "max": FIRST}],
        "backup": [
            {
                "archive": {"start": FIRST, "stop": FIRST},
                "database": whose,
                "error": False,
                "label": "20261128-010000F",
                "timestamp": {"start": 1795864908, "stop": 1795864959},
                "type": "full",
            }
        ],
        "repo": [{"cipher": "none", "key": 1, "status": {"code": 0, "message": "ok"}}],
        "status": {"code": 0, "message": "ok"},
    } | more


def test_pgbackrest_says_why_it_knows_nothing() -> None:
    """A repository out of reach is no stanza without a base backup: its own words are kept."""
    broken = {"code": 99, "message": "[PathOpenError] unable to list\nHINT: rights"}
    there = read([pgbackrest(db=[], archive=[], backup=[], repo=[{"key": 2, "status": broken}])])

    assert None is there.newest
    assert {"stanza main, repository 2: [PathOpenError] unable to list"} == there.troubles
    assert frozenset() == read([pgbackrest()]).troubles


@pytest.mark.parametrize(
    ("oldest", "gap"),
    [
        (FIRST, None),
        ("0000000100000003000000FD", None),
        ("0000000100000003000000FF", FIRST),
        ("000000020000000000000001", FIRST),  # and nothing of the base backup's own timeline
    ],
)
def test_archive_begins_with_the_base_backup(oldest: str, gap: str | None) -> None:
    """What was swept away before the oldest segment is missing, with whichever tool."""
    last = "000000010000000400000001"
    whose = {"id": 1, "repo-key": 1}
    archive = [{"database": whose, "id": "17-1", "min": oldest, "max": last}]
    walg = [walg_timeline(last) | {"start_segment": oldest}]
    for there in (read([pgbackrest(archive=archive)]), read(walg, [walg_backup(FIRST)])):
        assert there.newest is not None
        assert gap == there.gap(there.newest, last)


@pytest.mark.parametrize(
    ("size", "first", "last", "lost"),
    [
        (16 << 20, "000000010000000A000000FD", "000000010000000B00000002", 3),
        (1 << 30, "000000010000000A00000002", "000000010000000B00000003", 1),
        (1 << 20, "000000010000000A00000FFE", "000000010000000B00000001", 2),
        (16 << 20, "000000010000000A000000FD", "000000030000000B00000002", 4),
    ],
)
def test_segment_in_between_is_counted(size: int, first: str, last: str, lost: int) -> None:
    """Across a border of 4 GB, of any size, on any timeline from the first to the last."""
    a_file = (4 << 30) // size
    start = int(first[8:16], 16) * a_file + int(first[16:], 16)
    end = int(last[8:16], 16) * a_file + int(last[16:], 16)
    timelines = sorted({first[:8], last[:8]})
    names = [
        f"{timelines[number % len(timelines)]}{number // a_file:08X}{number % a_file:08X}"
        for number in range(start, end + 1)
    ]
    base = archive_status.Base("x", datetime.now(UTC), "pgbackrest", "main", first)
    folders = {name[:16] for name in names}
    others = {f"00000001{9:08X}", f"00000004{10:08X}", f"00000001{12:08X}"}

    assert sorted(folders) == archive_status.folders(base, last, folders | others)
    assert None is archive_status.absent(base, last, names, size)
    left = names[:lost] + names[lost + 1 :]
    missing = archive_status.absent(base, last, [*left, "00000004" + names[lost][8:]], size)
    assert last[:8] + names[lost][8:] == missing


@pytest.mark.parametrize(
    ("folder", "gap"),
    [("exit 41", None), ("echo '{}'", "000000010000000000000003")],
)
def test_folder_that_cannot_be_listed_is_not_missing(
    tmp_path: Path, folder: str, gap: str | None
) -> None:
    """A folder of segments that pgBackRest may not list tells nothing; an empty one tells a gap."""
    program = tmp_path / "pgbackrest"
    top = """echo '{"0000000100000000": {"type": "path"}}'"""
    program.write_text(f"#!/bin/sh\ncase $* in */0000000100000000) {folder};; *) {top};; esac\n")
    program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PREFLIGHT_BACKUP_DIR": str(tmp_path)}
    config = Config.from_env(environ, tmp_path, "run")
    place = archive_status.Place(1, "main", "17-1")
    first, last = "000000010000000000000003", "000000010000000000000004"
    base = archive_status.Base("b", datetime.now(UTC), "pgbackrest", "main", first)
    said = archive_status.Status(frozenset({last}), places=frozenset({place}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environ["PATH"])
        assert gap == archive_asked.gap(config, said, base, last, 16 << 20)
