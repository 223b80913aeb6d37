"""The example pictures in `flamboyance/examples`, drawn in the mini world, and the README's figure of them.

python -m scripts.pretrain_mini.pictures
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from flamboyance import FewShotTask, examples, load_mini
from flamboyance.files import write_text
from flamboyance.mini import world

SEED = 70_000_000  # of scenes that nothing was trained on
CAPTIONED = ("large red ring", "small blue square", "large white triangle", "small purple circle")
FIGURE = Path(__file__).parents[2] / "docs" / "pictures" / "first-answer.png"
NEW = ("large green ring", "large yellow cross", "small cyan square", "small red triangle")


def draw() -> dict[str, tuple[Image.Image, str]]:
    """Path below `flamboyance/examples` -> the picture and its caption."""
    drawn = {}
    for part, things in (("captioned", CAPTIONED), ("new", NEW)):
        for number, thing in enumerate(things):
            size, color, shape = thing.split()
            rng = np.random.default_rng((SEED, part == "new", number))
            scene = world.scene(rng, 1, size=size, color=color, shape=shape)
            drawn[f"{part}/{thing.replace(' ', '-')}.png"] = (world.picture(scene), world.caption(scene))
    return drawn


def main(folder: Path = examples.folder) -> None:
    for name, (picture, caption) in draw().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, optimize=True)
        if path.parent.name == "captioned":
            write_text(path.with_suffix(".txt"), caption + "\n")


def figure(path: Path = FIGURE) -> None:
    """Draws two demonstrations, two queries, and what flamingo-mini answers to them."""
    from matplotlib import pyplot as plt

    shown, asked = examples.demonstrations[:2], examples.queries[:2]
    answers = FewShotTask(*load_mini(), shown)(asked)
    panels = [(image, text, "demonstration", "#444444") for image, text in shown]
    panels += [(image, text, "query", "#b3003c") for image, text in zip(asked, answers, strict=True)]
    drawing, axes = plt.subplots(1, len(panels), figsize=(8.8, 2.9))
    for axis, (image, text, role, color) in zip(axes, panels, strict=True):
        axis.imshow(Image.open(image), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_title(role, fontsize=10, color=color)
        axis.set_xlabel(text, fontsize=11, color=color, fontweight="bold" if role == "query" else "normal")
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


if __name__ == "__main__":
    main()
    figure()
