"""Patterns -> shards -> records, sound ones and damaged ones."""

import functools
import gzip
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flamboyance.data import shards, tables
from flamboyance.data.documents import Record
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from tests.data.files import jpeg, pair, tar_bytes
from tests.processes import command_of, until

LONG = "folder.with.dots/" + "n" * 150


def read(shard: str | Path) -> list[tuple[str, dict[str, bytes]] | str]:
    """Records as (key, fields), damages as their reasons."""
    return [(r.key, r.fields) if isinstance(r, Record) else r.reason for r in records(str(shard))]


def keys(shard: str | Path) -> list[str]:
    return [item if isinstance(item, str) else item[0] for item in read(shard)]


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL at which `tmp_path` is served."""
    pytest.importorskip("aiohttp")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


# Patterns


def test_ranges_and_stars(tmp_path: Path) -> None:
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b.tar"):
        written(tmp_path / name, b"")
    folder = str(tmp_path)
    assert expand(folder + "/a-{008..010}.tar") == [f"{folder}/a-{n}.tar" for n in ("008", "009", "010")]
    assert expand([folder + "/b.tar", folder + "/a*.tar"])[0] == folder + "/b.tar"
    assert len(expand([folder + "/b.tar", folder + "/a*.tar"])) == 4
    assert expand("memory://bucket/{8..11}-{0..1}.tar") == [
        f"memory://bucket/{n}-{m}.tar" for n in range(8, 12) for m in (0, 1)
    ]
    assert expand("pipe:curl x/{00..02}.tar | cat *") == [f"pipe:curl x/0{n}.tar | cat *" for n in range(3)]


def test_brackets_in_a_name_that_exists_are_no_pattern(tmp_path: Path) -> None:
    path = written(tmp_path / "data[1]" / "x.tar", b"")
    assert expand(str(path)) == [str(path)]


def test_of_a_range_some_may_be_missing_but_not_all(tmp_path: Path) -> None:
    written(tmp_path / "1.tar", b"")
    assert len(expand(str(tmp_path / "{0..2}.tar"))) == 3
    with pytest.raises(ValueError, match=r"'.*\{5\.\.6\}\.tar'"):
        expand(str(tmp_path / "{5..6}.tar"))


def test_what_is_not_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\*\.tar'.*nowhere'"):
        expand([str(tmp_path / "nowhere" / "*.tar")])
    with pytest.raises(ValueError, match="no shards"):
        expand([])
    with pytest.raises(ValueError, match="backwards"):
        expand("memory://x/{3..1}.tar")
    written(tmp_path / "tars" / "0.tar", b"")
    with pytest.raises(ValueError, match=r"no images.*'.*/tars/\*\.tar'"):
        expand(str(tmp_path / "tars"))


def test_a_protocol_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ImportError, match="pip install s3fs"):
        expand("s3://bucket/0.tar")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match=r"'gopher'.*fsspec"):
        expand("gopher://x/0.tar")


# Sound shards


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_of_tar(tmp_path: Path, form: int, packed: bool) -> None:
    name = LONG[:90] if form == tarfile.USTAR_FORMAT else LONG
    other = "ein" if form == tarfile.USTAR_FORMAT else "日本語"
    files = [(name + ".JPG", b"1" * 700), (name + ".seg.png", b""), (f"{other}.txt", b"x"), ("0.txt", b"y" * 512)]
    content = tar_bytes(files, format=form)
    shard = written(tmp_path / "x.tar", gzip.compress(content) if packed else content)
    expected = [(name, {"jpg": b"1" * 700, "seg.png": b""}), (other, {"txt": b"x"}), ("0", {"txt": b"y" * 512})]
    assert read(shard) == expected


def test_folders_links_and_hidden_files_are_no_records(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in [("d", tarfile.DIRTYPE), ("l.txt", tarfile.SYMTYPE), ("h.txt", tarfile.LNKTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.txt"
            tar.addfile(member)
        for name in ("d/.DS_Store", "__meta__.json", "plain", "._a.txt", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    assert keys(tmp_path / "x.tar") == ["a"]


def test_members_in_pieces_are_counted(tmp_path: Path) -> None:
    """Files with holes, and the rest of a file of another volume: what is stored is not what the file was."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, more in [
            ("a.txt", b"S", {}),
            ("b.txt", b"M", {}),
            ("c.txt", b"0", {"GNU.sparse.major": "1", "GNU.sparse.name": "c.txt"}),
            ("d.txt", b"0", {}),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.pax_headers = kind, 4, more
            tar.addfile(member, io.BytesIO(b"text"))
    found = list(records(str(tmp_path / "x.tar")))
    assert [one.reason for one in found if isinstance(one, Damage)] == ["tar member in pieces"] * 3
    assert [one.fields for one in found if isinstance(one, Record)] == [{"txt": b"text"}]


