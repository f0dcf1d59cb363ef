"""Backups without a server: what is counted, what is kept, and where they may be."""

import dataclasses
import errno
import fcntl
import json
import os
import resource
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pytest

from preflight.backup import (
    children,
    clients,
    directory,
    manifests,
    mounts,
    objects,
    passfile,
    reading_back,
    restored,
    retention,
    snapshots,
    store,
    swap,
    take,
)
from preflight.backup.directory import Directory
from preflight.backup.manifests import Backup, Identity, Manifest, Part, Purpose
from preflight.base import quoting
from preflight.base.errors import BackupFailed, BackupUnverified
from preflight.commands import backups

# --- private files --------------------------------------------------------------------------------


def test_file_that_another_run_sweeps_before_it_is_locked_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two runs of one machine may begin at once; what a killed one left is swept."""
    monkeypatch.setattr(passfile, "MEMORY", tmp_path)
    left = tmp_path / f"{passfile.PASSFILE}left"
    left.touch()
    really, sweeps = fcntl.flock, iter([True])

    def lock(file: IO[bytes], how: int) -> None:
        if how == fcntl.LOCK_SH and next(sweeps, False):
            passfile.sweep(tmp_path)
        really(file, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    with passfile.private([b"one\n", b"two\n"]) as path:
        passfile.sweep(tmp_path)
        assert b"one\ntwo\n" == path.read_bytes()
        assert [path] == list(tmp_path.iterdir())
    assert [] == list(tmp_path.iterdir())


def test_private_files_that_have_no_place_are_told_by_their_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nowhere may be written, or nothing is free there; nothing is left."""
    monkeypatch.setattr(passfile, "MEMORY", tmp_path)
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    found = []
    with pytest.raises(BackupFailed) as nowhere, passfile.folder("not/there-"):
        pass
    found.append(nowhere.value.code)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, was[1]))
    try:
        with pytest.raises(BackupFailed) as full, passfile.private([b"more than eight\n"]):
            pass
        with (
            pytest.raises(BackupFailed) as no_room,
            passfile.folder("f-") as place,
            passfile.placed(passfile.FILES),
        ):
            (place / "one").write_text("more than eight")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    found += [full.value.code, no_room.value.code]

    assert ["backup.no_temporary"] * 3 == found
    assert [] == list(tmp_path.iterdir())


# --- what was live --------------------------------------------------------------------------------


def test_second_swap_within_a_second_keeps_what_was_live_under_another_name() -> None:
    """Whatever is there already, and however long the name is."""
    now, long = datetime(2026, 11, 29, tzinfo=UTC), "é" * 31
    there = {"app_before_20261129T000000Z", "app_before_20261129T000000Z_2"}
    found = [
        swap.unused(live, now, lambda name: name if name in there else None)
        for live in ("app", long)
    ]

    assert ["app_before_20261129T000000Z_3", "é" * 19 + "_before_20261129T000000Z"] == found
    assert ["app", long] == [restored.put_aside(name, ["other", "app", long]) for name in found]
    others = ["app", "app_before", "app_before_2026Z", "other_before_20261129T000000Z"]
    assert [None] * 4 == [restored.put_aside(name, others) for name in others]


# --- rows in pg_restore's output ------------------------------------------------------------------

STREAM = rb"""--
-- PostgreSQL database dump
--

\restrict 8HkQbYpVqWzM

SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);

--
-- Data for Name: it's; not the end of a statement: COPY public.comment FROM stdin;
--

COPY public.plain (id, note) FROM stdin;
1	first
2	COPY public.fake (id) FROM stdin;
3	a\nb\\.
4	"quote' ;
\.


COPY public.empty (id) FROM stdin;
\.


COPY public.no_columns  FROM stdin;



\.


COPY "Odd ""one"" (x)"."with.dot
COPY public.fake (id) FROM stdin;
and lines" ("a ""b"", c", "FROM stdin;
x") FROM stdin;
1	2
\.


SELECT pg_catalog.setval('public."a
COPY public.fake (id) FROM stdin;
_id_seq"', 42, true);

BEGIN;
SELECT pg_catalog.lowrite(0, '\x5c2e0a');
COMMIT;

COPY public."caf?" (id) FROM stdin;
\\.
\N
\.


--
-- PostgreSQL database dump complete
--

\unrestrict 8HkQbYpVqWzM

""".replace(b"?", "é".encode("latin-1"))  # an archive speaks the encoding of its database
ROWS = {
    (b"public", b"plain"): 4,
    (b"public", b"empty"): 0,
    (b"public", b"no_columns"): 3,
    (
        b'Odd "one" (x)',
        b"with.dot\nCOPY public.fake (id) FROM stdin;\nand lines",
    ): 1,
    (b"public", b"caf\xe9"): 2,
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1000, 1 << 20])
def test_rows_are_counted_wherever_the_stream_is_cut(size: int) -> None:
    """Chunks end in the middle of a header, a name, a row or the end mark."""
    counter = reading_back.RowCounter()
    for start in range(0, len(STREAM), size):
        counter.feed(STREAM[start : start + size])

    assert ROWS == counter.rows
    assert not counter.inside


