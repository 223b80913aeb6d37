"""Any of transformers' image-text-to-text models, answering the same prompts as a Flamingo.

A demonstration is a turn of a conversation: the image and what is asked by the user, the answer by the assistant. A
model without a chat template is given the plain prompt, with its own token where a picture stands.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamboyance.evaluation.answers.flamingo import context_of
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Example
from flamboyance.images import load_image
from flamboyance.templates import IMAGE_TOKEN

PREFIX = 4096  # bytes of each parameter that tell models apart


class TransformersAnswers:
    """Answers prompts with a model of transformers.

    Args:
        beams: of generation; with a length penalty of 0, as a Flamingo's.

    Attributes:
        context: as in FlamingoAnswers. Tokens of images are counted by what the first one takes.
    """

    def __init__(self, model: Any, processor: Any, beams: int = 3):
        self.model, self.processor, self.beams = model.eval(), processor, beams
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.chat = bool(getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None))
        self.context = context_of(model.config.get_text_config())
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._of_an_image: int | None = None

    @classmethod
    def open(cls, name: str, device: Any, dtype: torch.dtype, beams: int = 3) -> TransformersAnswers:
        """A model by its name or directory.

        Raises:
            OSError, ValueError: there is none, or it is of another kind.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        if model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder:
            raise ValueError(f"{name} is an encoder with a decoder, which answers beside the prompt, not after it")
        return cls(model.to(device), AutoProcessor.from_pretrained(name), beams)

    def describe(self) -> dict[str, Any]:
        """What results name the model by."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            beginning = parameter.detach().flatten()[: PREFIX // 4].float().cpu()
            digest.update(name.encode() + beginning.numpy().tobytes())
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "fingerprint": digest.hexdigest()[:16],
            "parameters": parameters,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each, its images' included."""
        if self._of_an_image is None and prompts:
            text = self._text(replaced := prompts[0].without_first(len(prompts[0].demonstrations)))
            whole = self._inputs([text], [replaced])["input_ids"].shape[1]
            self._of_an_image = max(0, whole - len(self.tokenizer(text).input_ids))
        counted = [len(ids) for ids in self.tokenizer([self._text(prompt) for prompt in prompts]).input_ids]
        return [n + len(p.images) * (self._of_an_image or 0) for n, p in zip(counted, prompts, strict=True)]

    def ahead(self, prompts: Sequence[Prompt]) -> None:
        """Nothing: these models' processors take text and images together."""

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to each prompt."""
        inputs = self._inputs([self._text(prompt) for prompt in prompts], prompts)
        with self._timed("answer"):
            out = self.model.generate(
                **inputs,
                max_new_tokens=prompts[0].task.max_new_tokens,
                num_beams=self.beams,
                length_penalty=0.0,
                do_sample=False,
            )
        return self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        """Mean log-probability per token of each of the task's labels."""
        texts = [self._text(prompt) for prompt in prompts]
        labels = prompts[0].task.labels or ()
        return torch.stack([self._score(texts, prompts, label) for label in labels], dim=1).tolist()

    def _score(self, texts: list[str], prompts: Sequence[Prompt], label: str) -> Tensor:
        asked = [len(ids) for ids in self.tokenizer(texts).input_ids]
        answered = [len(ids) for ids in self.tokenizer([text + label for text in texts]).input_ids]
        new = torch.tensor([b - a for a, b in zip(asked, answered, strict=True)])
        if int(new.min()) < 1:
            raise ValueError(f"The label {label!r} adds no token to a prompt, so it has no probability. Remove it.")
        inputs = self._inputs([text + label for text in texts], prompts)
        longest = int(new.max())
        with self._timed("answer"):
            logits = self.model(**inputs).logits[:, -longest - 1 : -1].float().log_softmax(-1)
        picked = logits.gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0].cpu()
        own = torch.arange(longest) >= longest - new[:, None]
        return (picked * own).sum(1) / new

    def _inputs(self, texts: list[str], prompts: Sequence[Prompt]) -> Any:
        with self._timed("media"):
            read: dict[Path, Any] = {i: load_image(i) for i in dict.fromkeys(i for p in prompts for i in p.images)}
            images = [[read[image] for image in prompt.images] for prompt in prompts]
            # A chat template writes what a text begins with itself.
            special = {"add_special_tokens": False} if self.chat else {}
            inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt", **special)
            return inputs.to(self.model.device, self.model.dtype)

    def _text(self, prompt: Prompt) -> str:
        if not self.chat:
            return prompt.text.replace(IMAGE_TOKEN, getattr(self.processor, "image_token", IMAGE_TOKEN))
        turns = []
        for one in prompt.demonstrations:
            turns += [self._turn(prompt, one, not prompt.blind), _said(one.answer)]
        turns.append(self._turn(prompt, prompt.query, True))
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def _turn(self, prompt: Prompt, example: Example, shown: bool) -> dict[str, Any]:
        text = {"type": "text", "text": prompt.task.asking(example)}
        return {"role": "user", "content": [{"type": "image"}, text] if shown else [text]}

    @contextmanager
    def _timed(self, what: str) -> Generator[None]:
        began = time.perf_counter()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[what] += time.perf_counter() - began


def _said(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}
