"""Prompts that begin with the same demonstrations, which are tokenized, encoded and computed once.

FewShotTask and evaluation both build their prompts here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.cache import RoomyLayer, branch, empty, is_plain, moved, roomy
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor
from flamboyance.templates import END_OF_CHUNK_TOKEN, Template, well_formed


@dataclass(frozen=True)
class Prefix:
    """Demonstrations, computed: what a model keeps of them for the queries that follow.

    Attributes:
        ids: (P,) token ids; the last one is `<|endofchunk|>`.
        media: their images, one row of Media; None if they have none.
        layers: for each layer of the language model the keys and values, (1, heads, P, width of a head) each.
        state: the language model's whole cache, if its layers hold anything but keys and values; `layers` is empty
            then.
    """

    ids: Tensor
    media: Media | None
    layers: tuple[tuple[Tensor, Tensor], ...]
    state: DynamicCache | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: FlamingoForConditionalGeneration, ids: Tensor, media: Media | None) -> "Prefix":
        """Computes (P,) tokens; `media` has one row, their images."""
        cache = empty(model.config.text_config)
        model(input_ids=ids[None], media=media, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if not is_plain(cache):
            return cls(ids, media, (), cache)
        layers: list[Any] = cache.layers
        return cls(ids, media, tuple((layer.keys, layer.values) for layer in layers))

    def to(self, device: torch.device) -> "Prefix":
        """The same values on another device."""
        media = self.media
        if media is not None:
            pairs = tuple((k.to(device), v.to(device)) for k, v in media.keys_values)
            media = Media(media.latents.to(device), pairs, media.rows)
        layers = tuple((k.to(device), v.to(device)) for k, v in self.layers)
        return Prefix(self.ids.to(device), media, layers, None if self.state is None else moved(self.state, device))

    def before(self, media: Media) -> Media:
        """The media of whole prompts, given those of their queries."""
        return media if self.media is None else self.media.repeat(len(media.rows)).append(media)

    def cache(self, shifts: Sequence[int], share: bool) -> DynamicCache | None:
        """A cache of P tokens for a batch. In row i the demonstrations start `shifts[i]` places later, behind padding,
        and the last `shifts[i]` of their tokens are left out.

        So every row is one stretch of real tokens behind its padding, whatever the lengths of the queries: exact for
        relative (ALiBi) as for absolute positions. If all rows start at once, they share one copy, provided that the
        model can attend to it (`share`).

        None if the language model's state would have to be shifted and cannot be, because it is not keys and values:
        the prompts are then computed whole.
        """
        if self.state is not None:
            return None if any(shifts) else branch(self.state, len(shifts))
        cache = roomy()
        if share and not any(shifts):
            cache.layers = [RoomyLayer(before=(pair,)) for pair in self.layers]
            return cache
        for i, (keys, values) in enumerate(self.layers):
            cache.update(_shifted(keys, shifts), _shifted(values, shifts), i)
        return cache


def prompt_inputs(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    queries: Sequence[str],
    media: Media,
    prefix: Prefix | None = None,
) -> dict[str, Any]:
    """The arguments of `generate` and `score` for a batch of prompts, padded on the left.

    Args:
        queries: what follows the prefix in each prompt; the whole prompts if there is no prefix.
        media: the images of the whole prompts.
        prefix: the demonstrations that every prompt begins with. They are in the cache, and not computed again.
    """
    if prefix is None:
        rows = processor.tokenize(list(queries))
    else:
        rows = [[*prefix.ids.tolist(), *ids] for ids in tokens_after_a_chunk(processor, queries)]
    inputs: dict[str, Any] = {name: tensor.to(model.device) for name, tensor in processor.pad(rows).items()}
    inputs["media"] = media
    if prefix is not None:
        width = inputs["input_ids"].shape[1]
        inputs["past_key_values"] = prefix.cache([width - len(row) for row in rows], model.shares_prompts)
    return inputs


def generate_texts(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, inputs: dict[str, Any], **options: Any
) -> list[str]:
    """The text that `generate` writes after each prompt, without special tokens."""
    return generate_ended(model, processor, inputs, **options)[0]


def generate_ended(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, inputs: dict[str, Any], **options: Any
) -> tuple[list[str], list[bool]]:
    """As `generate_texts`, and whether each text was ended by a token that ends texts, not by its longest length."""
    options = {"num_return_sequences": 1} | options  # whatever the model's generation_config says
    out = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    ending = torch.tensor(ending_tokens(model, processor.tokenizer, processor.eoc_token_id), device=out.device)
    return processor.batch_decode(out, skip_special_tokens=True), torch.isin(out, ending).any(1).tolist()


def ending_tokens(model: GenerationMixin, tokenizer: Any, *further: int) -> list[int]:
    """The tokens that end a generated text, and those that fill it up afterwards."""
    config: Any = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    known = [*ends, config.pad_token_id, *further, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return [int(token) for token in dict.fromkeys(known) if token is not None]


def completion_tokens(
    processor: FlamingoProcessor, template: Template, query: str, labels: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """The tokens of each label where it follows a query."""
    return tokens_after(processor, query, [template.completion(label) for label in labels])


def by_completions(
    processor: FlamingoProcessor, template: Template, queries: Sequence[str], labels: Sequence[str]
) -> dict[tuple[tuple[int, ...], ...], list[int]]:
    """The labels' tokens, and the places of the queries that they follow so. Mostly there is one entry: a label has
    other tokens only where it begins or continues a word, as after an empty query."""
    found: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    tokens = {query: completion_tokens(processor, template, query, labels) for query in dict.fromkeys(queries)}
    for place, query in enumerate(queries):
        found.setdefault(tokens[query], []).append(place)
    return found


def tokens_after(processor: FlamingoProcessor, text: str, continuations: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The tokens of each continuation where it follows a text: tokenizers may write a word differently at a text's
    beginning."""
    before, *wholes = processor.tokenize([text, *(text + more for more in continuations)])
    alone = processor.tokenizer(list(map(well_formed, continuations)), add_special_tokens=False)["input_ids"]
    return tuple(
        tuple(whole[len(before) :] if len(before) < len(whole) and whole[: len(before)] == before else ids)
        for whole, ids in zip(wholes, alone, strict=True)
    )


def tokens_after_a_chunk(processor: FlamingoProcessor, queries: Sequence[str]) -> list[list[int]]:
    """The tokens of each text where it follows `<|endofchunk|>`. Tokenizers split a text at such a token before all
    else, so what comes before it has no influence."""
    rows = processor.tokenize([END_OF_CHUNK_TOKEN + query for query in queries], add_special_tokens=False)
    return [ids[ids.index(processor.eoc_token_id) + 1 :] for ids in rows]


def _shifted(t: Tensor, shifts: Sequence[int]) -> Tensor:
    """(1, H, P, K) -> (rows, H, P, K), row i moved `shifts[i]` places to the right, zeros before it."""
    if not any(shifts):
        return t.expand(len(shifts), -1, -1, -1)
    length = t.shape[2]
    out = t.new_zeros(len(shifts), *t.shape[1:])
    for row, shift in enumerate(shifts):
        out[row, :, shift:] = t[0, :, : max(length - shift, 0)]
    return out
