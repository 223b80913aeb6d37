"""FewShotTask: demonstrations computed once, queried many times."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flamboyance import checks, templates
from flamboyance.files import read_json, replacing, write_json
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.fingerprint import fingerprint, stamp
from flamboyance.model.finite import check_finite, refuse_nan
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor
from flamboyance.prompting import Prefix, by_completions, generate_texts, prompt_inputs
from flamboyance.task_files import TaskFile, is_task_file, read_task, write_task
from flamboyance.templates import Template


class FewShotTask:
    """Answers queries after a fixed list of demonstrations, which are computed once, at the first query.

        captioner = FewShotTask(model, processor, [(cats, "Two cats."), (sink, "A bathroom sink.")])
        captioner(["a.jpg", "b.jpg"])

    The answers are those of the full prompt. A demonstration costs a query only the attention to its cached tokens.

    Args:
        demonstrations: (image, answer), or (image, question, answer): an image, then the template's fields in order.
            An image is anything the processor reads, videos too.
        template: how a demonstration and the query are written. Those of `flamboyance.templates` do not stop at a word,
            or drop a character, that an answer of the demonstrations contains.
    """

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        processor: FlamingoProcessor,
        demonstrations: Sequence[tuple[Any, ...]] = (),
        template: Template = templates.caption,
    ):
        _check_parts(model, processor, template)
        self.model = model
        self.processor = processor
        expected = f"(image, {', '.join(template.fields)})"
        shots = checks.listed("demonstrations", demonstrations, f"{expected} tuples", f"[{expected}]")
        for number, shot in enumerate(shots):
            if not isinstance(shot, tuple | list) or len(shot) != 1 + len(template.fields):
                raise ValueError(f"demonstration {number} is {checks.brief(shot)}; expected {expected}")
            _check_texts(f"demonstration {number}", template.fields, shot[1:])
        self.template = templates.settled(template, (shot[-1] for shot in shots))
        self.texts = [template.demonstration(*shot[1:]) for shot in shots]
        self._shots = [tuple(shot) for shot in shots]
        self._prefix: Prefix | None = None
        self._stamp: tuple[Any, ...] = ()  # the model's, when the prefix was computed
        self._made_with: str | None = None  # for a loaded task: the fingerprint of the model that computed it

    def __repr__(self) -> str:
        model = f"{type(self.model).__name__} on {self.model.device}"
        return f"FewShotTask({model}, {len(self.texts)} demonstrations, template={self.template.pattern!r})"

    @property
    def prefix(self) -> Prefix | None:
        """The computed demonstrations; None if there are none. They are computed again if the model's weights,
        precision, device or adapters have changed.

        Raises:
            ValueError: the model has changed, and the task was loaded from a directory, which holds no images.
        """
        if not self.texts:
            return None
        current = stamp(self.model)
        if self._prefix is None or self._stamp != current:
            if self._made_with is None:
                self._prefix = self._compute()
            elif self._made_with != fingerprint(self.model):
                raise ValueError(
                    "the model has changed since this task was loaded: its weights, precision or adapters differ, so "
                    "the saved demonstrations are not valid for it. Make the task again from the demonstrations"
                )
            elif self._prefix is not None:  # the same weights on another device
                self._prefix = self._prefix.to(self.model.device)
            self._stamp = current
        return self._prefix

    @torch.no_grad()
    def _compute(self) -> Prefix:
        images = [image for image, *_ in self._shots]
        inputs = self.processor(["".join(self.texts)], [images]).to(self.model.device)
        media = self.model.encode_media(inputs.pixel_values, inputs.media_counts, inputs.get("frame_counts"))
        return Prefix.of(self.model, inputs.input_ids[0], media)

    def __call__(
        self,
        queries: Sequence[Any],
        *,
        max_new_tokens: int = 20,
        num_beams: int = 1,
        batch_size: int = 8,
        **generation: Any,
    ) -> list[str]:
        """The answer to each query.

        Args:
            queries: images; or (image, question) tuples for a template with a question.
            generation: further options of transformers' `generate`, e.g. do_sample or temperature.
        """
        for option in ("num_return_sequences", "return_dict_in_generate", "generation_config"):
            if option in generation:
                raise ValueError(f"a few-shot task returns one text per query; for {option} call model.generate")
        for option in ("past_key_values", "cache", "cache_implementation", "media"):
            if generation.get(option) is not None:
                raise ValueError(f"a few-shot task sets {option} itself, to hold the demonstrations; leave it out")
        if not generation.pop("use_cache", True):
            raise ValueError("use_cache=False: a few-shot task keeps its demonstrations in the cache; leave it out")
        checks.whole_number("max_new_tokens", max_new_tokens, 1)
        checks.whole_number("num_beams", num_beams, 1)
        generation = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False} | generation
        generation["use_cache"] = True  # whatever the model's generation_config says
        answers = []
        for batch in _batches(self._queries(queries), batch_size):
            texts = generate_texts(self.model, self.processor, self._prompts(batch), **generation)
            answers.extend(self.template.parse(text) for text in texts)
        return answers

    def classify(
        self, queries: Sequence[Any], labels: Sequence[str], *, normalize: str = "mean", batch_size: int = 8
    ) -> list[tuple[str, dict[str, float]]]:
        """For each query the most likely label, and the probability of every label; these add up to 1.

        Args:
            queries: as in `__call__`.
            labels: the answers to choose from. They are scored, nothing is generated.
            normalize: "mean": log-probability per token, as in the papers, which does not penalize long labels; or
                "sum".
        """
        labels = checks.texts("labels", labels, "['cat', 'dog']")
        written: dict[str, str] = {}  # most templates strip white space around a label
        for label in labels:
            completion = self.template.completion(label)
            if (other := written.get(completion)) is not None:
                same = (
                    "holds one twice" if other == label else f"holds {other!r} and {label!r}, which are written alike"
                )
                raise ValueError(f"labels {same}; give each label once")
            written[completion] = label
        if normalize not in ("mean", "sum"):
            raise ValueError(f"normalize={checks.brief(normalize)}: expected 'mean' or 'sum' (over a label's tokens)")
        results = []
        for batch in _batches(self._queries(queries), batch_size):
            scores = self._score(batch, labels, normalize)
            refuse_nan(scores, "the labels' log-probabilities")
            for row in scores.softmax(-1).tolist():
                probabilities = dict(zip(labels, row, strict=True))
                results.append((max(probabilities, key=probabilities.__getitem__), probabilities))
        return results

    def _score(self, batch: list[tuple[Any, ...]], labels: Sequence[str], normalize: str) -> Tensor:
        queries = [self.template.query(*fields) for _, *fields in batch]
        scores = torch.empty(len(batch), len(labels), device=self.model.device)
        for candidates, places in by_completions(self.processor, self.template, queries, labels).items():
            inputs = self._prompts([batch[place] for place in places])
            scores[places] = self.model.score(**inputs, candidates=candidates, normalize=normalize)
        return scores

    def _queries(self, queries: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Each query as (image, fields before the answer)."""
        fields = self.template.fields[:-1]
        expected = f"(image, {', '.join(fields)})" if fields else "an image"
        of, example = (f"{expected} tuples", f"[{expected}]") if fields else ("images", "task([image])")
        rows = [
            tuple(q) if isinstance(q, tuple | list) else (q,) for q in checks.listed("queries", queries, of, example)
        ]
        for number, row in enumerate(rows):
            if len(row) != 1 + len(fields):
                given = checks.brief(row[0] if len(row) == 1 else row)
                raise ValueError(f"query {number} is {given}; expected {expected}")
            _check_texts(f"query {number}", fields, row[1:])
        return rows

    @torch.no_grad()
    def _prompts(self, batch: list[tuple[Any, ...]]) -> dict[str, Any]:
        """The inputs of the model for a batch of queries."""
        prefix = self.prefix
        queries = [self.template.query(*fields) for _, *fields in batch]
        inputs = self.processor(queries, [[image] for image, *_ in batch]).to(self.model.device)
        media = self.model.encode_media(inputs.pixel_values, inputs.media_counts, inputs.get("frame_counts"))
        if prefix is not None:
            media = prefix.before(media)
        return prompt_inputs(self.model, self.processor, queries, media, prefix)

    def prompt(self, query: Any) -> tuple[str, list[Any]]:
        """The whole prompt of a query, demonstrations included: its text, and its images.

        Args:
            query: as one of `__call__`.

        Raises:
            ValueError: the task was loaded from a directory, which holds no images.
        """
        [(image, *fields)] = self._queries([query])
        images = [shot[0] for shot in self._demonstrations()]
        return "".join([*self.texts, self.template.query(*fields)]), [*images, image]

    def _demonstrations(self) -> list[tuple[Any, ...]]:
        """(image, fields…) of each demonstration.

        Raises:
            ValueError: the task was loaded from a directory, which holds no images.
        """
        if self._made_with is not None:
            raise ValueError(
                "this task was loaded from a directory, without its images; make it again from its demonstrations"
            )
        return self._shots

    # Files ------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Writes a directory or a task file.

        A directory gets the template, the demonstrations' texts and what the model computed of them, without images: it
        loads fast, for the same model. A path that ends in .json becomes a task file, with the images: it loads for
        any model, and `flamboyance caption --demonstrations`, the web page and the server read it.

        Raises:
            ValueError: a task file of a task that was loaded from a directory, which holds no images.
        """
        directory = Path(directory)
        if is_task_file(directory):
            return write_task(directory, TaskFile(directory.stem, self.template, tuple(self._demonstrations())))
        directory.mkdir(parents=True, exist_ok=True)
        tensors, prefix = {}, self.prefix
        if prefix is not None and prefix.media is not None:
            images = prefix.media.rows[0]
            media = prefix.media.select(images, (tuple(range(len(images))),))  # the file has one entry per image
            tensors["ids"], tensors["latents"] = prefix.ids, media.latents
            for name, pairs in (("media", media.keys_values), ("language", prefix.layers)):
                for i, (keys, values) in enumerate(pairs):
                    tensors[f"{name}.{i}.keys"], tensors[f"{name}.{i}.values"] = keys, values
        with replacing(directory / "prefix.safetensors") as part:
            save_file({k: t.contiguous() for k, t in tensors.items()}, part)
        template = {k: v for k, v in asdict(self.template).items() if k != "fields"}
        task = {
            "model": fingerprint(self.model),
            "preprocessing": _preprocessing(self.processor),
            "tokenizer": tokenizer_digest(self.processor.tokenizer),
            "template": template,
            "texts": self.texts,
        }
        write_json(directory / "task.json", task)

    @classmethod
    def load(
        cls, directory: str | Path, model: FlamingoForConditionalGeneration, processor: FlamingoProcessor
    ) -> "FewShotTask":
        """Loads a saved task: a directory, for the model that it was saved with; or a task file, for any model.

        Raises:
            ValueError: the directory holds no task, or one of another model or processor; or the file is no task file.
        """
        _check_parts(model, processor, templates.caption)
        if not isinstance(directory, str | Path):
            raise ValueError(f"directory is {checks.brief(directory)}; expected the path of a saved task")
        directory = Path(directory)
        if directory.is_file() and is_task_file(directory):
            task_file = read_task(directory)
            return cls(model, processor, task_file.demonstrations, task_file.template)
        if not (directory / "task.json").is_file():
            raise ValueError(
                f"{directory} holds no task: expected task.json and prefix.safetensors, as save writes them"
            )
        task: Any = read_json(directory / "task.json")
        kinds = {"model": str, "template": dict, "texts": list}
        if not isinstance(task, dict) or not all(isinstance(task.get(name), kind) for name, kind in kinds.items()):
            raise ValueError(f"{directory / 'task.json'} is damaged, or not written by save; make the task again")
        if task["model"] != (found := fingerprint(model)):
            raise ValueError(
                f"the task in {directory} was computed with another model or precision: the parts, weights or adapters "
                "differ. Load the model that it was made with, or make the task again from its demonstrations"
            )
        saved, given = task.get("preprocessing"), _preprocessing(processor)
        if saved is not None and given is not None and saved != given:
            raise ValueError(
                f"the task in {directory} was computed from images preprocessed by {saved}; the given processor has "
                f"{given}. Give the processor that the task was made with"
            )
        if task.get("tokenizer") not in (None, tokenizer_digest(processor.tokenizer)):
            raise ValueError(
                f"the task in {directory} was computed with another tokenizer. Give the processor that it was made with"
            )
        try:
            template = Template(**task["template"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{directory / 'task.json'} is damaged: its template is not valid ({error!r})") from error
        if not task["texts"]:
            return cls(model, processor, (), template)
        prefix = _read_prefix(directory / "prefix.safetensors", model)
        [ids] = processor.tokenize(["".join(task["texts"])])
        if ids != prefix.ids.tolist():
            raise ValueError(
                f"the task in {directory} was computed with another tokenizer: it splits the demonstrations into "
                "other tokens. Give the processor that the task was made with"
            )
        return cls.of_prefix(model, processor, template, task["texts"], prefix, found)

    @classmethod
    def of_prefix(
        cls,
        model: FlamingoForConditionalGeneration,
        processor: FlamingoProcessor,
        template: Template,
        texts: Sequence[str],
        prefix: Prefix,
        made_with: str | None = None,
    ) -> "FewShotTask":
        """A task whose demonstrations are computed already.

        Args:
            texts: the demonstrations, as the template writes them.
            prefix: what `model` computed of them.
            made_with: the model's fingerprint, if it is known.
        """
        self = cls(model, processor, (), template)
        self.texts, self._prefix, self._stamp = list(texts), prefix, stamp(model)
        self._made_with = fingerprint(model) if made_with is None else made_with
        return self


def _preprocessing(processor: FlamingoProcessor) -> str | None:
    """How images become pixels, as a text; None if that is the user's own function."""
    text = str(processor.image_processor)
    return None if " at 0x" in text else text


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits of a hash over all that decides how a tokenizer splits a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = sorted(tokenizer.get_vocab().items())
    if hasattr(backend, "to_str"):
        rules = json.loads(backend.to_str())
        rules |= {"truncation": None, "padding": None}  # left by the last call
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def _read_prefix(file: Path, model: FlamingoForConditionalGeneration) -> Prefix:
    try:
        tensors = load_file(file, device=str(model.device))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged or missing ({error}); make the task again") from None
    check_finite(tensors, file)

    def pairs(name: str) -> tuple[tuple[Tensor, Tensor], ...]:
        count = sum(key.startswith(f"{name}.") for key in tensors) // 2
        return tuple((tensors[f"{name}.{i}.keys"], tensors[f"{name}.{i}.values"]) for i in range(count))

    latents = tensors["latents"]
    media = Media(latents, pairs("media"), (tuple(range(len(latents))),))
    layers = pairs("language")  # empty if the state is not keys and values; that is not saved
    return Prefix(tensors["ids"], media, layers) if layers else Prefix.of(model, tensors["ids"], media)


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    size = checks.whole_number("batch_size", size, 1)
    return [items[i : i + size] for i in range(0, len(items), size)]


