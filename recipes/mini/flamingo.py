"""Stage 3, the Flamingo: resampler, gated cross-attention and added tokens, trained on interleaved documents.

The tower and the language model are frozen. One-object captions come first, then captions, questions and digits, and
binding; without that order the gates stay almost shut.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, Media
from flamboyance.images import ImageProcessor
from recipes.mini import tower
from recipes.mini.documents import Entry, binding_document, caption_document, describe, question_document
from recipes.mini.fitting import fit
from recipes.mini.pool import Pool
from recipes.mini.world import SIDE, Scene

STEPS, BATCH, RATE = 3900, 32, 1.5e-3
RESAMPLER = {"depth": 2, "heads": 4, "dim_head": 32, "latents": 16, "ff_mult": 4}
CROSS_ATTENTION = {"heads": 4, "dim_head": 32, "ff_mult": 4}
CAPTIONS_ONLY, EASY = 200, 700  # steps: one-object captions until the one, binding of plain things until the other
SPELLED = ((1200, 2500), (2700, 3300))  # steps in which half the pictures of a binding document have what matters
# written beside them
OPENED, OPENING = 2700, 0.3  # the step at which the first two gates, else all but shut, are set to the given value
WEIGHTS = {"caption": 1.0, "question": 3.0, "binding": 3.0}  # of an answer's token in the loss


def build(vision: Path, language: Path) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new Flamingo around the two frozen backbones, and its processor."""
    spread = {"mean": (tower.MEAN,) * 3, "std": (tower.STD,) * 3}
    processor = FlamingoProcessor(
        ImageProcessor(size=(SIDE, SIDE), crop=None, **spread), AutoTokenizer.from_pretrained(language)
    )
    model = FlamingoForConditionalGeneration.from_backbones(
        str(vision), str(language), processor, interval=1, dtype=torch.float32,
        resampler=RESAMPLER, cross_attention=CROSS_ATTENTION, attn_implementation="eager",
    )  # fmt: skip
    with torch.no_grad():  # <|endofchunk|> ends an entry, as the separator does in the language model's text
        table = model.get_input_embeddings().weight
        row = processor.eoc_token_id - processor.base_vocab_size
        model.added_tokens.embedding[row] = table[processor.tokenizer.convert_tokens_to_ids(";")]
    return model, processor


def document(rng: np.random.Generator, step: int, pool: Pool) -> tuple[str, list[Entry]]:
    """One training document and its kind."""
    if step < CAPTIONS_ONLY:
        return "caption", caption_document(rng, "train", int(rng.integers(1, 5)), 1, pool)
    draw = rng.random()
    if draw < (0.4 if step < OPENED else 0.6):
        plain = 0.6 if step < EASY else 0.1
        return "binding", binding_document(rng, "train", 2, 8, plain=plain, source=pool)
    captions = 0.7 if step < SPELLED[0][0] else 0.5 if step < OPENED else 0.7  # by then captions are learned
    make, kind = (caption_document, "caption") if draw < captions else (question_document, "question")
    return kind, make(rng, "train", int(rng.integers(1, 5)), None, pool)


def media(model: FlamingoForConditionalGeneration, patches: torch.Tensor, counts: list[int]) -> Media:
    """What `model.encode_media` makes of pixels, from the tower's features (M, P, D) of rows of `counts` pictures."""
    latents = model.resampler(patches[:, None])
    pairs = tuple(block.attention.keys_values(latents) for block in model.cross_attention)
    ends = np.cumsum([0, *counts])
    return Media(latents, pairs, tuple(tuple(range(a, b)) for a, b in zip(ends, ends[1:], strict=False)))


