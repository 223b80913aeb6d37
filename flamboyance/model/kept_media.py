"""Keeps encoded images in memory, bounded in bytes: the least recently used one is dropped first."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from flamboyance.model.media import Media

Key = TypeVar("Key", bound=Hashable)


class KeptMedia(Generic[Key]):
    """Encoded images by a key, such as a path or a hash of the content.

    Args:
        most_bytes: of all that is kept.

    Attributes:
        bytes: of what is kept now.
    """

    def __init__(self, most_bytes: float):
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[Key, Media] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def get(self, key: Key) -> Media | None:
        """The image of this key, or None; the order of use stays. May be called from any thread."""
        return self._kept.get(key)

    def __getitem__(self, key: Key) -> Media:
        """The image of this key, which becomes the most recently used one."""
        self._kept.move_to_end(key)
        return self._kept[key]

    def keep(self, key: Key, value: Media) -> None:
        """Keeps an image, and drops others for which there is no more room."""
        if key in self._kept:
            self.bytes -= size(self._kept.pop(key))
        self.bytes += size(value)
        self._kept[key] = value
        while self.bytes > self.most_bytes and self._kept:
            self.bytes -= size(self._kept.popitem(last=False)[1])


def apart(media: Media) -> list[Media]:
    """One Media per image, whose memory can be freed separately."""
    return [
        Media(
            media.latents[i : i + 1].clone(),
            tuple((k[i : i + 1].clone(), v[i : i + 1].clone()) for k, v in media.keys_values),
            ((0,),),
        )
        for i in range(len(media.latents))
    ]


def size(media: Media) -> int:
    """Bytes of latents, keys and values."""
    tensors = [media.latents, *(t for pair in media.keys_values for t in pair)]
    return sum(t.numel() * t.element_size() for t in tensors)
