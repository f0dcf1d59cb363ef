"""Take a backup, read it back, keep it, restore it."""