def test_sizes_in_binary(tmp_path: Path) -> None:
    content = bytearray(tar_bytes([("a.txt", b"abc")], format=tarfile.GNU_FORMAT))
    content[124:136] = b"\x80" + (3).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    assert read(written(tmp_path / "x.tar", bytes(content))) == [("a", {"txt": b"abc"})]


def test_lines(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b"", b"x" * 200_000, b"last"]
    for name, content in [("x.jsonl", b"\n".join(lines)), ("y.jsonl.gz", gzip.compress(b"\r\n".join(lines) + b"\n"))]:
        shard = written(tmp_path / name, content)
        found = list(records(str(shard)))
        assert [r.fields for r in found] == [{"json": line} for line in lines if line]
        assert [r.key for r in found] == [f"{shard}:{n}" for n in (1, 3, 4)]
        assert {r.folder for r in found} == {str(tmp_path)}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("first", [5, 65_534, 65_535, 65_536])  # bytes; 65,536 are read at a time
def test_lines_may_end_in_a_carriage_return(tmp_path: Path, end: bytes, first: int) -> None:
    shard = written(tmp_path / "x.jsonl", end.join([b"x" * first, b"second", b"", b"fourth", b""]))
    found = [(item.key, item.fields["json"]) for item in records(str(shard)) if isinstance(item, Record)]
    assert found == [(f"{shard}:1", b"x" * first), (f"{shard}:2", b"second"), (f"{shard}:4", b"fourth")]


def test_a_folder_of_images(tmp_path: Path) -> None:
    written(tmp_path / "b.jpg", b"B")
    written(tmp_path / "a.PNG", b"A")
    written(tmp_path / "a.txt", b"text")
    written(tmp_path / "a.json", b"{}")
    written(tmp_path / "sub" / "c.webp", b"C")
    written(tmp_path / "notes.txt", b"no image")
    written(tmp_path / "told" / "metadata.jsonl", b'{"file_name": "x.jpg"}\n\n{"file_name": "y.jpg"}\n')
    written(tmp_path / "told" / "deep" / "x.jpg", b"X")
    assert expand(str(tmp_path)) == [str(tmp_path)]
    assert [(Path(k).name, f) for k, f in read(tmp_path)] == [
        ("a", {"png": b"A", "txt": b"text", "json": b"{}"}),
        ("b", {"jpg": b"B"}),
        ("c", {"webp": b"C"}),
        ("metadata.jsonl:1", {"json": b'{"file_name": "x.jpg"}'}),
        ("metadata.jsonl:3", {"json": b'{"file_name": "y.jpg"}'}),
    ]
    assert [r.folder for r in records(str(tmp_path))][2:4] == [str(tmp_path / "sub"), str(tmp_path / "told")]


# Damaged shards

