"""Several tokens after a recurrent state.

Every family continues such a state correctly token by token. With several tokens at once, some families silently return
other numbers in some versions of transformers.
"""

from typing import Any

import torch
from torch import Tensor

from flamboyance.model.media import Media


def one_by_one(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    media: Media | None,
    cache: Any,
    position_ids: Tensor | None,
    logits_to_keep: int | Tensor,
    images_seen: Tensor,
) -> Tensor:
    """The logits of a model's `forward` with these arguments, by one call per token.

    Raises:
        ValueError: there is padding before a token, and it would change the state.
    """
    new, past = input_ids.shape[1], cache.get_seq_length()
    if attention_mask is not None:
        real = attention_mask[:, -new:].long()
        if bool((real[:, :-1] < real[:, 1:]).any()):
            raise ValueError(
                f"attention_mask has padding before new tokens, after {past} tokens in the cache. It would change the "
                f"recurrent state of {type(model.language_model).__name__}: continue one row at a time, or give the "
                "whole text without a cache."
            )
    steps = []
    for i in range(new):
        shown = None if attention_mask is None else attention_mask[:, : attention_mask.shape[1] - new + i + 1]
        out = model(
            input_ids=input_ids[:, i : i + 1],
            attention_mask=shown,
            media=media,
            past_key_values=cache,
            position_ids=None if position_ids is None else position_ids[..., i : i + 1],
            use_cache=True,
            images_seen=images_seen[:, i : i + 1],
        )
        steps.append(out.logits)
    logits = torch.cat(steps, dim=1)
    if isinstance(logits_to_keep, Tensor):
        return logits.flatten(0, 1)[logits_to_keep]
    return logits[:, -logits_to_keep:] if logits_to_keep else logits
