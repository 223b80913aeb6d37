"""The mini's shards: public formats, read here with the standard library and Pillow alone; the same bytes each time."""

import base64
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamboyance.mini import shards as mini_shards
from flamboyance.mini.world.words import build_tokenizer

DOCUMENTS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shards")
    mini_shards.write(made, DOCUMENTS, 0)
    return made


def stored(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Records of a set: content by extension."""
    for file in sorted(folder.glob(f"{name}-*.tar")):
        records: dict[str, dict[str, bytes]] = {}
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                assert content
                records.setdefault(key, {})[extension] = content.read()
        yield from records.values()


def check_image(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")
        image.load()


def check_text(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids
    assert re.fullmatch(r"Output:[a-z0-9, ]+|Question:[a-z0-9 -]+\? Short answer:[a-z0-9]+", text), text


def test_pairs_are_as_img2dataset_writes_them(folder: Path) -> None:
    records = list(stored(folder, "pairs"))
    assert len(records) == DOCUMENTS
    for record in records:
        assert record.keys() == {"jpg", "txt", "json"}
        check_image(record["jpg"])
        check_text(record["txt"].decode())
        assert json.loads(record["json"])["caption"] == record["txt"].decode()
        assert re.fullmatch(r"Output:(a (small|large) \w+ \w+|the digit \d)", record["txt"].decode())


def test_documents_are_as_mmc4s(folder: Path) -> None:
    records = [json.loads(record["json"]) for record in stored(folder, "documents")]
    assert len(records) == DOCUMENTS
    counts = set()
    for page in records:
        texts, images, similar = page["text_list"], page["image_info"], page["similarity_matrix"]
        assert len(similar) == len(images) and {len(row) for row in similar} == {len(texts)}
        for place, image in enumerate(images):
            check_image(base64.b64decode(image["image_base64"], validate=True))
            assert max(similar[place]) == similar[place][image["matched_text_index"]] == image["matched_sim"] >= 0.24
        for text in texts:
            check_text(text)
        counts.add(len(images))
    assert counts == {1, 2, 3, 4, 5}


def test_sequences_are_as_chatgpts(folder: Path) -> None:
    records = [json.loads(record["json"]) for record in stored(folder, "sequences")]
    assert len(records) == DOCUMENTS // 2
    for content in records:
        assert content["is_gpt"] is True
        places = re.findall(r"_!_IMAGE\d+_!_", content["example"])
        assert places == list(content["image_map"]) and 3 <= len(places) <= 9
        words = re.split(r"_!_IMAGE\d+_!_", content["example"])[1:]
        assert len(set(words)) <= 2
        for place, text in zip(places, words, strict=True):
            check_image(base64.b64decode(content["image_map"][place]["base64_image"], validate=True))
            check_text(text)


def test_only_training_pictures_and_words_are_in_them(folder: Path) -> None:
    from flamboyance.mini.world.words import made_up_words

    held_out = set(made_up_words("test"))
    for record in stored(folder, "sequences"):
        assert not held_out & set(re.findall(r"Output:(\w+?)(?=_!_|$)", json.loads(record["json"])["example"]))


def test_the_same_bytes_each_time_and_others_for_another_seed(folder: Path, tmp_path: Path) -> None:
    mini_shards.write(tmp_path / "again", DOCUMENTS, 0)
    mini_shards.write(tmp_path / "other", DOCUMENTS, 1)
    for file in sorted(folder.glob("*.tar")):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "other" / file.name).read_bytes() != file.read_bytes()


def test_a_stopped_writing_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, written = mini_shards.sequence, []

    def stopping(*arguments: Any) -> dict[str, bytes]:
        written.append(1)
        if len(written) == 20:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(mini_shards, "sequence", stopping)
    with pytest.raises(KeyboardInterrupt):
        mini_shards.write(tmp_path, DOCUMENTS, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["documents-00000.tar", "made.json", "pairs-00000.tar"]
    monkeypatch.setattr(mini_shards, "sequence", whole)
    before = (tmp_path / "pairs-00000.tar").stat().st_mtime_ns
    mini_shards.write(tmp_path, DOCUMENTS, 0)
    assert (tmp_path / "pairs-00000.tar").stat().st_mtime_ns == before
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_other_numbers_are_refused_in_a_folder_that_has_some(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"documents={DOCUMENTS}.*80"):
        mini_shards.write(folder, 80, 0)
    with pytest.raises(ValueError, match="2 or more"):
        mini_shards.sets(1)


def test_shards_hold_a_few_hundred_records_each(tmp_path: Path) -> None:
    made = mini_shards.sets(1000)["sequences"]
    assert [file.name for file in made.files(tmp_path)] == ["sequences-00000.tar", "sequences-00001.tar"]
    assert made.pattern("x") == "x/sequences-{00000..00001}.tar"