def test_stream_that_ends_inside_a_table_is_noticed() -> None:
    """A cut archive may well end with complete rows."""
    counter = reading_back.RowCounter()
    counter.feed(b"COPY public.t (id) FROM stdin;\n1\n2\n")

    assert counter.inside


def test_name_with_dots_stays_one_name() -> None:
    """In the manifest two tables never share a line."""
    names = [
        snapshots.Table(schema, table, (b"", b""), has_rows=True, condition="").name
        for schema, table in (("public", "t"), ("a.b", "c"), ("a", "b.c"), ("a", 'b"c'))
    ]

    assert ["public.t", '"a.b".c', 'a."b.c"', 'a."b""c"'] == names


@pytest.mark.parametrize(
    "table", ["t", "its own", "a(b)", "new\nline", "a.b", 'a"b', "日本", "x. y"]
)
def test_name_in_a_manifest_is_read_as_it_is_written(table: str) -> None:
    """Whatever a name holds, it is in two parts; and so is one that the server has written."""
    written = snapshots.Table("a b", table, (b"", b""), has_rows=True, condition="").name

    assert ("a b", table) == quoting.halves(written)
    assert ("a b", table) == quoting.halves(f'"a b".{quoting.name(table)}')


# --- hope -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hope", "code", "said"),
    [
        ("passing", -9, ""),
        ("passing", 137, ""),
        ("passing", 1, 'error: connection to server at "db", port 5432 failed: timeout expired'),
        ("passing", 1, "error: Dumping failed; server closed the connection unexpectedly"),
        ("busy", 1, "error: query failed: FEHLER: Zeit; detail: Query was: LOCK TABLE public.t IN"),
        ("none", 1, "error: query failed: ERROR:  permission denied for table t"),
        ("none", 1, "error: aborting because of server version mismatch"),
        ("unknown", 1, "error: query failed: ERROR:  invalid page in block 7"),
    ],
)
def test_only_what_may_pass_is_tried_again(hope: str, code: int, said: str) -> None:
    """The server's words may be in any language; the client's own are English."""
    assert hope == children.hope_of(code, said)


@pytest.mark.parametrize(
    ("hope", "attempt", "patient", "again"),
    [
        ("busy", 9, True, True),
        ("busy", 1, False, False),
        ("moving", 9, True, True),
        ("moving", take.ATTEMPTS - 1, False, True),
        ("moving", take.ATTEMPTS, False, False),
        ("passing", take.ATTEMPTS - 1, False, True),
        ("passing", take.ATTEMPTS, True, False),
    ],
)
def test_who_locks_or_changes_things_is_waited_for(
    hope: str, attempt: int, *, patient: bool, again: bool
) -> None:
    """As long as LOCK_RETRY_S says; what may pass by itself gets some attempts."""
    assert again == take.tries_again(hope, attempt, patient=patient)


# --- the directory of a container -----------------------------------------------------------------

DOCKER, PODMAN, KUBERNETES = mounts.CONTAINER_MARKS
HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
MOUNTS = {
    "docker overlay2": (
        "542 401 0:61 / / rw,relatime master:201 - overlay overlay rw,"
        "lowerdir=/var/lib/docker/overlay2/l/ABC:/var/lib/docker/overlay2/l/DEF,"
        f"upperdir=/var/lib/docker/overlay2/{HASH}/diff\n"
        f"555 542 254:1 /var/lib/docker/containers/{HASH}/hosts /etc/hosts rw - ext4 /dev/vda1 rw\n"
    ),
    "docker volume": (
        "542 401 0:61 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/ABC\n"
        "560 542 254:1 /var/lib/docker/volumes/b/_data /backups rw - ext4 /dev/vda1 rw\n"
    ),
    "bind mount": (
        "542 401 0:61 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/ABC\n"
        "560 542 254:1 /srv/my\\040backups /backups rw - ext4 /dev/vda1 rw\n"
    ),
    "volume above": (
        "542 401 0:61 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/ABC\n"
        "560 542 0:70 / /backups-of-others rw - tmpfs tmpfs rw\n"
    ),
    "tmpfs": (
        "542 401 0:61 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/ABC\n"
        "561 542 0:70 / /backups rw,nosuid - tmpfs tmpfs rw,size=65536k\n"
    ),
    "podman rootless": (
        "600 580 0:50 / / rw,relatime - fuse.fuse-overlayfs fuse-overlayfs rw,user_id=0\n"
    ),
    "containerd": (
        "1200 1100 0:300 / / ro,relatime - overlay overlay rw,lowerdir="
        "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/41/fs\n"
    ),
    "docker btrfs": (
        f"542 401 0:35 /@/var/lib/docker/btrfs/subvolumes/{HASH} / rw - btrfs /dev/sda2 rw\n"
    ),
    "docker zfs": f"542 401 0:47 / / rw - zfs tank/ROOT/docker/{HASH} rw,xattr\n",
    "docker vfs": f"542 401 8:1 /srv/engine/vfs/dir/{HASH} / rw - ext4 /dev/sda1 rw\n",
    "gvisor": "1 0 0:2 / / rw - 9p none rw,trans=fd\n",
    "plain host": "27 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n",
    "host with btrfs": "27 1 0:25 /@ / rw,relatime - btrfs /dev/nvme0n1p2 rw,subvol=/@\n",
    "host with ostree": f"27 1 8:4 /ostree/deploy/fcos/deploy/{HASH}.0 / rw - xfs /dev/sda4 rw\n",
    "host with overlayroot": "27 1 0:25 / / rw - overlay overlayroot rw,lowerdir=/media/root-ro\n",
}


