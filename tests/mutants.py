"""Break one line at a time and see whether a test notices: `make mutate` prints what survives.

A few dozen lines that promises rest on, each held against the tests of its subject, in a copy of
the repository. It takes about a minute a line; ARGS='12 lock' chooses by number or words.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests import servers

ROOT = servers.REPOSITORY
UNIT, SERVER = "tests/unit/", "tests/postgres/"


@dataclass(frozen=True)
class Mutant:
    """A line, what it becomes, and the tests that should notice."""

    what: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def file(self) -> str:
        """The file's path in the repository."""
        return self.path if self.path == "entrypoint.py" else f"preflight/{self.path}.py"

    def broken(self, text: str) -> str:
        """Return the file with the line broken; the line must be there, once."""
        assert text.count(self.old) == 1, f"{self.file}: {text.count(self.old)} times {self.old!r}"
        return text.replace(self.old, self.new)


def _tests(*names: str) -> tuple[str, ...]:
    return tuple(
        f"{UNIT if name.startswith('unit_') else SERVER}test_{name.removeprefix('unit_')}.py"
        for name in names
    )


MUTANTS = [
    # --- durability
    Mutant(
        "fsync of the parent after the rename",
        "backup/directory",
        "                sync(self._root)\n",
        "                pass\n",
        _tests("durability", "unit_backup"),
    ),
    Mutant(
        "fsync of a backup's files",
        "backup/directory",
        "        os.fsync(made.file.fileno())\n",
        "",
        _tests("durability"),
    ),
    Mutant(
        "fsync of their names",
        "backup/directory",
        "            sync(path.parent)\n",
        "",
        _tests("durability"),
    ),
    Mutant(
        "half of a file is not kept",
        "backup/directory",
        "            new.unlink(missing_ok=True)\n",
        "            pass\n",
        _tests("unit_stores"),
    ),
    Mutant(
        "a file that is given up is not kept",
        "backup/directory",
        "        if made.abandoned:\n",
        "        if False:\n",
        _tests("unit_stores"),
    ),
    Mutant(
        "a backup that is read stays",
        "backup/directory",
        "        if _in_use(path):\n",
        "        if False:\n",
        _tests("unit_stores"),
    ),
    Mutant(
        "synchronous_commit",
        "server/sessions",
        '    "synchronous_commit": "on",\n',
        "",
        _tests("apply"),
    ),
    # --- a proven backup
    Mutant(
        "the dump's hash is compared",
        "backup/reading_back",
        "    if found.sha256 != digest:\n",
        "    if False:\n",
        _tests("backup_faults", "backup"),
    ),
    Mutant(
        "the dump's rows are compared",
        "backup/reading_back",
        "        if rows.get(key) != count\n",
        "        if rows.get(key) is None\n",
        _tests("backup_faults", "backup"),
    ),
    Mutant(
        "an archive ends as it should",
        "backup/reading_back",
        "    if wanted and found.end != _END:\n",
        "    if False:\n",
        _tests("backup_faults", "backup", "unit_backup"),
    ),
    Mutant(
        "a table that is cut is noticed",
        "backup/reading_back",
        "    if code != 0 or counter.inside:\n",
        "    if code != 0:\n",
        _tests("backup_faults", "backup", "unit_backup"),
    ),
    Mutant(
        "pg_dump's exit code",
        "backup/clients",
        "        if code != 0:\n",
        "        if False:\n",
        _tests("backup_faults", "backup"),
    ),
    Mutant(
        "the copy's rows are compared",
        "rehearsal/copies",
        "    different = snapshots.differing(copy, {n: c for n, c in rows.items() if _bare(n) "
        "not in gone})\n",
        "    different: list[str] = []\n",
        _tests("proof", "rehearsal"),
    ),
    Mutant(
        "the copy's objects are compared",
        "rehearsal/copies",
        "    different += catalog.lacking(",
        "    _ = (",
        _tests("proof", "rehearsal"),
    ),
    Mutant(
        "the copy's sequences are compared",
        "rehearsal/copies",
        "    different += catalog.behind(stood, catalog.sequences(copy))\n",
        "",
        _tests("proof", "rehearsal"),
    ),
    Mutant(
        "tables are locked before the snapshot",
        "backup/snapshots",
        '                    other.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")\n',
        "                    del names\n",
        _tests("backup"),
    ),
    Mutant(
        "pg_dump uses the snapshot",
        "backup/clients",
        '        f"--snapshot={snapshot}",\n',
        "",
        _tests("backup"),
    ),
    Mutant(
        "a table that row security filters",
        "backup/snapshots",
        "if row[7]]:",
        "if False]:",
        _tests("backup"),
    ),
    Mutant(
        "a backup that fails its proof is hidden",
        "backup/take",
        "            hide(saved)\n",
        "            pass\n",
        _tests("proof", "backup_faults", "rehearsal"),
    ),
    Mutant(
        "free space is asked for",
        "backup/directory",
        "        self._require_space(needed)\n",
        "",
        _tests("backup_faults", "backup"),
    ),
    Mutant(
        "backups with exports stay",
        "backup/retention",
        "not _has_exports(backups, item.name)",
        "True",
        _tests("retention", "rollback"),
    ),
    Mutant(
        "a partial that is being written stays",
        "backup/directory",
        "        return False\n    except OSError",
        "        return True\n    except OSError",
        _tests("retention", "backup_faults"),
    ),
    # --- the copy
    Mutant(
        "the copy is closed to PUBLIC",
        "backup/new_database",
        '            session.execute(f"REVOKE ALL ON DATABASE {quoting.name(name)} FROM PUBLIC")\n',
        "",
        _tests("rehearsal", "proof", "restore"),
    ),
    Mutant(
        "the copy has the database's settings",
        "rehearsal/copies",
        "            scratch.apply_database_settings(session, home, live, name)\n",
        "            pass\n",
        _tests("rehearsal", "proof"),
    ),
    Mutant(
        "a living run's copy is not swept",
        "rehearsal/scratch",
        "        if not alive:\n",
        "        if True:\n",
        _tests("rehearsal"),
    ),
    Mutant(
        "the password is not offered to another server",
        "base/config",
        '    os.environb.pop(b"PGPASSWORD", None)\n',
        "",
        _tests("rehearsal"),
    ),
    # --- one run at a time
    Mutant(
        "the lock is asked for between files",
        "entrypoint.py",
        "                    lock.require(session)\n",
        "",
        _tests("lock"),
    ),
    Mutant(
        "the lock is asked for between rollbacks",
        "commands/rollback",
        "            lock.require(session)\n",
        "",
        _tests("lock"),
    ),
    Mutant(
        "nobody waits in the server for the lock",
        "server/lock",
        "pg_try_advisory_lock(%s::int8)",
        "pg_advisory_lock(%s::int8) IS NOT NULL",
        _tests("lock"),
    ),
    Mutant(
        "the fence of a transactional file",
        "apply/forward",
        "        fence.fence(session, lambda: ledger.claim(session, migration, again, backup))\n",
        "        ledger.claim(session, migration, again, backup)\n",
        _tests("concurrency", "lock"),
    ),
    Mutant(
        "the exit code of a busy lock",
        "base/errors",
        "    LOCK_BUSY = 11\n",
        "    LOCK_BUSY = 12\n",
        _tests("lock"),
    ),
    Mutant(
        "a pooler is refused",
        "server/ready",
        "    if facts is not None and facts.pooler:\n",
        "    if False:\n",
        _tests("waiting"),
    ),
    Mutant(
        "the server that an image starts for itself",
        "server/ready",
        "        _require_stable(session)\n",
        "        pass\n",
        _tests("waiting"),
    ),
    # --- a file
    Mutant(
        "a verify file's answer",
        "apply/forward",
        "            verify.require(session, migration, MigrationFailed)\n",
        "            pass\n",
        _tests("verify", "apply"),
    ),
    Mutant(
        "deferred constraints fail in their file",
        "apply/forward",
        '        session.execute("SET CONSTRAINTS ALL IMMEDIATE")\n',
        "        pass\n",
        _tests("apply"),
    ),
    Mutant(
        "what a file set is reset",
        "server/sessions",
        "RESET ROLE; RESET ALL",
        "RESET ROLE",
        _tests("apply", "nontransactional"),
    ),
    Mutant(
        "COMMIT outlives a stop",
        "server/sessions",
        "nullcontext(), stop.deferred():",
        "nullcontext():",
        _tests("signals"),
    ),
    Mutant(
        "a failure is kept in the journal",
        "apply/forward",
        "    _journal_failure(session, migration, problem)\n",
        "",
        _tests("apply"),
    ),
    Mutant(
        "a statement outside is marked before it runs",
        "apply/outside",
        "        ledger.mark(self.session, self.migration.version, done=done, started=started)\n",
        "",
        _tests("nontransactional"),
    ),
    Mutant(
        "files run without a statement timeout",
        "server/sessions",
        '    "statement_timeout": "0",\n',
        "",
        _tests("apply", "backup", "auth"),
    ),
    Mutant(
        "only five columns are for everybody",
        "history/tables",
        'PUBLIC = ("version", "name", "checksum", "state", "breaking")',
        'PUBLIC = ("version", "name", "checksum", "state", "breaking", "up_sql")',
        _tests("history", "auth"),
    ),
]


def say(text: str) -> None:
    """Write at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def survives(mutant: Mutant, copy: Path) -> bool:
    """Break the line in a copy of the repository; tell whether all its tests still pass."""
    file = copy / mutant.file
    text = file.read_text(encoding="utf-8")
    file.write_text(mutant.broken(text), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", *mutant.tests]
        done = subprocess.run(command, cwd=copy, capture_output=True, check=False)
    finally:
        file.write_text(text, encoding="utf-8")
    return done.returncode == 0


def main(chosen: list[str]) -> int:
    """Run the mutants whose number or words are chosen, or all; return how many survive."""
    survivors = 0
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
        for name in names.decode().split("\0")[:-1]:
            if (ROOT / name).exists():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
        for name in (".venv", ".cache"):
            (copy / name).symlink_to((ROOT / name).resolve())
        for number, mutant in enumerate(MUTANTS, 1):
            if chosen and str(number) not in chosen and not set(chosen) & set(mutant.what.split()):
                continue
            say(f"{number:02d} {mutant.what}: ")
            lives = survives(mutant, copy)
            survivors += lives
            say("SURVIVES\n" if lives else "killed\n")
    say(f"{survivors} survived\n")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
