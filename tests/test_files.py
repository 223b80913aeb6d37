"""Atomic writes; tables, texts and folders as every command reads them."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import flamboyance.files
from flamboyance.data.documents import Rejected
from flamboyance.data.formats.fields import text
from flamboyance.files import (
    is_inside,
    naming,
    output_lock,
    read_json,
    read_lines,
    read_table,
    read_text,
    replacing,
    walk,
    write_json,
    write_text,
)


def table(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path, content: str | bytes) -> list[dict[str, Any]]:
    return [record for _, record in read_table(table(path, content))]


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_a_new_file_has_the_umasks_mode(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "new.txt", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.txt").stat().st_mode) == mode


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644)])
def test_tensors_have_the_umasks_mode_too(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors gives 0600 to all."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.safetensors") as part:
            save_file({"a": torch.ones(1)}, part)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "old.txt"
    file.touch(mode=0o600)
    write_text(file, "new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text(encoding="utf-8") == "new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with replacing(tmp_path / "a.txt") as part:
            Path(part).write_text("half", encoding="utf-8")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert read_text(tmp_path / "a.txt") == "old"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left (os error 28)")],
    ids=["python", "safetensors"],
)
def test_a_full_disk_names_the_file(tmp_path: Path, error: Exception) -> None:
    message = r"No space left on device: '.*weights\.bin'"
    with pytest.raises(OSError, match=message) as found, replacing(tmp_path / "weights.bin"):
        raise error
    assert found.value.errno == errno.ENOSPC and found.value.filename == str(tmp_path / "weights.bin")
    assert not list(tmp_path.iterdir())


def test_a_really_full_device_names_the_file() -> None:
    with pytest.raises(OSError, match="full"), naming("/dev/full"), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"a")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone/a\.txt"):
        write_text(tmp_path / "gone" / "a.txt", "a")


def test_texts_and_json_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    code = (
        "from flamboyance.files import *\n"
        "write_json('a.json', {'é': 'größer 猫'}); assert read_json('a.json') == {'é': 'größer 猫'}\n"
        "write_text('a.txt', 'naïve 猫'); assert read_text('a.txt') == 'naïve 猫'\n"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = f"exec({code.encode()!r}.decode('utf-8'))"  # the command line itself is in the locale's encoding
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "a.txt").read_bytes() == "naïve 猫".encode()


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", ["a\ud83d"])
    assert read_json(tmp_path / "a.json") == ["a?"]


# ---- tables ---------------------------------------------------------------------------------------------------------

TWO = [{"image": "a.jpg", "text": "a cat"}, {"image": "b.jpg", "text": "a dog, a bird"}]


@pytest.mark.parametrize(
    "name, content",
    [
        ("d.csv", 'image,text\na.jpg,a cat\nb.jpg,"a dog, a bird"\n'),
        ("d.CSV", 'image,text\na.jpg,a cat\nb.jpg,"a dog, a bird"\n'),
        ("d.csv", 'image,text\r\na.jpg,a cat\r\nb.jpg,"a dog, a bird"\r\n'),
        ("d.csv", 'image,text\ra.jpg,a cat\rb.jpg,"a dog, a bird"'),
        ("d.csv", '\ufeffimage,text\na.jpg,a cat\nb.jpg,"a dog, a bird"'),
        ("d.csv", '\n\n Image , "TEXT" \n\na.jpg, a cat\n,\nb.jpg, "a dog, a bird"\n\n'),
        ("d.csv", "image;text\na.jpg;a cat\nb.jpg;a dog, a bird\n"),
        ("d.csv", "image\ttext\na.jpg\ta cat\nb.jpg\ta dog, a bird\n"),
        ("d.csv", "sep=;\nimage;text\na.jpg;a cat\nb.jpg;a dog, a bird\n"),
        ("d.csv", '\ufeff\ufeff"image","text"\na.jpg,a cat\nb.jpg,"a dog, a bird"\n'),
        ("d.csv", ',image,text\n0,a.jpg,a cat\n1,b.jpg,"a dog, a bird"\n'),
        ("d.csv", 'image,text,\na.jpg,a cat,\nb.jpg,"a dog, a bird",\n'),
        ("d.tsv", "image\ttext\na.jpg\ta cat\nb.jpg\ta dog, a bird\n"),
        ("d.TSV", "image\ttext\r\na.jpg\ta cat\r\nb.jpg\ta dog, a bird\r\n"),
        ("d.tsv", 'image,text\na.jpg,a cat\nb.jpg,"a dog, a bird"\n'),
        ("d.jsonl", "".join(json.dumps(row) + "\n" for row in TWO)),
        ("d.JSONL", "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in TWO)),
        ("d.ndjson", "".join(json.dumps(row) + "\n" for row in TWO)),
    ],
)
def test_the_same_rows_in_every_format(tmp_path: Path, name: str, content: str) -> None:
    assert rows(tmp_path / name, content) == TWO


def test_other_columns_keep_their_names(tmp_path: Path) -> None:
    assert rows(tmp_path / "d.csv", "Image, Where \na.jpg,Rome\n") == [{"image": "a.jpg", "Where": "Rome"}]


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv", 'image,text\na.jpg,"one\ntwo"\n\nb.jpg,c\n')
    assert [place for place, _ in read_table(path)] == [f"{path}, line 2", f"{path}, line 5"]
    path = table(tmp_path / "d.jsonl", '\n{"a": 1}\n\n{"a": 2}\n')
    assert [place for place, _ in read_table(path)] == [f"{path}, line 2", f"{path}, line 4"]


def test_quoted_values_hold_separators_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = 'image,text\na.jpg,"say ""hi"", a\nlong, second line"\nb.jpg,6 "inches" wide\n'
    assert [row["text"] for row in rows(tmp_path / "d.csv", content)] == [
        'say "hi", a\nlong, second line',
        '6 "inches" wide',
    ]


def test_values_may_be_long_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 60_000  # more than the 131,072 characters at which Python's reader stops by itself
    assert rows(tmp_path / "d.csv", f"image,text\na.jpg,{long}\n")[0]["text"] == long
    assert rows(tmp_path / "d.jsonl", json.dumps({"text": long}))[0]["text"] == long
    (tmp_path / "e.csv").write_bytes(b"image,text\n" + b"a" * (16 << 20) + b"b,c\n")
    with pytest.raises(ValueError, match=r"e\.csv, line 2.*CSV.*limit.*quote"):
        list(read_table(tmp_path / "e.csv"))
    monkeypatch.setattr("flamboyance.files.LINE_LIMIT", 1000)
    for name in ("d.csv", "d.jsonl"):
        with pytest.raises(ValueError, match=rf"{name}, line \d"):
            list(read_table(tmp_path / name))


@pytest.mark.parametrize(
    "content, words",
    [
        (
            "image,text\na.jpg,a dog, two cats\n",
            ["line 2", "3 values", "2 columns image,text", "'a dog'", "'two cats'"],
        ),
        ("image,text\na.jpg,b\n\nc.jpg\n", ["line 4", "1 value ", "2 columns", "'c.jpg'"]),
        ("image,question,answer\na.jpg,what\n", ["line 2", "2 values", "3 columns image,question,answer"]),
        ("image;text\na.jpg;a dog; two\n", ["line 2", "3 values", "semicolon"]),
        ("image,text,\na.jpg,a dog, two cats\n", ["line 2", "'two cats'", "column without a name"]),
        ("image,text,Text\na.jpg,a,b\n", ["line 1", "twice", "text"]),
        # Quotes that are not closed: at the end, in the next quoted value, and where a later row's quote closes it.
        ('image,text\na.jpg,"a dog\nb.jpg,a cat\nc.jpg,a cow\n', ["lines 2 to 4", "quote"]),
        ('image,text\na.jpg,b\nb.jpg,"a dog', ["line 3", "quote"]),
        ('image,text\na.jpg,"a dog\nb.jpg,"a cat"\n', ["lines 2 to 3", "quote"]),
        ('image,text\na.jpg,"a dog\nb.jpg,a cat\nc.jpg,a cow"\nd.jpg,e\n', ["lines 2 to 4", "b.jpg,a cat"]),
        ('text,image\n"a dog,a.jpg\na cat,b.png\na cow",c.jpg\n', ["lines 2 to 4", "a dog,a.jpg"]),
        ('image,text\na.jpg,"a "small" dog"\n', ["line 2", "twice"]),
        (b"image,text\na.jpg,b\nc.jpg,caf\xe9\n", ["line 3", "UTF-8", "0xe9"]),
        ("image,text\na.jpg,b\n".encode("utf-16"), ["UTF-16"]),
        ("image,text\na.jpg,b\n".encode("utf-16-le"), ["line 1", "zero byte"]),
    ],
)
def test_a_damaged_csv_names_file_line_and_values(tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "d.csv"))) as found:
        rows(tmp_path / "d.csv", content)
    for word in words:
        assert word in str(found.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"a": 1}\n[1]\n', ["line 2", "a list"]),
        ('{"a": 1}\n{"a"\n', ["line 2, column 5", "JSON"]),
        ("[" * 100_000, ["line 1", "JSON"]),
        (b'{"a": "\xff"}', ["line 1", "UTF-8"]),
    ],
)
def test_a_damaged_jsonl_names_file_and_line(tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "d.jsonl"))) as found:
        rows(tmp_path / "d.jsonl", content)
    for word in words:
        assert word in str(found.value)


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    line = r'{"text": "a\ud83d", "captions": ["\uDE00b", "\ud83d\ude00"], "\ud83d": 1}'
    assert rows(tmp_path / "d.jsonl", line) == [{"text": "a?", "captions": ["?b", "😀"], "?": 1}]
    path = table(tmp_path / "d.json", line)
    assert read_json(path)["text"] == "a?"


def test_only_regular_files_of_known_suffixes_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.csv")
    with pytest.raises(OSError, match="regular file"):
        list(read_table(tmp_path / "d.csv"))
    with pytest.raises(ValueError, match=r"d\.xlsx.*\.csv, \.tsv, \.jsonl"):
        list(read_table(tmp_path / "d.xlsx"))
    with pytest.raises(FileNotFoundError):
        list(read_table(tmp_path / "gone.csv"))


def test_tables_are_read_in_one_place() -> None:
    package = Path(flamboyance.files.__file__).parent
    readers = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"csv\.(reader|DictReader)", file.read_text(encoding="utf-8"))
    }
    assert readers == {"files.py", "commands/output.py"}  # the latter reads what it has written


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_lines_of_a_text(tmp_path: Path) -> None:
    path = table(tmp_path / "l.txt", "\ufeff cat\r\n\r\ndog\u2028s\rbird")
    assert read_lines(path) == [
        (f"{path}, line 1", "cat"),
        (f"{path}, line 3", "dog\u2028s"),
        (f"{path}, line 4", "bird"),
    ]


def test_a_text_of_another_encoding_names_the_line(tmp_path: Path) -> None:
    path = table(tmp_path / "l.txt", b"cat\ncaf\xe9\n")
    for read in (read_text, read_lines):
        with pytest.raises(ValueError, match=r"l\.txt, line 2.*UTF-8"):
            read(path)


def test_a_text_of_two_byte_order_marks_and_one_of_zero_bytes(tmp_path: Path) -> None:
    assert read_text(table(tmp_path / "l.txt", b"\xef\xbb\xbf\xef\xbb\xbfcat")) == "cat"
    assert read_json(table(tmp_path / "l.json", b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}')) == {"a": 1}
    without_mark = table(tmp_path / "l.txt", "a cat".encode("utf-16-le"))
    for read in (read_text, read_lines):
        with pytest.raises(ValueError, match=r"l\.txt, line 1.*zero byte"):
            read(without_mark)
    with pytest.raises(Rejected, match="not UTF-8"):
        text("a cat".encode("utf-16-le"))


def test_a_text_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = table(tmp_path / "l.txt", "a" * 11)
    assert read_text(path, limit=11) == "a" * 11
    with pytest.raises(ValueError, match=r"l\.txt.* 11 .* 10"):
        read_text(path, limit=10)


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "in").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    for name in ("home/a.jpg", "home/in/b.jpg", "home/.hidden.jpg", "away/c.jpg"):
        (tmp_path / name).touch()
    (home / "inner.jpg").symlink_to("in/b.jpg")
    (home / "out.jpg").symlink_to(tmp_path / "away" / "c.jpg")
    (home / "broken.jpg").symlink_to("nowhere")
    (home / "device.jpg").symlink_to("/dev/zero")
    (home / "again").symlink_to("in")
    (home / "up").symlink_to("..")
    (home / "further").symlink_to(tmp_path / "away")
    os.mkfifo(home / "pipe.jpg")
    return home


def test_regular_files_inside_the_folder_are_read(folder: Path) -> None:
    found = list(walk(folder))
    assert [(one.folder, one.names) for one in found] == [
        (str(folder), ["a.jpg", "inner.jpg"]),
        (str(folder / "in"), ["b.jpg"]),
    ]
    assert {name for name, _ in found[0].left_out} == {
        *("broken.jpg", "device.jpg", "out.jpg", "pipe.jpg", "up", "further")
    }


def test_links_out_are_followed_on_request(folder: Path) -> None:
    found = [os.path.join(one.folder, name) for one in walk(folder, outside=True) for name in one.names]
    names = [os.path.relpath(path, folder) for path in found]
    assert {"a.jpg", "inner.jpg", "out.jpg"} <= set(names)
    real = [os.path.realpath(path) for path in found]
    assert real.count(os.path.realpath(folder / "a.jpg")) == 1  # though `up` leads back to it


def test_inside(folder: Path) -> None:
    assert is_inside(folder / "a.jpg", folder) and is_inside(folder / "inner.jpg", folder)
    assert not is_inside(folder / "out.jpg", folder) and not is_inside(folder / ".." / "away", folder)
    assert not is_inside("a\0b", folder) and not is_inside(f"{folder}2", folder)


def is_locked(path: Path) -> bool:
    """Whether another process can lock it."""
    code = "import sys; from pathlib import Path; from flamboyance.files import output_lock\n"
    code += "with output_lock(Path(sys.argv[1])): pass"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0 or "BlockingIOError" in run.stderr, run.stderr
    return run.returncode != 0


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "rows.csv"):
        with output_lock(target):
            assert is_locked(target)
            with pytest.raises(BlockingIOError, match=re.escape(str(target))), output_lock(target):
                pass
        assert not is_locked(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "rows.csv"]


def test_a_lock_outlives_other_handles_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    with output_lock(file):
        file.write_text("a row", encoding="utf-8")
        assert file.read_text(encoding="utf-8") == "a row"
        assert is_locked(file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_holds_no_lock_of_its_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    with output_lock(tmp_path):
        if (child := os.fork()) == 0:
            os.read(read, 1)  # until the lock was tried
            os._exit(0)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    os.write(write, b"x")
    os.waitpid(child, 0)
    os.close(read), os.close(write)


def test_a_lock_follows_a_file_that_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    with output_lock(file):
        with replacing(file) as part:
            Path(part).write_text("new", encoding="utf-8")
        assert not is_locked(file)  # the new file is another one, which its writer has to lock first