@pytest.mark.parametrize(
    ("lost", "where", "marks"),
    [
        (True, "docker overlay2", [DOCKER]),
        (True, "docker overlay2", []),
        (False, "docker volume", [DOCKER]),
        (False, "bind mount", [DOCKER]),
        (True, "volume above", [DOCKER]),
        (False, "tmpfs", [DOCKER]),
        (True, "podman rootless", [PODMAN]),
        (True, "containerd", [KUBERNETES]),
        (True, "containerd", []),
        (True, "docker btrfs", [DOCKER]),
        (True, "docker zfs", [DOCKER]),
        (True, "docker vfs", [DOCKER]),
        (True, "gvisor", [KUBERNETES]),
        (False, "plain host", []),
        (False, "plain host", [DOCKER]),  # a machine made from an image still carries its mark
        (True, "plain host", [mounts.IMAGE_MARK]),  # our image as a machine: its disk is not kept
        (False, "host with btrfs", []),
        (False, "host with ostree", []),
        (False, "host with overlayroot", []),
    ],
)
def test_directory_in_a_containers_own_layer_is_told(
    *, lost: bool, where: str, marks: list[str]
) -> None:
    """Below a mount it is kept; in the layer it dies with the container."""
    assert lost is mounts.in_own_layer(Path("/backups/app"), MOUNTS[where], marks)


def test_without_a_list_of_mounts_nothing_is_refused() -> None:
    """Elsewhere than on Linux, or where /proc is hidden, there is nothing to go by."""
    assert not mounts.in_own_layer(Path("/backups"), "", [DOCKER])


# --- names and space ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "database"),
    [
        ("unicorn_db", "unicorn_db"),
        ("my_db", "my db"),
        ("_etc_passwd", "../etc/passwd"),
        ("hidden", ".hidden"),
        ("_", "..."),
        ("caf_", "café"),
        ("a_b_c", 'a"b\nc'),
    ],
)
def test_directory_is_named_safely(slug: str, database: str) -> None:
    """A database may be named like a path, a hidden file, or with anything at all."""
    assert slug == Identity("1", database).slug


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("db:5432", {"host": "DB.", "user": "u", "password": "secret"}),
        ("db:5433", {"host": "db", "hostaddr": "10.0.0.1", "port": "5433"}),
        ("10.0.0.1:5432", {"hostaddr": "10.0.0.1"}),
        ("a:1,b:2", {"host": "b,a", "port": "2,1"}),
        ("a:5432,b:5432", {"host": "b,a,b", "port": ""}),
        ("localhost:5432", {"host": "127.0.0.1"}),
        ("localhost:5432", {"host": "localhost,::1,127.0.0.1"}),
        ("/run/PG:5432", {"host": "/run/PG"}),
        ("@Abstract:5432", {"host": "@Abstract"}),
    ],
)
def test_address_is_what_was_configured(address: str, target: dict[str, str]) -> None:
    """In any order and case; no user, no secret, and no name is resolved."""
    assert address == manifests.address(target)


def of(name: str, system: str, address: str = "") -> Backup:
    """Return a backup of `app` that is from somewhere."""
    said = Manifest(0, system_identifier=system, database="app", address=address)
    return Backup(name, said)


