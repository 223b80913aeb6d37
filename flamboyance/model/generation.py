"""Generation after prompts with media, by transformers' GenerationMixin, and scores of candidates.

Shape letters: B prompts, N media of a prompt, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, LogitsProcessor, LogitsProcessorList

from flamboyance import checks
from flamboyance.configuration import FlamingoConfig
from flamboyance.model.cache import NAME, branch, empty, given, is_recurrent
from flamboyance.model.finite import refuse_nan
from flamboyance.model.media import Media, count_seen
from flamboyance.model.network import FlamingoModel, check_ids, check_mask_length
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
        frame_counts: Tensor | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Transformers' `generate` (greedy, beams, sampling, streamers, …) on prompts with media.

        Media and prompts are computed once, whatever the number of beams or returned sequences. Stops at
        `<|endofchunk|>`; never returns `<image>` or added padding. To continue a conversation, give its whole text, its
        past_key_values, and `media.append(model.encode_media(new_pixels))`. The given cache does not change, unless it
        is a static one.

        Args:
            input_ids: (B, T), padded on the left.
            pixel_values, media_counts, frame_counts, media: as in `forward`.
            kwargs: everything `GenerationMixin.generate` takes.

        Returns:
            (B·sequences, T + new tokens), prompt included, or transformers' output object on request
            (return_dict_in_generate). With output_attentions it has `.cross_attentions` too: for each new token a tuple
            as `forward` returns it, (rows, H, T, L) for the first one and (rows, H, 1, L) for the others. They belong
            to the step that chose the token. The rows of beam search are those of the step; `.beam_indices` leads back.

        Raises:
            ValueError: cache, mask and text do not fit each other; the text is too long; or the model computes NaN.
        """
        attention_mask = self._mask(input_ids, attention_mask)
        media = self._media(input_ids, media, pixel_values, media_counts, frame_counts=frame_counts)
        cache = given(kwargs.pop("past_key_values", None), kwargs.pop("cache", None))
        cached = 0 if attention_mask is None else attention_mask.shape[1] - input_ids.shape[1]
        _check_cached(cache, cached, input_ids)
        seen = count_seen(input_ids, self.config.image_token_id, media, cached)
        seen = F.pad(seen, (cached, 0))  # columns for tokens of the cache that are not in input_ids
        options = self._options(kwargs)
        sequences = max(options.get("num_beams") or 1, options.get("num_return_sequences") or 1)  # rows of a prompt
        special = ("cache_implementation", "output_attentions", "output_hidden_states", "assistant_model")
        plain = options.get("use_cache") is not False and not any(options.get(name) for name in special)
        self.check_length(cached + input_ids.shape[1], attention_mask, options.get("max_new_tokens") or 0)
        if cache is None and plain:
            cache = empty(self.config.text_config, room=sequences == 1)
        looks_ahead = options.get("assistant_model") or options.get("prompt_lookup_num_tokens")
        if looks_ahead and options.get("output_attentions"):
            raise ValueError(
                "output_attentions: not supported with assistant_model and prompt_lookup_num_tokens, which compute "
                "several tokens in a step; leave them out"
            )
        if looks_ahead and is_recurrent(empty(self.config.text_config) if cache is None else cache):
            raise ValueError(
                f"{type(self.language_model).__name__} has a recurrent state, which cannot drop rejected tokens; "
                "generate without assistant_model and prompt_lookup_num_tokens"
            )
        if cache is not None and sequences > 1:
            known = cache.get_seq_length()
            # transformers skips cached tokens only if input_ids has the whole text.
            if plain and not cached and known < input_ids.shape[1] - 1:
                cache = branch(cache, 1, self.shares_prompts)
                self.read_prompts(input_ids[:, known:], attention_mask, media, seen, cache)
            # No other name refers to the first cache, so that its copy of the prompts is freed if rows cannot share it.
            cache = branch(cache, sequences, self.shares_prompts)
        elif isinstance(cache, DynamicCache) and cache.get_seq_length():
            cache = branch(cache, 1, self.shares_prompts)  # the caller's stays a cache of the text that it was made of
        if cache is not None:
            kwargs[NAME] = cache
        processors = LogitsProcessorList([RefuseNaN(), *(logits_processor or [])])
        processors.append(SuppressTokens(self._never_generated(), input_ids.device))
        kwargs |= {"attention_mask": attention_mask, "media": media, "images_seen": seen}
        steps: list[Any] = []
        if options.get("output_attentions"):
            kwargs["attention_steps"] = steps
        generate: Any = super().generate
        out = generate(input_ids=input_ids, logits_processor=processors, **kwargs)
        if steps and options.get("return_dict_in_generate"):
            out["cross_attentions"] = tuple(steps)
        return out

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Keeps the cross-attention of each step, which transformers does for encoder-decoders alone."""
        if "attention_steps" in model_kwargs:
            model_kwargs["attention_steps"].append(outputs.cross_attentions)
        update: Any = super()._update_model_kwargs_for_generation
        return update(outputs, model_kwargs, *args, **kwargs)

    def read_prompts(
        self, new_ids: Tensor, attention_mask: Tensor | None, media: Media | None, images_seen: Tensor, cache: Any
    ) -> None:
        """Adds the prompts to a cache, except for their last tokens, so that it can be continued in several ways.

        Args:
            new_ids: (B, T) the tokens of the prompts that are not in the cache.
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
        """The given mask, checked; or one that hides the padding before each row's first token, if there is any."""
        check_ids(input_ids)
        if attention_mask is None:
            real = (input_ids != self.config.pad_token_id).long().cummax(1).values
            attention_mask = None if bool(real.all()) else real
        check_mask(input_ids, attention_mask)
        return attention_mask

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options of a generation that have a value: the model's, replaced by those of the call's configuration,
        replaced by those of the call."""
        config = given.get("generation_config")
        places = (vars(self.generation_config), {} if config is None else vars(config), given)
        return {name: value for place in places for name, value in place.items() if value is not None}

    def _never_generated(self) -> list[int]:
        """`<image>`, and padding if it is an added token (a language model's own may be its end of text)."""
        padding = self.config.pad_token_id
        return [self.config.image_token_id] + [padding] * (padding >= self.config.base_vocab_size)

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        past_key_values: Any = None,
        *,
        images_seen: Tensor,
        cache: Any = None,
        attention_steps: list[Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        prepare: Any = super().prepare_inputs_for_generation
        cache = given(past_key_values, cache)
        inputs = prepare(input_ids, **{NAME: cache}, **kwargs)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + self._first_position
        past = 0 if cache is None else cache.get_seq_length()
        # Generated tokens attend to the prompt's last image, or to all: the default of a decode step.
        new = inputs["input_ids"].shape[1]
        if new == 1 and past >= images_seen.shape[1] - 1 and inputs.get("media") is not None:
            return {**inputs, "media": self.media_of_steps(inputs["media"])}
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
        frame_counts: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probability of each candidate as the continuation of each prompt; the prompts are computed once.

        Args:
            input_ids: (B, T), padded on the left.
            pixel_values, media_counts, frame_counts, media: as in `forward`.
            candidates: texts (which need `model.tokenizer`), or lists of token ids.
            normalize: "sum", or "mean" over the candidate's tokens (the papers' classification).
            past_key_values: a cache of the first tokens of input_ids; it does not change.
            batch_size: rows of text that are computed together.

        Returns:
            (B, candidates), float32.
        """
        attention_mask = self._mask(input_ids, attention_mask)
        checks.whole_number("batch_size", batch_size, 1)
        if attention_mask is not None:
            check_mask_length(attention_mask, input_ids, 0)
        media = self._media(input_ids, media, pixel_values, media_counts, frame_counts=frame_counts)
        return score_candidates(
            self, input_ids, attention_mask, media, candidates, normalize, past_key_values, batch_size
        )


def _check_cached(cache: Any, cached: int, input_ids: Tensor) -> None:
    """Checks a cache against a text of which the first `cached` tokens are not in input_ids."""
    known, tokens = 0 if cache is None else cache.get_seq_length(), input_ids.shape[1]
    if cached not in (0, known) or (known and known >= cached + tokens):
        raise ValueError(
            f"the cache has {known} tokens, attention_mask {cached + tokens} and input_ids {tokens}; expected the "
            "whole text in input_ids, or the tokens after the cache with a mask of all, and one token or more that is "
            "not in the cache"
        )


class RefuseNaN(LogitsProcessor):
    """Raises a ValueError if the logits hold NaN, from which transformers would generate a text all the same."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        refuse_nan(scores, "the model's logits")
        return scores


class SuppressTokens(LogitsProcessor):
    """Tokens that are never generated. (transformers' SuppressTokensLogitsProcessor searches the vocabulary for them at
    every step: 4 of the 54 ms of a step of 24 rows.)"""

    def __init__(self, tokens: Sequence[int], device: torch.device):
        self.tokens = torch.tensor(tokens, device=device)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores.index_fill(1, self.tokens, float("-inf"))


def check_mask(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """
    Raises:
        ValueError: input_ids are not (rows, tokens), the mask does not cover the tokens, or a row ends in padding.
    """
    check_ids(input_ids)
    if attention_mask is None:
        return
    if len(attention_mask) != len(input_ids) or attention_mask.shape[1] < input_ids.shape[1]:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} for input_ids of shape {tuple(input_ids.shape)}; "
            "expected a value for each token, including those of the cache"
        )
    padded = (attention_mask[:, -1] == 0).nonzero()
    if len(padded):
        raise ValueError(
            f"row {int(padded[0])} of attention_mask ends in padding; expected padding on the left: "
            "processor(…, padding_side='left')"
        )
