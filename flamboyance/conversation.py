"""A conversation with a Flamingo, turn by turn: what was read before is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from flamboyance import checks
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.cache import branch, empty
from flamboyance.model.fingerprint import stamp
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor
from flamboyance.templates import (
    END_OF_CHUNK_TOKEN,
    IMAGE_TOKEN,
    MODEL,
    OPENING,
    USER,
    answered,
    asked,
    opened,
    well_formed,
)


class Conversation:
    """Turns of a user, with any images and videos, and of the model.

        talk = Conversation(model, processor)
        talk.say("What is this?", ["cat.jpg"])
        talk.say("What color is it?")

    The prompt is Flamingo's for dialogue: the opening, and for each turn `User: <image>…text` and `Flamingo: answer`.
    An answer is the one that the model gives to `text`, the same text as one prompt, with `media`. A turn computes the
    answer before it, which was computed token by token, and its own text; the rest is in the cache.

    Args:
        opening: what precedes the first turn; "" for nothing.

    Attributes:
        text: the whole prompt so far, up to the last answer.
        media: the images and videos so far, in order: prepared.
    """

    def __init__(
        self, model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, opening: str = OPENING
    ) -> None:
        self.model, self.processor = model, processor
        self.opening = _plain(opening, "opening")
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.text = opened(self.opening)
        self.media: list[Any] = []
        self._encoded: Media | None = None
        self._ids: list[int] = []  # those in the cache
        self._cache: Any = None
        self._stamp: Any = None  # of the model that computed them

    @torch.no_grad()
    def say(self, text: str, media: Sequence[Any] = (), *, max_new_tokens: int = 50, **generation: Any) -> str:
        """The model's answer to a turn. A turn that raises leaves the conversation as it was.

        Args:
            text: what the user says; may be empty if there are media.
            media: of this turn, before the text: anything that the processor reads.
            generation: further options of `generate`.

        Raises:
            ValueError: the text is empty without media, holds a special token, or the conversation is longer than the
                language model's context.
            ImageError: an image or video cannot be read.
        """
        said = _plain(text, "text").strip()
        if not said and not media:
            raise ValueError("text is empty, and there are no media; say something, or show an image")
        prepared = [self.processor.prepare(medium) for medium in media]
        if (current := stamp(self.model)) != self._stamp:  # weights, precision, device or adapters have changed
            self._encoded, self._ids, self._cache = self._with(None, self.media), [], None
            self._stamp = current
        prompt = asked(self.text, len(prepared), said)
        encoded = self._with(self._encoded, prepared)
        [ids] = self.processor.tokenize([prompt])
        whole = torch.tensor([ids], device=self.model.device)
        self.model.check_length(len(ids), None, max_new_tokens)
        # Tokenizers may split an answer otherwise than the model wrote it. Of a text that differs, nothing is reused.
        known = len(self._ids) if ids[: len(self._ids)] == self._ids and len(self._ids) < len(ids) - 1 else 0
        cache = branch(self._cache, 1) if known else empty(self.model.config.text_config)
        self.model(whole[:, known:-1], media=encoded, past_key_values=cache, use_cache=True, logits_to_keep=1)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False} | generation
        out = self.model.generate(whole, media=encoded, past_key_values=cache, **options)
        answer = answer_of(out[0, len(ids) :].tolist(), self.processor)
        self.text = answered(prompt, answer)
        self.media, self._encoded, self._ids, self._cache = [*self.media, *prepared], encoded, ids[:-1], cache
        return answer

    def _with(self, encoded: Media | None, prepared: Sequence[Any]) -> Media | None:
        """The encoded media and these."""
        if not prepared:
            return encoded
        pixels = [medium.pixels.to(self.model.device) for medium in prepared]
        new = self.model.encode_media(torch.cat(pixels), [len(pixels)], [len(frames) for frames in pixels])
        return new if encoded is None else encoded.append(new)


def answer_of(ids: Sequence[int], processor: FlamingoProcessor) -> str:
    """What the model wrote, up to its end, or to where it would write the user's next turn. On one line."""
    tokenizer = processor.tokenizer
    ends = {processor.eoc_token_id, processor.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    kept = list(takewhile(lambda token: token not in ends, ids))
    text = processor.decode(kept, skip_special_tokens=True)
    for turn in (USER, MODEL):
        text = text.partition(f"\n{turn}")[0]
    return " ".join(text.split())


def _plain(text: str, name: str) -> str:
    checks.text(name, text)
    for token in (IMAGE_TOKEN, END_OF_CHUNK_TOKEN):
        if token in text:
            raise ValueError(f"{name} contains {token!r}, which would alter the prompt; remove it")
    return well_formed(text)
