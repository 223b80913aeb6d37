"""transformers' own Trainer on a Flamingo: it trains, evaluates, resumes, and its checkpoints open."""

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, set_seed

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from tests.checkpoints.test_adapters import logits, on_language
from tests.processes import python
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo

ROWS = [
    "<image>Output:a red square<|endofchunk|>",
    "<image>Output:a blue cat<|endofchunk|>",
    "<image>Question:what is this? Short answer:yes<|endofchunk|>",
    "<image>Output:dog<|endofchunk|>",
    "<image>Output:a green circle a red dog a blue cat<|endofchunk|>",
    "<image>Output:no<|endofchunk|>",
    "<image>Output:a<|endofchunk|>",
    "<image>Output:this is a cat<|endofchunk|>",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rows(tiny):
    """Examples as a dataset gives them: texts of several lengths, an image each, and labels."""
    processor, random = FlamingoProcessor.from_pretrained(tiny), torch.Generator().manual_seed(0)
    found = []
    for text in ROWS:
        ids = torch.tensor(processor.tokenize([text])[0])
        pixels = torch.randn(1, 1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=random)
        labels = ids.masked_fill(ids == processor.image_token_id, -100)
        labels[:3] = -100  # the prompt
        found.append({"input_ids": ids, "pixel_values": pixels, "media_counts": torch.tensor(1), "labels": labels})
    return found


def collate(rows):
    def padded(name, value):
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    batch = {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "media_counts")}
    batch |= {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    for i, row in enumerate(rows):
        batch["attention_mask"][i, : len(row["input_ids"])] = 1
    return batch


def trainer(model, rows, directory, **options):
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "no"} | options
    arguments = TrainingArguments(
        str(directory), learning_rate=0.01, lr_scheduler_type="constant", report_to=[], use_cpu=True, seed=5,
        logging_steps=1, disable_tqdm=True, dataloader_num_workers=0, **options,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:3], data_collator=collate)


def opened(directory):
    set_seed(1)
    return FlamingoForConditionalGeneration.from_pretrained(directory)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.kept_tensors().items()}


def test_smoothed_labels_are_those_of_the_next_token(tiny, rows, tmp_path):
    model, batch = opened(tiny), collate(rows[:3])
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    found = trainer(model, rows, tmp_path, label_smoothing_factor=0.1).compute_loss(model, batch)
    assert_close(found, wanted)


def test_accumulated_gradients_equal_one_large_batch(tiny, rows, tmp_path):
    found, losses = [], []
    for batch_size, accumulated in ((8, 1), (2, 4)):
        model = opened(tiny)
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulated}
        of = trainer(model, rows, tmp_path, max_steps=2, max_grad_norm=0.0, optim="sgd", **sizes)
        of.train()
        found.append(weights(model))
        losses.append([line["loss"] for line in of.state.log_history if "loss" in line])
    assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
    assert_close(losses[0], losses[1], atol=2e-4, rtol=1e-3)


def test_evaluation_is_the_mean_loss_and_predictions_are_logits(tiny, rows, tmp_path):
    model = opened(tiny)
    of = trainer(model, rows, tmp_path, per_device_eval_batch_size=3)
    with torch.no_grad():
        out = model(**collate(rows[:3]))
    assert of.evaluate()["eval_loss"] == pytest.approx(out.loss.item(), abs=1e-5)
    predicted = of.predict(rows[:3])
    assert_close(torch.tensor(predicted.predictions), out.logits, atol=1e-5, rtol=1e-4)
    assert (predicted.label_ids == collate(rows[:3])["labels"].numpy()).all()


@pytest.mark.parametrize("adapted", [False, True])
def test_a_resumed_run_is_the_run_that_was_not_stopped(tiny, rows, tmp_path, adapted):
    def model():
        made = opened(tiny)
        if adapted:
            on_language(made)
        return made

    whole = model()
    trainer(whole, rows, tmp_path / "whole").train()
    trainer(model(), rows, tmp_path / "part", max_steps=2, save_strategy="steps", save_steps=2).train()
    again = model()
    trainer(again, rows, tmp_path / "part").train(resume_from_checkpoint=True)
    assert_close(weights(again), weights(whole), atol=1e-6, rtol=1e-5)
    if adapted:
        assert any("lora" in name for name in weights(whole))


def test_checkpoints_open_equal_in_a_new_process(tiny, rows, tmp_path):
    model = opened(tiny)
    on_language(model)
    trainer(model, rows, tmp_path, save_strategy="steps", save_steps=4).train()
    model.eval()
    checkpoint = tmp_path / "checkpoint-4"
    save_file({"logits": logits(model)}, tmp_path / "wanted.safetensors")
    code = """
import sys
from safetensors.torch import load_file
from tests.checkpoints.test_adapters import logits, open_model
found = logits(open_model(sys.argv[1]))
print((found - load_file(sys.argv[2])["logits"]).abs().max().item())
"""
    printed = python(code, checkpoint, tmp_path / "wanted.safetensors", log=tmp_path / "log")
    assert float(printed.splitlines()[-1]) < 1e-5


def test_the_best_model_is_loaded_at_the_end(tiny, rows, tmp_path):
    model = opened(tiny)
    model.language_model.model.decoder.layers[0].requires_grad_(True)  # so that unfrozen parts come back too
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    of = trainer(
        model, rows, tmp_path, load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
        save_total_limit=2, **steps,
    )  # fmt: skip
    of.train()  # the worst one, for the test: losses fall
    best = opened(of.state.best_model_checkpoint)
    assert_close(weights(model), {name: weights(best)[name] for name in weights(model)})
    assert of.evaluate()["eval_loss"] == pytest.approx(of.state.best_metric, abs=1e-5)


def test_the_whole_model_under_peft(tiny, rows, tmp_path):
    def model():
        return peft.get_peft_model(opened(tiny), peft.LoraConfig(target_modules=["to_q", "q_proj"], r=2))

    wrapped = model()
    trainer(wrapped, rows, tmp_path, save_strategy="steps", save_steps=4).train()
    base = opened(tiny)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "checkpoint-4")
    assert_close(logits(again), logits(wrapped.eval()))


def test_generation_still_ends_at_the_end_of_a_chunk(tiny, rows, tmp_path):
    model, processor = opened(tiny), FlamingoProcessor.from_pretrained(tiny)
    of = trainer(model, rows, tmp_path, max_steps=1)
    of.processing_class = processor.tokenizer
    of.train()
    ends = model.generation_config.eos_token_id
    assert model.config.eoc_token_id in (ends if isinstance(ends, list) else [ends])


def test_training_goes_on_with_activation_checkpointing(tiny, rows, tmp_path):
    plain, saving = opened(tiny), opened(tiny)
    trainer(plain, rows, tmp_path).train()
    trainer(saving, rows, tmp_path, gradient_checkpointing=True).train()
    assert_close(weights(saving), weights(plain), atol=1e-5, rtol=1e-4)
