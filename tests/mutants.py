"""Break one line at a time and see whether a test notices: `make mutate` prints what survives.

Lines that promises rest on, each held against the tests of its subject, in a copy of the
repository. It takes less than a minute a line; ARGS='12 lock F2.33c' chooses by number, by word or
by the fault that a line puts back (FAULTS), ARGS=--general holds those that have some against the
general instruments alone, and ARGS=--others holds each against its subject's tests without those
that are named. What died is printed with the test that failed and its words: read them, for a test
may fail for another reason.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests import servers

ROOT = servers.REPOSITORY
_OF_A_TEST = re.compile(r"(?:FAILED|ERROR) \S+::")  # of a module that cannot be read there is none
UNIT, SERVER = "tests/unit/", "tests/postgres/"


@dataclass(frozen=True)
class Mutant:
    """A line, what it becomes, and the tests that should notice."""

    what: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    general: tuple[str, ...] = ()  # what finds it that was not written for it
    faults: str = ""  # the numbers of FAULTS that the broken line puts back

    @property
    def file(self) -> str:
        """The file's path in the repository."""
        return self.path if (ROOT / self.path).is_file() else f"preflight/{self.path}.py"

    @property
    def others(self) -> tuple[str, ...]:
        """What pytest is asked for to run the files of the named tests without these."""
        named = [each for each in self.tests if "::" in each]
        files = dict.fromkeys(each.partition("::")[0] for each in named)
        return (*files, *(f"--deselect={each}" for each in named))

    def broken(self, text: str) -> str:
        """Return the file with the line broken; the line must be there, once."""
        assert text.count(self.old) == 1, f"{self.file}: {text.count(self.old)} times {self.old!r}"
        return text.replace(self.old, self.new)


def _tests(*names: str) -> tuple[str, ...]:
    """Return files, or one test in each (`lock::test_name`), as pytest calls them."""
    return tuple(map(_called, names))


def _called(name: str) -> str:
    file, _, test = name.partition("::")
    if file.startswith("faults_"):
        return f"tests/faults/test_{file.removeprefix('faults_')}.py" + (
            f"::{test}" if test else ""
        )
    where = UNIT if file.startswith("unit_") else SERVER
    return f"{where}test_{file.removeprefix('unit_')}.py" + (f"::{test}" if test else "")


# The general instruments: none of them knows a single fault.
HISTORIES = _tests("faults_histories")
DROPPING = _tests("faults_dropping")
VERDICTS = _tests("faults_verdicts")
CRASH = _tests("faults_crash")
LOADING = _tests(
    "faults_crash::test_f129_whoever_is_asked_to_stop_where_it_loads_something_ends_as_ever"
)
COPIES = _tests("faults_copies")
RESTORES = _tests("faults_restores")
LIVES = _tests("faults_lives")
RESUMES = _tests("faults_resumes")
RIGHTS = _tests("faults_rights")
DISKS = _tests("faults_disks")
CALLS = _tests("faults_calls")
EXPORTS = _tests("faults_exports")
OVERTAKEN = _tests("faults_overtaken")
PLANS = _tests("faults_plans")
SCREENS = _tests("faults_screens")
SILENCE = _tests("faults_silence")
MANIFESTS = ("tests/cluster/test_manifests.py",)
TOGETHER = _tests("faults_together::test_two_runs_at_once_end_as_each_would_alone")

WORDS = _tests("faults_words")

