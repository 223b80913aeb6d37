"""Formats of training data, one file each."""
