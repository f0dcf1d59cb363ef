"""A restored copy that proves the backup, and the pending files tried on it."""
