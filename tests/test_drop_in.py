"""The published OpenFlamingo example runs with its import line changed, and what its users call works as there."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from flamboyance import FewShotTask, FlamingoProcessor, create_model_and_transforms
from flamboyance.checkpoints import openflamingo
from tests.published import save_backbones

# From the reference's README, but for the first line, and the paths and image files that stand for downloads.
README = '''
from flamboyance import create_model_and_transforms

model, image_processor, tokenizer = create_model_and_transforms(
    clip_vision_encoder_path=PATHS["vision"],
    clip_vision_encoder_pretrained=None,
    lang_encoder_path=PATHS["language"],
    tokenizer_path=PATHS["tokenizer"],
    cross_attn_every_n_layers=1,
    cache_dir=PATHS["cache"]  # Defaults to ~/.cache
)

# grab model checkpoint from huggingface hub
import torch

checkpoint_path = PATHS["checkpoint"]
model.load_state_dict(torch.load(checkpoint_path), strict=False)

from PIL import Image

"""
Step 1: Load images
"""
demo_image_one = Image.open(PATHS["000000039769.jpg"])

demo_image_two = Image.open(PATHS["000000028137.jpg"])

query_image = Image.open(PATHS["000000028352.jpg"])


"""
Step 2: Preprocessing images
Details: For OpenFlamingo, we expect the image to be a torch tensor of shape
 batch_size x num_media x num_frames x channels x height x width.
 In this case batch_size = 1, num_media = 3, num_frames = 1,
 channels = 3, height = 224, width = 224.
"""
vision_x = [image_processor(demo_image_one).unsqueeze(0), image_processor(demo_image_two).unsqueeze(0), image_processor(query_image).unsqueeze(0)]
vision_x = torch.cat(vision_x, dim=0)
vision_x = vision_x.unsqueeze(1).unsqueeze(0)

"""
Step 3: Preprocessing text
Details: In the text we expect an <image> special token to indicate where an image is.
 We also expect an <|endofchunk|> special token to indicate the end of the text
 portion associated with an image.
"""
tokenizer.padding_side = "left" # For generation padding tokens should be on the left
lang_x = tokenizer(
    ["<image>An image of two cats.<|endofchunk|><image>An image of a bathroom sink.<|endofchunk|><image>An image of"],
    return_tensors="pt",
)


"""
Step 4: Generate text
"""
generated_text = model.generate(
    vision_x=vision_x,
    lang_x=lang_x["input_ids"],
    attention_mask=lang_x["attention_mask"],
    max_new_tokens=20,
    num_beams=3,
)

print("Generated text: ", tokenizer.decode(generated_text[0]))
'''  # noqa: E501  as it was published


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Everything that the example downloads, tiny."""
    directory = tmp_path_factory.mktemp("published")
    paths = save_backbones(directory)
    random = np.random.default_rng(0)
    for name in ("000000039769.jpg", "000000028137.jpg", "000000028352.jpg"):
        pixels = random.integers(0, 255, (random.integers(180, 320), random.integers(180, 320), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / name)
    paths |= {"cache": str(directory / "cache")} | {file.name: str(file) for file in directory.glob("*.jpg")}
    model, _, _ = create_model_and_transforms(paths["vision"], None, paths["language"], paths["tokenizer"])
    state = {key: torch.randn(t.shape) if key.endswith("_gate") else t for key, t in openflamingo.export(model).items()}
    torch.save(state, directory / "checkpoint.pt")
    return paths | {"checkpoint": str(directory / "checkpoint.pt")}


@pytest.fixture(scope="module")
def published(paths):
    """What stands in the example's names after it has run."""
    names = {"PATHS": paths}
    exec(README, names)
    return names


def test_the_published_example_runs(published, capsys):
    exec(README, {"PATHS": published["PATHS"]})
    printed = capsys.readouterr().out
    assert printed.startswith("Generated text:  <image>An image of two cats.<|endofchunk|><image>An image of a bath")
    prompt, generated = published["lang_x"]["input_ids"], published["generated_text"]
    assert published["vision_x"].shape == (1, 3, 1, 3, 224, 224)
    assert torch.equal(generated[:, : prompt.shape[1]], prompt)
    assert prompt.shape[1] < generated.shape[1] <= prompt.shape[1] + 20
    assert published["model"].dtype == torch.float32
    # The images matter.
    other = published["model"](vision_x=published["vision_x"] * 0, lang_x=prompt).logits
    assert not torch.allclose(other, published["model"](vision_x=published["vision_x"], lang_x=prompt).logits)


def test_ids_of_the_added_tokens(published):
    tokenizer, model = published["tokenizer"], published["model"]
    first = model.config.base_vocab_size
    assert [tokenizer.encode(t)[-1] for t in ("<|endofchunk|>", "<image>", "<PAD>")] == [first, first + 1, first + 2]
    assert len(tokenizer) == first + 3 == model.config.vocab_size


def test_greedy_search_equals_the_same_by_hand(published):
    model, prompt = published["model"], published["lang_x"]["input_ids"]
    greedy = model.generate(published["vision_x"], prompt, max_new_tokens=6, num_beams=1, do_sample=False)
    ids = prompt
    for _ in range(greedy.shape[1] - prompt.shape[1]):
        logits = model(vision_x=published["vision_x"], lang_x=ids).logits[:, -1]
        logits[:, [model.config.image_token_id, model.config.pad_token_id]] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1)[:, None]], dim=1)
    assert torch.equal(greedy, ids)
    several = model.generate(published["vision_x"], prompt, num_beams=3, num_return_sequences=3, max_new_tokens=6)
    assert len(several) == 3


