"""How much of an attention map lies on what a word names, in pictures whose things are known: the mini world's.

    python -m benchmarks.attention_maps

For captions of pictures with one thing, the map of the last word; for questions about one of three things ("what color
is the object on the left?"), the map of the answer. Shares of the map lie on the patches that the named thing touches,
and on those of another thing; beside them the share of the picture that the named thing's patches are.
"""

import numpy as np
import torch

import flamboyance as fl
from flamboyance.mini.world.scenes import SIDE, Thing, picture, scene

PICTURES = 100
PATCHES = 8  # rows and columns of the embedded model's tower


def touched(thing: Thing) -> np.ndarray:
    """The patches (rows, columns) that a thing's square touches."""
    half = SIDE / PATCHES / 2
    rows, columns = (np.mgrid[:PATCHES, :PATCHES] + 0.5) * SIDE / PATCHES
    return np.maximum(abs(columns - thing.x), abs(rows - thing.y)) < thing.radius + half


def main() -> None:
    torch.set_num_threads(1)
    model, processor = fl.load_mini()
    captioner = fl.FewShotTask(model, processor, fl.examples.demonstrations)
    asker = fl.FewShotTask(model, processor, template=fl.templates.vqa)
    print("| word | on the named thing | on another thing | the named thing in the picture |\n|---|---:|---:|---:|")
    rows = []
    for seed in range(PICTURES):
        drawn = scene(np.random.default_rng(seed), 1)
        found = fl.attention_maps(model, processor, *captioner.prompt(picture(drawn)))
        place = touched(drawn.things[0])
        rows.append((found.of_word(len(found.words) - 1)[place].sum(), place.mean()))
    on, area = np.mean(rows, axis=0)
    print(f"| the last of a caption of one thing | {on:.0%} | | {area:.0%} |")
    for number, name in enumerate(("left", "middle", "right")):
        rows = []
        for seed in range(PICTURES):
            drawn = scene(np.random.default_rng(1000 + seed), 3)
            question = f"what color is the object on the {name}?"
            heat = fl.attention_maps(model, processor, *asker.prompt((picture(drawn), question))).of_word(0)
            places = [touched(thing) for thing in drawn.things]
            others = [heat[place].sum() for i, place in enumerate(places) if i != number]
            rows.append((heat[places[number]].sum(), np.mean(others), places[number].mean()))
        on, elsewhere, area = np.mean(rows, axis=0)
        print(f'| the answer to "{question}", three things | {on:.0%} | {elsewhere:.0%} | {area:.0%} |')


if __name__ == "__main__":
    main()
