"""Works (a) to (e) of `make bench`, and their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flamboyance.images import ImageProcessor

SIDE, SHOTS, QUERIES = 224, 32, 16
WORDS = 10  # of a caption
NEW_TOKENS = 20
BATCH = 8  # prompts at a time, as the reference's evaluation takes them
MEASURED_CANDIDATES = 50


@dataclass(frozen=True)
class Work:
    """Captions of some queries after demonstrations, or scores of candidates.

    Attributes:
        known: Flamboyance has computed the demonstrations before; its peer cannot.
        candidates: scored after each prompt; 0: 20 tokens are generated.
        peer_repeats: at most so many runs of the peer, where one takes minutes.
        peer_queries: how many queries the peer is timed on; it computes each separately, so the time is scaled.
        peer_candidates: what the peer is timed on; the rest is added at the rate of these.
    """

    letter: str
    title: str
    shots: int
    queries: int = 1
    beams: int = 1
    known: bool = False
    candidates: int = 0
    peer_repeats: int | None = None
    peer_queries: int | None = None
    peer_candidates: int | None = None

    @property
    def name(self) -> str:
        return f"{self.letter}: {self.title}"

    def asked(self, queries: int | None = None) -> dict[str, Any]:
        """The message to workers: demonstrations' texts; for each query (or the first so many) all images by number,
        its own last; and how to answer."""
        return {
            "demonstrations": [caption(number) for number in range(self.shots)],
            "images": [[*range(self.shots), SHOTS + query] for query in range(queries or self.queries)],
            "generation": {"num_beams": self.beams, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS},
            "candidates": [candidate(number) for number in range(self.candidates)],
            "batch_size": BATCH,
        }

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt: `<image>`, `Output`, `:`, and a demonstration's words and `<|endofchunk|>`."""
        return self.shots * (WORDS + 4) + 3


WORKS = (
    Work("a", "4-shot caption, beam 3", 4, beams=3),
    Work("b", "32-shot caption, beam 3", 32, beams=3),
    Work("c", "32 shots computed before, 1 query, beam 3", 32, beams=3, known=True),
    Work(
        "c", "32 shots computed before, 16 queries, beam 3", 32, 16, beams=3, known=True, peer_repeats=1, peer_queries=8
    ),
    Work("d", "4-shot captions, greedy, batch of 4", 4, 4),
    Work("e", "scores of 2 candidates, 4 shots", 4, candidates=2),
    Work("e", "scores of 1,000 candidates, 4 shots", 4, candidates=1000, peer_candidates=MEASURED_CANDIDATES),
)


def caption(number: int, words: int = WORDS) -> str:
    random = torch.Generator().manual_seed(number)
    return " ".join(f"w{i}" for i in torch.randint(5, 20000, (words,), generator=random).tolist())


def candidate(number: int) -> str:
    """One to four words, as names of classes have."""
    random = torch.Generator().manual_seed(10_000 + number)
    return " ".join(f"w{i}" for i in torch.randint(5, 20000, (1 + number % 4,), generator=random).tolist())


def write_images(directory: Path) -> Path:
    """The images of all demonstrations and queries: `levels` (M, 3, H, W) uint8, and `pixels`, the same normalised."""
    file = directory / "images.pt"
    random = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (SHOTS + QUERIES, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    torch.save({"levels": levels, "pixels": ImageProcessor.clip(SIDE).normalized(levels)}, file)
    return file
