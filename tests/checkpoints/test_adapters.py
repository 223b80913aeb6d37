"""PEFT adapters and unfrozen backbones: they train, they are saved, and they open equal, in a new process too."""

import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from flamboyance import FlamingoForConditionalGeneration
from flamboyance.checkpoints import openflamingo
from flamboyance.model import linear
from flamboyance.model.adapters import tensors
from flamboyance.model.vision import VisionTower
from tests.processes import python
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo

open_model = FlamingoForConditionalGeneration.from_pretrained


def lora(*targets, **options):
    return LoraConfig(target_modules=list(targets), r=2, **options)


def on_language(model):
    model.language_model = get_peft_model(model.language_model, lora("q_proj", "v_proj"))


def on_language_by_transformers(model):
    """As its add_adapter does it, which in 5.24 asks for a version of PEFT that is not released yet."""
    inject_adapter_in_model(lora("q_proj", "fc1"), model.language_model)
    model.language_model._hf_peft_config_loaded = True


def on_cross_attention(model):
    inject_adapter_in_model(lora("to_q", "to_kv"), model.cross_attention)


def on_tower(model):
    model.vision = get_peft_model(model.vision, lora("q_proj", "fc1"))


def within_tower(model):
    model.vision.model = get_peft_model(model.vision.model, lora("k_proj", use_dora=True))


def on_resampler(model):
    model.resampler = get_peft_model(model.resampler, lora("to_q", "up", modules_to_save=["final_norm"]))


def on_everything(model):
    get_peft_model(model, lora("to_q", "q_proj", "out_proj"))


def on_embeddings(model):
    model.language_model = get_peft_model(model.language_model, lora("embed_tokens", bias="lora_only"))


def rows_of_embeddings(model):  # tied to the output head
    model.language_model = get_peft_model(model.language_model, lora("q_proj", trainable_token_indices=[3, 4]))


def shared_matrices(model):
    config = peft.VeraConfig(target_modules=["q_proj", "out_proj"], r=2)
    model.language_model = get_peft_model(model.language_model, config)


def two_adapters(model):
    wrapped = get_peft_model(model.language_model, lora("q_proj"))
    wrapped.add_adapter("second", lora("v_proj"))
    wrapped.set_adapter("second")
    model.language_model = wrapped


def each_layer_its_own(model):
    """One adapter is on in one layer and off in the next, and counts three times."""
    wrapped = get_peft_model(model.language_model, lora("q_proj"))
    wrapped.add_adapter("second", lora("q_proj", "v_proj"))
    layers = model.language_model.model.decoder.layers
    layers[0].self_attn.q_proj.set_adapter("second")
    layers[1].self_attn.q_proj.scaling["default"] *= 3
    layers[1].self_attn.v_proj.enable_adapters(False)
    model.language_model = wrapped


def by_principal_components(model):  # changes the weights beneath the adapter
    model.language_model = get_peft_model(model.language_model, lora("fc1", init_lora_weights="pissa"))


def unfrozen_language(model):
    model.language_model.requires_grad_(True)


def unfrozen_tower(model):
    model.vision.requires_grad_(True)


def one_layer_of_language(model):
    model.language_model.model.decoder.layers[1].requires_grad_(True)


PLACES = {
    place.__name__: place
    for place in (
        on_language, on_language_by_transformers, on_cross_attention, on_tower, within_tower, on_resampler,
        on_everything, on_embeddings, rows_of_embeddings, shared_matrices, two_adapters, each_layer_its_own,
        by_principal_components, unfrozen_language, unfrozen_tower, one_layer_of_language,
    )
}  # fmt: skip


