"""Models by name.

    entry = catalog.resolve("mini")
    model, processor = entry.open()
    entry.config().text_config

Importing this is quick: torch and transformers are imported when a model or its configuration is opened.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flamboyance import hub, names

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.images import ImageProcessor
    from flamboyance.processing import FlamingoProcessor

MINI, SMALL = names.MINI, names.SMALL


class Entry(names.Name):
    """One model, by its name. Nothing is opened or downloaded before a method is called."""

    @property
    def embedded(self) -> bool:
        """Whether the model is in the package."""
        return self.kind == "embedded"

    def is_flamingo(self, **options: Any) -> bool:
        """Whether this package opens the model; otherwise transformers does.

        Raises:
            OSError: there is no such model.
        """
        if self.kind in ("embedded", "released", "original"):
            return True
        from transformers import PreTrainedConfig

        try:
            values, _ = PreTrainedConfig.get_config_dict(self.name, **hub.options(self.name, options))
        except OSError as error:
            if self.kind == "hub":
                raise names.missing(self.name, str(error)) from error
            raise
        return values.get("model_type") == "flamingo"

    def config(self, quantize: str | None = None, **options: Any) -> FlamingoConfig:
        """The configuration. No weights are read or downloaded.

        Args:
            quantize: the scheme of the frozen parts' weights; None: as the model was saved.
            options: cache_dir, local_files_only, revision, token, of the hub.

        Raises:
            OSError, ValueError: there is no such model, it is not a Flamingo, or it is quantized otherwise.
        """
        if self.kind == "released":
            from flamboyance.checkpoints import released

            config = released.config_for(self.name)
        elif self.kind == "original":
            from flamboyance.configuration import FlamingoConfig

            config = FlamingoConfig.from_pretrained(self.name)
        else:
            from flamboyance.checkpoints.directory import read_config

            with self._named():
                config = read_config(self.files(**options))
        config.choose_scheme(quantize, self.name)
        return config

    def outline(self, **options: Any) -> FlamingoForConditionalGeneration:
        """The model without weights, on the meta device: it takes no memory. `options`: as for `config`."""
        import torch

        from flamboyance.flamingo import FlamingoForConditionalGeneration

        with torch.device("meta"):
            return FlamingoForConditionalGeneration(self.config(**options))

    def model(self, **options: Any) -> FlamingoForConditionalGeneration:
        """The model, in evaluation mode. `options`: those of FlamingoForConditionalGeneration.from_pretrained."""
        from flamboyance.flamingo import FlamingoForConditionalGeneration

        with self._named():
            return FlamingoForConditionalGeneration.from_pretrained(self._place, **options).eval()

    def processor(self, **options: Any) -> FlamingoProcessor:
        """The model's processor. `options`: those of FlamingoProcessor.from_pretrained."""
        from flamboyance.processing import FlamingoProcessor

        with self._named():
            return FlamingoProcessor.from_pretrained(self._place, **options)

    def open(self, **options: Any) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
        """Model and processor. `options`: those of FlamingoForConditionalGeneration.from_pretrained."""
        self.check_weights()
        shared = {key: options[key] for key in ("cache_dir", "local_files_only", "revision", "token") if key in options}
        self.config(**shared)  # refuses what is not a Flamingo before anything large is read
        processor = self.processor(**shared)
        model = self.model(**options)
        model.processor, model.tokenizer = processor, processor.tokenizer  # not copies: users may add tokens
        return model, processor

    def tower(self, **options: Any) -> tuple[dict[str, Any], ImageProcessor]:
        """The spec of the model's vision tower, with a name that opens it from here, and the model's image processor.

        Only configurations are read.
        """
        if self.kind == "released":
            from flamboyance.checkpoints import released

            return self.config().vision, released.image_processor()
        from flamboyance.checkpoints.directory import resolve as path_of
        from flamboyance.images import ImageProcessor

        directory = self.files(**options)
        vision = self.config(**options).vision
        return dict(vision, name=path_of(vision["name"], directory)), ImageProcessor.from_pretrained(directory)

    @property
    def _place(self) -> str:
        return self.name if self.directory is None else str(self.directory)

    @contextmanager
    def _named(self) -> Generator[None]:
        """Adds the model's name to errors, which libraries do not always name."""
        try:
            yield
        except names.UnknownModelError:
            raise
        except OSError as error:
            if self.name in str(error) or self._place in str(error):
                raise
            raise OSError(f"cannot open the model {self.name}: {' '.join(str(error).split())}") from error
        except Exception as error:
            # What libraries raise over a directory's damaged files: nested without end, of other shapes, no weights.
            theirs = type(error).__module__ in ("_pickle", "huggingface_hub.errors")
            if self.kind != "directory" or not (theirs or isinstance(error, RuntimeError)):
                raise
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"cannot open the model {self.name}, its files are damaged: {said}") from error


def resolve(name: str | os.PathLike[str]) -> Entry:
    """The model of this name; see flamboyance.names.resolve for what a name may be.

    Raises:
        UnknownModelError: the name can mean no model.
    """
    return Entry(**vars(names.resolve(name)))


def load_embedded(name: str, quantize: str | None = None) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """An embedded model in float32 on the CPU, and its processor, whatever is in the working directory.

    Raises:
        OSError: this installation lacks it, or its language model.
    """
    import torch
    from transformers.utils import logging

    directory = names.embedded_directory(name)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it loads at once
    try:
        entry = Entry(name, "embedded", directory)
        return entry.open(dtype=torch.float32, quantize=quantize, local_files_only=True)
    finally:
        if bars:
            logging.enable_progress_bar()
