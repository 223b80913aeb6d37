"""Before which layers the blocks are, and how wide the latents: set, saved, opened again, counted."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, LlamaConfig

from flamboyance import FlamingoConfig, FlamingoForConditionalGeneration, catalog
from flamboyance.checkpoints import openflamingo
from flamboyance.commands.info import as_json, parts
from flamboyance.model.fingerprint import fingerprint
from flamboyance.model.resampler import PerceiverResampler
from flamboyance.planning.cost import BatchSizes, trace
from tests.tiny import save_tiny_flamingo

SIZES = {
    "resampler": {"depth": 1, "heads": 2, "dim_head": 8, "latents": 4, "width": 20},
    "cross_attention": {"heads": 2, "dim_head": 8},
}


def config(**settings) -> FlamingoConfig:
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        head_dim=12,
    )
    return FlamingoConfig(
        vision={"library": "transformers", "name": None, "pretrained": None, "config": tower.to_dict()},
        vision_width=32,
        text_config=text,
        base_vocab_size=40,
        image_token_id=41,
        eoc_token_id=40,
        pad_token_id=42,
        **SIZES | settings,
    )


def open_gates(model: FlamingoForConditionalGeneration, block: int | None = None) -> None:
    for number, each in enumerate(model.blocks):
        torch.nn.init.constant_(each.attention_gate, 1.0 if block in (None, number) else 0.0)


def test_a_list_of_layers_is_what_the_spacing_says_in_other_words():
    torch.manual_seed(0)
    spaced = FlamingoForConditionalGeneration(config(cross_attn_every_n_layers=2))
    listed = FlamingoForConditionalGeneration(config(cross_attention_layers=[1, 3, 5]))
    open_gates(spaced)
    listed.load_state_dict(spaced.state_dict())
    assert listed.cross_attention_layers == spaced.cross_attention_layers == [1, 3, 5]
    inputs = {"input_ids": torch.tensor([[41, 3, 4, 40]]), "pixel_values": torch.randn(1, 1, 1, 3, 16, 16)}
    with torch.no_grad():
        assert_close(listed(**inputs).logits, spaced(**inputs).logits)


def test_a_block_before_the_first_layer_changes_what_that_layer_reads():
    model = FlamingoForConditionalGeneration(config(cross_attention_layers=[0, 4]))
    ids, read = torch.tensor([[41, 3, 4, 40]]), []
    layer = model.language_model.model.layers[0]
    # Hooks run in the order in which they were added: this one comes after the block's.
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args[0] if args else kwargs["hidden_states"]).clone()), with_kwargs=True
    )
    for block in (1, 0):
        open_gates(model, block)
        for seed in (0, 1):
            pixels = torch.randn(1, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                model(ids, pixel_values=pixels)
    assert_close(read[0], read[1])
    assert (read[2] - read[3]).abs().max() > 1e-3


def test_layers_are_saved_opened_counted_and_planned(tmp_path: Path):
    saved = save_tiny_flamingo(tmp_path)
    made = FlamingoForConditionalGeneration.from_backbones(
        str(saved / "vision"),
        str(saved / "language"),
        catalog.resolve(saved).processor(),
        cross_attention_layers=[0],
        **SIZES,
    )
    open_gates(made)
    made.save_pretrained(tmp_path / "listed", include_backbones=True)
    values = json.loads((tmp_path / "listed" / "config.json").read_text())
    assert values["cross_attention_layers"] == [0] and values["cross_attn_every_n_layers"] is None
    opened, _ = catalog.resolve(tmp_path / "listed").open()
    assert opened.cross_attention_layers == [0] and opened.media_of(torch.zeros(0, 4, 20), [0]).latents.shape[2] == 20
    for name, tensor in made.own_parameters().items():
        assert torch.equal(opened.own_parameters()[name], tensor)
    outline = catalog.resolve(tmp_path / "listed").outline()
    assert as_json("listed", outline, None)["layers"] == [0]
    counted = {part.name: part for part in parts(outline)}
    width = made.config.text_config.hidden_size
    # Query, keys and values, output, feed-forward; two norms and two gates.
    expected = width * 16 + 20 * 32 + 16 * width + 2 * 4 * width**2 + 4 * width + 2
    assert counted["cross_attention"].parameters == counted["cross_attention"].trained == expected
    assert counted["resampler"].parameters == sum(p.numel() for p in made.resampler.parameters())
    assert made.resampler.projection is not None and made.resampler.projection.weight.shape == (20, 32)


def test_more_blocks_are_planned_to_cost_more():
    sizes = [BatchSizes(2, 8, 2, 14)]
    every, two = (
        trace(config(cross_attention_layers=layers), sizes, device="cpu") for layers in ([0, 1, 2, 3, 4, 5], [0, 3])
    )
    assert every.flops["cross_attention", "forward"] == 3 * two.flops["cross_attention", "forward"]


@pytest.mark.parametrize("layers", [[], [1, 1], [-1], [True], "0,1", [0.5], [10**6]])
def test_what_is_no_list_of_layers_is_refused(layers):
    with pytest.raises(ValueError, match=r"^cross_attention_layers=.*expected"):
        config(cross_attention_layers=layers)


def test_a_spacing_and_a_list_must_agree():
    both = config(cross_attention_layers=[5, 2], cross_attn_every_n_layers=3)
    assert both.layers_with_blocks(6) == [2, 5]
    assert FlamingoConfig.from_dict(both.to_dict()).to_dict() == both.to_dict()
    with pytest.raises(ValueError, match=r"cross_attn_every_n_layers=3 and cross_attention_layers=\[2\]"):
        config(cross_attention_layers=[2], cross_attn_every_n_layers=3)
    with pytest.raises(ValueError, match="there is no layer 6; expected layers from 0 to 5"):
        FlamingoForConditionalGeneration(config(cross_attention_layers=[0, 6]))


def test_what_openflamingo_cannot_open_is_not_written_for_it():
    for settings in (
        {"cross_attention_layers": [0, 3], "resampler": SIZES["resampler"] | {"width": None}},
        {"cross_attn_every_n_layers": 3},
        {"cross_attn_every_n_layers": 3, "cross_attention": SIZES["cross_attention"] | {"activation": "squared_relu"}},
    ):
        with pytest.raises(ValueError, match="OpenFlamingo has no model"):
            openflamingo.export(FlamingoForConditionalGeneration(config(**settings)))


def test_equal_models_have_the_fingerprint_that_they_had_before_these_settings():
    model = FlamingoForConditionalGeneration(config(resampler=SIZES["resampler"] | {"width": None}))
    before = fingerprint(model)
    del model.config.cross_attention_layers
    del model.config.resampler["width"]
    model.config.cross_attention_layers, model.config.resampler["width"] = None, None
    assert fingerprint(model) == before
    model.config.cross_attention_layers = [0, 1]
    assert fingerprint(model) != before


def test_latents_of_the_towers_width_need_no_projection():
    torch.manual_seed(0)
    plain, same = (PerceiverResampler(24, depth=1, heads=2, dim_head=8, latents=5, width=w) for w in (None, 24))
    assert plain.projection is None and same.projection is None
    narrow = PerceiverResampler(24, depth=1, heads=2, dim_head=8, latents=5, width=12, max_frames=3)
    patches = torch.randn(4, 2, 9, 24)
    assert narrow(patches).shape == (4, 5, 12)
    inside = PerceiverResampler(12, depth=1, heads=2, dim_head=8, latents=5, max_frames=3)
    inside.load_state_dict({k: v for k, v in narrow.state_dict().items() if not k.startswith("projection")})
    assert narrow.projection is not None
    assert_close(narrow(patches), inside(narrow.projection(patches)))
