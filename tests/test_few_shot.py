"""A few-shot task gives what the full prompt gives, whatever the queries' lengths."""

import copy
import json
import math

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flamboyance import FewShotTask, FlamingoProcessor, examples, load_mini, templates
from flamboyance.images import ImageProcessor
from flamboyance.model import linear
from flamboyance.prompting import completion_tokens
from tests.model.families import FAMILIES, PIXELS, VOCABULARY, make
from tests.model.zoo import tiny_config

WORDS = [
    "Output",
    ":",
    "Question",
    "Short",
    "answer",
    "?",
    "what",
    "is",
    "this",
    "a",
    "red",
    "blue",
    "cat",
    "dog",
    "two",
]


def processor(bos: bool = False) -> FlamingoProcessor:
    words = [f"w{i}" for i in range(VOCABULARY - len(WORDS) - 2)]
    vocabulary = {w: i for i, w in enumerate(["<unk>", "</s>", *WORDS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return FlamingoProcessor(
        ImageProcessor.clip(PIXELS), PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    )


def word_beginnings() -> FlamingoProcessor:
    """With a tokenizer of which `cat` at the beginning of a word is another token."""
    pieces = ["<unk>", "</s>", "▁", "▁cat", "cat", "▁dog", "dog", "x", *(f"w{i}" for i in range(VOCABULARY - 8))]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return FlamingoProcessor(
        ImageProcessor.clip(PIXELS), PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    )


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (20, 24, 3), dtype=np.uint8))


DEMONSTRATIONS = [
    (picture(0), "what is this ?", "a red cat"),
    (picture(1), "a blue w3 w4 ?", "two"),
    (picture(2), "w5", "dog"),
]
QUERIES = [(picture(3), "what is this ?"), (picture(4), "w1"), (picture(5), "is this a red w7 w8 w9 w10 cat ?")]
NEW = {"max_new_tokens": 5, "min_new_tokens": 5}


def full_prompt(task, queries):
    demonstrations = [task.template.demonstration(*shot[1:]) for shot in DEMONSTRATIONS]
    texts = ["".join(demonstrations) + task.template.query(question) for _, question in queries]
    return task.processor(texts, [[shot[0] for shot in DEMONSTRATIONS] + [image] for image, _ in queries])


@pytest.mark.parametrize(
    ("family", "bos"), [*((family, False) for family in FAMILIES), ("llama", True), ("mosaic_gpt", True)]
)
def test_equals_the_full_prompt(family, bos):
    model = make(family)
    task = FewShotTask(model, processor(bos), DEMONSTRATIONS, template=templates.vqa)
    inputs = full_prompt(task, QUERIES)
    for beams in (1, 3):
        out = model.generate(**inputs, num_beams=beams, do_sample=False, **NEW)[:, inputs["input_ids"].shape[1] :]
        expected = [task.template.parse(text) for text in task.processor.batch_decode(out)]
        assert task(QUERIES, num_beams=beams, **NEW) == expected
        if beams > 1:
            assert task(QUERIES, num_beams=beams, batch_size=1, **NEW) == expected
        assert task(QUERIES[::-1], num_beams=beams, batch_size=2, **NEW) == expected[::-1]


@pytest.mark.parametrize("family", ["llama", "mpt", "gemma3_text"])
def test_classification_equals_the_full_prompt(family):
    model = make(family)
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    labels = ["cat", "a red dog", "two blue"]
    found = task.classify(QUERIES, labels)
    for (label, probabilities), query in zip(found, QUERIES, strict=True):
        inputs = full_prompt(task, [query])
        scores = []
        for text in labels:
            new = torch.tensor([task.processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
            whole = torch.cat([inputs["input_ids"], new], 1)
            with torch.no_grad():
                logits = model(whole, pixel_values=inputs["pixel_values"]).logits[0]
            log = logits[-new.shape[1] - 1 : -1].log_softmax(-1).gather(1, new[0, :, None])
            scores.append(log.mean())
        expected = torch.stack(scores).softmax(0)
        torch.testing.assert_close(torch.tensor([probabilities[x] for x in labels]), expected, atol=1e-5, rtol=1e-4)
        assert label == labels[int(expected.argmax())]


def test_labels_are_read_after_each_query_of_a_batch():
    """Where the label begins a word, as after an empty question, its token is `▁cat`; after `x` it is `cat`."""
    model, reading = make("llama"), word_beginnings()
    template = templates.Template("<image>{question}{text}")
    task = FewShotTask(model, reading, template=template)
    queries, labels = [(picture(i), text) for i, text in enumerate(("x", "", "x x", ""))], ["cat", "dog"]
    first, second = (completion_tokens(reading, template, template.query(text), labels) for text in ("x", ""))
    assert first != second
    alone = [task.classify([query], labels)[0] for query in queries]
    for (label, found), (expected, probabilities) in zip(task.classify(queries, labels), alone, strict=True):
        assert label == expected and found == pytest.approx(probabilities, abs=1e-6)


def test_demonstrations_are_computed_once():
    model = make("llama")
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    seen = []
    model.vision.register_forward_hook(lambda tower, args, out: seen.append(len(args[0])))
    task(QUERIES, batch_size=2, **NEW)
    task(QUERIES[:1], num_beams=3, **NEW)
    assert seen == [3, 2, 1, 1], "three demonstrations once, then each query's own image, whatever the beams"


def test_the_prefix_is_left_as_it_was():
    model = make("llama")
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    before = [(k.clone(), v.clone()) for k, v in task.prefix.layers]
    task(QUERIES, num_beams=2, **NEW)
    task.classify(QUERIES, ["cat", "a dog"])
    for (k, v), (k0, v0) in zip(task.prefix.layers, before, strict=True):
        assert torch.equal(k, k0) and torch.equal(v, v0)


def test_without_demonstrations_and_captions():
    model = make("llama")
    task = FewShotTask(model, processor(), template=templates.caption)
    inputs = task.processor(["<image>Output:"], [[picture(3)]])
    out = model.generate(**inputs, do_sample=False, **NEW)[:, inputs["input_ids"].shape[1] :]
    assert task([picture(3)], **NEW) == [templates.caption.parse(task.processor.decode(out[0]))]


def test_save_and_load(tmp_path):
    model = make("mpt")
    twice = [*DEMONSTRATIONS, (picture(0), "w5", "two")]  # an image is shown again
    task = FewShotTask(model, processor(), twice, template=templates.vqa)
    expected = task(QUERIES, **NEW)
    task.save(tmp_path / "task")
    again = FewShotTask.load(tmp_path / "task", model, processor())
    seen = []
    model.vision.register_forward_hook(lambda tower, args, out: seen.append(len(args[0])))
    assert again(QUERIES, **NEW) == expected
    assert seen == [3], "no demonstration is encoded again"
    with pytest.raises(ValueError, match="another model"):
        FewShotTask.load(tmp_path / "task", make("mpt", seed=1), processor())
    with pytest.raises(ValueError, match=r"task.json"):
        FewShotTask.load(tmp_path / "nowhere", model, processor())
    empty = FewShotTask(model, processor(), template=templates.vqa)
    empty.save(tmp_path / "empty")
    assert FewShotTask.load(tmp_path / "empty", model, processor())(QUERIES, **NEW) == empty(QUERIES, **NEW)


def test_labels_are_read_as_they_stand_after_the_query():
    """SentencePiece tokenizers write a word at a text's beginning otherwise (`▁cat`) than after a colon (`cat`)."""
    model = make("llama")
    pieces = ["<unk>", "</s>", "▁", "Output", ":", "cat", "dog", "red", "▁Output", "▁cat", "▁dog", "▁red"]
    pieces += [f"w{i}" for i in range(VOCABULARY - len(pieces))]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    reader = FlamingoProcessor(
        ImageProcessor.clip(PIXELS), PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    )
    task = FewShotTask(model, reader, [(picture(0), "red cat"), (picture(1), "dog")])
    labels = ["cat", "red dog"]
    written = reader.tokenize(["<image>Output:" + label for label in labels])
    alone = [reader.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    assert written[0][-1:] != alone[0], "else this test shows nothing"
    [(_, probabilities)] = task.classify([picture(3)], labels)
    scores = []
    for label in labels:
        text = "".join(task.texts) + "<image>Output:"
        start = len(reader.tokenize([text])[0])
        inputs = reader([text + label], [[picture(0), picture(1), picture(3)]])
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        ids = inputs["input_ids"][0, start:]
        scores.append(logits[start - 1 : -1].log_softmax(-1).gather(1, ids[:, None]).mean())
    expected = torch.stack(scores).softmax(0)
    torch.testing.assert_close(torch.tensor([probabilities[x] for x in labels]), expected, atol=1e-5, rtol=1e-4)


def test_options_of_generation():
    model = make("llama")
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    torch.manual_seed(0)
    sampled = {tuple(task(QUERIES, do_sample=True, temperature=3.0, **NEW)) for _ in range(4)}
    assert len(sampled) > 1
    with pytest.raises(ValueError, match="num_return_sequences"):
        task(QUERIES, num_return_sequences=2)
    for option in ({"use_cache": False}, {"cache_implementation": "static"}):
        with pytest.raises(ValueError, match=next(iter(option))):  # without the demonstrations' cache: other answers
            task(QUERIES, **option)
    expected = task(QUERIES, **NEW)
    model.generation_config.use_cache = False  # as gradient checkpointing leaves it
    assert task(QUERIES, **NEW) == expected
    assert not task.prefix.media.latents.requires_grad, "a task keeps no graph alive"


CHANGES = {
    "another language model": lambda model: model.language_model.get_input_embeddings().weight.data.mul_(1.5),
    "one weight of the language model": lambda model: written(model.language_model.lm_head.weight),
    "another tower": lambda model: [p.data.mul_(1.5) for p in model.vision.parameters()],
    "the resampler": lambda model: model.resampler.layers[0].attention.to_q.weight.data.mul_(1.5),
    "precision": lambda model: model.to(torch.bfloat16),
    "an adapter": lambda model: adapted(model),
}


@torch.no_grad()
def written(weight):
    weight[5, 3] += 1


def adapted(model):
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    model.language_model = peft.get_peft_model(model.language_model, config)


@pytest.mark.parametrize("change", CHANGES)
def test_a_saved_task_is_refused_by_another_model(tmp_path, change):
    model = make("llama")
    FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa).save(tmp_path)
    opened = FewShotTask.load(tmp_path, model, processor())
    assert opened(QUERIES, **NEW)
    CHANGES[change](model)
    with pytest.raises(ValueError, match="another model"):
        FewShotTask.load(tmp_path, model, processor())
    with pytest.raises(ValueError, match="changed"):  # nor does one go on that was opened before
        opened(QUERIES, **NEW)


@pytest.mark.parametrize("change", [name for name in CHANGES if "one weight" not in name])
def test_a_task_is_computed_anew_when_the_model_changes(change):
    model = make("llama")
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    before = task.classify(QUERIES, ["cat", "a dog"])
    CHANGES[change](model)
    after = task.classify(QUERIES, ["cat", "a dog"])
    fresh = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    assert after == fresh.classify(QUERIES, ["cat", "a dog"]) != before


def test_a_packed_weight_that_is_loaded_is_noticed(monkeypatch):
    monkeypatch.setattr(linear, "SMALLEST", 1)
    model = make("llama").pack()
    packed = next(name for name, p in model.named_parameters() if p.is_mkldnn)
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    before = task.classify(QUERIES, ["cat", "a dog"])
    model.load_state_dict({packed: model.state_dict()[packed] * 2}, strict=False)
    assert next(p for name, p in model.named_parameters() if name == packed).is_mkldnn
    fresh = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    assert task.classify(QUERIES, ["cat", "a dog"]) == fresh.classify(QUERIES, ["cat", "a dog"]) != before


def test_each_query_has_one_answer_whatever_the_model_is_set_to():
    model = make("llama")
    model.generation_config.num_beams = model.generation_config.num_return_sequences = 2
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    assert len(task(QUERIES, num_beams=2, max_new_tokens=2)) == len(QUERIES)


def test_a_switched_adapter_is_noticed():
    model = make("llama")
    adapted(model)
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    before = task.classify(QUERIES, ["cat", "a dog"])
    with model.language_model.disable_adapter():
        assert task.classify(QUERIES, ["cat", "a dog"]) != before
    assert task.classify(QUERIES, ["cat", "a dog"]) == before


def test_a_model_that_did_not_change_is_not_computed_again(tmp_path):
    model = make("llama")
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    task.save(tmp_path)
    opened = FewShotTask.load(tmp_path, model, processor())
    for part in (task, opened):
        first = part.prefix
        model.train().eval()
        model.requires_grad_(False)
        part(QUERIES, **NEW)
        assert part.prefix is first
    expected = opened(QUERIES, **NEW)
    copied = copy.deepcopy(model)  # the same weights elsewhere
    opened.model = copied
    assert opened(QUERIES, **NEW) == expected


def test_a_saved_task_is_refused_with_another_processor(tmp_path):
    model = make("llama")
    FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa).save(tmp_path)
    other = processor()
    other.image_processor = ImageProcessor(size=PIXELS, crop=(PIXELS, PIXELS), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ValueError, match="preprocess"):
        FewShotTask.load(tmp_path, model, other)


def test_a_saved_task_is_refused_with_another_tokenizer(tmp_path):
    """Also one that reads the demonstrations alike, and not the queries."""
    model = make("llama")
    FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa).save(tmp_path)
    again, other = processor(), processor()
    again.tokenizer(["w1", "w1 w2"], padding=True, truncation=True, max_length=7)  # leaves no mark
    FewShotTask.load(tmp_path, model, again)
    told = json.loads(other.tokenizer.backend_tokenizer.to_str())
    words = told["model"]["vocab"]
    words["w60"], words["w61"] = words["w61"], words["w60"]
    other.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))
    with pytest.raises(ValueError, match="another tokenizer"):
        FewShotTask.load(tmp_path, model, other)


