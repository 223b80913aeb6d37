"""Datasets as they are published -> tars, and what the sources read of them."""

import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamboyance.cli import main
from flamboyance.data.convert.folder import convert_folder
from flamboyance.data.convert.mmc4 import convert_mmc4
from flamboyance.data.convert.shard_writer import write_shard
from flamboyance.data.documents import Document, Record, Source
from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.shards import expand, records
from tests.data.formats.test_conversations import FORMS
from tests.data.records import BLUE, GREEN, RED, WHITE, in_base64, jpeg
from tests.videos.make import grey, write_video

READ_MMC4 = MMC4(shards="", batch_size=1, min_image_bytes=0)


def content(tar: Path) -> dict[str, bytes]:
    """Read by Python's tarfile, as others will."""
    with tarfile.open(tar) as file:
        return {member.name: file.extractfile(member).read() for member in file}  # ty: ignore[unresolved-attribute]


def documents(source: Source, *shards: Path) -> list[Document]:
    found = [one for shard in shards for one in records(str(shard))]
    assert all(isinstance(one, Record) for one in found)
    return [source.document(one, np.random.default_rng(0)) for one in found]  # ty: ignore[invalid-argument-type]


# ---- tars -----------------------------------------------------------------------------------------------------------


def test_a_tar_of_records(tmp_path: Path) -> None:
    given = [("a/0", {"jpg": RED, "txt": b"red"}), ("b", {"json": b"{}", "Two.jpg": GREEN})]
    assert write_shard(tmp_path / "0.tar", given) == 2
    assert content(tmp_path / "0.tar") == {"a/0.jpg": RED, "a/0.txt": b"red", "b.json": b"{}", "b.Two.jpg": GREEN}
    assert list(records(str(tmp_path / "0.tar"))) == [
        Record("a/0", {"jpg": RED, "txt": b"red"}),
        Record("b", {"json": b"{}", "two.jpg": GREEN}),
    ]
    write_shard(tmp_path / "1.tar", given)
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["0.tar", "1.tar"]


def test_a_tar_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"the one before")

    def failing() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield "a", {"txt": b"a"}
        assert (tmp_path / "0.tar").read_bytes() == b"the one before"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "0.tar", failing())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"0.tar": b"the one before"}
    assert write_shard(tmp_path / "1.tar", []) == 0
    assert not (tmp_path / "1.tar").exists()


