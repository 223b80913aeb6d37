"""OK-VQA's stems."""

import pytest

from flamboyance.evaluation.tasks.stems import stem


@pytest.mark.parametrize(
    "answer, stemmed",
    [
        # the table of what no rule gives
        ("yes", "yes"),
        ("jeans", "jean"),
        ("riding", "ride"),
        ("christmas", "christmas"),
        ("morning", "morn"),
        ("men's", "men"),
        ("las vegas", "las vegas"),
        # verbs, as WordNet's lemmatizer gives them
        ("surfing", "surf"),
        ("swimming", "swim"),
        ("baking", "bake"),
        ("lying", "lie"),
        ("rolling", "roll"),
        ("skate boarding", "skate board"),
        ("ceiling", "ceiling"),
        ("king", "king"),
        ("evening", "even"),
        ("hoping", "hop"),
        # plurals
        ("dogs", "dog"),
        ("berries", "berry"),
        ("knives", "knife"),
        ("boxes", "box"),
        ("buses", "bus"),
        ("mice", "mouse"),
        ("women", "woman"),
        ("firemen", "fireman"),
        ("children", "child"),
        ("vases", "vase"),
        ("horses", "horse"),
        ("cookies", "cooky"),
        # words in -s that are none
        ("grass", "grass"),
        ("bus", "bus"),
        ("gas", "gas"),
        ("tennis", "tennis"),
        ("species", "species"),
        # all else stays
        ("1990s", "1990s"),
        ("u.s. flag", "u.s. flag"),
        ("Playing Frisbees!", "play frisbee!"),
        ("", ""),
    ],
)
def test_stem(answer, stemmed):
    assert stem(answer) == stemmed
