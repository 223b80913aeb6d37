"""Bad checkpoints, configurations and backbones."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM

from flamboyance import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.convert_checkpoint import convert_file
from flamboyance.images import ImageProcessor
from tests.bad_input import case
from tests.tiny import tiny_tokenizer

open_model = FlamingoForConditionalGeneration.from_pretrained

# Checkpoints --------------------------------------------------------------------------------------------------------


def copied(given):
    return shutil.copytree(given.directory, given.tmp / "copy")


def edited(given, **changes):
    """A copy of the model with another config.json."""
    file = copied(given) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return file.parent


@case(ValueError, "'./gone'")
def checkpoint_that_is_not_there(given):
    open_model("./gone")


@case(
    ValueError,
    "c.pt",
    "flamboyance convert",
)
def checkpoint_that_is_not_converted(given):
    (given.tmp / "c.pt").write_bytes(b"x")
    open_model(given.tmp / "c.pt")


@case(ValueError, "config.json")
def directory_without_a_configuration(given):
    open_model(given.tmp)


@case(ValueError, "config.json", "JSON")
def configuration_that_is_corrupt(given):
    (given.tmp / "config.json").write_text('{"model_type": "flam', encoding="utf-8")
    open_model(given.tmp)


@case(ValueError, "config.json", "model_type", "'flamingo'")
def configuration_that_is_a_list(given):
    (given.tmp / "config.json").write_text("[]", encoding="utf-8")
    open_model(given.tmp)


@case(
    ValueError,
    "config.json",
    "'opt'",
    "'flamingo'",
    "FlamingoForConditionalGeneration.from_backbones",
)
def language_model_instead_of_a_flamingo(given):
    open_model(given.directory / "language")


@case(ValueError, "config.json", "text_config")
def configuration_without_the_language_models(given):
    open_model(edited(given, text_config=None))


@case(ValueError, "`language`", "`vision.name`")
def configuration_without_backbones(given):
    open_model(edited(given, language=None))


@case(OSError, "nobody/nothing", "language")
def language_model_out_of_reach(given):
    open_model(edited(given, language="nobody/nothing"))


@case(
    ValueError,
    "hidden_size=32",
    "hidden_size=64",
)
def another_language_model(given):
    sizes = {"ffn_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 64}
    OPTForCausalLM(OPTConfig(vocab_size=26, hidden_size=64, **sizes)).save_pretrained(given.tmp / "wide")
    open_model(given.directory, language=str(given.tmp / "wide"))


@case(ValueError, "32", "16")
def another_tower(given):
    sizes = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(hidden_size=16, image_size=16, patch_size=8, **sizes)
    CLIPVisionModel(config).save_pretrained(given.tmp / "narrow")
    open_model(given.directory, vision=str(given.tmp / "narrow"))


@case(ValueError, "model.safetensors", "save_pretrained")
def checkpoint_without_weights(given):
    (copied(given) / "model.safetensors").unlink()
    open_model(given.tmp / "copy")


@case(ValueError, "model.safetensors")
def weights_that_are_truncated(given):
    file = copied(given) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    open_model(file.parent)


@case(ValueError, "cross_attention.1.attention.norm.bias", "10", "[0, 1]")
def weights_of_another_interval(given):
    file = copied(given) / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "cross_attention.1" not in k}, file)
    open_model(file.parent)


@case(ValueError, "gone.pt", "checkpoint.pt")
def conversion_of_nothing(given):
    convert_file(given.tmp / "gone.pt", given.tmp / "out")


@case(ValueError, "x.pt", "perceiver.latents")
def conversion_of_something_else(given):
    torch.save({"weight": torch.zeros(1)}, given.tmp / "x.pt")
    convert_file(given.tmp / "x.pt", given.tmp / "out")


@case(ValueError, "out", "is a file")
def saving_over_a_file(given):
    (given.tmp / "out").touch()
    given.model.save_pretrained(given.tmp / "out")


# Configurations and backbones ---------------------------------------------------------------------------------------


@case(ValueError, "cross_attn_every_n_layers=0")
def interval_of_nothing(given):
    FlamingoConfig(cross_attn_every_n_layers=0)


@case(ValueError, "cross_attn_every_n_layers=9")
def interval_beyond_the_layers(given):
    config = FlamingoConfig.from_dict({**given.model.config.to_dict(), "cross_attn_every_n_layers": 9})
    FlamingoForConditionalGeneration(config)


@case(ValueError, "resampler", "'breadth'", "depth, heads, dim_head, latents")
def unknown_size(given):
    FlamingoConfig(resampler={"breadth": 3})


@case(ValueError, "cross_attention", "heads=0", "1")
def size_of_nothing(given):
    FlamingoConfig(cross_attention={"heads": 0})


@case(
    ValueError,
    "32",
    "22",
    "tokenizer",
)
def tokenizer_larger_than_the_table(given):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"more{i}" for i in range(10)])
    processor = FlamingoProcessor(ImageProcessor.clip(16), tokenizer)
    where = (str(given.directory / part) for part in ("vision", "language"))
    FlamingoForConditionalGeneration.from_backbones(*where, processor)


@case(ValueError, "'transformer.h'", "model.decoder.layers")
def unknown_decoder_layers(given):
    where = (str(given.directory / part) for part in ("vision", "language"))
    processor = FlamingoProcessor(None, tiny_tokenizer())
    FlamingoForConditionalGeneration.from_backbones(*where, processor, decoder_layers="transformer.h")


@case(ValueError, "'opt'", "clip_vision_model")
def language_model_as_a_tower(given):
    processor = FlamingoProcessor(None, tiny_tokenizer())
    where = str(given.directory / "language")
    FlamingoForConditionalGeneration.from_backbones(where, where, processor)


@case(ValueError, "num_hidden_layers=10000000", "at most 10000")
def language_model_of_many_layers(given):
    file = copied(given) / "language" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 10**7}), encoding="utf-8")
    open_model(file.parent.parent)


@case(ValueError, "vision", "num_hidden_layers=10000000", "at most 10000")
def vision_tower_of_many_layers(given):
    file = copied(given) / "vision" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 10**7}), encoding="utf-8")
    open_model(file.parent.parent)
