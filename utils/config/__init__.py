"""The configuration of a run: its keys, files and flags, and its hash."""
