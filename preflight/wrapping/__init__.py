"""Run somebody else's command: heard, walled in, and ended with all that it started."""
