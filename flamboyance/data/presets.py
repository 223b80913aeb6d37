"""The published settings of OpenFlamingo's and Flamingo's training data."""

from __future__ import annotations

from typing import Any, Literal

from flamboyance.data.documents import Source
from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs

Shards = str | tuple[str, ...]


def openflamingo(
    laion: Shards,
    mmc4: Shards,
    chatgpt: Shards = (),
    batch_size: int = 32,
    protocol: Literal["aligned", "openflamingo"] = "aligned",
) -> dict[str, Source]:
    """OpenFlamingo's two sources (paper, section 3; its trainer).

    Args:
        laion, mmc4: shards.
        chatgpt: shards of ChatGPT sequences, mixed into the documents as for the 4B models.
        batch_size: documents per device. There are twice as many pairs.
        protocol: "openflamingo" repeats the errors of the original trainer; see `MMC4`.
    """
    documents = _joined(mmc4, chatgpt)
    return {
        "laion": Pairs(shards=laion, batch_size=2 * batch_size, weight=0.2, max_tokens=32, flip=0.5),
        "mmc4": MMC4(
            shards=documents,
            batch_size=batch_size,
            weight=1.0,
            max_tokens=256,
            flip=0.5,
            max_images=6,
            min_images=1,
            reject_single=0.5,
            similarity_threshold=0.24,
            assignment="one_to_one",
            min_image_bytes=11_000,
            window="start",
            next_image=0.0,
            protocol=protocol,
        ),
    }


def flamingo(
    laion: Shards, mmc4: Shards, captions: Shards = (), videos: Shards = (), batch_size: int = 32
) -> dict[str, Source]:
    """Flamingo's settings on public data: MMC4 in the place of M3W, LAION in that of ALIGN.

    Random windows of 256 tokens with up to five images; half of the documents attend to the next image; half of the
    captions follow a space. Settings that Flamingo lacks (threshold, assignment, image size) are OpenFlamingo's, but
    documents with one image are kept. Flamingo's colour augmentation is left out.

    Args:
        laion, mmc4: shards.
        captions: shards of pairs with longer texts, in the place of LTIP; () for none.
        videos: shards of videos with texts, in the place of VTP; () for none.
        batch_size: documents per device. There are twice as many pairs of each kind, and a quarter as many videos.
    """
    every: dict[str, Any] = {"flip": 0.5, "leading_space": 0.5}
    pairs = {"laion": Pairs(shards=laion, batch_size=2 * batch_size, weight=0.2, max_tokens=32, **every)}
    if captions:
        pairs["captions"] = Pairs(shards=captions, batch_size=2 * batch_size, weight=0.2, max_tokens=64, **every)
    if videos:
        pairs["videos"] = Pairs(shards=videos, batch_size=max(1, batch_size // 4), weight=0.03, max_tokens=32, **every)
    return {
        **pairs,
        "mmc4": MMC4(
            shards=mmc4,
            batch_size=batch_size,
            weight=1.0,
            max_tokens=256,
            flip=0.5,
            max_images=5,
            reject_single=0.0,
            window="random",
            next_image=0.5,
        ),
    }


def _joined(*shards: Shards) -> tuple[str, ...]:
    return tuple(one for given in shards for one in ([given] if isinstance(given, str) else given) if one)
