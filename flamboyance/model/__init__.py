"""The Flamingo model, one file per concept of the paper."""
