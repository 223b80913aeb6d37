"""The original Flamingo's sizes by name, on the meta device: no weights."""

import json
from typing import Any

import pytest
import torch

from benchmarks import original, original_memory
from flamboyance import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoProcessor, catalog, names
from flamboyance.cli import main
from flamboyance.commands.info import as_json
from flamboyance.configuration_original import SIZES, chinchilla
from flamboyance.model.vision import tower_spec

# Table 1 and the appendix's table of hyper-parameters: layers and width of the language model; blocks, and their heads.
PUBLISHED = {"flamingo-3b": (24, 2048, 24, 16), "flamingo-9b": (40, 4096, 10, 32), "flamingo-80b": (80, 8192, 12, 64)}
LAST = {"flamingo-3b": [22, 23], "flamingo-9b": [32, 36], "flamingo-80b": [70, 77]}


def block_parameters(width: int) -> int:
    """Of a gated block, by hand: norms of text, media and feed-forward, four projections, feed-forward, two gates."""
    norms = 2 * (width + 1536 + width)
    return norms + 2 * width * width + 2 * 1536 * width + 2 * 4 * width * width + 2


def test_every_name_has_a_size() -> None:
    assert tuple(SIZES) == names.ORIGINAL


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_paper(name: str) -> None:
    layers, width, blocks, heads = PUBLISHED[name]
    told = as_json(name, catalog.resolve(name).outline(), None)
    counts = told["parameters"]
    assert told["layers"][0] == 0 and told["layers"][-2:] == LAST[name]
    assert len(told["layers"]) == blocks
    assert counts["cross_attention"] == blocks * block_parameters(width)
    assert counts["language"] == layers * (12 * width * width + 2 * width) + 32_000 * width + width
    assert counts["vision"] == pytest.approx(435e6, rel=2e-3)
    assert counts["resampler"] == pytest.approx(194e6, rel=3e-3)
    assert counts["added_tokens"] == 3 * width
    assert counts["trainable"] == counts["resampler"] + counts["cross_attention"] + counts["added_tokens"]
    assert counts["total"] == counts["trainable"] + counts["vision"] + counts["language"]
    assert original.written(name, original.PAGE.read_text(encoding="utf-8")) == original.table(name, counts)
    for line in original_memory.written(name, original.PAGE.read_text(encoding="utf-8")):
        _, devices, spread, *sizes = line.strip("| ").split(" | ")
        frozen, trained, gradients, moments, *_ = map(float, sizes)
        shards = int(devices) if spread == "fsdp" else 1
        gib = counts["trainable"] / 2**30
        assert (trained, gradients, moments) == pytest.approx((4 * gib / shards, 4 * gib, 8 * gib / shards), abs=0.06)
        others = (counts["vision"] + counts["language"]) / 2**30
        assert frozen == pytest.approx(2 * others / shards, abs=0.06)
        assert sum(map(float, sizes[:-1])) == pytest.approx(float(sizes[-1]), abs=0.5) and float(sizes[-1]) < 79.6
    config = FlamingoConfig.from_pretrained(name)
    assert config.cross_attention["heads"] == config.text_config.num_attention_heads == heads


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_has_the_memory_that_training_takes(name: str) -> None:
    plans = original_memory.plans(name)
    page = original.PAGE.read_text(encoding="utf-8")
    assert original_memory.written(name, page) == [original_memory.row(name, plan) for plan in plans]
    assert all(plan.fits for plan in plans)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_info_prints_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", name, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["gates"] is None and len(told["layers"]) == PUBLISHED[name][2]
    parts = {"vision", "language", "resampler", "cross_attention", "added_tokens"}
    assert set(told["parameters"]) == {"total", "trainable", *parts}


def test_the_tower_is_timms() -> None:
    config = FlamingoConfig.from_pretrained("flamingo-3b")
    assert config.vision == tower_spec("timm/dm_nfnet_f6", image_size=320)
    assert catalog.resolve("flamingo-3b").config().to_dict() == config.to_dict()
    assert FlamingoConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_a_model_of_any_size_is_built_from_a_configuration() -> None:
    config = FlamingoConfig.from_pretrained("flamingo-9b")
    config.text_config = chinchilla(SIZES["flamingo-9b"]._replace(layers=5, width=256), vocabulary=100)
    config.vision = tower_spec("timm/test_nfnet", image_size=32)
    config.vision_width, config.base_vocab_size, config.cross_attention_layers = 192, 100, [0, 4]
    config.eoc_token_id, config.image_token_id, config.pad_token_id = 100, 101, 102
    config.resampler |= {"depth": 1, "width": 48, "heads": 2, "dim_head": 16, "latents": 4}
    config.cross_attention |= {"heads": 2, "dim_head": 16}
    torch.manual_seed(0)
    model = FlamingoForConditionalGeneration.from_config(config)
    for block in model.blocks:
        torch.nn.init.ones_(block.attention_gate)
    ids = torch.tensor([[5, 101, 7, 8]])
    video = torch.randn(1, 1, 9, 3, 32, 32)  # a frame more than there are time embeddings
    with torch.no_grad():
        forward, backward = (model(ids, pixel_values=pixels).logits for pixels in (video, video.flip(2)))
    assert forward.shape == (1, 4, 103) and torch.equal(forward[:, 0], backward[:, 0])
    assert (forward[:, 1:] - backward[:, 1:]).abs().max() > 1e-5
    meta = FlamingoConfig.from_pretrained("flamingo-3b")
    assert meta.text_config.num_hidden_layers == 24  # a changed copy changes no other


def test_names_without_weights_are_refused_in_one_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.resolve("flamingo-3b")
    assert entry.kind == "original" and entry.is_flamingo()
    for attempt in (
        lambda: entry.open(),
        lambda: FlamingoForConditionalGeneration.from_pretrained("flamingo-3b"),
        lambda: FlamingoProcessor.from_pretrained("flamingo-3b"),
    ):
        with pytest.raises(ValueError, match=r"^the weights of flamingo-3b were never released.*train") as refused:
            attempt()
        assert "\n" not in str(refused.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flamingo-3b").mkdir()  # a directory comes first
    assert catalog.resolve("flamingo-3b").kind == "directory"
    monkeypatch.chdir(tmp_path / "flamingo-3b")
    with pytest.raises(OSError, match="did you mean 'flamingo-80b'"):
        catalog.resolve("./flamingo-80")
