"""Answers an evaluation's prompts with an image-text-to-text model of transformers.

A demonstration is two turns of a conversation: the user's image and question, and the assistant's answer. A model
without a chat template gets the plain prompt, with its own token for each image.

Demonstrations that all prompts share are computed once; and a prompt once for all its labels (see prompt_cache.py).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from flamboyance.evaluation.answers.flamingo import context_of, timed
from flamboyance.evaluation.answers.processor_digest import described, digest
from flamboyance.evaluation.answers.prompt_cache import Prefix, Rows
from flamboyance.evaluation.answers.turns import turns
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Generated
from flamboyance.images import load_image
from flamboyance.prompting import ending_tokens
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
        templates = (getattr(each, "chat_template", None) for each in (processor, self.tokenizer))
        self._template = next((one for one in templates if one), None)
        self.chat = self._template is not None
        self.context = context_of(model.config.get_text_config())
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._image_tokens: int | None = None  # of one image
        self._image: str = getattr(processor, "image_token", None) or IMAGE_TOKEN  # as texts have it
        self._caches: bool | None = None  # whether prompts in a cache give what whole ones give, once it is known
        self._last_shown: tuple[str, tuple[Path, ...]] | None = None  # the demonstrations of the prompts before
        self._prefix: Prefix | None = None  # those demonstrations, computed
        self._prefix_text = ""
        self._answer_space: str | None = None  # see _before_answer

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
        weights = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            beginning = parameter.detach().flatten()[:COMPARED].float().cpu()
            weights.update(name.encode() + beginning.numpy().tobytes())
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "fingerprint": weights.hexdigest()[:16],
            "parameters": parameters,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            **described(self.processor),
            "chat_template": digest(self._template) if self.chat else None,
        }

    @property
    def continues(self) -> bool:
        """Whether the model reads the plain prompt, not a chat."""
        return not self.chat

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
        options = {
            "max_new_tokens": prompts[0].task.max_new_tokens,
            "do_sample": False,
            **({"length_penalty": 0.0} if self.beams > 1 else {}),
        }
        answers = [""] * len(prompts)
        for places, rows in self._computed(prompts, shared_only=True):
            with timed(self.seconds, "answer", self.model.device):
                if rows is None:
                    some = [prompts[i] for i in places]
                    inputs = self._inputs([self._text(prompt) for prompt in some], some)
                    out = self.model.generate(**inputs, num_beams=self.beams, **options)
                    out = out[:, inputs["input_ids"].shape[1] :]
                else:
                    out = rows.generate(self.model, self.beams, **options)
            texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
            ending = torch.tensor(ending_tokens(self.model, self.tokenizer), device=out.device)
            cut = (~torch.isin(out, ending).any(1)).tolist()
            for i, text, short in zip(places, texts, cut, strict=True):
                answers[i] = Generated(text, short)
        return answers

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        """Mean log-probability per token of each of the task's labels, where a demonstration has its answer."""
        space = self._before_answer(prompts[0])
        labels = [space + label for label in prompts[0].task.labels or ()]
        texts = [self._text(prompt) for prompt in prompts]
        found = torch.zeros(len(prompts), len(labels))
        for places, rows in self._computed(prompts):
            some, written = [prompts[i] for i in places], [texts[i] for i in places]
            for number, label in enumerate(labels):
                tokens = None if rows is None else self._label_tokens(written, label)
                if rows is None or tokens is None:
                    found[places, number] = self._score(written, some, label)
                else:
                    with timed(self.seconds, "answer", self.model.device):
                        found[places, number] = _mean_log_probability(rows.following(self.model, tokens), tokens)
        return found.tolist()

    def _label_tokens(self, texts: list[str], label: str) -> list[list[int]] | None:
        """The tokens that a label adds to each text; None if it changes those of a text."""
        before = self.tokenizer(texts).input_ids
        after = self.tokenizer([text + label for text in texts]).input_ids
        if any(b[: len(a)] != a or len(b) == len(a) for a, b in zip(before, after, strict=True)):
            return None
        return [b[len(a) :] for a, b in zip(before, after, strict=True)]

    def _score(self, texts: list[str], prompts: Sequence[Prompt], label: str) -> Tensor:
        before = self.tokenizer(texts).input_ids
        after = self.tokenizer([text + label for text in texts]).input_ids
        new = torch.tensor([len(b) - _shared(a, b) for a, b in zip(before, after, strict=True)])
        if int(new.min()) < 1:
            raise ValueError(f"the label {label!r} adds no token to a prompt, so it has no probability; remove it")
        inputs = self._inputs([text + label for text in texts], prompts)
        longest = int(new.max())
        with timed(self.seconds, "answer", self.model.device):
            logits = self.model(**inputs).logits[:, -longest - 1 : -1].float().log_softmax(-1)
        picked = logits.gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0].cpu()
        in_label = torch.arange(longest) >= longest - new[:, None]
        return (picked * in_label).sum(1) / new

    # Prompts in a cache --------------------------------------------------------------------------------------------

    def _computed(
        self, prompts: Sequence[Prompt], shared_only: bool = False
    ) -> Iterator[tuple[list[int], Rows | None]]:
        """The prompts in groups that are computed together: their places, and their rows up to the last token; None
        where whole prompts are to be computed.

        Args:
            shared_only: only prompts with the same demonstrations are worth it.
        """
        everything, texts = list(range(len(prompts))), [self._text(prompt) for prompt in prompts]
        prefix = self._shared_prefix(prompts, texts)
        if self._caches is False or (shared_only and prefix is None):
            yield everything, None
            return
        if prefix is not None:
            texts = [text[len(self._prefix_text) :] for text in texts]
        lengths = [len(ids) for ids in self.tokenizer(texts).input_ids]
        padded = prefix is None or prefix.takes_padding
        groups = [everything] if padded else [[i for i in everything if lengths[i] == n] for n in sorted({*lengths})]
        while groups:
            group = groups.pop(0)
            some = [prompts[i] for i in group]
            # The prefix holds the demonstrations' images.
            shown = some if prefix is None else [prompt.without_first(len(prompt.demonstrations)) for prompt in some]
            inputs = self._inputs([texts[i] for i in group], shown, special=prefix is None)
            if not padded and not inputs["attention_mask"].all():  # images of different sizes
                groups += [[i] for i in group]
                continue
            with timed(self.seconds, "answer", self.model.device):
                rows = Rows.of(self.model, prefix, inputs)
            if self._caches is None:
                self._caches = self._equal(rows, some)
            yield group, rows if self._caches else None

    def _equal(self, rows: Rows, prompts: Sequence[Prompt]) -> bool:
        """Whether prompts in a cache give what whole prompts give, by the one with the most padding."""
        row = int(rows.mask.sum(1).argmin())
        found = rows.following(self.model, [[0]] * len(prompts))[row, 0].float()
        inputs = self._inputs([self._text(prompts[row])], [prompts[row]])
        expected = self.model(**inputs, logits_to_keep=1).logits[0, -1].float()
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.2
        return bool((found - expected).abs().max() <= tolerance * max(1.0, float(expected.std())))

    def _shared_prefix(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Prefix | None:
        """The computed demonstrations, if all prompts have the same ones and use them more than once: several prompts
        at a time, or one batch after the other."""
        number = len(prompts[0].demonstration_images)
        if self._caches is False or len({(len(p.demonstration_images), len(p.demonstrations)) for p in prompts}) > 1:
            return None
        before = [_before_image(text, self._image, number) for text in texts]
        shown = {(text, tuple(prompt.images[:number])) for text, prompt in zip(before, prompts, strict=True)}
        if len(shown) > 1 or not prompts[0].demonstrations:
            return None
        ((text, images),) = shown
        if not text or not self._splits(text, texts):
            return None
        again, self._last_shown = self._last_shown == (text, images), (text, images)
        if not again:
            self._prefix = None
        if self._prefix is None and (again or len(prompts) > 1):
            inputs = self._inputs([text], [prompts[0]], images=list(images))
            with timed(self.seconds, "answer", self.model.device):
                self._prefix = Prefix.of(self.model, inputs)
            self._prefix_text = text
        return self._prefix

    def _splits(self, text: str, texts: Sequence[str]) -> bool:
        """Whether texts have the same tokens if the text that they begin with is tokenized by itself."""
        special = not self.chat
        before = self.tokenizer(text, add_special_tokens=special).input_ids
        whole = self.tokenizer(list(texts), add_special_tokens=special).input_ids
        after = self.tokenizer([one[len(text) :] for one in texts], add_special_tokens=False).input_ids
        return all(before + some == one for some, one in zip(after, whole, strict=True))

    def _inputs(
        self, texts: list[str], prompts: Sequence[Prompt], special: bool = True, images: list[Path] | None = None
    ) -> BatchFeature:
        """What the model takes.

        Args:
            special: the tokens that begin a text are added; not to the rest of a text, and not by a chat's template,
                which writes them itself.
            images: those of the only text, instead of its prompt's.
        """
        with timed(self.seconds, "media", self.model.device):
            shown = [prompt.images for prompt in prompts] if images is None else [images]
            read: dict[Path, Any] = {i: load_image(i) for i in dict.fromkeys(i for some in shown for i in some)}
            pictures = [[read[image] for image in some] for some in shown]
            inputs = self.processor(
                text=texts, images=pictures if any(pictures) else None, padding=True, return_tensors="pt",
                **({} if special and not self.chat else {"add_special_tokens": False}),
            )  # fmt: skip
            return inputs.to(self.model.device, self.model.dtype)

    def _text(self, prompt: Prompt, answer: str | None = None) -> str:
        """The prompt as the model reads it; for a model that chats, also with an answer."""
        if not self.chat:
            return prompt.text.replace(IMAGE_TOKEN, self._image)
        written = []
        for one in turns(prompt):
            images = [{"type": "image"} for _ in one.images]
            written.append({"role": "user", "content": [*images, {"type": "text", "text": one.request}]})
            if (said := answer if one.answer is None else one.answer) is not None:
                written.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        return self.processor.apply_chat_template(written, add_generation_prompt=answer is None, tokenize=False)

    def _before_answer(self, prompt: Prompt) -> str:
        """The space that the chat template writes before an answer but not at a prompt's end, as LLaVA's and SmolVLM's
        do: `ASSISTANT:` asks for what a demonstration shows as `ASSISTANT: a cat`."""
        if self._answer_space is None:
            text, answer = self._text(prompt), "answer"
            answered = self._text(prompt, answer) if self.chat else ""
            rest = answered[len(text) :] if answered.startswith(text) else ""
            space = rest[: len(rest) - len(rest.lstrip())]
            self._answer_space = space if rest[len(space) :].startswith(answer) else ""
        return self._answer_space


def _shared(one: list[int], other: list[int]) -> int:
    """The number of tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _before_image(text: str, image: str, number: int) -> str:
    """The text before the image of this number, counted from 0: the demonstrations, and what begins the query."""
    parts = text.split(image)
    return image.join(parts[: number + 1]) if len(parts) > number + 1 else ""


def _mean_log_probability(logits: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """The mean (R,) over a row's tokens of their log-probability; logits (R, N, V) as Rows.following gives them."""
    means = []
    for row, some in zip(logits.float().log_softmax(-1), tokens, strict=True):
        picked = row[: len(some)].gather(-1, torch.tensor(some, device=row.device)[:, None])
        means.append(picked.mean())
    return torch.stack(means).cpu()
