"""Training: one loop, from a laptop to many nodes."""
