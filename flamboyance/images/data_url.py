"""A picture as a data URL, for a server that is asked over HTTP."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from flamboyance.images.loading import load_image

_ORIENTATION = 0x0112
_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def data_url(path: Path) -> str:
    """The image of a file as `data:image/…;base64,…`.

    A JPEG, PNG or WebP file of grey levels or RGB, which every reader shows alike, is sent as it is. Any other is sent
    as a PNG of what `load_image` gives: upright, on white, the same picture that a local model sees.

    Raises:
        ImageError: it cannot be read; names the file.
    """
    upright = load_image(path)
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as header:
        kind = _TYPES.get(header.format or "")
        plain = header.mode in ("L", "RGB") and "transparency" not in header.info
        plain = plain and header.getexif().get(_ORIENTATION, 1) == 1
    if kind is None or not plain:
        written = io.BytesIO()
        upright.save(written, "PNG")
        kind, content = "image/png", written.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
