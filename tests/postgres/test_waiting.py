"""Waiting for a server that is not there, not ready, not writable, or not a server at all."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from preflight.base.config import Config
from preflight.server import dial, sessions
from tests import faults, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations

ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}
QUICKLY = {"PREFLIGHT_BACKUP": "off"}


pytestmark = pytest.mark.usefixtures("one")


@pytest.fixture
def one(migrations: WriteMigrations) -> None:
    """Have one migration to apply."""
    migrations(ONE)


@pytest.fixture
def nobody_there() -> int:
    """Give a port that refuses connections."""
    with socket.create_server((servers.HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


# not there


@pytest.mark.fault("A001")
def test_server_that_starts_late_is_waited_for(
    start: Start, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """The usual start of a compose file: the job is there before the server."""
    server = start_server()
    database = create_database(server, "app")
    server.stop()
    process = start(env={**database.env(), **QUICKLY})
    waiting = process.wait_for_event("server.waiting")
    server.start()
    result = process.wait()

    assert f"{servers.HOST}:{server.port}" == waiting["host"]
    assert 0 == result.code, str(result)
    assert 1 == len(result.event("server.ready"))
    assert [1] == database.query("SELECT version FROM preflight.migrations")


@pytest.mark.fault("A002")
def test_no_server_ends_at_the_deadline(run: Run, nobody_there: int, termination_log: Path) -> None:
    """Code 10, and host and port stand where an operator looks first."""
    result = run(env={"PGPORT": str(nobody_there), "PREFLIGHT_WAIT_TIMEOUT_S": "0.5"})

    assert 10 == result.code, str(result)
    assert "server.not_ready" == result.finished["error"]["code"]
    message = json.loads(termination_log.read_text())["error"]["message"]
    assert f"{servers.HOST}:{nobody_there}" in message


def test_name_that_nobody_knows_is_passing(run: Run) -> None:
    """A Service may be created after the job; the host that is missing is named."""
    result = run(env={"PGHOST": "nowhere.invalid", "PREFLIGHT_WAIT_TIMEOUT_S": "0.3"})

    assert 10 == result.code, str(result)
    assert "nowhere.invalid" in result.event("server.waiting")[0]["reason"]


@pytest.mark.fault("A005", "A006", "A008", "A009")
@pytest.mark.parametrize(
    ("stranger", "code"),
    [
        (faults.hangs_up, 10),
        (faults.resets, 10),
        (faults.breaks_tls, 10),
        (faults.says_nothing, 10),
        (faults.speaks_http, 22),
    ],
)
def test_stranger_on_the_port_is_no_server(
    run: Run,
    stranger: Callable[[socket.socket], None],
    code: int,
) -> None:
    """An open port proves nothing: what answers must speak PostgreSQL, and within bounds."""
    with faults.stranger(stranger) as elsewhere:
        result = run(env={**elsewhere, "PREFLIGHT_WAIT_TIMEOUT_S": "0.3"}, timeout=10)

    assert code == result.code, str(result)


@pytest.mark.fault("A006")
def test_frozen_server_is_waited_for(
    start: Start, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """A server that accepts and says nothing costs one attempt after the other, no more."""
    server = start_server()
    database = create_database(server, "app")
    with faults.frozen(server):
        process = start(env={**database.env(), **QUICKLY, "PGCONNECT_TIMEOUT": "1"})
        waiting = process.wait_for_event("server.waiting")
    result = process.wait()

    assert "no answer within 1 s" in waiting["reason"]
    assert 0 == result.code, str(result)


# there, but not ready


@pytest.mark.fault("A011")
def test_server_that_shuts_down_is_waited_for(
    start: Start, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """57P03 is an answer, but passing: also past the grace for a wrong password."""
    server = start_server()
    database = create_database(server, "app")
    with server.connect("app"):
        server.signal_postmaster(signal.SIGTERM)  # smart: it waits for the session that is open
        process = start(env={**database.env(), **QUICKLY})
        waiting = process.wait_for_event("server.waiting")
    server.stop()
    server.start()
    result = process.wait()

    assert "57P03" == waiting["sqlstate"]
    assert 0 == result.code, str(result)


@pytest.mark.fault("A012")
def test_server_without_a_free_slot_is_waited_for(start: Start, database: servers.Database) -> None:
    """53300 passes when somebody leaves."""
    role = f"crowded_{database.name}"
    database.script(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1 PASSWORD 'x'")
    with psycopg.connect(database.conninfo(user=role, password="x")):  # noqa: S106 - here
        process = start("check", env=database.env(role, "x"))
        waiting = process.wait_for_event("server.waiting")
    result = process.wait()
    database.script(f"DROP ROLE {role}")

    assert "53300" == waiting["sqlstate"]
    assert 3 == result.code, str(result)


# there, but not to be written to


@pytest.mark.fault("A024")
def test_read_only_database_gets_no_backup(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Work waits for a writable server, then ends with 22; a look is content."""
    database.script(f'ALTER DATABASE "{database.name}" SET default_transaction_read_only = on')
    looked = run("check")
    result = run(env={"PREFLIGHT_WAIT_TIMEOUT_S": "0.3"})

    assert 3 == looked.code, str(looked)
    assert (22, "target.read_only") == (result.code, result.finished["error"]["code"])
    assert 1 == len(result.event("server.waiting"))
    assert [] == list(backup_dir.iterdir())
    assert [None] == database.query("SELECT to_regclass('preflight.migrations')")


