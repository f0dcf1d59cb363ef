"""Reach the server, hold the lock, look at the catalog and at who is in the way."""
