"""Which images of folders and tables are read: one rule for all of them."""

import os
import warnings
from pathlib import Path

import pytest

from flamboyance.images.listing import find_images, image_rows


def put(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.JPG", "in/c.png"):
        put(tmp_path / "home" / name, b"image")
    put(tmp_path / "away" / "secret.jpg", b"image")
    put(tmp_path / "away" / "secret.txt", "root:x:0:0")
    return tmp_path / "home"


def test_every_suffix_of_the_one_list_is_found(tmp_path: Path) -> None:
    names = ["a.avif", "b.JFIF", "c.jpe", "d.TIFF", "e.webp", "f.jp2"]
    for name in [*names, ".hidden.jpg", "notes.txt"]:
        put(tmp_path / name)
    assert [path.name for path in find_images([tmp_path])] == names


def test_pictures_that_cannot_be_read_are_reported(folder: Path, tmp_path: Path) -> None:
    put(folder / "x.HEIC")
    with pytest.warns(UserWarning, match=r"x\.HEIC.*JPEG"):
        assert len(find_images([folder])) == 3
    put(tmp_path / "phone" / "x.heic")
    with pytest.raises(ValueError, match=r"no image.*x\.heic"):
        find_images([tmp_path / "phone"])


def test_links_that_lead_out_are_left_out_with_a_warning(folder: Path) -> None:
    (folder / "link.jpg").symlink_to(folder.parent / "away" / "secret.jpg")
    (folder / "more").symlink_to(folder.parent / "away")
    (folder / "inner.jpg").symlink_to("a.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    with pytest.warns(UserWarning, match=r"link\.jpg, more, zero\.jpg") as said:
        found = find_images([folder])
    assert "pipe.jpg" in str(said[0].message)
    assert [path.name for path in found] == ["a.jpg", "b.JPG", "c.png", "inner.jpg"]
    with pytest.warns(UserWarning, match=r"pipe\.jpg, zero\.jpg.*regular file"):
        found = find_images([folder], outside=True)
    assert [path.name for path in found] == ["a.jpg", "b.JPG", "c.png", "inner.jpg", "link.jpg", "secret.jpg"]


def test_nothing_is_said_of_a_plain_folder(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_images([folder])) == 3


# ---- images with their texts ----------------------------------------------------------------------------------------


def texts(path: Path, **options: bool) -> list[tuple[str, object]]:
    return [(row.image.name, row.record.get("text")) for row in image_rows(path, **options)]


def test_texts_beside_images_in_any_case_and_with_a_byte_order_mark(folder: Path) -> None:
    put(folder / "a.txt", "\ufeffa small cat\r\n")
    put(folder / "b.TXT", "a dog")
    put(folder / "in" / "c.txt", "a cow")
    assert texts(folder) == [("a.jpg", "a small cat\r\n"), ("b.JPG", "a dog"), ("c.png", "a cow")]


@pytest.mark.parametrize(
    "content, words",
    [(b"caf\xe9", "a.txt, line 1.*UTF-8"), (b"a" * (1 << 20) + b"b", "a.txt.*1,048,577")],
)
def test_a_text_that_cannot_be_read_is_named(folder: Path, content: bytes, words: str) -> None:
    for name in ("b.txt", "in/c.txt"):
        put(folder / name, "a")
    put(folder / "a.txt", content)
    with pytest.raises(ValueError, match=words):
        image_rows(folder)


def test_a_text_that_is_a_link_out_or_a_fifo_is_refused(folder: Path) -> None:
    for name in ("b.txt", "in/c.txt"):
        put(folder / name, "a")
    (folder / "a.txt").symlink_to(folder.parent / "away" / "secret.txt")
    with pytest.raises(ValueError, match=r"text of .*a\.jpg"):
        image_rows(folder)
    assert ("a.jpg", "root:x:0:0") in texts(folder, outside=True)
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    with pytest.raises(ValueError, match=r"text of .*a\.jpg.*regular file"):
        image_rows(folder)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl"])
def test_tables_name_regular_files_in_their_folder(folder: Path, name: str) -> None:
    (folder / "link.jpg").symlink_to(folder.parent / "away" / "secret.jpg")
    (folder / "inner.jpg").symlink_to("in/c.png")
    os.mkfifo(folder / "pipe.jpg")

    def rows(image: str, outside: bool = False) -> list[Path]:
        line = f'{{"image": "{image}", "text": "x"}}\n' if name == "d.jsonl" else f"image\ttext\n{image}\tx\n"
        return [row.image for row in image_rows(put(folder / name, line), outside)]

    for image in (" a.jpg ", "in/c.png", "in/../a.jpg", "inner.jpg", str(folder / "a.jpg")):
        assert rows(image)[0].is_file()
    for image in ("../away/secret.jpg", "link.jpg", str(folder.parent / "away" / "secret.jpg"), "/dev/zero"):
        with pytest.raises(ValueError, match=rf"{name}, line \d.*outside.*{name}"):
            rows(image)
    assert rows("link.jpg", outside=True) == [folder / "link.jpg"]
    for outside in (False, True):
        with pytest.raises(ValueError, match=r"pipe\.jpg.*regular file"):
            rows("pipe.jpg", outside)
    with pytest.raises(ValueError, match="not a regular file"):
        rows("/dev/zero", outside=True)
    with pytest.raises(FileNotFoundError, match=rf"{name}, line \d.*gone\.jpg"):
        rows("gone.jpg")
    with pytest.raises(ValueError, match="URL"):
        rows("https://example.com/a.jpg")


def test_texts_of_megabytes_are_refused(folder: Path) -> None:
    for name, row in (("d.csv", "image,text\na.jpg,{}\n"), ("d.jsonl", '{{"image": "a.jpg", "captions": ["{}"]}}')):
        with pytest.raises(ValueError, match=rf"{name}, line \d.*(text|captions).*1,048,576"):
            image_rows(put(folder / name, row.format("word " * 300_000)))


def test_folders_named_after_labels(folder: Path, tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/2.jpg"):
        put(tmp_path / "pets" / name)
    assert [row.record for row in image_rows(tmp_path / "pets", labels=True)] == [{"label": "cat"}, {"label": "dog"}]
    with pytest.raises(FileNotFoundError, match=r"1\.jpg"):
        image_rows(tmp_path / "pets")


def test_a_label_is_not_taken_from_folders_of_folders(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
        put(tmp_path / "pets" / name)
    with pytest.raises(ValueError, match=r"test/cat/1\.png.*give the folder .*pets/test,"):
        image_rows(tmp_path / "pets", labels=True)
    found = image_rows(tmp_path / "pets" / "train", labels=True)
    assert [row.record for row in found] == [{"label": "cat"}, {"label": "dog"}]
