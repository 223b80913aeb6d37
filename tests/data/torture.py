"""Shards with everything that goes wrong in data from the web, as real files, and what each of it should cost."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamboyance.data.documents import Source
from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs
from tests.data.files import Files, jpeg, pair, tar_bytes

SENTENCES = ["a red cat", "a blue dog", "what is this"]


@dataclass(frozen=True)
class Torture:
    """A source, and what one pass over its shards gives.

    Attributes:
        drops: how many are dropped, by reason.
        documents: how many are good.
    """

    source: Source
    drops: dict[str, int]
    documents: int


def write(folder: Path, batch_size: int = 2) -> dict[str, Torture]:
    """Writes the shards of two sources, "pairs" and "pages", into `folder`."""
    return {
        "pairs": _pairs(folder / "pairs", batch_size),
        "pages": _pages(folder / "pages", batch_size),
    }


def _pairs(folder: Path, batch_size: int) -> Torture:
    folder.mkdir(parents=True)
    good = tar_bytes(_good(0, 3))
    second = good.index(b"00001.jpg\0")  # where a header begins
    shards = {
        "good.tar": tar_bytes(_good(10, 8)),
        "truncated.tar": good[: second + 700],
        "zero_bytes.tar": b"",
        "not_a_tar.tar": b"<html><body>404 Not Found</body></html>\n" * 200,
        "claims_3_gb.tar": _claiming(good, second, 3 << 30),
        "broken_header.tar": good[:second] + b"\xff" * 64 + good[second + 64 :],
        "broken.tar.gz": gzip.compress(good)[:15] + b"\xff" * 1000,
        "images.tar": tar_bytes(_bad_images()),
        "texts.tar": tar_bytes(_bad_texts()),
    }
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    names = tuple(str(folder / name) for name in (*shards, "mis{0..1}sing.tar"))
    (folder / "mis1sing.tar").write_bytes(tar_bytes(_good(30, 1)))
    drops = {
        "truncated tar": 1,
        "empty shard": 1,
        "not a tar": 1,
        "tar member larger than 256 MB": 1,
        "damaged tar header": 1,
        "damaged gzip": 1,
        "shard cannot be read: FileNotFoundError": 1,
        "no image": 3,  # one has none; of two, its member was lost
        "damaged image": 4,
        "image too large": 1,
        "text is not UTF-8": 1,
        "no caption": 2,
    }
    # 1 in the truncated tar, 2 in each of the two with a false header, 2 in each of the last two
    return Torture(Pairs(shards=names, batch_size=batch_size, shuffle=5), drops, 8 + 1 + 2 + 2 + 2 + 2 + 1)


def _pages(folder: Path, batch_size: int) -> Torture:
    folder.mkdir(parents=True)
    nan = [[float("nan")] * len(SENTENCES)]
    pages: list[tuple[str, bytes]] = [
        ("00.json", _page(1)),
        ("01.json", _page(2)),
        ("02.json", _page(1, similarity_matrix=nan)),
        ("03.json", _page(0)),
        ("04.json", _page(200)),
        ("05.json", _page(1)[:-30]),
        ("06.json", _page(1).replace(b"red", b"\xff\xfe\xfd")),
        ("07.json", _page(1, text_list=[])),
        ("08.json", _page(1, similarity_matrix=[[0.5]])),
        ("09.json", _page(1, image_info=[{"image_base64": "%%%"}])),
        ("10.json", _page(1, image_info=[{"image_base64": base64.b64encode(b"no image" * 9).decode()}])),
        ("11.json", b"[" * 100_000),
        ("12.json", _page(1, image_info=[{"image_name": "../../etc/passwd"}])),
        ("13.json", _page(3, text_list=SENTENCES, similarity_matrix=[[0.9, 0.1, 0.1], nan[0], [0.1, 0.1, 0.9]])),
        ("14.json", b"{}"),
        ("15.txt", b"no page at all"),
    ]
    (folder / "pages.tar").write_bytes(tar_bytes(pages))
    source = MMC4(
        shards=str(folder / "*.tar"),
        batch_size=batch_size,
        shuffle=5,
        reject_single=0.0,
        min_image_bytes=0,
        max_images=6,
    )
    drops = {
        "no image similar enough": 1,
        "no image_info": 1,
        "broken JSON": 3,
        "no text_list": 2,
        "broken similarity_matrix": 1,
        "damaged image": 2,
        "no image available": 1,
        "no .json": 1,
    }
    return Torture(source, drops, 4)


def _good(first: int, count: int) -> list[tuple[str, bytes]]:
    return [file for number in range(first, first + count) for file in pair(number)]


def _claiming(tar: bytes, at: int, size: int) -> bytes:
    """The tar with the header at `at` claiming that its member has `size` bytes, under a sound checksum."""
    header = bytearray(tar[at : at + 512])
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return tar[:at] + bytes(header) + tar[at + 512 :]


def _bad_images() -> Files:
    whole = jpeg(100, (64, 64))
    corrupt = whole[:200] + bytes(reversed(whole[200:]))
    images = {"corrupt": corrupt, "truncated": whole[: len(whole) // 2], "other": b"GIF? no", "empty": b""}
    for name, image in [*images.items(), ("huge", huge_png())]:
        yield from [(f"{name}.jpg", image), (f"{name}.txt", b"a red cat")]
    yield from _good(40, 2)


def _bad_texts() -> Files:
    yield from [("a.jpg", jpeg(101)), ("a.txt", b"caf\xe9 \xff\xfe")]
    yield from [("b.jpg", jpeg(102)), ("b.txt", b" \n")]
    yield ("c.jpg", jpeg(103))
    yield ("d.txt", b"a red cat")
    yield from _good(50, 2)


def huge_png(side: int = 30_000) -> bytes:
    """A sound PNG of side x side black pixels, in about 100 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = bytes(1 + side // 8)  # one bit a pixel
    packer, packed = zlib.compressobj(9), io.BytesIO()
    for _ in range(side):
        packed.write(packer.compress(row))
    packed.write(packer.flush())
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", packed.getvalue()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _page(images: int, **changed: Any) -> bytes:
    """A page of MMC4 with so many images, all of them well matched to their sentences."""
    sentences = SENTENCES * (1 + images // len(SENTENCES))
    page = {
        "text_list": sentences,
        "image_info": [{"image_base64": base64.b64encode(jpeg(n)).decode()} for n in range(images)],
        "similarity_matrix": [[0.9 if n == m else 0.1 for m in range(len(sentences))] for n in range(images)],
    }
    return json.dumps(page | changed).encode()
