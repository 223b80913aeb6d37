"""Whole training runs as Python functions."""
