"""FlamingoForConditionalGeneration: the network with generation, opening and saving."""

import copy
import functools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flamboyance import names
from flamboyance.checkpoints import card, openflamingo, released
from flamboyance.checkpoints.directory import (
    WEIGHTS,
    absolute,
    cast_trainable,
    load_trained,
    read_config,
    read_weights,
    resolve,
    restore_trainable,
    settle_adapters,
    write_checkpoint,
)
from flamboyance.checkpoints.open_backbones import (
    adapters_too,
    check_backbones,
    check_json,
    check_language_model,
    open_language_model,
    opening,
    place,
)
from flamboyance.checkpoints.preprocessing import follow_tower
from flamboyance.checkpoints.save_backbones import save_tower, save_transformers, write_backbone
from flamboyance.configuration import FlamingoConfig
from flamboyance.hub import options as reachable
from flamboyance.model import adapters
from flamboyance.model.generation import GenerativeFlamingo
from flamboyance.model.linear import plain
from flamboyance.model.trainable import OWN
from flamboyance.model.vision import VisionTower, chosen_settings
from flamboyance.processing import FlamingoProcessor, complete


class FlamingoForConditionalGeneration(GenerativeFlamingo):
    """A Flamingo model (Alayrac et al. 2022, figure 3), with the interface of transformers' models.

    FlamingoModel says what its parts are, and which of them train.

    Args:
        config: sizes and names.
        vision, language_model: the frozen backbones; default: built from the configuration, with random weights.

    Attributes:
        processor: the processor that the model was created or opened with; saved with the model.
        source: the directory that the model was opened from.
    """

    processor: FlamingoProcessor | None = None
    source: Path | None = None

    # Opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_backbones(
        cls,
        vision: str,
        language: str,
        processor: Any,
        *,
        vision_pretrained: str | None = None,
        image_size: int | None = None,
        feature_levels: Sequence[int] | None = None,
        cross_attn_every_n_layers: int | None = None,
        cross_attention_layers: list[int] | None = None,
        decoder_layers: str | None = None,
        resampler: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        dtype: torch.dtype | str = "auto",
        trained_dtype: torch.dtype | None = None,
        quantize: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **language_options: Any,
    ) -> Any:
        """A new Flamingo around pretrained backbones. Its gates are zero, so that at first it is the language model.

        Args:
            vision, vision_pretrained: a hub id or directory; or an OpenCLIP name and its tag; or `timm/<name>`.
            image_size, feature_levels: of the tower, as in VisionTower.from_pretrained.
            language: hub id or directory of any causal language model; a GGUF file; or `package:NAME`, an installed
                Python package with weights.
            processor: a FlamingoProcessor with the language model's tokenizer; it determines the ids of added tokens.
                If it has no image processor, it gets the tower's.
            cross_attn_every_n_layers, cross_attention_layers, decoder_layers, resampler, cross_attention: as in
                FlamingoConfig.
            dtype: of all parts; "auto": that of the language model's files.
            trained_dtype: of the trainable parameters, if another one: float32 to train further.
            quantize: "int8" or "int4": the backbones' linear layers keep their weights in 8 or 4 bits.
            language_options: passed to the language model's from_pretrained (device_map, quantization_config, …).
        """
        every = language_options.pop("interval", cross_attn_every_n_layers)  # the older name
        vision, language = absolute(vision), absolute(language)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        with opening("language", language):
            options = adapters_too(reachable(language, hub)) | language_options
            language_model = open_language_model(language, dtype=dtype, quantize=quantize, **options)
        with opening("vision", vision):
            hub = reachable(vision, hub) | {"dtype": language_model.dtype, "quantize": quantize}
            chosen: dict[str, Any] = {"image_size": image_size, "feature_levels": feature_levels}
            tower = VisionTower.from_pretrained(vision, pretrained=vision_pretrained, **chosen, **hub)
        follow_tower(processor, tower.spec)
        config = FlamingoConfig(
            vision=tower.spec,
            vision_width=tower.width,
            language=language,
            text_config=language_model.config.get_text_config(decoder=True),
            cross_attn_every_n_layers=every,
            cross_attention_layers=cross_attention_layers,
            decoder_layers=decoder_layers,
            resampler=resampler,
            cross_attention=cross_attention,
            base_vocab_size=processor.base_vocab_size,
            added_tokens=processor.added_tokens,
            image_token_id=processor.image_token_id,
            eoc_token_id=processor.eoc_token_id,
            pad_token_id=processor.pad_token_id,
            quantize=quantize,
        )
        check_backbones(tower, language_model)
        model = cls(config, vision=tower, language_model=language_model)
        model.tokenizer, model.processor = processor.tokenizer, processor
        return place(model, trained_dtype)

    @classmethod
    def from_config(cls, config: FlamingoConfig | str | os.PathLike) -> Any:
        """A new Flamingo with random weights in all of its parts.

            with torch.device("meta"):
                outline = FlamingoForConditionalGeneration.from_config("flamingo-80b")

        Args:
            config: or what FlamingoConfig.from_pretrained takes: a size of the original Flamingo, or a directory.
        """
        return cls(
            copy.deepcopy(config) if isinstance(config, FlamingoConfig) else FlamingoConfig.from_pretrained(config)
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: FlamingoConfig | None = None,
        checkpoint: str | None = None,
        language: str | None = None,
        vision: str | None = None,
        tokenizer: str | None = None,
        dtype: torch.dtype | str = "auto",
        trained_dtype: torch.dtype | None = None,
        quantize: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | None = None,
        **language_options: Any,
    ) -> Any:
        """Opens a released OpenFlamingo model by name, or a Flamboyance checkpoint from a directory or the hub.

        Args:
            pretrained_model_name_or_path: e.g. "openflamingo/OpenFlamingo-3B-vitl-mpt1b", or a directory.
            checkpoint, tokenizer: local files of a released model: its checkpoint.pt, and the tokenizer's directory.
            language, vision: hub ids or directories of the backbones, if not those that the checkpoint names.
            dtype: of all parts; "auto": that of the language model's files.
            trained_dtype: of the trainable parameters, if another one: float32 to train further.
            quantize: "int8" or "int4": the backbones' linear layers keep their weights in 8 or 4 bits. Weights are
                quantized one by one as they are read. None: as the checkpoint was saved.
            language_options: passed to the language model's from_pretrained (device_map, quantization_config, …).

        Raises:
            ValueError: the checkpoint is not a Flamingo, does not fit its backbones, or is quantized otherwise.
        """
        name = names.resolve(pretrained_model_name_or_path)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        if name.kind == "released":
            parts = {"checkpoint": checkpoint, "tokenizer": tokenizer, "language": language, "vision": vision}
            precision = {"dtype": dtype, "trained_dtype": trained_dtype, "quantize": quantize}
            hub_file = {"token": token, "revision": revision}
            return cls._from_released(name.name, parts, hub, hub_file, **precision, **language_options)
        if checkpoint or tokenizer:
            raise ValueError(
                f"checkpoint= and tokenizer= are for released OpenFlamingo models; leave them out for {name.name}"
            )
        directory = name.files(revision=revision, token=token, **hub)
        if config is not None and dtype == "auto" and config.dtype is not None:
            dtype = config.dtype  # older transformers' Auto classes pass the requested dtype here
        if config is not None and config._attn_implementation not in (None, "sdpa"):  # the Auto classes put it there
            language_options.setdefault("attn_implementation", config._attn_implementation)
        config = read_config(directory) if config is None else copy.deepcopy(config)
        config.choose_scheme(quantize, directory)
        quantize = config.quantize
        check_json(directory)
        tensors, about = read_weights(directory / WEIGHTS)
        stored = dtype == "auto"
        if stored and about.get("dtype"):
            dtype = about["dtype"]
        config.language = absolute(language) if language else resolve(config.language, directory)
        another_tower = bool(vision)
        vision = absolute(vision) if vision else resolve(config.vision["name"], directory)
        config.vision = dict(config.vision, name=vision)
        language_options = {
            k: v for k, v in language_options.items() if not k.startswith("_") and k != "adapter_kwargs"
        }
        if token is not None:
            language_options["token"] = token
        with opening("language", language := config.language):
            options = adapters_too(reachable(language, hub)) | language_options
            options |= {"dtype": dtype, "quantize": quantize, "known": config.text_config}
            language_model = open_language_model(language, **options)
        check_language_model(config, language_model)
        pretrained, library = config.vision["pretrained"], config.vision["library"]
        with opening("vision", vision):
            hub = reachable(vision, hub) | {"dtype": language_model.dtype, "quantize": quantize}
            tower = VisionTower.from_pretrained(vision, pretrained, library, **chosen_settings(config.vision), **hub)
        if tower.width != config.vision_width:
            raise ValueError(
                f"vision tower {vision} has width {tower.width}; the checkpoint was trained for width "
                f"{config.vision_width}. Name the right tower: vision=…, or `vision` in config.json."
            )
        check_backbones(tower, language_model)
        if another_tower:
            config.vision = tower.spec
        model = cls(config, vision=tower, language_model=language_model)
        if about.get("adapters"):
            adapters.rebuild(model, about["adapters"], directory)
        load_trained(model, tensors, directory / WEIGHTS)
        model._find_processor(directory)
        model.source = directory
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory)
        place(model, trained_dtype)
        settle_adapters(model, tensors if stored and trained_dtype is None else {}, trained_dtype)
        restore_trainable(model, about)
        if trained_dtype is not None:
            cast_trainable(model, tensors, trained_dtype)
        return model

    @classmethod
    def _from_released(
        cls, name: str, parts: dict[str, str | None], hub: dict[str, Any], hub_file: dict[str, Any], **options: Any
    ) -> Any:
        """A released model; each part is downloaded from the hub, unless `parts` has its local path."""
        config = released.config_for(name)
        checkpoint = parts["checkpoint"]
        if checkpoint is None:
            checkpoint = hf_hub_download(name, "checkpoint.pt", **hub_file, **reachable(name, hub))
        tokenizer = parts["tokenizer"] or parts["language"]
        processor = FlamingoProcessor.of_released(name, tokenizer=tokenizer, **hub)
        if parts["vision"]:
            processor.image_processor = None  # from_backbones sets the tower's
        tower, language = parts["vision"] or config.vision["name"], parts["language"] or str(config.language)
        model = cls.from_backbones(
            tower, language, processor, cross_attn_every_n_layers=config.cross_attn_every_n_layers, **hub, **options
        )
        openflamingo.load(model, openflamingo.read(checkpoint))
        return model

    def _find_processor(self, directory: Path) -> None:
        """Opens the directory's processor, or else its tokenizer, if there is one; they are saved with the model."""
        if not (directory / "tokenizer_config.json").is_file():
            return
        try:
            self.processor = FlamingoProcessor.from_pretrained(directory, local_files_only=True)
            self.tokenizer = self.processor.tokenizer
        except (OSError, ValueError):  # no preprocessing beside the tokenizer
            self.tokenizer = AutoTokenizer.from_pretrained(directory)

    # Saving -----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        include_backbones: bool | None = None,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: Any = None,
        **options: Any,
    ) -> None:
        """Writes the trained tensors, a configuration that names the backbones, the processor, and a model card.

        The trained tensors are the model's own parts, all PEFT adapters, and those of the backbones that are trainable
        or have changed since they were opened.

        Args:
            save_directory: created if missing. Each file is complete or absent, also if the process is killed.
            include_backbones: also write the tower and the language model, to vision/ and language/. None: only those
                that are local directories or have no name; others are opened from the hub by name. False: none; local
                directories are named by their paths, which are valid only on this machine.
            is_main_process: other processes write nothing.
            state_dict: gathered parameters to write instead of the model's own, as trainers pass them.
            push_to_hub, options: also push the directory: `repo_id` and the options of `push_to_hub`.
            max_shard_size: accepted for transformers' callers; the trained tensors are one file.

        Raises:
            ValueError: opening the directory would not restore a part of the model.
        """
        if not is_main_process:
            return
        for name in ("safe_serialization", "variant", "token", "save_peft_format", "save_original_format"):
            if not push_to_hub or name != "token":
                options.pop(name, None)
        if options and not push_to_hub:
            raise TypeError(f"save_pretrained has no argument {min(options)!r}; see its documentation")
        if push_to_hub:
            self._check_names(include_backbones)
        directory = Path(save_directory)
        if directory.is_file():
            raise ValueError(f"save_directory={str(directory)!r} is a file; expected a directory")
        described = adapters.describe(self)
        kept = self.kept_tensors()
        config = copy.deepcopy(self.config)
        written = self._write_backbones(directory, config, include_backbones)
        tensors = {name: _given(name, tensor, state_dict) for name, tensor in kept.items()}
        about = {
            "adapters": described,
            "trainable": list(self.trained_parameters()),
            "dtype": self._backbones_dtype(tensors),
        }
        write_checkpoint(directory, config, tensors, about)
        self.generation_config.save_pretrained(directory)
        self._write_processor(directory)
        card.write(directory, self, config, kept, written)
        if push_to_hub:
            card.add_tags(directory, options.pop("tags", None))
            self._upload(directory, options.pop("repo_id", None) or directory.resolve().name, **options)

    def _backbones_dtype(self, tensors: Mapping[str, Tensor]) -> str | None:
        """The precision that can represent all trained tensors of the backbones; None if there are none."""
        theirs = adapters.names(self)
        found = [
            tensor.dtype
            for name, tensor in tensors.items()
            if name not in theirs and not name.startswith(OWN) and tensor.is_floating_point()
        ]
        return str(functools.reduce(torch.promote_types, found)).removeprefix("torch.") if found else None

    def _write_backbones(self, directory: Path, config: FlamingoConfig, include: bool | None) -> list[str]:
        """Writes backbones as `include` says, and their paths into the configuration; returns their names."""
        written = []
        language, vision = config.language, config.vision["name"]
        if include or (include is None and _is_elsewhere(language, directory)) or not language:
            write_backbone(functools.partial(save_transformers, self.language_model), directory / "language")
            config.language = "./language"
            written.append("language")
        pretrained = config.vision["pretrained"]
        movable = adapters.base(self.vision).spec["library"] != "openclip"
        local = include is None and (_is_elsewhere(vision, directory) or (pretrained and os.path.isfile(pretrained)))
        if include or (movable and local) or not vision:
            write_backbone(functools.partial(save_tower, adapters.base(self.vision)), directory / "vision")
            config.vision = dict(self.vision.spec, name="./vision", pretrained=None)
            written.append("vision")
        return written

    def _write_processor(self, directory: Path) -> None:
        """Writes the tokenizer and the preprocessing, if the model has them."""
        processor = self.processor
        if processor is None and self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)
        elif processor is not None:
            complete(processor, self.config.vision, self.tokenizer).save_pretrained(directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        include_backbones: bool | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: Any = None,
        tags: Iterable[str] | None = None,
    ) -> str:
        """Uploads the files of `save_pretrained`, with processor and card, in one commit.

        Args:
            repo_id: created if missing, private if `private`.
            include_backbones: as in `save_pretrained`; False is an error if a backbone is a local directory.
            commit_message, commit_description, token, revision, create_pr: as in huggingface_hub's upload_folder.
            tags: further tags for the model card.

        Returns:
            The URL of the commit.
        """
        self._check_names(include_backbones)
        with tempfile.TemporaryDirectory() as directory:
            self.save_pretrained(directory, include_backbones=include_backbones)
            card.add_tags(Path(directory), tags)
            return self._upload(
                Path(directory),
                repo_id,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def _check_names(self, include_backbones: bool | None) -> None:
        """
        Raises:
            ValueError: others could not open a backbone that is only named.
        """
        pretrained = self.config.vision["pretrained"]
        local = [n for n in (self.config.language, self.config.vision["name"], pretrained) if n and os.path.exists(n)]
        if include_backbones is False and local:
            raise ValueError(
                f"cannot push with include_backbones=False: {local[0]} is on this machine, where others cannot open "
                "it; leave include_backbones out"
            )

    def _upload(
        self, directory: Path, repo_id: str, private: bool | None = None, token: Any = None, **commit: Any
    ) -> str:
        hub = HfApi(token=token)
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if commit.get("revision"):
            hub.create_branch(repo_id, branch=commit["revision"], exist_ok=True)
        commit["commit_message"] = commit.get("commit_message") or "Upload model"
        return str(hub.upload_folder(repo_id=repo_id, folder_path=directory, **commit))


def _given(name: str, tensor: Tensor, state: Mapping[str, Tensor] | None) -> Tensor:
    if state is not None and name in state:
        return state[name]
    if state is not None and name.startswith(OWN):
        raise ValueError(f"state_dict lacks {name}; expected every tensor of the model's kept_tensors()")
    return plain(tensor)


def _is_elsewhere(name: str | None, directory: Path) -> bool:
    """Whether a backbone is a local directory or file outside of the one that is written."""
    return bool(name) and os.path.exists(str(name)) and not Path(str(name)).is_relative_to(os.path.abspath(directory))


AutoModelForImageTextToText.register(FlamingoConfig, FlamingoForConditionalGeneration, exist_ok=True)
# transformers' Trainer smooths labels itself, and shifts them by one position only for the models of this table.
# Without an entry it would silently train the model to repeat its input.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[FlamingoConfig.model_type] = FlamingoForConditionalGeneration.__name__
