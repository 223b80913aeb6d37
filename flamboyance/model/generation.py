"""Generating after prompts with media, and scoring candidates: transformers' GenerationMixin, told about media.

Shape letters: B prompts, N media of a prompt, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from flamboyance import checks
from flamboyance.configuration import FlamingoConfig
from flamboyance.model.cache import NAME, branch, empty, given, is_recurrent
from flamboyance.model.media import Media, count_seen
from flamboyance.model.network import FlamingoModel, check_ids
from flamboyance.model.scoring import score_candidates


class GenerativeFlamingo(FlamingoModel, GenerationMixin):
    """A Flamingo that generates after prompts, and scores candidates."""

    def __init__(self, config: FlamingoConfig, *backbones: Any, **named_backbones: Any) -> None:
        super().__init__(config, *backbones, **named_backbones)
        self.generation_config.use_cache = True  # MPT's configurations say False

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        media_counts: Tensor | Sequence[int] | None = None,
        media: Media | None = None,
        attention_mask: Tensor | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """Transformers' `generate` (greedy, beams, sampling, streamers, …) on prompts with media.

        Media and prompts are computed once, whatever the number of beams or returned sequences. Ends at
        `<|endofchunk|>`; never emits `<image>` or added padding. To go on with a conversation, give the whole text so
        far, its past_key_values, and `media.append(model.encode_media(new_pixels))`.

        Args:
            input_ids: (B, T), padded on the left.
            pixel_values, media_counts, media: as in `forward`.
            kwargs: everything `GenerationMixin.generate` takes.

        Returns:
            (B·sequences, T + new tokens), prompt included, or transformers' output object on request.
        """
        attention_mask = self._mask(input_ids, attention_mask)
        media = self._media(input_ids, media, pixel_values, media_counts)
        told = 0 if attention_mask is None else attention_mask.shape[1] - input_ids.shape[1]
        seen = count_seen(input_ids, self.config.image_token_id, media, told)
        seen = F.pad(seen, (told, 0))  # columns for tokens that are in the cache and were not given again
        cache = given(kwargs.pop("past_key_values", None), kwargs.pop("cache", None))
        sequences, plain = self._sequences(kwargs), self._plain(kwargs)
        self.check_length(told + input_ids.shape[1], attention_mask, self._new_tokens(kwargs))
        if cache is None and plain:
            cache = empty(self.config.text_config, room=sequences == 1)
        looks_ahead = kwargs.get("assistant_model") is not None or self._named(kwargs).get("prompt_lookup_num_tokens")
        if looks_ahead and is_recurrent(empty(self.config.text_config) if cache is None else cache):
            raise ValueError(
                f"{type(self.language_model).__name__} has a recurrent state, which cannot go back from tokens that "
                "turn out wrong: generate without assistant_model and prompt_lookup_num_tokens."
            )
        if cache is not None and sequences > 1:
            known = cache.get_seq_length()
            # transformers leaves out what is in the cache only where it is given the whole text.
            if plain and not told and known < input_ids.shape[1] - 1:
                cache = branch(cache, 1, self.shares_prompts)
                self.read_prompts(input_ids[:, known:], attention_mask, media, seen, cache)
            # No other name holds the first one, so that its copy of the prompts, where rows cannot share it, is freed.
            cache = branch(cache, sequences, self.shares_prompts)
        if cache is not None:
            kwargs[NAME] = cache
        processors = LogitsProcessorList(logits_processor or [])
        processors.append(SuppressTokens(self._never_generated(), input_ids.device))
        kwargs |= {"attention_mask": attention_mask, "media": media, "images_seen": seen}
        generate: Any = super().generate
        return generate(input_ids=input_ids, logits_processor=processors, **kwargs)

    def read_prompts(
        self, new_ids: Tensor, attention_mask: Tensor | None, media: Media | None, images_seen: Tensor, cache: Any
    ) -> None:
        """Computes what a cache lacks of the prompts but for their last token, to go on from in as many ways as wanted.

        Args:
            new_ids: (B, T) the prompts' tokens that the cache lacks.
            attention_mask, images_seen: of the whole prompts.
        """
        mask = None if attention_mask is None else attention_mask[:, :-1]
        self(
            input_ids=new_ids[:, :-1],
            attention_mask=mask,
            media=media,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            images_seen=images_seen[:, -new_ids.shape[1] : -1],
        )

    def _mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """The mask that was given, checked; or one that hides the padding before each row's first token, if any."""
        check_ids(input_ids)
        if attention_mask is None:
            real = (input_ids != self.config.pad_token_id).long().cummax(1).values
            attention_mask = None if bool(real.all()) else real
        check_mask(input_ids, attention_mask)
        return attention_mask

    def _new_tokens(self, options: dict[str, Any]) -> int:
        """Tokens that may be generated, as far as it is said by their number."""
        places = (options, vars(options.get("generation_config") or object), vars(self.generation_config))
        return next((place["max_new_tokens"] for place in places if place.get("max_new_tokens")), 0)

    def _plain(self, options: dict[str, Any]) -> bool:
        """Whether nothing is asked of the prompt's own computation, nor another kind of cache."""
        named = self._named(options)
        wanted = ("cache_implementation", "output_attentions", "output_hidden_states", "assistant_model")
        return named.get("use_cache") is not False and not any(named.get(name) for name in wanted)

    def _named(self, options: dict[str, Any]) -> dict[str, Any]:
        """Every option of a generation that has a value, from wherever it was given."""
        places = (vars(self.generation_config), vars(options.get("generation_config") or object), options)
        return {name: value for place in places for name, value in place.items() if value is not None}

    def _sequences(self, options: dict[str, Any]) -> int:
        """Rows of text per prompt while generating: beams or returned sequences."""
        places = (options, vars(options.get("generation_config") or object), vars(self.generation_config))
        names = ("num_beams", "num_return_sequences")
        return max(next((place[name] for place in places if place.get(name)), 1) for name in names)

    def _never_generated(self) -> list[int]:
        """`<image>`, and padding where it is an added token (a language model's own may be its end of text)."""
        padding = self.config.pad_token_id
        return [self.config.image_token_id] + [padding] * (padding >= self.config.base_vocab_size)

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        past_key_values: Any = None,
        *,
        images_seen: Tensor,
        cache: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        prepare: Any = super().prepare_inputs_for_generation
        cache = given(past_key_values, cache)
        inputs = prepare(input_ids, **{NAME: cache}, **kwargs)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + self._first_position
        past = 0 if cache is None else cache.get_seq_length()
        # Generated tokens see what the prompt's last token saw, its last image: what a step sees when nothing is said.
        new = inputs["input_ids"].shape[1]
        if new == 1 and past >= images_seen.shape[1] - 1 and inputs.get("media") is not None:
            return {**inputs, "media": inputs["media"].last}
        columns = torch.arange(past, past + new).clamp(max=images_seen.shape[1] - 1)
        return {**inputs, "images_seen": images_seen[:, columns]}

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor,
        candidates: Sequence[str] | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        media_counts: Tensor | Sequence[int] | None = None,
        media: Media | None = None,
        normalize: str = "sum",
        past_key_values: Any = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Log-probability of each candidate as the continuation of each prompt; the prompts are computed once.

        Args:
            input_ids: (B, T), padded on the left.
            candidates: texts (the model needs its `.tokenizer`), or lists of token ids.
            normalize: "sum", or "mean" over the candidate's tokens (the papers' classification).
            past_key_values: a cache of the first tokens of input_ids; it is left as it was.
            batch_size: rows of text computed at a time.

        Returns:
            (B, candidates), float32.
        """
        attention_mask = self._mask(input_ids, attention_mask)
        checks.whole_number("batch_size", batch_size, 1)
        media = self._media(input_ids, media, pixel_values, media_counts)
        return score_candidates(
            self, input_ids, attention_mask, media, candidates, normalize, past_key_values, batch_size
        )


class SuppressTokens(LogitsProcessor):
    """Tokens that never come. (As transformers' SuppressTokensLogitsProcessor, which goes through the vocabulary for
    them at every step: 4 of the 54 ms of a step of 24 rows.)"""

    def __init__(self, tokens: Sequence[int], device: torch.device):
        self.tokens = torch.tensor(tokens, device=device)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores.index_fill(1, self.tokens, float("-inf"))


def check_mask(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """
    Raises:
        ValueError: ids are no table of them, the mask does not cover the tokens, or a row ends in padding.
    """
    check_ids(input_ids)
    if attention_mask is None:
        return
    if len(attention_mask) != len(input_ids) or attention_mask.shape[1] < input_ids.shape[1]:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} for input_ids of shape {tuple(input_ids.shape)}; "
            "expected a value for each token, those in the cache included."
        )
    padded = (attention_mask[:, -1] == 0).nonzero()
    if len(padded):
        raise ValueError(
            f"Row {int(padded[0])} ends in padding, so nothing follows its last token. Pad on the left: "
            "processor(…, padding_side='left')."
        )