@pytest.mark.parametrize("name", ["rows.CSV", "rows.tsv"])
def test_a_table_as_tars(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(RED)
    separator = "\t" if name == "rows.tsv" else ";"
    lines = ["image,question,answer", "a.jpg,what?,Ein Bär.", "gone.jpg,what?,b"]
    (tmp_path / name).write_text("\n".join(lines).replace(",", separator), encoding="utf-8")
    counts = convert_folder(tmp_path / name, tmp_path / "tars")
    assert counts == {"records": 1, "left out: missing image": 1, "tars written": 1}
    (found,) = documents(UserData(shards="", batch_size=1), tmp_path / "tars" / "00000.tar")
    assert found.text == "<image>Question:what? Short answer:Ein Bär.<|endofchunk|>" and found.images == (RED,)


@pytest.mark.parametrize("record", [("a.b", {"txt": b""}), ("x/", {"txt": b""}), ("a", {})])
def test_records_that_would_be_read_as_others(tmp_path: Path, record: Any) -> None:
    with pytest.raises(ValueError, match="invalid record"):
        write_shard(tmp_path / "0.tar", [record])


# ---- MMC4 -----------------------------------------------------------------------------------------------------------


def page(*names: str | None, text: str = "Ein Bär.") -> dict:
    about = [{"image_name": name, "raw_url": "https://example.org"} if name else {} for name in names]
    matrix = np.where(np.eye(len(names)), 0.5, 0.0).tolist()
    return {"text_list": [f"{text} {i}" for i in range(len(names))], "image_info": about, "similarity_matrix": matrix}


def zipped(path: Path, *lines: dict | bytes) -> Path:
    whole = b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(path.name.removesuffix(".zip"), whole)
    return path


@pytest.fixture
def mmc4(tmp_path: Path) -> Path:
    """Two zips named as the published ones, whose images stand as the original converter wants them."""
    zipped(
        tmp_path / "docs_no_face_shard_3_v2.jsonl.zip",
        page("Aa.jpg", "gone.jpg"),
        b'{"image_info": [',
        page("gone.jpg"),
        page("bb.jpg", "cc.png"),
    )
    zipped(tmp_path / "docs_no_face_shard_7_v2.jsonl.zip", page("dd.jpg"))
    for name, image in {"3/Aa.jpg": RED, "3/bb.jpg": GREEN, "3/cc.png": BLUE, "7/dd.jpg": WHITE}.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(image)
    return tmp_path


def converted(mmc4: Path, **options: Any) -> Counter[str]:
    return convert_mmc4(str(mmc4 / "docs_no_face_shard_{3..7}_v2.jsonl.zip"), mmc4 / "images", mmc4 / "tars", **options)


def test_mmc4_becomes_tars(mmc4: Path) -> None:
    counts = converted(mmc4)
    assert counts == {
        "documents": 5,
        "documents damaged": 1,
        "documents without images": 1,
        "images": 4,
        "images missing": 2,
        "tars written": 2,
        "zips missing": 3,  # the range names 3 to 7
    }
    tars = sorted((mmc4 / "tars").glob("*.tar"))
    assert [tar.name for tar in tars] == ["docs_no_face_shard_3_v2-00000.tar", "docs_no_face_shard_7_v2-00000.tar"]
    files = content(tars[0])
    assert files["docs_no_face_shard_3_v2-000000.aa.jpg"] == RED  # as it was, byte for byte
    assert json.loads(files["docs_no_face_shard_3_v2-000000.json"]) == page("Aa.jpg", "gone.jpg")
    made = documents(READ_MMC4, *tars)
    assert [one.images for one in made] == [(RED,), (GREEN, BLUE), (WHITE,)]
    assert made[0].text == "<image>Ein Bär. 0 Ein Bär. 1<|endofchunk|>"


def test_mmc4_as_the_original_trainer_reads_it(mmc4: Path) -> None:
    converted(mmc4, inside=True)
    tars = sorted((mmc4 / "tars").glob("*.tar"))
    files = content(tars[0])
    assert all(name.endswith(".json") for name in files)
    (first, second) = (json.loads(one)["image_info"] for one in files.values())
    assert first[0]["image_base64"] == in_base64(RED) and "image_base64" not in first[1]
    assert [one["image_base64"] for one in second] == [in_base64(GREEN), in_base64(BLUE)]
    assert [one.images for one in documents(READ_MMC4, *tars)] == [(RED,), (GREEN, BLUE), (WHITE,)]


def test_a_stopped_conversion_goes_on(mmc4: Path) -> None:
    zipped(mmc4 / "docs_no_face_shard_7_v2.jsonl.zip", *[page("dd.jpg", text=str(i)) for i in range(5)])
    converted(mmc4, per_shard=2)
    tars = sorted((mmc4 / "tars").glob("*_7_*.tar"))
    assert [len(content(tar)) for tar in tars] == [4, 4, 2]
    whole = {tar.name: tar.read_bytes() for tar in (mmc4 / "tars").glob("*.tar")}
    tars[1].unlink()
    tars[0].write_bytes(b"left alone")
    counts = converted(mmc4, per_shard=2)
    assert counts["tars written"] == 1 and counts["tars already there"] == len(whole) - 1
    assert counts["documents"] == 2
    assert tars[1].read_bytes() == whole[tars[1].name]
    assert tars[0].read_bytes() == b"left alone"
    with pytest.raises(ValueError, match=r"per_shard=2.*3"):
        converted(mmc4, per_shard=3)


@pytest.mark.slow
def test_two_processes_write_the_same(mmc4: Path) -> None:
    counts = converted(mmc4)
    whole = {tar.name: tar.read_bytes() for tar in (mmc4 / "tars").glob("*.tar")}
    (mmc4 / "tars").rename(mmc4 / "before")
    assert converted(mmc4, workers=2) == counts
    assert whole == {tar.name: tar.read_bytes() for tar in (mmc4 / "tars").glob("*.tar")}


def test_damaged_images_are_left_out(mmc4: Path) -> None:
    (mmc4 / "images/3/bb.jpg").write_bytes(b"<html>not found</html>")
    (mmc4 / "images/3/cc.png").write_bytes(jpeg()[:-200])
    counts = converted(mmc4)
    assert counts["images damaged"] == 2 and counts["images"] == 2
    assert counts["documents without images"] == 2
    (mmc4 / "tars").rename(mmc4 / "before")
    assert converted(mmc4, check=False)["images"] == 4


def test_zips_that_are_damaged_or_missing(mmc4: Path) -> None:
    whole = zipped(mmc4 / "docs_no_face_shard_5_v2.jsonl.zip", *[page("dd.jpg", text=str(n)) for n in range(99)])
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    whole.write_bytes(data)
    (mmc4 / "docs_no_face_shard_6_v2.jsonl.zip").write_bytes(b"no zip")
    counts = converted(mmc4)
    assert counts["zips missing"] == 1 and counts["zips damaged"] == 2
    assert len(list((mmc4 / "tars").glob("*.tar"))) == 2


def test_all_files_of_a_zip_are_read(mmc4: Path) -> None:
    with zipfile.ZipFile(mmc4 / "docs_no_face_shard_7_v2.jsonl.zip", "w") as file:
        for name in ("one.jsonl", "more/two.JSONL"):
            file.writestr(name, json.dumps(page("dd.jpg", text=name)))  # without a line break at its end
        file.writestr("__MACOSX/._one.jsonl", b"\0\5\x16\7")
        file.writestr("readme.txt", b"about")
    counts = convert_mmc4(str(mmc4 / "*_7_*.zip"), mmc4 / "images", mmc4 / "tars")
    assert counts == {"documents": 2, "images": 2, "tars written": 1}
    made = documents(READ_MMC4, *(mmc4 / "tars").glob("*.tar"))
    assert [one.text for one in made] == [
        "<image>one.jsonl 0<|endofchunk|>",
        "<image>more/two.JSONL 0<|endofchunk|>",
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_names_that_differ_in_case_alone(mmc4: Path, inside: bool) -> None:
    for name, image in {"7/a.png": RED, "7/A.png": BLUE}.items():
        (mmc4 / "images" / name).write_bytes(image)
    zipped(mmc4 / "docs_no_face_shard_7_v2.jsonl.zip", page("a.png", "A.png", "a.png"), page("A.png"))
    counts = convert_mmc4(str(mmc4 / "*_7_*.zip"), mmc4 / "images", mmc4 / "tars", inside=inside)
    first, second = documents(READ_MMC4, *(mmc4 / "tars").glob("*.tar"))
    assert first.images == ((RED, BLUE, RED) if inside else (RED, RED)) and second.images == (BLUE,)
    assert counts["images left out: two names that differ in case alone"] == (0 if inside else 1)


@pytest.mark.parametrize("place", ["docs_no_face_shard_7_v2/dd.jpg", "dd.jpg", "0/dd.jpg"])
def test_where_images_may_stand(mmc4: Path, place: str) -> None:
    (mmc4 / "images/7/dd.jpg").unlink()
    (mmc4 / "images" / place).parent.mkdir(exist_ok=True)
    (mmc4 / "images" / place).write_bytes(WHITE)
    counts = convert_mmc4(str(mmc4 / "*_7_*.zip"), mmc4 / "images", mmc4 / "tars")
    assert counts["images"] == 1


def test_names_that_lead_out_of_the_folder(mmc4: Path) -> None:
    (mmc4 / "secret.jpg").write_bytes(RED)
    zipped(
        mmc4 / "docs_no_face_shard_7_v2.jsonl.zip", page("../secret.jpg", str(mmc4 / "secret.jpg"), "x/../../s", None)
    )
    counts = convert_mmc4(str(mmc4 / "*_7_*.zip"), mmc4 / "images", mmc4 / "tars")
    assert counts["images missing"] == 4 and counts["images"] == 0


def test_pages_that_come_with_their_images(mmc4: Path) -> None:
    given: Any = page("x.jpg")
    given["image_info"][0]["image_base64"] = in_base64(GREEN)
    zipped(mmc4 / "docs_no_face_shard_7_v2.jsonl.zip", given)
    convert_mmc4(str(mmc4 / "*_7_*.zip"), mmc4 / "images", mmc4 / "tars")
    (made,) = documents(READ_MMC4, *(mmc4 / "tars").glob("*.tar"))
    assert made.images == (GREEN,)


def test_two_zips_of_one_name(mmc4: Path) -> None:
    (mmc4 / "more").mkdir()
    other = zipped(mmc4 / "more/docs_no_face_shard_7_v2.jsonl.zip", page("dd.jpg"))
    with pytest.raises(ValueError, match="docs_no_face_shard_7_v2"):
        convert_mmc4([str(mmc4 / other.name), str(other)], mmc4 / "images", mmc4 / "tars")


# ---- a user's own ---------------------------------------------------------------------------------------------------


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    folder = tmp_path / "captioned"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (8, 8), "green").save(folder / "b.PNG")
    (folder / "a.jpg").write_bytes(RED)
    (folder / "more/c.jpeg").write_bytes(BLUE)
    (folder / "a.txt").write_text("A red square.", encoding="utf-8")
    (folder / "b.txt").write_text("Ein grünes Quadrat.\n", encoding="utf-8")
    (folder / "more/c.json").write_text('{"question": "What colour?", "answer": "blue"}', encoding="utf-8")
    (folder / "alone.jpg").write_bytes(WHITE)
    (folder / "notes.jpg").write_text("no image", encoding="utf-8")
    (folder / "notes.txt").write_text("really", encoding="utf-8")
    return folder


def test_a_folder_becomes_tars(captioned: Path, tmp_path: Path) -> None:
    counts = convert_folder(captioned, tmp_path / "tars")
    assert counts == {"records": 3, "tars written": 1, "left out: no text": 1, "left out: damaged image": 1}
    tar = tmp_path / "tars/00000.tar"
    files = content(tar)
    green = (captioned / "b.PNG").read_bytes()
    extensions = sorted(name.partition(".")[2] for name in files)
    assert extensions == ["jpg", "jpg", "json", "png", "txt", "txt"]
    assert green in files.values()
    made = documents(UserData(shards="", batch_size=1), tar)
    assert {one.text: one.images for one in made} == {
        "<image>Output:A red square.<|endofchunk|>": (RED,),
        "<image>Output:Ein grünes Quadrat.<|endofchunk|>": (green,),
        "<image>Question:What colour? Short answer:blue<|endofchunk|>": (BLUE,),
    }
    # Those with a text can be read as pairs too.
    pairs = [one for one in records(str(tar)) if isinstance(one, Record) and "txt" in one.fields]
    texts = {Pairs(shards="", batch_size=1).document(one, np.random.default_rng(0)).text for one in pairs}
    assert texts == {"<image>A red square.<|endofchunk|>", "<image>Ein grünes Quadrat.<|endofchunk|>"}


def test_images_without_known_first_bytes_are_copied_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "in/a.tga")
    for number, (kind, row) in enumerate({"pbm": "P1 1 1 0", "pgm": "P2 1 1 9 9", "ppm": "P3 1 1 9 9 0 0"}.items()):
        (tmp_path / f"in/b{number}.{kind}").write_text(row, encoding="utf-8")
    for file in list((tmp_path / "in").iterdir()):
        file.with_suffix(".txt").write_text("red", encoding="utf-8")
    assert convert_folder(tmp_path / "in", tmp_path / "tars") == {"records": 4, "tars written": 1}
    found = content(tmp_path / "tars" / "00000.tar")
    assert [name.partition(".")[2] for name in found if "txt" not in name] == ["tga", "pbm", "pgm", "ppm"]
    assert len(documents(UserData(shards="", batch_size=1), tmp_path / "tars" / "00000.tar")) == 4


