"""What the last word of a variable's, an option's or a key's name says."""

from __future__ import annotations

KINDS = {
    **dict.fromkeys(("host", "hostaddr", "hostname", "server", "datasource", "addr"), "host"),
    **dict.fromkeys(("address", "endpoint", "seeds"), "host"),
    "port": "port",
    **dict.fromkeys(("user", "username", "userid", "uid"), "user"),
    **dict.fromkeys(("password", "pwd", "psw", "pass", "passwd", "pw"), "password"),
    **dict.fromkeys(("dbname", "database", "db", "name", "initialcatalog"), "database"),
    **dict.fromkeys(("sslmode", "ssl_mode", "ssl", "tls"), "tls"),
}