# What reviews found (F1) and what else they and others did (F2), each in a few words.
FAULTS = {
    "F1.1": "another file under a recorded number",
    "F1.2": "what a resume did not compare",
    "F1.3": "first contact stopped asking, and took a failure for an answer",
    "F1.3b": "a proof that failed open for a plain role",
    "F1.3c": "a lock left behind a pooler, and a wait that asked nothing",
    "F1.4": "a restored database was believed without a look; whose backup it is",
    "F1.5": "a restore lost what belongs to the database",
    "F1.6": "what a dump silently leaves out, and what changes meanwhile",
    "F1.7": "nothing was asked, so all was well",
    "F1.8": "compose.yaml built the reader's own Dockerfile",
    "F1.8b": "a swap was done twice, a backup pruned while it was read",
    "F1.9": "the history was read before anybody asked whose it is",
    "F1.10": "names and operators that others planted",
    "F1.11": "default privileges opened the history",
    "F1.12": "who may meet a copy",
    "F1.13": "lock and statement timeouts that did not hold",
    "F1.13b": "a lock outlived a vanished node",
    "F1.14": "nobody had a limit for what a rehearsal measured",
    "F1.15": "the witness kept more locks than the dump",
    "F1.16": "a rehearsal filled production's disk",
    "F2.17": "the repair of an INVALID index dropped somebody else's",
    "F2.18": "statements that no file could run",
    "F2.19": "force broke a healthy file without a transaction",
    "F2.20": "a file that ends its own session was tried for ever",
    "F2.21": "effects beyond the database were repeated",
    "F2.22": "DISCARD ALL let a second run in",
    "F2.23": "rows, digits and companions that an export lost",
    "F2.24": "the plan of a file that is part-way listed what is done",
    "F2.25": "--to 0 left version 000",
    "F2.26": "a file's temporary tables satisfied its verify file",
    "F2.27": "a newer file that is part-way was just ahead",
    "F2.28": "the verdict on a backup did not ask whose lack it is",
    "F2.28b": "a false 24 for equal catalogs",
    "F2.28c": "a comment switched the rehearsal off",
    "F2.28d": "a healthy database under DDL was refused",
    "F2.28e": "where owners cannot be had nothing was proven",
    "F2.29": "a clean-up that failed hid the reason; subscriptions woke",
    "F2.30": "a file system that lacks a call held no backup",
    "F2.31": "a nicety that the server refused was a must",
    "F2.32": "libpq's variables that are ours reached children",
    "F2.33": "options and quotes of URLs that others write",
    "F2.33b": "a deadline did not hold where a peer said nothing",
    "F2.33c": "files and tables of others were trusted",
    "F2.33d": "the first half second",
    "F2.33e": "words of libpq and of the server repeated secrets",
    "F2.34": "two apps in one database",
    "F2.34a": "valid SQL of an everyday size was 70",
    "F2.34b": "files that every other tool runs",
    "F2.34c": "a plan left out locks and destroyed rows",
    "F2.34d": "an error in a block named its first line",
    "F2.35": "the bar and the log shared a line",
    "F2.36": "a run ended without a summary",
    "F2.37": "exit 30 had no hint that is true",
    "F2.38": "--json said nothing of a failure",
    "F2.39": "an event was longer than log drivers take",
    "F2.40": "words that people try first",
    "F2.41": "counts, lists and names as people read and type them",
    "F2.42": "manifests that a cluster of somebody's own cannot use",
    "F2.43": "the program could not be installed",
    "F2.44": "what to type in a container",
    "F2.45": "what a stranger looks for first in a repository",
}
# Those of which no line can be broken in a copy that is no clone, and the tests that find them.
ELSEWHERE = {
    "F2.43": _tests("unit_release::test_installed_program_reads_the_files_where_it_is_started")
}

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
        "            if not alone:\n",
        "            if False:\n",
        _tests("unit_stores"),
        TOGETHER,
        faults="F1.8b",
    ),
    Mutant(
        "synchronous_commit",
        "server/sessions",
        "_sets(self._ours())), _DURABLE]\n",
        "_sets(self._ours()))]\n",
        _tests("apply::test_success_is_on_the_disk_before_it_is_told"),
        CRASH,
    ),
    # --- a proven backup
    Mutant(
        "the dump's hash is compared",
        "backup/reading_back",
        "    if found.sha256 != digest:\n",
        "    if False:\n",
        _tests("backup_faults::test_bit_that_flips_on_the_disk_is_found"),
    ),
    Mutant(
        "the dump's rows are compared",
        "backup/reading_back",
        "        if rows.get(key) != count\n",
        "        if rows.get(key) is None\n",
        _tests("unit_backup::test_dump_with_a_row_more_or_less_is_no_backup"),
        VERDICTS,
    ),
    Mutant(
        "an archive ends as it should",
        "backup/reading_back",
        "    if wanted and found and found.end != _END:\n",
        "    if False:\n",
        _tests("backup_faults::test_dump_that_cannot_be_trusted_stops_the_run"),
        VERDICTS,
    ),
    Mutant(
        "one file more than a folder had",
        "backup/manifests",
        "dict(there).items() ^ said.items()",
        "said.items() - dict(there).items()",
        _tests("folders::test_folder_that_is_not_as_it_was_is_no_backup"),
    ),
    Mutant(
        "pg_dump does not outlive a killed run",
        "backup/folder",
        "                children.guarded(child),\n",
        "",
        _tests("folders::test_stop_in_the_middle_leaves_no_client_and_no_backup"),
        CRASH,
    ),
    Mutant(
        "a table that is cut is noticed",
        "backup/reading_back",
        "    if code != 0 or counter.inside:\n",
        "    if code != 0:\n",
        _tests("unit_backup::test_archive_that_is_cut_inside_a_table_is_unreadable"),
        VERDICTS,
    ),
    Mutant(
        "pg_dump's exit code",
        "backup/clients",
        "        if code != 0:\n",
        "        if False:\n",
        _tests(
            "backup_faults::test_failure_that_passes_is_tried_again",
            "backup_faults::test_dump_that_cannot_be_trusted_stops_the_run",
        ),
    ),
    Mutant(
        "the copy's rows are compared",
        "rehearsal/copies",
        "    different = snapshots.differing(copy, there)\n",
        "    different: list[str] = []\n",
        _tests(
            "proof::test_restore_that_loses_rows_is_no_proof",
            "proof::test_dump_that_lacks_something_is_no_backup",
        ),
    ),
    Mutant(
        "the copy's objects are compared",
        "rehearsal/copies",
        "    different += catalog.lacking(",
        "    _ = (",
        _tests("proof::test_dump_that_lacks_something_is_no_backup"),
        VERDICTS,
    ),
    Mutant(
        "the copy's sequences are compared",
        "rehearsal/copies",
        "    different += _behind(live, stood, catalog.sequences(copy, schemas), schemas)\n",
        "",
        _tests("proof::test_dump_that_lacks_something_is_no_backup"),
        VERDICTS,
    ),
    Mutant(
        "a sequence that is set back again and again is looked at first",
        "rehearsal/copies",
        "if n not in anywhere}, found)",
        "}, found)",
        _tests("proof::test_sequence_that_is_set_back_again_and_again_is_no_lack_of_the_dump"),
        VERDICTS,
        faults="F2.28d",
    ),
    Mutant(
        "tables are locked before the snapshot",
        "backup/snapshots",
        '        session.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")\n',
        "        del names\n",
        _tests("backup::test_tables_are_locked_before_the_snapshot_is_taken"),
    ),
    Mutant(
        "pg_dump uses the snapshot",
        "backup/clients",
        '        f"--snapshot={snapshot}",\n',
        "",
        _tests("backup::test_row_written_after_the_snapshot_is_neither_dumped_nor_counted"),
    ),
    Mutant(
        "a table that row security filters",
        "backup/snapshots",
        "WHERE NOT r.readable OR r.filtered AND r.has_rows ORDER",
        "WHERE NOT r.readable ORDER",
        _tests("backup::test_what_the_role_cannot_read_is_named_before_anything_starts"),
        RIGHTS,
    ),
    Mutant(
        "a backup that fails its proof is hidden",
        "backup/take",
        "            hide(saved)\n",
        "            pass\n",
        _tests("proof::test_backup_that_was_read_back_is_still_there_when_the_first_file_runs"),
    ),
    Mutant(
        "free space is asked for",
        "backup/directory",
        "        self._require_space(needed)\n",
        "",
        _tests("backup_faults::test_full_disk_stops_the_run_and_nothing_is_left_on_it"),
        DISKS,
    ),
    Mutant(
        "backups with exports stay",
        "backup/retention",
        "for item in ours if _has_exports(backups, item.name)",
        "for item in ours if not ours",
        _tests("retention::test_backup_with_exports_is_never_removed"),
        HISTORIES,
    ),
    Mutant(
        "what was recorded in between ends a crash loop",
        "backup/retention",
        "taken_for.pending, taken_for.after]",
        "taken_for.pending]",
        _tests("retention::test_command_that_succeeds_each_time_is_no_crash_loop"),
    ),
    Mutant(
        "a look under the lock is not taken on another session",
        "server/sessions",
        "not self.lost or self.locked or",
        "not self.lost or",
        _tests("concurrency::test_lock_that_is_lost_with_its_connection_is_not_worked_without"),
        CRASH,
    ),
    Mutant(
        "a database restored with other options is not swapped in",
        "backup/restore",
        'held["left_out"] == place.left_out',
        'held["left_out"]',
        _tests("restore::test_restore_with_other_options_is_not_swapped_in"),
        general=RESTORES,
    ),
    Mutant(
        "a number at work is above all that a snapshot knows of",
        "commands/wrapping/written",
        "pg_catalog.pg_current_xact_id()",
        "pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())",
        _tests("wrap::test_transaction_that_is_at_work_has_not_come_to_naught"),
        CRASH,
    ),
    Mutant(
        "a partial that is being written stays",
        "backup/directory",
        "        return False\n    except OSError",
        "        return True\n    except OSError",
        _tests("retention::test_only_a_dead_runs_rest_of_this_database_is_swept"),
        TOGETHER,
    ),
    # --- the copy
    Mutant(
        "the copy is closed to PUBLIC",
        "backup/new_database",
        '            session.execute(f"REVOKE ALL ON DATABASE {quoting.name(name)} FROM PUBLIC")\n',
        "",
        _tests("rehearsal::test_copy_is_closed_to_everybody_else"),
        COPIES,
        faults="F1.12",
    ),
    Mutant(
        "the copy has the database's settings",
        "rehearsal/copies",
        "    scratch.apply_settings(home, restoring.settings, restoring.name)\n",
        "",
        _tests("rehearsal::test_copy_has_the_settings_of_the_database"),
        faults="F1.5",
    ),
    Mutant(
        "a living run's copy is not swept",
        "rehearsal/scratch",
        "        if not alive:\n",
        "        if True:\n",
        _tests("rehearsal::test_copy_of_a_living_run_is_not_swept"),
        TOGETHER,
    ),
    Mutant(
        "the password is not offered to another server",
        "base/config",
        '    os.environb.pop(b"PGPASSWORD", None)\n',
        "",
        _tests("rehearsal::test_password_of_the_live_server_is_not_offered_to_another"),
        COPIES,
    ),
    # --- one run at a time
    Mutant(
        "the lock is asked for between files",
        "apply/forward",
        "    if not ours:\n",
        "    if not held:\n",
        _tests("lock::test_lock_that_a_file_let_go_is_missed"),
        HISTORIES,
    ),
    Mutant(
        "the lock is asked for between rollbacks",
        "commands/rollback",
        "            lock.require_alone(session)\n",
        "",
        _tests("lock::test_lock_that_a_rollback_file_let_go_is_missed"),
        HISTORIES,
    ),
    Mutant(
        "a new session waits for the lock before the old one lets it go",
        "server/lock",
        "                if new.answered() or old.execute(_QUEUED, _parameters(old)).fetchone():\n",
        "                if True:\n",
        _tests("lock::test_old_session_has_the_lock_until_the_new_one_waits_for_it"),
    ),
    Mutant(
        "settings with a dot that functions set are asked for",
        "server/sessions",
        "self._said = self._named(_NAMES_OF_FUNCTIONS)",
        "self._said = set()",
        _tests("apply::test_setting_with_a_dot_is_seen_where_a_function_or_a_trigger_sets_it"),
    ),
    Mutant(
        "nobody waits in the server for the lock",
        "server/lock",
        "pg_try_advisory_lock(%s::int8)",
        "pg_advisory_lock(%s::int8) IS NOT NULL",
        _tests("lock::test_waiter_does_not_hold_an_index_up"),
    ),
    Mutant(
        "the fence of a transactional file",
        "apply/forward",
        "            fence.fence(session, claim, begins=True)\n",
        "            claim()\n",
        _tests("apply::test_run_that_comes_second_plans_again"),
    ),
    Mutant(
        "the exit code of a busy lock",
        "base/errors",
        "    LOCK_BUSY = 11\n",
        "    LOCK_BUSY = 12\n",
        _tests("lock::test_busy_lock_names_its_holder"),
    ),
    Mutant(
        "a pooler is refused",
        "server/ready",
        "    if facts is not None and facts.pooler and not session.own():\n",
        "    if False:\n",
        _tests("waiting::test_pooler_is_refused_at_once_for_work"),
        faults="F1.3c",
    ),
    Mutant(
        "the server that an image starts for itself",
        "server/ready",
        "            if not session.local or _stays(session):\n",
        "            if True:\n",
        _tests("waiting::test_server_of_an_image_that_initialises_itself_is_not_worked_on"),
        LIVES,
    ),
    # --- a file
    Mutant(
        "a verify file's answer",
        "apply/forward",
        "            verify.require(session, migration, MigrationFailed, verify.asked)\n",
        "            pass\n",
        _tests("verify::test_check_that_does_not_hold_rolls_the_file_back"),
    ),
    Mutant(
        "deferred constraints fail in their file",
        "apply/forward",
        '_CHECKED = "SET CONSTRAINTS ALL IMMEDIATE"\n',
        '_CHECKED = "SELECT 1"\n',
        _tests("apply::test_deferred_constraint_is_the_files_failure"),
    ),
    Mutant(
        "what a file set is reset",
        "server/sessions",
        '"RESET ROLE", "RESET ALL")',
        '"RESET ROLE")',
        _tests("apply::test_nothing_that_a_file_sets_reaches_the_next"),
    ),
    Mutant(
        "COMMIT outlives a stop",
        "server/sessions",
        "nullcontext(), stop.deferred():",
        "nullcontext():",
        _tests(
            "signals::test_stop_during_a_commit_without_answer_says_that_it_does_not_know",
            "signals::test_stop_after_the_last_commit_is_success",
        ),
        CRASH,
    ),
    Mutant(
        "a failure is kept in the journal",
        "apply/forward",
        "    _journal_failure(session, migration, problem)\n",
        "",
        _tests("apply::test_failing_file_is_rolled_back_and_later_ones_do_not_run"),
    ),
    Mutant(
        "a statement outside is marked before it runs",
        "apply/outside",
        "        ledger.mark(self.session, self.migration.version, done=done, started=started)\n",
        "",
        _tests("nontransactional::test_statement_that_cannot_be_read_back_needs_repair"),
    ),
    Mutant(
        "files run without a statement timeout",
        "server/sessions",
        '    "statement_timeout": "0",\n',
        "",
        _tests("apply::test_defaults_of_the_role_do_not_bite"),
        HISTORIES,
    ),
    Mutant(
        "only five columns are for everybody",
        "history/tables",
        'PUBLIC = ("version", "name", "checksum", "state", "breaking")',
        'PUBLIC = ("version", "name", "checksum", "state", "breaking", "up_sql")',
        _tests("history::test_everyone_may_read_five_columns_and_nothing_else"),
        HISTORIES,
    ),
    # --- a restore
    Mutant(
        "a restored database is compared with what belonged to it",
        "backup/restored",
        "        if own_of(other, place) != state.own:\n",
        "        if False:\n",
        _tests("restore::test_restored_database_whose_rights_were_changed_is_not_believed"),
        general=RESTORES,
        faults="F1.4",
    ),
    Mutant(
        "a restored database's rows are compared again",
        "backup/restored",
        "        different += snapshots.written_since(other, state.xid)\n",
        "",
        _tests("restore::test_restored_database_that_was_written_to_is_not_believed"),
        general=RESTORES,
        faults="F1.4",
    ),
    Mutant(
        "nobody is let in before the swap",
        "backup/swap",
        '            session.execute(f"ALTER DATABASE {into} ALLOW_CONNECTIONS false")\n',
        "",
        _tests("restore::test_nobody_gets_in_between_the_comparison_and_the_swap"),
        general=RESTORES,
    ),
    Mutant(
        "a swap is not done twice",
        "backup/restore",
        "        once = asked.swap and not (asked.again or newer)\n",
        "        once = False\n",
        _tests("restore::test_swap_of_the_same_backup_is_not_done_twice"),
        CRASH,
        faults="F1.8b",
    ),
    Mutant(
        "what took a backup's place is not thrown out",
        "backup/swap",
        "        _require_not_replaced(session, place, swaps)\n",
        "",
        _tests("restore::test_swap_of_a_backup_that_another_one_replaced_is_not_done_again"),
        faults="F1.8b",
    ),
    Mutant(
        "latest is this server's",
        "backup/restore",
        "    if ours := identity.ours(known):\n        return ours[-1]\n",
        "",
        _tests("restore::test_latest_is_of_this_server"),
        general=RESTORES,
        faults="F1.4",
    ),
    Mutant(
        "a physical copy prunes nothing of its origin",
        "backup/manifests",
        '            if item.origin[1] in ((self.address, "")[: 1 + agreed]) and item.schemas',
        "            if item.schemas",
        _tests("retention::test_physical_copy_prunes_nothing_of_its_origin"),
        faults="F1.4",
    ),
    Mutant(
        "a subscription stays asleep",
        "backup/restore",
        "        options = [NO_SUBSCRIPTIONS, *",
        "        options = [*",
        _tests("restore::test_subscription_does_not_come_alive_in_a_restored_database"),
        general=RESTORES,
        faults="F2.29",
    ),
    Mutant(
        "a directory that cannot be synced is one",
        "backup/directory",
        "        if error.errno not in CANNOT_SYNC:\n",
        "        if True:\n",
        _tests("unit_backup::test_directory_that_cannot_be_synced_holds_backups_all_the_same"),
        CALLS,
        faults="F2.30",
    ),
    # --- whose fault it is
    Mutant(
        "what changed while it was dumped is dumped again",
        "backup/snapshots",
        "catalog.moved(self._marks, catalog.marks(now, self._schemas)):\n",
        "catalog.moved(self._marks, self._marks):\n",
        _tests("backup_faults::test_what_no_lock_holds_still_is_dumped_again_when_it_was_changed"),
        faults="F1.6",
    ),
    Mutant(
        "a database that nobody changes can be dumped",
        "backup/take",
        "        if moved := count.moved():\n",
        '        if moved := count.moved() or ["all"]:\n',
        _tests("backup"),
        VERDICTS,
    ),
    Mutant(
        "one fresh dump before a backup is called bad",
        "gate",
        "    except BackupUnverified as failure:\n",
        "    except BackupDamaged as failure:\n",
        _tests("backup_faults::test_one_fresh_dump_is_taken_before_a_backup_is_called_bad"),
        VERDICTS,
        faults="F2.28d",
    ),
    Mutant(
        "a proven backup is still there",
        "backup/take",
        "    if gone or lost:\n",
        "    if False:\n",
        _tests("proof::test_proven_backup_is_still_there_when_the_first_file_runs"),
        faults="F1.3b",
    ),
    Mutant(
        "a dump that cannot be read is no missing right",
        "rehearsal/copies",
        '    unread = [problem for problem in problems if problem.sort == "archive"]\n',
        "    unread: list[new_database.Complaint] = []\n",
        _tests("proof::test_dump_that_cannot_be_read_is_no_missing_right"),
        VERDICTS,
        faults="F1.3b",
    ),
    Mutant(
        "what belongs to others is proven without owners and rights",
        "rehearsal/copies",
        "    return _fill(home, saved, restoring, minute, *new_database.BARE), ",
        "    return _fill(home, saved, restoring, minute), ",
        _tests("proof::test_what_belongs_to_others_is_proven_without_owners_and_rights"),
        VERDICTS,
        faults="F2.28e",
    ),
    Mutant(
        "a slot that holds WAL keeps the copy away",
        "rehearsal/burden",
        "    return _asked(session, _held_by_slots) or ",
        "    return ",
        _tests("rehearsal_cost::test_slot_that_holds_wal_keeps_the_copy_off_the_server"),
        COPIES,
        faults="F1.16",
    ),
    Mutant(
        "a file's own limit for its locks",
        "rehearsal/trial",
        "        return script.max_lock_ms / 1000\n",
        "        return config.rehearse_max_lock_s\n",
        _tests("rehearsal_cost::test_lock_that_is_held_for_longer_than_the_limit_is_refused"),
        COPIES,
        faults="F1.14",
    ),
    # --- resume, repair, retry
    Mutant(
        "an effect beyond the database is not repeated",
        "apply/patience",
        "bool(passing(error, seen) and not beyond())),",
        "bool(passing(error, seen))),",
        _tests("apply::test_effect_beyond_the_database_is_not_repeated"),
        HISTORIES,
        faults="F2.21",
    ),
    Mutant(
        "a file that ends its own session failed",
        "apply/statements",
        'frozenset({"25P03", "25P04", "57P05"})',
        "frozenset[str]()",
        _tests("apply::test_file_that_ends_its_own_session_failed"),
        HISTORIES,
        faults="F2.20",
    ),
    Mutant(
        "an index that another statement made stays",
        "apply/outside",
        "        ours = begun_before and same\n",
        "        ours = begun_before\n",
        _tests("nontransactional::test_only_what_the_statement_of_this_file_makes_is_dropped"),
        faults="F2.17",
    ),
    Mutant(
        "only what queues nobody waits for long",
        "apply/outside",
        "patient and kinds.queues_nobody(each.text)",
        "patient",
        _tests("nontransactional::test_statement_that_queues_readers_obeys_the_lock_timeout"),
        faults="F1.13",
    ),
    Mutant(
        "writers are kept off what is exported",
        "backup/exports",
        "    _lock(session, script)\n",
        "",
        _tests("rollback::test_row_that_is_written_after_the_export_is_in_it_all_the_same"),
        HISTORIES,
        faults="F2.23",
    ),
    Mutant(
        "another migration of that number",
        "history/plan",
        "    if not alike:\n",
        "    if False:\n",
        _tests("force_adopt::test_another_migration_of_that_number_is_told_and_left_alone"),
        HISTORIES,
        faults="F1.1",
    ),
    # --- what people see
    Mutant(
        "no line is longer than docker takes",
        "base/logs",
        "LINE_MAX = 15_999",
        "LINE_MAX = 159_999",
        _tests("unit_logs::test_no_line_is_longer_than_log_drivers_take"),
        faults="F2.39",
    ),
    Mutant(
        "a vanished node holds nothing",
        "server/sessions",
        '    "tcp_user_timeout": "15000",\n',
        '    "tcp_user_timeout": "0",\n',
        _tests("black_hole::test_vanished_node_holds_nothing_for_long"),
        CRASH,
        faults="F1.13b",
    ),
    # --- what the fixes of faults rest on
    Mutant(
        "one check that holds is no migration",
        "apply/verify",
        "    if all(check.ok for check in checks):\n",
        "    if any(check.ok for check in checks):\n",
        _tests("unit_verify::test_answer_is_present_absent_partial_or_unknown"),
        _tests("first_contact"),
        faults="F1.3",
    ),
    Mutant(
        "a query that failed found nothing",
        "apply/verify",
        'if any(check.told for check in effects) else "untold"',
        'if effects else "untold"',
        _tests("unit_verify::test_answer_is_present_absent_partial_or_unknown"),
        _tests("first_contact"),
        faults="F1.3",
    ),
    Mutant(
        "a sequence that runs down is behind when it is above",
        "server/catalog",
        "return last < first if up else last > first",
        "return last < first",
        _tests("unit_catalog::test_sequence_may_have_gone_on_but_not_back"),
        VERDICTS,
    ),
    Mutant(
        "an object of another shape is no copy of it",
        "server/packed",
        "        if one is None or other is None or one[1] != other[1]:\n",
        "        if one is None or other is None:\n",
        _tests("unit_catalog::test_copy_may_have_more_but_not_less"),
    ),
    Mutant(
        "what a resume cannot bring back is refused",
        "apply/resume",
        "    return lasting.before(file.up, row.statements_done)\n",
        "    return None\n",
        _tests("nontransactional::test_half_done_file_whose_session_held_something_is_not_resumed"),
        RESUMES,
        faults="F1.2",
    ),
    Mutant(
        "what cannot be read back is not run again",
        "apply/resume",
        " and not repeatable(new[begun - 1][0]):\n",
        " and False:\n",
        _tests("nontransactional::test_statement_that_cannot_be_read_back_needs_repair"),
    ),
    Mutant(
        "each app's schema has a lock of its own",
        "server/lock",
        '_number(f"pg-preflight:{schema}")',
        '_number("pg-preflight")',
        _tests("lock::test_apps_with_schemas_of_their_own_do_not_wait_for_each_other"),
        TOGETHER,
        faults="F2.34",
    ),
    Mutant(
        "an export that differs takes the first one's place",
        "backup/exports",
        "digest.hexdigest() == before:",
        "before is not None:",
        _tests("rollback::test_row_that_is_written_after_the_export_is_in_it_all_the_same"),
        HISTORIES,
        faults="F2.23",
    ),
    Mutant(
        "a late export stands beside the first one",
        "backup/exports",
        '"" if first else "-late"',
        '""',
        _tests("rollback::test_export_of_a_step_is_not_made_poorer_by_the_steps_before_it"),
        EXPORTS,
        faults="F2.23",
    ),
    Mutant(
        "an export's formats are set",
        "backup/exports",
        "    session.execute(_FORMATS)\n",
        "",
        _tests("rollback::test_values_of_an_export_do_not_depend_on_settings"),
        HISTORIES,
        faults="F2.23",
    ),
    Mutant(
        "a rollback file is of the migration that was recorded",
        "apply/back",
        "(there.name, there.checksum) == (row.name, row.checksum)",
        "True",
        _tests("rollback::test_rollback_never_runs_the_file_of_another_migration"),
        HISTORIES,
        faults="F1.1",
    ),
    Mutant(
        "a kept verify file is asked after a rollback",
        "apply/back",
        'kept("verify", row.verify_sql) if row.verify_sql else None,',
        "None,",
        _tests("rollback::test_image_without_the_files_exports_and_verifies_as_they_did"),
        HISTORIES,
        faults="F2.23",
    ),
    # --- faults that were found and mended, put back
    Mutant(
        "a plan that another run overtook is made again",
        "history/fence",
        "    if not claimed:\n",
        "    if False:\n",
        _tests("apply::test_run_that_comes_second_plans_again"),
        OVERTAKEN,
    ),
    Mutant(
        "a server that vanished is given up by us",
        "server/sessions",
        '    "tcp_user_timeout": "20000",\n',
        "",
        _tests("waiting::test_server_that_vanishes_is_given_up_by_us_and_by_pg_dump"),
        CRASH,
        faults="F1.13b",
    ),
    Mutant(
        "a history that row security filters is none",
        "history/tables",
        '        if row["row_security"]:\n',
        "        if False:\n",
        _tests("history::test_row_security_on_the_history_is_26_for_every_command"),
        HISTORIES,
        faults="F1.7",
    ),
    Mutant(
        "a history without its primary key is damaged",
        "history/tables",
        '        if not row["keyed"]:\n',
        "        if False:\n",
        _tests("history::test_damaged_history_is_26_for_every_command"),
        HISTORIES,
        faults="F1.7",
    ),
    Mutant(
        "a stranger's history is not believed",
        "history/tables",
        '        if not session.copy and not (row["believed"] and row["schema_believed"]):\n',
        "        if False:\n",
        _tests("history::test_history_of_a_stranger_is_neither_believed_nor_run"),
        faults="F1.9",
    ),
    Mutant(
        "default privileges open nothing",
        "history/tables",
        "    if found:\n        names, whom = _there(session)",
        "    if False:\n        names, whom = _there(session)",
        _tests("history::test_default_privileges_do_not_open_the_history"),
        HISTORIES,
        faults="F1.11",
    ),
    Mutant(
        "our statements find nothing that others planted",
        "server/sessions",
        'PATH = "search_path = pg_catalog, pg_temp"\n',
        'PATH = "search_path = public, pg_catalog, pg_temp"\n',
        _tests("history::test_no_command_steps_into_what_others_planted"),
        HISTORIES,
        faults="F1.10",
    ),
    Mutant(
        "rows of a done COPY are a part of its statement",
        "apply/resume",
        "    return statement.text(script), script[first:last]\n",
        "    return statement.text(script), script[first:first]\n",
        _tests("nontransactional::test_edited_rows_of_a_done_copy_are_an_edit"),
        HISTORIES,
        faults="F1.2",
    ),
    Mutant(
        "what gives our lock away is refused",
        "files/lasting",
        "        if what in (_DISCARDS, _UNLOCKS):\n",
        "        if False:\n",
        _tests("unit_lasting::test_statement_that_gives_the_lock_away_is_always_refused"),
        HISTORIES,
        faults="F2.22",
    ),
    Mutant(
        "a file that is there above an absent one does not run again",
        "apply/contact",
        '        elif absent is not None and session.config.out_of_order == "fail":\n',
        "        elif False:\n",
        _tests("first_contact::test_file_that_is_there_above_an_absent_one_does_not_run_again"),
        HISTORIES,
        faults="F1.3",
    ),
    Mutant(
        "archiving that fails keeps the copy away",
        "rehearsal/burden",
        "    if failing:\n",
        "    if False:\n",
        _tests("rehearsal_cost::test_archiving_that_does_not_work_keeps_the_copy_off_the_server"),
        COPIES,
        faults="F1.16",
    ),
    Mutant(
        "a server that a rehearsal crashed gets no second one",
        "rehearsal/copies",
        " and burden.crashed(before.life, burden.life(home)):\n",
        " and False:\n",
        _tests("rehearsal_cost::test_server_that_crashed_during_a_rehearsal_gets_no_second_one"),
        COPIES,
        faults="F1.16",
    ),
    Mutant(
        "what reaches beyond the copy is not tried there",
        "rehearsal/copies",
        "            require_inside(session, scripts)\n",
        "            pass\n",
        _tests("rehearsal::test_auto_says_why_it_does_not_rehearse"),
    ),
    Mutant(
        "no role is made from a copy on the live server by a function of the database",
        "rehearsal/copies",
        "            require_tame(session, reads)\n",
        "            pass\n",
        _tests(
            "rehearsal::test_function_that_makes_roles_is_not_called_from_a_copy_beside"
            "_the_live_database"
        ),
    ),
    Mutant(
        "a backup that is without something is no proof that was demanded",
        "rehearsal/copies",
        '    if without and config.rehearse == "always":\n',
        "    if False:\n",
        _tests("backup_faults::test_what_a_dump_silently_leaves_out_is_said"),
        VERDICTS,
        faults="F1.6",
    ),
    Mutant(
        "nothing takes back version 000",
        "commands/rollback",
        "-1 if number == 0 and",
        "0 if number == 0 and",
        _tests("rollback::test_rollback_to_zero_takes_back_version_000"),
        HISTORIES,
        faults="F2.25",
    ),
    Mutant(
        "a table that was just dropped is nobody's lack of rights",
        "backup/snapshots",
        "WHERE NOT r.readable OR",
        "WHERE r.readable IS NOT TRUE OR",
        _tests(
            "backup_faults::test_table_that_was_just_dropped_is_not_taken_for_an_unreadable_one"
        ),
        DROPPING,
        faults="F2.28d",
    ),
    Mutant(
        "an extension has the version that its rows fit",
        "backup/restore",
        "    wanted = part.extensions if part else parts.dated(session, held)\n",
        "    wanted = part.extensions if part else ()\n",
        _tests("restore::test_extension_that_is_old_or_fits_one_database_has_a_way_back"),
        general=RESTORES,
        faults="F2.28e",
    ),
    # --- more of them, which nobody had put back
    Mutant(
        "a recorded file that was edited is told",
        "history/plan",
        '        return "same" if alike or part_way else "edited"\n',
        '        return "same"\n',
        _tests("unit_plan"),
        HISTORIES,
    ),
    Mutant(
        "a recorded file that is gone is told",
        "history/plan",
        "        if version not in known and version < last\n",
        "        if False\n",
        _tests("unit_plan"),
        HISTORIES,
    ),
    Mutant(
        "a file below what is applied is told",
        "history/plan",
        '    if out_of_order == "fail":\n        problems +=',
        "    if False:\n        problems +=",
        _tests("unit_plan"),
        HISTORIES,
    ),
    Mutant(
        "a column of another type is a damaged history",
        "history/tables",
        "        if types[column] != wanted:\n",
        "        if False:\n",
        _tests("history::test_damaged_history_is_26_for_every_command"),
        HISTORIES,
        faults="F1.7",
    ),
    Mutant(
        "a column that is gone is a damaged history",
        "history/tables",
        "    if gone := COLUMNS[name].keys() - types.keys():\n",
        "    if gone := frozenset[str]():\n",
        _tests("history::test_damaged_history_is_26_for_every_command"),
        HISTORIES,
        faults="F1.7",
    ),
    Mutant(
        "a history that lost a default is damaged",
        "history/tables",
        '        if bare := set(row["needed"]) - GIVEN[name]:\n',
        "        if bare := frozenset[str]():\n",
        _tests("history::test_damaged_history_is_26_for_every_command"),
        HISTORIES,
        faults="F1.7",
    ),
    Mutant(
        "a history with a rule is damaged",
        "history/tables",
        '        if row["rules"] or row["children"]:\n',
        '        if row["children"]:\n',
        _tests("history::test_damaged_history_is_26_for_every_command"),
        HISTORIES,
        faults="F1.7",
    ),
    Mutant(
        "a table of the history that is gone is not made anew",
        "history/tables",
        'gone := COLUMNS.keys() - LATER - {row["relation"] for row in rows}\n',
        "gone := frozenset[str]()\n",
        _tests("history::test_damaged_history_is_26_for_every_command"),
        HISTORIES,
        faults="F1.7",
    ),
    Mutant(
        "a done statement that was edited is not passed over",
        "apply/resume",
        "    if [*map(_lasts, old[:begun])] != [*map(_lasts, new[:begun])]:\n",
        "    if False:\n",
        _tests("nontransactional::test_edited_rows_of_a_done_copy_are_an_edit"),
        HISTORIES,
        faults="F1.2",
    ),
    Mutant(
        "the two copies that libpq makes of a statement are counted",
        "files/due",
        "max(len(script.text), 2 * size)",
        "len(script.text)",
        _tests("unit_due"),
        HISTORIES,
    ),
    Mutant(
        "what lasts as long as its session is refused before it runs",
        "files/lasting",
        "        if held:\n",
        "        if False:\n",
        _tests("unit_lasting"),
        HISTORIES,
        faults="F1.2",
    ),
    Mutant(
        "archiving without a command keeps the copy away",
        "rehearsal/burden",
        "    return _asked(session, _held_by_slots) or _asked(session, _held_by_archiver)\n",
        "    return _asked(session, _held_by_slots)\n",
        _tests("rehearsal_cost::test_archiving_that_does_not_work_keeps_the_copy_off_the_server"),
        COPIES,
        faults="F1.16",
    ),
    Mutant(
        "a file that waits lets go of the locks of its session",
        "apply/patience",
        "        lock.let_go(session)  # so do locks of the session\n",
        "",
        _tests("apply::test_file_that_has_to_wait_lets_go_of_the_locks_of_its_session"),
        HISTORIES,
    ),
    Mutant(
        "the backup of a run at work is not one too many",
        "backup/take",
        "        with saved.store.holding(saved.name) if saved else nullcontext():\n",
        "        with nullcontext():\n",
        _tests("retention::test_backup_of_a_run_at_work_is_not_one_too_many_for_another_app"),
        TOGETHER,
    ),
    Mutant(
        "a server on which an init script is at work may be temporary",
        "server/ready",
        "        if scripted and time",
        "        if False and time",
        LIVES,
        LIVES,
    ),
    Mutant(
        "what comes after a temporary server is looked at anew",
        "server/ready",
        "        if session.connection is not seen:",
        "        if False:",
        LIVES,
        LIVES,
    ),
    # --- the other faults of F1 and F2, put back
    Mutant(
        "wait asks the server a question",
        "server/sessions",
        "        if asked:\n",
        "        if False:\n",
        _tests("waiting::test_peer_that_never_answers_ends_at_the_deadline"),
        SILENCE,
        faults="F1.3c",
    ),
    Mutant(
        "what the new server cannot give a database is refused before a row is restored",
        "backup/restore",
        "problems + belongings.refused(session, place.commands))",
        "[])",
        _tests("restore::test_what_the_new_server_lacks_is_named_before_anything_is_restored"),
        faults="F1.5",
    ),
    Mutant(
        "a restored database has what belonged to it",
        "backup/restore",
        "            belongings.give(session, place.commands, early=True)\n",
        "",
        _tests("restore::test_everything_that_belongs_to_a_database_is_carried_over"),
        general=RESTORES,
        faults="F1.5",
    ),
    Mutant(
        "no other image can be built in the job's place",
        "compose.yaml",
        "    pull_policy: never #",
        "    build: .\n    pull_policy: never #",
        _tests("unit_compose_files::test_no_other_image_can_be_the_job"),
        faults="F1.8",
    ),
    Mutant(
        "a limit for locks refuses",
        "rehearsal/trial",
        "    if problems:\n        longest",
        "    if False:\n        longest",
        _tests("rehearsal_cost::test_lock_that_is_held_for_longer_than_the_limit_is_refused"),
        COPIES,
        faults="F1.14",
    ),
    Mutant(
        "a count keeps no lock but its table's",
        "backup/snapshots",
        '        "ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one"\n    )',
        '        "RELEASE SAVEPOINT one"\n    )',
        _tests("backup_faults::test_backup_needs_no_more_locks_than_pg_dump"),
        VERDICTS,
        faults="F1.15",
    ),
    Mutant(
        "a statement that takes no transaction runs outside of one",
        "apply/outside",
        "                if failure.problem.sqlstate == kinds.IN_TRANSACTION and alone:\n",
        "                if False:\n",
        _tests(
            "nontransactional::test_what_only_the_catalog_knows_to_need_no_transaction_runs_in_none"
        ),
        HISTORIES,
        faults="F2.18",
    ),
    Mutant(
        "a recorded file of which nothing ran stays recorded as it was",
        "apply/outside",
        "        if session.lost or not _put_back(session, migration.version, kept):\n",
        "        if True:\n",
        _tests(
            "force_adopt::test_file_without_transaction_whose_first_statement_fails_stays_recorded"
        ),
        HISTORIES,
        faults="F2.19",
    ),
    Mutant(
        "a plan has nothing that is done",
        "commands/plan",
        "planned.each(file, resumes.get(file.name, 0))",
        "planned.each(file)",
        _tests("plan_command::test_plan_leaves_out_what_a_part_way_file_has_done"),
        HISTORIES,
        faults="F2.24",
    ),
    Mutant(
        "a verify file sees what another session would see",
        "apply/verify",
        "            *([sessions.FORGET] if after is not None else []),",
        "            *([] if after is not None else []),",
        _tests("verify::test_verify_file_does_not_see_what_only_the_files_session_has"),
        HISTORIES,
        faults="F2.26",
    ),
    Mutant(
        "a newer file that is part-way is told",
        "gate",
        '[record.name for record in records if record.state != "done"]',
        "[record.name for record in records if not record.state]",
        _tests("plan_command::test_newer_file_that_is_part_way_is_said_to_be"),
        HISTORIES,
        faults="F2.27",
    ),
    Mutant(
        "rows that are somebody else's are no fault of the backup",
        "rehearsal/copies",
        "p.rebuilt or p.touches([p.name], others) for p in problems):",
        "p.rebuilt for p in problems):",
        _tests("proof::test_rows_of_the_provider_s_extension_are_no_fault_of_the_backup"),
        VERDICTS,
        faults="F2.28",
    ),
    Mutant(
        "what no dump keeps is not missed",
        "server/catalog",
        "  WHERE o.oprcode <> 0::oid\n",
        "",
        _tests("proof::test_what_a_dump_does_not_keep_is_not_missed"),
        faults="F2.28b",
    ),
    Mutant(
        "a comment reaches nothing",
        "files/reach",
        "    return _in_bodies(node, text, bounds, depth)\n",
        "    said = _WORDS.search(text.decode().lower())\n"
        "    return Reach(said[0]) if said else _in_bodies(node, text, bounds, depth)\n",
        _tests("unit_explain::test_words_of_a_body_switch_no_rehearsal_off"),
        COPIES,
        faults="F2.28c",
    ),
    Mutant(
        "a setting that is good to have is done without",
        "server/sessions",
        "        except psycopg.Error:\n            if self.lost:\n                raise\n"
        "            if len(said) == 1:",
        "        except psycopg.Error:\n            if True:\n                raise\n"
        "            if len(said) == 1:",
        _tests("waiting::test_setting_that_a_server_refuses_is_done_without"),
        general=RESTORES,
        faults="F2.31",
    ),
    Mutant(
        "the encoding that is meant for the app does not reach the dump",
        "backup/clients",
        '        f"--encoding={encoding}",\n',
        "        f\"--encoding={__import__('os').environ.get('PGCLIENTENCODING') or encoding}\",\n",
        _tests("backup::test_encoding_meant_for_the_app_does_not_reach_the_dump"),
        VERDICTS,
        faults="F2.32",
    ),
    Mutant(
        "options of a URL for other readers are left out",
        "base/urls",
        "            low in _OTHERS\n",
        "            False\n",
        _tests("unit_config::test_what_other_readers_of_a_url_need_is_left_out"),
        HISTORIES,
        faults="F2.33",
    ),
    Mutant(
        "a look waits for no answer without end",
        "server/sessions",
        "        if self._at_work:\n            yield\n            return\n        least,",
        "        if True:\n            yield\n            return\n        least,",
        _tests("waiting::test_question_is_asked_again_on_a_new_connection"),
        SILENCE,
        faults="F2.33b",
    ),
    Mutant(
        "a FIFO among the backups is not waited for",
        "backup/directory",
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC\n\n",
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC\n\n",
        _tests("restore::test_bad_backup_hides_no_good_one"),
        general=RESTORES,
        faults="F2.33c",
    ),
    Mutant(
        "a stop counts from the first moment",
        "entrypoint.py",
        "    stop.listen(stop.remember)\n",
        "",
        _tests("signals::test_stop_while_python_still_loads_ends_the_run"),
        LOADING,
        faults="F2.33d",
    ),
    Mutant(
        "a stop is kept before the quick path is loaded",
        "entrypoint.py",
        "    unloadable.keep_stops()\n",
        "",
        _tests("signals::test_stop_while_python_still_loads_ends_the_run"),
        LOADING,
        faults="F2.33d",
    ),
    Mutant(
        "a stop that was kept is handed over",
        "entrypoint.py",
        "    unloadable.tell(stop.remember)\n",
        "",
        _tests("signals::test_stop_while_python_still_loads_ends_the_run"),
        LOADING,
        faults="F2.33d",
    ),
    Mutant(
        "what libpq could not read is not repeated",
        "server/dial",
        "    text = _unsaid(text, said, roles)\n",
        "",
        _tests("auth::test_what_could_not_be_read_is_not_repeated"),
        faults="F2.33e",
    ),
    Mutant(
        "a row's value is not repeated",
        "apply/statements",
        '        return _VALUE.sub("…", said)\n',
        "        return said\n",
        _tests("verify::test_row_s_value_is_not_repeated"),
        HISTORIES,
        faults="F2.33e",
    ),
    Mutant(
        "a dump of some schemas asks for no others",
        "backup/clients",
        '        *(f"--schema={quoting.name(schema)}" for schema in schemas),\n',
        "",
        _tests("schemas::test_app_is_migrated_beside_one_that_it_cannot_read"),
        faults="F2.34",
    ),
    Mutant(
        "a statement of an everyday size is understood",
        "files/parser",
        "SetAllowOversizeProtos(True)",
        "SetAllowOversizeProtos(False)",
        _tests("unit_sql::test_everyday_size_is_understood"),
        HISTORIES,
        faults="F2.34a",
    ),
    Mutant(
        "a file of comments is one",
        "files/reading",
        r'self.rule.blank and not text.strip(b" \t\r\n\f\v;")',
        "self.rule.blank",
        _tests("apply::test_file_of_comments_only_is_recorded"),
        HISTORIES,
        faults="F2.34b",
    ),
    Mutant(
        "what TRUNCATE CASCADE empties is in the plan",
        "files/effects",
        '        return tuple(Reach("relation", _name(table), rows=True) for table in '
        "_targets(statement))\n",
        "        return ()\n",
        _tests("plan_command::test_what_a_statement_reaches_beyond_its_tables_is_in_the_plan"),
        PLANS,
        faults="F2.34c",
    ),
    Mutant(
        "what hangs on a column that is inherited goes with it",
        "server/lookup",
        "  AND g.objsubid > 0 AND (",
        "  AND false AND (",
        _tests("plan_command::test_what_goes_by_cascade_is_told_as_what_it_is"),
        PLANS,
        faults="F2.34c",
    ),
    Mutant(
        "an error inside a block has its line",
        "apply/statements",
        "    return _in_body(script, statement, diag) or statement.start\n",
        "    return statement.start\n",
        _tests("apply::test_error_inside_a_block_names_its_line_there"),
        faults="F2.34d",
    ),
    Mutant(
        "the bar goes before a line of the log",
        "base/logs",
        "            terminal.clear()\n",
        "",
        _tests("unit_logs::test_line_of_the_log_does_not_share_one_with_a_bar"),
        general=SCREENS,
        faults="F2.35",
    ),
    Mutant(
        "a run ends with what people need next",
        "base/console",
        'told = self.told(event) if event["event"] == "run.finished" else []',
        "told: list[tuple[str, str]] = []",
        _tests("terminal::test_run_ends_with_a_summary_on_a_terminal"),
        SCREENS,
        faults="F2.36",
    ),
    Mutant(
        "what is in the way has a hint",
        "apply/statements",
        "    if error.sqlstate in _THERE_ALREADY:\n",
        "    if False:\n",
        _tests("apply::test_what_is_there_already_may_be_adopted_and_the_hint_says_at_what_price"),
        faults="F2.37",
    ),
    Mutant(
        "a failure with --json is a document",
        "run",
        '        document.give({"exit_code": code, "error": dict(error)})\n',
        "        del code, error, document\n",
        _tests("commands::test_failure_with_json_is_one_document"),
        HISTORIES,
        faults="F2.38",
    ),
    Mutant(
        "words of other tools lead to ours",
        "commands/arguments",
        "            elsewhere or (",
        "            (",
        _tests("unit_arguments::test_other_tools_words_lead_to_ours"),
        general=WORDS,
        faults="F2.40",
    ),
    Mutant(
        "the beginning of a backup's name is enough",
        "backup/restore",
        "if name and item.name.startswith(name)]",
        "if name and item.name == name]",
        _tests("restore::test_beginning_of_a_name_is_enough_where_only_one_has_it"),
        general=RESTORES,
        faults="F2.41",
    ),
    Mutant(
        "images are left to the outermost kustomization",
        "k8s/components/wait/kustomization.yaml",
        "kind: Component\n",
        "kind: Component\nimages: [{name: preflight-image, newName: pg-preflight}]\n",
        _tests("unit_kubernetes::test_images_are_left_to_the_outermost_kustomization"),
        general=MANIFESTS,
        faults="F2.42",
    ),
    Mutant(
        "an old command has its spelling for containers",
        "docs/old-commands.md",
        "in a container `docker compose run --rm preflight check --table`: every",
        "in a container `docker compose exec app check --table`: every",
        _tests("unit_compose_files::test_old_commands_have_a_spelling_for_containers"),
        general=_tests("unit_compose_files::test_pages_run_services_that_every_project_has"),
        faults="F2.44",
    ),
    Mutant(
        "the workflow may only read",
        ".github/workflows/ci.yml",
        "  contents: read\n",
        "  contents: write\n",
        _tests("unit_release::test_workflow_runs_ci_and_builds_every_image"),
        faults="F2.45",
    ),
]


