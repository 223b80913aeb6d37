"""MMC4, against documents worked out by hand from what the original trainer does (facts 4.2 and 6.2)."""

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flamboyance.data.documents import Rejected
from flamboyance.data.examples import make_example
from flamboyance.data.formats.mmc4 import MMC4
from tests.data.records import BLUE, GREEN, RED, WHITE, in_base64, jpeg, json_record, read, reason
from tests.data.test_examples import WORKER

ANY = MMC4(shards="", batch_size=1, min_image_bytes=0, flip=0.0, reject_single=0.0)
THEIRS = dataclasses.replace(ANY, protocol="openflamingo")
BEST = dataclasses.replace(ANY, assignment="best_sentence")

SENTENCES = ["Zero.", "One.", "Two.", "Three.", "Four."]


def page(matrix: list[list[float]], images: list[bytes] | None = None, sentences: list[str] | None = None) -> dict:
    images = [RED, GREEN, BLUE, WHITE][: len(matrix)] if images is None else images
    return {
        "url": "https://example.org",
        "text_list": sentences or SENTENCES[: len(matrix[0])],
        "image_info": [{"image_name": f"{i}.jpg", "image_base64": in_base64(image)} for i, image in enumerate(images)],
        "similarity_matrix": matrix,
    }


# Facts 6.2, 13: img0 -> s4, img1 -> s1, img2 -> s2.
SHUFFLED = [[0.1, 0.1, 0.1, 0.1, 0.4], [0.1, 0.4, 0.1, 0.1, 0.1], [0.1, 0.1, 0.4, 0.1, 0.1]]
WRITTEN = "Zero.<image>One.<|endofchunk|><image>Two. Three.<|endofchunk|><image>Four.<|endofchunk|>"


def test_each_image_stands_at_its_own_sentence() -> None:
    document = read(ANY, json_record(page(SHUFFLED)))
    assert document.text == WRITTEN
    assert document.images == (GREEN, BLUE, RED)
    assert document.learned == "after_image"


def test_the_original_order_can_be_had() -> None:
    document = read(THEIRS, json_record(page(SHUFFLED)))
    assert document.text == WRITTEN
    assert document.images == (RED, GREEN, BLUE)


def test_images_are_assigned_all_together() -> None:
    # Both like sentence 0 best; together 0.9 + 0.7 is more than 0.95 + 0.1.
    matrix = [[0.9, 0.1], [0.95, 0.7]]
    assert read(ANY, json_record(page(matrix))).text == "<image>Zero.<|endofchunk|><image>One.<|endofchunk|>"
    assert read(ANY, json_record(page(matrix))).images == (RED, GREEN)
    # Facts 4.2: the released models were trained with each image's best.
    document = read(BEST, json_record(page(matrix)))
    assert document.text == "<image><|endofchunk|><image>Zero. One.<|endofchunk|>"
    assert document.images == (RED, GREEN)


def test_the_threshold_applies_once_all_are_assigned() -> None:
    # Together 0.9 + 0.2 is more than 0.5 + 0.5: green is assigned to sentence 1, below the threshold, and goes.
    document = read(ANY, json_record(page([[0.9, 0.5], [0.5, 0.2]])))
    assert document.text == "<image>Zero. One.<|endofchunk|>"
    assert document.images == (RED,)


def test_the_threshold_itself_is_enough() -> None:
    assert read(ANY, json_record(page([[0.24, 0.0]]))).images == (RED,)
    assert reason(ANY, json_record(page([[0.2399, 0.0]]))) == "no image similar enough"


def test_more_images_than_sentences() -> None:
    document = read(ANY, json_record(page([[0.3], [0.5], [0.4]])))
    assert document.images == (GREEN,)
    assert document.text == "<image>Zero.<|endofchunk|>"


def test_small_images_are_left_out_as_by_the_reference() -> None:
    # Facts 4.2: left out if len(bytes) // 1000 <= 10.
    images = [jpeg("red", 10_999), jpeg("green", 11_000)]
    document = read(dataclasses.replace(ANY, min_image_bytes=11_000), json_record(page([[0.5, 0], [0, 0.5]], images)))
    assert document.images == (images[1],)
    assert document.text == "Zero.<image>One.<|endofchunk|>"
    assert MMC4(shards="", batch_size=1).min_image_bytes == 11_000
    assert reason(MMC4(shards="", batch_size=1), json_record(page([[0.5]]))) == "images too small"


def test_which_six_images_are_kept() -> None:
    # Eight images; image i likes sentence 7 - i.
    matrix = np.where(np.eye(8)[::-1], 0.5, 0.0).tolist()
    images = [jpeg(f"#{i + 1:02x}0000") for i in range(8)]
    given = json_record(page(matrix, images, [f"S{i}" for i in range(8)]))
    # The original: the first six of image_info, so the sentences 2 to 7.
    document = read(THEIRS, given)
    assert document.images == tuple(images[:6])
    assert document.text == "S0 S1" + "<|endofchunk|>".join(f"<image>S{i}" for i in range(2, 8)) + "<|endofchunk|>"
    # Aligned: all of them here, in the order of the text; the example is cut after the sixth.
    document = read(ANY, given)
    assert document.images == tuple(images[::-1])
    example = make_example(document, ANY, WORKER, np.random.default_rng(0))
    assert len(example.images) == 6 and (example.input_ids == WORKER.image_token_id).sum() == 6