@pytest.mark.fault("A022", "A023")
def test_standby_is_good_enough_to_look(
    run: Run,
    start: Start,
    migrations: WriteMigrations,
    start_server: StartServer,
    create_database: CreateDatabase,
) -> None:
    """Nothing pending is 0 there; work is not begun until it is promoted; host lists find both.

    What files need of a new session leads a run nowhere else, be there a list or a balancer.
    """
    primary, standby = start_server(), start_server()
    database = create_database(primary, "app")
    assert 0 == run(env={**database.env(), **QUICKLY}).code
    faults.make_standby(primary, standby)
    there = {**standby.env("app"), **QUICKLY}

    assert (0, 0) == (run(env=there).code, run("check", env=there).code)

    migrations({"002_two.sql": "CREATE TABLE two (id int);\n"})
    refused = run(env={**there, "PREFLIGHT_WAIT_TIMEOUT_S": "0.3"})
    both = {
        "PGHOST": f"{servers.HOST},{servers.HOST}",
        "PGPORT": f"{standby.port},{primary.port}",
        "PGTARGETSESSIONATTRS": "read-write",
    }
    found = run(env={**there, **both})

    assert (22, "target.read_only") == (refused.code, refused.finished["error"]["code"])
    assert 0 == found.code, str(found)
    assert [1, 2] == database.query("SELECT version FROM preflight.migrations ORDER BY 1")

    gives = "SELECT pg_advisory_xact_lock({0});\nALTER DATABASE app SET app.x = '{0}';"
    has = "SELECT 1 / (current_setting('app.x') = '{}')::int;\n".format
    migrations(
        {
            "003_gives.sql": gives.format(3),
            "004_has_and_gives.sql": has(3) + gives.format(4),
            "005_has_that_still.sql": has(3),
            "006_six.sql": "CREATE TABLE six (id int);\n",
        }
    )
    standby.stop()
    with (
        faults.through(primary, _LosesCommit(4, standby)) as balancer,
        primary.connect("app") as holder,
    ):
        holder.execute("SELECT pg_advisory_lock(3), pg_advisory_lock(4)")
        hosts = {"PGHOST": both["PGHOST"], "PGPORT": f"{standby.port},{balancer.port}"}
        process = start(env={**there, **balancer.env(), **hosts})
        process.wait_for_event("migration.started")
        standby.start()
        holder.execute("SELECT pg_advisory_unlock(3)")
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND objid = 4"
        faults.until(lambda: database.query(waits), "the next file is at work")
        balancer.server = standby
        holder.execute("SELECT pg_advisory_unlock(4)")
        waiting = process.wait_for_event("server.waiting")
        with standby.connect() as connection:
            connection.execute("SELECT pg_promote()")
        promoted = process.wait()

    assert "standby" in waiting["reason"]
    assert 0 == promoted.code, str(promoted)
    notices = [each["notice"] for each in promoted.event("migration.progressed")]
    assert [True] == ["new sessions" in each for each in notices]


