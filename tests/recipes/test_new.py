"""`train new`: any tower and any language model, from the command to a model that captions."""

import copy
import json
import shutil
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from flamboyance import catalog
from flamboyance.checkpoints.directory import WEIGHTS, read_weights
from flamboyance.checkpoints.save_backbones import save_timm
from flamboyance.cli import main
from flamboyance.model.resampler import ACTIVATIONS
from flamboyance.planning.cost import meta_model
from flamboyance.recipes.arguments import resolve
from flamboyance.recipes.beginning import begin_outputs, begin_texts, begin_with, stream_scales
from flamboyance.recipes.new import Data, named, new
from flamboyance.training.loop import train
from tests.model.zoo import tiny_config
from tests.tiny import tiny_tokenizer
from tests.training.tiny_run import COLORS, jpeg

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
SIZES = [
    *("resampler_depth=1", "resampler_heads=2", "resampler_dim_head=8", "resampler_width=16", "latents=4"),
    *("cross_attention_heads=2", "cross_attention_dim_head=8", "cross_attention_layers=0,1,3"),
]
RUN = ["workers=0", "threads=1", "learning_rate=0.01", "schedule=constant", "warmup_steps=1", "precision=fp32"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random towers and language models, as directories, and data."""
    home = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**TOWER, image_size=16)).save_pretrained(home / "siglip")
    Siglip2VisionModel(Siglip2VisionConfig(**TOWER, num_patches=4)).save_pretrained(home / "siglip2")
    timm = pytest.importorskip("timm")
    save_timm(timm.create_model("test_efficientnet"), home / "timm")
    for family in ("qwen3", "qwen3_5_text"):
        AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(home / family)
        tiny_tokenizer().save_pretrained(str(home / family))
    (home / "captions").mkdir()
    lines = {"captions/captions-000": [], "episodes": [], "held": []}
    for number in range(12):
        color = list(COLORS)[number % 3]
        image = b64encode(jpeg(color, number)).decode()
        other = b64encode(jpeg(color, 50 + number)).decode()
        lines["captions/captions-000"].append({"image": image, "text": f"a {color} square"})
        text = f"<image>a {color} circle<image>a {color} circle"
        lines["episodes" if number < 9 else "held"].append({"images": [image, other], "text": text})
    for name, rows in lines.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return home


def settings(parts: Path, output: Path, vision: str = "siglip", language: str = "qwen3") -> list[str]:
    data = f"{parts}/captions/*.jsonl,{parts}/episodes.jsonl"
    given = [f"output={output}", f"vision={parts / vision}", f"language={parts / language}", f"data={data}"]
    return [*given, "weights=1,0.5", "batch_size=3", f"validation={parts / 'held.jsonl'}", *SIZES, *RUN]


def losses(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("vision, language", [("siglip", "qwen3"), ("siglip2", "qwen3_5_text")])
def test_from_the_command_to_a_caption(vision: str, language: str, parts: Path, tmp_path: Path, capsys) -> None:
    given = [*settings(parts, tmp_path / "run", vision, language), "steps=4", "validate_every=2", "export_every=2"]
    assert main(["train", "new", *given]) == 0
    rows = losses(tmp_path / "run")
    assert [row["step"] for row in rows if "evaluation/loss" in row] == [0, 2, 4]
    for row in rows:
        if "evaluation/loss" in row:
            assert row["evaluation/perplexity"] == pytest.approx(np.exp(row["evaluation/loss"]))
    step = rows[-1]
    assert step["loss"] == pytest.approx(step["loss/captions"] + 0.5 * step["loss/episodes"])
    model, processor = catalog.resolve(tmp_path / "run" / "model").open()
    assert model.cross_attention_layers == [0, 1, 3] and model.config.media_width == 16
    assert any(block.attention_gate.item() for block in model.blocks)
    middle, _ = catalog.resolve(tmp_path / "run" / "models" / "step-00000002").open()
    assert not torch.equal(middle.resampler.latents, model.resampler.latents)
    (tmp_path / "red.jpg").write_bytes(jpeg("red", 77))
    capsys.readouterr()
    assert main(["caption", str(tmp_path / "red.jpg"), "--model", str(tmp_path / "run" / "model")]) == 0
    assert "red.jpg" in capsys.readouterr().out
    assert processor.image_processor.image_size == (16, 16)


def test_larger_images_go_on_from_a_run_with_small_ones(parts: Path, tmp_path: Path) -> None:
    assert main(["train", "new", *settings(parts, tmp_path / "small"), "steps=2"]) == 0
    given = [
        *settings(parts, tmp_path / "large"),
        f"initial={tmp_path / 'small' / 'model'}",
        "image_size=32",
        "steps=2",
    ]
    assert main(["train", "new", *given, "cache_features=true"]) == 0
    model, processor = catalog.resolve(tmp_path / "large" / "model").open()
    assert processor.image_processor.image_size == (32, 32)
    assert model.vision(torch.zeros(1, 3, 32, 32)).shape[1] == model.vision.patches == 16
    assert model.vision.spec["image_size"] == 32
    named = tmp_path / "named"  # with backbones that it only names
    model.save_pretrained(named, include_backbones=False)
    processor.save_pretrained(named)
    again, _ = catalog.resolve(named).open()
    image = Image.open(BytesIO(jpeg("red", 3)))
    asked = processor(["<image>a red square"], [[image]])
    assert torch.equal(again(**asked).logits, model(**asked).logits)
    outlined = resolve(new, given).outline()
    assert outlined.to_dict() | {"dtype": None} == resolve(new, given).build()[0].config.to_dict() | {"dtype": None}


def test_resuming_is_exact(parts: Path, tmp_path: Path) -> None:
    for steps in (2, 4):
        train(resolve(new, [*settings(parts, tmp_path / "halves"), f"steps={steps}"]))
    train(resolve(new, [*settings(parts, tmp_path / "once"), "steps=4"]))
    halves, once = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("halves", "once"))
    assert halves.keys() == once.keys() and all(torch.equal(halves[name], once[name]) for name in once)


def test_features_of_the_tower_computed_before_give_the_same_losses(parts: Path, tmp_path: Path) -> None:
    given = ["image_size=64", "feature_levels=2,3", "steps=3"]
    for run, more in (("plain", []), ("cached", ["cache_features=true"])):
        train(resolve(new, [*settings(parts, tmp_path / run, "timm"), *given, *more]))
    plain, cached = losses(tmp_path / "plain"), losses(tmp_path / "cached")
    for one, other in zip(plain, cached, strict=True):
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], rel=2e-3) and other["images"] == one["images"]
    model, _ = catalog.resolve(tmp_path / "cached" / "model").open()  # the tower's directory is in it
    assert model.vision.spec["config"]["feature_levels"] == [2, 3] and model.vision.image_size == 64
    patches = model.vision(torch.zeros(1, 3, 64, 64)).shape[1]
    (directory,) = (tmp_path / "cached" / "features").iterdir()
    # 12 pictures, and 9 more in the episodes: each is stored once.
    assert (directory / "digests.bin").stat().st_size == 16 * 21
    assert (directory / "features.bin").stat().st_size == 2 * 21 * patches * model.vision.width
    with pytest.raises(ValueError, match=r"features cannot be mirrored; give captions\.flip=0"):
        train(
            resolve(new, [*settings(parts, tmp_path / "flip"), "steps=1", "cache_features=true", "captions.flip=0.5"])
        )


def test_a_second_stage_begins_with_the_first(parts: Path, tmp_path: Path) -> None:
    train(resolve(new, [*settings(parts, tmp_path / "first"), "steps=2"]))
    first = catalog.resolve(tmp_path / "first" / "model").model()
    given = [s for s in settings(parts, tmp_path / "second") if s not in SIZES]
    run = resolve(new, [*given, f"initial={tmp_path / 'first' / 'model'}", "steps=2"])
    second, _ = run.build()
    assert second.config.resampler == first.config.resampler and second.cross_attention_layers == [0, 1, 3]
    for name, tensor in first.own_parameters().items():
        assert torch.equal(second.own_parameters()[name], tensor)
    with pytest.raises(ValueError, match="has shape"):
        resolve(new, [*given, f"initial={tmp_path / 'first' / 'model'}", "latents=5"]).build()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_second_stage_has_what_the_first_trained_of_its_backbones(
    parts: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """In the precision that it was trained in, whatever the language model's files have."""
    language = tmp_path / "language"
    shutil.copytree(parts / "qwen3", language)
    AutoModelForCausalLM.from_pretrained(parts / "qwen3", dtype=stored).save_pretrained(language)
    own = str(language)  # in the place of a folder of `parts`
    train(resolve(new, [*settings(parts, tmp_path / "first", language=own), "steps=2", "unfreeze_language=true"]))
    first = catalog.resolve(tmp_path / "first" / "model").model()
    given = [s for s in settings(parts, tmp_path / "second", language=own) if s not in SIZES]
    run = resolve(new, [*given, f"initial={tmp_path / 'first' / 'model'}", "steps=1"])
    second, _ = run.build()
    plain = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).state_dict()
    learned = first.language_model.state_dict()
    assert any(not torch.equal(learned[name], plain[name]) for name in plain)
    for name, tensor in second.language_model.state_dict().items():
        assert torch.equal(tensor, learned[name]), name
    train(run)  # in which the language model is frozen
    kept = catalog.resolve(tmp_path / "second" / "model").model().language_model.state_dict()
    assert all(torch.equal(kept[name], learned[name]) for name in learned)


