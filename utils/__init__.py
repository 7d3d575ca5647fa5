"""Leaves: no file here imports a sibling, so each can be read, tested or replaced alone."""
