"""torch.compile and torch.export see one graph, and give what the model gives by itself.

Backends that generate no code keep most of these quick: what is tested is what Dynamo traces.
"""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flamboyance import FlamingoForConditionalGeneration
from flamboyance.model import linear
from flamboyance.model.media import Media, Spans, count_seen, prefill_layout, traced_layout
from tests.model.families import EOC, FAMILIES, IMAGE, images, make, pad_left, prompt

HOW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs(*seeds: int, counts: bool = True):
    """Two prompts of two images, one of them padded; the numbers of images as a tensor, as the processor gives them."""
    text = pad_left([prompt(3, 4, seed=seeds[0] if seeds else 0), prompt(9, 2, seed=1, lead=2)])
    given = {**text, "pixel_values": images(2, 2, seed=seeds[0] if seeds else 0)}
    return {**given, "media_counts": torch.tensor([2, 2])} if counts else given


def step_after(out, given):
    """The next token's arguments, greedily."""
    mask = torch.cat([given["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    return {"input_ids": out.logits[:, -1:].argmax(-1), "attention_mask": mask, "past_key_values": out.past_key_values}


@torch.no_grad()
def prefill_and_step(model, media, given, **extra):
    out = model(given["input_ids"], given["attention_mask"], media=media, use_cache=True, **extra)
    logits = out.logits.clone()
    return logits, model(**step_after(out, given), media=media, use_cache=True).logits


@torch.no_grad()
def test_one_graph_each_for_prompts_and_steps_in_any_thread(monkeypatch):
    model, given = make("opt", cross_attn_every_n_layers=3), inputs()
    others = [inputs(seed) for seed in (3, 4, 5)]
    wanted = [model(**each).logits for each in (given, *others)]
    text = model.generate(**given, **HOW)
    monkeypatch.setattr(linear, "SMALLEST", 0)
    monkeypatch.setattr(linear, "onednn_is_faster", linear.has_onednn)
    assert any(p.is_mkldnn for p in model.pack().parameters()) == linear.has_onednn()
    model.compile(backend="eager", fullgraph=True)  # an error where Dynamo would break the graph
    assert not any(p.is_mkldnn for p in model.parameters())
    torch.testing.assert_close(model(**given).logits, wanted[0])
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(torch.no_grad()(lambda other: model(**other).logits), others))
    for one, expected in zip(found, wanted[1:], strict=True):
        torch.testing.assert_close(one, expected)
    for wrong in ({"media_counts": torch.tensor([2, 1])}, {"input_ids": given["input_ids"] + 1000}):
        with pytest.raises(RuntimeError):  # what a graph finds in values cannot be a ValueError
            model(**given | wrong)
    assert torch.equal(model.generate(**given, **HOW), text)


@pytest.mark.slow  # half a minute of tracing each
@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_no_graph_breaks(family):
    model, given = make(family), inputs()
    media = model.encode_media(given["pixel_values"])
    wanted = prefill_and_step(model, media, given)
    explained = torch._dynamo.explain(model)(**given)
    assert explained.graph_break_count == 0 and explained.graph_count == 1
    torch._dynamo.reset()
    found = prefill_and_step(torch.compile(model, backend="eager", fullgraph=True), media, given)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "mpt", "llama"])
