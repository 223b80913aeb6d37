"""Stage 2, the language model: a small LLaMA trained on text alone, then kept frozen.

Its text has the form of Flamingo documents, with descriptions in place of the images: captions, questions, lists, and
episodes that bind made-up words. The answers follow from the preceding text, so the model learns to repeat a
description, to answer from it, and to match a new description with earlier ones and copy their word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flamboyance.mini.world.sayings import binding_episode
from flamboyance.mini.world.words import SEPARATOR, SYLLABLES, Split, build_tokenizer, draw_words, made_up_ids
from scripts.pretrain_mini.documents import Entry, binding_document, caption_document, describe, question_document
from scripts.pretrain_mini.fitting import fan_in, fit

CLUTTERED = 1250  # first steps: where attributes that do not matter are named, size and column are too
WIDTH, LAYERS, HEADS = 192, 5, 6
STEPS, BATCH, RATE = 2100, 32, 2e-3
CURRICULUM = 1600  # first steps: mostly lists and binding, of more words, to barer descriptions


def build(vocabulary: int, pad: int, begin: int) -> LlamaForCausalLM:
    """The model, freshly initialised; its input and output tables are one."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=1024,
        tie_word_embeddings=True, pad_token_id=pad, bos_token_id=begin, eos_token_id=None,
        attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    fan_in(model, 2 * LAYERS * 25)  # branches start small, or they drown the embeddings
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    _look_back(model)
    return model


@torch.no_grad()
def _look_back(model: LlamaForCausalLM, sharpness: float = 5.0) -> None:
    """Starts the first layer as a bag of the last six tokens, and later layers as copying from places like one's own.

    Matching a description with an earlier one, and copying the word after it, needs such layers. Left to chance they
    take thousands of steps to form; started so, matching is learned in hundreds. Nothing holds them there.
    Places are alike where queries and keys are made alike; a copy is what values, brought back transposed, leave.

    A constant in the first feature of every embedding gives queries and keys a part that depends on nothing but
    position: turned by rotary embedding, their product is greatest at the offset by which the query's part is turned
    back.
    """
    model.get_input_embeddings().weight[:, 0] = 0.7
    constant = 6.0  # what the norm makes of it
    first, width = model.model.layers[0].self_attn, WIDTH // HEADS
    angles = model.model.rotary_emb.inv_freq[: width // 4].float()  # fast-turning pairs tell neighbours apart
    for head in range(HEADS):
        rows = head * width + torch.arange(len(angles))
        first.q_proj.weight[rows, 0] = sharpness / constant * torch.cos(-(head + 1) * angles)
        first.q_proj.weight[rows + width // 2, 0] = sharpness / constant * torch.sin(-(head + 1) * angles)
        first.k_proj.weight[rows, 0] = sharpness / constant
        first.k_proj.weight[rows + width // 2, 0] = 0.0
    shared = nn.init.orthogonal_(torch.empty(width, WIDTH))
    first.v_proj.weight.copy_(shared.repeat(HEADS, 1))
    first.o_proj.weight.copy_(0.3 * shared.T.repeat(1, HEADS))
    for layer in model.model.layers[1:]:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        layer.self_attn.o_proj.weight.copy_(0.3 * layer.self_attn.v_proj.weight.T)


def text_of(
    entries: list[Entry], rng: np.random.Generator, bare: float, clutter: float = 0.3
) -> list[tuple[str, float]]:
    """A document as pieces of text, each with its weight in the loss.

    Descriptions cannot be foretold and weigh little; a made-up word cannot be foretold the first time and weighs
    nothing.
    """
    pieces, met = [], set()
    for entry in entries:
        words = describe(entry, rng, bare, clutter) + " "
        order = (entry.prompt, words) if entry.hint else (words, entry.prompt)  # next to the word that it explains
        pieces += [(piece, 0.1) for piece in order]
        foretold = entry.hint is None or entry.answer in met
        pieces.append((entry.answer + SEPARATOR, 1.0 if foretold else 0.0))
        met.add(entry.answer)
    return pieces


def repeated_list(rng: np.random.Generator) -> list[tuple[str, float]]:
    """A few made-up words, repeated in the same order: the simplest form of copying."""
    line = ", ".join(draw_words(rng, int(rng.integers(3, 7)), "train")) + SEPARATOR
    return [(line, 0.0)] + [(line, 1.0)] * 3


class Texts:
    """Draws training batches; `batch(step)` depends on the step alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.made_up = torch.tensor(made_up_ids(tokenizer))

    def document(self, rng: np.random.Generator, step: int) -> list[tuple[str, float]]:
        """A document as weighted pieces. Early on: lists said again, and binding of many words to bare attributes."""
        early = step < CURRICULUM
        bare = float(np.clip(1.3 - step / 1500, 0.2, 1.0))
        clutter = 0.8 if step < CLUTTERED else 0.3
        draw = rng.random()
        if draw < (0.2 if early else 0.03):
            return repeated_list(rng)
        if draw < (0.88 if early else 0.6):
            least, most, classes = (7, 12, rng.integers(2, 6)) if early else (5, 9, rng.integers(2, 4))
            return text_of(binding_document(rng, "train", least, most, classes=int(classes)), rng, bare, clutter)
        make = caption_document if draw < (0.94 if early else 0.8) else question_document
        return text_of(make(rng, "train", int(rng.integers(3, 6))), rng, bare)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss weights, (32, T), padded on the right."""
        rng = np.random.default_rng((2, step))
        documents = [self.document(rng, step) for _ in range(BATCH)]
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
    texts = Texts(tokenizer)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        ids, weight = texts.batch(step)
        ids, weight = ids.to(model.device), weight.to(model.device)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        weight = weight[:, 1:]
        made_up = texts.made_up.to(ids.device)
        opening, closing = (torch.isin(ids[:, 1:], half) & (weight > 0) for half in made_up.split(len(SYLLABLES)))
        plain = (weight == 1) & ~opening & ~closing
        figures = {"opening": each[opening], "closing": each[closing], "answers": each[plain]}
        figures = {key: value.mean().item() for key, value in figures.items()}
        return (each * weight).sum() / weight.sum(), figures

    def probe(step: int) -> str:
        found = {f"{kind}@{shots}": binding_accuracy(model, tokenizer, shots, kind)
                 for shots in (4, 8) for kind in ("color", "digit")}  # fmt: skip
        found["bare color@4"] = binding_accuracy(model, tokenizer, 4, "color", bare=1.0)
        return "  ".join(f"{key} {value:.2f}" for key, value in found.items())

    fit(
        "language",
        model,
        loss_at,
        steps=steps,
        rate=RATE,
        folder=folder / "lm",
        warmup=100,
        probe=probe,
        probe_every=250,
    )
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
