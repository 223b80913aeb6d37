"""What an embedded model uses of its demonstrations, where that is known by construction (`evaluate --ablate`).

    python -m benchmarks.ablation [--model mini|small] [--queries N] [--output DIR]

words      Four demonstrations show two kinds of things, each beside a made-up word, and the query is a picture of one
           of the two: which word is right is only in the pairs of picture and word. The kinds and their words are drawn
           anew for every query. flamingo-mini sees coloured shapes, flamingo-small drawings that were held out.
captions   flamingo-mini writes captions, which it knows without demonstrations.

Prints the table and the sentences of `flamboyance report`, of which DIR has the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
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
WORDS = {"mini": tuple(draw_words(np.random.default_rng(3), 2, "test")), "small": ("blick", "tazof")}
TEMPLATES = {"mini": templates.caption, "small": templates.Template("<image> {text}")}
Episode = tuple[list[tuple[Path, int]], Path, int]  # demonstrations (picture, which kind), and the query


def shapes(folder: Path, queries: int) -> Iterator[Episode]:
    """Two colors or two shapes, in pictures that are drawn for each query."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(queries):
        rng = np.random.default_rng((11, number))
        episode = world.binding_episode(rng, SHOTS, ("color", "shape")[number % 2], "test")
        kinds = [*(word for _, word in episode.demonstrations), episode.answer]
        paths = [folder / f"{number}-{i}.png" for i in range(SHOTS + 1)]
        for path, scene in zip(paths, [*(scene for scene, _ in episode.demonstrations), episode.query], strict=True):
            world.picture(scene).save(path)
        which = [episode.candidates.index(word) for word in kinds]
        yield list(zip(paths[:-1], which[:-1], strict=True)), paths[-1], which[-1]


def drawings(queries: int) -> Iterator[Episode]:
    """Two things that no training picture shows, in drawings of the package."""
    folder = Path(fl.__file__).parent / "small" / "pictures"
    names = sorted({path.name.partition("-")[2].split(".")[0] for path in folder.glob("twemoji-*.2.jpg")})
    for number in range(queries):
        rng = np.random.default_rng((12, number))
        pair = [names[i] for i in rng.permutation(len(names))[:2]]
        asked, variant = int(rng.integers(2)), int(rng.integers(3))
        shown = [which for turn in range(SHOTS // 2) for which in rng.permutation(2).tolist()]
        left = [[i for i in rng.permutation(3) if which != asked or i != variant] for which in (0, 1)]
        demonstrations = [(folder / f"twemoji-{pair[which]}.{left[which].pop()}.jpg", which) for which in shown]
        yield demonstrations, folder / f"twemoji-{pair[asked]}.{variant}.jpg", asked


def words(model: str, folder: Path, queries: int) -> Task:
    support: list[Example] = []
    asked, places, labels = [], {}, WORDS[model]
    for number, (shown, query, which) in enumerate(shapes(folder, queries) if model == "mini" else drawings(queries)):
        places[str(number)] = range(len(support), len(support) + len(shown))
        support += [Example(f"{number}-{i}", path, labels[kind]) for i, (path, kind) in enumerate(shown)]
        asked.append(Example(str(number), query, labels[which], references=(labels[which],)))
    return Task(
        "words", "Made-up words", TEMPLATES[model], support, asked, metrics.TOP_1, labels=labels,
        choose=lambda query, shots, seed: tuple(places[query.id][:shots]),
    )  # fmt: skip


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
    parser.add_argument("--model", choices=("mini", "small"), default="mini")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    given = parser.parse_args()
    output = given.output / given.model
    tasks = [words(given.model, output / "pictures" / "words", given.queries)]
    if given.model == "mini":
        tasks.append(captions(output / "pictures" / "captions", given.queries))
    spec, prepared = catalog.resolve(given.model).tower()
    encoder = Encoder.open(spec["name"], spec["pretrained"], spec["library"], prepared, **chosen_settings(spec))
    answers = FlamingoAnswers(*(fl.load_mini() if given.model == "mini" else fl.load_small()))
    fl.evaluate(
        tasks, answers, name=f"flamingo-{given.model}", shots=(0, SHOTS), seeds=(0,), ablate=True, encoder=encoder,
        output=output / "run",
    )  # fmt: skip
    table = tables.ablation(report.build([read_run(output / "run")], with_gains=True))
    assert table is not None
    print_table(console_of(sys.stdout), table)


if __name__ == "__main__":
    main()
