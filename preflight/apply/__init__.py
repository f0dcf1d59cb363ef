"""Run one file, forward or back, and settle what is there already."""