def _check_parts(model: object, processor: object, template: object) -> None:
    """
    Raises:
        ValueError: one of the three has another type, e.g. because two are swapped.
    """
    if isinstance(model, FlamingoProcessor):
        raise ValueError("model and processor are swapped: expected FewShotTask(model, processor, demonstrations)")
    if isinstance(model, tuple | list):
        raise ValueError(f"model is a {type(model).__name__}; unpack it: model, processor = fl.load_mini()")
    if not hasattr(model, "encode_media"):
        raise ValueError(f"model is {checks.brief(model)}; expected a FlamingoForConditionalGeneration")
    if not isinstance(processor, FlamingoProcessor):
        raise ValueError(
            f"processor is {checks.brief(processor)}; expected a FlamingoProcessor, as "
            "FlamingoProcessor(image_processor, tokenizer)"
        )
    if not isinstance(template, Template):
        known = [name for name, value in vars(templates).items() if isinstance(value, Template)]
        near = difflib.get_close_matches(template, known, 1) if isinstance(template, str) else []
        hint = f"; did you mean flamboyance.templates.{near[0]}?" if near else ", such as flamboyance.templates.vqa"
        raise ValueError(f"template={checks.brief(template)}: expected a Template{hint}")


def _check_texts(place: str, fields: Sequence[str], values: Sequence[object]) -> None:
    for name, value in zip(fields, values, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"{place}: {name} is {checks.brief(value)}; expected a text (the image comes first)")