def test_first_stages_that_cannot_be_begun_with(parts: Path, tmp_path: Path) -> None:
    first = tmp_path / "first" / "model"
    train(resolve(new, [*settings(parts, tmp_path / "first"), "steps=1", "unfreeze_vision=true"]))
    given = [s for s in settings(parts, tmp_path / "second") if s not in SIZES] + [f"initial={first}"]
    with pytest.raises(ValueError, match=r"trained vision\..*image_size"):
        resolve(new, [*given, "image_size=32"]).build()
    model, _ = resolve(new, given).build()
    tensors, _ = read_weights(first / WEIGHTS)
    with pytest.raises(ValueError, match=r"language_model\.a\.lora_A\.weight.*Merge adapters"):
        begin_with(model, first, [0, 1, 3], tensors | {"language_model.a.lora_A.weight": torch.zeros(1)})


def test_new_blocks_that_normalise_their_keys_and_values(parts: Path, tmp_path: Path) -> None:
    """The scale goes into the projection behind the norm."""
    model, _ = resolve(new, settings(parts, tmp_path / "run")).build()
    config = copy.deepcopy(model.config)
    config.cross_attention |= {"norm_keys_values": True}
    other = type(model)(config)
    before = [block.attention.to_kv[-1].weight.clone() for block in other.blocks]
    scales = stream_scales(other)
    begin_outputs(other)
    for block, was, scale in zip(other.blocks, before, scales, strict=True):
        keys, values = block.attention.to_kv[-1].weight.chunk(2)
        assert torch.equal(keys, was.chunk(2)[0])
        assert torch.allclose(values, was.chunk(2)[1] * scale)


