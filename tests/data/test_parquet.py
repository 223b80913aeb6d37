"""Parquet files as shards: rows become records, damage costs what it hits, and a run resumes among the rows."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flamboyance import FlamingoProcessor
from flamboyance.data.documents import Record
from flamboyance.data.formats.obelics import OBELICS
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.loader import Loader, merge_states
from flamboyance.data.shards import expand, records
from flamboyance.data.survey import format_of
from flamboyance.data.tar import Damage
from flamboyance.images import ImageProcessor
from tests.data.records import BLUE, GREEN, RED, read, reason
from tests.tiny import tiny_tokenizer

pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq: Any = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if pa else None


def write(path: Path, columns: dict[str, Any], schema: Any = None, rows: int = 2) -> Path:
    """`rows`: of a group."""
    pq.write_table(pa.table(columns, schema), path, row_group_size=rows)
    return path


def rows_of(path: Path | str) -> list[Any]:
    """The values and the files of each record, or the reason of a damage."""
    return [
        item.reason if isinstance(item, Damage) else (json.loads(item.fields.pop("json")), item.fields)
        for item in records(str(path))
    ]


def test_values_become_json_and_bytes_files(tmp_path: Path) -> None:
    image, number = {"bytes": RED, "path": "red.jpg"}, [1.5, None]
    schema = pa.schema(
        [
            ("image", IMAGE),
            ("Images", pa.list_(IMAGE)),
            ("jpg", pa.binary()),
            ("n", pa.float64()),
            ("text", pa.string()),
        ]
    )
    columns = {
        "image": [image, {"bytes": None, "path": "there.png"}],
        "Images": [[{"bytes": GREEN, "path": None}, None], None],
        "jpg": [BLUE, None],
        "n": number,
        "text": ["grün", None],
    }
    first, second = rows_of(write(tmp_path / "a.parquet", columns, schema))
    assert first[0] == {"image": "image", "Images": ["Images.0", None], "jpg": "jpg", "n": 1.5, "text": "grün"}
    assert first[1] == {"image": RED, "images.0": GREEN, "jpg": BLUE}
    assert second == ({"image": "there.png", "Images": None, "jpg": None, "n": None, "text": None}, {})
    (record, _) = records(str(tmp_path / "a.parquet"))
    assert isinstance(record, Record) and record.key == f"{tmp_path}/a.parquet:0" and record.folder == str(tmp_path)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()] if pa else [])
def test_texts_may_be_stored_as_bytes(tmp_path: Path, kind: Any) -> None:
    columns = {
        "image": pa.array([RED, RED], pa.binary()),
        "Text": pa.array(["grün".encode(), b"gr\xfcn"], kind),
        "notes": pa.array([[{"by": b"me"}], None], pa.list_(pa.struct([("by", kind)]))),
    }
    path = write(tmp_path / "own.parquet", columns)
    first, second = rows_of(path)
    assert first == ({"image": "image", "Text": "grün", "notes": [{"by": "me"}]}, {"image": RED})
    assert second == "text is not UTF-8"
    [one] = [item for item in records(str(path)) if isinstance(item, Record)]
    assert read(UserData(shards="", batch_size=1), one).text == "<image>Output:grün<|endofchunk|>"


def test_captions_and_pages_of_bytes(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.parquet", {"jpg": [BLUE], "caption": pa.array([b"a cat"], pa.binary())})
    [record] = records(str(pairs))
    assert read(Pairs(shards="", batch_size=1), record).text == "<image>a cat<|endofchunk|>"
    page = {"images": pa.array([[RED, None]]), "texts": pa.array([[None, b"a dog"]], pa.list_(pa.binary()))}
    [record] = records(str(write(tmp_path / "page.parquet", page)))
    assert read(OBELICS(shards="", batch_size=1), record).text == "<image>a dog<|endofchunk|>"


def test_images_of_datasets_and_of_img2dataset(tmp_path: Path) -> None:
    """What `Dataset.to_parquet` writes for images, and what img2dataset writes with output_format=parquet."""
    datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")
    (tmp_path / "green.jpg").write_bytes(GREEN)
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    given = {"image": [{"bytes": RED, "path": None}, str(tmp_path / "green.jpg")], "text": ["red", "green"]}
    datasets.Dataset.from_dict(given, features).to_parquet(tmp_path / "hf.parquet")
    own = UserData(shards=str(tmp_path / "hf.parquet"), batch_size=1, outside=True)
    found = [read(own, item) for item in records(str(tmp_path / "hf.parquet")) if isinstance(item, Record)]
    assert [document.images for document in found] == [(RED,), (GREEN,)]
    assert found[0].text == "<image>Output:red<|endofchunk|>"
    columns = {"url": ["https://a/b.jpg"] * 2, "key": ["0", "1"], "caption": ["a cat", None], "jpg": [BLUE, None]}
    path = write(tmp_path / "pairs.parquet", columns)
    pairs = Pairs(shards=str(path), batch_size=1)
    [first, second] = [item for item in records(str(path)) if isinstance(item, Record)]
    assert read(pairs, first).text == "<image>a cat<|endofchunk|>" and read(pairs, first).images == (BLUE,)
    with pytest.raises(Exception, match="no image"):
        read(pairs, second)
    assert format_of(str(path)) == "own" and format_of(str(tmp_path / "hf.parquet")) == "own"


def test_damage_costs_the_rows_that_it_hits(tmp_path: Path) -> None:
    columns = {
        "text": [f"text {number}" for number in range(6)],
        "image": [bytes([number]) * 500 for number in range(6)],
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2, compression="zstd", use_dictionary=False)
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.data_page_offset
    damaged = tmp_path / "b.parquet"
    damaged.write_bytes(
        whole[:start] + b"\xff" * column.total_compressed_size + whole[start + column.total_compressed_size :]
    )
    found = rows_of(damaged)
    assert [item if isinstance(item, str) else item[0]["text"] for item in found] == [
        *("text 0", "text 1", "damaged parquet", "text 4", "text 5")
    ]
    keys = [item.key.rpartition(":")[2] for item in records(str(damaged)) if isinstance(item, Record)]
    assert keys == ["0", "1", "4", "5"]
    for name, content, damage in (
        ("truncated", whole[: len(whole) // 2], "damaged parquet"),
        ("other", b"no parquet at all" * 9, "damaged parquet"),
        ("nothing", b"", "damaged parquet"),
    ):
        (tmp_path / f"{name}.parquet").write_bytes(content)
        assert rows_of(tmp_path / f"{name}.parquet") == [damage]
    write(tmp_path / "empty.parquet", {"text": pa.array([], pa.string())})
    assert rows_of(tmp_path / "empty.parquet") == ["empty shard"]
    assert rows_of(tmp_path / "gone.parquet") == ["shard cannot be read: FileNotFoundError"]


def test_a_record_that_is_too_large_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamboyance.data.parquet.MEMBER_LIMIT", 1 << 20)
    write(tmp_path / "a.parquet", {"image": [bytes(2 << 20), RED]})
    assert rows_of(tmp_path / "a.parquet") == ["record larger than 1 MB", ({"image": "image"}, {"image": RED})]


def test_remote_files(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    write(tmp_path / "a.parquet", {"image": [RED, GREEN], "text": ["red", "green"]})
    with fsspec.open("memory://shards/a.parquet", "wb") as file:
        file.write((tmp_path / "a.parquet").read_bytes())
    assert expand("memory://shards/*.parquet") == ["memory:///shards/a.parquet"]
    assert [row[0]["text"] for row in rows_of("memory:///shards/a.parquet")] == ["red", "green"]


def test_a_run_resumes_among_the_rows(tmp_path: Path) -> None:
    words = "a red blue green square circle cat dog yes no".split()
    for number in range(2):
        texts = [f"{words[number]} {words[row % 10]}" for row in range(30)]
        write(tmp_path / f"{number}.parquet", {"image": [RED] * 30, "text": texts}, rows=7)
    source = {"own": UserData(shards=str(tmp_path / "*.parquet"), batch_size=3, shuffle=8)}
    processor = FlamingoProcessor(ImageProcessor.clip(16), tiny_tokenizer())
    loader = Loader(source, processor, seed=0, workers=0)
    for _ in range(4):
        next(loader)
    state = json.loads(json.dumps(merge_states([loader.state()])))
    again = Loader(source, processor, seed=0, workers=0, state=state)
    for _ in range(8):
        assert next(loader)["own"].input_ids.tolist() == next(again)["own"].input_ids.tolist()


def test_without_pyarrow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"a\.parquet' is read by pyarrow: pip install 'flamboyance\[datasets\]'"):
        expand(str(tmp_path / "*.parquet"))


@pytest.mark.parametrize("label", ["label", "Label"])
def test_numbers_of_classes_are_their_names(label: str, tmp_path: Path) -> None:
    """As the evaluation reads the same data set. -1 is no class."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog"]), "n": datasets.Value("int64")}
    )
    images = [{"bytes": content, "path": None} for content in (RED, GREEN, BLUE)]
    rows = datasets.Dataset.from_dict({"image": images, label: [1, 0, -1], "n": [1, 0, -1]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert [values[label] for values, _ in rows_of(tmp_path / "a.parquet")] == ["dog", "cat", None]
    assert [values["n"] for values, _ in rows_of(tmp_path / "a.parquet")] == [1, 0, -1]
    source = UserData(shards="", batch_size=1)
    first, second, third = records(str(tmp_path / "a.parquet"))
    assert [read(source, one).text for one in (first, second)] == [
        "<image>Output:dog<|endofchunk|>",
        "<image>Output:cat<|endofchunk|>",
    ]
    assert reason(source, third) == "no text"


@pytest.mark.parametrize("note", [b"{}", b"[]", b"x", b'{"info": {"features": {"n": {"_type": "ClassLabel"}}}}'])
def test_notes_of_other_writers_tell_no_classes(note: bytes, tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64())], metadata={b"huggingface": note})
    assert rows_of(write(tmp_path / "a.parquet", {"n": [1]}, schema)) == [({"n": 1}, {})]


def test_dates_that_python_does_not_have_are_null(tmp_path: Path) -> None:
    """Milliseconds that were stored as seconds, and a time zone of no place."""
    dates = [0, 10**15, None]
    schema = pa.schema([(name, pa.timestamp("s", zone)) for name, zone in (("when", None), ("there", "Foo/Bar"))])
    schema = schema.append(pa.field("text", pa.string()))
    file = write(tmp_path / "a.parquet", {"when": dates, "there": dates, "text": ["a", "b", "c"]}, schema)
    found = [values for values, _ in rows_of(file)]
    assert [one["text"] for one in found] == ["a", "b", "c"]
    assert [one["when"] for one in found] == ["1970-01-01 00:00:00", None, None] and found[0]["there"] is None
