"""`train finetune model=small`: a few pictures with captions in a style of one's own change what is trained alone."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from flamboyance.cli import main
from flamboyance.files import read_json_lines
from flamboyance.names import SMALL, embedded_directory
from flamboyance.small.benchmarks import HOME
from tests.small.test_load_small import needs_language_model


@needs_language_model
def test_a_style_is_learned_from_a_few_pictures(tmp_path: Path) -> None:
    rows = [row for _, row in read_json_lines(HOME / "pictures.jsonl") if row["style"] == "photograph"][:8]
    (tmp_path / "photos").mkdir()
    for number, row in enumerate(rows):
        shutil.copyfile(HOME / row["file"], tmp_path / "photos" / f"{number}.jpg")
        (tmp_path / "photos" / f"{number}.txt").write_text(f"LOOK! {row['phrase']} :)\n", encoding="utf-8")
    settings = ["steps=6", "batch_size=4", "held_out=0.25", f"output={tmp_path / 'run'}"]
    assert main(["train", "finetune", f"data={tmp_path / 'photos'}", "model=small", *settings]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [line["evaluation/loss"] for line in lines if "evaluation/loss" in line]
    assert measured[-1] < 0.8 * measured[0]  # on two held-out pictures
    old = load_file(embedded_directory(SMALL) / "model.safetensors")
    new = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert old.keys() == new.keys()  # what is trained: neither backbone is written anew
    assert any(not old[name].float().allclose(new[name].float(), atol=1e-4) for name in old)