class _LosesCommit(faults.LostCommit):
    """Loses the answer to a COMMIT when a standby has what it committed."""

    def __init__(self, number: int, standby: servers.Server) -> None:
        super().__init__(number)
        self.database = servers.Database(standby, "app")

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Wait for the row."""
        row = "SELECT 1 FROM preflight.migrations WHERE version = 5"
        if self.committing and kind == b"Z":
            faults.until(lambda: self.database.query(row), "the standby has it")
        return super().to_client(kind, message)


# somebody in between


@pytest.mark.parametrize("pooler", [faults.Pooler, faults.DeafPooler, faults.BlendingPooler])
def test_pooler_is_refused_at_once_for_work(
    run: Run, server: servers.Server, database: servers.Database, pooler: type[faults.OwnKeys]
) -> None:
    """Locks and settings do not hold behind a pooler; with nothing to do it does not matter."""
    with faults.through(server, pooler()) as proxy:
        refused = run(env=proxy.env())
        untouched = database.query("SELECT to_regclass('preflight.migrations')")
        run(env=QUICKLY)
        accepted = run(env=proxy.env())

    assert (22, "target.pooler") == (refused.code, refused.finished["error"]["code"])
    assert "directly" in refused.finished["error"]["hint"]
    assert "server.waiting" not in refused.names
    assert [None] == untouched
    assert 0 == accepted.code, str(accepted)


def test_proxy_with_keys_of_its_own_is_no_pooler(run: Run, server: servers.Server) -> None:
    """Neon's gives each client a process of the server: the word that began it is known there."""
    with faults.through(server, faults.OwnKeys()) as proxy:
        applied = run(env={**proxy.env(), "PREFLIGHT_FIRST_CONTACT": "pending"})
        swapped = run("restore", "latest", "--swap", env=proxy.env())

    assert (0, ["001_one"]) == (applied.code, applied.finished["applied"]), str(applied)
    assert 0 == swapped.code, str(swapped)


@pytest.mark.fault("A028")
@pytest.mark.parametrize("pooler", [faults.OldPooler, faults.RdsProxy])
def test_old_pooler_is_good_enough_to_look(
    run: Run, server: servers.Server, pooler: type[faults.Pooler]
) -> None:
    """PgBouncer 1.18 refuses the startup parameter `options`: then without it."""
    with faults.through(server, pooler()) as proxy:
        looked = run("check", env=proxy.env())
        refused = run(env=proxy.env())

    assert 3 == looked.code, str(looked)
    assert (22, "target.pooler") == (refused.code, refused.finished["error"]["code"])


class _Rejects(faults.OwnKeys):
    """A pooler with a reason of its own to let nobody in."""

    def __init__(self, reason: bytes) -> None:
        """Say it each time."""
        self.answer = faults.refusal(b"08P01", reason)

    def startup(self, message: bytes) -> bytes | None:
        """Refuse."""
        del message
        return self.answer


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (b"SASL authentication failed", 21),
        (b"SSL required", 21),
        (b"login rejected", 21),
        (b"client_login_timeout (server down)", 10),
    ],
)
def test_pooler_that_lets_nobody_in_is_told_from_one_without_a_server(
    run: Run, server: servers.Server, reason: bytes, code: int
) -> None:
    """PgBouncer's words for a wrong password or missing TLS are 21; a server may yet come: 10."""
    with faults.through(server, _Rejects(reason)) as proxy:
        result = run("wait", env={**proxy.env(), "PREFLIGHT_WAIT_TIMEOUT_S": "0.2"})

    assert (code, "08P01") == (result.code, result.finished["error"]["sqlstate"]), str(result)


def test_options_that_a_pooler_refuses_are_not_left_out(run: Run, server: servers.Server) -> None:
    """A search_path may stand there: 20 at once, for the pooler will not learn it."""
    with faults.through(server, faults.OldPooler()) as proxy:
        result = run("check", env={**proxy.env(), "PGOPTIONS": "-c search_path=app"}, timeout=10)

    assert (20, "config.connection") == (result.code, result.finished["error"]["code"])


@pytest.mark.fault("A023")
@pytest.mark.parametrize("first", ["refuses", "is silent"])
def test_host_list_goes_on_to_the_next(
    run: Run, server: servers.Server, nobody_there: int, first: str
) -> None:
    """A dead or a silent host does not hide the one behind it; the dump follows."""
    with faults.stranger(faults.says_nothing) as silent:
        before = str(nobody_there) if first == "refuses" else silent["PGPORT"]
        result = run(
            env={
                "PGHOST": f"{servers.HOST},{servers.HOST}",
                "PGPORT": f"{before},{server.port}",
                "PGCONNECT_TIMEOUT": "1",
            }
        )

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.verified"))


