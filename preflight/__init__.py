"""pg-preflight makes a PostgreSQL database ready before the app starts."""

__version__ = "0.1.0"