def test_blocks_of_a_second_stage_go_to_their_layers(parts: Path, tmp_path: Path) -> None:
    train(resolve(new, [*settings(parts, tmp_path / "first"), "steps=2"]))
    first = catalog.resolve(tmp_path / "first" / "model").model()
    given = [s for s in settings(parts, tmp_path / "second") if s not in SIZES]
    given.append(f"initial={tmp_path / 'first' / 'model'}")
    second, _ = resolve(new, [*given, "cross_attention_layers=1,2,3"]).build()
    for layer, here, before in ((1, 0, 1), (3, 2, 2)):  # blocks before 0, 1 and 3 come in
        for name, tensor in first.blocks[before].named_parameters():
            assert torch.equal(second.blocks[here].get_parameter(name), tensor), (layer, name)
    new_block = second.blocks[1]
    assert not new_block.attention.to_out.weight.any() and not new_block.feed_forward.down.weight.any()
    assert new_block.attention_gate.item() == new_block.feed_forward_gate.item() == 0.5
    with pytest.raises(ValueError, match=r"blocks before layers \[0, 1, 3\], and this model before \[2\]"):
        resolve(new, [*given, "cross_attention_layers=2"]).build()


def test_added_rows_begin_as_the_language_models_own(parts: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = resolve(new, settings(parts, tmp_path / "run")).build()
    table = model.get_input_embeddings().weight
    row = processor.eoc_token_id - processor.base_vocab_size
    assert torch.equal(model.added_tokens.embedding[row], table[processor.tokenizer.eos_token_id])


def test_a_token_is_put_before_every_text(parts: Path, tmp_path: Path) -> None:
    train(resolve(new, [*settings(parts, tmp_path / "run"), "steps=1"]))
    processor = catalog.resolve(tmp_path / "run" / "model").processor()
    plain = tiny_tokenizer()
    ids = plain("a red square").input_ids  # this tokenizer puts nothing before a text
    assert processor.tokenize(["a red square"]) == [[plain.eos_token_id, *ids]]
    assert processor.added_around() == ([plain.eos_token_id], [])
    assert processor.tokenize(["a red square"], add_special_tokens=False) == [ids]


def test_a_tokenizer_that_begins_texts_itself_is_left_alone() -> None:
    tokenizer = tiny_tokenizer()
    begin_texts(tokenizer)
    once = tokenizer("a red square").input_ids
    begin_texts(tokenizer)
    assert tokenizer("a red square").input_ids == once
    # A separator of documents goes before a chat's own tokens.
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|endoftext|>"], special_tokens=True)
    begin_texts(tokenizer)
    assert tokenizer("a").input_ids[0] == tokenizer.convert_tokens_to_ids("<|endoftext|>") != tokenizer.eos_token_id


def test_what_a_block_adds_starts_at_the_scale_of_the_hidden_states(parts: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = resolve(new, settings(parts, tmp_path / "run")).build()
    language = AutoModelForCausalLM.from_pretrained(parts / "qwen3", dtype=torch.float32)
    ids = torch.randint(model.config.base_vocab_size, (16, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = language(ids, output_hidden_states=True).hidden_states
    for block, layer in zip(model.blocks, (0, 1, 3), strict=True):
        size = states[layer][:, 1:].square().mean(-1).sqrt().median().item()
        up, keys_values = block.feed_forward.up.weight, block.attention.to_kv.weight
        keys, values = keys_values[: len(keys_values) // 2], keys_values[len(keys_values) // 2 :]
        assert up.std().item() * (3 * up.shape[1]) ** 0.5 == pytest.approx(size, rel=0.1)  # else 1, as made by Linear
        assert values.std().item() * (3 * values.shape[1]) ** 0.5 == pytest.approx(size, rel=0.2)
        assert keys.std().item() * (3 * keys.shape[1]) ** 0.5 == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("zero", ["outputs", "gates"])
def test_blocks_begin_as_the_identity(parts: Path, tmp_path: Path, zero: str) -> None:
    torch.manual_seed(0)
    model, processor = resolve(new, [*settings(parts, tmp_path / "run"), f"zero_init={zero}"]).build()
    inputs = processor(["<image>a red square"], [[Image.open(BytesIO(jpeg("red", 3)))]])
    seen = model(**inputs).logits
    with torch.no_grad():  # no block of this model does anything
        for block in model.blocks:
            block.attention_gate.zero_()
            block.feed_forward_gate.zero_()
    assert torch.equal(model(**inputs).logits, seen)


def test_only_closed_outputs_learn_at_the_first_step(parts: Path, tmp_path: Path) -> None:
    moved = {}
    for zero in ("outputs", "gates"):
        model, processor = resolve(new, [*settings(parts, tmp_path / zero), f"zero_init={zero}"]).build()
        model(
            **processor(["<image>a red square"], [[Image.open(BytesIO(jpeg("red", 3)))]])
        ).logits.square().sum().backward()
        block = model.blocks[0]
        moved[zero] = bool(block.attention.to_out.weight.grad.any()), bool(block.attention_gate.grad.any())
    assert moved == {"outputs": (True, False), "gates": (False, True)}


@pytest.mark.parametrize("activation", ["gelu", "squared_relu"])
def test_last_projections_are_given_the_size_of_the_hidden_states(parts: Path, tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    model, processor = resolve(new, [*settings(parts, tmp_path / "run"), "zero_init=gates"]).build()
    for block in model.blocks:
        block.feed_forward.activation = ACTIVATIONS[activation]
    inputs = processor(["<image>a red square"], [[Image.open(BytesIO(jpeg("red", 3)))]])

    def sizes() -> list[float]:
        """Of what the last projections are given: those of attention and feed-forward, block by block."""
        found: list[float] = []
        hooks = [
            projection.register_forward_pre_hook(lambda _, args: found.append(args[0].square().mean().sqrt().item()))
            for block in model.blocks
            for projection in (block.attention.to_out, block.feed_forward.down)
        ]
        model(**inputs)
        for hook in hooks:
            hook.remove()
        return found

    before = sizes()
    scales = [scale for scale in stream_scales(model) for _ in ("attention", "feed-forward")]
    begin_outputs(model)
    grown = [after / size for after, size in zip(sizes(), before, strict=True)]
    assert grown[::2] == pytest.approx(scales[::2], rel=1e-3)
    # What is scaled stands before the activation: exact for squares; GELU is linear only for large values.
    assert grown[1::2] == pytest.approx(scales[1::2], rel=1e-3 if activation == "squared_relu" else 0.5)


def test_the_outline_is_the_models_own_configuration(parts: Path, tmp_path: Path) -> None:
    run = resolve(new, settings(parts, tmp_path / "run"))
    made, outlined = run.build()[0].config, run.outline()
    assert outlined.to_dict() | {"dtype": None} == made.to_dict() | {"dtype": None}
    assert sum(p.numel() for p in meta_model(outlined).parameters()) > 0


def test_a_run_can_be_planned(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = settings(parts, tmp_path / "run", "timm")
    assert main(["plan", "new", *given, "image_size=64", "feature_levels=2,3"]) == 0
    assert "trained" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_sizes_follow_the_language_model(parts: Path, tmp_path: Path) -> None:
    small = resolve(new, [s for s in settings(parts, tmp_path / "run") if s not in SIZES]).outline()
    assert small.resampler["latents"] == 16 and small.cross_attention["ff_mult"] == 1
    assert small.cross_attn_every_n_layers == 1 and small.media_width == 24


def test_tokens_may_attend_to_all_images(parts: Path, tmp_path: Path) -> None:
    given = [*settings(parts, tmp_path / "run"), "only_attend_immediate_media=false", "steps=2"]
    assert not resolve(new, given).outline().cross_attention["only_attend_immediate_media"]
    train(resolve(new, given))
    model, processor = catalog.resolve(tmp_path / "run" / "model").open()
    pictures = [Image.open(BytesIO(jpeg(color, 3))) for color in ("red", "blue")]
    assert not model.config.cross_attention["only_attend_immediate_media"]
    inputs = processor(["<image>a red square<image>a"], [pictures])
    again = processor(["<image>a red square<image>a"], [[pictures[1], pictures[1]]])
    assert not torch.equal(model(**inputs).logits[0, -1], model(**again).logits[0, -1])


def test_sources_are_named_after_their_files() -> None:
    given = ["world/captions-{00000..00009}.tar", "world/captions/*.tar", "photos/", "a.jsonl", "*.tar"]
    assert list(named(given)) == ["captions", "captions2", "photos", "a", "data"]
    with pytest.raises(ValueError, match=r"weights=1\.0: expected 2"):
        Data(data=("a", "b"), weights=(1.0,)).sources()


def test_files_to_validate_on_are_not_trained_on(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes((parts / "held.jsonl").read_bytes())
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    given = [
        one for one in settings(parts, tmp_path / "run") if not one.startswith(("data=", "validation=", "weights="))
    ]
    for held, data in (("a", "*"), ("b", "a")):
        run = resolve(new, [*given, f"data={tmp_path / data}.jsonl", f"validation={tmp_path / held}.jsonl"])
        with pytest.raises(ValueError, match=rf"validation=.*{held}\.jsonl is among the files"):
            train(run)