def test_backups_of_other_places_are_not_ours() -> None:
    """Not another server's, not a copy's; an older one only where nobody else made it."""
    here, copy, other, old = of("a", "1", "x:1"), of("b", "1", "y:1"), of("c", "2"), of("d", "1")
    us = Identity("1", "app", "x:1")

    assert [here] == us.ours([here, copy, other, old])
    assert [here, old] == us.ours([here, other, old])
    assert [] == us.ours([copy, old])
    assert [old] == us.ours([old])
    assert [] == Identity("1", "shop", "x:1").ours([here, old])


def test_places_that_backups_are_from() -> None:
    """An older one belongs to the only place of that server that is said."""
    here, copy, other, old = of("a", "1", "x:1"), of("b", "1", "y:1"), of("c", "2"), of("d", "1")

    assert {("1", "x:1"): [here, old], ("2", ""): [other]} == manifests.origins([here, other, old])
    assert 3 == len(manifests.origins([here, copy, old]))


def test_space_is_needed_for_a_dump_half_as_large_again() -> None:
    """Without an earlier backup a quarter of the database is the best guess."""
    assert 150 == store.space_needed(100, 10_000)
    assert 2_500 == store.space_needed(None, 10_000)


@pytest.mark.parametrize("size", [1, 75 * 10**9, 84 * 10**9, 10**12, 10**13])
def test_parts_of_an_upload_are_enough_for_any_dump(size: int) -> None:
    """Of the first no less than the database, later of a dump that grows faster than that.

    A store takes 10,000 parts, and two are in memory: those of a known dump are no larger than it
    needs.
    """
    known = Manifest(size // 7, database_bytes=size)
    first, same, grown = (
        10_000 * objects.part_bytes(store.most_expected(newest, now))
        for newest, now in ((None, size), (known, size), (known, 3 * size))
    )

    assert size * 11 // 10 <= first
    assert known.size_bytes * 3 // 2 <= same <= max(10_000 * objects.PART_BYTES, size // 4)
    assert known.size_bytes * 3 // 2 + 2 * size <= grown  # what came may not compress
    assert size == store.most_expected(Manifest(size // 7), size)


# --- what is kept ---------------------------------------------------------------------------------


def kept(backups: list[Backup], keep: int) -> list[str]:
    """Return the names that stay."""
    gone = retention.surplus(backups, keep)
    return [item.name for item in backups if item not in gone]


def made(name: str, pending: str = "") -> Backup:
    """Return a backup that was taken for a set of files."""
    sets = [{"version": 1, "checksum": pending}] if pending else []
    return Backup(name, Manifest(0, taken_for=Purpose("up", sets)))


def test_backup_before_another_change_is_of_no_crash_loop() -> None:
    """The same command with `--always`, the same files in another history: each came through."""
    sets = [{"command": "x", "key": "y"}]
    backups = [
        Backup(f"{n}", Manifest(0, taken_for=Purpose("wrap", sets, f"1.preflight.{n}")))
        for n in (1, 2, 3, 4, 4, 4, 5)
    ]

    assert [backups[4]] == retention.surplus(backups, 7)


def published(
    backups: Directory, us: Identity, number: int, purpose: Purpose, verified: str = "read"
) -> None:
    """Make a backup without a byte."""
    with backups.draft(us, f"r{number}", 0) as draft:
        with backups.sink(draft, manifests.DUMP):
            pass
        said = Manifest(
            0, system_identifier=us.system, database=us.database, address=us.address,
            taken_for=purpose, verified=verified,
        )  # fmt: skip
        backups.publish(draft, us, said)


def test_proven_backup_does_not_go_before_the_next_is_proven(tmp_path: Path) -> None:
    """Of a crash loop the newest stays until what came after it is worth something."""
    backups, us = Directory(tmp_path), Identity("1", "app", "x:1")
    for number in range(4):
        published(backups, us, number, Purpose("up", [{"version": 1}]))
    before = [item.name for item in backups.listing()]

    retention.prune(backups, us, 5, but=before[-1])
    early = [item.name for item in backups.listing()]
    retention.prune(backups, us, 5)

    assert [before[0], *before[2:]] == early
    assert [before[0], before[3]] == [item.name for item in backups.listing()]


@pytest.mark.parametrize(
    ("proven", "restored", "left"),
    [(False, {0, 1}, [3, 4]), (True, {0, 1}, [1, 3, 4]), (True, {0, 1, 4}, [3, 4])],
)
def test_where_proofs_are_demanded_the_newest_that_is_proven_stays(
    tmp_path: Path, *, proven: bool, restored: set[int], left: list[int]
) -> None:
    """A night without a proof ends with 27 and leaves a backup all the same."""
    backups, us = Directory(tmp_path), Identity("1", "app", "x:1")
    for number in range(5):
        far = "restored" if number in restored else "read"
        published(backups, us, number, Purpose("backup"), far)
    before = [item.name for item in backups.listing()]

    retention.prune(backups, us, 2, proven=proven)

    assert [before[each] for each in left] == [item.name for item in backups.listing()]


def test_neighbours_are_neighbours_whatever_is_kept_for_good() -> None:
    """A backup with exports stands between: what is around it is no crash loop."""
    backups = [made("a", "x"), Backup("r", Manifest(0, taken_for=Purpose("rollback")))]
    backups += [made("b", "x"), made("c", "x")]

    assert [] == retention.surplus(backups, 5, {"r"})
    assert ["a", "b"] == [item.name for item in retention.surplus(backups, 1, {"r"})]


def test_newest_backups_are_kept() -> None:
    """As many as asked for."""
    backups = [made(name, name) for name in "abcde"]

    assert ["d", "e"] == kept(backups, 2)


@pytest.mark.fault("C068")
def test_last_backup_is_never_removed() -> None:
    """Not even when nobody asks for one."""
    assert ["b"] == kept([made("a"), made("b")], 0)


def test_set_that_fails_again_and_again_keeps_its_first_and_newest() -> None:
    """A crash loop does not push the older backups out."""
    loop = [made(f"x{number}", "x") for number in range(6)]

    assert ["a", "b", "x0", "x5"] == kept([made("a", "a"), made("b", "b"), *loop], 5)


def test_backups_taken_by_hand_are_no_crash_loop() -> None:
    """They were all taken for nothing, and are all worth keeping."""
    backups = [made(name) for name in "abcd"]

    assert ["a", "b", "c", "d"] == kept(backups, 5)


Put = Callable[[str, object], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Put a directory with a dump of four bytes and this manifest into a backup directory."""

    def put(name: str, manifest: object) -> Path:
        made = tmp_path / name
        made.mkdir()
        (made / manifests.DUMP).write_bytes(b"dump")
        (made / manifests.MANIFEST).write_text(
            manifest if isinstance(manifest, str) else json.dumps(manifest)
        )
        return made

    return put


GOOD = {"format": 1, "size_bytes": 4, "sequence": 1}


@pytest.mark.fault("C068")
@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        {**GOOD, "format": 2},
        {**GOOD, "sequence": "7"},
        {**GOOD, "sequence": None},
        {**GOOD, "size_bytes": 5},  # cut since
    ],
)
def test_broken_backup_is_not_counted(put: Put, tmp_path: Path, manifest: object) -> None:
    """It must not push a good one out."""
    put("broken", manifest)
    good = put("good", GOOD)

    assert [good.name] == [item.name for item in Directory(tmp_path).listing()]


@pytest.mark.fault("C050")
def test_hidden_foreign_and_linked_directories_are_not_listed(put: Put, tmp_path: Path) -> None:
    """Only what a run has published counts."""
    good = put("good", GOOD)
    put(".partial-1-app-run", GOOD)
    (tmp_path / "link").symlink_to(good)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").touch()

    assert [good.name] == [item.name for item in Directory(tmp_path).listing()]


@pytest.mark.parametrize(
    "dump",
    ["database.dump", "database.dump.age", "database.dir/toc.dat", ".database.dump.Xy12zA"],
)
def test_backup_that_lost_its_manifest_is_told(put: Put, tmp_path: Path, dump: str) -> None:
    """As after a copy that was cut off: it may be the newest, so it is named as what is of no use.

    Exports beside no dump never had one, and neither had what is not called like a backup.
    """
    good = put("app-20200101T000000Z-a", GOOD)
    for place in ("app-20200102T000000Z-b", "notes"):
        (tmp_path / place / dump).parent.mkdir(parents=True)
        (tmp_path / place / dump).touch()
    for place in ("app-20200103T000000Z-c", "app-20200104T000000Z-d"):
        (tmp_path / place).mkdir()
    (tmp_path / "app-20200103T000000Z-c" / "export-t.csv").touch()
    found = Directory(tmp_path).listed()

    assert [good.name] == [item.name for item in found.whole]
    bad = manifests.Bad("app-20200102T000000Z-b", "its manifest.json is not there")
    assert [bad] == found.bad


def test_sequence_says_which_backup_is_newer(put: Put, tmp_path: Path) -> None:
    """The clock may have been set back between two runs."""
    newer = put("app-20200101T000000Z-b", {**GOOD, "sequence": 2})
    older = put("app-20991231T000000Z-a", GOOD)

    assert [older.name, newer.name] == [item.name for item in Directory(tmp_path).listing()]


def test_manifest_is_replaced_as_a_whole(put: Put) -> None:
    """And stays private; the level of verification is raised this way."""
    path = put("good", GOOD) / manifests.MANIFEST
    backups = Directory(path.parent.parent)
    (known,) = backups.listing()
    backups.improve(known, dataclasses.replace(known.manifest, verified="restored"))

    said = json.loads(path.read_text())
    assert {**GOOD, "verified": "restored"} == {key: said[key] for key in (*GOOD, "verified")}
    assert 0o600 == path.stat().st_mode & 0o777
    assert {manifests.DUMP, manifests.MANIFEST} == {item.name for item in path.parent.iterdir()}


def test_backups_of_runs_that_succeeded_are_no_crash_loop() -> None:
    """The same files applied, taken back and applied again are three good reasons for a backup."""
    back = Backup("r", Manifest(0, taken_for=Purpose("rollback", [{"version": 1}])))
    backups = [made("a", "x"), back, made("b", "x"), back, made("c", "x")]

    assert [] == retention.surplus(backups, 5)


# --- file systems that cannot ---------------------------------------------------------------------


def test_directory_that_cannot_be_synced_holds_backups_all_the_same() -> None:
    """As on CIFS: EINVAL is how /proc answers, too."""
    descriptor = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(descriptor)
    os.close(descriptor)
    directory.sync(Path("/proc"))


def test_backup_that_could_not_be_published_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says that there is none; so there is none, and nothing is left."""
    identity = Identity("1", "app", "x:1")
    real, failed = directory.sync, OSError(errno.EIO, os.strerror(errno.EIO))

    def sync(path: Path) -> None:
        if path == tmp_path:
            raise failed
        real(path)

    monkeypatch.setattr(directory, "sync", sync)
    backups = Directory(tmp_path)
    with backups.draft(identity, "r", 0) as draft:
        with backups.sink(draft, manifests.DUMP) as sink:
            sink.write(b"dump")
        with pytest.raises(OSError, match="Input/output"):
            backups.publish(draft, identity, Manifest(4, run_id="r"))

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("3; 3079 16400 EXTENSION - pg_cron ", "EXTENSION pg_cron"),
        ("4; 0 0 COMMENT - EXTENSION pg_cron ", "COMMENT EXTENSION pg_cron"),
        ("215; 1259 16386 TABLE public t app", "TABLE t app"),
        ("3451; 0 16387 TABLE DATA public known postgres", "TABLE DATA known"),
        ("3451; 0 16387 TABLE DATA public known postgres", "TABLE DATA public known"),
        ("9; 2606 1 FK CONSTRAINT public t t_fkey app", "FK CONSTRAINT t t_fkey app"),
        ("215; 1259 16386 TABLE public my table app", "TABLE my table"),
        ("215; 1259 16386 TABLE APP t app", "TABLE t"),
        ("215; 1259 16386 TABLE APP T app", "TABLE APP T"),
        ("3451; 0 16387 TABLE DATA APP T app", "TABLE DATA T"),
        ("215; 1259 16386 TABLE DATA t app", "TABLE t"),
        ("9; 1 1 THING NEW public t app", "THING NEW t"),
    ],
)
def test_entry_is_skipped_under_every_name_that_pg_restore_gives_it(line: str, said: str) -> None:
    """Its list has the schema, its errors have not."""
    assert said in clients.spellings(line)
    assert f"{said}2" not in clients.spellings(line)


LIST = """\
;
; Selected TOC Entries:
;
6; 2615 16387 SCHEMA - au other
2575; 0 0 ACL - SCHEMA au other
;\tdepends on: 6
219; 1259 16389 TABLE au u other
;\tdepends on: 6
222; 1259 16399 TABLE DATA child other
;\tdepends on: 219
2577; 0 0 COMMENT au COLUMN u.x other
;\tdepends on: 219
2578; 0 0 ACL au TABLE u other
;\tdepends on: 219
2579; 0 0 ACL au COLUMN u.x other
;\tdepends on: 219 2578
218; 1259 16388 SEQUENCE au u_id_seq other
;\tdepends on: 219 6
2580; 0 0 SEQUENCE OWNED BY au u_id_seq other
;\tdepends on: 218
220; 1259 16397 TABLE public mine app
2411; 2604 16392 DEFAULT au u id other
;\tdepends on: 219 218 219
2566; 0 16389 TABLE DATA au u other
;\tdepends on: 219
2570; 0 16399 TABLE DATA DATA child other
;\tdepends on: 222
2567; 0 16397 TABLE DATA public mine app
;\tdepends on: 220
2415; 2606 16395 CONSTRAINT au u u_pkey other
;\tdepends on: 219
2417; 2606 16401 CONSTRAINT public mine mine_pkey app
;\tdepends on: 220
2413; 1259 16396 INDEX au i other
;\tdepends on: 219
2590; 0 0 COMMENT au INDEX i other
;\tdepends on: 2413
2419; 2606 16406 FK CONSTRAINT public mine mine_fkey app
;\tdepends on: 220 219 2415
5; 2615 2200 SCHEMA - public other
2600; 0 0 COMMENT - SCHEMA public other
;\tdepends on: 5
2601; 0 0 ACL - SCHEMA public other
;\tdepends on: 5
2; 3079 16401 EXTENSION - plpgsql\x20
2602; 0 0 COMMENT - EXTENSION plpgsql\x20
;\tdepends on: 2
3; 2612 16402 PROCEDURAL LANGUAGE - plpgsql other
2603; 0 0 ACL - LANGUAGE plpgsql other
;\tdepends on: 3
"""


@pytest.mark.parametrize(
    ("skip", "gone", "along"),
    [
        (["SCHEMA au other"], {"6"}, {"2575"}),
        (["TABLE  u"], {"219"}, {"2577", "2578", "2579", "2411", "2566", "2415", "2413", "2590"}),
        (["ACL au TABLE u"], {"2578"}, set[str]()),  # who may do what with a column is another's
        (["TABLE DATA u"], {"2566"}, set[str]()),
        (["SEQUENCE u_id_seq"], {"218"}, {"2580"}),
        (["TABLE DATA child other"], {"222", "2570"}, set[str]()),
        (["TABLE DATA"], set[str](), set[str]()),
        (["SCHEMA public other"], {"5"}, set[str]()),  # what CREATE DATABASE brings is there
        (["EXTENSION plpgsql", "PROCEDURAL LANGUAGE plpgsql"], {"2", "3"}, set[str]()),
    ],
)
def test_what_is_nothing_without_an_entry_goes_with_it(
    skip: list[str], gone: set[str], along: set[str]
) -> None:
    """Rights, comments, rows, indexes; a foreign key, another table or a sequence is said alone."""
    lines = LIST.encode().splitlines(keepends=True)
    stay, named, _ = clients.less(lines, skip)
    entries = [line.decode().rstrip("\n") for line in lines if not line.startswith(b";")]
    numbers = {each.partition(";")[0]: each.split(" ", 3)[3].strip() for each in entries}
    left = {line.decode().partition(";")[0] for line in stay if not line.startswith(b";")}

    assert gone | along == numbers.keys() - left
    assert {numbers[each] for each in along} == set(named)
    assert not [line for line in stay if b"depends on" in line]


def test_word_that_means_several_entries_is_told_with_all_of_them() -> None:
    """A healthy table of the same name in another schema goes with none in silence."""
    lines = LIST.encode().splitlines(keepends=True)
    lines.append(b"230; 1259 16420 TABLE public u other\n")

    _, _, several = clients.less(lines, ["TABLE u other", "TABLE au u other", "SCHEMA au"])
    assert {"TABLE u other": ["TABLE au u other", "TABLE public u other"]} == several
    _, along, one = clients.less(lines, ["TABLE au u other", "SEQUENCE au u_id_seq"])
    assert "TABLE DATA au u other" in along
    assert {} == one


@pytest.mark.parametrize(
    ("skip", "skipped"),
    [
        ("TABLE my table", {"public.my table"}),
        ("TABLE DATA my table app", {"public.my table"}),
        ("TABLE my", {"public.my"}),
        ("TABLE public my postgres", {"public.my"}),
        ("TABLE my other role", {"public.my"}),
        ("TABLE my other thing", set[str]()),
        ("TABLE T", {"APP.T"}),
        ("TABLE APP  T", {"APP.T"}),
        ("TABLE APP my", set[str]()),
        ("TABLE a.b", {'"a.b"."a.b"'}),
        ("VIEW my", set[str]()),
    ],
)
def test_table_is_compared_unless_it_is_left_out(
    skip: str, skipped: set[str], tmp_path: Path
) -> None:
    """A name may have spaces, and an entry may say its schema and its owner."""
    rows = dict.fromkeys(("public.my table", "public.my", "APP.T", '"a.b"."a.b"'), 1)
    source = Backup("b", Manifest(0, rows=rows, roles=("app", "other role")))
    place = restored.Place(Directory(tmp_path), source, "live", "into", skip=(skip,))

    assert rows.keys() - skipped == place.rows.keys()


@pytest.mark.parametrize("word", ["Query", "query"])
def test_lock_that_pg_dump_waited_for_in_vain_is_waited_for_again(word: str) -> None:
    """Before 15 it says so with a small letter, in a longer sentence."""
    said = f"pg_dump: error: {word} was: LOCK TABLE public.t IN ACCESS SHARE MODE"

    assert "busy" == children.hope_of(1, said)


def test_sequence_that_somebody_wrote_hides_no_backup() -> None:
    """One that is too high is none; after the last one, ours is still one that can be read."""
    said = {"format": 1, "size_bytes": 0, "sequence": manifests.LAST}
    with pytest.raises(manifests.Unreadable):
        manifests.parsed(said | {"sequence": manifests.LAST + 1})

    after = manifests.following([Backup("a", manifests.parsed(said))])

    assert after == manifests.parsed(said | {"sequence": after}).sequence
    assert 1 == manifests.following([])


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x", ""])
def test_time_that_no_calendar_has_hides_no_backup(at: str) -> None:
    """It is shown as it is written."""
    shown = backups._when(at)  # noqa: SLF001

    assert at == shown


NAME = "app-20260101T000000Z-1"
SHOP = Part(("shop",), (), ())


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        (NAME, None, True),
        ("shop-20260101T000000Z-1", None, False),
        (NAME, Manifest(0, system_identifier="1", database="app", address="y:1"), True),
        (NAME, Manifest(0, system_identifier="", database="app"), True),
        (NAME, Manifest(0, system_identifier="2", database="app"), False),
        (NAME, Manifest(0, system_identifier="1", database="app/"), False),
        (NAME, Manifest(0, system_identifier="1", database="app", partial=SHOP), False),
    ],
)
def test_damaged_backup_is_another_s_where_its_manifest_says_so(
    *, name: str, said: Manifest | None, expected: bool
) -> None:
    """Only where nobody can read that, its name decides: each run would warn of all of a folder."""
    us = Identity("1", "app", "x:1")

    assert expected == us.meant(manifests.Bad(name, "no dump", said))


