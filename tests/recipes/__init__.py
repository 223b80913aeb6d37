"""Whole runs as functions, and `flamboyance train`."""
