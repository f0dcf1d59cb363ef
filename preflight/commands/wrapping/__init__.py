"""Another tool's command behind the same gate: its key, its way to the copy, its story."""
