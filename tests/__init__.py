"""Tests: `unit` needs no server, `postgres` starts real ones."""