GOOD = tar_bytes([file for number in range(3) for file in pair(number)])
SECOND = 512 * (1 + -(-len(jpeg(0)) // 512) + 2)  # where the header of the second record's image stands


def corrupt(at: int, value: bytes, content: bytes = GOOD) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def claiming(size: int) -> bytes:
    """The good tar, with the second image's header claiming that size."""
    header = bytearray(GOOD[SECOND : SECOND + 512])
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return corrupt(SECOND, bytes(header))


OTHERS = tar_bytes([file for number in (7, 8) for file in pair(number)])

WHOLE = tar_bytes([(f"{number:05d}.jpg", bytes([number]) * (10240 - 512)) for number in range(4)])


def short(tar: bytes) -> bytes:
    """The tar with just the two blocks of zeros that end it, as some writers leave it."""
    return tar[: -(-len(tar.rstrip(b"\0")) // 512) * 512 + 1024]


DAMAGED = {
    "zero bytes": (b"", ["empty shard"]),
    "an empty tar": (b"\0" * 10240, ["empty shard"]),
    "a web page": (b"<html>" + b"404 not found " * 1000, ["not a tar"]),
    "a short text": (b"404 not found", ["not a tar"]),
    "cut in an image": (GOOD[: SECOND + 600], ["truncated tar", "00000"]),
    "cut in a header": (GOOD[: SECOND + 300], ["truncated tar", "00000"]),
    "cut between records": (GOOD[:SECOND], ["truncated tar", "00000"]),
    "cut between members": (GOOD[: SECOND - 1024], ["truncated tar", "00000"]),
    "two tars": (GOOD + OTHERS, ["00000", "00001", "00002", "00007", "00008"]),
    "two tars that end in two blocks of zeros": (
        short(GOOD) + short(OTHERS),
        ["00000", "00001", "00002", "00007", "00008"],
    ),
    "a tar that ends in one block of zeros": (short(GOOD)[:-512], ["00000", "00001", "00002"]),
    "4 kB of zeros over records": (corrupt(SECOND, b"\0" * 4096), ["zeros inside a tar", "00000", "00002"]),
    "zeros over a header": (corrupt(SECOND, b"\0" * 1024), ["damaged tar header", "00000", "00001", "00002"]),
    "4 kB of zeros between records": (
        GOOD[:SECOND] + b"\0" * 4096 + GOOD[SECOND:],
        ["zeros inside a tar", "00000", "00001", "00002"],
    ),
    # Each member of WHOLE fills 10,240 bytes: the header after the zeros is where another tar's might begin.
    "20 kB of zeros over records of 10 kB": (
        corrupt(10240, b"\0" * 20480, WHOLE),
        ["zeros inside a tar", "00000", "00003"],
    ),
    "a damaged header": (corrupt(SECOND, b"\xff" * 20), ["damaged tar header", "00000", "00001", "00002"]),
    "a damaged first header": (corrupt(0, b"\xff" * 20), ["damaged tar header", "00000", "00001", "00002"]),
    "a size that is no number": (corrupt(SECOND + 124, b"what"), ["damaged tar header", "00000", "00001", "00002"]),
    "3 GB claimed": (claiming(3 << 30), ["tar member larger than 256 MB", "00000", "00001", "00002"]),
    "100 MB claimed": (claiming(100 << 20), ["truncated tar", "00000"]),
    "nothing but noise": (bytes(range(256)) * 8192, ["not a tar"]),
    "one file twice": (tar_bytes(pair(0) + pair(0)[:1]), ["two files of one name in a tar", "00000"]),
    "gzip that is cut": (gzip.compress(GOOD)[:-800], ["truncated tar", "00000"]),
    "gzip that is broken": (gzip.compress(GOOD)[:15] + b"\xff" * 2000, ["damaged gzip"]),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_costs_what_is_damaged(tmp_path: Path, name: str) -> None:
    content, expected = DAMAGED[name]
    found = keys(written(tmp_path / "x.tar", content))
    assert sorted(found) == sorted(expected)


def test_a_false_size_is_not_allocated(tmp_path: Path) -> None:
    import tracemalloc

    shards_made = [written(tmp_path / f"{size}.tar", claiming(size << 20)) for size in (200, 3000)]
    tracemalloc.start()
    for shard in shards_made:
        keys(shard)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def test_noise_anywhere_is_survived(tmp_path: Path) -> None:
    import random

    shard = tmp_path / "x.tar"
    draw = random.Random(0)
    for content in (GOOD, gzip.compress(GOOD)):
        for _ in range(60):
            damaged = corrupt(draw.randrange(len(content)), draw.randbytes(draw.choice([1, 20, 600])), content)
            read(written(shard, damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])]))


def test_a_long_line_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MEMBER_LIMIT", 1 << 20)
    shard = written(tmp_path / "x.jsonl", b"first\n" + b"x" * (3 << 20) + b"\nlast\n")
    assert keys(shard) == [f"{shard}:1", "line longer than 1 MB"]


def test_a_missing_shard_is_one_damage(tmp_path: Path) -> None:
    assert read(tmp_path / "x.tar") == ["shard cannot be read: FileNotFoundError"]


def test_a_stop_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "ByteStream", stopped)
    with pytest.raises(KeyboardInterrupt):
        read(written(tmp_path / "x.tar", GOOD))


# Commands and servers


def test_a_command(tmp_path: Path) -> None:
    shard = written(tmp_path / "x.tar", GOOD)
    assert keys(f"pipe:cat {shard}") == ["00000", "00001", "00002"]
    assert keys(f"pipe:gzip -c {shard} | cat") == ["00000", "00001", "00002"]


def test_a_failing_command_is_tried_again_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RETRY_AFTER", (0.0, 0.0))
    shard, tries = written(tmp_path / "x.tar", GOOD), tmp_path / "tries"
    once = (
        f"pipe:echo x >> {tries}; [ $(wc -l < {tries}) -gt 1 ] && cat {shard} || {{ head -c {SECOND} {shard}; false; }}"
    )
    assert keys(once) == ["00000", "00001", "00002"]
    assert len(tries.read_text(encoding="utf-8").split()) == 2
    tries.unlink()
    assert keys(f"pipe:echo x >> {tries}; false") == ["shard cannot be read: OSError"]
    assert len(tries.read_text(encoding="utf-8").split()) == 3
    assert keys(f"pipe:cat {shard}; exit 3") == ["00000", "00001", "00002", "shard cannot be read: OSError"]


def test_a_silent_command_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RETRY_AFTER", ())
    monkeypatch.setattr(shards, "_SILENCE", 0.1)
    assert keys("pipe:sleep 60 | cat") == ["shard cannot be read: TimeoutError"]


def test_a_command_ends_with_its_reader(tmp_path: Path) -> None:
    shard = written(tmp_path / "x.tar", GOOD)
    pause = f"{600 + os.getpid() / 1e7:.7f}"  # seconds that no other process names
    found = records(f"pipe:cat {shard}; sleep {pause}")
    assert isinstance(next(found), Record)
    found.close()  # ty: ignore[unresolved-attribute]
    until(lambda: not any(pause.encode() in command_of(process.name) for process in Path("/proc").glob("[0-9]*")))


def test_a_server(tmp_path: Path, server: str) -> None:
    for number in range(2):
        written(tmp_path / "served" / f"{number}.tar", GOOD)
    assert expand(f"{server}/served/*.tar") == [f"{server}/served/{n}.tar" for n in range(2)]
    assert keys(f"{server}/served/0.tar") == ["00000", "00001", "00002"]


def test_a_server_without_the_shard(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RETRY_AFTER", (0.0, 0.0))
    assert keys(f"{server}/none.tar") == ["shard cannot be read: FileNotFoundError"]


@pytest.mark.parametrize(
    "whole, expected",
    [
        ((0, 7000, 10**6), ["00000", "00001", "00002"]),
        ((0, 5500, 0), ["00000", "shard cannot be read: ConnectionResetError"]),
        ((0, 0), ["shard cannot be read: ConnectionResetError"]),
    ],
)
def test_a_connection_that_breaks_is_taken_up_where_it_was(
    monkeypatch: pytest.MonkeyPatch, whole: tuple[int, ...], expected: list[str]
) -> None:
    """`whole`: after how many bytes it breaks, the first time, the second time, …"""
    import fsspec

    monkeypatch.setattr(shards, "RETRY_AFTER", (0.0,))  # once without progress, then no more
    with fsspec.open("memory://x.tar", "wb") as file:
        file.write(GOOD)
    breaks = list(whole)

    class Breaking:
        def __init__(self, file: shards.Bytes) -> None:
            self.file, self.left = file, breaks.pop(0)

        def read(self, size: int) -> bytes:
            self.left -= size
            if self.left < 0:
                raise ConnectionResetError
            return self.file.read(size)

    true_stream = shards.ByteStream
    monkeypatch.setattr(shards, "ByteStream", lambda file: true_stream(Breaking(file)))
    assert keys("memory://x.tar") == expected
    assert not breaks


def test_json_survives_as_stored(tmp_path: Path) -> None:
    shard = written(tmp_path / "x.tar", tar_bytes([("0.json", json.dumps({"a": "ü"}).encode())]))
    assert read(shard) == [("0", {"json": json.dumps({"a": "ü"}).encode()})]
    assert not any(isinstance(item, Damage) for item in records(str(shard)))


# Tables


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", 'image,text\na.jpg,"one, two"\n'),
        ("x.CSV", "\ufeffImage; Text\r\na.jpg;one, two\r\n"),
        ("x.tsv", "image\ttext\na.jpg\tone, two\n"),
        ("x.csv.gz", gzip.compress(b"image;text\ra.jpg;one, two\r", mtime=0)),
    ],
    ids=["csv", "semicolons", "tsv", "gzip"],
)
def test_rows_of_a_table(tmp_path: Path, name: str, content: str | bytes) -> None:
    shard = written(tmp_path / name, content.encode() if isinstance(content, str) else content)
    (found,) = [record for record in records(*expand(shard)) if isinstance(record, Record)]
    assert json.loads(found.fields["json"]) == {"image": "a.jpg", "text": "one, two"}
    assert found.folder == str(tmp_path) and found.key.startswith(f"{shard}, line")


