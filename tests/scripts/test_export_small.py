"""flamingo-small as the package ships it: 16 bits, a card with the table, and nothing replaced by what is too large."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flamboyance as fl
from scripts.pretrain_small import export
from tests.tiny import save_tiny_flamingo

TABLE = "| | | 4 shots |\n|---|---|---:|\n| words | as given | 92% |\n"


def test_the_shipped_model_answers_as_the_trained_one(tmp_path: Path) -> None:
    trained, target, table = save_tiny_flamingo(tmp_path / "run"), tmp_path / "shipped", tmp_path / "measured.md"
    table.write_text(TABLE, encoding="utf-8")
    target.mkdir()
    (target / "of-an-earlier-export").touch()
    export.main(["--model", str(trained), "--table", str(table), "--target", str(target)])
    assert not (target / "of-an-earlier-export").exists()
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {torch.float16}
    assert TABLE.strip() in (target / "README.md").read_text(encoding="utf-8")
    before, after = (fl.FlamingoForConditionalGeneration.from_pretrained(str(path)) for path in (trained, target))
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=5e-3, rtol=1e-2)


def test_what_is_too_large_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, target = save_tiny_flamingo(tmp_path / "run"), tmp_path / "shipped"
    target.mkdir()
    (target / "kept").touch()
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="MB"):
        export.export(trained, TABLE, target)
    assert (target / "kept").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_tower_has_its_own_directorys_precision(tmp_path: Path) -> None:
    trained, target, vision = save_tiny_flamingo(tmp_path / "run"), tmp_path / "shipped", tmp_path / "tower"
    for directory in (trained / "vision", vision):
        directory.mkdir(exist_ok=True)
    exact = torch.randn(4, 4)
    save_file({"stem": exact.bfloat16()}, trained / "vision" / "model.safetensors")
    save_file({"stem": exact, "classifier": exact.clone()}, vision / "model.safetensors")
    export.export(trained, TABLE, target, vision)
    written = load_file(target / "vision" / "model.safetensors")
    assert written.keys() == {"stem"} and torch.equal(written["stem"], exact.half())
