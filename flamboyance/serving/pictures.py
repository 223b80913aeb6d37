"""Images of requests: `data:` URLs, and remote ones where they are allowed -> what the model takes."""

from __future__ import annotations

import base64
import binascii
import re

from flamboyance.checks import brief
from flamboyance.evaluation.rices.feature_store import digest
from flamboyance.images import ImageError, load_image
from flamboyance.processing import FlamingoProcessor, PreparedMedium
from flamboyance.serving.batching import Engine, Picture
from flamboyance.serving.errors import ApiError, bad
from flamboyance.serving.limits import Limits

_DATA = re.compile(r"data:(image/[\w.+-]+|application/octet-stream)?(;[\w=.+-]+)*;base64,", re.ASCII | re.I)


def is_remote(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def decode_url(url: str, place: str, limits: Limits) -> bytes:
    """The content of a `data:` URL.

    Raises:
        ApiError: it is another URL, a path, too large, or its base64 is damaged.
    """
    found = _DATA.match(url)
    if found is None:
        expected = "expected a URL as data:image/png;base64,…"
        raise bad(place, f"{place} is {brief(url)}; {expected}. Paths and other URLs are not read", "invalid_image_url")
    text = url[found.end() :]
    if len(text) > 4 * (limits.image_bytes // 3 + 1):
        raise too_large(place, limits)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(place, f"{place}: its base64 cannot be decoded ({error})", "invalid_base64") from None


def too_large(place: str, limits: Limits) -> ApiError:
    most = f"{limits.image_bytes / 2**20:.0f} MiB"
    return bad(place, f"{place}: the image's file is larger than {most}; scale it down", "image_too_large")


class PictureReader:
    """Decodes and preprocesses images, in any thread. One that the engine has kept is not decoded again."""

    def __init__(self, engine: Engine, processor: FlamingoProcessor, limits: Limits):
        self.engine, self.processor, self.limits = engine, processor, limits
        self._preprocessing = str(processor.image_processor).encode()

    def read(self, data: bytes, place: str) -> Picture:
        """
        Raises:
            ApiError: too large, or no image.
        """
        if len(data) > self.limits.image_bytes:
            raise too_large(place, self.limits)
        key = digest(self._preprocessing + b"\0" + digest(data))
        known = self.engine.kept(key)
        if known is not None:
            return Picture(key, known)
        try:
            image = load_image(data, max_pixels=self.limits.pixels)
        except ImageError as error:
            raise bad(place, f"{place}: {error}", "invalid_image") from None
        prepared: PreparedMedium = self.processor.prepare(image)
        return Picture(key, prepared.pixels)
