"""Other people's checkpoints, and the table of known models."""