@pytest.mark.parametrize("damage", [{"texts": None}, {"model": None}, {"template": {"stops": None}}, None])
def test_a_damaged_task_file_is_named(tmp_path, damage):
    model = make("llama")
    FewShotTask(model, processor()).save(tmp_path)
    file = tmp_path / "task.json"
    file.write_text(json.dumps(damage and json.loads(file.read_text("utf-8")) | damage), encoding="utf-8")
    with pytest.raises(ValueError, match=r"task\.json.*damaged"):
        FewShotTask.load(tmp_path, model, processor())


def test_labels_that_are_written_alike_are_refused():
    task = FewShotTask(make("llama"), processor(), template=templates.caption)
    with pytest.raises(ValueError, match=r"'red' and 'red '"):
        task.classify([picture(0)], ["red", "red "])


def test_a_saved_task_that_is_not_finite_is_refused(tmp_path):
    model = make("llama")
    FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa).save(tmp_path)
    file = tmp_path / "prefix.safetensors"
    tensors = load_file(file)
    tensors["latents"][0, 0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"latents in .* not finite"):
        FewShotTask.load(tmp_path, model, processor())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        FewShotTask.load(tmp_path, model, processor())


def test_a_hybrid_model_equals_the_full_prompt_and_is_saved_and_loaded(tmp_path):
    """Its state can be neither cut nor moved: shared where queries have the same length, computed anew where not."""
    model = make("qwen3_next", cross_attn_every_n_layers=2, text_config=tiny_config("qwen3_next"))
    task = FewShotTask(model, processor(), DEMONSTRATIONS, template=templates.vqa)
    inputs = full_prompt(task, QUERIES)
    out = model.generate(**inputs, num_beams=3, do_sample=False, **NEW)[:, inputs["input_ids"].shape[1] :]
    expected = [task.template.parse(text) for text in task.processor.batch_decode(out)]
    assert task(QUERIES, num_beams=3, **NEW) == expected
    assert task(QUERIES, num_beams=3, batch_size=1, **NEW) == expected
    task.save(tmp_path)
    assert FewShotTask.load(tmp_path, model, processor())(QUERIES, num_beams=3, batch_size=1, **NEW) == expected


def test_what_demonstrations_say_is_not_cut():
    """A stop, or a character that is dropped, is kept where a demonstration has it."""
    mini, images = load_mini(), examples.queries
    captions = [(images[0], 'a sign that says "STOP"')]
    assert FewShotTask(*mini, captions).template.parse(' a sign "GO"') == 'a sign "GO"'
    assert FewShotTask(*mini, [(images[0], "a sign")]).template == templates.caption
    questions = FewShotTask(*mini, [(images[0], "what length ?", "Short")], templates.vqa)
    assert questions.template.parse("Short Answer: x") == "Short"
    assert questions.texts == [templates.vqa.demonstration("what length ?", "Short")]


def test_what_a_model_computes_of_nan_is_no_answer():
    (model, processor), images = load_mini(), examples.queries
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith("model.norm.weight")).fill_(math.nan)
    task = FewShotTask(model, processor)
    for beams in (1, 3):
        with pytest.raises(ValueError, match=r"NaN.*bfloat16"):
            task(images[:1], num_beams=beams)
    with pytest.raises(ValueError, match=r"NaN.*bfloat16"):
        task.classify(images[:1], ["ring", "cross"])
