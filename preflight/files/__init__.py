"""The files of migrations: what they hold, and what they would do."""