def batch():
    """Two rows of an image and four words."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 20, (2, 5), generator=random)
    return {"input_ids": ids, "pixel_values": torch.randn(2, 1, 1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=random)}


def inputs_of(model):
    inputs = batch()
    inputs["input_ids"][:, 0] = model.config.image_token_id
    return inputs


@torch.no_grad()
def logits(model):
    return model(**inputs_of(model)).logits


def train_a_little(model):
    """Three steps of what trains; all of it must move."""
    model.train()
    trained = model.trained_parameters()
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    for _ in range(3):
        inputs = inputs_of(model)
        loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] >= 20, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return {name for name, p in trained.items() if not torch.equal(p, before[name])}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(tiny):
    torch.manual_seed(1)
    return open_model(tiny)


def same(a, b):
    mine, yours = tensors(a), tensors(b)
    assert mine.keys() == yours.keys()
    assert [name for name, tensor in mine.items() if not torch.equal(tensor, yours[name])] == []
    assert a.trained_parameters().keys() == b.trained_parameters().keys()
    torch.testing.assert_close(logits(a), logits(b), atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A trained model of each place, saved with and without its backbones, and its logits."""
    directory, models = tmp_path_factory.mktemp("trained"), {}
    for name, place in PLACES.items():
        torch.manual_seed(1)
        model = open_model(tiny)
        start = logits(model)
        own = set(model.trained_parameters())
        place(model)
        adapters = set(model.trained_parameters()) - own
        moved = train_a_little(model)
        assert adapters & moved, f"{name}: nothing beyond the model's own parts has trained"
        assert (logits(model) - start).abs().max() > 1e-3
        model.save_pretrained(directory / name)
        save_file({"logits": logits(model)}, directory / name / "wanted.safetensors")
        models[name] = model
    return directory, models


@pytest.mark.parametrize("place", PLACES)
def test_what_trained_opens_equal(trained, tiny, place, tmp_path):
    directory, models = trained
    again = open_model(directory / place)
    same(models[place], again)
    beneath = load_file(tiny / "language" / "model.safetensors").keys()
    again.save_pretrained(tmp_path, include_backbones=True)  # and once more, from what was opened
    same(models[place], open_model(tmp_path))
    assert load_file(tmp_path / "language" / "model.safetensors").keys() == beneath, "no more and no less than before"


def test_what_trained_opens_equal_in_a_new_process(trained, tmp_path):
    directory, _ = trained
    code = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from tests.checkpoints.test_adapters import logits, open_model
for directory in sorted(Path(sys.argv[1]).iterdir()):
    wanted = load_file(directory / "wanted.safetensors")["logits"]
    print(directory.name, (logits(open_model(directory)) - wanted).abs().max().item() < 1e-5)
