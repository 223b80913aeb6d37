"""What the `flamboyance` command does, one module a concern; `flamboyance.cli` holds its arguments."""
