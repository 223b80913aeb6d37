"""Answers an evaluation's prompts with a Flamingo."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from flamboyance.evaluation.answers.media_cache import MediaCache
from flamboyance.evaluation.answers.processor_digest import described
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Generated
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.fingerprint import fingerprint
from flamboyance.model.quantized_linear import count
from flamboyance.processing import FlamingoProcessor
from flamboyance.prompting import Prefix, by_completions, generate_ended, prompt_inputs

ROWS = 32  # rows of text that are scored together


class FlamingoAnswers:
    """Answers prompts with a Flamingo; every image is encoded once.

    Args:
        beams: beams of generation. The length penalty is 0, as in the papers' code: an answer is ranked by its
            probability alone, whatever its length.
        bare_labels: the tokenizer reads labels as texts of their own, not where they follow the query, as for the
            published tables. Most tokenizers make no difference.
        media_bytes, media_folder: see MediaCache.

    Attributes:
        seconds: spent on "media" (reading and encoding images) and "answer" (the language model).
        context: the most tokens of a prompt and its answer together; None for any number.
    """

    continues = True

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        processor: FlamingoProcessor,
        beams: int = 3,
        bare_labels: bool = False,
        media_bytes: float = 2e9,
        media_folder: Path | None = None,
    ):
        self.model, self.processor = model, processor
        self.beams, self.bare_labels = beams, bare_labels
        self.cache = MediaCache(model, processor, media_bytes, media_folder)
        self.context = context_of(model.config.text_config)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last_shown: tuple[str, tuple[Path, ...]] | None = None  # the demonstrations of the prompts before
        self._prefix: Prefix | None = None  # those demonstrations, computed

    def describe(self) -> dict[str, Any]:
        """The entries by which run.json names the model."""
        about = {"fingerprint": fingerprint(self.model), "parameters": count(self.model), **described(self.processor)}
        scheme = self.model.config.quantize
        return about | {"dtype": str(self.model.dtype)[6:]} | ({"quantize": scheme} if scheme else {})

    @property
    def place(self) -> str:
        """The device that computes."""
        return str(self.model.device)

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """The number of tokens of each prompt."""
        return [len(ids) for ids in self.processor.tokenize([prompt.text for prompt in prompts])]

    def ahead(self, prompts: Sequence[Prompt]) -> None:
        """Starts to read the images of the prompts that come next."""
        self.cache.ahead([image for prompt in prompts for image in prompt.images])

    @torch.no_grad()  # not inference mode: FSDP writes to the parameters that it has gathered in it
    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The text that follows each prompt. All prompts are of one task."""
        inputs = self._inputs(prompts)
        options: dict[str, Any] = {"max_new_tokens": prompts[0].task.max_new_tokens, "num_beams": self.beams}
        if self.beams > 1:
            options["length_penalty"] = 0.0
        with timed(self.seconds, "answer", self.model.device):
            texts, ended = generate_ended(self.model, self.processor, inputs, **options, do_sample=False)
        return [Generated(text, not end) for text, end in zip(texts, ended, strict=True)]

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        """The mean log-probability per token of each of the task's labels after each prompt. All prompts are of one
        task."""
        task = prompts[0].task
        labels, scores = list(task.labels or ()), torch.empty(len(prompts), len(task.labels or ()))
        if self.bare_labels:
            read = self.processor.tokenizer(labels, add_special_tokens=False)["input_ids"]
            groups = {tuple(map(tuple, read)): list(range(len(prompts)))}
        else:
            queries = [task.template.query(*prompt.query.asked) for prompt in prompts]
            groups = by_completions(self.processor, task.template, queries, labels)
        for candidates, places in groups.items():
            inputs = self._inputs([prompts[place] for place in places])
            with timed(self.seconds, "answer", self.model.device):
                found = self.model.score(**inputs, candidates=candidates, normalize="mean", batch_size=ROWS)
            scores[places] = found.cpu()
        return scores.tolist()

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        with timed(self.seconds, "media", self.model.device):
            media = self.cache.media([prompt.images for prompt in prompts])
        prefix = self._shared_prefix(prompts)
        texts = [prompt.text if prefix is None else prompt.after_demonstrations for prompt in prompts]
        return prompt_inputs(self.model, self.processor, texts, media, prefix)

    def _shared_prefix(self, prompts: Sequence[Prompt]) -> Prefix | None:
        """The computed demonstrations, if all prompts have the same ones and use them more than once: several prompts
        at a time, or one batch after the other."""
        shown = {(prompt.demonstrations_text, tuple(prompt.demonstration_images)) for prompt in prompts}
        if len(shown) > 1 or not prompts[0].demonstrations:
            return None
        ((text, images),) = shown
        again, self._last_shown = self._last_shown == (text, images), (text, images)
        if not again:
            self._prefix = None
        if self._prefix is None and (again or len(prompts) > 1):
            ids = torch.tensor(self.processor.tokenize([text])[0], device=self.model.device)
            with timed(self.seconds, "media", self.model.device):
                media = self.cache.media([list(images)]) if images else None
            with timed(self.seconds, "answer", self.model.device):
                self._prefix = Prefix.of(self.model, ids, media)
        return self._prefix


@contextmanager
def timed(seconds: dict[str, float], what: str, device: torch.device | None = None) -> Generator[None]:
    """Adds the time that the block takes to `seconds[what]`; waits for a CUDA device first."""
    began = time.perf_counter()
    yield
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    seconds[what] += time.perf_counter() - began


def context_of(config: PreTrainedConfig) -> int | None:
    """The context of a language model in tokens, as its configuration states it; None if it does not."""
    names = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)
