"""How a command that is not of many goes to one target of a fleet: by variables before it."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from preflight.base import plain
from preflight.base.config import Config
from preflight.base.errors import ConfigInvalid
from preflight.server import sessions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from preflight.commands.fleet.targets import Target

PAGE = "docs/fleets.md, One target by hand, says which variables lead it there"
# which no fleet takes; whole ones, as they are typed
_OURS = re.compile(r"`((?:adopt|force|rollback)(?: [^` ]+)*(?<! --to)(?<! --through))`")


def told(target: Target, error: Mapping[str, Any]) -> dict[str, Any]:
    """Return an error whose next step leads to this target, where it names a command for one."""
    found = _OURS.search(str(error.get("hint", "")))
    if found is None or not target.said:
        return dict(error)
    before = variables(target)
    how = f"by hand: `{before} entrypoint.py {found[1]}`" if before else f"by hand: {PAGE}"
    return {**error, "hint": f"{error['hint']} For this target alone, {how}."}


def variables(target: Target) -> str | None:
    """Return the variables that lead to a target alone, as a shell takes them before a command.

    None where that needs a secret, or no variable can say it.
    """
    config, said = target.config, target.said
    changed, gone = dict[str, str](), set[str]()
    if "url_file" in said:
        changed["DATABASE_URL_FILE"] = said["url_file"]
        gone = {*_addresses(), "DATABASE_URL"} & config.environ.keys()
    elif "database" in said:
        names = [each["dbname"] for each in plain.VOCABULARIES.values()]
        there = [name for name in names if config.environ.get(name)]
        changed |= dict.fromkeys(there or names[:1], said["database"])
    if "schema" in said:
        changed["PREFLIGHT_SCHEMA"] = said["schema"]
    if "search_path" in said:
        changed["PREFLIGHT_SCHEMAS"] = ",".join(map(_listed, config.schemas))
    shown = {name: shlex.quote(value) for name, value in changed.items()}
    if target.extra:
        more = sessions.with_settings({}, target.extra)["options"]
        changed["PGOPTIONS"], shown["PGOPTIONS"] = more, shlex.quote(more)
        if before := config.environ.get("PGOPTIONS"):  # not shown: nobody knows what is in there
            changed["PGOPTIONS"] = f"{before} {more}"
            shown["PGOPTIONS"] = f'"$PGOPTIONS "{shown["PGOPTIONS"]}'
    if not _leads_there(target, changed, gone):
        return None
    unset = [f"-u {name}" for name in sorted(gone)]
    words = [*(["env", *unset] if unset else []), *(f"{key}={text}" for key, text in shown.items())]
    return " ".join(words)


def _addresses() -> set[str]:
    """Return every variable that says where a database is, or as whom, but for a URL."""
    names = {name for each in plain.VOCABULARIES.values() for name in each.values()}
    names |= {"PGPASSWORD", "POSTGRES_PASSWORD"}
    return names | {f"{name}_FILE" for name in names}


def _listed(schema: str) -> str:
    return '"{}"'.format(schema.replace('"', '""')) if set(schema) & set('," ') else schema


def _leads_there(target: Target, changed: Mapping[str, str], gone: set[str]) -> bool:
    """Tell whether a run with these variables would do what the fleet does with its target."""
    kept = {name: value for name, value in target.config.environ.items() if name not in gone}
    try:
        found = Config.from_env(kept | dict(changed), target.config.migrations_dir, "")
    except ConfigInvalid:
        return False
    meant = target.config
    return (found.target, found.schema, found.schemas) == (
        meant.target,
        meant.schema,
        meant.schemas,
    )
