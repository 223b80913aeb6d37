"""The loss on documents that are not trained on."""

from dataclasses import replace

import pytest

import flamboyance as fl
from flamboyance.data.documents import Document
from flamboyance.data.formats.interleaved import Interleaved
from flamboyance.data.formats.user_data import UserData
from flamboyance.recipes.validation import mean_loss, undrawn


@pytest.fixture(scope="module")
def mini():
    return fl.load_mini()


DOCUMENTS = [
    Document(f"<image>Output:{text}<|endofchunk|>", (image.read_bytes(),), "all")
    for image, text in fl.examples.demonstrations
]


@pytest.mark.parametrize(
    "source", [UserData(shards="", batch_size=1), Interleaved(shards="", batch_size=1, max_tokens=256)]
)
def test_nothing_is_drawn_at_random(mini, source) -> None:
    """Each document had numbers of its own, and all of them the same: a probability of mirroring above 0.04 was 1."""
    shown = mean_loss(*mini, replace(source, flip=0.0), DOCUMENTS)
    for probability in (0.05, 0.5, 0.99):
        assert mean_loss(*mini, replace(source, flip=probability), DOCUMENTS) == shown
    assert mean_loss(*mini, replace(source, flip=1.0), DOCUMENTS) != shown  # each image is mirrored, as in training
    if isinstance(source, Interleaved):
        drawn = replace(source, flip=0.0, reject_single=0.7, next_image=0.9, window="random")
        assert mean_loss(*mini, drawn, DOCUMENTS) == shown


def test_what_is_always_done_is_kept() -> None:
    source = Interleaved(shards="", batch_size=1, flip=1.0, reject_single=1.0, next_image=1.0)
    assert undrawn(source) == source