def test_lines_in_upper_case_and_by_their_other_name(tmp_path: Path) -> None:
    for name in ("x.JSONL", "x.ndjson", "x.Jsonl.GZ"):
        content = b'{"a": 1}\n{"a": 2}\n'
        shard = written(tmp_path / name, gzip.compress(content) if name.endswith("GZ") else content)
        assert keys(shard) == [f"{shard}:1", f"{shard}:2"]


def test_a_damaged_table_is_refused_before_training(tmp_path: Path) -> None:
    shard = written(tmp_path / "x.csv", b"image,text\na.jpg,a dog, two cats\n")
    with pytest.raises(ValueError, match=r"x\.csv, line 2.*3 .*2 .*image,text"):
        expand(shard)
    assert keys(shard) == ["damaged table"]
    shard = written(tmp_path / "y.csv", b"picture,words\na.jpg,a dog\n")
    with pytest.raises(ValueError, match=r"y\.csv, line 2.*picture,words.*image,text"):
        expand(shard)


# Folders


def test_texts_and_images_of_a_folder_in_any_case(tmp_path: Path) -> None:
    for name in ("a.JPG", "a.TXT", "b.avif", "b.txt", "c.jfif", "c.Json"):
        written(tmp_path / name, b"{}")
    assert [(Path(k).name, set(f)) for k, f in read(tmp_path)] == [
        ("a", {"jpg", "txt"}),
        ("b", {"avif", "txt"}),
        ("c", {"jfif", "json"}),
    ]


