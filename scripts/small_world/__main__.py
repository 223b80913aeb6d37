"""Builds flamingo-small's training data from packages: `python -m scripts.small_world --output DIR`.

Finished files are kept, and an interrupted build is resumed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flamboyance.commands.progress import progress
from scripts.small_world import world
from scripts.small_world.concepts import HELD_OUT
from scripts.small_world.documents import WRITERS
from scripts.small_world.variants import Counts


def main() -> None:
    """Pictures, variants, scenes, documents, evaluation files, counts."""
    parser = argparse.ArgumentParser(prog="python -m scripts.small_world", description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="the world's folder")
    add("--cache", type=Path, metavar="DIR", help="where packages are unpacked (.packages in the world's folder)")
    add("--limit", type=int, metavar="N", help="the first N concepts only")
    add("--variants", type=int, default=8, metavar="K", help="variants of a picture that is trained on (8)")
    add("--scenes", type=int, default=12_000, metavar="N", help="pictures of one to three things (12000)")
    add("--names", type=int, default=30_000, metavar="N", help="documents of pictures with bare names (30000)")
    add("--named", type=int, default=12_000, metavar="N", help="the same by the library's default template (12000)")
    add("--captions", type=int, default=60_000, metavar="N", help="caption documents (60000)")
    add("--topics", type=int, default=10_000, metavar="N", help="documents around a kind (10000)")
    add("--episodes", type=int, default=60_000, metavar="N", help="in-context documents (60000)")
    add("--tasks", type=int, default=12_000, metavar="N", help="documents that follow one task (12000)")
    add("--seed", type=int, default=0, help="of variants, scenes, documents and evaluation (0)")
    add("--sheet", type=Path, metavar="FILE.png", help="also draw a contact sheet; of more than 400 concepts, several")
    add("--ship", type=Path, metavar="DIR", help="also copy the pictures that the package ships (flamboyance/small)")
    given = parser.parse_args()
    settings = world.Settings(
        variants=Counts(trained=given.variants),
        held_out=HELD_OUT if given.limit is None else min(HELD_OUT, given.limit // 7),
        scenes=given.scenes,
        documents={name: getattr(given, name) for name in WRITERS},
        seed=given.seed,
    )
    try:
        known, originals, lemmas = world.from_packages(given.cache or given.output / ".packages", given.limit)
        print(world.build(given.output, known, originals, lemmas, settings, progress, given.sheet, given.ship))
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
