"""Bad checkpoints, configurations and backbones."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM

from flamboyance import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.convert import convert_file
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


@case(ValueError, "no such directory: './gone' …")
def checkpoint_that_is_not_there(given):
    open_model("./gone")


@case(
    ValueError,
    "…c.pt is a file; expected a directory or a hub id. To open OpenFlamingo's checkpoint.pt, convert it: flamboyance "
    "convert …c.pt DIRECTORY",
)
def checkpoint_that_is_not_converted(given):
    (given.tmp / "c.pt").write_bytes(b"x")
    open_model(given.tmp / "c.pt")


@case(ValueError, "… has no config.json, so it is no Flamboyance checkpoint. It should hold config.json and …")
def directory_without_a_configuration(given):
    open_model(given.tmp)


@case(ValueError, "…config.json is not valid JSON (…). Restore it from the original checkpoint.")
def configuration_that_is_corrupt(given):
    (given.tmp / "config.json").write_text('{"model_type": "flam', encoding="utf-8")
    open_model(given.tmp)


@case(ValueError, "…config.json holds a JSON list; expected an object with model_type 'flamingo'.")
def configuration_that_is_a_list(given):
    (given.tmp / "config.json").write_text("[]", encoding="utf-8")
    open_model(given.tmp)


@case(
    ValueError,
    "…config.json describes a model of type 'opt'; expected 'flamingo'. To build a Flamingo around it, use "
    "FlamingoForConditionalGeneration.from_backbones.",
)
def language_model_instead_of_a_flamingo(given):
    open_model(given.directory / "language")


@case(ValueError, "…config.json has no text_config, the configuration of the language model. Restore it.")
def configuration_without_the_language_models(given):
    open_model(edited(given, text_config=None))


@case(ValueError, "The configuration in … does not name its backbones. Set `language` and `vision.name` in its …")
def configuration_without_backbones(given):
    open_model(edited(given, language=None))


@case(OSError, "Cannot open nobody/nothing, given as language: it is no directory with a model, nor on the hub …")
def language_model_out_of_reach(given):
    open_model(edited(given, language="nobody/nothing"))


@case(
    ValueError,
    "The checkpoint was trained for a language model with hidden_size=32, but … has hidden_size=64. Name the right …",
)
def another_language_model(given):
    sizes = {"ffn_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 64}
    OPTForCausalLM(OPTConfig(vocab_size=26, hidden_size=64, **sizes)).save_pretrained(given.tmp / "wide")
    open_model(given.directory, language=str(given.tmp / "wide"))


@case(ValueError, "The checkpoint was trained for a vision tower of width 32, but … has width 16. Name the right one:…")
def another_tower(given):
    sizes = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(hidden_size=16, image_size=16, patch_size=8, **sizes)
    CLIPVisionModel(config).save_pretrained(given.tmp / "narrow")
    open_model(given.directory, vision=str(given.tmp / "narrow"))


@case(ValueError, "there is no model.safetensors in …: expected what trained, as save_pretrained writes it")
def checkpoint_without_weights(given):
    (copied(given) / "model.safetensors").unlink()
    open_model(given.tmp / "copy")


@case(ValueError, "…model.safetensors is not a complete safetensors file (…). Copy or download it again.")
def weights_that_are_truncated(given):
    file = copied(given) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    open_model(file.parent)


@case(
    ValueError, "…lacks cross_attention.1.attention.norm.bias and 10 more. This model has blocks before layers [0, 1]…"
)
def weights_of_another_interval(given):
    file = copied(given) / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "cross_attention.1" not in k}, file)
    open_model(file.parent)


@case(ValueError, "…gone.pt is no such file; expected a checkpoint file such as OpenFlamingo's checkpoint.pt.")
def conversion_of_nothing(given):
    convert_file(given.tmp / "gone.pt", given.tmp / "out")


@case(ValueError, "…x.pt is no OpenFlamingo checkpoint: expected keys such as perceiver.latents, found weight.")
def conversion_of_something_else(given):
    torch.save({"weight": torch.zeros(1)}, given.tmp / "x.pt")
    convert_file(given.tmp / "x.pt", given.tmp / "out")


@case(ValueError, "…out is a file; expected a directory to save the model in")
def saving_over_a_file(given):
    (given.tmp / "out").touch()
    given.model.save_pretrained(given.tmp / "out")


# Configurations and backbones ---------------------------------------------------------------------------------------


@case(ValueError, "cross_attn_every_n_layers=0; expected a whole number of layers, 1 or more.")
def interval_of_nothing(given):
    FlamingoConfig(cross_attn_every_n_layers=0)


@case(ValueError, "cross_attn_every_n_layers=9 leaves no layer")
def interval_beyond_the_layers(given):
    config = FlamingoConfig.from_dict({**given.model.config.to_dict(), "cross_attn_every_n_layers": 9})
    FlamingoForConditionalGeneration(config)


@case(ValueError, "resampler has no size called 'width'; it has depth, heads, dim_head, latents, ff_mult, max_frames.")
def unknown_size(given):
    FlamingoConfig(resampler={"width": 3})


@case(ValueError, "cross_attention: heads=0; expected a whole number, 1 or more.")
def size_of_nothing(given):
    FlamingoConfig(cross_attention={"heads": 0})


@case(
    ValueError,
    "The tokenizer has 32 tokens, but the language model's table only 22 rows. Give the tokenizer that belongs to this "
    "language model. …",
)
def tokenizer_larger_than_the_table(given):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"more{i}" for i in range(10)])
    processor = FlamingoProcessor(ImageProcessor.clip(16), tokenizer)
    where = (str(given.directory / part) for part in ("vision", "language"))
    FlamingoForConditionalGeneration.from_backbones(*where, processor)


@case(ValueError, "OPTForCausalLM has no list of layers called 'transformer.h'; it has model.decoder.layers.")
def unknown_decoder_layers(given):
    where = (str(given.directory / part) for part in ("vision", "language"))
    processor = FlamingoProcessor(None, tiny_tokenizer())
    FlamingoForConditionalGeneration.from_backbones(*where, processor, decoder_layers="transformer.h")


@case(ValueError, "vision tower …: model type 'opt' is not supported; expected one of clip_vision_model, …")
def language_model_as_a_tower(given):
    processor = FlamingoProcessor(None, tiny_tokenizer())
    where = str(given.directory / "language")
    FlamingoForConditionalGeneration.from_backbones(where, where, processor)
