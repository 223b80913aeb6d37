"""Bad input, in one table: each message names what was given and what was expected."""

from types import SimpleNamespace

import pytest
from PIL import Image

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from tests.bad_input import TABLE, checkpoints, prompts  # noqa: F401  importing them fills the table
from tests.tiny import save_tiny_flamingo


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    directory = save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))
    return SimpleNamespace(
        directory=directory,
        model=FlamingoForConditionalGeneration.from_pretrained(directory),
        processor=FlamingoProcessor.from_pretrained(directory),
        image=Image.new("RGB", (16, 16)),
    )


@pytest.fixture
def given(shared, tmp_path):
    inputs = shared.processor("<image>a cat", [shared.image])
    return SimpleNamespace(**vars(shared), tmp=tmp_path, inputs=inputs)


@pytest.mark.parametrize("give, error, values", TABLE)
def test_message(given, give, error, values):
    with pytest.raises(error) as refused:
        give(given)
    missing = [value for value in values if value.lower() not in str(refused.value).lower()]
    assert not missing, str(refused.value)


def test_the_table_is_long_enough():
    assert len(TABLE) >= 25
