"""Stage 4: the first block learns to name what it sees.

After stage 3 captions come from the last blocks alone. The first two gates stay almost shut, so the language model's
induction layers, which begin at its first layer, have nothing to match, and binding a made-up word to an image stays at
chance, however long the training. Here a second loss makes the first block add the words for what a token sees to that
token's hidden state: at the colon before a made-up word, the object's color and shape, or the digit; at a question's
word ("ring"), the other attributes of the objects that it refers to. The targets are the language model's own
embeddings, which its layers can read. A last short run has documents of up to nine images, to train on long prompts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.mini.world.words import COLORS, COLUMNS, SHAPES
from scripts.pretrain_mini import flamingo
from scripts.pretrain_mini.documents import Entry, binding_document, caption_document, question_document
from scripts.pretrain_mini.fitting import fit
from scripts.pretrain_mini.flamingo import BATCH, RATE, Token

STEPS, LONGER = 2200, 240
LONGER_RATE = 6e-4
BINDING, QUESTIONS = 0.45, 0.35  # shares of the documents; the rest are captions
BINDING_LONGER, QUESTIONS_LONGER = 0.35, 0.25
KINDS = ("thing", "thing", "digit", "digit", "color", "shape")
NAMING = 0.5  # of the naming loss in the whole
OPENING = 0.5  # the first gate, at the start of this stage
SEEDS = (30, 31)  # of the documents: of the stage, and of its last run, with longer ones


def document(rng: np.random.Generator, pool: flamingo.Pool, longer: bool) -> tuple[str, list[Entry]]:
    """One training document and its kind."""
    draw = rng.random()
    binding, asked = (BINDING_LONGER, QUESTIONS_LONGER) if longer else (BINDING, QUESTIONS)
    if draw < binding:
        classes = 2 if rng.random() < 0.8 else 3
        return "binding", binding_document(rng, "train", 2, 8, KINDS, classes=classes, source=pool)
    if draw < binding + asked:
        entries = rng.integers(1, 10) if longer else rng.integers(2, 6)
        return "question", question_document(rng, "train", int(entries), None, pool)
    return "caption", caption_document(rng, "train", int(rng.integers(1, 10 if longer else 5)), None, pool)


def names(kind: str, entry: Entry, words: list[str]) -> list[tuple[str, ...]]:
    """For each token of an entry's prompt, the words for what it sees; none where the loss is not applied."""
    found: list[tuple[str, ...]] = [()] * len(words)
    things, digit = entry.scene.things, entry.scene.digit
    if digit is not None:
        found[-1] = (digit.value,)
    elif kind == "question":
        for place, word in enumerate(words):
            if word in (*COLORS, *SHAPES, *COLUMNS):
                facts = [(t.size, t.color, t.shape, t.column) for t in things]
                found[place] = tuple(f for fact in facts if word in fact for f in fact if f != word) or ("nothing",)
    elif kind == "binding" or len(things) == 1:
        found[-1] = (things[0].color, things[0].shape)
    return found


class Batches(flamingo.Batches):
    """As stage 3's batches, with the words to name at each token, and without written hints."""

    def spelled(self, step: int) -> float:
        return 0.0

    def documents(self, rng: np.random.Generator, step: int) -> list[tuple[str, list[Entry]]]:
        return [document(rng, self.pool, self.seed == SEEDS[1]) for _ in range(BATCH)]

    def prompt(self, kind: str, entry: Entry) -> list[Token]:
        tokenizer = self.processor.tokenizer
        ids = tokenizer("<image>" + entry.prompt, add_special_tokens=False).input_ids
        said = names(kind, entry, tokenizer.convert_ids_to_tokens(ids))
        return [Token(i, names=words) for i, words in zip(ids, said, strict=True)]


def naming_loss(
    added: torch.Tensor, rows: list[list[Token]], processor: FlamingoProcessor, table: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy between what the first block added (B, T, D), read by the table (V, D), and the names."""
    where, target = [], []
    for row, tokens in enumerate(rows):
        for place, token in enumerate(tokens):
            if token.names:
                share = torch.zeros(len(table))
                for word in token.names:
                    share[processor.tokenizer.convert_tokens_to_ids(word)] += 1 / len(token.names)
                where.append((row, place))
                target.append(share)
    row, place = torch.tensor(where).T
    return F.cross_entropy(added[row, place].float() @ table.float().T, torch.stack(target).to(table.device))


def train(folder: Path, steps: int = STEPS) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """Continues from stage 3, or resumes; a finished run's checkpoint is only read."""
    model, processor = flamingo.train(folder)
    with torch.no_grad():
        model.cross_attention[0].attention_gate.fill_(OPENING)
    model.train()
    pool = flamingo.Pool(model.vision)
    table = model.get_input_embeddings().weight.detach()
    added: list[torch.Tensor] = []
    hook = model.cross_attention[0].register_forward_hook(lambda block, args, out: added.append(out - args[0]))

    def run(name: str, seed: int, steps: int, rate: float, warmup: int) -> None:
        batches = Batches(processor, pool, seed)

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            added.clear()
            rows, scenes, inputs, weight, mark = batches.batch(step)
            loss, figures = flamingo.answer_loss(model, pool, scenes, inputs, weight, mark)
            naming = naming_loss(added[-1], rows, processor, table)
            return loss + NAMING * naming, figures | {"naming": naming.item()}

        def probe(step: int) -> str:
            return flamingo.glance(model, processor)

        fit(name, model, loss_at, steps=steps, rate=rate, folder=folder / name, save_every=100, warmup=warmup,
            probe=probe, probe_every=1100)  # fmt: skip

    run("naming", SEEDS[0], steps, RATE, 100)
    run("longer", SEEDS[1], min(LONGER, steps), LONGER_RATE, 20)
    hook.remove()
    return model.eval(), processor
