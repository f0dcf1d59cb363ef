"""`up`: the story itself stands in entrypoint.py."""

from preflight.commands.command import Command

COMMAND = Command(
    place=0,
    does="apply what is pending: back up, rehearse, migrate, verify (the default)",
    example="entrypoint.py",
    fleet=True,
)
