"""A file a command: what it says of itself, its story and how its result is shown."""
