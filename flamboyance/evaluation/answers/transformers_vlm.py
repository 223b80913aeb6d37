"""Answers an evaluation's prompts with an image-text-to-text model of transformers.

A demonstration is two turns of a conversation: the user's image and question, and the assistant's answer. A model
without a chat template gets the plain prompt, with its own token for each image.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from flamboyance.evaluation.answers.flamingo import context_of, timed
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Example
from flamboyance.images import load_image
from flamboyance.templates import IMAGE_TOKEN

COMPARED = 1024  # numbers of each parameter that go into the fingerprint


class TransformersAnswers:
    """Answers prompts with a model of transformers.

    Args:
        beams: beams of generation. The length penalty is 0, as for a Flamingo.

    Attributes:
        context: as in FlamingoAnswers. Every image is assumed to take as many tokens as the first one.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, beams: int = 3):
        self.model: Any = model.eval()  # transformers declares no types for generation
        self.processor: Any = processor
        self.tokenizer, self.beams = self.processor.tokenizer, beams
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.chat = bool(getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None))
        self.context = context_of(model.config.get_text_config())
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._image_tokens: int | None = None  # of one image

    @classmethod
    def open(cls, name: str, device: torch.device | str, dtype: torch.dtype, beams: int = 3) -> TransformersAnswers:
        """Loads a model by its name or directory.

        Raises:
            OSError, ValueError: there is no such model, or it is not of this kind.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        if model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder:
            raise ValueError(f"{name} is an encoder-decoder model; expected one that continues the prompt")
        return cls(model.to(device), AutoProcessor.from_pretrained(name), beams)

    def describe(self) -> dict[str, Any]:
        """The entries by which run.json names the model."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            beginning = parameter.detach().flatten()[:COMPARED].float().cpu()
            digest.update(name.encode() + beginning.numpy().tobytes())
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "fingerprint": digest.hexdigest()[:16],
            "parameters": parameters,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @property
    def place(self) -> str:
        """The device that computes."""
        return str(self.model.device)

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """The number of tokens of each prompt, with those of its images."""
        if self._image_tokens is None and prompts:
            query = prompts[0].without_first(len(prompts[0].demonstrations))
            text = self._text(query)
            whole = self._inputs([text], [query])["input_ids"].shape[1]
            self._image_tokens = max(0, whole - len(self.tokenizer(text).input_ids))
        counts = [len(ids) for ids in self.tokenizer([self._text(prompt) for prompt in prompts]).input_ids]
        return [n + len(p.images) * (self._image_tokens or 0) for n, p in zip(counts, prompts, strict=True)]

    def ahead(self, prompts: Sequence[Prompt]) -> None:
        """Does nothing: the processors of these models take text and images together."""

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to each prompt."""
        inputs = self._inputs([self._text(prompt) for prompt in prompts], prompts)
        with timed(self.seconds, "answer", self.model.device):
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
        before = [len(ids) for ids in self.tokenizer(texts).input_ids]
        after = [len(ids) for ids in self.tokenizer([text + label for text in texts]).input_ids]
        new = torch.tensor([b - a for a, b in zip(before, after, strict=True)])
        if int(new.min()) < 1:
            raise ValueError(f"the label {label!r} adds no token to a prompt, so it has no probability; remove it")
        inputs = self._inputs([text + label for text in texts], prompts)
        longest = int(new.max())
        with timed(self.seconds, "answer", self.model.device):
            logits = self.model(**inputs).logits[:, -longest - 1 : -1].float().log_softmax(-1)
        picked = logits.gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0].cpu()
        in_label = torch.arange(longest) >= longest - new[:, None]
        return (picked * in_label).sum(1) / new

    def _inputs(self, texts: list[str], prompts: Sequence[Prompt]) -> BatchFeature:
        with timed(self.seconds, "media", self.model.device):
            read: dict[Path, Any] = {i: load_image(i) for i in dict.fromkeys(i for p in prompts for i in p.images)}
            images = [[read[image] for image in prompt.images] for prompt in prompts]
            # A chat template writes the tokens that begin a text itself.
            special = {"add_special_tokens": False} if self.chat else {}
            inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt", **special)
            return inputs.to(self.model.device, self.model.dtype)

    def _text(self, prompt: Prompt) -> str:
        if not self.chat:
            return prompt.text.replace(IMAGE_TOKEN, getattr(self.processor, "image_token", IMAGE_TOKEN))
        turns = []
        for one in prompt.demonstrations:
            turns += [self._turn(prompt, one, not prompt.blind), _assistant(one.answer)]
        turns.append(self._turn(prompt, prompt.query, True))
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def _turn(self, prompt: Prompt, example: Example, shown: bool) -> dict[str, Any]:
        text = {"type": "text", "text": prompt.task.request(example)}
        return {"role": "user", "content": [{"type": "image"}, text] if shown else [text]}


def _assistant(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}
