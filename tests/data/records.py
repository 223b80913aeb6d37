"""Records and images for the tests of the sources."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flamboyance.data.documents import Document, Record, Rejected, Source


def jpeg(colour: str = "red", bytes_at_least: int = 0) -> bytes:
    """A real JPEG; what follows its end makes it as long as wanted."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "JPEG")
    return file.getvalue().ljust(bytes_at_least, b"\0")


RED, GREEN, BLUE, WHITE = (jpeg(colour) for colour in ("red", "green", "blue", "white"))


def in_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def json_record(content: Any, folder: Path | None = None, **files: bytes) -> Record:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Record("0001", {"json": data, **files}, str(folder) if folder else None)


def read(source: Source, record: Record, seed: int = 0) -> Document:
    return source.document(record, np.random.default_rng(seed))


def reason(source: Source, record: Record) -> str:
    """Why a record is rejected."""
    try:
        found = read(source, record)
    except Rejected as rejected:
        return rejected.reason
    raise AssertionError(f"it was read: {found}")