def test_pictures_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    for name in ("a.HEIC", "b.heic", "c.jxl"):
        written(tmp_path / name, b"")
    assert expand(str(tmp_path)) == [str(tmp_path)]
    assert read(tmp_path) == [".heic is not read", ".heic is not read", ".jxl is not read"]


def test_metadata_as_csv(tmp_path: Path) -> None:
    written(tmp_path / "metadata.CSV", b"file_name,text\na.jpg,a cat\n")
    written(tmp_path / "a.jpg", b"A")
    ((_, fields),) = read(tmp_path)
    assert json.loads(fields["json"]) == {"file_name": "a.jpg", "text": "a cat"}


def test_links_of_a_folder_stay_inside(tmp_path: Path) -> None:
    away, home = tmp_path / "away", tmp_path / "home"
    written(away / "b.jpg", b"B")
    written(away / "b.txt", b"root:x:0:0")
    for name in ("a.jpg", "c.jpg", "d.jpg"):
        written(home / name, b"A")
    (home / "inner.jpg").symlink_to("a.jpg")
    (home / "b.jpg").symlink_to(away / "b.jpg")
    (home / "a.txt").symlink_to(away / "b.txt")
    (home / "zero.jpg").symlink_to("/dev/zero")
    (home / "more").symlink_to(away)
    os.mkfifo(home / "pipe.jpg")
    os.mkfifo(home / "c.txt")
    assert sorted(keys(home)) == sorted(
        [
            *(str(home / "d"), str(home / "inner"), "text outside the folder", "text is no regular file"),
            *("image outside the folder", "image outside the folder", "image is no regular file"),
            "folder outside the folder",
        ]
    )
    followed = {r.key: r.fields for r in records(str(home), outside=True) if isinstance(r, Record)}
    assert followed[str(home / "b")] == {"jpg": b"B"} and followed[str(home / "a")]["txt"] == b"root:x:0:0"
    assert str(home / "more" / "b") in followed


def test_a_text_beside_an_image_has_a_limit(tmp_path: Path) -> None:
    written(tmp_path / "a.jpg", b"A")
    written(tmp_path / "a.txt", b"a" * ((1 << 20) + 1))
    assert read(tmp_path) == ["text too long"]
