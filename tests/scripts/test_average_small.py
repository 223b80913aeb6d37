"""The mean of two stages of flamingo-small."""

import pytest
import torch

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


def test_models_of_other_sizes_have_no_mean(tmp_path):
    save_tiny_flamingo(tmp_path / "one")
    save_tiny_flamingo(tmp_path / "other", max_frames=4)
    with pytest.raises(ValueError, match="time_embeddings"):
        average(tmp_path / "one/model", tmp_path / "other/model", 0.5, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_nothing_is_written_over_and_no_share_is_too_large(tmp_path):
    save_tiny_flamingo(tmp_path)
    model = tmp_path / "model"
    with pytest.raises(FileExistsError, match="model"):
        average(model, model, 0.5, model)
    with pytest.raises(ValueError, match=r"1\.5"):
        average(model, model, 1.5, tmp_path / "mean")
