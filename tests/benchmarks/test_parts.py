"""What a part needs: bytes and operations, against a small model's own tensors."""

import pytest
import torch

from benchmarks import answers
from benchmarks.parts import Parts, cache_bytes, floor, weight_bytes
from benchmarks.works import Work
from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.prompting import Prefix
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo


@pytest.fixture
def tiny(tmp_path):
    directory = save_tiny_flamingo(tmp_path)
    model = FlamingoForConditionalGeneration.from_pretrained(directory).requires_grad_(False)
    return model, FlamingoProcessor.from_pretrained(directory)


def prompt(processor, images):
    ids = torch.tensor(processor.tokenize(["<image>Output:a red cat<|endofchunk|>" * images]))
    return ids, torch.randn(1, images, 1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_bytes_that_are_kept_are_those_of_the_tensors(tiny):
    model, processor = tiny
    ids, pixels = prompt(processor, 3)
    media = model.encode_media(pixels)
    prefix = Prefix.of(model, ids[0], media)
    kept = cache_bytes(model)
    assert sum(k.nbytes + v.nbytes for k, v in prefix.layers) == kept["token"] * ids.shape[1]
    keys_values = sum(k.nbytes + v.nbytes for k, v in media.keys_values)
    assert keys_values == kept["image_keys_values"] * 3
    assert keys_values + media.latents.nbytes == kept["image"] * 3


def test_bytes_of_weights_leave_out_tables_that_are_looked_up_in(tiny):
    model, _ = tiny
    of = weight_bytes(model)
    position = model.language_model.model.decoder.embed_positions.weight.nbytes
    keys_values = sum(block.attention.to_kv.weight.nbytes for block in model.blocks)
    everything = sum(p.nbytes for p in model.parameters())
    assert of["decoding"] == everything - of["vision"] - 2 * of["resampler"] - position
    assert 2 * of["resampler"] == sum(p.nbytes for p in model.resampler.parameters()) + keys_values


def test_an_answer_is_divided_into_its_parts(tiny):
    model, processor = tiny
    parts = Parts(model, "wall")
    parts.counting = True
    ids, pixels = prompt(processor, 2)
    parts.begin()
    model.generate(ids, pixels, [2], num_beams=2, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    seconds = parts.end()
    assert parts.calls == {"vision": 1, "resampler": 2, "prefill": 1, "decoding": 4}
    assert all(value > 0 for value in seconds.values())
    weights = sum(p.numel() for name, p in model.resampler.named_parameters() if p.ndim > 1 and "embed" not in name)
    assert parts.operations["resampler"] > 2 * weights  # each at least once for an image
    one = 2 * sum(p.numel() for p in model.language_model.model.decoder.layers.parameters() if p.ndim > 1)
    assert parts.operations["prefill"] > one * (ids.shape[1] - 1)


def test_scoring_candidates_counts_as_decoding(tiny):
    model, processor = tiny
    parts = Parts(model, "wall")
    ids, pixels = prompt(processor, 1)
    model.score(ids, [[3, 4], [5, 6, 7]], pixel_values=pixels)
    assert parts.calls["prefill"] == 1 and parts.calls["decoding"] == 1


def test_the_floor_is_the_slower_of_products_and_memory():
    rates = {"matrix": 100.0, "memory": 10.0}
    assert floor(200, 5, rates) == 2
    assert floor(200, 50, rates) == 5


def test_a_prompt_is_read_once_for_all_beams():
    kept = {"token": 2, "image_keys_values": 1000}
    work = Work("a", "", shots=0, queries=2, beams=3)  # 3 tokens of a prompt; 20 new, half of them on average
    assert answers.read_of_cache(work, kept) == 2 * (2 * (3 + 3 * 10) + 1000)


def test_answers_are_compared_as_texts_or_as_scores():
    assert answers.compare(["w1 w2", "w3"], ["w1  w2 ", "w4"]) == {"same_answers": 0.5}
    assert answers.compare([[1.0, 2.0]], [[1.0, 2.5, 9.0]]) == {"scores_max": 0.5}
