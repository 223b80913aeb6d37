"""`python -m flamboyance`: the `flamboyance` command."""

import sys

from flamboyance.cli import main

if __name__ == "__main__":
    sys.exit(main())
