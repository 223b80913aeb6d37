"""Images and videos of requests: `data:` URLs, and remote ones where they are allowed -> what the model takes."""

from __future__ import annotations

import base64
import binascii
import re

import torch

from flamboyance.checks import brief
from flamboyance.evaluation.rices.feature_store import digest
from flamboyance.images import ImageError, load_image
from flamboyance.processing import FlamingoProcessor, PreparedMedium
from flamboyance.serving.batching import Engine, Picture
from flamboyance.serving.errors import ApiError, bad
from flamboyance.serving.limits import Limits
from flamboyance.serving.videos import SlowVideoError, VideoDecoder
from flamboyance.videos import find_video

_DATA = re.compile(r"data:((image|video)/[\w.+-]+|application/octet-stream)?(;[\w=.+-]+)*;base64,", re.ASCII | re.I)


def decode_url(url: str, place: str, limits: Limits) -> bytes:
    """The content of a `data:` URL.

    Raises:
        ApiError: it is another URL, a path, too large, or its base64 is damaged.
    """
    found = _DATA.match(url)
    if found is None:
        expected = "expected a URL as data:image/png;base64,… or data:video/mp4;base64,…"
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
    return bad(place, f"{place}: the file is larger than {most}; scale it down", "image_too_large")


def no_videos(place: str) -> ApiError:
    """The model is one of still images."""
    return bad(
        place,
        f"{place} is a video or an animation, and this model is one of still images; send one frame as an image",
        "video_not_supported",
    )


class PictureReader:
    """Decodes and preprocesses images and videos. What the engine has kept is not decoded again.

    `read` may be called in any thread, and `read_video` too; videos are decoded one at a time.
    """

    def __init__(self, engine: Engine, processor: FlamingoProcessor, limits: Limits):
        self.engine, self.processor, self.limits = engine, processor, limits
        self._preprocessing = f"{processor.image_processor} {processor.video}".encode()
        self._decoder = VideoDecoder(limits.video_seconds, limits.video_pixels, limits.video_memory)

    @property
    def takes_videos(self) -> bool:
        return self.processor.video is not None

    def close(self) -> None:
        self._decoder.close()

    def read(self, source: str | bytes, place: str) -> Picture | bytes:
        """
        Args:
            source: a `data:` URL, or the content of a file.

        Returns:
            The picture, or the content of a video, for `read_video`.

        Raises:
            ApiError: no such URL, too large, no image, or a video for a model of still images.
        """
        data = decode_url(source, place, self.limits) if isinstance(source, str) else source
        if len(data) > self.limits.image_bytes:
            raise too_large(place, self.limits)
        key = self._key(data)
        known = self.engine.kept(key)
        if known is not None:
            return Picture(key, known)
        try:
            if data and find_video(data) is not None:
                if not self.takes_videos:
                    raise no_videos(place)
                return data
            prepared: PreparedMedium = self.processor.prepare(load_image(data, max_pixels=self.limits.pixels))
        except ImageError as error:
            raise bad(place, f"{place}: {error}", "invalid_image") from None
        return Picture(key, prepared.pixels)

    def read_video(self, data: bytes, place: str) -> Picture:
        """
        Raises:
            ApiError: it cannot be decoded, its frames are too large, or it takes too much time or memory.
        """
        key = self._key(data)
        known = self.engine.kept(key)
        if known is not None:  # another request had it decoded meanwhile
            return Picture(key, known)
        assert self.processor.video is not None
        frames = self._decoder.frames(data, self.processor.video)
        try:
            pixels = torch.cat([self.processor.prepare(frame).pixels for frame in frames])
        except SlowVideoError as error:
            raise bad(place, f"{place}: {error}", "video_too_slow") from None
        except ImageError as error:
            raise bad(place, f"{place}: {error}", "invalid_video") from None
        return Picture(key, pixels)

    def _key(self, data: bytes) -> bytes:
        return digest(self._preprocessing + b"\0" + digest(data))
