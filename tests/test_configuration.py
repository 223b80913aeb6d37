"""FlamingoConfig refuses sizes and ids that no model has, by name and value, before anything is built."""

import json
from typing import Any

import pytest
from transformers import CLIPVisionConfig, OPTConfig, Qwen3Config

from flamboyance import FlamingoConfig, catalog
from flamboyance.model.fingerprint import described

ABSURD: dict[str, dict[str, Any]] = {
    "cross_attn_every_n_layers=0;": {"cross_attn_every_n_layers": 0},
    "cross_attn_every_n_layers=-1;": {"interval": -1},
    "cross_attn_every_n_layers=True;": {"cross_attn_every_n_layers": True},
    "cross_attn_every_n_layers=1.5;": {"cross_attn_every_n_layers": 1.5},
    "cross_attn_every_n_layers=1000000;": {"cross_attn_every_n_layers": 10**6},
    "base_vocab_size=-5;": {"base_vocab_size": -5},
    "base_vocab_size=0;": {"base_vocab_size": 0},
    "base_vocab_size=10000000000;": {"base_vocab_size": 10**10},
    "base_vocab_size='many';": {"base_vocab_size": "many"},
    "image_token_id=1000000000;": {"image_token_id": 10**9},
    "image_token_id=-1;": {"image_token_id": -1},
    "eoc_token_id=1000000000;": {"eoc_token_id": 10**9},
    "pad_token_id=1000000000;": {"pad_token_id": 10**9},
    "pad_token_id=None;": {"pad_token_id": None},
    "image_token_id=50277 is": {"image_token_id": 50277},
    "image_token_id=50279 is": {"image_token_id": 50279},
    "added_tokens=": {"added_tokens": ["<image>", "<image>"], "base_vocab_size": 50280},
    "vision_width=0;": {"vision_width": 0},
    "vision_width=1000000000;": {"vision_width": 10**9},
    "resampler: depth=1000000;": {"resampler": {"depth": 10**6}},
    "resampler: depth=-1;": {"resampler": {"depth": -1}},
    "resampler: heads=0;": {"resampler": {"heads": 0}},
    "resampler: latents=1000000000;": {"resampler": {"latents": 10**9}},
    "resampler: max_frames=0;": {"resampler": {"max_frames": 0}},
    "resampler: 10000 heads of dim_head=100000;": {"resampler": {"heads": 10**4, "dim_head": 10**5}},
    "cross_attention: dim_head=2.0;": {"cross_attention": {"dim_head": 2.0}},
    "resampler: activation='relu';": {"resampler": {"activation": "relu"}},
    "cross_attention: norm_keys_values='yes';": {"cross_attention": {"norm_keys_values": "yes"}},
    "cross_attention: only_attend_immediate_media=1;": {"cross_attention": {"only_attend_immediate_media": 1}},
    "cross_attention: ff_mult=1000000;": {"cross_attention": {"ff_mult": 10**6}},
    "text_config: num_hidden_layers=1000000;": {"text_config": OPTConfig(num_hidden_layers=10**6)},
    "text_config: num_hidden_layers=0;": {"text_config": OPTConfig(num_hidden_layers=0)},
    "text_config: hidden_size=-32;": {"text_config": OPTConfig(hidden_size=-32)},
    "text_config: num_attention_heads=5;": {"text_config": OPTConfig(hidden_size=32, num_attention_heads=5)},
    "text_config: num_attention_heads=0;": {"text_config": OPTConfig(hidden_size=32, num_attention_heads=0)},
    "vision: num_hidden_layers=1000000;": {"vision": {"num_hidden_layers": 10**6}},
    "vision: image_size=-224;": {"vision": {"image_size": -224}},
    "vision: image_size=1000000;": {"vision": {"library": "transformers", "name": "x", "image_size": 10**6}},
    "vision: image_size='large';": {"vision": {"library": "openclip", "name": "x", "image_size": "large"}},
    "vision: patch_size=0;": {"vision": {"patch_size": 0}},
    "vision: num_attention_heads=7;": {"vision": {"hidden_size": 32, "num_attention_heads": 7}},
    "vision={'library': 'torchhub'": {"vision": {"library": "torchhub"}},
}


def given(changes: dict[str, Any]) -> dict[str, Any]:
    vision = changes.get("vision")
    if vision is None or "library" in vision:
        return changes
    config = CLIPVisionConfig().to_dict() | vision
    return {"vision": {"library": "transformers", "name": "x", "pretrained": None, "config": config}}


@pytest.mark.parametrize("message", ABSURD)
def test_absurd_sizes_are_refused_by_name_and_value(message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message.replace('(', chr(92) + '(')}.*expected") as refused:
        FlamingoConfig(**given(ABSURD[message]))
    assert "\n" not in str(refused.value)


def test_absurd_files_are_refused_when_they_are_opened(tmp_path: Any) -> None:
    values = FlamingoConfig(text_config=OPTConfig()).to_dict()
    values["resampler"]["depth"] = 10**6
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=r"resampler.*depth=1000000"):
        catalog.resolve(tmp_path).config()


def test_heads_that_do_not_divide_are_allowed_where_their_width_is_given() -> None:
    text = Qwen3Config(hidden_size=30, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    config = FlamingoConfig(text_config=text, base_vocab_size=10, image_token_id=11, eoc_token_id=10, pad_token_id=12)
    assert config.text_config.head_dim == 8 and config.vocab_size == 13
    assert FlamingoConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_older_files_and_callers_name_the_spacing_of_blocks_interval(tmp_path: Any) -> None:
    values = FlamingoConfig(text_config=OPTConfig()).to_dict()
    del values["cross_attn_every_n_layers"]
    (tmp_path / "config.json").write_text(json.dumps(values | {"interval": 3}), encoding="utf-8")
    config = catalog.resolve(tmp_path).config()
    assert config.cross_attn_every_n_layers == config.interval == 3
    assert "interval" not in config.to_dict() and FlamingoConfig(interval=3).cross_attn_every_n_layers == 3


def test_sizes_that_came_later_leave_older_files_as_they_are() -> None:
    older = {"depth": 2, "heads": 4, "dim_head": 32, "latents": 16, "ff_mult": 4}
    config = FlamingoConfig(resampler=older)
    added = {"max_frames": None, "width": None, "activation": "gelu", "norm_keys_values": False}
    assert config.resampler == older | added
    assert config.cross_attention["activation"] == "gelu" and config.cross_attention["norm_keys_values"] is False
    # Fingerprints of stored evaluations stay what they were.
    assert described(config)["resampler"] == older | {"max_frames": None}
    assert described(config)["cross_attention"] == {"heads": 8, "dim_head": 64, "ff_mult": 4}
    changed = FlamingoConfig(cross_attention={"activation": "squared_relu"})
    assert described(changed)["cross_attention"]["activation"] == "squared_relu"
