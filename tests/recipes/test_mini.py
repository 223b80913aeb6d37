"""The mini's run: what it starts from, its data through its own sources, and a step in which it learns."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from flamboyance import load_mini
from flamboyance.data.examples import WorkerProcessor, make_example
from flamboyance.data.loader import Loader
from flamboyance.data.shards import expand, records
from flamboyance.mini import evaluation as mini_evaluation
from flamboyance.mini.world.words import SEPARATOR
from flamboyance.recipes.mini import mini
from flamboyance.training.run import TrainingRun
from flamboyance.training.step import summed_loss


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    made = mini(output=str(tmp_path_factory.mktemp("mini")), documents=40)
    assert made.prepare
    made.prepare()
    return made


def test_it_starts_afresh_around_the_embedded_backbones(run: TrainingRun) -> None:
    torch.manual_seed(0)
    model, processor = run.build()
    embedded, _ = load_mini()
    assert all(not block.attention_gate.any() and not block.feed_forward_gate.any() for block in model.blocks)
    row = processor.eoc_token_id - processor.base_vocab_size
    separator = processor.tokenizer.convert_tokens_to_ids(SEPARATOR)
    assert torch.equal(model.added_tokens.embedding[row], model.get_input_embeddings().weight[separator])
    for name, parameter in embedded.named_parameters():
        same = torch.equal(parameter, model.get_parameter(name))
        assert same == (name not in model.trained_parameters()), name
    assert run.outline().to_dict()["resampler"] == embedded.config.resampler == model.config.resampler


def test_no_record_is_dropped_and_every_word_is_known(run: TrainingRun) -> None:
    _, processor = run.build()
    worker, seen = WorkerProcessor.of(processor), Counter()
    for name, source in run.training.sources.items():
        for shard in expand(source.shards):
            for record in records(shard):
                document = source.document(record, np.random.default_rng(0))
                example = make_example(document, source, worker, np.random.default_rng(0))
                assert len(example.images) == len(document.images)
                assert processor.tokenizer.unk_token_id not in example.input_ids
                seen[name] += 1
    assert seen == {"pairs": 40, "documents": 40, "sequences": 20}


def test_some_steps_lower_the_loss(run: TrainingRun) -> None:
    torch.manual_seed(0)
    model, processor = run.build()
    model.train()
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=4e-3)
    loader = Loader({"pairs": run.training.sources["pairs"]}, processor, seed=0, workers=0)
    losses = []
    for _ in range(12):
        batch = next(loader)["pairs"]
        loss = summed_loss(model, batch, processor.image_processor.normalized, model.device) / batch.targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    loader.close()
    assert losses[-1] < 0.6 * losses[0]


def test_its_evaluation_knows_a_trained_model_from_an_untrained_one(run: TrainingRun) -> None:
    torch.manual_seed(0)
    good = mini_evaluation.evaluate(*load_mini(), trials=3)
    fresh = mini_evaluation.evaluate(*run.build(), trials=3)
    assert good.keys() == fresh.keys()
    assert all(0 <= share <= 1 for share in [*good.values(), *fresh.values()])
    assert min(good[name] for name in ("captions@0", "digits@0", "questions@4", "binding@4")) > 0.6
    assert fresh["captions@0"] < 0.2


def test_preparing_again_changes_nothing(run: TrainingRun, capfd: pytest.CaptureFixture) -> None:
    folder = Path(run.training.output) / "shards"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert run.prepare
    run.prepare()
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert capfd.readouterr().err == ""
