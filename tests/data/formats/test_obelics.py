"""OBELICS: pages of images and texts, in the published layout and with the images in it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamboyance import FlamingoProcessor
from flamboyance.cli import main
from flamboyance.data.convert.folder import convert_folder
from flamboyance.data.documents import Record
from flamboyance.data.examples import WorkerProcessor, make_example
from flamboyance.data.formats.obelics import OBELICS
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.loader import Loader
from flamboyance.data.shards import records
from flamboyance.data.survey import format_of, survey
from flamboyance.images import ImageProcessor
from tests.data.files import tar_bytes
from tests.data.records import BLUE, GREEN, RED, in_base64, json_record, read, reason
from tests.tiny import tiny_tokenizer

ANY = OBELICS(shards="", batch_size=1, flip=0.0)
URL = "https://example.org/a.jpg"


def page(images: list[Any], texts: list[Any]) -> dict[str, Any]:
    """With the two columns of notes that the published files have."""
    notes = [None if image is None else {"src": URL, "alt_text": "an image"} for image in images]
    general = json.dumps({"url": "https://example.org", "warc_filename": "x"})
    return {"images": images, "texts": texts, "metadata": json.dumps(notes), "general_metadata": general}


def test_images_and_texts_alternate() -> None:
    given = page(["0.jpg", None, "1.jpg", None, None], [None, "A red one.", None, "A green one. ", "The end."])
    record = json_record(given, **{"0.jpg": RED, "1.jpg": GREEN})
    document = read(ANY, record)
    assert document.text == ("<image>A red one.<|endofchunk|><image>A green one. \n\nThe end.<|endofchunk|>")
    assert document.images == (RED, GREEN) and document.learned == "after_image"
    before = page([None, "0.jpg", "1.jpg", None], ["First, <image>.", None, None, "Both.<|endofchunk|>"])
    document = read(ANY, json_record(before, **{"0.jpg": RED, "1.jpg": GREEN}))
    assert document.text == "First, .<image><|endofchunk|><image>Both.<|endofchunk|>"


def test_images_may_be_in_the_page() -> None:
    content = in_base64(RED)
    for image in (content, f"data:image/jpeg;base64,{content}"):
        given = page([image, None, "0.jpg", None], [None, "one", None, "two"])
        for source in (ANY, UserData(shards="", batch_size=1)):
            document = read(source, json_record(given, **{"0.jpg": GREEN}))
            assert document.images == (RED, GREEN)
            assert document.text == "<image>one<|endofchunk|><image>two<|endofchunk|>"


@pytest.mark.parametrize("texts", [[{"user": "What?"}], [1], [["one"]]])
def test_texts_that_are_none_are_no_page(texts: list[Any]) -> None:
    record = json_record({"images": ["0.jpg"], "texts": texts}, **{"0.jpg": RED})
    assert reason(ANY, record) == "no images and texts of equal length"
    assert reason(UserData(shards="", batch_size=1), record) == "no text"


def test_images_that_were_never_fetched_are_passed_over(tmp_path: Path) -> None:
    given = page([URL, None, "0.jpg", None, "gone.jpg", None], [None, "one", None, "two", None, "three"])
    document = read(ANY, json_record(given, **{"0.jpg": RED}))
    assert document.text == "one<image>two\n\nthree<|endofchunk|>" and document.images == (RED,)
    assert reason(ANY, json_record(page([URL, None], [None, "one"]))) == "images are URLs, which are not fetched"
    assert reason(ANY, json_record(page(["gone.jpg", None], [None, "one"]))) == "no image available"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jpg").write_bytes(BLUE)
    (tmp_path / "secret.jpg").write_bytes(BLUE)
    assert read(ANY, json_record(page(["a.jpg", None], [None, "one"]), tmp_path / "data")).images == (BLUE,)
    outside = json_record(page(["../secret.jpg", None], [None, "one"]), tmp_path / "data")
    assert reason(ANY, outside) == "image outside the folder"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"images": None}, "no images and texts of equal length"),
        ({"texts": "abc"}, "no images and texts of equal length"),
        ({"texts": ["a"]}, "no images and texts of equal length"),
        ({"images": [], "texts": []}, "no image available"),
        ({"images": [None, 3], "texts": ["a", None]}, "no image available"),
        ({"texts": [None, "a" * (1 << 20 | 1)]}, "text too long"),
    ],
)
def test_what_cannot_be_used_is_rejected(change: dict[str, Any], why: str) -> None:
    given = page(["0.jpg", None], [None, "a cat"]) | change
    assert reason(ANY, json_record(given, **{"0.jpg": RED})) == why


def test_a_file_that_is_named_often_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(RED)
    reads: list[Any] = []
    monkeypatch.setattr("flamboyance.data.formats.fields._local", lambda *given: reads.append(given) or RED)
    given = page(["a.jpg"] * 50, [None] * 50)
    assert len(read(ANY, json_record(given, tmp_path)).images) == 50 and len(reads) == 1
    monkeypatch.setattr("flamboyance.data.formats.obelics.FILE_LIMIT", 40 * len(RED))
    assert reason(ANY, json_record(given, tmp_path)) == "image too large"


def test_users_files_may_have_the_form_too(tmp_path: Path) -> None:
    """In `train new`, `train finetune` and `convert folder`."""
    own = UserData(shards="", batch_size=1)
    given = page(["0.jpg", None, "1.jpg", None], [None, "a red cat", None, "a green dog"])
    record = json_record(given, **{"0.jpg": RED, "1.jpg": GREEN})
    assert read(own, record) == read(ANY, record)
    for name, content in (("0.jpg", RED), ("1.jpg", GREEN)):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "pages.jsonl").write_text(json.dumps(given) + "\n", encoding="utf-8")
    assert convert_folder(tmp_path / "pages.jsonl", tmp_path / "tars")["records"] == 1
    [made] = records(str(tmp_path / "tars" / "00000.tar"))
    assert isinstance(made, Record) and read(own, made) == read(ANY, record)


# Files ----------------------------------------------------------------------------------------------------------------

WORDS = "a red blue green square circle cat dog yes no".split()
WORKER = WorkerProcessor.of(FlamingoProcessor(ImageProcessor.clip(16), tiny_tokenizer()))


def pages(folder: Path, count: int = 12) -> tuple[list[list[int]], dict[str, Any]]:
    """The numbers of words of the texts of each page, all of which follow an image; and the columns. Every fourth page
    has URLs alone."""
    rng = np.random.default_rng(0)
    lengths, images, texts = [], [], []
    for number in range(count):
        counts = rng.integers(1, 7, rng.integers(1, 4)).tolist()
        shown: list[Any] = []
        for place, _ in enumerate(counts):
            path = folder / f"{number}.{place}.png"
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(path)
            content = path.read_bytes()
            shown += [{"bytes": None, "path": URL} if number % 4 == 3 else {"bytes": content, "path": None}, None]
            path.unlink()
        images.append(shown)
        texts.append([text for length in counts for text in (None, " ".join(rng.choice(WORDS, length)))])
        lengths.append(counts)
    return lengths, {"images": images, "texts": texts, "metadata": ["[]"] * count, "general_metadata": ["{}"] * count}


def test_parquet_with_images_is_trained_on_and_surveyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")
    lengths, columns = pages(tmp_path)
    strings = datasets.Value("string")
    image = {"bytes": datasets.Value("binary"), "path": strings}
    features = {"images": datasets.List(image), "texts": datasets.List(strings)}
    features |= {"metadata": strings, "general_metadata": strings}
    data = datasets.Dataset.from_dict(columns, datasets.Features(features))
    data.to_parquet(tmp_path / "pages.parquet")
    source = dataclasses.replace(ANY, shards=str(tmp_path / "*.parquet"), max_images=6)
    assert format_of(source.shards) == "obelics"
    found = survey(source, WORKER)
    good = [counts for number, counts in enumerate(lengths) if number % 4 != 3]
    assert (found.records, found.documents) == (12, 9)
    assert dict(found.drops) == {"images are URLs, which are not fetched": 3}
    assert found.images == [len(counts) for counts in good]
    # `<image>`, its words and `<|endofchunk|>`, and one end of text
    assert found.tokens == [sum(count + 2 for count in counts) + 1 for counts in good]
    processor = FlamingoProcessor(ImageProcessor.clip(16), tiny_tokenizer())
    loader = Loader({"obelics": source}, processor, seed=0, workers=0)
    counts = [next(loader)["obelics"].media_counts[0] for _ in range(10)]  # the last is of the second epoch
    assert sorted(counts[:9]) == sorted(found.images)
    assert loader.drops["obelics", "images are URLs, which are not fetched"] >= 3
    assert main(["data", str(tmp_path / "pages.parquet"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "obelics" and told["documents"] == 9 and told["images"]["total"] == sum(map(len, good))


def test_the_published_layout_is_understood(tmp_path: Path) -> None:
    """Columns as on the hub: URLs, and null where the other list has a value."""
    pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq: Any = pytest.importorskip("pyarrow.parquet")
    strings = pa.list_(pa.string())
    schema = pa.schema(
        [("images", strings), ("metadata", pa.string()), ("general_metadata", pa.string()), ("texts", strings)]
    )
    given = page([URL, None], [None, "a cat"])
    pq.write_table(pa.table({name: [given[name]] for name in schema.names}, schema), tmp_path / "train.parquet")
    found = survey(dataclasses.replace(ANY, shards=str(tmp_path / "train.parquet")), WORKER)
    assert format_of(str(tmp_path / "train.parquet")) == "obelics"
    assert dict(found.drops) == {"images are URLs, which are not fetched": 1}
    # The same with the images in a tar: what `convert` of another kind of download could write.
    (tmp_path / "0.tar").write_bytes(
        tar_bytes([("0.json", json.dumps(page(["a.jpg", None], [None, "a cat"])).encode()), ("0.a.jpg", RED)])
    )
    source = dataclasses.replace(ANY, shards=str(tmp_path / "0.tar"))
    [record] = records(source.shards)
    assert isinstance(record, Record)
    example = make_example(read(source, record), source, WORKER, np.random.default_rng(0))
    assert format_of(source.shards) == "obelics" and len(example.images) == 1
