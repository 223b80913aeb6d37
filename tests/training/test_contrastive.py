"""Contrastive training: the loss, its negatives on all processes, and which parameters it trains."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from flamboyance.model.dual_encoder import DualEncoder, Embeddings
from flamboyance.model.vision import VisionTower, tower_spec
from flamboyance.processes import World
from flamboyance.training.contrastive import contrastive_loss, text_keys
from tests.processes import ranks
from tests.training import contrastive_worker as worker

STEPS = 12
WAYS = [("clip", 1), ("nfnet", 1), ("clip", 2)]  # the tower, and micro-steps of a step


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("two") / "found.pt"
    ranks(worker.main, str(path), STEPS, *WAYS, log=path.with_suffix(".log"))
    return torch.load(path)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_are_one_with_the_joined_batch(way: tuple[str, int], together: Any) -> None:
    found, single = together[way], worker.run(World(), way[0], STEPS, way[1])
    assert single["loss"][-1] < 0.8 * single["loss"][0]  # it learns, so that following means something
    assert found["loss"] == pytest.approx(single["loss"], rel=1e-4)
    assert found["norm"] == pytest.approx(single["norm"], rel=1e-3)
    assert found["accuracy"] == single["accuracy"]
    for name, value in single["parameters"].items():
        if name.endswith(("k_proj.bias", "key.bias")):
            continue  # attention does not depend on them: their gradients are rounding errors, which AdamW magnifies
        assert_close(found["parameters"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_the_loss_is_clips() -> None:
    random = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 8, generator=random), dim=-1) for _ in range(2))
    loss, correct = contrastive_loss(Embeddings(images, texts, torch.tensor(3.0)), World())
    exp = (3 * images.double() @ texts.double().T).exp()
    diagonal = exp.diag()
    expected = -((diagonal / exp.sum(1)).log().mean() + (diagonal / exp.sum(0)).log().mean()) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert int(correct) == int((exp.argmax(1) == torch.arange(5)).sum())
    same = F.normalize(torch.ones(5, 8), dim=-1)
    for smoothing in (0.0, 0.1):  # where nothing tells pairs apart, chance
        loss, _ = contrastive_loss(Embeddings(same, same, torch.tensor(10.0)), World(), smoothing)
        assert float(loss) == pytest.approx(math.log(5))


def test_another_pairs_equal_text_is_an_images_own() -> None:
    ids = torch.tensor([[5, 6, 0], [7, 8, 9], [5, 6, 0], [5, 6, 4], [6, 5, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]])
    keys = text_keys(ids, mask)
    assert keys[0] == keys[2] and len(set(keys.tolist())) == 4
    assert torch.equal(text_keys(ids[[0]][:, :2], mask[[0]][:, :2]), keys[[0]])  # whatever the padding
    texts = F.one_hot(torch.tensor([0, 1, 0, 2, 3]), 8).float()  # as an encoder gives them
    embeddings = Embeddings(texts, texts, torch.tensor(3.0))
    assert int(contrastive_loss(embeddings, World())[1]) == 4
    assert int(contrastive_loss(embeddings, World(), keys=keys)[1]) == 5
    same = F.normalize(torch.ones(5, 8), dim=-1)  # a collapsed tower is right by chance alone
    assert int(contrastive_loss(Embeddings(same, texts, torch.tensor(3.0)), World(), keys=keys)[1]) <= 2


def test_a_pair_does_not_depend_on_its_batch() -> None:
    model, batch = worker.made("clip").eval(), worker.pairs(0)
    texts = model.embed_texts(batch.input_ids, batch.attention_mask)
    for row, length in enumerate(batch.attention_mask.sum(1)):
        alone = model.embed_texts(batch.input_ids[row : row + 1, :length], torch.ones(1, int(length)))
        assert_close(alone[0], texts[row])


@pytest.mark.parametrize("tower", worker.TOWERS)
def test_every_parameter_that_counts_is_trained(tower: str) -> None:
    model = worker.made(tower)
    trained = model.trained_parameters()
    batch = worker.pairs(0, model.vision.image_size)
    pixels = worker.normalized(batch.images)
    loss, _ = contrastive_loss(model.train()(pixels, batch.input_ids, batch.attention_mask), World())
    loss.backward()
    assert all(p.grad is not None for p in trained.values())
    left = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"text.pooler.dense.weight", "text.pooler.dense.bias"} <= left
    assert "log_scale" in trained and "image_projection.weight" in trained
    assert not any(name.startswith("vision.model.") and "norm" not in name for name in left)


def test_activation_checkpointing_changes_nothing() -> None:
    found = []
    for checkpointed in (False, True):
        model, batch = worker.made("clip").train(), worker.pairs(0)
        if checkpointed:
            model.checkpoint_activations()
        out = model(worker.normalized(batch.images), batch.input_ids, batch.attention_mask)
        contrastive_loss(out, World())[0].backward()
        found.append({name: p.grad for name, p in model.trained_parameters().items()})
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, msg=lambda m, name=name: f"{name}: {m}")


def test_batch_normalisation_keeps_its_statistics() -> None:
    model = DualEncoder(VisionTower.from_config(tower_spec("timm/test_efficientnet")), worker.bert(), 8).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    side = model.vision.image_size
    model(torch.rand(2, 3, side, side), torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long))
    assert model.text.training and any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_the_temperature_is_limited() -> None:
    model = worker.made("clip")
    with torch.no_grad():
        model.log_scale.fill_(7.0)
    model.limit_scale()
    assert model.log_scale.exp().item() == pytest.approx(100)
