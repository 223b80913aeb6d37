"""Evaluation by the papers' protocol: tasks, demonstrations, metrics, runs and their reports."""
