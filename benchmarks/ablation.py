"""What flamingo-mini uses of its demonstrations, where that is known by construction (`evaluate --ablate`).

    python -m benchmarks.ablation [--queries N] [--output DIR]

words      Four demonstrations show two kinds of things, each beside a made-up word, and the query is a picture of one
           of the two: which word is right is only in the pairs of picture and word. The kinds and their words are drawn
           anew for every query.
captions   The model writes captions, which it knows without demonstrations.

Prints the table and the sentences of `flamboyance report`, of which DIR has the rest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import flamboyance as fl
from flamboyance import catalog, templates
from flamboyance.commands.report import console_of, print_table
from flamboyance.evaluation import metrics
from flamboyance.evaluation.answers.flamingo import FlamingoAnswers
from flamboyance.evaluation.rices.features import Encoder
from flamboyance.evaluation.task import Example, Task
from flamboyance.mini import world
from flamboyance.mini.world.words import draw_words
from flamboyance.model.vision import chosen_settings
from flamboyance.reports import report, tables
from flamboyance.reports.evaluation_run import read_run

SHOTS = 4
WORDS = tuple(draw_words(np.random.default_rng(3), 2, "test"))  # that the model was not trained on


def words(folder: Path, queries: int) -> Task:
    """Two colors or two shapes, in pictures that are drawn for each query."""
    folder.mkdir(parents=True, exist_ok=True)
    support: list[Example] = []
    asked: list[Example] = []
    for number in range(queries):
        rng = np.random.default_rng((11, number))
        episode = world.binding_episode(rng, SHOTS, ("color", "shape")[number % 2], "test")
        for place, (scene, word) in enumerate([*episode.demonstrations, (episode.query, episode.answer)]):
            path = folder / f"{number}-{place}.png"
            world.picture(scene).save(path)
            label = WORDS[episode.candidates.index(word)]
            shown = place < SHOTS
            name = f"{number}-{place}" if shown else str(number)
            one = Example(name, path, label, references=() if shown else (label,))
            (support if shown else asked).append(one)

    def choose(query: Example, shots: int, seed: int) -> tuple[int, ...]:
        first = SHOTS * int(query.id)
        return tuple(range(first, first + shots))

    return Task("words", "Made-up words", templates.caption, support, asked, metrics.TOP_1, labels=WORDS, choose=choose)


def captions(folder: Path, queries: int) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number in range(2 * queries):
        scene = world.scene(np.random.default_rng((13, number)), 1)
        world.picture(scene).save(folder / f"{number}.png")
        said = world.caption(scene)
        examples.append(Example(str(number), folder / f"{number}.png", said, references=(said,)))
    return Task("captions", "Captions", templates.caption, examples[queries:], examples[:queries], metrics.CIDER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    given = parser.parse_args()
    pictures = given.output / "pictures"
    tasks = [words(pictures / "words", given.queries), captions(pictures / "captions", given.queries)]
    spec, prepared = catalog.resolve("mini").tower()
    encoder = Encoder.open(spec["name"], spec["pretrained"], spec["library"], prepared, **chosen_settings(spec))
    fl.evaluate(
        tasks, FlamingoAnswers(*fl.load_mini()), name="flamingo-mini", shots=(0, SHOTS), seeds=(0,), ablate=True,
        encoder=encoder, output=given.output / "run",
    )  # fmt: skip
    table = tables.ablation(report.build([read_run(given.output / "run")], with_gains=True))
    assert table is not None
    print_table(console_of(sys.stdout), table)


if __name__ == "__main__":
    main()