def say(text: str) -> None:
    """Write at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def noticed(mutant: Mutant, copy: Path, tests: tuple[str, ...]) -> str:
    """Break the line in a copy of the repository; return which of the tests failed, if any did."""
    file = copy / mutant.file
    text = file.read_text(encoding="utf-8")
    file.write_text(mutant.broken(text), encoding="utf-8")
    try:
        few = all("::" in name for name in tests)
        workers = "0" if few else "2"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", workers, *tests]
        done = subprocess.run(command, cwd=copy, capture_output=True, check=False, text=True)
    finally:
        file.write_text(text, encoding="utf-8")
    failed = [line for line in done.stdout.splitlines() if _OF_A_TEST.match(line)]
    assert bool(failed) == (done.returncode != 0), done.stdout + done.stderr  # else none was asked
    return failed[0] if failed else ""


def main(chosen: list[str]) -> int:
    """Run the mutants whose number or words are chosen, or all; return how many survive."""
    survivors, how = 0, "tests"
    for each in ("general", "others"):
        if f"--{each}" in chosen:
            how, chosen = each, [word for word in chosen if word != f"--{each}"]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # some tests run it as another user
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
            called = {str(number), *mutant.what.split(), *mutant.faults.split()}
            if chosen and not called & set(chosen):
                continue
            if not (tests := getattr(mutant, how)):
                continue
            say(f"{number:02d} {mutant.what}: ")
            by = noticed(mutant, copy, tests)
            survivors += not by
            say(f"killed ({by})\n" if by else "SURVIVES\n")
    say(f"{survivors} survived\n")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
