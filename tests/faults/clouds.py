"""Roles as the managed services give them: nobody there is a superuser.

A set-up makes one database as the service hands it over: who owns it, what the provider keeps in
it, which catalogs are closed (as hardened servers close them).
"""

from dataclasses import dataclass

from tests import servers

PASSWORD = "x"  # noqa: S105 - of a role that lives for a test
# Rows of the application's own, in every one of them.
APP = """
CREATE TABLE public.cats (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
INSERT INTO public.cats (name) SELECT md5(n::text) FROM generate_series(1, 50) n;
CREATE VIEW public.named AS SELECT name FROM public.cats;
"""


@dataclass(frozen=True)
class Cloud:
    """One service: its roles, what it has put into the database, and what the user must ask for.

    `{db}` is the database, `{user}` the user's role; names of roles are the service's own.
    """

    user: str  # how the user's role is made
    owner: str = "{user}"  # of the database
    roles: str = ""  # what the service has on the server
    inside: str = ""  # what it has in the database
    grants: str = ""  # what the user must be given before a backup can be whole
    asks_for: str = ""  # what the refusal names until then
    own_keys: bool = False  # its proxy gives out keys of its own


CLOUDS = {
    "rds": Cloud(
        roles="CREATE ROLE rdsadmin SUPERUSER; CREATE ROLE rds_superuser;"
        "GRANT pg_monitor, pg_signal_backend TO rds_superuser WITH ADMIN OPTION",
        user="CREATE ROLE {user} LOGIN CREATEDB CREATEROLE IN ROLE rds_superuser",
        inside="SET ROLE rdsadmin; CREATE EXTENSION pg_stat_statements;"
        "CREATE EXTENSION pg_trgm; RESET ROLE;"
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text) FROM PUBLIC",
    ),
    "cloud sql": Cloud(
        roles="CREATE ROLE cloudsqladmin SUPERUSER; CREATE ROLE cloudsqlsuperuser CREATEDB"
        " CREATEROLE; GRANT pg_monitor TO cloudsqlsuperuser",
        user="CREATE ROLE {user} LOGIN CREATEDB CREATEROLE IN ROLE cloudsqlsuperuser",
        owner="cloudsqlsuperuser",
        inside="SET ROLE cloudsqladmin; CREATE EXTENSION hstore; RESET ROLE;"
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC",
        grants="GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO {user}",
        asks_for="pg_control_system",
    ),
    "azure": Cloud(
        roles="CREATE ROLE azuresu SUPERUSER; CREATE ROLE azure_pg_admin;"
        "GRANT pg_read_all_settings, pg_read_all_stats, pg_monitor TO azure_pg_admin",
        user="CREATE ROLE {user} LOGIN CREATEDB CREATEROLE IN ROLE azure_pg_admin",
        inside="REVOKE EXECUTE ON FUNCTION pg_catalog.pg_ls_waldir() FROM PUBLIC;"
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_database_size(name) FROM PUBLIC",
        grants="GRANT EXECUTE ON FUNCTION pg_catalog.pg_database_size(name) TO {user}",
        asks_for="pg_database_size",
    ),
    "neon": Cloud(
        roles="CREATE ROLE cloud_admin SUPERUSER;"
        "CREATE ROLE neon_superuser CREATEDB CREATEROLE BYPASSRLS REPLICATION;"
        "GRANT pg_read_all_data, pg_write_all_data, pg_monitor TO neon_superuser",
        user="CREATE ROLE {user} LOGIN CREATEDB CREATEROLE BYPASSRLS IN ROLE neon_superuser",
        inside="CREATE SCHEMA neon; CREATE FUNCTION neon.pg_cluster_size() RETURNS bigint"
        " LANGUAGE sql AS 'SELECT 1::bigint'; ALTER SCHEMA neon OWNER TO cloud_admin",
        own_keys=True,
    ),
    "heroku": Cloud(
        roles="CREATE ROLE heroku_admin SUPERUSER",
        user="CREATE ROLE {user} LOGIN CONNECTION LIMIT 20",
        inside="CREATE SCHEMA heroku_ext; CREATE EXTENSION pg_trgm SCHEMA heroku_ext;"
        "CREATE SCHEMA _heroku AUTHORIZATION heroku_admin;"
        "CREATE FUNCTION _heroku.create_ext() RETURNS event_trigger LANGUAGE plpgsql"
        " SECURITY DEFINER AS 'BEGIN END'; ALTER FUNCTION _heroku.create_ext() OWNER TO"
        " heroku_admin; CREATE EVENT TRIGGER extension_before_drop ON sql_drop"
        " EXECUTE FUNCTION _heroku.create_ext()",
    ),
    "digitalocean": Cloud(
        roles="CREATE ROLE doadmin CREATEDB CREATEROLE REPLICATION LOGIN;"
        "CREATE ROLE _dodb SUPERUSER",
        user="CREATE ROLE {user} LOGIN",
        owner="doadmin",
        inside='GRANT CREATE ON SCHEMA public TO {user};GRANT CREATE ON DATABASE "{db}" TO {user}',
    ),
    "supabase": Cloud(
        roles="CREATE ROLE supabase_admin SUPERUSER; CREATE ROLE supabase_auth_admin NOINHERIT;"
        "CREATE ROLE anon; CREATE ROLE authenticated; CREATE ROLE service_role BYPASSRLS",
        user="CREATE ROLE {user} LOGIN CREATEDB CREATEROLE BYPASSRLS REPLICATION",
        inside="CREATE SCHEMA auth AUTHORIZATION supabase_auth_admin;"
        "CREATE TABLE auth.users (id int PRIMARY KEY, email text);"
        "ALTER TABLE auth.users OWNER TO supabase_auth_admin, ENABLE ROW LEVEL SECURITY;"
        "INSERT INTO auth.users VALUES (1, 'a@b'); GRANT USAGE ON SCHEMA auth TO {user};"
        "GRANT SELECT ON auth.users TO {user};"
        "CREATE SCHEMA vault AUTHORIZATION supabase_admin;"
        "CREATE TABLE vault.secrets (id int); INSERT INTO vault.secrets VALUES (1);"
        "ALTER TABLE vault.secrets OWNER TO supabase_admin;"
        "GRANT USAGE ON SCHEMA public TO anon, authenticated;"
        "ALTER DEFAULT PRIVILEGES FOR ROLE {user} IN SCHEMA public GRANT ALL ON TABLES"
        " TO anon, authenticated, service_role; CREATE PUBLICATION supabase_realtime;"
        "CREATE SCHEMA extensions; CREATE EXTENSION pg_trgm SCHEMA extensions",
        grants="GRANT USAGE ON SCHEMA vault TO {user}; GRANT SELECT ON vault.secrets TO {user}",
        asks_for='"vault"."secrets"',
    ),
}


def make(server: servers.Server, cloud: Cloud, user: str) -> servers.Database:
    """Make a database as that service hands it over; `env(user, PASSWORD)` leads to it."""
    database = servers.Database(server, f"{user}_db")
    said = {"db": database.name, "user": user}
    with server.connect() as connection:
        if cloud.roles:
            connection.execute(cloud.roles.encode())
        connection.execute(f"{cloud.user} PASSWORD '{PASSWORD}'".format(**said).encode())
        owner = cloud.owner.format(**said)
        connection.execute(f'CREATE DATABASE "{database.name}" OWNER {owner}'.encode())
    database.script(cloud.inside.format(**said))
    database.script(f"SET ROLE {user}; {APP}")
    return database
