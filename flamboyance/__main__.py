"""The `flamboyance` command, also as `python -m flamboyance`. Handles Ctrl-C during the import of the command."""

import sys


def main() -> int:
    """Run the command. Returns its exit status, 130 if Ctrl-C comes during its import."""
    try:
        from flamboyance.cli import main as run
    except KeyboardInterrupt:
        print("flamboyance: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
