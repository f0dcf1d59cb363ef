"""The same files over many databases or schemas: who they are, each on its own, in waves."""