@pytest.mark.fault("A023")
@pytest.mark.parametrize("primary", ["is silent", "has no address"])
def test_primary_that_is_not_heard_of_may_yet_come(
    run: Run, server: servers.Server, database: servers.Database, primary: str
) -> None:
    """In a failover the host that is wanted may be gone: 10, and it is named, not 22."""
    database.script(f'ALTER DATABASE "{database.name}" SET default_transaction_read_only = on')
    with faults.stranger(faults.says_nothing) as silent:
        gone = {
            "is silent": (silent["PGHOST"], silent["PGPORT"], f"{servers.HOST}:{silent['PGPORT']}"),
            "has no address": ("gone.invalid", "5432", "'gone.invalid'"),
        }
        host, port, named = gone[primary]
        env = {
            "PGHOST": f"{host},{servers.HOST}",
            "PGPORT": f"{port},{server.port}",
            "PGTARGETSESSIONATTRS": "read-write",
            "PGCONNECT_TIMEOUT": "1",
            "PREFLIGHT_WAIT_TIMEOUT_S": "0.5",
        }
        result = run("wait", env=env)

    assert (10, "server.not_ready") == (result.code, result.finished["error"]["code"]), str(result)
    for said in (result.finished["error"]["message"], result.event("server.waiting")[0]["reason"]):
        assert "session is read-only" in said
        assert named in said


def test_host_that_was_passed_by_is_there_when_a_later_one_is_silent(
    server: servers.Server,
) -> None:
    """prefer-standby takes the primary in a second round, which a dead standby must not end."""
    with faults.stranger(faults.says_nothing) as silent:
        hosts = {
            "host": f"{servers.HOST},{servers.HOST}",
            "port": f"{server.port},{silent['PGPORT']}",
        }
        said = server.conninfo(**hosts, target_session_attrs="prefer-standby", connect_timeout=1)
        made = dial.connect({key: str(value) for key, value in conninfo_to_dict(said).items()}, 5)
    with made:
        assert server.port == made.info.port


# a service file


@pytest.mark.parametrize("named", ["PGSERVICE", "DATABASE_URL"])
def test_options_of_a_service_reach_the_files(
    run: Run, database: servers.Database, tmp_path: Path, named: str
) -> None:
    """What a file makes is where the service's search_path says, and our settings hold as well."""
    database.script("CREATE SCHEMA app")
    services = tmp_path / "services"
    services.write_text("[prod]\noptions=-c search_path=app\n")
    value = "prod" if named == "PGSERVICE" else "service=prod"
    result = run(env={**QUICKLY, "PGSERVICEFILE": str(services), named: value})

    assert 0 == result.code, str(result)
    assert ["app"] == database.query(
        "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'one'"
    )


# a Unix socket


