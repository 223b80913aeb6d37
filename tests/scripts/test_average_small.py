"""The mean of two stages of flamingo-small."""

import pytest
import torch
from safetensors.torch import load_file

from flamboyance import FlamingoForConditionalGeneration
from scripts.pretrain_small.average import average, main
from tests.tiny import save_tiny_flamingo


def test_the_mean_of_two_stages_opens_as_a_model(tmp_path):
    models = []
    for name in ("earlier", "later"):
        save_tiny_flamingo(tmp_path / name)
        models.append(FlamingoForConditionalGeneration.from_pretrained(tmp_path / name / "model"))
    with torch.no_grad():
        for parameter in models[1].own_parameters().values():
            parameter += 1
    models[1].save_pretrained(tmp_path / "later" / "model")
    main(
        [
            *(str(tmp_path / name / "model") for name in ("earlier", "later")),
            "--share=0.25",
            f"--output={tmp_path / 'mean'}",
        ]
    )
    mean = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "mean").own_parameters()
    before, after = (model.own_parameters() for model in models)
    assert mean.keys() == before.keys()
    for name, parameter in mean.items():
        torch.testing.assert_close(parameter, 0.75 * before[name] + 0.25 * after[name])
    assert load_file(tmp_path / "later/model/model.safetensors").keys() == mean.keys()


def test_models_of_other_sizes_have_no_mean(tmp_path):
    save_tiny_flamingo(tmp_path / "one")
    save_tiny_flamingo(tmp_path / "other", max_frames=4)
    with pytest.raises(ValueError, match="time_embeddings"):
        average(tmp_path / "one/model", tmp_path / "other/model", 0.5, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
