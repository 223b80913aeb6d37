"""FlamingoProcessor: texts with `<image>` in them, and their images, -> the tensors that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from flamboyance import call_arguments as arguments
from flamboyance import names
from flamboyance.chat import Chat, is_batch
from flamboyance.checkpoints import released
from flamboyance.checkpoints.backbones import check_json, opening
from flamboyance.checkpoints.preprocessing import image_processor_of as image_processor_of
from flamboyance.configuration import FlamingoConfig
from flamboyance.files import read_json, write_json, write_text
from flamboyance.hub import options as reachable
from flamboyance.images import ImageError, ImageProcessor, frames_of, load_image
from flamboyance.templates import CHAT_TEMPLATE, END_OF_CHUNK_TOKEN, IMAGE_TOKEN, well_formed

PAD_TOKEN = "<PAD>"
FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # a processor's, of a repository
CONFIG, CHAT_FILE = "processor_config.json", "chat_template.jinja"
# What transformers' Auto classes and pipelines pass to every processor, and this one has no use for.
_PASSED = {"trust_remote_code", "use_fast", "backend", "proxies", "resume_download", "dtype", "torch_dtype"}
_PASSED |= {"device_map", "code_revision"}


@dataclass(frozen=True, eq=False)
class PreparedMedium:
    """An image or a video, decoded and preprocessed by `FlamingoProcessor.prepare`: float32 (F, C, H, W)."""

    pixels: torch.Tensor


class FlamingoProcessor(ProcessorMixin):
    """Turns interleaved text and images into tensors, and token ids back into text.

    The tokenizer gets `<|endofchunk|>`, `<image>` and, if it has no padding token, `<PAD>`, in this order, as
    special tokens where they are missing. It is changed in place.

    Args:
        image_processor: picture -> float tensor (C, H, W): an `ImageProcessor`, one of transformers', or any
            callable that takes a PIL image (torchvision's and OpenCLIP's transforms); None for text alone.
        tokenizer: the language model's.
        chat_template: Jinja template of `apply_chat_template`; None: the few-shot one, `templates.CHAT_TEMPLATE`.

    Attributes:
        image_token_id, eoc_token_id, pad_token_id: ids of `<image>`, `<|endofchunk|>`, and padding.
        added_tokens: those of the three that the language model's own tokenizer has not, by rising id.
        base_vocab_size: id of the first of them: the rows of the language model's own table that are in use.
    """

    image_token = IMAGE_TOKEN

    def __init__(
        self,
        image_processor: Callable[[Any], torch.Tensor] | None,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(
                f"tokenizer is a {type(tokenizer).__name__}; expected one of transformers' tokenizers: "
                "FlamingoProcessor(image_processor, tokenizer)"
            )
        if isinstance(image_processor, BaseImageProcessor):
            image_processor = ImageProcessor.from_config(image_processor.to_dict())
        if image_processor is not None and not callable(image_processor):
            raise TypeError(
                f"image_processor is a {type(image_processor).__name__}; expected an ImageProcessor, a callable that "
                "takes a PIL image, or None"
            )
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = CHAT_TEMPLATE if chat_template is None else chat_template
        _add_special_tokens(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.eoc_token_id: int = vocabulary[END_OF_CHUNK_TOKEN]
        self.image_token_id: int = vocabulary[IMAGE_TOKEN]
        self.pad_token_id: int = cast(int, tokenizer.pad_token_id)
        self.added_tokens = _added_tokens(vocabulary, cast(str, tokenizer.pad_token), set(tokenizer.get_added_vocab()))
        self.base_vocab_size = max(vocabulary.values()) + 1 - len(self.added_tokens)

    def __repr__(self) -> str:
        kind, size = type(self.tokenizer).__name__, len(self.tokenizer)
        added = ", ".join(f"{token} {self.tokenizer.convert_tokens_to_ids(token)}" for token in self.added_tokens)
        own = cast(str, self.chat_template)
        chat = "few-shot" if own == CHAT_TEMPLATE else f"{len(own)} characters of its own"
        return (
            f"FlamingoProcessor(\n  image_processor={self.image_processor!r},\n"
            f"  tokenizer={kind} of {size} tokens, added: {added or 'none'},\n  chat_template={chat},\n)"
        )

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "media_counts"]

    def __call__(  # text comes first, as ever here; transformers' own callers use names
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
        max_length: int | None = None,
        *,
        padding: bool | str = True,
        truncation: bool | str = False,
        truncation_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encodes B rows of text and images, one image for each `<image>`.

        Args:
            text: one text, or B of them. Nothing is appended, also by tokenizers that append an end of text.
            images: for each text the list of its media, in order of appearance; for a single text, its list or its
                one image; or a flat list of all images, which the texts take in order, one for each `<image>`.
                A medium is anything `load_image` reads, a list of such frames (video; all of one length), or what
                `prepare` returned.
            padding_side: "left" (the default) to generate from, "right" to train on.
            return_tensors: "pt"; "np" for arrays; None for lists, one entry per row.
            max_length: most tokens a row may have; more is an error, unless `truncation` is given.
            padding: True or "longest": to the longest row; "max_length"; False: not at all.
            truncation: whether longer rows are cut to `max_length`, or else to the tokenizer's own length. An image
                goes with its `<image>`; what the tokenizer puts first stays.
            truncation_side: where a row is cut; the padding side when not given. So to generate, the earliest
                demonstrations go, and the query stays; to train, the end goes.
            pad_to_multiple_of: the width is rounded up to a multiple of this.
            kwargs: text_kwargs, common_kwargs: the same arguments in a dictionary, as transformers groups them.

        Returns:
            `input_ids` (B, T) and `attention_mask` (B, T) long; `media_counts` (B,) long, images per row;
            `pixel_values` (B, N, F, C, H, W) float32, zeros after a row's last medium; absent without any.

        Raises:
            ValueError: counts or lengths that do not agree, named by row.
            ImageError: an image that cannot be read, named by row and place.
            TypeError: an argument that this processor does not have.
        """
        given: dict[str, Any] = {
            "padding": padding,
            "padding_side": padding_side,
            "pad_to_multiple_of": pad_to_multiple_of,
        }
        given |= {"truncation": truncation, "truncation_side": truncation_side, "max_length": max_length}
        given |= {"return_tensors": return_tensors, "return_attention_mask": return_attention_mask}
        given["add_special_tokens"] = add_special_tokens
        options = arguments.Options(**(given | arguments.grouped(kwargs)))
        ids = self.tokenize(arguments.texts(text), options.add_special_tokens)
        counts = [tokens.count(self.image_token_id) for tokens in ids]
        media = arguments.rows(images, counts, single=isinstance(text, str))
        longest = None if options.cuts else options.max_length
        for row, (tokens, row_media) in enumerate(zip(ids, media, strict=True)):
            self._check_row(row, tokens, counts[row], row_media, longest)
        if options.cuts:
            limit = self._limit(options.max_length)
            kept = [self._truncated(*pair, limit, options.cut_side) for pair in zip(ids, media, strict=True)]
            ids, media = [tokens for tokens, _ in kept], [row_media for _, row_media in kept]
        data: dict[str, Any] = {"media_counts": torch.tensor([len(row_media) for row_media in media])}
        if options.ragged(list(map(len, ids))):
            data |= {"input_ids": ids, "attention_mask": [[1] * len(tokens) for tokens in ids]}
        else:
            data |= self.pad(ids, options.side == "left", options.width(max(map(len, ids))))
        if not options.return_attention_mask:
            del data["attention_mask"]
        if any(media):
            data["pixel_values"] = self._pixel_values(media)
        return BatchFeature(options.converted(data))

    # Chats --------------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        images: Any = None,
        **kwargs: Any,
    ) -> Any:
        """A chat as a few-shot prompt: turns of user and assistant are demonstrations, the last user's the query.

        A user's images and text and the assistant's answer become `<image>question answer<|endofchunk|>`. There is a
        space between question and answer, but not after a colon: with the texts "Output:" or "Question:… Short
        answer:" the prompt is OpenFlamingo's.

        Args:
            conversation: messages with `role` (system, user, assistant) and `content`, a text or a list of parts:
                `{"type": "text", "text": …}`, `{"type": "image", "image": …}` with anything that `load_image` reads
                (also as "path", "url" of a local file, or "base64"), `{"type": "video", "video": [frames]}`. Or a list
                of such conversations.
            chat_template: another Jinja template.
            add_generation_prompt: accepted; the answer begins where the query ends, without a mark.
            continue_final_message: the last message is an answer that was begun, and is left open.
            tokenize: give ids and images rather than the text.
            return_dict: with tokenize, all of the model's inputs rather than `input_ids`.
            processor_kwargs: arguments of `__call__`; they may also be given directly.
            images: for parts that hold no image themselves: as in `__call__`.
            kwargs: arguments of `__call__`, and variables of the template.

        Returns:
            A text, or a list of texts for a list of conversations; with tokenize, as `__call__`, always with rows.

        Raises:
            ValueError: roles, parts or texts that cannot become a prompt, named by message.
        """
        for unsupported in ("tools", "documents", "return_assistant_tokens_mask"):
            if kwargs.pop(unsupported, None):
                raise ValueError(f"{unsupported}: few-shot prompts have none; leave it out")
        if add_generation_prompt and continue_final_message:
            raise ValueError("add_generation_prompt and continue_final_message exclude each other; give one")
        kwargs.pop("load_audio_from_video", None)
        options = {key: kwargs.pop(key) for key in (*arguments.CALL, "text_kwargs", "common_kwargs") if key in kwargs}
        options |= processor_kwargs or {}
        images = options.pop("images", images)
        several = is_batch(conversation)
        chats = [Chat.read(chat, f"conversation {i}, " if several else "") for i, chat in
                 enumerate(conversation if several else [conversation])]  # fmt: skip
        texts: list[str] = [
            cast(
                str,
                self.tokenizer.apply_chat_template(
                    chat.messages,
                    chat_template=self.chat_template if chat_template is None else chat_template,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    tokenize=False,
                    **kwargs,
                ),
            )
            for chat in chats
        ]
        if not tokenize:
            return texts if several else texts[0]
        if images is None:
            missing = next((where for chat in chats for where, medium in chat.media if medium is None), None)
            if missing:
                raise ValueError(
                    f"{missing} is an image part without an image; give it as 'image', 'path' or 'base64' there, or "
                    "all of them as images="
                )
            images = [[medium for _, medium in chat.media] for chat in chats]
        elif any(medium is not None for chat in chats for _, medium in chat.media):
            raise ValueError("images are given both in the messages and as images=; give them in one place")
        elif not several:
            return self._encoded(texts[0], images, options, return_dict)
        return self._encoded(texts, images, options, return_dict)

    def _encoded(self, text: Any, images: Any, options: dict[str, Any], return_dict: bool) -> Any:
        inputs = self(text, images, **options)
        return inputs if return_dict else inputs["input_ids"]

    # Back to text -------------------------------------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> Any:
        """The text of one sequence of ids."""
        return cast(str, self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs))

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """The texts of several sequences of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """The texts of what `generate` returned: (R, T) ids or one sequence of them."""
        ids = np.asarray(generated_outputs.cpu() if isinstance(generated_outputs, torch.Tensor) else generated_outputs)
        return self.batch_decode(ids[None] if ids.ndim == 1 else ids, skip_special_tokens, **kwargs)

    # Files --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        subfolder: str = "",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> FlamingoProcessor:
        """Opens the processor of a directory, a Hub repository, a released OpenFlamingo model, or "mini".

        Args:
            kwargs: what transformers' Auto classes and pipelines pass to every processor, which has no effect here.

        Raises:
            OSError: there is no such directory or repository, or it holds no tokenizer or no preprocessor_config.json.
            TypeError: an argument that is none of these.
        """
        if not any(key.startswith("_") for key in kwargs) and (unknown := sorted(kwargs.keys() - _PASSED)):
            raise TypeError(f"FlamingoProcessor.from_pretrained has no argument {unknown[0]!r}")
        name = names.resolve(pretrained_model_name_or_path)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        if name.kind == "released":
            return cls.of_released(name.name, **hub)
        place = name.files(FILES, revision=revision, force_download=force_download, **hub) / subfolder
        if not any((place / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
            raise OSError(f"'{name.name}' holds no tokenizer; write it there with processor.save_pretrained")
        check_json(place)
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(place), local_files_only=True))
        images = ImageProcessor.from_pretrained(place, local_files_only=True)
        own = read_json(place / CONFIG) if (place / CONFIG).is_file() else {}
        if own.get("processor_class") == cls.__name__:
            # The file of the chat template is the processor's; a language model's own template is kept beside it.
            tokenizer.chat_template = own.get("tokenizer_chat_template")
            if chat_template is None and (place / CHAT_FILE).is_file():
                chat_template = (place / CHAT_FILE).read_text(encoding="utf-8")
        return cls(images, tokenizer, chat_template)

    @classmethod
    def of_released(cls, name: str, *, tokenizer: str | None = None, **hub: Any) -> FlamingoProcessor:
        """The processor of a released OpenFlamingo model: OpenAI's preprocessing at 224 pixels, GPT-NeoX's tokenizer.

        Args:
            tokenizer: its hub id or directory, if not the one that the release names.
            hub: cache_dir, local_files_only, token.

        Raises:
            OSError: the tokenizer is not within reach.
        """
        source = str(tokenizer or released.config_for(name).language)
        with opening("tokenizer", source):
            reader: Any = AutoTokenizer.from_pretrained(source, **reachable(source, hub))
        return cls(released.image_processor(), reader)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Writes what `from_pretrained` and transformers' AutoProcessor open: the tokenizer's files,
        `preprocessor_config.json`, `processor_config.json` and `chat_template.jinja`.

        Args:
            save_directory: made if missing.
            push_to_hub: also upload them; `kwargs` are those of `push_to_hub`, with repo_id (default: the directory's
                name).

        Returns:
            The path of processor_config.json, as transformers' processors do.

        Raises:
            TypeError: the image processor is a function, or there is none.
        """
        if not isinstance(self.image_processor, ImageProcessor):
            raise TypeError(
                f"an image processor of type {type(self.image_processor).__name__} cannot be saved; "
                "make the processor with a flamboyance ImageProcessor of the same size, mean and std"
            )
        directory = Path(save_directory)
        self.image_processor.save_pretrained(directory)
        self.tokenizer._set_processor_class(type(self).__name__)
        self.tokenizer.save_pretrained(str(directory))
        config: dict[str, Any] = {"processor_class": type(self).__name__}
        if self.tokenizer.chat_template is not None:
            config["tokenizer_chat_template"] = self.tokenizer.chat_template
        write_text(directory / CHAT_FILE, cast(str, self.chat_template))
        write_json(directory / CONFIG, config, indent=2)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", directory.name), **kwargs)
        return [str(directory / CONFIG)]

    def to_dict(self) -> dict[str, Any]:
        """What this processor is made of, apart from its tokenizer, as JSON can hold it."""
        images = self.image_processor
        told = images.to_dict() if isinstance(images, ImageProcessor) else repr(images)
        return {"processor_class": type(self).__name__, "image_processor": told}

    # Parts --------------------------------------------------------------------------------------------------------

    def tokenize(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Ids of each text, with what the tokenizer puts before it (a BOS), without what it puts after it (an EOS).

        Halves of surrogate pairs, which no tokenizer takes, become "?", as in training.
        """
        texts = [well_formed(text) for text in texts]
        if not add_special_tokens:
            return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        _, appended = self._around()
        # Padding is done here: asked of a fast tokenizer, it becomes state that threads would share.
        return [ids[: len(ids) - appended] for ids in self.tokenizer(texts, verbose=False).input_ids]

    def _around(self) -> tuple[int, int]:
        """How many tokens the tokenizer puts before a text, and after it."""
        probe = self.tokenizer(END_OF_CHUNK_TOKEN).input_ids
        at = probe.index(self.eoc_token_id)
        return at, len(probe) - 1 - at

    def pad(self, rows: list[list[int]], left: bool = True, width: int = 0) -> dict[str, torch.Tensor]:
        """Rows of ids -> `input_ids` and `attention_mask`, (rows, longest, or `width` if that is more)."""
        width = max(width, *map(len, rows))
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, tokens in enumerate(rows):
            place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            input_ids[row, place] = torch.tensor(tokens)
            attention_mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _check_row(self, row: int, tokens: list[int], found: int, media: list[Any], max_length: int | None) -> None:
        if not tokens:
            raise ValueError(f"row {row}: the text is empty, and the tokenizer puts nothing before it; give some text")
        if max_length is not None and len(tokens) > max_length:
            raise ValueError(
                f"row {row} has {len(tokens)} tokens, max_length is {max_length}; texts are not cut: "
                "give fewer demonstrations or shorter texts, or truncation=True"
            )
        if found != len(media):
            raise ValueError(
                f"row {row} has {found} {IMAGE_TOKEN} in its text and {len(media)} image(s); give one image "
                f"for each {IMAGE_TOKEN} (a list within a row is one video, its frames)"
            )

    def _limit(self, max_length: int | None) -> int:
        limit = self.tokenizer.model_max_length if max_length is None else max_length
        if limit > 10**9:  # transformers' mark for a tokenizer without a length
            raise ValueError("truncation=True, but the tokenizer states no length; give max_length, in tokens")
        if limit < 1:
            raise ValueError(f"max_length={max_length}: expected a number of tokens, 1 or more")
        return limit

    def _truncated(self, tokens: list[int], media: list[Any], limit: int, side: str) -> tuple[list[int], list[Any]]:
        """A row of at most `limit` tokens, and the media of the `<image>` tokens that are left."""
        excess = len(tokens) - limit
        if excess <= 0:
            return tokens, media
        if side == "right":
            gone = tokens[limit:].count(self.image_token_id)
            return tokens[:limit], media[: len(media) - gone]
        first, _ = self._around()
        first = first if tokens[:first] == self.tokenizer(END_OF_CHUNK_TOKEN).input_ids[:first] else 0
        if limit <= first:
            raise ValueError(f"max_length={limit} leaves no room after the {first} token(s) that begin each text")
        gone = tokens[first : first + excess].count(self.image_token_id)
        return tokens[:first] + tokens[first + excess :], media[gone:]

    def prepare(self, medium: Any) -> PreparedMedium:
        """Decodes and preprocesses one image or video. A call takes the result in the place of the image.

        Raises:
            ImageError: it cannot be decoded.
            ValueError: this processor has no image processor.
        """
        if isinstance(medium, PreparedMedium):
            return medium
        if self.image_processor is None:
            raise ValueError("this processor was made without an image processor, for text alone; give it one")
        # One frame at a time: a large picture is small again before the next one is decoded.
        return PreparedMedium(torch.stack([self.image_processor(load_image(frame)) for frame in frames_of(medium)]))

    def _pixel_values(self, media: list[list[Any]]) -> torch.Tensor:
        """(B, N, F, C, H, W): each row's media, padded with zeros."""
        batch = None
        prepared: dict[Any, torch.Tensor] = {}  # rows often share their demonstrations
        for row, row_media in enumerate(media):
            for position, medium in enumerate(row_media):
                key = str(medium) if isinstance(medium, (str, Path)) else id(medium)
                where = f"row {row}, image {position}"
                if key not in prepared:
                    try:
                        prepared[key] = self.prepare(medium).pixels
                    except ImageError as error:
                        raise type(error)(f"{where}: {error}") from error
                pixels = prepared[key]
                if batch is None:
                    batch = torch.zeros(len(media), max(map(len, media)), *pixels.shape)
                if pixels.shape != batch.shape[2:]:
                    raise ValueError(
                        f"{where} has shape {tuple(pixels.shape)} (frames, channels, height, width), the first has "
                        f"{tuple(batch.shape[2:])}; give all media of one call as many frames"
                    )
                batch[row, position] = pixels
        assert batch is not None
        return batch


# The tokenizer ------------------------------------------------------------------------------------------------------


def complete(processor: FlamingoProcessor, vision: dict[str, Any]) -> FlamingoProcessor:
    """A processor that can be saved: one without an image processor of ours gets the tower's preprocessing.

    `vision`: the tower's spec, as FlamingoConfig.vision.
    """
    if isinstance(processor.image_processor, ImageProcessor):
        return processor
    return FlamingoProcessor(image_processor_of(vision), processor.tokenizer, cast(str, processor.chat_template))


def _add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    added: dict[str, Any] = {"extra_special_tokens": [END_OF_CHUNK_TOKEN, IMAGE_TOKEN]}
    tokenizer.add_special_tokens(added, replace_extra_special_tokens=False)  # keeps the model's own
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def _added_tokens(vocabulary: dict[str, int], pad_token: str, by_anyone: set[str]) -> list[str]:
    """Those of our tokens that end the vocabulary, in our order, and what a user added behind them; the same for a
    tokenizer saved with them."""
    ours, by_id = [PAD_TOKEN] * (pad_token == PAD_TOKEN) + [IMAGE_TOKEN, END_OF_CHUNK_TOKEN], vocabulary.__getitem__
    behind = [token for token in sorted(vocabulary, key=by_id) if by_id(token) > max(map(by_id, ours))]
    added = behind if by_anyone.issuperset(behind) else []
    for token in ours:
        if by_id(token) == max(vocabulary.values()) - len(added):
            added.insert(0, token)
    return added


AutoProcessor.register(FlamingoConfig, FlamingoProcessor, exist_ok=True)  # flamboyance.auto imports this in time