@pytest.mark.parametrize("lost", [False, True])
def test_damaged_backup_says_whose_it_is(tmp_path: Path, *, lost: bool) -> None:
    """Its manifest is whole, whether the dump is gone or cut short."""
    folder = tmp_path / NAME
    folder.mkdir()
    said = Manifest(1, database="app")
    (folder / manifests.MANIFEST).write_bytes(said.text())
    if not lost:
        (folder / said.file).write_bytes(b"")
    (bad,) = Directory(tmp_path).listed().bad

    assert bad.said is not None
    assert "app" == bad.said.database


ITEMS = (b"public", b"items")


@pytest.mark.parametrize("rows", [999, 1_001, 0, None])
def test_dump_with_a_row_more_or_less_is_no_backup(rows: int | None) -> None:
    """Not only a table that is gone is told: one row is enough."""
    whole = reading_back.Hashed("", 1, bytes(5))
    there = {} if rows is None else {ITEMS: rows}

    with pytest.raises(BackupUnverified) as told:
        reading_back.require_rows(whole, there, {ITEMS: ("public.items", 1_000)})
    assert "backup.rows_differ" == told.value.code
    reading_back.require_rows(whole, {ITEMS: 1_000}, {ITEMS: ("public.items", 1_000)})


def test_dump_without_its_end_is_no_backup() -> None:
    """All rows are there, and something behind them is not."""
    cut = reading_back.Hashed("", 1, b"\x00\x00\x00\x00\x01")

    with pytest.raises(BackupUnverified) as told:
        reading_back.require_rows(cut, {ITEMS: 7}, {ITEMS: ("public.items", 7)})
    assert "backup.unreadable" == told.value.code