@pytest.mark.fault("A014")
def test_server_of_an_image_that_initialises_itself_is_not_worked_on(
    run: Run, start: Start, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """The official image first runs a server without TCP, and stops it: work waits for the next."""
    server = start_server()
    database = create_database(server, "app")
    server.stop()
    server.configure(unix_socket_directories=str(server.home), listen_addresses="")
    server.start()
    process = start(env={**database.env(), "PGHOST": str(server.home)})
    waiting = process.wait_for_event("server.waiting")
    server.stop()
    server.configure(listen_addresses=servers.HOST)
    server.start()
    result = process.wait()
    born = database.query("SELECT pg_postmaster_start_time()")[0]

    assert "no TCP" in waiting["reason"]
    assert 0 == result.code, str(result)
    assert born < database.query("SELECT applied_at FROM preflight.migrations")[0]

    server.configure(listen_addresses="")
    server.restart()
    again = run(env={**database.env(), "PGHOST": str(server.home)})

    assert (0, False) == (again.code, "server.waiting" in again.names), str(again)


def test_psql_that_somebody_left_open_holds_nobody_up(
    run: Run, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """On a server without TCP it is waited for while it is at work: init scripts may be."""
    server = start_server()
    database = create_database(server, "app")
    server.configure(unix_socket_directories=str(server.home), listen_addresses="")
    server.restart()
    with psycopg.connect(server.conninfo("app", host=str(server.home)), autocommit=True) as left:
        left.execute("SET application_name = 'psql'")
        result = run(env={**database.env(), "PGHOST": str(server.home)})

    reasons = [event["reason"] for event in result.events if event["event"] == "server.waiting"]
    assert (0, 1) == (result.code, len(reasons)), str(result)
    assert "making sure" in reasons[0]


# a peer that lets us in and then says nothing


class _SaysNothing(faults.Pooler):
    """Answers the login itself, as a pooler whose server is gone does; every query waits."""

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Let only the login pass."""
        return b"" if kind in (b"Q", b"P", b"B", b"E", b"S") else message


@pytest.mark.parametrize(
    "args", [["up"], ["check"], ["plan"], ["verify"], ["wait"], ["wait", "--schema"], ["backup"]]
)
def test_peer_that_never_answers_ends_at_the_deadline(
    run: Run, server: servers.Server, args: list[str]
) -> None:
    """Code 10 for every command: a login proves nothing, and no question waits without end."""
    with faults.through(server, _SaysNothing()) as proxy:
        env = {**proxy.env(), "PREFLIGHT_WAIT_TIMEOUT_S": "1", "PREFLIGHT_LOCK_TIMEOUT_MS": "100"}
        result = run(*args, env=env, timeout=25)

    assert (10, "server.not_ready") == (result.code, result.finished["error"]["code"]), str(result)
    assert "did not answer" in result.finished["error"]["message"]


class _SaysNothingOnce(_SaysNothing):
    """Its first session is stuck, the next one is not."""

    def __init__(self) -> None:
        """Be silent at first."""
        self.stuck = True

    def startup(self, message: bytes) -> bytes | None:
        """Look at each login but the first."""
        self.logins = getattr(self, "logins", 0) + 1
        self.stuck = self.logins == 1
        return super().startup(message)

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Be silent to the first session."""
        return super().to_server(kind, message) if self.stuck else message


def test_question_is_asked_again_on_a_new_connection(run: Run, server: servers.Server) -> None:
    """One stuck session does not use up the deadline."""
    with faults.through(server, _SaysNothingOnce()) as proxy:
        result = run("check", env={**proxy.env(), "PREFLIGHT_LOCK_TIMEOUT_MS": "100"}, timeout=40)

    assert 3 == result.code, str(result)


@pytest.mark.fault("A025")
@pytest.mark.parametrize("pooler", [faults.Pooler, faults.OldPooler])
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["check"], 0),
        (["plan"], 0),
        (["verify"], 0),
        (["wait"], 0),
        (["wait", "--schema"], 0),
        (["up"], 0),
        (["backup"], 22),
        (["rollback"], 22),
        (["force"], 22),
        (["adopt", "1"], 22),
        (["restore", "latest"], 22),
    ],
)
def test_pooler_may_be_looked_through_and_not_worked_through(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    server: servers.Server,
    database: servers.Database,
    pooler: type[faults.Pooler],
    args: list[str],
    code: int,
) -> None:
    """One rule for all commands; no lock stays on a pooled session."""
    assert 0 == run("up").code
    with faults.through(server, pooler()) as proxy:
        result = run(*args, env=proxy.env())
        held = database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")

    assert code == result.code, str(result)
    if code:
        assert "target.pooler" == result.finished["error"]["code"]
    assert [0] == held


@pytest.mark.parametrize("args", [["up"], ["backup"]])
def test_setting_that_a_server_refuses_is_done_without(
    run: Run, server: servers.Server, args: list[str]
) -> None:
    """What is only good to have is no reason to stop."""
    with faults.through(server, faults.Lacks()) as proxy:
        result = run(*args, env=proxy.env())

    assert 0 == result.code, str(result)


def test_server_that_vanishes_is_given_up_by_us_and_by_pg_dump(database: servers.Database) -> None:
    """What is sent to a server that is gone is waited for for 20 s, and not for 15 minutes.

    pg_dump, which stands still while a store is slow, and is then silent itself, has 7 minutes.
    """
    target = {name: str(value) for name, value in conninfo_to_dict(database.conninfo()).items()}
    config = Config(target, {}, Path("/nowhere"), run_id="run")

    with sessions.connect(config) as session:
        theirs = make_conninfo("", **session.client_address(), **session.secrets())
        with psycopg.connect(theirs) as as_pg_dump:
            both = (session.connection, as_pg_dump)
            asked = [each.execute("SHOW tcp_user_timeout").fetchone() for each in both]
            assert [20_000, 420_000] == [given_up_after(each.fileno()) for each in both]
            assert [("15000",), ("420000",)] == asked


def given_up_after(connection: int) -> int:
    """Return after how many milliseconds the kernel ends a connection whose peer is silent."""
    with socket.socket(fileno=os.dup(connection)) as peer:
        return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
