"""FlamingoProcessor: texts with `<image>` in them, and their images, -> the tensors that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase

from flamboyance import names
from flamboyance.hub import snapshot
from flamboyance.images import ImageError, ImageProcessor, load_frames
from flamboyance.model.vision import tower_preprocessing
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN

PAD_TOKEN = "<PAD>"
FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # a processor's, of a repository


class FlamingoProcessor:
    """Turns interleaved text and images into tensors, and token ids back into text.

    The tokenizer gets `<|endofchunk|>`, `<image>` and, if it has no padding token, `<PAD>`, in this order, as
    special tokens where they are missing. It is changed in place.

    Args:
        image_processor: picture -> float tensor (C, H, W): an `ImageProcessor`, one of transformers', or any
            callable that takes a PIL image (torchvision's and OpenCLIP's transforms); None for text alone.
        tokenizer: the language model's.

    Attributes:
        image_token_id, eoc_token_id, pad_token_id: ids of `<image>`, `<|endofchunk|>`, and padding.
        added_tokens: those of the three that the language model's own tokenizer has not, by rising id.
        base_vocab_size: id of the first of them: the rows of the language model's own table that are in use.
    """

    def __init__(
        self, image_processor: Callable[[Any], torch.Tensor] | None, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        if isinstance(image_processor, BaseImageProcessor):
            image_processor = ImageProcessor.from_config(image_processor.to_dict())
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        _add_special_tokens(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.eoc_token_id: int = vocabulary[END_OF_CHUNK_TOKEN]
        self.image_token_id: int = vocabulary[IMAGE_TOKEN]
        self.pad_token_id: int = tokenizer.pad_token_id
        self.added_tokens = _added_tokens(vocabulary, tokenizer.pad_token)
        self.base_vocab_size = max(vocabulary.values()) + 1 - len(self.added_tokens)

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Any] | None = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
        max_length: int | None = None,
    ) -> BatchFeature:
        """Encodes B rows of text and images, one image for each `<image>`.

        Args:
            text: one text, or B of them. Nothing is appended, also by tokenizers that append an end of text.
            images: the list of its media for each row, in order of appearance; for a single text, its list.
                A medium is anything `load_image` reads, or a list of such frames (video; all of one length).
            padding_side: "left" to generate from, "right" to train on.
            max_length: most tokens a row may have; more is an error, texts are never cut.

        Returns:
            `input_ids` (B, T) and `attention_mask` (B, T) long; `media_counts` (B,) long, images per row;
            `pixel_values` (B, N, F, C, H, W) float32, zeros after a row's last medium; absent without any.

        Raises:
            ValueError: counts or lengths that do not agree, named by row.
            ImageError: an image that cannot be read, named by row and place.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: only 'pt', torch tensors, is made")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side={padding_side!r}: expected 'left' (to generate) or 'right' (to train)")
        texts, media = _rows(text, images)
        ids = self.tokenize(texts)
        for row, (tokens, row_media) in enumerate(zip(ids, media, strict=True)):
            self._check_row(row, tokens, row_media, max_length)
        data = self.pad(ids, left=padding_side == "left")
        data["media_counts"] = torch.tensor([len(row_media) for row_media in media])
        if any(media):
            data["pixel_values"] = self._encode_media(media)
        return BatchFeature(data)

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        """The text of one sequence of ids."""
        return cast(str, self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True) -> list[str]:
        """The texts of several sequences of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path,
        *,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | None = None,
    ) -> FlamingoProcessor:
        """Opens the processor of a directory, a Hub repository, or a released OpenFlamingo model by its name.

        Raises:
            OSError: no tokenizer or no preprocessor_config.json is there.
        """
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        place = names.embedded(name_or_dir) or Path(name_or_dir).expanduser()
        if not place.is_dir():
            from flamboyance.checkpoints import released  # knows the published models; imports this package

            if released.is_released(str(name_or_dir)):
                return released.processor_for(str(name_or_dir), **hub)
            place = snapshot(str(name_or_dir), FILES, revision=revision, **hub)
        if not any((place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            raise OSError(f"'{name_or_dir}' holds no tokenizer; write it there with processor.save_pretrained")
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(place), local_files_only=True))
        return cls(ImageProcessor.from_pretrained(place, local_files_only=True), tokenizer)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the tokenizer's files and `preprocessor_config.json` into `directory`."""
        if not isinstance(self.image_processor, ImageProcessor):
            raise TypeError(
                f"an image processor of type {type(self.image_processor).__name__} cannot be saved; "
                "make the processor with a flamboyance ImageProcessor of the same size, mean and std"
            )
        self.image_processor.save_pretrained(directory)
        self.tokenizer.save_pretrained(str(directory))

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, with what the tokenizer puts before it (a BOS), without what it puts after it (an EOS)."""
        probe = self.tokenizer(END_OF_CHUNK_TOKEN).input_ids
        appended = len(probe) - 1 - probe.index(self.eoc_token_id)
        # Padding is done here: asked of a fast tokenizer, it becomes state that threads would share.
        return [ids[: len(ids) - appended] for ids in self.tokenizer(texts).input_ids]

    def _check_row(self, row: int, tokens: list[int], media: list[Any], max_length: int | None) -> None:
        if not tokens:
            raise ValueError(f"row {row}: the text is empty, and the tokenizer puts nothing before it; give some text")
        if max_length is not None and len(tokens) > max_length:
            raise ValueError(
                f"row {row} has {len(tokens)} tokens, max_length is {max_length}; texts are not cut: "
                "give fewer demonstrations or shorter texts"
            )
        if (found := tokens.count(self.image_token_id)) != len(media):
            raise ValueError(
                f"row {row} has {found} {IMAGE_TOKEN} in its text and {len(media)} image(s); give one image "
                f"for each {IMAGE_TOKEN} (a list within a row is one video, its frames)"
            )

    def pad(self, rows: list[list[int]], left: bool = True) -> dict[str, torch.Tensor]:
        """Rows of ids -> `input_ids` and `attention_mask`, (rows, longest)."""
        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, tokens in enumerate(rows):
            place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            input_ids[row, place] = torch.tensor(tokens)
            attention_mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _encode_media(self, media: list[list[Any]]) -> torch.Tensor:
        batch = None
        done: dict[Any, torch.Tensor] = {}  # rows often share their demonstrations
        for row, row_media in enumerate(media):
            for position, medium in enumerate(row_media):
                key = str(medium) if isinstance(medium, (str, Path)) else id(medium)
                where = f"row {row}, image {position}"
                if key not in done:
                    done[key] = self._encode_medium(medium, where)
                if batch is None:
                    batch = torch.zeros(len(media), max(map(len, media)), *done[key].shape)
                if done[key].shape != batch.shape[2:]:
                    raise ValueError(
                        f"{where} has shape {tuple(done[key].shape)} (frames, channels, height, width), the "
                        f"first has {tuple(batch.shape[2:])}; give all media of one call as many frames"
                    )
                batch[row, position] = done[key]
        assert batch is not None
        return batch

    def _encode_medium(self, medium: Any, where: str) -> torch.Tensor:
        if self.image_processor is None:
            raise ValueError("this processor was made without an image processor, for text alone; give it one")
        try:
            return torch.stack([self.image_processor(frame) for frame in load_frames(medium)])
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from error


def image_processor_of(vision: dict[str, Any]) -> ImageProcessor:
    """The preprocessing that a tower's directory states, or else the one that its kind was trained with.

    `vision`: the tower's spec, as FlamingoConfig.vision.
    """
    if vision["name"] and (Path(vision["name"]) / "preprocessor_config.json").is_file():
        return ImageProcessor.from_pretrained(vision["name"])
    told = tower_preprocessing(vision)
    side, means = told["image_size"], {"mean": told["mean"], "std": told["std"]}
    square = (side, side)
    if told["resize"] == "exact":
        return ImageProcessor(size=square, **means)
    return ImageProcessor(size=side, crop=square, **means)


def complete(processor: FlamingoProcessor, vision: dict[str, Any]) -> FlamingoProcessor:
    """A processor that can be saved: one without an image processor of ours gets the tower's preprocessing.

    `vision`: the tower's spec, as FlamingoConfig.vision.
    """
    if isinstance(processor.image_processor, ImageProcessor):
        return processor
    return FlamingoProcessor(image_processor_of(vision), processor.tokenizer)


def _rows(text: Any, images: Any) -> tuple[list[str], list[list[Any]]]:
    """`text` and `images` as B texts and B lists of media."""
    if isinstance(text, str):
        text, images = [text], [[] if images is None else images]
    if not isinstance(text, (list, tuple)) or not text or not all(isinstance(row, str) for row in text):
        raise ValueError(f"text must be a str or a list of str, one at least; given {text!r:.200}")
    images = [[] for _ in text] if images is None else images
    if not isinstance(images, (list, tuple)) or len(images) != len(text):
        found = f"{len(images)} rows" if isinstance(images, (list, tuple)) else f"a {type(images).__name__}"
        raise ValueError(f"there are {len(text)} texts, but images holds {found}; give a list of images for each text")
    for row, row_media in enumerate(images):
        if row_media is not None and not isinstance(row_media, (list, tuple)):
            raise ValueError(
                f"images[{row}] is a {type(row_media).__name__}; give each text the list of its images, "
                "as in [[a, b], [c]]"
            )
    return list(text), [list(row_media or []) for row_media in images]


def _add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    added: dict[str, Any] = {"extra_special_tokens": [END_OF_CHUNK_TOKEN, IMAGE_TOKEN]}
    tokenizer.add_special_tokens(added, replace_extra_special_tokens=False)  # keeps the model's own
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def _added_tokens(vocabulary: dict[str, int], pad_token: str) -> list[str]:
    """Those of our tokens that end the vocabulary, in our order; the same for a tokenizer saved with them."""
    added: list[str] = []
    for token in [PAD_TOKEN] * (pad_token == PAD_TOKEN) + [IMAGE_TOKEN, END_OF_CHUNK_TOKEN]:
        if vocabulary[token] == max(vocabulary.values()) - len(added):
            added.insert(0, token)
    return added
