"""What the command line reads: demonstrations and labels, as users' programs write them."""

import json
from pathlib import Path

import pytest

from flamboyance.commands.inputs import find_images, read_demonstrations, read_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "name, content",
    [
        ("d.csv", 'image,text\na.jpg,a cat\nb.jpg,"a dog, red"\n'),
        ("D.CSV", '\ufeffIMAGE, Text\r\na.jpg, a cat \r\nb.jpg, "a dog, red"\r\n'),
        ("d.tsv", "text\timage\na cat\ta.jpg\na dog, red\tb.jpg\n"),
        ("d.csv", "image;label\na.jpg;a cat\nb.jpg;a dog, red\n"),
        ("d.jsonl", '{"image": "a.jpg", "text": "a cat"}\r\n{"image": "b.jpg", "captions": ["a dog, red", "x"]}'),
        ("d.jsonl", '{"file_name": "a.jpg", "caption": "a cat"}\n{"image": "b.jpg", "label": "a dog, red"}'),
    ],
)
def test_demonstrations_in_every_format(folder: Path, name: str, content: str) -> None:
    found = read_demonstrations(written(folder / name, content))
    assert found == [(folder / "a.jpg", "a cat"), (folder / "b.jpg", "a dog, red")]


def test_questions_with_answers_or_labels(folder: Path) -> None:
    expected = [(folder / "a.jpg", "what?", "a cat")]
    assert read_demonstrations(written(folder / "d.csv", "image,question,answer\na.jpg,what?,a cat\n")) == expected
    assert read_demonstrations(written(folder / "d.csv", "image,question,label\na.jpg,what?,a cat\n")) == expected
    row = {"image": "a.jpg", "question": "what?", "answers": ["a dog", "a cat", "a cat"]}
    assert read_demonstrations(written(folder / "d.jsonl", json.dumps(row))) == expected


def test_a_damaged_text_of_one_row_is_replaced(folder: Path) -> None:
    path = written(folder / "d.jsonl", r'{"image": "a.jpg", "text": "a cat \ud83d"}')
    assert read_demonstrations(path) == [(folder / "a.jpg", "a cat ?")]


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\n",
        "\ufeffcat\r\n\r\n dog \r\n",
        "cat\rdog",
        "\n\ncat\n\t\ndog",
        "cat\ndog\n\ufeff".removesuffix("\ufeff"),
    ],
)
def test_labels_of_a_file(tmp_path: Path, content: str) -> None:
    assert read_labels(str(written(tmp_path / "labels.txt", content))) == ["cat", "dog"]


def test_labels_keep_commas_and_rare_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.txt", "red, round\na\u2028b\n")
    assert read_labels(str(path)) == ["red, round", "a\u2028b"]


def test_a_label_that_is_there_twice_is_named_with_its_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.txt", "\ufeffcat\ndog\n\n cat\n")
    with pytest.raises(ValueError, match=r"cat .*labels\.txt, line 1.*labels\.txt, line 4"):
        read_labels(str(path))
    with pytest.raises(ValueError, match="cat"):
        read_labels("cat,dog, cat")


def test_labels_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels\.txt, line 2.*UTF-8"):
        read_labels(str(written(tmp_path / "labels.txt", b"cat\ncaf\xe9\n")))
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        read_labels(str(tmp_path / "gone.txt"))
    for given in ("cat", "", ",", str(tmp_path)):
        with pytest.raises(ValueError, match="two or more"):
            read_labels(given)


def test_labels_of_a_table(tmp_path):
    """Not its header, nor whole rows."""
    assert read_labels(str(written(tmp_path / "labels.csv", b"id,Label\n1,cat\n2,dog\n"))) == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"line 2.*cat.*column label"):
        read_labels(str(written(tmp_path / "labels.csv", b"cat\ndog\n")))


def test_labels_in_quotes_may_have_commas() -> None:
    assert read_labels('New York, "San Jose, CA",\'s') == ["New York", "San Jose, CA", "'s"]
    assert read_labels("cat,\ndog\rbird") == ["cat", "dog", "bird"]


@pytest.mark.parametrize("suffix", [".mpo", ".apng", ".j2k", ".jpx", ".dib"])
def test_images_of_rarer_suffixes_are_found(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    assert find_images([tmp_path]) == [tmp_path / f"a{suffix}"]


def test_a_table_may_have_a_label_and_a_text(folder: Path) -> None:
    """`classify` reads it as the evaluation does."""
    table = written(folder / "both.csv", "image,text,label\na.jpg,A cat on a sofa.,cat\n")
    assert [text for _, text in read_demonstrations(table)] == ["A cat on a sofa."]
    assert [text for _, text in read_demonstrations(table, labels=True)] == ["cat"]
