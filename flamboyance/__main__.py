"""The `flamboyance` command, also as `python -m flamboyance`: Ctrl-C while the command itself is imported."""

import sys


def main() -> int:
    """Run the command; its exit status, 130 where Ctrl-C comes before the command can see to it."""
    try:
        from flamboyance.cli import main as run
    except KeyboardInterrupt:
        print("flamboyance: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
