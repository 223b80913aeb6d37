"""The world that flamingo-mini was trained in: scenes, what is said about them, and the words for it.

Held-out pictures come from seeds, scans and made-up words of the "test" split.
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
