"""The next token of each row, by the row's own settings; a row's choice does not depend on the other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one row are chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p: the most likely tokens that together have this probability are drawn from.
        logprobs: None for none; otherwise the number of the most likely tokens to report beside the chosen one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    logprobs: int | None = None


@dataclass(frozen=True)
class Chosen:
    """A token that was chosen.

    Attributes:
        logprob: its log-probability under the model, before temperature and top_p; None unless asked for.
        top: the most likely tokens and their log-probabilities.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Dice:
    """The random numbers of one row: always the same for a seed, whatever the batch and the device."""

    seed: int | None = None
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)

    def roll(self) -> float:
        """A number from 0 to 1, exclusive of 1."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))


def choose(logits: Tensor, sampling: Sequence[Sampling], dice: Sequence[Dice]) -> list[Chosen]:
    """The next token of each of R rows, for logits (R, V)."""
    logits = logits.float()
    tokens = logits.argmax(-1)
    if drawn := [row for row, one in enumerate(sampling) if one.temperature > 0]:
        index = torch.tensor(drawn, device=logits.device)
        rolled = torch.tensor([dice[row].roll() for row in drawn], device=logits.device)
        tokens[index] = _draw(logits[index], [sampling[row] for row in drawn], rolled)
    most = max((one.logprobs for one in sampling if one.logprobs is not None), default=None)
    if most is None:
        return [Chosen(token) for token in tokens.tolist()]
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    values, ids = (t.tolist() for t in logprobs.topk(min(most, logits.shape[-1])))
    return [
        Chosen(token)
        if one.logprobs is None
        else Chosen(token, own[row], tuple(zip(ids[row], values[row], strict=True))[: one.logprobs])
        for row, (token, one) in enumerate(zip(tokens.tolist(), sampling, strict=True))
    ]


def _draw(logits: Tensor, sampling: Sequence[Sampling], rolled: Tensor) -> Tensor:
    """A token of each row, by inverting the cumulative probability of the tokens that top_p leaves.

    Args:
        rolled: (R,) numbers from 0 to 1.
    """
    temperature, top_p = (
        torch.tensor([value(one) for one in sampling], device=logits.device)[:, None]
        for value in (lambda one: one.temperature, lambda one: one.top_p)
    )
    # Subtracting the largest first, a tiny temperature divides nothing to infinity on both sides.
    scaled = (logits - logits.max(-1, keepdim=True).values) / temperature
    probability, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probability.cumsum(-1) - probability
    kept = probability * (before < top_p)  # the most likely token always stays
    kept[:, 0] = probability[:, 0]
    total = kept.cumsum(-1)
    # The first token whose cumulative probability exceeds the number; rounding may not choose one of probability 0.
    place = (total <= rolled[:, None].to(total) * total[:, -1:]).sum(-1, keepdim=True)
    last = (kept > 0).sum(-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(place, last))[:, 0]