def test_white_space_as_the_reference_leaves_it() -> None:
    sentences = ["Zero. ", " One.", "Two. "]
    matrix = [[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    theirs = read(THEIRS, json_record(page(matrix, sentences=sentences))).text
    # By hand: "Zero.  <image> One. <eoc><image>Two. " -> one space goes at each token -> "<eoc>" is put at the end.
    assert theirs == "Zero. <image>One.<|endofchunk|><image>Two. <|endofchunk|>"
    assert read(ANY, json_record(page(matrix, sentences=sentences))).text == (
        "Zero.<image>One.<|endofchunk|><image>Two.<|endofchunk|>"
    )


def test_similarities_that_are_no_numbers() -> None:
    nan = math.nan
    document = read(ANY, json_record(page([[nan, 0.5], [nan, nan], [0.4, nan]])))
    assert document.images == (BLUE, RED)
    for source in (ANY, BEST, dataclasses.replace(ANY, similarity_threshold=-math.inf)):
        assert reason(source, json_record(page([[nan, nan]]))) == "no image similar enough"
    assert reason(ANY, json_record(page([[math.inf, -math.inf]]))) == "no image similar enough"


def test_images_that_were_never_fetched_are_passed_over() -> None:
    given: Any = page([[0.5, 0], [0, 0.5]])
    del given["image_info"][0]["image_base64"]
    assert read(ANY, json_record(given)).images == (GREEN,)
    given["image_info"][1] = {}
    assert reason(ANY, json_record(given)) == "no image available"


def test_images_as_an_early_converter_wrote_them() -> None:
    # open_flamingo/scripts/convert_mmc4_to_wds.py of 2023 wrote str(b"…") (issue 198).
    given: Any = page([[0.5]])
    given["image_info"][0]["image_base64"] = str(in_base64(RED).encode())
    assert given["image_info"][0]["image_base64"].startswith("b'")
    assert read(ANY, json_record(given)).images == (RED,)


def test_images_beside_the_json(tmp_path: Path) -> None:
    given: Any = page([[0.5, 0], [0, 0.5], [0.1, 0.1]])
    for one in given["image_info"]:
        del one["image_base64"]
    given["image_info"][1]["image_name"] = "AbC.jpg"
    # In a tar, KEY.json and KEY.AbC.jpg: extensions are lower-case in a record.
    assert read(ANY, json_record(given, **{"abc.jpg": GREEN})).images == (GREEN,)
    (tmp_path / "AbC.jpg").write_bytes(BLUE)
    assert read(ANY, json_record(given, tmp_path)).images == (BLUE,)
    given["image_info"][1]["image_name"] = "../secret.jpg"
    assert reason(ANY, json_record(given, tmp_path)) == "image outside the folder"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"text_list": None}, "no text_list"),
        ({"text_list": "abc"}, "no text_list"),
        ({"text_list": ["a", 1]}, "no text_list"),
        ({"text_list": []}, "no text_list"),
        ({"image_info": []}, "no image_info"),
        ({"image_info": ["a"]}, "no image_info"),
        ({"similarity_matrix": None}, "broken similarity_matrix"),
        ({"similarity_matrix": [[0.5]]}, "broken similarity_matrix"),
        ({"similarity_matrix": [[0.5, 0.1], [0.3]]}, "broken similarity_matrix"),
        ({"similarity_matrix": [["a", "b"]]}, "broken similarity_matrix"),
        ({"similarity_matrix": [[10**400, 0]]}, "broken similarity_matrix"),
        ({"image_info": [{"image_base64": "abc"}]}, "damaged image"),
        ({"image_info": [{"image_base64": 3}]}, "damaged image"),
    ],
)
def test_what_cannot_be_used_is_rejected(change: dict, why: str) -> None:
    assert reason(ANY, json_record(page([[0.5, 0.1]]) | change)) == why
    assert reason(ANY, json_record(json.dumps(page([[0.5]])).encode()[:-5])) == "broken JSON"


def test_half_of_the_documents_with_one_image_are_rejected() -> None:
    source = dataclasses.replace(ANY, reject_single=MMC4(shards="", batch_size=1).reject_single)
    kept = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        with contextlib.suppress(Rejected):
            make_example(source.document(json_record(page([[0.5]])), rng), source, WORKER, rng)
            kept += 1
    assert 70 < kept < 130


def test_sequences_of_chatgpt_among_the_pages() -> None:
    content = {
        "is_gpt": True,
        "example": "A _!_IMAGE0_!_ b",
        "image_map": {"_!_IMAGE0_!_": {"base64_image": in_base64(RED)}},
    }
    assert read(ANY, json_record(content)).text == "A<image>b<|endofchunk|>"


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        read(ANY, json_record(page([[0.5]])))
    assert read(BEST, json_record(page([[0.5]]))).images == (RED,)


def test_a_file_that_is_named_often_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(RED)
    reads: list[Any] = []
    local = "flamboyance.data.formats.fields._local"
    monkeypatch.setattr(local, lambda *given: reads.append(given) or RED)
    given = page([[0.5] * 50] * 50, [RED] * 50, ["a"] * 50) | {"image_info": [{"image_name": "a.jpg"}] * 50}
    assert len(read(ANY, json_record(given, tmp_path)).images) == 50 and len(reads) == 1
    monkeypatch.setattr("flamboyance.data.formats.mmc4.FILE_LIMIT", 40 * len(RED))
    assert reason(ANY, json_record(given, tmp_path)) == "image too large"