def test_videos_are_copied_too(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name, codec in (("a.mp4", "libx264"), ("b.webm", "libvpx")):
        write_video(tmp_path / "clips" / name, [grey(number) for number in range(3)], codec=codec)
        (tmp_path / "clips" / name).with_suffix(".txt").write_text("grey", encoding="utf-8")
    assert convert_folder(tmp_path / "clips", tmp_path / "tars")["records"] == 2
    found = content(tmp_path / "tars" / "00000.tar")
    assert [name.partition(".")[2] for name in found] == ["mp4", "txt", "webm", "txt"]
    assert found["000000000.mp4"] == (tmp_path / "clips" / "a.mp4").read_bytes()


def test_a_jsonl_file_becomes_tars_that_read_the_same(captioned: Path, tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "text": "A red square."},
        {"image": "more/c.jpeg", "question": "What?", "answer": "blue"},
        {"text": "One <image> red <image> blue", "images": ["a.jpg", in_base64(BLUE)]},
        {"text": "One <image> blue", "images": ["more/c.jpeg"]},
        {"image": "a.jpg", "text": "<image>x<|endofchunk|>y", "source": "mine"},
    ]
    path = captioned / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    counts = convert_folder(path, tmp_path / "tars", per_shard=2)
    assert counts == {"records": 5, "tars written": 3}
    own = UserData(shards="", batch_size=1)
    before, after = documents(own, path), documents(own, *sorted((tmp_path / "tars").glob("*.tar")))
    assert before == after
    assert len(before) == 5 and before[2].images == (RED, BLUE)


