"""Saving a Flamingo: a directory that opens wherever it is copied to, and on the hub."""

import copy
import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import GenerationConfig

from flamboyance.configuration import FlamingoConfig
from flamboyance.model import adapters, card
from flamboyance.model.files import write_backbone, write_checkpoint
from flamboyance.model.linear import plain
from flamboyance.model.trainable import OWN


class Saving:
    """`save_pretrained` and `push_to_hub` of FlamingoForConditionalGeneration."""

    config: FlamingoConfig
    generation_config: GenerationConfig
    vision: Any
    language_model: Any
    processor: Any
    tokenizer: Any
    trained_parameters: Callable[[], dict[str, nn.Parameter]]
    kept_tensors: Callable[[], dict[str, Tensor]]

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
        """Writes what trained, a configuration that names the backbones, the processor, and a model card.

        What trained is the model's own parts, PEFT adapters wherever they are, and of the backbones what requires
        gradients or differs from what was opened.

        Args:
            save_directory: made if missing. Each file is complete or absent, whenever the process dies.
            include_backbones: also the tower and language model, under vision/ and language/, so that the directory
                stands alone. None: those that are directories of this machine or have no name; what has a name on the
                hub is named. False: directories are named by their paths, which this machine alone understands.
            is_main_process: other processes write nothing.
            state_dict: gathered parameters to write instead of the model's own, as trainers give them.
            push_to_hub, options: also push the directory: `repo_id` and what `push_to_hub` takes.
            max_shard_size: accepted for transformers' callers; what trains is one file.

        Raises:
            ValueError: something in the model would not come back when the directory is opened.
        """
        if not is_main_process:
            return
        for name in ("safe_serialization", "variant", "token", "save_peft_format", "save_original_format"):
            if not push_to_hub or name != "token":
                options.pop(name, None)
        if options and not push_to_hub:
            raise TypeError(f"save_pretrained has no argument {min(options)!r}; see its documentation")
        directory = Path(save_directory)
        if directory.is_file():
            raise ValueError(f"{directory} is a file; expected a directory to save the model in")
        described = adapters.describe(self)  # ty: ignore[invalid-argument-type]
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
            self._upload(directory, options.pop("repo_id", None) or directory.resolve().name, **options)

    def _backbones_dtype(self, tensors: Mapping[str, Tensor]) -> str | None:
        """The precision that keeps all of what trained of the backbones; None where nothing did."""
        theirs = adapters.names(self)  # ty: ignore[invalid-argument-type]
        found = [
            tensor.dtype
            for name, tensor in tensors.items()
            if name not in theirs and not name.startswith(OWN) and tensor.is_floating_point()
        ]
        return str(functools.reduce(torch.promote_types, found)).removeprefix("torch.") if found else None

    def _write_backbones(self, directory: Path, config: FlamingoConfig, include: bool | None) -> list[str]:
        """Writes those backbones that shall be in the directory, and says so in the configuration."""
        written = []
        language, vision = config.language, config.vision["name"]
        if include or (include is None and _is_elsewhere(language, directory)) or not language:
            write_backbone(lambda target: adapters.save_base(self.language_model, target), directory / "language")
            config.language = "./language"
            written.append("language")
        movable = adapters.base(self.vision).spec["library"] == "transformers"
        local = include is None and _is_elsewhere(vision, directory)
        if include or (movable and local) or not vision:
            write_backbone(adapters.base(self.vision).save_pretrained, directory / "vision")
            config.vision = dict(self.vision.spec, name="./vision", pretrained=None)
            written.append("vision")
        return written

    def _write_processor(self, directory: Path) -> None:
        """Tokenizer and preprocessing, as far as the model knows them."""
        processor = self.processor
        if processor is None and self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)
        elif processor is not None:
            from flamboyance.processing import complete  # is above the model

            complete(processor, self.config.vision).save_pretrained(directory)

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
        """Uploads what `save_pretrained` writes: complete, with processor and card, in one commit.

        Args:
            repo_id: made if missing, as `private` says.
            include_backbones: as in `save_pretrained`; False is refused where a backbone is a local directory.
            commit_message, commit_description, token, revision, create_pr: as in huggingface_hub's upload_folder.
            tags: more tags for the model card.

        Returns:
            The commit's address.
        """
        local = [n for n in (self.config.language, self.config.vision["name"]) if n and os.path.isdir(n)]
        if include_backbones is False and local:
            raise ValueError(
                f"cannot push with include_backbones=False: {local[0]} is a directory of this machine, which nobody "
                "else can open; leave include_backbones out"
            )
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
    """Whether a backbone is a directory of this machine, outside of the one that is written."""
    return bool(name) and os.path.isdir(str(name)) and not Path(str(name)).is_relative_to(os.path.abspath(directory))