def test_archive_that_is_cut_inside_a_table_is_unreadable(tmp_path: Path) -> None:
    """Even if pg_restore ends with 0, and all rows up to there are complete."""
    program = tmp_path / "pg_restore"
    program.write_text("#!/bin/sh\nprintf 'COPY public.items (id) FROM stdin;\\n1\\n2\\n'\n")
    program.chmod(0o755)
    programs = clients.Clients("pg_dump", str(program), "pg_dump 17")

    with pytest.raises(BackupUnverified) as told:
        reading_back.rows_of(tmp_path / "dump", programs, {"PATH": os.defpath})
    assert "backup.unreadable" == told.value.code


def test_query_of_many_lines_does_not_push_the_error_out(tmp_path: Path) -> None:
    """It ends what pg_dump says, and is longer than what is kept."""
    (tmp_path / "said").write_text(
        "pg_dump: error: query failed: ERROR:  out of shared memory\nHINT:  Raise it.\n"
        "pg_dump: detail: Query was: SELECT 1\n" + "AND 2 = 2\n" * 30
    )
    command = ["/bin/sh", "-c", f"cat {tmp_path}/said >&2; exit 1"]
    with children.started(command, {"PATH": os.environ["PATH"]}) as (child, words):
        code = child.wait()
        said = words.said()

    assert said.startswith("error: query failed: ERROR:  out of shared memory; HINT:  Raise it.")
    assert said.endswith("Query was: SELECT 1")
    assert "none" == children.hope_of(code, said)
