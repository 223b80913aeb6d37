"""What a processor makes of images and texts, as digests by which run.json names it: the weights' do not say."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from flamboyance.few_shot import tokenizer_digest


def described(processor: Any) -> dict[str, str | None]:
    """The digests of a processor of ours, or of transformers."""
    return {"preprocessing": _preprocessing(processor), "tokenizer": tokenizer_digest(processor.tokenizer)}


def _preprocessing(processor: Any) -> str | None:
    """None if images are prepared by a function of the user's own, of which nothing is known."""
    images, video = processor.image_processor, getattr(processor, "video", None)
    told = images.to_dict() if hasattr(images, "to_dict") else str(images)
    return None if " at 0x" in str(told) else digest([told, str(video)])


def digest(told: Any) -> str:
    """16 hexadecimal digits of a hash over what JSON can write."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
