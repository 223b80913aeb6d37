"""What a model's name means: the embedded model, a released one, a directory, or a repository on the hub.

    entry = catalog.resolve("mini")
    model, processor = entry.open()
    entry.config().text_config

Whatever takes a model's name asks here, so that a name means the same everywhere. Importing this costs nothing;
torch and transformers are imported when a model or its configuration is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flamboyance import hub, names

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.images import ImageProcessor
    from flamboyance.processing import FlamingoProcessor

MINI = names.MINI


@dataclass(frozen=True)
class Entry:
    """One model, by its name. Nothing is opened or downloaded before a method asks for it.

    Attributes:
        name: what opens this model from anywhere: "mini", a released model's full name, a path, or a hub id.
        kind: "embedded", "released", "directory" or "hub".
        directory: where an embedded model, or one in a directory, is.
    """

    name: str
    kind: Literal["embedded", "released", "directory", "hub"]
    directory: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether this is the model in the package, which knows little more than its own toy world."""
        return self.kind == "embedded"

    def is_flamingo(self, **options: Any) -> bool:
        """Whether this package opens the model; otherwise it is one of transformers' own.

        Raises:
            OSError: there is no such model.
        """
        if self.kind in ("embedded", "released"):
            return True
        from transformers import PreTrainedConfig

        try:
            values, _ = PreTrainedConfig.get_config_dict(self.name, **hub.options(self.name, options))
        except OSError as error:
            if self.kind == "hub":
                raise hub.missing(self.name, str(error)) from error
            raise
        return values.get("model_type") == "flamingo"

    def config(self, **options: Any) -> FlamingoConfig:
        """The configuration. No weights are read or downloaded.

        Args:
            options: cache_dir, local_files_only, revision, token, of the hub.

        Raises:
            OSError, ValueError: there is no such model, or it is not a Flamingo.
        """
        if self.kind == "released":
            from flamboyance.checkpoints import released

            return released.config_for(self.name)
        from flamboyance.checkpoints.directory import read_config

        with self._named():
            return read_config(self.files(**options))

    def files(self, **options: Any) -> Path:
        """The model's directory on this machine; a repository is downloaded first.

        Raises:
            OSError: there is no such model.
            ValueError: a released model, whose files are another project's.
        """
        if self.directory is not None:
            return self.directory
        if self.kind == "released":
            raise ValueError(f"{self.name} has no directory; write one with `flamboyance convert`")
        from flamboyance.checkpoints.directory import local_directory

        return local_directory(self.name, **options)

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
        shared = {key: options[key] for key in ("cache_dir", "local_files_only", "revision", "token") if key in options}
        self.config(**shared)  # what is no model is refused before anything large is read
        processor = self.processor(**shared)
        model = self.model(**options)
        if model.tokenizer is None:
            model.tokenizer = processor.tokenizer
        return model, processor

    def tower(self, **options: Any) -> tuple[dict[str, Any], ImageProcessor]:
        """The spec of the model's vision tower, its name as it is found from here; and the model's image processor.

        Nothing is opened but configurations.
        """
        if self.kind == "released":
            from flamboyance.checkpoints import released

            return self.config().vision, released.image_processor()
        from flamboyance.checkpoints.directory import resolve as found_from
        from flamboyance.images import ImageProcessor

        directory = self.files(**options)
        vision = self.config(**options).vision
        return dict(vision, name=found_from(vision["name"], directory)), ImageProcessor.from_pretrained(directory)

    @property
    def _place(self) -> str:
        return self.name if self.directory is None else str(self.directory)

    @contextmanager
    def _named(self) -> Generator[None]:
        """Libraries do not always name what could not be opened."""
        try:
            yield
        except hub.UnknownModelError:
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
    """The model that a name means.

    In this order: a directory of this name, `mini` (or `flamingo-mini`), a released OpenFlamingo model with or without
    `openflamingo/`, a repository on the hub. Whether that repository exists is found out when it is opened.

    Raises:
        UnknownModelError: the name can mean none of these.
    """
    text = os.fspath(name)
    if not text.strip():
        raise hub.UnknownModelError("the model's name is empty; give 'mini', a directory, or a released model's name")
    if own := names.embedded(text):
        return Entry(MINI, "embedded", own)
    directory = Path(text).expanduser()
    if directory.is_dir():
        return Entry(str(directory), "directory", directory)
    if short := names.released(text):
        return Entry(names.ORGANISATION + short, "released")
    hub.check(text)
    return Entry(text, "hub")