def test_beams_and_scores_of_a_compiled_model(family):
    model, given = make(family), inputs()
    beams = model.generate(**given, **HOW, num_beams=2)
    scores = model.score(**given, candidates=[[5], [6, 7]])
    model.compile(backend="eager", fullgraph=True)
    assert torch.equal(model.generate(**given, **HOW, num_beams=2), beams)
    torch.testing.assert_close(model.score(**given, candidates=[[5], [6, 7]]), scores, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_gradients_through_a_compiled_model():
    plain, compiled, given = make("opt"), make("opt"), inputs()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for model in (plain, compiled):
        model(**given, labels=given["input_ids"], use_cache=False).loss.backward()
    for name, parameter in compiled.trained_parameters().items():
        torch.testing.assert_close(parameter.grad, plain.trained_parameters()[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_computes_alike(strict):
    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, **given):
            return self.model(**given, use_cache=False).logits

    model, given, file = make("opt"), inputs(), io.BytesIO()
    torch.export.save(torch.export.export(Logits(model), (), given, strict=strict), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(**given), model(**given).logits)


@pytest.mark.slow  # a C++ compiler's time
@torch.no_grad()
def test_a_compiled_model_is_saved_and_compiled_anew_in_another_process(tmp_path):
    model, given = make("opt"), inputs(counts=False)
    wanted = model(**given).logits
    compiled = torch.compile(model, backend="eager")
    compiled(**given)
    compiled.save_pretrained(tmp_path / "model", include_backbones=True)
    torch.save(given, tmp_path / "inputs.pt")
    code = """
import sys, torch
from flamboyance import FlamingoForConditionalGeneration
torch.set_num_threads(1)  # as here: sums in parts may have other last bits
folder = sys.argv[1]
model = FlamingoForConditionalGeneration.from_pretrained(f"{folder}/model")
given = torch.load(f"{folder}/inputs.pt")
with torch.no_grad():
    plain, compiled = (m(**given).logits for m in (model, torch.compile(model, fullgraph=True)))
torch.save([plain, compiled], f"{folder}/logits.pt")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    plain, found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(plain, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert FlamingoForConditionalGeneration.from_pretrained(tmp_path / "model").config.vocab_size == EOC + 3


SEEN = {
    "as text": None,
    "any order": torch.tensor([[2, 2, 0, 1, 1, 2, 0], [0, 1, 0, 0, 1, 1, 1], [1, 2, 3, 3, 2, 1, 0]]),
}


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("times", [1, 2])
def test_the_layout_of_a_graph_shows_each_token_its_image(kind, times):
    """Compared with the layout outside of graphs, by what each token attends to."""
    torch.manual_seed(0)
    rows, latents = ((0, 3), (2,), (1, 4, 0)), torch.randn(5, 1, 4)
    ids = torch.tensor([[9, IMAGE, 9, 9, IMAGE, 9, 9], [9, 9, IMAGE, 9, 9, 9, 9], [IMAGE, IMAGE, 9, IMAGE, 9, 9, 9]])
    media = Media(latents, (), rows)
    seen = count_seen(ids, IMAGE, media) if SEEN[kind] is None else SEEN[kind]
    seen = seen.repeat_interleave(times, 0)
    expected = torch.tensor([[(-1, *rows[i // times])[s] for s in row] for i, row in enumerate(seen.tolist())])
    for layout in (prefill_layout(seen, media), traced_layout(seen, media)):
        assert shown(layout, expected.shape).tolist() == expected.tolist()

    spans = Media(latents, (), ((0, 1), (2,), (3, 4)))
    object.__setattr__(spans, "rows", Spans(torch.tensor([0, 2, 3]), torch.tensor([2, 1, 2])))
    seen = seen.clamp(max=torch.tensor([2, 1, 2]).repeat_interleave(times)[:, None])
    first = torch.tensor([0, 2, 3]).repeat_interleave(times)[:, None]
    assert torch.equal(shown(traced_layout(seen, spans), seen.shape), (first + seen - 1).where(seen > 0, -1))


def shown(layout, shape):
    """(R, T) the image that each token's query meets, -1 for none."""
    queries = torch.arange(shape[0] * shape[1]).float()[None, :, None, None].view(*shape, 1, 1)
    blocks = layout.to_blocks(queries)
    image = layout.image_of_block
    image = torch.arange(len(blocks)) if image is None else image
    met = image[:, None, None, None].expand_as(blocks).float() + 1
    # A token's own query comes back to it.
    back = layout.from_blocks(blocks + 1, *shape)[..., 0]
    out = layout.from_blocks(met, *shape)[..., 0].long() - 1
    assert torch.equal(back.where(out >= 0, 0), (queries[..., 0, 0] + 1).where(out >= 0, 0))
    return out