def test_the_mask_may_be_given_by_position(published):
    inputs = published["lang_x"]["input_ids"], published["lang_x"]["attention_mask"]
    by_position = published["model"].generate(published["vision_x"], *inputs, max_new_tokens=20, num_beams=3)
    assert torch.equal(by_position, published["generated_text"])
    out = published["model"](published["vision_x"], *inputs, inputs[0])
    assert out.loss.ndim == 0


def test_loss_as_a_training_loop_calls_it(published):
    model, ids = published["model"], published["lang_x"]["input_ids"]
    out = model(
        vision_x=published["vision_x"],
        lang_x=ids,
        attention_mask=published["lang_x"]["attention_mask"],
        labels=ids.masked_fill(ids == model.config.image_token_id, -100),
    )
    (loss,) = torch.autograd.grad(out[0], [model.resampler.latents])
    assert out[0] is out.loss and loss.abs().sum() > 0


def test_cached_media(published):
    model, ids, vision_x = published["model"], published["lang_x"]["input_ids"], published["vision_x"]
    whole = model(vision_x=vision_x, lang_x=ids).logits
    try:
        model.cache_media(input_ids=ids, vision_x=vision_x)
        assert torch.equal(model(vision_x=None, lang_x=ids, clear_conditioned_layers=False).logits, whole)
        # Scored in two steps, as the reference's classification: the prompt, then a text without <image>.
        start = model(vision_x=None, lang_x=ids[:, :-3], use_cache=True, clear_conditioned_layers=False)
        rest = model(vision_x=None, lang_x=ids[:, -3:], past_key_values=start.past_key_values, use_cache=True)
        torch.testing.assert_close(rest.logits, whole[:, -3:], atol=1e-5, rtol=1e-5)
        # Text alone goes on after the last of the cached images, whatever stands before it.
        plain = torch.tensor([[5, 6, 7], [8, 9, 10]])
        looking = model(vision_x=None, lang_x=plain).logits
        media = model.encode_media(vision_x[:, 2:].repeat(2, 1, 1, 1, 1, 1))
        wanted = model(lang_x=plain, media=media, images_seen=torch.ones(2, 3, dtype=torch.long)).logits
        torch.testing.assert_close(looking, wanted, atol=1e-6, rtol=1e-5)
    finally:
        model.uncache_media()
    assert not torch.allclose(model(vision_x=None, lang_x=plain).logits, looking)


def test_generation_does_not_look_at_cached_media(published):
    model, text = published["model"], torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    before = model.generate(None, text, output_logits=True, return_dict_in_generate=True, **options).logits
    try:
        model.cache_media(published["lang_x"]["input_ids"], published["vision_x"])
        after = model.generate(None, text, output_logits=True, return_dict_in_generate=True, **options).logits
    finally:
        model.uncache_media()
    assert torch.equal(torch.stack(before), torch.stack(after))


def test_more_images_than_tokens_are_padding(published):
    model, vision_x, ids = published["model"], published["vision_x"], published["lang_x"]["input_ids"]
    padded = torch.cat([vision_x, torch.full_like(vision_x, torch.nan)], dim=1)
    assert torch.equal(model(padded, ids).logits, model(vision_x, ids).logits)
    assert torch.equal(
        model.generate(padded, ids, max_new_tokens=5, num_beams=3),
        model.generate(vision_x, ids, max_new_tokens=5, num_beams=3),
    )
    with pytest.raises(ValueError, match=r"(?i)row 0.* 3 .*lang_x.* 2 .*vision_x"):
        model(vision_x[:, :2], ids)


def test_other_interfaces_take_the_drop_in(published):
    model, tokenizer = published["model"], published["tokenizer"]
    processor = FlamingoProcessor(published["image_processor"], tokenizer)
    task = FewShotTask(
        model, processor, [(published["demo_image_one"], "two cats."), (published["demo_image_two"], "x")]
    )
    assert len(task([published["query_image"]], max_new_tokens=3)) == 1
    (label, chances), *_ = task.classify([published["query_image"]], ["two cats.", "a bathroom sink."])
    assert label in chances and sum(chances.values()) == pytest.approx(1)
    inputs = processor(["<image>An image of"], [[published["query_image"]]])
    assert model.score(**inputs, candidates=[" two cats.", " a"]).shape == (1, 2)


def test_options_of_the_constructor(paths):
    args = paths["vision"], None, paths["language"], paths["tokenizer"]
    frozen, _, _ = create_model_and_transforms(*args, freeze_lm_embeddings=True, use_local_files=True)
    assert {n.split(".")[0] for n, p in frozen.named_parameters() if p.requires_grad} == {
        "resampler",
        "cross_attention",
    }
    frozen.load_state_dict(torch.load(paths["checkpoint"]), strict=False)  # its rows are used, not trained
    named, _, _ = create_model_and_transforms(
        *args, cross_attn_every_n_layers=2, decoder_layers_attr_name="gpt_neox.layers", gradient_checkpointing=True
    )
    assert named.cross_attention_layers == [1]
    with pytest.raises(ValueError, match=r"'transformer\.h'.*gpt_neox\.layers"):
        create_model_and_transforms(*args, decoder_layers_attr_name="transformer.h")


def test_state_dicts(published):
    model = copy.deepcopy(published["model"])
    own = {key: t.clone() for key, t in model.state_dict().items()}
    assert model.load_state_dict(own).missing_keys == []
    for nothing in ({}, {"visual.conv1.weight": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"\b(none|visual)"):
            model.load_state_dict(nothing, strict=False)
    with pytest.raises(ValueError, match="perceiver"):
        model.load_state_dict({"perceiver.norm.weight": torch.ones(32)}, strict=False)
