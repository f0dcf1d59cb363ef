"""Which backups stay."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from preflight.backup.manifests import Backup, Identity
    from preflight.backup.store import Store

RESTORED = "restored"
EXPORT = "export-"  # what a rollback destroyed is in no other file


def prune(
    backups: Store, identity: Identity, keep: int, but: str | None = None, *, proven: bool = False
) -> None:
    """Keep the newest backups of this database; those with exports always. Failure is a warning.

    `but` names one whose worth is not known yet: it stays, and no other goes because of it. Where
    all are to be `proven`, the newest that is stays, however many came after it that are not.

    Raises OSError where nothing can be listed.
    """
    log = structlog.get_logger()
    ours = [item for item in identity.ours(backups.listing()) if item.name != but]
    precious = {item.name for item in ours if _has_exports(backups, item.name)}
    stays = [item for item in ours if proven and item.manifest.verified == RESTORED][-1:]
    for item in surplus(ours, keep, precious):
        if item in stays:
            continue
        try:
            gone = backups.remove(item, identity)
        except OSError as error:
            log.warning("backup.pruned", backup=item.name, failed=error.strerror)
        else:
            if gone:
                log.info("backup.pruned", backup=item.name)
            else:
                log.warning("backup.pruned", backup=item.name, failed="it is in use")


def _has_exports(backups: Store, name: str) -> bool:
    with suppress(FileNotFoundError):  # another run has removed it
        return any(each.startswith(EXPORT) for each in backups.files(name))
    return False


def _awaited(backup: Backup) -> str | None:
    """Return what a run waited to apply, and after what: two runs with the same changed nothing."""
    taken_for = backup.manifest.taken_for
    if taken_for is None or taken_for.command not in {"up", "wrap"} or not taken_for.pending:
        return None
    return json.dumps([taken_for.command, taken_for.pending, taken_for.after], sort_keys=True)


def surplus(backups: Sequence[Backup], keep: int, precious: Collection[str] = ()) -> list[Backup]:
    """Return what may go, oldest first: all but the newest `keep` and what is `precious`.

    Of a set of files that fails again and again only its first and its newest backup stay: `up`
    takes backups of one and the same set in a row only as long as it is not applied.
    """
    between: list[Backup] = []
    for wanted, group in groupby(backups, key=_awaited):
        between += list(group)[1:-1] if wanted else []
    between = [item for item in between if item.name not in precious]
    left = [item for item in backups if item not in between and item.name not in precious]
    return between + left[: max(0, len(left) - max(1, keep))]
