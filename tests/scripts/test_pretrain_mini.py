"""The four stages of the recipe, a few steps each, end in a directory that opens; a stage that was cut off goes on."""

import numpy as np
import pytest
import torch

from flamboyance.mini.world import scene
from flamboyance.mini.world.scenes import digit_picture
from scripts.pretrain_mini import export, flamingo, language, naming, pool, tower
from scripts.pretrain_mini.documents import Entry


def test_what_the_first_block_is_asked_to_name():
    rng = np.random.default_rng(0)
    ring = scene(rng, 1, shape="ring", color="red", size="large")
    thing = ring.things[0]
    words = ["<image>", "output", ":"]
    assert naming.names("binding", Entry(ring, "Output:", "dafi"), words) == [(), (), ("red", "ring")]
    asked = ["<image>", "question", ":", "what", "color", "is", "the", "ring", "?", "cross"]
    named = naming.names("question", Entry(ring, "", "red"), asked)
    assert named[7] == ("large", "red", thing.column)
    assert named[9] == ("nothing",) and named[4] == ()
    two = scene(rng, 2)
    assert naming.names("caption", Entry(two, "Output:", ""), words) == [(), (), ()]
    seven = digit_picture(0, "train", rng)
    assert naming.names("caption", Entry(seven, "Output:", ""), words)[-1] == (seven.digit.value,)


@pytest.mark.slow
def test_from_nothing_to_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SIZES", {1: 700, 2: 50, 3: 50, "digit": 200})
    for module, steps in ((tower, 2), (language, 2), (flamingo, 2), (naming, 2)):
        monkeypatch.setattr(module, "STEPS", steps)
    monkeypatch.setattr(flamingo, "glance", lambda model, processor: "")
    tower.train(tmp_path, 2)
    language.train(tmp_path, 2)
    flamingo.train(tmp_path, 1)
    model, processor = flamingo.train(tmp_path, 2)  # goes on from step 1
    before = {name: p.detach().clone() for name, p in model.trained_parameters().items()}
    monkeypatch.setattr(naming.flamingo, "train", lambda folder: (model, processor))
    trained, _ = naming.train(tmp_path, 2)
    assert any(not torch.equal(p, before[name]) for name, p in trained.trained_parameters().items())
    monkeypatch.setattr(export.naming, "train", lambda folder: (trained, processor))
    target = export.train_and_save(tmp_path)
    opened, reader = export.load(target)
    size = sum(file.stat().st_size for file in target.rglob("*.safetensors"))
    assert size < 20_000_000
    inputs = reader(["<image>Output:"], [[np.zeros((64, 64, 3), np.uint8)]])
    with torch.no_grad():
        assert opened(**inputs).logits.isfinite().all()
