"""The first question, asked cheaply: is there nothing to do? Everything else is left to `up`."""
