"""The world that flamingo-mini was trained on: scenes, texts about them, and their vocabulary.

Held-out images come from other seeds, and from the scans and made-up words of the "test" split.
"""

from flamboyance.mini.world.sayings import (
    DIGIT_QUESTION,
    Episode,
    Question,
    binding_episode,
    caption,
    draw_question,
    questions,
)
from flamboyance.mini.world.scenes import (
    Digit,
    Scene,
    Thing,
    digit_picture,
    digit_scene,
    digits,
    picture,
    render,
    scene,
)

__all__ = [
    "DIGIT_QUESTION",
    "Digit",
    "Episode",
    "Question",
    "Scene",
    "Thing",
    "binding_episode",
    "caption",
    "digit_picture",
    "digit_scene",
    "digits",
    "draw_question",
    "picture",
    "questions",
    "render",
    "scene",
]
