"""The world that flamingo-mini was trained in: scenes, what is said about them, and the words for it.

Held-out pictures come from seeds, scans and made-up words of the "test" split.
"""

from flamboyance.mini.world.sayings import Episode, Question, binding_episode, caption, questions
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
    "picture",
    "questions",
    "render",
    "scene",
]
