"""The model card, with the measured table in it."""

from __future__ import annotations

from pathlib import Path

from flamboyance.files import write_text

CARD = """\
---
license: apache-2.0
library_name: flamboyance
pipeline_tag: image-text-to-text
---

# flamingo-mini

A tiny Flamingo of {total:.1f} M parameters, made by `python -m scripts.pretrain_mini` from data that the
scripts draw themselves: a CLIP tower ({vision:.2f} M) trained contrastively, a LLaMA language model ({language:.2f} M)
trained on text alone, both then frozen; and the resampler, gated cross-attention and added tokens between them
({trained:.2f} M), trained on interleaved documents. It knows nothing outside of its own small world.

Its world: pictures of 64 × 64 pixels with one to three things in three columns (circle, square, triangle, cross, ring;
red, green, blue, yellow, purple, cyan, white), and handwritten digits (scikit-learn's scans). It knows two sizes: a
small object's radius is 6 pixels, a large one's 10. It captions, answers questions, reads digits, and learns what a
made-up word means from demonstrations in its prompt.

## How it came to bind words, and what it cannot do

- **The papers' loss alone did not teach binding.** Trained by next-token prediction only, the model captions, reads
  digits and answers most questions, but stays at chance on made-up words, however long it trains: the gate of its first
  block stays shut. The shipped weights had two aids that the papers do not have. The first two gates were set to 0.3 by
  hand, and later the first to 0.5; and an auxiliary loss (`scripts/pretrain_mini/naming.py`) asked the first block to
  add the words for what a token sees to the residual stream. So flamingo-mini shows that the software works. It is no
  evidence that a model of this size learns in context from the papers' loss.
- **It knows nothing outside its world.** For a photograph, another shape, or an object of another size it still
  answers in the words above, with full confidence. A word outside of its vocabulary becomes the unknown token.
- **More than eight demonstrations** were not in its training; beyond 16 its answers get worse.

## Prompts

Case does not matter. Each demonstration ends in `<|endofchunk|>`; the query ends after the colon.

| task | prompt | answer |
|---|---|---|
| caption | `<image>Output:` | `a small red ring and a large blue cross`, `the digit 3` |
| question | `<image>Question:what color is the ring? Short answer:` | `red` |
| digit | `<image>Question:which digit is this? Short answer:` | `3` |
| made-up word | `<image>Output:dafi<|endofchunk|><image>Output:vuko<|endofchunk|><image>Output:` | `dafi` |

Questions: `how many objects are there?`, `is there a COLOR SHAPE?`, `what color is the object on the left?`, `what
shape is the object on the left?` (`middle`, `right`), `what color is the SHAPE?`, `what shape is the COLOR object?`,
`what size is the SHAPE?`, `what size is the COLOR object?`, `where is the SHAPE?`, `where is the COLOR object?`,
`which digit is this?`.

Made-up words are two syllables from `flamboyance/mini/world/words.py`; `made_up_words("test")` lists those that
were not in the training data.

## Measured

On held-out scenes, the 360 held-out scans, and held-out made-up words: per cent right, with Wilson's 95 % interval.
Binding is a choice between two words by `model.score`, after the same number of demonstrations of each (one shot shows
one of them). The other answers are generated greedily, and right only if the whole text is.

{table}

## Weights

Stored in 16 bits ({megabytes:.1f} MB), opened in 32. {origin}
"""


def write(directory: Path, table: str, parameters: dict[str, float], megabytes: float, origin: str) -> None:
    """Writes README.md; `parameters` in millions: vision, language, trained."""
    total = sum(parameters.values())
    text = CARD.format(table=table, total=total, megabytes=megabytes, origin=origin, **parameters)
    write_text(directory / "README.md", text)
