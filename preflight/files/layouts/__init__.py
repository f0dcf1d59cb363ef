"""A file a tool: what the files in its folder mean, and what its history says."""
