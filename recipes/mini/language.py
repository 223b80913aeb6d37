"""Stage 2, the language model: a small LLaMA trained on text alone, then kept frozen.

Its text has the shape that Flamingo documents will have once a picture stands where words about the scene stand here:
captions, questions, lists, and episodes that bind made-up words. Answers follow from what precedes them, so the model
learns to read a description out, to answer from it, and to match a new description with earlier ones and copy their word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.mini.documents import (
    Entry,
    binding_document,
    binding_episode,
    caption_document,
    describe,
    question_document,
)
from recipes.mini.fitting import fan_in, fit
from recipes.mini.words import SEPARATOR, Split, build_tokenizer, made_up_ids

WIDTH, LAYERS, HEADS = 192, 5, 6
STEPS, BATCH, RATE = 4000, 32, 2e-3
CURRICULUM = 0.4  # of the steps are mostly binding, with few classes and plain descriptions


def build(vocabulary: int, pad: int, begin: int) -> LlamaForCausalLM:
    """The model, freshly initialised; its input and output tables are one."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=1024,
        tie_word_embeddings=True, pad_token_id=pad, bos_token_id=begin, eos_token_id=None,
        attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    fan_in(model, 2 * LAYERS)
    nn.init.normal_(model.get_input_embeddings().weight, std=WIDTH**-0.5)
    return model


def text_of(entries: list[Entry], rng: np.random.Generator, bare: float) -> list[tuple[str, float]]:
    """A document as pieces of text, each with its weight in the loss.

    Descriptions cannot be foretold and weigh little; a made-up word cannot be foretold the first time and weighs nothing.
    """
    pieces, met = [], set()
    for entry in entries:
        pieces.append((describe(entry, rng, bare) + " ", 0.1))
        pieces.append((entry.prompt, 0.1))
        foretold = entry.hint is None or entry.answer in met
        pieces.append((entry.answer + SEPARATOR, 1.0 if foretold else 0.0))
        met.add(entry.answer)
    return pieces


class Texts:
    """Draws training batches; `batch(step)` depends on the step alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, steps: int = STEPS) -> None:
        self.tokenizer, self.steps = tokenizer, steps
        self.made_up = torch.tensor(made_up_ids(tokenizer))

    def document(self, rng: np.random.Generator, progress: float) -> list[tuple[str, float]]:
        early = progress < CURRICULUM
        bare = 0.8 * (1 - progress / CURRICULUM) + 0.2 if early else 0.2
        plain = 0.3 if early else 0.1
        draw = rng.random()
        if draw < (0.8 if early else 0.55):
            classes = int(rng.integers(1, 4)) if early else int(rng.integers(2, 4))
            return text_of(binding_document(rng, "train", 5, 9, classes=classes, plain=plain), rng, bare)
        make = caption_document if draw < (0.88 if early else 0.75) else question_document
        return text_of(make(rng, "train", int(rng.integers(3, 6))), rng, bare)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss weights, (32, T), padded on the right."""
        rng = np.random.default_rng((2, step))
        documents = [self.document(rng, step / self.steps) for _ in range(BATCH)]
        texts = [text for pieces in documents for text, _ in pieces]
        flat = self.tokenizer(texts, add_special_tokens=False).input_ids
        rows, weights, cursor = [], [], 0
        for pieces in documents:
            ids, weight = [self.tokenizer.bos_token_id], [0.0]
            for (_, importance), tokens in zip(pieces, flat[cursor : cursor + len(pieces)], strict=True):
                ids += tokens
                weight += [importance] * len(tokens)
            cursor += len(pieces)
            rows.append(torch.tensor(ids))
            weights.append(torch.tensor(weight))
        ids = nn.utils.rnn.pad_sequence(rows, True, self.tokenizer.pad_token_id)
        weight = nn.utils.rnn.pad_sequence(weights, True, 0.0)
        return ids, torch.where(torch.isin(ids, self.made_up), 3 * weight, weight)


@torch.no_grad()
def binding_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, shots: int, kind: str, split: Split = "test",
    episodes: int = 200, bare: float = 0.0, seed: int = 5,
) -> float:  # fmt: skip
    """Share of episodes, descriptions in full, where the right one of two unseen words is the likelier."""
    rng = np.random.default_rng((seed, shots, sum(map(ord, kind))))
    texts, right = [], []
    for _ in range(episodes):
        one = binding_episode(rng, shots, kind, split)
        pairs = [*one.demonstrations, (one.query, "")]
        entries = [Entry(scene, "Output:", word, kind) for scene, word in pairs]
        text = "".join(piece for piece, _ in text_of(entries, rng, bare))
        texts.append(text.removesuffix(SEPARATOR))
        other = next(word for word in one.candidates if word != one.answer)
        right.append([tokenizer(word, add_special_tokens=False).input_ids[0] for word in (one.answer, other)])
    inputs = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
    last = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits[:, -1].float().cpu()
    pair = last.gather(1, torch.tensor(right))
    return (pair[:, 0] > pair[:, 1]).float().mean().item()


def train(folder: Path, steps: int = STEPS) -> Path:
    """Trains the language model unless `folder/language` is there already; returns that directory."""
    target = folder / "language"
    if (target / "model.safetensors").exists():
        print(f"[language] kept: {target}")
        return target
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build(len(tokenizer), tokenizer.pad_token_id, tokenizer.bos_token_id)
    texts, made_up = Texts(tokenizer, steps), torch.tensor(made_up_ids(tokenizer))

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        ids, weight = texts.batch(step)
        ids, weight = ids.to(model.device), weight.to(model.device)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        weight = weight[:, 1:]
        nonce = torch.isin(ids[:, 1:], made_up.to(ids.device))
        figures = {"words": each[nonce & (weight > 0)].mean().item(), "answers": each[~nonce & (weight == 1)].mean().item()}
        return (each * weight).sum() / weight.sum(), figures

    def probe(step: int) -> str:
        found = {f"{kind}@{shots}": binding_accuracy(model, tokenizer, shots, kind)
                 for shots in (2, 4, 8) for kind in ("color", "shape", "digit")}  # fmt: skip
        return "  ".join(f"{key} {value:.2f}" for key, value in found.items())

    fit("language", model, loss_at, steps=steps, rate=RATE, folder=folder / "lm", probe=probe, probe_every=500)
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
