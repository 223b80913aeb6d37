"""OBELICS' files and img2dataset's tars -> tars that training reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from flamboyance.cli import main
from flamboyance.data.convert.obelics import convert_obelics
from flamboyance.data.documents import Record
from flamboyance.data.formats.obelics import OBELICS
from flamboyance.data.shards import records
from tests.data.files import jpeg, tar_bytes
from tests.data.records import read

pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq: Any = pytest.importorskip("pyarrow.parquet")

READ = OBELICS(shards="", batch_size=1)


def url(number: int) -> str:
    return f"https://example.org/{number}.jpg?size=large"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of pages; images 0 to 5 were asked for, 3 could not be downloaded and 4 is damaged."""
    pages = [
        ([url(0), None, url(1), None], [None, "zero", None, "one"]),
        ([None, url(3), None], ["before", None, "three"]),
        ([url(2), url(2), None, url(3), url(4)], [None, None, "two", None, None]),
        ([None], ["no image"]),
        ([url(5), None], [None, "five"]),
    ]
    strings = pa.list_(pa.string())
    schema = pa.schema([("images", strings), ("metadata", pa.string()), ("texts", strings)])
    for name, some in (("train-00000-of-00002-e6", pages[:3]), ("train-00001-of-00002-3a", pages[3:])):
        images, texts = zip(*some, strict=True)
        columns = {"images": list(images), "metadata": ["[]"] * len(some), "texts": list(texts)}
        pq.write_table(pa.table(columns, schema), tmp_path / f"{name}.parquet")
    (tmp_path / "downloaded").mkdir()
    for shard, numbers in enumerate(((0, 1, 2), (4, 5))):
        files = []
        for number in numbers:
            content = jpeg(number) if number != 4 else jpeg(4)[:300]
            about = {"url": url(number), "key": f"{number:09d}", "status": "success"}
            files += [(f"{number:09d}.jpg", content), (f"{number:09d}.json", json.dumps(about).encode())]
        (tmp_path / "downloaded" / f"{shard:05d}.tar").write_bytes(tar_bytes(files))
    return tmp_path


def documents(tars: Path) -> list[tuple[str, tuple[bytes, ...]]]:
    found = [one for tar in sorted(tars.glob("*.tar")) for one in records(str(tar))]
    return [(made.text, made.images) for one in found if isinstance(one, Record) for made in [read(READ, one)]]


def test_pages_get_their_images(folder: Path) -> None:
    counts = convert_obelics(str(folder / "*.parquet"), str(folder / "downloaded" / "*.tar"), folder / "tars")
    assert documents(folder / "tars") == [
        ("<image>zero<|endofchunk|><image>one<|endofchunk|>", (jpeg(0), jpeg(1))),
        ("<image><|endofchunk|><image>two<|endofchunk|>", (jpeg(2), jpeg(2))),
        ("<image>five<|endofchunk|>", (jpeg(5),)),
    ]
    assert dict(counts) == {
        "images downloaded": 5,
        "pages": 5,
        "images": 4,
        "images missing": 2,
        "images damaged": 1,
        "pages without images": 2,
        "tars written": 2,
    }
    [first, *_] = records(str(folder / "tars" / "train-00000-of-00002-e6-00000.tar"))
    assert isinstance(first, Record) and first.key == "train-00000-of-00002-e6-000000"
    assert json.loads(first.fields["json"])["metadata"] == "[]", "other columns are kept"


def test_a_stopped_conversion_goes_on(folder: Path) -> None:
    given = str(folder / "*.parquet"), str(folder / "downloaded" / "*.tar"), folder / "tars"
    convert_obelics(*given, per_shard=2)
    tars = sorted((folder / "tars").glob("*.tar"))
    contents = [tar.read_bytes() for tar in tars]
    assert len(tars) == 3
    tars[1].unlink()
    counts = convert_obelics(*given, per_shard=2)
    assert (counts["tars already there"], counts["tars written"]) == (2, 1)
    assert [tar.read_bytes() for tar in tars] == contents
    with pytest.raises(ValueError, match="per_shard=2 instead of 3"):
        convert_obelics(*given, per_shard=3)


def test_damaged_files_cost_what_they_hit(folder: Path) -> None:
    tar = folder / "downloaded" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    (folder / "downloaded" / "00009.tar").write_bytes(b"no tar" * 500)
    (folder / "x.parquet").write_bytes(b"no parquet")
    counts = convert_obelics(str(folder / "*.parquet"), str(folder / "downloaded" / "*.tar"), folder / "tars")
    assert counts["tars of images damaged"] == 1 and counts["pages damaged"] == 1
    assert [images for _, images in documents(folder / "tars")][-1] == (jpeg(5),)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [str(path) for path in sorted(folder.glob("*.parquet"))]
    assert main(["convert", "obelics", *pages, f"{folder}/downloaded/{{00000..00001}}.tar", str(folder / "tars")]) == 0
    told = capsys.readouterr().out
    assert "5  pages" in told and "2  tars written" in told
    assert main(["data", str(folder / "tars" / "*.tar"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "obelics"
    assert main(["convert", "obelics", pages[0], str(folder / "gone" / "*.tar"), str(folder / "tars")]) == 2
    assert "img2dataset's tars" in capsys.readouterr().err
