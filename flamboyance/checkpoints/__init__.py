"""Model directories, OpenFlamingo's checkpoint files, and the configurations of its released models."""
