"""Supabase: `supabase/migrations/TIMESTAMP_title.sql`, forward only."""

from __future__ import annotations

import re

from preflight.files import foreign
from preflight.files.layout import Source

_NAME = re.compile(r"(?P<name>(?P<version>[0-9]{1,18})_.*)\.sql")


class Supabase(foreign.Foreign):
    """Its history has a row a version, which is text."""

    tool = "supabase"
    hint = "Name it TIMESTAMP_title.sql: 14 digits and an underscore."
    table = foreign.Table(
        "supabase_migrations.schema_migrations", {"version": "text"}, ("version",)
    )

    def counts(self, file: str) -> bool:
        """Tell whether it is a migration; the command line passes over all other names."""
        return super().counts(file) and ("/" in file or bool(_NAME.fullmatch(file)))

    def named(self, file: str) -> Source | None:
        """Read the version."""
        found = _NAME.fullmatch(file)
        return Source(int(found["version"]), found["name"], "up") if found else None


LAYOUT = Supabase
