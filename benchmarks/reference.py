"""open_flamingo 2.0.1 to measure against: its environment, and models with the same weights on both sides.

    python -m benchmarks.reference [--env DIR]

makes both ahead of a measurement. Nothing is taken from a model hub: backbones of the published sizes are filled with
random weights, and the tokenizer is a list of words.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM

from benchmarks.processes import Worker
from benchmarks.sizes import OPT_125M, Size

HERE = Path(__file__).parent
DEFAULT = Path.home() / ".cache" / "flamboyance-bench"
# Its own pins are of 2023 and need a Python of then; these are the newest that it runs with, on today's torch.
PACKAGES = (
    "transformers==4.33.3",
    "tokenizers==0.13.3",
    "huggingface_hub==0.29.3",
    "numpy==1.26.4",
    "einops==0.8.1",
    "einops-exts==0.0.4",
    "ftfy==6.3.1",
    "regex",
    "timm==0.9.16",
    "pillow",
    "sentencepiece",
    "safetensors",
    "tqdm",
)
PINNED_TOO_OLD = ("open_flamingo==2.0.1", "open_clip_torch==2.20.0")
WORDS = 50265  # of OPT's tokenizer; its table has 50272 rows
GATE = 0.5


def environment(directory: Path) -> Path:
    """The Python of an environment in which open_flamingo runs, with the torch that runs here; made when missing."""
    home = directory / "open_flamingo"
    python = home / "bin" / "python"
    same = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "torchvision")]
    wanted, stamp = "\n".join([*same, *PACKAGES, *PINNED_TOO_OLD]), home / "packages.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        directory.mkdir(parents=True, exist_ok=True)
        uv = [sys.executable, "-m", "uv"]
        install = [*uv, "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)], check=True)
        subprocess.run([*install, *same, *PACKAGES], check=True)
        subprocess.run([*install, "--no-deps", *PINNED_TOO_OLD], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def worker(python: Path, log: Path, script: str = "reference_worker.py") -> Worker:
    return Worker([python, HERE / script], log)


def own_worker(log: Path, module: str = "flamboyance_worker") -> Worker:
    """The other side: Flamboyance, in the environment that runs this."""
    return Worker([sys.executable, "-m", f"benchmarks.{module}"], log)


@dataclass(frozen=True)
class Weights:
    """A model on disk, for both sides.

    Attributes:
        language, tokenizer: directories that both read.
        clip: OpenCLIP's state dict, which the reference reads.
        vision: the same tower as a transformers directory.
        checkpoint: the reference's trained parts.
    """

    directory: Path
    size: Size

    @property
    def language(self) -> Path:
        return self.directory / "language"

    @property
    def tokenizer(self) -> Path:
        return self.directory / "tokenizer"

    @property
    def clip(self) -> Path:
        return self.directory / "clip.pt"

    @property
    def vision(self) -> Path:
        return self.directory / "vision"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    @property
    def paths(self) -> dict[str, str]:
        """The message to workers."""
        names = ("language", "tokenizer", "clip", "vision", "checkpoint")
        return {"tower": self.size.tower} | {name: str(getattr(self, name)) for name in names}


def weights(directory: Path, python: Path, size: Size = OPT_125M) -> Weights:
    """Backbones of a size with random weights, gates open; written when missing."""
    found = Weights(directory / size.name, size)
    write_tokenizer(found.tokenizer)
    if found.checkpoint.is_file():
        return found
    torch.manual_seed(0)
    # Dropout would draw different numbers on the two sides. (The reference trains with the frozen model's dropout on.)
    # Weights are larger than OPT starts with: next tokens are then far from equally likely, and losses differ more.
    config = OPTConfig(dropout=0.0, attention_dropout=0.0, init_std=0.06, **size.language)
    OPTForCausalLM(config).save_pretrained(found.language)
    with worker(python, directory / "reference_weights.log") as reference:
        reference("make_clip", tower=size.tower, file=str(found.clip))
        write_tower(found.clip, found.vision, CLIPVisionConfig(hidden_act="quick_gelu", **size.vision))
        reference("load", paths=found.paths, threads=2, cross_attn_every_n_layers=size.cross_attn_every_n_layers)
        reference("make_checkpoint", file=str(found.checkpoint), gate=GATE)
    return found


def write_tokenizer(directory: Path) -> None:
    """A list of words, in files that the tokenizers of both sides read."""
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "Output": 3, ":": 4} | {f"w{i}": i for i in range(5, WORDS)}
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def write_tower(clip: Path, directory: Path, config: CLIPVisionConfig) -> None:
    """The vision tower of OpenCLIP's state dict, as transformers stores it."""
    state = torch.load(clip, weights_only=True)
    w = {key.removeprefix("visual."): t for key, t in state.items() if key.startswith("visual.")}
    renamed = {
        "embeddings.class_embedding": w["class_embedding"],
        "embeddings.patch_embedding.weight": w["conv1.weight"],
        "embeddings.position_embedding.weight": w["positional_embedding"],
    }
    pairs = [("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")]
    for i in range(config.num_hidden_layers):
        new, old = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        pairs += [(f"{new}.layer_norm1", f"{old}.ln_1"), (f"{new}.layer_norm2", f"{old}.ln_2")]
        pairs += [(f"{new}.mlp.fc1", f"{old}.mlp.c_fc"), (f"{new}.mlp.fc2", f"{old}.mlp.c_proj")]
        pairs += [(f"{new}.self_attn.out_proj", f"{old}.attn.out_proj")]
        for kind in ("weight", "bias"):
            parts = w[f"{old}.attn.in_proj_{kind}"].chunk(3)
            renamed |= {f"{new}.self_attn.{n}_proj.{kind}": t.clone() for n, t in zip("qkv", parts, strict=True)}
    renamed |= {f"{new}.{kind}": w[f"{old}.{kind}"] for new, old in pairs for kind in ("weight", "bias")}
    model = CLIPVisionModel(config)
    prefix = "vision_model." if hasattr(model, "vision_model") else ""
    model.load_state_dict({prefix + key: tensor for key, tensor in renamed.items()})
    model.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--env", type=Path, default=DEFAULT, help=f"where it is all kept (default: {DEFAULT})")
    arguments = parser.parse_args()
    python = environment(arguments.env)
    print(python, weights(arguments.env, python).directory)


if __name__ == "__main__":
    main()
