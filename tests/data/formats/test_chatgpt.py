"""ChatGPT's sequences, against facts 4.3."""

import dataclasses
from typing import Any

import pytest

from flamboyance.data.formats.chatgpt import ChatGPT
from tests.data.records import BLUE, GREEN, RED, in_base64, json_record, read, reason

OURS = ChatGPT(shards="", batch_size=1)
THEIRS = dataclasses.replace(OURS, protocol="openflamingo")
IMAGES = {1: RED, 2: GREEN, 3: BLUE}


def content(example: str, images: dict[int, bytes] = IMAGES) -> dict[str, Any]:
    image_map = {f"_!_IMAGE{k}_!_": {"base64_image": in_base64(image)} for k, image in images.items()}
    return {"is_gpt": True, "example": example, "image_map": image_map}


def test_places_become_images() -> None:
    given = json_record(content("Look: _!_IMAGE1_!_ a cat. _!_IMAGE2_!_ a dog. _!_IMAGE3_!_ both"))
    for source in (OURS, THEIRS):
        document = read(source, given)
        assert document.text == ("Look:<image>a cat.<|endofchunk|><image>a dog.<|endofchunk|><image>both<|endofchunk|>")
        assert document.images == (RED, GREEN, BLUE)
        assert document.learned == "after_image"


def test_images_go_by_their_names() -> None:
    given = json_record(content("_!_IMAGE2_!_ a dog. _!_IMAGE1_!_ a cat."))
    assert read(OURS, given).images == (GREEN, RED)
    assert read(THEIRS, given).images == (RED, GREEN)


def test_one_image_twice() -> None:
    given = json_record(content("_!_IMAGE1_!_ a cat. _!_IMAGE1_!_ the same."))
    assert read(OURS, given).images == (RED, RED)


def test_too_many_images() -> None:
    given = json_record(content("_!_IMAGE1_!_ a _!_IMAGE2_!_ b _!_IMAGE3_!_ c"))
    # The original keeps one fewer than it may, and ends the chunk twice.
    document = read(dataclasses.replace(THEIRS, max_images=2), given)
    assert document.text == "<image>a<|endofchunk|><|endofchunk|>"
    assert document.images == (RED,)
    # As many as are allowed: nothing is cut.
    assert len(read(dataclasses.replace(THEIRS, max_images=3), given).images) == 3
    # Ours is cut with the third token, when the example is made.
    assert len(read(dataclasses.replace(OURS, max_images=2), given).images) == 3


def test_more_than_nine_images_are_in_order_of_number() -> None:
    images = {k: RED if k == 10 else GREEN for k in range(1, 11)}
    given = json_record(content(" ".join(f"_!_IMAGE{k}_!_ x" for k in range(1, 11)), images))
    assert read(dataclasses.replace(THEIRS, max_images=10), given).images == (GREEN,) * 9 + (RED,)


def test_tokens_in_the_text_are_taken_out() -> None:
    given = json_record(content("_!_IMAGE1_!_ an <image> of<|endofchunk|> a cat"))
    assert read(OURS, given).text == "<image>an  of a cat<|endofchunk|>"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"example": "a"}, "no example or image_map"),
        ({"example": 1, "image_map": {}}, "no example or image_map"),
        (content("_!_IMAGE4_!_ a"), "missing image"),
        ({"example": "_!_IMAGE1_!_", "image_map": {"_!_IMAGE1_!_": "x"}}, "missing image"),
        ({"example": "_!_IMAGE1_!_", "image_map": {"_!_IMAGE1_!_": {"base64_image": None}}}, "missing image"),
        ({"example": "_!_IMAGE1_!_", "image_map": {"_!_IMAGE1_!_": {"base64_image": "a"}}}, "damaged image"),
    ],
)
def test_what_cannot_be_used_is_rejected(given: dict, why: str) -> None:
    assert reason(OURS, json_record(given)) == why


def test_an_image_that_is_placed_often_is_decoded_once() -> None:
    images = read(OURS, json_record(content("_!_IMAGE1_!_ a " * 50))).images
    assert len(images) == 50 and all(image is images[0] for image in images)
