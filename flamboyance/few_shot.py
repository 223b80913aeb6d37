"""FewShotTask: demonstrations computed once, queried many times."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from flamboyance import checks, templates
from flamboyance.files import read_json, replacing, write_json
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.cache import RoomyLayer, branch, empty, is_plain, moved, roomy
from flamboyance.model.fingerprint import fingerprint, stamp
from flamboyance.model.finite import check_finite
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor
from flamboyance.templates import Template


@dataclass(frozen=True)
class Prefix:
    """The demonstrations as a model remembers them.

    Attributes:
        ids: (P,) their tokens.
        media: their images, as the one row of a Media; None without any.
        layers: per layer of the language model keys and values, (1, heads, P, width of a head) each.
        state: the language model's whole cache, where its layers hold something else; layers is empty then.
    """

    ids: Tensor
    media: Media | None
    layers: tuple[tuple[Tensor, Tensor], ...]
    state: DynamicCache | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: FlamingoForConditionalGeneration, ids: Tensor, media: Media | None) -> "Prefix":
        """Computes (P,) tokens, whose images are the one row of `media`."""
        cache = empty(model.config.text_config)
        model(input_ids=ids[None], media=media, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if not is_plain(cache):
            return cls(ids, media, (), cache)
        layers: list[Any] = cache.layers
        return cls(ids, media, tuple((layer.keys, layer.values) for layer in layers))

    def to(self, device: torch.device) -> "Prefix":
        """The same on another device."""
        if self.media is None:
            return self
        pairs = tuple((k.to(device), v.to(device)) for k, v in self.media.keys_values)
        media = Media(self.media.latents.to(device), pairs, self.media.rows)
        layers = tuple((k.to(device), v.to(device)) for k, v in self.layers)
        return Prefix(self.ids.to(device), media, layers, None if self.state is None else moved(self.state, device))

    def shared(self, row: list[int]) -> int:
        """How many of these tokens a row begins with; all, unless the tokenizer joins their end with what follows. At
        least one token of the row is left to compute."""
        pairs = zip(row, self.ids.tolist(), strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(row), len(self.ids)))
        return min(same, len(row) - 1)

    def cache(self, shifts: Sequence[int], length: int, share: bool) -> DynamicCache | None:
        """A cache of `length` tokens for a batch: in row i the demonstrations start `shifts[i]` places later, behind
        padding, and lose as many tokens at their end.

        So every row stays one stretch of real tokens behind its padding, whatever the lengths of the queries: exact for
        relative (ALiBi) as for absolute positions. Where all start at once, rows share one copy if the model can attend
        to it (`share`).

        None where the language model's state is not keys and values, so that it can be neither cut nor moved, and that
        would be needed: the prompts are then computed whole.
        """
        if self.state is not None:
            whole = length == len(self.ids) and not any(shifts)
            return branch(self.state, len(shifts)) if whole else None
        cache = roomy()
        if share and not any(shifts):
            cache.layers = [RoomyLayer(before=((k[:, :, :length], v[:, :, :length]),)) for k, v in self.layers]
            return cache
        for i, (keys, values) in enumerate(self.layers):
            cache.update(_shifted(keys[:, :, :length], shifts), _shifted(values[:, :, :length], shifts), i)
        return cache


class FewShotTask:
    """Answers queries after a fixed set of demonstrations; those are computed once, at the first query.

        captioner = FewShotTask(model, processor, [(cats, "Two cats."), (sink, "A bathroom sink.")])
        captioner(["a.jpg", "b.jpg"])

    Gives what the full prompt would give. A demonstration costs a query nothing but attention to its cached tokens.

    Args:
        demonstrations: (image, answer), or (image, question, answer): an image, then the template's fields in order.
            An image is anything the processor reads.
        template: how a demonstration and the query are written.
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
        self.template = template
        wanted = f"(image, {', '.join(template.fields)})"
        shots = checks.listed("demonstrations", demonstrations, f"{wanted} tuples", f"[{wanted}]")
        for number, shot in enumerate(shots):
            if not isinstance(shot, tuple | list) or len(shot) != 1 + len(template.fields):
                raise ValueError(f"demonstration {number} is {checks.brief(shot)}; expected {wanted}")
            _check_texts(f"demonstration {number}", template.fields, shot[1:])
        self.texts = [template.demonstration(*shot[1:]) for shot in shots]
        self._images = [shot[0] for shot in shots]
        self._prefix: Prefix | None = None
        self._stamp: tuple[Any, ...] = ()  # of the model when the prefix was computed
        self._made_with: str | None = None  # fingerprint of the model that an opened task was made with

    def __repr__(self) -> str:
        model = f"{type(self.model).__name__} on {self.model.device}"
        return f"FewShotTask({model}, {len(self.texts)} demonstrations, template={self.template.pattern!r})"

    @property
    def prefix(self) -> Prefix | None:
        """The demonstrations, computed; None without any. Computed anew when the model's weights, precision, device or
        adapters have changed since.

        Raises:
            ValueError: they have, and the task was opened from a directory, which holds no images to compute from.
        """
        if not self.texts:
            return None
        now = stamp(self.model)
        if self._prefix is None or self._stamp != now:
            if self._made_with is None:
                self._prefix = self._computed()
            elif self._made_with != fingerprint(self.model):
                raise ValueError(
                    "the model has changed since this task was opened: other weights, precision or adapters. What the "
                    "task remembers of its demonstrations means nothing to it; make the task again from them"
                )
            elif self._prefix is not None:  # the same weights in another place
                self._prefix = self._prefix.to(self.model.device)
            self._stamp = now
        return self._prefix

    @torch.no_grad()
    def _computed(self) -> Prefix:
        inputs = self.processor(["".join(self.texts)], [self._images]).to(self.model.device)
        media = self.model.encode_media(inputs.pixel_values, inputs.media_counts)
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
            queries: images; or, for templates that ask something, (image, question) tuples.
            generation: further options of transformers' `generate`, e.g. do_sample, temperature; one answer a query.
        """
        for option in ("num_return_sequences", "return_dict_in_generate", "generation_config"):
            if option in generation:
                raise ValueError(f"a few-shot task gives one text a query; for {option} call model.generate")
        for option in ("past_key_values", "cache", "cache_implementation", "media"):
            if generation.get(option) is not None:
                raise ValueError(
                    f"a few-shot task brings its own {option}, with the demonstrations in it; leave it out"
                )
        if not generation.pop("use_cache", True):
            raise ValueError("use_cache=False: a few-shot task's demonstrations are in the cache; leave it out")
        checks.whole_number("max_new_tokens", max_new_tokens, 1)
        checks.whole_number("num_beams", num_beams, 1)
        generation = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False} | generation
        generation["use_cache"] = True  # whatever the model's generation_config says
        answers = []
        for batch in _batches(self._queries(queries), batch_size):
            inputs = self._prompts(batch)
            width = inputs["input_ids"].shape[1]
            out = self.model.generate(**inputs, **generation)
            texts = self.processor.batch_decode(out[:, width:], skip_special_tokens=True)
            answers.extend(self.template.parse(text) for text in texts)
        return answers

    def classify(
        self, queries: Sequence[Any], labels: Sequence[str], *, normalize: str = "mean", batch_size: int = 8
    ) -> list[tuple[str, dict[str, float]]]:
        """The likeliest of the labels for each query, with every label's probability among them.

        Args:
            queries: as in a call.
            labels: the answers to choose from; each is computed as a whole, none is generated.
            normalize: "mean": log-probability per token (the papers'), so that long labels are not at a disadvantage;
                or "sum".
        """
        labels = checks.texts("labels", labels, "['cat', 'dog']")
        written: dict[str, str] = {}  # white space around a label is left out in most templates
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
            for row in scores.softmax(-1).tolist():
                probabilities = dict(zip(labels, row, strict=True))
                results.append((max(probabilities, key=probabilities.__getitem__), probabilities))
        return results

    def _score(self, batch: list[tuple[Any, ...]], labels: Sequence[str], normalize: str) -> Tensor:
        query = self.template.query(*batch[0][1:])
        candidates = [completion_tokens(self.processor, self.template, query, label) for label in labels]
        return self.model.score(**self._prompts(batch), candidates=candidates, normalize=normalize)

    def _queries(self, queries: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Each query as (image, fields before the answer)."""
        asked = self.template.fields[:-1]
        expected = f"(image, {', '.join(asked)})" if asked else "an image"
        of, example = (f"{expected} tuples", f"[{expected}]") if asked else ("images", "task([image])")
        rows = [
            tuple(q) if isinstance(q, tuple | list) else (q,) for q in checks.listed("queries", queries, of, example)
        ]
        for number, row in enumerate(rows):
            if len(row) != 1 + len(asked):
                given = checks.brief(row[0] if len(row) == 1 else row)
                raise ValueError(f"query {number} is {given}; expected {expected}")
            _check_texts(f"query {number}", asked, row[1:])
        return rows

    @torch.no_grad()
    def _prompts(self, batch: list[tuple[Any, ...]]) -> dict[str, Any]:
        """Demonstrations and query of each row, left-padded, with all but the queries already in the cache."""
        device = self.model.device
        queries = [self.template.query(*fields) for _, *fields in batch]
        inputs = self.processor(queries, [[image] for image, *_ in batch]).to(device)
        prefix = self.prefix
        if prefix is None or prefix.media is None:
            return dict(inputs)
        media = self.model.encode_media(inputs.pixel_values, inputs.media_counts)
        media = prefix.media.repeat(len(batch)).append(media)
        rows = self.processor.tokenize(["".join([*self.texts, query]) for query in queries])
        known = min(prefix.shared(row) for row in rows)
        padded = {name: tensor.to(device) for name, tensor in self.processor.pad(rows).items()}
        shifts = [padded["input_ids"].shape[1] - len(row) for row in rows]
        cache = prefix.cache(shifts, known, self.model.shares_prompts)
        return {**padded, "media": media, "past_key_values": cache}

    # Keeping ----------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Writes the template, the demonstrations' texts and what the model remembers of them; no images."""
        directory = Path(directory)
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
            "tokenizer": _reading(self.processor.tokenizer),
            "template": template,
            "texts": self.texts,
        }
        write_json(directory / "task.json", task)

    @classmethod
    def load(
        cls, directory: str | Path, model: FlamingoForConditionalGeneration, processor: FlamingoProcessor
    ) -> "FewShotTask":
        """Opens a saved task, for the model that it was made with.

        Raises:
            ValueError: no task is there, or it was made with another model.
        """
        _check_parts(model, processor, templates.caption)
        directory = Path(directory)
        if not (directory / "task.json").is_file():
            raise ValueError(
                f"{directory} holds no task: expected task.json and prefix.safetensors, as save writes them."
            )
        task: Any = read_json(directory / "task.json")
        kinds = {"model": str, "template": dict, "texts": list}
        if not isinstance(task, dict) or not all(isinstance(task.get(name), kind) for name, kind in kinds.items()):
            raise ValueError(f"{directory / 'task.json'} is damaged, or not written by save; make the task again")
        if task["model"] != (found := fingerprint(model)):
            raise ValueError(
                f"the task in {directory} was computed with another model or precision (its parts, weights or "
                "adapters differ), so its memory means nothing to this one; make it again from its demonstrations"
            )
        told, own = task.get("preprocessing"), _preprocessing(processor)
        if told is not None and own is not None and told != own:
            raise ValueError(
                f"the task in {directory} was computed from images preprocessed by {told}; this processor has {own}. "
                "Give the processor that it was made with"
            )
        if task.get("tokenizer") not in (None, _reading(processor.tokenizer)):
            raise ValueError(
                f"the task in {directory} was computed with another tokenizer. Give the processor that it was made with"
            )
        try:
            template = Template(**(task["template"] | {"stops": tuple(task["template"]["stops"])}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory / 'task.json'} is damaged: its template is none ({error!r})") from error
        self = cls(model, processor, (), template)
        self.texts = task["texts"]
        if self.texts:
            self._prefix = _read_prefix(directory / "prefix.safetensors", model)
            [ids] = processor.tokenize(["".join(self.texts)])
            if ids != self._prefix.ids.tolist():
                raise ValueError(
                    f"the task in {directory} was computed with another tokenizer: its demonstrations are other tokens "
                    "now. Give the processor that it was made with"
                )
            self._stamp, self._made_with = stamp(model), found
        return self


def completion_tokens(processor: FlamingoProcessor, template: Template, query: str, label: str) -> list[int]:
    """A label's tokens as they stand after a query: tokenizers may write a word otherwise at a text's beginning."""
    completion = template.completion(label)
    asked, answered = processor.tokenize([query, query + completion])
    if len(asked) < len(answered) and answered[: len(asked)] == asked:
        return answered[len(asked) :]
    return processor.tokenizer(completion, add_special_tokens=False)["input_ids"]


def _preprocessing(processor: FlamingoProcessor) -> str | None:
    """How images become pixels, in words; None where that is a function of the user's own."""
    text = str(processor.image_processor)
    return None if " at 0x" in text else text


def _reading(tokenizer: Any) -> str:
    """16 hexadecimal digits over how a tokenizer makes tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told: Any = sorted(tokenizer.get_vocab().items())
    if hasattr(backend, "to_str"):
        told = json.loads(backend.to_str())
        told |= {"truncation": None, "padding": None}  # of the last call
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


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
    layers = pairs("language")  # none where the state is something else, which is not kept in files
    return Prefix(tensors["ids"], media, layers) if layers else Prefix.of(model, tensors["ids"], media)


def _shifted(t: Tensor, shifts: Sequence[int]) -> Tensor:
    """(1, H, P, K) -> (rows, H, P, K), row i moved `shifts[i]` places to the right, zeros before it."""
    if not any(shifts):
        return t.expand(len(shifts), -1, -1, -1)
    length = t.shape[2]
    out = t.new_zeros(len(shifts), *t.shape[1:])
    for row, shift in enumerate(shifts):
        out[row, :, shift:] = t[0, :, : max(length - shift, 0)]
    return out


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    size = checks.whole_number("batch_size", size, 1)
    return [items[i : i + size] for i in range(0, len(items), size)]


def _check_parts(model: Any, processor: Any, template: Any) -> None:
    """
    Raises:
        ValueError: one of them is something else, e.g. another's place was taken.
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
        hint = f"; did you mean flamboyance.templates.{near[0]}?" if near else ", as flamboyance.templates.vqa is one"
        raise ValueError(f"template={checks.brief(template)}: expected a Template{hint}")


def _check_texts(place: str, fields: Sequence[str], values: Sequence[Any]) -> None:
    for name, value in zip(fields, values, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"{place}: {name} is {checks.brief(value)}; expected a text (the image comes first)")