class Batches:
    """Draws training batches; `batch(step)` depends on the step alone."""

    def __init__(self, processor: FlamingoProcessor, pool: Pool) -> None:
        self.processor, self.pool = processor, pool

    def batch(self, step: int) -> tuple[list[list[Scene]], dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Each row's scenes; token ids and mask; loss weights (32, T); and each token's kind (32, T): 0 no answer,
        1 caption, 2 question, 3 word."""
        rng = np.random.default_rng((3, step))
        documents = [document(rng, step, self.pool) for _ in range(BATCH)]
        spelled = 0.5 if any(first <= step < last for first, last in SPELLED) else 0.0
        rows = [self._tokens(kind, entries, rng, spelled) for kind, entries in documents]
        width = max(len(row) for row in rows)
        table = torch.zeros(3, BATCH, width)
        table[0] = self.processor.pad_token_id
        for row, tokens in enumerate(rows):
            table[:, row, : len(tokens)] = torch.tensor(tokens).T
        scenes = [[entry.scene for entry in entries] for _, entries in documents]
        ids = table[0].long()
        inputs = {
            "input_ids": ids,
            "attention_mask": (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long(),
        }
        return scenes, inputs, table[1], table[2]

    def _tokens(
        self, kind: str, entries: list[Entry], rng: np.random.Generator, spelled: float
    ) -> list[tuple[int, float, int]]:
        tokenizer, number = self.processor.tokenizer, 1 + ["caption", "question", "binding"].index(kind)
        pieces, met = [], set()
        for entry in entries:
            foretold = kind != "binding" or entry.answer in met  # a new word cannot be foretold
            met.add(entry.answer)
            weight = WEIGHTS[kind] if foretold else 0.0
            pieces.append(("<image>" + entry.prompt, 0.0, 0))
            if kind == "binding" and rng.random() < spelled:
                # Read beside one picture and looked for in the next: so each side of the match is learned by itself.
                pieces.append((describe(entry, rng, 1.0), 0.0, 0))
            pieces += [(entry.answer, weight, number if foretold else 0)]
            pieces += [("<|endofchunk|>", 1.0, 0)]
        ids = tokenizer([text for text, _, _ in pieces], add_special_tokens=False).input_ids
        tokens = [(tokenizer.bos_token_id, 0.0, 0)]
        for piece, (_, weight, mark) in zip(ids, pieces, strict=True):
            tokens += [(token, weight, mark) for token in piece]
        return tokens


def train(folder: Path, steps: int = STEPS) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """Trains, or goes on training, what is not frozen; a finished run's checkpoint is only read."""
    torch.manual_seed(0)
    model, processor = build(folder / "vision", folder / "language")
    batches = Batches(processor, Pool(model.vision))
    device = next(model.parameters()).device

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == OPENED:
            with torch.no_grad():
                for block in model.cross_attention[:2]:
                    block.attention_gate.fill_(OPENING)
        scenes, inputs, weight, mark = batches.batch(step)
        patches = batches.pool.patches([scene for row in scenes for scene in row]).to(device)
        inputs = {key: value.to(device) for key, value in inputs.items()}
        logits = model(**inputs, media=media(model, patches, [len(row) for row in scenes])).logits
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), inputs["input_ids"][:, 1:], reduction="none")
        weight, mark = weight[:, 1:].to(device), mark[:, 1:].to(device)
        right = (logits[:, :-1].argmax(-1) == inputs["input_ids"][:, 1:]).float()
        figures = {kind: right[mark == 1 + i].mean().item() for i, kind in enumerate(("caption", "question", "word"))}
        gates = [abs(block.attention_gate.item()) for block in model.cross_attention]
        return (each * weight).sum() / weight.sum(), figures | {"gate": float(np.mean(gates))}

    def probe(step: int) -> str:
        from recipes.mini import evaluate  # it imports this file's neighbours

        model.eval()
        return evaluate.glance(model, processor)

    fit(
        "flamingo",
        model,
        loss_at,
        steps=steps,
        rate=RATE,
        folder=folder / "flamingo",
        save_every=100,
        warmup=100,
        probe=probe,
        probe_every=1000,
    )
    return model.eval(), processor
