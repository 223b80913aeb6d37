"""Language models in GGUF files, which transformers reads.

It takes seconds for the tokens of a file, which come one by one. So no file is read twice where once is enough.
"""

from __future__ import annotations

import copy
import json
import mmap
import struct
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# The types of values by their numbers in the file: struct's letters, then texts and lists.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


def read_config(file: Path) -> PreTrainedConfig:
    """The configuration of the model in a file."""
    return copy.deepcopy(_config(file, file.stat().st_mtime_ns))


@lru_cache(maxsize=4)
def _config(file: Path, changed: int) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)


def open_model(
    file: Path, known: PreTrainedConfig | None = None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in a file with its weights dequantized, and transformers' report of what was loaded.

    Args:
        known: the model's configuration. If the file is of that size, the configuration is not read from it.
        options: of `AutoModelForCausalLM.from_pretrained`. dtype "auto" is float32.
    """
    if known is not None:
        known = copy.deepcopy(known)
        vars(known).pop("quantization_config", None)  # ours, which is applied afterwards
    if known is None or sizes(file) != (known.num_hidden_layers, known.hidden_size):
        known = read_config(file)
    dtype = options.get("dtype")
    options["dtype"] = torch.float32 if dtype in (None, "auto") else dtype
    with _without_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, config=known, output_loading_info=True, **options
        )
    model, report = loaded
    return _plain(model), report


@contextmanager
def _without_bar() -> Generator[None]:
    """Without the bar that transformers shows for the tensors of a GGUF file even where its bars are disabled."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils
    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, as if its weights had never been quantized: transformers refuses to save the other one."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        made = type(model)(config)
    made.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # also those that no state has
        owner, _, leaf = name.rpartition(".")
        made.get_submodule(owner).register_buffer(leaf, buffer, persistent=name in model.state_dict())
    made.tie_weights()
    made.generation_config = model.generation_config
    return made.eval()


def drop_foreign_tokens(tokenizer: Any) -> None:
    """Drops the special tokens of some family that transformers adds to the tokenizer of every GGUF file: their ids are
    beyond the model's table."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [token for token in state["added_tokens"] if token["id"] < len(state["model"]["vocab"])]
    if len(own) < len(state["added_tokens"]):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": own}))


def sizes(file: Path) -> tuple[int, int] | None:
    """Layers and width of the model in a file, which stand at its beginning; None if they are not found there."""
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Head(content).sizes()
    except (OSError, ValueError, struct.error, RecursionError):  # transformers says what is wrong with it
        return None


class _Head:
    """The named values at the beginning of a GGUF file, in their order."""

    def __init__(self, content: mmap.mmap):
        self.content, self.place = content, 0

    def sizes(self) -> tuple[int, int] | None:
        magic, version, _, count = self._unpack("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            return None
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self._value(_TEXT)
            found[name] = self._value(*self._unpack("I"))
            family = found.get("general.architecture")
            layers, width = found.get(f"{family}.block_count"), found.get(f"{family}.embedding_length")
            if layers is not None and width is not None:
                return layers, width
        return None

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            (length,) = self._unpack("Q")
            self.place += length
            return self.content[self.place - length : self.place].decode()
        if kind == _LIST:
            kind, count = self._unpack("IQ")
            return [self._value(kind) for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"values of type {kind}")
        return self._unpack(_NUMBERS[kind])[0]

    def _unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values
