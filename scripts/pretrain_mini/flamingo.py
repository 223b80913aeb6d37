"""Stage 3, the Flamingo: resampler, gated cross-attention and added tokens, trained on interleaved documents.

The tower and the language model are frozen. One-object captions come first, then captions, questions and digits, and
binding; without that order the gates stay almost shut.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.images import ImageProcessor
from flamboyance.mini.world.scenes import SIDE, Scene
from scripts.pretrain_mini import tower
from scripts.pretrain_mini.documents import Entry, binding_document, caption_document, describe, question_document
from scripts.pretrain_mini.fitting import fit
from scripts.pretrain_mini.pool import Pool

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
    images = ImageProcessor(size=(SIDE, SIDE), crop=None, **spread)
    images.save_pretrained(vision)  # the tower's own, not those of its kind
    processor = FlamingoProcessor(images, AutoTokenizer.from_pretrained(language))
    model = FlamingoForConditionalGeneration.from_backbones(
        str(vision), str(language), processor, cross_attn_every_n_layers=1, dtype=torch.float32,
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


@dataclass(frozen=True)
class Token:
    """A token of a training document.

    Attributes:
        weight: of its prediction in the loss.
        mark: 0 no answer, 1 caption, 2 question, 3 made-up word that can be foretold.
        names: the words that name what it sees, where stage 4 asks for them.
    """

    id: int
    weight: float = 0.0
    mark: int = 0
    names: tuple[str, ...] = ()


class Batches:
    """Draws training batches; `batch(step)` depends on the step alone."""

    def __init__(self, processor: FlamingoProcessor, pool: Pool, seed: int = 3) -> None:
        self.processor, self.pool, self.seed = processor, pool, seed

    def documents(self, rng: np.random.Generator, step: int) -> list[tuple[str, list[Entry]]]:
        return [document(rng, step, self.pool) for _ in range(BATCH)]

    def batch(
        self, step: int
    ) -> tuple[list[list[Token]], list[list[Scene]], dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Each row's tokens and scenes; token ids and mask; loss weights and marks (32, T)."""
        rng = np.random.default_rng((self.seed, step))
        documents = self.documents(rng, step)
        rows = [self._tokens(kind, entries, rng, self.spelled(step)) for kind, entries in documents]
        width = max(len(row) for row in rows)
        table = torch.zeros(3, BATCH, width)
        table[0] = self.processor.pad_token_id
        for row, tokens in enumerate(rows):
            table[:, row, : len(tokens)] = torch.tensor([(t.id, t.weight, t.mark) for t in tokens]).T
        scenes = [[entry.scene for entry in entries] for _, entries in documents]
        mask = (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()
        return rows, scenes, {"input_ids": table[0].long(), "attention_mask": mask}, table[1], table[2]

    def spelled(self, step: int) -> float:
        """Share of a binding document's images with the deciding attribute written next to them."""
        return 0.5 if any(first <= step < last for first, last in SPELLED) else 0.0

    def prompt(self, kind: str, entry: Entry) -> list[Token]:
        """The tokens before an entry's answer."""
        ids = self.processor.tokenizer("<image>" + entry.prompt, add_special_tokens=False).input_ids
        return [Token(i) for i in ids]

    def _tokens(self, kind: str, entries: list[Entry], rng: np.random.Generator, spelled: float) -> list[Token]:
        read, number = self.processor.tokenizer, 1 + ["caption", "question", "binding"].index(kind)
        tokens, met = [Token(read.bos_token_id)], set()
        for entry in entries:
            foretold = kind != "binding" or entry.answer in met  # a new word cannot be foretold
            met.add(entry.answer)
            tokens += self.prompt(kind, entry)
            if kind == "binding" and rng.random() < spelled:
                # Read beside one picture and looked for in the next: so each side of the match is learned by itself.
                tokens += [Token(i) for i in read(describe(entry, rng, 1.0), add_special_tokens=False).input_ids]
            answer = read(entry.answer, add_special_tokens=False).input_ids
            tokens += [Token(i, WEIGHTS[kind], number) if foretold else Token(i) for i in answer]
            tokens.append(Token(self.processor.eoc_token_id, 1.0))
        return tokens


def answer_loss(
    model: FlamingoForConditionalGeneration,
    pool: Pool,
    scenes: list[list[Scene]],
    inputs: dict[str, torch.Tensor],
    weight: torch.Tensor,
    mark: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted cross-entropy of a batch, and its figures."""
    device = next(model.parameters()).device
    patches = pool.patches([scene for row in scenes for scene in row]).to(device)
    inputs = {key: value.to(device) for key, value in inputs.items()}
    logits = model(**inputs, media=model.resample(patches[:, None], [len(row) for row in scenes])).logits
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), inputs["input_ids"][:, 1:], reduction="none")
    weight, mark = weight[:, 1:].to(device), mark[:, 1:].to(device)
    right = (logits[:, :-1].argmax(-1) == inputs["input_ids"][:, 1:]).float()
    figures = {kind: right[mark == 1 + i].mean().item() for i, kind in enumerate(("caption", "question", "word"))}
    gates = [abs(block.attention_gate.item()) for block in model.cross_attention]
    return (each * weight).sum() / weight.sum(), figures | {"gate": float(np.mean(gates))}


def glance(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> str:
    """A few scores on held-out data, for the training log."""
    from scripts.pretrain_mini import evaluate  # it imports this file's neighbours

    model.eval()
    found = evaluate.glance(model, processor)
    model.train()
    return found


def train(folder: Path, steps: int = STEPS) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """Trains the parameters that are not frozen, or resumes; a finished run's checkpoint is only read."""
    torch.manual_seed(0)
    model, processor = build(folder / "vision", folder / "language")
    batches = Batches(processor, Pool(model.vision))

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == OPENED:
            with torch.no_grad():
                for block in model.cross_attention[:2]:
                    block.attention_gate.fill_(OPENING)
        _, *batch = batches.batch(step)
        return answer_loss(model, batches.pool, *batch)

    def probe(step: int) -> str:
        return glance(model, processor)

    fit("flamingo", model, loss_at, steps=steps, rate=RATE, folder=folder / "flamingo", save_every=100, warmup=100,
        probe=probe, probe_every=1000)  # fmt: skip
    return model.eval(), processor
