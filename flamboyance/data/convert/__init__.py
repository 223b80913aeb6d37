"""Turns data into shards."""
