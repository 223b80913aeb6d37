"""`demo`: the embedded model on held-out images."""

import argparse
from pathlib import Path


def demo(arguments: argparse.Namespace) -> int:
    """Write the demonstration's images, page and plot to a folder, and print its table."""
    from flamboyance.demo import main

    return main(Path(arguments.output)) or 0
