"""The checks of flamingo-small's frozen parts, on parts whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts.pretrain_small.checks import NOUNS, binding, episode, ridge, summary
from scripts.small_world.madeup import Words

WIDTH, VOCABULARY = 64, 512


def tokenizer(text: str, add_special_tokens: bool = False) -> SimpleNamespace:
    """A token per word, and one for a line break."""
    assert not add_special_tokens
    return SimpleNamespace(
        input_ids=[2 + sum(map(ord, word)) % 500 if word != "\n" else 1 for word in text.split(" ") if word]
    )


class Copier:
    """Continues with what followed the embedding that is most like the last one: perfect binding. With `first`, it
    always continues with the first word."""

    def __init__(self, first: bool = False):
        self.table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
        self.first = first

    def get_input_embeddings(self) -> SimpleNamespace:
        return SimpleNamespace(weight=self.table)

    def __call__(self, inputs_embeds: Tensor, logits_to_keep: int) -> SimpleNamespace:
        row = inputs_embeds[0]
        same = torch.nn.functional.cosine_similarity(row[:-1], row[-1:], dim=1)
        place = 0 if self.first else int(same.argmax())
        return SimpleNamespace(logits=(row[place + 1] @ self.table.T)[None, None])


def shares(table: str) -> list[list[float]]:
    return [[float(cell) for cell in line.split("|")[4:-1]] for line in table.splitlines()[2:]]


def test_a_copier_binds_and_the_first_word_is_chance() -> None:
    perfect = shares(binding(Copier(), tokenizer, trials=20))
    assert perfect[0] == [1.0] * 3 and perfect[4] == [1.0] * 3  # nothing between, no noise
    chance = shares(binding(Copier(first=True), tokenizer, trials=60))
    assert chance[0] == pytest.approx([0.5, 0.2, 0.2], abs=0.2)


def test_an_episode_shows_each_class_equally_often() -> None:
    model, rng = Copier(), np.random.default_rng(0)
    codes = {noun: torch.full((1, WIDTH), float(place)) for place, noun in enumerate(NOUNS)}
    inputs, firsts, asked = episode(
        model.table, lambda text: tokenizer(text).input_ids, codes.get, "", "\n", 5, 10, 0.0, Words(NOUNS), rng
    )
    kinds = [int(row[0]) for row in inputs if bool((row == row[0]).all())]
    assert len(inputs) == 10 * 3 + 1 and len(kinds) == 11 and len(set(kinds)) == 5 and len(set(firsts)) == 5
    assert all(kinds[:-1].count(kind) == 2 for kind in set(kinds))
    after = inputs[[int(row[0]) == kinds[-1] and bool((row == row[0]).all()) for row in inputs].index(True) + 1]
    assert torch.equal(after, model.table[firsts[asked]])


def test_ridge_is_least_squares_with_a_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    features, classes = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    found = ridge(features, classes, strength=1e-4)(features)
    design = torch.cat([features, torch.ones(60, 1)], 1).double()
    targets = torch.nn.functional.one_hot(classes).double()
    best = design @ torch.linalg.lstsq(design, targets).solution
    torch.testing.assert_close(found.double(), best, atol=1e-4, rtol=1e-4)
    assert summary(torch.tensor([[[1.0, 5.0], [3.0, 1.0]]])).tolist() == [[2.0, 3.0, 3.0, 5.0]]
