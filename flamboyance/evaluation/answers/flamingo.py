"""A Flamingo that answers an evaluation's prompts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flamboyance.evaluation.answers.media_cache import MediaCache
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Task
from flamboyance.few_shot import Prefix, completion_tokens
from flamboyance.model.fingerprint import fingerprint

ROWS = 32  # of text that are scored together


class FlamingoAnswers:
    """Answers prompts; every image is encoded once.

    Args:
        beams: of generation. With a length penalty of 0, as the papers' code has it, an answer is ranked by its
            probability alone, whatever its length.
        bare_labels: labels are read by the tokenizer as texts of their own, not as they stand after the query: what
            produced the published tables. Most tokenizers make no difference.
        media_bytes, media_folder: see MediaCache.

    Attributes:
        seconds: spent on "media" (reading and encoding images) and "answer" (the language model).
        context: tokens that a prompt and its answer may have together; None: any number.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
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
        self._shown: tuple[str, tuple[Path, ...]] | None = None  # by the prompts before
        self._computed: Prefix | None = None

    def describe(self) -> dict[str, Any]:
        """What results name the model by."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {"fingerprint": fingerprint(self.model), "parameters": parameters, "dtype": str(self.model.dtype)[6:]}

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each."""
        return [len(ids) for ids in self.processor.tokenize([prompt.text for prompt in prompts])]

    def ahead(self, prompts: Sequence[Prompt]) -> None:
        """Prompts that will come next: their images are read meanwhile."""
        self.cache.ahead([image for prompt in prompts for image in prompt.images])

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The text that follows each prompt, of one task."""
        inputs = self._inputs(prompts)
        width = inputs["input_ids"].shape[1]
        with self._timed("answer"):
            out = self.model.generate(
                **inputs,
                max_new_tokens=prompts[0].task.max_new_tokens,
                num_beams=self.beams,
                length_penalty=0.0,
                do_sample=False,
            )
        return self.processor.batch_decode(out[:, width:], skip_special_tokens=True)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        """Mean log-probability per token of each of the task's labels after each prompt, of one task."""
        task = prompts[0].task
        candidates = [self._label(task, prompts[0], label) for label in task.labels or ()]
        inputs = self._inputs(prompts)
        with self._timed("answer"):
            scores = self.model.score(**inputs, candidates=candidates, normalize="mean", batch_size=ROWS)
        return scores.tolist()

    def _label(self, task: Task, prompt: Prompt, label: str) -> list[int]:
        if self.bare_labels:
            return self.processor.tokenizer(label, add_special_tokens=False)["input_ids"]
        return completion_tokens(self.processor, task.template, task.template.query(*prompt.query.asked), label)

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        device = self.model.device
        rows = self.processor.tokenize([prompt.text for prompt in prompts])
        inputs = {name: tensor.to(device) for name, tensor in self.processor.pad(rows).items()}
        with self._timed("media"):
            inputs["media"] = self.cache.media([prompt.images for prompt in prompts])
        prefix = self._prefix(prompts)
        if prefix is not None:
            shifts = [inputs["input_ids"].shape[1] - len(row) for row in rows]
            known = min(prefix.shared(row) for row in rows)
            inputs["past_key_values"] = prefix.cache(shifts, known, self.model.shares_prompts)
        return inputs

    def _prefix(self, prompts: Sequence[Prompt]) -> Prefix | None:
        """The demonstrations, computed once, where all prompts have the same: several at a time, or again and again."""
        shown = {(prompt.beginning, tuple(prompt.images[:-1])) for prompt in prompts}
        if len(shown) > 1 or not prompts[0].demonstrations:
            return None
        (key,) = shown
        again, self._shown = key == self._shown, key
        if not again:
            self._computed = None
        if self._computed is None and (again or len(prompts) > 1):
            ids = torch.tensor(self.processor.tokenize([key[0]])[0], device=self.model.device)
            with self._timed("media"):
                media = self.cache.media([list(key[1])]) if key[1] else None
            with self._timed("answer"):
                self._computed = Prefix.of(self.model, ids, media)
        return self._computed

    @contextmanager
    def _timed(self, what: str) -> Generator[None]:
        began = time.perf_counter()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[what] += time.perf_counter() - began


def context_of(config: Any) -> int | None:
    """Tokens that a language model was made for, by its configuration; None where that does not say."""
    names = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)
