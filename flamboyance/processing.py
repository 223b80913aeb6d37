"""FlamingoProcessor: texts with `<image>` in them, and the images -> the tensors that the model takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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

from flamboyance import checks, names
from flamboyance import processor_arguments as arguments
from flamboyance.chat import read_chats
from flamboyance.checkpoints import released
from flamboyance.checkpoints.open_backbones import check_json, opening
from flamboyance.checkpoints.preprocessing import image_processor_of
from flamboyance.configuration import FlamingoConfig
from flamboyance.files import read_json, write_json, write_text
from flamboyance.hub import options as reachable
from flamboyance.images import ImageError, ImageProcessor, load_image
from flamboyance.templates import CHAT_TEMPLATE, END_OF_CHUNK_TOKEN, IMAGE_TOKEN, well_formed
from flamboyance.videos import VideoSampling, frames_of

PAD_TOKEN = "<PAD>"
FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # the files of a processor in a repository
CONFIG, MODEL_CONFIG, CHAT_FILE = "processor_config.json", "config.json", "chat_template.jinja"
# Arguments that transformers' Auto classes and pipelines pass to every processor; they have no effect here.
_IGNORED = {"trust_remote_code", "use_fast", "backend", "proxies", "resume_download", "dtype", "torch_dtype"}
_IGNORED |= {"device_map", "code_revision"}
_SAMPLING = VideoSampling()


@dataclass(frozen=True, eq=False)
class PreparedMedium:
    """An image or a video, decoded and preprocessed by `FlamingoProcessor.prepare`: float32 (F, C, H, W)."""

    pixels: torch.Tensor


class FlamingoProcessor(ProcessorMixin):
    """Turns interleaved text and images into tensors, and token ids back into text.

    `<|endofchunk|>`, `<image>` and, if the tokenizer has no padding token, `<PAD>` are added to the tokenizer in this
    order, as special tokens, where they are missing. The tokenizer is changed in place.

    Args:
        image_processor: image -> float tensor (C, H, W): an `ImageProcessor`, one of transformers', or any callable
            that takes a PIL image (torchvision's and OpenCLIP's transforms). None for text alone.
        tokenizer: the language model's.
        chat_template: Jinja template of `apply_chat_template`. None: the few-shot template, `templates.CHAT_TEMPLATE`.
        video: which frames of video files are shown. None: the model has no time embeddings, and is shown the middle
            frame, with a warning. `from_pretrained` knows that of a model; it may be set at any time.

    Attributes:
        image_token_id, eoc_token_id, pad_token_id: ids of `<image>`, `<|endofchunk|>` and padding.
        added_tokens: those of the three that the language model's own tokenizer lacks, in the order of their ids.
        base_vocab_size: the id of the first added token: the number of rows in use of the language model's own table.
    """

    image_token = IMAGE_TOKEN

    def __init__(
        self,
        image_processor: Callable[[Any], torch.Tensor] | None,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        video: VideoSampling | None = _SAMPLING,
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
        self.video = video
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
        template = cast(str, self.chat_template)
        chat = "few-shot" if template == CHAT_TEMPLATE else f"another of {len(template)} characters"
        return (
            f"FlamingoProcessor(\n  image_processor={self.image_processor!r},\n"
            f"  tokenizer={kind} of {size} tokens, added: {added or 'none'},\n  chat_template={chat},\n)"
        )

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "media_counts", "frame_counts"]

    def __call__(  # the text comes first; transformers' callers pass names
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
        """Encodes B rows of text and images, one image per `<image>`.

        Args:
            text: one text, or B of them. Nothing is appended, even if the tokenizer appends an end of text.
            images: a list of media per text, in order of appearance; for a single text, its list or its one image; or
                a flat list of all images, which the texts take in order, one per `<image>`.
                A medium is anything `load_image` reads, a video file or an animation (its path or content; `video`
                says which frames are shown), a list of images as frames of a video, or what `prepare` returned.
            padding_side: "left" (the default) to generate from, "right" to train on.
            return_tensors: "pt"; "np" for arrays; None for lists, one entry per row.
            max_length: the largest number of tokens of a row. A longer row is an error, unless `truncation` is set.
            padding: True or "longest": to the longest row; "max_length": to that; False: none.
            truncation: cut longer rows to `max_length`, or else to the tokenizer's own limit. An image is dropped
                with its `<image>`. Tokens that the tokenizer puts first are kept.
            truncation_side: the side that is cut; default: the padding side. On the left (to generate) the first
                demonstrations are dropped and the query is kept; on the right (to train) the end is dropped.
            pad_to_multiple_of: the width is rounded up to a multiple of this.
            kwargs: text_kwargs, common_kwargs: the same arguments in dictionaries, as transformers groups them.

        Returns:
            `input_ids` (B, T) and `attention_mask` (B, T) long; `media_counts` (B,) long, media per row;
            `pixel_values` (B, N, F, C, H, W) float32, zeros after a row's last medium; absent without media. Where
            media have different numbers of frames, `pixel_values` (frames, C, H, W), the frames of all media one after
            another, and `frame_counts`, long, frames per medium.

        Raises:
            ValueError: counts or lengths that do not agree; names the row.
            ImageError: an image that cannot be read; names the row and the image's position.
            TypeError: an argument that this processor does not have.
        """
        given: dict[str, Any] = {"padding": padding, "padding_side": padding_side}
        given |= {"pad_to_multiple_of": pad_to_multiple_of, "add_special_tokens": add_special_tokens}
        given |= {"truncation": truncation, "truncation_side": truncation_side, "max_length": max_length}
        given |= {"return_tensors": return_tensors, "return_attention_mask": return_attention_mask}
        options = arguments.Options(**(given | arguments.grouped(kwargs)))
        ids = self.tokenize(arguments.texts(text), options.add_special_tokens)
        counts = [tokens.count(self.image_token_id) for tokens in ids]
        media = arguments.rows(images, counts, single=isinstance(text, str))
        limit = self._limit(options.max_length) if options.truncates else None
        for row, (tokens, row_media) in enumerate(zip(ids, media, strict=True)):
            _check_row(row, tokens, counts[row], row_media, options.max_length if limit is None else None)
            if limit is not None:
                ids[row], media[row] = self._truncated(tokens, row_media, limit, options.truncation_side)
        data: dict[str, Any] = {"media_counts": torch.tensor([len(row_media) for row_media in media])}
        if options.ragged(list(map(len, ids))):
            data |= {"input_ids": ids, "attention_mask": [[1] * len(tokens) for tokens in ids]}
        else:
            data |= self.pad(ids, options.padding_side == "left", options.width(max(map(len, ids))))
        if not options.return_attention_mask:
            del data["attention_mask"]
        if any(media):
            data |= self._pixel_values(media)
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

        A user's images and text and the assistant's answer become `<image>question answer<|endofchunk|>`. A space
        separates question and answer, except after a colon: with the texts "Output:" or "Question:… Short answer:" the
        prompt is OpenFlamingo's.

        Args:
            conversation: messages with `role` (system, user, assistant) and `content`, a text or a list of parts:
                `{"type": "text", "text": …}`, `{"type": "image", "image": …}` with anything that `load_image` reads
                (also as "path", "url" of a local file, or "base64"), `{"type": "video", "video": …}` with the same of a
                video, or a list of frames. Or a list of such conversations.
            chat_template: another Jinja template.
            add_generation_prompt: accepted without effect: the answer begins where the query ends.
            continue_final_message: the last message is the beginning of an answer, and is not ended.
            tokenize: return ids and images instead of the text.
            return_dict: with tokenize, return all of the model's inputs instead of `input_ids`.
            processor_kwargs: arguments of `__call__`; they may also be given directly.
            images: the images of parts that hold none; as in `__call__`.
            kwargs: arguments of `__call__`, and variables of the template.

        Returns:
            A text, or a list of texts for a list of conversations; with tokenize, as `__call__`, always with rows.

        Raises:
            ValueError: roles, parts or texts that cannot become a prompt; names the message.
        """
        for unsupported in ("tools", "documents", "return_assistant_tokens_mask"):
            if kwargs.pop(unsupported, None):
                raise ValueError(f"{unsupported}: not supported in few-shot prompts; leave it out")
        if add_generation_prompt and continue_final_message:
            raise ValueError("add_generation_prompt and continue_final_message exclude each other; give one")
        kwargs.pop("load_audio_from_video", None)
        options = {key: kwargs.pop(key) for key in (*arguments.CALL, "text_kwargs", "common_kwargs") if key in kwargs}
        options |= processor_kwargs or {}
        images = options.pop("images", images)
        chats, batched = read_chats(conversation)
        texts: Any = [
            self.tokenizer.apply_chat_template(
                chat.messages,
                chat_template=self.chat_template if chat_template is None else chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **kwargs,
            )
            for chat in chats
        ]
        if not tokenize:
            return texts if batched else texts[0]
        if images is None:
            images = [chat.images() for chat in chats]
        elif any(medium is not None for chat in chats for _, medium in chat.media):
            raise ValueError("images are given both in the messages and as images=; give them in one place")
        elif not batched:
            texts = texts[0]
        inputs = self(texts, images, **options)
        return inputs if return_dict else inputs["input_ids"]

    # Back to text -------------------------------------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> Any:
        """The text of a sequence of ids."""
        return cast(str, self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs))

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """The texts of several sequences of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """The texts of what `generate` returned: (R, T) ids, or one sequence."""
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
            kwargs: arguments that transformers' Auto classes and pipelines pass to every processor; without effect.

        Raises:
            OSError: there is no such directory or repository, or it lacks a tokenizer or preprocessor_config.json.
            TypeError: any other argument.
        """
        if not any(key.startswith("_") for key in kwargs) and (unknown := sorted(kwargs.keys() - _IGNORED)):
            raise TypeError(f"FlamingoProcessor.from_pretrained has no argument {unknown[0]!r}")
        name = names.resolve(pretrained_model_name_or_path)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        if name.kind == "released":
            return cls.of_released(name.name, **hub)
        directory = name.files(FILES, revision=revision, force_download=force_download, **hub) / subfolder
        if not any((directory / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
            raise OSError(f"'{name.name}' holds no tokenizer; write it there with processor.save_pretrained")
        check_json(directory)
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(directory), local_files_only=True))
        image_processor = ImageProcessor.from_pretrained(directory, local_files_only=True)
        config = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else {}
        if config.get("processor_class") == cls.__name__:
            # The chat template's file is the processor's; the tokenizer's own template is in the config.
            tokenizer.chat_template = config.get("tokenizer_chat_template")
            if chat_template is None and (directory / CHAT_FILE).is_file():
                chat_template = (directory / CHAT_FILE).read_text(encoding="utf-8")
        return cls(image_processor, tokenizer, chat_template, _sampling(directory, config.get("video", {})))

    @classmethod
    def of_released(cls, name: str, *, tokenizer: str | None = None, **hub: Any) -> FlamingoProcessor:
        """The processor of a released OpenFlamingo model: OpenAI's preprocessing at 224 pixels, GPT-NeoX's tokenizer.

        Args:
            tokenizer: hub id or directory of another tokenizer than the one that the release names.
            hub: cache_dir, local_files_only, token.

        Raises:
            OSError: the tokenizer cannot be found or fetched.
        """
        source = str(tokenizer or released.config_for(name).language)
        with opening("tokenizer", source):
            reader: Any = AutoTokenizer.from_pretrained(source, **reachable(source, hub))
        return cls(released.image_processor(), reader, video=None)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Writes the files that `from_pretrained` and transformers' AutoProcessor open: the tokenizer's files,
        `preprocessor_config.json`, `processor_config.json` and `chat_template.jinja`.

        Args:
            save_directory: created if missing.
            push_to_hub: also upload the files. `kwargs` are the arguments of `push_to_hub`, with repo_id (default: the
                directory's name).

        Returns:
            The path of processor_config.json, as transformers' processors do.

        Raises:
            TypeError: the image processor is a function or None.
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
        config["video"] = None if self.video is None else asdict(self.video)
        if self.tokenizer.chat_template is not None:
            config["tokenizer_chat_template"] = self.tokenizer.chat_template
        write_text(directory / CHAT_FILE, cast(str, self.chat_template))
        write_json(directory / CONFIG, config, indent=2)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", directory.name), **kwargs)
        return [str(directory / CONFIG)]

    def to_dict(self) -> dict[str, Any]:
        """The processor without its tokenizer, as JSON can hold it."""
        images = self.image_processor
        described = images.to_dict() if isinstance(images, ImageProcessor) else repr(images)
        video = None if self.video is None else asdict(self.video)
        return {"processor_class": type(self).__name__, "image_processor": described, "video": video}

    # Parts --------------------------------------------------------------------------------------------------------

    def tokenize(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """The ids of each text, with those that the tokenizer puts before it (a BOS), without those after it (an EOS).

        Halves of surrogate pairs, which tokenizers reject, become "?", as in training.
        """
        texts = [well_formed(text) for text in texts]
        if not add_special_tokens:
            return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        _, suffix = self.added_around()
        # Not padded here: padding by a fast tokenizer is state of the tokenizer, which threads would share.
        return [ids[: len(ids) - len(suffix)] for ids in self.tokenizer(texts, verbose=False).input_ids]

    def added_around(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before a text (a BOS), and after it (an EOS)."""
        ids = self.tokenizer(END_OF_CHUNK_TOKEN).input_ids
        position = ids.index(self.eoc_token_id)
        return ids[:position], ids[position + 1 :]

    def pad(self, rows: list[list[int]], left: bool = True, width: int = 0) -> dict[str, torch.Tensor]:
        """Rows of ids -> `input_ids` and `attention_mask`, (B, T): T is the longest row, or `width` if larger."""
        width = max(width, *map(len, rows))
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, tokens in enumerate(rows):
            columns = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            input_ids[row, columns] = torch.tensor(tokens)
            attention_mask[row, columns] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _limit(self, max_length: int | None) -> int:
        limit = self.tokenizer.model_max_length if max_length is None else max_length
        if limit > 10**9:  # transformers' value for a tokenizer without a limit
            raise ValueError("truncation=True, but the tokenizer has no limit; give max_length, in tokens")
        return limit

    def _truncated(self, tokens: list[int], media: list[Any], limit: int, side: str) -> tuple[list[int], list[Any]]:
        """A row of at most `limit` tokens, and the media of its remaining `<image>` tokens."""
        excess = len(tokens) - limit
        if excess <= 0:
            return tokens, media
        if side == "right":
            return tokens[:limit], media[: tokens[:limit].count(self.image_token_id)]
        prefix, _ = self.added_around()
        kept = len(prefix) if tokens[: len(prefix)] == prefix else 0
        if limit <= kept:
            raise ValueError(f"max_length={limit} leaves no room after the {kept} token(s) that begin each text")
        dropped = tokens[kept : kept + excess].count(self.image_token_id)
        return tokens[:kept] + tokens[kept + excess :], media[dropped:]

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
        frames = frames_of(medium, self.video)
        return PreparedMedium(torch.stack([self.image_processor(load_image(frame)) for frame in frames]))

    def _pixel_values(self, media: list[list[Any]]) -> dict[str, torch.Tensor]:
        """(B, N, F, C, H, W): each row's media, padded with zeros; or frames and their counts."""
        first: torch.Tensor | None = None
        found: list[list[torch.Tensor]] = [[] for _ in media]
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
                first = pixels if first is None else first
                if pixels.shape[1:] != first.shape[1:]:
                    raise ValueError(
                        f"{where} has shape {tuple(pixels.shape[1:])} (channels, height, width), the first has "
                        f"{tuple(first.shape[1:])}; expected an image processor that gives all images one shape"
                    )
                found[row].append(pixels)
        assert first is not None
        if any(len(pixels) != len(first) for row in found for pixels in row):
            return frames_and_counts([pixels for row in found for pixels in row])
        batch = torch.zeros(len(media), max(map(len, media)), *first.shape)
        for row, row_media in enumerate(found):
            for position, pixels in enumerate(row_media):
                batch[row, position] = pixels
        return {"pixel_values": batch}


def frames_and_counts(media: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Media (F, C, H, W) of different lengths, as `encode_media` takes them: `pixel_values` (frames, C, H, W), and
    `frame_counts` (M,)."""
    return {"pixel_values": torch.cat(list(media)), "frame_counts": torch.tensor([len(pixels) for pixels in media])}


def _sampling(directory: Path, saved: Any) -> VideoSampling | None:
    """The sampling for the model in a directory: None where its resampler has no time embeddings, and otherwise that
    of `processor_config.json`. Without a model, what is saved."""
    config = read_json(directory / MODEL_CONFIG) if (directory / MODEL_CONFIG).is_file() else {}
    resampler = config.get("resampler") if isinstance(config, dict) else None
    if isinstance(resampler, dict) and not resampler.get("max_frames"):
        return None
    if saved is None:
        return None if resampler is None else VideoSampling()
    try:
        return VideoSampling(**saved)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory / CONFIG}: video is {saved!r:.200}; expected frames and per_second") from error


def _check_row(row: int, tokens: list[int], places: int, media: list[Any], max_length: int | None) -> None:
    if not tokens:
        raise ValueError(f"row {row}: the text is empty, and the tokenizer puts nothing before it; give some text")
    if max_length is not None and len(tokens) > max_length:
        raise ValueError(
            f"row {row} has {len(tokens)} tokens, max_length is {max_length}; texts are not cut: give fewer "
            "demonstrations or shorter texts, or truncation=True"
        )
    if places != len(media):
        raise ValueError(
            f"row {row} has {places} {IMAGE_TOKEN} in its text and {len(media)} image(s); give one image per "
            f"{IMAGE_TOKEN} (a list within a row is one video, its frames)"
        )


def complete(
    processor: FlamingoProcessor, vision: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
) -> FlamingoProcessor:
    """The same processor with an image processor that can be saved: the tower's, if it has none of Flamboyance's.

    Args:
        vision: the tower's spec, as FlamingoConfig.vision.
        tokenizer: the model's, if it may be another object than the processor's.
    """
    tokenizer = processor.tokenizer if tokenizer is None else tokenizer
    images = processor.image_processor
    if isinstance(images, ImageProcessor):
        if tokenizer is processor.tokenizer:
            return processor
    else:
        if images is not None:
            warnings.warn(
                f"the processor prepares images with {checks.brief(images)}, which cannot be saved; the saved model "
                "prepares them as its vision tower was trained. Give it to the processor again after opening",
                stacklevel=4,
            )
        images = image_processor_of(vision)
    return FlamingoProcessor(images, tokenizer, cast(str, processor.chat_template), processor.video)


def _add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    added: dict[str, Any] = {"extra_special_tokens": [END_OF_CHUNK_TOKEN, IMAGE_TOKEN]}
    tokenizer.add_special_tokens(added, replace_extra_special_tokens=False)  # keeps the model's own
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def _added_tokens(vocabulary: dict[str, int], pad_token: str, added_by_anyone: set[str]) -> list[str]:
    """Our tokens at the end of the vocabulary, and those that a user added after them, in the order of their ids.

    A tokenizer that was saved with them gives the same.
    """
    ours = [PAD_TOKEN] * (pad_token == PAD_TOKEN) + [IMAGE_TOKEN, END_OF_CHUNK_TOKEN]
    last = max(vocabulary[token] for token in ours)
    after = sorted((token for token, number in vocabulary.items() if number > last), key=vocabulary.__getitem__)
    added = after if added_by_anyone.issuperset(after) else []
    for token in ours:
        if vocabulary[token] == max(vocabulary.values()) - len(added):
            added.insert(0, token)
    return added


AutoProcessor.register(FlamingoConfig, FlamingoProcessor, exist_ok=True)  # flamboyance.auto imports this in time