@pytest.mark.parametrize("form", [*FORMS, "system"])
def test_conversations_become_tars_that_read_the_same(tmp_path: Path, form: str) -> None:
    said = {"role": "system", "content": "Be kind."}
    row = {"messages": [said, *FORMS["parts"]["messages"]], "topic": "cats"} if form == "system" else FORMS[form]
    for name, image in (("red", RED), ("green", GREEN), ("blue", BLUE)):
        (tmp_path / f"{name}.jpg").write_bytes(image)
    alone = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "red"}]
    rows = [row, {"id": 3, "messages": alone, "image": "red.jpg"}, {"messages": alone}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    counts = convert_folder(tmp_path / "rows.jsonl", tmp_path / "tars")
    assert counts == {"records": 2, "tars written": 1, "left out: no image": 1}
    source = UserData(shards="", batch_size=1)
    wanted = [source.document(one, np.random.default_rng(0)) for one in [*records(str(tmp_path / "rows.jsonl"))][:2]]  # ty: ignore[invalid-argument-type]
    assert documents(source, tmp_path / "tars" / "00000.tar") == wanted
    kept = json.loads(content(tmp_path / "tars" / "00000.tar")["000000000.json"])
    assert {name: row[name] for name in row if name in ("id", "topic")}.items() <= kept.items()


def test_a_stopped_conversion_of_a_folder_goes_on(captioned: Path, tmp_path: Path) -> None:
    told: list[int] = []
    convert_folder(captioned, tmp_path / "tars", per_shard=1, advance=told.append)
    assert sum(told) == 5
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    whole = tars[1].read_bytes()
    tars[1].unlink()
    tars[0].write_bytes(b"left alone")
    counts = convert_folder(captioned, tmp_path / "tars", per_shard=1, advance=told.append)
    assert sum(told) == 10
    assert counts["tars written"] == 1 and counts["tars already there"] == 2
    assert tars[1].read_bytes() == whole and tars[0].read_bytes() == b"left alone"


# ---- the commands ---------------------------------------------------------------------------------------------------


def test_the_commands(mmc4: Path, captioned: Path, capsys: pytest.CaptureFixture) -> None:
    zips = str(mmc4 / "docs_no_face_shard_{0..9}_v2.jsonl.zip")
    assert main(["convert", "mmc4", zips, str(mmc4 / "images"), str(mmc4 / "tars"), "--records", "2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == str(mmc4 / "tars")
    assert "           4  images\n" in out and "           8  zips missing\n" in out
    assert len(list((mmc4 / "tars").glob("*.tar"))) == 3
    assert main(["convert", "folder", str(captioned), str(mmc4 / "own")]) == 0
    assert "           3  records\n" in capsys.readouterr().out
    # Done already.
    assert main(["convert", "folder", str(captioned), str(mmc4 / "own")]) == 0
    assert "           1  tars already there\n" in capsys.readouterr().out
    assert len(expand(str(mmc4 / "own/*.tar"))) == 1


def test_several_zips_on_the_command_line(mmc4: Path) -> None:
    zips = sorted(map(str, mmc4.glob("*.zip")))
    assert main(["convert", "mmc4", *zips, str(mmc4 / "images"), str(mmc4 / "tars"), "--base64", "--unchecked"]) == 0
    assert len(list((mmc4 / "tars").glob("*.tar"))) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mmc4", "{tmp}/none-{0..3}.zip", "{tmp}", "{tmp}/out"], "zips"),
        (["mmc4", "{tmp}/a.zip", "{tmp}/gone", "{tmp}/out"], "no such folder of images"),
        (["mmc4", "{tmp}/a.zip"], "out"),
        (["folder", "{tmp}/gone", "{tmp}/out"], "matches nothing"),
        (["folder", "{tmp}", "{tmp}/out"], "no images"),
        (["folder", "{tmp}", "{tmp}/out", "--records", "0"], "--records"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    (tmp_path / "a.zip").write_bytes(b"")
    try:
        status = main(["convert", *(word.replace("{tmp}", str(tmp_path)) for word in words)])
    except SystemExit as end:
        status = end.code
    assert status == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_to_convert(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "images").mkdir()
    zipped(tmp_path / "a.jsonl.zip", page("gone.jpg"))
    status = main(["convert", "mmc4", str(tmp_path / "a.jsonl.zip"), str(tmp_path / "images"), str(tmp_path / "out")])
    assert status == 1
    assert "images missing" in capsys.readouterr().out
