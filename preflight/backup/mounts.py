"""Whether a directory outlives the container, and what room it has."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from preflight.base.errors import BackupFailed

IMAGE_MARK = "/.pg-preflight-image"  # made by our own image: its root is a container's, always
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")


def require_mounted(directory: Path) -> None:
    """Refuse a container's own layer; raises BackupFailed."""
    if unmounted(directory):
        raise BackupFailed(
            "backup.not_mounted",
            f"{directory} is in this container's own layer: a backup there dies with it",
            f"Mount a volume: `docker run -v backups:{directory} …`, in compose "
            f"`volumes: [backups:{directory}]`, in Kubernetes a volumeMount of a PVC.",
        )


def unmounted(directory: Path) -> bool:
    """Tell whether a directory lies in this container's own layer; on a host none does."""
    marks = [mark for mark in (IMAGE_MARK, *CONTAINER_MARKS) if Path(mark).exists()]
    return in_own_layer(directory, _mounts(), marks)


def in_container() -> bool:
    """Tell whether this process runs in a container, whose root is no place to keep anything."""
    return unmounted(Path("/"))


def mount_kind(directory: Path) -> str:
    """Return the type of the file system that a directory lies on, "" where nobody can tell."""
    return nearest_mount(directory, _mounts())[1]


def free(directory: Path) -> int | None:
    """Return the bytes that are free for us; None where the file system does not tell: OSError."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def _mounts() -> str:
    with suppress(OSError):  # not Linux, or /proc is not there
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    return ""


# where container engines keep what is theirs; with a container's mark, also what only looks like it
_ENGINE = re.compile(r"/(docker|containers|containerd|buildkit)/|io\.containerd\.")
_ENGINE_LIKE = re.compile(r"[0-9a-f]{64}|/dev/mapper/(docker|containerd)-")
_LAYERED = {"overlay", "aufs", "fuse.fuse-overlayfs", "9p", "virtiofs"}


def in_own_layer(directory: Path, mountinfo: str, marks: Collection[str]) -> bool:
    """Tell whether a directory lies in a container's own file system, which dies with it.

    `mountinfo` as in proc_pid_mountinfo(5), `marks` those of a container that exist. The nearest
    mount decides: any but "/" was put there by somebody. At "/" our image's mark is proof; without
    it (a machine may carry the mark of an image that it was made from) the file system must look
    like a container's: in layers, or from a place where engines keep what is theirs.
    """
    point, kind, source = nearest_mount(directory, mountinfo)
    if point != "/":
        return False
    if IMAGE_MARK in marks or _ENGINE.search(source):
        return True
    return bool(marks) and (kind in _LAYERED or bool(_ENGINE_LIKE.search(source)))


def nearest_mount(directory: Path, mountinfo: str) -> tuple[str, str, str]:
    """Return where the mount that a directory lies on begins, its type and its source."""
    nearest = ("/", "", "")
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = (_unescaped(field) for field in before.split()[3:5])
        if directory.is_relative_to(point) and len(point) >= len(nearest[0]):
            nearest = (point, after.split(maxsplit=1)[0], f"{root} {after}")
    return nearest


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
