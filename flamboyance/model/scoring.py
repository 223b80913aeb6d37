"""Log-probabilities of candidate completions; what candidates share is computed once."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flamboyance import checks
from flamboyance.model.cache import branch, empty
from flamboyance.model.media import Media, count_seen
from flamboyance.model.network import FlamingoModel
from flamboyance.templates import well_formed


def score_candidates(
    model: FlamingoModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    media: Media | None,
    candidates: Sequence[str] | Sequence[Sequence[int]],
    normalize: str,
    past_key_values: Any,
    batch_size: int,
) -> Tensor:
    """See `FlamingoForConditionalGeneration.score`. (B, T) and n candidates -> (B, n)."""
    if normalize not in ("sum", "mean"):
        raise ValueError(f"normalize={normalize!r}; expected 'sum' or 'mean' (over a candidate's tokens)")
    tokens = candidate_tokens(model, candidates)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    seen = count_seen(input_ids, model.config.image_token_id, media)
    if past_key_values is None:
        cache = empty(model.config.text_config)
    else:
        cache = branch(past_key_values, 1, model.shares_prompts)
    past = cache.get_seq_length()
    if past >= input_ids.shape[1]:
        raise ValueError(
            f"past_key_values has {past} tokens and input_ids {input_ids.shape[1]}; expected the whole prompt in "
            "input_ids, and fewer tokens in the cache"
        )
    out = model(
        input_ids=input_ids[:, past:],
        attention_mask=mask,
        media=media,
        past_key_values=cache,
        logits_to_keep=1,
        images_seen=seen[:, past:],
        use_cache=True,
    )
    first = out.logits[:, -1].float().log_softmax(-1)
    scores = first[:, [c[0] for c in tokens]]

    # Candidates are grouped by length, so that short ones are not padded to the longest.
    longer = sorted((i for i, c in enumerate(tokens) if len(c) > 1), key=lambda i: len(tokens[i]))
    at_once = max(1, batch_size // len(input_ids))
    for start in range(0, len(longer), at_once):
        chosen = longer[start : start + at_once]
        scores[:, chosen] += _rest(model, [tokens[i] for i in chosen], mask, media, cache, seen[:, -1:])
    if normalize == "mean":
        scores /= torch.tensor([len(c) for c in tokens], device=scores.device)
    return scores


def _rest(
    model: FlamingoModel,
    tokens: list[list[int]],
    mask: Tensor,
    media: Media | None,
    cache: Any,
    seen: Tensor,
) -> Tensor:
    """Log-probability of each candidate's tokens after its first: (B, len(tokens))."""
    prompts, n, longest = len(mask), len(tokens), max(len(c) for c in tokens)
    padded = torch.full((n, longest), model.config.pad_token_id, device=mask.device)
    real = torch.zeros((n, longest), dtype=mask.dtype, device=mask.device)
    for i, c in enumerate(tokens):
        padded[i, : len(c)] = torch.tensor(c, device=mask.device)
        real[i, : len(c)] = 1
    ids, real = padded.repeat(prompts, 1), real.repeat(prompts, 1)
    logits = model(
        input_ids=ids[:, :-1],
        attention_mask=torch.cat([mask.repeat_interleave(n, 0), real[:, :-1]], dim=1),
        media=media,
        past_key_values=branch(cache, n, model.shares_prompts),
        images_seen=seen.expand(-1, longest - 1),
        use_cache=True,
    ).logits
    # A few rows at a time, which fit in the CPU's cache.
    few = max(1, 2**20 // logits[0].numel()) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(few), ids[:, 1:, None].split(few), strict=True)
    picked = torch.cat([part.float().log_softmax(-1).gather(-1, wanted) for part, wanted in parts])[..., 0]
    return (picked * real[:, 1:]).sum(1).view(prompts, n)


def candidate_tokens(model: FlamingoModel, candidates: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each candidate, without special tokens.

    Raises:
        ValueError: no candidates, an empty one, ids outside of the vocabulary, or texts for a model without a
            tokenizer.
    """
    candidates = checks.listed("candidates", candidates, "texts", "['yes', 'no']")
    if not candidates:
        raise ValueError("candidates is empty; expected a list of texts: ['yes', 'no']")
    for place, one in enumerate(candidates):
        if not isinstance(one, str | Iterable):
            raise ValueError(f"candidates[{place}] is {checks.brief(one)}; expected a text, or a list of token ids")
    texts = [c for c in candidates if isinstance(c, str)]
    if texts and getattr(model, "tokenizer", None) is None:
        raise ValueError(
            "candidates are texts, but the model has no tokenizer; set model.tokenizer = processor.tokenizer, or give "
            "lists of token ids"
        )
    read: Any = model.tokenizer
    tokens = [
        read(well_formed(c), add_special_tokens=False)["input_ids"] if isinstance(c, str) else [int(t) for t in c]
        for c in candidates
    ]
    for candidate, ids in zip(candidates, tokens, strict=True):
        if not ids:
            raise ValueError(f"candidate {candidate!r} has no tokens, and so no probability; remove it")
        if not 0 <= min(ids) <= max(ids) < model.config.vocab_size:
            raise ValueError(
                f"candidate {checks.brief(candidate)} has other ids than 0 to {model.config.vocab_size - 1}"
            )
    return tokens