"""
    printed = python(code, directory, log=tmp_path / "log")
    assert {f"{name} True" for name in PLACES} <= set(printed.splitlines()), printed


@pytest.mark.parametrize("place", ["unfrozen_tower", "on_tower", "within_tower"])
def test_the_tower_gets_gradients(model, place):
    PLACES[place](model)
    model.train()
    inputs = inputs_of(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if name.startswith("vision.") and p.requires_grad}
    # What comes after the last block is no part of a Flamingo's features.
    used = {name: grad for name, grad in found.items() if "post_layernorm" not in name}
    assert used and all(grad is not None for grad in used.values())
    assert any(grad.abs().sum() > 0 for grad in used.values())


def test_pixels_get_gradients_through_a_frozen_tower(model):
    inputs = inputs_of(model)
    inputs["pixel_values"].requires_grad_()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert inputs["pixel_values"].grad.abs().sum() > 0


def test_a_frozen_tower_keeps_no_graph(model):
    assert not model.train().vision(torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)).requires_grad


def test_merged_weights_are_saved(model, tmp_path):
    on_language(model)
    train_a_little(model)
    model.language_model = model.language_model.merge_and_unload()
    model.language_model.requires_grad_(False)
    model.save_pretrained(tmp_path)
    again = open_model(tmp_path)
    assert any(name.startswith("language_model.") for name in load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize("change", ["data", "no_grad", "one row", "rows swapped", "load_state_dict", "buffer"])
def test_frozen_weights_that_changed_are_saved(model, tmp_path, change):
    table = model.language_model.get_input_embeddings().weight
    with torch.no_grad():
        if change == "data":
            table.data.mul_(1.5)
        elif change == "no_grad":
            table.mul_(1.5)
        elif change == "one row":
            table[7] += 1
        elif change == "rows swapped":
            table[[7, 8]] = table[[8, 7]]
        elif change == "load_state_dict":
            model.language_model.load_state_dict({k: v * 1.5 for k, v in model.language_model.state_dict().items()})
        else:
            model.vision.model.register_buffer("kept", torch.ones(3))
            with pytest.raises(ValueError, match=r"vision\.model\.kept"):
                model.save_pretrained(tmp_path)
            return
    model.save_pretrained(tmp_path, include_backbones=False)
    assert torch.equal(logits(open_model(tmp_path)), logits(model))


def test_a_small_change_is_saved_after_a_change_of_precision(model, tmp_path):
    """Of a cast tensor, only some elements could be compared."""
    with torch.no_grad():
        model.language_model.get_input_embeddings().weight.view(-1)[1] += 1
    model.to(torch.bfloat16).save_pretrained(tmp_path, include_backbones=False)
    assert torch.equal(logits(open_model(tmp_path)), logits(model))


def test_what_trains_on_is_opened_in_its_own_precision(model, tmp_path):
    """Also an unfrozen backbone, from the precision that it was saved in."""
    layer = next(iter(model.language_model.model.decoder.layers))
    layer.requires_grad_(True)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path, dtype=torch.bfloat16, trained_dtype=torch.float32)
    trained = opened.trained_parameters()
    assert any(name.startswith("language_model.") for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in trained.items())
    assert opened.get_input_embeddings().weight.dtype == torch.bfloat16


def test_weights_that_did_not_change_are_not_saved(model, tmp_path):
    model.half().float().to(torch.bfloat16)
    model.pack()
    assert model.kept_tensors().keys() == model.own_parameters().keys()


def test_a_merged_adapter_is_refused(model, tmp_path):
    on_language(model)
    model.language_model.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_prompt_tuning_is_refused(model, tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model.language_model = get_peft_model(model.language_model, config)
    with pytest.raises(ValueError, match="prompt tuning"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="prompts"):
        logits(model)


def test_layers_added_by_hand_are_refused_by_name(model, tmp_path):
    model.language_model.model.decoder.layers[0].mine = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"language_model\.model\.decoder\.layers\.0\.mine"):
        model.save_pretrained(tmp_path)


def test_an_openflamingo_checkpoint_has_no_adapters(model):
    on_language(model)
    with pytest.raises(ValueError, match="language_model"):
        openflamingo.export(model)


@pytest.mark.parametrize(
    "first, second",
    [("none", "on_language"), ("on_language", "none"), ("unfrozen_language", "none"), ("on_language", "on_tower")],
)
def test_a_second_save_leaves_nothing_of_the_first(tiny, tmp_path, first, second):
    for place, seed in ((first, 1), (second, 2)):
        torch.manual_seed(seed)
        model = open_model(tiny)
        if place != "none":
            PLACES[place](model)
            train_a_little(model)
        model.save_pretrained(tmp_path / "target", include_backbones=True)
    same(model, open_model(tmp_path / "target"))


def test_shards_of_an_earlier_save_are_gone(model, tmp_path):
    model.language_model.save_pretrained(tmp_path / "language", max_shard_size="20KB")
    assert (tmp_path / "language" / "model.safetensors.index.json").is_file()
    (tmp_path / "language" / "notes.txt").write_text("mine", encoding="utf-8")
    unfrozen_language(model)
    train_a_little(model)
    model.save_pretrained(tmp_path, include_backbones=True)
    names = {file.name for file in (tmp_path / "language").iterdir()}
    assert {"model.safetensors", "notes.txt"} <= names and not any("index" in name or "-of-" in name for name in names)
    same(model, open_model(tmp_path))


def test_the_whole_model_in_peft_s_own_format(tiny, tmp_path):
    torch.manual_seed(1)
    wrapped = get_peft_model(open_model(tiny), lora("to_q", "q_proj"))
    assert all("lora" in name for name, p in wrapped.named_parameters() if p.requires_grad)
    train_a_little(wrapped.get_base_model())
    wrapped.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(open_model(tiny), tmp_path)
    assert torch.equal(logits(again), logits(wrapped.get_base_model()))
    inputs = inputs_of(again.get_base_model())
    assert torch.equal(
        again.generate(**inputs, max_new_tokens=3, do_sample=False),
        wrapped.generate(**inputs, max_new_tokens=3, do_sample=False),
    )


def test_the_whole_model_as_a_causal_language_model(model):
    wrapped = get_peft_model(model, lora("q_proj", task_type="CAUSAL_LM"))
    inputs = inputs_of(model)
    assert torch.equal(wrapped(**inputs).logits, model(**inputs).logits)
    assert wrapped.generate(**inputs, max_new_tokens=2).shape == (2, 7)


def test_an_adapter_at_zero_changes_nothing(model):
    before = logits(model)
    for place in (on_language, on_tower, on_resampler, on_cross_attention):
        place(model)
        torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-5)


def test_adapters_and_packed_weights(tiny, monkeypatch):
    monkeypatch.setattr(linear, "SMALLEST", 1)
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    torch.manual_seed(1)
    packed = open_model(tiny).pack()
    torch.manual_seed(1)
    other = open_model(tiny)
    assert any(p.is_mkldnn for p in packed.parameters())
    for place in (on_language, on_tower, on_cross_attention):
        torch.manual_seed(3)
        place(packed)
        torch.manual_seed(3)
        place(other)
    torch.testing.assert_close(logits(packed), logits(other), atol=1e-5, rtol=1e-4)
    train_a_little(packed)
    train_a_little(other)
    torch.testing.assert_close(logits(packed.pack()), logits(other), atol=1e-4, rtol=1e-3)
    assert packed.kept_tensors().keys() == other.kept_tensors().keys()
    packed.unpack()
    packed.language_model = packed.language_model.merge_and_unload()
    torch.testing.assert_close(logits(packed.pack()), logits(other), atol=1e-4, rtol=1e-3)


def test_dropout_of_adapters_is_on_while_they_train(model):
    model.language_model = get_peft_model(model.language_model, lora("q_proj", lora_dropout=0.5))
    model.train()
    dropouts = {n: m.training for n, m in model.language_model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert dropouts and all(dropouts.values())
    assert not any(m.training for n, m in model.language_model.named_modules() if n.endswith("base_layer"))
    assert not any(m.training for m in model.eval().modules())


def test_an_unfrozen_part_is_in_training_mode(model):
    one_layer_of_language(model)
    layers = model.train().language_model.model.decoder.layers
    assert not any(m.training for m in layers[0].modules()) and all(m.training for m in layers[1].modules())


def test_a_language_model_with_an_adapter_keeps_it_trainable(tiny, model):
    wrapped = get_peft_model(open_model(tiny).language_model, lora("q_proj"))
    other = FlamingoForConditionalGeneration(model.config, language_model=wrapped)
    assert {n for n in other.trained_parameters() if n.startswith("language_model.")} == {
        n for n, _ in other.named_parameters() if "lora" in n
    }


def test_adapters_keep_their_precision(tiny, tmp_path):
    model = open_model(tiny, dtype=torch.bfloat16)
    on_language(model)
    on_cross_attention(model)
    for name, p in model.named_parameters():
        if "lora" in name:
            p.data = torch.randn_like(p, dtype=torch.float32)
    model.save_pretrained(tmp_path, include_backbones=True)
    again = open_model(tmp_path)
    assert again.dtype == torch.bfloat16
    same(model, again)


def test_without_peft_a_message_says_so(trained, monkeypatch):
    directory, _ = trained
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        open_model(directory / "on_language")


def test_moved_elsewhere(trained, tmp_path):
    directory, models = trained
    shutil.copytree(directory / "on_language", tmp_path / "elsewhere")
    for file in Path(tmp_path / "elsewhere").rglob("*.json"):
        assert str(directory.parent) not in file.read_text(encoding="utf-8")
    same(models["on_language"], open_model(tmp_path / "elsewhere"))


def test_an_unfrozen_tower_of_another_library():
    """A convolutional one, whose batch normalisation keeps its statistics: a checkpoint of a run has none."""
    torch.manual_seed(0)
    tower = VisionTower.from_config({"library": "timm", "name": "timm/resnet10t", "pretrained": None, "config": None})
    assert not any(m.training for m in tower.train().modules())
    pixels = torch.randn(2, 3, 64, 64)
    assert not tower(pixels).requires_grad
    tower.requires_grad_(True).train()
    before = {name: t.clone() for name, t in tensors(tower).items()}
    tower(pixels).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    assert any("running" in name for name in before)
    assert all(torch.equal(t, before[name]) for name, t in tensors(tower).items())
